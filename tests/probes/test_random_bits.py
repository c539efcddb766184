"""The numbers behind masks: exact in distribution, without patterns, and the same wherever they are asked for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from rdrop_probes.random_bits import Jumping, Starts, Stream, bernoulli, uniform

CPU = torch.device("cpu")
RATES = [0.5, 0.9, 0.1, 1 / 3, 0.999, 1e-3, 0.99609375, 0.0039]
SHAPES = [(1, 200_003), (64, 3_001), (4_096, 48), (100_000, 1)]
ALPHA = 1e-4  # of each test: with some 100 of them, one false alarm in 100 seeds; the seeds are fixed


def stream(seed: int, sub_model: int, site: int, size: int, *, jumps: bool) -> Stream:
    """Without jumps the one of other devices, which is made of ordinary tensor operators."""
    return Jumping(seed, sub_model, site, size) if jumps else Starts(seed, [sub_model], CPU).stream(site, size)


def drawn(
    keep: float, shape: tuple[int, int], *name: int, jumps: bool, first: int = 0, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """A mask [rows, size] of the stream called (seed, sub-model, site)."""
    out = torch.full((1, *shape), 3, dtype=dtype)
    bernoulli(out, keep, stream(*name, *(0,) * (3 - len(name)), shape[1], jumps=jumps), first)
    return out[0]


@pytest.mark.parametrize("jumps", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keep", RATES)
def test_masks_have_their_rate_and_no_runs(keep, shape, jumps):
    mask = drawn(keep, shape, 7, jumps=jumps).numpy().ravel().astype(float)
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
        name: drawn(keep, (n, size), *name, jumps=jumps).double().numpy()
        for name in itertools.product((0, 1), (0, 1, 2), (0, 1))  # seed, sub-model, site
    }
    first = masks[0, 0, 0]
    others = [masks[name] for name in masks if name != (0, 0, 0)]
    shifted = [np.roll(first, lag, axis) for lag, axis in ((1, 0), (2, 0), (1, 1), (2, 1), (7, 1), (8, 1), (64, 1))]
    for other in (*others, *shifted):
        r = np.corrcoef(first.ravel(), other.ravel())[0, 1]
        assert abs(r) * np.sqrt(first.size) < stats.norm.isf(ALPHA / 2)


@pytest.mark.parametrize("jumps", [True, False])
@pytest.mark.parametrize("keep", [0.9, 0.05, 0.3])
def test_what_a_byte_cannot_say_is_made_up_for(keep, jumps):
    """Bytes alone are off by up to 2^-9; over 32 million elements a fiftieth of that would be seen."""
    ones = sum(float(drawn(keep, (1, 2_000_000), seed, jumps=jumps).sum(dtype=torch.float64)) for seed in range(16))
    z = (ones - 32e6 * keep) / np.sqrt(32e6 * keep * (1 - keep))
    assert abs(z) < stats.norm.isf(ALPHA / 2)


@pytest.mark.parametrize("size", [1, 64])
def test_what_two_bytes_cannot_say_is_made_up_for_by_the_levels_of_rows(size):
    """With 2^-18 to keep, 16 bits alone say 0 or 2^-16; rows choose between the two."""
    ones = float(drawn(2.0**-18, (2**27 // size // 4, size), 3, jumps=False).sum(dtype=torch.float64))
    expected = 2**27 / 4 * 2.0**-18
    assert abs(ones - expected) < stats.norm.isf(ALPHA / 2) * expected**0.5


@pytest.mark.parametrize("jumps", [True, False])
@pytest.mark.parametrize("size", [1, 7, 8, 30, 1_000, 2**18 + 1])
def test_an_example_has_its_mask_whoever_asks(size, jumps):
    whole, part = drawn(0.7, (12, size), 1, jumps=jumps), drawn(0.7, (5, size), 1, jumps=jumps, first=4)
    assert torch.equal(whole[4:9], part)


@pytest.mark.parametrize("keep", [0.7, 0.5])
def test_a_stream_goes_on_where_it_is_asked_to(keep):
    """One object that has been read from before gives what a new one gives."""
    read = stream(1, 2, 3, 50, jumps=True)
    for first in (0, 5, 2, 2, 40):
        again = torch.empty(1, 3, 50)
        bernoulli(again, keep, read, first)
        assert torch.equal(again[0], drawn(keep, (3, 50), 1, 2, 3, jumps=True, first=first))


@pytest.mark.parametrize("keep", [0.7, 0.5, 0.999_99])
def test_sub_models_have_their_masks_whoever_they_are_drawn_with(keep):
    """Off the processor, where several are drawn at a time."""
    together = torch.empty(5, 6, 33)
    bernoulli(together, keep, Starts(9, range(3, 8), CPU).stream(2, 33), 4)
    for k in range(5):
        assert torch.equal(together[k], drawn(keep, (6, 33), 9, 3 + k, 2, jumps=False, first=4))


@pytest.mark.parametrize("jumps", [True, False])
@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_certain_outcomes_are_certain(keep, jumps):
    assert (drawn(keep, (3, 5), 1, jumps=jumps) == keep).all()


@pytest.mark.parametrize("jumps", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_uniform_numbers_are_uniform(dtype, jumps):
    out = torch.empty(1, 50, 2_000, dtype=dtype)
    uniform(out, stream(5, 0, 0, 2_000, jumps=jumps), 0)
    values = out.double().numpy().ravel()
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.bincount((values * 128).astype(int), minlength=128)
    assert stats.chisquare(counts).pvalue > ALPHA


@pytest.mark.parametrize("jumps", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.uint8])
def test_masks_of_every_type_are_the_same(dtype, jumps):
    plain, other = (drawn(0.6, (20, 31), 2, jumps=jumps, first=3, dtype=kind) for kind in (torch.float32, dtype))
    assert torch.equal(plain, other.float())
