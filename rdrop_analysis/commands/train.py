"""`rdrop-analyze train TASK`: make a checkpoint with or without R-Drop."""

from __future__ import annotations

from pathlib import Path

import click

from rdrop_analysis.commands.options import verbosity
from rdrop_analysis.recipes import RECIPES


@click.command()
@click.argument("task", type=click.Choice(tuple(RECIPES)))
@click.option("--alpha", type=click.FloatRange(min=0), default=1.0, show_default=True, help="Weight of the KL.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--epochs", type=click.IntRange(min=1), help="Default: the task's own.")
@click.option("--output", metavar="FILE", type=click.Path(path_type=Path), help="Default: TASK-alphaA-seedS.pt")
@verbosity
def train(
    task: str,
    alpha: float,
    seed: int,
    epochs: int | None = None,
    output: Path | None = None,
    quiet: bool = False,
) -> None:
    """Train a small model on real data and write a self-describing checkpoint.

    With --alpha 0 this is ordinary training with dropout; above 0 each example passes twice and
    alpha times the symmetric KL between the two outputs is added (R-Drop, Liang et al. 2021).
    """
    from rdrop_analysis.files import check_writable
    from rdrop_analysis.terminal import training_bar
    from rdrop_analysis.training import train as run

    path = output or Path(f"{task}-alpha{alpha:g}-seed{seed}.pt")
    check_writable(path.parent)
    total = epochs or RECIPES[task].epochs
    with training_bar(f"{task}, alpha {alpha:g}", total, quiet=quiet) as advance:
        trained = run(task, alpha=alpha, seed=seed, epochs=epochs, output=path, progress=lambda e: advance(e.number))
    if not quiet:
        click.echo(f"wrote {path}: test accuracy {trained.settings['test_accuracy']:.4f}")
