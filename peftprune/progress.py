"""Progress of a study and of its current arm, on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Reporter:
    """Two bars in steps, with the time left: the study's and the current arm's. Silent where stderr is no terminal.

    Args:
        steps: of all arms together.
        enabled: None shows progress on a terminal only.
    """

    def __init__(self, steps: int, enabled: bool | None = None) -> None:
        shown = sys.stderr.isatty() if enabled is None else enabled
        self._console = Console(stderr=True, quiet=not shown)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not shown,
        )
        self._study = self._progress.add_task("study", total=steps)
        self._arm: TaskID | None = None
        self._before = self._steps = 0

    def __enter__(self) -> Reporter:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def started(self, label: str, seed: int, steps: int) -> None:
        """An arm begins."""
        self._steps = steps
        self._arm = self._progress.add_task(f"{label}, seed {seed}", total=steps)

    def step(self, done: int, total: int, phase: str) -> None:
        """A step of the current arm is done."""
        if self._arm is not None:
            self._progress.update(self._arm, completed=done)
            self._progress.update(self._study, completed=self._before + done)

    def skipped(self, label: str, seed: int, steps: int) -> None:
        """An arm was done before."""
        self._steps = steps
        self._end(f"{label}, seed {seed}: done before")

    def finished(self, label: str, seed: int, metrics: Mapping[str, float]) -> None:
        """The current arm is done."""
        shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self._end(f"{label}, seed {seed}: {shown}")

    def failed(self, label: str, seed: int, error: Exception) -> None:
        """The current arm failed."""
        self._end(f"{label}, seed {seed} failed: {error}")

    def _end(self, line: str) -> None:
        if self._arm is not None:
            self._progress.remove_task(self._arm)
            self._arm = None
        self._console.print(line, markup=False)
        self._before += self._steps
        self._progress.update(self._study, completed=self._before)
