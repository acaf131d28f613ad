"""A slow twin of IncreLoRA: one loop per site and component, plain doubles."""

from __future__ import annotations

import math

BETA1, BETA2 = 0.85, 0.85


class Sites:
    """One averaged sensitivity per site, and how many components each site has, reserve apart."""

    def __init__(self, names: list[str]) -> None:
        self.mean = dict.fromkeys(names, 0.0)
        self.deviation = dict.fromkeys(names, 0.0)
        self.ranks = dict.fromkeys(names, 1)

    def step(self, name: str, gates: list[float], gradients: list[float]) -> None:
        """Take in a site's gates and their gradients, reserve included."""
        value = 0.0
        for k in range(len(gates)):
            value += abs(gates[k] * gradients[k])
        self.take_in(name, value)

    def take_in(self, name: str, value: float) -> None:
        """Take in a site's sensitivity."""
        self.mean[name] = BETA1 * self.mean[name] + (1 - BETA1) * value
        self.deviation[name] = BETA2 * self.deviation[name] + (1 - BETA2) * abs(value - self.mean[name])

    def score(self, name: str) -> float:
        return self.mean[name] * self.deviation[name]

    def grow(self, costs: dict[str, int], caps: dict[str, int], params: int, units: int, top_h: int | None) -> None:
        """One round: the best site that can still grow does, then the next; without `top_h`, until nothing fits."""
        while True:
            done: list[str] = []
            while top_h is None or len(done) < top_h:
                best, most = None, 0
                for name in self.ranks:
                    spent = sum(self.ranks[n] * costs[n] for n in self.ranks)
                    extra = min(units, caps[name] - self.ranks[name], (params - spent) // costs[name])
                    if name not in done and extra > 0 and (best is None or self.score(name) > self.score(best)):
                        best, most = name, extra
                if best is None:
                    break
                self.ranks[best] += most
                done.append(best)
            if top_h is not None or not done:
                return


def round_steps(first: int, last: int, rounds: int) -> list[int]:
    """The steps of all rounds: evenly spread, the last one at the end."""
    found = []
    for i in range(1, rounds + 1):
        step = first + 1
        while (step - first) * rounds < i * (last - first):
            step += 1
        found.append(step)
    return found


def dense(delta: list[list[float]], gradient: list[list[float]]) -> float:
    """Σ |ΔW · ∇ΔW| / √(number of entries)."""
    total, count = 0.0, 0
    for i in range(len(delta)):
        for j in range(len(delta[i])):
            total += abs(delta[i][j] * gradient[i][j])
            count += 1
    return total / math.sqrt(count)
