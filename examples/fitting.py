"""The training loop that the text examples share: R-Drop, or ordinary training for alpha 0."""

import argparse
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from rdrop_analysis import RDropLoss
from rdrop_analysis.losses import concatenated_forward

Batches = Iterable[tuple[dict[str, Tensor], Tensor]]


def fit(model: nn.Module, batches_of: Callable[[int], Batches], n_batches: int, options: argparse.Namespace) -> None:
    """Train with AdamW and a learning rate that falls to 0; `batches_of(epoch)` has `n_batches` of them."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, options.epochs * n_batches)
    criterion = RDropLoss(options.alpha)
    model.train()
    for epoch in range(options.epochs):
        losses = []
        for inputs, labels in batches_of(epoch):
            loss = loss_of(model, criterion, inputs, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1} of {options.epochs}: loss {sum(losses) / len(losses):.4f}", flush=True)


def loss_of(model: nn.Module, criterion: RDropLoss, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Return R-Drop's loss of two passes, or plain cross-entropy of one pass for alpha 0; -100 counts in neither."""
    if criterion.alpha == 0:
        return nn.functional.cross_entropy(model(**inputs).logits.flatten(0, -2), labels.flatten())
    return criterion(concatenated_forward(model, inputs), labels)
