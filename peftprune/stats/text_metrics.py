"""Metrics of generated text: the statistics that one example adds to each of them.

METEOR is left out: nltk's implementation needs WordNet, which no package provides.
"""

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any

_ANSWER = re.compile(r"####\s*\$?\s*(-?[\d.,]*\d)")


@cache
def _scorer(name: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([name], use_stemmer=True)


def rouge(name: str, prediction: str, references: Sequence[str]) -> float:
    """Returns the best ROUGE F1 over the references, with Porter's stemmer, as in the summarisation literature."""
    return float(_scorer(name).score_multi(list(references), prediction)[name].fmeasure)


@cache
def _bleu_scorer() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    # Effective order affects only the sentence's own score, which is not used, and silences a warning about it.
    return BLEU(effective_order=True)


def bleu(prediction: str, references: Sequence[str]) -> list[float]:
    """Returns sacrebleu's 10 sufficient statistics of one example, tokenised as by mteval-v13a with case kept.

    They are its length, the length of the closest reference, and its matching and all n-grams for n from 1 to 4.
    """
    found = _bleu_scorer().sentence_score(prediction, list(references))
    return [found.sys_len, found.ref_len, *found.counts, *found.totals]


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """Returns 1.0 where the prediction equals a reference up to whitespace, else 0.0."""
    return float(" ".join(prediction.split()) in {" ".join(r.split()) for r in references})


def final_number(text: str) -> Decimal | None:
    """Returns the number after the first `####`, without thousands separators; None where there is none.

    An answer without the mark counts as none, as in GSM8K's evaluation code.
    """
    match = _ANSWER.search(text)
    try:
        return None if match is None else Decimal(match[1].replace(",", ""))
    except InvalidOperation:
        return None


def exact_number(prediction: str, references: Sequence[str]) -> float:
    """Returns 1.0 where the prediction's final number equals that of a reference, else 0.0."""
    found = final_number(prediction)
    return float(found is not None and found in {final_number(r) for r in references})
