"""Statistics for comparing methods: pure functions on plain arrays.

Nothing here knows of studies, arms or files. Arrays are named by what their axes count: seeds × examples for the
predictions of one method on one task, tasks × methods for a table of scores.

Which one to use: `paired_bootstrap` for two methods on one task (it is the only one that can reach significance with
few seeds, because it also uses the examples), `paired_permutation` for pairs pooled over tasks and seeds, `mcnemar`
for two models (one seed each), `friedman` and `critical_difference` for many methods over many tasks, and `holm`
over whatever was tested side by side. `detectable_difference` says what a study of this size can find at all, and
`verdict` gives the outcome.
"""

from peftprune.stats.effects import effect_size, probability_of_improvement
from peftprune.stats.intervals import Summary, summary
from peftprune.stats.multiple_testing import holm
from peftprune.stats.paired import PairedDifference, paired_bootstrap
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
    "probability_of_improvement",
    "score_interval",
    "smallest_permutation_p",
    "summary",
    "verdict",
]
