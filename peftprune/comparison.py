"""`compare` runs a study; `Comparison` gives access to its stored results."""

from __future__ import annotations

import functools
import inspect
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, ParamSpec, Self, TypeVar

import pandas as pd

from peftprune.analysis.decomposition import decompose
from peftprune.analysis.frames import Frames
from peftprune.analysis.looks import wanted_seeds
from peftprune.analysis.margins import Margin, margins
from peftprune.errors import PeftPruneError, UsageError, did_you_mean, raise_all
from peftprune.files import check_path
from peftprune.methods.request import parse
from peftprune.report import write_report
from peftprune.report.findings import in_words
from peftprune.report.text import overview_html, overview_text
from peftprune.strategy.budget import Budget
from peftprune.strategy.lazy import Figure
from peftprune.study import arguments
from peftprune.study.dry_run import estimate
from peftprune.study.execution.backend import Backend, BackendName
from peftprune.study.execution.local import automatic_workers
from peftprune.study.execution.work import Work
from peftprune.study.growth import arm_key
from peftprune.study.packed import unpack
from peftprune.study.progress import Reporter
from peftprune.study.request import StudyRequest
from peftprune.study.size import header
from peftprune.study.store import TRIALS, StudyFolder
from peftprune.study.stored_study import StoredStudy
from peftprune.study.task_setup import differs_here
from peftprune.study.tuning import TrialsLeftError, Tuning, carved, parse_tuning, tuned
from peftprune.tasks import Task
from peftprune.tasks.holdout import carve
from peftprune.training.settings import TrainingSettings, resolve_settings
from peftprune.training.tracking import parse_trackers

if TYPE_CHECKING:
    from peftprune.report.export.export import Exported

P = ParamSpec("P")
R = TypeVar("R")
_log = logging.getLogger(__name__)


