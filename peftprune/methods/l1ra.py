"""L1RA: gates under an L1 penalty; ranks whose gate vanishes move to the sites that use all of theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from peftprune.errors import UsageError
from peftprune.scoring.threshold import soft_threshold
from peftprune.strategy.budget import ArmBudget
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.options import check_option, option
from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.sites import SiteShape
from peftprune.strategy.spec import AdapterSpec, PaperSettings, ParameterGroup
from peftprune.strategy.view import StepView


@dataclass(frozen=True)
class L1RAConfig:
    """Options of L1RA.

    Attributes:
        l1: weight λ of the L1 penalty, at least 0. 0.005 in the authors' settings for Llama 3.
        gate_lr: learning rate η of the gates, above 0. 0.02 in the same settings, where it stays constant; here the
            run's schedule scales it (a convention of ours). Every step takes η · λ off each gate.
        update_share: share of the run between two reassignments, in (0, 1). 0.05 in the same settings.
        threshold: gates below it are pruned at a reassignment, above 0. 1e-10 is the default of the authors' code.
    """

    l1: float = option(0.005, "authors' code", "weight of the L1 penalty on the gates")
    gate_lr: float = option(0.02, "authors' code", "learning rate of the gates")
    update_share: float = option(0.05, "authors' code", "share of the run between two reassignments")
    threshold: float = option(1e-10, "authors' code", "gates below it are pruned")

    def __post_init__(self) -> None:
        check_option(
            0 <= self.l1 < float("inf"), "l1ra", "l1", self.l1, "is negative or not finite", "Give 0.005, for example"
        )
        check_option(
            0 < self.gate_lr < float("inf"),
            "l1ra", "gate_lr", self.gate_lr, "is not positive and finite", "Give 0.02, for example",
        )  # fmt: skip
        check_option(
            0 < self.update_share < 1,
            "l1ra", "update_share", self.update_share, "is outside (0, 1)", "Give 0.05, for example",
        )  # fmt: skip
        check_option(
            0 < self.threshold < 1, "l1ra", "threshold", self.threshold, "is outside (0, 1)", "Give 1e-10, for example"
        )


class L1RA(RankPruningStrategy):
    """ΔW = scaling · B · diag(c) · A with gates c in [0, 1] that an L1 penalty shrinks; freed ranks are reassigned.

    All sites start at the budget's ranks with gates of 1. The penalty is decoupled from the gradient (stated by
    secondary summaries of the paper): after the optimizer's step every gate loses η · λ and is clamped to [0, 1]
    (authors' code). At every reassignment the components whose gate is below the threshold are cut out, all but one of
    a site at most (authors' code), and as much is grown at the sites that lost none, one unit each in turn, in
    descending order of their smallest gate (authors' code); where those are full or every site lost some, the others
    follow in the same order (a convention of ours: otherwise the budget would shrink). New components start with a gate
    of 1 and change no function, and the optimizer starts afresh (authors' code). There is no reassignment at the last
    step (authors' code).

    The paper keeps the sum of ranks; here it is the parameters that stay at the budget, which is the same where all
    sites cost the same. Where a site keeps one of several gates below the threshold, it is the largest (a convention of
    ours).

    Under `budget="paper"` rank, scaling (16 / 16), weight decay and warm-up are those of the authors' code for Llama 3.

    The trace holds the smallest gate of each site before the reassignment.

    Source: Singh et al., ICNLSP 2025, arXiv 2509.04884; code raul-singh/L1RA.
    """

    name: ClassVar[str] = "l1ra"
    source: ClassVar[str] = "Singh et al., ICNLSP 2025, arXiv 2509.04884"
    Config: ClassVar[type] = L1RAConfig

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        if budget.count == "nonzero":
            problem = "cannot be met by l1ra, whose gates may end at zero"
            raise UsageError.of("budget.count", "nonzero", problem, 'Use count="stored"')
        return AdapterSpec(
            ranks=budget.solve(sites),
            decided_in_training=True,
            gate="rank",
            groups={**AdapterSpec(ranks={}).groups, "gate": ParameterGroup(lr=self.config.gate_lr, weight_decay=0.0)},
        )

    def paper(self) -> PaperSettings:
        return PaperSettings(rank=16, scaling=1.0, weight_decay=0.1, warmup_ratio=0.05)

    def decide(self, view: StepView) -> PruningPlan:
        gates = {name: self._shrunk(site.gate) for name, site in view.sites.items()}
        every = max(1, int(self.config.update_share * view.total_steps))
        if view.step % every == 0 and view.step < view.total_steps:
            return self._reassign(gates, view)
        return PruningPlan(assign={name: {"gate": c} for name, c in gates.items()}, reason="shrank the gates")

    def _shrunk(self, gate: Tensor | None) -> Tensor:
        assert gate is not None
        return soft_threshold(gate, self.config.gate_lr * self.config.l1).clamp(0.0, 1.0)

    def _reassign(self, gates: Mapping[str, Tensor], view: StepView) -> PruningPlan:
        smallest = dict(zip(gates, torch.stack([c.min() for c in gates.values()]).tolist(), strict=True))
        keep = {name: self._kept(gates[name]) for name, least in smallest.items() if least < self.config.threshold}
        keep = {name: kept for name, kept in keep.items() if len(kept) < len(gates[name])}
        ranks = {name: len(keep.get(name, c)) for name, c in gates.items()}
        # A site with a gate below the threshold needs no more, even where that gate is its only one.
        order = sorted(gates, key=lambda n: (smallest[n] < self.config.threshold, -smallest[n]))
        needy = [name for name in order if smallest[name] >= self.config.threshold]
        shapes = {name: view.sites[name].shape for name in gates}
        grow = round_robin([needy, order], ranks, shapes, view.budget.params) if keep else {}
        values = {
            name: torch.cat([c[keep[name]] if name in keep else c, c.new_ones(grow.get(name, 0))])
            for name, c in gates.items()
        }
        return PruningPlan(
            keep=keep,
            grow=grow,
            assign={name: {"gate": c} for name, c in values.items()},
            reset_optimizer=bool(keep),
            scores=smallest if keep else {},
            reason=f"pruned at {len(keep)} sites, grew at {len(grow)}" if keep else "shrank the gates",
        )

    def _kept(self, gate: Tensor) -> list[int]:
        """Indices of the gates that are not below the threshold; the largest where all are."""
        found = (gate >= self.config.threshold).nonzero().flatten().tolist()
        return found or [int(gate.argmax())]


def round_robin(
    turns: Sequence[Sequence[str]], ranks: Mapping[str, int], shapes: Mapping[str, SiteShape], params: int
) -> dict[str, int]:
    """Units of rank to add, dealt in turn until no further one fits: first among the first names, then the next.

    Args:
        turns: groups of site names, each in the order in which they are served.
        ranks: site to rank before.
        shapes: site to shape, for unit costs and the largest ranks.
        params: what the ranks may cost in the end.
    """
    left = params - sum(rank * shapes[name].unit_cost for name, rank in ranks.items())
    added: dict[str, int] = {}
    for names in turns:
        served = True
        while served:
            served = False
            for name in names:
                room = ranks[name] + added.get(name, 0) < shapes[name].max_rank
                if room and shapes[name].unit_cost <= left:
                    added[name] = added.get(name, 0) + 1
                    left -= shapes[name].unit_cost
                    served = True
    return added
