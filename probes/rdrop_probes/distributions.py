"""What an eval model and its sub-models say of some rows: everything that terms are made of, computed once for all.

Sub-models are held against the eval model in logits, z_k - z_0, before anything else is computed: then single precision
keeps what a difference of logarithms would lose, and is enough where there are many classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rdrop_probes.divergences import log_of_sum, square_norm, zero_times
from rdrop_probes.families import CATEGORICAL, Family

MANY_CLASSES = 2048  # beyond which sub-models are summed in single precision


@dataclass(frozen=True)
class EvalBatch:
    """One batch, or some of its rows, as its eval model sees it.

    A row is what one divergence is taken of: an example (P = N), or a token or label of one.

    Attributes:
        start: index of the batch's first example.
        inputs: what the model was called with.
        logits: [P, C], of any precision.
        labels: [P] of class indices, -100 where to be ignored; None without labels. Of a Gaussian: [P, D] targets.
        owners: [P], the example in 0..n-1 that each row belongs to; None where each row is an example.
        n: number of examples N; None where each row is one. last: whether no rows of the same batch follow.
        family: what a row's scores stand for.
        ruled_out: False if it is known that no logit is minus infinity.
    """

    start: int
    inputs: Any
    logits: Tensor
    labels: Tensor | None = None
    owners: Tensor | None = None
    n: int | None = None
    last: bool = True
    family: Family = CATEGORICAL
    ruled_out: bool = True

    @cached_property
    def scores(self) -> Tensor:
        """The logits [P, C] in the precision that sub-models are summed in."""
        return self.logits.to(working_type(self.logits))

    @cached_property
    def normaliser(self) -> Tensor:
        """Logarithm of the sum of exp(logits) [P], in double precision."""
        return log_of_sum(self.scores)[0]

    @cached_property
    def log_p(self) -> Tensor:
        """Log-probabilities [P, C] in double precision (the outputs themselves for a Gaussian)."""
        return self.family.normalised(self.logits.double())

    @cached_property
    def p(self) -> Tensor:
        """Probabilities [P, C] in double precision."""
        return self.log_p.exp()

    @cached_property
    def reference(self) -> Tensor:
        """What log-probabilities are centred by [P, C]: log p_0, and 0 for a class that is ruled out."""
        return torch.where(self.impossible, 0.0, self.log_p) if self.ruled_out else self.log_p

    @cached_property
    def impossible(self) -> Tensor:
        """Which classes are ruled out [P, C]."""
        return torch.isneginf(self.logits)

    @cached_property
    def prediction(self) -> Tensor:
        """Most probable class [P], or a Gaussian's mean."""
        return self.family.prediction(self.logits)


