"""Inspects an adapter: ranks, spectra, norms, density, sharing, and the loss of pruning it further."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from peftprune.adapters.formats.adapter import Adapter, Factors, refuse_unusual, require_finite
from peftprune.adapters.formats.folder import folder_bytes
from peftprune.adapters.formats.read import read_adapter
from peftprune.adapters.pruning import ranks_for_params
from peftprune.scoring.magnitude import update_svd


@dataclass(frozen=True)
class Inspection:
    """The result of `inspect`.

    Attributes:
        path: the adapter.
        format: "peft", "native" or "loralib".
        sites: one row per site: `site`, `layer` (the first number in its name; NaN without one), `d_out`, `d_in`,
            `rank`, `effective_rank`, `norm` (Frobenius) and `largest` (spectral) of ΔW, `density` (share of entries of
            A and B that are not zero), `half_energy` (share of ‖ΔW‖² in the larger half of the singular values),
            `shared_with`, `params`.
        spectra: site to the singular values of ΔW, descending.
        further: one row per rank budget: `rank`, `params`, `kept_energy` if all sites compete for the parameters of
            that uniform rank, `uniform_energy` if every site is truncated to the rank, and `worst_site` and
            `worst_energy`, the site that then keeps the smallest share.
        totals: `sites`, `params` (shared factors once), `expanded_params` (every site), `head_params`, `bytes`.
        facts: stored metadata: base model, method, seed, metrics.
        notes: assumptions that were made.
    """

    path: Path
    format: str
    sites: pd.DataFrame
    spectra: Mapping[str, list[float]]
    further: pd.DataFrame
    totals: Mapping[str, int]
    facts: Mapping[str, Any]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values; missing ones are None."""
        return {
            "path": str(self.path),
            "format": self.format,
            "totals": dict(self.totals),
            "facts": dict(self.facts),
            "notes": list(self.notes),
            "sites": [_plain(row) | {"spectrum": self.spectra[row["site"]]} for row in self.sites.to_dict("records")],
            "further": [_plain(row) for row in self.further.to_dict("records")],
        }


def inspect(adapter: str | Path, *, alpha: float | None = None) -> Inspection:
    """Inspects an adapter. Spectra are computed from the factors by QR; ΔW is never formed.

    The effective rank is exp(−Σ p·ln p) with p the singular values over their sum (Roy and Vetterli, EUSIPCO 2007): 1
    if one value is all of the sum, the rank if all values are equal, 0 where ΔW is zero.

    Args:
        adapter: a PEFT folder, a native file or a loralib file.
        alpha: lora_alpha of a loralib file, which does not store it; it scales norms and spectra.

    Raises:
        UsageError: for an adapter that cannot be read or is not finite.
    """
    found = read_adapter(adapter, alpha=alpha)
    refuse_unusual(found, "inspect")
    require_finite(found)
    groups = found.groups()
    spectra: dict[str, Tensor] = {}
    for group in groups:
        f = found.sites[group[0]]
        _, S, _ = update_svd(f.A, f.B)
        spectra |= dict.fromkeys(group, abs(f.scaling) * S.cpu())
    shared = {name: [m for m in group if m != name] for group in groups for name in group}
    rows = [_row(name, f, spectra[name], shared[name]) for name, f in found.sites.items()]
    totals = {
        "sites": len(rows),
        "params": sum(found.sites[g[0]].rank * found.sites[g[0]].unit_cost for g in groups),
        "expanded_params": found.params,
        "head_params": sum(t.numel() for t in found.others.values()),
        "bytes": folder_bytes(found.path) if found.path.is_dir() else found.path.stat().st_size,
    }
    further = _further(found, groups, spectra)
    values = {row["site"]: spectra[row["site"]].tolist() for row in rows}
    return Inspection(found.path, found.format, pd.DataFrame(rows), values, further, totals, _facts(found), found.notes)


def effective_rank(values: Tensor) -> float:
    """Returns exp of the entropy of singular values, (r,), over their sum; 0 if all are zero."""
    total = float(values.sum())
    return float(torch.special.entr(values.double() / total).sum().exp()) if total else 0.0


def _row(name: str, f: Factors, S: Tensor, shared: list[str]) -> dict[str, Any]:
    number = re.search(r"\.(\d+)\.", f"{name}.")
    energy = float(S.square().sum())
    return {
        "site": name,
        "layer": int(number[1]) if number else math.nan,
        "d_out": f.B.shape[0],
        "d_in": f.A.shape[1],
        "rank": f.rank,
        "effective_rank": effective_rank(S),
        "norm": math.sqrt(energy),
        "largest": float(S[0]) if len(S) else 0.0,
        "density": float((f.A.count_nonzero() + f.B.count_nonzero()) / (f.A.numel() + f.B.numel())),
        "half_energy": float(S[: (f.rank + 1) // 2].square().sum()) / energy if energy > 0 else math.nan,
        "shared_with": ",".join(shared),
        "params": f.rank * f.unit_cost,
    }


def _further(adapter: Adapter, groups: list[list[str]], spectra: Mapping[str, Tensor]) -> pd.DataFrame:
    times = {g[0]: len(g) for g in groups}
    values = {n: spectra[n] for n in times}
    costs = {n: adapter.sites[n].unit_cost for n in times}
    held = {n: float(S.square().sum()) for n, S in values.items()}
    total = sum(held[n] * times[n] for n in times)
    have = sum(adapter.sites[n].rank * costs[n] for n in times)
    rows, rank = [], max(adapter.sites[n].rank for n in times) // 2
    while rank >= 1 and total > 0:
        params = rank * sum(costs.values())
        each = {n: float(S[:rank].square().sum()) for n, S in values.items()}
        worst = min((n for n in times if held[n] > 0), key=lambda n: each[n] / held[n])
        if params < have:
            ranks = ranks_for_params(values, costs, times, params)
            kept = sum(float(S[: ranks[n]].square().sum()) * times[n] for n, S in values.items())
            uniform = sum(each[n] * times[n] for n in times)
            rows.append((rank, params, kept / total, uniform / total, worst, each[worst] / held[worst]))
        rank //= 2
    return pd.DataFrame(rows, columns=["rank", "params", "kept_energy", "uniform_energy", "worst_site", "worst_energy"])


def _facts(adapter: Adapter) -> dict[str, Any]:
    names = ("method", "label", "seed", "task", "budget", "metrics", "pruned")
    facts = {name: adapter.facts[name] for name in names if name in adapter.facts}
    config = {name: adapter.config.get(name) for name in ("base_model_name_or_path", "task_type", "modules_to_save")}
    return {k: v for k, v in (config | facts).items() if v is not None}


def _plain(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(k): None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
