"""Serves a run's phases through a Trainer's data loader."""

from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from peftprune.callback.start import check_seed
from peftprune.errors import UsageError
from peftprune.strategy.phases import PhaseRange, phase_at
from peftprune.strategy.rng import generator
from peftprune.training.sampler import PhaseBatchSampler, stratified_subset


@dataclass(eq=False)
class OrderedDataset(Dataset[Any]):
    """A dataset to be served in the order of `compare`; see `sampler`."""

    dataset: Any
    seed: int | None
    lengths: list[int]
    strata: list[int] | None

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]


def sampler(dataset: Any, *, seed: int | None = None) -> OrderedDataset:
    """Makes a Trainer serve a tokenised dataset in the order of `compare`: the same batches in every step.

    `Trainer(train_dataset=peftprune.sampler(dataset), callbacks=[PruningCallback(...)])`. TRL's trainers prepare the
    dataset themselves: `trainer.train_dataset = peftprune.sampler(trainer.train_dataset)`.

    The order depends on the seed and the epoch alone, groups examples by length, and serves stratified samples of the
    data to the phases that train on one. Without `sampler` the callback keeps your order outside of such phases.

    Args:
        dataset: examples in any order, each with "input_ids"; whole numbers under "labels" or "label" are the strata
            of samples.
        seed: the arm's; None takes the callback's.

    Raises:
        UsageError: if the dataset has no length or no token ids, or cannot be read by position.
    """
    if seed is not None:
        check_seed(seed)
    if not isinstance(dataset, Sized) or len(dataset) == 0:
        raise UsageError.of("dataset", type(dataset).__name__, "has no examples to count", "Give a map-style dataset")
    try:
        ids = column(dataset, "input_ids")
        lengths = [len(row) for row in ids or ()]
    except (TypeError, LookupError) as error:
        problem = f"is not a sequence of examples with lists of input_ids ({type(error).__name__}: {error})"
        raise UsageError.of("dataset", type(dataset).__name__, problem, "Give a list or datasets.Dataset") from error
    if ids is None:
        raise UsageError.of("dataset", type(dataset).__name__, "has no input_ids", "Tokenise it first")
    return OrderedDataset(dataset, seed, lengths, strata_of(dataset))


def column(dataset: Any, name: str) -> list[Any] | None:
    """Returns one value per example; None where examples lack it."""
    if (names := getattr(dataset, "column_names", None)) is not None:
        return list(dataset[name]) if name in names else None
    known = hasattr(dataset[0], "keys") and name in dataset[0]
    return [dataset[i][name] for i in range(len(dataset))] if known else None


def strata_of(dataset: Any) -> list[int] | None:
    """Returns the class of each example; None where labels are not whole numbers."""
    for name in ("labels", "label"):
        if (found := column(dataset, name)) is not None:
            plain: list[Any] = [v.item() if isinstance(v, torch.Tensor) and v.dim() == 0 else v for v in found]
            return plain if all(isinstance(v, int) for v in plain) else None
    return None


@dataclass(eq=False)
class PhasedOrder(Sampler[int]):
    """The order of the user's sampler `inner`, except in phases that train on a sample of the data.

    `strata` holds the class of each example, or is None; `batch_size` counts the examples of an optimizer step over all
    processes; `seed` draws the samples.
    """

    inner: Any
    strata: Sequence[int] | None
    num_examples: int
    phases: Sequence[PhaseRange]
    batch_size: int
    steps_per_epoch: int
    seed: int
    epoch: int = 0

    def __post_init__(self) -> None:
        wanted = {r.phase.data for r in self.phases if r.phase.data != "all"}
        self._subsets = {f: stratified_subset(self.num_examples, self.strata, f, self.seed) for f in wanted}
        self._turn: tuple[str, int] = ("", -1)
        self._order: list[int] = []

    def start_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration, and of the user's sampler."""
        self.epoch = epoch
        if hasattr(self.inner, "set_epoch"):
            self.inner.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * self.steps_per_epoch
        # The user's sampler advances in every phase, so that later steps get the examples they would have had.
        for position, index in enumerate(self.inner):
            step = first + position // self.batch_size
            current = phase_at(self.phases, step)
            if current.phase.data == "all":
                yield index
            else:
                place = (step - current.start) * self.batch_size + position % self.batch_size
                yield self._drawn(current, current.phase.data, place)

    def _drawn(self, current: PhaseRange, fraction: float, place: int) -> int:
        members = self._subsets[fraction]
        turn, index = divmod(place, len(members))
        if self._turn != (current.name, turn):
            rng = generator(self.seed, "order", current.name, turn)
            self._turn = (current.name, turn)
            self._order = [members[i] for i in torch.randperm(len(members), generator=rng).tolist()]
        return self._order[index]


