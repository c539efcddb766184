"""Train a small model with R-Drop, or without it as the baseline to compare with."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rdrop_analysis.checkpoints import Scalar, save_checkpoint
from rdrop_analysis.data.builtin import BUILT_IN
from rdrop_analysis.data.examples import Data
from rdrop_analysis.epochs import Epoch, accuracy, run_epochs
from rdrop_analysis.errors import UsageError
from rdrop_analysis.losses import RDropLoss
from rdrop_analysis.models import build
from rdrop_analysis.recipes import Recipe, find_recipe


@dataclass(frozen=True)
class TrainingRun:
    """A trained model in eval mode, what was recorded, and the file it was saved in, if any.

    `settings` are the settings and the outcome as they stand in the checkpoint.
    """

    model: nn.Module
    history: tuple[Epoch, ...]
    settings: dict[str, Scalar]
    path: Path | None = None


def train(
    task: str,
    *,
    alpha: float = 1.0,
    seed: int = 0,
    epochs: int | None = None,
    output: str | Path | None = None,
    convention: str = "paper",
    dropout: float | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    every_epoch: bool = False,
    progress: Callable[[Epoch], None] | None = None,
) -> TrainingRun:
    """Train a model with Adam on one CPU thread; equal arguments on equal machines give equal bits.

    Args:
        task: a name in `rdrop_analysis.recipes.RECIPES`, whose values stand in for whatever is None.
        alpha: the weight of R-Drop's consistency term. 0 trains the ordinary way, one pass an example and plain
            cross-entropy: the baseline, for the same number of epochs.
        seed: what the initial weights, the order of the examples and the dropout masks follow from. The global
            random state is left as it was.
        epochs: how often each example is seen (with R-Drop, in two passes each time).
        output: the file to save a self-describing checkpoint in.
        convention: how the loss is normalised, a name in `rdrop_analysis.conventions.CONVENTIONS`.
        dropout: the drop probability, in [0, 1).
        learning_rate: Adam's step size.
        batch_size: examples a step.
        limit: train on the first so many examples.
        every_epoch: also save `NAME-epoch-N.pt` beside the output after each epoch.
        progress: is called after each epoch.

    Raises:
        UsageError: the task is unknown, a setting has no meaning, or the loss became infinite or NaN.
        DataError: the data are not there.
    """
    recipe = _overridden(
        find_recipe(task),
        dropout,
        {"epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size, "limit": limit},
    )
    criterion = _criterion(alpha, convention)
    if every_epoch and output is None:
        raise UsageError("saving every epoch needs an output file")
    if not 0 <= seed < 2**63:
        raise UsageError(f"the seed must be at least 0 and below 2**63, not {seed}")
    plan = _Plan(task, recipe, criterion, alpha, seed)
    data, test = BUILT_IN[recipe.train_data](), BUILT_IN[recipe.data]()
    data = data if recipe.limit is None else data.head(recipe.limit)
    history: list[Epoch] = []
    with _seeded(seed), _one_thread():
        model = build(recipe.architecture, recipe.arguments)
        for epoch in run_epochs(model, data, recipe, criterion, seed):
            history.append(epoch)
            if every_epoch and output is not None:
                _save(_epoch_path(Path(output), epoch), model, plan, _settings(plan, history, model, test))
            if progress is not None:
                progress(epoch)
    settings = _settings(plan, history, model, test)
    path = None if output is None else _save(Path(output), model, plan, settings)
    return TrainingRun(model.eval(), tuple(history), settings, path)


@dataclass(frozen=True)
class _Plan:
    """What a run does; `criterion` is None for ordinary training."""

    task: str
    recipe: Recipe
    criterion: RDropLoss | None
    alpha: float
    seed: int


def _overridden(recipe: Recipe, dropout: float | None, settings: Mapping[str, Any]) -> Recipe:
    """Return the recipe with the settings that are given, all of which must be positive."""
    given = {name: value for name, value in settings.items() if value is not None}
    for name, value in given.items():
        if not 0 < value < math.inf:
            raise UsageError(f"{name} must be above 0, not {value}")
    if dropout is not None:
        if not 0 <= dropout < 1:
            raise UsageError(f"dropout must be in [0, 1), not {dropout}")
        return dataclasses.replace(recipe, arguments={**recipe.arguments, "dropout": dropout}, **given)
    return dataclasses.replace(recipe, **given)


def _criterion(alpha: float, convention: str) -> RDropLoss | None:
    """Return the loss, or None for ordinary training."""
    try:
        criterion = RDropLoss(alpha, convention=convention)
    except ValueError as problem:
        raise UsageError(str(problem)) from problem
    return criterion if alpha else None


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the CPU's global generator, which initialisation and dropout draw from, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Use one CPU thread for a while.

    Results then do not depend on the number of cores; steps this small gain little from several threads, and take
    five times as long on cores that others use too.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _settings(plan: _Plan, history: list[Epoch], model: nn.Module, test: Data) -> dict[str, Scalar]:
    """Return what the checkpoint says about its training; nothing that differs between equal runs."""
    recipe = plan.recipe
    return {
        "task": plan.task,
        "alpha": float(plan.alpha),
        "convention": plan.criterion.convention if plan.criterion else None,
        "seed": plan.seed,
        "epochs": len(history),
        "dropout": recipe.arguments["dropout"],
        "optimizer": "Adam",
        "learning_rate": recipe.learning_rate,
        "batch_size": recipe.batch_size,
        "limit": recipe.limit,
        "train_loss": history[-1].loss,
        "test_accuracy": accuracy(model, test),
    }


def _save(path: Path, model: nn.Module, plan: _Plan, settings: Mapping[str, Scalar]) -> Path:
    """Save a self-describing checkpoint."""
    recipe = plan.recipe
    return save_checkpoint(
        path,
        model,
        architecture=recipe.architecture,
        arguments=recipe.arguments,
        data=recipe.data,
        training=settings,
    )


def _epoch_path(output: Path, epoch: Epoch) -> Path:
    """Return `NAME-epoch-N.pt` for the output `NAME.pt`."""
    return output.with_stem(f"{output.stem}-epoch-{epoch.number}")