class Comparison(StoredStudy):
    """The results of a study, read from its folder. Every call reads what is stored at that moment.

    Every frame begins with the columns `task` and `budget`; methods are compared within one such pair, a cell.

    Attributes:
        path: the study's folder.
        request: the resolved request, with versions and hardware.
    """

    _last: tuple[list[int], Frames] | None = None

    def __repr__(self) -> str:
        """Returns the overview, as wide as the terminal."""
        try:
            return overview_text(self._shown(), shutil.get_terminal_size().columns)
        except PeftPruneError as error:
            return f"Comparison({str(self.path)!r}): {error}"

    def _repr_html_(self) -> str | None:
        try:
            return overview_html(self._shown())
        except PeftPruneError:
            return None  # a notebook then shows the text

    def runs(self) -> pd.DataFrame:
        """Returns one row per arm; see `peftprune.analysis.runs.arm_rows`."""
        return Frames(self).runs

    def table(self) -> pd.DataFrame:
        """Returns one row per task, budget and method; see `peftprune.analysis.runs.method_rows`."""
        return Frames(self).table

    def allocation(self) -> pd.DataFrame:
        """Returns one row per site of a finished arm; see `peftprune.analysis.runs.site_rows`."""
        return Frames(self).allocation

    def trace(self) -> pd.DataFrame:
        """Returns one row per site and event; see `peftprune.analysis.history.trace`."""
        return Frames(self).trace

    def history(self) -> pd.DataFrame:
        """Returns the training loss, one row per logged step; see `peftprune.analysis.history.history`."""
        return Frames(self).history

    def decompose(self, method: str, baseline: str | None = None) -> pd.DataFrame:
        """Returns what of a method's gain its ranks explain, their place, and its training.

        See `peftprune.analysis.decomposition.decompose`; the baseline is the first method by default.
        """
        frames = Frames(self)
        return decompose(frames.study, frames.runs, method, self.baseline_label(baseline))

    def costs(self) -> pd.DataFrame:
        """Returns seconds and steps by phase; see `peftprune.analysis.history.costs`."""
        return Frames(self).costs

    def against(self, baseline: str | None = None, *, margin: Margin | None = None) -> pd.DataFrame:
        """Returns every method's paired difference to a baseline, with interval and verdict in words.

        One row per task, budget, method and metric; see `peftprune.analysis.differences.against`.

        Args:
            baseline: label of the method that the others are compared with; by default the first one.
            margin: a difference that does not matter, such as 0.01, or one per metric ("accuracy=0.01,f1=0.02" or a
                mapping). Verdicts are then also "equivalent within 0.01" and "not worse by more than 0.01"; see
                `peftprune.stats.verdict`. By default the margin that `compare` stored, if any.

        Raises:
            UsageError: the baseline is not in the study, or the margin is not above 0 and below the metric's range.
        """
        return in_words(Frames(self, baseline, margin).against)

    def mcnemar(self, baseline: str | None = None) -> pd.DataFrame:
        """Returns McNemar's exact test of each seed's models; see `peftprune.analysis.mcnemar.mcnemar`."""
        return Frames(self, baseline).mcnemar

    def pooled(self, baseline: str | None = None, *, margin: Margin | None = None) -> pd.DataFrame:
        """Returns pairs pooled over tasks and seeds; see `peftprune.analysis.pooled.pooled`."""
        return in_words(Frames(self, baseline, margin).pooled)

    def average_ranks(self) -> pd.DataFrame:
        """Returns each method's rank averaged over tasks; see `peftprune.analysis.pooled.average_ranks`."""
        return Frames(self).average_ranks

    def frontier(self) -> pd.DataFrame:
        """Returns quality and parameters, with the Pareto set; see `peftprune.analysis.frontier.frontier`."""
        return Frames(self).frontier

    def decisions(self) -> pd.DataFrame:
        """Returns what each arm's decisions changed; see `peftprune.analysis.decisions.decisions`."""
        return Frames(self).decisions

    def tuning(self) -> pd.DataFrame:
        """Returns the trials of a tuned study, one row each; see `peftprune.analysis.tuning.trials`."""
        return Frames(self).trials

    def stability(self) -> pd.DataFrame:
        """Returns the agreement of allocations; see `peftprune.analysis.stability.stability`."""
        return Frames(self).stability

    def plot(self, kind: str, path: str | Path | None = None) -> Figure:
        """Draws one of `peftprune.report.figures.KINDS`, such as "ranks" or "quality", and saves it to `path` if given.

        Raises:
            UsageError: the kind is unknown, or the study has nothing to show for it.
        """
        from peftprune.report.figures import draw, save

        figure = draw(Frames(self), kind)
        if path is not None:
            save(figure, path)
        return figure

    def report(self, path: str | Path, *, baseline: str | None = None, margin: Margin | None = None) -> Path:
        """Writes the report, one HTML page; see `peftprune.report.write_report`."""
        return write_report(self, path, baseline=baseline, margin=margin)

    def export(self, out: str | Path, *, method: str, **options: Any) -> Exported:
        """Writes one finished arm, of a method or the "best" one, as an adapter or merged model into the folder `out`.

        Options: seed="best", format="peft" | "native" | "merged", task, budget, uniform, head, overwrite, push_to_hub;
        see `peftprune.report.export.export.export`.
        """
        from peftprune.report.export.export import export

        return export(self, out, method=method, **options)

    def _shown(self) -> Frames:
        """Returns the frames that text and HTML show; a notebook asks for both, so they are kept until an arm ends."""
        files = [folder.path / "result.json" for _, folder in self.arms()]
        stamps = [file.stat().st_mtime_ns if file.exists() else 0 for file in files]
        if self._last is None or self._last[0] != stamps:
            self._last = stamps, Frames(self, whole=True)
        return self._last[1]


class _Call(NamedTuple):
    """The parsed arguments of `compare`; `margin` is None or text."""

    request: StudyRequest
    study: StudyFolder
    backend: Backend
    threads: int | None
    tuning: Tuning | None
    rounds: list[int]
    margin: str | None
    trackers: tuple[str, ...]

    @classmethod
    def of(cls, given: Mapping[str, Any], errors: list[str] | None = None) -> Self:
        """Parses the arguments of a call; what is wrong with single methods is added to `errors`, if given."""
        for name in ("model", "data_dir", "output_dir", "reuse"):
            if name == "model" or given[name] is not None:
                check_path(name, given[name])
        setting_names = {field.name for field in fields(TrainingSettings)}
        named_settings = {n: value for n, value in given.items() if n in setting_names and value is not None}
        backend = Backend(*(given[name] for name in ("backend", "workers", "address", "gpus", "sbatch")))
        backend.check()
        specs, rounds = parse(given["methods"], errors), arguments.parse_rounds(given["seeds"])
        seeds = arguments.parse_seeds(rounds[-1] if rounds else given["seeds"])
        asked = {name: given[name] for name in ("tune", "trials", "tuning_seeds", "refit")}
        tuning = parse_tuning(**asked, methods=specs, seeds=seeds, how=given["tuning"])
        request = StudyRequest(
            methods=specs,
            budgets=arguments.parse_budgets(given["budget"]),
            seeds=seeds,
            target_modules=arguments.parse_targets(given["target_modules"]),
            named_settings=named_settings,
            settings=resolve_settings(named_settings),
            model=given["model"],
            data_dir=given["data_dir"],
            tasks=arguments.load_tasks(given["task"], given["data_dir"]),
        )
        folder = given["output_dir"] or Path("runs") / "+".join(t.name for t in request.tasks)
        margin = None if given["margin"] is None else arguments.margin_text(arguments.parse_margin(given["margin"]))
        trackers = parse_trackers(given["report_to"])
        return cls(request, StudyFolder(Path(folder)), backend, given["threads"], tuning, rounds, margin, trackers)

    def plan(self, request: StudyRequest, folder: StudyFolder, rounds: Sequence[int]) -> tuple[Work, dict[str, Any]]:
        """Returns the work of a request, and what `study.json` holds of it; see `StudyRequest.plan`."""
        work, asked = request.plan(folder, self.backend, self.threads)
        if rounds:
            asked["rounds"] = {"seeds": list(rounds), "baseline": request.methods[0].label}
        if self.margin is not None:
            margins(StoredStudy(folder.path, asked), self.margin)
            asked["margin"] = self.margin
        return work, asked

    def untuned(self) -> StudyRequest:
        """Returns the request for the final arms, without choices of tuning."""
        request, select = self.request, self.request.settings.select == "validation"
        if self.tuning is not None:
            return replace(request, tasks=[final for _, final, _ in carved(self.tuning, request).values()])
        return replace(request, tasks=[carve(task, select=True)[1] for task in request.tasks]) if select else request


