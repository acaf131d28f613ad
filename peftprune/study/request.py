"""`compare`: the main job. It plans every arm before training any, runs what is not done, and reads the store back."""

from __future__ import annotations

from collections.abc import Sequence

from peftprune.errors import UsageError
from peftprune.methods.registry import MethodSpec


def in_order(specs: Sequence[MethodSpec]) -> list[tuple[MethodSpec, str | None]]:
    """The methods with the label each depends on, which comes before it; else in the order in which they were named.

    Raises:
        UsageError: for a label that the study lacks, or methods that depend on each other.
    """
    known = {s.label: s for s in specs}
    needs: dict[str, str | None] = {s.label: getattr(s.build(), "depends_on", None) for s in specs}
    ordered: dict[str, tuple[MethodSpec, str | None]] = {}

    def add(label: str, above: tuple[str, ...]) -> None:
        needed = needs[label]
        if label in above:
            circle = " on ".join([*above[above.index(label) :], label])
            raise UsageError.of("methods", circle, "depend on each other", "Let one of them depend on another method")
        if needed is not None and needed not in known:
            others = ", ".join(other for other in known if other != label) or "no other method"
            cure = f"Add {needed} to methods, or depend on what is there ({others})"
            raise UsageError.of(f"{label} depends on", needed, "is no method of this study", cure)
        if needed is not None:
            add(needed, (*above, label))
        ordered.setdefault(label, (known[label], needed))

    for label in known:
        add(label, ())
    return list(ordered.values())
