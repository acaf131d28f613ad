"""Trainers that take steps in turn in one process, so that step k of all of them is measured back to back.

Each trainer runs in its own thread and waits before every step for its turn; only one runs at any time. A turn lasts
until the beginning of the next step and includes forward, backward, optimizer, decisions, changes to the adapters,
logging and the next batch.
"""

from __future__ import annotations

import contextlib
import ctypes
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

_ARENAS_MAX = -8
"""`mallopt`'s number for M_ARENA_MAX."""


class _StoppedError(Exception):
    """Ends a trainer that is no longer needed."""


class Turn:
    """One trainer that takes single steps on request.

    Args:
        name: of the measurement.
        trainer: untrained; the gate is added to its callbacks.
        train: the function that trains it.
        threads: for its computation; None leaves them unchanged.
    """

    def __init__(self, name: str, trainer: Trainer, train: Callable[[], Any], threads: int | None = None) -> None:
        self.name = name
        self.trainer = trainer
        self.finished = False
        self._train = train
        self._threads = threads
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._stopping = False
        self._error: BaseException | None = None
        self._began = self._ended = 0.0
        # First of all callbacks, so that the others' work before a step is part of the step.
        trainer.callback_handler.callbacks.insert(0, _Gate(self))
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Runs to the first step. Raises the trainer's error."""
        self._thread.start()
        self._await()

    def step(self) -> float:
        """Takes one step and returns its seconds. Raises the trainer's error, and RuntimeError after the last step."""
        if self.finished:
            raise RuntimeError(f"{self.name} has no steps left")
        self._go.release()
        self._await()
        return self._ended - self._began

    def stop(self) -> None:
        """Ends the training before its next step."""
        if self._thread.is_alive():
            self._stopping = True
            self._go.release()
            self._thread.join()

    def gate(self) -> None:
        """Ends the turn and waits for the next one; the trainer's thread calls it."""
        _settle()
        self._ended = time.perf_counter()
        self._back.release()
        self._go.acquire()
        if self._stopping:
            raise _StoppedError
        if self._threads is not None:
            # The last setting holds for new threads, and for MKL in all threads.
            torch.set_num_threads(self._threads)
        self._began = time.perf_counter()

    def _await(self) -> None:
        self._back.acquire()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._train()
        except _StoppedError:
            pass
        except BaseException as error:
            self._error = error
        finally:
            _settle()
            self._ended = time.perf_counter()
            self.finished = True
            self._back.release()


class _Gate(TrainerCallback):
    def __init__(self, turn: Turn) -> None:
        self._turn = turn

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._turn.gate()


@contextmanager
def started(turns: Sequence[Turn]) -> Iterator[None]:
    """Starts all of them up to their first step, and stops them in the end."""
    _share_one_heap()
    threads = torch.get_num_threads()
    try:
        for turn in turns:
            turn.start()
        yield
    finally:
        for turn in turns:
            turn.stop()
        torch.set_num_threads(threads)


def one_round(turns: Sequence[Turn], rng: random.Random) -> dict[str, float]:
    """Takes one step of each, in random order, and returns the seconds by name."""
    order = list(turns)
    rng.shuffle(order)
    return {turn.name: turn.step() for turn in order}


def in_rounds(turns: Sequence[Turn], rounds: int, skipped: int = 2) -> dict[str, list[float]]:
    """Returns the seconds of each step by name, without the first `skipped` rounds, in which caches fill."""
    rng = random.Random(0)
    with started(turns):
        found = [one_round(turns, rng) for _ in range(skipped + rounds)][skipped:]
    return {turn.name: [row[turn.name] for row in found] for turn in turns}


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _share_one_heap() -> None:
    """Makes threads allocate from one heap; heaps per thread would be released and allocated again all the time."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_ARENAS_MAX, 1)
