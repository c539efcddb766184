"""Keep transformers from talking to the terminal and to servers while it builds a model."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quietly() -> Iterator[None]:
    """Keep what transformers says to itself: what matters of it is in our own messages."""
    try:
        from transformers.utils import logging as its_logging
    except ImportError:  # said where the class is looked up
        yield
        return
    talk: Any = its_logging  # parts of it are unannotated
    verbosity, bars = talk.get_verbosity(), talk.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            talk.set_verbosity(logging.CRITICAL)
            talk.disable_progress_bar()
            yield
        finally:
            talk.set_verbosity(verbosity)
            if bars:
                talk.enable_progress_bar()


@contextmanager
def offline() -> Iterator[None]:
    """Answer no request to a server: a description may name parts that transformers would fetch."""
    try:
        from huggingface_hub import constants
    except ImportError:  # comes with transformers
        yield
        return
    before = constants.HF_HUB_OFFLINE
    try:
        constants.HF_HUB_OFFLINE = True
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
