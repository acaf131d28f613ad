"""Whether a plan fits the sites it is meant for. Nothing is changed here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftprune.errors import RunError

if TYPE_CHECKING:
    import torch

    from peftprune.strategy.plan import PruningPlan
    from peftprune.strategy.sites import Site, SiteSet


def check_plan(sites: SiteSet, plan: PruningPlan, rng: torch.Generator | None) -> None:
    """Refuse a plan that does not fit, before anything is changed.

    Args:
        sites: the sites as they are.
        plan: indices refer to what the sites show; masks and values to what the plan's earlier parts leave.
        rng: needed where the plan draws new rows of A.

    Raises:
        RunError: naming the part of the plan, the site and the cure.
    """
    named = [plan.keep, plan.zero, plan.grow, plan.reinit, plan.assign, plan.drop, plan.scores, *plan.share]
    for name in (n for part in named for n in part):
        if name not in sites:
            raise RunError(f"plan: {name!r} is not a site. Take names from view.sites")
    if rng is None and (plan.grow or plan.reinit):
        what = "grow" if plan.grow else "reinit"
        raise RunError(f"plan.{what} draws new rows of A and needs a generator. Pass rng to apply_plan")
    ties = _ties(sites)
    leaving = set(plan.drop) | {n for name, kept in plan.keep.items() if len(kept) == 0 for n in ties[name]}
    for part, revived in (
        (plan.keep, ()),
        *((p, plan.reinit) for p in (plan.zero, plan.grow, plan.assign, *plan.share)),
    ):
        for name in part:
            if sites[name].is_dropped and name not in revived:
                raise RunError(f"plan: {name!r} was dropped before. Use reinit to give it an adapter again")
            if name in (plan.drop if part is plan.keep else leaving) and name not in revived:
                raise RunError(f"plan: {name!r} is dropped by the same plan. Leave it out of drop, or out of the rest")
    for name, indices in plan.keep.items():
        found = list(indices)
        if found != sorted(set(found)) or (found and not 0 <= found[0] <= found[-1] < sites[name].rank):
            raise RunError(
                f"plan.keep[{name!r}]: {found} is not ascending within 0..{sites[name].rank - 1}. "
                "Use scoring.keep_top, which returns sorted indices"
            )
    for name, rank in plan.reinit.items():
        if not 1 <= rank <= sites[name].max_rank:
            raise RunError(f"plan.reinit[{name!r}]: {rank} is outside 1..{sites[name].max_rank}. Use drop for none")
    for group in plan.share:
        shapes = {(sites[n].d_in, sites[n].d_out) for n in group}
        if len(shapes) != 1:
            raise RunError(f"plan.share: {list(group)} have different shapes {sorted(shapes)}. Share like with like")
    for tied in sites.groups():
        for part in (plan.keep, plan.reinit, plan.grow):
            wanted = {str(part[s.name]) for s in tied if s.name in part}
            if len(wanted) > 1:
                raise RunError(f"plan: {[s.name for s in tied]} share their tensors. Give them the same entry, or one")
    ranks = _ranks_after(sites, plan)
    for part in (plan.zero, plan.assign):
        for name, tensors in part.items():
            for tensor_name, value in tensors.items():
                expected = _shape_after(sites[name], tensor_name, ranks[name])
                if value.shape != expected:
                    raise RunError(f"plan: {name!r}.{tensor_name} has shape {expected}, not {tuple(value.shape)}")


def _ties(sites: SiteSet) -> dict[str, set[str]]:
    """Each site with the sites that hold its tensors, itself among them."""
    ties = {name: {name} for name in sites}
    for group in sites.groups():
        together = {site.name for site in group}
        ties.update(dict.fromkeys(together, together))
    return ties


def _ranks_after(sites: SiteSet, plan: PruningPlan) -> dict[str, int]:
    """The ranks that the plan leaves, worked out in the order in which `apply_plan` goes; refuses too much growth."""
    ties, ranks = _ties(sites), sites.ranks
    for name in plan.drop:
        ties[name].discard(name)
        ties[name] = {name}
        ranks[name] = 0
    for part in ({n: len(kept) for n, kept in plan.keep.items()}, plan.reinit):
        for name, rank in part.items():
            ranks.update(dict.fromkeys(ties[name], rank))
    for first, *others in plan.share:
        for name in others:
            if name not in ties[first]:
                ties[name].discard(name)
                ties[first].add(name)
                ties[name] = ties[first]
            ranks[name] = ranks[first]
    grown = dict(ranks)
    for name, extra in plan.grow.items():
        if extra < 1 or ranks[name] + extra > sites[name].max_rank:
            raise RunError(f"plan.grow[{name!r}]: {extra} does not fit; ranks end at {sites[name].max_rank}")
        grown.update(dict.fromkeys(ties[name], ranks[name] + extra))
    return grown


def _shape_after(site: Site, tensor_name: str, rank: int) -> tuple[int, ...] | None:
    """The shape of the site's tensor at this rank; None where it has no such tensor."""
    if tensor_name == "A":
        return (rank, site.d_in)
    if tensor_name == "B":
        return (site.d_out, rank)
    gate = None if site.is_dropped or tensor_name != "gate" else site._gate_parameter
    if gate is None:
        return None
    return (rank,) if site._lora_A.gate_per_rank else (1,)
