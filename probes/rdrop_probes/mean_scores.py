"""What means of sub-models are scored by: the eval model, single sub-models and the mean of some, against the labels.

One class a family of outputs; :mod:`rdrop_probes.mean_models` forms the groups.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import ClassVar

import torch
from torch import Tensor

from rdrop_probes.block_sums import BlockSums, Totals
from rdrop_probes.distributions import EvalBatch, Term
from rdrop_probes.divergences import brier, hits, nll
from rdrop_probes.regression import mean_squared_error, squared_error
from rdrop_probes.terms import (
    brier_term,
    confidence,
    correct,
    log_likelihood,
    logit_shift,
    negative_log_likelihood,
    probability,
    vote,
)


@dataclass(frozen=True)
class Predicted:
    """The highest probability under each of some models and its class, `confidence` and `prediction` [J, P]."""

    confidence: Tensor
    prediction: Tensor

    @classmethod
    def together(cls, parts: Sequence[Predicted | None]) -> Predicted | None:
        """The models of all parts; None where nothing is known of one."""
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        return cls(torch.cat([part.confidence for part in known]), torch.cat([part.prediction for part in known]))


Scored = tuple[Tensor, Predicted | None]
"""Scores [S, P] of a model, and what it predicts where that is a class."""


class Scoring(ABC):
    """Scores of one batch's models.

    Class attributes:
        units: unit by name of the scores, in their order. terms: what has to be summed over sub-models.
    """

    units: ClassVar[dict[str, str]]
    terms: ClassVar[tuple[Term, ...]]

    def __init__(self, batch: EvalBatch, sums: BlockSums) -> None:
        self._batch = batch
        self._sums = sums
        self._sizes: list[int] = sums.sizes.tolist()

    @abstractmethod
    def own(self) -> Scored:
        """Of the eval model."""

    @abstractmethod
    def single(self, totals: Totals) -> Tensor:
        """Mean scores of single sub-models [S, P], or [G, S, P] from sums with a leading dimension G."""

    @abstractmethod
    def singles(self) -> Predicted | None:
        """What each of the sub-models predicts."""

    @abstractmethod
    def mean(self, blocks: Sequence[int]) -> Scored:
        """Of the mean of the sub-models of some blocks."""

    def _mean_of(self, term: Term, blocks: Sequence[int]) -> Tensor:
        """Mean of a term over the sub-models of some blocks [P, ...], in double precision."""
        parts = self._sums.block_sums(term, self._sums.blocks)
        total = parts[blocks[0]].double()
        for block in blocks[1:]:
            total = total + parts[block]
        return total / self._count(blocks)

    def _count(self, blocks: Sequence[int]) -> int:
        return sum(self._sizes[block] for block in blocks)


class CategoricalScoring(Scoring):
    """NLL (nats), hits and Brier score of the mean of probabilities."""

    units: ClassVar = {"nll": "nats", "accuracy": "", "brier": ""}
    terms = (probability, brier_term, vote, confidence, negative_log_likelihood, correct, log_likelihood)

    def own(self) -> Scored:
        """Of the eval model."""
        return self._scored(nll(self._batch.log_p, self._batch.labels), self._batch.p)

    def single(self, totals: Totals) -> Tensor:
        """Mean scores of single sub-models."""
        return torch.stack([totals.mean(term) for term in (negative_log_likelihood, correct, brier_term)], -2)

    def singles(self) -> Predicted:
        """What each of the sub-models predicts."""
        return Predicted(self._sums.kept(confidence), self._sums.kept(vote))

    def mean(self, blocks: Sequence[int]) -> Scored:
        """Of the mean of probabilities; its NLL from logarithms, so that it is finite where theirs are."""
        likelihoods = self._sums.block_sums(log_likelihood, self._sums.blocks)[list(blocks)]
        loss = log(self._count(blocks)) - likelihoods.logsumexp(0)
        return self._scored(loss, self._mean_of(probability, blocks))

    def _scored(self, loss: Tensor, p: Tensor) -> Scored:
        highest, labels = p.max(-1), self._batch.labels
        scores = torch.stack([loss, hits(p, labels), brier(p, labels)])
        return scores, Predicted(highest.values[None], highest.indices[None])


class GaussianScoring(Scoring):
    """Squared error of the mean of outputs, averaged over outputs, in the squared unit of the targets.

    The mean of f_k is f_0 plus that of f_k - f_0. A row of which no target is known is NaN.
    """

    units: ClassVar = {"mse": "target²"}
    terms = (logit_shift, squared_error)

    def own(self) -> Scored:
        """Of the eval model."""
        return self._scored(self._batch.scores)

    def single(self, totals: Totals) -> Tensor:
        """Mean error of single sub-models."""
        return totals.mean(squared_error).unsqueeze(-2)

    def singles(self) -> None:
        """No classes."""

    def mean(self, blocks: Sequence[int]) -> Scored:
        """Of the mean of outputs."""
        return self._scored(self._batch.scores + self._mean_of(logit_shift, blocks))

    def _scored(self, outputs: Tensor) -> Scored:
        return mean_squared_error(self._batch, outputs.double())[None], None
