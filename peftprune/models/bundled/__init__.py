"""Shapes of well-known models, with which a comparison can be planned without a download.

Each JSON file beside this one is a transformers configuration cut down to the facts that shape the model (its type,
sizes, vocabulary). There are no weights here: those come from the hub or a folder, see `peftprune.models.find`.
"""

import json
from functools import cache
from importlib import resources
from typing import Any

HUB_NAMES = {
    "roberta-base": "FacebookAI/roberta-base",
    "roberta-large": "FacebookAI/roberta-large",
    "deberta-v3-base": "microsoft/deberta-v3-base",
    "bart-base": "facebook/bart-base",
    "llama-2-7b": "meta-llama/Llama-2-7b-hf",
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
}
"""Bundled shape to its weights on the hub. Those of "minilm" and "smollm2" come in installed packages."""

_SIZES = {
    ("roberta", 768, 12): "roberta-base",
    ("roberta", 1024, 24): "roberta-large",
    ("deberta-v2", 768, 12): "deberta-v3-base",
    ("bart", 768, 6): "bart-base",
    ("bart", 1024, 12): "bart-large",
}


@cache
def bundled_names() -> tuple[str, ...]:
    files = resources.files(__name__).iterdir()
    return tuple(sorted(file.name.removesuffix(".json") for file in files if file.name.endswith(".json")))


def bundled_config(name: str) -> dict[str, Any]:
    """Returns the configuration of a bundled shape, as a new dictionary with the key `model_type`.

    Raises KeyError for a name that is not one of `bundled_names()`.
    """
    if name not in bundled_names():
        raise KeyError(name)
    config: dict[str, Any] = json.loads(resources.files(__name__).joinpath(f"{name}.json").read_text("utf-8"))
    return config


def known_name(config: Any) -> str:
    """Returns the base model's usual name, or "bert, 2 layers of width 32" where it has none here."""
    kind, width, layers = config.model_type, getattr(config, "hidden_size", 0), getattr(config, "num_hidden_layers", 0)
    return _SIZES.get((kind, width, layers), f"{kind}, {layers} layers of width {width}")
