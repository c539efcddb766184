"""Reports of other tasks than classification: per what numbers are, squared errors, examples without a class."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from rdrop_analysis import analyze, load_results
from rdrop_analysis.errors import DataError
from rdrop_probes.records import in_unit
from rdrop_reports.figures import draw_all
from rdrop_reports.gallery import cards
from rdrop_reports.page import render_page
from rdrop_reports.text import short_paths
from rdrop_reports.verdict import headline, verdicts


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


def test_results_of_a_regression_are_read_back(regression, tmp_path):
    regression.save(tmp_path)
    again = load_results(tmp_path)
    assert again.record == regression.record
    assert again.per_example["label"].tolist() == pytest.approx(regression.per_example["label"].tolist())
    (tmp_path / "per_example.csv").write_text("checkpoint,example,label\na,0,none at all\n")
    with pytest.raises(DataError, match=r"per_example\.csv cannot be read"):
        load_results(tmp_path)


def test_paths_of_sites_keep_the_end_that_tells_them_apart():
    layers = [f"bert.encoder.layer.{i}.attention.output.dropout" for i in range(2)]
    assert short_paths(layers, 40) == ["0.attention.output.dropout", "1.attention.output.dropout"]
    short = short_paths([*layers, "bert.embeddings.dropout"], 28)
    assert short == ["…0.attention.output.dropout", "…1.attention.output.dropout", "embeddings.dropout"]
    assert short_paths(["(root)"], 10) == ["(root)"]


def test_checkpoints_of_other_tasks_are_said_to_be_measured():
    x = torch.randn(30, 3)
    models = {n: nn.Sequential(nn.Linear(3, d), nn.Dropout(0.2)) for n, d in (("numbers", 1), ("classes", 4))}
    record = analyze(models, (x, torch.randint(0, 4, (30,)).float()), sub_models=4).record
    (verdict,) = verdicts(record)
    assert verdict.outcome == "not compared"
    assert "its EPKL of" in verdict.sentence
    assert "measured, and not compared with numbers" in headline(record)


def test_few_examples_are_admitted_and_no_interval_is_impossible():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4))
    record = analyze(model, (torch.randn(3, 3), torch.tensor([0, 1, 2])), sub_models=2).record
    assert "few_examples" in [warning.code for warning in record.warnings]
    metrics = record.checkpoints[0].metrics
    for name in ("epkl", "flip_rate", "disagreement", "nll_sub", "kl_sub_to_eval", "jacobian_fisher"):
        found = metrics[name]
        assert found.low is None or found.low >= min(0.0, found.estimate)
    assert (metrics["flip_rate"].high or 0) <= 1
