from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from peftprune import scoring
from peftprune.errors import UsageError
from peftprune.methods.published_settings import published_runs
from peftprune.strategy import ArmBudget, Phase, PruningPlan, RankPruningStrategy, Site, SiteShape, StepView
from peftprune.strategy.lazy import Tensor, torch
from peftprune.strategy.options import Options, check_option, option
from peftprune.strategy.spec import AdapterSpec, PaperSettings


@dataclass(frozen=True)
class LoRPAConfig(Options):
    initial_rank: int = option(256, "authors' code", ge=1, help=
        "rank of the dense phase, at least the budget's and at most each site's smaller side; the value of every "
        "released GLUE and summarisation script")  # fmt: skip
    dense_share: float = option(0.2, "authors' code", gt=0, lt=1, help="share of the run before the cut")
    stage_shares: str = option("", "authors' code", later=True, help=
        "shares of the run of the stages after the dense one, joined by _ as in the code's prune_steps_ratio. Each "
        "starts with a cut, a fresh optimizer and a fresh schedule; '' is one stage, as in all released "
        "scripts")  # fmt: skip
    cut_ratios: str = option("", "authors' code", later=True, help=
        "shares of the first rank that the cuts before the last one drop, joined by _ as in the code's prune_ratio; '' "
        "makes all cuts drop the same (convention). The last cut ends at the budget")  # fmt: skip
    form: str = option("hadamard", "authors' code", choices=("hadamard", "outer"), help=
        "score of a component: 'hadamard' is the released score and needs d_in = d_out, so other sites take 'outer' "
        "(convention); 'outer' holds for all sites")  # fmt: skip
    scaling: str = option("keep", "authors' code", choices=("keep", "rescale"), help=
        "'keep' leaves the scaling of the first rank in force after the cut; 'rescale' multiplies B by initial / final "
        "rank, which gives alpha / r of the final rank (convention)")  # fmt: skip
    rewind: bool = option(False, "authors' code", help=
        "reset the kept components to their initial values at each cut: the lottery-ticket ablation, which the code "
        "does not have (convention). The head keeps its trained values")  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        stages, ratios = self.stages, _numbers(self.cut_ratios, "cut_ratios")
        total = self.dense_share + sum(stages)
        check_option(
            not self.stage_shares or (min(stages) > 0 and abs(total - 1) < 1e-6),
            "lorpa", "stage_shares", self.stage_shares, f"sums to {total:g} with dense_share={self.dense_share:g}",
            "Let them sum to 1, such as '0.3_0.5' beside dense_share=0.2",
        )  # fmt: skip
        check_option(
            not ratios or (len(ratios) == len(stages) - 1 and min(ratios) > 0 and sum(ratios) < 1),
            "lorpa", "cut_ratios", self.cut_ratios, f"does not fit {len(stages)} cuts",
            f"Give {len(stages) - 1} numbers above 0 that sum to less than 1, or ''",
        )  # fmt: skip

    @property
    def stages(self) -> list[float]:
        """Shares of the run of the stages after the dense one."""
        return _numbers(self.stage_shares, "stage_shares") or [1 - self.dense_share]

    def rank_after(self, cut: int, first: int, final: int) -> int:
        """Returns a site's rank after a cut, counted from 1, between its first and its final rank."""
        cuts, ratios = len(self.stages), _numbers(self.cut_ratios, "cut_ratios")
        if cut == cuts:
            return final
        dropped = sum(int(first * r) for r in ratios[:cut]) if ratios else (first - final) * cut // cuts
        return max(final, first - dropped)


def _numbers(text: str, name: str) -> list[float]:
    try:
        return [float(part) for part in text.split("_")] if text else []
    except ValueError:
        raise UsageError.of(f"lorpa.{name}", text, "is not a list of numbers", "Join them by _, as 0.3_0.5") from None


