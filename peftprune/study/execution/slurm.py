"""Trains the arms of a study by Slurm: writes the packed work and an array job whose tasks run `peftprune run-arm`.

The study's folder must be on a file system that the nodes share. Tasks lock the arms that they train, so a requeued
task or a second job trains no arm twice.
"""

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
from peftprune.study.arguments import Workers
from peftprune.study.execution.process import pack, python_path
from peftprune.study.execution.work import Work
from peftprune.study.store import StudyFolder

_SCRIPT = """\
#!/bin/bash
{header}

cd {folder}
export {path}
export OMP_NUM_THREADS={threads} GOMP_SPINCOUNT="${{GOMP_SPINCOUNT:-1000}}"
exec {command}
"""


def submit(work: Work, *, tasks: Workers, gpus: float, options: str) -> None:
    """Writes the array job and submits it with `sbatch`. Without `sbatch`, prints the command to run.

    Each of the `tasks` trains arms until none is left; "auto" makes one per arm. `gpus` per task may be a fraction;
    `options` are further ones of `sbatch`. Raises RunError if `sbatch` rejects the job.
    """
    if (script := write_job(work, tasks=tasks, gpus=gpus, options=options)) is None:
        return
    command = ["sbatch", str(script)]
    if shutil.which("sbatch") is None:
        print(f"sbatch is not installed here. Where it is, run: {shlex.join(command)}", file=sys.stderr)
        return
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr or done.stdout).strip()
        raise RunError(f"sbatch: rejected {script} ({reason}). Correct --sbatch or the script, and submit it again")
    print(done.stdout.strip(), file=sys.stderr)


def write_job(work: Work, *, tasks: Workers, gpus: float, options: str) -> Path | None:
    """Writes the packed work and the script of its array job; see `submit`. Returns None if no arm is left.

    The script is in a new folder under `slurm/` in the study's folder, where the tasks' logs go too.
    """
    work = replace(work, study=StudyFolder(work.study.path.absolute()))
    if not (unfinished := work.unfinished()):
        return None
    array = ",".join(map(str, unfinished)) if tasks == "auto" else f"0-{min(tasks, len(unfinished)) - 1}"
    folder = work.study.path / "slurm" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    write_atomically(folder / "work.pkl", pack(work))
    header = [
        "--job-name=peftprune",
        f"--array={array}",
        f"--cpus-per-task={work.threads}",
        *([f"--gpus-per-task={gpus:g}", "--ntasks=1"] if gpus else []),
        f"--output={folder}/%A_%a.log",
        "--requeue",
        *shlex.split(options),
    ]
    run = [sys.executable, "-m", "peftprune", "run-arm", str(folder / "work.pkl")]
    script = _SCRIPT.format(
        header="\n".join(f"#SBATCH {line}" for line in header),
        folder=shlex.quote(str(Path.cwd())),
        path=" ".join(f"{name}={shlex.quote(value)}" for name, value in python_path().items()),
        threads=work.threads,
        command=shlex.join(run) + (' --index "$SLURM_ARRAY_TASK_ID"' if tasks == "auto" else ""),
    )
    write_atomically(folder / "array.sh", script.encode())
    return folder / "array.sh"
