"""AdaLoRA: agreement with a slow twin and with PEFT's own, and the traps that are known of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForSequenceClassification, TrainerCallback

from peftprune.adapters import surgery
from peftprune.errors import RunError, UsageError
from peftprune.methods.adalora import AdaLoRA
from peftprune.methods.adalora_peft import AdaLoRAPeft
from peftprune.scoring import orthogonality
from peftprune.strategy.sites import LiveTensors
from peftprune.study.arm import finish_ledger
from tests.helpers import Arm, make_arm, stored_logits
from tests.reference import adalora as slow
from tests.spies import Spy
from tests.test_contract import assert_budget_met

PEFT_LIKE = {"cut": "end", "gate_decay": True}
"""With these, ours does what PEFT does, to the last gradient."""


def shown(view: Any) -> dict[str, dict[str, tuple[Any, Any]]]:
    """Each site's weights and gradients as lists of components."""
    found = {}
    for name, site in view.sites.items():
        if site.rank == 0:
            continue
        pairs = {"A": (site.A, site.grad_A), "B": (site.B.T, site.grad_B.T)}
        pairs["gate"] = site.gate[:, None], site.grad_gate[:, None]
        found[name] = {kind: (w.double().tolist(), g.double().tolist()) for kind, (w, g) in pairs.items()}
    return found


def watched(arm: Arm, around: Any) -> Any:
    """Train the arm with `around` called at every event; returns model, sites and trainer."""
    built = arm.with_method(Spy(arm.plan.method, around)).build()  # type: ignore[arg-type]
    built[2].run()
    return built


# --- the slow twin ----------------------------------------------------------------------------------------------------


class Following:
    """Works everything out beside the strategy, and compares."""

    def __init__(self, strategy: AdaLoRA, order: str) -> None:
        self.strategy, self.order = strategy, order
        self.twin = slow.Sensitivities()
        self.compared = self.masks = 0
        self.initial = 0.0
        self.cut: dict[str, list[int]] | None = None

    def __call__(self, name: str, call: Any, arguments: tuple[Any, ...]) -> Any:
        if name not in ("observe", "decide", "end_phase"):
            return call(*arguments)
        view = arguments[0]
        first = 9
        last = 60 - 18
        if name == ("decide" if self.order == "after" else "observe") and view.step < last:
            for site, tensors in shown(view).items():
                self.twin.step(site, tensors)
        expected = self.scores(view) if name != "observe" and self.twin.entries and view.step <= last else {}
        before = copy.deepcopy(self.strategy.state_dict())
        answer = call(*arguments)
        if name == "decide" and expected:
            self.compare(view, expected)
            self.initial = self.initial or sum(s.rank * s.unit_cost for s in view.sites.values())
            limit = slow.budget(view.step, first, last, self.initial, view.budget.params)
            due = first < view.step < last and view.step % 4 == 0
            assert bool(answer.zero) == due
            if due:
                self.masks += 1
                left = {n: list(range(view.sites[n].rank)) for n in expected}
                left |= {n: (~m["gate"]).nonzero().flatten().tolist() for n, m in answer.zero.items()}
                assert left == slow.kept(expected, {n: view.sites[n].unit_cost for n in expected}, limit)
        if name == "end_phase" and view.phase.name == "pruning":
            assert before["sensitivity"]["mean"]
            costs = {n: view.sites[n].unit_cost for n in expected}
            self.cut = slow.kept(expected, costs, view.budget.params)
            left = {n: list(range(view.sites[n].rank)) for n in expected} | dict(answer.keep)
            assert left == self.cut
        return answer

    def scores(self, view: Any) -> dict[str, list[float]]:
        return {n: [self.twin.score(n, k) for k in range(s.rank)] for n, s in view.sites.items() if s.rank}

    def compare(self, view: Any, expected: dict[str, list[float]]) -> None:
        self.compared += 1
        for name, found in self.strategy.scores(view).items():
            torch.testing.assert_close(
                found.double(), torch.tensor(expected[name], dtype=torch.float64), rtol=1e-6, atol=1e-30
            )


@pytest.mark.parametrize("order", ["after", "before"])
def test_scores_and_kept_components_agree_with_the_slow_twin(order: str, tiny_bert: Path, tmp_path: Path) -> None:
    spec = f"adalora(every=4,warmup=0.15,final=0.3,order={order!r})"
    # Sites of two costs, so that some components are passed over.
    arm = make_arm(spec, tmp_path, tiny_bert, budget="params=2000,steps=60", target_modules=["query", "output.dense"])
    following = Following(arm.plan.method, order)  # type: ignore[arg-type]
    watched(arm, following)
    assert following.compared >= 40
    assert following.masks == 8
    assert following.cut is not None
    assert sum(map(len, following.cut.values())) < sum(arm.plan.spec.ranks.values())


