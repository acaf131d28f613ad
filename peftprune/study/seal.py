"""Digests of what an arm produced, stored in its result, so that a later change of a file shows."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from peftprune.study.store import ArmFolder

_RESULT = ("method", "label", "seed", "exemption", "metrics", "budget", "settings", "phases", "allocation")
_CLOCKS = ("seconds", "phase_seconds", "evaluation_seconds", "peak_memory_bytes", "drift")
"""Parts of the ledger that differ between two runs of one arm, or that earlier versions lack."""


def digests(folder: ArmFolder, result: Mapping[str, Any]) -> dict[str, str]:
    """Returns the SHA-256 of each part of an arm: result, predictions, trace, history, and the adapter if it is stored.

    Times and logits are left out. Two runs that computed the same bits have the same digests.
    """
    ledger = {name: value for name, value in result["ledger"].items() if name not in _CLOCKS}
    sealed = {"ledger": ledger, **{name: result[name] for name in _RESULT}}
    values = folder.read_predictions().drop(columns="logits", errors="ignore")
    found = {
        "result": _sha256(json.dumps(sealed, sort_keys=True).encode()),
        "predictions": _sha256(values.to_json(orient="split", double_precision=15).encode()),
        "allocation": _sha256((folder.path / "allocation.jsonl").read_bytes()),
        "history": _sha256((folder.path / "history.jsonl").read_bytes()),
    }
    weights = sorted(folder.adapter.glob("*.safetensors"))
    return found | ({"adapter": _sha256(*(file.read_bytes() for file in weights))} if weights else {})


def _sha256(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()
