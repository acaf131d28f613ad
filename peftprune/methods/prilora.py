from collections.abc import Sequence
from dataclasses import dataclass

from peftprune import scoring
from peftprune.strategy import AdapterSpec, ArmBudget, PruningPlan, RankPruningStrategy, Signal, SiteShape, StepView
from peftprune.strategy.lazy import Tensor, torch
from peftprune.strategy.options import Options, check_option, option


@dataclass(frozen=True)
class PRILoRAConfig(Options):
    start_rank: int = option(4, "convention", ge=1, help="rank of the first layer")
    final_rank: int = option(12, "convention", ge=1, help=
        "rank of the last layer; under a matched budget only the ratio of the two counts, and the ranks are solved to "
        "meet the budget")  # fmt: skip
    sparsity: float = option(0.5, "convention", ge=0, lt=1, help="share of A that is zeroed at every event")
    prune_every: int = option(40, "convention", ge=1, help="steps between events")
    beta: float = option(0.9, "convention", ge=0, lt=1, help="decay of the running input norm")
    pattern: str = option("row", "convention", help=
        "where the share is exact: 'row' in each row of A, 'matrix' in all of A; 'n:m' such as '2:4' keeps the n "
        "highest of m neighbouring entries of a row and ignores sparsity")  # fmt: skip
    moments: str = option("keep", "convention", choices=("keep", "zero"), help=
        "the optimizer's moments of zeroed entries are kept or zeroed; with kept moments a zeroed entry moves by about "
        "0.86 of a learning rate in the next step")  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option(
            self.pattern in ("row", "matrix") or _n_of_m(self.pattern) is not None,
            "prilora", "pattern", self.pattern, "is unknown", "Use 'row', 'matrix' or n:m such as '2:4'",
        )  # fmt: skip


class PRILoRA(RankPruningStrategy):
    """Raises the rank linearly with depth, and repeatedly zeroes the least important entries of A during training.

    Ranks follow r_ℓ = r_s + (r_f − r_s) · ℓ / (L − 1), rounded so that they meet the budget (the linear rise: paper;
    the formula: secondary summary). The importance of an entry of A joins its magnitude with the running norm of its
    input feature (paper): x̄ ← β x̄ + (1 − β) ‖X_·j‖₂ over the step's tokens without padding, S = |A| · x̄ (the product:
    secondary summary). Zeroed entries may regrow before the next event (convention). One more event after the last step
    makes the final count of non-zero entries exact (convention). B is never pruned (secondary summary).

    Scores in the trace: for each site, the share of A's total importance that the kept entries hold.
    """

    name = "prilora"
    source = "Benedek and Wolf, Findings of EACL 2024, arXiv 2401.11316"
    prunes = "entries"
    decides = ("at the start", "repeatedly")
    actions = ("zero entries",)
    signals = frozenset({Signal.INPUT_NORM})
    Config = PRILoRAConfig
    state_names = ("input_norm",)
    input_norm: dict[str, Tensor]

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        targets = self._targets(sites)
        if budget.paper:
            ranks = {s.name: min(s.max_rank, int(targets[s.name] + 0.5)) for s in sites}
        else:
            nonzero = budget.count == "nonzero"
            costs = {s.name: s.d_in - self._zeros_in_row(s.d_in) + s.d_out for s in sites} if nonzero else None
            ranks = budget.solve(sites, targets, unit_costs=costs)
        zeroed = sum(self._zeros_in_row(s.d_in) for s in sites) / sum(s.d_in for s in sites)
        return AdapterSpec(ranks=ranks, density={"A": 1 - zeroed})

    def _targets(self, sites: Sequence[SiteShape]) -> dict[str, float]:
        """Returns the real-valued rank of each site; depth is counted within each stack."""
        depth: dict[str, int] = {}
        for s in sites:
            depth[_stack(s)] = max(depth.get(_stack(s), 0), s.layer)
        first, last = self.config.start_rank, self.config.final_rank
        # A single layer takes the mean rank, which the layers of a deep model have on average.
        middle = (first + last) / 2
        layers = [(s, depth[_stack(s)]) for s in sites]
        return {s.name: first + (last - first) * s.layer / d if d else middle for s, d in layers}

    def observe(self, view: StepView) -> None:
        beta = self.config.beta
        for name, norm in view.signals.get(Signal.INPUT_NORM, {}).items():
            old = self.input_norm.get(name)
            self.input_norm[name] = (1 - beta) * norm if old is None else beta * old + (1 - beta) * norm

    def decide(self, view: StepView) -> PruningPlan:
        # The event of the last step belongs to `end_phase`.
        due = view.step % self.config.prune_every == 0 and view.step < view.total_steps
        return self._prune(view) if due else PruningPlan()

    def end_phase(self, view: StepView) -> PruningPlan:
        return self._prune(view)

    def _prune(self, view: StepView) -> PruningPlan:
        scores = {
            name: scoring.weight_times_input_norm(view.sites[name].A.float(), norm)
            for name, norm in self.input_norm.items()
        }
        masks = {name: self._mask(found) for name, found in scores.items()}
        return PruningPlan(
            zero={name: {"A": mask} for name, mask in masks.items()},
            moments=self.config.moments,
            scores={name: scoring.share_held(found, ~masks[name]) for name, found in scores.items()},
            reason="zeroed the lowest entries of A",
        )

    def _mask(self, scores: Tensor) -> Tensor:
        """Returns an (r, d_in) mask, True where A is to be zeroed; `scores` has the same shape."""
        pattern = _n_of_m(self.config.pattern)
        if pattern is not None:
            n, m = pattern
            usable = scores.shape[1] // m * m
            mask = torch.zeros_like(scores, dtype=torch.bool)
            blocks = scores[:, :usable].reshape(-1, m)
            mask[:, :usable] = scoring.lowest_mask(blocks, m - n).reshape(len(scores), usable)
            return mask
        if self.config.pattern == "matrix":
            count = int(self.config.sparsity * scores.numel())
            return scoring.lowest_mask(scores.reshape(1, -1), count).reshape(scores.shape)
        return scoring.lowest_mask(scores, self._zeros_in_row(scores.shape[1]))

    def _zeros_in_row(self, d_in: int) -> int:
        pattern = _n_of_m(self.config.pattern)
        if pattern is not None:
            return d_in // pattern[1] * (pattern[1] - pattern[0])
        return int(self.config.sparsity * d_in)


def _stack(site: SiteShape) -> str:
    return "encoder" if site.stream == "encoder" else "decoder"


def _n_of_m(pattern: str) -> tuple[int, int] | None:
    n, colon, m = pattern.partition(":")
    if not colon or not n.isdigit() or not m.isdigit() or not 0 < int(n) < int(m):
        return None
    return int(n), int(m)
