"""Keyed dropout, matmul attention, narrow frozen weights: computed faster is what would be computed anyway."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftprune.training.cpu import begin_step, make_fast
from peftprune.training.cpu.attention import matmul_attention, use_matmul_attention
from peftprune.training.cpu.dropout import KeyedDropout, MaskStream, use_keyed_dropout
from peftprune.training.cpu.precision import keep_frozen_weights_in
from tests.helpers import make_arm
from tests.reference import dropout as reference
from tests.tiny import adapt, logits, random_batch, stir, tiny_bart, tiny_llama_gqa
from tests.tiny import tiny_bert as make_bert

MODELS = {"bert": lambda: make_bert(dropout=0.1), "bart": tiny_bart, "llama": tiny_llama_gqa}


def stream(step: int = 0, rows: int = 8, seed: int = 1) -> MaskStream:
    masks = MaskStream(seed)
    masks.begin_step(step)
    masks.begin_batch(rows)
    return masks


def kept(*, step: int = 0, seed: int = 1, module: str = "a", size: int = 40_000, p: float = 0.1) -> Tensor:
    """Which elements stay, (8, size)."""
    return stream(step, seed=seed).mask(module, (8, size), p, torch.float32) != 0


# --- masks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 5), (1, 7)])
def test_masks_are_those_of_the_slow_twin(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    masks = stream(step=4, rows=5)
    masks.begin_batch(shape[0])  # the step's second micro-batch: five rows came before
    masks.mask("m", shape, 0.3, dtype)
    found = masks.mask("m", shape, 0.3, dtype)
    expected = reference.mask(1, 4, 5, "m", 1, shape[0], found[0].numel(), 0.3)
    assert found.shape == shape
    assert found.dtype == dtype
    assert torch.equal(found.reshape(shape[0], -1), expected.to(dtype))


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_the_share_of_kept_elements_is_that_of_dropout(p: float) -> None:
    found = kept(p=p)
    deviation = (p * (1 - p) / found.numel()) ** 0.5
    assert abs(found.float().mean() - (1 - p)) < 4 * deviation


def test_rows_modules_steps_seeds_and_calls_are_independent() -> None:
    masks = stream()
    again = [masks.mask("a", (8, 40_000), 0.1, torch.float32) != 0 for _ in range(2)]
    rows = [*kept(), *kept(module="b"), *kept(step=1), *kept(seed=2), *again[1]]
    correlation = torch.corrcoef(torch.stack(rows).float()).fill_diagonal_(0)
    # 780 pairs of 40,000 elements: chance stays below 4.5 standard deviations of 1 / √40,000.
    assert correlation.abs().max() < 4.5 / 200
    assert torch.equal(again[0], kept())


def test_neighbouring_elements_are_independent() -> None:
    found = kept(size=200_000)[0].float()
    for distance in (1, 2, 4, 64):
        pair = torch.stack([found[:-distance], found[distance:]])
        assert abs(torch.corrcoef(pair)[0, 1]) < 4.5 / 200_000**0.5


def test_splitting_a_step_changes_no_mask() -> None:
    whole = stream(rows=8).mask("a", (8, 33), 0.2, torch.float32)
    masks, parts = MaskStream(1), []
    for rows in (3, 4, 1):
        masks.begin_batch(rows)
        parts.append(masks.mask("a", (rows, 33), 0.2, torch.float32))
    assert torch.equal(torch.cat(parts), whole)
    masks.begin_step(1)
    masks.begin_batch(8)
    assert torch.equal(masks.mask("a", (8, 33), 0.2, torch.float32), stream(1).mask("a", (8, 33), 0.2, torch.float32))


def test_recomputation_finds_the_masks_of_the_forward_pass() -> None:
    masks = stream()
    given = [(n, masks.mask(n, (8, 50), 0.5, torch.float32)) for n in ("first", "shared", "shared", "last")]
    masks.end_batch()
    again = [(n, masks.mask(n, (8, 50), 0.5, torch.float32)) for n in ("last", "shared", "shared", "first")]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(given, reversed(again), strict=True))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_activation_checkpointing_changes_no_gradient() -> None:
    found = []
    for checkpointing in (False, True):
        model, sites = adapt(make_bert(dropout=0.2))
        stir(sites)
        make_fast(model, seed=0)
        if checkpointing:
            model.enable_input_require_grads()
            # Before transformers 5.23 it had another name.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        begin_step(model, 3)
        model.train()(**random_batch()).loss.backward()
        found.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# --- dropout -------------------------------------------------------------------------------------------------------


def test_a_layer_multiplies_by_its_mask_forwards_and_backwards() -> None:
    x = torch.randn(8, 6, requires_grad=True)
    y = KeyedDropout(0.4, stream(), "a")(x)
    y.sum().backward()
    mask = stream().mask("a", (8, 6), 0.4, torch.float32)
    assert torch.equal(y, x * mask)
    assert x.grad is not None
    assert torch.equal(x.grad, mask)


def test_a_layer_is_off_in_eval_mode_and_leaves_other_dtypes_to_torch() -> None:
    layer = KeyedDropout(0.5, stream(), "a")
    wide = layer(torch.ones(2000, dtype=torch.float64))
    assert 800 < int((wide == 2).sum()) == 2000 - int((wide == 0).sum()) < 1200
    x = torch.ones(3, 4)
    assert layer.eval()(x) is x


def test_only_active_dropouts_are_replaced() -> None:
    model = nn.Sequential(nn.Dropout(0.1), nn.Dropout(0.0), nn.Sequential(nn.Dropout(0.2))).eval()
    use_keyed_dropout(model, stream())
    assert [type(m) is KeyedDropout for m in model.modules() if not isinstance(m, nn.Sequential)] == [True, False, True]
    assert not model[0].training
    assert model[2][0].name == "2.0"


# --- attention -----------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """What a transformers attention layer shows to its attention function."""

    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.is_causal = causal
        self.num_key_value_groups = 2
        self.peftprune_masks = (stream(), "attention")


def attention_inputs() -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return tuple(torch.randn(8, heads, 5, 4, generator=rng) for heads in (4, 2, 2))  # type: ignore[return-value]


def formula(dropout: Tensor | float, additive: Tensor | float) -> Tensor:
    """softmax(Q Kᵀ / √width + mask) · dropout · V, with every key head serving two query heads."""
    q, k, v = attention_inputs()
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    weights = ((q @ k.transpose(2, 3)) / 2 + additive).softmax(-1) * dropout
    return (weights @ v).transpose(1, 2)


def test_attention_is_its_formula() -> None:
    seen = torch.ones(8, 1, 5, 5, dtype=torch.bool)
    seen[:, :, :, 3:] = False
    additive = torch.zeros(seen.shape).masked_fill(~seen, -1e30)
    mask = stream().mask("attention.weights", (8, 4, 5, 5), 0.3, torch.float32)
    for given in (seen, additive):
        found, _ = matmul_attention(Attention(), *attention_inputs(), given, dropout=0.3)
        torch.testing.assert_close(found, formula(mask, additive))
    torch.testing.assert_close(
        matmul_attention(Attention(), *attention_inputs(), None, dropout=0.3)[0], formula(mask, 0.0)
    )
    torch.testing.assert_close(matmul_attention(Attention(), *attention_inputs(), seen)[0], formula(1.0, additive))


def test_a_query_that_sees_nothing_is_no_nan() -> None:
    seen = torch.ones(8, 1, 5, 5, dtype=torch.bool)
    seen[0, :, 1] = False
    found, _ = matmul_attention(Attention(), *attention_inputs(), seen, dropout=0.3)
    assert torch.isfinite(found).all()


def test_a_causal_layer_without_a_mask_keeps_hiding_later_keys() -> None:
    torch.manual_seed(0)
    q, k, v = attention_inputs()
    found, _ = matmul_attention(Attention(causal=True), q, k, v, None, dropout=0.5)
    k[:, :, 3:], v[:, :, 3:] = 100.0, 100.0
    torch.manual_seed(0)
    changed, _ = matmul_attention(Attention(causal=True), q, k, v, None, dropout=0.5)
    assert torch.equal(found[:, :3], changed[:, :3])
    assert not torch.equal(found[:, 3:], changed[:, 3:])


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_is_untouched(name: str) -> None:
    model, sites = adapt(MODELS[name]())
    stir(sites)
    before = logits(model)
    use_keyed_dropout(model, stream())
    use_matmul_attention(model, stream())
    assert torch.equal(logits(model), before)


def test_training_with_attention_dropout_takes_the_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = adapt(make_bert(dropout=0.1))
    masks = stream(rows=4)
    use_matmul_attention(model, masks)
    asked: list[str] = []
    monkeypatch.setattr(
        masks, "mask", lambda name, shape, p, dtype: asked.append(name) or torch.ones(shape, dtype=dtype)
    )
    model.train()(**random_batch(), num_items_in_batch=4)
    assert [n.rpartition("layer.")[2] for n in asked] == ["0.attention.self.weights", "1.attention.self.weights"]


# --- precision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_frozen_weights_in_bfloat16_give_the_bits_of_autocast(name: str) -> None:
    base = MODELS[name]()
    model, sites = adapt(base)
    stir(sites)
    before = {n: (p.dtype, p.detach().clone()) for n, p in base.named_parameters()}
    with torch.autocast("cpu", torch.bfloat16):
        expected = logits(model)
        keep_frozen_weights_in(model, torch.bfloat16)
        assert torch.equal(logits(model), expected)
    assert all(p.dtype is torch.float32 for p in model.parameters() if p.requires_grad)
    assert any(p.dtype is torch.bfloat16 for p in model.parameters())
    assert all(p.dtype is d and torch.equal(p, old) for (n, p) in base.named_parameters() for d, old in [before[n]])


def test_gradients_agree_with_autocasts() -> None:
    model, sites = adapt(make_bert())
    stir(sites)
    narrow = copy.deepcopy(model)
    keep_frozen_weights_in(narrow, torch.bfloat16)
    found: list[dict[str, Any]] = []
    for m in (model, narrow):
        with torch.autocast("cpu", torch.bfloat16):
            loss = m(**random_batch()).loss
        loss.backward()
        found.append({n: p.grad for n, p in m.named_parameters() if p.requires_grad})
    for name, grad in found[0].items():
        error = (found[1][name] - grad).norm() / grad.norm().clamp(min=1e-12)
        assert error < 0.02, name  # bfloat16 has eight bits


@pytest.mark.parametrize(("method", "narrow"), [("lora", True), ("dora", False)])
def test_methods_that_read_the_weights_keep_their_precision(
    method: str, narrow: bool, tmp_path: Path, tiny_bert: Path
) -> None:
    model = make_arm(method, tmp_path, tiny_bert, dtype="bfloat16").build()[0]
    weights = [p for n, p in model.named_parameters() if n.endswith("base_layer.weight")]
    assert weights
    assert all((p.dtype is torch.bfloat16) == narrow for p in weights)
