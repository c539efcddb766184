from dataclasses import replace

import pytest
from report_samples import without_dropout, without_intervals

from rdrop_probes.records import Comparison, Metric
from rdrop_reports.outcome import format_beside
from rdrop_reports.verdict import caveats, headline, verdicts


def with_epkl(record, **changes):
    changed = [replace(c, **changes) if c.metric == "epkl" else c for c in record.comparisons]
    return replace(record, comparisons=changed)


@pytest.mark.parametrize(
    ("changes", "outcome", "words"),
    [
        ({"difference": -0.2, "low": -0.3, "high": -0.1}, "more consistent", "rdrop is more consistent than baseline"),
        ({"difference": 0.2, "low": 0.1, "high": 0.3}, "less consistent", "rdrop is less consistent than baseline"),
        ({"difference": -0.1, "low": -0.3, "high": 0.1}, "no difference shown", "the interval includes 0"),
        ({"p_adjusted": 0.2}, "no difference shown", "not once adjusted for the number of metrics"),
        ({"difference": None}, "not compared", "was not compared with baseline: its EPKL of"),
    ],
)
def test_each_outcome_has_its_words(pair, changes, outcome, words):
    (verdict,) = verdicts(with_epkl(pair[0], **changes))
    assert verdict.outcome == outcome
    assert words in verdict.sentence


def test_the_sentence_gives_difference_ratio_interval_and_p(pair):
    (verdict,) = verdicts(with_epkl(pair[0], difference=-0.2, low=-0.21, high=-0.19, p_adjusted=0.01))
    assert "a difference of −0.200 [−0.210, −0.190] (95% interval)" in verdict.sentence  # noqa: RUF001 - a minus sign
    assert "a ratio of 0.1" in verdict.sentence
    assert "adjusted p = 0.01" in verdict.sentence


def test_accuracy_is_the_context_of_consistency(pair):
    assert "eval accuracy" in verdicts(pair[0])[0].context


def test_without_intervals_nothing_is_concluded(pair):
    (verdict,) = verdicts(without_intervals(pair[0]))
    assert verdict.outcome == "no difference shown"
    assert "without an interval nothing can be concluded" in verdict.sentence


def test_a_single_checkpoint_is_judged_by_itself(single):
    (verdict,) = verdicts(single[0])
    assert verdict.outcome == "own consistency"
    assert "of sub-model predictions differ from the eval model's" in verdict.context
    assert caveats(single[0]) == []


def test_a_model_without_dropout_is_said_to_have_none(single):
    (verdict,) = verdicts(without_dropout(single[0]))
    assert verdict.outcome == "no dropout"
    assert "model draws no dropout" in verdict.sentence


def test_sub_models_that_are_all_alike_are_said_to_be(single, pair):
    def at_rate_1(record, **values):
        last = record.checkpoints[-1]
        metrics = last.metrics | {name: replace(last.metrics[name], estimate=value) for name, value in values.items()}
        last = replace(last, sites=[replace(site, rate=1.0) for site in last.sites], metrics=metrics)
        return replace(record, checkpoints=[*record.checkpoints[:-1], last])

    record = at_rate_1(single[0], epkl=0.0)
    assert headline(record) == "All sub-models of model are alike, though they differ from the eval model."
    assert verdicts(record)[0].sentence.endswith("differ from the eval model: every dropout is at rate 0 or 1.")
    assert headline(at_rate_1(single[0], epkl=0.0, kl_sub_to_eval=0.0)) == "All sub-models of model are alike."
    assert headline(at_rate_1(single[0])).startswith("The sub-models of model diverge by")
    assert verdicts(at_rate_1(pair[0], epkl=0.0))[0].context.startswith("All sub-models of rdrop are alike")


def test_one_checkpoint_per_arm_is_admitted(pair):
    assert "Each comparison is of one checkpoint with one: intervals cover new data, not new training runs." in caveats(
        pair[0]
    )


def test_several_candidates_are_counted(make_sample):
    record, _ = make_sample(("baseline", "a", "b", "c"))
    assert headline(record) == "3 of 3 candidates are more consistent than baseline."
    unsure = [replace(c, low=-1.0, high=1.0) if c.candidate != "a" else c for c in record.comparisons]
    expected = "1 of 3 candidates is more consistent than baseline (no difference shown: 2)."
    assert headline(replace(record, comparisons=unsure)) == expected


def test_no_checkpoint_at_all(pair):
    nothing = replace(pair[0], checkpoints=[], comparisons=[], examples=[])
    assert headline(nothing) == "No checkpoint could be measured."


def test_means_have_two_digits_also_where_their_difference_has_one():
    difference = Comparison(
        metric="epkl", reference="a", candidate="b", difference=-0.0694, low=-0.1009, high=-0.0379, ratio=None,
        ratio_low=None, ratio_high=None, p_value=0.01, p_adjusted=0.03, test="t", level=0.95, unit="nats", n=3,
    )  # fmt: skip
    assert format_beside([Metric(estimate=0.0471), Metric(estimate=0.1165)], difference) == ["0.047", "0.117"]
