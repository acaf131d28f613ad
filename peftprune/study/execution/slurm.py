"""Slurm: the work as a file, and an array job whose tasks run `peftprune run-arm` on it.

The study's folder must be on a file system that the nodes share. Tasks take arms under their locks, so that a task
which is requeued, or a second job, trains nothing twice.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from peftprune.errors import RunError
from peftprune.files import write_atomically
from peftprune.study.execution.local import Workers, check_workers, module_path
from peftprune.study.execution.process import pack
from peftprune.study.execution.work import Work
from peftprune.study.store import StudyFolder

_SCRIPT = """\
#!/bin/bash
{header}

cd {folder}
export PYTHONPATH={path}
export OMP_NUM_THREADS={threads} GOMP_SPINCOUNT="${{GOMP_SPINCOUNT:-1000}}"
exec {command}
"""


def submit(work: Work, *, tasks: Workers | str | None, gpus: float | None, options: str | None) -> None:
    """Write the work and its script, and hand them to `sbatch`; where there is none, say what to type.

    Args:
        work: the planned study.
        tasks: that many tasks take arms until none is left; None and "auto" give every arm a task.
        gpus: of each task; None for 1 where the study was planned on a GPU.
        options: of `sbatch`, beside those in the script.

    Raises:
        RunError: when `sbatch` refuses the job.
    """
    script = write_job(work, tasks=tasks, gpus=gpus, options=options)
    if script is None:
        return
    command = ["sbatch", str(script)]
    if shutil.which("sbatch") is None:
        print(f"No sbatch here. Where there is one, type: {shlex.join(command)}", file=sys.stderr)
        return
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise RunError(f"sbatch: refused {script} ({said}). Mend --sbatch, or the script, and submit it again")
    print(done.stdout.strip(), file=sys.stderr)


def write_job(work: Work, *, tasks: Workers | str | None, gpus: float | None, options: str | None) -> Path | None:
    """Write the work and the script of its array job; see `submit`. None where every arm is done.

    Returns:
        The script, in a folder of its own under `slurm/` in the study's folder; the tasks' logs come beside it.
    """
    work = replace(work, study=StudyFolder(work.study.path.absolute()))
    unfinished = work.unfinished()
    if not unfinished:
        return None
    count = check_workers(tasks or "auto")
    array = ",".join(map(str, unfinished)) if count == "auto" else f"0-{min(count, len(unfinished)) - 1}"
    folder = work.study.path / "slurm" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    write_atomically(folder / "work.pkl", pack(work))
    wanted = gpus if gpus is not None else float(work.device != "cpu")
    header = [
        "--job-name=peftprune",
        f"--array={array}",
        f"--cpus-per-task={work.threads}",
        *([f"--gpus-per-task={wanted:g}", "--ntasks=1"] if wanted else []),
        f"--output={folder}/%A_%a.log",
        "--requeue",
        *shlex.split(options or ""),
    ]
    run = [sys.executable, "-m", "peftprune", "run-arm", str(folder / "work.pkl")]
    script = _SCRIPT.format(
        header="\n".join(f"#SBATCH {line}" for line in header),
        folder=shlex.quote(str(Path.cwd())),
        path=shlex.quote(module_path()["PYTHONPATH"]),
        threads=work.threads,
        command=shlex.join(run) + (' --index "$SLURM_ARRAY_TASK_ID"' if count == "auto" else ""),
    )
    write_atomically(folder / "array.sh", script.encode())
    return folder / "array.sh"
