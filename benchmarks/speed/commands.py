"""Studies and scripts as commands of their own, timed as their users would with a watch."""

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
"""What would change how many threads the commands take, or give them what an earlier one computed."""
_TAIL = 2000
SCRIPT = Path(__file__).parent / "plain_script.py"


def study(output: Path, options: Sequence[str]) -> float:
    """Run `peftprune compare` into a fresh folder; its seconds from start to end, imports and evaluation included."""
    return timed(["-m", "peftprune", "compare", *options, "--output-dir", str(output)])


def script(options: Sequence[str]) -> dict[str, Any]:
    """Run the plain script; what it reports, and its `seconds` from start to end."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        # -P: the script's neighbours are no modules of its.
        seconds = timed(["-P", str(SCRIPT), *options, "--out", str(out)])
        return json.loads(out.read_text()) | {"seconds": seconds}


def timed(arguments: Sequence[str]) -> float:
    """Seconds that a Python command takes, with nothing cached by an earlier one.

    Raises:
        RuntimeError: with the end of what it said, when it fails.
    """
    with tempfile.TemporaryDirectory() as cache:
        env = {k: v for k, v in os.environ.items() if k not in _FIXED} | {"PEFTPRUNE_CACHE": cache}
        began = time.perf_counter()
        done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True)
        seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{(done.stdout + done.stderr)[-_TAIL:]}")
    return seconds
