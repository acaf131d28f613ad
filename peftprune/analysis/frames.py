from functools import cached_property

import pandas as pd

from peftprune.analysis.decisions import decisions, with_effect
from peftprune.analysis.decomposition import decompositions
from peftprune.analysis.differences import against
from peftprune.analysis.frontier import frontier
from peftprune.analysis.history import costs, history, trace
from peftprune.analysis.learned import learned, references, with_learned
from peftprune.analysis.looks import looks
from peftprune.analysis.margins import Margin, margins
from peftprune.analysis.mcnemar import mcnemar
from peftprune.analysis.pooled import average_ranks, pooled
from peftprune.analysis.runs import arm_rows, ledger_rows, method_rows, site_rows
from peftprune.analysis.stability import stability
from peftprune.analysis.tuning import choices, trials, with_choices
from peftprune.study.store import STOPPED
from peftprune.study.stored_study import StoredStudy


class Frames:
    """The frames of a stored study. Each frame is computed once, and each result file read once, for one object.

    Results that are stored later appear only in a new object: `study` is a snapshot, and `whole` is as in
    `StoredStudy.snapshot`. `margin` is as in `peftprune.analysis.margins`, by default the one stored with the study, if
    any; `margins` holds that of each metric that has one.
    """

    def __init__(
        self, study: StoredStudy, baseline: str | None = None, margin: Margin | None = None, *, whole: bool = False
    ) -> None:
        self.study = study.snapshot(whole=whole)
        self._baseline = baseline
        self.margins = margins(study, margin)

    @cached_property
    def baseline(self) -> str:
        """The method that the others are compared with. Raises UsageError if it is not in the study."""
        return self.study.baseline_label(self._baseline)

    runs = cached_property(lambda self: arm_rows(self.study))
    trials = cached_property(lambda self: trials(self.study))
    whole_trials = cached_property(lambda self: self.trials[self.trials["status"] != STOPPED])
    choices = cached_property(lambda self: choices(self.study, self.trials))
    learned = cached_property(lambda self: learned(self.study, self.references))
    references = cached_property(lambda self: references(self.study))
    table = cached_property(lambda self: with_choices(self._marked(method_rows(self.study, self.runs)), self.choices))
    allocation = cached_property(lambda self: site_rows(self.study))
    ledger = cached_property(lambda self: ledger_rows(self.study))
    trace = cached_property(lambda self: trace(self.study))
    history = cached_property(lambda self: history(self.study))
    costs = cached_property(lambda self: costs(self.study))
    decisions = cached_property(lambda self: decisions(self.study))
    looks = cached_property(lambda self: looks(self.study))
    against = cached_property(lambda self: self._marked(against(*self._compared)))
    decomposition = cached_property(lambda self: decompositions(self.study, self.runs, self.baseline))
    mcnemar = cached_property(lambda self: mcnemar(self.study, self.baseline))
    pooled = cached_property(lambda self: self._marked(pooled(*self._compared)))
    average_ranks = cached_property(lambda self: with_learned(average_ranks(self.study, self.runs), self.learned))
    frontier = cached_property(lambda self: frontier(self.study, self.runs, self.table))
    stability = cached_property(lambda self: stability(self.study))
    _compared = property(lambda self: (self.study, self.runs, self.baseline, self.margins, self.looks))

    def _marked(self, frame: pd.DataFrame) -> pd.DataFrame:
        return with_learned(with_effect(frame, self.decisions), self.learned)
