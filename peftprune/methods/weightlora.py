"""WeightLoRA: one weight per adapter, found by iterative hard thresholding; all but K adapters are disconnected."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from peftprune.scoring import keep_top, rank_magnitude
from peftprune.scoring.threshold import hard_threshold
from peftprune.strategy.budget import ArmBudget
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.options import check_option, option
from peftprune.strategy.phases import Phase
from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.sites import Site, SiteShape
from peftprune.strategy.spec import AdapterSpec, PaperSettings, ParameterGroup
from peftprune.strategy.view import StepView

_MOVED = 1e-10
"""Below it the gradient of every weight is taken for zero, as it is while B is (authors' code)."""


@dataclass(frozen=True)
class WeightLoRAConfig:
    """Options of WeightLoRA.

    Attributes:
        kept: share of the sites that keep an adapter, in (0, 1], rounded up to K. 0.5 is a convention of ours; the
            paper and its code name K itself.
        select_share: share of the run in which K sites are selected, in (0, 1]; the others are removed after it. 0.2
            is a convention of ours.
        weight_lr: step size of the weights, above 0. 10 in the authors' script for GLUE, where the run's schedule
            scales it too; it is constant here (a convention of ours).
    """

    kept: float = option(0.5, "convention of ours", "share of the sites that keep an adapter")
    select_share: float = option(0.2, "convention of ours", "share of the run in which sites are selected")
    weight_lr: float = option(10.0, "authors' code", "step size of the adapters' weights")

    def __post_init__(self) -> None:
        for name, value in (("kept", self.kept), ("select_share", self.select_share)):
            cure = f"Give {type(self).__dataclass_fields__[name].default}, for example"
            check_option(0 < value <= 1, "weightlora", name, value, "is outside (0, 1]", cure)
        check_option(
            0 < self.weight_lr < float("inf"),
            "weightlora", "weight_lr", self.weight_lr, "is not positive and finite", "Give 10, for example",
        )  # fmt: skip


class WeightLoRA(RankPruningStrategy):
    """ΔW = ω · scaling · B · A with one weight ω per site and ‖ω‖₀ ≤ K: K sites keep an adapter, the others lose it.

    Every step takes a gradient step on all ω and sets all but the K of largest magnitude to zero (iterative hard
    thresholding, stated in the paper; the authors' code compares signed values instead of magnitudes). A site whose ω
    is zero is disconnected, but has a gradient and may come back. As long as no ω has a gradient (B starts at zero)
    nothing is set to zero (authors' code). All ω start at 1 (a convention of ours, as far as accessible sources go).
    After the selection the sites with the K largest |ω| stay and the others are removed; ω of those left is trained
    on, and folded into B at the end.

    Under a matched budget all sites start at the rank that the budget gives K of them. Where sites cost differently,
    ranks at the kept ones are solved anew at the removal: components with the least magnitude go, or fresh ones that
    change no function come (conventions of ours; WeightLoRA+ of the same paper also raises the ranks of the selected).
    Under `budget="paper"` ranks stay; rank, scaling (32 / 8) and warm-up (100 of 512 steps) are those of the authors'
    code for GLUE, which searches the learning rate.

    The trace holds |ω| of each site at the removal.

    Source: Veprikov et al., 2025, arXiv 2506.02724; code Vepricov/Weight_Lora.
    """

    name: ClassVar[str] = "weightlora"
    source: ClassVar[str] = "Veprikov et al., 2025, arXiv 2506.02724"
    prunes: ClassVar[str] = "sites"
    Config: ClassVar[type] = WeightLoRAConfig

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        final = budget.solve(sites)
        wide = budget.scaled(budget.params * len(sites) // self._count(len(sites)))
        return AdapterSpec(
            ranks=final if budget.paper else wide.solve(sites),
            final_ranks=final,
            decided_in_training=True,
            gate="site",
            groups={**AdapterSpec(ranks={}).groups, "gate": ParameterGroup(lr_scale=0.0, weight_decay=0.0)},
        )

    def phases(self, budget: ArmBudget) -> list[Phase]:
        if self.config.select_share == 1:
            return [Phase("select")]
        return [Phase("select", share=self.config.select_share), Phase("train")]

    def paper(self) -> PaperSettings:
        return PaperSettings(rank=8, scaling=4.0, warmup_ratio=0.1953)

    def _count(self, sites: int) -> int:
        """K. Rounded first, so that a share that is whole up to its last bit stays what it is."""
        return math.ceil(round(self.config.kept * sites, 9))

    def decide(self, view: StepView) -> PruningPlan:
        live = {name: site for name, site in view.sites.items() if site.grad_gate is not None}
        if not live:
            return PruningPlan()
        weights = torch.cat([_present(site.gate) for site in live.values()])
        gradients = torch.cat([_present(site.grad_gate) for site in live.values()])
        stepped = weights - self.config.weight_lr * gradients
        # Sites removed leave K or fewer, and then nothing more is set to zero.
        projected = hard_threshold(stepped, self._count(len(view.sites)))
        new = torch.where((gradients.abs() > _MOVED).any(), projected, weights)
        return PruningPlan(
            assign={name: {"gate": value} for name, value in zip(live, new.split(1), strict=True)},
            reason="hard thresholding",
        )

    def end_phase(self, view: StepView) -> PruningPlan:
        if view.phase.name != "select":
            return PruningPlan()
        size = torch.cat([_present(site.gate).abs() for site in view.sites.values()])
        names = list(view.sites)
        kept = [names[i] for i in keep_top(size, self._count(len(names)))]
        keep, grow = self._fit(kept, view)
        return PruningPlan(
            keep=keep,
            grow=grow,
            drop=frozenset(names) - frozenset(kept),
            scores=dict(zip(names, size.tolist(), strict=True)),
            reason=f"kept the {len(kept)} of {len(names)} sites with the largest weights",
        )

    def _fit(self, kept: Sequence[str], view: StepView) -> tuple[dict[str, list[int]], dict[str, int]]:
        """What to cut and to grow at the kept sites to meet the budget."""
        if view.budget.paper:
            return {}, {}
        final: Mapping[str, int] = view.budget.solve([view.sites[n].shape for n in kept])
        keep = {n: keep_top(_magnitude(view.sites[n]), r) for n, r in final.items() if r < view.sites[n].rank}
        return keep, {n: r - view.sites[n].rank for n, r in final.items() if r > view.sites[n].rank}


def _present(gate: Any) -> Tensor:
    assert gate is not None
    return gate


def _magnitude(site: Site) -> Tensor:
    return rank_magnitude(site.A.float(), site.B.float(), "outer")
