"""Studies in rounds: seeds until a verdict, with one chance of error over all looks."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy.stats import norm
from typer.testing import CliRunner

import peftprune
from peftprune.analysis.audit import _request, audit
from peftprune.analysis.frames import Frames
from peftprune.analysis.looks import looks, wanted_seeds
from peftprune.cli.app import app
from peftprune.comparison import Comparison
from peftprune.errors import DivergedError, UsageError
from peftprune.report.findings import cell_answer
from peftprune.stats import Look
from peftprune.stats.sequential import levels
from peftprune.study.arguments import parse_rounds
from peftprune.study.command import command
from peftprune.study.store import ArmFolder, StudyFolder
from tests.helpers import classification_task
from tests.reference import stats as reference
from tests.stored import store

FRACTIONS = tuple(n / 12 for n in (3, 5, 8, 12))


# --- levels -----------------------------------------------------------------------------------------------------------


def test_levels_are_those_that_are_published() -> None:
    """The bounds of four equal looks at a one-sided level of 0.025, as gsDesign's documentation prints them."""
    found = norm.isf([level / 2 for level in levels(0.05, (0.25, 0.5, 0.75, 1.0))])
    assert found == pytest.approx([4.333, 2.963, 2.359, 2.014], abs=5e-4)


@pytest.mark.parametrize("alpha", [0.05 / 6, 0.05, 0.3])
def test_the_chance_of_error_is_spent_as_planned(alpha: float) -> None:
    spent = [4 * norm.sf(norm.isf(alpha / 4) / math.sqrt(t)) for t in FRACTIONS]
    assert reference.crossed(levels(alpha, FRACTIONS), FRACTIONS) == pytest.approx(spent, abs=2e-5)
    assert spent[-1] == pytest.approx(alpha)


def test_the_overall_p_is_the_level_at_which_a_look_decides() -> None:
    for number in range(1, 5):
        look, last = Look(number, FRACTIONS), 0.0
        for p in (1e-6, 1e-4, 0.01, 0.04, 0.2, 0.9):
            overall = look.overall(p)
            assert p <= overall <= 1
            assert overall >= last
            assert overall == 1 or look.nominal(overall) == pytest.approx(p, rel=1e-6)
            last = overall
    assert (Look(0, FRACTIONS).overall(1e-9), Look(0, FRACTIONS).nominal(0.05)) == (1.0, 0.0)
    assert (Look().overall(0.03), Look().nominal(0.03)) == (0.03, 0.03)


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seeds", "rounds"),
    [("3..12", [3, 5, 8, 12]), (" 2 .. 3", [2, 3]), ("3..9", [3, 5, 9]), ("2..20", [2, 3, 5, 8, 13, 20]), ("3", [])],
)
def test_rounds_lie_between_their_ends(seeds: Any, rounds: list[int]) -> None:
    assert parse_rounds(seeds) == rounds


@pytest.mark.parametrize("seeds", ["3..", "..3", "1..3", "5..5", "8..3", "3..5..8", "a..b", "-1..3", "3...5"])
def test_ends_that_are_no_numbers_of_seeds_are_refused(seeds: str) -> None:
    with pytest.raises(UsageError, match=r"seeds: .*two numbers of seeds. Write 3..12"):
        parse_rounds(seeds)


# --- looks at stored arms ---------------------------------------------------------------------------------------------

METHODS = ("plain", "cut-same", "cut-far", "cut-near")
ROUNDS = [4, 6, 8]


