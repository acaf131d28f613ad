"""VeRA: frozen random matrices shared by all sites, and two trained vectors a site."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from peft import VeraConfig, get_peft_model
from torch import nn

from peftprune.adapters.inject import task_type_of
from peftprune.strategy.baseline import Baseline, Preparation
from peftprune.strategy.options import check_option, option
from peftprune.strategy.rng import stream_seed
from peftprune.strategy.sites import SiteShape
from peftprune.strategy.spec import AdapterSpec


@dataclass(frozen=True)
class VeRAConfig:
    """Options of vera.

    Attributes:
        rank: rank of the shared matrices, at least 1. 256 is PEFT's default (a convention of ours).
        d_initial: initial value of the vector between the two matrices. 0.1 is PEFT's default (a convention of ours).
    """

    rank: int = option(256, "convention of ours", "rank of the shared random matrices (PEFT's default)")
    d_initial: float = option(0.1, "convention of ours", "initial value of the inner vectors (PEFT's default)")

    def __post_init__(self) -> None:
        check_option(self.rank >= 1, "vera", "rank", self.rank, "is below 1", "Give 256, for example")
        check_option(
            0 < abs(self.d_initial) < float("inf"),
            "vera", "d_initial", self.d_initial, "is 0 or not finite", "Give 0.1, for example",
        )  # fmt: skip


class VeRA(Baseline):
    """One frozen random pair A, B for all sites; each site trains only two vectors that scale it (stated in the paper).

    ΔW = diag(b)·B·diag(d)·A with b at zero and d constant at first; sites of other shapes take the leading part of A
    and B (PEFT's implementation). A site trains r + d_out numbers, so even a large rank costs far less than a usual
    budget allows and spending a budget would take matrices larger than the model: the rank is an option and the method
    is exempt. Counted are the trained vectors; the shared pair is drawn from a key and not counted, but it is stored
    in the adapter's file, whose bytes the ledger states (a convention of ours). The key comes from the arm's seed. The
    learning rate is the run's, as for every method, and the vectors have no weight decay (conventions of ours). The
    run's scaling has no place in it.

    Source: Kopiczko, Blankevoort and Asano, ICLR 2024, arXiv 2310.11454; PEFT's `VeraConfig`.
    """

    name: ClassVar[str] = "vera"
    source: ClassVar[str] = "Kopiczko, Blankevoort and Asano, ICLR 2024"
    exemption: ClassVar[str | None] = "trains rank + d_out numbers a site: its rank is an option, not solved"
    Config: ClassVar[type] = VeRAConfig

    def multiplied(self, sites: Sequence[SiteShape], spec: AdapterSpec) -> tuple[int, int]:
        return self.config.rank * sum(s.unit_cost for s in sites), 0

    def prepare(self, model: nn.Module, given: Preparation) -> nn.Module:
        config = VeraConfig(
            task_type=task_type_of(model),
            r=self.config.rank,
            d_initial=self.config.d_initial,
            target_modules=[s.name for s in given.sites],
            modules_to_save=list(given.head) or None,
            vera_dropout=given.lora_dropout,
            projection_prng_key=stream_seed(given.seed, "init", "shared"),
            save_projection=True,
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
            adapted = get_peft_model(model, config)
        # PEFT adds the usual names of heads, whether or not the model has them.
        adapted.peft_config["default"].modules_to_save = list(given.head) or None
        return adapted
