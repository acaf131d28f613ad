"""Tuning: the same trials for every method, chosen on validation data, and never on what is reported."""

from __future__ import annotations

import json
import random
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection

import peftprune
from peftprune.analysis.audit import audit
from peftprune.analysis.frames import Frames
from peftprune.analysis.status import arm_states
from peftprune.analysis.tuning import expected_best, half_decades, trial_means
from peftprune.comparison import Comparison
from peftprune.errors import DivergedError, RunError, UsageError
from peftprune.methods.request import parse
from peftprune.report.figures import draw, save
from peftprune.report.html.page import _cell_tables
from peftprune.study import tuning as searching
from peftprune.study.command import command
from peftprune.study.execution import work as queue
from peftprune.study.packed import pack, unpack
from peftprune.study.size import size_in_words, tuning_size
from peftprune.study.store import ArmFolder
from peftprune.study.tuning import Choice, Tuning, choose, parse_tuning, search, trials_of
from peftprune.tasks import Task
from peftprune.tasks.base import make_dataset
from peftprune.tasks.holdout import carve
from tests.helpers import NEGATIVE, POSITIVE, WORDS, classification_task, same, texts
from tests.killing import Heard, left_by, left_in
from tests.reference import tuning as reference

RATES = "learning_rate=1e-3,3e-3,1e-2"
SETTINGS = {"batch_size": 8, "dtype": "float32", "checkpoints": 2, "max_length": 32, "threads": 1, "workers": 1}
LORPA = "lorpa(initial_rank=8)"


def task(n: int = 70) -> Task:
    """The tiny task with validation data of its own."""
    return replace(classification_task(n), validation=classification_task(30).train)


def compare(methods: Any, folder: Path, model: Path, **settings: Any) -> Comparison:
    given: dict[str, Any] = {"task": task(), "budget": "rank=4,steps=6", "target_modules": "attention", "tune": RATES}
    return peftprune.compare(methods, model=model, output_dir=folder, **(SETTINGS | given | settings))


