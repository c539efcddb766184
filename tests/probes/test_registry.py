"""Choosing probes, and adding one as CONTRIBUTING.md says."""

from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest
import torch
from torch import nn

from rdrop_probes import registry
from rdrop_probes.probe import SubModelProbe


def squared_distance(seen):
    return (seen.p - seen.batch.p).square().sum(-1)


class Spread(SubModelProbe):
    """Mean squared distance of sub-models to the eval model in probability."""

    name = "spread"
    units: ClassVar = {"squared_distance": ""}
    terms = (squared_distance,)

    def estimate(self, _batch, totals):
        return {"squared_distance": totals.mean(squared_distance)}


def test_all_probes_that_fit_the_data_are_chosen_by_default():
    assert [p.name for p in registry.choose(None, labels=True)] == [
        *("pairwise_kl", "gap", "calibration", "jacobian", "prediction", "averaging", "temperature")
    ]
    assert "calibration" not in [p.name for p in registry.choose(None, labels=False)]
    regression = registry.choose(None, labels=True, family="gaussian")
    assert [p.name for p in regression] == ["pairwise_kl", "gap", "jacobian", "prediction", "averaging"]


def test_named_probes_are_chosen_and_unfit_ones_refused():
    assert [p.name for p in registry.choose(["gap", "pairwise_kl"], labels=False)] == ["pairwise_kl", "gap"]
    with pytest.raises(ValueError, match="unknown probe 'nonsense': choose from default, pairwise_kl"):
        registry.choose(["nonsense"], labels=True)
    with pytest.raises(ValueError, match="calibration needs labels"):
        registry.choose(["calibration"], labels=False)


def test_default_in_a_list_stands_for_the_usual_ones():
    usual = registry.choose(None, labels=True)
    assert registry.choose(["default", "noise_floor"], labels=True) == [*usual, registry.available()["noise_floor"]]


def test_a_probe_of_another_package_is_found_by_its_entry_point_and_measures(measured, monkeypatch):
    entry = EntryPoint("spread", f"{__name__}:Spread", registry.ENTRY_POINTS)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == registry.ENTRY_POINTS else [])
    (probe,) = registry.choose(["spread"], labels=False)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)), torch.randn(6, 4)
    column = measured(model, x, [probe], sub_models=8).columns["squared_distance"]
    assert column.values.shape == (6,)
    assert (column.values > 0).all()
