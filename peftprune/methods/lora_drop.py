"""LoRA-drop: score each site by its output; the important ones keep their own LoRA, the rest share one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from peftprune.errors import RunError
from peftprune.scoring import until_share
from peftprune.strategy.budget import ArmBudget
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.options import check_option, option
from peftprune.strategy.phases import Phase
from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.signal import Signal
from peftprune.strategy.sites import SiteShape
from peftprune.strategy.spec import AdapterSpec, PaperSettings
from peftprune.strategy.view import StepView


@dataclass(frozen=True)
class LoRADropConfig:
    """Options of LoRA-drop.

    Attributes:
        sample: share of the training data in the probe's stratified sample, in (0, 1) (the paper states the range;
            0.1 is a convention of ours).
        probe_passes: passes over the sample in the probe. 3 is a convention of ours.
        threshold: sites are kept in descending score until their sum reaches this share, in (0, 1]. 0.9 is the example
            that secondary summaries give.
        normalise: scores are normalised over all sites ("all") or within each projection kind ("kind"). A convention
            of ours.
    """

    sample: float = option(0.1, "convention of ours", "share of the training data in the probe's sample")
    probe_passes: float = option(3.0, "convention of ours", "passes over the sample")
    threshold: float = option(0.9, "secondary summary", "share of the total score that is kept")
    normalise: Literal["all", "kind"] = option("all", "convention of ours", "where scores are normalised")

    def __post_init__(self) -> None:
        check_option(
            0 < self.sample < 1, "lora-drop", "sample", self.sample, "is outside (0, 1)", "Give 0.1, for example"
        )
        check_option(
            0 < self.probe_passes < float("inf"),
            "lora-drop", "probe_passes", self.probe_passes, "is not positive and finite", "Give 3, for example",
        )  # fmt: skip
        check_option(
            0 < self.threshold <= 1,
            "lora-drop", "threshold", self.threshold, "is outside (0, 1]", "Give 0.9, for example",
        )  # fmt: skip
        check_option(
            self.normalise in ("all", "kind"),
            "lora-drop", "normalise", self.normalise, "is unknown", 'Use "all" or "kind"',
        )  # fmt: skip


class LoRADrop(RankPruningStrategy):
    """Probe on a sample, score sites by the energy of their output, keep the important, let the others share.

    1. Train LoRA on a stratified sample for a few steps (stated in the paper). 2. Score each site by
    g_i = Σ ‖ΔW_i x‖² over the sample's tokens, in eval mode, padding excluded, scaling included (the squared norm is
    from a secondary summary; the details are conventions of ours), normalised to sum to 1. 3. Keep sites in descending
    score until the running sum first reaches the threshold, the crossing site included. 4. The others share one LoRA
    per projection kind and shape (that they share is stated in the paper; one per kind and shape is a convention of
    ours). 5. All adapters start afresh and are trained on all the data with a fresh optimizer and schedule. The head
    goes on from the probe (a convention of ours).

    The trace holds these normalised scores.

    Under a matched budget the ranks of step 5 are solved so that kept and shared adapters together meet it; under
    `budget="paper"` the probe's rank stays. The probe's steps and the scoring pass are charged to the training budget.

    Source: Zhou et al., COLING 2025, arXiv 2402.07721.
    """

    name: ClassVar[str] = "lora-drop"
    source: ClassVar[str] = "Zhou et al., COLING 2025"
    prunes: ClassVar[str] = "sites"
    signals: ClassVar[frozenset[Signal]] = frozenset({Signal.OUTPUT_ENERGY})
    Config: ClassVar[type] = LoRADropConfig

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        self.energy: dict[str, Tensor] = {}

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
        if view.phase.name != "score":
            return
        # Summed as tensors: reading them here would make the host wait for the device in every step.
        for name, energy in view.signals[Signal.OUTPUT_ENERGY].items():
            self.energy[name] = self.energy.get(name, 0) + energy.double()

    def end_phase(self, view: StepView) -> PruningPlan:
        if view.phase.name != "score":
            return PruningPlan()
        if not any(float(e) > 0 for e in self.energy.values()):
            raise RunError("lora-drop: no site produced any output in the probe. Train the probe for more passes")
        kept = set(self.kept_sites({n: s.shape for n, s in view.sites.items()}))
        return self.plan(kept, view)

    def plan(self, kept: set[str], view: StepView) -> PruningPlan:
        """What becomes of the sites once the kept ones are known."""
        shared: dict[tuple[str, int, int], list[str]] = {}
        for name, site in view.sites.items():
            if name not in kept:
                shared.setdefault((site.kind, site.d_in, site.d_out), []).append(name)
        groups = list(shared.values())
        holders = [view.sites[n].shape for n in view.sites if n in kept or any(g[0] == n for g in groups)]
        return PruningPlan(
            reinit=self._ranks(holders, view),
            share=groups,
            scores=self.scores({n: s.shape for n, s in view.sites.items()}),
            reason=f"kept {len(kept)} of {len(view.sites)} sites; the others share {len(groups)} adapters",
        )

    def _ranks(self, holders: Sequence[SiteShape], view: StepView) -> dict[str, int]:
        if view.budget.paper:
            return {s.name: view.sites[s.name].rank for s in holders}
        return view.budget.solve(holders)

    def kept_sites(self, shapes: Mapping[str, SiteShape]) -> list[str]:
        """Names of the sites that keep their own adapter, in descending score."""
        return until_share(self.scores(shapes), self.config.threshold)

    def scores(self, shapes: Mapping[str, SiteShape]) -> dict[str, float]:
        """Normalised importance of each site; sums to 1."""
        energy = {n: float(self.energy[n]) for n in shapes}
        if self.config.normalise == "all":
            total = sum(energy.values())
            return {n: e / total for n, e in energy.items()}
        kinds = {s.kind for s in shapes.values()}
        totals = {k: sum(energy[n] for n, s in shapes.items() if s.kind == k) for k in kinds}
        return {n: energy[n] / totals[s.kind] / len(kinds) for n, s in shapes.items() if totals[s.kind] > 0}

    def state_dict(self) -> dict[str, Any]:
        return {"energy": dict(self.energy)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.energy = dict(state["energy"])
