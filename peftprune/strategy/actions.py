"""What a method declares of its decisions. `peftprune methods` shows it, and the contract tests verify it."""

from typing import Literal

Decides = Literal["at the start", "before training", "once", "repeatedly", "at the end"]
"""When a method decides.

"at the start": its initial ranks differ between sites. "before training": after a pass without training. "once": at one
step. "repeatedly": at several steps. "at the end": after the last step.
"""

Action = Literal[
    "cut ranks",
    "redistribute ranks",
    "grow ranks",
    "remove sites",
    "share adapters",
    "zero entries",
    "set values",
    "restart adapters",
]
"""What the plans of a method do, apart from growth that only spends the last units of a budget.

"redistribute ranks": ranks that were equal end more than 1 apart. "set values": gates or factors get new values.
"restart adapters": they are initialised anew.
"""
