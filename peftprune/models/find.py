"""Where a model's name leads: a folder, a bundled shape, an installed package or the hub.

A name is, in this order, a folder with a `config.json` (or the path of a configuration file), a bundled name (see
`peftprune.models.bundled` and `peftprune.models.packaged`), or a model on the hub.
"""

import json
import os
import socket
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from peftprune.errors import UsageError, did_you_mean
from peftprune.models.bundled import HUB_NAMES, bundled_config, bundled_names
from peftprune.models.packaged import OFFLINE_MODEL, SMALL_DECODER, offline_folder, packaged_file
from peftprune.strategy.lazy import transformers


class Weights(NamedTuple):
    """Where weights and tokenizer are: a folder or the hub's name, and further arguments of `from_pretrained`."""

    source: str
    folder: Path | None
    arguments: dict[str, Any]


def find_weights(name: str) -> Weights:
    """Returns where the weights are, without looking inside. Raises UsageError for a package that is not installed."""
    folder = local_folder(name)
    if folder is None and name == OFFLINE_MODEL:
        folder = offline_folder()
    elif folder is None and name == SMALL_DECODER:
        file = packaged_file()
        return Weights(str(file.parent), file.parent, {"gguf_file": file.name})
    if folder is None:
        return Weights(HUB_NAMES.get(name, name), None, _hub_arguments())
    return Weights(str(folder), folder, {})


def local_folder(name: str | Path) -> Path | None:
    """Returns the folder that `name` points to, if it holds a configuration or can only be a path."""
    path = Path(os.path.expanduser(name))
    if os.path.isfile(path):
        return path.parent
    # "roberta-base" may be an unrelated folder (of results, say): without a configuration it is not meant as a model.
    only_a_path = isinstance(name, Path) or str(name).startswith(("/", "./", "../", "~"))
    return path if os.path.isfile(path / "config.json") or only_a_path else None


def read_config(name: str | Path) -> Any:
    """Returns the transformers configuration of a model. Raises UsageError where none can be found or read."""
    folder = local_folder(name)
    if folder is not None:
        path = Path(os.path.expanduser(name))
        file = path if os.path.isfile(path) else folder / "config.json"
        if not os.path.isfile(file):
            problem = "has no config.json" if os.path.isdir(folder) else "does not exist"
            raise UsageError.of("model", str(name), problem, "Give the folder of a saved transformers model")
        try:
            content = json.loads(file.read_text("utf-8"))
            return transformers.AutoConfig.for_model(content.pop("model_type"), **content)
        except Exception as error:  # the user's file may be wrong in any way
            cure = f"It must be a transformers configuration with a known model_type ({first_line(error)})"
            raise UsageError.of("model", str(file), "is not a configuration that can be read", cure) from error
    bundled = {hub: short for short, hub in HUB_NAMES.items()}.get(str(name), str(name))
    if bundled in bundled_names():
        content = bundled_config(bundled)
        return transformers.AutoConfig.for_model(content.pop("model_type"), **content)
    try:
        return transformers.AutoConfig.from_pretrained(str(name), **_hub_arguments())
    except Exception as error:
        raise _not_found(name, error) from error


def _not_found(name: str | Path, error: Exception) -> UsageError:
    hint = did_you_mean(str(name).rpartition("/")[2], bundled_names())
    tried = (
        f"tried the folder {os.path.expanduser(name)!r} (no config.json), "
        f"the bundled names ({', '.join(bundled_names())}) and the hub ({first_line(error)})"
    )
    return UsageError.of("model", str(name), "is not a model that can be found", f"{hint}Peftprune {tried}")


def _hub_arguments() -> dict[str, Any]:
    """Skips the network where it is absent: transformers would retry for about half a minute."""
    if any(os.environ.get(key) for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return {}  # behind a proxy, names may be resolved elsewhere
    host = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return {"local_files_only": True}
    return {}


def first_line(error: Exception) -> str:
    """Returns the first line of an error's text, or its type."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")
