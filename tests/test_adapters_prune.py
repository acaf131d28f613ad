"""Pruning an adapter from its factors: what is kept is what dense products say."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from peftprune import inspect, prune
from peftprune.adapters import pruning
from peftprune.adapters.formats.adapter import Adapter, Factors
from peftprune.adapters.formats.read import read_adapter
from peftprune.adapters.pruning import Target, parse_target, prune_adapter
from peftprune.errors import UsageError
from tests.adapters import CLASSIFIERS, answers, by_peft, finished, generator_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
]


def dense(adapter: Adapter) -> dict[str, Tensor]:
    return {n: f.scaling * f.B.double() @ f.A.double() for n, f in adapter.sites.items()}


def kept_of(before: Adapter, after: Adapter) -> float:
    """1 − Σ‖ΔW − ΔW'‖² / Σ‖ΔW‖², from the products themselves."""
    old, new = dense(before), dense(after)
    lost = sum(float((w - new.get(n, torch.zeros_like(w))).square().sum()) for n, w in old.items())
    return 1 - lost / sum(float(w.square().sum()) for w in old.values())


def synthetic(seed: int, shapes: list[tuple[int, int, int]], dtype: torch.dtype = torch.float32) -> Adapter:
    """Sites (d_out, d_in, r) whose components differ in size."""
    rng = torch.Generator().manual_seed(seed)
    sites = {}
    for i, (d_out, d_in, r) in enumerate(shapes):
        sizes = torch.logspace(0, -2, r)[:, None] * (1 + i)
        A, B = torch.randn(r, d_in, generator=rng) * sizes, torch.randn(d_out, r, generator=rng)
        sites[f"layers.{i}.x"] = Factors(A.to(dtype), B.to(dtype), 0.5 + i)
    return Adapter("peft", Path("synthetic"), sites, {}, {"peft_type": "LORA"})


def params(adapter: Adapter) -> int:
    return sum(adapter.sites[g[0]].rank * adapter.sites[g[0]].unit_cost for g in adapter.groups())


SHAPES = [(12, 20, 6), (20, 12, 6), (16, 16, 4), (9, 30, 8)]


@pytest.mark.parametrize("method", ["svd", "magnitude"])
@pytest.mark.parametrize("budget", ["rank=2", "rank=1", "params=500", "energy=0.9", "energy=0.5"])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=8, deadline=None)
def test_the_kept_energy_is_that_of_the_dense_products(seed: int, budget: str, method: str) -> None:
    before = synthetic(seed, SHAPES)
    target = parse_target(budget)
    done = prune_adapter(before, method, target)
    assert done.kept_energy == pytest.approx(kept_of(before, done.adapter), abs=1e-6)
    for name, value in done.energies.items():
        sites = {name: done.adapter.sites[name]} if name in done.adapter.sites else {}
        part = Adapter("peft", Path(), sites, {}, {})
        assert value == pytest.approx(
            kept_of(Adapter("peft", Path(), {name: before.sites[name]}, {}, {}), part), abs=1e-6
        )
    assert done.params_after == params(done.adapter)
    unit = sum(f.unit_cost for f in before.sites.values())
    if target.kind == "energy":
        assert done.kept_energy >= target.value - 1e-9
    else:
        limit = target.value * unit if target.kind == "rank" else target.value
        assert done.params_after <= limit
    assert all(f.scaling == 1.0 for f in done.adapter.sites.values())


@given(seed=st.integers(0, 10_000), share=st.floats(0.05, 1.0))
@settings(max_examples=20, deadline=None)
def test_an_energy_is_kept_by_the_fewest_components(seed: int, share: float) -> None:
    before = synthetic(seed, SHAPES)
    done = prune_adapter(before, "svd", Target("energy", share))
    squares = torch.cat([torch.linalg.svdvals(w).square() for w in dense(before).values()]).sort(descending=True).values
    fewest = int((squares.cumsum(0) < share * squares.sum() * (1 - 1e-9)).sum()) + 1
    assert sum(f.rank for f in done.adapter.sites.values()) == fewest


def test_svd_loses_least_and_spends_the_budget() -> None:
    before = synthetic(0, SHAPES)
    budget = parse_target("rank=2")
    by_svd, uniform = (prune_adapter(before, "svd", budget, uniform=u) for u in (False, True))
    magnitude = prune_adapter(before, "magnitude", budget)
    assert by_svd.kept_energy > uniform.kept_energy > magnitude.kept_energy
    assert {after for _, after in uniform.ranks.values()} == {2}
    assert {after for _, after in magnitude.ranks.values()} == {2}
    unit = {n: f.unit_cost for n, f in before.sites.items()}
    left = 2 * sum(unit.values()) - by_svd.params_after
    assert 0 <= left < max(unit.values())


def test_a_site_that_keeps_everything_keeps_its_factors() -> None:
    before = synthetic(0, [(8, 8, 2), (8, 8, 2)])
    done = prune_adapter(before, "svd", parse_target("params=48"))
    (whole,) = [n for n, (old, new) in done.ranks.items() if old == new]
    assert torch.equal(done.adapter.sites[whole].A, before.sites[whole].A)
    assert torch.equal(done.adapter.sites[whole].scaled_B, before.sites[whole].scaled_B)


