"""Surgery changes what a plan says and nothing else: tensors, optimizer state and PEFT's book-keeping stay true."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from torch import nn

from peftprune.adapters.surgery import (
    add_gates,
    apply_plan,
    check_optimizer,
    fold,
    freeze_components,
    restore_structure,
    set_multipliers,
    structure,
)
from peftprune.errors import RunError
from peftprune.strategy.plan import PruningPlan
from peftprune.training.ledger import count_adapter, stored_parameters
from tests.reference.masking import compact, mask_plan, masked
from tests.tiny import adapt, logits, random_batch, stir, tiny_bert, train_steps, trainable

BASE = tiny_bert()
LAYER = "bert.encoder.layer.{}.attention.self.{}"
Q0, K0, V0, Q1, V1 = (
    LAYER.format(i, k) for i, k in ((0, "query"), (0, "key"), (0, "value"), (1, "query"), (1, "value"))
)
UP = "bert.encoder.layer.0.intermediate.dense"

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def model_and_sites():
    model, sites = adapt(BASE)
    stir(sites)
    return model, sites


def assert_consistent(model, sites):
    """Everything PEFT and the sites say about ranks is true, and the model runs."""
    config = sites.peft_config
    assert isinstance(config, LoraConfig)
    alive = {n: s for n, s in sites.items() if not s.is_dropped}
    if alive:
        assert set(config.target_modules) == set(alive)
        assert config.r == max(s._lora_A.weight.shape[0] for s in alive.values())
    for name, site in sites.items():
        layer = site._layer
        if site.is_dropped:
            assert site.rank == layer.r["default"] == 0
            assert "default" not in layer.lora_B
            continue
        stored = site._lora_A.weight.shape[0]
        assert site._lora_A.weight.shape == (stored, site.d_in)
        assert site._lora_B.weight.shape == (site.d_out, stored)
        assert site.A.shape == (site.rank, site.d_in)
        assert site.B.shape == (site.d_out, site.rank)
        assert layer.r["default"] == site._lora_A.out_features == site._lora_B.in_features == stored
        assert layer.lora_alpha["default"] == pytest.approx(site.scaling * stored)
        assert layer.scaling["default"] == 2.0
        assert _from_pattern(config.rank_pattern, name, config.r) == stored
        assert _from_pattern(config.alpha_pattern, name, config.lora_alpha) == pytest.approx(2.0 * stored)
        if site.gate is not None and site._lora_A.gate_per_rank:
            assert site._lora_A.rank_gate.shape == (stored,)
    assert torch.isfinite(logits(model)).all()


def _from_pattern(pattern, name, default):
    """The value that PEFT reads for a module: its own matching rule."""
    found = [v for k, v in pattern.items() if re.match(rf"(.*\.)?({k})$", name)]
    assert len(found) <= 1
    return found[0] if found else default


def snapshot(model, sites):
    """Everything a refused plan might have changed."""
    config = copy.deepcopy(sites.peft_config.to_dict())
    names = {n: (id(p), p.detach().clone()) for n, p in model.named_parameters(remove_duplicate=False)}
    return config, names, structure(sites)


def assert_unchanged(before, model, sites):
    after = snapshot(model, sites)
    assert before[0] == after[0]
    assert before[1].keys() == after[1].keys()
    for name, (identity, value) in before[1].items():
        assert identity == after[1][name][0], name
        assert torch.equal(value, after[1][name][1]), name
    assert before[2] == after[2]


# --- cutting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_cut_slices_parameters_and_optimizer_state_in_place(kind):
    model, sites = adapt(BASE)
    optimizer = OPTIMIZERS[kind](trainable(model))
    train_steps(model, optimizer, 3)
    site = sites[UP]
    A, B = site._lora_A.weight, site._lora_B.weight
    before = {id(p): {k: torch.as_tensor(v).clone() for k, v in optimizer.state[p].items()} for p in (A, B)}
    values = A.detach().clone(), B.detach().clone()
    assert any(v.shape == A.shape and v.any() for v in before[id(A)].values())

    apply_plan(sites, PruningPlan(keep={UP: [0, 2]}), optimizer=optimizer)

    assert site._lora_A.weight is A
    assert site._lora_B.weight is B
    assert torch.equal(A, values[0][[0, 2]])
    assert torch.equal(B, values[1][:, [0, 2]])
    for param, index in ((A, ([0, 2],)), (B, (slice(None), [0, 2]))):
        for key, old in before[id(param)].items():
            expected = old[index] if old.dim() == 2 else old
            assert torch.equal(torch.as_tensor(optimizer.state[param][key]), expected), key
    train_steps(model, optimizer, 2, seed=1)
    assert_consistent(model, sites)


def test_a_cut_slices_a_gradient_that_is_there(model_and_sites):
    model, sites = model_and_sites
    model(**random_batch()).loss.backward()
    grad_A, grad_B = sites[UP].grad_A.clone(), sites[UP].grad_B.clone()
    apply_plan(sites, PruningPlan(keep={UP: [1, 3]}))
    assert torch.equal(sites[UP].grad_A, grad_A[[1, 3]])
    assert torch.equal(sites[UP].grad_B, grad_B[:, [1, 3]])


def test_a_cut_model_computes_what_the_zeroed_one_does(model_and_sites):
    model, sites = model_and_sites
    keep = {name: [k for k in range(4) if (k + i) % 3] for i, name in enumerate(sites)}
    twin = copy.deepcopy(model)
    for name in sites:
        B = twin.get_base_model().get_submodule(name).lora_B["default"].weight
        for k in set(range(4)) - set(keep[name]):
            B.data[:, k] = 0
    before = logits(model)
    apply_plan(sites, PruningPlan(keep=keep))
    torch.testing.assert_close(logits(model), logits(twin), atol=1e-6, rtol=0)
    assert not torch.allclose(logits(model), before, atol=1e-4)
    assert_consistent(model, sites)


def test_a_gate_is_cut_along():
    model, sites = adapt(BASE, gate="rank")
    stir(sites)
    gate = sites[UP].gate.clone()
    apply_plan(sites, PruningPlan(keep={UP: [1, 2]}))
    assert torch.equal(sites[UP].gate, gate[[1, 2]])
    assert_consistent(model, sites)


# --- masks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", ["none", "rank", "site"])
def test_masked_and_cut_models_train_alike(gate):
    """The same plan, masked and cut: equal outputs now and after 50 more steps, and the same model once compacted."""
    models = [adapt(BASE, gate=gate) for _ in range(2)]
    models[1] = models[1][0], masked(models[1][1])
    optimizers = [OPTIMIZERS["adamw"](trainable(m)) for m, _ in models]
    keep = {n: [[0, 2], [1, 2, 3], [3]][i % 3] for i, n in enumerate(models[0][1])}
    for (model, sites), optimizer, apply in zip(models, optimizers, (apply_plan, mask_plan), strict=True):
        stir(sites)
        train_steps(model, optimizer, 3)
        apply(sites, PruningPlan(keep=keep), optimizer=optimizer)
        assert sites.ranks == {n: len(k) for n, k in keep.items()}
    (cut, cut_sites), (twin, twin_sites) = models
    torch.testing.assert_close(logits(twin), logits(cut), atol=1e-6, rtol=0)
    assert stored_parameters(cut_sites) == stored_parameters(twin_sites)

    for (model, _), optimizer in zip(models, optimizers, strict=True):
        train_steps(model, optimizer, 50, seed=1)
    torch.testing.assert_close(logits(twin), logits(cut), atol=1e-5, rtol=0)

    before = logits(twin)
    compact(twin_sites, optimizers[1])
    torch.testing.assert_close(logits(twin), before, atol=1e-6, rtol=0)
    assert_consistent(twin, twin_sites)
    for name, site in cut_sites.items():
        other = twin_sites[name]
        torch.testing.assert_close(other.A, site.A, atol=1e-5, rtol=0)
        torch.testing.assert_close(other.B, site.B, atol=1e-5, rtol=0)
        for mine, theirs in ((site._lora_A, other._lora_A), (site._lora_B, other._lora_B)):
            moments = optimizers[0].state[mine.weight], optimizers[1].state[theirs.weight]
            torch.testing.assert_close(*(m["exp_avg"] for m in moments), atol=1e-5, rtol=0)
            assert moments[0]["exp_avg_sq"].shape == moments[1]["exp_avg_sq"].shape
    for (model, _), optimizer in zip(models, optimizers, strict=True):
        train_steps(model, optimizer, 2, seed=2)
    torch.testing.assert_close(logits(twin), logits(cut), atol=1e-5, rtol=0)


# --- growing, dropping, sharing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", ["none", "rank", "site"])
def test_growing_does_not_change_the_function(gate):
    model, sites = adapt(BASE, gate=gate)
    stir(sites)
    optimizer = OPTIMIZERS["adamw"](trainable(model))
    train_steps(model, optimizer, 2)
    before, A = logits(model), sites[UP]._lora_A.weight
    old = A.detach().clone()
    apply_plan(sites, PruningPlan(grow={UP: 3, Q0: 1}), optimizer=optimizer, rng=rng())
    torch.testing.assert_close(logits(model), before, atol=1e-6, rtol=0)
    assert sites[UP]._lora_A.weight is A
    assert torch.equal(A[:4], old)
    assert (A[4:] != 0).all()
    assert A[4:].abs().max() <= sites[UP].d_in ** -0.5
    assert not optimizer.state[A]["exp_avg"][4:].any()
    assert sites.ranks[UP] == 7
    assert_consistent(model, sites)
    train_steps(model, optimizer, 2, seed=1)
    assert sites[UP].B[:, 4:].any()


def test_a_dropped_site_costs_nothing_and_leaves_the_config():
    model, sites = adapt(BASE)
    stir(sites)
    optimizer = OPTIMIZERS["adamw"](trainable(model))
    train_steps(model, optimizer, 1)
    gone = {id(sites[UP]._lora_A.weight), id(sites[UP]._lora_B.weight)}
    cost = count_adapter(sites).stored
    apply_plan(sites, PruningPlan(drop=frozenset({UP})), optimizer=optimizer)
    assert count_adapter(sites).stored == cost - 4 * sites[UP].unit_cost
    assert not gone & {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not gone & {id(p) for p in optimizer.state}
    assert not gone & {id(p) for p in model.parameters()}
    assert UP not in sites.peft_config.target_modules
    assert_consistent(model, sites)
    train_steps(model, optimizer, 1, seed=1)
    with pytest.raises(RunError, match=f"site '{UP}' was dropped.*Skip sites whose rank is 0"):
        _ = sites[UP].A


def test_a_dropped_layer_computes_what_the_base_layer_does(model_and_sites):
    model, sites = model_and_sites
    apply_plan(sites, PruningPlan(drop=frozenset(sites)))
    with model.disable_adapter():
        expected = logits(model)
    assert torch.equal(logits(model), expected)


def test_keeping_nothing_is_dropping(model_and_sites):
    model, sites = model_and_sites
    apply_plan(sites, PruningPlan(keep={UP: []}))
    assert sites[UP].is_dropped
    assert_consistent(model, sites)


def test_sharing_ties_and_counts_once():
    model, sites = adapt(BASE)
    stir(sites)
    optimizer = OPTIMIZERS["adamw"](trainable(model))
    train_steps(model, optimizer, 1)
    dead = [sites[n]._lora_A.weight for n in (Q1, K0)] + [sites[n]._lora_B.weight for n in (Q1, K0)]
    values = sites[Q0].A.clone(), sites[Q0].B.clone()
    before = count_adapter(sites)
    apply_plan(sites, PruningPlan(share=[[Q0, Q1, K0]]), optimizer=optimizer)

    after = count_adapter(sites)
    assert after.expanded == before.stored
    assert after.stored == before.stored - 2 * 4 * sites[Q0].unit_cost
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert not {id(p) for p in dead} & (set(held) | {id(p) for p in optimizer.state})
    assert set(sites.shared_with()[Q1]) == {Q0, K0}
    for name in (Q0, Q1, K0):
        assert torch.equal(sites[name].A, values[0])
        assert torch.equal(sites[name].B, values[1])
    assert_consistent(model, sites)
    train_steps(model, optimizer, 2, seed=1)
    assert sites[Q1]._lora_A.weight is sites[Q0]._lora_A.weight
    assert not torch.equal(sites[Q1].A, values[0])


@pytest.mark.parametrize(
    "plan",
    [
        PruningPlan(keep={Q1: [1, 2]}),
        PruningPlan(keep={Q0: [1, 2], Q1: [1, 2]}),
        PruningPlan(grow={Q1: 2}),
        PruningPlan(reinit={Q1: 3}),
        PruningPlan(assign={Q1: {"A": torch.full((4, 32), 0.5)}}),
        PruningPlan(zero={Q1: {"B": torch.ones(32, 4, dtype=torch.bool)}}),
    ],
    ids=["keep", "keep named twice", "grow", "reinit", "assign", "zero"],
)
def test_what_changes_one_tied_site_changes_all(model_and_sites, plan):
    model, sites = model_and_sites
    apply_plan(sites, PruningPlan(share=[[Q0, Q1]]))
    old = sites[Q0].A.clone(), sites[Q0].B.clone()
    apply_plan(sites, plan, rng=rng())
    assert sites[Q0]._lora_A.weight is sites[Q1]._lora_A.weight
    assert sites[Q0]._lora_B.weight is sites[Q1]._lora_B.weight
    assert sites[Q0].rank == sites[Q1].rank
    assert sites[Q0].rank != 4 or not all(
        torch.equal(a, b) for a, b in zip(old, (sites[Q0].A, sites[Q0].B), strict=True)
    )
    assert_consistent(model, sites)


def test_dropping_one_tied_site_leaves_the_others(model_and_sites):
    model, sites = model_and_sites
    optimizer = OPTIMIZERS["adamw"](trainable(model))
    apply_plan(sites, PruningPlan(share=[[Q0, Q1]]), optimizer=optimizer)
    A = sites[Q0]._lora_A.weight
    apply_plan(sites, PruningPlan(drop=frozenset({Q1})), optimizer=optimizer)
    assert sites[Q0]._lora_A.weight is A
    assert any(p is A for group in optimizer.param_groups for p in group["params"])
    assert_consistent(model, sites)


@pytest.mark.parametrize("gate", ["rank", "site"])
def test_sharing_sites_share_their_gate_too(gate):
    model, sites = adapt(BASE, {Q1: 2}, gate=gate)
    stir(sites)
    apply_plan(sites, PruningPlan(share=[[Q0, Q1]]))
    assert torch.equal(sites[Q0].gate, sites[Q1].gate)
    assert_consistent(model, sites)
    before = logits(model)
    fold(sites)
    torch.testing.assert_close(logits(model), before, atol=1e-6, rtol=0)


# --- starting afresh -----------------------------------------------------------------------------------------------


def test_reinit_starts_afresh_without_state():
    model, sites = adapt(BASE)
    optimizer = OPTIMIZERS["adamw"](trainable(model))
    train_steps(model, optimizer, 2)
    A, B = sites[UP]._lora_A.weight, sites[UP]._lora_B.weight
    old = A.detach().clone()
    apply_plan(sites, PruningPlan(reinit={UP: 6}), optimizer=optimizer, rng=rng())
    assert sites[UP]._lora_A.weight is A
    assert sites[UP]._lora_B.weight is B
    assert A.shape == (6, sites[UP].d_in)
    assert not B.any()
    assert not torch.equal(A[:4], old)
    assert 0 < A.abs().max() <= sites[UP].d_in ** -0.5
    assert A not in optimizer.state
    assert B not in optimizer.state
    assert_consistent(model, sites)
    train_steps(model, optimizer, 2, seed=1)
    assert sites[UP].B.any()


def test_reinit_gives_a_dropped_site_an_adapter_again():
    model, sites = adapt(BASE)
    stir(sites)
    rows, columns = ([getattr(s, part).weight for s in sites.values()] for part in ("_lora_A", "_lora_B"))
    optimizer = torch.optim.AdamW([{"params": rows, "lr": 0.1}, {"params": columns, "lr": 0.2}])
    apply_plan(sites, PruningPlan(drop=frozenset({UP})), optimizer=optimizer)
    before = logits(model)
    apply_plan(sites, PruningPlan(reinit={UP: 3}), optimizer=optimizer, rng=rng())
    torch.testing.assert_close(logits(model), before, atol=1e-6, rtol=0)
    assert sites.ranks[UP] == 3
    home = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert home[id(sites[UP]._lora_A.weight)] == 0.1
    assert home[id(sites[UP]._lora_B.weight)] == 0.2
    assert_consistent(model, sites)
    train_steps(model, optimizer, 2)
    assert sites[UP].B.any()


def test_reinit_and_grow_depend_on_the_generator_alone():
    found = []
    for seed in (1, 1, 2):
        _, sites = adapt(BASE)
        torch.manual_seed(len(found))
        apply_plan(sites, PruningPlan(reinit={UP: 6}, grow={Q0: 2}), rng=rng(seed))
        found.append(torch.cat([sites[UP].A.flatten(), sites[Q0].A.flatten()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_reset_optimizer_clears_the_state(model_and_sites):
    model, sites = model_and_sites
    optimizer = OPTIMIZERS["adamw"](trainable(model))
    train_steps(model, optimizer, 1)
    assert optimizer.state
    apply_plan(sites, PruningPlan(reset_optimizer=True), optimizer=optimizer)
    assert not optimizer.state


def test_assign_writes_and_keeps_the_parameter(model_and_sites):
    model, sites = model_and_sites
    A = sites[UP]._lora_A.weight
    values = torch.full((4, 32), 0.25)
    apply_plan(sites, PruningPlan(assign={UP: {"A": values}}))
    assert sites[UP]._lora_A.weight is A
    assert torch.equal(A, values)
    assert_consistent(model, sites)


def test_assign_takes_the_shape_that_the_same_plan_leaves(model_and_sites):
    """A cut together with new values for the survivors, as a rewind does."""
    model, sites = model_and_sites
    values = {"A": torch.full((2, 32), 0.25), "B": torch.full((48, 2), 0.5)}
    apply_plan(sites, PruningPlan(keep={UP: [1, 3]}, assign={UP: values}))
    assert torch.equal(sites[UP].A, values["A"])
    assert torch.equal(sites[UP].B, values["B"])
    assert_consistent(model, sites)


@pytest.mark.parametrize("moments", ["keep", "zero"])
def test_zero_with_and_without_moments(moments):
    model, sites = adapt(BASE)
    stir(sites)
    optimizer = OPTIMIZERS["adamw"](trainable(model))
    train_steps(model, optimizer, 2)
    A = sites[UP]._lora_A.weight
    mask = torch.zeros(A.shape, dtype=torch.bool)
    mask[:, ::2] = True
    expected, state = A.detach().masked_fill(mask, 0), {k: v.clone() for k, v in optimizer.state[A].items()}
    apply_plan(sites, PruningPlan(zero={UP: {"A": mask}}, moments=moments), optimizer=optimizer)
    assert torch.equal(A, expected)
    for key in ("exp_avg", "exp_avg_sq"):
        wanted = state[key].masked_fill(mask, 0) if moments == "zero" else state[key]
        assert torch.equal(optimizer.state[A][key], wanted)
    assert optimizer.state[A]["step"] == 2


# --- gates, multipliers, folding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rank", "site"])
def test_gates_scale_components(kind):
    model, sites = adapt(BASE)
    stir(sites)
    before = logits(model)
    add_gates(sites, kind, 1.0)
    torch.testing.assert_close(logits(model), before, atol=1e-6, rtol=0)
    assert sites[UP].gate.shape == ((4,) if kind == "rank" else (1,))
    gate = torch.tensor([2.0, 0.0, -1.0, 0.5]) if kind == "rank" else torch.tensor([-3.0])
    twin_model, twin = adapt(BASE)
    stir(twin)
    apply_plan(twin, PruningPlan(assign={UP: {"B": twin[UP].B * gate}}))
    apply_plan(sites, PruningPlan(assign={UP: {"gate": gate}}))
    torch.testing.assert_close(logits(model), logits(twin_model), atol=1e-6, rtol=0)
    assert any(p is sites[UP]._lora_A.rank_gate for p in trainable(model))
    model(**random_batch()).loss.backward()
    assert sites[UP].grad_gate.shape == gate.shape
    assert sites[UP].grad_gate.any()


@pytest.mark.parametrize("kind", ["none", "rank", "site"])
def test_folding_keeps_the_function(kind):
    model, sites = adapt(BASE, gate=kind)
    stir(sites)
    apply_plan(sites, PruningPlan(keep={UP: [0, 3]}, drop=frozenset({V1}), share=[[Q0, Q1]]))
    before = logits(model)
    fold(sites)
    torch.testing.assert_close(logits(model), before, atol=1e-6, rtol=0)
    for site in (s for s in sites.values() if not s.is_dropped):
        assert site.scaling == 1.0
        assert site.gate is None
        assert site._layer.lora_alpha["default"] == site._layer.r["default"] == site.rank
    assert not any("rank_gate" in name for name, _ in model.named_parameters())
    assert sites.peft_config.lora_alpha == sites.peft_config.r
    assert sites.peft_config.alpha_pattern == sites.peft_config.rank_pattern
    fold(sites)
    torch.testing.assert_close(logits(model), before, atol=1e-6, rtol=0)


def test_multipliers_scale_components_until_they_are_removed(model_and_sites):
    model, sites = model_and_sites
    before = logits(model)
    factor = torch.tensor([1.0, 1.0, 0.0, 0.0])
    set_multipliers(sites, {UP: factor})
    twin_model, twin = adapt(BASE)
    stir(twin)
    apply_plan(twin, PruningPlan(assign={UP: {"B": twin[UP].B * factor}}))
    torch.testing.assert_close(logits(model), logits(twin_model), atol=1e-6, rtol=0)
    assert not torch.allclose(logits(model), before, atol=1e-5)
    model(**random_batch()).loss.backward()
    assert not sites[UP].grad_A[2:].any()
    assert sites[UP].grad_A[:2].any()
    set_multipliers(sites, None)
    assert torch.equal(logits(model), before)


def test_frozen_components_have_no_gradient_until_the_handles_go(model_and_sites):
    model, sites = model_and_sites
    handles = freeze_components(sites, {UP: torch.tensor([True, False, True, False])})
    model(**random_batch()).loss.backward()
    assert sites[UP].grad_A.any(1).tolist() == sites[UP].grad_B.any(0).tolist() == [False, True, False, True]
    for handle in handles:
        handle.remove()
    model(**random_batch()).loss.backward()
    assert sites[UP].grad_A.any(1).all()


# --- saving and restoring ------------------------------------------------------------------------------------------


def changed_everything(sites):
    apply_plan(
        sites,
        PruningPlan(keep={UP: [0, 2]}, drop=frozenset({V1, K0}), share=[[Q0, Q1]], grow={Q0: 2}),
        rng=rng(),
    )


def test_a_structure_is_restored_into_a_fresh_model(model_and_sites):
    model, sites = model_and_sites
    changed_everything(sites)
    target, fresh = adapt(BASE)
    restore_structure(fresh, structure(sites))
    assert structure(fresh) == structure(sites)
    assert fresh[Q0]._lora_A.weight is fresh[Q1]._lora_A.weight
    target.load_state_dict(model.state_dict())
    assert torch.equal(logits(target), logits(model))
    assert_consistent(target, fresh)


def test_restoring_revives_a_site_that_starts_without_adapter():
    model, sites = adapt(BASE, {UP: 0})
    apply_plan(sites, PruningPlan(reinit={UP: 3}), rng=rng())
    target, fresh = adapt(BASE, {UP: 0})
    restore_structure(fresh, structure(sites))
    target.load_state_dict(model.state_dict())
    assert fresh.ranks == sites.ranks
    assert torch.equal(logits(target), logits(model))


# --- refusals ------------------------------------------------------------------------------------------------------

WRONG = torch.zeros(3, 3)
REFUSED = {
    "unknown site": (PruningPlan(keep={"nowhere": [0]}), r"'nowhere' is not a site\. Take names from view\.sites"),
    "unknown in share": (PruningPlan(share=[[Q0, "nowhere"]]), "'nowhere' is not a site"),
    "unknown in drop": (PruningPlan(drop=frozenset({"nowhere"})), "'nowhere' is not a site"),
    "keep out of range": (PruningPlan(keep={UP: [0, 4]}), r"\[0, 4\] is not ascending within 0\.\.3.*keep_top"),
    "keep negative": (PruningPlan(keep={UP: [-1, 2]}), "not ascending"),
    "keep unsorted": (PruningPlan(keep={UP: [2, 1]}), "not ascending"),
    "keep twice": (PruningPlan(keep={UP: [1, 1]}), "not ascending"),
    "keep of a dropped site": (PruningPlan(keep={V1: [0]}), rf"'{V1}' was dropped before\. Use reinit"),
    "grow of a dropped site": (PruningPlan(grow={V1: 1}), "dropped before"),
    "share with a dropped site": (PruningPlan(share=[[V0, V1]]), "dropped"),
    "share led by a dropped site": (PruningPlan(share=[[V1, V0]]), "dropped"),
    "zero of a dropped site": (PruningPlan(zero={V1: {"A": WRONG.bool()}}), "dropped before"),
    "keep and drop": (PruningPlan(drop=frozenset({UP}), keep={UP: [0]}), "drop"),
    "grow and drop": (PruningPlan(drop=frozenset({UP}), grow={UP: 1}), "drop"),
    "grow too far": (PruningPlan(grow={UP: 29}), r"plan\.grow.*29 does not fit; ranks end at 32"),
    "grow nothing": (PruningPlan(grow={UP: 0}), r"plan\.grow.*0 does not fit"),
    "reinit and grow too far": (PruningPlan(reinit={UP: 32}, grow={UP: 1}), r"plan\.grow.*does not fit"),
    "reinit to 0": (PruningPlan(reinit={UP: 0}), r"plan\.reinit.*0 is outside 1\.\.32\. Use drop"),
    "reinit too large": (PruningPlan(reinit={UP: 33}), "33 is outside"),
    "share unlike shapes": (PruningPlan(share=[[Q0, UP]]), "different shapes.*Share like with like"),
    "share of nothing": (PruningPlan(share=[[]]), "share"),
    "assign of another shape": (PruningPlan(assign={UP: {"A": WRONG}}), r"has shape .*4, 32.*not .*3, 3"),
    "zero of another shape": (PruningPlan(zero={UP: {"B": WRONG.bool()}}), r"has shape .*48, 4.*not .*3, 3"),
    "gate that is not there": (PruningPlan(assign={UP: {"gate": torch.ones(4)}}), "gate"),
    "unknown tensor": (PruningPlan(assign={UP: {"C": torch.ones(4)}}), "C"),
    "tied sites kept unlike": (PruningPlan(keep={Q0: [0], Q1: [1]}), "tied|share"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_plan_is_refused_and_changes_nothing(model_and_sites, case):
    model, sites = model_and_sites
    apply_plan(sites, PruningPlan(drop=frozenset({V1}), share=[[Q0, Q1]]))
    plan, message = REFUSED[case]
    before = snapshot(model, sites)
    with pytest.raises(RunError, match=message):
        apply_plan(sites, plan, rng=rng())
    assert_unchanged(before, model, sites)


@pytest.mark.parametrize("plan", [PruningPlan(grow={UP: 1}, drop=frozenset({Q0})), PruningPlan(reinit={UP: 1})])
def test_drawing_new_rows_needs_a_generator(model_and_sites, plan):
    model, sites = model_and_sites
    before = snapshot(model, sites)
    with pytest.raises(RunError, match=r"needs a generator\. Pass rng"):
        apply_plan(sites, plan)
    assert_unchanged(before, model, sites)


# --- sequences -----------------------------------------------------------------------------------------------------


@st.composite
def steps(draw):
    """Three choices from which the test makes plans that fit the sites as they are then."""
    kinds = st.sampled_from(["rotate", "keep", "grow", "drop", "reinit", "share", "zero", "assign", "train"])
    return draw(st.lists(st.tuples(kinds, st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=8))


def fitting_plan(sites, kind, a, b):
    names = [n for n, s in sites.items() if not s.is_dropped]
    if kind == "reinit":
        return PruningPlan(reinit={list(sites)[a % len(sites)]: 1 + b % 6})
    if len(names) < 4:
        return PruningPlan()
    name = names[a % len(names)]
    site = sites[name]
    if kind == "rotate":
        return PruningPlan(rotate={name: tuple(torch.randn(2, site.rank, site.rank, generator=rng(b)))})
    if kind == "keep":
        return PruningPlan(keep={name: sorted({b % site.rank, b // 7 % site.rank})})
    if kind == "grow":
        return PruningPlan(grow={name: 1 + b % 3})
    if kind == "drop":
        return PruningPlan(drop=frozenset({name}))
    if kind == "zero":
        return PruningPlan(zero={name: {"A": torch.rand(site.A.shape, generator=rng(b)) < 0.5}}, moments="zero")
    if kind == "assign":
        return PruningPlan(assign={name: {"B": torch.randn(site.B.shape, generator=rng(b))}})
    like = [n for n in names if (sites[n].d_in, sites[n].d_out) == (site.d_in, site.d_out)]
    return PruningPlan(share=[[name, like[b % len(like)]]])


@given(sequence=steps())
@settings(deadline=None, max_examples=30)
def test_any_sequence_of_plans_leaves_everything_consistent(sequence):
    model, sites = adapt(BASE)
    stir(sites)
    optimizer = OPTIMIZERS["adamw"](trainable(model))
    for kind, a, b in [*sequence, ("train", 0, 0)]:
        if kind == "train":
            train_steps(model, optimizer, 1, seed=a)
        else:
            apply_plan(sites, fitting_plan(sites, kind, a, b), optimizer=optimizer, rng=rng(b))
        held = [p for group in optimizer.param_groups for p in group["params"]]
        assert {id(p) for p in held} == {id(p) for p in trainable(model)}
        assert len(held) == len({id(p) for p in held})
        for param, state in optimizer.state.items():
            assert any(param is p for p in held)
            assert state["exp_avg"].shape == param.shape
    assert_consistent(model, sites)
    assert stored_parameters(sites) == count_adapter(sites).stored


def test_an_empty_plan_changes_nothing(model_and_sites):
    model, sites = model_and_sites
    before = snapshot(model, sites)
    plan = PruningPlan()
    assert plan.is_empty
    apply_plan(sites, plan)
    after = snapshot(model, sites)
    assert before[2] == after[2]
    for name, (identity, value) in before[1].items():
        assert identity == after[1][name][0]
        assert torch.equal(value, after[1][name][1])


# --- optimizers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_common_optimizers_are_accepted_and_left_alone(kind):
    param = nn.Parameter(torch.ones(2, 3))
    optimizer = OPTIMIZERS[kind]([param])
    check_optimizer(optimizer)
    assert not optimizer.state
    assert torch.equal(param, torch.ones(2, 3))


def test_adafactor_is_refused():
    from transformers.optimization import Adafactor

    optimizer = Adafactor([nn.Parameter(torch.ones(2, 3))], lr=1e-3, relative_step=False, scale_parameter=False)
    with pytest.raises(RunError, match=r"^optimizer: Adafactor keeps 'exp_avg_sq_row'.* cannot be cut.*AdamW or SGD"):
        check_optimizer(optimizer)
