"""What a part is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LITTLE = {"max_train_samples": 64, "max_length": 64}


def spelled(**arguments: Any) -> list[str]:
    """Arguments as options of a command line; None leaves one out."""
    given = ((f"--{name.replace('_', '-')}", str(value)) for name, value in arguments.items() if value is not None)
    return [word for option in given for word in option]


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

    def command(self, **arguments: Any) -> list[str]:
        """The options of `peftprune compare` that say all this, and further arguments of it."""
        said = {"data_dir": self.data_dir, "model": self.model} | self.settings
        said |= {"max_eval_samples": 64} if self.quick else {}
        return spelled(**(said | arguments))