class LoRPA(RankPruningStrategy):
    """Trains LoRA at a large rank, cuts every site once to the budget's rank, and trains on with a fresh optimizer.

    Each site on its own loses its lowest-scoring components (authors' code). They are cut out of A and B; the kept
    ones retain their trained values, and nothing regrows (authors' code). The second phase starts with a fresh
    optimizer and a fresh schedule, warm-up included (authors' code). `stage_shares` divides the cut over several such
    phases. The released run freezes the classifier head; here every method trains it. The released run of BART cuts the
    queries and values of self-attention only and leaves cross-attention at the first rank; here every site is cut.
    Under `budget="paper"` RoBERTa and BART are trained as in the released scripts, which search some learning rates.

    Scores in the trace: for each site, the kept components' share of its total score.
    """

    name = "lorpa"
    source = "Kim, Kim and Kang, Mathematics 2024, 12(23), 3744; code JuHyng/LoRPA"
    decides = ("once",)
    actions = ("cut ranks",)
    Config = LoRPAConfig
    state_names = ("initial", "first")
    initial: dict[str, dict[str, Tensor]]
    first: dict[str, int]

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        final = budget.solve(sites)
        dense = {s.name: max(final[s.name], min(self.config.initial_rank, s.max_rank)) for s in sites}
        return AdapterSpec(ranks=dense, final_ranks=final)

    def phases(self, budget: ArmBudget) -> list[Phase]:
        pruned = Phase("pruned", restart_schedule=True, reset_optimizer=True)
        earlier = [replace(pruned, name=f"cut {i}", share=s) for i, s in enumerate(self.config.stages[:-1], 1)]
        return [Phase("dense", share=self.config.dense_share), *earlier, pruned]

    def paper(self) -> PaperSettings:
        return PaperSettings(rank=8, runs=published_runs("lorpa"))

    def start(self, view: StepView) -> None:
        self.first = {name: site.rank for name, site in view.sites.items()}
        if self.config.rewind:
            self.initial = {n: {"A": s.A.clone(), "B": s.B.clone()} for n, s in view.sites.items()}

    def end_phase(self, view: StepView) -> PruningPlan:
        phase = view.phase.name
        if phase == "pruned":
            return PruningPlan()
        cut = 1 if phase == "dense" else 1 + int(phase.removeprefix("cut "))
        solved = view.budget.solve([site.shape for site in view.sites.values()])
        final = {name: self.config.rank_after(cut, self.first.get(name, 0), rank) for name, rank in solved.items()}
        scores = {name: self.scores(site, view) for name, site in view.sites.items()}
        keep = {name: scoring.keep_top(found, final[name]) for name, found in scores.items()}
        forms = [self._form(site) for site in view.sites.values()]
        done = "cut to the budget's ranks" if cut == len(self.config.stages) else f"cut {cut}"
        return PruningPlan(
            keep=keep,
            assign=self._kept_values(view, keep),
            scores={name: scoring.share_held(found, torch.tensor(keep[name])) for name, found in scores.items()},
            reason=f"{done}; {forms.count('hadamard')} sites by hadamard, {forms.count('outer')} by outer",
        )

    def scores(self, site: Site, view: StepView) -> Tensor:
        """Returns the (r,) scores of the site's components; the highest stay."""
        return scoring.rank_magnitude(site.A.float(), site.B.float(), self._form(site))

    def _form(self, site: Site) -> Literal["hadamard", "outer"]:
        return "hadamard" if self.config.form == "hadamard" and site.d_in == site.d_out else "outer"

    def _kept_values(self, view: StepView, keep: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        values: dict[str, dict[str, Tensor]] = {}
        for name, indices in keep.items():
            index, site = list(indices), view.sites[name]
            if self.config.rewind:
                values[name] = {"A": self.initial[name]["A"][index], "B": self.initial[name]["B"][:, index]}
                self.initial[name] = dict(values[name])
            if self.config.scaling == "rescale":
                B = values.get(name, {}).get("B", site.B[:, index])
                values.setdefault(name, {})["B"] = B * (site.rank / len(index))
        return values
