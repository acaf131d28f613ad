from pathlib import Path
from typing import Literal

from peftprune.adapters.formats.adapter import require_finite
from peftprune.adapters.formats.folder import check_out
from peftprune.adapters.formats.native import native_contents, write_native
from peftprune.adapters.formats.peft import peft_contents, write_peft
from peftprune.adapters.formats.read import read_adapter
from peftprune.adapters.save import METADATA_FILE
from peftprune.errors import UsageError
from peftprune.files import write_folder, write_json


def convert(
    adapter: str | Path,
    out: str | Path,
    *,
    format: Literal["peft", "native"] = "peft",
    uniform: bool = False,
    head: bool = True,
    alpha: float | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes an adapter of any format in PEFT's or the native format, and returns the folder.

    Args:
        adapter: a PEFT folder, a native file or a loralib file.
        out: folder to write; it appears whole or not at all.
        format: "peft" or "native".
        uniform: for "peft": pad every site with zeros to the largest rank.
        head: False leaves out the trained head.
        alpha: lora_alpha of a loralib file, which does not store it.
        overwrite: replace a folder that this package wrote.

    Raises:
        UsageError: for an adapter that cannot be converted; nothing was changed.
    """
    if format not in ("peft", "native"):
        raise UsageError.of("format", format, "is unknown", "Formats: peft, native")
    if uniform and format != "peft":
        raise UsageError.of("uniform", uniform, f"has no meaning for {format}", "Leave it out")
    source = read_adapter(adapter, alpha=alpha)
    require_finite(source)
    target = check_out(Path(out), overwrite, source.path)
    with write_folder(target) as aside:
        if format == "native":
            write_native(native_contents(source, head=head), aside)
        else:
            write_peft(*peft_contents(source, uniform=uniform, head=head), aside)
        write_json(aside / METADATA_FILE, {**source.facts, "format": format})
    return target
