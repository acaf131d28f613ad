"""Where the arms of a study are trained: on this machine, on a Ray cluster, or by Slurm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from peftprune.errors import UsageError
from peftprune.study.execution.local import Workers, check_workers, default_threads, run_in_processes
from peftprune.study.execution.work import Work
from peftprune.study.progress import Reporter

BackendName = Literal["local", "ray", "slurm"]


@dataclass(frozen=True)
class Backend:
    """Who trains the arms.

    Attributes:
        name: "local", "ray" or "slurm".
        workers: locally the number of processes, None for "auto"; with Slurm that of the array's tasks, None for one an
            arm.
        address: of the Ray cluster, as `ray.init` takes it; None for "auto".
        gpus: of each arm; None for 1 where the study is planned on a GPU. Ray takes fractions.
        sbatch: further options of Slurm's `sbatch`.

    Raises:
        UsageError: for a name that is unknown, or an option of another backend.
    """

    name: BackendName = "local"
    workers: Workers | str | None = None
    address: str | None = None
    gpus: float | None = None
    sbatch: str | None = None

    def __post_init__(self) -> None:
        if self.workers is not None:
            check_workers(self.workers)
        if self.name not in get_args(BackendName):
            known = ", ".join(get_args(BackendName))
            raise UsageError.of("backend", self.name, "is unknown", f"Backends: {known}")
        owners = {"workers": ("local", "slurm"), "address": ("ray",), "gpus": ("ray", "slurm"), "sbatch": ("slurm",)}
        for field, names in owners.items():
            if getattr(self, field) is not None and self.name not in names:
                problem = f"has no meaning with backend {self.name!r}"
                raise UsageError.of(field, getattr(self, field), problem, f"It is for {' and '.join(names)}")
        if self.gpus is not None and (isinstance(self.gpus, bool) or not 0 <= self.gpus < float("inf")):
            raise UsageError.of("gpus", self.gpus, "is no number of GPUs", "Give 0 or more, for example 0.5")

    def default_threads(self, arms: int) -> int:
        """Threads of an arm where nobody named them, whatever the number of workers; on a cluster 1."""
        return default_threads(arms) if self.name == "local" else 1

    def run(self, work: Work, reporter: Reporter) -> None:
        """Train what is not done; with Slurm, leave it to the jobs that are submitted."""
        if self.name == "ray":
            from peftprune.study.execution.ray import run_on_ray

            run_on_ray(work, reporter, address=self.address or "auto", gpus=self.gpus)
        elif self.name == "slurm":
            from peftprune.study.execution.slurm import submit

            submit(work, tasks=self.workers, gpus=self.gpus, options=self.sbatch)
        else:
            run_in_processes(work, check_workers(self.workers or "auto"), reporter)
