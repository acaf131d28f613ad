"""Tiny untrained models, built without any download, and batches for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from peftprune.adapters.inject import inject
from peftprune.models.layers import discover_sites, head_modules
from peftprune.strategy.method import Preparation
from peftprune.strategy.sites import SiteSet
from peftprune.strategy.spec import AdapterSpec

PAD, EOS = 1, 2
DEBERTA_V3: dict[str, Any] = {
    "relative_attention": True,
    "share_att_key": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
}


def tiny_bert(
    layers: int = 2,
    width: int = 32,
    intermediate: int = 48,
    heads: int = 4,
    vocab: int = 100,
    num_labels: int = 2,
    seed: int = 0,
    dropout: float = 0.0,
) -> nn.Module:
    """An encoder whose feed-forward layers are not square."""
    config = BertConfig(
        vocab_size=vocab,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        num_labels=num_labels,
        pad_token_id=PAD,
    )
    return _seeded(BertForSequenceClassification, config, seed)


def tiny_bart(layers: int = 2, width: int = 32, intermediate: int = 48, seed: int = 0) -> nn.Module:
    """An encoder-decoder with cross-attention."""
    config = BartConfig(
        vocab_size=100,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=intermediate,
        decoder_ffn_dim=intermediate,
        max_position_embeddings=64,
        dropout=0.0,
        num_labels=2,
        bos_token_id=0,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=EOS,
        forced_eos_token_id=None,
    )
    return _seeded(BartForSequenceClassification, config, seed)


def tiny_deberta(layers: int = 2, width: int = 32, intermediate: int = 48, seed: int = 0) -> nn.Module:
    """DeBERTaV3's attention, whose query and key projections also read the relative positions."""
    config = DebertaV2Config(
        vocab_size=100,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=intermediate,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **DEBERTA_V3,
        pad_token_id=PAD,
    )
    return _seeded(DebertaV2ForSequenceClassification, config, seed)


def tiny_llama_gqa(layers: int = 2, width: int = 32, intermediate: int = 48, seed: int = 0) -> nn.Module:
    """A decoder whose key and value projections are narrower than its query projection."""
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=width,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_labels=2,
        bos_token_id=0,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    return _seeded(LlamaForSequenceClassification, config, seed)


def _seeded(cls: Any, config: Any, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return cls(config).eval()


def random_batch(batch: int = 4, length: int = 7, vocab: int = 100, seed: int = 0) -> dict[str, Tensor]:
    """Token ids with an end token each, right padding of several lengths, a mask and two classes."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocab, (batch, length), generator=rng)
    mask = torch.ones_like(ids)
    for row in range(batch):
        stop = length - row % (length - 1)
        ids[row, stop - 1] = EOS
        ids[row, stop:] = PAD
        mask[row, stop:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(batch) % 2}


def adapt(
    model: nn.Module,
    ranks: int | Mapping[str, int] = 4,
    *,
    targets: Any = "all-linear",
    scaling: float = 2.0,
    seed: int = 0,
    **spec: Any,
) -> tuple[Any, SiteSet]:
    """Inject LoRA of one rank, or of the ranks given by site (4 elsewhere), and its sites."""
    shapes = discover_sites(model, targets)
    wanted = {s.name: ranks if isinstance(ranks, int) else ranks.get(s.name, 4) for s in shapes}
    any_budget: Any = None
    starting = AdapterSpec(ranks=wanted, **spec)
    return inject(model, Preparation(any_budget, shapes, starting, head_modules(model), scaling, 0.0, seed))


def stir(sites: SiteSet, seed: int = 0, size: float = 0.2) -> None:
    """Give every adapter tensor random values, as training would: a fresh B is zero."""
    rng = torch.Generator().manual_seed(seed)
    for group in sites.groups():
        for tensor in vars(group[0].live()).values():
            if tensor is not None:
                tensor.data = size * torch.randn(tensor.shape, generator=rng)


def train_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> None:
    """Plain training on random batches, the same ones for the same seed."""
    model.train()
    for step in range(steps):
        model(**random_batch(seed=1000 * seed + step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that an optimizer gets."""
    return [p for p in model.parameters() if p.requires_grad]


@torch.no_grad()
def logits(model: nn.Module, seed: int = 0) -> Tensor:
    """What the model says about a fixed random batch, in eval mode."""
    model.eval()
    return model(**random_batch(seed=seed)).logits