def parsed(
    tune: Any,
    trials: Any = None,
    seeds: Any = 1,
    refit: Any = False,
    how: str = "grid",
    methods: str = f"lora,{LORPA}",
) -> Tuning:
    found = parse_tuning(tune, trials, seeds, refit, parse(methods), (0, 1), how)
    assert found is not None
    return found


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"tune": "learning_rate=0,1e-3"}, ("tune", "positive")),
        ({"tune": "learning_rate=1e-3"}, ("tune", "two or more")),
        ({"tune": "learning_rate=1e-3,1e-3"}, ("tune", "distinct")),
        ({"tune": "learning_rate=nan,1"}, ("tune", "positive")),
        ({"tune": "learning_rate=a,b"}, ("tune", "not numbers")),
        ({"tune": "learning_rate"}, ("tune", "names no values")),
        ({"tune": 3}, ("tune", "neither text")),
        ({"tune": []}, ("tune", "neither text")),
        ({"tune": "epochs=1,2"}, ("tune", "'epochs' cannot be tuned")),
        ({"tune": "lorpa.initial_rank=8,16"}, ("names no learning rates",)),
        ({"tune": [RATES, "adalora.every=1,2"]}, ("names no method of the study", "adalora")),
        ({"tune": [RATES, "lorpa.initial_rank=8"]}, ("names one value",)),
        ({"tune": [RATES, "lorpa.nothing=8,9"]}, ("nothing",)),
        ({"tune": [RATES, "lorpa.initial_rank=0,9"]}, ("initial_rank",)),
        ({"tune": [RATES, "lorpa.initial_rank=f(,9"]}, ("cannot be read",)),
        ({"tune": "learning_rate=log(1e-4,1e-1)"}, ("trials", "is missing")),
        ({"tune": RATES, "trials": 3}, ("trials", "is not used")),
        ({"tune": "learning_rate=log(1e-4,1e-1)", "trials": 1}, ("trials", "from 2 to 1000")),
        ({"tune": "learning_rate=log(1e-4,1e-4)", "trials": 4}, ("distinct",)),
        ({"tune": RATES, "seeds": [1, 7]}, ("tuning_seeds", "[1]", "final")),
        ({"tune": RATES, "seeds": 0}, ("seeds",)),
        ({"tune": RATES, "refit": "yes"}, ("refit", "'yes'")),
        ({"tune": None, "refit": True}, ("refit", "without tune")),
        ({"tune": None, "trials": 8}, ("trials", "without tune")),
        ({"tune": None, "seeds": 3}, ("tuning_seeds", "without tune")),
        ({"tune": None, "how": "halving"}, ("tuning", "without tune")),
        ({"tune": RATES, "how": "third"}, ("tuning", "'third'", "halving")),
        ({"tune": RATES, "how": "halving", "methods": f"{LORPA},shuffled(of='lorpa')"}, ("tuning", "shuffled", "grid")),
    ],
)
def test_a_wrong_request_is_refused(given: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as refused:
        parsed(**given)
    assert all(part in str(refused.value) for part in parts), refused.value


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"learning_rate": 1e-3}, ("learning_rate: 0.001 is named beside tune",)),
        ({"budget": "paper"}, ("budget: 'paper'",)),
        ({"task": classification_task()}, ("task tiny", "validation", "--validation-file")),
    ],
)
def test_what_tuning_cannot_use_is_refused_before_training(
    given: dict[str, Any], parts: tuple[str, ...], tiny_bert: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as refused:
        compare("lora", tmp_path / "study", tiny_bert, **given)
    assert all(part in str(refused.value) for part in parts), refused.value
    assert not (tmp_path / "study").exists()


# --- points -----------------------------------------------------------------------------------------------------------


def test_every_method_has_as_many_points_and_seeds() -> None:
    found = parsed([RATES, "lorpa.initial_rank=8,16"], seeds=2)
    assert found.seeds == (10_000, 10_001)
    for low, high in ((0, 0), (1, 0), (2, 2)):
        counts = {label: found.points(label, low, high) for label in ("lora", "lorpa")}
        assert len(counts["lora"]) == len(counts["lorpa"]) == 2 * (3 + low + high)
        assert len({point["learning_rate"] for point in counts["lora"]}) == len(counts["lora"])
    assert [p["learning_rate"] for p in found.points("lorpa")] == [1e-3, 1e-3, 3e-3, 3e-3, 1e-2, 1e-2]
    fine = [p["learning_rate"] for p in found.points("lora")]
    assert (fine[0], fine[-1]) == (1e-3, 1e-2)
    assert fine == sorted(fine)


def test_rates_that_agree_in_many_digits_are_trials_of_their_own() -> None:
    trials = trials_of(parsed("learning_rate=1e-3,0.00100000001"), parse("lora"))
    assert [searching.trial_point(label)[1] for label in trials] == [1e-3, 0.00100000001]


def test_the_grid_grows_in_the_ratio_of_its_ends() -> None:
    rates = [point["learning_rate"] for point in parsed(RATES).points("lora", 2, 1)]
    assert rates == pytest.approx([1.11e-4, 3.33e-4, 1e-3, 3e-3, 1e-2, 3.33e-2], rel=5e-3)


def test_drawn_rates_cover_the_range_evenly_and_are_the_same_for_all() -> None:
    found = parsed("learning_rate=log(1e-4,1e-1)", trials=8)
    assert found == parsed("learning_rate=log(1e-1, 1e-4)", trials=8)
    logs = np.log10(found.rates)
    assert len(set(found.rates)) == 8
    assert logs.min() >= -4
    assert logs.max() <= -1
    assert np.histogram(logs, bins=4, range=(-4, -1))[0].tolist() == [2, 2, 2, 2]


def test_a_method_depends_on_the_trial_of_the_same_number() -> None:
    methods = parse(f"{LORPA},shuffled(of='lorpa')")
    found = parse_tuning([RATES, "lorpa.initial_rank=8,16"], None, 1, False, methods, [0])
    assert found is not None
    trials = [trial.spec for trial in trials_of(found, methods).values()]
    lorpa, shuffled = trials[:6], trials[6:]
    assert [spec.needs for spec in shuffled] == [spec.label for spec in lorpa]
    assert [spec.build().config.initial_rank for spec in lorpa] == [8, 16] * 3


# --- validation data --------------------------------------------------------------------------------------------------


def labelled(labels: list[int], classes: int = 2) -> Task:
    found, _ = texts(len(labels), 1)
    names = tuple(f"class {i}" for i in range(classes))
    train = make_dataset([found], labels, names)
    return replace(classification_task(), train=train, label_names=names)


def test_validation_data_is_a_fifth_with_equal_shares_of_every_class() -> None:
    given = labelled([0] * 1200 + [1] * 300)
    trial, final, about = carve(given)
    (validation,) = trial.evaluation.values()
    assert (len(validation), len(trial.train), about["examples"]) == (300, 1200, 300)
    assert np.bincount(validation["label"]).tolist() == [240, 60]
    assert sorted([*validation["text_a"], *trial.train["text_a"]]) == sorted(given.train["text_a"])
    assert final.train[:] == trial.train[:]
    assert final.evaluation is given.evaluation
    assert carve(given)[0].fingerprint == trial.fingerprint
    assert carve(given, seed=1)[0].fingerprint != trial.fingerprint
    assert carve(given, refit=True)[1] is given


@pytest.mark.parametrize(("size", "expected"), [(400, 200), (999, 200), (4000, 800), (20_000, 1000)])
def test_its_size_has_bounds(size: int, expected: int) -> None:
    trial, _, about = carve(labelled([i % 2 for i in range(size)]))
    assert about["examples"] == expected
    assert len(trial.train) == size - expected


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (labelled([i % 2 for i in range(399)]), "399 training examples"),
        (labelled([0] * 999 + [1]), "1 examples of one class"),
        (labelled([0] * 600 + [1] * 598 + [2] * 2, 3), "leaves a class out"),
    ],
    ids=["too few", "a class of one", "a class left out"],
)
def test_too_little_data_is_refused(given: Task, part: str) -> None:
    with pytest.raises(UsageError, match=part):
        carve(given)


