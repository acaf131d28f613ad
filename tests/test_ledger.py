"""The ledger counts what is there: parameters, bytes and FLOPs."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoConfig, LlamaForCausalLM

from peftprune.adapters.inject import wrap
from peftprune.adapters.surgery import apply_plan
from peftprune.models import load_model
from peftprune.strategy.plan import PruningPlan
from peftprune.training import drift as drift_module
from peftprune.training.drift import drift
from peftprune.training.ledger import (
    BaseCost,
    Ledger,
    count_adapter,
    head_parameters,
    headroom,
    optimizer_bytes,
    peak_memory,
    stored_parameters,
)
from tests.helpers import tokenizer
from tests.reference import flops as slow
from tests.tiny import adapt, stir, tiny_bart, tiny_bert, train_steps, trainable

BASE = tiny_bert()
Q0, Q1 = (f"bert.encoder.layer.{i}.attention.self.query" for i in (0, 1))
UP = "bert.encoder.layer.0.intermediate.dense"
HEAD = 32 * 2 + 2


def plans():
    none = torch.zeros(32, 4, dtype=torch.bool)
    half = none.clone()
    half[:, :2] = True
    return {
        "nothing": PruningPlan(),
        "cut": PruningPlan(keep={UP: [1]}),
        "dropped": PruningPlan(drop=frozenset({UP, Q0})),
        "shared": PruningPlan(share=[[Q0, Q1]]),
        "zeroed": PruningPlan(zero={Q0: {"B": half}}),
    }


@pytest.mark.parametrize("case", plans())
@pytest.mark.parametrize("gate", ["none", "rank"])
def test_adapter_counts(case, gate):
    model, sites = adapt(BASE, gate=gate)
    stir(sites)
    apply_plan(sites, plans()[case])
    stored = nonzero = expanded = 0
    seen = set()
    for name, tensor in model.named_parameters(remove_duplicate=False):
        if ".lora_" not in name or name.endswith("rank_gate"):
            continue
        expanded += tensor.numel()
        if id(tensor) not in seen:
            seen.add(id(tensor))
            stored += tensor.numel()
            nonzero += sum(value != 0 for value in tensor.flatten().tolist())
    counts = count_adapter(sites)
    assert (counts.stored, counts.nonzero, counts.expanded) == (stored, nonzero, expanded)
    assert stored_parameters(sites) == stored
    assert (nonzero < stored) is (case == "zeroed")
    assert (stored < expanded) is (case == "shared")


def test_a_fresh_adapter_has_only_zeros_in_B():
    _, sites = adapt(BASE)
    assert count_adapter(sites).nonzero == sum(4 * s.d_in for s in sites.values())


@pytest.mark.parametrize("base", [tiny_bert(), tiny_bert(num_labels=3), tiny_bart()], ids=["2", "3", "bart"])
def test_head_parameters_are_what_is_trained_outside_the_sites(base):
    model, sites = adapt(base, gate="rank")
    others = [p for n, p in model.named_parameters() if p.requires_grad and ".lora_" not in n]
    assert head_parameters(model, sites) == sum(p.numel() for p in others) > 0


def test_head_parameters_stay_when_sites_are_dropped():
    model, sites = adapt(BASE)
    assert head_parameters(model, sites) == HEAD
    apply_plan(sites, PruningPlan(drop=frozenset({UP}), share=[[Q0, Q1]]))
    assert head_parameters(model, sites) == HEAD


def test_headroom_is_the_cheapest_unit_that_still_fits():
    _, sites = adapt(BASE, {UP: 32}, targets=["query", "intermediate.dense"])
    assert headroom(sites, {}) == 64
    assert headroom(sites, {"A": 0.5}) == 48
    _, full = adapt(BASE, 32, targets=["query"])
    assert headroom(full, {}) is None
    _, wide = adapt(BASE, 31, targets=["intermediate.dense"])
    assert headroom(wide, {"B": 0.25}) == 32 + 12


def test_optimizer_bytes_follow_the_cut():
    model, sites = adapt(BASE)
    optimizer = torch.optim.AdamW(trainable(model))
    assert optimizer_bytes(optimizer) == 0
    train_steps(model, optimizer, 1)
    tensors = trainable(model)
    # Two moments in float32 and a step of 4 bytes for each tensor.
    assert optimizer_bytes(optimizer) == sum(8 * p.numel() + 4 for p in tensors)
    before = optimizer_bytes(optimizer)
    apply_plan(sites, PruningPlan(keep={UP: [0]}), optimizer=optimizer)
    assert before - optimizer_bytes(optimizer) == 8 * 3 * sites[UP].unit_cost


def test_peak_memory_is_at_least_what_python_itself_takes():
    assert peak_memory() > (0 if torch.cuda.is_available() else 10**7)


# --- FLOPs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("plan", [PruningPlan(), PruningPlan(keep={UP: [0]}, drop=frozenset({Q0}))])
def test_flops_agree_with_counting_one_product_after_another(train, plan):
    _, sites = adapt(BASE)
    apply_plan(sites, plan)
    linears = [(s.d_in, s.d_out) for s in sites.values()]
    cost = BaseCost(linear_params=sum(a * b for a, b in linears), attention_width=2 * 32)
    found = cost.step_flops(12, 6.0, sites, train)
    adapters = [(s.rank, s.d_in, s.d_out) for s in sites.values()]
    assert found == slow.step_flops(12, 6, linears, [32, 32], adapters, train)


def test_sharing_saves_parameters_but_no_flops():
    _, sites = adapt(BASE)
    cost = BaseCost(1000, 64)
    before = cost.step_flops(12, 6.0, sites, True)
    apply_plan(sites, PruningPlan(share=[[Q0, Q1]]))
    assert cost.step_flops(12, 6.0, sites, True) == before


# --- the record ----------------------------------------------------------------------------------------------------


def test_the_record_of_a_finished_arm():
    model, sites = adapt(BASE, targets=["query"])
    stir(sites)
    apply_plan(sites, PruningPlan(share=[[Q0, Q1]], keep={Q0: [0, 1, 2]}))
    ledger = Ledger(base_flops=3.0, adapter_flops=1.0, phase_seconds={"a": 1.5, "b": 2.0}, evaluation_seconds=9.0)
    ledger.add_final(sites, model)
    values = ledger.as_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["final_params"] == values["unique_params"] == values["nonzero_params"]
    assert values["final_params"] == sites[Q0].rank * 64
    assert values["expanded_params"] == 2 * values["final_params"]
    assert values["head_params"] == HEAD
    assert values["seconds"] == 3.5
    assert values["flops"] == 4.0


# --- drift ------------------------------------------------------------------------------------------------------------

TEXT = Path(drift_module.__file__).with_suffix(".txt").read_text().splitlines()


def as_trained(model):
    return SimpleNamespace(model=model, accelerator=SimpleNamespace(autocast=contextlib.nullcontext))


def adapted(loaded, task_type):
    """The model with an adapter that changes it; dropout would show if the model were not evaluated."""
    torch.manual_seed(0)
    targets = ["query", "value"] if task_type == "SEQ_CLS" else ["q_proj", "v_proj"]
    config = LoraConfig(task_type, target_modules=targets, lora_dropout=0.5, init_lora_weights=False)
    return wrap(copy.deepcopy(loaded.model), config, []).train()


@pytest.mark.parametrize(("architecture", "kind"), [("bert", "classification"), ("llama", "generation")])
def test_drift_is_what_the_lines_give_one_by_one(architecture, kind, tiny_models, tmp_path):
    folder = tiny_models[architecture]
    if kind == "generation":
        folder = tmp_path / "decoder"
        LlamaForCausalLM(AutoConfig.from_pretrained(tiny_models[architecture])).save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    loaded = load_model(folder, kind=kind)
    model = adapted(loaded, "SEQ_CLS" if kind == "classification" else "CAUSAL_LM")
    state = torch.get_rng_state()
    found = drift(as_trained(model), loaded)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(layer.disable_adapters for layer in model.modules() if isinstance(layer, BaseTunerLayer))
    rises, cosines, tokens = [], [], 0
    for line in TEXT:
        inputs = loaded.tokenizer(line, return_tensors="pt", truncation=True, max_length=32)
        both = [m(**inputs, output_hidden_states=True) for m in (model, loaded.model)]
        cosines.append(torch.cosine_similarity(*(out.hidden_states[-1][0].mean(0) for out in both), dim=0).item())
        if kind == "generation":
            logits, labels = [out.logits[0, :-1] for out in both], inputs["input_ids"][0, 1:]
            now, before = (torch.nn.functional.cross_entropy(x, labels, reduction="sum").item() for x in logits)
            rises.append(now - before)
            tokens += len(labels)
    expected = sum(rises) / tokens if kind == "generation" else 1 - sum(cosines) / len(cosines)
    assert abs(expected) > 1e-3
    assert found == pytest.approx(expected, rel=1e-3)


def test_a_model_without_an_adapter_is_compared_with_the_one_it_came_from(tiny_models):
    loaded = load_model(tiny_models["bert"])
    model = copy.deepcopy(loaded.model)
    assert drift(as_trained(model), loaded) == pytest.approx(0, abs=1e-12)
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.bias[0] += 5
    assert drift(as_trained(model), loaded) > 1e-3
    # A model that cannot read the text loses nothing else.
    model.forward = None
    assert drift(as_trained(model), loaded) is None


def test_the_text_has_short_lines_of_plain_words():
    assert len(TEXT) == len(set(TEXT)) == 20
    assert all(line.isascii() and len(line.split()) <= 16 for line in TEXT)
