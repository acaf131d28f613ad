"""The errors that peftprune raises on purpose.

Every message names the field, its value, the problem and the cure, so that it can be shown without a traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class PeftPruneError(Exception):
    """Base class of the errors raised on purpose. The command line exits with `exit_code`."""

    exit_code = 1


class UsageError(PeftPruneError, ValueError):
    """The request is invalid; nothing was computed."""

    exit_code = 2

    @classmethod
    def of(cls, field: str, value: object, problem: str, cure: str) -> UsageError:
        """Builds the message from field, value, problem and cure."""
        try:
            shown = repr(value)
        except ValueError:  # Python writes no whole number of over 4,300 digits
            shown = "the number"
        return cls(f"{field}: {shown} {problem}. {cure}")


def raise_all(errors: Iterable[str]) -> None:
    """Raises one UsageError with all of these messages, each on a line of its own; nothing where there are none."""
    if lines := list(dict.fromkeys(errors)):
        raise UsageError("\n".join(lines))


class RunError(PeftPruneError, RuntimeError):
    """The request is valid, but running it failed."""

    exit_code = 1


class DivergedError(RunError):
    """Training ended with values that are not finite. The same arm would diverge again."""


def closest(name: object, known: Iterable[str]) -> str | None:
    """Returns the known name that is spelled most like `name`; None where none is close."""
    return next(iter(get_close_matches(str(name), list(known), n=1)), None)


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Returns "Did you mean 'x'? " for the closest known name; "" where none is close."""
    close = closest(name, known)
    return "" if close is None else f"Did you mean {close!r}? "
