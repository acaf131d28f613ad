from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from peftprune import scoring
from peftprune.errors import RunError, UsageError
from peftprune.methods.global_cut import cut_to_budget
from peftprune.strategy import AdapterSpec, ArmBudget, Options, Phase, PruningPlan, Signal, SiteShape, StepView, option
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.lazy import Tensor, torch


@dataclass(frozen=True)
class EVAConfig(Options):
    rho: float = option(2.0, "convention", ge=1, help=
        "a site's largest rank as a multiple of the uniform one; 1 redistributes nothing, 2 is PEFT's "
        "default")  # fmt: skip
    sample: float = option(0.1, "convention", gt=0, lt=1, help=
        "share of the training data in the stratified sample that is read once before training; PEFT reads batches "
        "until the vectors converge")  # fmt: skip
    labels_only: bool = option(False, "convention", later=True, help=
        "in generation read only a decoder's tokens that have a label, as PEFT does by default "
        "(use_label_mask)")  # fmt: skip


class EVA(RankPruningStrategy):
    """Allocates ranks by the explained variance of the layer inputs, and initialises A with their singular vectors.

    A starts as the right singular vectors of its layer's inputs, B at zero; ranks are redistributed among all layers so
    that they explain the most variance (paper's abstract). Inputs are centred, padding is excluded, and with
    `labels_only` a decoder's prompt too. A component's score is its share of its own layer's variance, as in PEFT. PEFT
    distributes ranks. Here components are taken in descending score while the budget pays for them, so that wide layers
    compete at their cost, and a site may end without an adapter (convention; with sites of one shape the two agree).
    Where `rho` leaves a unit of the budget unspent, sites that have an adapter grow past it (convention). The
    decomposition is exact, from summed second moments, d_in² numbers for each distinct input; PEFT's is incremental
    (convention). The forward pass over the sample is charged to the training budget. The scaling is the same at every
    site, as with PEFT's `adjust_scaling_factors`.

    Scores in the trace: for each site, the share of its input's variance that its components explain.
    """

    name = "eva"
    source = "Paischer et al., 2024, arXiv 2410.07170; PEFT's `initialize_lora_eva_weights`"
    decides = ("before training",)
    actions = ("redistribute ranks", "set values", "restart adapters")
    signals = frozenset({Signal.INPUT_MOMENTS})
    Config = EVAConfig
    state_names = ("moments", "reads")
    moments: dict[str, Tensor]
    reads: dict[str, str]

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        if self.config.labels_only:
            self.signals = frozenset({Signal.LABEL_MOMENTS})  # type: ignore[misc]

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        return AdapterSpec(ranks=budget.solve(sites), decided_in_training=True)

    def phases(self, budget: ArmBudget) -> list[Phase]:
        return [
            Phase("calibrate", passes=1.0, data=self.config.sample, kind="forward"),
            Phase("train", restart_schedule=True, reset_optimizer=True, signals=frozenset()),
        ]

    def start(self, view: StepView) -> None:
        device = next(iter(view.sites.values())).A.device
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
        check_memory([site.shape for site in view.sites.values()], int(free))

    def observe(self, view: StepView) -> None:
        first: dict[int, str] = {}
        wanted = Signal.LABEL_MOMENTS if self.config.labels_only else Signal.INPUT_MOMENTS
        for name, moments in view.signals.get(wanted, {}).items():
            # Sites that read the same input get one tensor: it is summed once, under the name of the first site.
            self.reads[name] = first.setdefault(id(moments), name)
            if self.reads[name] == name:
                known = self.moments.get(name)
                self.moments[name] = moments.double() if known is None else known + moments

    def end_phase(self, view: StepView) -> PruningPlan:
        if view.phase.name != "calibrate":
            return PruningPlan()
        moments, self.moments = self.moments, {}
        found = {}
        for name in list(moments):
            # Each moment is freed before the next is decomposed, and directions take the type of A, to save memory.
            values, vectors = scoring.explained_variance(moments.pop(name))
            found[name] = values, vectors.to(view.sites[name].A)
        shares = {name: found[self.reads[name]][0] for name in view.sites}
        if not any(float(values[0]) > 0 for values in shares.values()):
            raise RunError("eva: the inputs of all sites are constant. Read a larger sample")
        ranks = self.ranks(shares, view)
        directions = {name: found[self.reads[name]][1][:rank] for name, rank in ranks.items() if rank}
        return PruningPlan(
            drop=frozenset(name for name, rank in ranks.items() if rank == 0),
            reinit={name: rank for name, rank in ranks.items() if rank},
            assign={name: {"A": rows.clone()} for name, rows in directions.items()},
            scores={name: float(shares[name][:rank].sum()) for name, rank in ranks.items()},
            reason=f"ranks by explained variance, {min(ranks.values())} to {max(ranks.values())}",
        )

    def ranks(self, shares: Mapping[str, Tensor], view: StepView) -> dict[str, int]:
        """Returns each site's rank, given its components' shares of the input's variance in descending order."""
        uniform = view.budget.solve([site.shape for site in view.sites.values()])
        most = {n: min(s.max_rank, round(self.config.rho * uniform[n])) for n, s in view.sites.items()}
        keep, grow = cut_to_budget({n: shares[n][: most[n]] for n in most}, view)
        return {name: len(kept) + grow.get(name, 0) for name, kept in keep.items()}


def memory_needed(sites: Iterable[SiteShape]) -> int:
    """Returns the least bytes that calibration takes.

    That is moments in double and single precision for each distinct input, and four matrices of doubles to decompose
    the largest. Sites of one module with the same stream and width count as reading one input, as query, key and value
    do; where they do not, calibration takes more.
    """
    inputs = {(s.name.rpartition(".")[0], s.stream, s.d_in) for s in sites}
    squares = [(width + 1) ** 2 for _, _, width in inputs]
    return 12 * sum(squares) + 4 * 8 * max(squares)


def check_memory(sites: Sequence[SiteShape], available: int) -> None:
    """Raises UsageError for a calibration that needs more than the `available` bytes; it names the widest input."""
    needed = memory_needed(sites)
    if needed > available:
        widest = max(sites, key=lambda s: s.d_in)
        problem = (
            f"reads inputs of width d_in = {widest.d_in:,}; second moments of all inputs take about "
            f"{needed / 2**30:,.1f} GiB, and {available / 2**30:,.1f} GiB are free"
        )
        cure = "Name target_modules with narrower or fewer inputs, such as attention, use a machine with more memory,"
        raise UsageError.of("eva", widest.name, problem, f"{cure} or leave eva out")
