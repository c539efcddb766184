"""`rdrop-analyze sites CHECKPOINT`: every place in the forward pass that draws randomness."""

from __future__ import annotations

from pathlib import Path

import click

from rdrop_analysis.commands.options import factory, model_and_data, verbosity


@click.command()
@click.argument("checkpoint", metavar="CHECKPOINT", type=click.Path(path_type=Path))
@model_and_data
@click.option("--trust-code", is_flag=True, help="Run factories that an rdrop.toml beside the checkpoint names.")
@verbosity
@click.pass_context
def sites(
    ctx: click.Context, /, checkpoint: Path, model: str | None, data: str | None, trust_code: bool, quiet: bool
) -> None:
    """List every dropout site: module path, kind, rate, mask shape for one example, whether it fires in eval mode.

    Sites are found by running the model on a few examples, so that functional dropout, attention
    and LSTM dropout are seen as well.
    """
    from rdrop_analysis.config import fill_from_files
    from rdrop_analysis.inspection import find_checkpoint_sites
    from rdrop_analysis.terminal import show_sites

    named = {"model": model, "data": data}
    named = fill_from_files(ctx, named, [checkpoint], trust_code=trust_code, ignore_others=True)
    found = find_checkpoint_sites(checkpoint, factory(named["model"]), named["data"])
    if not quiet:
        show_sites(found)
