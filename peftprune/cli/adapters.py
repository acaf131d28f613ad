"""The commands for adapter files: export, inspect, prune, convert."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

import peftprune
from peftprune.cli.command import with_common
from peftprune.errors import UsageError

Adapter = Annotated[Path, typer.Argument(help="Folder or safetensors file in PEFT's, the native or loralib's format.")]
Out = Annotated[Path, typer.Option(help="Folder to write; it is written completely or not at all.")]
Alpha = Annotated[float | None, typer.Option(help="lora_alpha of a loralib file, which does not contain it.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a folder that peftprune wrote.")]
NoHead = Annotated[
    bool, typer.Option("--no-head", help="Leave out the trained head; predictions are meaningless until one is added.")
]


def register(app: typer.Typer) -> None:
    for command in (export, inspect, prune, convert):
        app.command()(with_common(command))


def export(
    study: Annotated[Path, typer.Argument(help="Folder of a study that `compare` wrote.")],
    out: Out,
    method: Annotated[str | None, typer.Option(help="Label of the method.")] = None,
    best: Annotated[bool, typer.Option("--best", help="The method with the best mean of the primary metric.")] = False,
    seed: Annotated[str, typer.Option(help="A seed, or best: the one with the best primary metric.")] = "best",
    format: Annotated[
        str,
        typer.Option(
            help="peft: for plain PEFT. native: stores shared layers once, for peftprune.load_adapter. merged: a plain "
            "transformers model."
        ),
    ] = "peft",
    task: Annotated[str | None, typer.Option(help="Required where the study has several tasks.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Required where the study has several budgets, such as rank=8.")
    ] = None,
    uniform: Annotated[
        bool,
        typer.Option("--uniform", help="Pad every layer to the largest rank, for engines that ignore rank_pattern."),
    ] = False,
    no_head: NoHead = False,
    push_to_hub: Annotated[str | None, typer.Option(help="OWNER/NAME of a hub repository to upload to.")] = None,
    overwrite: Overwrite = False,
) -> dict[str, Any]:
    """Write a finished arm of a study as an adapter or a model, with a model card."""
    if best == (method is not None):
        problem = "is named beside --best" if best else "is missing"
        raise UsageError.of("method", method, problem, "Give --method LABEL or --best, and only one of them")
    arm: dict[str, Any] = {"method": method or "best", "seed": seed, "task": task, "budget": budget}
    form: dict[str, Any] = {"format": format, "uniform": uniform, "head": not no_head}
    done = peftprune.Comparison.load(study).export(out, **arm, **form, overwrite=overwrite, push_to_hub=push_to_hub)
    sizes = ", ".join(f"{name} {size:,}" for name, size in done.sizes.items())
    for line in (f"Chosen: {done.chosen}", *done.notes, f"Bytes of weights by format: {sizes}"):
        typer.echo(line)
    if done.url is not None:
        typer.echo(f"Uploaded: {done.url}")
    typer.echo(str(done.path))
    return asdict(done)


def inspect(
    adapter: Adapter,
    format: Annotated[str, typer.Option(help="table, or json with all singular values.")] = "table",
    alpha: Alpha = None,
) -> dict[str, Any]:
    """Show an adapter's ranks, spectra, norms, density and sharing, and the cost of pruning it further."""
    if format not in ("table", "json"):
        raise UsageError.of("format", format, "is unknown", "Formats: table, json")
    from peftprune.cli import console_adapters as tables_adapters

    found = peftprune.inspect(adapter, alpha=alpha)
    if format == "json":
        sys.stdout.write(json.dumps(found.as_dict(), indent=1) + "\n")
    else:
        tables_adapters.show_inspection(found)
    return found.as_dict()


def prune(
    adapter: Adapter,
    out: Out,
    budget: Annotated[
        str,
        typer.Option(
            help="rank=R: the parameters of uniform rank R. params=N: N parameters. energy=E: the fewest components "
            "that keep this share of the squared norm."
        ),
    ],
    method: Annotated[
        str,
        typer.Option(
            help="svd: the largest singular values of all layers together. magnitude: the highest of LoRPA's scores."
        ),
    ] = "svd",
    uniform: Annotated[bool, typer.Option("--uniform", help="Cut every layer to the rank of the budget.")] = False,
    alpha: Alpha = None,
    overwrite: Overwrite = False,
) -> dict[str, Any]:
    """Prune an adapter without training and without its base model; write a PEFT adapter."""
    from peftprune.cli import console_adapters as tables_adapters

    options: dict[str, Any] = {"method": method, "budget": budget, "uniform": uniform}
    done = peftprune.prune(adapter, out, **options, alpha=alpha, overwrite=overwrite)
    tables_adapters.show_pruned(done)
    typer.echo(str(done.path))
    return {name: getattr(done, name) for name in ("path", "ranks", "kept_energy", "params_before", "params_after")}


def convert(
    adapter: Adapter,
    out: Out,
    format: Annotated[str, typer.Option(help="peft or native.")] = "peft",
    uniform: Annotated[bool, typer.Option("--uniform", help="Pad every layer to the largest rank.")] = False,
    no_head: NoHead = False,
    alpha: Alpha = None,
    overwrite: Overwrite = False,
) -> dict[str, Any]:
    """Convert an adapter of any supported format to PEFT's or the native one."""
    from peftprune.adapters.convert import convert as rewrite

    form: Any = format
    written = rewrite(adapter, out, format=form, uniform=uniform, head=not no_head, alpha=alpha, overwrite=overwrite)
    typer.echo(str(written))
    return {"path": str(written)}
