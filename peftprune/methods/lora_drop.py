from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from peftprune import scoring
from peftprune.errors import RunError
from peftprune.strategy import ArmBudget, Options, Phase, PruningPlan, RankPruningStrategy, Signal, SiteShape, option
from peftprune.strategy.lazy import Tensor, torch
from peftprune.strategy.method import Action
from peftprune.strategy.spec import AdapterSpec, PaperSettings
from peftprune.strategy.view import StepView


@dataclass(frozen=True)
class LoRADropConfig(Options):
    sample: float = option(0.1, "convention", gt=0, lt=1, help=
        "share of the training data in the probe's stratified sample (the range: paper)")  # fmt: skip
    probe_passes: float = option(3.0, "convention", gt=0, help="passes over the sample in the probe")
    threshold: float = option(0.9, "secondary summary", gt=0, le=1, help=
        "sites are kept in descending score until their sum reaches this share")  # fmt: skip
    normalise: str = option("all", "convention", choices=("all", "kind"), help=
        "scores are normalised over all sites or within each projection kind")  # fmt: skip
    score: str = option(
        "output", "paper", choices=("output", "params", "size", "gradient", "random"), later=True, help=
        "'output' is the paper's score; the others are alternatives under the same threshold and sharing (convention): "
        "'params' is ‖ΔW‖² after the probe, 'size' the site's number of parameters, 'gradient' the sum of ‖∇A‖² + "
        "‖∇B‖² over the probe's steps, 'random' a uniform draw")  # fmt: skip
    rest: str = option("share", "paper", choices=("share", "delete", "keep"), later=True, help=
        "what the other sites do: share one adapter, lose theirs, or keep one of their own like all others "
        "(the last two: convention)")  # fmt: skip
    refill: bool = option(True, "convention", later=True, help=
        "raise the ranks so that the adapters that are left meet a matched budget; without it they keep the probe's "
        "rank, as the paper does, and the arm has fewer parameters than the others, which tables say")  # fmt: skip


