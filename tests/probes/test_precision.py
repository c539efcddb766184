"""The pilot foretells the width that the jackknife then gives, and intervals after it cover as if K had been given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from rdrop_probes.divergences import kl
from rdrop_probes.families import CATEGORICAL
from rdrop_probes.precision import LADDER, USUAL, Foreseen, divergences, foresee


def log_p_of(generator: torch.Generator, k: int, n: int, classes: int = 5, noise: float = 0.4) -> torch.Tensor:
    """Sub-models [k, n, classes] whose logits have noise of a size that differs between examples."""
    size = torch.linspace(0.2, 2, n).double()[:, None] * noise
    logits = torch.linspace(-1, 1, classes).double() * torch.linspace(0, 3, n).double()[:, None]
    noisy = logits + size * torch.randn((k, n, classes), generator=generator, dtype=torch.float64)
    return noisy.log_softmax(-1)


def epkl(pairs: torch.Tensor) -> torch.Tensor:
    """U-statistic by example from all pairs."""
    k = pairs.shape[-1]
    return pairs.sum((1, 2)) / (k * (k - 1))


def jackknife_half_width(pairs: torch.Tensor) -> float:
    """Relative half-width of the mean's interval over masks, by leaving every sub-model out in turn."""
    n, k, _ = pairs.shape
    without = torch.stack(
        [epkl(pairs[:, kept][:, :, kept]) for kept in ([j for j in range(k) if j != i] for i in range(k))]
    )
    variance = (k - 1) / k * (without - without.mean(0)).square().sum(0)
    half = stats.t.ppf(0.975, n * (k - 1)) * float(variance.sum()) ** 0.5 / n
    return half / float(epkl(pairs).mean())


def test_pairs_are_those_of_a_loop_over_rows():
    g = torch.Generator().manual_seed(0)
    log_p = log_p_of(g, 4, 6)
    owners = torch.tensor([0, 0, 1, 2, 2, 2])
    found = divergences(log_p, CATEGORICAL, owners, 4)
    for example, rows in enumerate(([0, 1], [2], [3, 4, 5], [])):
        for i in range(4):
            for j in range(4):
                terms = [(kl(log_p[i, r], log_p[j, r]) + kl(log_p[j, r], log_p[i, r])) / 2 for r in rows]
                expected = float(sum(terms) / len(rows)) if rows and i != j else 0.0
                assert float(found[example, i, j]) == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("k", [4, 8, 16])
def test_the_width_is_foretold(k):
    """Mean over 40 pilots of 8 sub-models against the mean over 40 jackknives of k, on the same 200 examples."""
    g = torch.Generator().manual_seed(k)
    n = 200
    weights = torch.ones(n)
    foretold = [
        foresee(divergences(log_p_of(g, 8, n), CATEGORICAL, None, n), weights, n, shared_masks=False).half_width(k)
        for _ in range(40)
    ]
    found = [jackknife_half_width(divergences(log_p_of(g, k, n), CATEGORICAL, None, n)) for _ in range(40)]
    error = np.hypot(np.std(foretold), np.std(found)) / 40**0.5
    assert abs(np.mean(foretold) - np.mean(found)) < 4 * error + 0.03 * np.mean(found)  # roots of noisy squares: 3%


def test_shared_masks_need_more_sub_models():
    g = torch.Generator().manual_seed(3)
    size = torch.randn((8, 1, 5), generator=g, dtype=torch.float64)  # all examples answer to the same noise
    log_p = (log_p_of(g, 8, 100, noise=0.01) + 0.3 * size).log_softmax(-1)
    pairs = divergences(log_p, CATEGORICAL, None, 100)
    apart = foresee(pairs, torch.ones(100), 100, shared_masks=False)
    shared = foresee(pairs, torch.ones(100), 100, shared_masks=True)
    assert shared.half_width(8) > 3 * apart.half_width(8)


def test_enough_is_the_first_of_the_ladder_and_never_more_than_its_end():
    wide = Foreseen(mean=1.0, single=0.5, pair=2.0, n=100)
    k = wide.enough(0.1)
    assert k in LADDER
    assert wide.half_width(k) <= 0.1
    assert wide.half_width(LADDER[LADDER.index(k) - 1]) * 1.1 > 0.1
    assert Foreseen(1.0, 50.0, 200.0, 1).enough(0.001) == LADDER[-1]
    assert Foreseen(0.0, 0.0, 0.0, 10).enough(0.05) == USUAL  # a pilot that saw nothing foretells nothing


def test_intervals_after_a_pilot_cover():
    """500 runs: pilot on 64 examples, K from it, then new masks; the truth is the mean over 160 sub-models."""
    g = torch.Generator().manual_seed(5)
    n, runs = 120, 500
    truth = float(epkl(divergences(log_p_of(g, 160, n), CATEGORICAL, None, n)).mean())
    covered = 0
    for _ in range(runs):
        pilot = foresee(
            divergences(log_p_of(g, 8, n)[:, ::2], CATEGORICAL, None, n // 2), torch.ones(n // 2), n, shared_masks=False
        )
        pairs = divergences(log_p_of(g, pilot.enough(0.1), n), CATEGORICAL, None, n)
        estimate = float(epkl(pairs).mean())
        covered += abs(estimate - truth) <= jackknife_half_width(pairs) * estimate
    share = covered / runs
    assert share > 0.95 - 2.6 * (0.95 * 0.05 / runs) ** 0.5  # may be more: the jackknife overstates at small K
