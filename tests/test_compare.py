"""`compare` from request to tables: what is stored, read back, skipped, retried and reported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

import peftprune
from peftprune.comparison import Comparison
from peftprune.errors import UsageError
from peftprune.models.load import load_model
from peftprune.strategy.budget import ArmBudget
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.sites import SiteShape
from peftprune.strategy.spec import AdapterSpec
from peftprune.strategy.view import StepView
from peftprune.study import task_setup
from peftprune.study.command import command
from peftprune.study.execution import work as queue
from peftprune.study.task_setup import _source
from tests.helpers import DEFAULTS, classification_task, regression_task
from tests.strategies import Penalised

LEDGER = ["final_params", "peak_params", "nonzero_params", "unique_params", "head_params", "flops", "seconds", "drift"]
LORPA = "lorpa(initial_rank=16)"


def compare(methods: Any, folder: Path, model: Path, **settings: Any) -> Comparison:
    """A study of a few steps on the tiny task."""
    given = {"task": classification_task(), "budget": "rank=4,steps=6", "target_modules": "attention"}
    return peftprune.compare(methods, model=model, output_dir=folder, **(DEFAULTS | given | settings))


def forbid_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(plan: Any, *rest: Any) -> None:
        raise AssertionError(f"{plan.label} was trained again")

    monkeypatch.setattr(queue, "run_arm", refuse)


@pytest.fixture(scope="module")
def small(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Two methods, two seeds, with the second seed named first."""
    return compare(["lora", LORPA], tmp_path_factory.mktemp("small"), tiny_bert, seeds=[3, 1])


# --- tables -----------------------------------------------------------------------------------------------------------


