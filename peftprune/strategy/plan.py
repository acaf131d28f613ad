from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from peftprune.strategy.lazy import Tensor


@dataclass(frozen=True)
class PruningPlan:
    """A decision about the adapters. Immutable; an empty plan changes nothing.

    Fields are applied in this order: drop, rotate, keep, reinit, share, grow, assign, zero, reset_optimizer. Rank
    indices refer to the tensors that the view showed, or to what `rotate` makes of them; masks and values have the
    shape that the parts before them leave.

    Attributes:
        rotate: site to matrices T and S, (rank, rank), for a site without a gate: A becomes T A and B becomes B S, and
            the optimizer's moments follow as gradients do. Where S T is the identity on what B A uses, the function
            does not change.
        keep: site to the rank components that stay, ascending; the others are cut out of A, B, gate and the
            optimizer's state. An empty list drops the site.
        zero: site to boolean masks in the tensor's shape; True entries are set to zero.
        moments: whether the optimizer's moments of zeroed entries stay ("keep") or are zeroed with them ("zero").
        grow: site to the number of rank components to append; the function does not change (new columns of B are 0).
        share: groups of sites that hold the same A and B from now on: those of the first site of the group.
        drop: sites whose adapter is removed.
        reinit: site to the rank at which it starts afresh, with a random A and a zero B.
        assign: site to new values of the same shape.
        reset_optimizer: clear the optimizer's state.
        scores: importance of the sites, from 0, recorded in the trace only. A method's docstring defines its scores.
        reason: one line for the trace.
    """

    rotate: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    keep: Mapping[str, Sequence[int]] = field(default_factory=dict)
    zero: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    moments: Literal["keep", "zero"] = "keep"
    grow: Mapping[str, int] = field(default_factory=dict)
    share: Sequence[Sequence[str]] = ()
    drop: frozenset[str] = frozenset()
    reinit: Mapping[str, int] = field(default_factory=dict)
    assign: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    reset_optimizer: bool = False
    scores: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether applying the plan changes nothing."""
        parts = (self.rotate, self.keep, self.zero, self.grow, self.share, self.drop, self.reinit, self.assign)
        return not any(parts) and not self.reset_optimizer
