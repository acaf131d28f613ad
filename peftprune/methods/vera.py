from collections.abc import Sequence
from dataclasses import dataclass

from peftprune.strategy import AdapterSpec, Baseline, Options, Preparation, SiteShape, check_option, option
from peftprune.strategy.lazy import Module, peft
from peftprune.strategy.rng import stream_seed


@dataclass(frozen=True)
class VeRAConfig(Options):
    rank: int = option(256, "convention", ge=1, help="rank of the shared random matrices; PEFT's default")
    d_initial: float = option(0.1, "convention", help=
        "initial value of the vector between the two matrices, other than 0; PEFT's default")  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = 0 < abs(self.d_initial) < float("inf")
        check_option(ok, "vera", "d_initial", self.d_initial, "is 0 or not finite", "Give 0.1, for example")


class VeRA(Baseline):
    """Shares one frozen random pair A, B among all sites; each site trains only two vectors that scale it (paper).

    ΔW = diag(b)·B·diag(d)·A, where b starts at zero and d at a constant; sites of other shapes take the leading part of
    A and B (PEFT). A site trains r + d_out numbers, so even a large rank costs far less than a typical budget allows,
    and spending the budget would take matrices larger than the model: the rank is an option and the method is exempt.
    Counted are the trained vectors. The shared pair is drawn from a key that derives from the arm's seed; it is not
    counted but stored in the adapter's file, whose bytes the ledger states (convention). The learning rate is the
    run's, as for every method, and the vectors have no weight decay (convention). The run's scaling does not apply.
    """

    name = "vera"
    source = "Kopiczko, Blankevoort and Asano, ICLR 2024, arXiv 2310.11454; PEFT's `VeraConfig`"
    exemption = "trains rank + d_out numbers a site: its rank is an option, not solved"
    Config = VeRAConfig

    def multiplied(self, sites: Sequence[SiteShape], spec: AdapterSpec) -> tuple[int, int]:
        return self.config.rank * sum(s.unit_cost for s in sites), 0

    def prepare(self, model: Module, given: Preparation) -> Module:
        from peftprune.adapters.inject import task_type_of, wrap

        config = peft.VeraConfig(
            task_type=task_type_of(model),
            r=self.config.rank,
            d_initial=self.config.d_initial,
            target_modules=[s.name for s in given.sites],
            modules_to_save=list(given.head) or None,
            vera_dropout=given.lora_dropout,
            projection_prng_key=stream_seed(given.seed, "init", "shared"),
            save_projection=True,
        )
        return wrap(model, config, given.head)