def test_validation_data_of_the_task_is_taken_as_it_is() -> None:
    given = task()
    trial, final, about = carve(given)
    assert trial.evaluation == {"validation": given.validation}
    assert trial.train is given.train
    assert final.train is given.train
    assert about["origin"] == "the task's own"


# --- the search, with made-up scores ----------------------------------------------------------------------------------


class Scored:
    """A study whose scores are a function of method, rate and seed; None for a diverged trial.

    Those after a third of the steps are the same.
    """

    def __init__(self, request: Any, score: Callable[[str, float, int], float | None]) -> None:
        self.request, self._score = request, score
        self.primary = {t.name: "accuracy" for t in request.tasks}

    def name(self, key: Mapping[str, Any]) -> str:
        return str(key["method"])

    def arms(self) -> Any:
        for (task_name, budget, label), chosen in self.request.chosen.items():
            for seed in self.request.seeds:
                key = {"task": task_name, "budget": budget, "method": label, "seed": seed}
                yield key, self._folder(self._score(label.split("@")[0], chosen["learning_rate"], seed))

    def _folder(self, score: float | None) -> Any:
        class Folder:
            def result(self) -> Any:
                return None if score is None else {"metrics": {"accuracy": score}}

            def paused(self) -> Any:
                return self.result()

            def error(self) -> Any:
                return {"error": "not finite", "diverged": True} if score is None else None

        return Folder()


def searched(
    score: Callable[[str, float, int], float | None], seeds: int = 1, tune: str = RATES, how: str = "grid"
) -> tuple[dict[str, Choice], list[int]]:
    """The choices, and the number of arms of each round that train to their end."""
    from peftprune.study.arguments import parse_budgets
    from peftprune.study.request import StudyRequest
    from peftprune.training.settings import resolve_settings

    request = StudyRequest(
        parse(f"lora,{LORPA}"), parse_budgets("rank=4"), [0], "attention", {}, resolve_settings({}), "m", None, [task()]
    )
    rounds = []

    def run(asked: Any) -> Any:
        rounds.append((len(asked.methods) - len(asked.paused)) * len(asked.seeds))
        return Scored(asked, score)

    found = search(parsed(tune, seeds=seeds, how=how), request, run)
    return {label: choice for (_, _, label), choice in found.items()}, rounds


def peak(rate: float, best: float) -> float:
    return 1 - abs(np.log10(rate / best))


def test_the_best_mean_over_seeds_is_chosen_and_the_score_at_the_default_is_kept() -> None:
    def score(method: str, rate: float, seed: int) -> float:
        # The second seed decides against the first one's favourite.
        return {1e-3: 0.9, 3e-3: 0.8, 1e-2: 0.1}[rate] if seed == 10_000 else {1e-3: 0.5, 3e-3: 0.7, 1e-2: 0.1}[rate]

    found, rounds = searched(score, seeds=2)
    assert rounds == [12]
    choice = found["lora"]
    assert choice.point == {"learning_rate": 3e-3}
    assert (choice.score, choice.at_default, choice.edge, choice.trials) == (0.75, 0.7, "", 3)


def test_ties_go_to_the_lower_rate() -> None:
    found, _ = searched(lambda method, rate, seed: 0.5 if rate < 2e-3 else 0.7)
    assert found["lora"].point == {"learning_rate": 3e-3}


def test_at_an_edge_every_method_gets_the_next_rate_at_most_twice() -> None:
    best = {"lora": 3e-3, "lorpa": 1.0}
    found, rounds = searched(lambda method, rate, seed: peak(rate, best[method]))
    assert rounds == [6, 8, 10]
    assert {choice.trials for choice in found.values()} == {5}
    assert found["lora"].point == {"learning_rate": 3e-3}
    assert (found["lora"].edge, found["lorpa"].edge) == ("", "high")
    assert found["lorpa"].point["learning_rate"] == pytest.approx(0.111, rel=1e-2)


def test_an_optimum_just_beyond_the_grid_ends_inside_it() -> None:
    found, rounds = searched(lambda method, rate, seed: peak(rate, 3.4e-4))
    assert rounds == [6, 8, 10]
    assert {choice.edge for choice in found.values()} == {""}


def test_equal_scores_everywhere_do_not_widen_the_grid() -> None:
    found, rounds = searched(lambda method, rate, seed: 0.5)
    assert rounds == [6]
    assert found["lora"].point == {"learning_rate": 1e-3}


