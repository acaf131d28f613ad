"""The trace of an allocation: what every applied plan left at the sites, one row an event."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.sites import Site, SiteSet


class Trace:
    """Rows of `allocation.jsonl`.

    A row holds `step` (0 before training), `phase`, `reason`, `scores` (site to the importance that the strategy
    stated, empty where it stated none) and `sites`: for each site that the event changed its `rank`, `density` (share
    of entries that are not zero; None where nothing was zeroed), `shared_with`, and `components`: which of the initial
    rank components it still holds, None as long as it holds all of them. Components that were grown later are counted
    on from the initial rank; those of a site that starts afresh are new and counted from 0.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._last: dict[str, dict[str, Any]] = {}
        self._components: dict[str, list[int]] = {}
        self._born: dict[str, int] = {}

    def begin(self, sites: SiteSet, phase: str) -> None:
        """The state before the first step."""
        for name, site in sites.items():
            self._start(name, site.rank)
        self._append(sites, 0, phase, "initial ranks", {}, with_density=False)

    def record(self, sites: SiteSet, plan: PruningPlan, step: int, phase: str) -> None:
        """The state after a plan was applied at the end of `step` (counted from 1).

        A plan that only assigns values and states no scores leaves no row: methods that take steps of their own return
        one in every step.
        """
        if not plan.scores and replace(plan, assign={}).is_empty:
            return
        self._follow(sites, plan)
        scores = {name: float(score) for name, score in plan.scores.items()}
        self._append(sites, step, phase, plan.reason, scores, with_density=bool(plan.zero))

    def state_dict(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {"rows": self.rows, "last": self._last, "components": self._components, "born": self._born}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self.rows = list(state["rows"])
        self._last = dict(state["last"])
        self._components = dict(state["components"])
        self._born = dict(state["born"])

    def _start(self, name: str, rank: int) -> None:
        self._components[name] = list(range(rank))
        self._born[name] = rank

    def _follow(self, sites: SiteSet, plan: PruningPlan) -> None:
        """Carry the identity of components through the plan, in the order in which its parts are applied."""
        before = {name: [name, *row["shared_with"]] for name, row in self._last.items()}
        ties = {name: [name, *others] for name, others in sites.shared_with().items()}
        # Cuts come before the plan's own ties; members of a group may all be named, with the same indices.
        cut = {name: [self._components[name][i] for i in kept] for name, kept in plan.keep.items()}
        for name, left in cut.items():
            self._components.update({member: list(left) for member in before[name]})
        for name in plan.drop:
            self._components[name] = []
        for name, rank in plan.reinit.items():
            for member in ties[name]:
                self._start(member, rank)
        for first, *others in plan.share:
            for member in others:
                self._components[member] = list(self._components[first])
                self._born[member] = self._born[first]
        for name, extra in plan.grow.items():
            grown = [*self._components[name], *range(self._born[name], self._born[name] + extra)]
            for member in ties[name]:
                self._components[member], self._born[member] = list(grown), self._born[name] + extra

    def _append(
        self, sites: SiteSet, step: int, phase: str, reason: str, scores: dict[str, float], *, with_density: bool
    ) -> None:
        shared = sites.shared_with()
        changed = {}
        for name, site in sites.items():
            held = self._components[name]
            row = {
                "rank": site.rank,
                "density": density(site) if with_density else None,
                "shared_with": shared[name],
                "components": None if held == list(range(self._born[name])) else held,
            }
            if self._last.get(name) != row:
                changed[name] = self._last[name] = row
        self.rows.append({"step": step, "phase": phase, "reason": reason, "scores": scores, "sites": changed})


def density(site: Site) -> float | None:
    """Share of the site's entries of A and B that are not zero; None where the site was dropped."""
    if site.rank == 0:
        return None
    tensors = (site.A, site.B)
    return sum(int(torch.count_nonzero(t)) for t in tensors) / sum(t.numel() for t in tensors)
