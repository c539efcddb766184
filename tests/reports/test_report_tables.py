from dataclasses import replace

import numpy as np
from report_samples import without_intervals

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
