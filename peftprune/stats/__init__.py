"""Statistics for comparing methods: pure functions on plain arrays.

Docstrings name arrays by their axes: seeds × examples for the predictions of one method on one task, tasks × methods
for a table of scores.

Use `paired_bootstrap` for two methods on one task (it also uses the examples, so it can reach significance with few
seeds), `paired_permutation` for pairs pooled over tasks and seeds, `mcnemar` for two models (one seed each), `friedman`
and `critical_difference` for many methods over many tasks, and `holm` for tests made side by side.
`detectable_difference` computes the smallest difference that a study of a given size can find, and `verdict` gives
the outcome. `peftprune.stats.metrics` defines the metrics.
"""

from peftprune.stats.effects import effect_size as effect_size
from peftprune.stats.effects import probability_of_improvement as probability_of_improvement
from peftprune.stats.equal_variance import SharedDeviation as SharedDeviation
from peftprune.stats.equal_variance import shared_deviation as shared_deviation
from peftprune.stats.intervals import Summary as Summary
from peftprune.stats.intervals import summary as summary
from peftprune.stats.multiple_testing import Adjusted as Adjusted
from peftprune.stats.multiple_testing import adjust as adjust
from peftprune.stats.multiple_testing import holm as holm
from peftprune.stats.multiple_testing import holm_levels as holm_levels
from peftprune.stats.paired import PairedDifference as PairedDifference
from peftprune.stats.paired import paired_bootstrap as paired_bootstrap
from peftprune.stats.pareto import pareto_set as pareto_set
from peftprune.stats.permutation import paired_permutation as paired_permutation
from peftprune.stats.permutation import permutation_interval as permutation_interval
from peftprune.stats.permutation import smallest_permutation_p as smallest_permutation_p
from peftprune.stats.power import detectable_difference as detectable_difference
from peftprune.stats.power import detectable_from as detectable_from
from peftprune.stats.power import pairs_needed as pairs_needed
from peftprune.stats.power import seeds_for as seeds_for
from peftprune.stats.power import seeds_needed as seeds_needed
from peftprune.stats.proportions import mcnemar as mcnemar
from peftprune.stats.ranks import FriedmanTest as FriedmanTest
from peftprune.stats.ranks import average_ranks as average_ranks
from peftprune.stats.ranks import critical_difference as critical_difference
from peftprune.stats.ranks import friedman as friedman
from peftprune.stats.score_interval import score_interval as score_interval
from peftprune.stats.sequential import Look as Look
from peftprune.stats.verdict import Verdict as Verdict
from peftprune.stats.verdict import verdict as verdict