def test_a_diverged_trial_is_the_worst_one() -> None:
    found, rounds = searched(lambda method, rate, seed: None if rate > 5e-3 else peak(rate, 3e-3))
    assert rounds == [6]
    assert found["lora"].point == {"learning_rate": 3e-3}
    lost, _ = searched(lambda method, rate, seed: None if method == "lorpa" else peak(rate, 3e-3))
    assert lost["lorpa"].score is None
    assert lost["lorpa"].edge == ""


def test_by_halving_as_many_trials_of_each_method_go_on_and_new_points_train_to_their_end() -> None:
    best = {"lora": 3e-3, "lorpa": 3e-2}
    tune = "learning_rate=1e-4,3e-4,1e-3,3e-3,1e-2"
    grid, whole = searched(lambda method, rate, seed: peak(rate, best[method]), 2, tune)
    found, rounds = searched(lambda method, rate, seed: peak(rate, best[method]), 2, tune, "halving")
    assert (whole, rounds) == ([20, 24, 28], [0, 12, 16, 20])
    assert {label: (choice.point, choice.score) for label, choice in found.items()} == {
        label: (choice.point, choice.score) for label, choice in grid.items()
    }
    assert {(choice.trials, choice.stopped) for choice in found.values()} == {(7, 2)}
    # Ties go on at the lower rates, diverged trials last, and where nothing differs nothing is added.
    found, rounds = searched(lambda method, rate, seed: 0.5, how="halving")
    assert (found["lora"].point["learning_rate"], rounds) == (1e-3, [0, 4])
    found, _ = searched(lambda method, rate, seed: None if rate < 5e-3 else 0.5, how="halving")
    assert (found["lora"].point["learning_rate"], found["lora"].edge) == (1e-2, "")


def test_a_trial_that_failed_otherwise_or_has_not_run_ends_the_search() -> None:
    class Failed(Scored):
        def _folder(self, score: float | None) -> Any:
            folder = super()._folder(None)
            folder.error = lambda: {"error": "out of memory"} if score else None
            return folder

    tuning = parsed(RATES)
    methods = parse("lora")
    trials = trials_of(tuning, methods)

    chosen = {("tiny", "rank=4", name): trial.point for name, trial in trials.items()}
    request = SimpleNamespace(tasks=[task()], seeds=[1], chosen=chosen)
    for score, words in ((1.0, "failed: out of memory"), (0.0, "has not run")):
        study: Any = Failed(request, lambda *key, score=score: score)
        with pytest.raises(RunError, match=words):
            choose(study, ("tiny", "rank=4"), trials, 1e-3)


def test_every_cell_goes_on_as_far_as_it_can_before_trials_that_are_left_end_the_search() -> None:
    from peftprune.study.arguments import parse_budgets
    from peftprune.study.request import StudyRequest
    from peftprune.training.settings import resolve_settings

    class Queued(Scored):
        """The grid has run, and what lies beyond it waits in a queue."""

        def _folder(self, score: float | None) -> Any:
            folder = super()._folder(score)
            if score is not None and score > 0.02:
                folder.result = folder.error = lambda: None
            return folder

    asked = []

    def run(request: Any) -> Any:
        asked.append([*request.budgets])
        return Queued(request, lambda method, rate, seed: rate)

    budgets, settings = parse_budgets(["rank=2", "rank=4"]), resolve_settings({})
    request = StudyRequest(parse(f"lora,{LORPA}"), budgets, [0], "attention", {}, settings, "m", None, [task()])
    with pytest.raises(searching.TrialsLeftError, match=r"lora@0\.0333 has not run"):
        search(parsed(RATES), request, run)
    assert asked == [["rank=2", "rank=4"], ["rank=2"], ["rank=4"]]


# --- what is shown ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7, 11])
def test_the_expected_best_is_that_of_all_subsets(count: int) -> None:
    scores = np.random.default_rng(count).integers(0, 5, count) / 4
    found = expected_best(scores.tolist())
    assert found == pytest.approx(reference.expected_best(scores.tolist()), abs=1e-12)
    assert expected_best(np.linspace(0, 1, 1_000).tolist())[-1] == 1


def trials_frame(*rows: tuple[str, float, str, list[float]]) -> pd.DataFrame:
    """Trials of one cell: method, rate, option and the scores of the seeds; NaN for a diverged one."""
    columns = ["method", "learning_rate", "option", "seed", "score"]
    return pd.DataFrame(
        [(method, rate, option, i, s) for method, rate, option, scores in rows for i, s in enumerate(scores)],
        columns=columns,
    )


def test_a_trial_with_a_diverged_seed_has_the_lowest_score() -> None:
    found = trials_frame(("a", 1e-3, "", [0.5, 0.7]), ("a", 1e-2, "", [0.9, np.nan]), ("b", 1e-3, "", [0.1, 0.3]))
    assert trial_means(found)["score"].tolist() == pytest.approx([0.6, 0.2, 0.2])
    assert trial_means(trials_frame(("a", 1e-3, "", [np.nan])))["score"].isna().all()


