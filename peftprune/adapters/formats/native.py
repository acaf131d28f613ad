"""The native format: one safetensors file, `adapter.safetensors`, in which factors that sites share are stored once.

Tensors:
    `0.A` (r, d_in), `0.B` (d_out, r), `1.A`, ...   factors, one pair per group of sites that share them
    `other.<name>`                                  every other trained tensor, by its name in the base model

The header's text entry `peftprune` is a JSON object:
    version   1
    sites     [[module name, number of its group, whether it is an embedding], ...], in order
    config    PEFT's adapter_config.json, from which each site's scaling follows
    facts     metadata: method, seed, metrics, ...

`peft_contents(read_adapter(file))` gives PEFT's two files back bit for bit.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from peftprune.adapters.formats.adapter import Adapter, refuse_unusual
from peftprune.adapters.formats.peft import parse_peft, peft_contents
from peftprune.errors import UsageError

NATIVE_FILE = "adapter.safetensors"
HEADER = "peftprune"
VERSION = 1


def native_contents(adapter: Adapter, *, head: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors and the header of the file for an adapter of any format.

    `head=False` leaves out `modules_to_save`. Raises UsageError for an adapter that is more than factors.
    """
    refuse_unusual(adapter, "the native format")
    config, full = peft_contents(adapter, head=head)
    # Passes through PEFT's format, so that every format stores loralib's scaling alike.
    written = parse_peft(adapter.path, config, full, adapter.facts)
    tensors = {f"other.{name}": t for name, t in written.others.items()}
    number: dict[str, int] = {}
    for i, group in enumerate(written.groups()):
        first = written.sites[group[0]]
        tensors |= {f"{i}.A": first.A, f"{i}.B": first.B}
        number |= dict.fromkeys(group, i)
    header = {
        "version": VERSION,
        "sites": [[name, number[name], f.embedding] for name, f in written.sites.items()],
        "config": config,
        "facts": dict(adapter.facts),
    }
    return {name: t.contiguous() for name, t in tensors.items()}, {"format": "pt", HEADER: json.dumps(header)}


def write_native(contents: tuple[dict[str, Tensor], dict[str, str]], folder: Path) -> int:
    """Writes the file and returns its size in bytes."""
    save_file(contents[0], folder / NATIVE_FILE, metadata=contents[1])
    return (folder / NATIVE_FILE).stat().st_size


def parse_native(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Adapter:
    """Returns the adapter from the file's contents.

    Raises UsageError for an unknown version, or a header and tensors that disagree.
    """
    try:
        header: dict[str, Any] = json.loads(metadata[HEADER])
        version, rows, config, facts = (header[key] for key in ("version", "sites", "config", "facts"))
        config, facts = dict(config), dict(facts)
        placed = [(str(name), int(group), bool(embedding)) for name, group, embedding in rows]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise UsageError.of("file", str(path), "has a damaged header", "Export the adapter again") from None
    if version != VERSION:
        raise UsageError.of("file", str(path), f"is of version {version}", f"This peftprune reads version {VERSION}")
    full = {name.removeprefix("other."): t for name, t in tensors.items() if name.startswith("other.")}
    for name, group, embedding in placed:
        for part in ("A", "B"):
            if f"{group}.{part}" not in tensors:
                raise UsageError.of("file", str(path), f"has no factor {part} for {name}", "Export the adapter again")
            ending = f"lora_embedding_{part}" if embedding else f"lora_{part}.weight"
            full[f"{name}.{ending}"] = tensors[f"{group}.{part}"]
    found = parse_peft(path, config, full, facts)
    return Adapter("native", path, found.sites, found.others, found.config, found.facts)
