"""DoRA: LoRA on the direction of each weight row, beside a trained magnitude."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from peftprune.adapters.inject import inject
from peftprune.errors import UsageError
from peftprune.strategy.baseline import Baseline, Preparation
from peftprune.strategy.budget import ArmBudget
from peftprune.strategy.sites import SiteShape
from peftprune.strategy.spec import AdapterSpec


class DoRA(Baseline):
    """Splits each weight into magnitude and direction; LoRA updates the direction, the magnitude is trained itself.

    W' = m · (W + s·B·A) / ‖W + s·B·A‖ row by row, where m starts as the norm of the rows of W, so that nothing changes
    at first (stated in the paper; PEFT's implementation, which treats the norm as a constant in the backward pass, as
    the paper does). The magnitudes, one a row, are trained parameters and part of the budget: what they leave is spent
    on uniform rank, so the rank lies somewhat below LoRA's (a convention of ours). A and B start as LoRA's do, and m
    has no weight decay (conventions of ours). The ledger's FLOPs leave out the norms, which PEFT computes anew in every
    forward pass.

    Source: Liu et al., ICML 2024, arXiv 2402.09353; PEFT's `use_dora`.
    """

    name: ClassVar[str] = "dora"
    source: ClassVar[str] = "Liu et al., ICML 2024, arXiv 2402.09353"
    reads_weights: ClassVar[bool] = True

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        magnitudes = sum(s.d_out for s in sites)
        least = magnitudes + sum(s.unit_cost for s in sites)
        if budget.params < least:
            raise UsageError.of(
                "budget",
                budget.params,
                f"is too small for {magnitudes:,} magnitudes and one rank at each of {len(sites)} sites",
                f"Allow at least {least:,} parameters, or leave dora out",
            )
        ranks = budget.scaled(budget.params - magnitudes).solve(sites)
        return AdapterSpec(ranks=ranks, fixed_params=magnitudes)

    def prepare(self, model: nn.Module, given: Preparation) -> nn.Module:
        adapted, _ = inject(
            model,
            given.sites,
            given.spec,
            scaling=given.scaling,
            seed=given.seed,
            head=given.head,
            lora_dropout=given.lora_dropout,
            use_dora=True,
        )
        return adapted
