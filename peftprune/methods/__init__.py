"""The methods: their registry, the language in which they are requested, and one file for each. Imports no torch."""

from peftprune.methods.registry import MethodSpec, load, names, register
from peftprune.methods.request import parse

__all__ = ["MethodSpec", "load", "names", "parse", "register"]
