"""The commands for finished studies: example, recommend, leaderboard, pack and audit."""

import os
import random
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from peftprune.cli.adapters import Out, Overwrite
from peftprune.cli.command import with_common
from peftprune.errors import RunError, UsageError

_ELSEWHERE = 0.05
"""Largest difference of a metric between runs of one arm on different processors or numbers of cores."""


def register(app: typer.Typer) -> None:
    """Adds the commands to the application."""
    for command in (example, recommend, leaderboard, pack, audit):
        app.command()(with_common(command))


def recommend(
    study: Annotated[Path, typer.Argument(help="Folder of a study, or of one that `pack` wrote.")],
    method: Annotated[str, typer.Option(help="Label of the method whose final ranks are written.")],
    out: Out,
    seed: Annotated[str, typer.Option(help="A seed, or best: the one with the best primary metric.")] = "best",
    task: Annotated[str | None, typer.Option(help="Required where the study has several tasks.")] = None,
    budget: Annotated[str | None, typer.Option(help="Required where the study has several budgets.")] = None,
    overwrite: Overwrite = False,
) -> dict[str, Any]:
    """Write a method's final ranks as plain LoRA for PEFT, axolotl and LLaMA-Factory, and what speaks for them."""
    from peftprune.report.export.recommend import recommend as write
    from peftprune.study.packed import readable
    from peftprune.study.stored_study import StoredStudy

    with TemporaryDirectory() as temporary:
        stored = StoredStudy.load(readable(study, Path(temporary) / "study"))
        done = write(stored, out, method=method, seed=seed, task=task, budget=budget, overwrite=overwrite)
    for line in (done.evidence, *done.notes, str(done.path)):
        typer.echo(line)
    return asdict(done)


def example(
    folder: Annotated[Path, typer.Argument(help="Folder to write.")] = Path("runs/example"),
) -> dict[str, Any]:
    """Write a finished study that comes with peftprune, to look at: it holds all but the adapters."""
    from peftprune.study.packed import EXAMPLE, unpack

    if os.path.isdir(folder) and os.listdir(folder):  # False for a name that is too long
        raise UsageError.of("folder", str(folder), "is not empty", "Name a new folder")
    unpack(EXAMPLE, folder, request=True)
    name = shlex.quote(str(folder))
    typer.echo(f"{name}: peftprune report {name}, peftprune plot {name}, peftprune.Comparison.load({str(folder)!r})")
    return {"path": str(folder)}


def leaderboard(
    studies: Annotated[list[Path], typer.Argument(help="Folders of studies, packed or not, or of several.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it gets one file, index.html.")],
) -> dict[str, Any]:
    """Write one page with the methods of several studies, to filter and sort. It needs no network.

    Each study is audited first. One that contradicts itself is left out and named, and the exit code is 1.
    """
    from peftprune.report.html.leaderboard import write_leaderboard

    path, refused = write_leaderboard(studies, out)
    problems = [f"refused: {name}: {why}" for name, why in refused.items()]
    for text in problems:
        typer.echo(text, err=True)
    typer.echo(str(path))
    return {"path": str(path), "problems": problems}


def pack(
    study: Annotated[Path, typer.Argument(help="Folder of a study that `compare` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder to write; a packed study there is replaced.")],
) -> dict[str, Any]:
    """Write a study in a few small files, without adapters: for a repository, for `audit` and `compare --reuse`."""
    from peftprune.study import packed

    arms = packed.pack(study, out)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    typer.echo(f"{out}: {arms} arms, {size / 1e6:.1f} MB")
    return {"path": str(out), "arms": arms, "bytes": size}


def audit(
    study: Annotated[Path, typer.Argument(help="Folder of a study, of one that `pack` wrote, or of several.")],
    arms: Annotated[
        int, typer.Option(min=0, help="Number of arms, drawn at random over the studies, to train again.")
    ] = 0,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with the data of the arms to train.", show_default="the study's")
    ] = None,
) -> dict[str, Any]:
    """Check studies against themselves, and train some of their arms again. Exit code 1 where anything contradicts.

    Hashes, seeds, options, budgets, allocations and choices must agree, scores must follow from the predictions, and
    files must be those that the run sealed. An arm that is trained again must have the same bits; with another
    processor or number of cores, metrics within 0.05.
    """
    from peftprune.study.packed import studies_in

    facts: dict[str, Any] = {"finished": 0, "sealed": 0, "adapters": 0, "trained_again": [], "problems": []}
    paths = studies_in(study)
    drawn = Counter(random.choices(paths, k=arms))
    for path in paths:
        name = f"{path.name}: " if path != study else ""
        for fact, value in _audit(path, drawn[path], data_dir).items():
            facts[fact] += [name + text for text in value] if isinstance(value, list) else value
    problems = facts["problems"]
    typer.echo(f"{facts['finished']} finished arms: {facts['sealed']} sealed, {facts['adapters']} with adapters.")
    for text in facts["trained_again"]:
        typer.echo(f"trained again: {text}")
    for text in problems:
        typer.echo(text, err=True)
    typer.echo(f"{len(problems)} contradictions." if problems else "Everything agrees.")
    return facts


