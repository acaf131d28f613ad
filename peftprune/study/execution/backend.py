"""Selects and checks where the arms are trained: on this machine, on a Ray cluster, or by Slurm."""

from dataclasses import dataclass
from typing import Literal, get_args

from peftprune.errors import UsageError
from peftprune.study.arguments import Workers, parse_workers
from peftprune.study.execution.local import default_threads, run_in_processes
from peftprune.study.execution.work import Work
from peftprune.study.progress import Reporter

BackendName = Literal["local", "ray", "slurm"]
_USERS = {"workers": ("local", "slurm"), "address": ("ray",), "gpus": ("ray", "slurm"), "sbatch": ("slurm",)}
"""The backends that use each option."""


@dataclass(frozen=True)
class Backend:
    """A backend and its options, which are the arguments of `compare` of the same names; None is their default.

    Raises UsageError for an unknown name, a value out of range, or an option of another backend.
    """

    name: BackendName = "local"
    workers: Workers | str | None = None
    address: str | None = None
    gpus: float | None = None
    sbatch: str | None = None

    def __post_init__(self) -> None:
        if self.workers is not None:
            parse_workers(self.workers)
        if self.name not in get_args(BackendName):
            raise UsageError.of("backend", self.name, "is unknown", f"Backends: {', '.join(get_args(BackendName))}")
        for option, names in _USERS.items():
            if getattr(self, option) is not None and self.name not in names:
                problem = f"has no meaning with backend {self.name!r}"
                raise UsageError.of(option, getattr(self, option), problem, f"It is for {' and '.join(names)}")
        for option in ("address", "sbatch"):
            if not isinstance(getattr(self, option), str | None):
                raise UsageError.of(option, getattr(self, option), "is not text", "Put it in quotes")
        number = isinstance(self.gpus, int | float) and not isinstance(self.gpus, bool)
        if self.gpus is not None and not (number and 0 <= self.gpus < float("inf")):
            raise UsageError.of("gpus", self.gpus, "is not a number of GPUs", "Give 0 or more, for example 0.5")

    def default_threads(self, arms: int) -> int:
        """Returns the CPU threads per arm if the user names none: a share of the cores locally, 1 on a cluster."""
        return default_threads(arms) if self.name == "local" else 1

    def check(self) -> None:
        """Checks, before anything is loaded, that the cluster can be reached; see `ray.check_cluster`."""
        if self.name == "ray":
            from peftprune.study.execution.ray import check_cluster

            check_cluster(self.address or "auto")

    def run(self, work: Work, reporter: Reporter) -> None:
        """Trains the unfinished arms. With Slurm, submits them and returns at once."""
        gpus = float(work.device != "cpu") if self.gpus is None else self.gpus
        if self.name == "ray":
            from peftprune.study.execution.ray import run_on_ray

            run_on_ray(work, reporter, address=self.address or "auto", gpus=gpus)
        elif self.name == "slurm":
            from peftprune.study.execution.slurm import submit

            submit(work, tasks=parse_workers(self.workers or "auto"), gpus=gpus, options=self.sbatch or "")
        else:
            run_in_processes(work, parse_workers(self.workers or "auto"), reporter)
