"""What all commands share: options, errors as one message, JSON instead of text, and exit codes."""

import functools
import inspect
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from typing import Annotated, Any

import typer

from peftprune.errors import PeftPruneError

_option = functools.partial(typer.Option, rich_help_panel="Output")
COMMON = {
    "as_json": Annotated[bool, _option("--json", help="Print JSON and nothing else.")],
    "quiet": Annotated[bool, _option("--quiet", "-q", help="Print errors only.")],
    "verbose": Annotated[bool, _option("--verbose", "-v", help="Log every decision of a method, and warnings.")],
    "debug": Annotated[bool, _option("--debug", help="Show the traceback of errors.")],
}


def with_common(command: Callable[..., dict[str, Any] | None]) -> Callable[..., None]:
    """Adds the options to a command, which prints text and returns the same as plain values.

    The exit code is 2 for an invalid request, 1 for a failed run or where the values `failed` or `problems` hold any,
    and 130 for an interrupt.
    """

    @functools.wraps(command)
    def wrapped(*args: Any, as_json: bool, quiet: bool, verbose: bool, debug: bool, **options: Any) -> None:
        if not (debug or verbose):
            warnings.simplefilter("ignore")
        if verbose:
            logging.basicConfig(format="%(message)s")
            logging.getLogger("peftprune").setLevel(logging.INFO)
        try:
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere) if as_json or quiet else nullcontext():
                values = command(*args, **options) or {}
        except KeyboardInterrupt:
            typer.echo("Stopped. The same command goes on", err=True)
            raise typer.Exit(128 + signal.SIGINT) from None
        except typer.Exit:
            raise
        except Exception as error:
            if debug:
                raise
            known = isinstance(error, PeftPruneError)
            message = str(error) if known else f"{type(error).__name__}: {error} (run again with --debug to see where)"
            typer.echo(f"error: {message}", err=True)
            raise typer.Exit(error.exit_code if isinstance(error, PeftPruneError) else 1) from None
        if as_json:
            sys.stdout.write(json.dumps(values, indent=1, default=str) + "\n")
        if values.get("failed") or values.get("problems"):
            raise typer.Exit(1)

    signature = inspect.signature(command, eval_str=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter(name, keyword, default=False, annotation=kind) for name, kind in COMMON.items()]
    wrapped.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *added])  # type: ignore[attr-defined]
    return wrapped