def _audit(study: Path, arms: int, data_dir: Path | None) -> dict[str, Any]:
    from peftprune.analysis import audit as checks
    from peftprune.study.packed import readable
    from peftprune.study.stored_study import StoredStudy

    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "study"
        opened = readable(study, folder)
        stored = StoredStudy.load(opened).snapshot()
        problems, (sealed, adapters) = checks.audit(stored), checks.sealed(stored)
        again: list[str] = []
        if arms and not problems:
            if opened == study:
                shutil.copytree(study, folder, ignore=shutil.ignore_patterns("checkpoint", ".*"))
            typer.echo(f"{study.name}: trains {arms} arm(s) again", err=True)
            again, problems = _train_again(folder, study, arms, data_dir)
        count = sum(1 for _ in stored.finished())
    return {"finished": count, "sealed": sealed, "adapters": adapters, "trained_again": again, "problems": problems}


def _train_again(folder: Path, original: Path, count: int, data_dir: Path | None) -> tuple[list[str], list[str]]:
    """Trains arms of a copied study again and returns their names and the differences from what was stored.

    All other arms are finished, so the study's own command trains these alone. Raises UsageError where no command can
    repeat the study, and RunError where versions or device differ from the stored ones.
    """
    from peftprune.analysis.looks import wanted_seeds
    from peftprune.study.command import command
    from peftprune.study.paths import located
    from peftprune.study.seal import digests
    from peftprune.study.store import TRIALS, StudyFolder
    from peftprune.study.stored_study import StoredStudy
    from peftprune.study.task_setup import differs_here, hardware

    study = StoredStudy.load(folder)
    seeds = sorted({key["seed"] for key, _, _ in study.finished()})
    if "rounds" in study.request and max(wanted_seeds(study).values()) > len(seeds):
        # Its own command would go on with the next round.
        arms = [arm for arm in study.request["arms"] if arm["seed"] in seeds]
        fixed = {name: value for name, value in study.request.items() if name not in ("rounds", "schema")}
        StudyFolder(folder).write_request({**fixed, "seeds": seeds, "arms": arms})
        study = StoredStudy.load(folder)
    request = located(study.request, original)
    if data_dir is not None:
        request = {**request, "data_dir": str(data_dir)}
    text = command(request)
    if not text:
        raise UsageError.of("arms", count, "cannot be trained: no single command repeats this study", "Leave it out")
    if why := differs_here(request):
        raise RunError(f"audit: the study {why}. Train arms again there")
    studies = [study] + ([StoredStudy.load(folder / TRIALS)] if (folder / TRIALS).exists() else [])
    arms = [(s, key, arm, result) for s in studies for key, arm, result in s.finished()]
    drawn = random.sample(arms, min(count, len(arms)))
    stored = [(digests(arm, result), result["metrics"]) for _, _, arm, result in drawn]
    for _, _, arm, _ in drawn:
        shutil.rmtree(arm.path)
    arguments = [*shlex.split(text)[1:], "--output-dir", str(folder)]
    run = subprocess.run([sys.executable, "-P", "-m", "peftprune", *arguments], capture_output=True, text=True)
    if run.returncode:
        raise RunError(f"audit: the arms cannot be trained again. {run.stderr.strip()[-2000:]}")
    strict, names, problems = request["hardware"] == hardware(), [], []
    for (owner, key, arm, _), (seals, metrics) in zip(drawn, stored, strict=True):
        name = owner.name(key) + (" (trial)" if owner is not study else "")
        names.append(name)
        result = arm.result()
        if result is None:
            problems.append(f"{name}: the command did not train it again")
            continue
        made = digests(arm, result)
        if strict:
            problems += [f"{name}: trained again, its {p} differs" for p, s in seals.items() if made.get(p, s) != s]
            continue
        problems += [
            f"{name}: trained again, {metric} is {result['metrics'][metric]:.4f} instead of {value:.4f}"
            for metric, value in metrics.items()
            if abs(result["metrics"][metric] - value) > _ELSEWHERE
        ]
    return names, problems
