"""What AdaLoRA, IncreLoRA and ElaLoRA share: phases, penalty and components of ΔW = scaling · B · diag(gate) · A."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from peftprune import scoring
from peftprune.strategy import AdapterSpec, ArmBudget, LiveTensors, Method, RankPruningStrategy, Site, check_option
from peftprune.strategy.lazy import Tensor, torch
from peftprune.strategy.phases import Phase, PhaseRange, phase_ranges
from peftprune.strategy.view import StepView

INITIAL_STD = 0.02
"""Standard deviation of the initial A and B (authors' code of AdaLoRA, IncreLoRA and ElaLoRA)."""


class SVDStrategy(RankPruningStrategy):
    """Base of the methods that decide on gated components under an orthogonality penalty.

    Their configs have `warmup` and `final`, shares of the run, and `beta1`, `beta2`, `penalty` and `penalty_form`.
    """

    phase_names: ClassVar[tuple[str, str]]
    """Names of the phase before the decisions and of the phase with them; the one after them is "final"."""

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        check_shares(self)
        self.sensitivity = self.new_sensitivity()

    def new_sensitivity(self) -> Any:
        """Returns the scores of a run that has made no step."""
        return scoring.TripletSensitivity(self.config.beta1, self.config.beta2)

    def scores(self, view: StepView) -> dict[str, Any]:
        return {name: self.sensitivity.scores(site) for name, site in view.sites.items() if site.rank}

    def phases(self, budget: ArmBudget) -> list[Phase]:
        first, deciding = self.phase_names
        phases = [Phase(first, share=self.config.warmup), Phase(deciding), Phase("final", share=self.config.final)]
        return [p for p in phases if p.share != 0]

    def ranges(self, budget: ArmBudget) -> dict[str, PhaseRange]:
        return {phase.name: phase for phase in phase_ranges(self.phases(budget), budget)}

    def penalty(self, sites: Mapping[str, LiveTensors]) -> Tensor | None:
        if self.config.penalty == 0 or not sites:
            return None
        return self.config.penalty * scoring.orthogonality(sites, self.config.penalty_form)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"sensitivity": self.sensitivity.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.sensitivity.load_state_dict(state["sensitivity"])


def gated_spec(ranks: Mapping[str, int], final_ranks: Mapping[str, int] | None = None) -> AdapterSpec:
    """Returns a spec whose gates start at 0 and whose A and B start from N(0, 0.02²)."""
    std = {"A": INITIAL_STD, "B": INITIAL_STD}
    return AdapterSpec(ranks, final_ranks, decided_in_training=True, gate="rank", gate_init=0.0, initial_std=std)


def check_shares(method: Method) -> None:
    """Raises UsageError unless `warmup` and `final` leave steps between them, that is, sum to less than 1."""
    warmup, final = method.config.warmup, method.config.final
    problem = f"leaves no steps for pruning beside warmup={warmup}"
    check_option(warmup + final < 1, method.name, "final", final, problem, "Let the two sum to less than 1")


def new_components(
    site: Site,
    kept: Sequence[int],
    extra: int,
    rng: torch.Generator,
    *,
    std: float = INITIAL_STD,
    orthonormal: bool = False,
) -> dict[str, Tensor]:
    """Returns "A", "B" and "gate" of a site that a plan cuts to `kept` and grows by `extra` components, at least 1.

    New gates are 0, so that the function does not change; new rows of A and columns of B are drawn from N(0, std²).
    With `orthonormal` they have length 1 and are orthogonal to the others (exactly where those are orthonormal), as in
    ElaLoRA. The components that stay come first.
    """
    from peftprune.adapters.initial import init_normal

    index = torch.as_tensor(list(kept), dtype=torch.long, device=site.A.device)
    A, B, gate = site.A[index], site.B[:, index], site.gate
    if orthonormal:
        for _ in range(extra):
            A = torch.cat([A, _direction(A, rng)])
            B = torch.cat([B, _direction(B.T, rng).T], 1)
    else:
        A = torch.cat([A, init_normal("A", site.shape, extra, std, rng).to(A)])
        B = torch.cat([B, init_normal("B", site.shape, extra, std, rng).to(B)], 1)
    assert gate is not None
    return {"A": A, "B": B, "gate": torch.cat([gate[index], gate.new_zeros(extra)])}


def _direction(rows: Tensor, rng: torch.Generator) -> Tensor:
    """Returns a random (1, width) row of length 1 without its projection on the others."""
    new = torch.randn(rows.shape[1], generator=rng).to(rows)
    new = new - rows.T @ (rows @ new)
    return (new / (new.norm() + 1e-6))[None]


def share_of_scores(scores: Mapping[str, Tensor]) -> dict[str, float]:
    """Returns each site's share of the sum of all components' scores; 0 everywhere where all are 0."""
    totals = {name: float(found.sum()) for name, found in scores.items()}
    whole = sum(totals.values())
    return {name: total / whole if whole > 0 else 0.0 for name, total in totals.items()}