def _hinted(function: Callable[P, R]) -> Callable[P, R]:
    """Names the argument that a misspelled one is closest to."""
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs.keys() - known:
            hint = did_you_mean(name, known) or f"The arguments are {', '.join(known)}"
            raise UsageError.of(name, kwargs[name], f"is not an argument of {function.__name__}", hint)
        return function(*args, **kwargs)

    return checked


@_hinted
def compare(
    methods: str | Sequence[Any] = ("lora", "lorpa", "prilora", "lora-drop"),
    task: str | Task | Sequence[str | Task] = "entailment-mini",
    *,
    model: str | Path = "minilm",
    budget: Budget | str | Sequence[Budget | str] = "rank=8",
    seeds: int | str | Sequence[int] = 1,
    target_modules: str | Sequence[str] = "all-linear",
    data_dir: str | Path | None = None,
    output_dir: str | Path | None = None,
    epochs: float | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    gradient_accumulation_steps: int | None = None,
    warmup_ratio: float | None = None,
    weight_decay: float | None = None,
    max_grad_norm: float | None = None,
    max_length: int | None = None,
    scaling: float | None = None,
    lora_dropout: float | None = None,
    max_train_samples: int | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] | None = None,
    checkpoints: int | None = None,
    select: Literal["last", "validation", "paper"] | None = None,
    max_eval_samples: int | None = None,
    max_target_length: int | None = None,
    max_new_tokens: int | None = None,
    num_beams: int | None = None,
    prompt: str | None = None,
    base_dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    load_in: Literal["8bit", "4bit"] | None = None,
    device_map: str | None = None,
    margin: float | str | Mapping[str, float] | None = None,
    threads: int | None = None,
    workers: int | str | None = None,
    backend: BackendName = "local",
    address: str | None = None,
    gpus: float | None = None,
    sbatch: str | None = None,
    tune: str | Sequence[str] | None = None,
    trials: int | None = None,
    tuning_seeds: int | str | Sequence[int] = 1,
    refit: bool = False,
    tuning: Literal["grid", "halving"] = "grid",
    reuse: str | Path | None = None,
    report_to: str | Sequence[str] | None = None,
    progress: bool | None = None,
) -> Comparison:
    """Trains every method on every task, budget and seed, and returns the stored results.

    An arm is one method on one task under one budget with one seed. Finished arms are not trained again, interrupted
    arms resume from their last checkpoint, and failed arms are retried. If an arm fails, the others still run.

    A folder that holds a study grows: methods, tasks, budgets and seeds are added to the stored ones, which stay, also
    where a call asks for fewer. Model, adapted layers, settings and data have to be those of its finished arms.

    Args:
        methods: names, labelled specs such as `"lorpa:r64(initial_rank=64)"`, strategy objects or classes.
        task: a task's name (see `peftprune.tasks.TASKS`), several (`"rte,mrpc"`), a `Task`, or a sequence of them.
        model: the base model: `minilm` (offline), a folder, or a hub name.
        budget: a `Budget`, its text (`"rank=8"`, `"params=300000"`, `"fraction=0.003"`), `"paper"` for each
            method's published setting, or a sequence of them. Arms are compared within a task and a budget.
        seeds: number of seeds (3 for 0, 1, 2), or the seeds themselves (`[11, 12]` or `"11,12"`), each in [0, 2^32).
            `"3..12"` trains in rounds until 3, 5, 8 and 12 seeds: after each, methods that a verdict on the primary
            metric tells from the baseline, the first method, train no more. Verdicts hold over all looks and methods
            (`peftprune.stats.sequential`). Rounds, baseline and margin are fixed before the first look.
        target_modules: the adapted layers: `"attention"` (query and value), `"all-linear"`, or module names as PEFT
            takes them, in a list or separated by commas.
        data_dir: folder with the data. Default: the environment variable `PEFTPRUNE_DATA`.
        output_dir: the study's folder. Default: `runs/<task>`, with the names of several tasks joined by "+".
        epochs: passes over the training data, above 0. Default: 3, unless the budget sets the length of training.
        learning_rate: peak learning rate of AdamW, above 0. Default: 1e-3.
        batch_size: examples per optimizer step, at least 1. Default: 32.
        gradient_accumulation_steps: micro-batches per optimizer step, from 1 to `batch_size`. Default: 1.
        warmup_ratio: fraction of the steps in which the learning rate warms up, in [0, 1). Default: 0.06.
        weight_decay: weight decay of AdamW, at least 0. Default: 0.01.
        max_grad_norm: norm to which gradients are clipped; 0 turns clipping off. Default: 1.0.
        max_length: tokens per example, at least 2; longer examples are truncated. In generation tasks, tokens of the
            prompt. Default: 256, or what the model reads if that is less.
        scaling: factor on the product of lora_B and lora_A at every site, alpha / rank, above 0. Default: 2.0.
        lora_dropout: dropout probability on the adapters' input, in [0, 1). Default: 0.
        max_train_samples: size of a fixed random sample of the training set, at least 1. Default: all examples.
        dtype: "float32", "bfloat16" (autocast), or "auto", the default: bfloat16 if the hardware supports it.
        checkpoints: number of checkpoints saved during a run, at least 0. Default: 5.
        select: state of each arm that is evaluated: "last", the default, or the best of its `checkpoints` since the
            method's last decision; they lie at the same steps for all methods. "validation" chooses on the task's own
            validation data, or on a part of the training data as `tune` does; "paper" chooses on the reported split
            itself, as papers do that report the best epoch, and tables say so.
        max_eval_samples: size of a fixed random sample of each evaluation split, at least 2. Default: all examples.
        max_target_length: tokens of a training target in generation tasks, at least 2. Default: 128.
        max_new_tokens: limit on the generated tokens in evaluation, at least 1. Default: `max_target_length`.
        num_beams: beams in generation; 1, the default, is greedy decoding.
        prompt: template of the model's input in generation tasks, with "{source}" in it. Default: the task's prompt for
            decoders, the source text alone for encoder-decoders.
        base_dtype: dtype of the frozen weights: "float32", the default, "bfloat16" or "float16".
        load_in: quantises the frozen weights with bitsandbytes: "8bit" or "4bit". Default: no quantisation.
        device_map: device placement of the base model, as transformers takes it, such as "auto". Default: one device.
        margin: a difference that does not matter, such as 0.01, or one per metric ("accuracy=0.01,f1=0.02" or a
            mapping), above 0. It is stored with the study and allows the verdicts "equivalent" and "not worse"; arms do
            not depend on it.
        threads: CPU threads per arm, at least 1. They are fixed when the study is created, since they change the last
            bits of results. Default: the cores divided among the arms, or 1 on a cluster.
        workers: number of processes that train arms side by side, at least 1, or "auto", the default: as many as the
            machine's cores (or GPUs) and memory allow, and 1 for a short study. Results do not depend on it. Running
            the same call again adds processes. With Slurm, the number of tasks in the array; by default one per arm.
        backend: "local", the default; "ray" trains each arm as a task of a Ray cluster (extra `ray`); "slurm" submits
            an array job and returns at once.
        address: address of the Ray cluster; "local" starts one. Default: "auto", the cluster this machine belongs to.
        gpus: GPUs per arm on a cluster, at least 0; Ray accepts fractions. Default: 1 if this machine has a GPU.
        sbatch: further options of Slurm's `sbatch`, such as "--partition=gpu --time=2:00:00".
        tune: what to choose for each method on validation data before the final arms are trained:
            `"learning_rate=3e-4,1e-3,3e-3"`, or `"learning_rate=log(1e-4,1e-1)"` with `trials`. Every method gets the
            same points and seeds. A method's own option may be added with several values,
            `["learning_rate=...", "lorpa.initial_rank=32,128"]`: the other methods then get as many more learning
            rates. Where any method's best rate lies at an edge, every method gets the next one, at most twice on each
            side. Validation data is the task's own, or a fifth of the training data (200 to 1,000 examples).
        trials: number of points of `log(low, high)`, at least 2.
        tuning_seeds: seeds of every trial, as for `seeds`, and others than those. A number of them begins at 10,000.
        refit: train the final arms on the validation data too. Default: only on the rest of the training data.
        tuning: "grid", the default, trains every trial to its end. "halving" pauses all after a third of their steps;
            the better half of each method's, rounded up, goes on, and rates beyond an edge are trained to their end.
        reuse: a packed study (`peftprune pack`). Its finished arms that this call asks for are not trained again, if
            model, data, options, versions, dtype and threads are the same; they have no adapter.
        report_to: experiment trackers, "tensorboard", "wandb", "trackio" or "mlflow", or several: one run per arm, with
            the ranks of each layer over the steps. Results do not depend on it. TensorBoard reads
            `output_dir/tracking`. Default: none.
        progress: whether to show progress. Default: only on a terminal.

    Returns:
        The comparison of what this call asks for, which includes failed arms; see its `failures`. With Slurm and
        `tune` it is that of the trials until they are done; the same call then goes on.
        `Comparison.load(output_dir)` reads all that the folder holds.

    Raises:
        UsageError: if the request cannot be run, or does not fit the study in the folder; no arm is trained then.
    """
    called = _Call.of(locals())
    request, study = called.request, called.study

    def run(request: StudyRequest, folder: StudyFolder, rounds: Sequence[int] = ()) -> Comparison:
        work, asked = called.plan(request, folder, rounds)
        folder.prepare()
        if not rounds:
            return trained(work, asked, folder)
        wanted: Mapping[tuple[str, str, str], int] = {(a.task, a.budget, a.spec.label): rounds[0] for a in work.arms}
        while True:
            result = trained(work.rounds(wanted), asked, folder)
            # What is stored decides, so that a study that goes on takes the same looks.
            found = wanted_seeds(Comparison(folder.path, {**result.request, "arms": asked["arms"]}))
            if found == wanted:
                return result
            wanted = found

    def trained(work: Work, asked: Mapping[str, Any], folder: StudyFolder) -> Comparison:
        configs = {(a.task, a.budget, a.spec.label, a.seed): a.config for a in work.arms}
        asked = {**asked, "arms": [arm for arm in asked["arms"] if arm_key(arm) in configs]}
        reporter = Reporter(work.total_steps, progress, header(work, asked))
        with folder.registered(asked, configs), reporter:
            called.backend.run(replace(work, trackers=called.trackers), reporter)
        stored_margin = folder.read_request().get("margin")
        return Comparison(folder.path, asked if stored_margin is None else {**asked, "margin": stored_margin})

    if reuse is not None:
        unpack(Path(reuse), study.path)
        if why := differs_here(StudyFolder(Path(reuse)).read_request()):
            _log.warning("reuse: the study %s, so its arms do not count and are trained again", why)
    if called.tuning is not None:
        trials_folder = StudyFolder(study.path / TRIALS)
        try:
            request = tuned(called.tuning, request, lambda r: run(r, trials_folder))
        except TrialsLeftError:
            if backend != "slurm":
                raise
            return Comparison.load(trials_folder.path)
    else:
        request = called.untuned()
    return run(request, study, called.rounds)


def dry_run(**arguments: Any) -> dict[str, Any]:
    """Returns what `compare` with these arguments would train and what that takes; trains and writes nothing.

    `arms` are the rows of `study.dry_run.estimate`, and `workers` counts processes. Raises UsageError for all mistakes.
    """
    bound = inspect.signature(compare).bind(**arguments)
    bound.apply_defaults()
    errors: list[str] = []
    try:
        called = _Call.of(bound.arguments, errors)
        called.study.check()
        work, asked = called.plan(called.untuned(), called.study, called.rounds)
        called.study.grown(asked, {(a.task, a.budget, a.spec.label, a.seed): a.config for a in work.arms})
    except UsageError as error:
        errors += str(error).splitlines()
    raise_all(errors)
    rows, given = estimate(work, called.tuning), called.backend.workers
    workers = automatic_workers(work) if given in (None, "auto") else int(str(given))
    return {"arms": rows, "workers": min(workers, len(work.unfinished()))}
