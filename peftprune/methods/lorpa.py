"""LoRPA: train at a large rank, prune each site to the budget's rank by magnitude, train on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from peftprune.scoring import keep_top, rank_magnitude, share_held
from peftprune.scoring.magnitude import Form
from peftprune.strategy.budget import ArmBudget
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.options import check_option, option
from peftprune.strategy.phases import Phase
from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.sites import Site, SiteShape
from peftprune.strategy.spec import AdapterSpec, PaperSettings
from peftprune.strategy.view import StepView

_RELEASED: dict[str, dict[str, Any]] = {
    "mnli": {"batch_size": 16, "learning_rate": 3e-4, "epochs": 30, "max_length": 512},
    "sst2": {"batch_size": 16, "learning_rate": 6e-5, "epochs": 60, "max_length": 512},
    "mrpc": {"batch_size": 16, "learning_rate": 4e-4, "epochs": 30, "max_length": 512},
    "cola": {"batch_size": 32, "learning_rate": 4e-4, "epochs": 80, "max_length": 512},
    "qnli": {"batch_size": 32, "learning_rate": 4e-4, "epochs": 25, "max_length": 512},
    "qqp": {"batch_size": 16, "learning_rate": 5e-4, "epochs": 25, "max_length": 512},
    # The released scripts search the learning rate for these two, so none is set here.
    "rte": {"batch_size": 32, "epochs": 80, "max_length": 512},
    "stsb": {"batch_size": 16, "epochs": 40, "max_length": 512},
}


@dataclass(frozen=True)
class LoRPAConfig:
    """Options of LoRPA.

    Attributes:
        initial_rank: rank of the dense phase, capped at each site's smaller side. 256 in every released GLUE and
            summarisation script (authors' code).
        dense_share: share of the run before the cut, in (0, 1). 0.2 in the authors' code.
        form: how a component is scored. "hadamard" is the released score (authors' code); it needs d_in = d_out, and
            other sites take "outer" (a convention of ours). "outer" uses the latter everywhere.
        scaling: "keep" leaves the factor of creation in force after the cut, as the released code does; "rescale"
            multiplies B by initial / final rank, which is what alpha / r of the pruned rank would give
            (a convention of ours).
        rewind: set the survivors back to their initial values at the cut, the lottery-ticket ablation (a convention
            of ours; the authors' code does not rewind).
    """

    initial_rank: int = option(256, "authors' code", "rank of the dense phase")
    dense_share: float = option(0.2, "authors' code", "share of the run before the cut")
    form: Form = option("hadamard", "authors' code", "score; sites with d_in ≠ d_out take 'outer' (convention of ours)")
    scaling: Literal["keep", "rescale"] = option("keep", "authors' code", "what the cut does to the scaling")
    rewind: bool = option(False, "authors' code", "survivors go back to their initial values")

    def __post_init__(self) -> None:
        check_option(
            isinstance(self.initial_rank, int) and self.initial_rank >= 1,
            "lorpa", "initial_rank", self.initial_rank, "is not a whole number above 0", "Give 256, for example",
        )  # fmt: skip
        check_option(
            0 < self.dense_share < 1,
            "lorpa", "dense_share", self.dense_share, "is outside (0, 1)", "Give 0.2, for example",
        )  # fmt: skip
        check_option(
            self.form in ("hadamard", "outer"), "lorpa", "form", self.form, "is unknown", 'Use "hadamard" or "outer"'
        )
        check_option(
            self.scaling in ("keep", "rescale"),
            "lorpa", "scaling", self.scaling, "is unknown", 'Use "keep" or "rescale"',
        )  # fmt: skip


class LoRPA(RankPruningStrategy):
    """Train LoRA at a large rank, cut every site once to the budget's rank, train on with a fresh optimizer.

    At each site on its own the lowest-scoring components are removed physically; survivors keep their trained values
    and nothing regrows. The second phase has a fresh optimizer and a fresh schedule with its own warm-up. The released
    run froze the classifier head; here the head is trained for every method alike. The trace holds, for each site, the
    share of its total score that the kept components have.

    Source: Kim, Kim and Kang, Mathematics 2024, 12(23), 3744; code JuHyng/LoRPA.
    """

    name: ClassVar[str] = "lorpa"
    source: ClassVar[str] = "Kim, Kim and Kang, Mathematics 2024, 12(23), 3744"
    Config: ClassVar[type] = LoRPAConfig

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
        return PaperSettings(rank=8, scaling=1.0, weight_decay=0.1, warmup_ratio=0.06, per_task=_RELEASED)

    def start(self, view: StepView) -> None:
        if self.config.rewind:
            self.initial = {n: {"A": s.A.clone(), "B": s.B.clone()} for n, s in view.sites.items()}

    def end_phase(self, view: StepView) -> PruningPlan:
        if view.phase.name != "dense":
            return PruningPlan()
        final = view.budget.solve([site.shape for site in view.sites.values()])
        scores = {name: self.scores(site, view) for name, site in view.sites.items()}
        keep = {name: keep_top(found, final[name]) for name, found in scores.items()}
        forms = [self._form(site) for site in view.sites.values()]
        return PruningPlan(
            keep=keep,
            assign=self._survivors(view, keep),
            scores={name: share_held(found, torch.tensor(keep[name])) for name, found in scores.items()},
            reason=f"cut to the budget's ranks; {forms.count('hadamard')} sites by hadamard, "
            f"{forms.count('outer')} by outer",
        )

    def scores(self, site: Site, view: StepView) -> Tensor:
        """(r,) importance of the site's components; the higher stay."""
        return rank_magnitude(site.A.float(), site.B.float(), self._form(site))

    def _form(self, site: Site) -> Form:
        return "hadamard" if self.config.form == "hadamard" and site.d_in == site.d_out else "outer"

    def _survivors(self, view: StepView, keep: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """New values of the survivors, for the options that change them."""
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
