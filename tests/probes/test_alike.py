"""Sub-models that are all the same network, though not the eval model: dropout at rate 1 and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rdrop_probes.attribution import Attribution
from rdrop_probes.batch import Batch
from rdrop_probes.calibration import Calibration
from rdrop_probes.families import Gaussian
from rdrop_probes.gap import Gap
from rdrop_probes.measure import measure
from rdrop_probes.pairwise_kl import PairwiseKL
from rdrop_probes.regression import GaussianGap, GaussianPairwise
from rdrop_probes.settings import Settings
from rdrop_probes.statistics import metric

N, C = 30, 4
BETWEEN = ("epkl", "mutual_information", "reverse_mutual_information", "disagreement", "epkl_sum_of_parts")


def net(*rates: float) -> nn.Module:
    layers = [part for rate in rates for part in (nn.Linear(6, 6), nn.Tanh(), nn.Dropout(rate))]
    return nn.Sequential(*layers, nn.Linear(6, C))


def run(model, probes, labels=None, **options):
    family = {"family": options.pop("family")} if "family" in options else {}
    batch = Batch(30 * torch.randn(N, 6), N, 0, labels)
    return measure(model, [batch], forward=model, probes=probes, settings=Settings(sub_models=6, **options), **family)


@pytest.mark.parametrize("masks", ["per-example", "shared"])
@pytest.mark.parametrize("strategy", ["loop", "vmap", "fold"])
def test_divergences_between_them_are_exactly_0_and_those_to_the_eval_model_are_not(masks, strategy):
    probes = [PairwiseKL, Gap, Calibration, Attribution]
    found = run(net(1.0, 1.0), probes, torch.randint(0, C, (N,)), masks=masks, strategy=strategy)
    for name in BETWEEN:
        shown = metric(found.columns[name], unit="nats", shared_masks=masks == "shared")
        assert (shown.estimate, shown.low, shown.high, shown.mask_low, shown.mask_high) == (0, 0, 0, 0, 0)
    assert found.metrics["constraint_epsilon"].estimate == 0
    assert found.tables["convergence"] == []
    assert {line.only.estimate for line in found.tables["attribution"]} == {0.0}
    assert metric(found.columns["kl_sub_to_eval"], unit="nats", shared_masks=False).low > 1e-3
    assert found.columns["flip_rate"].proportion  # whether the one network they are flips other examples is not known
    assert "all sub-models are alike" in found.findings["alike_sub_models"]


def test_in_regression_as_well():
    found = run(net(1.0), [GaussianPairwise, GaussianGap], family=Gaussian(1.0))
    assert not found.columns["epkl"].values.any()
    assert not found.columns["pairwise_mse"].values.any()
    assert found.columns["kl_sub_to_eval"].values.mean() > 1e-3


def test_a_site_at_rate_1_beside_others_adds_nothing_by_itself():
    found = run(net(1.0, 0.3), [PairwiseKL, Attribution])
    by_site = {line.site: line.only.estimate for line in found.tables["attribution"]}
    assert by_site["2"] == 0
    assert by_site["5"] > 1e-6
    assert found.tables["convergence"]
    assert "alike_sub_models" not in found.findings


def test_without_any_dropout_no_share_is_uncertain():
    found = run(nn.Linear(6, C), [PairwiseKL, Gap], torch.randint(0, C, (N,)))
    for name in ("flip_rate", "disagreement", "accuracy_gap", "epkl"):
        shown = metric(found.columns[name], unit="", shared_masks=False)
        assert (shown.estimate, shown.low, shown.high) == (0, 0, 0)
