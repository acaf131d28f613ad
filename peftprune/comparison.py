"""Reading a stored study back: tables, runs, allocations and plots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from peftprune.store import ArmFolder, StudyFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEDGER = ("final_params", "peak_params", "nonzero_params", "unique_params", "head_params", "flops", "seconds")


class Comparison:
    """The outcome of a study, read from its folder. Nothing is held that is not stored.

    Attributes:
        path: the study's folder.
        request: what was asked for, resolved, with versions and hardware.
    """

    def __init__(self, path: Path, request: Mapping[str, Any]) -> None:
        self.path = path
        self.request = request
        self._arms = [(a, StudyFolder(path).arm(a["label"], a["seed"], a["hash"])) for a in request["arms"]]

    @classmethod
    def load(cls, output_dir: str | Path) -> Comparison:
        """Read a stored study.

        Raises:
            UsageError: when the folder holds none.
        """
        path = Path(output_dir)
        return cls(path, StudyFolder(path).read_request())

    @property
    def metrics(self) -> list[str]:
        """Names of the reported metrics, the primary one first."""
        return list(self.request["metrics"])

    @property
    def failures(self) -> dict[str, str]:
        """`label, seed n` to the message, for arms that failed and have not finished since."""
        return {
            f"{a['label']}, seed {a['seed']}": error["error"]
            for a, folder in self._arms
            if folder.result() is None and (error := folder.error()) is not None
        }

    def arm(self, label: str, seed: int) -> ArmFolder:
        """The files of one arm.

        Raises:
            KeyError: when the study has no such arm.
        """
        for a, folder in self._arms:
            if (a["label"], a["seed"]) == (label, seed):
                return folder
        raise KeyError(f"no arm {label!r} with seed {seed}; arms: {[(a['label'], a['seed']) for a, _ in self._arms]}")

    def runs(self) -> pd.DataFrame:
        """One row an arm: method, seed, each metric, the ledger's totals, status ("done", "failed: why", "pending")."""
        rows = []
        for a, folder in self._arms:
            result = folder.result()
            row: dict[str, Any] = {"method": a["label"], "seed": a["seed"]}
            if result is not None:
                row |= {m: result["metrics"].get(m) for m in self.metrics}
                row |= {name: result["ledger"][name] for name in _LEDGER}
                row |= {"budget_params": result["budget"]["params"], "exemption": result["exemption"], "status": "done"}
            else:
                error = folder.error()
                row["status"] = "pending" if error is None else f"failed: {error['error']}"
            rows.append(row)
        columns = ["method", "seed", *self.metrics, *_LEDGER, "budget_params", "exemption", "status"]
        return pd.DataFrame(rows, columns=columns)

    def table(self) -> pd.DataFrame:
        """One row a label: each metric's mean and standard deviation over seeds (n − 1), the ledger, and the status.

        `seeds` counts finished arms; ledger columns are means over them, integers where all seeds agree. Under
        `budget="paper"` a column `budget_difference` gives final parameters less the reference budget; where a method
        is exempt from the budget, a column `exemption` says why.
        """
        runs = self.runs()
        rows = []
        for label in runs["method"].unique():
            arms = runs[runs["method"] == label]
            done = arms[arms["status"] == "done"]
            row: dict[str, Any] = {"method": label}
            for metric in self.metrics:
                values = done[metric].astype(float)
                row |= {f"{metric}_mean": values.mean(), f"{metric}_std": values.std(ddof=1)}
            row["seeds"] = len(done)
            row |= {name: _mean(done[name]) for name in _LEDGER}
            if self.request["budget"] == "paper":
                row["budget_difference"] = _mean(done["final_params"] - done["budget_params"])
            if runs["exemption"].notna().any():
                row["exemption"] = next(iter(done["exemption"].dropna()), "")
            rows.append(row | {"status": _status(arms["status"])})
        return pd.DataFrame(rows)

    def allocation(self) -> pd.DataFrame:
        """One row a site of a finished arm: method, seed, site, layer, kind, rank, density, shared_with.

        `density` is the share of the site's stored entries that are not zero; `shared_with` names the sites that hold
        the same tensors, separated by commas, and is empty where there are none.
        """
        columns = ["method", "seed", "site", "layer", "kind", "rank", "density", "shared_with"]
        rows = [
            {"method": a["label"], "seed": a["seed"], **site, "shared_with": ",".join(site["shared_with"])}
            for a, folder in self._arms
            if (result := folder.result()) is not None
            for site in result["allocation"]
        ]
        return pd.DataFrame(rows, columns=columns)

    def against(self, baseline: str | None = None) -> pd.DataFrame:
        """Every method's paired difference to a baseline (default: the first label), with interval and verdict.

        One row a method and metric: method, baseline, metric, seeds, difference, low, high, p, p_holm, detectable,
        verdict; see `peftprune.evidence.against`.
        """
        from peftprune.evidence import against

        return against(self, baseline if baseline is not None else self.request["arms"][0]["label"])

    def plot_ranks(self, path: str | Path | None = None) -> Figure:
        """Heat maps of the final ranks, layer by kind, one panel a method, averaged over seeds; saved to `path`."""
        from peftprune.plots import plot_rank_panels

        return plot_rank_panels(self.allocation(), path)


def _mean(values: pd.Series[Any]) -> int | float | None:
    if values.empty:
        return None
    mean = float(values.astype(float).mean())
    return int(mean) if mean.is_integer() else mean


def _status(statuses: pd.Series[str]) -> str:
    """One line for a label: "done", or how many of its arms did not finish and why the first one failed."""
    open_ = [s for s in statuses if s != "done"]
    if not open_:
        return "done"
    failed = next((s for s in open_ if s.startswith("failed")), "pending")
    return failed if len(statuses) == len(open_) == 1 else f"{len(open_)} of {len(statuses)} {failed}"
