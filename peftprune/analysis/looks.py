"""The looks at a study in rounds of seeds: what they decide, from its stored arms alone."""

from peftprune.analysis.differences import Reached, outcomes, tested
from peftprune.analysis.margins import margins
from peftprune.analysis.predictions import measure, predictions
from peftprune.stats import Look, Verdict
from peftprune.study.stored_study import StoredStudy

Key = tuple[str, str, str]
DECIDED = (Verdict.BETTER, Verdict.WORSE, Verdict.EQUIVALENT, Verdict.NOT_WORSE)


def looks(study: StoredStudy) -> dict[Key, Reached]:
    """Returns what each method has reached, by task, budget and method; empty for a study without rounds.

    A look at a method and the baseline of the rounds needs every arm of both until then to be finished or to have
    diverged. A verdict other than undecided on the primary metric, with the study's own margin, is a decision; later
    arms do not change it. All methods of a task and budget are one family, also those without a result. The baseline
    has reached the last look of any pair.
    """
    return {key: reached for cell in study.cells() for key, reached in _cell(cell).items()}


def wanted_seeds(study: StoredStudy) -> dict[Key, int]:
    """Returns how many seeds each method trains by what the study holds now: one round more where a look left it open.

    The baseline goes on with any pair.
    """
    sizes = study.request["rounds"]["seeds"]
    return {key: sizes[min(max(1, at.look.number + at.open), len(sizes)) - 1] for key, at in looks(study).items()}


def _cell(cell: StoredStudy) -> dict[Key, Reached]:
    rounds = cell.request.get("rounds")
    if rounds is None or rounds["baseline"] not in cell.methods:
        return {}
    sizes, baseline = rounds["seeds"], rounds["baseline"]
    fractions = tuple(size / sizes[-1] for size in sizes)
    (task,), (budget,), metric = cell.tasks, cell.budgets, cell.metrics[0]
    what, margin, stored = measure(cell, task, metric), margins(cell).get(metric), predictions(cell)
    ended = {
        (key["method"], key["seed"])
        for key, folder in cell.arms()
        if folder.result() is not None or (folder.error() or {}).get("diverged")
    }
    reached = {m: Reached(Look(0, fractions), sizes[0]) for m in cell.methods}
    others = [m for m in cell.methods if m != baseline]
    for number, size in enumerate(sizes, 1):
        for method in others:
            if reached[method].open and ended.issuperset((m, s) for m in (method, baseline) for s in range(size)):
                at = Reached(Look(number, fractions), size)
                reached |= {baseline: at, method: at._replace(test=tested(stored, method, baseline, what, at))}
        tests = {method: test for method in others if (test := reached[method].test)}
        found = outcomes([*tests.values()], margin, what.higher_is_better, len(others) - len(tests))
        for method, (_, _, outcome) in zip(tests, found, strict=True):
            reached[method] = reached[method]._replace(open=reached[method].open and outcome not in DECIDED)
    reached[baseline] = reached[baseline]._replace(open=any(reached[m].open for m in others))
    return {(task, budget, method): found for method, found in reached.items()}
