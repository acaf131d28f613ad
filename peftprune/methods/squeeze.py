from collections.abc import Sequence
from dataclasses import dataclass, replace

from peftprune import scoring
from peftprune.methods.svd import SVD, SVDConfig
from peftprune.strategy import AdapterSpec, ArmBudget, PruningPlan, SiteShape, StepView, option
from peftprune.strategy.phases import Phase, phase_ranges


@dataclass(frozen=True)
class SqueezeConfig(SVDConfig):
    mode: str = option("in", "convention", choices=("post", "continued", "in"), help=
        "'post' truncates after training; 'continued' once, and trains on with a fresh schedule; 'in' several times "
        "during training. The paper has all three")  # fmt: skip
    squeezes: int = option(4, "convention", ge=1, help=
        "truncations under mode='in', at equal distances; ranks fall by the same factor each time")  # fmt: skip
    continued_share: float = option(0.2, "convention", gt=0, lt=1, help=
        "share of the run at the budget's rank under mode='continued'")  # fmt: skip
    moments: str = option("carry", "convention", choices=("carry", "reset"), help=
        "'carry' turns the optimizer's moments with the factors, 'reset' clears the optimizer's state at every "
        "truncation")  # fmt: skip


class Squeeze(SVD):
    """Trains LoRA at a large rank and truncates the update of every site on its own to the budget's rank.

    The update B A = U Σ V comes from QR factors of A and B, and the factors become U √Σ and √Σ V of its largest
    singular values (the even split is a convention). Every site ends at the uniform rank of the budget; `svd` lets all
    sites compete instead. Between truncations the schedule goes on; only mode='continued' starts it anew (conventions).

    The new factors are mixtures of the old components. With moments='carry' first moments are mixed exactly as the
    gradient is, and second moments by the squares of the same coefficients, as if the gradients of different components
    were uncorrelated (convention).

    Scores in the trace: for each site, the share of its update's squared Frobenius norm that stays.
    """

    name = "squeeze"
    source = "Vulić et al., 2026, arXiv 2602.10993 (LoRA-Squeeze)"
    decides = ("repeatedly",)
    actions = ("cut ranks", "set values")
    Config = SqueezeConfig

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        return replace(super().spec(sites, budget), decided_in_training=False)

    def phases(self, budget: ArmBudget) -> list[Phase]:
        if self.config.mode == "post":
            return [Phase("train")]
        if self.config.mode == "continued":
            return [Phase("large", share=1 - self.config.continued_share), Phase("small", restart_schedule=True)]
        count = self.config.squeezes
        return [*(Phase(f"before squeeze {i + 1}", share=1 / (count + 1)) for i in range(count)), Phase("final")]

    def end_phase(self, view: StepView) -> PruningPlan:
        later = [r for r in phase_ranges(self.phases(view.budget), view.budget) if r.start > view.phase.start]
        left = 1 if self.config.mode == "post" else len(later)
        if left == 0:
            return PruningPlan()
        final = view.budget.solve([site.shape for site in view.sites.values()])
        keep, rotate, scores = {}, {}, {}
        for name, site in view.sites.items():
            rank = round(site.rank * (final[name] / site.rank) ** (1 / left))
            if rank < site.rank:
                values, T, S = scoring.balancing_rotation(site.A, site.B)
                keep[name], rotate[name] = range(rank), (T, S)
                scores[name] = scoring.share_held(values.square(), slice(rank))
        reset = bool(keep) and self.config.moments == "reset"
        reason = f"truncated by SVD to ranks {min(map(len, keep.values()), default=0)} and above"
        return PruningPlan(rotate=rotate, keep=keep, scores=scores, reset_optimizer=reset, reason=reason)
