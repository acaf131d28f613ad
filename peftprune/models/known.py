"""Which well-known base model a configuration describes."""

from typing import Any

_SIZES = {
    ("roberta", 768, 12): "roberta-base",
    ("roberta", 1024, 24): "roberta-large",
    ("deberta-v2", 768, 12): "deberta-v3-base",
    ("bart", 768, 6): "bart-base",
    ("bart", 1024, 12): "bart-large",
}


def known_name(config: Any) -> str:
    """Returns the base model's usual name, or "bert, 2 layers of width 32" where it has none here."""
    kind, width, layers = config.model_type, getattr(config, "hidden_size", 0), getattr(config, "num_hidden_layers", 0)
    return _SIZES.get((kind, width, layers), f"{kind}, {layers} layers of width {width}")
