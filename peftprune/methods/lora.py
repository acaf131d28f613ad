"""LoRA, the baseline."""

from __future__ import annotations

from typing import ClassVar

from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.spec import PaperSettings


class LoRA(RankPruningStrategy):
    """Uniform rank at the budget, nothing pruned.

    A starts Kaiming-uniform with a = √5 (authors' code; the paper says Gaussian), B at zero (stated in the paper).

    Source: Hu et al., LoRA, ICLR 2022, arXiv 2106.09685.
    """

    name: ClassVar[str] = "lora"
    source: ClassVar[str] = "Hu et al., ICLR 2022"
    prunes: ClassVar[str] = "nothing"

    def paper(self) -> PaperSettings:
        return PaperSettings(rank=8)
