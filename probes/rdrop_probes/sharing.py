"""One differentiable pass and one set of backward passes for every probe that wants gradients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rdrop_probes.batch import Batch
from rdrop_probes.families import Family
from rdrop_probes.masks import GRADIENT_STREAM, stream
from rdrop_probes.neutral import gradient_pass
from rdrop_probes.probe import Probe
from rdrop_probes.sites import Forward, SitePlan
from rdrop_probes.state import flags

GRADIENT_EXAMPLES = 64  # at most in a differentiable pass: rows of the Jacobian are kept for all its examples
GRADIENT_SHARE = 4  # part of a batch in such a pass: batches are cut to what a pass without gradients can hold


def share_gradients(
    model: nn.Module,
    forward: Forward,
    plan: SitePlan,
    batch: Batch,
    takers: Sequence[Probe],
    *,
    item: int,
    seed: int,
    family: Family,
) -> None:
    """Give the gradients of one batch (work item `item`) to the probes that take them."""
    want_sites = any(p.needs_site_gradients for p in takers)
    size = min(GRADIENT_EXAMPLES, -(-batch.n // GRADIENT_SHARE))
    for offset in range(0, batch.n, size):
        rows = slice(offset, min(offset + size, batch.n))
        part = batch.part(rows)
        gradients = gradient_pass(
            model,
            partial(_rows, forward, part),
            plan,
            part.inputs,
            part.n,
            owners=part.owners,
            family=family,
            generator=stream(seed, item, GRADIENT_STREAM + offset, torch.device("cpu")),
            want_sites=want_sites,
        )
        folds = [fold for p in takers if (fold := p.fold(gradients)) is not None]
        with flags(model, plan.eval_modules):  # checkpointed parts run again in the backward passes
            for row in gradients.rows() if folds else ():
                for fold in folds:
                    fold.add(row)
            for fold in folds:
                fold.close()


def _rows(forward: Forward, batch: Batch, inputs: Any) -> Tensor:
    return batch.rows(forward(inputs))
