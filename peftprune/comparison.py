"""Reading a stored study back: tables, runs, allocations, statistics and plots."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from peftprune.errors import UsageError
from peftprune.methods.request import parse
from peftprune.strategy.budget import Budget
from peftprune.study.arguments import check_path, load_tasks, parse_budgets, parse_seeds, parse_targets
from peftprune.study.execution import Backend, BackendName
from peftprune.study.execution.local import Workers
from peftprune.study.execution.work import Source, StudyArm, Work
from peftprune.study.progress import Reporter
from peftprune.study.request import in_order
from peftprune.study.store import StudyFolder
from peftprune.study.stored_study import StoredStudy
from peftprune.study.task_setup import environment
from peftprune.tasks import Task
from peftprune.training.settings import GENERATION_ONLY, resolve_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from peftprune.analysis.frames import Frames
    from peftprune.report.export.export import Exported


class Comparison(StoredStudy):
    """The results of a study, read from its folder. Every call reads what is stored at that moment.

    Every frame begins with the columns `task` and `budget`; methods are compared within one such pair, a cell.

    Attributes:
        path: the study's folder.
        request: the resolved request, with versions and hardware.
    """

    def runs(self) -> pd.DataFrame:
        """Returns one row per arm; see `peftprune.analysis.runs.arm_rows`."""
        return self._frames().runs

    def table(self) -> pd.DataFrame:
        """Returns one row per task, budget and method; see `peftprune.analysis.runs.method_rows`."""
        return self._frames().table

    def allocation(self) -> pd.DataFrame:
        """Returns one row per site of a finished arm; see `peftprune.analysis.runs.site_rows`."""
        return self._frames().allocation

    def trace(self) -> pd.DataFrame:
        """Returns one row per site and event; see `peftprune.analysis.history.trace`."""
        return self._frames().trace

    def history(self) -> pd.DataFrame:
        """Returns the training loss, one row per logged step; see `peftprune.analysis.history.history`."""
        return self._frames().history

    def costs(self) -> pd.DataFrame:
        """Returns seconds and steps by phase; see `peftprune.analysis.history.costs`."""
        return self._frames().costs

    def against(self, baseline: str | None = None) -> pd.DataFrame:
        """Returns every method's paired difference to a baseline, with interval and verdict in words.

        One row per task, budget, method and metric; see `peftprune.analysis.differences.against`.

        Args:
            baseline: label of the method that the others are compared with; by default the first one.
        """
        from peftprune.report.findings import in_words

        return in_words(self._frames(baseline).against)

    def mcnemar(self, baseline: str | None = None) -> pd.DataFrame:
        """Returns McNemar's exact test of each seed's models; see `peftprune.analysis.mcnemar.mcnemar`."""
        return self._frames(baseline).mcnemar

    def pooled(self, baseline: str | None = None) -> pd.DataFrame:
        """Returns pairs pooled over tasks and seeds; see `peftprune.analysis.pooled.pooled`."""
        from peftprune.report.findings import in_words

        return in_words(self._frames(baseline).pooled)

    def average_ranks(self) -> pd.DataFrame:
        """Returns each method's rank averaged over tasks; see `peftprune.analysis.pooled.average_ranks`."""
        return self._frames().average_ranks

    def frontier(self) -> pd.DataFrame:
        """Returns quality and parameters, with the Pareto set; see `peftprune.analysis.frontier.frontier`."""
        return self._frames().frontier

    def stability(self) -> pd.DataFrame:
        """Returns the agreement of allocations; see `peftprune.analysis.stability.stability`."""
        return self._frames().stability

    def plot(self, kind: str, path: str | Path | None = None) -> Figure:
        """Draws one of `peftprune.report.figures.KINDS`, such as "ranks" or "quality", and saves it to `path` if given.

        Raises:
            UsageError: the kind is unknown, or the study has nothing to show for it.
        """
        from peftprune.report.figures import draw, save

        figure = draw(self._frames(), kind)
        if path is not None:
            save(figure, path)
        return figure

    def plot_ranks(self, path: str | Path | None = None) -> Figure:
        """Draws heat maps of the final ranks, layer by kind, one panel per method, averaged over seeds."""
        return self.plot("ranks", path)

    def report(self, path: str | Path, *, baseline: str | None = None) -> Path:
        """Writes the report, one HTML page; see `peftprune.report.write_report`."""
        from peftprune.report import write_report

        return write_report(self, path, baseline=baseline)

    def export(self, out: str | Path, *, method: str, **options: Any) -> Exported:
        """Writes one finished arm as an adapter or a merged model into the folder `out`.

        Options: seed="best", format="peft" | "native" | "merged", task, budget, uniform, head, overwrite, push_to_hub;
        see `peftprune.report.export.export.export`.
        """
        from peftprune.report.export.export import export

        return export(self, out, method=method, **options)

    def _frames(self, baseline: str | None = None) -> Frames:
        from peftprune.analysis.frames import Frames

        return Frames(self, baseline)


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
    max_eval_samples: int | None = None,
    max_target_length: int | None = None,
    max_new_tokens: int | None = None,
    num_beams: int | None = None,
    prompt: str | None = None,
    base_dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    load_in: Literal["8bit", "4bit"] | None = None,
    device_map: str | None = None,
    threads: int | None = None,
    workers: Workers | str | None = None,
    backend: BackendName = "local",
    address: str | None = None,
    gpus: float | None = None,
    sbatch: str | None = None,
    progress: bool | None = None,
) -> Comparison:
    """Train every method on every task, budget and seed, and return what came out.

    Arms that are done already are not trained again; one that was cut off goes on from its last checkpoint; one that
    failed is tried again. One arm's failure does not stop the others.

    Args:
        methods: names, labelled specs such as `"lorpa:r64(initial_rank=64)"`, strategy objects or classes.
        task: a task's name (see `peftprune.tasks.TASKS`), several (`"rte,mrpc"`), a `Task`, or a sequence of them.
        model: `minilm` (offline), a folder, or a hub name.
        budget: a `Budget`, its text (`"rank=8"`, `"params=300000"`, `"fraction=0.003"`), `"paper"` for each
            method's published setting, or a sequence of them. Arms are compared within a task and a budget.
        seeds: how many (0, 1, ...), or which (`[11, 12]` or `"11,12"`).
        target_modules: `"attention"` (query and value), `"all-linear"`, or names as PEFT takes them, in a list or
            separated by commas.
        data_dir: folder with the data; default: the environment variable `PEFTPRUNE_DATA`.
        output_dir: the study's folder; default: `runs/<task>`, several tasks joined by "+".
        epochs: 3, unless the budget names a length of training.
        learning_rate: 1e-3.
        batch_size: 32 examples per optimizer step.
        gradient_accumulation_steps: 1.
        warmup_ratio: 0.06.
        weight_decay: 0.01.
        max_grad_norm: 1.0.
        max_length: 256 tokens; in generation, of the prompt.
        scaling: 2.0 at every site (alpha = 2 · rank).
        lora_dropout: 0.
        max_train_samples: all.
        dtype: "auto" (bfloat16 where the hardware has it, recorded).
        checkpoints: 5 per run.
        max_eval_samples: all examples of each evaluation split, else a fixed random sample.
        max_target_length: 128 tokens of a target, for tasks of generation; so for what follows.
        max_new_tokens: `max_target_length`: tokens written at most at evaluation.
        num_beams: 1, which is greedy decoding.
        prompt: what the model reads, with "{source}" in it: the task's own for decoders, the source alone for
            encoder-decoders.
        base_dtype: float32 for the frozen weights, or "bfloat16" or "float16", which halve them.
        load_in: "8bit" or "4bit" quantises them with bitsandbytes.
        device_map: where the model is placed, as transformers takes it, such as "auto".
        threads: CPU threads of every arm, fixed when the study is created, since they change the last bits of results.
            By default the cores shared among the study's arms, at least 1; 1 on a cluster.
        workers: processes that train arms side by side, or "auto", the default: as many as the machine has cores (or
            GPUs) and memory for, and 1 where that would not pay. Results do not depend on their number. More processes
            may join at any time by the same call. With Slurm: tasks of the array; by default one an arm.
        backend: "local"; "ray", which trains the arms as tasks of a Ray cluster (extra `ray`); or "slurm", which
            submits an array job and returns at once.
        address: of the Ray cluster; "auto", which is the default, for the one this machine belongs to, "local" to
            start one.
        gpus: of each arm on a cluster, by default 1 where this machine has one; Ray takes fractions.
        sbatch: further options for Slurm's `sbatch`, such as "--partition=gpu --time=2:00:00".
        progress: show progress; default: only on a terminal.

    Returns:
        The comparison, also when arms failed: see its `failures`.

    Raises:
        UsageError: for a request that cannot be run; nothing was trained.
    """
    given = {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "warmup_ratio": warmup_ratio,
        "weight_decay": weight_decay,
        "max_grad_norm": max_grad_norm,
        "max_length": max_length,
        "scaling": scaling,
        "lora_dropout": lora_dropout,
        "max_train_samples": max_train_samples,
        "dtype": dtype,
        "checkpoints": checkpoints,
        "max_eval_samples": max_eval_samples,
        "max_target_length": max_target_length,
        "max_new_tokens": max_new_tokens,
        "num_beams": num_beams,
        "prompt": prompt,
        "base_dtype": base_dtype,
        "load_in": load_in,
        "device_map": device_map,
    }
    where = Backend(backend, workers, address, gpus, sbatch)
    specs = parse(methods)
    in_order(specs)
    budgets = parse_budgets(budget)
    clash = next((b for b in budgets.values() if isinstance(b, Budget) and b.has_length), None)
    if epochs is not None and clash is not None:
        raise UsageError.of("epochs", epochs, "is named beside the budget's length of training", "Keep one of them")
    seed_list = parse_seeds(seeds)
    targets = parse_targets(target_modules)
    for name, path in (("model", model), ("data_dir", data_dir), ("output_dir", output_dir)):
        check_path(name, path)
    settings = resolve_settings(given)
    tasks = load_tasks(task, data_dir)
    misplaced = next((n for n in GENERATION_ONLY if given[n] is not None), None)
    if misplaced is not None and all(t.kind != "generation" for t in tasks):
        cure = f"Leave it out, or name a task of generation beside {', '.join(t.name for t in tasks)}"
        raise UsageError.of(misplaced, given[misplaced], "concerns no task of this study", cure)
    default = Path("runs") / "+".join(t.name for t in tasks)
    study = StudyFolder(Path(output_dir) if output_dir is not None else default)
    study.prepare()
    sources = {t.name: Source(model, t, settings, targets) for t in tasks}
    setups = {name: source.setup for name, source in sources.items()}
    plans = {
        (t, label, spec.label): setup.plan(spec, parsed, given)
        for t, setup in setups.items()
        for label, parsed in budgets.items()
        for spec in specs
    }
    found = environment(study, settings, threads, where.default_threads(len(seed_list) * len(plans)))
    arms: list[StudyArm] = []
    for seed in seed_list:
        for t, setup in setups.items():
            for label in budgets:
                cell: dict[str, StudyArm] = {}
                for spec, needed in in_order(specs):
                    plan = plans[t, label, spec.label]
                    config = setup.arm_config(spec, plan, seed, found)
                    first = None if needed is None else cell[needed]
                    if first is not None:
                        config["depends_on"] = {"label": first.spec.label, "hash": first.hash}
                    name = ", ".join(
                        [*([t] if len(tasks) > 1 else []), *([label] if len(budgets) > 1 else []), spec.label]
                    )
                    cell[spec.label] = StudyArm(t, label, spec, seed, plan, config, name, first)
                arms += [cell[spec.label] for spec in specs]
    request = {
        "model": str(model),
        "methods": [{"label": s.label, "text": s.text} for s in specs],
        "tasks": [setup.describe() for setup in setups.values()],
        "budgets": [{"label": label} | ({} if isinstance(b, str) else asdict(b)) for label, b in budgets.items()],
        "seeds": seed_list,
        "target_modules": targets,
        "data_dir": None if data_dir is None else str(data_dir),
        "given": {n: v for n, v in given.items() if v is not None},
        "settings": settings.as_dict(),
        "sites": len(next(iter(setups.values())).shapes),
        **found,
        "arms": [
            {"task": a.task, "budget": a.budget, "label": a.spec.label, "seed": a.seed, "hash": a.hash} for a in arms
        ],
    }
    device = found["hardware"]["device"]
    work = Work(study, tuple(arms), sources, found["dtype"], found["threads"], device, found["versions"], time.time())
    steps = sum(arm.plan.budget.total_steps for arm in arms)
    with study.joined(request), Reporter(steps, enabled=progress) as reporter:
        where.run(work, reporter)
    return Comparison.load(study.path)
