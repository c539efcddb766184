"""The output directory: every file whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rdrop_analysis.errors import DataError
from rdrop_probes.records import RunRecord

if TYPE_CHECKING:
    import pandas as pd


def check_writable(directory: Path) -> None:
    """Make the directory and see that files can be made in it, before any work is done for it.

    Raises:
        DataError: it cannot be made or written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=directory, prefix=".rdrop-"):
            pass
    except OSError as problem:
        raise DataError(f"cannot write to {directory}: {problem.strerror}; name another with --output") from problem


def write_figures(record: RunRecord, per_example: pd.DataFrame | None, directory: Path, formats: Sequence[str]) -> None:
    """Draw into a folder beside, then move each figure into `directory`.

    Raises:
        DataError: it cannot be written.
    """
    from rdrop_reports.figures import save_figures

    try:
        directory.mkdir(exist_ok=True)
        with TemporaryDirectory(dir=directory.parent, prefix=".rdrop-") as scratch:
            for drawn in save_figures(record, per_example, Path(scratch), formats=tuple(formats)):
                drawn.replace(directory / drawn.name)
    except OSError as problem:
        raise DataError(f"cannot write figures to {directory}: {problem.strerror}") from problem
