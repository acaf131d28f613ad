"""Progress of a study and of the arms in training, on a terminal only."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from copy import copy
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Reporter:
    """A bar in steps with the time left for the study, and one for every arm in training. Silent without a terminal.

    It listens to one worker; `another` listens to a further one.

    Args:
        steps: of all arms together.
        enabled: None shows progress on a terminal only.
    """

    def __init__(self, steps: int, enabled: bool | None = None) -> None:
        self._listen(_Board(steps, sys.stderr.isatty() if enabled is None else enabled))

    def _listen(self, board: _Board) -> None:
        self._board = board
        self._arm: TaskID | None = None
        self._key: tuple[str, int] = ("", 0)
        self._steps = 0

    def another(self) -> Reporter:
        """A listener to another worker of the same study."""
        other = copy(self)
        other._listen(self._board)
        return other

    def __enter__(self) -> Reporter:
        self._board.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._board.progress.stop()

    def started(self, label: str, seed: int, steps: int) -> None:
        """An arm begins."""
        self._close()  # of a task that was lost and is repeated
        self._key, self._steps = (label, seed), steps
        self._board.training.add(self._key)
        self._arm = self._board.progress.add_task(f"{label}, seed {seed}", total=steps)

    def step(self, done: int, total: int, phase: str) -> None:
        """A step of the current arm is done."""
        if self._arm is not None:
            self._board.progress.update(self._arm, completed=done)
            self._board.count(self._key, done)

    def skipped(self, label: str, seed: int, steps: int) -> None:
        """An arm was done before, or by another worker, which may yet have to say so."""
        if (label, seed) not in self._board.training:
            self._end((label, seed), steps, "done before")

    def finished(self, label: str, seed: int, metrics: Mapping[str, float]) -> None:
        """The current arm is done."""
        self._end((label, seed), self._steps, ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))

    def failed(self, label: str, seed: int, error: str) -> None:
        """The current arm failed."""
        self._end((label, seed), self._steps, f"failed: {error}")

    def logged(self, message: str) -> None:
        """The worker has something to say."""
        logging.getLogger(__name__).warning(message)

    def lost(self, code: int) -> None:
        """The worker ended before its time."""
        self._close()
        line = f"a worker ended with code {code}; what it trained goes on elsewhere from its last checkpoint"
        if self._board.console.quiet:
            self.logged(line)
        else:
            self._board.say(line)

    def _end(self, key: tuple[str, int], steps: int, line: str) -> None:
        self._close()
        if self._board.end(key, steps):
            self._board.say(f"{key[0]}, seed {key[1]}: {line}")

    def _close(self) -> None:
        self._board.training.discard(self._key)
        if self._arm is not None:
            self._board.progress.remove_task(self._arm)
            self._arm = None


class _Board:
    """What all listeners of a study write on."""

    def __init__(self, steps: int, shown: bool) -> None:
        self.console = Console(stderr=True, quiet=not shown)
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not shown,
        )
        self._study = self.progress.add_task("study", total=steps)
        self._steps: dict[tuple[str, int], int] = {}
        self._ended: set[tuple[str, int]] = set()
        self.training: set[tuple[str, int]] = set()

    def count(self, key: tuple[str, int], steps: int) -> None:
        self._steps[key] = steps
        self.progress.update(self._study, completed=sum(list(self._steps.values())))

    def end(self, key: tuple[str, int], steps: int) -> bool:
        """False where the arm's end is known already."""
        known = key in self._ended
        self._ended.add(key)
        self.count(key, steps)
        return not known

    def say(self, line: str) -> None:
        self.console.print(line, markup=False)
