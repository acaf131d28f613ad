"""Runs studies and scripts as commands and measures their wall-clock time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_FIXED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "PEFTPRUNE_CACHE")
"""Variables that would change the commands' threads or let them reuse an earlier command's results."""
_TAIL = 2000
SCRIPT = Path(__file__).parent / "plain_script.py"


def study(output: Path, options: Sequence[str]) -> float:
    """Runs `peftprune compare` into a new folder and returns its seconds, imports and evaluation included."""
    return timed(["-m", "peftprune", "compare", *options, "--output-dir", str(output)])


def script(options: Sequence[str]) -> dict[str, Any]:
    """Runs the plain script and returns its results and its `seconds`, imports included."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        # -P keeps the files beside the script off its module path.
        seconds = timed(["-P", str(SCRIPT), *options, "--out", str(out)])
        return json.loads(out.read_text()) | {"seconds": seconds}


def timed(arguments: Sequence[str]) -> float:
    """Runs a Python command without caches of an earlier one and returns its seconds.

    Raises:
        RuntimeError: the command fails; the message has the end of its output.
    """
    with tempfile.TemporaryDirectory() as cache:
        env = {k: v for k, v in os.environ.items() if k not in _FIXED} | {"PEFTPRUNE_CACHE": cache}
        began = time.perf_counter()
        done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True)
        seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{(done.stdout + done.stderr)[-_TAIL:]}")
    return seconds
