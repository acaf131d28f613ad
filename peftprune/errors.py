"""The errors that peftprune raises on purpose.

Every message names the field, the value that was given and what to do about it, so that it can be shown to a user
without a traceback.
"""

from __future__ import annotations


class PeftPruneError(Exception):
    """Base of all errors raised on purpose. `exit_code` is what the command line returns for it."""

    exit_code = 1


class UsageError(PeftPruneError, ValueError):
    """The request itself is wrong; nothing was computed."""

    exit_code = 2

    @classmethod
    def of(cls, field: str, value: object, problem: str, cure: str) -> UsageError:
        """Build the message that every field-related error uses: field, value, problem, cure."""
        return cls(f"{field}: {value!r} {problem}. {cure}")


class RunError(PeftPruneError, RuntimeError):
    """The request was fine, but running it failed."""

    exit_code = 1
