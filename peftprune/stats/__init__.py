"""Statistics for comparing methods: pure functions on plain arrays.

Docstrings name arrays by their axes: seeds × examples for the predictions of one method on one task, tasks × methods
for a table of scores.

Use `paired_bootstrap` for two methods on one task (it also uses the examples, so it can reach significance with few
seeds), `paired_permutation` for pairs pooled over tasks and seeds, `mcnemar` for two models (one seed each), `friedman`
and `critical_difference` for many methods over many tasks, and `holm` for tests made side by side.
`detectable_difference` computes the smallest difference that a study of a given size can find, and `verdict` gives
the outcome. `peftprune.stats.metrics` defines the metrics.
"""

from peftprune.stats.effects import effect_size, probability_of_improvement
from peftprune.stats.intervals import Summary, summary
from peftprune.stats.multiple_testing import holm
from peftprune.stats.paired import PairedDifference, paired_bootstrap
from peftprune.stats.pareto import pareto_set
from peftprune.stats.permutation import paired_permutation, smallest_permutation_p
from peftprune.stats.power import detectable_difference, detectable_from
from peftprune.stats.proportions import mcnemar
from peftprune.stats.ranks import FriedmanTest, average_ranks, critical_difference, friedman
from peftprune.stats.score_interval import score_interval
from peftprune.stats.verdict import Verdict, verdict

__all__ = [
    "FriedmanTest",
    "PairedDifference",
    "Summary",
    "Verdict",
    "average_ranks",
    "critical_difference",
    "detectable_difference",
    "detectable_from",
    "effect_size",
    "friedman",
    "holm",
    "mcnemar",
    "paired_bootstrap",
    "paired_permutation",
    "pareto_set",
    "probability_of_improvement",
    "score_interval",
    "smallest_permutation_p",
    "summary",
    "verdict",
]
