"""The smallest eps for which mean EPKL <= eps holds with 95% confidence."""

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import nn

from rdrop_probes.batch import Batch
from rdrop_probes.columns import Column
from rdrop_probes.families import Gaussian
from rdrop_probes.measure import measure
from rdrop_probes.pairwise_kl import PairwiseKL
from rdrop_probes.regression import GaussianPairwise
from rdrop_probes.settings import Settings
from rdrop_probes.statistics import upper_bound


def bound(values, **options):
    return upper_bound(Column(values), unit="nats", shared_masks=False, **options)


def test_the_bound_solves_halls_transformation_for_students_quantile():
    values = np.random.default_rng(0).exponential(size=30)
    found = bound(values)
    u = stats.skew(values, bias=False) / 30**0.5
    root = optimize.brentq(lambda t: t + u * t**2 / 3 + u**2 * t**3 / 27 + u / 6 + stats.t.ppf(0.95, 29), -50, 50)
    expected = values.mean() - root * values.std(ddof=1) / 30**0.5
    assert (found.estimate, found.level, found.n, found.unit) == (pytest.approx(expected), 0.95, 30, "nats")
    assert (found.low, found.high) == (None, None)


def test_without_skewness_the_bound_is_students_one_sided_one():
    values = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    assert bound(values).estimate == pytest.approx(stats.t.ppf(0.95, 4) * values.std(ddof=1) / 5**0.5)


def test_values_that_are_alike_are_their_own_bound_and_one_has_none():
    assert bound(np.full(5, 0.3)).estimate == pytest.approx(0.3)
    assert bound(np.array([0.3])).estimate is None
    assert bound(np.array([])).estimate is None


@pytest.mark.parametrize("n", [100, 450])
def test_it_holds_as_often_where_a_few_examples_carry_the_mean(n):
    values = np.random.default_rng(2).gamma(0.44, 1 / 0.44, size=(2000, n))  # mean 1, skewness 3, as EPKL of digits
    student = values.mean(1) + stats.t.ppf(0.95, n - 1) * values.std(1, ddof=1) / n**0.5
    held = np.mean([bound(row).estimate >= 1 for row in values])
    error = (0.95 * 0.05 / 2000) ** 0.5
    assert 0.93 <= held <= 0.97  # two percentage points, and four standard errors
    assert held > (student >= 1).mean() + error


@pytest.mark.parametrize("shared", [False, True])
def test_it_lies_above_the_truth_as_often_as_it_says(shared, z_score):
    rng, n, blocks, held = np.random.default_rng(1), 100, 16, []
    for _ in range(800):
        of_examples, of_masks = rng.gamma(4.0, 0.25, size=n), 0.3 * rng.standard_normal(blocks) * shared
        values = of_examples + of_masks.mean()  # the truth is 1
        leave_out = np.array([n * values.mean() + n * (of_masks.sum() - mask) / (blocks - 1) for mask in of_masks])
        leave_out -= n * of_masks.mean()
        column = Column(values, np.zeros(n) if shared else None, leave_out if shared else None, n)
        held.append(upper_bound(column, unit="", shared_masks=shared).estimate >= 1)
    assert abs(z_score(held, 0.95)) < 4
    assert 0.93 <= np.mean(held) <= 0.97


@pytest.mark.parametrize(("probe", "family"), [(PairwiseKL, None), (GaussianPairwise, Gaussian(2.0))])
def test_it_goes_with_the_epkl(probe, family):
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 3))
    batches = [Batch(torch.randn(10, 4), 10, 0)]
    options = {} if family is None else {"family": family}
    found = measure(model, batches, forward=model, probes=[probe], settings=Settings(sub_models=4), **options)
    expected = upper_bound(found.columns["epkl"], unit="nats", shared_masks=False)
    assert found.metrics == {"constraint_epsilon": expected}
    assert expected.estimate > found.columns["epkl"].values.mean()
    assert found.units["constraint_epsilon"] == "nats"
