from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from peftprune import scoring
from peftprune.methods.adalora import AdaLoRA
from peftprune.methods.published_settings import published_runs
from peftprune.strategy import AdapterSpec, ArmBudget, LiveTensors, Options, PruningPlan, SiteShape, StepView, option
from peftprune.strategy.lazy import Tensor, torch
from peftprune.strategy.spec import PaperSettings


@dataclass(frozen=True)
class DoRADynamicConfig(Options):
    initial_ratio: float = option(1.5, "authors' code", ge=1, help=
        "parameters at the start as a multiple of the budget")  # fmt: skip
    warmup: float = option(0.15, "authors' code", ge=0, lt=1, help="share of the run before anything is pruned")
    final: float = option(0.5, "authors' code", ge=0, lt=1, help="share of the run after the last decision")
    every: int = option(10, "convention", ge=1, help="steps between decisions; 100 in the authors' code")
    beta: float = option(0.9, "authors' code", gt=0, lt=1, help="decay of the averaged score")
    penalty: float = option(0.1, "authors' code", ge=0, help=
        "weight of the mean variance of components until the last decision")  # fmt: skip
    # What else tells AdaLoRA's variants apart.
    order: ClassVar[str] = "after"
    cut: ClassVar[str] = "final"
    moments: ClassVar[str] = "keep"
    alpha: ClassVar[float] = 0.0
    gate_decay: ClassVar[bool] = False


class DoRADynamic(AdaLoRA):
    """Starts above the budget; components of all sites compete by their share of their site's update.

    ΔW = scaling · B · diag(c) · A with gates c that start at zero. The score of a component is the Frobenius norm of
    its part of ΔW over the norm of ΔW, averaged over steps (authors' code). Every few steps the gates of the lowest
    components of all sites are set to zero; how many are pruned rises with the cube of the progress, slowly at first,
    and they may revive until the last decision (authors' code). A penalty on the mean variance of the rows of A and the
    columns of B ends with it (authors' code). This is not the weight-decomposed `dora`.

    The code counts ranks; here parameters are counted and the budget is met as in `adalora`. At a decision that is due
    to prune none the code prunes one (not here), and it masks pruned components until training ends, which are removed
    at the last decision here. A and B start from normal instead of uniform values, with the deviations that the code
    has at a site of the mean width and rank, and the scaling is the run's (conventions).

    Under `budget="paper"` rank, scaling (8 / 12), weight decay and warm-up are those of the authors' code.

    Scores in the trace: each site's share of the sum of all components' scores.
    """

    name = "dora-dynamic"
    source = "Mao et al., ACL 2024, arXiv 2405.17357 (DoRA, dynamic rank); code MIkumikumi0116/DoRA"
    Config = DoRADynamicConfig
    state_names = ("kept", "decided")
    decided = False

    def new_sensitivity(self) -> scoring.SmoothedSensitivity:
        return scoring.SmoothedSensitivity(self.config.beta, self.config.beta)

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        spec = super().spec(sites, budget)
        widths = {"A": sum(s.d_in for s in sites), "B": sum(spec.ranks.values())}
        return replace(spec, initial_std={kind: (2 * len(sites) / total) ** 0.5 for kind, total in widths.items()})

    def paper(self) -> PaperSettings:
        return PaperSettings(8, scaling=8 / 12, weight_decay=0.01, warmup_ratio=0.06, runs=published_runs(self.name))

    def penalty(self, sites: Mapping[str, LiveTensors]) -> Tensor | None:
        if self.config.penalty == 0 or self.decided or not sites:
            return None
        return self.config.penalty * torch.cat([v for s in sites.values() for v in (s.A.var(1), s.B.var(0))]).mean()

    def scores(self, view: StepView) -> dict[str, Any]:
        return {name: self.sensitivity.mean[name] for name, site in view.sites.items() if site.rank}

    def score(self, view: StepView) -> None:
        for name, site in view.sites.items():
            if site.gate is not None and view.phase.name != "final":
                self.sensitivity.add(name, scoring.norm_shares(site.A, site.B, site.gate))

    def limit(self, view: StepView, initial: int, progress: float) -> int:
        pruned = int((initial - view.budget.params) * progress**3)
        # A component that is pruned in part stays.
        return initial - pruned + min(site.unit_cost for site in view.sites.values()) - 1

    def end_phase(self, view: StepView) -> PruningPlan:
        self.decided = self.decided or view.phase.name == "pruning"
        return super().end_phase(view)
