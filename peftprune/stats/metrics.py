"""The registry of metrics, and `evaluate.Metric` classes over well-known libraries that need no hub."""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from peftprune.errors import DivergedError, RunError, UsageError
from peftprune.stats.metric_sums import ACCURACY, BLEU, F1, F1_MACRO, MATTHEWS, MEAN, PEARSON, SumMetric
from peftprune.stats.text_metrics import bleu, exact_match, exact_number, rouge
from peftprune.stats.validation import Floats

if TYPE_CHECKING:
    import evaluate
    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Metric:
    """The definition of a metric for one kind of task, with its least and greatest value.

    `function` maps predictions (n,) and references (n,) to its value; of generated text, a text and its references to
    the statistics that the example adds to `sums`. `sums` is the metric as a function of sums over examples; None where
    it is not one. `max_classes` is None for any number. `library` is the optional package that it needs, as imported.
    """

    name: str
    kind: Literal["classification", "regression", "generation"]
    function: Callable[..., Any]
    sums: SumMetric | None
    low: float = 0.0
    high: float = 1.0
    higher_is_better: bool = True
    max_classes: int | None = None
    library: str | None = None

    def fits(self, kind: str | None, num_classes: int | None) -> bool:
        """Returns whether it fits the kind of task and the number of classes; None stands for any."""
        return kind in (None, self.kind) and (num_classes or 0) <= (self.max_classes or num_classes or 0)

    def compute(self, predictions: Any, references: Any) -> float:
        """Returns its value: of class indices or numbers, or of texts, each with a list of references."""
        if self.kind == "generation":
            return self.value(self.statistics(predictions, references))
        return float(self.function(np.asarray(predictions), np.asarray(references)))

    def statistics(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
        """Returns the statistics of each of n generated texts: (n,) scores whose mean is the metric; (n, 10) for BLEU.

        Raises UsageError if the metric's library is not installed.
        """
        check_libraries([self.name])
        return np.asarray([self.function(p, r) for p, r in zip(predictions, references, strict=True)], dtype=float)

    def value(self, statistics: Floats) -> float:
        """Returns its value from the `statistics` of n generated texts."""
        assert self.sums is not None
        return float(self.sums.evaluate(self.sums.features(statistics[None], np.empty(0))[0].sum(axis=-1)))


def _sklearn(function: str, predictions: NDArray[np.int64], references: NDArray[np.int64], **options: Any) -> float:
    import sklearn.metrics

    return getattr(sklearn.metrics, function)(references, predictions, **options)


def _matthews(predictions: NDArray[np.int64], references: NDArray[np.int64]) -> float:
    """Returns the Matthews correlation, and 0.0 where a side is constant, as scikit-learn defines it."""
    if _constant(predictions) or _constant(references):
        return 0.0  # without scikit-learn's warning about a single class
    return _sklearn("matthews_corrcoef", predictions, references)


def _scipy(function: str, predictions: NDArray[np.float64], references: NDArray[np.float64]) -> float:
    """Returns a correlation, and 0.0 where a side is constant: unlike NaN, it can be averaged and compared."""
    import scipy.stats

    if len(references) < 2:
        raise RunError("A correlation needs at least two examples.")
    if _constant(predictions) or _constant(references):
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.stats.NearConstantInputWarning)
        value = float(getattr(scipy.stats, function)(predictions, references).statistic)
    return value if math.isfinite(value) else 0.0


