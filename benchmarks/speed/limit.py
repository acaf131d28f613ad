"""The rate of a step compared with the machine's fastest matrix products, and the profile of a step."""

from __future__ import annotations

import random
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import TrainerCallback

from benchmarks.speed.arms import Bench, Built
from benchmarks.speed.request import Request
from benchmarks.speed.turns import one_round, started
from peftprune.training.cpu.dropout import MaskStream

KIND = "limit"
_CASES = {"mrpc": "attention", "rte": "all-linear"}
_MASKS = "dropout masks"
# An operator's time counts for the first group whose pattern its name contains.
_GROUPS = {
    "dropout masks": _MASKS + "|bernoulli|native_dropout",
    "optimizer": r"[Aa]dam|_foreach_|Optimizer\.|linalg_vector_norm",
    "matrix products": r"mm$|bmm|matmul|linear|mkldnn|gemm",
    "softmax": "softmax",
    "norms and element-wise": r"layer_norm|gelu|tanh|::(mul|add|sub|div|sum|neg|mean|where|masked_fill)_?$",
    "copies and casts": r"copy|::to$|_to_copy|contiguous|clone|::cat$|index_select|embedding|fill_|zero_|empty|resize",
}


def limit(request: Request) -> dict[str, Any]:
    """Measures the rates of matrix products and of steps in the same rounds, and profiles a step."""
    rounds, size = (2, 256) if request.quick else (30, 8192 if torch.cuda.is_available() else 2048)
    threads = [None] if torch.cuda.is_available() else [1, 2]
    products: dict[tuple[str, int | None], list[float]] = {(d, t): [] for d in ("float32", "bfloat16") for t in threads}
    with tempfile.TemporaryDirectory() as folder:
        arms: dict[tuple[str, int | None], Built] = {}
        benches = {}
        for task, targets in _CASES.items():
            for count in threads:
                where = Path(folder) / f"{task}-{count}"
                bench = Bench(task, request.data_dir, targets, where, request.model, count, request.settings)
                plan = bench.plan("lora", f"rank=8,steps={rounds + 3}")
                arms[task, count] = bench.build(f"{task} {count}", plan)
                benches[task] = bench
        rates: dict[tuple[str, int | None], list[float]] = {key: [] for key in arms}
        rng = random.Random(0)
        turns = [arm.turn for arm in arms.values()]
        with started(turns):
            for _ in range(rounds + 2):
                for (dtype, count), found in products.items():
                    found.append(product_rate(getattr(torch, dtype), count, size))
                before = {key: _flops(arm) for key, arm in arms.items()}
                seconds = one_round(turns, rng)
                for key, arm in arms.items():
                    rates[key].append((_flops(arm) - before[key]) / seconds[arm.turn.name])
        shares = {task: profiled(bench, 2 if request.quick else 6) for task, bench in benches.items()}
    limits = {key: max(found) for key, found in products.items()}
    return {
        "settings": {"product": f"{size} x {size} x {size}", "rounds": rounds, "budget": "rank=8"} | request.settings,
        "threads": None,
        "products": [{"dtype": d, "threads": t, "flops_per_second": rate} for (d, t), rate in limits.items()],
        "steps": [
            {
                "task": task,
                "targets": _CASES[task],
                "threads": count,
                "flops_per_second": median(found[2:]),
                "share_of_limit": median(found[2:]) / limits[arms_dtype(arms[task, count]), count],
            }
            for (task, count), found in rates.items()
        ],
        "profiles": shares,
    }


def product_rate(dtype: torch.dtype, threads: int | None, size: int) -> float:
    """Returns the FLOPs per second of one square matrix product; a multiply-add counts as two."""
    if threads is not None:
        torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty(size, size, dtype=dtype, device=device)
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    torch.matmul(a, b, out=out)
    if device == "cuda":
        torch.cuda.synchronize()
    return 2 * size**3 / (time.perf_counter() - began)


def arms_dtype(arm: Built) -> str:
    """Returns the number format of its matrix products."""
    return "bfloat16" if arm.trainer.args.bf16 else "float32"


def _flops(arm: Built) -> float:
    ledger = arm.trainer.pruning.ledger
    return ledger.base_flops + ledger.adapter_flops


class _Profiled(TrainerCallback):
    """Profiles the steps after the second."""

    def __init__(self, skipped: int) -> None:
        self.skipped = skipped
        cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        self.profile = profile(activities=[ProfilerActivity.CPU, *cuda])
        self.seconds = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.skipped:
            self.profile.start()
            self.seconds = -time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds += time.perf_counter()
        self.profile.stop()


def profiled(bench: Bench, steps: int) -> dict[str, float]:
    """Returns the shares of a step's time by group of operators; the rest is Python and ungrouped operators."""
    skipped = 2
    arm = bench.build("profiled", bench.plan("lora", f"rank=8,steps={steps + skipped}"))
    watch = _Profiled(skipped)
    arm.trainer.add_callback(watch)
    # Without its gate it runs alone and in this thread, the only one that the profiler observes.
    arm.trainer.callback_handler.callbacks.pop(0)
    if bench.threads is not None:
        torch.set_num_threads(bench.threads)
    with _masks_named():
        arm.trainer.run()
    # On a GPU, the time of an operator's kernels; the kernels are also separate events.
    clock = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    events = [e for e in watch.profile.key_averages() if e.device_type == DeviceType.CPU]
    spent = {event.key: getattr(event, clock) / 1e6 for event in events}
    return shares(spent, watch.seconds)


def shares(spent: Mapping[str, float], seconds: float) -> dict[str, float]:
    """Returns the operators' own seconds by group as shares of all seconds; "Python and other" is the remainder."""
    found = dict.fromkeys(_GROUPS, 0.0)
    for name, own in spent.items():
        group = next((g for g, pattern in _GROUPS.items() if re.search(pattern, name)), None)
        if group is not None:
            found[group] += own / seconds
    return found | {"Python and other": 1 - sum(found.values())}


@contextmanager
def _masks_named() -> Iterator[None]:
    """Records the dropout masks, which torch does not compute, in the profile."""
    mask = MaskStream.mask

    def named(self: MaskStream, *args: Any) -> torch.Tensor:
        with record_function(_MASKS):
            return mask(self, *args)

    MaskStream.mask = named  # type: ignore[method-assign]
    try:
        yield
    finally:
        MaskStream.mask = mask  # type: ignore[method-assign]
