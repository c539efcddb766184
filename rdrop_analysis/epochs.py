"""The training loop: epochs of R-Drop, or of ordinary training to compare with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from rdrop_analysis.calling import call
from rdrop_analysis.data.examples import Data, map_tensors
from rdrop_analysis.errors import UsageError
from rdrop_analysis.losses import RDropLoss, RDropTerms, concatenated_forward
from rdrop_analysis.recipes import Recipe


@dataclass(frozen=True)
class Epoch:
    """One epoch, counted from 1: means of the loss and of its terms over batches, weighted by their examples.

    loss = fit + alpha * consistency; without R-Drop there is one pass, and `consistency` is None.
    """

    number: int
    loss: float
    fit: float
    consistency: float | None


def run_epochs(model: nn.Module, data: Data, recipe: Recipe, criterion: RDropLoss | None, seed: int) -> Iterator[Epoch]:
    """Train with Adam, and yield a record after each epoch; the model is then in training mode.

    Without a criterion each example takes one pass and its cross-entropy is the loss. The order of the examples
    follows from the seed alone; dropout draws from the global generator.

    Raises `UsageError` if the loss becomes infinite or NaN.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
    generator = torch.Generator().manual_seed(seed)
    for number in range(1, recipe.epochs + 1):
        model.train()
        sums = [0.0, 0.0, 0.0]
        for rows in torch.randperm(data.n_examples, generator=generator).split(recipe.batch_size):
            terms = _step(model, optimizer, data, rows, criterion)
            sums = [total + len(rows) * term.item() for total, term in zip(sums, terms, strict=True)]
        loss, fit, consistency = (total / data.n_examples for total in sums)
        if not math.isfinite(loss):
            raise UsageError(f"the loss is {loss} in epoch {number}: lower the learning rate or alpha")
        yield Epoch(number, loss, fit, consistency if criterion else None)


def accuracy(model: nn.Module, data: Data, batch_size: int = 1000) -> float:
    """Return the fraction of examples whose most probable class, with dropout off, is the label."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        right = sum(
            int((call(model, batch.inputs).argmax(dim=-1) == batch.labels).sum()) for batch in data.batches(batch_size)
        )
    model.train(was_training)
    return right / data.n_examples


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: Data, rows: Tensor, criterion: RDropLoss | None
) -> RDropTerms:
    """Take one step on some rows of the data, which are in one piece."""
    (piece,) = data.pieces
    assert piece.labels is not None  # noqa: S101  # the recipes' data all have labels; for the type checker
    inputs, labels = map_tensors(lambda tensor: tensor[rows], piece.inputs), piece.labels[rows]
    if criterion is None:
        loss = functional.cross_entropy(call(model, inputs), labels)
        terms = RDropTerms(loss, loss, torch.zeros(()))
    else:
        terms = criterion.terms(concatenated_forward(model, inputs), labels)
    optimizer.zero_grad()
    terms.loss.backward()
    optimizer.step()
    return terms
