"""`rdrop-analyze inspect CHECKPOINT`: what is in a file, without building a model."""

from __future__ import annotations

from pathlib import Path

import click

from rdrop_analysis.commands.options import verbosity


@click.command()
@click.argument("checkpoint", metavar="CHECKPOINT", type=click.Path(path_type=Path))
@verbosity
def inspect(checkpoint: Path, quiet: bool) -> None:
    """Show what a checkpoint holds: format, architecture, training settings, tensors. Never runs code from it.

    CHECKPOINT is a file, an index of shards, or a Hugging Face directory.
    """
    from rdrop_analysis.loading.contents import inspect_checkpoint
    from rdrop_analysis.terminal import show_contents

    contents = inspect_checkpoint(checkpoint)
    if not quiet:
        show_contents(contents)
    if contents.problem is not None:
        raise contents.problem