def test_sites_that_share_are_pruned_alike_and_counted_once() -> None:
    before = synthetic(0, SHAPES)
    sites = dict(before.sites) | {"layers.9.x": before.sites["layers.3.x"]}
    shared = Adapter("peft", Path(), sites, {}, {"peft_type": "LORA"})
    done = prune_adapter(shared, "svd", parse_target("rank=2"))
    assert done.params_before == params(before)
    assert done.params_after <= 2 * sum(f.unit_cost for f in before.sites.values())
    assert done.adapter.sites["layers.3.x"] is done.adapter.sites["layers.9.x"]
    assert done.adapter.facts["shared_with"] == {"layers.3.x": ["layers.9.x"], "layers.9.x": ["layers.3.x"]}
    assert done.kept_energy == pytest.approx(kept_of(shared, done.adapter), abs=1e-6)
    # Twice the energy for one price: the pair keeps at least as much as it would alone.
    assert done.ranks["layers.3.x"][1] >= prune_adapter(before, "svd", parse_target("rank=2")).ranks["layers.3.x"][1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_factors_stay_narrow(dtype: torch.dtype) -> None:
    before = synthetic(0, SHAPES, dtype)
    done = prune_adapter(before, "svd", parse_target("rank=2"))
    assert {t.dtype for f in done.adapter.sites.values() for t in (f.A, f.B)} == {dtype}
    assert done.kept_energy == pytest.approx(kept_of(before, done.adapter), abs=2e-2)


# --- whole adapters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["svd", "magnitude"])
def test_plain_peft_loads_what_is_left_with_the_head_unchanged(method: str, tmp_path: Path) -> None:
    base, said = finished("bert", "all of it", tmp_path / "adapter")
    done = prune(tmp_path / "adapter", tmp_path / "out", method=method, budget="energy=0.6")
    model = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "out")
    inner = model.get_base_model()
    for name, update in dense(done.adapter).items():
        layer = inner.get_submodule(name)
        assert layer.scaling["default"] == 1.0
        assert torch.allclose(layer.get_delta_weight("default").double(), update, atol=1e-6)
    adapted = {n for n, m in inner.named_modules() if hasattr(m, "lora_A")}
    assert adapted == set(done.adapter.sites)
    old, new = (load_file(tmp_path / f / "adapter_model.safetensors") for f in ("adapter", "out"))
    for name in ("classifier.weight", "classifier.bias"):
        assert torch.equal(old[f"base_model.model.{name}"], new[f"base_model.model.{name}"])
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert config["r"] == config["lora_alpha"]
    assert not torch.allclose(answers(model), said, atol=1e-4)


def test_all_of_the_energy_is_all_of_the_function(tmp_path: Path) -> None:
    base, said = finished("bert", "ranks", tmp_path / "adapter")
    prune(tmp_path / "adapter", tmp_path / "out", budget="energy=1")
    model = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "out")
    assert torch.allclose(answers(model), said, atol=1e-6)


FOREIGN: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"v_proj": 6}, "alpha_pattern": {"v_proj": 5}},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "biases": {"bias": "all"},
    "some layers": {"layers_to_transform": [1], "layers_pattern": "layers"},
}


@pytest.mark.parametrize("options", FOREIGN)
def test_adapters_that_peft_made_are_pruned_to_the_same_products(options: str, tmp_path: Path) -> None:
    base = generator_model("llama")
    by_peft(base, tmp_path / "adapter", task_type="CAUSAL_LM", **FOREIGN[options])
    done = prune(tmp_path / "adapter", tmp_path / "out", budget="rank=2", uniform=True)
    before = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter").get_base_model()
    model = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "out").get_base_model()
    for name in done.ranks:
        old, new = (m.get_submodule(name).get_delta_weight("default").double() for m in (before, model))
        U, S, V = torch.linalg.svd(old, full_matrices=False)
        assert torch.allclose(new, (U[:, :2] * S[:2]) @ V[:2], atol=1e-5), name


@pytest.mark.shared_data
def test_roberta_on_mnli_is_halved(roberta_lora: Path, tmp_path: Path) -> None:
    before = read_adapter(roberta_lora)
    done = prune(roberta_lora, tmp_path / "out", budget="rank=4")
    assert (done.params_before, done.params_after) == (294_912, 147_456)
    after = read_adapter(tmp_path / "out")
    assert done.kept_energy == pytest.approx(kept_of(before, after), abs=1e-6)
    assert inspect(roberta_lora).further.set_index("rank").loc[4, "kept_energy"] == pytest.approx(done.kept_energy)
    assert sorted(after.others) == sorted(before.others)
    assert all(torch.equal(after.others[n], before.others[n]) for n in before.others)
    uniform = prune(roberta_lora, tmp_path / "uniform", budget="rank=4", uniform=True)
    assert {f.rank for f in read_adapter(tmp_path / "uniform").sites.values()} == {4}
    assert uniform.params_after == 147_456
    assert uniform.kept_energy < done.kept_energy


