from collections.abc import Sequence
from dataclasses import dataclass

from peftprune import scoring
from peftprune.methods.elalora import ElaLoRA
from peftprune.methods.svd_components import new_components
from peftprune.strategy import Options, PaperSettings, Site, StepView, option
from peftprune.strategy.lazy import Tensor, torch


@dataclass(frozen=True)
class FlexLoRAConfig(Options):
    exchanged: int = option(4, "authors' code", ge=1, help=
        "sites that lose, and gain, a component in the first round (b)")  # fmt: skip
    warmup: float = option(0.1, "convention", ge=0, lt=1, help="share of the run before the first round")
    final: float = option(0.25, "convention", ge=0, lt=1, help="share of the run after the last round")
    every: int = option(0, "convention", ge=0, help=
        "steps between rounds, 10 in the authors' code; 0 takes a twentieth of the steps between warmup and "
        "final")  # fmt: skip
    fade: bool = option(True, "authors' code", help=
        "b falls to 0 by the cubic rule, which the code leaves off by default")  # fmt: skip
    new_std: float = option(1.0, "authors' code", gt=0, help=
        "standard deviation of new rows of A and columns of B, beside 0.02 of the first ones")  # fmt: skip
    penalty: float = option(0.1, "authors' code", ge=0, help="weight of the orthogonality penalty")
    penalty_form: str = option("norm", "authors' code", choices=("norm", "square"), help=
        "'norm' is the mean of the norms, 'square' the sum of their squares")  # fmt: skip


class FlexLoRA(ElaLoRA):
    """Starts at the budget; every round moves a component from the b sites of least entropy to the b sites of most.

    Components, penalty and initial values are AdaLoRA's, and rounds are ElaLoRA's. The entropy of a site of rank r is
    −Σ p log p / log r with p = gate² / Σ gate²: high where all components are used alike (authors' code). Each of the b
    sites of least entropy with more than one component loses the one whose gate is smallest in magnitude; the code
    removes the smallest signed value. Each of the b sites of most entropy gains one, whose gate is 0 (authors' code).

    A site of rank 1 has entropy 1 and gains first, as in the code, where its entropy is not a number. Gates that are
    all 0 have entropy 0 (convention). No site both loses and gains: b is at most half of the sites (convention). What
    is cut is spent again in parameters, as in `elalora`: sites follow in descending entropy, and those that are full or
    cost more than is left are skipped. The authors' trainer rebuilds the optimizer in every round; here moments and
    schedule are kept. No source states settings per task.

    Scores in the trace: each site's entropy before the round.
    """

    name = "flexlora"
    revision = 0
    source = "Liu et al., ICLR 2026, arXiv 2601.22905; code Chongjie-Si/Subspace-Tuning"
    Config = FlexLoRAConfig

    def new_sensitivity(self) -> scoring.TripletSensitivity:
        return scoring.TripletSensitivity()

    def learn(self, view: StepView) -> None:
        """Gates alone decide."""

    def paper(self) -> PaperSettings:
        return PaperSettings()

    def choose(self, view: StepView, exchanged: int) -> tuple[list[tuple[str, int]], list[str], dict[str, float]]:
        gates = {n: site.gate for n, site in view.sites.items() if site.gate is not None}
        entropy = {name: scoring.gate_entropy(gate) for name, gate in gates.items()}
        ascending = sorted(entropy, key=lambda n: entropy[n])
        givers = [n for n in ascending if len(gates[n]) > 1][: min(exchanged, len(gates) // 2)]
        going = [(name, int(gates[name].abs().argmin())) for name in givers]
        return going, [name for name in reversed(ascending) if name not in givers], entropy

    def enlarged(self, site: Site, kept: Sequence[int], extra: int, rng: "torch.Generator") -> dict[str, Tensor]:
        return new_components(site, kept, extra, rng, std=self.config.new_std)
