"""Would a temperature help the eval model, or the MC mean: the one of least NLL, and what it changes elsewhere."""

from __future__ import annotations

from types import MappingProxyType
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from rdrop_probes.block_sums import BlockSums
from rdrop_probes.by_example import ByExample
from rdrop_probes.columns import ColumnSet, State, as_floats
from rdrop_probes.distributions import EvalBatch
from rdrop_probes.divergences import hits, nll
from rdrop_probes.probe import Outcome, Probe
from rdrop_probes.sites import SitePlan
from rdrop_probes.temperature_curves import EDGE, FOLDS, HIGHEST, Curves, Piece, inverses, scaled
from rdrop_probes.terms import log_likelihood, probability

FEWEST = 2 * FOLDS  # examples
EVAL, MEAN = "temperature", "temperature_mean"
_MODELS = MappingProxyType({EVAL: "the eval model", MEAN: "the MC mean"})


class TemperatureScaling(Probe):
    """The temperatures T that minimise the NLL of the eval model and of the MC mean (Guo et al. 2017), in nats.

    Of the eval model the logits z are scaled, softmax(z / T); of the mean p of the K passes its logarithm,
    softmax(log p / T): averaging makes a model less confident by itself, and is scaled after (Rahaman and Thiery 2021).

    Each example's NLL is known at 24 temperatures or more (110 for 50,000 classes) from 1/10 to 10, and between them by
    Chebyshev interpolation in log T, to 1e-6. What T changes is measured by cross-fitting: every tenth example (in the
    order of the data) under the temperature of all others. The interval of T is that of an M-estimator, in log T:
    variance = var(s) / (N H^2), s the slope of each example's NLL at T and H their mean curvature; there is none where
    NLL is least at an end of the range. The interval of the change is a little narrow below some 300 examples, of which
    few carry most of it. With masks shared by all examples, intervals of the MC mean are for these very masks. ECE is
    over 15 bins, where each example is one row. No temperature changes a prediction.
    """

    name = "temperature"
    units: ClassVar = {}
    terms = (probability, log_likelihood)
    needs_labels = True

    def __init__(self) -> None:
        super().__init__()
        self.examples = ByExample()
        self._pieces: dict[str, list[Piece]] = {}
        self._stochastic = True

    def start(self, plan: SitePlan, *, shared_masks: bool) -> None:
        """Without dropout the MC mean is the eval model."""
        super().start(plan, shared_masks=shared_masks)
        self._stochastic = plan.stochastic

    def update(self, batch: EvalBatch, sums: BlockSums) -> None:
        """Keep what both models' confidence and NLL are at all temperatures."""
        self._keep(batch, EVAL, batch.scores, batch.log_p)
        if self._stochastic:
            log_mean = _log_mean(batch, sums)
            self._keep(batch, MEAN, log_mean.to(batch.scores.dtype), log_mean)

    def _keep(self, batch: EvalBatch, model: str, scores: Tensor, log_p: Tensor) -> None:
        """Keep each example's NLL, and where it is one row its confidence."""
        confidence, curve = _curves(scores, batch.labels)
        means = self.examples.means(batch, model, torch.cat([nll(log_p, batch.labels)[None], curve]))
        if means is None:
            return
        bins = np.zeros((0, means.values.shape[-1]))
        if batch.owners is None:
            bins = as_floats(torch.cat([hits(log_p, batch.labels)[None], log_p.amax(-1)[None], confidence]))
        weights = None if means.weights is None else as_floats(means.weights)
        self._pieces.setdefault(model, []).append(Piece(as_floats(means.values), bins, weights))

    def merge(self, other: Self) -> None:
        """Append another worker's examples."""
        super().merge(other)
        for model, pieces in other._pieces.items():
            self._pieces.setdefault(model, []).extend(pieces)

    def state(self) -> State:
        """With the curves of the examples."""
        pieces = {
            model: [[piece.nll, piece.bins, piece.weights] for piece in pieces]
            for model, pieces in self._pieces.items()
        }
        return super().state() | {"pieces": pieces}

    def restore(self, state: State) -> None:
        """Take back what :meth:`state` gave."""
        super().restore(state)
        self._pieces = {model: [Piece(*piece) for piece in pieces] for model, pieces in state["pieces"].items()}

    def outcome(self) -> Outcome:
        """The temperature of each model and what it changes; nothing for a few examples."""
        found = Outcome(ColumnSet())
        for model, pieces in self._pieces.items():
            curves = Curves(pieces)
            if curves.known.sum() < FEWEST:
                continue
            if not curves.trusted:
                found.findings[f"{model}_unavailable"] = (
                    f"no temperature of {_MODELS[model]}: its NLL has no smooth curve"
                )
                continue
            place = curves.best(curves.known)
            found.tables[model] = scaled(curves, place)
            if abs(place) > EDGE:
                end = f"{HIGHEST:g}, the highest" if place > 0 else f"{1 / HIGHEST:g}, the lowest"
                text = f"{_MODELS[model]}'s NLL is least at a temperature of {end} that is tried"
                found.findings[f"{model}_at_edge"] = text
        return found


def _log_mean(batch: EvalBatch, sums: BlockSums) -> Tensor:
    """Logarithm of the mean probability of each class [P, C]; the label's from logarithms, however small it is."""
    if batch.labels is None:
        raise ValueError("a temperature needs labels")
    total = sums.total()
    log_p = total.mean(probability).log()
    index = batch.labels.clamp(min=0).unsqueeze(-1)
    likelihood = torch.where(batch.labels < 0, log_p.gather(-1, index).squeeze(-1), total.mean(log_likelihood))
    return log_p.scatter(-1, index, likelihood.unsqueeze(-1))


def _curves(scores: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logarithm of the highest probability, and NLL, of scores [P, C] at all temperatures, both [nodes, P]."""
    betas = inverses(scores.shape[-1])
    shifted = scores - scores.amax(-1, keepdim=True)
    loss = nll(shifted.double(), labels)  # of the label's logit below the highest, without a normaliser
    normalisers = torch.stack([(shifted * beta).exp_().sum(-1, dtype=torch.float64).log_() for beta in betas])
    return -normalisers, normalisers + loss.new_tensor(betas)[:, None] * loss
