"""EVA: before training, ranks go where they explain most of the layer inputs' variance; A starts along it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import psutil
import torch
from torch import Tensor

from peftprune.errors import RunError, UsageError
from peftprune.scoring import keep_top_global, units_that_fit
from peftprune.scoring.variance import explained_variance
from peftprune.strategy.budget import ArmBudget
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.options import check_option, option
from peftprune.strategy.phases import Phase
from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.signal import Signal
from peftprune.strategy.sites import SiteShape
from peftprune.strategy.spec import AdapterSpec
from peftprune.strategy.view import StepView


@dataclass(frozen=True)
class EVAConfig:
    """Options of EVA.

    Attributes:
        rho: a site's largest rank as a multiple of the uniform one, at least 1; 1 redistributes nothing. 2 is PEFT's
            default (a convention of ours).
        sample: share of the training data that is read before training, in (0, 1): a stratified sample, once (a
            convention of ours; PEFT reads batches until the vectors stop turning).
    """

    rho: float = option(2.0, "convention of ours", "largest rank, relative to the uniform one (PEFT's default)")
    sample: float = option(0.1, "convention of ours", "share of the training data that is read before training")

    def __post_init__(self) -> None:
        check_option(
            1 <= self.rho < float("inf"), "eva", "rho", self.rho, "is below 1 or not finite", "Give 2, for example"
        )
        check_option(0 < self.sample < 1, "eva", "sample", self.sample, "is outside (0, 1)", "Give 0.1, for example")


class EVA(RankPruningStrategy):
    """Read a sample of the data; ranks follow the explained variance of the layer inputs, A their singular vectors.

    A starts as the right singular vectors of the inputs of its layer, B at zero; ranks are redistributed among all
    layers so that they explain the most variance (stated in the paper's abstract). Inputs are centred, padding is left
    out, and a component's score is its share of its own layer's variance, as in PEFT's implementation. PEFT gives out
    ranks; here components are taken in descending share as long as the budget pays for them, so that wide layers
    compete at what they cost, and a site may end without an adapter (a convention of ours; with sites of one shape the
    two are the same). If `rho` leaves a unit's worth over, sites that have an adapter grow past it (a convention of
    ours). The decomposition is exact, from the summed second moments, where PEFT's is incremental (a convention of
    ours); d_in² numbers are held for each distinct input meanwhile. The forward pass over the sample is charged to the
    training budget. The scaling is the same at every site, as with PEFT's `adjust_scaling_factors`.

    The trace holds, for each site, the share of its input's variance that its components explain.

    Source: Paischer et al., 2024, arXiv 2410.07170; PEFT's `initialize_lora_eva_weights`.
    """

    name: ClassVar[str] = "eva"
    source: ClassVar[str] = "Paischer et al., 2024, arXiv 2410.07170"
    signals: ClassVar[frozenset[Signal]] = frozenset({Signal.INPUT_MOMENTS})
    Config: ClassVar[type] = EVAConfig

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        self.moments: dict[str, Tensor] = {}
        self.reads: dict[str, str] = {}

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        return AdapterSpec(ranks=budget.solve(sites), decided_in_training=True)

    def phases(self, budget: ArmBudget) -> list[Phase]:
        return [
            Phase("calibrate", passes=1.0, data=self.config.sample, kind="forward"),
            Phase("train", restart_schedule=True, reset_optimizer=True, signals=frozenset()),
        ]

    def start(self, view: StepView) -> None:
        check_memory([site.shape for site in view.sites.values()], _available(next(iter(view.sites.values())).A.device))

    def observe(self, view: StepView) -> None:
        first: dict[int, str] = {}
        for name, moments in view.signals.get(Signal.INPUT_MOMENTS, {}).items():
            # Sites that read the same input are given one tensor: it is summed once, under the first one's name.
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
            # One after the other, and directions as A holds them: together they take less than the moments did.
            values, vectors = explained_variance(moments.pop(name))
            found[name] = values, vectors.to(view.sites[name].A)
        shares = {name: found[self.reads[name]][0] for name in view.sites}
        if not any(float(values[0]) > 0 for values in shares.values()):
            raise RunError("eva: the inputs of all sites are constant. Read a larger sample")
        ranks = self.ranks(shares, [site.shape for site in view.sites.values()], view.budget)
        directions = {name: found[self.reads[name]][1][:rank] for name, rank in ranks.items() if rank}
        return PruningPlan(
            drop=frozenset(name for name, rank in ranks.items() if rank == 0),
            reinit={name: rank for name, rank in ranks.items() if rank},
            assign={name: {"A": rows.clone()} for name, rows in directions.items()},
            scores={name: float(shares[name][:rank].sum()) for name, rank in ranks.items()},
            reason=f"ranks by explained variance, {min(ranks.values())} to {max(ranks.values())}",
        )

    def ranks(self, shares: Mapping[str, Tensor], sites: Sequence[SiteShape], budget: ArmBudget) -> dict[str, int]:
        """The rank of each site, given the shares of variance of its input's components in descending order."""
        uniform, costs = budget.solve(sites), {s.name: s.unit_cost for s in sites}
        most = {s.name: min(s.max_rank, round(self.config.rho * uniform[s.name])) for s in sites}
        kept = keep_top_global({n: shares[n][: most[n]] for n in most}, costs, budget.params)
        ranks = {name: len(indices) for name, indices in kept.items()}
        further = units_that_fit(ranks, costs, {s.name: s.max_rank for s in sites}, budget.params)
        return {name: rank + further.get(name, 0) for name, rank in ranks.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"moments": dict(self.moments), "reads": dict(self.reads)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.moments, self.reads = dict(state["moments"]), dict(state["reads"])


def memory_needed(sites: Iterable[SiteShape]) -> int:
    """Bytes that calibration takes at least: moments in double and single precision for each distinct input, and four
    matrices of doubles to decompose the largest.

    Sites of one module that read streams of one kind and width are taken to read one input, as query, key and value
    do; where they do not, it takes more.
    """
    inputs = {(s.name.rpartition(".")[0], s.stream, s.d_in) for s in sites}
    squares = [(width + 1) ** 2 for _, _, width in inputs]
    return 12 * sum(squares) + 4 * 8 * max(squares)


def check_memory(sites: Sequence[SiteShape], available: int) -> None:
    """Refuse a calibration that needs more than the `available` bytes.

    Raises:
        UsageError: naming the widest input, what is needed and what there is.
    """
    needed = memory_needed(sites)
    if needed > available:
        widest = max(sites, key=lambda s: s.d_in)
        raise UsageError.of(
            "eva",
            widest.name,
            f"reads inputs of width d_in = {widest.d_in:,}; second moments of all inputs take about "
            f"{needed / 2**30:,.1f} GiB, and {available / 2**30:,.1f} GiB are free",
            "Name target_modules with narrower or fewer inputs, such as attention, use a machine with more memory, or "
            "leave eva out",
        )


def _available(device: torch.device) -> int:
    """Bytes that are free where the moments are summed."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
