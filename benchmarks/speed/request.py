"""The request for a part of the benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LITTLE = {"max_train_samples": 64, "max_length": 64}


def spelled(**arguments: Any) -> list[str]:
    """Returns arguments as options of a command line; those that are None are left out."""
    given = ((f"--{name.replace('_', '-')}", str(value)) for name, value in arguments.items() if value is not None)
    return [word for option in given for word in option]


@dataclass(frozen=True)
class Request:
    """The request for a part.

    Attributes:
        data_dir: folder in the official GLUE layout.
        quick: a few steps only, to check that everything works; the figures mean nothing.
        model: "minilm", or the folder of a BERT and its tokenizer.
    """

    data_dir: Path
    quick: bool = False
    model: str | Path = "minilm"

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of training that differ from the defaults."""
        return dict(_LITTLE) if self.quick else {}

    def command(self, **arguments: Any) -> list[str]:
        """Returns the options of `peftprune compare` for this request and further arguments."""
        options = {"data_dir": self.data_dir, "model": self.model} | self.settings
        options |= {"max_eval_samples": 64} if self.quick else {}
        return spelled(**(options | arguments))