@pytest.mark.parametrize("form", ["norm", "square"])
def test_the_penalty_is_the_formula(form: Any) -> None:
    rng = torch.Generator().manual_seed(0)
    sites = {n: LiveTensors(torch.randn(3, 5, generator=rng), torch.randn(4, 3, generator=rng), None) for n in "ab"}
    matrices = [m.double().tolist() for s in sites.values() for m in (s.A, s.B.T)]
    assert float(orthogonality(sites, form)) == pytest.approx(slow.penalty(matrices, form), rel=1e-5)
    added = AdaLoRA(penalty=0.3, penalty_form=form).penalty(sites)
    assert float(added) == pytest.approx(0.3 * slow.penalty(matrices, form), rel=1e-5)  # type: ignore[arg-type]
    rows = torch.eye(3, 5).requires_grad_()
    perfect = {"a": LiveTensors(rows, torch.eye(4, 3), None)}
    value = orthogonality(perfect, form)
    value.backward()
    assert float(value.detach()) == 0
    assert torch.equal(rows.grad, torch.zeros(3, 5))  # and not a NaN


# --- PEFT's own -------------------------------------------------------------------------------------------------------


def course(arm: Arm) -> tuple[list[float], list[list[int]], Any]:
    """Training losses, the components whose gates are zero after each step, and model, sites and trainer."""
    model, sites, trainer = built = arm.build()
    losses, zeros = [], []
    inner = trainer.training_step

    def step(*arguments: Any) -> Any:
        loss = inner(*arguments)
        losses.append(float(loss))
        return loss

    class After(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            gates = [s.gate for s in sites.values()] if sites else _peft_gates(model)
            zeros.append((torch.cat([g.flatten() for g in gates]) == 0).nonzero().flatten().tolist())

    trainer.training_step = step  # type: ignore[method-assign]
    trainer.add_callback(After())
    trainer.run()
    return losses, zeros, built


def _peft_gates(model: Any) -> list[torch.Tensor]:
    return [p.detach() for n, p in model.named_parameters() if ".lora_E." in n]


@pytest.mark.parametrize("every", [1, 5])
def test_ours_and_pefts_prune_the_same_triplets_and_train_alike(every: int, still_bert: Path, tmp_path: Path) -> None:
    shared = {"every": every, "warmup": 0.2, "final": 0.3, "penalty": 0.5}
    settings = {"budget": "rank=4,steps=50", "weight_decay": 0.1}
    ours = make_arm(AdaLoRA(**shared, **PEFT_LIKE), tmp_path / "ours", still_bert, **settings)
    theirs = make_arm(AdaLoRAPeft(**shared), tmp_path / "peft", still_bert, **settings)
    assert ours.plan.spec.ranks == theirs.plan.spec.ranks
    (losses, zeros, (_, sites, _)), (expected, masked, (model, _, _)) = course(ours), course(theirs)
    assert len(losses) == len(expected) == 50
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=0, atol=1e-5)
    # PEFT's gates are zero right after its call; ours once the step is over. The last step cuts ours.
    assert zeros[:-1] == masked[:-1]
    assert zeros[0] == []
    assert len(zeros[-2]) == 8
    left = theirs.plan.method.finish(model)  # type: ignore[union-attr]
    assert sites.ranks == left
    assert len(set(left.values())) > 1


def test_both_meet_the_budget_and_predict_alike(still_bert: Path, tmp_path: Path) -> None:
    shared = {"every": 5, "warmup": 0.2, "final": 0.3}
    found = []
    for method in (AdaLoRA(**shared, **PEFT_LIKE), AdaLoRAPeft(**shared)):
        arm = make_arm(method, tmp_path / method.name, still_bert)
        found.append(arm.run())
    ours, theirs = found
    assert ours["ledger"]["final_params"] == theirs["ledger"]["final_params"] == ours["budget"]["params"]
    # PEFT's singular values are parameters in training; ours count as gates do.
    assert theirs["ledger"]["peak_params"] == ours["ledger"]["peak_params"] + 4 * 6
    assert [row["rank"] for row in ours["allocation"]] == [row["rank"] for row in theirs["allocation"]]
    assert ours["metrics"] == pytest.approx(theirs["metrics"])


def test_peft_is_refused_where_its_allocator_would_fail(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"adalora-peft\.initial_ratio: 1\.0 starts at the budget"):
        make_arm("adalora-peft(initial_ratio=1.0)", tmp_path, tiny_bert)
    with pytest.raises(UsageError, match=r"above the smaller side"):
        make_arm("adalora-peft(initial_ratio=10.0)", tmp_path, tiny_bert)


