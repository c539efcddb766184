"""`rdrop-analyze report results.json`: draw figures and page again from saved results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rdrop_analysis.commands.options import FORMAT_HELP, NameList, delivery, unit_shown, verbosity
from rdrop_analysis.files import FORMATS


@click.command()
@click.argument("results", metavar="RESULTS", type=click.Path(path_type=Path))
@click.option("--output", metavar="DIR", type=click.Path(file_okay=False, path_type=Path), help="Default: beside it.")
@click.option("--format", "formats", type=NameList(FORMATS), default="html,png", show_default=True, help=FORMAT_HELP)
@unit_shown(None, "the unit of the run")
@delivery
@verbosity
@click.pass_context
def report(ctx: click.Context, /, results: Path, output: Path | None, unit: str | None, **given: Any) -> None:
    """Write report and figures again from a results.json (or the directory it is in), without any model.

    With --fail-if, gates are tried on what was measured; without json among the formats results.json
    stays as it is.
    """
    from dataclasses import replace

    from rdrop_analysis.commands.delivery import Delivery
    from rdrop_analysis.results import load_results

    loaded = load_results(results)
    if unit is not None:
        loaded = replace(loaded, record=replace(loaded.record, config={**loaded.record.config, "unit": unit}))
    given["output"] = output or (results if results.is_dir() else results.parent)
    destination = Delivery.taken_from(given)
    destination.check(None)
    code = destination.deliver(loaded)
    ctx.exit(code if destination.gates else 0)
