"""Prunes a stored adapter from its factors alone, without training and without its base model.

The QR decomposition of the factors leaves an r × r core, at a cost of (d_in + d_out) · r² per site; ΔW, which has
d_in · d_out entries, is never formed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from peftprune.adapters.formats.adapter import Adapter, Factors, refuse_unusual, require_finite
from peftprune.adapters.formats.folder import check_out
from peftprune.adapters.formats.peft import peft_contents, ranked_config, write_peft
from peftprune.adapters.formats.read import read_adapter
from peftprune.adapters.save import METADATA_FILE
from peftprune.errors import UsageError
from peftprune.files import write_folder, write_json
from peftprune.scoring import keep_top, keep_top_global, rank_magnitude
from peftprune.scoring.magnitude import update_svd
from peftprune.strategy.budget import Budget, solve_ranks
from peftprune.strategy.sites import SiteShape

PruneMethod = Literal["svd", "magnitude"]
METHODS = ("svd", "magnitude")


class Target(NamedTuple):
    """The size to prune to: `kind` is "rank", "params" or "energy"."""

    kind: str
    value: float


@dataclass(frozen=True)
class Pruned:
    """The result of pruning.

    Attributes:
        adapter: the pruned adapter.
        ranks: site to rank before and after; 0 where the site is removed.
        energies: site to the share of its energy that is kept.
        kept_energy: 1 − Σ‖ΔW − ΔW'‖² / Σ‖ΔW‖² over all sites, in the Frobenius norm, 0 … 1.
        params_before: adapter parameters, shared factors counted once.
        params_after: likewise.
        path: the folder that was written, if any.
    """

    adapter: Adapter
    ranks: Mapping[str, tuple[int, int]]
    energies: Mapping[str, float]
    kept_energy: float
    params_before: int
    params_after: int
    path: Path | None = None


def prune(
    adapter: str | Path,
    out: str | Path,
    *,
    method: PruneMethod = "svd",
    budget: str = "rank=4",
    uniform: bool = False,
    alpha: float | None = None,
    overwrite: bool = False,
) -> Pruned:
    """Prunes a stored adapter and writes a PEFT adapter. A trained head is copied unchanged.

    Args:
        adapter: a PEFT folder, a native file or a loralib file.
        out: folder to write; it appears whole or not at all.
        method: "svd" keeps the largest singular values, which loses the least energy; "magnitude" keeps the components
            with the largest LoRPA score at each site (hadamard; outer where d_in ≠ d_out).
        budget: "rank=4", the parameters of uniform rank 4 on the same sites; "params=N"; or "energy=0.95", the fewest
            components that keep this share of the energy. Under "svd" all sites compete; under "magnitude" ranks are
            equal, and an energy applies to each site.
        uniform: with a rank: every site ends with this rank, or with its own if that is lower.
        alpha: lora_alpha of a loralib file, which does not store it.
        overwrite: replace a folder that this package wrote.

    Raises:
        UsageError: for an adapter or a request that cannot be pruned; nothing was changed.
    """
    source = read_adapter(adapter, alpha=alpha)
    target = check_out(Path(out), overwrite, source.path)
    done = prune_adapter(source, method, parse_target(budget), uniform=uniform)
    with write_folder(target) as aside:
        write_peft(*peft_contents(done.adapter), aside)
        write_json(aside / METADATA_FILE, dict(done.adapter.facts))
    return replace(done, path=target)


def parse_target(text: str) -> Target:
    """Parses `rank=4`, `params=100000` or `energy=0.95`. Raises UsageError for anything else."""
    key, _, value = (part.strip() for part in text.partition("="))
    if key == "energy":
        if not re.fullmatch(r"\d*\.?\d+(e-?\d+)?", value) or not 0 < float(value) <= 1:
            raise UsageError.of("budget.energy", value, "is not a share above 0 and up to 1", "Write energy=0.95")
        return Target("energy", float(value))
    if key not in ("rank", "params"):
        raise UsageError.of("budget", text, "names none of rank, params and energy", "Write rank=4, for example")
    found = Budget.parse(text)
    if found.has_length or found.count != "stored":
        raise UsageError.of("budget", text, "names more than a size", "Nothing is trained: keep rank or params alone")
    return Target(key, int(found.rank or found.params or 0))


def prune_adapter(adapter: Adapter, method: str, target: Target, *, uniform: bool = False) -> Pruned:
    """Prunes without writing; see `prune`."""
    if method not in METHODS:
        raise UsageError.of("method", method, "is unknown", f"Methods: {', '.join(METHODS)}")
    if uniform and target.kind != "rank":
        raise UsageError.of("uniform", uniform, f"needs a rank, not {target.kind}", "Write rank=4, for example")
    refuse_unusual(adapter, "pruning")
    require_finite(adapter)
    groups = {group[0]: group for group in adapter.groups()}
    first = {name: adapter.sites[name] for name in groups}
    params = sum(f.rank * f.unit_cost for f in first.values())
    allowed = _allowed(first, target, params)
    cut = _by_svd if method == "svd" else _by_magnitude
    kept, lost, whole = cut(first, {n: len(g) for n, g in groups.items()}, target, allowed, uniform)
    left = {member: f for name, group in groups.items() for member in group if (f := kept[name]) is not None}
    if not (sites := {name: left[name] for name in adapter.sites if name in left}):
        raise UsageError.of("budget", f"{target.kind}={target.value}", "leaves no site", "Allow more")
    total = sum(whole[n] * len(g) for n, g in groups.items())
    energy = 1.0 - sum(lost[n] * len(g) for n, g in groups.items()) / total if total > 0 else 1.0
    after = sum(f.rank * f.unit_cost for f in kept.values() if f is not None)
    of_site = {n: 1.0 - lost[g[0]] / whole[g[0]] if whole[g[0]] > 0 else 1.0 for g in groups.values() for n in g}
    return Pruned(
        replace(
            adapter,
            format="peft",
            sites=sites,
            config={**adapter.config, **ranked_config({n: f.rank for n, f in sites.items()})},
            facts=_facts(adapter, method, target, energy, sites),
        ),
        {n: (f.rank, sites[n].rank if n in sites else 0) for n, f in adapter.sites.items()},
        {n: of_site[n] for n in adapter.sites},
        energy,
        params,
        after,
    )


def _allowed(first: Mapping[str, Factors], target: Target, params: int) -> int:
    """Returns the budget in parameters; for an energy, all of them."""
    if target.kind == "energy":
        return params
    allowed = int(target.value) * (sum(f.unit_cost for f in first.values()) if target.kind == "rank" else 1)
    if allowed >= params:
        problem = f"allows {allowed:,} parameters, and the adapter has {params:,} already"
        raise UsageError.of("budget", f"{target.kind}={int(target.value)}", problem, "Give less")
    return allowed


Cut = tuple[dict[str, Factors | None], dict[str, float], dict[str, float]]
"""By site: the factors that are kept (None for none), the squared Frobenius norm that is lost, and that of ΔW."""


def _by_svd(first: Mapping[str, Factors], times: Mapping[str, int], target: Target, allowed: int, uniform: bool) -> Cut:
    found = {name: update_svd(f.A, f.B) for name, f in first.items()}
    values = {name: abs(first[name].scaling) * S.cpu() for name, (_, S, _) in found.items()}
    if uniform:
        ranks = {name: min(int(target.value), len(S)) for name, S in values.items()}
    elif target.kind == "energy":
        ranks = ranks_for_energy(values, times, target.value)
    else:
        ranks = ranks_for_params(values, {n: f.unit_cost for n, f in first.items()}, times, allowed)
    kept: dict[str, Factors | None] = {}
    for name, (U, S, V) in found.items():
        f, n = first[name], ranks[name]
        # A site that keeps all components keeps its factors.
        if n >= f.rank:
            kept[name] = Factors(f.A, f.scaled_B, 1.0, f.embedding)
        elif n == 0:
            kept[name] = None
        else:
            root = (abs(f.scaling) * S[:n]).sqrt()
            sign = -1.0 if f.scaling < 0 else 1.0
            A, B = (root[:, None] * V[:n]).to(f.A.dtype), (sign * U[:, :n] * root).to(f.B.dtype)
            kept[name] = Factors(A, B, 1.0, f.embedding)
    lost = {name: float(S[ranks[name] :].square().sum()) for name, S in values.items()}
    return kept, lost, {name: float(S.square().sum()) for name, S in values.items()}


def ranks_for_params(
    values: Mapping[str, Tensor], costs: Mapping[str, int], times: Mapping[str, int], params: int
) -> dict[str, int]:
    """Returns the ranks at which singular values of all sites, taken in descending order, fit into `params`.

    By site, `values` holds its singular values, (r,), descending, `costs` the parameters of one unit of rank, and
    `times` the number of sites that hold its factors, whose losses add up.
    """
    scores = {name: S * times[name] ** 0.5 for name, S in values.items()}
    return {name: len(kept) for name, kept in keep_top_global(scores, costs, params).items()}


def ranks_for_energy(values: Mapping[str, Tensor], times: Mapping[str, int], share: float) -> dict[str, int]:
    """Returns the ranks at which the fewest singular values keep this share of the sum of squares; see above."""
    rows = [(float(s) ** 2 * times[name], name) for name, S in values.items() for s in S]
    needed, running = share * sum(row[0] for row in rows) * (1 - 1e-12), 0.0
    ranks = dict.fromkeys(values, 0)
    for energy, name in sorted(rows, key=lambda row: -row[0]):
        if running >= needed:
            break
        ranks[name] += 1
        running += energy
    return ranks


def _by_magnitude(
    first: Mapping[str, Factors], times: Mapping[str, int], target: Target, allowed: int, uniform: bool
) -> Cut:
    """Cuts every site by LoRPA's score, which compares within a site: to equal ranks, or to the energy at each."""
    gram = {name: _gram(f) for name, f in first.items()}
    whole = {name: float(G.sum().clamp(min=0)) for name, G in gram.items()}
    order = {name: _scores(f) for name, f in first.items()}

    def lost(ranks: Mapping[str, int]) -> dict[str, float]:
        gone = {n: sorted({*range(f.rank)} - {*keep_top(order[n], ranks[n])}) for n, f in first.items()}
        return {n: float(gram[n][i][:, i].sum().clamp(min=0)) for n, i in gone.items()}

    if target.kind == "energy":
        limits = {n: (1 - target.value + 1e-12) * whole[n] for n in first}
        ranks = {n: f.rank for n, f in first.items()}
        for rank in range(max(ranks.values()) - 1, 0, -1):
            tried = {n: min(rank, f.rank) for n, f in first.items()}
            ranks |= {n: tried[n] for n, value in lost(tried).items() if value <= limits[n]}
    elif target.kind == "rank":
        ranks = {n: min(int(target.value), f.rank) for n, f in first.items()}
    else:
        # A site keeps at most its own rank.
        shapes = [SiteShape(n, 0, "", f.rank, f.rank) for n, f in first.items()]
        ranks = solve_ranks(shapes, allowed, unit_costs={n: f.unit_cost for n, f in first.items()})
    kept: dict[str, Factors | None] = {}
    for name, f in first.items():
        indices = keep_top(order[name], ranks[name])
        kept[name] = Factors(f.A[indices], f.scaled_B[:, indices], 1.0, f.embedding)
    return kept, lost(ranks), whole


