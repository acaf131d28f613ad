from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peftprune.methods.published_settings import published_runs
from peftprune.strategy import ArmBudget, Options, PruningPlan, RankPruningStrategy, SiteShape, check_option, option
from peftprune.strategy.lazy import Tensor, torch
from peftprune.strategy.spec import AdapterSpec, PaperSettings
from peftprune.strategy.view import StepView


@dataclass(frozen=True)
class DyLoRAConfig(Options):
    initial_rank: int = option(0, "convention", ge=0, help=
        "largest rank in training, capped at each site's smaller side; 0, like any rank below the budget's, takes the "
        "budget's. Above it the first components that the budget pays for are kept after the last step")  # fmt: skip
    smallest: int = option(1, "secondary summary", ge=1, help="smallest rank in training, as in the paper's runs")
    rescale: bool = option(True, "authors' code", help=
        "multiply the truncation to b of r components by r / b, so that its scaling is alpha / b")  # fmt: skip
    frozen: bool = option(False, "paper", later=True, help=
        "train only the b-th component while the others are fixed: the paper's second variant, which the authors' code "
        "for GLUE and budget='paper' use")  # fmt: skip


class DyLoRA(RankPruningStrategy):
    """Draws b in every step and trains the first b components of every site; afterwards the first few of them suffice.

    b is drawn anew in every step (paper), uniformly from the smallest to the largest rank and once for all sites
    (authors' code). The forward pass uses A[:b] and B[:, :b] only; a site with fewer components uses all of them. This
    orders the components by importance, so the truncation to the budget's ranks after training needs neither scores nor
    further training. With `rescale` the factor r / b of the final truncation is folded into B. With `frozen` only the
    b-th component has a gradient, at a site with fewer the last one.

    Under `budget="paper"` GLUE on RoBERTa-base is trained as in the authors' code, `frozen` included. MRPC, RTE and
    STS-B are left out, because their runs continue adapters trained on MNLI.

    By default nothing is truncated: the largest rank is the budget's, as in the paper's comparison with LoRA. The trace
    holds no scores.
    """

    name = "dylora"
    source = "Valipour et al., EACL 2023, arXiv 2210.07558; code huawei-noah/Efficient-NLP"
    decides = ("at the end",)
    actions = ("cut ranks", "set values")
    Config = DyLoRAConfig
    drawn = 0

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        final = budget.solve(sites)
        widest = {s.name: max(final[s.name], min(self.config.initial_rank, s.max_rank)) for s in sites}
        smallest, largest = self.config.smallest, max(widest.values())
        problem, cure = f"is above the largest rank, {largest}", "Give a smaller one, or a larger initial_rank"
        check_option(smallest <= largest, "dylora", "smallest", smallest, problem, cure)
        return AdapterSpec(ranks=widest, final_ranks=final)

    def paper(self) -> PaperSettings:
        return PaperSettings(rank=8, runs=published_runs("dylora"))

    def before_step(self, view: StepView) -> Mapping[str, Tensor]:
        largest = max(site.rank for site in view.sites.values())
        b = int(torch.randint(self.config.smallest, largest + 1, (1,), generator=view.rng))
        multipliers = {name: torch.zeros(site.rank, device=site.A.device) for name, site in view.sites.items()}
        for factors in multipliers.values():
            used = min(b, len(factors))
            factors[:used] = self._factor(len(factors), used)
        self.drawn = b
        return multipliers

    def frozen_components(self, view: StepView) -> Mapping[str, Tensor] | None:
        if not (self.config.frozen or view.budget.paper):
            return None
        frozen = {name: torch.ones(site.rank, dtype=torch.bool) for name, site in view.sites.items()}
        for mark in frozen.values():
            mark[min(self.drawn, len(mark)) - 1] = False
        return {name: mark.to(view.sites[name].A.device) for name, mark in frozen.items()}

    def _factor(self, rank: int, used: int) -> float:
        return rank / used if self.config.rescale else 1.0

    def end_phase(self, view: StepView) -> PruningPlan:
        final = view.budget.solve([site.shape for site in view.sites.values()])
        cut = {name: site for name, site in view.sites.items() if final[name] < site.rank}
        scaled = cut if self.config.rescale else {}
        assign = {n: {"B": s.B[:, : final[n]] * self._factor(s.rank, final[n])} for n, s in scaled.items()}
        keep = {name: range(final[name]) for name in cut}
        return PruningPlan(keep=keep, assign=assign, reason="truncated to the first components")