def test_progress_begins_with_what_is_trained(
    tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare("lora", tmp_path, tiny_bert, seeds=1)
    capsys.readouterr()
    compare("lora", tmp_path, tiny_bert, seeds=2, progress=True, workers=1)
    said = " ".join(capsys.readouterr().err.split())
    assert "tiny, budget rank=4,steps=6: 2 arms, 1 to train, 12 steps." in said
    assert "float32, 1 thread(s) an arm; " in said
    assert "12/12" in said


def test_the_table_has_one_row_a_method_and_the_documented_columns(small: Comparison) -> None:
    table = small.table()
    metrics = [f"{m}_{n}" for m in ("accuracy", "f1") for n in ("mean", "std", "low", "high")]
    columns = [name for name in table.columns if name != "learned"]
    assert columns == ["task", "budget", "method", *metrics, "seeds", *LEDGER, "status"]
    assert set(table["task"]) == {"tiny"}
    assert set(table["budget"]) == {"rank=4,steps=6"}
    assert list(table["method"]) == ["lora", "lorpa"]
    assert list(table["seeds"]) == [2, 2]
    assert list(table["status"]) == ["done", "done"]
    assert list(table["final_params"]) == [4 * 4 * 64] * 2
    assert list(table["peak_params"]) == [4 * 4 * 64, 16 * 4 * 64]
    assert list(table["head_params"]) == [2 * 32 + 2] * 2
    assert (table["drift"] > 0).all()
    runs = small.runs()
    for _, row in table.iterrows():
        accuracy = runs[runs["method"] == row["method"]]["accuracy"]
        assert row["accuracy_mean"] == pytest.approx(sum(accuracy) / 2)
        assert row["accuracy_std"] == pytest.approx(abs(accuracy.iloc[0] - accuracy.iloc[1]) / 2**0.5)


def test_runs_have_one_row_an_arm_in_the_order_asked_for(small: Comparison) -> None:
    runs = small.runs()
    expected = ["task", "budget", "method", "seed", "accuracy", "f1", *LEDGER, "budget_params", "exemption", "status"]
    assert list(runs.columns) == expected
    assert [*zip(runs["method"], runs["seed"], strict=True)] == [("lora", 3), ("lorpa", 3), ("lora", 1), ("lorpa", 1)]
    assert set(runs["status"]) == {"done"}
    assert set(runs["budget_params"]) == {1024}
    for _, row in runs.iterrows():
        folder = small.arm(row["method"], row["seed"])
        predictions = pd.read_parquet(folder.predictions)
        assert (predictions["prediction"] == predictions["label"]).mean() == pytest.approx(row["accuracy"])
        result = json.loads((folder.path / "result.json").read_text())
        assert [result["ledger"][name] for name in LEDGER] == [row[name] for name in LEDGER]


def test_allocations_have_one_row_a_site(small: Comparison) -> None:
    allocation = small.allocation()
    where = ["task", "budget", "method", "seed"]
    assert list(allocation.columns) == [*where, "site", "layer", "kind", "rank", "density", "shared_with"]
    assert len(allocation) == 4 * 4
    assert set(allocation["kind"]) == {"query", "value"}
    assert set(allocation["layer"]) == {0, 1}
    assert set(allocation["rank"]) == {4}
    assert set(allocation["shared_with"]) == {""}
    assert allocation["density"].between(0.9, 1.0).all()


def test_shared_and_removed_sites_are_visible(tiny_bert: Path, tmp_path: Path) -> None:
    probe = "sample=0.25,probe_passes=1,threshold=0.01"
    found = compare([f"lora-drop({probe})", f"delete({probe})"], tmp_path, tiny_bert, budget="rank=6,steps=12")
    allocation = found.allocation().set_index(["method", "site"])
    shared = allocation.loc["lora-drop"]["shared_with"]
    named = shared[shared != ""]
    assert len(named) == 2
    assert set(named) == set(named.index)
    deleted = allocation.loc["delete"]
    assert sorted(deleted["rank"]) == [0, 0, 0, 24]
    assert deleted[deleted["rank"] == 0]["density"].isna().all()


def test_what_is_stored_reads_back_the_same(small: Comparison) -> None:
    again = Comparison.load(small.path)
    for view in ("table", "runs", "allocation"):
        assert_frame_equal(getattr(again, view)(), getattr(small, view)())
    assert again.metrics == small.metrics == ["accuracy", "f1"]
    assert again.failures == small.failures == {}


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no study\.json"):
        Comparison.load(tmp_path)


def test_an_unknown_arm_is_named(small: Comparison) -> None:
    with pytest.raises(KeyError, match="no arm 'lora' with seed 2"):
        small.arm("lora", 2)


def test_rank_plots_are_written(small: Comparison, tmp_path: Path) -> None:
    small.plot("ranks", tmp_path / "ranks.png")
    assert (tmp_path / "ranks.png").read_bytes().startswith(b"\x89PNG")


def test_two_evaluation_splits_give_two_metrics(tiny_bert: Path, tmp_path: Path) -> None:
    task = classification_task(evaluation=("matched", "mismatched"))
    found = compare("lora", tmp_path, tiny_bert, task=task)
    assert found.metrics == ["accuracy", "accuracy_mismatched"]
    assert {"accuracy_mean", "accuracy_mismatched_mean"} <= set(found.table().columns)
    predictions = pd.read_parquet(found.arm("lora", 0).predictions)
    right = predictions.assign(right=predictions["prediction"] == predictions["label"]).groupby("split")["right"].mean()
    (run,) = found.runs().to_dict("records")
    assert run["accuracy"] == pytest.approx(right["matched"])
    assert run["accuracy_mismatched"] == pytest.approx(right["mismatched"])


def test_a_regression_from_files_is_compared(tiny_bert: Path, tmp_path: Path) -> None:
    found = compare("lora", tmp_path / "study", tiny_bert, task=regression_task(tmp_path))
    assert found.metrics == ["pearson", "spearman"]
    assert found.table()["pearson_mean"].between(-1, 1).all()
    assert pd.read_parquet(found.arm("lora", 0).predictions)["prediction"].nunique() > 10


# --- reruns -----------------------------------------------------------------------------------------------------------


def test_a_rerun_trains_nothing(small: Comparison, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_training(monkeypatch)
    again = compare(["lora", LORPA], small.path, tiny_bert, seeds=[3, 1])
    assert_frame_equal(again.runs(), small.runs())
    assert again.failures == {}


def test_what_does_not_change_a_result_does_not_train_again(
    small: Comparison, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small.path, tmp_path, dirs_exist_ok=True)
    forbid_training(monkeypatch)
    fewer = compare("lora", tmp_path, tiny_bert, seeds=[1], checkpoints=2, progress=False)
    assert list(fewer.runs()["status"]) == ["done"]
    assert fewer.table()["accuracy_mean"].item() == small.runs()["accuracy"].iloc[2]
    other = compare("lora", tmp_path / "other", tiny_bert, seeds=[1], weight_decay=0.5)
    assert list(other.runs()["status"]) == ["failed: AssertionError: lora was trained again"]


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_without_its_request_a_study_keeps_the_threads_and_dtype_of_its_arms(
    damage: str, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.set_num_threads", lambda threads: None)
    before = compare("lora", tmp_path, tiny_bert, seeds=2, threads=7, dtype="bfloat16")
    # An arm that was begun with other threads, and one that cannot be read, decide on nothing.
    config = before.arm("lora", 0).config()
    for name, text in {"x": json.dumps(config | {"threads": 9}), "y": "{", "z": "[]"}.items():
        (tmp_path / "arms" / name).mkdir()
        (tmp_path / "arms" / name / "config.json").write_text(text)
    study = tmp_path / "study.json"
    study.write_text(study.read_text()[:100]) if damage == "truncated" else study.unlink()
    forbid_training(monkeypatch)
    monkeypatch.setattr("peftprune.study.task_setup.timed_dtype", lambda: ("float32", {}))
    after = compare("lora", tmp_path, tiny_bert, seeds=2, dtype="auto")
    assert_frame_equal(after.runs(), before.runs())
    assert (after.request["threads"], after.request["dtype"]) == (7, "bfloat16")


def test_adding_a_method_or_seed_trains_only_what_is_new(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, int]] = []
    run_arm = queue.run_arm

    def counting(plan: Any, inputs: Any, seed: int, *rest: Any) -> Any:
        trained.append((plan.label, seed))
        return run_arm(plan, inputs, seed, *rest)

    monkeypatch.setattr(queue, "run_arm", counting)
    compare("lora", tmp_path, tiny_bert)
    compare(["lora", LORPA], tmp_path, tiny_bert)
    found = compare(["lora", LORPA], tmp_path, tiny_bert, seeds=2)
    assert trained == [("lora", 0), ("lorpa", 0), ("lora", 1), ("lorpa", 1)]
    assert len(found.runs()) == 4


def test_a_request_is_added_to_the_study_of_its_folder(tiny_bert: Path, tmp_path: Path) -> None:
    compare(["lora", "dora"], tmp_path, tiny_bert)
    asked = compare(LORPA, tmp_path, tiny_bert, budget=["rank=4,steps=6", "rank=2,steps=6"], seeds=[2], checkpoints=1)
    assert asked.methods == ["lorpa"]
    assert asked.runs()[["method", "seed"]].values.tolist() == [["lorpa", 2]] * 2
    whole = Comparison.load(tmp_path)
    assert (whole.methods, whole.request["seeds"]) == (["lora", "dora", "lorpa"], [0, 2])
    assert whole.runs()["status"].tolist() == ["done"] * 4
    assert [(k["budget"][5], k["method"], k["seed"]) for k, _ in whole.arms()] == [
        *(("4", "lora", 0), ("4", "dora", 0), ("4", "lorpa", 2), ("2", "lorpa", 2))
    ]
    # No command asks for just these arms. Each view skips the cells that no call asked for.
    assert command(whole.request) == ""
    assert whole.against()["method"].tolist() == ["dora", "dora"]
    assert [len(getattr(whole, view)()) for view in ("table", "mcnemar", "pooled")] == [4, 1, 1]
    whole.report(tmp_path / "report.html")
    # Asked for again, in part or in another order, nothing is lost; all of it takes the order of the call.
    compare("dora", tmp_path, tiny_bert)
    assert Comparison.load(tmp_path).request["arms"] == whole.request["arms"]
    compare([LORPA, "dora", "lora"], tmp_path, tiny_bert)
    assert Comparison.load(tmp_path).methods == ["lorpa", "dora", "lora"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "settings": ({"weight_decay": 0.5}, r"weight_decay: 0\.5 is not that of .*/small \(0\.01\)"),
    "layers": ({"target_modules": "all-linear"}, r"target_modules: 'all-linear' .* \('attention'\)"),
    "threads": ({"threads": 5}, r"threads: 5 .* \(\d\)"),
    "dtype": ({"dtype": "bfloat16"}, r"dtype: 'bfloat16' .* \('float32'\)"),
    "options": ({"methods": "lorpa(initial_rank=8)"}, r"method lorpa: 'lorpa\(initial_rank=8\)' .* \('lorpa\("),
    "size": ({"task": classification_task(60)}, r"task tiny: train examples: 60 .* \(70\)"),
    "data": ({}, r"task tiny: data: '\w{8}' .* \('\w{8}'\)"),
    "model": ({}, r"model: '.* \(other weights\)' is not"),
    "versions": ({}, r"versions: \{'torch': '9'\} .* \(\{'torch': "),
    "paper": ({"budget": "paper", "epochs": 3.0}, r"epochs: 3\.0 .* \(None\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_request_that_does_not_fit_the_study_is_refused(
    case: str, small: Comparison, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, message = REFUSED[case]
    folder = shutil.copytree(small.path, tmp_path / "small")
    (tmp_path / "small-2").mkdir()
    before = (folder / "study.json").read_bytes()
    forbid_training(monkeypatch)
    monkeypatch.setattr("torch.set_num_threads", lambda threads: None)
    if case == "versions":
        monkeypatch.setattr(task_setup, "package_versions", lambda: small.request["versions"] | {"torch": "9"})
    if case == "model":
        monkeypatch.setattr(task_setup, "load_model", lambda *given: replace(load_model(*given), fingerprint="0"))
    if case == "data":
        monkeypatch.setattr(peftprune.Task, "fingerprint", "0" * 64)
    with pytest.raises(UsageError, match=message + r".*\. Name another folder, such as output_dir='.*/small-3', or "):
        compare(**({"methods": "lora", "seeds": [1]} | given), folder=folder, model=tiny_bert)
    assert (folder / "study.json").read_bytes() == before


def test_a_study_without_a_finished_arm_gives_way(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_training(monkeypatch)
    compare("lora", tmp_path, tiny_bert, learning_rate=1.0)
    compare("dora", tmp_path, tiny_bert)
    assert Comparison.load(tmp_path).methods == ["dora"]
    (tmp_path / "slurm").mkdir()
    with pytest.raises(UsageError, match=r"learning_rate: 1\.0 is not"):
        compare("lora", tmp_path, tiny_bert, learning_rate=1.0)


def test_a_study_is_trained_anew_as_a_whole_with_other_versions(
    small: Comparison, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small.path, tmp_path, dirs_exist_ok=True)
    forbid_training(monkeypatch)
    monkeypatch.setattr(task_setup, "package_versions", lambda: small.request["versions"] | {"torch": "9"})
    found = compare(["lora", LORPA], tmp_path, tiny_bert, seeds=[3, 1])
    assert len(found.failures) == 4
    assert Comparison.load(tmp_path).request["versions"]["torch"] == "9"


class Fragile(RankPruningStrategy):
    """Fails as long as it is told to."""

    name: ClassVar[str] = "fragile"
    broken: ClassVar[bool] = True

    def decide(self, view: StepView) -> PruningPlan:
        if self.broken and view.step == 2:
            raise ZeroDivisionError("a fault of mine")
        return PruningPlan()


def test_one_failure_stops_no_other_arm_and_a_retry_mends_it(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = compare([Fragile, "lora"], tmp_path, tiny_bert, seeds=2)
    table = found.table().set_index("method")
    assert table.loc["lora", "status"] == "done"
    assert table.loc["fragile", "status"] == "2 of 2 failed: ZeroDivisionError: a fault of mine"
    assert table.loc["fragile", "seeds"] == 0
    assert pd.isna(table.loc["fragile", "accuracy_mean"])
    assert found.failures == {f"fragile, seed {n}": "ZeroDivisionError: a fault of mine" for n in (0, 1)}
    error = found.arm("fragile", 0).error()
    assert error is not None
    assert "in decide" in error["traceback"]

    monkeypatch.setattr(Fragile, "broken", False)
    mended = compare([Fragile, "lora"], tmp_path, tiny_bert, seeds=2)
    assert list(mended.table()["status"]) == ["done", "done"]
    assert mended.failures == {}
    assert mended.arm("fragile", 0).error() is None


class Wasteful(RankPruningStrategy):
    """Leaves a rank unspent everywhere."""

    name: ClassVar[str] = "wasteful"

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        return AdapterSpec(ranks={n: r - 1 for n, r in budget.solve(sites).items()})


class Greedy(RankPruningStrategy):
    """Takes a rank too many everywhere, and promises to cut it, which it does not."""

    name: ClassVar[str] = "greedy"

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        final = budget.solve(sites)
        return AdapterSpec(ranks={n: r + 1 for n, r in final.items()}, final_ranks=final)


def test_a_missed_budget_is_a_failure_in_either_direction(tiny_bert: Path, tmp_path: Path) -> None:
    found = compare([Wasteful, Greedy], tmp_path, tiny_bert)
    assert "one more rank (64 parameters) would fit" in found.failures["wasteful, seed 0"]
    assert "256 above the 1,024 allowed" in found.failures["greedy, seed 0"]


# --- requests ---------------------------------------------------------------------------------------------------------

MINE = '''
from peftprune import PruningPlan, RankPruningStrategy
from peftprune.strategy import AdapterSpec


class Halving(RankPruningStrategy):
    """Starts at twice the rank and keeps the components with the longest columns of B."""

    name = "halving"

    def spec(self, sites, budget):
        self.final = budget.solve(sites)
        return AdapterSpec(ranks={n: 2 * r for n, r in self.final.items()}, final_ranks=self.final)

    def decide(self, view):
        if view.step != view.total_steps // 2:
            return PruningPlan()
        best = {n: s.B.norm(dim=0).argsort(descending=True)[: s.rank // 2] for n, s in view.sites.items()}
        return PruningPlan(keep={n: sorted(i.tolist()) for n, i in best.items()}, reason="halved")
'''


def test_a_strategy_of_ones_own_runs_beside_the_others(tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    found = compare(["lora", f"{tmp_path}/mine.py:Halving"], tmp_path / "study", tiny_bert)
    table = found.table().set_index("method")
    assert list(table["status"]) == ["done", "done"]
    assert table.loc["halving", "final_params"] == table.loc["lora", "final_params"] == 1024
    assert table.loc["halving", "peak_params"] == 2048
    assert [row["reason"] for row in found.arm("halving", 0).allocation()] == ["initial ranks", "halved"]


def test_labels_options_objects_and_classes_all_name_arms(tiny_bert: Path, tmp_path: Path) -> None:
    from peftprune.methods.controls import LoRARestart
    from peftprune.methods.prilora import PRILoRA

    methods = "lorpa:r8(initial_rank=8), lorpa:r12(initial_rank=12)"
    found = compare([methods, PRILoRA(prune_every=3, sparsity=0.25), LoRARestart], tmp_path, tiny_bert)
    table = found.table()
    assert list(table["method"]) == ["lorpa:r8", "lorpa:r12", "prilora", "lora-restart"]
    assert list(table["status"]) == ["done"] * 4
    assert list(table["peak_params"]) == [8 * 256, 12 * 256, 1024, 1024]
    # A quarter of every row of A, which is half of the adapter.
    assert table["nonzero_params"].iloc[2] == 1024 - 1024 // 8


def test_the_papers_budgets_may_differ_and_the_table_says_by_how_much(tiny_bert: Path, tmp_path: Path) -> None:
    methods = ["lora", LORPA, "prilora(start_rank=4,final_rank=10)"]
    found = compare(methods, tmp_path, tiny_bert, budget="paper", epochs=0.7)
    table = found.table().set_index("method")
    assert list(table["status"]) == ["done"] * 3
    assert [name for name in table.columns if name != "learned"][-2:] == ["budget_difference", "status"]
    # Two sites of rank 4 and two of rank 10, against four of rank 8.
    assert list(table["budget_difference"]) == [0, 0, (2 * 4 + 2 * 10 - 4 * 8) * 64]


def test_a_paper_run_without_a_published_rate_asks_for_it(tiny_bert: Path, tmp_path: Path, monkeypatch: Any) -> None:
    forbid_training(monkeypatch)
    with pytest.raises(UsageError, match="learning_rate: None is not published for lora on bert, 2 layers of width 32"):
        compare("lora", tmp_path, tiny_bert, budget="paper", epochs=1, learning_rate=None)


@pytest.mark.parametrize("method", ["prilora(prune_every=3)", "prilora(prune_every=3,pattern='2:4')", "lora"])
def test_a_budget_may_count_what_is_not_zero(method: str, tiny_bert: Path, tmp_path: Path) -> None:
    budget = "params=3000,count=nonzero,steps=6"
    found = compare(method, tmp_path, tiny_bert, budget=budget, target_modules="all-linear")
    (row,) = found.runs().to_dict("records")
    assert row["status"] == "done"
    # The cheapest unit of rank has half of 32 entries of A, and 32 of B.
    unit = 16 + 32 if method != "lora" else 64
    assert 0 <= 3000 - row["nonzero_params"] < unit
    assert (row["final_params"] > 3000) == (method != "lora")


def test_a_length_that_nobody_gave_is_what_the_model_reads(tiny_bert: Path, tmp_path: Path) -> None:
    task = classification_task()
    options = {"model": tiny_bert, "task": task, "budget": "rank=2,steps=2", "batch_size": 8, "seeds": 1}
    study = peftprune.compare("lora", **options, output_dir=tmp_path / "default")
    assert study.request["settings"]["max_length"] == 64
    result = study.arm("lora", 0).result()
    assert result is not None
    assert result["settings"]["max_length"] == 64
    named = peftprune.compare("lora", **options, max_length=64, output_dir=tmp_path / "named")
    assert [a["hash"] for a in study.request["arms"]] == [a["hash"] for a in named.request["arms"]]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"seeds": 0}, "seeds: 0 leaves nothing to run"),
        ({"seeds": [1, 1]}, "seeds: .* are not distinct"),
        ({"epochs": 2.0}, "epochs: 2.0 is named beside the budget's length"),
        ({"methods": ["lora", "lora"]}, "'lora' occurs twice"),
        ({"methods": "lorpaa"}, "Did you mean 'lorpa'"),
        ({"methods": "lorpa(initial_rnk=3)"}, "Did you mean 'initial_rank'"),
        ({"budget": "rank=33"}, "budget.rank: 33 is above the smaller side"),
        ({"max_length": 100}, "max_length: 100 is beyond what .* reads. Give up to 64"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_a_request_that_cannot_run_is_refused_before_any_training(
    request_: dict[str, Any], message: str, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_training(monkeypatch)
    with pytest.raises(UsageError, match=message):
        compare(**({"methods": "lora"} | request_), folder=tmp_path, model=tiny_bert)


def typed_in(body: str, base: str = "peftprune.RankPruningStrategy") -> dict[str, type]:
    """Classes as a notebook's cell makes them: without a file of their own."""
    made: dict[str, Any] = {"__name__": "__main__", "peftprune": peftprune}
    exec(f"class Mine({base}):\n    name = 'mine'\n    def decide(self, view):\n        {body}\n", made)
    exec("class Child(Mine):\n    name = 'child'\n", made)
    return made


def test_the_code_of_a_users_strategy_is_part_of_the_arm() -> None:
    first, same, other = (typed_in(body) for body in ("return 1", "return 1", "return 2"))
    for name in ("Mine", "Child"):
        assert _source(first[name]) == _source(same[name])
        assert _source(first[name]) != _source(other[name])
    assert _source(first["Mine"]) != _source(first["Child"])
    assert all(f"class {name}(" in _source(Penalised) for name in ("Warm", "Penalised"))
    assert _source(peftprune.methods.registry.load("lorpa")) == ""
