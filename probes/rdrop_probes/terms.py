"""What is summed over sub-models, for every probe that asks for it.

A term maps what k sub-models say of some rows (:class:`~rdrop_probes.distributions.Distributions`) to [k, P, ...]. It
is summed once, however many probes name it. Terms in `LOG_TERMS` are summed as exponentials and kept as logarithms;
those in `KEPT_TERMS`, a small number for each sub-model and row, are not summed but kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rdrop_probes.distributions import Distributions, Term
from rdrop_probes.divergences import square_norm


def probability(seen: Distributions) -> Tensor:
    """p_k [k, P, C]."""
    return seen.p


def log_ratio(seen: Distributions) -> Tensor:
    """r_k = log p_k - log p_0 [k, P, C], the centring that keeps pairwise sums exact."""
    return seen.log_ratio


def self_product(seen: Distributions) -> Tensor:
    """Sum over classes of p_k r_k [k, P]."""
    return seen.self_product


def kl_to_eval(seen: Distributions) -> Tensor:
    """KL(p_k || p_0) [k, P] in nats."""
    return seen.kl_to_eval


def offset(seen: Distributions) -> Tensor:
    """By how much the logarithm of the sum of exp(logits) differs from the eval model's [k, P]."""
    return seen.offset


def rounding(seen: Distributions) -> Tensor:
    """What r_k lacks in all classes of a row [k, P], since in single precision its offset is rounded."""
    return seen.rounding


def logit_shift(seen: Distributions) -> Tensor:
    """z_k - z_0 [k, P, C]; 0 where both are minus infinity."""
    return seen.shift


def logit_shift_square(seen: Distributions) -> Tensor:
    """Squared norm of z_k - z_0 over classes [k, P]."""
    return seen.shift_square


def vote(seen: Distributions) -> Tensor:
    """The most probable class [k, P]."""
    return seen.prediction.to(torch.int32)


def confidence(seen: Distributions) -> Tensor:
    """The highest probability [k, P]."""
    return (seen.highest.double() - seen.normaliser).exp()


def log_likelihood(seen: Distributions) -> Tensor:
    """log p_k(label) [k, P], summed over sub-models as p_k(label); NaN where there is no label."""
    return seen.log_likelihood


def negative_log_likelihood(seen: Distributions) -> Tensor:
    """-log p_k(label) [k, P] in nats; NaN where there is no label."""
    return -seen.log_likelihood


def flip(seen: Distributions) -> Tensor:
    """1 where argmax p_k differs from argmax p_0 [k, P]."""
    return (seen.prediction != seen.batch.prediction).double()


def correct(seen: Distributions) -> Tensor:
    """1 where argmax p_k is the label [k, P]; NaN where there is no label."""
    return seen.hit


def brier_term(seen: Distributions) -> Tensor:
    """Brier score of p_k [k, P]; NaN where there is no label."""
    return square_norm(seen.p) - 2 * seen.at_label(seen.p) + 1


LOG_TERMS: frozenset[Term] = frozenset({log_likelihood})
KEPT_TERMS: frozenset[Term] = frozenset({vote, confidence})
