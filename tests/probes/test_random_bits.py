"""The numbers behind masks: exact in distribution, without patterns, and the same wherever they are asked for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from rdrop_probes.random_bits import Bits, bernoulli, uniform

CPU = torch.device("cpu")
RATES = [0.5, 0.9, 0.1, 1 / 3, 0.999, 1e-3, 0.99609375, 0.0039]
SHAPES = [(1, 200_003), (64, 3_001), (4_096, 48), (100_000, 1)]
ALPHA = 1e-4  # of each test: with some 100 of them, one false alarm in 100 seeds; the seeds are fixed


def bits(*name: int, jumps: bool = True) -> Bits:
    made = Bits(*name, device=CPU)
    made.jumps = jumps  # False: the numbers of other devices, which are made of ordinary tensor operators
    return made


def drawn(keep: float, shape: tuple[int, int], seed: int, *, jumps: bool, first: int = 0) -> np.ndarray:
    out = torch.full(shape, torch.nan)
    bernoulli(out, keep, bits(seed, shape[1], jumps=jumps), first)
    return out.numpy()


@pytest.mark.parametrize("jumps", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keep", RATES)
def test_masks_have_their_rate_and_no_runs(keep, shape, jumps):
    mask = drawn(keep, shape, 7, jumps=jumps).ravel().astype(float)
    assert set(np.unique(mask)) <= {0.0, 1.0}
    assert stats.binomtest(int(mask.sum()), mask.size, keep).pvalue > ALPHA
    pairs = np.bincount((2 * mask[:-1:2] + mask[1::2]).astype(int), minlength=4)
    expected = len(mask[1::2]) * np.array([(1 - keep) ** 2, keep * (1 - keep), keep * (1 - keep), keep**2])
    if expected.min() >= 5:  # the usual condition of the chi-square approximation
        assert stats.chisquare(pairs, expected).pvalue > ALPHA
    ones = mask.sum()
    zeros = mask.size - ones
    mean = 1 + 2 * ones * zeros / mask.size  # Wald and Wolfowitz
    deviation = np.sqrt((mean - 1) * (mean - 2) / (mask.size - 1))
    if min(ones, zeros) >= 500:  # for the normal approximation
        assert abs(1 + np.count_nonzero(np.diff(mask)) - mean) < stats.norm.isf(ALPHA / 2) * deviation


@pytest.mark.parametrize("jumps", [True, False])
def test_neighbours_in_every_direction_are_independent(jumps):
    """Correlation between examples, sub-models, sites and lags of a mask, each estimated from 200,000 pairs."""
    n, size, keep = 400, 501, 0.9
    masks = {
        name: drawn_of(name, (n, size), keep, jumps=jumps)
        for name in itertools.product((0, 1), (0, 1, 2), (0, 1))  # seed, sub-model, site
    }
    first = masks[0, 0, 0]
    others = [masks[name] for name in masks if name != (0, 0, 0)]
    shifted = [np.roll(first, lag, axis) for lag, axis in ((1, 0), (2, 0), (1, 1), (2, 1), (7, 1), (8, 1), (64, 1))]
    for other in (*others, *shifted):
        r = np.corrcoef(first.ravel(), other.ravel())[0, 1]
        assert abs(r) * np.sqrt(first.size) < stats.norm.isf(ALPHA / 2)


def drawn_of(name, shape, keep, *, jumps):
    out = torch.empty(shape)
    bernoulli(out, keep, bits(*name, shape[1], jumps=jumps), 0)
    return out.numpy().astype(float)


@pytest.mark.parametrize("keep", [0.9, 0.05, 0.3])
def test_what_a_byte_cannot_say_is_made_up_for(keep):
    """Bytes alone are off by up to 2^-9; over 32 million elements a fiftieth of that would be seen."""
    ones = sum(float(drawn(keep, (1, 2_000_000), seed, jumps=True).sum(dtype=float)) for seed in range(16))
    z = (ones - 32e6 * keep) / np.sqrt(32e6 * keep * (1 - keep))
    assert abs(z) < stats.norm.isf(ALPHA / 2)


@pytest.mark.parametrize("jumps", [True, False])
@pytest.mark.parametrize("size", [1, 7, 8, 30, 1_000, 2**18 + 1])
def test_an_example_has_its_mask_whoever_asks(size, jumps):
    whole, part = torch.empty(12, size), torch.empty(5, size)
    bernoulli(whole, 0.7, bits(1, size, jumps=jumps), 0)
    bernoulli(part, 0.7, bits(1, size, jumps=jumps), 4)
    assert torch.equal(whole[4:9], part)


@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_certain_outcomes_are_certain(keep):
    assert (drawn(keep, (3, 5), 1, jumps=True) == keep).all()


@pytest.mark.parametrize("jumps", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_uniform_numbers_are_uniform(dtype, jumps):
    out = torch.empty(50, 2_000, dtype=dtype)
    uniform(out, bits(5, jumps=jumps), 0)
    values = out.double().numpy().ravel()
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.bincount((values * 128).astype(int), minlength=128)
    assert stats.chisquare(counts).pvalue > ALPHA


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.uint8])
def test_masks_of_every_type_are_the_same(dtype):
    plain, other = torch.empty(20, 31), torch.empty(20, 31, dtype=dtype)
    bernoulli(plain, 0.6, bits(2), 3)
    bernoulli(other, 0.6, bits(2), 3)
    assert torch.equal(plain, other.float())
