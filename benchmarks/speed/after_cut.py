"""Whether LoRPA's large first rank still costs time or memory after its cut, which removes it physically."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.speed.arms import Bench, Built
from benchmarks.speed.measure import compared
from benchmarks.speed.request import Request
from benchmarks.speed.turns import in_rounds
from peftprune.training.ledger import optimizer_bytes

KIND = "after-cut"
_SHARE = 0.2
"""Share of the run before the cut."""


def after_cut(request: Request) -> dict[str, Any]:
    """Compares steps of LoRPA after its cut with those of LoRA that has the final rank from the start."""
    rounds, skipped = (10, 4) if request.quick else (60, 18)
    rank, first = (2, 8) if request.quick else (8, 256)
    rows = []
    for targets in ("attention", "all-linear"):
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench("mrpc", request.data_dir, targets, Path(folder), request.model, settings=request.settings)
            budget = f"rank={rank},steps={rounds + skipped + 1}"
            lorpa = bench.plan(f"lorpa(initial_rank={first},dense_share={_SHARE})", budget)
            if lorpa.phases[0].stop > skipped:
                raise RuntimeError(f"the cut comes after step {lorpa.phases[0].stop}, among the measured steps")
            arms = {"lorpa": bench.build("lorpa", lorpa), "lora": bench.build("lora", bench.plan("lora", budget))}
            seconds = in_rounds([arm.turn for arm in arms.values()], rounds, skipped)
            found = compared(seconds["lorpa"], seconds["lora"])
            rows.append({"targets": targets, **found, **{f"{n}_bytes": _bytes(a) for n, a in arms.items()}})
    settings = {"task": "mrpc", "initial_rank": first, "rank": rank, "dense_share": _SHARE, "rounds": rounds}
    return {"settings": settings | request.settings, "threads": 1, "rows": rows}


def _bytes(arm: Built) -> dict[str, int]:
    """Returns the bytes of the live adapters and of the optimizer's state, head included."""
    tensors = [t for site in arm.sites.values() if not site.is_dropped for t in (site.A, site.B)]
    return {
        "adapter": sum(t.numel() * t.element_size() for t in tensors),
        "optimizer": optimizer_bytes(arm.optimizer),
    }
