"""The errors a user can cause, each with the exit code of the command line.

A message is one line that says what is wrong and what to do. The codes: 1 a gate failed, 2 usage, 3 refused
as unsafe, 4 cannot read or write, 70 an unexpected error (a fault of ours), 130 interrupted.
"""

from __future__ import annotations

UNEXPECTED = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 130


class RDropAnalysisError(Exception):
    """Base of every error that is reported as one line; `exit_code` is what the command line returns."""

    exit_code = 4


class UsageError(RDropAnalysisError):
    """The arguments do not make sense together or name something that does not exist."""

    exit_code = 2


class UnsafeFileError(RDropAnalysisError):
    """Reading the file would run code that came with it."""

    exit_code = 3


class CheckpointError(RDropAnalysisError):
    """The checkpoint cannot be read, or does not fit the model."""


class DataError(RDropAnalysisError):
    """The data cannot be read, or the model or the task cannot use it."""


class UnexpectedError(RDropAnalysisError):
    """A fault of ours, which is no verdict on any checkpoint."""

    exit_code = UNEXPECTED
