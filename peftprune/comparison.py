"""Reading a stored study back: tables, runs, allocations, statistics and plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from peftprune.errors import UsageError
from peftprune.stats import summary
from peftprune.store import ArmFolder, StudyFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from peftprune.adapters.arm_export import Exported

LEDGER = ("final_params", "peak_params", "nonzero_params", "unique_params", "head_params", "flops", "seconds")


class Comparison:
    """The outcome of a study, read from its folder. Nothing is held that is not stored.

    Every frame begins with the columns `task` and `budget`; methods are compared within one such pair, a cell.

    Attributes:
        path: the study's folder.
        request: what was asked for, resolved, with versions and hardware.
    """

    def __init__(self, path: Path, request: Mapping[str, Any]) -> None:
        self.path = path
        self.request = request

    @classmethod
    def load(cls, output_dir: str | Path) -> Comparison:
        """Read a stored study.

        Raises:
            UsageError: when the folder holds none.
        """
        path = Path(output_dir)
        return cls(path, StudyFolder(path).read_request())

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return [t["name"] for t in self.request["tasks"]]

    @property
    def budgets(self) -> list[str]:
        """Labels of the budgets, such as "rank=8"."""
        return [b["label"] for b in self.request["budgets"]]

    @property
    def methods(self) -> list[str]:
        """Labels of the methods."""
        return [m["label"] for m in self.request["methods"]]

    @property
    def metrics(self) -> list[str]:
        """Names of the reported metrics of all tasks; the first task's primary one first."""
        return list(dict.fromkeys(m for t in self.request["tasks"] for m in t["metrics"]))

    @property
    def primary(self) -> dict[str, str]:
        """Task to its primary metric."""
        return {t["name"]: t["metrics"][0] for t in self.request["tasks"]}

    def only(self, *, task: str | None = None, budget: str | None = None, method: str | None = None) -> Comparison:
        """The same study, restricted to a task, a budget or a method; None restricts nothing.

        Raises:
            UsageError: when the study has no such part.
        """
        request = dict(self.request)
        wanted = {"tasks": ("name", task), "budgets": ("label", budget), "methods": ("label", method)}
        for part, (key, value) in wanted.items():
            if value is None:
                continue
            request[part] = [row for row in request[part] if row[key] == value]
            if not request[part]:
                known = ", ".join(row[key] for row in self.request[part])
                raise UsageError.of(part.removesuffix("s"), value, "is not in the study", f"It has: {known}")
            in_arm = {"tasks": "task", "budgets": "budget", "methods": "label"}[part]
            request["arms"] = [a for a in request["arms"] if a[in_arm] == value]
        return Comparison(self.path, request)

    def cells(self) -> Iterator[Comparison]:
        """The study restricted to one task and one budget at a time."""
        for task in self.tasks:
            for budget in self.budgets:
                yield self.only(task=task, budget=budget)

    def arms(self) -> Iterator[tuple[dict[str, Any], ArmFolder]]:
        """What identifies each arm (`task`, `budget`, `method`, `seed`), and its files."""
        for a in self.request["arms"]:
            key = {"task": a["task"], "budget": a["budget"], "method": a["label"], "seed": a["seed"]}
            yield key, StudyFolder(self.path).arm(a["label"], a["seed"], a["hash"])

    def arm(self, method: str, seed: int, *, task: str | None = None, budget: str | None = None) -> ArmFolder:
        """The files of one arm; task and budget need to be named where there are several.

        Raises:
            KeyError: when the study has no such arm, or several.
        """
        wanted = {"method": method, "seed": seed, "task": task, "budget": budget}
        found = [
            folder
            for key, folder in self.arms()
            if all(value is None or key[name] == value for name, value in wanted.items())
        ]
        if len(found) != 1:
            several = f"{len(found)} arms" if found else "no arm"
            raise KeyError(
                f"{several} {method!r} with seed {seed}, task {task!r}, budget {budget!r}; methods: {self.methods}, "
                f"seeds: {self.request['seeds']}, tasks: {self.tasks}, budgets: {self.budgets}"
            )
        return found[0]

    @property
    def failures(self) -> dict[str, str]:
        """The arm, such as `lora, seed 0`, to the message, for arms that failed and have not finished since."""
        return {
            self.name(key): error["error"]
            for key, folder in self.arms()
            if folder.result() is None and (error := folder.error()) is not None
        }

    def name(self, key: Mapping[str, Any]) -> str:
        """An arm in words: `lora, seed 0`, led by task and budget where the study has several."""
        parts = [key["task"]] * (len(self.tasks) > 1) + [key["budget"]] * (len(self.budgets) > 1)
        return ", ".join([*parts, key["method"], f"seed {key['seed']}"])

    def runs(self) -> pd.DataFrame:
        """One row an arm: each metric, the ledger's totals, status ("done", "failed: why", "pending")."""
        rows = []
        for key, folder in self.arms():
            result = folder.result()
            row: dict[str, Any] = dict(key)
            if result is not None:
                row |= result["metrics"]
                row |= {name: result["ledger"][name] for name in LEDGER}
                row |= {"budget_params": result["budget"]["params"], "exemption": result["exemption"], "status": "done"}
            else:
                error = folder.error()
                row["status"] = "pending" if error is None else f"failed: {error['error']}"
            rows.append(row)
        keys = ["task", "budget", "method", "seed"]
        return pd.DataFrame(rows, columns=[*keys, *self.metrics, *LEDGER, "budget_params", "exemption", "status"])

    def table(self) -> pd.DataFrame:
        """One row a task, budget and method: each metric over seeds, the ledger, and the status.

        For each metric `_mean`, `_std` (n − 1), and `_low` and `_high`, the ends of Student's 95 % interval of the
        mean, which one seed does not have. `seeds` counts finished arms; ledger columns are means over them, integers
        where all seeds agree. Under `budget="paper"` a column `budget_difference` gives final parameters less the
        reference budget; where a method is exempt from the budget, a column `exemption` says why.
        """
        runs = self.runs()
        rows = []
        for (task, budget, method), arms in runs.groupby(["task", "budget", "method"], sort=False):
            done = arms[arms["status"] == "done"]
            row: dict[str, Any] = {"task": task, "budget": budget, "method": method}
            for metric in self.metrics:
                values = done[metric].dropna().astype(float)
                found = summary(values.tolist()) if len(values) else None
                row |= {f"{metric}_{n}": getattr(found, n, None) for n in ("mean", "std", "low", "high")}
            row["seeds"] = len(done)
            row |= {name: _mean(done[name]) for name in LEDGER}
            if "paper" in self.budgets:
                off = _mean(done["final_params"] - done["budget_params"])
                row["budget_difference"] = off if budget == "paper" else None
            if runs["exemption"].notna().any():
                row["exemption"] = next(iter(done["exemption"].dropna()), "")
            rows.append(row | {"status": _status(arms["status"])})
        scores = [f"{m}_{n}" for m in self.metrics for n in ("mean", "std", "low", "high")]
        # Counts stay whole numbers beside a method that has none yet.
        return pd.DataFrame(rows, dtype=object).astype(dict.fromkeys(scores, float))

    def allocation(self) -> pd.DataFrame:
        """One row a site of a finished arm: site, layer, kind, rank, density, shared_with.

        `density` is the share of the site's stored entries that are not zero; `shared_with` names the sites that hold
        the same tensors, separated by commas, and is empty where there are none.
        """
        columns = ["task", "budget", "method", "seed", "site", "layer", "kind", "rank", "density", "shared_with"]
        rows = [
            {**key, **site, "shared_with": ",".join(site["shared_with"])}
            for key, folder in self.arms()
            if (result := folder.result()) is not None
            for site in result["allocation"]
        ]
        return pd.DataFrame(rows, columns=columns)

    def trace(self) -> pd.DataFrame:
        """How each site came to its rank: one row a site and event; see `peftprune.analysis.course.trace`."""
        from peftprune.analysis.course import trace

        return trace(self)

    def history(self) -> pd.DataFrame:
        """The training loss: one row a logged step; see `peftprune.analysis.course.history`."""
        from peftprune.analysis.course import history

        return history(self)

    def costs(self) -> pd.DataFrame:
        """Seconds and steps by phase; see `peftprune.analysis.course.costs`."""
        from peftprune.analysis.course import costs

        return costs(self)

    def against(self, baseline: str | None = None) -> pd.DataFrame:
        """Every method's paired difference to a baseline (default: the first method), with interval and verdict.

        One row a task, budget, method and metric; see `peftprune.analysis.differences.against`.
        """
        from peftprune.analysis.differences import against

        return against(self, self._baseline(baseline))

    def mcnemar(self, baseline: str | None = None) -> pd.DataFrame:
        """McNemar's exact test of each seed's model against the baseline's; see `peftprune.analysis.models.mcnemar`."""
        from peftprune.analysis.models import mcnemar

        return mcnemar(self, self._baseline(baseline))

    def pooled(self, baseline: str | None = None) -> pd.DataFrame:
        """Pairs pooled over tasks and seeds; see `peftprune.analysis.pooled.pooled`."""
        from peftprune.analysis.pooled import pooled

        return pooled(self, self._baseline(baseline))

    def average_ranks(self) -> pd.DataFrame:
        """Each method's rank averaged over tasks; see `peftprune.analysis.pooled.average_ranks`."""
        from peftprune.analysis.pooled import average_ranks

        return average_ranks(self)

    def frontier(self) -> pd.DataFrame:
        """Quality against parameters, with the Pareto set; see `peftprune.analysis.frontier.frontier`."""
        from peftprune.analysis.frontier import frontier

        return frontier(self)

    def stability(self) -> pd.DataFrame:
        """How far allocations agree between seeds and methods; see `peftprune.analysis.stability.stability`."""
        from peftprune.analysis.stability import stability

        return stability(self)

    def plot(self, kind: str, path: str | Path | None = None) -> Figure:
        """Draw one of `peftprune.figures.KINDS`, for example "ranks" or "quality"; saved to `path`.

        Raises:
            UsageError: an unknown kind, or one that this study has nothing to show for.
        """
        from peftprune.figures import draw, save

        figure = draw(self, kind)
        if path is not None:
            save(figure, path)
        return figure

    def plot_ranks(self, path: str | Path | None = None) -> Figure:
        """Heat maps of the final ranks, layer by kind, one panel a method, averaged over seeds; saved to `path`."""
        return self.plot("ranks", path)

    def report(self, path: str | Path, *, baseline: str | None = None) -> Path:
        """Write one HTML page that holds everything; see `peftprune.report.write_report`."""
        from peftprune.report import write_report

        return write_report(self, path, baseline=baseline)

    def export(self, out: str | Path, *, method: str, **options: Any) -> Exported:
        """Write one finished arm as an adapter or a model of its own, into the folder `out`.

        Options: seed="best", format="peft" | "native" | "merged", task, budget, uniform, head, overwrite, push_to_hub;
        see `peftprune.adapters.arm_export.export`.
        """
        from peftprune.adapters.arm_export import export

        return export(self, out, method=method, **options)

    def _baseline(self, baseline: str | None) -> str:
        if baseline is None:
            return self.methods[0]
        if baseline not in self.methods:
            raise UsageError.of("baseline", baseline, "is not in the study", f"Labels: {', '.join(self.methods)}")
        return baseline


def _mean(values: pd.Series[Any]) -> int | float | None:
    if values.empty:
        return None
    mean = float(values.astype(float).mean())
    return int(mean) if mean.is_integer() else mean


def _status(statuses: pd.Series[str]) -> str:
    """One line for a method: "done", or how many of its arms did not finish and why the first one failed."""
    open_ = [s for s in statuses if s != "done"]
    if not open_:
        return "done"
    failed = next((s for s in open_ if s.startswith("failed")), "pending")
    return failed if len(statuses) == len(open_) == 1 else f"{len(open_)} of {len(statuses)} {failed}"
