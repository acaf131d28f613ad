"""Metrics: a small registry, and `evaluate.Metric` classes over well-known libraries that need no hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

from peftprune.errors import RunError, UsageError
from peftprune.stats import text_metrics

if TYPE_CHECKING:
    import evaluate
    import numpy as np
    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class MetricInfo:
    """What must be known of a metric to show and compare it.

    Attributes:
        name: its key in `METRICS`.
        label: what tables and axes call it.
        kind: the kind of task that it fits.
        higher_is_better: its direction; never guessed from the name.
        low: the least value it can take.
        high: the greatest value it can take.
        max_classes: the most classes it is defined for; None for any number.
    """

    name: str
    label: str
    kind: Literal["classification", "regression", "generation"]
    higher_is_better: bool
    low: float
    high: float
    max_classes: int | None = None


METRICS: dict[str, MetricInfo] = {
    info.name: info
    for info in (
        MetricInfo("accuracy", "accuracy", "classification", True, 0.0, 1.0),
        MetricInfo("f1", "F1", "classification", True, 0.0, 1.0, max_classes=2),
        MetricInfo("f1_macro", "macro F1", "classification", True, 0.0, 1.0),
        MetricInfo("matthews", "Matthews correlation", "classification", True, -1.0, 1.0),
        MetricInfo("pearson", "Pearson correlation", "regression", True, -1.0, 1.0),
        MetricInfo("spearman", "Spearman correlation", "regression", True, -1.0, 1.0),
        MetricInfo("rouge1", "ROUGE-1", "generation", True, 0.0, 1.0),
        MetricInfo("rouge2", "ROUGE-2", "generation", True, 0.0, 1.0),
        MetricInfo("rougeL", "ROUGE-L", "generation", True, 0.0, 1.0),
        MetricInfo("bleu", "BLEU", "generation", True, 0.0, 1.0),
        MetricInfo("exact_match", "exact match", "generation", True, 0.0, 1.0),
        MetricInfo("exact_number", "exact match of the number after ####", "generation", True, 0.0, 1.0),
    )
}


def check_metrics(names: Sequence[str], kind: str | None = None, num_classes: int | None = None) -> None:
    """Raise UsageError unless there is a name and each is known and fits the kind of task and the number of classes."""
    if isinstance(names, str) or not names or len(set(names)) < len(names):
        raise UsageError.of("metrics", names, "is no list of distinct names", f"Choose among {', '.join(METRICS)}.")
    for name in names:
        fitting = [info.name for info in METRICS.values() if _fits(info, kind, num_classes)]
        cure = f"Choose among {', '.join(fitting)}."
        if name not in METRICS:
            raise UsageError.of("metrics", name, "is no known metric", cure)
        if name not in fitting:
            classes = f" with {num_classes} classes" if num_classes else ""
            raise UsageError.of("metrics", name, f"does not fit {kind or 'a task'}{classes}", cure)


def _fits(info: MetricInfo, kind: str | None, num_classes: int | None) -> bool:
    return kind in (None, info.kind) and (num_classes or 0) <= (info.max_classes or num_classes or 0)


def _accuracy(predictions: NDArray[np.int64], references: NDArray[np.int64]) -> float:
    from sklearn.metrics import accuracy_score

    return accuracy_score(references, predictions)


def _f1(predictions: NDArray[np.int64], references: NDArray[np.int64]) -> float:
    """Of class 1; 0.0 where it is neither predicted nor there."""
    from sklearn.metrics import f1_score

    return f1_score(references, predictions, zero_division=0)


def _f1_macro(predictions: NDArray[np.int64], references: NDArray[np.int64]) -> float:
    """Unweighted mean over the classes that occur in predictions or references."""
    from sklearn.metrics import f1_score

    return f1_score(references, predictions, average="macro", zero_division=0)


def _matthews(predictions: NDArray[np.int64], references: NDArray[np.int64]) -> float:
    """0.0 where predictions or references are constant, as scikit-learn defines it."""
    from sklearn.metrics import matthews_corrcoef

    if _constant(predictions) or _constant(references):
        return 0.0  # without scikit-learn's warning about a single class
    return matthews_corrcoef(references, predictions)


def _pearson(predictions: NDArray[np.float64], references: NDArray[np.float64]) -> float:
    from scipy.stats import pearsonr

    return _correlation(pearsonr, predictions, references)


def _spearman(predictions: NDArray[np.float64], references: NDArray[np.float64]) -> float:
    from scipy.stats import spearmanr

    return _correlation(spearmanr, predictions, references)


def _correlation(
    correlate: Callable[..., Any], predictions: NDArray[np.float64], references: NDArray[np.float64]
) -> float:
    """A correlation from scipy; 0.0 where a side is constant.

    The correlation is undefined there. 0.0 ("says nothing about the order") can be averaged and compared, nan cannot;
    it is what scikit-learn returns for a constant classifier's Matthews correlation, too.
    """
    import math

    from scipy.stats import NearConstantInputWarning

    if len(references) < 2:
        raise RunError("A correlation needs at least two examples.")
    if _constant(predictions) or _constant(references):
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NearConstantInputWarning)
        value = float(correlate(predictions, references).statistic)
    return value if math.isfinite(value) else 0.0


def _constant(values: NDArray[Any]) -> bool:
    return bool((values == values[0]).all())


_FUNCTIONS: dict[str, Callable[..., float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "f1_macro": _f1_macro,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}


@cache
def load_metric(name: str) -> evaluate.Metric:
    """The metric as an `evaluate.Metric`: `compute(predictions=, references=)` gives {name: value}. Reads no hub.

    References of generated text are lists, one an example.
    """
    check_metrics([name])
    import datasets
    import evaluate

    info = METRICS[name]
    kind = datasets.Value({"classification": "int64", "regression": "float64", "generation": "string"}[info.kind])
    references_kind = datasets.List(kind) if info.kind == "generation" else kind

    class LocalMetric(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description=info.label,
                citation="",
                features=datasets.Features({"predictions": kind, "references": references_kind}),
            )

        def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
            if info.kind == "generation":
                return {name: text_metrics.value(name, text_metrics.statistics(name, predictions, references))}
            import numpy as np

            return {name: float(_FUNCTIONS[name](np.asarray(predictions), np.asarray(references)))}

    LocalMetric.__name__ = LocalMetric.__qualname__ = f"{name.title().replace('_', '')}Metric"
    return LocalMetric(keep_in_memory=True)


def compute_metrics(names: Sequence[str], predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
    """Compute metrics of one set of predictions that are numbers.

    Args:
        names: keys of `METRICS`, none of generated text.
        predictions: n class indices, or n numbers for regression.
        references: the n true ones.

    Returns:
        name -> value, in the order of `names`.

    Raises:
        UsageError: an unknown metric.
        RunError: shapes that differ, nothing to score, or a value that is not finite.
    """
    import numpy as np

    check_metrics(names)
    predictions, references = np.asarray(predictions), np.asarray(references)
    if predictions.ndim != 1 or predictions.shape != references.shape or not len(predictions):
        shapes = f"{predictions.shape} and {references.shape}"
        raise RunError(f"Predictions and references must be two equal rows of numbers; their shapes are {shapes}.")
    for role, values in (("predictions", predictions), ("references", references)):
        finite = np.isfinite(values)
        if not finite.all():
            count, first = int((~finite).sum()), int(np.argmin(finite))
            raise RunError(
                f"{count} of {len(values)} {role} are not finite (the first is number {first}). "
                "Training diverged: lower the learning rate or use a wider number format."
            )
    results: dict[str, float] = {}
    for name in names:
        results |= load_metric(name).compute(predictions=predictions, references=references)
    return results


def score_column(metric: str) -> str:
    """The column of stored predictions that holds what each example adds to a metric of generated text."""
    return f"score_{metric}"
