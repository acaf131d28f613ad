"""Trainers that take steps in turn, in one process, so that step k of all of them is measured back to back.

Each trainer runs in a thread of its own and stops before every step until it is given the turn; only one runs at any
time. A turn is everything from there to the beginning of the next step: forward, backward, optimizer, decisions,
changes to the adapters, logging and the next batch.
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
    """Unwinds a trainer that is not wanted any more."""


class Turn:
    """One trainer that takes a step whenever it is told to.

    Args:
        name: of what is measured.
        trainer: untrained; the gate is added to its callbacks.
        train: what trains it.
        threads: that it computes with; None leaves them as they are.
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
        # First of all callbacks: what the others do before a step is part of it.
        trainer.callback_handler.callbacks.insert(0, _Gate(self))
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Run to the first step. Raises what the trainer raised."""
        self._thread.start()
        self._await()

    def step(self) -> float:
        """Take one step; the seconds it took. Raises what the trainer raised, and RuntimeError after the last one."""
        if self.finished:
            raise RuntimeError(f"{self.name} has no steps left")
        self._go.release()
        self._await()
        return self._ended - self._began

    def stop(self) -> None:
        """End the training where it stands."""
        if self._thread.is_alive():
            self._stopping = True
            self._go.release()
            self._thread.join()

    def gate(self) -> None:
        """Give the turn back and wait for the next; called by the trainer's thread."""
        _settle()
        self._ended = time.perf_counter()
        self._back.release()
        self._go.acquire()
        if self._stopping:
            raise _StoppedError
        if self._threads is not None:
            # What a new thread computes with, and MKL in all of them, is what was set last.
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
    """All of them at their first step, and stopped in the end."""
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
    """One step of each, in a random order: name to seconds."""
    order = list(turns)
    rng.shuffle(order)
    return {turn.name: turn.step() for turn in order}


def in_rounds(turns: Sequence[Turn], rounds: int, skipped: int = 2) -> dict[str, list[float]]:
    """Seconds of each step by name; the first `skipped` rounds, in which caches fill, are left out."""
    rng = random.Random(0)
    with started(turns):
        found = [one_round(turns, rng) for _ in range(skipped + rounds)][skipped:]
    return {turn.name: [row[turn.name] for row in found] for turn in turns}


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _share_one_heap() -> None:
    """Let threads allocate as a single one does: heaps of their own would be given back and taken anew all the time."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_ARENAS_MAX, 1)
