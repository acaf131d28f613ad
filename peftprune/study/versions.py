"""The versions that decide the bits of a result."""

import platform
from importlib.metadata import version

_PACKAGES = ("peftprune", "torch", "transformers", "peft", "accelerate", "datasets", "numpy")


def package_versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that decide the bits of a result."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}
