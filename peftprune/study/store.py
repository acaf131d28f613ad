"""The files of a study: one folder per study, one folder per arm, every file written atomically.

    <study>/study.json                          the resolved request, with versions and hardware
    <study>/arms/<label>-s<seed>-<hash>/        config.json  history.jsonl  allocation.jsonl  predictions.parquet
                                                checkpoint/  adapter/  result.json (last)

An arm is finished when it has a valid `result.json`. Its hash covers everything that changes the result. A trial that
paused after a third of its steps has a `paused.json`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import secrets
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from peftprune.errors import DivergedError, PeftPruneError, UsageError
from peftprune.files import read_jsonl, remove_unfinished, write_json
from peftprune.strategy.lazy import pandas
from peftprune.study import arm_files
from peftprune.study.growth import CONFIG, Configs, arm_key, difference, union

SCHEMA = 1
"""Version of the format of an arm's files."""
STUDY_SCHEMA = 2
"""Version of the format of `study.json`."""
TRIALS = "tuning"
"""Folder, in that of a tuned study, of the study that holds its trials."""
PAUSED = "paused.json"
"""File of a trial with its scores and its cost after a third of its steps; it stays when the trial goes on."""
STOPPED = "stopped at a third"
"""State of a trial that has paused and has not gone on."""
_STUDY = ("methods", "tasks", "budgets", "seeds", "arms", "settings", "given", "data_dir")
"""Keys that a valid `study.json` has."""


def config_hash(config: Mapping[str, Any]) -> str:
    """Returns the hash of a configuration: ten hex digits, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:10]


@dataclass(frozen=True)
class ArmFolder:
    """Reads and writes the files of one arm."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoint"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.parquet"

    def result(self) -> dict[str, Any] | None:
        """Returns the contents of `result.json`; None if it is missing or invalid."""
        found = _read_valid(self.path / "result.json")
        return found if arm_files.fits_result(found) else None

    def paused(self) -> dict[str, Any] | None:
        """Returns the contents of `paused.json`; None if it is missing or invalid."""
        found = _read_valid(self.path / PAUSED)
        return found if arm_files.fits(found, arm_files.PAUSED) else None

    def config(self) -> dict[str, Any]:
        """Returns the configuration that the arm's hash is computed from."""
        return self._read("config.json", lambda path: json.loads(path.read_text()), arm_files.fits_config)

    def error(self) -> dict[str, Any] | None:
        """Returns the last failure; None if the arm has not failed or has finished since.

        A damaged `result.json` is one too: the arm is not finished, though it was.
        """
        found = _read_valid(self.path / "error.json")
        if arm_files.fits(found, arm_files.ERROR):
            return found
        file = self.path / "result.json"
        if not file.exists() or self.result() is not None:
            return None
        problem, cure = "is damaged or from another version", "Run the same compare again, which trains the arm again"
        return {"error": str(UsageError.of("file", str(file), problem, cure))}

    def allocation(self) -> list[dict[str, Any]]:
        """Returns the trace: one row per event, with the sites that changed."""
        return self._read("allocation.jsonl", read_jsonl, arm_files.fits_trace)

    def history(self) -> list[dict[str, Any]]:
        return self._read("history.jsonl", read_jsonl, arm_files.fits_history)

    def read_predictions(self) -> pandas.DataFrame:
        """Returns one row per evaluation example; `peftprune.training.evaluation.Scored` describes the columns."""

        def fits(frame: pandas.DataFrame) -> bool:
            return {"split", "prediction"} <= {*frame} and bool({"label", "references"} & {*frame})

        return self._read(self.predictions.name, pandas.read_parquet, fits)

    def damage(self) -> str | None:
        """Returns why a file that every finished arm has beside its result cannot be read; None if all can."""
        try:
            for read in (self.config, self.history, self.allocation, self.read_predictions):
                read()
        except UsageError as error:
            return str(error)
        return None

    def _read(self, name: str, read: Callable[[Path], Any], fits: Callable[[Any], bool]) -> Any:
        """Reads a file that every finished arm has. A damaged one is an error, since the arm would not run again."""
        try:
            if not fits(found := read(self.path / name)):
                raise ValueError("it holds something else")
        except (OSError, ValueError) as error:
            problem = f"cannot be read ({type(error).__name__})"
            cure = "Delete the arm's folder and run the same compare again, which trains the arm again"
            raise UsageError.of("file", str(self.path / name), problem, cure) from error
        return found

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Locks the arm's folder against other processes. Yields False at once if one of them has locked it.

        The operating system releases the lock when its process ends.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    @property
    def held(self) -> bool:
        """Whether a process holds the arm's lock now. To ask writes nothing, since the folder may be read-only."""
        if sys.platform == "win32":
            with self.lock() as mine:
                return not mine
        import fcntl

        try:
            with (self.path / ".lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def tidy(self) -> None:
        """Removes what a killed process left: half-written files and, if the arm is finished, checkpoints and error."""
        remove_unfinished(self.path)
        if self.result() is not None:
            self.clear_error()
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def failed_in(self, attempt: str) -> bool:
        """Returns whether the arm failed in this attempt at the study, or diverged in any, as it would again.

        Tokens, unlike clocks, agree on all machines.
        """
        error = self.error() or {}
        return bool(error.get("diverged")) or attempt in _attempts(error)

    def record_error(self, error: BaseException, label: str, seed: int, attempt: str = "") -> None:
        """Writes `error.json`: the message, its traceback, and the tokens of all attempts that have failed.

        Earlier tokens stay: an attempt that goes on at the same time must not wait for an arm that it has tried.
        """
        known = isinstance(error, PeftPruneError)
        write_json(
            self.path / "error.json",
            {
                "schema": SCHEMA,
                "label": label,
                "seed": seed,
                "time": time.time(),
                "attempts": [*_attempts(self.error() or {}), attempt],
                "error": str(error) if known else f"{type(error).__name__}: {error}",
                "diverged": isinstance(error, DivergedError),
                "traceback": "".join(traceback.format_exception(error)),
            },
        )

    def clear_error(self) -> None:
        """Removes `error.json` after a later attempt has succeeded."""
        (self.path / "error.json").unlink(missing_ok=True)


def _attempts(error: Mapping[str, Any]) -> list[str]:
    attempts = error.get("attempts")
    return attempts if isinstance(attempts, list) else []


def _read_valid(path: Path, schema: int = SCHEMA, needed: Iterable[str] = ()) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) and value.get("schema") == schema and value.keys() >= {*needed} else None


