"""LoRA, the baseline."""

from __future__ import annotations

from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.spec import PaperSettings


class LoRA(RankPruningStrategy):
    """Trains LoRA at a uniform rank that spends the budget; prunes nothing.

    A starts Kaiming-uniform with a = √5 (authors' code; the paper states a Gaussian), B at zero (paper).
    """

    name = "lora"
    source = "Hu et al., LoRA, ICLR 2022, arXiv 2106.09685"
    prunes = "nothing"

    def paper(self) -> PaperSettings:
        from peftprune.methods.published_settings import LORA

        return PaperSettings(rank=8, runs=LORA)
