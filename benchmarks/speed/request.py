"""What a part is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LITTLE = {"max_train_samples": 64, "max_length": 64}


@dataclass(frozen=True)
class Request:
    """What a part is asked for.

    Attributes:
        data_dir: folder in the official GLUE layout.
        quick: a few steps only, to see that everything works; the figures mean nothing.
        model: "minilm", or the folder of a BERT and its tokenizer.
    """

    data_dir: Path
    quick: bool = False
    model: str | Path = "minilm"

    @property
    def settings(self) -> dict[str, Any]:
        """Of training, other than the defaults."""
        return dict(_LITTLE) if self.quick else {}

    def command(self, task: str) -> list[str]:
        """The options of `peftprune compare` that say all this."""
        said = ["--task", task, "--data-dir", str(self.data_dir), "--model", str(self.model)]
        for name, value in (self.settings | ({"max_eval_samples": 64} if self.quick else {})).items():
            said += [f"--{name.replace('_', '-')}", str(value)]
        return said
