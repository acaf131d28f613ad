"""PRILoRA: rank grows linearly with depth, and entries of A are pruned by weight times input statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from peftprune.scoring import lowest_mask, share_held, weight_times_input_norm
from peftprune.strategy.budget import ArmBudget
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.options import check_option, option
from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.signal import Signal
from peftprune.strategy.sites import SiteShape
from peftprune.strategy.spec import AdapterSpec
from peftprune.strategy.view import StepView


@dataclass(frozen=True)
class PRILoRAConfig:
    """Options of PRILoRA.

    Attributes:
        start_rank: rank of the first layer. 4 is a convention of ours.
        final_rank: rank of the last layer. 12 is a convention of ours. Under a matched budget only the ratio of the
            two counts, and the ranks are solved to meet the budget.
        sparsity: share of A that is zeroed at every event, in [0, 1). 0.5 is a convention of ours.
        prune_every: steps between events, at least 1. 40 is a convention of ours.
        beta: decay of the running input norm, in [0, 1). 0.9 is a convention of ours.
        pattern: where the share is exact: "row" (each row of A), "matrix" (all of A), or "n:m" such as "2:4": in every
            m neighbouring entries of a row the n highest stay, and `sparsity` is not used. Conventions of ours.
        moments: whether the optimizer's moments of zeroed entries stay or are zeroed too (a convention of ours). With
            kept moments a zeroed entry moves by about 0.86 of a learning rate in the next step.
    """

    start_rank: int = option(4, "convention of ours", "rank of the first layer")
    final_rank: int = option(12, "convention of ours", "rank of the last layer")
    sparsity: float = option(0.5, "convention of ours", "share of A zeroed at every event")
    prune_every: int = option(40, "convention of ours", "steps between events")
    beta: float = option(0.9, "convention of ours", "decay of the running input norm")
    pattern: str = option("row", "convention of ours", "'row', 'matrix' or 'n:m'")
    moments: Literal["keep", "zero"] = option("keep", "convention of ours", "moments of zeroed entries")

    def __post_init__(self) -> None:
        for name in ("start_rank", "final_rank", "prune_every"):
            value = getattr(self, name)
            ok = isinstance(value, int) and value >= 1
            check_option(ok, "prilora", name, value, "is not a whole number above 0", "Give 1 or more")
        check_option(
            0 <= self.sparsity < 1, "prilora", "sparsity", self.sparsity, "is outside [0, 1)", "Give 0.5, for example"
        )
        check_option(0 <= self.beta < 1, "prilora", "beta", self.beta, "is outside [0, 1)", "Give 0.9, for example")
        check_option(
            self.pattern in ("row", "matrix") or _n_of_m(self.pattern) is not None,
            "prilora", "pattern", self.pattern, "is unknown", 'Use "row", "matrix" or n:m such as "2:4"',
        )  # fmt: skip
        check_option(
            self.moments in ("keep", "zero"), "prilora", "moments", self.moments, "is unknown", 'Use "keep" or "zero"'
        )


class PRILoRA(RankPruningStrategy):
    """Ranks rise linearly with depth; throughout training the least important entries of A are set to zero.

    r_ℓ = r_s + (r_f − r_s) · ℓ / (L − 1), rounded so that the sum meets the budget (the paper says that the rank rises
    linearly; the formula is from a secondary summary). The importance of an entry of A joins its magnitude with the
    running norm of its input feature (stated in the paper; the product form is from a secondary summary):
    x̄ ← β x̄ + (1 − β) ‖X_·j‖₂ over the step's tokens without padding, S = |A| · x̄. Zeroed entries may grow back
    before the next event (a convention of ours); one more event after the last step makes the final count true. B is
    never pruned. The trace holds, for each site, the share of A's total importance that the kept entries have.

    Source: Benedek and Wolf, Findings of EACL 2024, arXiv 2401.11316.
    """

    name: ClassVar[str] = "prilora"
    source: ClassVar[str] = "Benedek and Wolf, Findings of EACL 2024"
    prunes: ClassVar[str] = "entries"
    signals: ClassVar[frozenset[Signal]] = frozenset({Signal.INPUT_NORM})
    Config: ClassVar[type] = PRILoRAConfig

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        self.input_norm: dict[str, Tensor] = {}

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        targets = self._targets(sites)
        if budget.paper:
            ranks = {s.name: min(s.max_rank, int(targets[s.name] + 0.5)) for s in sites}
        else:
            nonzero = budget.count == "nonzero"
            costs = {s.name: s.d_in - self._zeros_in_row(s.d_in) + s.d_out for s in sites} if nonzero else None
            ranks = budget.solve(sites, targets, unit_costs=costs)
        return AdapterSpec(ranks=ranks, density={"A": 1 - self._share_zeroed(sites)})

    def _targets(self, sites: Sequence[SiteShape]) -> dict[str, float]:
        """The real-valued rank of each site; depth is counted within each stack."""
        depth: dict[str, int] = {}
        for s in sites:
            depth[_stack(s)] = max(depth.get(_stack(s), 0), s.layer)
        first, last = self.config.start_rank, self.config.final_rank
        # With a single layer there is no depth to rise over: it takes the mean, as the layers of a deep model do.
        middle = (first + last) / 2
        return {
            s.name: first + (last - first) * s.layer / depth[_stack(s)] if depth[_stack(s)] else middle for s in sites
        }

    def observe(self, view: StepView) -> None:
        beta = self.config.beta
        for name, norm in view.signals.get(Signal.INPUT_NORM, {}).items():
            old = self.input_norm.get(name)
            self.input_norm[name] = (1 - beta) * norm if old is None else beta * old + (1 - beta) * norm

    def decide(self, view: StepView) -> PruningPlan:
        # The last step's event comes with the end of the phase.
        due = view.step % self.config.prune_every == 0 and view.step < view.total_steps
        return self._prune(view) if due else PruningPlan()

    def end_phase(self, view: StepView) -> PruningPlan:
        return self._prune(view)

    def _prune(self, view: StepView) -> PruningPlan:
        scores = {
            name: weight_times_input_norm(view.sites[name].A.float(), norm) for name, norm in self.input_norm.items()
        }
        masks = {name: self._mask(found) for name, found in scores.items()}
        return PruningPlan(
            zero={name: {"A": mask} for name, mask in masks.items()},
            moments=self.config.moments,
            scores={name: share_held(found, ~masks[name]) for name, found in scores.items()},
            reason="zeroed the lowest entries of A",
        )

    def _mask(self, scores: Tensor) -> Tensor:
        """(r, d_in), True where A is to be zeroed; scores in the same shape."""
        pattern = _n_of_m(self.config.pattern)
        if pattern is not None:
            n, m = pattern
            usable = scores.shape[1] // m * m
            mask = torch.zeros_like(scores, dtype=torch.bool)
            blocks = scores[:, :usable].reshape(-1, m)
            mask[:, :usable] = lowest_mask(blocks, m - n).reshape(len(scores), usable)
            return mask
        if self.config.pattern == "matrix":
            return lowest_mask(scores.reshape(1, -1), int(self.config.sparsity * scores.numel())).reshape(scores.shape)
        return lowest_mask(scores, self._zeros_in_row(scores.shape[1]))

    def _zeros_in_row(self, d_in: int) -> int:
        pattern = _n_of_m(self.config.pattern)
        if pattern is not None:
            return d_in // pattern[1] * (pattern[1] - pattern[0])
        return int(self.config.sparsity * d_in)

    def _share_zeroed(self, sites: Sequence[SiteShape]) -> float:
        return sum(self._zeros_in_row(s.d_in) for s in sites) / sum(s.d_in for s in sites)

    def state_dict(self) -> dict[str, Any]:
        return {"input_norm": dict(self.input_norm)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.input_norm = dict(state["input_norm"])


def _stack(site: SiteShape) -> str:
    return "encoder" if site.stream == "encoder" else "decoder"


def _n_of_m(pattern: str) -> tuple[int, int] | None:
    n, colon, m = pattern.partition(":")
    if not colon or not n.isdigit() or not m.isdigit() or not 0 < int(n) < int(m):
        return None
    return int(n), int(m)
