"""The command line: `python -m benchmarks.tournament run --data-dir path/to/glue`, and `tables`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.tournament.tasks import ON_GPU, PILOT, PILOTED, TASKS, place

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "tournament"
RUNS = Path("runs") / "tournament"

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.command()
def run(
    data_dir: Annotated[Path, typer.Option(help="Folder in the official GLUE layout.", envvar="PEFTPRUNE_DATA")],
    task: Annotated[list[str] | None, typer.Option(help="Only this study. Repeat it for several.")] = None,
    workers: Annotated[str, typer.Option(help="Arms at a time, as in `compare`.")] = "auto",
) -> None:
    """Train what is missing of every study, and pack each into benchmarks/results/tournament.

    Arms that the packed results hold are taken up, so that a second call trains nothing. The studies that need a GPU
    are run where `--task` names them, and so are the pilots of tasks without a study.
    """
    studies = TASKS | ON_GPU | PILOTED
    unknown = set(task or ()) - set(studies)
    if unknown:
        raise typer.BadParameter(f"{sorted(unknown)} is not among {', '.join(studies)}", param_hint="--task")
    # One thread per arm: results then do not depend on the number of cores.
    common = ["--data-dir", str(data_dir), "--threads", "1", "--workers", workers]
    for name in task or TASKS:
        size = studies[name].split()
        study = ["--config", str(HERE.parent / "tournament.yaml")]
        # Of an option that stands twice the second counts.
        parts = ((f"pilot-{name.split('-')[0]}", size, PILOT.split()), (name, study, size))
        for part, first, then in parts[:1] if name in PILOTED else parts:
            packed = place(RESULTS, part)
            reuse = ["--reuse", str(packed)] if packed.is_dir() else []
            _peftprune("compare", *first, *then, *common, *reuse, "--output-dir", str(RUNS / part))
            _peftprune("pack", str(RUNS / part), "--out", str(packed))


@app.command()
def tables(
    check: Annotated[bool, typer.Option("--check", help="Only say whether they are up to date.")] = False,
) -> None:
    """Write findings, tables and figures from the packed results alone."""
    from benchmarks.tournament.documents import write

    changed = write(RESULTS, check=check)
    if check and changed:
        typer.echo(f"out of date: {', '.join(changed)}. Run python -m benchmarks.tournament tables", err=True)
        raise typer.Exit(1)


def _peftprune(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "peftprune", *arguments])
    # 1: an arm failed, which the tables tell.
    if done.returncode not in (0, 1):
        raise typer.Exit(done.returncode)


if __name__ == "__main__":
    app()
