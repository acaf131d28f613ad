"""Importance scores: pure functions on tensors, free of schedules and models."""

from peftprune.scoring.activation import output_energy, weight_times_input_norm
from peftprune.scoring.gradient import SmoothedSensitivity, sensitivity
from peftprune.scoring.magnitude import rank_magnitude
from peftprune.scoring.orthogonality import PenaltyForm, orthogonality
from peftprune.scoring.schedule import cubic_decay, cubic_fade
from peftprune.scoring.select import keep_top, keep_top_global, lowest_mask, share_held, units_that_fit, until_share
from peftprune.scoring.triplet import TripletSensitivity

__all__ = [
    "PenaltyForm",
    "SmoothedSensitivity",
    "TripletSensitivity",
    "cubic_decay",
    "cubic_fade",
    "keep_top",
    "keep_top_global",
    "lowest_mask",
    "orthogonality",
    "output_energy",
    "rank_magnitude",
    "sensitivity",
    "share_held",
    "units_that_fit",
    "until_share",
    "weight_times_input_norm",
]
