"""Importance scores: pure functions on tensors, without schedules or models.

Names are imported on first use, so that a method can be described without torch.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftprune.scoring.activation import output_energy as output_energy
    from peftprune.scoring.activation import weight_times_input_norm as weight_times_input_norm
    from peftprune.scoring.gradient import SmoothedSensitivity as SmoothedSensitivity
    from peftprune.scoring.gradient import sensitivity as sensitivity
    from peftprune.scoring.magnitude import rank_magnitude as rank_magnitude
    from peftprune.scoring.penalty import orthogonality as orthogonality
    from peftprune.scoring.schedule import cubic_decay as cubic_decay
    from peftprune.scoring.schedule import cubic_fade as cubic_fade
    from peftprune.scoring.select import keep_top as keep_top
    from peftprune.scoring.select import keep_top_global as keep_top_global
    from peftprune.scoring.select import lowest_mask as lowest_mask
    from peftprune.scoring.select import share_held as share_held
    from peftprune.scoring.select import units_that_fit as units_that_fit
    from peftprune.scoring.select import until_share as until_share
    from peftprune.scoring.spectrum import update_svd as update_svd
    from peftprune.scoring.threshold import hard_threshold as hard_threshold
    from peftprune.scoring.threshold import soft_threshold as soft_threshold
    from peftprune.scoring.triplet import TripletSensitivity as TripletSensitivity
    from peftprune.scoring.variance import explained_variance as explained_variance

# The imports above, which only type checkers execute, are also the table of names.
_MODULES = {
    alias.name: statement.module
    for statement in ast.walk(ast.parse(Path(__file__).read_text("utf-8")))
    if isinstance(statement, ast.ImportFrom) and statement.module and statement.module.startswith("peftprune.")
    for alias in statement.names
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'peftprune.scoring' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value
