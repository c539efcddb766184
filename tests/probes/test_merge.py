"""Two workers' halves make the whole: columns and tables."""

import numpy as np
import pytest
import torch
from torch import nn

from rdrop_probes.calibration import Calibration
from rdrop_probes.columns import ColumnSet
from rdrop_probes.discovery import find_sites
from rdrop_probes.gap import Gap
from rdrop_probes.jacobian import Jacobian
from rdrop_probes.neutral import gradient_pass
from rdrop_probes.pairwise_kl import PairwiseKL
from rdrop_probes.prediction import Prediction
from rdrop_probes.state import preserved

N, K, C, CUT = 11, 6, 4, 4
ROUNDING = 1e-9  # the same sums in another order


def assert_same(found: ColumnSet, expected: ColumnSet) -> None:
    assert found.columns.keys() == expected.columns.keys()
    for name, column in expected.columns.items():
        other = found.columns[name]
        np.testing.assert_allclose(other.values, column.values, rtol=ROUNDING, atol=1e-12)
        assert other.leave_out_n == column.leave_out_n
        assert (other.proportion, other.tabulated, other.floor) == (column.proportion, column.tabulated, column.floor)
        for one, two in ((other.mask_variance, column.mask_variance), (other.leave_out, column.leave_out)):
            assert (one is None) == (two is None)
            if one is not None:
                np.testing.assert_allclose(one, two, rtol=ROUNDING, atol=1e-12)


def assert_same_tables(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, table in expected.items():
        mine = found[name]
        rows = [(mine[k], table[k]) for k in table] if isinstance(table, dict) else [(mine, table)]
        for a, b in rows:
            assert len(a) == len(b) > 0
            for one, two in zip(a, b, strict=True):
                for key, value in vars(two).items():
                    expected_value = value if isinstance(value, str | None) else pytest.approx(value, rel=ROUNDING)
                    assert getattr(one, key) == expected_value


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", [PairwiseKL, Gap, Calibration])
def test_halves_of_a_sub_model_probe_make_the_whole(summed, kind, shared):
    z0 = torch.randn(N, C, dtype=torch.float64)
    z = z0 + torch.randn(K, N, C, dtype=torch.float64)
    z[0, 7, 1] = -torch.inf  # one example without a value
    labels = torch.randint(0, C, (N,))
    labels[2] = -100

    def probe(rows):
        made = kind()
        made.shared_masks = shared
        made.update(*summed(list(made.terms_for(labels=True)), z0[rows], z[:, rows], labels[rows]))
        return made

    first, second, whole = probe(slice(0, CUT)), probe(slice(CUT, N)), probe(slice(0, N))
    first.merge(second)
    found, expected = first.outcome(), whole.outcome()
    assert_same(found.columns, expected.columns)
    assert_same_tables(found.tables, expected.tables)


@pytest.mark.parametrize("kind", [Jacobian, Prediction])
def test_halves_of_a_gradient_probe_make_the_whole(kind):
    model = nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Dropout(0.2), nn.AlphaDropout(0.0), nn.Linear(6, C)).double()
    x = torch.randn(N, 5, dtype=torch.float64)

    def probe(rows):
        made = kind()
        with preserved(model):
            plan = find_sites(model, lambda n: model(x[:n]))
            made.start(plan, shared_masks=False)
            n = len(x[rows])
            gradients = gradient_pass(model, model, plan, x[rows], n, start=rows.start, want_sites=kind is Prediction)
            fold = made.fold(gradients)
            for row in gradients.rows():
                fold.add(row)
            fold.close()
        return made

    first, second, whole = probe(slice(0, CUT)), probe(slice(CUT, N)), probe(slice(0, N))
    first.merge(second)
    found, expected = first.outcome(), whole.outcome()
    assert len(expected.columns.columns) > 0
    assert_same(found.columns, expected.columns)
    assert_same_tables(found.tables, expected.tables)


def test_a_worker_whose_input_could_not_be_differentiated_says_so_after_merging():
    idle, other = Jacobian(), Jacobian()
    other._differentiable = False
    idle.merge(other)
    assert "jacobian_unavailable" in idle.outcome().findings
