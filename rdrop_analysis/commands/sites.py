"""`rdrop-analyze sites CHECKPOINT`: every place in the forward pass that draws randomness."""

from __future__ import annotations

from pathlib import Path

import click

from rdrop_analysis.commands.options import factory, model_and_data, trust, verbosity


@click.command()
@click.argument("checkpoint", metavar="CHECKPOINT", type=click.Path(path_type=Path))
@model_and_data
@trust
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@verbosity
@click.pass_context
def sites(
    ctx: click.Context,
    /,
    checkpoint: Path,
    model: str | None,
    data: str | None,
    trust_code: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Audit the dropout of a checkpoint: every site with its module path, kind, rate and mask shape for one example.

    Sites are found by running the model on a few examples, so that functional dropout, attention
    and LSTM dropout are seen as well. The table says of each whether it draws in eval mode, and
    whether tools that switch nn.Dropout modules on reach it, for which their recipe is run.
    Repeated layers share a row; -v shows every site. A Hugging Face directory needs no --data.
    """
    from rdrop_analysis.config import fill_from_files
    from rdrop_analysis.inspection import find_checkpoint_sites
    from rdrop_analysis.terminal import show_sites

    named = {"model": model, "data": data}
    named = fill_from_files(ctx, named, [checkpoint], trust_code=trust_code, ignore_others=True)
    audit = find_checkpoint_sites(checkpoint, factory(named["model"]), named["data"], trust_code=trust_code)
    if as_json:
        click.echo(audit.to_json())
    elif not quiet:
        show_sites(audit, every=ctx.meta["verbose"])
