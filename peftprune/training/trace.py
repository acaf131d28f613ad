"""The trace of an allocation: the state of the sites after every applied plan, one row per event."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from peftprune.adapters.plan_check import Change
from peftprune.strategy import PruningPlan, Site, SiteSet


class Trace:
    """Rows of `allocation.jsonl`.

    A row holds `step` (0 before training), `phase`, `reason`, `scores` (site to the importance that the strategy
    stated; empty if it stated none) and `sites`. For each site that the event changed, `sites` holds `rank`, `density`
    (share of entries that are not zero; None where nothing was zeroed), `shared_with`, and `components`: which of the
    initial rank components the site still holds; None means all. Components that are grown later are numbered from the
    initial rank; a site that starts afresh numbers its components from 0 again.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._last: dict[str, dict[str, Any]] = {}
        self._components: dict[str, list[int]] = {}
        self._born: dict[str, int] = {}

    def begin(self, sites: SiteSet, phase: str) -> None:
        self._born = sites.ranks
        self._components = {name: list(range(rank)) for name, rank in self._born.items()}
        self._append(sites, 0, phase, "initial ranks", {}, with_density=False)

    def record(self, sites: SiteSet, plan: PruningPlan, changes: Sequence[Change], step: int, phase: str) -> None:
        """Records the state after a plan was applied.

        A plan that only assigns values and states no scores leaves no row: methods that take steps of their own return
        one in every step. `step` counts from 1.
        """
        if not plan.scores and replace(plan, assign={}).is_empty:
            return
        self._follow(changes)
        scores = {name: float(score) for name, score in plan.scores.items()}
        self._append(sites, step, phase, plan.reason, scores, with_density=bool(plan.zero))

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "last": self._last, "components": self._components, "born": self._born}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows = list(state["rows"])
        self._last = dict(state["last"])
        self._components = dict(state["components"])
        self._born = dict(state["born"])

    def _follow(self, changes: Sequence[Change]) -> None:
        """Updates the components of every site that the changes concern."""
        for change in changes:
            first = change.sites[0]
            held, born = self._components[first], self._born[first]
            match change.kind:
                case "drop":
                    held = []
                case "keep":
                    held = [held[i] for i in change.value]
                case "reinit":
                    held, born = list(range(change.value)), change.value
                case "grow":
                    held, born = [*held, *range(born, born + change.value)], born + change.value
            for name in change.sites:
                self._components[name], self._born[name] = list(held), born

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
    """Returns the share of the site's entries of A and B that are not zero; None where the site was dropped."""
    if site.rank == 0:
        return None
    tensors = (site.A, site.B)
    return sum(int(torch.count_nonzero(t)) for t in tensors) / sum(t.numel() for t in tensors)
