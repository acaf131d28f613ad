"""Base models: finding and loading them, their layers, and the precision of their weights."""

from peftprune.models.load import LoadedModel, describe, initialise_head, load_model, pick_dtype

__all__ = ["LoadedModel", "describe", "initialise_head", "load_model", "pick_dtype"]
