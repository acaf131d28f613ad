"""The terminal that all tables are printed on."""

import shutil
import sys

from rich.console import Console

PLAIN_WIDTH = 150
"""Width where stdout is a file or a pipe, wide enough for all numbers."""


def console(width: int | None = None) -> Console:
    """Returns a console of a width, by default the terminal's."""
    own = shutil.get_terminal_size().columns if sys.stdout.isatty() else PLAIN_WIDTH
    return Console(width=width or own, markup=False, highlight=False)
