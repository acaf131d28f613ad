"""A slow twin of FlexLoRA's rounds: one loop per site and component, plain floats."""

from __future__ import annotations

from math import log


def entropy(gate: list[float]) -> float:
    """−Σ p log p / log r over the shares p of the squared gates; 1 for one component, 0 where all are 0."""
    total = sum(g * g for g in gate)
    if len(gate) == 1:
        return 1.0
    if total == 0:
        return 0.0
    shares = [g * g / total for g in gate]
    return -sum(p * log(p) for p in shares if p > 0) / log(len(gate))


def exchange(
    gates: dict[str, list[float]], costs: dict[str, int], caps: dict[str, int], params: int, wanted: int
) -> tuple[dict[str, list[int]], list[str]]:
    """What each site keeps, and the sites that gain a component, in turn."""
    kept = {site: list(range(len(gate))) for site, gate in gates.items()}
    givers: list[str] = []
    for _ in range(min(wanted, len(gates) // 2)):
        left = [site for site in gates if site not in givers and len(gates[site]) > 1]
        if left:
            site = min(left, key=lambda n: entropy(gates[n]))
            kept[site].remove(min(kept[site], key=lambda k: abs(gates[site][k])))
            givers.append(site)
    takers = []
    for site in sorted(gates, key=lambda n: -entropy(gates[n])):
        spent = sum(len(kept[n]) * costs[n] for n in gates) + sum(costs[n] for n in takers)
        if site not in givers and spent + costs[site] <= params and len(kept[site]) < caps[site]:
            takers.append(site)
    return kept, takers
