"""Compares a request with the one that a study's folder holds, and adds it where both can stand in one table.

Both requests are contents of `study.json`. Configurations are those that the arms' hashes cover, by `arm_key`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from peftprune.study.paths import joined
from peftprune.training.settings import settings_of_other_kinds

Key = tuple[Any, ...]
Configs = Mapping[Key, Mapping[str, Any]]
_KEY = ("task", "budget", "label", "seed")
_TASK = ("kind", "metrics", "evaluation_split", "train_examples", "evaluation_examples")
CONFIG = {"method", "options", "task", "model", "device", "versions", "numerics"}
"""What is read of an arm's configuration."""
_WITHOUT_EFFECT = {"dtype", "checkpoints", "device_map"}
"""Settings that are no part of an arm's result; the dtype that is used stands in the request itself."""


class Difference(NamedTuple):
    """What keeps two requests apart: the argument, its stored value, its value now, and what to do in this folder."""

    field: str
    stored: Any
    now: Any
    cure: str = "repeat the stored value"


def arm_key(arm: Mapping[str, Any]) -> Key:
    """Returns task, budget, label and seed of an arm of a request."""
    return tuple(arm[name] for name in _KEY)


def difference(stored: Mapping[str, Any], now: Mapping[str, Any], old: Configs, new: Configs) -> Difference | None:
    """Returns the first difference that keeps the arms of two requests out of one table; None where there is none.

    `old` and `new` are configurations of their arms, as far as they are known.
    """
    unread = [settings_of_other_kinds(t["kind"]) for t in (*stored["tasks"], *now["tasks"])]
    before = {"select": "last", **stored["settings"]}
    # Where a checkpoint is selected, their number decides which ones there are.
    ignored = _WITHOUT_EFFECT - ({"checkpoints"} if now["settings"].get("select", "last") != "last" else set())
    settings = [n for n in now["settings"] if n not in ignored.union(*unread)]
    pairs = [(n, stored.get(n, now[n]), now[n]) for n in ("target_modules", "dtype", "threads")]
    pairs.append(("tune", (stored.get("tuning") or {}).get("asked"), (now.get("tuning") or {}).get("asked")))
    pairs.append(("seeds", stored.get("rounds", "no rounds"), now.get("rounds", "no rounds")))
    if "rounds" in now:
        # A margin decides which methods train on, so it stands before the first look.
        pairs.append(("margin", stored.get("margin"), now.get("margin", stored.get("margin"))))
    pairs += [(n, before.get(n, now["settings"][n]), now["settings"][n]) for n in settings]
    if any(b["label"] == "paper" for b in (*stored["budgets"], *now["budgets"])):
        # Only named settings override those of a paper.
        pairs += [(n, stored["given"].get(n), now["given"].get(n)) for n in settings]
    known_tasks = {t["name"]: t for t in stored["tasks"]}
    for task in now["tasks"]:
        known = known_tasks.get(task["name"], task)
        pairs += [(f"task {task['name']}: {n.replace('_', ' ')}", known.get(n, task[n]), task[n]) for n in _TASK]
    found = [Difference(*pair) for pair in pairs if pair[1] != pair[2]]
    return next(iter([*found, *_methods(stored, now, old, new), *_contents(stored, now, old, new)]), None)


def _methods(stored: Mapping[str, Any], now: Mapping[str, Any], old: Configs, new: Configs) -> list[Difference]:
    """Returns the methods that have one label and other options."""
    texts, labels = {m["label"]: m["text"] for m in stored["methods"]}, {key[2]: c for key, c in old.items()}
    found = []
    for key, config in new.items():
        if (label := key[2]) not in texts:
            continue
        text = next(m["text"] for m in now["methods"] if m["label"] == label)
        if (known := labels.get(label)) is None:
            before, after = texts[label], text
        else:
            # Options that the stored version did not have are left out.
            options = {n: v for n, v in config["options"].items() if n in known["options"]}
            before, after = (known["method"], known["options"]), (config["method"], options)
        if before != after:
            cure = f"label it apart, as in {label.partition(':')[0]}:NAME(...)"
            found.append(Difference(f"method {label}", texts[label] or before, text or after, cure))
    return found


def _contents(stored: Mapping[str, Any], now: Mapping[str, Any], old: Configs, new: Configs) -> list[Difference]:
    """Returns what differs in weights, data and machine, which only the arms' configurations tell."""
    ours = next(iter(new.values()))
    theirs = [c for c in old.values() if c["versions"] == ours["versions"] and c["numerics"] == ours["numerics"]]
    found = []
    # Packages of other versions may compute another fingerprint of the same weights and data.
    same_name = stored["model"] == now["model"]
    if (theirs or not same_name) and not any(c["model"] == ours["model"] for c in old.values()):
        found.append(Difference("model", stored["model"], now["model"] + " (other weights)" * same_name))
    data = {c["task"]["name"]: c["task"]["fingerprint"] for c in new.values()}
    for task in (c["task"] for c in theirs):
        if data.get(task["name"], task["fingerprint"]) != task["fingerprint"]:
            found.append(Difference(f"task {task['name']}: data", task["fingerprint"][:8], data[task["name"]][:8]))
    # A request that leaves none out trains all arms anew; any other would mix both.
    for config in (config for key, config in old.items() if key not in new):
        for name in ("versions", "device", "numerics"):
            if config[name] != ours[name]:
                found.append(Difference(name, *_unequal(config[name], ours[name]), "ask for all its arms"))
    return found


def _unequal(a: Any, b: Any) -> tuple[Any, Any]:
    if not isinstance(a, dict):
        return a, b
    names = [n for n in b if a.get(n) != b[n]]
    return {n: a.get(n) for n in names}, {n: b[n] for n in names}


def union(stored: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the stored request with what is asked for now, which replaces stored arms and parts of the same name.

    What is added comes last, unless all that is stored is asked for again: then the order is that of now.
    """
    parts = {"methods": "label", "tasks": "name", "budgets": "label"}
    found = {**stored, **now, **{part: _joined(stored[part], now[part], key) for part, key in parts.items()}}
    found["seeds"] = list(_ordered(dict.fromkeys(stored["seeds"]), dict.fromkeys(now["seeds"])))
    found["place"] = joined(stored.get("place", {}), now["place"])
    found["data_dir"] = now["data_dir"] or stored["data_dir"]
    unread = set.intersection(*(settings_of_other_kinds(t["kind"]) for t in now["tasks"]))
    for part in ("settings", "given"):
        found[part] = _ordered(stored[part], {n: v for n, v in now[part].items() if n not in unread})
    places = {
        "task": [t["name"] for t in found["tasks"]],
        "budget": [b["label"] for b in found["budgets"]],
        "label": [m["label"] for m in found["methods"]],
    }
    arms = {arm_key(a): a for a in (*stored["arms"], *now["arms"])}

    def place(arm: Mapping[str, Any]) -> list[int]:
        return [found["seeds"].index(arm["seed"]), *(order.index(arm[part]) for part, order in places.items())]

    found["arms"] = sorted(arms.values(), key=place)
    return found


def _joined(stored: list[dict[str, Any]], now: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    return list(_ordered({row[key]: row for row in stored}, {row[key]: row for row in now}).values())


def _ordered(stored: Mapping[Any, Any], now: Mapping[Any, Any]) -> dict[Any, Any]:
    return dict(now) if stored.keys() <= now.keys() else {**stored, **now}
