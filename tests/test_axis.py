from __future__ import annotations

import pytest

from rdrop_analysis.axis import number_in, value_of


@pytest.mark.parametrize(
    ("name", "field", "expected"),
    [
        ("alpha-0.5", "alpha", 0.5),
        ("alpha=0.5", "alpha", 0.5),
        ("run_alpha_1e-3_v2", "alpha", 1e-3),
        ("digits-alpha0-epoch-12", "epoch", 12.0),
        ("digits-alpha0-epoch-12", "alpha", 0.0),
        ("epoch=03-step=100.ckpt", "epoch", 3.0),
        ("runs/Alpha--2/model.pt", "alpha", -2.0),
        ("learning-rate-0.1", "learning_rate", 0.1),
        ("alpha-1/alpha-2.pt", "alpha", 2.0),
        ("alphabet3", "alpha", None),
        ("myalpha3", "alpha", None),
        ("alpha", "alpha", None),
    ],
)
def test_numbers_in_names(name, field, expected):
    assert number_in(name, field) == expected


@pytest.mark.parametrize(
    ("training", "name", "expected"),
    [
        ({"epoch": 2}, "epoch=3", 2.0),
        ({"epochs": 100}, "epoch=3", 3.0),
        ({"epochs": 100}, "final", 100.0),
        ({"epoch": "4"}, "x", 4.0),
        ({"epoch": None}, "x", None),
        ({"epoch": True}, "x", None),
        ({"epoch": float("nan")}, "x", None),
        ({"Epoch": 1.5}, "x", 1.5),
    ],
)
def test_settings_come_before_names_and_names_before_plurals(training, name, expected):
    assert value_of("epoch", training, name) == expected
