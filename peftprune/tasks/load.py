"""Load named tasks: bundled, from a folder, or from the hub."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peftprune.errors import UsageError, did_you_mean
from peftprune.strategy.lazy import Dataset, datasets
from peftprune.tasks.base import TEXT_COLUMNS, TaskInfo, make_dataset
from peftprune.tasks.files import read_table
from peftprune.tasks.generation import GENERATION
from peftprune.tasks.glue import GLUE
from peftprune.tasks.task import Task

logger = logging.getLogger(__name__)

DATA_VARIABLE = "PEFTPRUNE_DATA"
HUB_TIMEOUT = 5.0
"""Seconds to wait for the hub's first answer; datasets alone retries for half a minute or more."""

TASKS: dict[str, TaskInfo] = {
    **GLUE,
    **GENERATION,
    "entailment-mini": TaskInfo(
        name="entailment-mini",
        kind="classification",
        metrics=("accuracy",),
        train_size=3000,
        evaluation_sizes={"test": 1000},
        evaluation_split="test",
        columns=("premise", "hypothesis"),
        label_names=("entailment", "not_entailment"),
    ),
}
"""Name to task."""

ENTAILMENT_MINI = Path(__file__).with_name("entailment_mini.parquet")
"""Pairs with their split; labels are computed, see benchmarks/entailment_mini."""


class _NotFoundError(Exception):
    """One source lacks the data; the message says what to do."""


def task_info(name: str) -> TaskInfo:
    """Returns the static description of a task. Case, hyphens and underscores do not matter: "SST-2" is "sst2".

    Raises UsageError for an unknown name, with the closest known one.
    """
    keys = {_key(known): info for known, info in TASKS.items()}
    if _key(name) in keys:
        return keys[_key(name)]
    cure = f"{did_you_mean(name.lower(), TASKS)}Choose among {', '.join(TASKS)}, or give files of your own."
    raise UsageError.of("task", name, "is not a known task", cure)