def test_half_decades_within_one_standard_error_of_the_best() -> None:
    # The variance at the best points is 0.02 and 0, 0.01 on average: a standard error of 0.1 / √2 over two seeds.
    error = 0.1 / 2**0.5
    rows = [
        ("peak", 1e-4, "", [0.5, 0.5]),
        ("peak", 1e-3, "", [0.8, 1.0]),
        ("peak", 1e-2, "", [0.5, 0.5]),
        ("flat", 1e-4, "", [0.6, 0.6]),
        ("flat", 1e-3, "", [0.59, 0.59]),
        ("flat", 1e-2, "", [0.6, 0.6]),
        ("option", 1e-4, "r=1", [0.2, 0.2]),
        ("option", 1e-4, "r=2", [0.7, 0.7]),
        ("option", 1e-2, "r=1", [0.7, 0.7]),
        ("option", 1e-2, "r=2", [np.nan, 0.7]),
    ]
    found = half_decades(trials_frame(*rows[:6]))
    assert found.index.tolist() == ["peak", "flat"]
    assert found["peak"] == pytest.approx(2 * 2 * error / 0.4)
    assert found["flat"] == pytest.approx(4)
    assert half_decades(trials_frame(*rows))["option"] == pytest.approx(4)
    assert half_decades(trials_frame(("a", 1e-3, "", [0.5]), ("a", 1e-2, "", [0.5]))).empty


def test_the_plots_show_every_method_and_cell(tmp_path: Path) -> None:
    rng, rates = np.random.default_rng(0), (3e-4, 1e-3, 3e-3, 1e-2)
    wide = [("lora", r, "", list(peak(r, 1e-3) + rng.normal(0, 0.03, 3))) for r in rates]
    narrow = [("lorpa", r, "", list(1 - 2 * abs(np.log10(r / 3e-3)) + rng.normal(0, 0.03, 3))) for r in rates]
    narrow[-1][-1][0] = np.nan
    trials = [trials_frame(*wide, *narrow).assign(task=name, budget="rank=4") for name in ("rte", "mrpc")]
    study = SimpleNamespace(primary={"rte": "accuracy", "mrpc": "f1"}, tasks=["rte", "mrpc"], budgets=["rank=4"])
    chosen = pd.DataFrame({"task": ["rte", "rte"], "budget": "rank=4", "method": ["lora", "lorpa"]})
    chosen["learning_rate"] = [1e-3, 3e-3]
    chosen = pd.concat([chosen, chosen.assign(task="mrpc")])
    frames: Any = SimpleNamespace(whole_trials=pd.concat(trials), study=study, choices=chosen)
    drawn = draw(frames, "rates")
    assert [ax.get_xscale() for ax in drawn.axes[:2]] == ["log", "log"]
    assert [ring.get_offsets()[0][0] for ring in drawn.axes[0].findobj(PathCollection)] == [1e-3, 3e-3]
    save(drawn, tmp_path / "rates.png")
    drawn = draw(frames, "trials")
    assert [ax.get_ylabel() for ax in drawn.axes[:2]] == ["expected best accuracy", "expected best f1"]
    assert [line.get_xdata().tolist() for line in drawn.axes[0].lines] == [[1, 2, 3, 4]] * 2
    save(drawn, tmp_path / "trials.png")
    drawn = draw(frames, "robustness")
    assert {t.get_text() for t in drawn.axes[0].get_yticklabels()} == {"lora", "lorpa"}
    save(drawn, tmp_path / "robustness.png")
    one: Any = SimpleNamespace(whole_trials=frames.whole_trials.query("seed == 0"), study=study)
    with pytest.raises(UsageError, match="tuned over two seeds"):
        draw(one, "robustness")


# --- real arms --------------------------------------------------------------------------------------------------------


