"""Executes the notebooks in order, each in a kernel of this interpreter.

It checks that they run and changes no notebook; `--write` writes the outputs into them.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

HERE = Path(__file__).resolve().parent
QUIET = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class ThisInterpreter(KernelSpecManager):
    """Provides one kernel, whatever kernels the user has installed."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python")


def execute(path: Path, seconds: int) -> Any:
    """Executes a notebook and returns it with its outputs.

    Args:
        path: the notebook; its folder is the working directory.
        seconds: time limit of each cell.

    Raises:
        CellExecutionError: a cell failed.
        CellTimeoutError: a cell took longer.
        DeadKernelError: the kernel died.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        km=AsyncKernelManager(kernel_spec_manager=ThisInterpreter()),
        timeout=seconds,
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute()
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
    return notebook


def main() -> int:
    parser = argparse.ArgumentParser(description="Execute the notebooks in order.")
    parser.add_argument("--write", action="store_true", help="write the outputs into the notebooks")
    parser.add_argument("--timeout", type=int, default=900, metavar="SECONDS", help="limit of each cell (900)")
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all, in order")
    arguments = parser.parse_args()
    os.environ.update(QUIET)
    for path in [p.resolve() for p in arguments.notebooks] or sorted(HERE.glob("*.ipynb")):
        started = time.perf_counter()
        try:
            notebook = execute(path, arguments.timeout)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            print(f"{path.name} failed:\n{error}", file=sys.stderr)
            return 1
        if arguments.write:
            nbformat.write(notebook, path)
        print(f"{path.name}: {time.perf_counter() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
