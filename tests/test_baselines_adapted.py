"""rsLoRA, LoRA-FA, DoRA and VeRA: the formula of each against PEFT's own layers, and what is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForSequenceClassification

import peftprune
from peftprune.errors import UsageError
from peftprune.methods.registry import load
from peftprune.study.arm import prepare_model
from peftprune.study.planning import plan_methods
from tests.helpers import classification_task, make_arm, stored_adapter, stored_logits

ARCHITECTURES = ["bert", "bart", "llama"]


def parameters(model: Any, part: str) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if part in n}


# --- LoRA at a rank by option ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "held", "said"),
    [
        (16, 16, "rank 16 by option, 4 times the budget"),
        (256, 32, "rank 256 by option, 32 where a site holds no more, 8 times the budget"),
        (3, 3, "rank 3 by option, 0.75 times the budget"),
        (4, 4, None),
    ],
)
def test_lora_at_a_rank_of_its_own_says_what_it_spends(
    rank: int, held: int, said: str | None, tiny_bert: Path, tmp_path: Path
) -> None:
    arm = make_arm(f"lora:own(rank={rank})", tmp_path, tiny_bert, budget="rank=4,steps=2")
    result = arm.run()
    assert result["exemption"] == arm.plan.exemption == arm.plan.as_dict(0)["exemption"] == said
    assert {row["rank"] for row in result["allocation"]} == {held}
    assert result["ledger"]["final_params"] == held * sum(s.unit_cost for s in arm.plan.shapes)


def test_stored_arms_of_lora_keep_their_identity(tiny_bert: Path, tmp_path: Path) -> None:
    assert make_arm("lora", tmp_path, tiny_bert).config["options"] == {}
    assert make_arm("lora(rank=16)", tmp_path, tiny_bert).config["options"] == {"rank": 16}


# --- rsLoRA -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "expected"), [(0, 2.0 * 5**0.5), (16, 16 / 5**0.5)])
def test_rslora_divides_alpha_by_the_root_of_the_rank(
    alpha: float, expected: float, tiny_bert: Path, tmp_path: Path
) -> None:
    arm = make_arm(f"rslora(alpha={alpha})", tmp_path, tiny_bert, budget="rank=5,steps=2")
    _, sites, _ = arm.build()
    assert [s.scaling for s in sites.values()] == pytest.approx([expected] * 4, rel=1e-12)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_rslora_is_what_peft_makes_of_it(tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm("rslora", tmp_path, tiny_bert, budget="params=1501,steps=2")
    _, sites, _ = arm.build()
    assert len(set(sites.ranks.values())) == 2, "ranks should differ, and with them the factors"
    for name, rank in sites.ranks.items():
        config = LoraConfig(r=rank, lora_alpha=2 * rank, use_rslora=True, target_modules=[name])
        model = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2)
        layer = get_peft_model(model, config).get_base_model().get_submodule(name)
        assert sites[name].scaling == pytest.approx(layer.scaling["default"], rel=1e-12)


# --- LoRA-FA ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lora_fa_trains_b_alone(architecture: str, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    arm = make_arm("lora-fa", tmp_path, tiny_models[architecture], target_modules="all-linear")
    model, sites, trainer = arm.build()
    A, B = parameters(model, ".lora_A."), parameters(model, ".lora_B.")
    trainer.run()
    assert all(torch.equal(value, A[name]) for name, value in parameters(model, ".lora_A.").items())
    assert not any(torch.equal(value, B[name]) for name, value in parameters(model, ".lora_B.").items())
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not any(id(p) in held for n, p in model.named_parameters() if ".lora_A." in n)
    assert all(s.frozen_width == s.d_in for s in sites.values())


def test_lora_fa_counts_what_is_stored_and_says_what_was_trained(tiny_bert: Path, tmp_path: Path) -> None:
    fa, lora = (
        make_arm(m, tmp_path / m, tiny_bert, target_modules="all-linear").run()["ledger"] for m in ("lora-fa", "lora")
    )
    for field in ("final_params", "peak_params", "nonzero_params", "head_params", "base_flops", "tokens"):
        assert fa[field] == lora[field], field
    widths_out, widths = 2 * (4 * 32 + 64 + 32), 2 * (4 * 64 + 2 * 96)
    assert fa["trained_params"] == 4 * widths_out
    assert lora["trained_params"] == lora["final_params"] == 4 * widths
    # Two passes over A and B, and a third over what is trained.
    assert fa["adapter_flops"] / lora["adapter_flops"] == pytest.approx((2 * widths + widths_out) / (3 * widths))
    moments = 8 * 4 * (widths - widths_out) + 4 * 12
    assert lora["optimizer_bytes"] - fa["optimizer_bytes"] == moments


# --- DoRA -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_doras_magnitudes_are_part_of_the_budget(
    architecture: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    arm = make_arm("dora", tmp_path, tiny_models[architecture], target_modules="all-linear")
    result = arm.run()
    stored = {n: t for n, t in stored_adapter(arm.folder).items() if ".lora_" in n}
    magnitudes = {n: t for n, t in stored.items() if "magnitude" in n}
    assert len(magnitudes) == len(arm.plan.shapes)
    assert {tuple(t.shape) for t in magnitudes.values()} == {(s.d_out,) for s in arm.plan.shapes}
    spent = sum(t.numel() for t in stored.values())
    ledger = result["ledger"]
    assert spent == ledger["final_params"] == ledger["peak_params"] == arm.plan.final_params
    cheapest = min(s.unit_cost for s in arm.plan.shapes)
    assert 0 <= result["budget"]["params"] - spent < cheapest
    assert result["exemption"] is None
    ranks = {row["site"]: row["rank"] for row in result["allocation"]}
    assert ranks == {s.name: len(stored[f"base_model.model.{s.name}.lora_A.weight"]) for s in arm.plan.shapes}
    assert max(ranks.values()) - min(ranks.values()) <= 1
    weights = sum(ranks[s.name] * s.unit_cost for s in arm.plan.shapes)
    padded = ledger["adapter_flops"] / (6 * weights)
    assert padded == int(padded) >= ledger["tokens"]


def test_dora_starts_where_lora_does(tiny_bert: Path, tmp_path: Path) -> None:
    dora, lora = (make_arm(m, tmp_path, tiny_bert, target_modules="all-linear").build()[0] for m in ("dora", "lora"))
    theirs = parameters(lora, ".lora_A.")
    for name, A in parameters(dora, ".lora_A.").items():
        assert torch.equal(A, theirs[name][: len(A)])
    assert all(not B.any() for B in parameters(dora, ".lora_B.").values())
    ids = torch.randint(5, 20, (4, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(dora.eval()(ids).logits, lora.eval()(ids).logits, atol=1e-5, rtol=0)


def test_dora_is_its_formula(tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm("dora", tmp_path, tiny_bert, target_modules="all-linear")
    model, _, trainer = arm.build()
    before = parameters(model, "magnitude")
    trainer.run()
    assert not any(torch.equal(m, before[n]) for n, m in parameters(model, "magnitude").items())
    model.eval()
    for shape in arm.plan.shapes:
        layer = model.get_base_model().get_submodule(shape.name)
        x = torch.randn(3, 5, shape.d_in, generator=torch.Generator().manual_seed(0))
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        V = layer.base_layer.weight + 2.0 * B @ A
        W = layer.lora_magnitude_vector["default"].weight[:, None] * V / V.norm(dim=1, keepdim=True)
        torch.testing.assert_close(layer(x), x @ W.T + layer.base_layer.bias, atol=1e-4, rtol=1e-4)


def test_dora_says_how_much_it_needs(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"dora: budget: 256 is too small for 128 magnitudes.*at least 384"):
        make_arm("dora", tmp_path, tiny_bert, budget="rank=1,steps=2")
    ranks = make_arm("dora", tmp_path, tiny_bert, budget="params=384,steps=2").plan.ranks
    assert list(ranks.values()) == [1] * 4


# --- VeRA -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_vera_trains_two_vectors_a_site(architecture: str, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    arm = make_arm("vera(rank=40)", tmp_path, tiny_models[architecture], target_modules="all-linear")
    result = arm.run()
    expected = sum(40 + s.d_out for s in arm.plan.shapes)
    ledger = result["ledger"]
    assert ledger["final_params"] == ledger["trained_params"] == expected
    # The shared pair is in the file beside the vectors and the head.
    shared = 40 * (max(s.d_in for s in arm.plan.shapes) + max(s.d_out for s in arm.plan.shapes))
    stored = sum(t.numel() for t in stored_adapter(arm.folder).values())
    assert stored == expected + shared + ledger["head_params"]
    assert ledger["adapter_flops"] % (4 * 40 * sum(s.unit_cost for s in arm.plan.shapes)) == 0
    assert "option" in result["exemption"]


def test_veras_shared_pair_is_frozen_and_drawn_from_the_seed(tiny_bert: Path, tmp_path: Path) -> None:
    pairs = []
    for seed in (0, 1, 0):
        model, _, trainer = make_arm("vera(rank=8)", tmp_path, tiny_bert, seed=seed).build()
        before = model.base_model.vera_A["default"].clone()
        if seed:
            trainer.run()
        assert torch.equal(model.base_model.vera_A["default"], before)
        pairs.append(before)
    assert torch.equal(pairs[0], pairs[2])
    assert not torch.equal(pairs[0], pairs[1])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("method", ["dora", "vera(rank=8)", "full"])
def test_preparing_draws_nothing_from_the_global_stream(method: str, tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm(method, tmp_path, tiny_bert)
    state = torch.get_rng_state()
    prepare_model(arm.plan, arm.inputs.model.model, arm.inputs.head, 0)
    assert torch.equal(torch.get_rng_state(), state), "it belongs to dropout"


# --- any method of PEFT's ------------------------------------------------------------------------------------------


def test_lora_with_another_start_meets_the_budget_and_others_say_that_they_do_not(
    tiny_bert: Path, tmp_path: Path
) -> None:
    said = {}
    for i, method in enumerate(
        ["peft:pissa", "peft:olora", "peft:lora(use_rslora=True)", "peft:mica", "peft:ia3", "peft:pissa(r=9)"]
    ):
        arm = make_arm(method, tmp_path / str(i), tiny_bert, budget="params=1501,steps=2")
        ledger = arm.run()["ledger"]
        stored = {n: t.numel() for n, t in stored_adapter(arm.folder).items() if "classifier" not in n}
        frozen = sum(size for n, size in stored.items() if ".lora_B." in n) if method == "peft:mica" else 0
        assert ledger["final_params"] == ledger["trained_params"] == sum(stored.values()) - frozen
        said[method] = arm.plan.exemption
    assert [method for method, text in said.items() if text is None] == [*said][:3]
    assert said["peft:pissa(r=9)"] == "rank 9 by option, 1.53 times the budget"


def test_initial_values_of_a_method_of_pefts_derive_from_the_arms_seed(tiny_bert: Path, tmp_path: Path) -> None:
    found = []
    for seed in (0, 1, 0):
        torch.manual_seed(len(found))
        model, _, _ = make_arm("peft:prompt-tuning", tmp_path, tiny_bert, seed=seed).build()
        found.append(next(iter(parameters(model, "prompt_encoder").values())))
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_what_is_exported_of_a_method_of_pefts_is_plain_peft(tiny_bert: Path, tmp_path: Path) -> None:
    methods = ["peft:ia3", "peft:prompt-tuning", "peft:pissa", "peft:randlora"]
    settings: dict[str, Any] = {"batch_size": 8, "max_length": 32, "dtype": "float32", "learning_rate": 5e-3}
    study = peftprune.compare(
        methods, classification_task(), model=tiny_bert, budget="rank=4,steps=4", output_dir=tmp_path / "s", **settings
    )
    assert not study.failures
    rows = make_arm("lora", tmp_path / "lora", tiny_bert).inputs.evaluation["test"]
    for key, arm in study.arms():
        out = tmp_path / str(key["method"]).replace(":", "-")
        study.export(out, method=key["method"])
        base = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2)
        model = PeftModel.from_pretrained(base, str(out)).eval()
        with torch.no_grad():
            found = torch.cat([model(torch.tensor([row["input_ids"]])).logits for row in rows])
        torch.testing.assert_close(found, stored_logits(arm), atol=1e-5, rtol=1e-5)
    with pytest.raises(UsageError, match="format: 'merged' is not possible for PROMPT_TUNING in PEFT"):
        study.export(tmp_path / "merged", method="peft:prompt-tuning", format="merged")


# --- planning and options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["dora", "vera(rank=8)", "rslora", "lora-fa", "peft:ia3", "peft:prompt-tuning", "peft:pissa", "peft:mica"]
)
def test_plans_count_what_training_counts(method: str, tiny_bert: Path, tmp_path: Path) -> None:
    ledger = make_arm(method, tmp_path, tiny_bert, target_modules="all-linear").run()["ledger"]
    (plan,) = plan_methods(method, tiny_bert, "rank=4", "all-linear", "entailment-mini").values()
    for field in ("final_params", "peak_params", "head_params"):
        assert plan[field] == ledger[field], field


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("vera", {"rank": 0}, r"vera\.rank: 0 is not at least 1\. Give 256"),
        ("vera", {"d_initial": 0.0}, r"vera\.d_initial: 0\.0 is 0 or not finite\. Give 0\.1"),
        ("rslora", {"alpha": -1.0}, r"rslora\.alpha: -1\.0 is not at least 0\. Give 0\.0"),
        ("dora", {"rank": 4}, "dora option: 'rank' does not exist"),
    ],
)
def test_options_out_of_range_are_refused(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(method)(**options)