@dataclass(frozen=True)
class StudyFolder:
    """Reads and writes the folder of one study."""

    path: Path

    def check(self) -> None:
        """Raises UsageError if the folder cannot be made or written, and writes nothing."""
        place = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        if not (place.is_dir() and os.access(place, os.W_OK)):
            problem = f"cannot be written, because of {str(place)!r}"
            raise UsageError.of("output_dir", str(self.path), problem, "Name a folder you may write to")

    def prepare(self) -> None:
        """Creates the folder. Raises UsageError if it is not writable."""
        try:
            (self.path / "arms").mkdir(parents=True, exist_ok=True)
            probe = self.path / f".writable.{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            problem, cure = f"cannot be written ({error.strerror})", "Name a folder you may write to"
            raise UsageError.of("output_dir", str(self.path), problem, cure) from None

    def arm(self, label: str, seed: int, digest: str) -> ArmFolder:
        safe = re.sub(r"[^\w.+-]+", "_", label)
        return ArmFolder(self.path / "arms" / f"{safe}-s{seed}-{digest}")

    def write_request(self, request: Mapping[str, Any]) -> None:
        write_json(self.path / "study.json", {"schema": STUDY_SCHEMA, **request})

    @contextmanager
    def registered(self, request: Mapping[str, Any] | None = None, configs: Configs | None = None) -> Iterator[None]:
        """Registers this process as active, so that no other process replaces the stored request.

        The request, if there is one, is added to the stored one; `configs` are those of its arms, by `arm_key`. Raises
        UsageError if it cannot share a table with the finished arms of the study, or other processes train an arm that
        it would replace.
        """
        presence = FileLock(self.path / f".at-work-{secrets.token_hex(4)}")
        with FileLock(self.path / ".lock"):
            if request is not None:
                self._others_are_active()  # removes what killed processes left
                self.write_request(self.grown(request, configs or {}))
            presence.acquire()
        try:
            yield
        finally:
            presence.release()
            Path(presence.lock_file).unlink(missing_ok=True)

    def grown(self, request: Mapping[str, Any], new: Configs) -> Mapping[str, Any]:
        """Returns the request together with the stored one. A study gives way where it has no arm to lose.

        That is so if none is finished and none may wait in a queue of Slurm. Raises UsageError as `registered` does.
        """
        try:
            stored = self.read_request()
        except UsageError:
            return request
        arms = {arm_key(a): self.arm(a["label"], a["seed"], a["hash"]) for a in stored["arms"]}
        old = {}
        for key, arm in arms.items():
            with suppress(UsageError):
                if (config := arm.config()).keys() >= CONFIG:
                    old[key] = config
        found = difference(stored, request, old, new)
        kept = (self.path / "slurm").exists() or any(arm.result() is not None for arm in arms.values())
        if found is not None and kept:
            problem = f"is not that of the study in {self.path} ({found.stored!r})"
            cure = f"Name another folder, such as output_dir={str(self._free())!r}, or {found.cure}"
            raise UsageError.of(found.field, found.now, problem, cure)
        grown = request if found is not None else union(stored, request)
        lost = {a["hash"] for a in stored["arms"]} - {a["hash"] for a in grown["arms"]}
        if lost and self._others_are_active():
            problem = "is in use by another process, which trains other arms"
            cure = "Wait until it has ended, or name another folder"
            raise UsageError.of("output_dir", str(self.path), problem, cure)
        return grown

    def _free(self) -> Path:
        """Returns the first folder beside this one that is not taken: runs/rte-2."""
        names = (self.path.with_name(f"{self.path.resolve().name}-{n}") for n in itertools.count(2))
        return next(path for path in names if not path.exists())

    def _others_are_active(self) -> bool:
        found = False
        for path in self.path.glob(".at-work-*"):
            try:
                with FileLock(path, timeout=0):
                    path.unlink(missing_ok=True)  # left by a killed process
            except Timeout:
                found = True
        return found

    def read_request(self) -> dict[str, Any]:
        """Reads `study.json`. Raises UsageError if it is missing or invalid."""
        if (found := _read_valid(self.path / "study.json", STUDY_SCHEMA, _STUDY)) is None:
            problem, cure = "holds no study.json", "Name a folder that compare wrote"
            if os.path.exists(self.path / "study.json"):  # False for a name that is too long
                problem = "holds no readable study.json: the file is damaged or from another version"
                cure = "Run the same compare again; finished arms are kept"
            raise UsageError.of("output_dir", str(self.path), problem, cure)
        return found

    def machine_choices(self) -> dict[str, Any]:
        """Returns the dtype and the threads that enter the arms' hashes; empty in a new study.

        Where `study.json` is missing or damaged, they are those of most arms, trials of tuning included; of finished
        arms if there are any.
        """
        names = ("dtype", "threads")
        try:
            return {name: value for name, value in self.read_request().items() if name in names}
        except UsageError:
            finished, begun = Counter[tuple[Any, ...]](), Counter[tuple[Any, ...]]()
        for file in sorted([*self.path.glob("arms/*/config.json"), *self.path.glob(f"{TRIALS}/arms/*/config.json")]):
            arm = ArmFolder(file.parent)
            with suppress(UsageError, KeyError, TypeError):
                choice = tuple(arm.config()[name] for name in names)
                begun[choice] += 1
                finished[choice] += arm.result() is not None
        return {} if not begun else dict(zip(names, (+finished or begun).most_common(1)[0][0], strict=True))