def flip(study: Comparison, method: str, share: Callable[[int], int]) -> None:
    """Give a method the answers of the first one, but for some of 40: wrong ones, or right ones if negative."""
    for seed in study.request["seeds"]:
        frame = pd.read_parquet(study.arm("plain", seed).predictions)
        changed = (frame["index"] * 7 + seed * 11) % 40 < abs(share(seed))
        answer = frame["label"] if share(seed) < 0 else 1 - frame["label"]
        frame["prediction"] = frame["prediction"].where(~changed, answer)
        frame.to_parquet(study.arm(method, seed).predictions)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A study in which every arm of every round is finished, also those that rounds would not train."""
    study = store(tmp_path_factory.mktemp("whole"), methods=METHODS, seeds=range(8))
    flip(study, "cut-same", lambda seed: 0)
    flip(study, "cut-far", lambda seed: 24)
    flip(study, "cut-near", lambda seed: (3, -8, 1)[seed % 3])
    study.request["tasks"][0]["metrics"] = ["accuracy"]
    request = {**study.request, "rounds": {"seeds": ROUNDS, "baseline": "plain"}, "margin": "accuracy=0.02"}
    StudyFolder(study.path).write_request({k: v for k, v in request.items() if k != "schema"})
    return Comparison.load(study.path)


def partial(study: Comparison, seeds: dict[tuple[str, str, str], int]) -> Comparison:
    """The study as if it had the arms of the first seeds of each method only."""
    arms = [a for a in study.request["arms"] if a["seed"] < seeds[a["task"], a["budget"], a["label"]]]
    return Comparison(study.path, {**study.request, "arms": arms})


def test_rounds_from_nothing_decide_what_all_stored_arms_decide(whole: Comparison) -> None:
    final, wanted, taken = looks(whole), dict.fromkeys(looks(whole), 4), []
    while not taken or wanted != taken[-1]:
        taken.append(wanted)
        wanted = wanted_seeds(partial(whole, wanted))
    assert taken[-1] == {key: at.seeds for key, at in final.items()}
    ended = {key[2]: (at.seeds, at.open) for key, at in final.items()}
    assert ended["cut-same"] == (4, False)
    assert ended["cut-far"][0] < 8
    assert ended["cut-near"] == ended["plain"] == (8, True)
    assert looks(partial(whole, taken[-1])) == final


def test_an_audit_misses_no_seed_of_a_method_that_was_decided_early(whole: Comparison) -> None:
    wanted = wanted_seeds(whole)
    assert len(set(wanted.values())) > 1
    ended = partial(whole, wanted)
    assert not [problem for problem in _request(ended) if "has no arm with seed" in problem]
    early = next(key for key in wanted if key[2] == "cut-same")
    assert wanted[early] == 4
    cut = [problem for problem in _request(partial(whole, wanted | {early: 3})) if "has no arm with seed" in problem]
    assert len(cut) == 1
    assert cut[0].endswith(f"{early[2]}: has no arm with seed [3]")


def test_an_audit_takes_a_study_whose_next_round_has_not_begun(
    whole: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peftprune.analysis.audit._arm", lambda *_: ())
    stored = Comparison(shutil.copytree(whole.path, tmp_path / "part"), whole.request)
    for key, arm in stored.arms():
        if key["seed"] >= 4:
            shutil.rmtree(arm.path)

    def untrained() -> list[str]:
        return [problem for problem in audit(stored) if "no result" in problem or "no arm with seed" in problem]

    assert untrained() == []
    shutil.rmtree(stored.arm("cut-near", 3).path)
    assert len(untrained()) == 1, "a seed of the first round is missing"
    shutil.copytree(whole.arm("cut-near", 3).path, stored.arm("cut-near", 3).path)
    shutil.copytree(whole.arm("plain", 4).path, stored.arm("plain", 4).path)
    assert len(untrained()) >= len(METHODS) - 1, "the others lack the seed that one method has"


def test_a_look_waits_for_every_arm_of_its_round_or_its_divergence(whole: Comparison, tmp_path: Path) -> None:
    study = partial(whole, dict.fromkeys(looks(whole), 6))
    study = Comparison(shutil.copytree(whole.path, tmp_path / "part"), study.request)
    place = ("rte", "rank=8")
    before, reached = study.against().set_index(["method", "metric"]), looks(study)
    assert reached[*place, "cut-near"].look.number == 2
    folder = study.arm("cut-near", 5)
    (folder.path / "result.json").unlink()
    waiting = looks(study)
    assert waiting[*place, "cut-near"].look.number == 1
    assert waiting[*place, "cut-far"] == reached[*place, "cut-far"]
    assert wanted_seeds(study)[*place, "cut-near"] == 6
    row = study.against().set_index(["method", "metric"]).loc[("cut-near", "accuracy")]
    assert (row["seeds"], row["look"], row["looks"]) == (4, 1, 3)
    folder.record_error(ArithmeticError("out of memory"), "cut-near", 5)
    assert looks(study) == waiting
    folder.record_error(DivergedError("loss: nan"), "cut-near", 5)
    assert looks(study)[*place, "cut-near"].look.number == 2
    after = study.against().set_index(["method", "metric"])
    assert after.loc[("cut-near", "accuracy")]["seeds"] == 5
    assert before.loc[("cut-near", "accuracy")]["seeds"] == 6


def test_rows_in_rounds_agree_with_their_intervals_and_say_their_look(whole: Comparison) -> None:
    keys = [("rte", "rank=8", method) for method in METHODS]
    for size in (4, 8):
        study = partial(whole, dict.fromkeys(keys, size))
        for row in study.against().to_dict("records"):
            low, high, words = row["low_holm"], row["high_holm"], row["verdict"]
            assert (row["p_holm"] <= 0.05) == (low > 0 or high < 0) == words.startswith(("better", "worse"))
            assert words.partition(", look ")[2] == (f"{row['look']} of 3" if row["look"] < 3 else "")
            assert (row["p_equivalent"] <= 0.05) == (low > -0.02 and high < 0.02)
    (cell,) = whole.cells()
    said = " ".join(cell_answer(Frames(cell), cell).limits)
    assert "Looks after 4, 6 and 8 seeds, fixed before the first" in said
    assert "Stopped early: cut-same after 4 seeds" in said
    assert "cut-near after" not in said
    assert "640 steps were trained; none was saved" in said
    first = partial(whole, dict.fromkeys(keys, 4))
    (cell,) = first.cells()
    assert "The last look has not come" in " ".join(cell_answer(Frames(cell), cell).limits)


def test_a_study_in_rounds_over_tasks_pools_the_seeds_of_one_look(tmp_path: Path) -> None:
    study = store(tmp_path, methods=("plain", "cut"), tasks=("rte", "cola"), seeds=range(5))
    rounds = {"seeds": [2, 3, 5], "baseline": "plain"}
    study = Comparison(study.path, {**study.request, "rounds": rounds})
    for seed in (3, 4):
        (study.arm("cut", seed, task="rte").path / "result.json").unlink()
    (row,) = study.pooled().to_dict("records")
    assert (row["pairs"], row["verdict"]) == (6, "cannot reach significance with 6 pairs")
    assert row["p_holm"] > row["p"]


# --- training ---------------------------------------------------------------------------------------------------------


def compare(folder: Path, model: Path, **more: Any) -> Comparison:
    given: dict[str, Any] = {"seeds": "2..3", "margin": "accuracy=0.05", "budget": "rank=2,steps=4", **more}
    return peftprune.compare(
        "lora,lora:again,lorpa(initial_rank=8)",
        classification_task(),
        model=model,
        batch_size=8,
        checkpoints=0,
        learning_rate=5e-3,
        max_length=32,
        dtype="float32",
        threads=1,
        workers=1,
        output_dir=folder,
        **given,
    )


@pytest.mark.slow
def test_decided_methods_train_no_more_and_a_kill_changes_nothing(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = compare(tmp_path / "study", tiny_bert)
    seeds = study.runs().groupby("method")["seed"].nunique()
    assert seeds["lora:again"] == 2
    assert seeds["lora"] == seeds["lorpa"] == 3
    rows = study.against().set_index(["metric", "method"]).loc["accuracy"]
    assert rows.loc["lora:again"]["verdict"].startswith("equivalent within 0.05, look 1 of 2")
    stored = Comparison.load(study.path)
    assert stored.request["rounds"] == {"seeds": [2, 3], "baseline": "lora"}
    assert "--seeds 2..3 " in command({**stored.request, "tasks": [{"name": "rte", "files": {}, "named": True}]})

    begun, lock = [], ArmFolder.lock

    def killed(folder: ArmFolder) -> Any:
        begun.append(folder.path)
        if len(begun) == 8:  # in the second round
            raise KeyboardInterrupt
        return lock(folder)

    monkeypatch.setattr(ArmFolder, "lock", killed)
    with pytest.raises(KeyboardInterrupt):
        compare(tmp_path / "killed", tiny_bert)
    again = compare(tmp_path / "killed", tiny_bert)
    pd.testing.assert_frame_equal(again.against(), study.against())
    assert {p.name for p in (tmp_path / "killed/arms").iterdir()} == {p.name for p in (study.path / "arms").iterdir()}
    begun.clear()
    compare(tmp_path / "killed", tiny_bert)
    assert not begun

    for given, field in (({"seeds": "2..5"}, "seeds"), ({"seeds": 3}, "seeds"), ({"margin": 0.1}, "margin")):
        with pytest.raises(UsageError, match=f"^{field}: "):
            compare(study.path, tiny_bert, **given)


# --- planning ---------------------------------------------------------------------------------------------------------


def test_a_plan_by_power_names_seeds_arms_and_hours(whole: Comparison) -> None:
    def plan(*words: str) -> Any:
        return CliRunner().invoke(app, ["plan", "--methods", "lora,lorpa", "--budget", "rank=2", *words])

    said = plan("--detect", "0.02", "--margin", "0.02", "--deviation", "0.01")
    assert "7 seeds to detect a difference of 0.02 and 8 seeds to show equal methods equivalent" in flat(said.output)
    assert "16 final arms" in said.output
    assert "lower bound" in said.output
    words = ("--detect", "0.3", "--pilot", str(whole.path), "--json")
    found = json.loads(plan(*words).output)
    assert found["power"]["source"].endswith("(rte, rank=8: accuracy of 3 method pair(s) on 40 examples)")
    assert found["power"]["seconds"] == pytest.approx(4.5 / 20)
    assert found["size"]["final_arms"] == 2 * found["power"]["seeds"]
    assert "hours one arm after another, from the pilot" in flat(plan(*words[:-1]).output)
    assert "more examples (no number of seeds suffices) to detect" in flat(
        plan("--detect", "0.001", *words[2:-1]).output
    )
    for given, field in (
        (("--detect", "0.1"), "pilot"),
        (("--deviation", "0.1"), "detect"),
        (("--detect", "-1", "--deviation", "0.1"), "detect"),
        (("--detect", "0.1", "--deviation", "0.1", "--pilot", "x"), "pilot"),
    ):
        assert plan(*given).exit_code == 2
        assert f"error: {field}: " in plan(*given).output


def flat(text: str) -> str:
    return " ".join(text.split())
