"""Metrics of generated text, from the statistics of each example.

Every metric here is a function of sums over examples, so that a paired bootstrap can resample them. Most are the mean
of one number an example. Corpus BLEU is not: it adds up n-gram counts and lengths over the corpus first.

METEOR is left out: nltk's needs WordNet, which no package carries.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import TYPE_CHECKING, Any

from peftprune.errors import UsageError

if TYPE_CHECKING:
    from peftprune.stats.validation import Floats

_LIBRARIES = {
    "rouge1": "rouge_score",
    "rouge2": "rouge_score",
    "rougeL": "rouge_score",
    "bleu": "sacrebleu",
}
_ANSWER = re.compile(r"####\s*\$?\s*(-?[\d.,]*\d)")


def check_libraries(names: Sequence[str]) -> None:
    """Raise UsageError where the library of a metric is not installed."""
    for name in names:
        library = _LIBRARIES.get(name)
        if library is not None and importlib.util.find_spec(library) is None:
            problem = f"needs the package {library.replace('_', '-')}, which is not installed"
            raise UsageError.of("metrics", name, problem, 'Install it: pip install "peftprune[generation]"')


def statistics(name: str, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """What each example adds to a metric.

    Args:
        name: a metric of kind "generation" in `peftprune.stats.metrics.METRICS`.
        predictions: n texts.
        references: the references of each, at least one.

    Returns:
        (n,) scores in [0, 1] whose mean is the metric; for "bleu" (n, 10): its length, that of the closest reference,
        and matching and all n-grams, n from 1 to 4.
    """
    import numpy as np

    check_libraries([name])
    one = _EXAMPLE[name]
    return np.asarray([one(p, r) for p, r in zip(predictions, references, strict=True)], dtype=float)


def value(name: str, found: Floats) -> float:
    """The metric of a corpus, from what `statistics` returned."""
    from peftprune.stats.metric_sums import SUM_METRICS

    if found.ndim == 1:
        return float(found.mean())
    return float(SUM_METRICS[name].evaluate(found.sum(axis=0)))


@cache
def _scorer(name: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([name], use_stemmer=True)


def _rouge(name: str) -> Callable[[str, Sequence[str]], float]:
    """F1 with Porter's stemmer, as in the summarisation literature; the best of several references."""

    def score(prediction: str, references: Sequence[str]) -> float:
        return float(_scorer(name).score_multi(list(references), prediction)[name].fmeasure)

    return score


@cache
def _bleu_scorer() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    # Effective order concerns the sentence's own score, which is not used, and silences a warning about it.
    return BLEU(effective_order=True)


def _bleu(prediction: str, references: Sequence[str]) -> list[float]:
    """sacrebleu's sufficient statistics of one example: tokenised as by mteval-v13a, case kept."""
    found = _bleu_scorer().sentence_score(prediction, list(references))
    return [found.sys_len, found.ref_len, *found.counts, *found.totals]


def _exact(prediction: str, references: Sequence[str]) -> float:
    return float(" ".join(prediction.split()) in {" ".join(r.split()) for r in references})


def final_number(text: str) -> Decimal | None:
    """The number after the first `####`, without thousands separators; None where there is none.

    As in the evaluation code that came with GSM8K, an answer without the mark counts as none.
    """
    match = _ANSWER.search(text)
    try:
        return None if match is None else Decimal(match[1].replace(",", ""))
    except InvalidOperation:
        return None


def _exact_number(prediction: str, references: Sequence[str]) -> float:
    found = final_number(prediction)
    return float(found is not None and found in {final_number(r) for r in references})


_EXAMPLE: dict[str, Callable[[str, Sequence[str]], Any]] = {
    "rouge1": _rouge("rouge1"),
    "rouge2": _rouge("rouge2"),
    "rougeL": _rouge("rougeL"),
    "bleu": _bleu,
    "exact_match": _exact,
    "exact_number": _exact_number,
}