def test_peft_that_was_never_called_is_an_error(tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm("adalora-peft", tmp_path, tiny_bert)
    model, _, _ = arm.build()
    with pytest.raises(RunError, match="training ended before the last decision"):
        arm.plan.method.finish(model)  # type: ignore[union-attr]


# --- options ----------------------------------------------------------------------------------------------------------


def test_the_losers_go_when_the_option_says(tiny_bert: Path, tmp_path: Path) -> None:
    for cut, at in (("final", 12), ("end", 24)):
        arm = make_arm(f"adalora(every=3,cut={cut!r})", tmp_path / cut, tiny_bert)
        _, sites, trainer = arm.build()
        trainer.run()
        rows = [row for row in trainer.pruning.trace.rows if row["reason"].startswith("cut")]
        assert [row["step"] for row in rows] == [at]
        assert surgery.structure(sites)["ranks"] == sites.ranks
        assert sum(sites.ranks.values()) == 16


@pytest.mark.parametrize("moments", ["keep", "zero"])
def test_moments_of_masked_gates(moments: str, tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm(f"adalora(every=6,warmup=0.1,moments={moments!r})", tmp_path, tiny_bert)
    _, sites, trainer = arm.build()
    found = []

    class After(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 6:
                for site in sites.values():
                    gate = site.live().gate
                    seconds = trainer.optimizer.state[gate]["exp_avg_sq"]
                    found.extend((seconds[gate == 0] > 0).tolist())

    trainer.add_callback(After())
    trainer.run()
    assert found
    assert set(found) == {moments == "keep"}


def test_alpha_divides_by_the_initial_rank_for_good(tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm("adalora(alpha=16.0,every=3)", tmp_path, tiny_bert)
    _, sites, trainer = arm.build()
    trainer.run()
    assert {site.scaling for site in sites.values() if site.rank} == {16 / (6 + 1e-5)}
    _, sites, _ = make_arm("adalora", tmp_path / "run", tiny_bert).build()
    assert {site.scaling for site in sites.values()} == {2.0}


@pytest.mark.parametrize(("option", "decay"), [("False", 0.0), ("True", 0.1)])
def test_weight_decay_on_gates(option: str, decay: float, tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm(f"adalora(gate_decay={option})", tmp_path, tiny_bert, weight_decay=0.1)
    _, sites, trainer = arm.build()
    gates = {id(site.live().gate) for site in sites.values()}
    groups = [g for g in trainer.create_optimizer().param_groups if {id(p) for p in g["params"]} & gates]
    assert [g["weight_decay"] for g in groups] == [decay]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("initial_ratio", 0.9), ("initial_ratio", float("nan")), ("warmup", 1.0), ("final", -0.1), ("every", 0),
        ("beta1", 1.0), ("beta2", 0.0), ("penalty", -1.0), ("alpha", float("inf")), ("penalty_form", "l1"),
        ("order", "never"), ("cut", "later"), ("moments", "drop"),
    ],
)  # fmt: skip
def test_options_out_of_range(option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"^adalora\.{option}: .*(Give|Use)"):
        AdaLoRA(**{option: value})


def test_shares_that_leave_nothing_for_pruning() -> None:
    with pytest.raises(UsageError, match=r"leaves no steps for pruning beside warmup=0\.5"):
        AdaLoRA(warmup=0.5, final=0.5)


# --- the budget -------------------------------------------------------------------------------------------------------


def test_what_no_component_can_spend_is_spent_by_growing(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cheap_sites_first(self: AdaLoRA, view: Any) -> dict[str, torch.Tensor]:
        return {n: torch.full((s.rank,), 1000.0 - s.unit_cost) for n, s in view.sites.items() if s.rank}

    monkeypatch.setattr(AdaLoRA, "scores", cheap_sites_first)
    # Query costs 64, the feed-forward layers 96. All of query survives, and then 64 is left, which pays for no 96.
    arm = make_arm(
        "adalora(every=3,initial_ratio=1.1)", tmp_path, tiny_bert, budget="params=1440,steps=24",
        target_modules=["query", "intermediate.dense"],
    )  # fmt: skip
    start = sum(rank for name, rank in arm.plan.spec.ranks.items() if "query" in name)
    result = arm.run()
    assert_budget_met(arm, result)
    end = sum(row["rank"] for row in result["allocation"] if row["kind"].endswith("query"))
    assert end >= start


def test_initial_values_are_normal_and_the_same_at_every_rank(tiny_bert: Path, tmp_path: Path) -> None:
    arms = [
        make_arm(f"adalora(initial_ratio={r})", tmp_path, tiny_bert, seed=s) for r, s in ((1.5, 0), (3.0, 0), (1.5, 1))
    ]
    small, large, other = (dict(arm.build()[1].items()) for arm in arms)
    for name, site in small.items():
        assert site.rank == 6
        assert large[name].rank == 12
        assert torch.equal(site.A, large[name].A[:6])
        assert torch.equal(site.B, large[name].B[:, :6])
        assert not torch.equal(site.B, other[name].B)
        assert torch.equal(site.gate, torch.zeros(6))
    values = torch.cat([t.flatten() for s in large.values() for t in (s.A, s.B)])
    assert float(values.std()) == pytest.approx(0.02, rel=0.05)
    assert float(values.mean()) == pytest.approx(0.0, abs=1e-3)


# --- traps ------------------------------------------------------------------------------------------------------------


def test_an_initial_rank_that_is_the_target_prunes_nothing(tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm("adalora(initial_ratio=1.0,every=2)", tmp_path, tiny_bert)
    result = arm.run()
    assert {row["rank"] for row in result["allocation"]} == {4}


def test_a_run_too_short_for_the_schedule_is_refused_before_it_begins(tiny_bert: Path, tmp_path: Path) -> None:
    for spec in ("adalora", "adalora-peft"):
        with pytest.raises(UsageError, match="Train for more"):
            make_arm(spec, tmp_path, tiny_bert, budget="rank=4,steps=3")
    with pytest.raises(UsageError, match="leaves no step to score components in"):
        make_arm("adalora(warmup=0.0)", tmp_path, tiny_bert, budget="rank=4,steps=2")


def test_the_schedule_ends_with_the_run_whatever_its_length(tiny_bert: Path, tmp_path: Path) -> None:
    for steps in (9, 24, 31):
        arm = make_arm("adalora(every=100)", tmp_path / str(steps), tiny_bert, budget=f"rank=4,steps={steps}")
        assert_budget_met(arm, arm.run())


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


@pytest.mark.parametrize("method", ["adalora", "adalora-peft"])
@pytest.mark.parametrize(("step", "met"), [(6, False), (20, True)])
def test_a_run_that_stops_early_is_over_the_budget_or_within_it(
    method: str, step: int, met: bool, tiny_bert: Path, tmp_path: Path
) -> None:
    arm = make_arm(f"{method}(every=3)", tmp_path, tiny_bert)
    model, sites, trainer = arm.build()
    trainer.add_callback(StopAt(step))
    trainer.run()
    surgery.fold(sites)

    def finish() -> None:
        finish_ledger(arm.plan, arm.inputs.head, sites, model, trainer.pruning.ledger)

    if met:
        finish()
        assert trainer.pruning.ledger.final_params == arm.plan.budget.params
    else:
        with pytest.raises(RunError, match=r"budget: the adapters hold|before the last decision"):
            finish()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
# PEFT does not know its own AdaLoRA's rank_pattern when it checks the keys.
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning")
@pytest.mark.parametrize("method", ["adalora", "adalora-peft"])
def test_a_reloaded_adapter_computes_the_plain_loss_and_trains_on(method: str, tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm(f"{method}(every=3,penalty=0.5)", tmp_path / "arm", tiny_bert)
    arm.run()
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2)
    model = PeftModel.from_pretrained(base, arm.folder.adapter, is_trainable=True)
    model.eval()
    rows = arm.inputs.evaluation["test"]
    with torch.no_grad():
        found = [model(**{k: torch.tensor([r[k]]) for k in ("input_ids", "attention_mask")}).logits[0] for r in rows]
    torch.testing.assert_close(torch.stack(found), stored_logits(arm.folder), atol=1e-5, rtol=1e-5)
    batch = {"input_ids": torch.tensor([[2, 7, 9, 3], [2, 11, 5, 3]]), "attention_mask": torch.ones(2, 4).long()}
    labels = torch.tensor([0, 1])
    with torch.no_grad():
        output = model(**batch, labels=labels)
    plain = nn.functional.cross_entropy(output.logits, labels)
    assert float(output.loss) == pytest.approx(float(plain), rel=1e-6)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        after = model(**batch).logits
    assert nn.functional.cross_entropy(after, labels) < plain


def test_no_loss_that_is_logged_contains_the_penalty(still_bert: Path, tmp_path: Path) -> None:
    losses = []
    for weight in (0.0, 100.0):
        arm = make_arm(f"adalora(penalty={weight})", tmp_path / str(weight), still_bert)
        _, sites, trainer = arm.build()
        trainer.add_callback(StopAt(1))
        start = {n: s.A.clone() for n, s in sites.items()}
        trainer.run()
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
        moved = max(float((s.A - start[n]).abs().max()) for n, s in sites.items())
        assert (moved > 1e-3) == (weight > 0)
    assert losses[0][0] == losses[1][0]