def _key(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").strip()


def load_task(name: str, *, data_dir: str | Path | None = None) -> Task:
    """Loads a named task.

    Sources, in this order: the folder `data_dir` or, without one, that in the environment variable PEFTPRUNE_DATA; then
    the hub, or only its local cache when offline.

    `data_dir` has the official GLUE layout (it holds `RTE/train.tsv` and so on), or is the parent of a folder `glue`
    that has; for generation tasks it holds `e2e/trainset.csv`, `gsm8k/train.jsonl` and so on, possibly compressed.

    Raises UsageError for an unknown task, a folder that does not exist, a broken file, or data found nowhere: the
    message then lists what was tried and what would help.
    """
    info = task_info(name)
    if info.hub_path is None:
        return _bundled(info)
    tried: list[str] = []
    for find in (lambda: _from_folder(info, data_dir), lambda: _from_hub(info)):
        try:
            task = find()
        except _NotFoundError as error:
            tried.append(str(error))
        else:
            if tried and (data_dir or os.environ.get(DATA_VARIABLE)):
                logger.warning("%s was read from the %s, after: %s", task.name, task.source, tried[0])
            return task
    attempts = "\n".join(f"  {number}. {text}" for number, text in enumerate(tried, start=1))
    raise UsageError(
        f"task: {info.name!r} was found nowhere. Tried:\n{attempts}\n"
        "The task entailment-mini needs no data, and any files of your own can be a task."
    )


def _bundled(info: TaskInfo) -> Task:
    names, columns = info.label_names, (*info.columns, "label", "split")
    rows = list(zip(*(read_table(ENTAILMENT_MINI).columns[name] for name in columns), strict=True))
    splits = {}
    for name in ("train", "validation", "test"):
        *texts, labels, _ = zip(*(row for row in rows if row[-1] == name), strict=True)
        splits[name] = make_dataset(texts, labels, names)
    return _task(info, splits["train"], {"test": splits["test"]}, "generated, seed 0", splits["validation"])


def _task(
    info: TaskInfo, train: Dataset, evaluation: dict[str, Dataset], source: str, validation: Dataset | None = None
) -> Task:
    return Task(
        name=info.name,
        kind=info.kind,
        text=TEXT_COLUMNS[: len(info.columns)],
        label_names=info.label_names,
        metrics=info.metrics,
        train=train,
        evaluation=evaluation,
        source=source,
        evaluation_split=info.evaluation_split,
        validation=validation,
        named=True,
        prompt=info.prompt,
    )


# --- a folder in the official GLUE layout -----------------------------------------------------------------------------
def _from_folder(info: TaskInfo, data_dir: str | Path | None) -> Task:
    field, given = ("data_dir", data_dir) if data_dir is not None else (DATA_VARIABLE, os.environ.get(DATA_VARIABLE))
    if not given:
        raise _NotFoundError(
            f"a folder: none was given. Set data_dir or {DATA_VARIABLE} to one that holds {info.folder}/."
        )
    root = Path(os.path.expanduser(given))
    if not os.path.isdir(root):
        # A folder that is named and missing is a mistake, not a reason to read something else.
        raise UsageError.of(field, str(given), "is not a folder", "Give the folder that holds the tasks' folders.")
    assert info.folder is not None
    assert info.evaluation_files is not None
    candidates = [root / info.folder, root / "glue" / info.folder]
    if (folder := next((candidate for candidate in candidates if candidate.is_dir()), None)) is None:
        places = " and ".join(str(candidate) for candidate in candidates)
        raise _NotFoundError(
            f"the folder of {field}: neither {places} exists. Put the official {info.folder} files there."
        )
    paths: dict[str, Path] = {}
    for file in (info.train_file, *info.evaluation_files.values()):
        if (path := info.find_file(folder, file)) is None:
            raise _NotFoundError(f"the folder of {field}: {folder / file} is missing. Put the official file there.")
        paths[file] = path
    evaluation = {split: info.read_file(paths[file]) for split, file in info.evaluation_files.items()}
    return _task(info, info.read_file(paths[info.train_file], training=True), evaluation, f"folder {folder}")


# --- the hub ----------------------------------------------------------------------------------------------------------
def _from_hub(info: TaskInfo) -> Task:
    assert info.hub_path is not None
    assert info.hub_splits is not None
    unreachable = _hub_problem(info.hub_path)
    try:
        with _only_cache(unreachable is not None):
            revision = {"revision": info.hub_revision} if info.hub_revision else {}
            loaded = datasets.load_dataset(info.hub_path, info.hub_config, **revision)
    # The hub, the network and the cache raise no common family of exceptions.
    except Exception as error:
        raise _NotFoundError(
            f"the hub: {info.hub_path} ({info.hub_config or 'default'}) could not be loaded ({unreachable or error}). "
            "Connect, unset HF_HUB_OFFLINE, or load it once on a machine that shares this cache."
        ) from error
    source = f"hub {info.hub_path}" + (f", {info.hub_config}" if info.hub_config else "")
    evaluation = {split: info.read_hub(loaded[hub]) for split, hub in info.hub_splits.items()}
    return _task(info, info.read_hub(loaded["train"], training=True), evaluation, source)


def _hub_problem(path: str) -> str | None:
    """Returns why the hub cannot be reached for a dataset, or None, within about `HUB_TIMEOUT` seconds."""
    from huggingface_hub import HfApi

    if datasets.config.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set and it is not in the cache"
    try:
        HfApi(endpoint=datasets.config.HF_ENDPOINT).dataset_info(path, timeout=HUB_TIMEOUT)
    except Exception as error:
        return f"{type(error).__name__}: {error}".split("\n")[0]
    return None


@contextmanager
def _only_cache(wanted: bool) -> Iterator[None]:
    """Makes datasets read its cache only, without a request and its retries."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = wanted or before
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
