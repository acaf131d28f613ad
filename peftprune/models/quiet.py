"""Silence of the libraries below, for as long as a block runs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers' log below errors and its progress bars."""
    from transformers.utils import logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silences everything that loading a model writes: also warnings and the hub's log."""
    hub_logger = logging.getLogger("huggingface_hub")
    hub_level = hub_logger.level
    with quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hub_logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            hub_logger.setLevel(hub_level)
