"""Silence the libraries below while a block runs."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from peftprune.strategy.lazy import transformers


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers' log below errors and its progress bars."""
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silences what loading a model prints: transformers, warnings and the hub's log."""
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    with quiet_transformers(), warnings.catch_warnings(action="ignore"):
        hub.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            hub.setLevel(level)
