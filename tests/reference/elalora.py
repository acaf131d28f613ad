"""A slow twin of ElaLoRA's rounds, over AdaLoRA's slow scores: one loop per site and component."""

from __future__ import annotations

from tests.reference.adalora import Sensitivities


def exchanged(first: int, progress: float) -> int:
    """b: from `first` to 0 by the cubic rule."""
    return round(first * (1 - progress * progress * progress))


def exchange(
    scores: dict[str, list[float]],
    costs: dict[str, int],
    caps: dict[str, int],
    params: int,
    wanted: int,
    candidates: int,
) -> tuple[dict[str, list[int]], dict[str, int]]:
    """What each site keeps, and by how much it grows."""
    named: list[tuple[str, int]] = []
    for site in scores:
        left = list(range(len(scores[site])))
        for _ in range(min(candidates, len(left) - 1)):
            lowest = left[0]
            for k in left:
                if scores[site][k] < scores[site][lowest]:
                    lowest = k
            left.remove(lowest)
            named.append((site, lowest))
    ascending = []
    while named:
        weakest = named[0]
        for site, k in named:
            if scores[site][k] < scores[weakest[0]][weakest[1]]:
                weakest = site, k
        named.remove(weakest)
        ascending.append(weakest)
    going = ascending[: min(wanted, len(ascending) // 2)]
    kept = {site: [k for k in range(len(scores[site])) if (site, k) not in going] for site in scores}
    ranks = {site: len(kept[site]) for site in scores}
    grown = dict.fromkeys(scores, 0)
    for site, _ in ascending[::-1]:
        spent = sum(ranks[n] * costs[n] for n in scores)
        if spent + costs[site] <= params and ranks[site] < caps[site]:
            ranks[site] += 1
            grown[site] += 1
    return kept, grown


class Following(Sensitivities):
    """Entries that follow their components through cuts and growth."""

    def renumber(self, site: str, kept: list[int], extra: int, widths: dict[str, int]) -> None:
        """Component kept[i] becomes i; `extra` new ones follow, with averages of 0."""
        old = {key: self.entries.pop(key) for key in list(self.entries) if key[0] == site}
        for (_, name, k, j), averages in old.items():
            if k in kept:
                self.entries[site, name, kept.index(k), j] = averages
        for name, width in widths.items():
            for k in range(len(kept), len(kept) + extra):
                for j in range(width):
                    self.entries[site, name, k, j] = 0.0, 0.0
