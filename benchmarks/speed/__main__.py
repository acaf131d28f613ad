"""The command line: `python -m benchmarks.speed all --data-dir path/to/glue`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

RESULTS = Path(__file__).parent.parent / "results"
TRIED = Path("runs") / "speed-quick"

DataDir = Annotated[Path, typer.Option(help="Folder in the official GLUE layout.", envvar="PEFTPRUNE_DATA")]


def main(
    part: Annotated[str, typer.Argument(help="A part, or all.")],
    data_dir: DataDir,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few steps, to check that it works; figures mean nothing.")
    ] = False,
    model: Annotated[str, typer.Option(help="minilm, or the folder of a BERT and its tokenizer.")] = "minilm",
    missing: Annotated[bool, typer.Option("--missing", help="Only parts that have no file yet.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the results.  [default: benchmarks/results; runs/speed-quick if quick]"),
    ] = None,
) -> None:
    """Measure the speed of training and write one JSON file per part."""
    from benchmarks.speed.parts import PARTS
    from benchmarks.speed.record import place, write
    from benchmarks.speed.request import Request

    if part != "all" and part not in PARTS:
        raise typer.BadParameter(f"{part!r} is not a part. Parts: all, {', '.join(PARTS)}", param_hint="part")
    if not data_dir.is_dir():
        raise typer.BadParameter(f"{str(data_dir)!r} is not a folder", param_hint="--data-dir")
    folder = out or (TRIED if quick else RESULTS)
    wanted = [p for p in (PARTS if part == "all" else [part]) if not (missing and place(folder, p).is_file())]
    if part == "all":
        # Each in its own process: a failure costs one part, and no part inherits another's memory.
        options = ["--data-dir", str(data_dir), "--out", str(folder), "--model", model]
        options += ["--quick"] if quick else []
        failed = [
            p for p in wanted if subprocess.run([sys.executable, "-m", "benchmarks.speed", p, *options]).returncode
        ]
        if failed:
            typer.echo(f"failed: {', '.join(failed)}", err=True)
            raise typer.Exit(1)
        return
    for name in wanted:
        chosen = PARTS[name]
        found = chosen.measure(Request(data_dir.absolute(), quick, model))
        settings, threads = found.pop("settings"), found.pop("threads")
        typer.echo(
            write(folder, name, chosen.kind, settings | {"model": Path(model).name, "quick": quick}, threads, found)
        )


if __name__ == "__main__":
    typer.run(main)
