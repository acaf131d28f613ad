"""The shape of an arm's files, as far as other modules rely on it."""

from typing import Any

_LEDGER = ("final_params", "peak_params", "nonzero_params", "unique_params", "head_params", "flops", "seconds")
_NUMBER = (int, float)

RESULT: Any = {
    "metrics": dict,
    "ledger": {**dict.fromkeys((*_LEDGER, "evaluation_seconds"), _NUMBER), "phase_seconds": dict},
    "allocation": [{"site": str, "layer": object, "kind": str, "rank": int, "density": object, "shared_with": list}],
    "budget": {"params": _NUMBER, "total_steps": int},
    "exemption": object,
    "phases": [{"name": str, "start": int, "stop": int}],
    "settings": dict,
}
PAUSED: Any = {"step": int, "metrics": dict, "ledger": {"steps": int, "flops": _NUMBER, "seconds": _NUMBER}}
ERROR: Any = {"error": str}
TRACE: Any = [{"step": int, "phase": str, "reason": str, "scores": dict, "sites": dict}]
SITE: Any = {"rank": int, "density": object, "shared_with": list, "components": object}


def fits(value: Any, shape: Any) -> bool:
    """Returns whether a value has a shape: a type, a list of one shape, or a mapping of keys to shapes."""
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(k in value and fits(value[k], s) for k, s in shape.items())
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(v, shape[0]) for v in value)
    return isinstance(value, shape)


def fits_result(value: Any) -> bool:
    return fits(value, RESULT) and all(isinstance(v, _NUMBER) for v in value["metrics"].values())


def fits_config(value: Any) -> bool:
    # Arms of earlier versions may lack keys.
    return isinstance(value, dict) and all(isinstance(value.get(k, {}), dict) for k in ("options", "task", "versions"))


def fits_history(value: Any) -> bool:
    return fits(value, [{"step": int}])


def fits_trace(value: Any) -> bool:
    return fits(value, TRACE) and all(fits(state, SITE) for event in value for state in event["sites"].values())