def _constant(values: NDArray[Any]) -> bool:
    return bool((values == values[0]).all())


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "classification", partial(_sklearn, "accuracy_score"), ACCURACY),
        # 0.0 where class 1 is neither predicted nor present.
        Metric("f1", "classification", partial(_sklearn, "f1_score", zero_division=0), F1, max_classes=2),
        # The unweighted mean over the classes that occur in predictions or references.
        Metric("f1_macro", "classification", partial(_sklearn, "f1_score", average="macro", zero_division=0), F1_MACRO),
        Metric("matthews", "classification", _matthews, MATTHEWS, low=-1.0),
        Metric("pearson", "regression", partial(_scipy, "pearsonr"), PEARSON, low=-1.0),
        Metric("spearman", "regression", partial(_scipy, "spearmanr"), None, low=-1.0),
        Metric("rouge1", "generation", partial(rouge, "rouge1"), MEAN, library="rouge_score"),
        Metric("rouge2", "generation", partial(rouge, "rouge2"), MEAN, library="rouge_score"),
        Metric("rougeL", "generation", partial(rouge, "rougeL"), MEAN, library="rouge_score"),
        Metric("bleu", "generation", bleu, BLEU, library="sacrebleu"),
        Metric("exact_match", "generation", exact_match, MEAN),
        Metric("exact_number", "generation", exact_number, MEAN),
    )
}


def check_metrics(names: Sequence[str], kind: str | None = None, num_classes: int | None = None) -> None:
    """Raises UsageError for no names, equal ones, an unknown one, or one that does not fit the task and its classes."""
    if isinstance(names, str) or not names or len(set(names)) < len(names):
        raise UsageError.of("metrics", names, "is not a list of distinct names", f"Choose among {', '.join(METRICS)}.")
    for name in names:
        fitting = [metric.name for metric in METRICS.values() if metric.fits(kind, num_classes)]
        cure = f"Choose among {', '.join(fitting)}."
        if name not in METRICS:
            raise UsageError.of("metrics", name, "is not a known metric", cure)
        if name not in fitting:
            classes = f" with {num_classes} classes" if num_classes else ""
            raise UsageError.of("metrics", name, f"does not fit {kind or 'a task'}{classes}", cure)


def check_libraries(names: Sequence[str]) -> None:
    """Raises UsageError if a library of the metrics is not installed."""
    for name in names:
        library = METRICS[name].library
        if library is not None and importlib.util.find_spec(library) is None:
            problem = f"needs the package {library.replace('_', '-')}, which is not installed"
            raise UsageError.of("metrics", name, problem, 'Install it: pip install "peftprune[generation]"')


@cache
def load_metric(name: str) -> evaluate.Metric:
    """Returns the metric as an `evaluate.Metric`, whose `compute(predictions=, references=)` gives {name: value}.

    It needs no hub. References of generated text are lists, one for each example.
    """
    check_metrics([name])
    import datasets
    import evaluate

    metric = METRICS[name]
    kind = datasets.Value({"classification": "int64", "regression": "float64", "generation": "string"}[metric.kind])
    references_kind = datasets.List(kind) if metric.kind == "generation" else kind

    class LocalMetric(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            features = datasets.Features({"predictions": kind, "references": references_kind})
            return evaluate.MetricInfo(description=name, citation="", features=features)

        def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
            return {name: metric.compute(predictions, references)}

    LocalMetric.__name__ = LocalMetric.__qualname__ = f"{name.title().replace('_', '')}Metric"
    return LocalMetric(keep_in_memory=True)


def compute_metrics(names: Sequence[str], predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
    """Returns the metrics of n class indices or numbers, in the order of `names`, none of which is of generated text.

    Raises UsageError for an unknown metric, and RunError for other shapes, no examples, or a value that is not finite.
    """
    check_metrics(names)
    predictions, references = np.asarray(predictions), np.asarray(references)
    if predictions.ndim != 1 or predictions.shape != references.shape or not len(predictions):
        shapes = f"{predictions.shape} and {references.shape}"
        raise RunError(f"Predictions and references must be two equal rows of numbers; their shapes are {shapes}.")
    for role, values in (("predictions", predictions), ("references", references)):
        finite = np.isfinite(values)
        if not finite.all():
            count, first = int((~finite).sum()), int(np.argmin(finite))
            raise DivergedError(
                f"{count} of {len(values)} {role} are not finite (the first is number {first}). "
                "Training diverged: lower the learning rate or use a wider number format."
            )
    return {n: load_metric(n).compute(predictions=predictions, references=references)[n] for n in names}


def score_column(metric: str) -> str:
    """Returns the column of stored predictions with the statistics of each example for a metric of generated text."""
    return f"score_{metric}"