def llama_like(folder: Path, layers: int, width: int, inner: int, rank: int) -> Path:
    """The files of an adapter on every linear layer of a Llama."""
    names = {f"self_attn.{x}_proj": (width, width) for x in "qkvo"}
    names |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
    rng = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(layers):
        for name, (d_out, d_in) in names.items():
            key = f"base_model.model.model.layers.{layer}.{name}.lora_{{}}.weight"
            tensors[key.format("A")] = torch.randn(rank, d_in, generator=rng).bfloat16()
            tensors[key.format("B")] = torch.randn(d_out, rank, generator=rng).bfloat16()
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank}
    config |= {"target_modules": [n.rpartition(".")[2] for n in names]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def forbid_dense(monkeypatch: pytest.MonkeyPatch, largest: int) -> None:
    """Fail where any factorisation is handed more than factors."""
    for name in ("qr", "svd"):
        real = getattr(torch.linalg, name)

        def watched(matrix: Tensor, *rest: Any, real: Any = real, **options: Any) -> Any:
            assert min(matrix.shape) <= largest
            return real(matrix, *rest, **options)

        monkeypatch.setattr(torch.linalg, name, watched)


def test_only_factors_are_decomposed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_dense(monkeypatch, 4)
    done = prune(llama_like(tmp_path / "small", 2, 64, 160, 4), tmp_path / "out", budget="rank=2")
    assert len(done.ranks) == 14


@pytest.mark.slow
def test_an_adapter_of_a_7b_model_takes_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_dense(monkeypatch, 16)
    folder = llama_like(tmp_path / "large", 32, 4096, 11008, 16)
    for method in ("svd", "magnitude"):
        begun = time.process_time()
        done = prune(folder, tmp_path / method, method=method, budget="rank=8")
        # 224 sites; measured at about 5 s of one core. A dense SVD of one of them alone takes longer.
        assert time.process_time() - begun < 60
        assert done.params_before == 39_976_960
        assert done.params_after <= done.params_before / 2


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("rank=0", "budget.rank: 0"),
        ("rank=5", "the adapter has 1,280 already"),
        ("params=1280", "the adapter has 1,280 already"),
        ("params=3", "leaves no site"),
        ("energy=0", "is not a share"),
        ("energy=1.1", "is not a share"),
        ("energy=half", "is not a share"),
        ("rank=2,epochs=3", "names more than a size"),
        ("fraction=0.1", "names none of rank, params and energy"),
        ("4", "names none of rank, params and energy"),
    ],
)
def test_a_budget_that_cannot_be_is_named(budget: str, message: str, tmp_path: Path) -> None:
    by_peft(generator_model("llama"), tmp_path / "adapter", task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])
    unit = 2 * (32 + 32 + 32 + 16)
    assert params(read_adapter(tmp_path / "adapter")) == 4 * unit
    message = message.replace("1,280", f"{4 * unit:,}")
    with pytest.raises(UsageError) as caught:
        prune(tmp_path / "adapter", tmp_path / "out", budget=budget.replace("1280", str(4 * unit)))
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_unknown_methods_and_senseless_options_are_named() -> None:
    adapter = synthetic(0, SHAPES)
    with pytest.raises(UsageError, match="method: 'random' is unknown"):
        prune_adapter(adapter, "random", Target("rank", 2))
    with pytest.raises(UsageError, match="uniform: True needs a rank"):
        prune_adapter(adapter, "svd", Target("energy", 0.9), uniform=True)


def test_factors_that_are_not_finite_are_named(tmp_path: Path) -> None:
    finished("bert", "uniform", tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    key = "base_model.model.bert.encoder.layer.0.attention.self.key.lora_B.weight"
    tensors[key][0, 0] = float("nan")
    save_file(tensors, file)
    for call in (lambda: prune(tmp_path / "adapter", tmp_path / "out"), lambda: inspect(tmp_path / "adapter")):
        with pytest.raises(UsageError, match=r"is not finite at bert\.encoder\.layer\.0\.attention\.self\.key"):
            call()
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:Adapter 'default'")  # PEFT takes the biases for shards
@pytest.mark.parametrize(("options", "field"), [({"use_dora": True}, "use_dora"), ({"lora_bias": True}, "lora_bias")])
def test_what_is_more_than_two_factors_is_refused(options: dict[str, Any], field: str, tmp_path: Path) -> None:
    by_peft(CLASSIFIERS["bert"](), tmp_path / "adapter", target_modules=["query"], **options)
    for call in (lambda: prune(tmp_path / "adapter", tmp_path / "out"), lambda: inspect(tmp_path / "adapter")):
        with pytest.raises(UsageError, match=field):
            call()


def test_a_zero_update_needs_nothing() -> None:
    sites = {"a": Factors(torch.ones(2, 4), torch.zeros(4, 2))}
    adapter = Adapter("peft", Path(), sites, {}, {"peft_type": "LORA"})
    done = pruning.prune_adapter(adapter, "svd", Target("rank", 1))
    assert (done.kept_energy, done.ranks) == (1.0, {"a": (2, 1)})
