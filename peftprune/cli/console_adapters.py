"""Tables of adapters for the terminal. They only lay out what they are given."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.table import Table

from peftprune.cli.console import _console

if TYPE_CHECKING:
    from peftprune.adapters.inspection import Inspection
    from peftprune.adapters.pruning import Pruned


def show_inspection(found: Inspection) -> None:
    """One row a site, the totals, and what pruning further would cost."""
    console = _console()
    table = Table(title=f"{found.path} ({found.format})", title_justify="left")
    table.add_column("site", overflow="fold")
    for name in ("shape", "rank", "effective", "norm", "largest", "density", "upper half"):
        table.add_column(name, justify="right")
    shares = any(found.sites["shared_with"])
    if shares:
        table.add_column("shares with", overflow="fold")
    for row in found.sites.to_dict("records"):
        cells = [row["site"], f"{row['d_out']}×{row['d_in']}", str(row["rank"]), f"{row['effective_rank']:.2f}"]
        cells += [f"{row['norm']:.4g}", f"{row['largest']:.4g}", f"{row['density']:.0%}", _share(row["half_energy"])]
        table.add_row(*cells, *([row["shared_with"]] if shares else []))
    console.print(table)
    totals = found.totals
    copies = totals["expanded_params"] - totals["params"]
    console.print(
        f"{totals['sites']} sites, {totals['params']:,} adapter parameters"
        + (f" (and {copies:,} in copies of shared factors)" if copies else "")
        + f", {totals['head_params']:,} others, {totals['bytes']:,} bytes. effective: exp of the entropy of the "
        "singular values; norm and largest: Frobenius and spectral norm of ΔW; upper half: share of the squared norm "
        "in the larger half of the singular values."
    )
    for name, value in found.facts.items():
        console.print(f"{name}: {value}")
    for note in found.notes:
        console.print(f"Note: {note}")
    if not found.further.empty:
        _show_further(found)


def _show_further(found: Inspection) -> None:
    console = _console()
    table = Table(title="Pruning it further", title_justify="left")
    for name in ("budget", "params", "kept energy", "if uniform", "least kept"):
        table.add_column(name, justify="right")
    table.add_column("at", overflow="fold")
    for row in found.further.to_dict("records"):
        numbers = (_share(row["kept_energy"]), _share(row["uniform_energy"]), _share(row["worst_energy"]))
        table.add_row(f"rank={row['rank']}", f"{row['params']:,}", *numbers, row["worst_site"])
    console.print(table)
    console.print(
        "kept energy: share of the squared norm of ΔW that is left when the largest singular values of all sites are "
        "kept; if uniform: when every site is cut to the rank; least kept: by the site that then loses most."
    )


def show_pruned(done: Pruned) -> None:
    """One row a site that changed, and the totals."""
    console = _console()
    table = Table(title="Pruned", title_justify="left")
    table.add_column("site", overflow="fold")
    for name in ("rank", "left", "kept energy"):
        table.add_column(name, justify="right")
    for name, (before, after) in done.ranks.items():
        table.add_row(name, str(before), str(after), _share(done.energies[name]))
    console.print(table)
    for note in done.adapter.notes:
        console.print(f"Note: {note}")
    console.print(
        f"{done.params_after:,} of {done.params_before:,} adapter parameters are left; they keep "
        f"{done.kept_energy:.4%} of the energy (the squared norm of ΔW)."
    )


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2%}"
