"""The command line. Heavy imports happen inside the commands, so that `--help` answers at once."""

import functools
import os
import shlex
import sys
import time
from contextlib import redirect_stdout, suppress
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

import typer

import peftprune
from peftprune.cli import adapters as cli_adapters
from peftprune.cli import results as cli_results
from peftprune.cli.command import COMMON, with_common
from peftprune.errors import PeftPruneError, UsageError

app = typer.Typer(name="peftprune", no_args_is_help=True, pretty_exceptions_enable=False)

_study, _data, _base_model, _training, _generation, _tuning, _execution, _power = (
    functools.partial(typer.Option, rich_help_panel=panel)
    for panel in ("Study", "Data", "Base model", "Training", "Generation", "Tuning", "Execution", "Power")
)
_BUDGET_HELP = "rank=R, params=N or fraction=F, optionally with epochs=, steps=, samples= or count=; or paper."
_MARGIN_HELP = "A difference that does not matter: 0.01, or METRIC=0.01,METRIC2=0.02."

Methods = Annotated[str, _study(help="Comma-separated: NAME, NAME(option=value), NAME:LABEL(...) or FILE.py:CLASS.")]
Targets = Annotated[
    str, _base_model(help="Layers to adapt: attention (query and value), all-linear, or comma-separated names.")
]
Epochs = Annotated[float | None, _training(help="Passes over the training data.", show_default="3")]
BatchSize = Annotated[int | None, _training(help="Examples per optimizer step.", show_default="32")]
Seeds = Annotated[str, _study(help="Number of seeds (3), a list (11,12), or rounds until decided (3..12).")]
Tune = Annotated[
    list[str] | None,
    _tuning(
        help="Choose for each method on validation data: learning_rate=3e-4,1e-3,3e-3, or "
        "learning_rate=log(1e-4,1e-1) with --trials; also METHOD.option=v1,v2. Repeat it for several."
    ),
]
Trials = Annotated[int | None, _tuning(help="Number of rates of log(low,high).")]
TuningSeeds = Annotated[str, _tuning(help="Number of seeds of each trial, or a list of them.")]
How = Annotated[str, _tuning(help="grid, or halving: the worse half of a method's trials stops at a third.")]
_REFRESH = 2.0
"""Seconds between two looks of `status --watch`."""
_NEEDED_OF_FILES = ("train_file", "test_file", "text", "label")
_OF_FILES = (*_NEEDED_OF_FILES, "validation_file", "regression", "kind")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(peftprune.__version__)
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Compare LoRA rank-pruning methods under identical, verified budgets."""


@app.command()
@with_common
def compare(
    context: typer.Context,
    config: Annotated[
        Path | None,
        _study(help="YAML file with these options, named with underscores; options given here override it."),
    ] = None,
    methods: Methods = "lora,lorpa,prilora,lora-drop",
    budget: Annotated[list[str], _study(help=f"{_BUDGET_HELP} Repeat it for several budgets.")] = ["rank=8"],  # noqa: B006
    seeds: Seeds = "1",
    output_dir: Annotated[Path | None, _study(help="Folder of the study.", show_default="runs/TASK")] = None,
    task: Annotated[str, _data(help="Name of a task, or several: rte,mrpc. See `peftprune tasks`.")] = (
        "entailment-mini"
    ),
    data_dir: Annotated[Path | None, _data(help="Folder with the data.", show_default="$PEFTPRUNE_DATA")] = None,
    max_length: Annotated[
        int | None, _data(help="Tokens per example; longer ones are cut.", show_default="256, or what the model reads")
    ] = None,
    max_train_samples: Annotated[int | None, _data(help="Train on a fixed random sample.", show_default="all")] = None,
    max_eval_samples: Annotated[
        int | None, _data(help="Evaluate on a fixed random sample.", show_default="all")
    ] = None,
    train_file: Annotated[Path | None, _data(help="Your own training data: CSV, TSV, JSONL or parquet.")] = None,
    test_file: Annotated[Path | None, _data(help="File that results are reported on.")] = None,
    validation_file: Annotated[Path | None, _data(help="File that --tune chooses on.")] = None,
    text: Annotated[str | None, _data(help="Text column, or two: COL,COL2.")] = None,
    label: Annotated[str | None, _data(help="Label column.")] = None,
    regression: Annotated[bool, _data("--regression", help="The label is a number to predict.")] = False,
    kind: Annotated[
        str | None, _data(help="classification, regression or generation.", show_default="classification")
    ] = None,
    model: Annotated[str, _base_model(help="minilm, smollm2 (generates text), a folder, or a hub name.")] = "minilm",
    target_modules: Targets = "all-linear",
    base_dtype: Annotated[
        str | None,
        _base_model(help="Format of the frozen weights: float32, bfloat16 or float16.", show_default="float32"),
    ] = None,
    load_in: Annotated[str | None, _base_model(help="Quantise the frozen weights: 8bit or 4bit.")] = None,
    device_map: Annotated[str | None, _base_model(help="Placement of the model, as in transformers: auto.")] = None,
    epochs: Epochs = None,
    learning_rate: Annotated[float | None, _training(help="Peak learning rate.", show_default="1e-3")] = None,
    batch_size: BatchSize = None,
    gradient_accumulation_steps: Annotated[
        int | None, _training(help="Micro-batches per optimizer step.", show_default="1")
    ] = None,
    warmup_ratio: Annotated[
        float | None, _training(help="Share of the steps that warm up.", show_default="0.06")
    ] = None,
    weight_decay: Annotated[float | None, _training(help="Weight decay of AdamW.", show_default="0.01")] = None,
    max_grad_norm: Annotated[
        float | None, _training(help="Norm that gradients are clipped to; 0 turns clipping off.", show_default="1.0")
    ] = None,
    scaling: Annotated[float | None, _training(help="Factor on B A, alpha / rank.", show_default="2.0")] = None,
    lora_dropout: Annotated[float | None, _training(help="Dropout on the input of adapters.", show_default="0")] = None,
    dtype: Annotated[str | None, _training(help="auto, float32 or bfloat16.", show_default="auto")] = None,
    checkpoints: Annotated[int | None, _training(help="Checkpoints per run.", show_default="5")] = None,
    select: Annotated[
        str | None,
        _training(help="State to report: last, or the best on validation, or (paper) test data.", show_default="last"),
    ] = None,
    max_target_length: Annotated[int | None, _generation(help="Tokens per target.", show_default="128")] = None,
    max_new_tokens: Annotated[
        int | None, _generation(help="Most tokens to generate.", show_default="--max-target-length")
    ] = None,
    num_beams: Annotated[int | None, _generation(help="Beams; 1 is greedy decoding.", show_default="1")] = None,
    prompt: Annotated[
        str | None, _generation(help='Prompt of the model, with "{source}" in it.', show_default="the task's")
    ] = None,
    tune: Tune = None,
    trials: Trials = None,
    tuning_seeds: TuningSeeds = "1",
    tuning: How = "grid",
    refit: Annotated[bool, _tuning("--refit", help="Train final arms on the validation data too.")] = False,
    margin: Annotated[str | None, _study(help=_MARGIN_HELP, show_default="none")] = None,
    threads: Annotated[
        int | None, _execution(help="Threads per arm.", show_default="the cores, divided among the arms")
    ] = None,
    workers: Annotated[
        str | None,
        _execution(help="Processes that train arms in parallel, or auto.", show_default="auto; slurm: one per arm"),
    ] = None,
    backend: Annotated[str, _execution(help="Where to train the arms: local, ray or slurm.")] = "local",
    address: Annotated[
        str | None, _execution(help="Address of the Ray cluster; local starts one.", show_default="auto")
    ] = None,
    gpus: Annotated[float | None, _execution(help="GPUs per arm on a cluster; Ray accepts fractions.")] = None,
    sbatch: Annotated[str | None, _execution(help="Further options of sbatch: '--partition=gpu'.")] = None,
    reuse: Annotated[Path | None, _execution(help="Packed study whose finished arms need no training.")] = None,
    dry_run: Annotated[bool, _execution("--dry-run", help="Check everything, say what it takes, train nothing.")] = (
        False
    ),
    report_to: Annotated[
        str | None, _execution(help="Experiment trackers: tensorboard, wandb, trackio, mlflow.", show_default="none")
    ] = None,
    wide: Annotated[bool, typer.Option("--wide", help="Print every column, however wide the tables get.")] = False,
) -> dict[str, Any]:
    """Train every method on every seed under one budget; print the table and plot the ranks.

    Exit code 1 when an arm failed, 2 when the request is invalid. A rerun trains only the arms that are not finished;
    a second process started beside the first shares the work. `--backend slurm` submits the jobs and exits.
    """
    from peftprune.cli.printed import Printed

    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    options = {name: value for name, value in context.params.items() if name in given}
    printed = Printed({n: v for n, v in options.items() if n not in COMMON}, config, output_dir)
    if (before := printed.again()) is not None:
        return before
    from peftprune.cli.study_file import overridden, read_study_file
    from peftprune.methods.request import parse

    files = {name: options.pop(name) for name in _OF_FILES if name in options}
    if options.pop("quiet", False):
        options["progress"] = False
    for name in ("config", "wide", "dry_run", *COMMON):
        options.pop(name, None)
    if files:
        if "task" in options:
            cure = "Keep --task, or the options of your own files"
            flag = f"--{next(iter(files)).replace('_', '-')}"
            raise UsageError.of("--task", task, f"is another task than that of {flag}", cure)
        options["task"] = _task_from_files(files)
    if not dry_run and "methods" in options:
        options["methods"] = parse(options["methods"])  # before slow imports
    arguments = overridden(read_study_file(config) if config is not None else {}, options)
    from peftprune.analysis.frames import Frames
    from peftprune.cli import console as tables
    from peftprune.comparison import dry_run as measured
    from peftprune.report.text import table_values

    if dry_run:
        tables.show_dry_run(found := measured(**arguments))
        return found
    result = peftprune.compare(**arguments)
    folder = shlex.quote(str(result.path))
    if arguments.get("backend") == "slurm":
        if arguments.get("tune") is not None and "tuning" not in result.request:
            cure = "When they are done, type the same command again, which goes on with what they chose"
            typer.echo(f"The trials are submitted. Progress: peftprune status {folder}. {cure}")
        else:
            typer.echo(f"Progress: peftprune status {folder}. When it is done: peftprune report {folder}")
        if "rounds" in result.request:
            typer.echo("Then run the same command again: it trains the next round of seeds, if one is open.")
        return {"path": str(result.path)}
    frames = Frames(result, whole=True)
    shown = StringIO()
    shown.isatty = sys.stdout.isatty  # type: ignore[method-assign]
    try:
        with redirect_stdout(shown):
            tables.show_comparison(frames, wide)
            if not frames.allocation.empty:
                result.plot("ranks", result.path / "ranks.png")
                print(f"Rank allocations: {result.path / 'ranks.png'}")
            page = f"peftprune report {folder}"
            print(f"All columns: the same command with --wide. Report with plots and an explorer: {page}")
    finally:
        sys.stdout.write(shown.getvalue())
    for arm, message in result.failures.items():
        typer.echo(f"failed: {arm}: {message}", err=True)
    if result.failures:
        typer.echo("Run the same command again to retry what failed; finished arms are kept.", err=True)
    values = {"path": str(result.path), "failed": result.failures, **table_values(frames)}
    with suppress(OSError, UsageError):  # it only saves time
        printed.keep(result, shown.getvalue(), values)
    return values


@app.command("run-arm")
@with_common
def run_arm(
    work: Annotated[Path, typer.Argument(help="The work.pkl that `compare --backend slurm` wrote.")],
    index: Annotated[
        int | None, typer.Option(help="Index of the arm, from 0.", show_default="all that are left")
    ] = None,
) -> dict[str, Any]:
    """Train an arm of a study that `compare --backend slurm` planned. Its array job runs this command.

    Exit code 1 when an arm failed. Open only your own files: they can execute code.
    """
    from peftprune.study.execution.process import unpack
    from peftprune.study.progress import Reporter

    try:
        planned = unpack(work.read_bytes())
    except PeftPruneError:
        raise
    except OSError as error:
        raise UsageError.of("work", str(work), f"cannot be read ({error.strerror})", "Name a work.pkl") from None
    except Exception as error:  # unpickling another file can raise anything
        problem = f"cannot be read ({type(error).__name__}: {error})"
        raise UsageError.of("work", str(work), problem, "Name the work.pkl below the study's slurm/") from error
    if index is not None:
        count = len(planned.ordered)
        if not 0 <= index < count:
            raise UsageError.of("index", index, "is not an arm of the study", f"Give 0 to {count - 1}")
        planned = planned.only(index)
    with planned.study.registered(), Reporter(planned.total_steps) as reporter:
        planned.run(reporter)
    failed: dict[str, str] = {}
    for arm in planned.arms:
        failure = None if planned.folder(arm).result() is not None else planned.folder(arm).error()
        name = f"{arm.name}, seed {arm.seed}"
        failed |= {} if failure is None else {name: failure["error"]}
        typer.echo(f"{name}: " + ("done" if failure is None else f"failed: {failure['error']}"))
    return {"arms": [f"{arm.name}, seed {arm.seed}" for arm in planned.arms], "failed": failed}


Margin = Annotated[str | None, typer.Option(help=_MARGIN_HELP, show_default="the study's, if any")]
Study = Annotated[Path, typer.Argument(help="Folder of a study that `compare` wrote.")]
OneTask = Annotated[str | None, typer.Option(help="Only this task of the study.")]
OneBudget = Annotated[str | None, typer.Option(help="Only this budget of the study, such as rank=8.")]


@app.command()
@with_common
def plot(
    study: Study,
    kind: Annotated[str, typer.Option(help="What to plot; an unknown name lists the kinds.")] = "ranks",
    out: Annotated[
        Path | None, typer.Option(help="PNG, PDF or SVG, by its suffix.", show_default="STUDY/KIND.png")
    ] = None,
    task: OneTask = None,
    budget: OneBudget = None,
) -> dict[str, Any]:
    """Plot a stored study: rank allocations, their history and stability, quality, differences, costs."""
    result = peftprune.Comparison.load(study).only(task=task, budget=budget)
    path = out if out is not None else study / f"{kind}.png"
    result.plot(kind, path)
    typer.echo(str(path))
    return {"path": str(path)}


@app.command()
@with_common
def report(
    study: Study,
    out: Annotated[
        Path | None, typer.Option(help="File to write.", show_default="STUDY/report.html; other formats are printed")
    ] = None,
    format: Annotated[str, typer.Option(help="html, markdown, latex, csv or json.")] = "html",
    baseline: Annotated[
        str | None, typer.Option(help="Label of the baseline.", show_default="the first method")
    ] = None,
    margin: Margin = None,
    task: OneTask = None,
    budget: OneBudget = None,
) -> dict[str, Any]:
    """Write the results of a stored study: one self-contained HTML page, or tables."""
    from peftprune.files import write_output
    from peftprune.report.text import table_text

    result = peftprune.Comparison.load(study).only(task=task, budget=budget)
    if format == "html":
        out = result.report(out if out is not None else study / "report.html", baseline=baseline, margin=margin)
        typer.echo(str(out))
        return {"path": str(out)}
    text = table_text(result, format, baseline=baseline, margin=margin)
    if out is None:
        sys.stdout.write(text)
        return {"text": text}
    write_output(out, text.encode())
    typer.echo(str(out))
    return {"path": str(out)}


@app.command()
@with_common
def status(
    study: Study,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show arms at work and the table so far, again and again, until all ended.")
    ] = False,
) -> dict[str, Any]:
    """Show each arm's state: done, training, interrupted, failed or waiting. Works while other processes train.

    Before the search for a study's settings has ended, it shows the trials.
    """
    from peftprune.analysis.frames import Frames
    from peftprune.analysis.status import arm_states, minutes_left
    from peftprune.cli import console as tables
    from peftprune.study.store import TRIALS

    before = None
    while True:
        searching = not (study / "study.json").exists() and (study / TRIALS).exists()
        found = peftprune.Comparison.load(study / TRIALS if searching else study)
        states = arm_states(found)
        left = minutes_left(found, states)
        if not watch:
            tables.show_states(states, left)
        elif states != before:
            tables.show_progress(states, left, None if searching else Frames(found, whole=True))
        if not watch or not any(row["state"] in ("training", "waiting") for row in states):
            return {"arms": states, "minutes_left": left}
        before = states
        time.sleep(_REFRESH)


@app.command()
@with_common
def plan(
    methods: Methods = "lora,lorpa,prilora,lora-drop",
    model: Annotated[
        str, _base_model(help="A folder, a config.json, a hub name, or a bundled architecture such as roberta-base.")
    ] = "minilm",
    budget: Annotated[str, _study(help=_BUDGET_HELP)] = "rank=8",
    target_modules: Targets = "all-linear",
    task: Annotated[str, _data(help="Task with the number of training examples and classes.")] = "entailment-mini",
    train_examples: Annotated[int | None, _data(help="Number of training examples, instead of the task's.")] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    seeds: Seeds = "1",
    tune: Tune = None,
    trials: Trials = None,
    tuning_seeds: TuningSeeds = "1",
    tuning: How = "grid",
    detect: Annotated[float | None, _power(help="Difference to detect: prints the seeds it needs.")] = None,
    margin: Annotated[float | None, _power(help="Margin within which equal methods are shown equivalent.")] = None,
    pilot: Annotated[Path | None, _power(help="Folder of a study that shows how results vary.")] = None,
    deviation: Annotated[float | None, _power(help="Deviation of a score between seeds, instead of --pilot.")] = None,
) -> dict[str, Any]:
    """Solve the budget for every method, without weights or data: ranks, parameters, steps, compute."""
    from peftprune.cli import console as tables
    from peftprune.methods.request import parse
    from peftprune.study.arguments import parse_rounds, parse_seeds, parse_targets
    from peftprune.study.planning import plan_methods
    from peftprune.study.size import size_in_words, tuning_size
    from peftprune.study.tuning import parse_tuning

    targets, length = parse_targets(target_modules), {"epochs": epochs, "batch_size": batch_size}
    rounds = parse_rounds(seeds)
    final_seeds = parse_seeds(rounds[-1] if rounds else seeds)
    search = parse_tuning(tune, trials, tuning_seeds, False, parse(methods), final_seeds, tuning)
    plans = plan_methods(methods, model, budget, targets, task, train_examples, **length)
    steps = {label: sum(p["steps"] for p in found["phases"]) for label, found in plans.items()}
    needed: dict[str, Any] = {}
    if any(value is not None for value in (detect, margin, pilot, deviation)):
        from peftprune.analysis.pilot import needed_in_words, needed_seeds

        needed = needed_seeds(len(plans) - 1, detect, margin, pilot, deviation, task)
    size = tuning_size(search, steps, needed.get("seeds") or len(final_seeds))
    tables.show_plans(plans, model)
    if needed:
        tables.print_text(needed_in_words(needed))
    tables.print_text(size_in_words(size, needed.get("seconds")))
    return {"methods": plans, "size": size, "power": needed}


@app.command("methods")
@with_common
def methods_(
    name: Annotated[list[str] | None, typer.Argument(help="Only these methods.", show_default="all")] = None,
) -> dict[str, Any]:
    """List the methods: papers, behaviour, descriptions, and options with range and source of their defaults."""
    from peftprune.cli.methods import show_methods
    from peftprune.methods.describe import describe_method, describe_methods

    described = [describe_method(n) for n in name] if name else describe_methods()
    show_methods(described)
    return {"methods": described}


@app.command()
@with_common
def tasks() -> dict[str, Any]:
    """List the tasks: sizes, metrics and the reported split."""
    from peftprune.cli import console as tables
    from peftprune.tasks import TASKS

    tables.show_tasks(list(TASKS.values()))
    return {"tasks": [asdict(task) for task in TASKS.values()]}


cli_adapters.register(app)
cli_results.register(app)


def _task_from_files(given: dict[str, Any]) -> Any:
    """Returns a task of the user's own files. Raises UsageError naming the option that is missing."""
    lacking = next((name for name in _NEEDED_OF_FILES if name not in given), None)
    if lacking is not None:
        flags = {name: f"--{name.replace('_', '-')}" for name in _OF_FILES}
        cure = f"Give all of {', '.join(flags[name] for name in _NEEDED_OF_FILES)}"
        raise UsageError.of(flags[lacking], None, f"is missing beside {flags[next(iter(given))]}", cure)
    return peftprune.Task.from_files(**given)


def main() -> None:
    """Runs the console script."""
    # OpenMP reads it when torch loads. Threads that spin at every barrier stall each other by a factor of ten and more
    # where another process uses the same cores; on an idle machine shorter spinning costs a few percent.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    app()
