"""Prints inspected and pruned adapters as tables on the terminal."""

from peftprune.adapters.inspection import Inspection
from peftprune.adapters.pruning import Pruned
from peftprune.cli.console import print_table, print_text
from peftprune.report.table import column, count, number, percent, plain, table


def show_inspection(found: Inspection) -> None:
    """Prints one row per site, the totals, and the cost of pruning further."""
    columns = [*map(plain, ("site", "shape")), count("rank"), number("effective_rank", 2, "effective")]
    columns += [column(name, None, "{:.4g}".format) for name in ("norm", "largest")]
    columns += [percent("density", digits=0), percent("half_energy", "upper half")]
    if any(found.sites["shared_with"]):
        columns.append(plain("shared_with", "shares with"))
    sites = [row | {"shape": f"{row['d_out']}×{row['d_in']}"} for row in found.sites.to_dict("records")]
    totals = found.totals
    copies = totals["expanded_params"] - totals["params"]
    note = (
        f"{totals['sites']} sites, {totals['params']:,} adapter parameters"
        + (f" (and {copies:,} in copies of shared factors)" if copies else "")
        + f", {totals['head_params']:,} others, {totals['bytes']:,} bytes. effective: exp of the entropy of the "
        "singular values; norm and largest: Frobenius and spectral norm of ΔW; upper half: share of the squared norm "
        "in the larger half of the singular values."
    )
    print_table(table(f"{found.path} ({found.format})", sites, columns, note=note))
    for name, value in found.facts.items():
        print_text(f"{name}: {value}")
    for text in found.notes:
        print_text(f"Note: {text}")
    if found.further.empty:
        return
    columns = [column("rank", "budget", "rank={}".format), count("params")]
    columns += [percent("kept_energy", "kept energy"), percent("uniform_energy", "if uniform")]
    columns += [percent("worst_energy", "least kept"), plain("worst_site", "at")]
    note = (
        "kept energy: share of the squared norm of ΔW that remains when the largest singular values of all sites are "
        "kept; if uniform: when every site is cut to the rank; least kept: at the site that then loses most."
    )
    print_table(table("Pruning it further", found.further, columns, note=note))


def show_pruned(done: Pruned) -> None:
    """Prints one row per site that changed, and the totals."""
    columns = [plain("site"), count("rank"), count("left"), percent("kept", "kept energy")]
    sites = [
        {"site": name, "rank": before, "left": after, "kept": done.energies[name]}
        for name, (before, after) in done.ranks.items()
    ]
    print_table(table("Pruned", sites, columns))
    for text in done.adapter.notes:
        print_text(f"Note: {text}")
    print_text(
        f"{done.params_after:,} of {done.params_before:,} adapter parameters are left; they keep "
        f"{done.kept_energy:.4%} of the energy (the squared norm of ΔW)."
    )
