"""Shows the progress of a study and of the arms in training on a terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from copy import copy

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Reporter:
    """A bar for the study's steps with the time left, and one for every arm in training, with phase and total rank.

    A reporter is the `Listener` of one process; `new_listener` returns one for another. `steps` are those of all arms,
    and `header` is the first line. Log files and notebooks get no bars. `enabled` False silences it, True forces bars.
    """

    def __init__(self, steps: int, enabled: bool | None = None, header: str = "") -> None:
        self._header = header
        self._attach(_Display(steps, sys.stderr.isatty() if enabled is None else enabled, enabled is not False))

    def _attach(self, display: _Display) -> None:
        self._display = display
        self._bar: TaskID | None = None
        self._arm: tuple[str, int] = ("", 0)
        self._steps = 0

    def new_listener(self) -> Reporter:
        """Returns a listener for another process of the same study, on the same display."""
        other = copy(self)
        other._attach(self._display)
        return other

    def __enter__(self) -> Reporter:
        if self._header:
            self._display.print(self._header)
        self._display.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._display.progress.stop()

    def started(self, label: str, seed: int, steps: int) -> None:
        self._close()  # a Ray task that was lost and is repeated starts its arm twice
        self._arm, self._steps = (label, seed), steps
        self._display.training.add(self._arm)
        self._bar = self._display.progress.add_task(f"{label}, seed {seed}", total=steps)

    def step(self, done: int, total: int, phase: str, ranks: int) -> None:
        if self._bar is not None:
            about = f"{self._arm[0]}, seed {self._arm[1]}: {phase}" + (f", ranks {ranks:,}" if ranks else "")
            self._display.progress.update(self._bar, completed=done, description=about)
            self._display.count(self._arm, done)

    def skipped(self, label: str, seed: int, steps: int) -> None:
        # If another process has just trained the arm, that process's own event gives the metrics.
        if (label, seed) not in self._display.training:
            self._end((label, seed), steps, "done before")

    def finished(self, label: str, seed: int, metrics: Mapping[str, float], paused: int | None = None) -> None:
        scores = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self._end((label, seed), self._steps, f"{scores} at step {paused}, where it pauses" if paused else scores)

    def failed(self, label: str, seed: int, error: str) -> None:
        self._end((label, seed), self._steps, f"failed: {error}")

    def logged(self, message: str) -> None:
        """Logs a warning of the process here."""
        logging.getLogger(__name__).warning(message)

    def lost(self, code: int) -> None:
        """Reports that the process ended early, with this exit code."""
        self._close()
        line = f"a worker ended with code {code}; another one resumes its arm from the last checkpoint"
        if self._display.console.quiet:
            self.logged(line)
        else:
            self._display.print(line)

    def _end(self, arm: tuple[str, int], steps: int, line: str) -> None:
        self._close()
        if self._display.end(arm, steps):
            self._display.print(f"{arm[0]}, seed {arm[1]}: {line}")

    def _close(self) -> None:
        self._display.training.discard(self._arm)
        if self._bar is not None:
            self._display.progress.remove_task(self._bar)
            self._bar = None


class _Display:
    """The bars and lines that all listeners of a study share. Arms are identified by name and seed."""

    def __init__(self, steps: int, bars: bool, lines: bool) -> None:
        self.console = Console(stderr=True, quiet=not lines)
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not bars,
        )
        self._study = self.progress.add_task("study", total=steps)
        self._steps: dict[tuple[str, int], int] = {}
        self._ended: set[tuple[str, int]] = set()
        self.training: set[tuple[str, int]] = set()

    def count(self, arm: tuple[str, int], steps: int) -> None:
        self._steps[arm] = steps
        self.progress.update(self._study, completed=sum(list(self._steps.values())))

    def end(self, arm: tuple[str, int], steps: int) -> bool:
        """Counts the arm's steps as done. Returns False if the arm had ended before."""
        known = arm in self._ended
        self._ended.add(arm)
        self.count(arm, steps)
        return not known

    def print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
