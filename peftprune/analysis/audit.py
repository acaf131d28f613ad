"""Checks a stored study against itself: every figure of its tables must follow from what its arms stored."""

import math
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping
from itertools import groupby, product
from typing import Any

import numpy as np

from peftprune.analysis.looks import wanted_seeds
from peftprune.analysis.predictions import measure
from peftprune.errors import UsageError
from peftprune.stats.metrics import METRICS, score_column
from peftprune.study.seal import digests
from peftprune.study.store import TRIALS, ArmFolder, config_hash
from peftprune.study.stored_study import StoredStudy
from peftprune.study.tuning import trial_point

_TOLERANCE = 1e-9
"""Of a metric that is computed again with another version of the same library."""


def audit(study: StoredStudy) -> list[str]:
    """Returns one sentence for each contradiction in a study and its trials; empty where everything agrees.

    Checked are: the hash of every arm's configuration against its folder and the request; results against
    configurations, predictions, traces, budgets and their seals; equal seeds, steps and budgets of the methods that
    share a table; and, in a tuned study, the choices against the trials and the final arms against the choices.
    """
    study = study.snapshot(whole=True)
    coming = _coming(study)
    found = list(_request(study, coming))
    budgets: dict[tuple[str, str], set[tuple[Any, ...]]] = defaultdict(set)
    for (key, arm), asked in zip(study.arms(), study.request["arms"], strict=True):
        result = arm.result()
        if result is None:
            if (key["task"], key["budget"], key["seed"]) in coming:
                continue
            error = arm.error()
            if not (error or {}).get("diverged") and arm.paused() is None:
                found.append(f"{study.name(key)}: has no result ({(error or {'error': 'not trained'})['error']})")
            continue
        found += [f"{study.name(key)}: {problem}" for problem in _arm(study, key, arm, asked["hash"], result)]
        if result["exemption"] is None and not result["budget"].get("paper"):
            budgets[key["task"], key["budget"]].add((result["budget"]["params"], result["budget"]["total_steps"]))
    found += [f"{task}, {label}: unequal budgets {sorted(b)}" for (task, label), b in budgets.items() if len(b) > 1]
    if study.request.get("tuning") is None:
        return found
    try:
        trials = StoredStudy.load(study.path / TRIALS).snapshot(whole=True)
    except UsageError as error:
        return [*found, f"tuning: {error}"]
    return [*found, *(f"trial {problem}" for problem in audit(trials)), *_choices(study, trials)]


def sealed(study: StoredStudy) -> tuple[int, int]:
    """Returns the number of finished arms whose result holds digests, and that of those whose adapter is stored."""
    results = [(arm, result) for _, arm, result in study.finished()]
    return sum("digests" in r for _, r in results), sum(any(a.adapter.glob("*.safetensors")) for a, _ in results)


def _coming(study: StoredStudy) -> set[tuple[str, str, int]]:
    """Returns the seeds that a study in rounds is still to train: beyond the first round, and of no finished arm."""
    if "rounds" not in study.request:
        return set()
    first, *_, last = study.request["rounds"]["seeds"]
    seeds = product(study.tasks, study.budgets, range(first, last))
    return set(seeds) - {(key["task"], key["budget"], key["seed"]) for key, _, _ in study.finished()}


def _request(study: StoredStudy, coming: Container[tuple[str, str, int]] = ()) -> Iterator[str]:
    """Yields methods that lack a seed which another method of their cell has, and arms that the request leaves out.

    In a study in rounds a method needs the seeds that its looks ask for, fewer where it is decided early. Those that
    are `coming` may be missing.
    """
    wanted = wanted_seeds(study) if "rounds" in study.request else {}
    for cell in study.cells():
        (task,), (budget,), seeds = cell.tasks, cell.budgets, defaultdict[str, set[int]](set)
        for key, _ in cell.arms():
            seeds[key["method"]].add(key["seed"])
        for method in cell.methods:
            count = wanted.get((task, budget, method))
            needed = set().union(*seeds.values()) if count is None else set(range(count))
            if missing := {seed for seed in needed - seeds[method] if (task, budget, seed) not in coming}:
                yield f"{task}, {budget}, {method}: has no arm with seed {sorted(missing)}"
    named = {arm.path.name for _, arm in study.arms()}
    for folder in sorted((study.path / "arms").glob("*")):
        if folder.name not in named and ArmFolder(folder).result() is not None:
            yield f"{folder.name}: is finished, and the request does not name it"


