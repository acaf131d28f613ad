"""The margins of a study: differences in a metric that do not matter."""

from collections.abc import Mapping

from peftprune.analysis.predictions import measure
from peftprune.errors import UsageError
from peftprune.study.arguments import parse_margin
from peftprune.study.stored_study import StoredStudy

Margin = float | str | Mapping[str, float]
"""One margin for all metrics, or one per metric: 0.01, "accuracy=0.01,matthews=0.02", or a mapping."""


def margins(study: StoredStudy, margin: Margin | None = None) -> dict[str, float]:
    """Returns the margin of each reported metric that has one: the given one, or the one stored with the study.

    A metric of another evaluation split (`accuracy_mismatched`) has the margin of its own name, or else of its metric.
    Raises UsageError for one that is not a number above 0 or not below the metric's range, or names no metric of the
    study.
    """
    chosen: Margin | None = study.request.get("margin") if margin is None else margin
    if chosen is None:
        return {}
    given = parse_margin(chosen)
    found: dict[str, float] = {}
    known: set[str] = set()
    for task in study.request["tasks"]:
        for metric in task["metrics"]:
            what = measure(study, task["name"], metric)
            known |= {metric, what.name}
            value = given.get(metric, given.get(what.name, given.get("")))
            if value is None:
                continue
            low, high = what.limits
            if value >= high - low:
                cure = f"Give less than {high - low:g}, the range of {metric}: 0.01, for example"
                raise UsageError.of("margin", value, f"allows any difference in {metric}", cure)
            found[metric] = value
    # A part of a study may lack metrics that the stored margin names.
    other = next((name for name in given if name and name not in known), None)
    if margin is not None and other is not None:
        raise UsageError.of("margin", other, "is not a metric of the study", f"It has: {', '.join(study.metrics)}")
    return found
