"""What a row of a model's output stands for: a categorical distribution, or the mean of a Gaussian.

A row is what one divergence is taken of: an example in classification, a token in language modelling, a label in
multi-label classification.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rdrop_probes.divergences import kl

FamilyName = Literal["categorical", "gaussian"]


@dataclass(frozen=True)
class Categorical:
    """Scores [..., C] of C classes, whose softmax is the distribution."""

    name: ClassVar[FamilyName] = "categorical"

    def normalised(self, scores: Tensor) -> Tensor:
        """Log-probabilities [..., C] in nats."""
        return torch.log_softmax(scores, -1)

    def prediction(self, normalised: Tensor) -> Tensor:
        """Most probable class [...]."""
        return normalised.argmax(-1)

    def between(self, a: Tensor, b: Tensor) -> Tensor:
        """Mean of KL in both orders [...] between log-probabilities [..., C], in nats."""
        return (kl(a, b) + kl(b, a)) / 2


@dataclass(frozen=True)
class Gaussian:
    """Outputs [..., D] as the mean of a Gaussian surrogate N(output, variance I), the same for every pass.

    KL(N(a, v I) || N(b, v I)) = |a - b|^2 / (2 v): the squared error between passes that R-Drop trains with for
    regression (Liang et al. 2021, section 3.2), in nats. `variance` is in the squared unit of the outputs.
    """

    variance: float = 1.0
    name: ClassVar[FamilyName] = "gaussian"

    def normalised(self, outputs: Tensor) -> Tensor:
        """The outputs as they are."""
        return outputs

    def prediction(self, outputs: Tensor) -> Tensor:
        """The output [...] where there is one, their mean where there are several."""
        return outputs.mean(-1)

    def between(self, a: Tensor, b: Tensor) -> Tensor:
        """KL [...] between outputs [..., D], the same in both orders, in nats."""
        return (a - b).square().sum(-1) / (2 * self.variance)


Family = Categorical | Gaussian

CATEGORICAL = Categorical()
