"""SoRA: a gate on every rank component, driven to exactly zero by a proximal step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peftprune import scoring
from peftprune.errors import UsageError
from peftprune.methods.global_cut import cut_to_budget
from peftprune.strategy.budget import ArmBudget
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.options import Options, option
from peftprune.strategy.phases import Phase
from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.sites import Site, SiteShape
from peftprune.strategy.spec import AdapterSpec, PaperSettings, ParameterGroup
from peftprune.strategy.view import StepView

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SoRAConfig(Options):
    """Options of SoRA."""

    initial_rank: int = option(16, "convention", ge=1, help=
        "rank during training, at least the budget's and capped at each site's smaller side")  # fmt: skip
    threshold: float = option(3e-4, "authors' code", ge=0, help=
        "taken off each gate's magnitude in every step: η · ξ of the formula, which the authors' code does not "
        "multiply by the learning rate")  # fmt: skip
    update: str = option("optimizer", "authors' code", choices=("optimizer", "sgd"), help=
        "the gates' gradient step: 'optimizer' is the run's optimizer with its moments and schedule, 'sgd' is the "
        "formula g − gate_lr · ∇g")  # fmt: skip
    gate_lr: float = option(0.1, "convention", gt=0, help="step size of the gates with update='sgd'")
    gate_init: str = option("normal", "authors' code", choices=("normal", "ones"), help=
        "'normal' draws the gates from N(0, 1), 'ones' starts as plain LoRA (convention)")  # fmt: skip
    cut_share: float = option(1.0, "paper", gt=0, le=1, help=
        "share of the run after which the gates are cut to the budget; the rest of the run trains without a proximal "
        "step, and 1 cuts after the last step")  # fmt: skip


class SoRA(RankPruningStrategy):
    """Drives gates between A and B to zero by proximal steps, and keeps the largest gates that the budget pays for.

    ΔW = scaling · B · diag(g) · A. After every gradient step on g, g ← sign(g) · max(|g| − η·ξ, 0) (paper), so gates
    become exactly zero, and may become non-zero again during training. At the end components with a gate of zero
    are removed (paper). Their number depends on ξ alone. To meet a budget exactly, the largest |g| of all sites
    together are kept while the budget pays for them (convention): some gates that are not zero are cut, or, where fewer
    are left than the budget allows, some that are zero stay. Gates are folded into B at the end and not counted. Until
    the cut, components with a gate of zero count in the rank, because they are trained and can return.

    Under `budget="paper"` weight decay and warm-up are those of both GLUE scripts of the authors' code, and STS-B is
    trained as in its script. The script for RTE raises the threshold over several runs, which is not offered.

    Scores in the trace: for each site, the sum of |g| before the cut.
    """

    name = "sora"
    source = "Ding et al., EMNLP 2023, arXiv 2311.11696; code TsinghuaC3I/SoRA"
    decides = ("repeatedly",)
    actions = ("cut ranks", "redistribute ranks", "set values")
    Config = SoRAConfig

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        if budget.count == "nonzero":
            problem = "cannot be met by sora, whose gates may end at zero"
            raise UsageError.of("budget.count", "nonzero", problem, 'Use count="stored"')
        final = budget.solve(sites)
        sgd = self.config.update == "sgd"
        return AdapterSpec(
            ranks={s.name: max(final[s.name], min(self.config.initial_rank, s.max_rank)) for s in sites},
            final_ranks=final,
            decided_in_training=True,
            gate="rank",
            initial_std={"gate": 1.0} if self.config.gate_init == "normal" else {},
            groups={
                **AdapterSpec(ranks={}).groups,
                "gate": ParameterGroup(lr_scale=0.0 if sgd else 1.0, weight_decay=0.0),
            },
        )

    def phases(self, budget: ArmBudget) -> list[Phase]:
        if self.config.cut_share == 1:
            return [Phase("sparse")]
        return [Phase("sparse", share=self.config.cut_share), Phase("settle")]

    def paper(self) -> PaperSettings:
        stsb = {"learning_rate": 8e-4, "batch_size": 8, "epochs": 20, "max_length": 128, "max_grad_norm": 0.1}
        return PaperSettings(weight_decay=0.1, warmup_ratio=0.06, per_task={"stsb": stsb})

    def decide(self, view: StepView) -> PruningPlan:
        settled = view.phase.name == "settle"
        if settled and self.config.update == "optimizer":
            return PruningPlan()
        gates = {name: self._stepped(site) for name, site in view.sites.items() if site.rank}
        if not settled:
            gates = {name: scoring.soft_threshold(g, self.config.threshold) for name, g in gates.items()}
        return PruningPlan(assign={name: {"gate": g} for name, g in gates.items()}, reason="proximal step")

    def _stepped(self, site: Site) -> Tensor:
        """Returns the (r,) gates after their gradient step, which "optimizer" has already taken."""
        gate, gradient = site.gate, site.grad_gate
        assert gate is not None
        if self.config.update == "optimizer" or gradient is None:
            return gate
        return gate - self.config.gate_lr * gradient

    def end_phase(self, view: StepView) -> PruningPlan:
        if view.phase.name != "sparse":
            return PruningPlan()
        size = {name: site.gate.abs() for name, site in view.sites.items() if site.gate is not None}
        keep, grow = cut_to_budget(size, view)
        zero = sum(int((g == 0).sum()) for g in size.values())
        total = sum(len(g) for g in size.values())
        return PruningPlan(
            keep=keep,
            grow=grow,
            scores={name: float(g.sum()) for name, g in size.items()},
            reason=f"kept the {sum(map(len, keep.values()))} largest of {total} gates; {zero} were zero",
        )
