"""The store: one folder a study, one folder an arm, every file written whole or not at all.

    <study>/study.json                          the request, resolved, with versions and hardware
    <study>/arms/<label>-s<seed>-<hash>/        config.json  history.jsonl  allocation.jsonl  predictions.parquet
                                                checkpoint/  adapter/  result.json (last)

An arm is done when its `result.json` is there and valid. Its hash covers everything that changes the result.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from peftprune.errors import PeftPruneError, UsageError
from peftprune.files import _ASIDE, read_jsonl, write_json

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
"""Of an arm's files."""

STUDY_SCHEMA = 2
"""Of `study.json`."""


_RESULT = ("metrics", "ledger", "allocation", "budget", "exemption", "phases", "settings")
_STUDY = ("methods", "tasks", "budgets", "seeds", "arms", "settings", "given", "data_dir")
"""Without these a file is not what it should be."""


def config_hash(config: Mapping[str, Any]) -> str:
    """Ten hex digits over a configuration, independent of the order of its keys."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


@dataclass(frozen=True)
class ArmFolder:
    """The files of one arm."""

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
        """The finished arm's result; None where there is none or it cannot be read."""
        return _read_valid(self.path / "result.json", SCHEMA, _RESULT)

    def config(self) -> dict[str, Any]:
        """What the arm's hash was made of."""
        return self._read("config.json", lambda path: json.loads(path.read_text()))

    def error(self) -> dict[str, Any] | None:
        """The last failure, where the arm failed and has not finished since."""
        return _read_valid(self.path / "error.json")

    def allocation(self) -> list[dict[str, Any]]:
        """The trace: one row an event, with the sites that changed."""
        return self._read("allocation.jsonl", read_jsonl)

    def history(self) -> list[dict[str, Any]]:
        """The Trainer's log."""
        return self._read("history.jsonl", read_jsonl)

    def read_predictions(self) -> pd.DataFrame:
        """One row an evaluation example; the columns are those of `peftprune.training.evaluation.Scored`."""
        import pandas as pd

        return self._read(self.predictions.name, pd.read_parquet)

    def _read(self, name: str, read: Callable[[Path], Any]) -> Any:
        """A file that a finished arm has; damage to it is the user's to know, as the arm counts as done."""
        try:
            return read(self.path / name)
        except (OSError, ValueError) as error:
            problem = f"cannot be read ({type(error).__name__})"
            cure = "Delete the arm's folder and run the same compare again: it trains that arm anew"
            raise UsageError.of("file", str(self.path / name), problem, cure) from error

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Hold the arm's folder against other processes; False, at once, where one of them holds it.

        The lock is the operating system's and goes with its holder.
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
        """Whether a process works on the arm at this moment."""
        if not self.path.is_dir():
            return False
        with self.lock() as mine:
            return not mine

    def tidy(self) -> None:
        """Remove what a process that was killed left behind: half-written files, and once done the checkpoints."""
        for path in self.path.glob(f".*{_ASIDE}"):
            path.unlink(missing_ok=True)
        if self.result() is not None:
            self.clear_error()
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def failed_since(self, moment: float) -> bool:
        """Whether the last failure is not older than a moment, in seconds since the epoch."""
        error = self.error()
        return error is not None and error.get("time", 0.0) >= moment

    def record_error(self, error: BaseException, label: str, seed: int) -> None:
        """Keep a failure with its traceback."""
        known = isinstance(error, PeftPruneError)
        write_json(
            self.path / "error.json",
            {
                "schema": SCHEMA,
                "label": label,
                "seed": seed,
                "time": time.time(),
                "error": str(error) if known else f"{type(error).__name__}: {error}",
                "traceback": "".join(traceback.format_exception(error)),
            },
        )

    def clear_error(self) -> None:
        """Forget a failure that a later attempt overcame."""
        (self.path / "error.json").unlink(missing_ok=True)


def _read_valid(path: Path, schema: int = SCHEMA, needed: Iterable[str] = ()) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) and value.get("schema") == schema and value.keys() >= {*needed} else None


@dataclass(frozen=True)
class StudyFolder:
    """The folder of one study."""

    path: Path

    def prepare(self) -> None:
        """Make the folder and prove that it can be written.

        Raises:
            UsageError: when it cannot.
        """
        try:
            (self.path / "arms").mkdir(parents=True, exist_ok=True)
            probe = self.path / f".writable.{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise UsageError.of(
                "output_dir", str(self.path), f"cannot be written ({error.strerror})", "Name a folder you may write to"
            ) from None

    def arm(self, label: str, seed: int, digest: str) -> ArmFolder:
        """The folder of an arm."""
        safe = re.sub(r"[^\w.+-]+", "_", label)
        return ArmFolder(self.path / "arms" / f"{safe}-s{seed}-{digest}")

    def write_request(self, request: Mapping[str, Any]) -> None:
        """Store what the study is, its arms in order included."""
        write_json(self.path / "study.json", {"schema": STUDY_SCHEMA, **request})

    @contextmanager
    def joined(self, request: Mapping[str, Any] | None = None) -> Iterator[None]:
        """Count among the processes at work on the study, which thereby keeps its request.

        Args:
            request: stored as the study's; None leaves it as it is.

        Raises:
            UsageError: when processes are at work on other arms than the request's.
        """
        presence = FileLock(self.path / f".at-work-{secrets.token_hex(4)}")
        with FileLock(self.path / ".lock"):
            if request is not None:
                if self._others_at_work() and self.read_request()["arms"] != request["arms"]:
                    problem = "is being worked on by another process that was asked for another study"
                    cure = "Wait until that has ended, or name another folder"
                    raise UsageError.of("output_dir", str(self.path), problem, cure)
                self.write_request(request)
            presence.acquire()
        try:
            yield
        finally:
            presence.release()
            Path(presence.lock_file).unlink(missing_ok=True)

    def _others_at_work(self) -> bool:
        found = False
        for path in self.path.glob(".at-work-*"):
            try:
                with FileLock(path, timeout=0):
                    path.unlink(missing_ok=True)  # its process was killed
            except Timeout:
                found = True
        return found

    def read_request(self) -> dict[str, Any]:
        """Read `study.json`.

        Raises:
            UsageError: when the folder holds no study.
        """
        found = _read_valid(self.path / "study.json", STUDY_SCHEMA, _STUDY)
        if found is None:
            problem, cure = "holds no study.json", "Name a folder that compare wrote"
            if (self.path / "study.json").exists():
                problem = "holds no readable study.json: it is damaged, or of another version"
                cure = "Run the same compare again: finished arms are kept"
            raise UsageError.of("output_dir", str(self.path), problem, cure)
        return found
