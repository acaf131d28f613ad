import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peftprune import scoring
from peftprune.methods.published_settings import published_runs
from peftprune.strategy import ArmBudget, Options, Phase, PruningPlan, RankPruningStrategy, SiteShape, StepView, option
from peftprune.strategy.lazy import torch
from peftprune.strategy.spec import AdapterSpec, PaperSettings, ParameterGroup, default_groups

_MOVED = 1e-10
"""Below it the gradients of all weights count as zero, which they are while B is zero (authors' code)."""


@dataclass(frozen=True)
class WeightLoRAConfig(Options):
    kept: float = option(0.5, "convention", gt=0, le=1, help=
        "share of the sites that keep an adapter, rounded up to K; the paper and its code set K itself")  # fmt: skip
    select_share: float = option(0.2, "convention", gt=0, le=1, help=
        "share of the run in which K sites are selected; the others are removed after it")  # fmt: skip
    weight_lr: float = option(10.0, "authors' code", gt=0, help=
        "step size of the weights, from the script for GLUE; its schedule scales it, here it is constant "
        "(convention)")  # fmt: skip


class WeightLoRA(RankPruningStrategy):
    """Trains one weight per adapter under a hard threshold; the K sites with the largest weights keep their adapter.

    ΔW = ω · scaling · B · A with one weight ω per site and ‖ω‖₀ ≤ K. Every step takes a gradient step on all ω and sets
    all but the K of largest magnitude to zero (iterative hard thresholding: paper; the authors' code compares signed
    values instead of magnitudes). A site whose ω is zero is disconnected, but its ω has a gradient and may return. As
    long as no ω has a gradient (B starts at zero) none is set to zero (authors' code). All ω start at 1 (convention).
    After the selection the sites with the K largest |ω| stay and the others are removed; the remaining ω are trained
    on, and folded into B at the end.

    Under a matched budget all sites start at the rank that the budget gives K of them. Where sites cost differently,
    the ranks of the kept ones are solved anew at the removal: components of least magnitude are cut, or new ones that
    do not change the function are added (convention). WeightLoRA+ of the same paper also raises the ranks of the
    selected sites and is not offered. Under `budget="paper"` ranks stay, and GLUE is trained as in the authors' code
    with its tuned learning rates.

    Scores in the trace: |ω| of each site at the removal.
    """

    name = "weightlora"
    source = "Veprikov et al., 2025, arXiv 2506.02724; code Vepricov/Weight_Lora"
    prunes = "sites"
    decides = ("repeatedly",)
    actions = ("remove sites", "set values")
    Config = WeightLoRAConfig

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        final = budget.solve(sites)
        wide = budget.scaled(budget.params * len(sites) // self._count(len(sites)))
        ranks = final if budget.paper else wide.solve(sites)
        groups = default_groups(gate=ParameterGroup(lr_scale=0.0, weight_decay=0.0))
        return AdapterSpec(ranks, final, decided_in_training=True, gate="site", groups=groups)

    def phases(self, budget: ArmBudget) -> list[Phase]:
        if self.config.select_share == 1:
            return [Phase("select")]
        return [Phase("select", share=self.config.select_share), Phase("train")]

    def paper(self) -> PaperSettings:
        return PaperSettings(rank=8, runs=published_runs("weightlora"))

    def _count(self, sites: int) -> int:
        """Returns K. The product is rounded before the ceiling, so that float errors do not raise it."""
        return math.ceil(round(self.config.kept * sites, 9))

    def decide(self, view: StepView) -> PruningPlan:
        live = {name: site for name, site in view.sites.items() if site.grad_gate is not None}
        if not live:
            return PruningPlan()
        weights = torch.cat([site.gate for site in live.values() if site.gate is not None])
        gradients = torch.cat([site.grad_gate for site in live.values() if site.grad_gate is not None])
        stepped = weights - self.config.weight_lr * gradients
        # After the removal at most K sites are left, so nothing is set to zero.
        projected = scoring.hard_threshold(stepped, self._count(len(view.sites)))
        new = torch.where((gradients.abs() > _MOVED).any(), projected, weights)
        assign = {name: {"gate": value} for name, value in zip(live, new.split(1), strict=True)}
        return PruningPlan(assign=assign, reason="hard thresholding")

    def end_phase(self, view: StepView) -> PruningPlan:
        if view.phase.name != "select":
            return PruningPlan()
        size = torch.cat([site.gate.abs() for site in view.sites.values() if site.gate is not None])
        names = list(view.sites)
        kept = [names[i] for i in scoring.keep_top(size, self._count(len(names)))]
        keep, grow = self._fit(kept, view)
        return PruningPlan(
            keep=keep,
            grow=grow,
            drop=frozenset(names) - frozenset(kept),
            scores=dict(zip(names, size.tolist(), strict=True)),
            reason=f"kept the {len(kept)} of {len(names)} sites with the largest weights",
        )

    def _fit(self, kept: Sequence[str], view: StepView) -> tuple[dict[str, list[int]], dict[str, int]]:
        if view.budget.paper:
            return {}, {}
        final: Mapping[str, int] = view.budget.solve([view.sites[n].shape for n in kept])
        sites = {n: view.sites[n] for n in final}
        scores = {n: scoring.rank_magnitude(s.A.float(), s.B.float(), "outer") for n, s in sites.items()}
        keep = {n: scoring.keep_top(scores[n], r) for n, r in final.items() if r < sites[n].rank}
        return keep, {n: r - sites[n].rank for n, r in final.items() if r > sites[n].rank}
