"""Resolves a plan against the sites: the changes that it means, in their order, or why it does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftprune.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

    from peftprune.strategy.plan import PruningPlan
    from peftprune.strategy.sites import Site, SiteSet


@dataclass(frozen=True)
class Change:
    """One change to tensors. `sites` names the sites that hold them: one site, or every site of a tied group."""

    sites: tuple[str, ...]


class Drop(Change):
    """The site loses its adapter; sites tied to it keep theirs."""


class Share(Change):
    """Every site takes the tensors of the first one."""


@dataclass(frozen=True)
class Keep(Change):
    """Only the rank components at `indices` (ascending) stay."""

    indices: tuple[int, ...]


@dataclass(frozen=True)
class Reinit(Change):
    """A and B start afresh at `rank`; a dropped site gets an adapter again."""

    rank: int


@dataclass(frozen=True)
class Grow(Change):
    """`extra` rank components are appended."""

    extra: int


@dataclass(frozen=True)
class Assign(Change):
    """Tensors ("A", "B" or "gate") take new values of the same shape."""

    values: Mapping[str, Tensor]


@dataclass(frozen=True)
class Zero(Change):
    """Entries of tensors become zero where the mask of the same shape is True."""

    masks: Mapping[str, Tensor]


def resolve_plan(sites: SiteSet, plan: PruningPlan) -> list[Change]:
    """Returns the plan's changes in the order in which they are applied. Nothing is changed here.

    Args:
        sites: the sites as they are.
        plan: rank indices refer to what the sites show; masks and values to what the plan's earlier parts leave.

    Raises:
        RunError: naming the part of the plan, the site and the cure.
    """
    named = [plan.keep, plan.zero, plan.grow, plan.reinit, plan.assign, plan.drop, plan.scores, *plan.share]
    for name in (n for part in named for n in part):
        if name not in sites:
            raise RunError(f"plan: {name!r} is not a site. Take names from view.sites")
    return _Resolver(sites).resolve(plan)


class _Resolver:
    """Follows ranks and ties through a plan."""

    def __init__(self, sites: SiteSet) -> None:
        self.sites = sites
        self.ranks = sites.ranks
        self.ties: dict[str, tuple[str, ...]] = {name: (name,) for name in sites}
        for group in sites.groups():
            self._tie(site.name for site in group)
        self.changes: list[Change] = []

    def resolve(self, plan: PruningPlan) -> list[Change]:
        for name in filter(self.ranks.get, plan.drop):
            self._drop(name)
        for name, group, indices in self._entries({n: tuple(kept) for n, kept in plan.keep.items()}):
            if indices != tuple(sorted(set(indices))) or (
                indices and not 0 <= indices[0] <= indices[-1] < self.ranks[name]
            ):
                raise RunError(
                    f"plan.keep[{name!r}]: {list(indices)} is not ascending within 0..{self.ranks[name] - 1}. "
                    "Use scoring.keep_top, which returns sorted indices"
                )
            if indices:
                self._change(Keep(group, indices), len(indices))
            else:
                for member in group:
                    self._drop(member)
        for name, group, rank in self._entries(plan.reinit, alive=False):
            if not 1 <= rank <= self.sites[name].max_rank:
                most = self.sites[name].max_rank
                raise RunError(f"plan.reinit[{name!r}]: {rank} is outside 1..{most}. Use drop for none")
            self._change(Reinit(group, rank), rank)
        for names in plan.share:
            shapes = {(self.sites[n].d_in, self.sites[n].d_out) for n in names}
            if len(shapes) != 1:
                raise RunError(
                    f"plan.share: {list(names)} have different shapes {sorted(shapes)}. Share like with like"
                )
            for name in names:
                self._require_adapter(name)
            first = names[0]
            joining = dict.fromkeys(n for n in names if n not in self.ties[first])
            if joining:
                self._tie([*self.ties[first], *joining])
                self._change(Share((first, *joining)), self.ranks[first])
        for name, group, extra in self._entries(plan.grow):
            most = self.sites[name].max_rank
            if extra < 1 or self.ranks[name] + extra > most:
                raise RunError(f"plan.grow[{name!r}]: {extra} does not fit; ranks end at {most}")
            self._change(Grow(group, extra), self.ranks[name] + extra)
        for kind, part in ((Assign, plan.assign), (Zero, plan.zero)):
            once: dict[tuple[str, ...], Any] = {}
            for name, tensors in part.items():
                self._require_adapter(name)
                for tensor_name, value in tensors.items():
                    expected = _shape(self.sites[name], tensor_name, self.ranks[name])
                    if value.shape != expected:
                        raise RunError(f"plan: {name!r}.{tensor_name} has shape {expected}, not {tuple(value.shape)}")
                once.setdefault(self.ties[name], tensors)
            self.changes += [kind(group, tensors) for group, tensors in once.items()]
        return self.changes

    def _entries(self, part: Mapping[str, Any], *, alive: bool = True) -> list[tuple[str, tuple[str, ...], Any]]:
        """Site, group and value of each entry, with tied sites named once: what changes one changes all."""
        found: dict[tuple[str, ...], tuple[str, Any]] = {}
        for name, value in part.items():
            if alive:
                self._require_adapter(name)
            group = self.ties[name]
            if found.setdefault(group, (name, value))[1] != value:
                raise RunError(f"plan: {list(group)} share their tensors. Give them the same entry, or one")
        return [(name, group, value) for group, (name, value) in found.items()]

    def _require_adapter(self, name: str) -> None:
        if self.sites[name].is_dropped and not self.ranks[name]:
            raise RunError(f"plan: {name!r} was dropped before. Use reinit to give it an adapter again")
        if not self.ranks[name]:
            raise RunError(f"plan: {name!r} is dropped by the same plan. Leave it out of drop, or out of the rest")

    def _change(self, change: Change, rank: int) -> None:
        self.changes.append(change)
        self.ranks.update(dict.fromkeys(change.sites, rank))

    def _drop(self, name: str) -> None:
        self._tie([name])
        self._change(Drop((name,)), 0)

    def _tie(self, names: Iterable[str]) -> None:
        """Makes these sites one group; sites that were tied to them stay tied to each other."""
        joined = tuple(names)
        for group in {self.ties[name] for name in joined}:
            left = tuple(name for name in group if name not in joined)
            self.ties.update(dict.fromkeys(left, left))
        self.ties.update(dict.fromkeys(joined, joined))


def _shape(site: Site, tensor_name: str, rank: int) -> tuple[int, ...] | None:
    """Returns the shape of the site's tensor at this rank; None where it has no such tensor."""
    if tensor_name == "A":
        return (rank, site.d_in)
    if tensor_name == "B":
        return (site.d_out, rank)
    gate = None if site.is_dropped or tensor_name != "gate" else site._gate_parameter
    if gate is None:
        return None
    return (rank,) if site._lora_A.gate_per_rank else (1,)
