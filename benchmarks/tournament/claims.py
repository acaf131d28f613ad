"""What is asked of the tournament: published claims, and what the controls answer. No number stands here."""

from __future__ import annotations

from typing import NamedTuple


class Question(NamedTuple):
    """A statement about the difference of two methods. `holds` are the beginnings of verdicts under which it holds."""

    text: str
    source: str
    method: str
    baseline: str
    holds: tuple[str, ...] = ("better",)


_AS_GOOD = ("equivalent", "not worse", "better")

CLAIMS = (
    Question(
        "LoRPA is better than LoRA of the same final rank",
        "Kim, Kim and Kang, Mathematics 2024, 12(23), 3744",
        "lorpa",
        "lora",
    ),
    Question("PRILoRA is better than uniform ranks", "Benedek and Wolf, Findings of EACL 2024", "prilora", "lora"),
    Question(
        "LoRA-drop with fewer parameters is as good as LoRA",
        "Zhou et al., COLING 2025",
        "lora-drop:half",
        "lora",
        _AS_GOOD,
    ),
    Question("AdaLoRA is better than LoRA under the same budget", "Zhang et al., ICLR 2023", "adalora", "lora"),
    Question("IncreLoRA is better than LoRA", "Zhang et al., 2023, arXiv 2308.12043", "increlora", "lora"),
    Question("SoRA is better than LoRA", "Ding et al., EMNLP 2023", "sora", "lora"),
)
"""Claims of the papers, about other models and tasks than ours."""

CONTROLS = (
    Question("LoRPA's choice of components matters", "`random-rank` prunes at random", "lorpa", "random-rank"),
    Question("LoRPA's restart alone is better than LoRA", "`lora-restart` has no large rank", "lora-restart", "lora"),
    Question("Sharing is better than deleting", "`delete` removes what LoRA-drop shares", "lora-drop", "delete"),
    Question("LoRA with AdaLoRA's ranks is better than LoRA", "`transplant` has its final ranks", "transplant", "lora"),
    Question("The places of AdaLoRA's ranks matter", "`shuffled` permutes them", "transplant", "shuffled"),
    Question("AdaLoRA trains its ranks better than LoRA", "`transplant` has the same ranks", "adalora", "transplant"),
    Question("A larger rank is better", "`lora:r256` exceeds the budget", "lora:r256", "lora"),
)
"""What the controls of the study answer."""
