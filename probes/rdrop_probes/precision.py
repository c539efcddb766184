"""How many sub-models are enough: a pilot on a few examples foretells how wide the interval of the mean EPKL will be.

The pilot has masks of its own, so that what it finds says nothing of the masks that are measured with: an
interval after it covers what it would cover had K been chosen beforehand. (Stopping as soon as the interval at
hand is tight would not do: it is tight by chance where the estimate is small by chance.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor, nn

from rdrop_probes.batch import Batch
from rdrop_probes.block_sums import MAX_BLOCKS, most_blocks
from rdrop_probes.families import Family
from rdrop_probes.settings import Settings
from rdrop_probes.sites import Forward, SitePlan
from rdrop_probes.strategies import Choice
from rdrop_probes.submodels import SubModels

USUAL = 32  # sub-models, unless something is said
PILOT = 8  # sub-models of the pilot
PILOT_EXAMPLES = 128
PILOT_SEEDS = 2**40  # added to the seed
PILOT_NUMBERS = 2**24  # log-probabilities of the pilot at most
LADDER = (4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256)
MARGIN = 1.1  # by which the foretold interval has to be tighter than asked: the pilot is small
SHARED_MARGIN = 1.5
FEW, FEW_LEAST = 100, 8  # where so few examples count, intervals from fewer sub-models are too short on one side
LEVEL = 0.95


@dataclass(frozen=True)
class Pilot:
    """Examples to try first, spread over the data, and how many will be measured in all.

    `known` is the number of sub-models where that is decided already, and only the width is to be foretold.
    """

    batches: Sequence[Batch]
    n: int
    known: int | None = None


@dataclass(frozen=True)
class Foreseen:
    """What a pilot foretells of the mean EPKL's interval over masks, as a function of K.

    Attributes:
        mean: EPKL. single, pair: variance of an example's mean divergence to all others given one sub-model, and of
            the divergence of two (Hoeffding's zeta_1 and zeta_2), averaged over examples.
        n: effective number of examples with masks of their own that the mean is over.
        blocks: in how many blocks the jackknife takes sub-models at most.
    """

    mean: float
    single: float
    pair: float
    n: float
    blocks: int = MAX_BLOCKS

    def half_width(self, k: int) -> float:
        """Half the interval over masks, relative to the mean, as the jackknife over `k` sub-models gives it.

        The linear part of the U-statistic has variance 4 zeta_1 / K, which the jackknife reproduces; the degenerate
        part, 2 (zeta_2 - 2 zeta_1) / (K (K - 1)), it overstates (Efron and Stein 1981).
        """
        pairs, fewer = k * (k - 1) / 2, (k - 1) * (k - 2) / 2
        overstated = (k - 1) * (fewer * (1 / fewer - 1 / pairs) ** 2 + (k - 1) / pairs**2)
        variance = 4 * self.single / k + overstated * max(self.pair - 2 * self.single, 0.0)
        quantile = float(stats.t.ppf(0.5 + LEVEL / 2, self.n * (min(k, self.blocks) - 1)))
        return quantile * (variance / self.n) ** 0.5 / self.mean if self.mean > 0 else torch.inf

    def enough(self, tolerance: float) -> int:
        """The smallest number of sub-models whose interval is foretold to be within `tolerance` of the mean.

        The usual number where the pilot saw no divergence at all, which foretells nothing.
        """
        if not self.mean > 0:
            return USUAL
        least = FEW_LEAST if self.n < FEW else LADDER[0]
        return next((k for k in LADDER if k >= least and self.half_width(k) * self._margin <= tolerance), LADDER[-1])

    @property
    def _margin(self) -> float:
        """Where all examples share their masks, the interval that comes out is a matter of a few masks."""
        return MARGIN if self.n > 1 else SHARED_MARGIN


def run_pilot(
    model: nn.Module, forward: Forward, plan: SitePlan, pilot: Pilot, *, settings: Settings, family: Family
) -> Foreseen:
    """Run a few sub-models on the pilot's examples; use it inside :func:`rdrop_probes.state.preserved`."""
    sub_models = SubModels(
        model,
        forward,
        plan,
        count=PILOT,
        seed=settings.seed + PILOT_SEEDS,
        masks=settings.masks,
        choice=Choice("loop"),
    )
    found, weights = [], []
    for batch in pilot.batches:
        chunks = sub_models.logits(batch.inputs, batch.n, batch.start)
        rows = torch.cat([family.normalised(batch.rows(chunk.logits).double()) for chunk in chunks])
        found.append(divergences(rows, family, batch.owners, batch.n))
        counted = torch.ones(batch.n) if batch.owners is None else torch.bincount(batch.owners, minlength=batch.n)
        weights.append(counted.double().to(rows.device))
    shared, blocks = settings.masks == "shared", most_blocks(rows.shape[-1])
    return foresee(torch.cat(found), torch.cat(weights), pilot.n, shared_masks=shared, blocks=blocks)


def foresee(divergences: Tensor, weights: Tensor, n: int, *, shared_masks: bool, blocks: int = MAX_BLOCKS) -> Foreseen:
    """From the pilot's divergences [E, K, K] between its sub-models (symmetric), by example.

    `weights` [E] are the rows of each example; `n` is how many examples will be measured. With shared masks all
    examples are one draw.
    """
    weights = weights.double() / weights.sum()
    mean = float((weights * _off_diagonal(divergences)).sum())
    if shared_masks:
        single, pair = _components((weights[:, None, None] * divergences).sum(0)[None])
        return Foreseen(mean, *_at_least_0(single[0], pair[0]), 1.0, blocks)
    squares = weights.square()
    effective = n / len(weights) / float(squares.sum())  # Kish's number, were all examples like these
    single, pair = ((squares * part).sum() / squares.sum() for part in _components(divergences))
    return Foreseen(mean, *_at_least_0(single, pair), effective, blocks)


def divergences(normalised: Tensor, family: Family, owners: Tensor | None, n: int) -> Tensor:
    """Divergences, the mean of both orders, between all pairs of sub-models [n, K, K] from their rows [K, P, C].

    Averaged over the rows that `owners` [P] gives to an example; an example without rows, or with an infinite
    divergence, has 0 throughout.
    """
    k = len(normalised)
    found = torch.zeros(n, k, k, dtype=torch.float64, device=normalised.device)
    rows = torch.arange(n, device=normalised.device) if owners is None else owners.to(normalised.device)
    count = torch.bincount(rows, minlength=n).clamp(min=1)
    for i in range(k):
        for j in range(i):
            total = found.new_zeros(n).index_add_(0, rows, family.between(normalised[i], normalised[j]).double())
            found[:, i, j] = found[:, j, i] = total / count
    return torch.where(torch.isfinite(found).all(-1).all(-1)[:, None, None], found, 0.0)


def _off_diagonal(divergences: Tensor) -> Tensor:
    k = divergences.shape[-1]
    return divergences.sum((1, 2)) / (k * (k - 1))


def _components(divergences: Tensor) -> tuple[Tensor, Tensor]:
    """Unbiased estimates of zeta_1 and zeta_2 by example [E], from products of divergences over distinct sub-models."""
    k = divergences.shape[-1]
    rows = divergences.sum(-1)
    squares = divergences.square().sum((1, 2))
    total = divergences.sum((1, 2))
    sharing_one = (rows.square().sum(-1) - squares) / (k * (k - 1) * (k - 2))  # h_ij h_il
    sharing_none = (total.square() - 4 * rows.square().sum(-1) + 2 * squares) / (k * (k - 1) * (k - 2) * (k - 3))
    return sharing_one - sharing_none, squares / (k * (k - 1)) - sharing_none


def _at_least_0(single: Tensor, pair: Tensor) -> tuple[float, float]:
    return max(float(single), 0.0), max(float(pair), 0.0)
