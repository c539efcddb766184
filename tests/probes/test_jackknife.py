"""The jackknife's formulas against loops that leave one out."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from rdrop_probes.block_sums import BlockSums
from rdrop_probes.distributions import Distributions, EvalBatch, Term
from rdrop_probes.jackknife import Jackknife


def statistic(values: np.ndarray) -> float:
    return float(np.exp(values.mean()))  # smooth and not linear


def jackknife_of(values: np.ndarray, sizes: list[int]) -> Jackknife:
    edges = np.cumsum([0, *sizes])
    without = [statistic(np.delete(values, range(a, b))) for a, b in pairwise(edges)]
    return Jackknife(
        torch.tensor([statistic(values)], dtype=torch.float64),
        torch.tensor(without, dtype=torch.float64)[:, None],
        torch.tensor(sizes),
    )


def test_one_sub_model_a_block_is_the_classical_jackknife():
    x = np.random.default_rng(0).normal(size=9)
    k = len(x)
    leave_out = np.array([statistic(np.delete(x, i)) for i in range(k)])
    found = jackknife_of(x, [1] * k)
    assert found.corrected.item() == pytest.approx(k * statistic(x) - (k - 1) * leave_out.mean(), rel=1e-12)
    variance = (k - 1) / k * ((leave_out - leave_out.mean()) ** 2).sum()
    assert found.variance.item() == pytest.approx(variance, rel=1e-12)


def test_unequal_blocks_follow_busing_and_others():
    x = np.random.default_rng(1).normal(size=11)
    sizes = [1, 2, 3, 1, 4]
    full, n, start = statistic(x), len(x), 0
    pseudo, corrected = [], len(sizes) * full
    for m in sizes:
        left = statistic(np.delete(x, range(start, start + m)))
        pseudo.append(n / m * full - (n / m - 1) * left)
        corrected -= (1 - m / n) * left
        start += m
    variance = sum((p - corrected) ** 2 / (n / m - 1) for p, m in zip(pseudo, sizes, strict=True)) / len(sizes)
    found = jackknife_of(x, sizes)
    assert found.corrected.item() == pytest.approx(corrected, rel=1e-12)
    assert found.variance.item() == pytest.approx(variance, rel=1e-12)


def test_the_variance_of_a_mean_is_the_textbook_one():
    x = torch.randn(12, 1, dtype=torch.float64)
    found = Jackknife(x.mean(0), torch.stack([(x.sum(0) - v) / 11 for v in x]), torch.ones(12))
    assert found.corrected.item() == pytest.approx(x.mean().item(), rel=1e-12)
    assert found.variance.item() == pytest.approx(x.var().item() / 12, rel=1e-12)


def test_an_example_without_a_value_takes_no_part_in_the_leave_out_sums():
    full = torch.tensor([1.0, torch.inf, 3.0], dtype=torch.float64)
    without = torch.tensor([[1.1, 5.0, 2.0], [0.9, torch.inf, 4.0]], dtype=torch.float64)
    column = Jackknife(full, without, torch.ones(2)).column(corrected=False)
    assert column.values.tolist() == [1.0, np.inf, 3.0]
    assert column.leave_out.tolist() == pytest.approx([3.1, 4.9])
    assert column.leave_out_n == 2
    assert np.isnan(column.mask_variance).tolist() == [False, True, False]


def mean_of_logits(seen):
    return seen.logits


@pytest.mark.parametrize("count", [2, 31, 32, 33, 70])
@pytest.mark.parametrize("step", [1, 7, 100])
def test_block_sums_are_the_sums_of_consecutive_sub_models(count, step):
    z = torch.randn(count, 3, 2, dtype=torch.float64)
    batch = EvalBatch(0, None, z[0])
    term: Term = mean_of_logits
    sums = BlockSums([term], count, rows=3)
    for start in range(0, count, step):
        sums.add(start, Distributions(batch, z[start : start + step]))
    assert int(sums.sizes.sum()) == count
    assert sums.blocks == min(count, 32)
    assert int(sums.sizes.max() - sums.sizes.min()) <= 1
    for blocks in (2, sums.blocks):
        k = int(sums.sizes[:blocks].sum())
        torch.testing.assert_close(sums.total(blocks).mean(term), z[:k].mean(0), rtol=1e-12, atol=1e-12)
