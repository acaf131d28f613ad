"""Importance scores: pure functions on tensors, free of schedules and models."""

from peftprune.scoring.activation import output_energy, weight_times_input_norm
from peftprune.scoring.gradient import SmoothedSensitivity, sensitivity
from peftprune.scoring.magnitude import rank_magnitude
from peftprune.scoring.select import keep_top, lowest_mask, share_held, until_share

__all__ = [
    "SmoothedSensitivity",
    "keep_top",
    "lowest_mask",
    "output_energy",
    "rank_magnitude",
    "sensitivity",
    "share_held",
    "until_share",
    "weight_times_input_norm",
]
