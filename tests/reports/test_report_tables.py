from dataclasses import replace

import numpy as np
import pytest
from report_samples import without_intervals

from rdrop_probes.records import GroupResult, Metric
from rdrop_reports.group_tables import arms_table
from rdrop_reports.html_tables import metric_cell, metric_table
from rdrop_reports.tables import comparisons_frame, summary_frame


def test_summary_has_one_row_a_checkpoint_and_metric(pair):
    record, _ = pair
    frame = summary_frame(record)
    assert len(frame) == sum(len(c.metrics) for c in record.checkpoints)
    assert list(frame.columns[:5]) == ["checkpoint", "metric", "estimate", "low", "high"]
    assert not frame.duplicated(["checkpoint", "metric"]).any()


def test_bounds_that_were_not_estimated_are_missing_numbers(pair):
    frame = summary_frame(without_intervals(pair[0]))
    assert frame["low"].dtype == np.float64
    assert frame["low"].isna().all()


def test_comparisons_keep_their_columns_without_rows(pair):
    record, _ = pair
    assert set(comparisons_frame(record)["candidate"]) == {"rdrop"}
    empty = comparisons_frame(replace(record, comparisons=[]))
    assert list(empty.columns) == list(comparisons_frame(record).columns)


@pytest.mark.parametrize(
    ("estimate", "low", "high", "text", "interval"),
    [(-0.4, -0.4, 0.4, "0", "[0, 0.40]"), (0.5, -0.2, 0.7, "0.5", "[0, 0.7]"), (-0.1, None, None, "0", "")],
)
def test_a_distance_is_shown_from_0_on(pair, estimate, low, high, text, interval):
    """The root of an unbiased square that came out negative keeps its sign in `results.json` alone."""
    name, found = "expectation_linearity", Metric(estimate=estimate, low=low, high=high, unit="logits")
    record = replace(pair[0], checkpoints=[replace(c, metrics={name: found}) for c in pair[0].checkpoints])
    (row,) = metric_table(record, [name], "").rows
    assert {(cell.text, cell.note) for cell in row[1:]} == {(text, interval)}
    groups = [GroupResult(name="a", members=["baseline"], metrics={name: found})]
    (row,) = arms_table(replace(record, groups=groups)).rows
    assert (row[1].text, row[1].note) == (text, interval)
    assert metric_cell("epkl_interaction", found).sort == estimate
