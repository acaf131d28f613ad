"""Resolves a plan against the sites: the changes that it means, in their order, or why it does not fit."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from peftprune.errors import RunError
from peftprune.strategy import PruningPlan, SiteSet

Kind = Literal["drop", "rotate", "keep", "reinit", "share", "grow", "assign", "zero"]


@dataclass(frozen=True)
class Change:
    """One change to the tensors of sites: one site, or every site of a tied group.

    `kind` is the part of the plan; "share" gives every site the tensors of the first one. `value` holds two matrices
    ("rotate"), the indices that stay ("keep"), the new rank ("reinit"), the number of new components ("grow"), or
    values or masks by tensor name ("assign", "zero").
    """

    kind: Kind
    sites: tuple[str, ...]
    value: Any = None


def resolve_plan(sites: SiteSet, plan: PruningPlan) -> list[Change]:
    """Returns the plan's changes in the order in which they are applied. Nothing is changed here.

    Rank indices refer to what the sites show, masks and values to what the plan's earlier parts leave. Raises RunError,
    naming the part of the plan, the site and the cure.
    """
    named = [plan.drop, plan.rotate, plan.keep, plan.reinit, plan.grow, plan.assign, plan.zero, plan.scores]
    for name in (n for part in (*named, *plan.share) for n in part):
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
        for name, group, matrices in self._entries(plan.rotate, alike=False):
            shape = (self.ranks[name], self.ranks[name])
            if self.sites[name].gate is not None or any(matrix.shape != shape for matrix in matrices):
                raise RunError(f"plan.rotate[{name!r}]: takes two matrices of shape {shape}, at a site without a gate")
            self._change("rotate", group, self.ranks[name], matrices)
        for name, group, indices in self._entries({n: tuple(kept) for n, kept in plan.keep.items()}):
            last = self.ranks[name] - 1
            if list(indices) != sorted(set(indices)) or (indices and not 0 <= indices[0] <= indices[-1] <= last):
                problem = f"plan.keep[{name!r}]: {list(indices)} is not ascending within 0..{last}"
                raise RunError(f"{problem}. Use scoring.keep_top, which returns sorted indices")
            if indices:
                self._change("keep", group, len(indices), indices)
            else:
                for member in group:
                    self._drop(member)
        for name, group, rank in self._entries(plan.reinit, alive=False):
            most = self.sites[name].max_rank
            if not 1 <= rank <= most:
                raise RunError(f"plan.reinit[{name!r}]: {rank} is outside 1..{most}. Use drop for none")
            self._change("reinit", group, rank, rank)
        for names in plan.share:
            shapes = sorted({(self.sites[n].d_in, self.sites[n].d_out) for n in names})
            if len(shapes) != 1:
                raise RunError(f"plan.share: {list(names)} have different shapes {shapes}. Share like with like")
            for name in names:
                self._require_adapter(name)
            first = names[0]
            if joining := tuple(dict.fromkeys(n for n in names if n not in self.ties[first])):
                self._tie((*self.ties[first], *joining))
                self._change("share", (first, *joining), self.ranks[first])
        for name, group, extra in self._entries(plan.grow):
            most = self.sites[name].max_rank
            if extra < 1 or self.ranks[name] + extra > most:
                raise RunError(f"plan.grow[{name!r}]: {extra} does not fit; ranks end at {most}")
            self._change("grow", group, self.ranks[name] + extra, extra)
        within: dict[Kind, Mapping[str, Any]] = {"assign": plan.assign, "zero": plan.zero}
        for kind, part in within.items():
            for name, group, tensors in self._entries(part, alike=False):
                self._check_shapes(name, tensors)
                self._change(kind, group, self.ranks[name], tensors)
        return self.changes

    def _entries(
        self, part: Mapping[str, Any], *, alive: bool = True, alike: bool = True
    ) -> Iterator[tuple[str, tuple[str, ...], Any]]:
        """Yields site, group and value of each entry, a tied group once: what changes one site changes all of it."""
        found: dict[tuple[str, ...], tuple[str, Any]] = {}
        for name, value in part.items():
            if alive:
                self._require_adapter(name)
            group = self.ties[name]
            if alike and found.get(group, (name, value))[1] != value:
                raise RunError(f"plan: {list(group)} share their tensors. Give them the same entry, or one")
            found.setdefault(group, (name, value))
        for group, (name, value) in found.items():
            yield name, group, value

    def _require_adapter(self, name: str) -> None:
        if self.ranks[name]:
            return
        if self.sites[name].is_dropped:
            raise RunError(f"plan: {name!r} was dropped before. Use reinit to give it an adapter again")
        raise RunError(f"plan: {name!r} is dropped by the same plan. Leave it out of drop, or out of the rest")

    def _check_shapes(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        site, rank = self.sites[name], self.ranks[name]
        shapes: dict[str, tuple[int, ...]] = {"A": (rank, site.d_in), "B": (site.d_out, rank)}
        if not site.is_dropped and site.gate is not None:
            shapes["gate"] = (rank,) if site._lora_A.gate_per_rank else (1,)
        for tensor_name, value in tensors.items():
            if value.shape != (expected := shapes.get(tensor_name)):
                raise RunError(f"plan: {name!r}.{tensor_name} has shape {expected}, not {tuple(value.shape)}")

    def _change(self, kind: Kind, names: tuple[str, ...], rank: int, value: Any = None) -> None:
        self.changes.append(Change(kind, names, value))
        self.ranks.update(dict.fromkeys(names, rank))

    def _drop(self, name: str) -> None:
        self._tie([name])
        self._change("drop", (name,), 0)

    def _tie(self, names: Iterable[str]) -> None:
        """Makes these sites one group; sites that were tied to them stay tied to each other."""
        joined = tuple(names)
        for group in {self.ties[name] for name in joined}:
            left = tuple(name for name in group if name not in joined)
            self.ties.update(dict.fromkeys(left, left))
        self.ties.update(dict.fromkeys(joined, joined))
