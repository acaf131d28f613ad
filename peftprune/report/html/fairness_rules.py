"""The rules of a fair comparison, as the README lists them."""

from __future__ import annotations

RULES = (
    "Same seed: same initial head, batch order and evaluation data, and the same dropout stream where shapes allow.",
    "One scaling, learning rate, batch size, schedule and weight decay for all, unchanged by pruning.",
    "Equal final adapter parameters, tied tensors counted once, verified after training.",
    "Equal optimizer steps and samples, a method's own probes and passes included.",
    "Peak parameters and FLOPs stand in the main table: a large first rank is not free.",
    "Results are reported on a split that nothing selects on; nothing is tuned. The last state is what is reported.",
    "The evaluation loss holds no regulariser; parameters are counted after pruning.",
    "Threads, number format and versions are fixed when a study is created and are part of each arm's identity.",
)

PAPER = (
    'The budget "paper" is the exception: each method runs at its published setting, and the difference in parameters '
    "is a column of the table."
)
