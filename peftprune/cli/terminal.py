"""The terminal that all tables are printed on."""

from __future__ import annotations

import shutil
import sys

from rich.console import Console

PLAIN_WIDTH = 150
"""Width where stdout is a file or a pipe, wide enough for all numbers."""


def console() -> Console:
    """Returns a console as wide as the terminal."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else PLAIN_WIDTH
    return Console(width=width, markup=False, highlight=False)