def _scores(f: Factors) -> Tensor:
    return rank_magnitude(f.A.float(), f.B.float(), "hadamard" if f.A.shape[1] == f.B.shape[0] else "outer")


def _gram(f: Factors) -> Tensor:
    """Returns (r, r) inner products of the rank-one parts of ΔW: the sum over a block is a squared norm."""
    A, B = f.A.double(), f.B.double() * f.scaling
    return (B.T @ B) * (A @ A.T)


def _facts(
    adapter: Adapter, method: str, target: Target, energy: float, sites: Mapping[str, Factors]
) -> dict[str, Any]:
    """Returns the metadata of a pruned adapter: that of the original, apart from its base model, goes to `before`."""
    facts: dict[str, Any] = {
        "format": "PEFT",
        "pruned": {
            "from": adapter.path.name,
            "method": method,
            "budget": f"{target.kind}={target.value:g}" if target.kind == "energy" else f"{target.kind}={target.value}",
            "kept_energy": energy,
        },
        "before": {k: v for k, v in adapter.facts.items() if k not in ("shared_with", "base_sample")},
    }
    if "base_sample" in adapter.facts:
        facts["base_sample"] = adapter.facts["base_sample"]
    if groups := [g for g in replace(adapter, sites=sites).groups() if len(g) > 1]:
        facts["shared_with"] = {n: [m for m in g if m != n] for g in groups for n in g}
    return facts
