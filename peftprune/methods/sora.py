"""SoRA: a gate on every rank component, driven to exactly zero by a proximal step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from peftprune.errors import UsageError
from peftprune.methods.global_cut import cut_to_budget
from peftprune.scoring.threshold import soft_threshold
from peftprune.strategy.budget import ArmBudget
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.options import check_option, option
from peftprune.strategy.phases import Phase
from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.sites import Site, SiteShape
from peftprune.strategy.spec import AdapterSpec, PaperSettings, ParameterGroup
from peftprune.strategy.view import StepView


@dataclass(frozen=True)
class SoRAConfig:
    """Options of SoRA.

    Attributes:
        initial_rank: rank during training, at least the budget's and capped at each site's smaller side. 16 is a
            convention of ours.
        threshold: what every step takes off each gate's magnitude, at least 0: η · ξ of the formula. 3e-4 in the
            authors' code, which does not multiply it by the learning rate.
        update: the gradient step before that. "optimizer" lets the run's optimizer take it, with its moments and
            schedule, as the authors' code does; "sgd" is the formula itself, g − gate_lr · ∇g.
        gate_lr: step size of "sgd", above 0. 0.1 is a convention of ours.
        gate_init: "normal" draws the gates from N(0, 1) (authors' code); "ones" starts as plain LoRA (a convention of
            ours).
        cut_share: share of the run after which the gates are cut to the budget, in (0, 1]; what is left of the run
            trains on without a proximal step. 1 cuts after the last step, as in the paper.
    """

    initial_rank: int = option(16, "convention of ours", "rank during training")
    threshold: float = option(3e-4, "authors' code", "what every step takes off each gate's magnitude")
    update: Literal["optimizer", "sgd"] = option("optimizer", "authors' code", "the gates' gradient step")
    gate_lr: float = option(0.1, "convention of ours", "step size of the gates under update='sgd'")
    gate_init: Literal["normal", "ones"] = option("normal", "authors' code", "initial gates")
    cut_share: float = option(1.0, "paper", "share of the run after which gates are cut to the budget")

    def __post_init__(self) -> None:
        check_option(
            self.initial_rank >= 1,
            "sora", "initial_rank", self.initial_rank, "is not a whole number above 0", "Give 16, for example",
        )  # fmt: skip
        check_option(
            0 <= self.threshold < float("inf"),
            "sora", "threshold", self.threshold, "is negative or not finite", "Give 3e-4, for example",
        )  # fmt: skip
        check_option(
            self.update in ("optimizer", "sgd"), "sora", "update", self.update, "is unknown", 'Use "optimizer" or "sgd"'
        )
        check_option(
            0 < self.gate_lr < float("inf"),
            "sora", "gate_lr", self.gate_lr, "is not positive and finite", "Give 0.1, for example",
        )  # fmt: skip
        check_option(
            self.gate_init in ("normal", "ones"),
            "sora", "gate_init", self.gate_init, "is unknown", 'Use "normal" or "ones"',
        )  # fmt: skip
        check_option(
            0 < self.cut_share <= 1, "sora", "cut_share", self.cut_share, "is outside (0, 1]", "Give 1, for example"
        )


class SoRA(RankPruningStrategy):
    """A gate g between A and B of every site; proximal gradient steps make gates zero, and the budget decides the rest.

    ΔW = scaling · B · diag(g) · A. After every gradient step on g, g ← sign(g) · max(|g| − η·ξ, 0) (stated in the
    paper), so that components switch off exactly and may come back as long as training goes on. At the end those with a
    gate of zero are removed (stated in the paper). How many that are, only ξ decides; to meet a budget exactly, the
    largest |g| of all sites together are kept as long as the budget pays for them (a convention of ours): gates beyond
    the budget go although they are not zero, and where fewer are left than the budget allows, zero ones stay. Gates
    are folded into B at the end and count for nothing. The rank is that of the start until then, since a component of
    gate zero is still trained and can return.

    Under `budget="paper"` weight decay and warm-up are those of both GLUE scripts of the authors' code, and STS-B is
    trained as in its script; the other script, for RTE, raises the threshold over several runs, which is not offered.

    The trace holds, for each site, the sum of |g| before the cut.

    Source: Ding et al., EMNLP 2023, arXiv 2311.11696; code TsinghuaC3I/SoRA.
    """

    name: ClassVar[str] = "sora"
    source: ClassVar[str] = "Ding et al., EMNLP 2023"
    Config: ClassVar[type] = SoRAConfig

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
            gates = {name: soft_threshold(g, self.config.threshold) for name, g in gates.items()}
        return PruningPlan(assign={name: {"gate": g} for name, g in gates.items()}, reason="proximal step")

    def _stepped(self, site: Site) -> Tensor:
        """(r,) the gates after their gradient step; under "optimizer" it has been taken already."""
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
