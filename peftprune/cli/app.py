"""The command line. Heavy imports happen inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import functools
import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from peftprune.cli import adapters as cli_adapters
from peftprune.errors import PeftPruneError, UsageError

app = typer.Typer(
    name="peftprune",
    help="Compare LoRA rank-pruning methods under identical, verified budgets.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Methods = Annotated[
    str, typer.Option(help="Comma-separated: NAME, NAME(option=value), NAME:LABEL(...) or FILE.py:CLASS.")
]
ModelOption = Annotated[str, typer.Option(help="minilm, smollm2 (generates), a folder, or a hub name.")]
BudgetOption = Annotated[
    str, typer.Option(help="rank=R, params=N or fraction=F, also with epochs=, steps=, samples=, count=; or paper.")
]
Targets = Annotated[str, typer.Option(help="attention (query and value), all-linear, or comma-separated names.")]
Epochs = Annotated[float | None, typer.Option(help="Passes over the training data.  [default: 3]")]
BatchSize = Annotated[int | None, typer.Option(help="Examples per optimizer step.  [default: 32]")]
_NEEDED_OF_FILES = ("train_file", "test_file", "text", "label")
_OF_FILES = (*_NEEDED_OF_FILES, "regression", "kind")
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.")]


def _errors_shown(command: Callable[..., None]) -> Callable[..., None]:
    """Turn errors into one message and the exit code: 2 for a wrong request, 1 for a failed run."""

    @functools.wraps(command)
    def wrapped(*args: Any, debug: bool = False, **kwargs: Any) -> None:
        if not debug:
            warnings.simplefilter("ignore")
        try:
            command(*args, debug=debug, **kwargs)
        except (typer.Exit, KeyboardInterrupt):
            raise
        except Exception as error:
            if debug:
                raise
            known = isinstance(error, PeftPruneError)
            message = str(error) if known else f"{type(error).__name__}: {error} (run again with --debug to see where)"
            typer.echo(f"error: {message}", err=True)
            raise typer.Exit(error.exit_code if isinstance(error, PeftPruneError) else 1) from None

    return wrapped


@app.command()
@_errors_shown
def compare(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help="A study file: YAML with the arguments below; options win over it.")
    ] = None,
    task: Annotated[str, typer.Option(help="A task's name, or several: rte,mrpc. See `peftprune tasks`.")] = (
        "entailment-mini"
    ),
    methods: Methods = "lora,lorpa,prilora,lora-drop",
    model: ModelOption = "minilm",
    budget: Annotated[
        list[str],
        typer.Option(
            help="rank=R, params=N or fraction=F, also with epochs=, steps=, samples=, count=; or paper. Repeat it for "
            "several budgets."
        ),
    ] = ["rank=8"],  # noqa: B006
    seeds: Annotated[str, typer.Option(help="How many (3), or which (11,12).")] = "1",
    target_modules: Targets = "all-linear",
    data_dir: Annotated[Path | None, typer.Option(help="Folder with the data.  [default: $PEFTPRUNE_DATA]")] = None,
    output_dir: Annotated[Path | None, typer.Option(help="The study's folder.  [default: runs/TASK]")] = None,
    epochs: Epochs = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak rate.  [default: 1e-3]")] = None,
    batch_size: BatchSize = None,
    gradient_accumulation_steps: Annotated[int | None, typer.Option(help="Micro-batches a step.  [default: 1]")] = None,
    warmup_ratio: Annotated[float | None, typer.Option(help="Share of steps that warm up.  [default: 0.06]")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="AdamW's.  [default: 0.01]")] = None,
    max_grad_norm: Annotated[float | None, typer.Option(help="Gradient clipping; 0 for none.  [default: 1.0]")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens of an example.  [default: 256]")] = None,
    scaling: Annotated[float | None, typer.Option(help="Factor on B A, alpha / rank.  [default: 2.0]")] = None,
    lora_dropout: Annotated[float | None, typer.Option(help="Dropout on the adapters' input.  [default: 0]")] = None,
    max_train_samples: Annotated[int | None, typer.Option(help="Train on a fixed sample.  [default: all]")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32 or bfloat16.  [default: auto]")] = None,
    checkpoints: Annotated[int | None, typer.Option(help="Saves per run.  [default: 5]")] = None,
    max_eval_samples: Annotated[int | None, typer.Option(help="Evaluate on a fixed sample.  [default: all]")] = None,
    max_target_length: Annotated[
        int | None, typer.Option(help="Generation: tokens of a target.  [default: 128]")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Generation: tokens written at most.  [default: --max-target-length]")
    ] = None,
    num_beams: Annotated[int | None, typer.Option(help="Generation: 1 is greedy decoding.  [default: 1]")] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help='Generation: what the model reads, with "{source}" in it.  [default: the task\'s]'),
    ] = None,
    base_dtype: Annotated[
        str | None, typer.Option(help="Frozen weights: float32, bfloat16 or float16.  [default: float32]")
    ] = None,
    load_in: Annotated[str | None, typer.Option(help="Quantise the frozen weights: 8bit or 4bit.")] = None,
    device_map: Annotated[str | None, typer.Option(help="Place the model as transformers does, such as auto.")] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of each arm.  [default: the cores shared among the arms]")
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(
            help="Processes that train arms side by side: a number, or auto.  [default: auto; slurm: one an arm]"
        ),
    ] = None,
    backend: Annotated[str, typer.Option(help="Where arms are trained: local, ray or slurm.")] = "local",
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster; local starts one.  [default: auto]")] = None,
    gpus: Annotated[float | None, typer.Option(help="Of each arm on a cluster; Ray takes fractions.")] = None,
    sbatch: Annotated[str | None, typer.Option(help="Further options of sbatch: '--partition=gpu'.")] = None,
    train_file: Annotated[Path | None, typer.Option(help="Your own data: CSV, TSV, JSONL or parquet.")] = None,
    test_file: Annotated[Path | None, typer.Option(help="The file that results are reported on.")] = None,
    text: Annotated[str | None, typer.Option(help="Text column, or two: COL,COL2.")] = None,
    label: Annotated[str | None, typer.Option(help="Label column.")] = None,
    regression: Annotated[bool, typer.Option("--regression", help="The label is a number to predict.")] = False,
    kind: Annotated[
        str | None, typer.Option(help="classification, regression or generation.  [default: classification]")
    ] = None,
    debug: Debug = False,
) -> None:
    """Train every method on every seed under one budget; print the table and draw the ranks.

    Exit code 1 when an arm failed, 2 when the request cannot be run. A rerun trains only what is not done, and a
    second one beside the first shares the work. `--backend slurm` submits the work and ends.
    """
    import peftprune
    from peftprune.cli import console as tables
    from peftprune.cli.study_file import overridden, read_study_file

    asked = {name: value for name, value in context.params.items() if _given(context, name)}
    files = {name: asked.pop(name) for name in _OF_FILES if name in asked}
    for name in ("config", "debug"):
        asked.pop(name, None)
    if files:
        asked["task"] = _task_from_files(files)
    written = read_study_file(config) if config is not None else {}
    arguments = overridden(written, asked)
    result = peftprune.compare(**arguments)
    if arguments.get("backend") == "slurm":
        where = shlex.quote(str(result.path))
        typer.echo(f"How it stands: peftprune status {where}. When it is done: peftprune report {where}")
        return
    tables.show_comparison(result)
    if not result.allocation().empty:
        result.plot_ranks(result.path / "ranks.png")
        typer.echo(f"Rank allocations: {result.path / 'ranks.png'}")
    typer.echo(f"All of it, with plots and an explorer: peftprune report {shlex.quote(str(result.path))}")
    for arm, message in result.failures.items():
        typer.echo(f"failed: {arm}: {message}", err=True)
    if result.failures:
        typer.echo("Run the same command again to retry what failed; finished arms are kept.", err=True)
        raise typer.Exit(1)


@app.command("run-arm")
@_errors_shown
def run_arm(
    work: Annotated[Path, typer.Argument(help="The work.pkl that `compare --backend slurm` wrote.")],
    index: Annotated[int | None, typer.Option(help="Which arm, from 0.  [default: all that are left]")] = None,
    debug: Debug = False,
) -> None:
    """Train an arm of a study that `compare --backend slurm` planned; what its array job runs.

    Exit code 1 when an arm failed. Open only files of your own: they hold code.
    """
    from peftprune.study.execution.process import unpack
    from peftprune.study.progress import Reporter

    try:
        planned = unpack(work.read_bytes())
    except PeftPruneError:
        raise
    except OSError as error:
        raise UsageError.of("work", str(work), f"cannot be read ({error.strerror})", "Name a work.pkl") from None
    except Exception as error:  # whatever a file that is none makes of being read as one
        problem = f"cannot be taken up ({type(error).__name__}: {error})"
        raise UsageError.of("work", str(work), problem, "Name the work.pkl below the study's slurm/") from error
    if index is not None:
        count = len(planned.ordered)
        if not 0 <= index < count:
            raise UsageError.of("index", index, "is no arm of the study", f"Give 0 to {count - 1}")
        planned = planned.only(index)
    with planned.study.registered(), Reporter(planned.total_steps) as reporter:
        planned.run(reporter)
    done = True
    for arm in planned.arms:
        failure = None if planned.folder(arm).result() is not None else planned.folder(arm).error()
        done = done and failure is None
        typer.echo(f"{arm.name}, seed {arm.seed}: " + ("done" if failure is None else f"failed: {failure['error']}"))
    if not done:
        raise typer.Exit(1)


Study = Annotated[Path, typer.Argument(help="The folder of a study that `compare` wrote.")]
OneTask = Annotated[str | None, typer.Option(help="Only this task of the study.")]
OneBudget = Annotated[str | None, typer.Option(help="Only this budget of the study, such as rank=8.")]


@app.command()
@_errors_shown
def plot(
    study: Study,
    kind: Annotated[str, typer.Option(help="What to draw; a name that is unknown lists the kinds.")] = "ranks",
    out: Annotated[Path | None, typer.Option(help="PNG, PDF or SVG, by its ending.  [default: STUDY/KIND.png]")] = None,
    task: OneTask = None,
    budget: OneBudget = None,
    debug: Debug = False,
) -> None:
    """Draw a stored study: rank allocations, their course and stability, quality, differences, costs."""
    from peftprune.comparison import Comparison

    result = Comparison.load(study).only(task=task, budget=budget)
    path = out if out is not None else study / f"{kind}.png"
    result.plot(kind, path)
    typer.echo(str(path))


@app.command()
@_errors_shown
def report(
    study: Study,
    out: Annotated[
        Path | None, typer.Option(help="Where to write.  [default: STUDY/report.html; other formats are printed]")
    ] = None,
    format: Annotated[str, typer.Option(help="html, markdown, latex, csv or json.")] = "html",
    baseline: Annotated[str | None, typer.Option(help="Label to compare with.  [default: the first method]")] = None,
    task: OneTask = None,
    budget: OneBudget = None,
    debug: Debug = False,
) -> None:
    """Write what a stored study found: one HTML page that needs nothing else, or tables."""
    from peftprune.comparison import Comparison
    from peftprune.files import write_output
    from peftprune.report.text import table_text

    result = Comparison.load(study).only(task=task, budget=budget)
    if format == "html":
        typer.echo(str(result.report(out if out is not None else study / "report.html", baseline=baseline)))
        return
    text = table_text(result, format, baseline=baseline)
    if out is None:
        sys.stdout.write(text)
    else:
        write_output(out, text.encode())
        typer.echo(str(out))


@app.command()
@_errors_shown
def status(
    study: Study,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    debug: Debug = False,
) -> None:
    """How far a study is: done, training, interrupted, failed or waiting, arm by arm. Works while others train it."""
    from peftprune.analysis.status import arm_states
    from peftprune.cli import console as tables
    from peftprune.comparison import Comparison

    states = arm_states(Comparison.load(study))
    if as_json:
        sys.stdout.write(json.dumps({"arms": states}, indent=1) + "\n")
    else:
        tables.show_states(states)


@app.command()
@_errors_shown
def plan(
    methods: Methods = "lora,lorpa,prilora,lora-drop",
    model: Annotated[
        str, typer.Option(help="A folder, a config.json, a hub name, or a bundled architecture such as roberta-base.")
    ] = "minilm",
    budget: BudgetOption = "rank=8",
    target_modules: Targets = "all-linear",
    task: Annotated[str, typer.Option(help="Gives the number of training examples and classes.")] = "entailment-mini",
    train_examples: Annotated[int | None, typer.Option(help="Training examples, instead of the task's.")] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    debug: Debug = False,
) -> None:
    """Solve the budget for every method without weights or data: ranks, parameters, steps, compute."""
    from peftprune.cli import console as tables
    from peftprune.study.arguments import parse_targets
    from peftprune.study.planning import plan_methods

    plans = plan_methods(
        methods,
        model,
        budget,
        parse_targets(target_modules),
        task,
        train_examples,
        epochs=epochs,
        batch_size=batch_size,
    )
    if as_json:
        sys.stdout.write(json.dumps({"methods": plans}, indent=1) + "\n")
    else:
        tables.show_plans(plans, model)


@app.command("methods")
@_errors_shown
def methods_(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    debug: Debug = False,
) -> None:
    """List the methods: source, what each was seen to do, options, and where statements and defaults come from.

    The first call after an update watches every method on a tiny model, which takes some seconds.
    """
    from peftprune.cli import console as tables
    from peftprune.methods.describe import describe_methods

    described = describe_methods()
    if as_json:
        sys.stdout.write(json.dumps({"methods": described}, indent=1) + "\n")
    else:
        tables.show_methods(described)


@app.command()
@_errors_shown
def tasks(debug: Debug = False) -> None:
    """List the tasks: sizes, metrics, and what the reported split is."""
    from peftprune.cli import console as tables
    from peftprune.tasks import TASKS

    tables.show_tasks(list(TASKS.values()))


cli_adapters.register(app, _errors_shown)


def _given(context: typer.Context, name: str) -> bool:
    """Whether an option stood on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _task_from_files(given: dict[str, Any]) -> Any:
    """A task of the user's own files, or an error that names the option that is missing."""
    from peftprune.tasks import Task

    lacking = next((name for name in _NEEDED_OF_FILES if name not in given), None)
    if lacking is not None:
        options = [f"--{name.replace('_', '-')}" for name in _NEEDED_OF_FILES]
        beside = f"--{next(iter(given)).replace('_', '-')}"
        raise UsageError.of(
            f"--{lacking.replace('_', '-')}", None, f"is missing beside {beside}", f"Give all of {', '.join(options)}"
        )
    return Task.from_files(**given)


def main() -> None:
    """Entry point of the console script."""
    # Read by OpenMP when torch loads. Threads that spin at every barrier stall each other wherever another process
    # wants the same cores, by a factor of ten and more; on an idle machine waiting sooner costs a few percent.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    app()
