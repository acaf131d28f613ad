"""LoRPA: trains at a large rank, cuts each site to the budget's rank by magnitude, and trains on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from peftprune import scoring
from peftprune.strategy.budget import ArmBudget
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.options import Options, option
from peftprune.strategy.phases import Phase
from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.sites import Site, SiteShape
from peftprune.strategy.spec import AdapterSpec, PaperSettings
from peftprune.strategy.view import StepView

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LoRPAConfig(Options):
    """Options of LoRPA."""

    initial_rank: int = option(256, "authors' code", ge=1, help=
        "rank of the dense phase, capped at each site's smaller side; the value of every released GLUE and "
        "summarisation script")  # fmt: skip
    dense_share: float = option(0.2, "authors' code", gt=0, lt=1, help="share of the run before the cut")
    form: str = option("hadamard", "authors' code", choices=("hadamard", "outer"), help=
        "score of a component: 'hadamard' is the released score and needs d_in = d_out, so other sites take 'outer' "
        "(convention); 'outer' holds for all sites")  # fmt: skip
    scaling: str = option("keep", "authors' code", choices=("keep", "rescale"), help=
        "'keep' leaves the scaling of the first rank in force after the cut; 'rescale' multiplies B by initial / final "
        "rank, which gives alpha / r of the final rank (convention)")  # fmt: skip
    rewind: bool = option(False, "authors' code", help=
        "reset the kept components to their initial values at the cut: the lottery-ticket ablation "
        "(convention)")  # fmt: skip


class LoRPA(RankPruningStrategy):
    """Trains LoRA at a large rank, cuts every site once to the budget's rank, and trains on with a fresh optimizer.

    Each site on its own loses its lowest-scoring components (authors' code). They are cut out of A and B; the kept
    ones retain their trained values, and nothing regrows (authors' code). The second phase starts with a fresh
    optimizer and a fresh schedule, warm-up included (authors' code). The released run freezes the classifier head; here
    every method trains it. Under `budget="paper"` each GLUE task is trained as in the released scripts, which search
    the learning rate of RTE and STS-B.

    Scores in the trace: for each site, the kept components' share of its total score.
    """

    name = "lorpa"
    source = "Kim, Kim and Kang, Mathematics 2024, 12(23), 3744; code JuHyng/LoRPA"
    decides = ("once",)
    actions = ("cut ranks",)
    Config = LoRPAConfig

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        self.initial: dict[str, dict[str, Tensor]] = {}

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        final = budget.solve(sites)
        dense = {s.name: max(final[s.name], min(self.config.initial_rank, s.max_rank)) for s in sites}
        return AdapterSpec(ranks=dense, final_ranks=final)

    def phases(self, budget: ArmBudget) -> list[Phase]:
        return [
            Phase("dense", share=self.config.dense_share),
            Phase("pruned", restart_schedule=True, reset_optimizer=True),
        ]

    def paper(self) -> PaperSettings:
        from peftprune.methods.published_settings import LORPA

        return PaperSettings(rank=8, scaling=1.0, weight_decay=0.1, warmup_ratio=0.06, per_task=LORPA)

    def start(self, view: StepView) -> None:
        if self.config.rewind:
            self.initial = {n: {"A": s.A.clone(), "B": s.B.clone()} for n, s in view.sites.items()}

    def end_phase(self, view: StepView) -> PruningPlan:
        if view.phase.name != "dense":
            return PruningPlan()
        import torch

        final = view.budget.solve([site.shape for site in view.sites.values()])
        scores = {name: self.scores(site, view) for name, site in view.sites.items()}
        keep = {name: scoring.keep_top(found, final[name]) for name, found in scores.items()}
        forms = [self._form(site) for site in view.sites.values()]
        return PruningPlan(
            keep=keep,
            assign=self._kept_values(view, keep),
            scores={name: scoring.share_held(found, torch.tensor(keep[name])) for name, found in scores.items()},
            reason=f"cut to the budget's ranks; {forms.count('hadamard')} sites by hadamard, "
            f"{forms.count('outer')} by outer",
        )

    def scores(self, site: Site, view: StepView) -> Tensor:
        """Returns the (r,) scores of the site's components; the highest stay."""
        return scoring.rank_magnitude(site.A.float(), site.B.float(), self._form(site))

    def _form(self, site: Site) -> Literal["hadamard", "outer"]:
        return "hadamard" if self.config.form == "hadamard" and site.d_in == site.d_out else "outer"

    def _kept_values(self, view: StepView, keep: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Returns the new values of the kept components, for the options that change them."""
        values: dict[str, dict[str, Tensor]] = {}
        for name, indices in keep.items():
            index, site = list(indices), view.sites[name]
            if self.config.rewind:
                values[name] = {"A": self.initial[name]["A"][index], "B": self.initial[name]["B"][:, index]}
            if self.config.scaling == "rescale":
                B = values.get(name, {}).get("B", site.B[:, index])
                values.setdefault(name, {})["B"] = B * (site.rank / len(index))
        return values

    def state_dict(self) -> dict[str, Any]:
        return {"initial": self.initial}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.initial = dict(state["initial"])