def _arm(
    study: StoredStudy, key: Mapping[str, Any], arm: ArmFolder, digest: str, result: Mapping[str, Any]
) -> Iterator[str]:
    """Yields the contradictions in one finished arm."""
    config = arm.config()
    if config_hash(config) != digest or not arm.path.name.endswith(f"-{digest}"):
        yield f"its configuration has the hash {config_hash(config)} instead of {digest}"
    stated = {"label": key["method"], "seed": key["seed"], "method": config["method"]}
    settings = {n: v for n, v in config["settings"].items() if n in result["settings"]}
    sides = (("", stated, result), ("setting ", settings, result["settings"]))
    for part, asked, found in (*sides, ("budget ", config["budget"], result["budget"])):
        for name, value in asked.items():
            if found[name] != value:
                yield f"{part}{name} is {found[name]!r} in the result and {value!r} in the configuration"
    if config["seed"] != key["seed"]:
        yield f"the configuration has the seed {config['seed']}"
    yield from _scores(study, key["task"], arm, result)
    yield from _allocation(arm, result)
    budget, ledger = result["budget"], result["ledger"]
    spent = ledger["nonzero_params" if budget.get("count") == "nonzero" else "final_params"]
    if result["exemption"] is None and not budget.get("paper") and spent > budget["params"]:
        yield f"{spent:,} parameters exceed the budget of {budget['params']:,}"
    if ledger["steps"] > budget["total_steps"]:
        yield f"{ledger['steps']} steps exceed the budget of {budget['total_steps']}"
    now = digests(arm, result)
    for part, seal in result.get("digests", {}).items():
        if now.get(part, seal) != seal:
            yield f"its {part} was changed after the run"


def _scores(study: StoredStudy, task: str, arm: ArmFolder, result: Mapping[str, Any]) -> Iterator[str]:
    """Yields metrics that do not follow from the stored predictions, and splits of another size than requested."""
    frame = arm.read_predictions()
    asked = next(t for t in study.request["tasks"] if t["name"] == task)
    sizes = frame.groupby("split").size().to_dict()
    if sizes != asked["evaluation_examples"]:
        yield f"predictions have {sizes} examples instead of {asked['evaluation_examples']}"
    if [*result["metrics"]] != asked["metrics"]:
        yield f"its metrics are {[*result['metrics']]} instead of {asked['metrics']}"
    for name, value in result["metrics"].items():
        what = measure(study, task, name)
        part, metric = frame[frame["split"] == what.split], METRICS[what.name]
        if metric.kind == "generation":
            now = metric.value(np.asarray(part[score_column(what.name)].tolist()))
        else:
            now = metric.compute(part["prediction"], part["label"])
        if not math.isclose(now, value, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE):
            yield f"{name} is {value!r}, and {now!r} by its predictions"


def _allocation(arm: ArmFolder, result: Mapping[str, Any]) -> Iterator[str]:
    """Yields sites whose final state differs between trace and result."""
    last: dict[str, Mapping[str, Any]] = {}
    for event in arm.allocation():
        last |= event["sites"]
    for site in result["allocation"]:
        state = last.get(site["site"])
        if state is not None and (state["rank"], state["shared_with"]) != (site["rank"], site["shared_with"]):
            yield f"{site['site']} has the rank {site['rank']} in the result and {state['rank']} in the trace"


def _choices(study: StoredStudy, trials: StoredStudy) -> Iterator[str]:
    """Yields choices that the trials do not lead to, and final arms that do not have the chosen settings."""
    cells = defaultdict[tuple[str, str, str], dict[str, list[list[float]]]](lambda: defaultdict(list))
    stopped = set[tuple[str, ...]]()
    for key, arm in trials.arms():
        result, paused, metric = arm.result(), arm.paused(), trials.primary[key["task"]]
        cell, label = (key["task"], key["budget"], trial_point(key["method"])[0]), key["method"]
        # At the end and, in a search by halving, after a third of the steps.
        cells[cell][label].append([-math.inf if end is None else end["metrics"][metric] for end in (result, paused)])
        if result is None and paused is not None and not (arm.error() or {}).get("diverged"):
            stopped.add((*cell, label))
    rows = study.request["tuning"]["chosen"]
    chosen = {(row["task"], row["budget"], row["label"]): row for row in rows}
    for cell, row in chosen.items():
        means = {label: np.mean(found, axis=0).tolist() for label, found in cells[cell].items()}
        halted = {label: (*cell, label) in stopped for label in means}
        best = min(means, key=lambda label: (halted[label], -means[label][0], trial_point(label)[1]), default=None)
        if best != row["trial"] or len(means) != row["trials"]:
            yield f"{', '.join(cell)}: chose {row['trial']} of {row['trials']}, the trials say {best} of {len(means)}"
        early = [label for label, found in cells[cell].items() if max(score for _, score in found) > -math.inf]
        order = [halted[label] for label in sorted(early, key=lambda label: (-means[label][1], trial_point(label)[1]))]
        if order != sorted(order) or sum(order) > row.get("stopped", 0):
            yield f"{', '.join(cell)}: the trials stopped at a third are not the worse half"
    for (task, budget), group in groupby(rows, key=lambda row: (row["task"], row["budget"])):
        counts = {row["label"]: row["trials"] for row in group}
        if len({*counts.values()}) > 1:
            yield f"{task}, {budget}: unequal numbers of trials {counts}"
    for key, arm, _ in study.finished():
        row = chosen.get((key["task"], key["budget"], key["method"]))
        config = arm.config()
        found = {n: {**config["options"], **config["settings"]}.get(n) for n in (row["point"] if row else {})}
        if row is None or found != row["point"]:
            yield f"{study.name(key)}: trained with {found}, tuning chose {row and row['point']}"
