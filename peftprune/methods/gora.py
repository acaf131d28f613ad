from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from peftprune.methods.fisher import Fisher
from peftprune.strategy import ArmBudget, Options, Site, SiteShape, StepView, option
from peftprune.strategy.lazy import Tensor, torch
from peftprune.strategy.spec import AdapterSpec, PaperSettings, ParameterGroup, default_groups


@dataclass(frozen=True)
class GoRAConfig(Options):
    batches: int = option(32, "authors' code", ge=1, help=
        "batches whose gradients are averaged before training, at most a tenth of the run (convention); the scripts "
        "have 64 for T5")  # fmt: skip
    least: float = option(0.5, "authors' code", ge=0, le=1, help=
        "a site's smallest rank as a multiple of the uniform one: 4 at rank 8 in the scripts")  # fmt: skip
    most: float = option(4.0, "authors' code", ge=1, help=
        "a site's largest rank as a multiple of the uniform one: 32 at rank 8 in the scripts")  # fmt: skip
    gamma: float = option(0.05, "authors' code", ge=0, help=
        "length of the first update, about, in units of the gradient's; 0 starts B at zero")  # fmt: skip
    sign: str = option("released", "authors' code", choices=("released", "descent"), help=
        "'released' starts B along the gradient, as the code does, which raises the loss to first order; 'descent' "
        "starts it against the gradient (convention)")  # fmt: skip
    lr_ratio: float = option(16.0, "authors' code", gt=0, help="learning rate of B over that of A")


class GoRA(Fisher):
    """Allocates ranks by weight times gradient, and starts B from the gradient.

    The gradients G of the frozen weights W are averaged over batches as in `fisher` (authors' code). The importance of
    a site is the mean of |W · G| over its entries, and sites get parameters in proportion to it, within limits
    (authors' code). The code rounds every site down and clips it on its own, and so misses the budget; here the limits
    hold while a common factor is found that spends it (convention). A is random, and B is γ √(d_in / rank) G A⁺ over
    the scaling, so that the first update is the part of the gradient that A can hold (authors' code).

    The forward factor is α / √rank at each site in the authors' code. Here the scaling is the run's at every site
    (convention), and the first update does not depend on it. The probe holds one gradient for every adapted weight in
    memory. Under `budget="paper"` the rank is 8 and the scaling 16 / √8, as in the authors' scripts for a site of the
    mean rank.

    Scores in the trace: each site's share of the sum of importances over unit costs, to which ranks are proportional.
    """

    name = "gora"
    source = "He et al., NeurIPS 2025, arXiv 2502.12171; code hhnqqq/MyTransformers"
    actions = ("redistribute ranks", "set values", "restart adapters")
    reads_weights = True
    Config = GoRAConfig

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        groups = default_groups(B=ParameterGroup(lr_scale=self.config.lr_ratio))
        return replace(super().spec(sites, budget), groups=groups)

    def paper(self) -> PaperSettings:
        return PaperSettings(rank=8, scaling=16 / 8**0.5)

    def statistic(self, gradient: Tensor) -> Tensor:
        return gradient

    def weights(self, sites: Mapping[str, Site], means: Mapping[str, Tensor]) -> dict[str, float]:
        return {n: float((s.base_weight * means[n]).abs().mean()) / s.unit_cost for n, s in sites.items()}

    def start_of(self, site: Site, rank: int, mean: Tensor, view: StepView) -> dict[str, Tensor]:
        from peftprune.adapters.initial import init_lora_A

        A = init_lora_A(rank, site.d_in, view.rng).to(mean)
        length = self.config.gamma * (site.d_in / rank) ** 0.5 / site.scaling
        return {"A": A, "B": mean @ torch.linalg.pinv(A) * (length if self.config.sign == "released" else -length)}
