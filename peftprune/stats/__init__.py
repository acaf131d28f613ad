"""Statistics for comparing methods: pure functions on plain arrays.

Docstrings name arrays by their axes: seeds × examples for the predictions of one method on one task, tasks × methods
for a table of scores.

Use `paired_bootstrap` for two methods on one task (it also uses the examples, so it can reach significance with few
seeds), `paired_permutation` for pairs pooled over tasks and seeds, `mcnemar` for two models (one seed each), `friedman`
and `critical_difference` for many methods over many tasks, and `holm` for tests made side by side.
`detectable_difference` computes the smallest difference that a study of a given size can find, and `verdict` gives
the outcome. `peftprune.stats.metrics` defines the metrics.

`__init__.pyi` lists the functions; they are imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
