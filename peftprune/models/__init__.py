"""Base models: how they are found and loaded, their layers, their head, and the precision of their weights."""

from peftprune.models.head import initialise_head
from peftprune.models.load import LoadedModel, describe, load_model
from peftprune.models.precision import pick_dtype

__all__ = ["LoadedModel", "describe", "initialise_head", "load_model", "pick_dtype"]
