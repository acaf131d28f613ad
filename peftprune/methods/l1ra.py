from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peftprune import scoring
from peftprune.errors import UsageError
from peftprune.strategy import ArmBudget, Options, PruningPlan, RankPruningStrategy, SiteShape, StepView, option
from peftprune.strategy.lazy import Tensor, torch
from peftprune.strategy.spec import AdapterSpec, PaperSettings, ParameterGroup, default_groups


@dataclass(frozen=True)
class L1RAConfig(Options):
    l1: float = option(0.005, "authors' code", ge=0, help=
        "weight λ of the L1 penalty on the gates, from the settings for Llama 3")  # fmt: skip
    full_steps: int = option(20_000, "convention", ge=1, help=
        "steps of a run whose penalty is λ; in shorter runs it grows by the quotient, so that a gate without gradient "
        "vanishes in half of the run; 1 never scales")  # fmt: skip
    gate_lr: float = option(0.02, "authors' code", gt=0, help=
        "constant learning rate η of the gates, from the same settings. Every step takes η · λ off each "
        "gate")  # fmt: skip
    update_share: float = option(0.05, "authors' code", gt=0, lt=1, help=
        "share of the run between two reassignments, from the same settings")  # fmt: skip
    threshold: float = option(1e-10, "authors' code", gt=0, lt=1, help=
        "gates below it are pruned at a reassignment; the code's default")  # fmt: skip


class L1RA(RankPruningStrategy):
    """Shrinks a gate on every component by an L1 penalty, and reassigns freed ranks to other sites.

    ΔW = scaling · B · diag(c) · A with gates c in [0, 1]. All sites start at the budget's ranks r with gates of 1 and A
    from N(0, 1/r²) (authors' code); where ranks differ, r is their mean (convention). The penalty is decoupled from the
    gradient (secondary summary): after the optimizer step every gate loses η · λ and is clamped to [0, 1] (authors'
    code). In a run below `full_steps` it loses more (convention): a few hundred steps would take 0.03 off. At a
    reassignment the components whose gate is below the threshold are cut out, but never all of a site (authors' code).
    The sites that lost none gain as much, one unit each in turn, in descending order of their smallest gate (authors'
    code). Where those are full, or every site lost some, the others follow in the same order (convention; otherwise the
    budget would shrink). New components start like the first ones and do not change the function, and the optimizer
    state is reset (authors' code). The last step has no reassignment (authors' code).

    The paper keeps the sum of ranks constant. Here the parameters stay at the budget; where all sites cost the same the
    two agree. A site whose gates are all below the threshold keeps the largest (convention).

    Under `budget="paper"` rank, scaling (16 / 16), weight decay and warm-up are those of the authors' code for Llama 3.

    Scores in the trace: the smallest gate of each site before the reassignment.
    """

    name = "l1ra"
    revision = 2
    source = "Singh et al., ICNLSP 2025, arXiv 2509.04884; code raul-singh/L1RA"
    decides = ("repeatedly",)
    actions = ("cut ranks", "redistribute ranks", "grow ranks", "set values")
    Config = L1RAConfig

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        if budget.count == "nonzero":
            problem = "cannot be met by l1ra, whose gates may end at zero"
            raise UsageError.of("budget.count", "nonzero", problem, 'Use count="stored"')
        ranks = budget.solve(sites)
        return AdapterSpec(
            ranks=ranks,
            decided_in_training=True,
            gate="rank",
            initial_std={"A": std_of(ranks)},
            groups=default_groups(gate=ParameterGroup(lr=self.config.gate_lr, constant=True, weight_decay=0.0)),
        )

    def paper(self) -> PaperSettings:
        return PaperSettings(rank=16, scaling=1.0, weight_decay=0.1, warmup_ratio=0.05)

    def decide(self, view: StepView) -> PruningPlan:
        scale = 1.0 if view.budget.paper else max(1.0, self.config.full_steps / view.total_steps)
        loss = self.config.gate_lr * self.config.l1 * scale
        gates = {name: site.gate for name, site in view.sites.items() if site.gate is not None}
        gates = {name: scoring.soft_threshold(c, loss).clamp(0.0, 1.0) for name, c in gates.items()}
        every = max(1, int(self.config.update_share * view.total_steps))
        if view.step % every == 0 and view.step < view.total_steps:
            return self._reassign(gates, view)
        return PruningPlan(assign={name: {"gate": c} for name, c in gates.items()}, reason="shrank the gates")

    def _reassign(self, gates: Mapping[str, Tensor], view: StepView) -> PruningPlan:
        smallest = dict(zip(gates, torch.stack([c.min() for c in gates.values()]).tolist(), strict=True))
        keep = {name: self._kept(gates[name]) for name, least in smallest.items() if least < self.config.threshold}
        keep = {name: kept for name, kept in keep.items() if len(kept) < len(gates[name])}
        ranks = {name: len(keep.get(name, c)) for name, c in gates.items()}
        # A site with a gate below the threshold needs no further rank, even where that gate is its only one.
        order = sorted(gates, key=lambda n: (smallest[n] < self.config.threshold, -smallest[n]))
        needy = [name for name in order if smallest[name] >= self.config.threshold]
        shapes = {name: view.sites[name].shape for name in gates}
        grow = round_robin([needy, order], ranks, shapes, view.budget.params) if keep else {}
        assign = {
            name: {"gate": torch.cat([c[keep[name]] if name in keep else c, c.new_ones(grow.get(name, 0))])}
            for name, c in gates.items()
        }
        std = std_of(view.budget.solve(list(shapes.values())))
        for name, units in grow.items():
            old = view.sites[name].A[keep.get(name, slice(None))]
            new = torch.randn(units, old.shape[1], generator=view.rng) * std
            assign[name]["A"] = torch.cat([old, new.to(old)])
        return PruningPlan(
            keep=keep,
            grow=grow,
            assign=assign,
            reset_optimizer=bool(keep),
            scores=smallest if keep else {},
            reason=f"pruned at {len(keep)} sites, grew at {len(grow)}" if keep else "shrank the gates",
        )

    def _kept(self, gate: Tensor) -> list[int]:
        """Returns the indices of the gates at or above the threshold; the largest gate's where none is."""
        found = (gate >= self.config.threshold).nonzero().flatten().tolist()
        return found or [int(gate.argmax())]


def std_of(ranks: Mapping[str, int]) -> float:
    """Returns the standard deviation of A's initial entries: 1 over the mean of the starting ranks."""
    return len(ranks) / sum(ranks.values())


def round_robin(
    turns: Sequence[Sequence[str]], ranks: Mapping[str, int], shapes: Mapping[str, SiteShape], params: int
) -> dict[str, int]:
    """Returns the units of rank to add: one per site in turn until no further one fits, one group after another.

    Each of the groups `turns` holds site names in the order of their turns. The resulting ranks cost at most `params`.
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
