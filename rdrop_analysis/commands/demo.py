"""`rdrop-analyze demo`: train on real data with and without R-Drop, and analyse what came out."""

from __future__ import annotations

from pathlib import Path

import click

from rdrop_analysis.commands.options import output, verbosity

ALPHAS = (0.0, 1.0, 5.0)


@click.command()
@output("rdrop-demo")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@verbosity
@click.pass_context
def demo(ctx: click.Context, output: Path, seed: int, quiet: bool) -> None:
    """Train three small models on scikit-learn's digits and compare them.

    alpha 0 is the baseline, 1 and 5 are R-Drop. Takes less than a minute; checkpoints and report are
    left in the output directory.
    """
    from rdrop_analysis.commands.analyze import analyze
    from rdrop_analysis.commands.train import train

    checkpoints = []
    for alpha in ALPHAS:
        path = output / f"digits-alpha{alpha:g}.pt"
        ctx.invoke(train, task="digits", alpha=alpha, seed=seed, output=path, quiet=quiet)
        checkpoints.append(path)
    arguments = [*map(str, checkpoints), "--output", str(output), "--seed", str(seed), *(["--quiet"] if quiet else [])]
    analyze.main(arguments, prog_name="rdrop-analyze", standalone_mode=False, parent=ctx)