class LoRADrop(RankPruningStrategy):
    """Scores sites by the energy of their output; important sites keep an adapter of their own, the others share one.

    1. A probe trains LoRA for a few steps on a stratified sample (paper).
    2. Each site is scored by g_i = Σ ‖ΔW_i x‖² over the sample's tokens (the squared norm: secondary summary), in eval
    mode, without padding, with the scaling, and normalised to sum to 1 (convention).
    3. Sites are kept in descending score until the running sum first reaches the threshold; the site that crosses it is
    kept.
    4. The other sites share one LoRA (paper), one per projection kind and shape (convention).
    5. All adapters are initialised anew and trained on all data with a fresh optimizer and schedule (two stages:
    secondary summary). The head keeps its values from the probe (convention).

    Under a matched budget the ranks of step 5 are solved so that kept and shared adapters together meet it. Under
    `budget="paper"`, and without `refill`, the probe's rank stays. The steps of the probe and the scoring pass are
    charged to the training budget, whatever the score.

    Scores in the trace: the normalised scores.
    """

    name = "lora-drop"
    source = "Zhou et al., COLING 2025, arXiv 2402.07721"
    prunes = "sites"
    decides = ("once",)
    actions: ClassVar[tuple[Action, ...]] = ("share adapters", "restart adapters")
    signals = frozenset({Signal.OUTPUT_ENERGY})
    Config = LoRADropConfig
    state_names = ("energy",)
    energy: dict[str, Tensor]
    """Site to its score before normalisation: its output's energy, unless `score` names another."""

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        if not self.config.refill:
            self.exemption = "fewer parameters: ranks stay at the probe's (refill=False)"  # type: ignore[misc]
        if self.config.score != "output":
            self.signals = frozenset()  # type: ignore[misc]

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        return AdapterSpec(ranks=budget.solve(sites), decided_in_training=True)

    def phases(self, budget: ArmBudget) -> list[Phase]:
        sample = self.config.sample
        return [
            Phase("probe", passes=self.config.probe_passes, data=sample, signals=frozenset()),
            Phase("score", passes=1.0, data=sample, kind="forward"),
            Phase("finetune", restart_schedule=True, reset_optimizer=True, signals=frozenset()),
        ]

    def paper(self) -> PaperSettings:
        return PaperSettings(rank=8)

    def observe(self, view: StepView) -> None:
        if view.phase.name == "probe" and self.config.score == "gradient":
            for name, site in view.sites.items():
                squares = [g.double().square().sum() for g in (site.grad_A, site.grad_B) if g is not None]
                self.energy[name] = sum(squares, self.energy.get(name, site.A.new_zeros(())))
        if view.phase.name != "score" or self.config.score != "output":
            return
        # Sums stay on the device: reading them would synchronise it with the host in every step.
        for name, energy in view.signals[Signal.OUTPUT_ENERGY].items():
            self.energy[name] = self.energy.get(name, 0) + energy.double()

    def end_phase(self, view: StepView) -> PruningPlan:
        if view.phase.name != "score":
            return PruningPlan()
        self.energy |= self._alternative(view)
        if not any(float(e) > 0 for e in self.energy.values()):
            raise RunError("lora-drop: no site produced any output in the probe. Train the probe for more passes")
        shapes = {n: s.shape for n, s in view.sites.items()}
        return replace(self.plan(set(self.kept_sites(shapes)), view), scores=self.scores(shapes))

    def _alternative(self, view: StepView) -> dict[str, Tensor]:
        """Returns the scores that need no sum over steps; nothing for the others."""
        found = {}
        for name, site in view.sites.items():
            if self.config.score == "params":
                A, B = site.A.double(), site.B.double()
                found[name] = site.scaling**2 * ((A @ A.T) * (B.T @ B)).sum()
            elif self.config.score == "size":
                found[name] = torch.tensor(float(site.rank * site.unit_cost))
            elif self.config.score == "random":
                found[name] = torch.rand((), generator=view.rng)
        return found

    def plan(self, kept: set[str], view: StepView) -> PruningPlan:
        """Returns the plan for the sites without scores, given the names of those that are kept."""
        others = [site for name, site in view.sites.items() if name not in kept]
        shared: dict[tuple[str, int, int], list[str]] = {}
        for site in others if self.config.rest == "share" else ():
            shared.setdefault((site.kind, site.d_in, site.d_out), []).append(site.name)
        groups = list(shared.values())
        alone = {site.name for site in others} if self.config.rest == "keep" else {group[0] for group in groups}
        did = {
            "share": f"; the others share {len(groups)} adapters",
            "delete": " and removed the others",
            "keep": " and the others keep their own adapters",
        }
        return PruningPlan(
            reinit=self.ranks_of([site.shape for name, site in view.sites.items() if name in kept | alone], view),
            share=groups,
            drop=frozenset(site.name for site in others) if self.config.rest == "delete" else frozenset(),
            reason=f"kept {len(kept)} of {len(view.sites)} sites{did[self.config.rest]}",
        )

    def ranks_of(self, holders: Sequence[SiteShape], view: StepView) -> dict[str, int]:
        if view.budget.paper or not self.config.refill:
            return {s.name: view.sites[s.name].rank for s in holders}
        return view.budget.solve(holders)

    def kept_sites(self, shapes: Mapping[str, SiteShape]) -> list[str]:
        """Returns the sites that keep an adapter of their own, in descending score."""
        return scoring.until_share(self.scores(shapes), self.config.threshold)

    def scores(self, shapes: Mapping[str, SiteShape]) -> dict[str, float]:
        """Returns the normalised score of each site; they sum to 1."""
        energy = {n: float(self.energy[n]) for n in shapes}
        if self.config.normalise == "all":
            total = sum(energy.values())
            return {n: e / total for n, e in energy.items()}
        kinds = {s.kind for s in shapes.values()}
        totals = {k: sum(energy[n] for n, s in shapes.items() if s.kind == k) for k in kinds}
        return {n: energy[n] / totals[s.kind] / len(kinds) for n, s in shapes.items() if totals[s.kind] > 0}
