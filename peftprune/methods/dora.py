from collections.abc import Sequence

from peftprune.errors import UsageError
from peftprune.strategy import AdapterSpec, ArmBudget, Baseline, Preparation, SiteShape
from peftprune.strategy.lazy import Module


class DoRA(Baseline):
    """Splits each weight into magnitude and direction; LoRA updates the direction, the magnitude is trained itself.

    W' = m · (W + s·B·A) / ‖W + s·B·A‖ row by row. m starts as the norm of the rows of W, so that nothing changes at
    first (paper). The implementation is PEFT's, which like the paper treats the norm as a constant in the backward
    pass. The magnitudes, one per row, are trained parameters and part of the budget; the rest of the budget is spent on
    a uniform rank, which is therefore below LoRA's (convention). A and B start as in LoRA, and m has no weight decay
    (convention). The ledger's FLOPs leave out the norms, which PEFT computes in every forward pass.
    """

    name = "dora"
    source = "Liu et al., ICML 2024, arXiv 2402.09353; PEFT's `use_dora`"
    reads_weights = True

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        magnitudes = sum(s.d_out for s in sites)
        least = magnitudes + sum(s.unit_cost for s in sites)
        if budget.params < least:
            problem = f"is too small for {magnitudes:,} magnitudes and one rank at each of {len(sites)} sites"
            cure = f"Allow at least {least:,} parameters, or leave dora out"
            raise UsageError.of("budget", budget.params, problem, cure)
        return AdapterSpec(budget.scaled(budget.params - magnitudes).solve(sites), fixed_params=magnitudes)

    def prepare(self, model: Module, given: Preparation) -> Module:
        from peftprune.adapters.inject import inject

        return inject(model, given, use_dora=True)[0]
