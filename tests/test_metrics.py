"""Metrics: values against hand-made ones, constant predictions, and refusals."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftprune.errors import RunError, UsageError
from peftprune.stats.metrics import METRICS, check_metrics, compute_metrics, load_metric

CLASSIFICATION = [name for name, info in METRICS.items() if info.kind == "classification"]
REGRESSION = [name for name, info in METRICS.items() if info.kind == "regression"]


def test_values_by_hand() -> None:
    predictions, references = [1, 1, 0, 0, 1], [1, 0, 0, 0, 1]
    result = compute_metrics(CLASSIFICATION, predictions, references)
    assert list(result) == CLASSIFICATION
    assert result["accuracy"] == pytest.approx(4 / 5)
    assert result["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1))
    assert result["f1_macro"] == pytest.approx((0.8 + 0.8) / 2)
    # TP 2, TN 2, FP 1, FN 0
    assert result["matthews"] == pytest.approx((2 * 2) / np.sqrt(3 * 2 * 3 * 2))


def test_correlations_by_hand() -> None:
    result = compute_metrics(REGRESSION, [1.0, 2.0, 3.0, 10.0], [0.0, 1.0, 2.0, 3.0])
    assert result["spearman"] == pytest.approx(1.0)
    assert result["pearson"] == pytest.approx(np.corrcoef([1, 2, 3, 10], [0, 1, 2, 3])[0, 1])


@pytest.mark.parametrize("name", ["matthews", *REGRESSION])
@pytest.mark.parametrize(
    ("predictions", "references"), [([1, 1, 1], [0, 1, 1]), ([0, 1, 1], [1, 1, 1]), ([1, 1], [1, 1])]
)
def test_constant_values_give_zero_without_a_warning(name: str, predictions: list[int], references: list[int]) -> None:
    assert compute_metrics([name], predictions, references) == {name: 0.0}


def test_nearly_constant_predictions_give_a_finite_number_without_a_warning() -> None:
    result = compute_metrics(REGRESSION, [1e9, 1e9 + 1e-6, 1e9], [1.0, 2.0, 3.0])
    assert all(np.isfinite(value) for value in result.values())


def test_f1_of_a_class_that_is_nowhere_is_zero() -> None:
    assert compute_metrics(["f1"], [0, 0], [0, 0]) == {"f1": 0.0}


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=30))
def test_values_stay_in_their_ranges_and_perfect_is_best(rows: list[tuple[int, int]]) -> None:
    predictions, references = (list(column) for column in zip(*rows, strict=True))
    names = CLASSIFICATION + REGRESSION
    result = compute_metrics(names, predictions, references)
    perfect = compute_metrics(names, references, references)
    for name, info in ((name, METRICS[name]) for name in names):
        assert info.low - 1e-9 <= result[name] <= info.high + 1e-9
        if name not in ("f1", "f1_macro") and len(set(references)) == 2:
            assert info.higher_is_better
            assert result[name] <= perfect[name] + 1e-9


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_an_error(bad: float) -> None:
    with pytest.raises(RunError, match="1 of 2 predictions are not finite"):
        compute_metrics(["pearson"], [1.0, bad], [1.0, 2.0])


def test_shapes_must_agree() -> None:
    with pytest.raises(RunError, match=r"\(2,\) and \(3,\)"):
        compute_metrics(["accuracy"], [1, 0], [1, 0, 1])
    with pytest.raises(RunError, match="shapes"):
        compute_metrics(["accuracy"], [], [])
    with pytest.raises(RunError, match="two examples"):
        compute_metrics(["pearson"], [1.0], [1.0])


@pytest.mark.parametrize(
    ("names", "kind", "classes", "complaint"),
    [
        (["acuracy"], None, None, "not a known metric"),
        ([], None, None, "distinct names"),
        ("accuracy", None, None, "distinct names"),
        (["f1", "f1"], None, None, "distinct names"),
        (["pearson"], "classification", 2, "does not fit classification with 2 classes"),
        (["f1"], "classification", 3, "accuracy, f1_macro, matthews"),
    ],
)
def test_metrics_that_do_not_fit(names: list[str], kind: str | None, classes: int | None, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        check_metrics(names, kind, classes)


def test_metrics_are_evaluate_metrics_that_can_be_filled_in_batches() -> None:
    import evaluate

    metric = load_metric("accuracy")
    assert isinstance(metric, evaluate.Metric)
    metric.add_batch(predictions=[1, 0], references=[1, 1])
    metric.add_batch(predictions=[1], references=[1])
    assert metric.compute() == {"accuracy": pytest.approx(2 / 3)}


def test_importing_is_cheap() -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'evaluate', 'sklearn', 'scipy', 'pandas', 'pyarrow'}"
    code = f"import sys, peftprune.stats.metrics, peftprune.tasks; print(sorted({heavy} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
