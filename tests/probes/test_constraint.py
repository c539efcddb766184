"""The smallest eps for which mean EPKL <= eps holds with 95% confidence."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from rdrop_probes.batch import Batch
from rdrop_probes.columns import Column
from rdrop_probes.families import Gaussian
from rdrop_probes.measure import measure
from rdrop_probes.pairwise_kl import PairwiseKL
from rdrop_probes.regression import GaussianPairwise
from rdrop_probes.settings import Settings
from rdrop_probes.statistics import upper_bound


def test_the_bound_is_students_one_sided_one():
    values = np.random.default_rng(0).exponential(size=30)
    found = upper_bound(Column(values), unit="nats", shared_masks=False)
    expected = values.mean() + stats.t.ppf(0.95, 29) * values.std(ddof=1) / 30**0.5
    assert (found.estimate, found.level, found.n, found.unit) == (pytest.approx(expected), 0.95, 30, "nats")
    assert (found.low, found.high) == (None, None)
    assert upper_bound(Column(values[:1]), unit="nats", shared_masks=False).estimate is None


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
    assert np.mean(held) > 0.93


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