class Distributions:
    """What k sub-models say of the rows of `batch`; each property is computed when first asked for, and kept.

    Args:
        batch: the rows as the eval model sees them.
        logits: [k, P, C] of the sub-models.
        exact: follow infinities through, in double precision. Without, a class that is ruled out (a logit of minus
            infinity) by some of the models and not by all of them leaves NaN or infinity in `check`.
    """

    def __init__(self, batch: EvalBatch, logits: Tensor, *, exact: bool = True) -> None:
        self.batch = batch
        self.exact = exact
        self.logits = logits.double() if exact else logits.to(working_type(logits))

    @property
    def k(self) -> int:
        """How many sub-models."""
        return self.logits.shape[0]

    @cached_property
    def highest(self) -> Tensor:
        """The highest logit [k, P]."""
        return self.logits.amax(-1)

    @cached_property
    def prediction(self) -> Tensor:
        """Most probable class [k, P]."""
        return self.logits.max(-1).indices  # faster than argmax

    @cached_property
    def _softmax(self) -> tuple[Tensor, Tensor]:
        return log_of_sum(self.logits, self.highest)

    @property
    def normaliser(self) -> Tensor:
        """Logarithm of the sum of exp(logits) [k, P], in double precision."""
        return self._softmax[0]

    @property
    def p(self) -> Tensor:
        """Probabilities [k, P, C]."""
        return self._softmax[1]

    @cached_property
    def log_p(self) -> Tensor:
        """Log-probabilities [k, P, C] in double precision (the outputs themselves for a Gaussian)."""
        return self.batch.family.normalised(self.logits.double())

    @cached_property
    def offset(self) -> Tensor:
        """By how much the normaliser differs from the eval model's [k, P]."""
        return self.normaliser - self.batch.normaliser

    @cached_property
    def shift(self) -> Tensor:
        """z_k - z_0 [k, P, C]; 0 where both are minus infinity."""
        shift: Tensor = self.logits - (self.batch.logits.double() if self.exact else self.batch.scores)
        if self.exact or self.batch.ruled_out:
            shift.nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
        return shift

    @cached_property
    def shift_square(self) -> Tensor:
        """Squared norm of z_k - z_0 over classes [k, P]."""
        return square_norm(self.shift)

    @cached_property
    def log_ratio(self) -> Tensor:
        """r_k = log p_k - log p_0 [k, P, C]; 0 where both are impossible, log p_k where p_0 alone is."""
        if not self.exact:
            _ = self.shift_square  # before the shift is changed in place, and made anew should it be asked for again
            shift: Tensor = self.__dict__.pop("shift")
            r = shift.sub_(self.offset.to(shift.dtype).unsqueeze(-1))
            return r.masked_fill_(self.batch.impossible, 0.0) if self.batch.ruled_out else r
        r = self.log_p - self.batch.reference
        return torch.where(torch.isneginf(self.log_p) & self.batch.impossible, 0.0, r)

    @property
    def rounding(self) -> Tensor:
        """What `log_ratio` lacks in all classes of a row [k, P], since in single precision its offset is rounded."""
        return self.offset.to(self.logits.dtype).double() - self.offset

    @property
    def check(self) -> Tensor:
        """[k, P]; finite where all logits are, and where classes that are ruled out are so by both models."""
        return self.shift_square + (self.highest if self.batch.family.name == "gaussian" else self.offset)

    @cached_property
    def self_product(self) -> Tensor:
        """Sum over classes of p_k r_k [k, P]."""
        product = zero_times(self.p, self.log_ratio) if self.exact else self.p * self.log_ratio
        return product.sum(-1).double()

    @cached_property
    def kl_to_eval(self) -> Tensor:
        """KL(p_k || p_0) [k, P] in nats; infinite where a class is possible that p_0 rules out."""
        if not self.exact:
            return self.self_product + self.rounding
        beyond = torch.where(self.batch.impossible, self.p, 0.0).amax(-1) > 0
        return torch.where(beyond, torch.inf, self.self_product)

    @cached_property
    def log_likelihood(self) -> Tensor:
        """log p_k(label) [k, P] in double precision; NaN where there is no label."""
        return self.at_label(self.logits) - self.normaliser

    @cached_property
    def hit(self) -> Tensor:
        """1 where the most probable class is the label, else 0 [k, P]; NaN where there is no label."""
        labels = self._labels
        return torch.where(labels < 0, torch.nan, (self.prediction == labels).double())

    def at_label(self, values: Tensor) -> Tensor:
        """Entry of values [k, P, C] at the label [k, P]; NaN where there is no label."""
        index = self._labels.clamp(min=0).expand(values.shape[:-1]).unsqueeze(-1)
        return torch.where(self._labels < 0, torch.nan, values.gather(-1, index).squeeze(-1).double())

    @property
    def _labels(self) -> Tensor:
        if self.batch.labels is None:
            raise ValueError("this quantity needs labels")
        return self.batch.labels


Term = Callable[[Distributions], Tensor]
"""What is summed over sub-models: [k, P, ...] of k of them."""


def working_type(logits: Tensor) -> torch.dtype:
    """The precision that sub-models are summed in: single for many classes, unless the model's own is double."""
    many = logits.shape[-1] > MANY_CLASSES and logits.dtype != torch.float64
    return torch.float32 if many else torch.float64