def test_equal_methods_under_two_labels_get_equal_choices_and_bits(tiny_bert: Path, tmp_path: Path) -> None:
    found = compare("lora,lora:again", tmp_path, tiny_bert, seeds=2)
    chosen = {row["label"]: {k: v for k, v in row.items() if k not in ("label", "trial")} for row in _chosen(found)}
    assert chosen["lora"] == chosen["lora:again"]
    trials = found.tuning()
    assert trials.groupby("method").size().tolist() == [len(trials) // 2] * 2
    assert trials["seed"].unique().tolist() == [10_000]
    assert trials.groupby("method")["chosen"].sum().tolist() == [1, 1]
    assert (trials["steps"] == 6).all()
    for name in ("score", "learning_rate", "flops"):
        one, other = (rows[name].tolist() for _, rows in trials.groupby("method"))
        assert one == other
    table = found.table()
    assert table["learning_rate"].nunique() == 1
    assert (table["tuning_steps"] == 6 * len(trials) / 2).all()
    assert found.against()["verdict"].str.contains("not distinguishable|cannot reach|nothing was learned").all()
    for seed in (0, 1):
        one, other = (found.arm(label, seed) for label in ("lora", "lora:again"))
        assert one.predictions.read_bytes() == other.predictions.read_bytes()
        assert (one.result() or {})["settings"]["learning_rate"] == table["learning_rate"].iloc[0]


def _chosen(found: Comparison) -> list[dict[str, Any]]:
    return list(found.request["tuning"]["chosen"])


def test_the_reported_split_is_not_read_before_the_choice(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    class Watched:
        """The reported split; everything that is done to it is an event."""

        def __init__(self, data: Any) -> None:
            self.__dict__["data"] = data

        def __getattr__(self, name: str) -> Any:
            events.append("read")
            return getattr(self.data, name)

        def __getitem__(self, key: Any) -> Any:
            events.append("read")
            return self.data[key]

        def __len__(self) -> int:
            events.append("read")
            return len(self.data)

        def __iter__(self) -> Any:
            events.append("read")
            return iter(self.data)

    plain = task()
    watched = replace(plain, evaluation={"test": Watched(plain.evaluation["test"])})
    decide = searching.choose

    def noted(*args: Any) -> Any:
        events.append("choice")
        return decide(*args)

    monkeypatch.setattr(searching, "choose", noted)
    found = compare("lora", tmp_path, tiny_bert, task=watched)
    assert not found.failures
    assert "read" in events
    assert "read" not in events[: len(events) - events[::-1].index("choice")]


class Killed(BaseException):
    """The process is gone."""


def test_killed_at_any_arm_the_study_ends_with_the_same_bits(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = LORPA
    whole = compare(methods, tmp_path / "whole", tiny_bert)
    expected = [left_in(tmp_path / "whole"), left_in(tmp_path / "whole" / "tuning")]
    train = queue.run_arm
    left = 0

    def killed(plan: Any, inputs: Any, seed: int, folder: ArmFolder, *rest: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return train(plan, inputs, seed, folder, *rest)

    monkeypatch.setattr(queue, "run_arm", killed)
    kills = 0
    while True:
        left = 1
        try:
            found = compare(methods, tmp_path / "killed", tiny_bert)
            break
        except Killed:
            kills += 1
    assert kills >= 2
    assert _chosen(found) == _chosen(whole)
    assert same([left_in(tmp_path / "killed"), left_in(tmp_path / "killed" / "tuning")], expected)
    left = 0
    again = compare(methods, tmp_path / "killed", tiny_bert)
    assert _chosen(again) == _chosen(whole)


def test_by_halving_what_goes_on_has_the_bits_of_the_grid_wherever_it_is_killed(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Three checkpoints lie beside the pause, and the best of them is kept.
    given: dict[str, Any] = {"budget": "rank=4,steps=7", "checkpoints": 3, "select": "validation"}
    compare(LORPA, tmp_path / "grid", tiny_bert, **given)
    grid = left_in(tmp_path / "grid" / "tuning")
    train, left = queue.run_arm, 0

    def killed(*arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return train(*arguments)

    monkeypatch.setattr(queue, "run_arm", killed)
    tuning = tmp_path / "killed" / "tuning"
    for count in (1, 3):
        left = count
        with pytest.raises(Killed):
            compare(LORPA, tmp_path / "killed", tiny_bert, tuning="halving", **given)
        next(tuning.glob("arms/*/paused.json")).unlink()  # a kill between checkpoint and score
    left = 99
    found = compare(LORPA, tmp_path / "killed", tiny_bert, tuning="halving", **given)
    trials = found.tuning().set_index("learning_rate")
    assert sorted(trials["status"]) == ["done"] * (len(trials) - 1) + ["stopped at a third"]
    stopped = trials[trials["status"] == "stopped at a third"]
    assert stopped["steps"].tolist() == [3]
    assert (stopped["seconds"] > 0).all()
    assert found.table()["tuning_steps"].tolist() == [7 * (len(trials) - 1) + 3]
    done = {path.parent.name for path in tuning.glob("arms/*/result.json")}
    assert same({name: left_by(ArmFolder(tuning / "arms" / name)) for name in done}, {n: grid[n] for n in done})
    shown = _cell_tables(Frames(found), next(found.cells()))["choices"]
    assert shown.rows[0].cells[-1].text == "1"
    assert shown.columns[-1].title == "stopped at a third"
    states = arm_states(Comparison.load(tuning))
    assert [row["state"] for row in states].count("stopped at a third") == 1
    assert audit(found) == []
    file = next(path for path in tuning.glob("arms/*/paused.json") if not (path.parent / "result.json").exists())
    paused = json.loads(file.read_text())
    paused["metrics"] = dict.fromkeys(paused["metrics"], 2.0)
    file.write_text(json.dumps(paused))
    assert any("not the worse half" in line for line in audit(found))
    pack(found.path, tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "again", request=True)
    again = Comparison.load(tmp_path / "again")
    assert again.tuning()["status"].tolist() == found.tuning()["status"].tolist()


def test_a_diverged_arm_is_not_trained_again(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, tried = queue.run_arm, []

    def diverging(plan: Any, inputs: Any, seed: int, folder: ArmFolder, config: Any, *rest: Any) -> Any:
        if plan.settings.learning_rate > 5e-3:
            tried.append(plan.label)
            folder.path.mkdir(parents=True, exist_ok=True)
            raise DivergedError("loss: nan by step 3 is not finite")
        return train(plan, inputs, seed, folder, config, *rest)

    monkeypatch.setattr(queue, "run_arm", diverging)
    for _ in range(2):
        found = compare("lora", tmp_path, tiny_bert)
    assert len(tried) == len(set(tried))
    statuses = found.tuning().set_index("learning_rate")["status"]
    assert statuses[1e-2] == "diverged"
    assert statuses[1e-3] == "done"
    assert not found.failures


def test_final_arms_have_the_dtype_of_the_trials(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = iter([("bfloat16", {"float32": 2.0, "bfloat16": 1.0})])
    monkeypatch.setattr("peftprune.study.task_setup.timed_dtype", lambda: next(timed, ("float32", {})))
    found = compare("lora", tmp_path, tiny_bert, dtype="auto")
    assert found.request["dtype"] == found.arm("lora", 0).config()["dtype"] == "bfloat16"


def test_another_grid_in_the_same_folder_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    compare("lora", tmp_path, tiny_bert)
    with pytest.raises(UsageError, match="tune"):
        compare("lora", tmp_path, tiny_bert, tune="learning_rate=1e-3,2e-3,4e-3")


def test_tuned_options_and_rates_reach_the_final_arms_the_report_and_the_plot(tiny_bert: Path, tmp_path: Path) -> None:
    tune = ["learning_rate=1e-3,1e-2", "lorpa.initial_rank=8,16"]
    found = compare("lora,lorpa", tmp_path / "study", tiny_bert, tune=tune, refit=True)
    row = next(r for r in _chosen(found) if r["label"] == "lorpa")
    config = found.arm("lorpa", 0).config()
    assert config["options"]["initial_rank"] == row["point"]["initial_rank"]
    assert config["settings"]["learning_rate"] == row["point"]["learning_rate"]
    trials = found.tuning()
    assert set(trials.loc[trials["method"] == "lorpa", "option"]) == {"initial_rank=8", "initial_rank=16"}
    for kind in ("rates", "trials"):
        found.plot(kind, tmp_path / f"{kind}.png")
    shown = _cell_tables(Frames(found), next(found.cells()))
    assert shown["choices"].caption == "How the settings were found"
    assert [row.cells[0].text for row in shown["choices"].rows] == ["lora", "lorpa"]
    named = {"tasks": [row | {"named": True} for row in found.request["tasks"]]}
    words = shlex.split(command({**found.request, **named}))
    asked = [words[i + 1] for i, word in enumerate(words) if word == "--tune"]
    again = parse_tuning(
        asked, None, words[words.index("--tuning-seeds") + 1], "--refit" in words, parse("lora,lorpa"), []
    )
    assert again is not None
    assert again.as_dict() == found.request["tuning"]["asked"]
    loaded = Comparison.load(tmp_path / "study")
    assert loaded.tuning().equals(trials)


def test_with_slurm_the_same_call_goes_on_from_the_trials_to_the_final_arms(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queued: list[queue.Work] = []
    monkeypatch.setattr("peftprune.study.execution.slurm.submit", lambda work, **_: queued.append(work))

    def diverging(plan: Any, *rest: Any) -> Any:
        if plan.settings.learning_rate > 5e-3:
            raise DivergedError("loss: nan by step 3 is not finite")
        return train(plan, *rest)

    train = queue.run_arm
    monkeypatch.setattr(queue, "run_arm", diverging)
    study, short = tmp_path / "study", "rank=4,steps=2"
    for _ in range(5):
        found = compare("lora", study, tiny_bert, backend="slurm", budget=short)
        if found.path == study:
            break
        assert found.path == study / "tuning"
        queued[-1].run(Heard())  # type: ignore[arg-type]
        assert not queued[-1].unfinished(), "a diverged trial is not submitted again"
    assert found.path == study
    assert found.runs()["status"].tolist() == ["pending"]
    queued[-1].run(Heard())  # type: ignore[arg-type]
    assert not found.failures
    assert _chosen(found) == _chosen(compare("lora", tmp_path / "local", tiny_bert, budget=short))


def test_the_size_of_a_study_counts_the_steps_of_every_method() -> None:
    size = tuning_size(parsed(RATES, seeds=2), {"lora": 100, "lorpa": 50}, 3)
    assert (size["trials"], size["trial_steps"], size["final_arms"], size["final_steps"]) == (12, 900, 6, 450)
    assert (size["steps"], size["most_steps"]) == (1350, 2 * 7 * 150 + 450)
    assert size_in_words(size, 8.0).endswith("; about 3 hours one arm after another, from the pilot.")
    # Of three trials one stops, at step 34 of 100, which is logged, and at step 17 of 50.
    halved = tuning_size(parsed(RATES, seeds=2, how="halving"), {"lora": 100, "lorpa": 50}, 3)
    assert (halved["trials"], halved["stopped"], halved["trial_steps"]) == (12, 4, 900 - 2 * (66 + 33))
    assert size_in_words(halved).startswith("12 trials (4 stop at a third) of 702 steps, 6 final arms")
    assert size_in_words(tuning_size(None, {"lora": 100}, 3)) == "3 final arms of 300 steps: 300 in all."


@pytest.mark.slow
def test_a_method_with_a_shifted_rate_is_worse_untuned_and_level_tuned(tiny_bert: Path, tmp_path: Path) -> None:
    class Shifted(peftprune.RankPruningStrategy):
        """LoRA that divides every learning rate by ten."""

        name = "shifted"

        def spec(self, sites: Any, budget: Any) -> Any:
            spec = super().spec(sites, budget)
            groups = {name: replace(group, lr_scale=group.lr_scale / 10) for name, group in spec.groups.items()}
            return replace(spec, groups=groups)

    test, validation = (
        make_dataset([words], labels, ("no", "yes")) for words, labels in (texts(400, 7), texts(200, 8))
    )
    given = replace(classification_task(480), evaluation={"test": test}, validation=validation)
    settings: dict[str, Any] = {"task": given, "model": tiny_bert, "budget": "rank=4,steps=60", "seeds": 3}
    settings |= {**SETTINGS, "batch_size": 16, "max_length": 16}
    untuned = peftprune.compare(["lora", Shifted], output_dir=tmp_path / "untuned", learning_rate=1e-2, **settings)
    assert untuned.against().query("metric == 'accuracy'")["verdict"].item().startswith("worse")
    tuned = peftprune.compare(
        ["lora", Shifted], output_dir=tmp_path / "tuned", tune="learning_rate=1e-3,1e-2,1e-1,1", **settings
    )
    rates = tuned.table().set_index("method")["learning_rate"]
    assert rates.to_dict() == {"lora": 1e-2, "shifted": 1e-1}
    assert tuned.against().query("metric == 'accuracy'")["verdict"].item().startswith("not distinguishable")


@pytest.mark.slow
def test_halving_chooses_the_rate_of_the_grid_in_two_thirds_of_its_steps(tiny_bert: Path, tmp_path: Path) -> None:
    def split(size: int, seed: int) -> Any:
        rng = random.Random(seed)
        said = [rng.choices(WORDS, k=4) + rng.choices(POSITIVE if i % 2 else NEGATIVE, k=4) for i in range(size)]
        return make_dataset([[" ".join(words) for words in said]], [i % 2 for i in range(size)], ("no", "yes"))

    tasks = [
        replace(classification_task(name=f"generated-{i}"), train=split(320, i), validation=split(100, 10 + i))
        for i in range(5)
    ]
    given: dict[str, Any] = {
        "task": tasks,
        "batch_size": 16,
        "max_length": 16,
        "tune": "learning_rate=3e-3,3e-2,3e-1,1",
    }
    given |= {"budget": ["rank=2,steps=24", "rank=4,steps=24"]}
    halved = compare("lora", tmp_path / "halved", tiny_bert, tuning="halving", **given)
    pack(halved.path, tmp_path / "packed")
    grid = compare("lora", tmp_path / "grid", tiny_bert, reuse=tmp_path / "packed", **given)
    agree = [a["point"] == b["point"] for a, b in zip(_chosen(halved), _chosen(grid), strict=True)]
    assert sum(agree) >= 9
    spent = [found.tuning()["steps"].sum() for found in (halved, grid)]
    assert spent == [10 * (2 * 24 + 2 * 8), 10 * 4 * 24]


def test_a_validation_file_is_read_like_the_test_file(tmp_path: Path) -> None:
    for name, size, seed in (("train", 40, 1), ("test", 10, 2), ("validation", 12, 3)):
        rows = [f"{text},{label}" for text, label in zip(*texts(size, seed), strict=True)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["t,l", *rows]) + "\n")
    files = {"train_file": tmp_path / "train.csv", "test_file": tmp_path / "test.csv", "text": "t", "label": "l"}
    found = Task.from_files(**files, validation_file=tmp_path / "validation.csv")  # type: ignore[arg-type]
    assert found.validation is not None
    assert len(found.validation) == 12
    assert found.files["validation_file"] == str(tmp_path / "validation.csv")
    (tmp_path / "one.csv").write_text("t,l\na,1\n")
    for name, words in (("one.csv", "one row only"), ("train.csv", "training file"), ("test.csv", "reported on")):
        with pytest.raises(UsageError, match=f"^validation_file: .*{words}"):
            Task.from_files(**files, validation_file=tmp_path / name)  # type: ignore[arg-type]
