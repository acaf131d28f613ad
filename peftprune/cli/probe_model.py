"""The tiny model that methods are watched on, and the events of training without what a real run needs beside them."""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from peftprune.strategy.phases import phase_at
from peftprune.strategy.rng import generator
from peftprune.training.events import PruningEvents

STEPS = 45
BATCH = 4
_WIDTH = 16


class _Block(nn.Module):
    """Two linear layers that read one input, as query and value of an attention do."""

    gain: Tensor

    def __init__(self, index: int) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, _WIDTH)
        # Sites must differ for methods that tell them apart: the first block reads much, along few directions.
        self.register_buffer("gain", torch.full((_WIDTH,), 0.1) if index else 0.5 ** torch.arange(_WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        read = x * self.gain
        return x + torch.tanh(self.query(read)) * self.value(read)


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(32, _WIDTH)
        self.layer = nn.ModuleList(_Block(i) for i in range(3))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embeddings(ids)
        for block in self.layer:
            x = block(x)
        return x


class _Classifier(nn.Module):
    """Laid out like a model of transformers, and many times quicker than the smallest of them."""

    base_model_prefix = "encoder"

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="custom", to_dict=lambda: {"model_type": "custom"})
        self.encoder = _Encoder()
        self.classifier = nn.Linear(_WIDTH, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **_: Any) -> SimpleNamespace:
        mask = attention_mask.unsqueeze(-1)
        pooled = (self.encoder(input_ids) * mask).sum(1) / mask.sum(1)
        return SimpleNamespace(loss=nn.functional.cross_entropy(self.classifier(pooled), labels))


@lru_cache(maxsize=1)
def tiny_model() -> Any:
    """The model, which is copied before anything is done to it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _Classifier()


def _batch(step: int) -> dict[str, Tensor]:
    rng = generator(0, "probe", step)
    mask = torch.ones(BATCH, 6, dtype=torch.long)
    mask[1, 4:] = 0
    ids = torch.randint(1, 32, (BATCH, 6), generator=rng)
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.randint(0, 2, (BATCH,), generator=rng)}


def train(model: nn.Module, callback: PruningEvents) -> None:
    """The events of `peftprune.training.trainer`, in its order, without what a real run needs beside them."""
    trained: list[nn.Parameter] = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-3, fused=True)
    args: Any = SimpleNamespace(world_size=1)
    state: Any = SimpleNamespace(global_step=0)
    known: dict[str, Any] = {"model": model, "optimizer": optimizer}
    callback.on_train_begin(args, state, None, **known)
    for step in range(STEPS):
        trains = phase_at(callback.phases, step).phase.kind == "train"
        if model.training != trains:
            model.train(trains)
        callback.on_step_begin(args, state, None, **known)
        with torch.set_grad_enabled(trains):
            loss = model(**_batch(step)).loss
        if trains:
            loss.backward()
        # A graph that is alive would not let shapes change.
        del loss
        callback.on_pre_optimizer_step(args, state, None, **known)
        optimizer.step()
        callback.on_optimizer_step(args, state, None, **known)
        optimizer.zero_grad()
        state.global_step = step + 1
        callback.on_step_end(args, state, None, **known)
    callback.on_train_end(args, state, None, **known)
