"""The order of the training data: a function of the seed and the epoch alone, the same for every method.

Batches group examples of similar length, so that little padding is computed. Step t of every arm with the same seed
reads the same batch, except in phases that train on a subset of the data.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import torch
from torch.utils.data import Sampler

from peftprune.errors import UsageError
from peftprune.strategy.phases import PhaseRange, phase_at, subset_size
from peftprune.strategy.rng import generator

_MEGABATCH = 50
"""Number of batches within which examples are sorted by length. A larger one pads less but is less random."""


class PhaseBatchSampler(Sampler[list[int]]):
    """Micro-batches of example indices for the whole run, one epoch at a time.

    `lengths` holds the tokens of each training example and `strata` its class, or is None. An optimizer step has
    `batch_size` examples in `accumulation` micro-batches. `last_parts` is the number of micro-batches of an epoch's
    last step, where it is incomplete; None: `accumulation`, or one per example where there are fewer.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        strata: Sequence[int] | None,
        phases: Sequence[PhaseRange],
        batch_size: int,
        seed: int,
        accumulation: int = 1,
        last_parts: int | None = None,
    ) -> None:
        self.lengths = list(lengths)
        self.strata = None if strata is None else list(strata)
        self.phases = phases
        self.batch_size = batch_size
        self.seed = seed
        self.accumulation = accumulation
        self.drop_last = False
        self.steps_per_epoch = -(-len(self.lengths) // batch_size)
        left = len(self.lengths) - (self.steps_per_epoch - 1) * batch_size
        self._last_parts = min(accumulation, left) if last_parts is None else last_parts
        self._epoch = 0
        self._cached: tuple[int, list[list[int]]] = (-1, [])
        self._subsets: dict[float, list[int]] = {}
        for r in phases:
            if r.phase.data == "all":
                continue
            size = subset_size(len(self.lengths), r.phase.data)
            if size // -(-size // batch_size) < accumulation:  # examples of the phase's smallest step
                problem = f"has steps of fewer than {accumulation} examples"
                cure = "Sample more data, or lower gradient_accumulation_steps"
                raise UsageError.of(f"phase {r.name}", r.phase.data, problem, cure)

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return (self.steps_per_epoch - 1) * self.accumulation + self._last_parts

    def __iter__(self) -> Iterator[list[int]]:
        first = self._epoch * self.steps_per_epoch
        for step in range(first, first + self.steps_per_epoch):
            yield from self.micro_batches(step)

    def micro_batches(self, step: int) -> list[list[int]]:
        """Returns the micro-batches of an optimizer step (counted from 0)."""
        last = (step + 1) % self.steps_per_epoch == 0
        return _split(self.batch(step), self._last_parts if last else self.accumulation)

    def batch(self, step: int) -> list[int]:
        """Returns all examples of an optimizer step (counted from 0)."""
        current = phase_at(self.phases, step)
        if current.phase.data != "all":
            return self._subset_batch(current, step - current.start)
        epoch, index = divmod(step, self.steps_per_epoch)
        if self._cached[0] != epoch:
            self._cached = (epoch, self._epoch_batches(epoch))
        return self._cached[1][index]

    def cost(self, step: int) -> tuple[int, int, int]:
        """Returns (examples, tokens, tokens with padding) of an optimizer step."""
        parts = [[self.lengths[i] for i in part] for part in self.micro_batches(step)]
        return sum(map(len, parts)), sum(map(sum, parts)), sum(len(part) * max(part) for part in parts)

    def _epoch_batches(self, epoch: int) -> list[list[int]]:
        rng = generator(self.seed, "order", epoch)
        order = torch.randperm(len(self.lengths), generator=rng).tolist()
        # The incomplete batch comes last, where the Trainer expects a shorter accumulation.
        full = len(order) // self.batch_size * self.batch_size
        size = self.batch_size * _MEGABATCH
        batches = []
        for start in range(0, full, size):
            chunk = sorted(order[start : min(start + size, full)], key=lambda i: -self.lengths[i])
            batches += [chunk[i : i + self.batch_size] for i in range(0, len(chunk), self.batch_size)]
        shuffled = [batches[i] for i in torch.randperm(len(batches), generator=rng).tolist()]
        return shuffled + ([order[full:]] if full < len(order) else [])

    def subset(self, fraction: float) -> list[int]:
        if fraction not in self._subsets:
            self._subsets[fraction] = stratified_subset(len(self.lengths), self.strata, fraction, self.seed)
        return self._subsets[fraction]

    def _subset_batch(self, current: PhaseRange, step: int) -> list[int]:
        assert current.phase.data != "all"
        members = self.subset(current.phase.data)
        n = -(-len(members) // self.batch_size)
        turn, index = divmod(step, n)
        rng = generator(self.seed, "order", current.name, turn)
        order = [members[i] for i in torch.randperm(len(members), generator=rng).tolist()]
        batches = _split(sorted(order, key=lambda i: -self.lengths[i]), n)
        return batches[torch.randperm(n, generator=rng).tolist()[index]]


def _split(items: list[int], parts: int) -> list[list[int]]:
    """Returns contiguous parts whose sizes differ by at most one."""
    size, extra = divmod(len(items), parts)
    bounds = accumulate((size + (i < extra) for i in range(parts)), initial=0)
    return [items[a:b] for a, b in pairwise(bounds)]


def stratified_subset(num_examples: int, strata: Sequence[int] | None, fraction: float, seed: int) -> list[int]:
    """Returns ascending indices of a sample that keeps the classes' shares, by largest remainder; None is one class."""
    rng = generator(seed, "subset", fraction)
    classes = strata or [0] * num_examples
    wanted = subset_size(num_examples, fraction)
    members = {c: [i for i, s in enumerate(classes) if s == c] for c in sorted(set(classes))}
    exact = {c: wanted * len(m) / len(classes) for c, m in members.items()}
    count = {c: int(x) for c, x in exact.items()}
    by_remainder = sorted(exact, key=lambda c: count[c] - exact[c])
    for c in by_remainder[: wanted - sum(count.values())]:
        count[c] += 1
    picked = []
    for c, m in members.items():
        picked += [m[i] for i in torch.randperm(len(m), generator=rng).tolist()[: count[c]]]
    return sorted(picked)