@dataclass(eq=False)
class ProcessBatches(Sampler[list[int]]):
    """One process's share of the micro-batches of all processes (`whole`), in the order of `compare`."""

    whole: PhaseBatchSampler
    process: int
    processes: int
    epoch: int = 0
    drop_last: bool = False

    def start_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.whole) // self.processes

    def __iter__(self) -> Iterator[list[int]]:
        first = self.epoch * self.whole.steps_per_epoch
        for step in range(first, first + self.whole.steps_per_epoch):
            yield from self.whole.micro_batches(step)[self.process :: self.processes]


def serve_phases(
    loader: DataLoader[Any], phases: Sequence[PhaseRange], batch_size: int, args: Any, seed: int
) -> PhasedOrder | ProcessBatches | None:
    """Makes a trainer's loader serve the phases, before its first iteration. Returns None where its own order does.

    `batch_size` counts the examples of an optimizer step over all processes; `seed` is that of samples, and of the
    order of an `OrderedDataset` without one. Raises UsageError for a sample of the data that it cannot serve.
    """
    dataset = loader.dataset
    if isinstance(dataset, OrderedDataset):
        return _serve_ordered(loader, phases, batch_size, args, seed)
    if (sampled := next((r for r in phases if r.phase.data != "all"), None)) is None:
        return None
    inner: Any = loader.batch_sampler
    while hasattr(inner, "batch_sampler"):
        inner = inner.batch_sampler
    if not isinstance(dataset, Sized) or type(inner) is not BatchSampler:
        problem = f"cannot serve phase {sampled.name!r}, which reads a sample of {sampled.phase.data:.0%} of the data"
        cure = "Give a map-style dataset: train_dataset=peftprune.sampler(dataset)"
        raise UsageError.of("train_dataset", type(dataset).__name__, problem, cure)
    steps = -(-len(loader) // args.gradient_accumulation_steps)
    order = PhasedOrder(inner.sampler, strata_of(dataset), len(dataset), phases, batch_size, steps, seed)
    inner.sampler = order
    return order


def _serve_ordered(loader: Any, phases: Sequence[PhaseRange], batch_size: int, args: Any, seed: int) -> ProcessBatches:
    dataset: OrderedDataset = loader.dataset
    accumulation, processes = args.gradient_accumulation_steps, args.world_size
    left = len(dataset) % batch_size or batch_size
    # Micro-batches that the trainer expects in the last step of an epoch, over all processes.
    last = (len(loader) % accumulation or accumulation) * processes
    if len(loader) != -(-len(dataset) // (batch_size // accumulation)) or left < last:
        problem = f"examples leave {left} for the last step of an epoch, in {last} micro-batches"
        cure = "Choose a batch size that leaves more or none, and dataloader_drop_last=False"
        raise UsageError.of("train_dataset", len(dataset), problem, cure)
    seed = seed if dataset.seed is None else dataset.seed
    whole = PhaseBatchSampler(dataset.lengths, dataset.strata, phases, batch_size, seed, accumulation * processes, last)
    order = ProcessBatches(whole, args.process_index, processes)
    # DataLoader forbids a new batch sampler because its length could differ; this one has the same length.
    # accelerate's loaders wrap the loader to change.
    object.__setattr__(getattr(loader, "base_dataloader", loader), "batch_sampler", order)
    return order
