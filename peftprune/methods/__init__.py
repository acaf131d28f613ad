"""The methods: their registry, the parser of requests for them, and one file per method. Imports no torch."""

from peftprune.methods.registry import MethodSpec, load, names, register
from peftprune.methods.request import parse

__all__ = ["MethodSpec", "load", "names", "parse", "register"]
