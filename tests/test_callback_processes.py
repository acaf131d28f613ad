"""Two processes take the same decisions, and end where one process with all their examples ends."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

from tests import processes_script
from tests.helpers import same

ROOT = Path(__file__).parents[1]
QUICK = "lora-drop(sample=0.35,probe_passes=2)"
SLOW = ["lorpa", "prilora(prune_every=5)", "adalora(every=4)", "increlora(warmup=0.15,final=0.3)", "eva(sample=0.3)"]


def run(processes: int, model: Path, output: Path, method: str, batch: int, order: str) -> list[tuple[Any, Any]]:
    """(adapter, summary) of every process, started by torchrun."""
    output.mkdir()
    script = [str(ROOT / "tests" / "processes_script.py"), str(model), str(output), method, str(batch), order]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    surroundings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, *script]
    done = subprocess.run(command, env=os.environ | surroundings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return outcomes(output, processes)


def run_forked(processes: int, model: Path, output: Path, method: str, batch: int, order: str) -> list[tuple[Any, Any]]:
    """The same in forks of this process, which has imported everything already."""
    output.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    arguments = (processes, port, str(model), str(output), method, str(batch), order)
    children = [context.Process(target=child, args=(rank, *arguments)) for rank in range(processes)]
    for process in children:
        process.start()
    for process in children:
        process.join(300)
    assert [process.exitcode for process in children] == [0] * processes
    return outcomes(output, processes)


def child(rank: int, processes: int, port: int, *arguments: str) -> None:
    """What torchrun would tell a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in told.items()} if processes > 1 else {})
    processes_script.main(*arguments)


def outcomes(output: Path, processes: int) -> list[tuple[Any, Any]]:
    """What the processes wrote."""
    return [
        (load_file(output / f"{n}.safetensors"), json.loads((output / f"{n}.json").read_text()))
        for n in range(processes)
    ]


@pytest.mark.parametrize("method", [QUICK, *(pytest.param(m, marks=pytest.mark.slow) for m in SLOW)])
def test_two_processes_end_alike_and_as_one_does(method: str, still_bert: Path, tmp_path: Path) -> None:
    train = run_forked if method == QUICK else run
    (first, told), (second, told_too) = train(2, still_bert, tmp_path / "two", method, 4, "ordered")
    assert same(first, second)
    assert told["ranks"] == told_too["ranks"]
    ((alone, told_alone),) = train(1, still_bert, tmp_path / "one", method, 8, "ordered")
    assert told_alone["ranks"] == told["ranks"]
    assert told_alone["ledger"]["samples"] == told["ledger"]["samples"]
    assert told_alone["ledger"]["tokens"] == told["ledger"]["tokens"]
    assert alone.keys() == first.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(first[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    assert max(float(t.abs().max()) for n, t in alone.items() if "lora_B" in n) > 1e-3


@pytest.mark.slow
def test_the_users_own_order_is_shared_out_too(still_bert: Path, tmp_path: Path) -> None:
    (first, told), (second, _) = run(2, still_bert, tmp_path / "two", QUICK, 4, "free")
    assert same(first, second)
    assert told["ledger"]["final_params"] == told["params_allowed"]
