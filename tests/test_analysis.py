"""A study of several tasks, budgets and seeds: every frame against its own computation from the stored files."""

from __future__ import annotations

import json
import math
import shutil
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, friedmanchisquare, rankdata
from scipy.stats import t as student

import peftprune
from peftprune import stats
from peftprune.analysis.decisions import NO_EFFECT, SAME_ALLOCATION, changes, decisions, distance_from_uniform
from peftprune.errors import UsageError
from peftprune.strategy.interface import RankPruningStrategy
from tests.helpers import DEFAULTS, classification_task
from tests.report_studies import Page

TASKS, BUDGETS, SEEDS = ("small", "large"), ("rank=2,steps=14", "rank=4,steps=14"), (0, 1)
METHODS = {
    "lora": "lora",
    "lora:again": "lora:again",
    "lorpa": "lorpa(initial_rank=8)",
    "random-rank": "random-rank(initial_rank=8)",
    "lora-drop": "lora-drop(sample=0.25,probe_passes=1,threshold=0.5)",
}
CELLS = [*product(TASKS, BUDGETS)]


@pytest.fixture(scope="module")
def study(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> peftprune.Comparison:
    return peftprune.compare(
        list(METHODS.values()),
        [classification_task(40, name="small"), classification_task(60, name="large")],
        model=tiny_bert,
        budget=list(BUDGETS),
        seeds=len(SEEDS),
        batch_size=8,
        learning_rate=1e-2,
        max_length=32,
        dtype="float32",
        target_modules="attention",
        output_dir=tmp_path_factory.mktemp("study"),
    )


def stored(study: peftprune.Comparison, task: str, budget: str, method: str, seed: int) -> dict:
    folder = study.arm(method, seed, task=task, budget=budget)
    return json.loads((folder.path / "result.json").read_text())


def accuracies(study: peftprune.Comparison, task: str, budget: str, method: str) -> list[float]:
    return [stored(study, task, budget, method, seed)["metrics"]["accuracy"] for seed in SEEDS]


def test_every_combination_is_trained_once(study: peftprune.Comparison) -> None:
    runs = study.runs()
    assert set(runs["status"]) == {"done"}
    found = {*zip(runs["task"], runs["budget"], runs["method"], runs["seed"], strict=True)}
    assert found == {*product(TASKS, BUDGETS, METHODS, SEEDS)}
    assert len(runs) == len(found)
    for row in runs.to_dict("records"):
        result = stored(study, row["task"], row["budget"], row["method"], row["seed"])
        assert result["meta_info"]["dataset_info"]["name"] == row["task"]
        assert result["metrics"]["accuracy"] == row["accuracy"]
        assert row["budget_params"] == int(row["budget"][5]) * 4 * 64
    # The tasks differ, so equal arms of both would be a mistake of the key.
    hashes = [(arm["label"], arm["hash"]) for arm in study.request["arms"]]
    assert len(set(hashes)) == len(hashes)


def test_a_part_of_a_study_is_a_study(study: peftprune.Comparison) -> None:
    part = study.only(task="large", budget=BUDGETS[1], method="lorpa")
    assert (part.tasks, part.budgets, part.methods) == (["large"], [BUDGETS[1]], ["lorpa"])
    whole = study.runs()
    mine = whole[(whole["task"] == "large") & (whole["budget"] == BUDGETS[1]) & (whole["method"] == "lorpa")]
    pd.testing.assert_frame_equal(part.runs(), mine.reset_index(drop=True))
    assert [(c.tasks, c.budgets) for c in study.cells()] == [([t], [b]) for t, b in CELLS]
    with pytest.raises(UsageError, match=r"task: 'rte' is not in the study\. It has: small, large"):
        study.only(task="rte")
    with pytest.raises(UsageError, match="budget: 'rank=3' is not in the study"):
        study.only(budget="rank=3")
    with pytest.raises(KeyError, match="4 arms 'lora' with seed 0"):
        study.arm("lora", 0)


def test_the_table_has_students_interval(study: peftprune.Comparison) -> None:
    table = study.table().set_index(["task", "budget", "method"])
    for task, budget in CELLS:
        for method in METHODS:
            values = accuracies(study, task, budget, method)
            row = table.loc[(task, budget, method)]
            mean, std = np.mean(values), np.std(values, ddof=1)
            half = student.ppf(0.975, 1) * std / math.sqrt(2)
            found = [row[f"accuracy_{n}"] for n in ("mean", "std", "low", "high")]
            assert found == pytest.approx([mean, std, mean - half, mean + half])


def test_each_task_and_budget_is_corrected_on_its_own(study: peftprune.Comparison) -> None:
    frame = study.against()
    assert len(frame) == len(CELLS) * (len(METHODS) - 1) * 2
    for _, rows in frame.groupby(["task", "budget", "metric"]):
        assert rows["p_holm"].tolist() == pytest.approx(list(stats.holm(rows["p"].tolist())))
    accuracy = frame[frame["metric"] == "accuracy"].set_index(["task", "budget", "method"])
    for (task, budget), method in product(CELLS, ("lorpa", "lora-drop")):
        ours, theirs = (accuracies(study, task, budget, m) for m in (method, "lora"))
        row = accuracy.loc[(task, budget, method)]
        assert row["difference"] == pytest.approx(np.mean(ours) - np.mean(theirs), abs=1e-12)
        wins = [(a > b) + (a == b) / 2 for a, b in product(ours, theirs)]
        assert row["probability"] == pytest.approx(np.mean(wins))
        assert math.isnan(row["effect_size"]) or ours == theirs  # two seeds are too few


def test_mcnemar_counts_examples_of_one_seed(study: peftprune.Comparison) -> None:
    frame = study.mcnemar()
    assert len(frame) == len(CELLS) * (len(METHODS) - 1) * len(SEEDS)
    for row in frame.to_dict("records"):
        right = []
        for method in (row["method"], "lora"):
            f = pd.read_parquet(study.arm(method, row["seed"], task=row["task"], budget=row["budget"]).predictions)
            right.append((f["prediction"] == f["label"]).tolist())
        ours = sum(a and not b for a, b in zip(*right, strict=True))
        theirs = sum(b and not a for a, b in zip(*right, strict=True))
        assert (row["only_method"], row["only_baseline"]) == (ours, theirs)
        expected = binomtest(ours, ours + theirs).pvalue if ours + theirs else 1.0
        assert row["p"] == pytest.approx(expected)
    same = frame[frame["method"] == "lora:again"]
    assert (same[["only_method", "only_baseline"]] == 0).all(axis=None)
    assert (same["p"] == 1).all()
    for _, rows in frame.groupby(["task", "budget", "seed"]):
        assert rows["p_holm"].tolist() == pytest.approx(list(stats.holm(rows["p"].tolist())))


def test_pairs_are_pooled_over_tasks_and_seeds(study: peftprune.Comparison) -> None:
    frame = study.pooled().set_index(["budget", "method"])
    assert len(frame) == len(BUDGETS) * (len(METHODS) - 1)
    for budget, method in product(BUDGETS, [m for m in METHODS if m != "lora"]):
        pairs = [
            (a, b)
            for task in TASKS
            for a, b in zip(
                accuracies(study, task, budget, method), accuracies(study, task, budget, "lora"), strict=True
            )
        ]
        d = np.array([a - b for a, b in pairs])
        row = frame.loc[(budget, method)]
        assert (row["tasks"], row["pairs"]) == (2, 4)
        assert row["gain"] == pytest.approx(d.mean(), abs=1e-12)
        # All 16 sign patterns, by hand.
        sums = [abs(np.dot(signs, d)) for signs in product((1, -1), repeat=4)]
        assert row["p"] == pytest.approx(np.mean([s >= abs(d.sum()) - 1e-12 for s in sums]))
        # Four pairs reject nothing at 0.05, so no difference is excluded.
        assert (row["low"], row["high"], row["low_holm"], row["high_holm"]) == (-np.inf, np.inf) * 2
        assert row["verdict"] == "cannot reach significance with 4 pairs"
    assert (frame.xs("lora:again", level="method")["gain"] == 0).all(axis=None)


def test_average_ranks_are_those_of_the_means(study: peftprune.Comparison) -> None:
    frame = study.average_ranks().set_index(["budget", "method"])
    for budget in BUDGETS:
        means = np.array([[np.mean(accuracies(study, task, budget, m)) for m in METHODS] for task in TASKS])
        expected = rankdata(-means, axis=1).mean(axis=0)
        rows = frame.loc[budget]
        assert rows.loc[list(METHODS), "average_rank"].tolist() == pytest.approx(list(expected))
        assert rows["critical_difference"].unique() == pytest.approx([stats.critical_difference(len(METHODS), 2)])
        assert rows["friedman_p"].iloc[0] == pytest.approx(friedmanchisquare(*means.T).pvalue)
    assert study.only(task="small").average_ranks().empty


def test_the_pareto_set_is_what_nothing_beats(study: peftprune.Comparison) -> None:
    frame = study.frontier()
    assert len(frame) == len(CELLS) * len(METHODS)
    for _, rows in frame.groupby("task"):
        points = [row | {"size": int(row["budget"][5])} for row in rows.to_dict("records")]
        for p in points:
            beaten = any(
                q["size"] <= p["size"] and q["mean"] >= p["mean"] and (q["size"], q["mean"]) != (p["size"], p["mean"])
                for q in points
            )
            assert p["pareto"] == (not beaten)
        assert rows["pareto"].any()


def test_allocations_are_compared_between_seeds_and_methods(study: peftprune.Comparison) -> None:
    frame = study.stability()
    arms = [*product(METHODS, SEEDS)]
    pairs = [(a, b) for a, b in combinations(arms, 2) if a[0] == b[0] or a[1] == b[1]]
    assert len(frame) == len(CELLS) * len(pairs)
    assert frame[["ranks", "sites"]].apply(lambda c: c.between(0, 1)).all(axis=None)
    across = frame[frame["seed"] != frame["other_seed"]]
    assert across["components"].isna().all()
    assert (across[across["method"] != "lora-drop"]["ranks"] == 1).all()
    for row in frame.to_dict("records"):
        a, b = (
            {s["site"]: s for s in stored(study, row["task"], row["budget"], row[m], row[n])["allocation"]}
            for m, n in (("method", "seed"), ("other_method", "other_seed"))
        )
        least = sum(min(a[n]["rank"], b[n]["rank"]) for n in a)
        assert row["ranks"] == pytest.approx(least / sum(max(a[n]["rank"], b[n]["rank"]) for n in a))
        own = [{n for n, s in x.items() if s["rank"] and not s["shared_with"]} for x in (a, b)]
        assert row["sites"] == pytest.approx(len(own[0] & own[1]) / len(own[0] | own[1]))
    cut = frame[(frame["method"] == "lorpa") & (frame["other_method"] == "random-rank")]
    assert cut["components"].between(0, 1).all()
    # 2 or 4 of 8 components drawn at random cannot always be the strongest ones.
    assert cut["components"].mean() < 0.9


def test_the_course_of_training_ends_at_the_final_allocation(study: peftprune.Comparison) -> None:
    trace, final = study.trace(), study.allocation()
    last = trace.groupby(["task", "budget", "method", "seed", "site"], sort=False).last()
    for row in final.to_dict("records"):
        end = last.loc[tuple(row[n] for n in ("task", "budget", "method", "seed", "site"))]
        assert (end["rank"], end["shared_with"]) == (row["rank"], row["shared_with"])
        assert (end["layer"], end["kind"]) == (row["layer"], row["kind"])
    start = trace[trace["step"] == 0]
    assert set(start[start["method"] == "lorpa"]["rank"]) == {8}
    cut = trace[(trace["method"] == "lorpa") & (trace["step"] > 0)]
    assert [len(c) for c in cut["components"]] == cut["rank"].tolist()
    assert cut["score"].between(0, 1, inclusive="neither").all()
    assert trace[(trace["method"] == "random-rank")]["score"].isna().all()
    scored = trace[(trace["method"] == "lora-drop") & trace["score"].notna()]
    sums = scored.groupby(["task", "budget", "seed"])["score"].sum()
    assert sums.tolist() == pytest.approx([1.0] * len(sums))


def test_losses_and_costs_are_those_recorded(study: peftprune.Comparison) -> None:
    history, costs = study.history(), study.costs()
    assert {*history["phase"]} >= {"train", "dense", "pruned", "probe", "finetune"}
    arm = study.arm("lorpa", 1, task="large", budget=BUDGETS[0])
    logged = [row for row in arm.history() if "loss" in row]
    mine = history[
        (history["method"] == "lorpa") & (history["seed"] == 1) & (history["task"] == "large")
        & (history["budget"] == BUDGETS[0])
    ]  # fmt: skip
    assert mine["loss"].tolist() == [row["loss"] for row in logged]
    assert mine["phase"].tolist() == ["dense" if row["step"] <= 3 else "pruned" for row in logged]
    for key, rows in costs.groupby(["task", "budget", "method", "seed"]):
        ledger = stored(study, *key)["ledger"]
        assert dict(zip(rows["phase"], rows["seconds"], strict=True)) == {
            **ledger["phase_seconds"],
            "evaluation": ledger["evaluation_seconds"],
        }
        assert rows["share"].sum() == pytest.approx(1)


def test_a_failed_arm_is_left_out_and_named(study: peftprune.Comparison, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    shutil.copytree(study.path, folder)
    copy = peftprune.Comparison.load(folder)
    arm = copy.arm("lorpa", 1, task="small", budget=BUDGETS[0])
    (arm.path / "result.json").unlink()
    arm.record_error(ValueError("went wrong"), "lorpa", 1)
    assert copy.failures == {f"small, {BUDGETS[0]}, lorpa, seed 1": "ValueError: went wrong"}
    row = copy.table().set_index(["task", "budget", "method"]).loc[("small", BUDGETS[0], "lorpa")]
    assert row["seeds"] == 1
    assert row["status"] == "1 of 2 failed: ValueError: went wrong"
    against = copy.against().set_index(["task", "budget", "method", "metric"])
    verdict = against.loc[("small", BUDGETS[0], "lorpa", "accuracy"), "verdict"]
    assert verdict.startswith("cannot reach significance with 1 seed")
    assert len(copy.mcnemar()) == len(study.mcnemar()) - 1
    pooled = copy.pooled().set_index(["budget", "method"])
    assert pooled.loc[(BUDGETS[0], "lorpa"), "pairs"] == 3
    for frame in (copy.frontier(), copy.stability(), copy.trace(), copy.history(), copy.costs(), copy.average_ranks()):
        assert not frame.empty


@pytest.mark.parametrize(
    ("name", "reads"),
    [
        ("predictions.parquet", ["against", "mcnemar"]),
        ("allocation.jsonl", ["trace", "stability"]),
        ("history.jsonl", ["history"]),
    ],
)
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_file_is_named(
    study: peftprune.Comparison, name: str, reads: list[str], damage: str, tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    shutil.copytree(study.path, folder)
    copy = peftprune.Comparison.load(folder)
    file = copy.arm("lorpa", 1, task="small", budget=BUDGETS[0]).path / name
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:100])
    for frame in reads:
        with pytest.raises(UsageError, match=rf"file: .*{name}.* cannot be read .* Delete the arm's folder"):
            getattr(copy, frame)()
    assert len(copy.table()) == len(study.table())


# --- what decisions changed -------------------------------------------------------------------------------------------


def event(step: int, scores: dict[str, float] | None = None, **sites: tuple[int, list[int] | None]) -> dict:
    """A row of a trace: site to rank and components; two sites named `t...` are tied."""
    rows = {
        name: {"rank": rank, "density": None, "components": held, "shared_with": ["t"] if name.startswith("t") else []}
        for name, (rank, held) in sites.items()
    }
    return {"step": step, "phase": "train", "reason": "", "scores": scores or {}, "sites": rows}


def test_changes_are_counted_from_the_trace() -> None:
    trace = [
        event(0, a=(4, None), b=(4, None), c=(2, None), tied=(1, None)),
        event(3, {"a": 1.0, "b": 2.0}),
        event(5, a=(3, [0, 1, 3]), b=(5, None)),
        event(7, c=(0, []), b=(5, [0, 1, 2, 3, 5])),
    ]
    # Step 5: one from a to b; step 7: two of c and one of b go, and b gets one.
    expected = {"events": 2, "removed": 4, "added": 2, "moved": 2, "dropped": 1, "tied": 1}
    assert changes(trace) == expected
    assert set(changes([]).values()) == {0}


def test_distance_from_uniform_is_half_the_difference_of_parameter_shares() -> None:
    def sites(*ranks: int, shared: int = 0, costs: tuple[int, ...] = (10, 10, 20)) -> list[dict]:
        return [{"rank": r, "unit_cost": c, "shared_with": ["x"] * shared} for r, c in zip(ranks, costs, strict=True)]

    assert distance_from_uniform(sites(3, 3, 3)) == 0
    assert distance_from_uniform(sites(2, 0, 0)) == 0.75
    assert distance_from_uniform(sites(2, 4, 1)) == pytest.approx(0.25)
    assert distance_from_uniform(sites(3, 3, 3, shared=1)) == 0
    assert math.isnan(distance_from_uniform([]))
    # Studies of earlier versions do not hold the sites' sizes.
    assert math.isnan(distance_from_uniform([{"rank": 1, "shared_with": []}]))


def test_the_scores_of_the_first_and_last_decision_are_correlated(study: peftprune.Comparison, tmp_path: Path) -> None:
    copy = peftprune.Comparison.load(shutil.copytree(study.path, tmp_path / "study"))
    file = copy.arm("lorpa", 1, task="small", budget=BUDGETS[0]).path / "allocation.jsonl"
    first, last = {"a": 1.0, "b": 2.0, "c": 3.0}, {"a": 5.0, "b": 2.0, "c": 1.0}
    state = dict.fromkeys(first, (1, None))
    file.write_text("\n".join(map(json.dumps, [event(0, **state), event(1, first), event(2, {}), event(3, last)])))
    frame = decisions(copy).set_index(["task", "budget", "method", "seed"])["rank_correlation"]
    assert frame[("small", BUDGETS[0], "lorpa", 1)] == pytest.approx(-1)
    assert frame[:, :, "lora-drop"].isna().all(), "it scores once"


def test_what_methods_changed_is_counted(study: peftprune.Comparison) -> None:
    frame = study.decisions().set_index("method")
    assert set(frame.loc["lora", "effect"]) == {""}, "it has nothing to decide"
    assert (frame.loc["lora", ["events", "removed", "distance"]] == 0).all(axis=None)
    assert (frame.loc["lorpa", "events"] == 1).all()
    # Eight components at each of four sites are cut to the budget's two or four.
    assert set(frame.loc["lorpa", "removed"]) == {24, 16}
    # With one unimportant site of a kind, there is nothing to share it with: the adapters only start afresh.
    expected = ["" if tied else SAME_ALLOCATION for tied in frame.loc["lora-drop", "tied"]]
    assert frame.loc["lora-drop", "effect"].tolist() == expected
    assert set(expected) == {"", SAME_ALLOCATION}


class Idle(RankPruningStrategy):
    name = "idle"


def test_a_method_that_did_nothing_says_so(tiny_bert: Path, tmp_path: Path) -> None:
    found = peftprune.compare(
        ["lora", Idle, "lorpa(initial_rank=4)"],
        classification_task(),
        model=tiny_bert,
        output_dir=tmp_path / "study",
        **(DEFAULTS | {"budget": "rank=2,steps=6", "target_modules": "attention"}),
    )
    assert dict(zip(found.decisions()["method"], found.decisions()["effect"], strict=True)) == {
        "lora": "",
        "idle": NO_EFFECT,
        "lorpa": "",
    }
    assert found.table()["effect"].tolist() == ["", NO_EFFECT, ""]
    verdicts = found.against().set_index(["method", "metric"])["verdict"]
    # Whether six steps taught anything is marked too.
    assert f"({NO_EFFECT}" in verdicts["idle", "accuracy"]
    assert NO_EFFECT not in verdicts["lorpa", "accuracy"]
    page = Page(found.report(tmp_path / "report.html").read_text())
    # The main table, the decisions, the differences in two metrics, and the findings.
    assert page.text.count(NO_EFFECT) == 5
