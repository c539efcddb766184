"""`rdrop-analyze report results.json`: draw figures and page again from saved results."""

from __future__ import annotations

from pathlib import Path

import click

from rdrop_analysis.commands.options import NameList, verbosity
from rdrop_analysis.files import FORMATS


@click.command()
@click.argument("results", metavar="RESULTS", type=click.Path(path_type=Path))
@click.option("--output", metavar="DIR", type=click.Path(file_okay=False, path_type=Path), help="Default: beside it.")
@click.option(
    "--format", "formats", type=NameList(FORMATS), default="html,png", show_default=True, help="What to write."
)
@click.option("--unit", type=click.Choice(["nats", "bits"]), help="Default: the unit of the run.")
@verbosity
def report(results: Path, output: Path | None, formats: list[str], unit: str | None, quiet: bool) -> None:
    """Write report and figures again from a results.json (or the directory it is in), without any model."""
    from dataclasses import replace

    from rdrop_analysis.results import load_results
    from rdrop_analysis.terminal import show

    loaded = load_results(results)
    if unit is not None:
        loaded = replace(loaded, record=replace(loaded.record, config={**loaded.record.config, "unit": unit}))
    directory = output or (results if results.is_dir() else results.parent)
    loaded.save(directory, formats)
    show(loaded, directory, formats, quiet=quiet)
