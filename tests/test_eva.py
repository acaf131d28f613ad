"""EVA against a slow twin and against PEFT's own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from peft import EvaConfig, LoraConfig
from peft.tuners.lora.eva import get_eva_state_dict
from peft.utils.incremental_pca import IncrementalPCA
from torch import Tensor

from peftprune.errors import UsageError
from peftprune.methods.eva import memory_needed
from peftprune.methods.registry import load
from peftprune.models.layers import discover_sites
from peftprune.models.load import describe
from peftprune.scoring.activation import explained_variance
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.signal import Signal
from tests.helpers import Arm, CrashError, make_arm
from tests.reference import eva as reference
from tests.spies import Spy
from tests.test_methods import AfterStep, Inputs
from tests.writers import save_writer, writing_task


def moments_of(x: Tensor) -> Tensor:
    y = torch.cat([x, torch.ones(len(x), 1)], 1)
    return y.T @ y


def calibrated(arm: Arm) -> tuple[PruningPlan, dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
    """The decision before training, all inputs that were read until then, and the tensors right after it."""
    kept: dict[str, Any] = {"after": {}}

    def around(name: str, call: Any, arguments: tuple[Any, ...]) -> Any:
        answer = call(*arguments)
        if name == "end_phase":
            kept.setdefault("plan", answer)
            kept.setdefault("inputs", kept["reader"].take())
        return answer

    model, sites, trainer = arm.with_method(Spy(arm.plan.method, around)).build()  # type: ignore[arg-type]
    kept["reader"] = Inputs(model, sites)
    stop = arm.plan.phases[0].stop

    def after(step: int) -> None:
        if step == stop:
            kept["after"] = {n: (s.A.clone(), s.B.clone()) for n, s in sites.items() if s.rank}

    trainer.add_callback(AfterStep(after))
    trainer.run()
    return kept["plan"], kept["inputs"], kept["after"]


def uniform(arm: Arm) -> dict[str, int]:
    return arm.plan.budget.solve(arm.plan.shapes)


@pytest.mark.parametrize(
    ("budget", "targets", "rho", "batch_size"),
    [
        # 63 examples one by one: what is summed comes from more than 50 steps.
        ("rank=4,steps=70", "attention", 2.0, 1),
        ("params=3001,steps=12", "all-linear", 2.0, 8),
        ("rank=3,steps=12", "all-linear", 1.0, 8),
        ("params=2500,steps=12", ["query", "intermediate.dense", "output.dense"], 1.5, 8),
        ("rank=2,steps=12", "all-linear", 20.0, 8),
    ],
)
def test_ranks_and_vectors_are_those_of_the_slow_twin(
    budget: str, targets: Any, rho: float, batch_size: int, tiny_bert: Path, tmp_path: Path
) -> None:
    method = f"eva(sample={0.3 if batch_size > 1 else 0.9},rho={rho})"
    arm = make_arm(method, tmp_path, tiny_bert, budget=budget, target_modules=targets, batch_size=batch_size)
    assert arm.plan.phases[0].stop == (3 if batch_size > 1 else 63)
    plan, inputs, after = calibrated(arm)
    assert sum(len(x) for x in inputs.values()) > 0
    found = {name: reference.directions(x) for name, x in inputs.items()}
    shapes = {s.name: s for s in arm.plan.shapes}
    expected = reference.ranks(
        # Rounded, so that sites that read one input tie as they do where it is decomposed once.
        {n: [round(share, 12) for share in found[n][0]] for n in shapes},
        {n: s.unit_cost for n, s in shapes.items()},
        {n: min(s.max_rank, round(rho * uniform(arm)[n])) for n, s in shapes.items()},
        {n: s.max_rank for n, s in shapes.items()},
        arm.plan.budget.params,
    )
    assert {n: plan.reinit.get(n, 0) for n in shapes} == expected
    assert plan.drop == {n for n, rank in expected.items() if rank == 0}
    for name, (A, B) in after.items():
        rank = expected[name]
        shares, V = found[name]
        assert not B.any()
        torch.testing.assert_close(A @ A.T, torch.eye(rank), atol=1e-5, rtol=0)
        # The same subspace, and the same vectors up to sign where neighbouring singular values differ.
        torch.testing.assert_close((A.T @ A).double(), V[:rank].T @ V[:rank], atol=1e-3, rtol=0)
        assert ((A.double() * V[:rank]).sum(1).abs() > 0.999).all()
        assert plan.scores[name] == pytest.approx(sum(shares[:rank]), rel=1e-6)


def test_vectors_and_shares_are_those_of_pefts_decomposition() -> None:
    x = torch.randn(300, 24, generator=torch.Generator().manual_seed(0)) * torch.linspace(3, 0.1, 24) + 5
    theirs = IncrementalPCA(n_components=8, batch_size=len(x))
    theirs.fit(x)
    shares, vectors = explained_variance(moments_of(x.double()))
    torch.testing.assert_close(shares[:8], theirs.explained_variance_ratio_.double(), atol=1e-6, rtol=1e-5)
    assert ((vectors[:8] * theirs.components_.double()).sum(1).abs() > 1 - 1e-6).all()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_sites_of_one_shape_get_the_ranks_of_peft(tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm("eva(sample=0.4)", tmp_path, tiny_bert, budget="rank=4,steps=12")
    plan, _, after = calibrated(arm)
    _, _, trainer = arm.build()
    rows = [arm.inputs.train[i] for i in trainer.sampler.subset(0.4)]
    batch = arm.inputs.objective.collator(rows)
    batch.pop("labels")
    names, eva = [s.name for s in arm.plan.shapes], EvaConfig(rho=2.0, tau=0.9)
    config = LoraConfig(r=4, target_modules=names, init_lora_weights="eva", eva_config=eva)
    state = get_eva_state_dict(arm.inputs.model.model, [dict(batch)], config, show_progress_bar=False)
    assert {n: len(v) for n, v in state.items()} == {s.name: plan.reinit.get(s.name, 0) for s in arm.plan.shapes}
    for name, vectors in state.items():
        if len(vectors):
            projector = vectors.double().T @ vectors.double()
            torch.testing.assert_close((after[name][0].T @ after[name][0]).double(), projector, atol=2e-2, rtol=0)


def test_inputs_that_do_not_vary_explain_nothing() -> None:
    shares, vectors = explained_variance(moments_of(torch.ones(9, 4).double()))
    assert not shares.any()
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(4).double())


@pytest.mark.parametrize("tokens", [2, 3])
def test_fewer_tokens_than_features_still_give_orthonormal_vectors(tokens: int) -> None:
    x = torch.randn(tokens, 6, generator=torch.Generator().manual_seed(1)).double()
    shares, vectors = explained_variance(moments_of(x))
    assert int((shares > 1e-9).sum()) == tokens - 1
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(6).double())


# --- the ledger, signals and resuming ---------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["bert", "bart", "llama"])
def test_calibration_is_charged_and_the_budget_met(
    architecture: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    arm = make_arm("eva(sample=0.4)", tmp_path, tiny_models[architecture], target_modules="all-linear")
    result = arm.run()
    ledger = result["ledger"]
    assert ledger["forward_only_samples"] == round(0.4 * 70) == 28
    assert ledger["steps"] == 24
    assert [p["name"] for p in result["phases"]] == ["calibrate", "train"]
    ranks = {row["site"]: row["rank"] for row in result["allocation"]}
    spent = sum(ranks[s.name] * s.unit_cost for s in arm.plan.shapes)
    left = arm.plan.budget.params - spent
    assert ledger["final_params"] == spent
    assert 0 <= left < min(s.unit_cost for s in arm.plan.shapes if 0 < ranks[s.name] < s.max_rank)
    assert len(set(ranks.values())) > 2, "ranks should have been redistributed"


def test_moments_are_collected_for_calibration_only_and_once_an_input(tiny_bert: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []

    def around(name: str, call: Any, arguments: tuple[Any, ...]) -> Any:
        if name == "observe":
            found = arguments[0].signals.get(Signal.INPUT_MOMENTS, {})
            seen.append((arguments[0].phase.name, len(found), len({id(m) for m in found.values()})))
        return call(*arguments)

    arm = make_arm("eva(sample=0.3)", tmp_path, tiny_bert, target_modules="all-linear")
    arm.with_method(Spy(arm.plan.method, around)).build()[2].run()  # type: ignore[arg-type]
    # Per block: query, key and value read one input; three further layers read one each.
    assert set(seen) == {("calibrate", 12, 8), ("train", 0, 0)}


def test_a_crash_amid_calibration_changes_nothing(tiny_bert: Path, tmp_path: Path) -> None:
    whole = make_arm("eva(sample=0.6)", tmp_path / "whole", tiny_bert, target_modules="all-linear")
    expected = whole.run()
    settings: dict[str, Any] = {"target_modules": "all-linear", "checkpoints": 12}
    with pytest.raises(CrashError):
        make_arm("eva(sample=0.6)", tmp_path / "cut", tiny_bert, **settings).run(crash_at=5)
    arm = make_arm("eva(sample=0.6)", tmp_path / "cut", tiny_bert, **settings)
    assert arm.plan.phases[0].stop == 6
    result = arm.run()
    assert result["allocation"] == expected["allocation"]
    assert result["metrics"] == expected["metrics"]


# --- memory -----------------------------------------------------------------------------------------------------------


def test_memory_is_reckoned_once_an_input() -> None:
    shapes = discover_sites(describe("llama-2-7b"), "all-linear")
    # One input of each block's attention, and two of its feed-forward layers; the attention's output is as wide as its
    # input and passes for it.
    assert memory_needed(shapes) == 32 * 12 * (2 * 4097**2 + 11009**2) + 4 * 8 * 11009**2
    encoder = discover_sites(describe("bart-base"), ["q_proj", "k_proj"])
    # Keys of the cross-attention read the encoder, its queries the decoder.
    assert memory_needed(encoder) == 12 * 769**2 * (6 + 6 + 2 * 6) + 32 * 769**2


def test_calibration_that_does_not_fit_is_refused_before_training(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = make_arm("eva(sample=0.4)", tmp_path, tiny_bert, target_modules="all-linear")
    needed = memory_needed(arm.plan.shapes)
    steps: list[int] = []
    free = {"bytes": needed - 1}
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free["bytes"]))
    message = (
        r"^eva: 'bert\.encoder\.layer\.0\.output\.dense' reads inputs of width d_in = 64; .* about 0\.0 GiB, .* free\. "
        r"Name target_modules .* more memory, or leave eva out$"
    )
    with pytest.raises(UsageError, match=message):
        arm.run(progress=lambda done, total, phase: steps.append(done))
    assert steps == []
    free["bytes"] = needed
    arm.run(progress=lambda done, total, phase: steps.append(done))
    assert len(steps) == 24


def test_no_more_is_held_than_was_reckoned(tiny_bert: Path, tmp_path: Path) -> None:
    held: list[int] = []

    def around(name: str, call: Any, arguments: tuple[Any, ...]) -> Any:
        answer = call(*arguments)
        if name == "observe" and arguments[0].phase.name == "calibrate":
            signals = arguments[0].signals[Signal.INPUT_MOMENTS].values()
            tensors = {id(t): t for t in (*signals, *call.__self__.moments.values())}
            held.append(sum(t.numel() * t.element_size() for t in tensors.values()))
        return answer

    arm = make_arm("eva(sample=0.3)", tmp_path, tiny_bert, target_modules="all-linear")
    arm.with_method(Spy(arm.plan.method, around)).build()[2].run()  # type: ignore[arg-type]
    largest = 32 * 65**2
    assert set(held) == {memory_needed(arm.plan.shapes) - largest}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": 0.5}, r"eva\.rho: 0\.5 is not at least 1\. Give 2"),
        ({"rho": float("nan")}, r"eva\.rho: nan is not finite"),
        ({"sample": 0.0}, r"eva\.sample: 0\.0 is not in \(0, 1\)\. Give 0\.1"),
        ({"sample": 1.0}, r"eva\.sample: 1\.0 is not in"),
        ({"tau": 0.9}, "eva option: 'tau' does not exist"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load("eva")(**options)


@pytest.mark.parametrize("architecture", ["bert", "bart", "llama"])
def test_moments_hold_the_real_tokens_of_every_stream(
    architecture: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """The diagonal is the squared norm, whose masks are tested for every stream; the corner counts tokens."""

    class Both(RankPruningStrategy):
        """Asks for norms and moments."""

        name = "both"
        signals = frozenset({Signal.INPUT_NORM, Signal.INPUT_MOMENTS})

        def observe(self, view: Any) -> None:
            norms, moments = view.signals[Signal.INPUT_NORM], view.signals[Signal.INPUT_MOMENTS]
            assert set(norms) == set(moments) == set(view.sites)
            for name, norm in norms.items():
                torch.testing.assert_close(moments[name].diagonal()[:-1].sqrt(), norm)
                assert torch.equal(moments[name], moments[name].T)
            counted.append({float(m[-1, -1]) for m in moments.values()})

    counted: list[set[float]] = []
    arm = make_arm(
        Both, tmp_path, tiny_models[architecture], budget="rank=1,steps=3", gradient_accumulation_steps=2,
        target_modules="all-linear",
    )  # fmt: skip
    ledger = arm.run()["ledger"]
    # A decoder reads its text shifted by one, which never has fewer tokens.
    assert sum(min(tokens) for tokens in counted) == ledger["tokens"]


@pytest.mark.parametrize("architecture", ["llama", "bart"])
def test_labels_only_reads_the_targets_tokens(architecture: str, tmp_path: Path) -> None:
    folder = save_writer(architecture, tmp_path / "model")
    settings: dict[str, Any] = {"max_target_length": 12, "max_new_tokens": 8, "max_length": 16}
    arm = make_arm("eva(sample=0.3,labels_only=True)", tmp_path, folder, task=writing_task(), **settings)
    seen: dict[str, Any] = {}
    shorter = []

    def around(name: str, call: Any, arguments: tuple[Any, ...]) -> Any:
        view = arguments[0]
        if name == "observe" and view.phase.name == "calibrate":
            for site, found in view.signals[Signal.LABEL_MOMENTS].items():
                labelled = view.sites[site].shape.stream in ("self", "decoder")
                mask = seen["labels"] != -100 if labelled else seen["mask"].bool()
                torch.testing.assert_close(found, moments_of(seen[site][mask]), rtol=1e-4, atol=1e-3)
                shorter.append(labelled and mask.sum() < mask.numel())
        return call(*arguments)

    model, sites, trainer = arm.with_method(Spy(arm.plan.method, around)).build()  # type: ignore[arg-type]
    note = trainer.pruning.note_labels
    trainer.pruning.note_labels = lambda labels: seen.update(labels=labels) or note(labels)  # type: ignore[method-assign]
    model.register_forward_pre_hook(lambda m, a, k: seen.update(mask=k["attention_mask"]), with_kwargs=True)
    for name in sites:
        layer = model.get_submodule(f"base_model.model.{name}")
        layer.register_forward_pre_hook(lambda m, a, name=name: seen.update({name: a[0].detach()}))
    trainer.run()
    assert any(shorter) or architecture == "bart"
