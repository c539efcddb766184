"""The trace of the Fisher information in the parameters, example by example: mean squared gradients of log p(y)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from rdrop_probes.batch import Batch
from rdrop_probes.columns import State
from rdrop_probes.directions import sampled_scores, scores, sphere, units
from rdrop_probes.families import Gaussian
from rdrop_probes.gradients import SAMPLED_CLASSES, GradientPass, squares
from rdrop_probes.output_fisher import trainable
from rdrop_probes.sampling import RunningMean, Sampled
from rdrop_probes.selection import Case


def traces(case: Case) -> State:
    """E_{y~p} |grad_theta log p(y)|^2 of each example: the mean over its rows, with the variance of sampling."""
    found, counts, sampled = list[Sampled](), list[int](), ""
    parameters = trainable(case.model)
    for index, example in zip(case.selection.indices, case.selection.parts(1), strict=True):
        gradients = _pass(case, example, index)
        counts.append(len(gradients.logits))
        sampled = sampled or gradients.sampled
        found.append(_trace(gradients, parameters))
        case.stage("Fisher trace", len(found), len(case.selection.indices))
    rows = np.asarray(counts, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # an example of which no row counts has no value
        values = np.asarray([float(one.values) for one in found]) / rows
        variance = np.asarray([float(one.variance) for one in found]) / rows**2
    return {
        "values": values,
        "variance": variance,
        "weights": rows if any(example.places is not None for example in case.selection.batches) else None,
        "sampled": sampled,
    }


def _pass(case: Case, example: Batch, index: int) -> GradientPass:
    """The differentiable pass over one example."""
    with torch.enable_grad():
        rows = example.rows(case.forward(example.inputs))
    return GradientPass(rows, None, {}, {}, 1, index, example.owners, case.family, case.seed)


def _trace(gradients: GradientPass, parameters: list[nn.Parameter]) -> Sampled:
    """The sum over the rows of one example."""
    mean = RunningMean()
    for direction, weight in _directions(gradients):
        pulled = torch.autograd.grad(gradients.logits, parameters, direction, retain_graph=True, allow_unused=True)
        total = sum(squares(g.flatten()) for g in pulled if g is not None)
        mean.add((weight * torch.as_tensor(total, dtype=torch.float64)).reshape(1))
    return mean.total()


def _directions(gradients: GradientPass) -> Iterator[tuple[Tensor, float]]:
    """Directions [P, C] whose weighted squares, pulled back, add up to the trace in expectation."""
    logits, family = gradients.logits.detach(), gradients.family
    if gradients.sampled:
        numbers = gradients.numbers("classes")
        if isinstance(family, Gaussian):
            drawn, each = sphere(logits, numbers, SAMPLED_CLASSES, 1), 1 / SAMPLED_CLASSES / family.variance
        else:
            drawn, each = sampled_scores(gradients.p, logits, numbers, SAMPLED_CLASSES, 1), 1 / SAMPLED_CLASSES
        yield from ((direction[0], each) for direction in drawn)
    elif isinstance(family, Gaussian):
        yield from ((direction, 1 / family.variance) for direction in units(logits, range(logits.shape[1])))
    else:
        exact = scores(gradients.p, range(logits.shape[1])).to(logits.dtype)
        yield from ((direction, float(p)) for direction, p in zip(exact, gradients.p[0], strict=True))
