"""Reports of other tasks than classification: per what numbers are, squared errors, examples without a class."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from rdrop_analysis import analyze
from rdrop_probes.records import in_unit
from rdrop_reports.figures import draw_all
from rdrop_reports.gallery import cards
from rdrop_reports.page import render_page
from rdrop_reports.verdict import verdicts


@pytest.fixture(scope="module")
def regression():
    torch.manual_seed(0)
    models = {
        name: nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Dropout(rate), nn.Linear(16, 1)).eval()
        for name, rate in (("baseline", 0.5), ("rdrop", 0.1))
    }
    models["rdrop"].load_state_dict(models["baseline"].state_dict())
    return analyze(models, (torch.randn(60, 3), torch.randn(60)), sub_models=8)


def of_tokens(record):
    """The same record as if of several tokens an example."""
    examples = [replace(example, predictions={}, votes={}, label=None) for example in record.examples]
    return replace(record, data=replace(record.data, task="tokens", per="token", n_rows=4000), examples=examples)


def test_verdicts_say_per_what_they_are(pair):
    record = of_tokens(pair[0])
    assert "nats per token against" in verdicts(record)[0].sentence
    assert "bits per token against" in verdicts(in_unit(record, "bits"))[0].sentence
    assert "per " not in verdicts(pair[0])[0].sentence.split("against")[0]


def test_the_page_says_what_the_mean_and_the_sample_are(pair):
    page = render_page(of_tokens(pair[0]), pair[1])
    assert "the mean over tokens; [low, high]" in page
    assert "the tokens of an example depend on each other" in page
    assert '<th scope="row">tokens measured</th><td>4000</td>' in page.replace("4,000", "4000")
    assert "the mean over examples; [low, high]" in render_page(*pair)


def test_an_example_without_a_class_shows_its_epkl_alone(pair):
    (card, *_) = cards(of_tokens(pair[0]))
    assert [(row.prediction, row.right, row.votes) for row in card.rows] == [("", None, [])] * 2
    assert all(float(row.epkl) > 0 for row in card.rows)


def test_a_regression_is_judged_by_its_squared_error(regression):
    (verdict,) = verdicts(regression.record)
    assert verdict.outcome == "more consistent"
    assert "squared error" in verdict.context
    page = render_page(regression.record, regression.per_example)
    assert "MSE between passes" in page
    assert "Squared error with dropout on minus dropout off" in page
    assert "outputs</th><td>1</td>" in page
    assert "Accuracy with dropout" not in page


def test_what_holds_of_every_checkpoint_because_of_the_task_is_said_once(regression):
    codes = [(warning.code, warning.checkpoint) for warning in regression.record.warnings]
    assert codes.count(("gaussian_surrogate", None)) == 1
    assert not [code for code, checkpoint in codes if checkpoint]


def test_figures_of_regression_have_no_panel_of_classes(regression):
    names = set(draw_all(regression.record, regression.per_example))
    assert {"epkl", "gap", "divergences", "jacobian", "predicted"} <= names
    assert "reliability" not in names
