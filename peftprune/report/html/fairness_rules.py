"""The rules of a fair comparison, as the README lists them."""

RULES = (
    "The same seed gives the same initial head, batch order, evaluation data and, where shapes allow, dropout stream.",
    "All methods share one scaling, learning rate, batch size, schedule and weight decay, unchanged by pruning.",
    "Final adapter parameters are equal and verified after training; tied tensors count once.",
    "Optimizer steps and samples are equal and include a method's own probes and passes.",
    "The main table shows peak parameters and FLOPs, since a large initial rank has a cost.",
    "Results come from a split that nothing selects on, and from the last state. Nothing is tuned.",
    "The evaluation loss has no regulariser, and parameters are counted after pruning.",
    "Threads, number format and versions are fixed when a study is created and are part of each arm's identity.",
)

PAPER = (
    'The budget "paper" is the exception: each method runs at its published setting, and the difference in parameters '
    "is a column of the table."
)
