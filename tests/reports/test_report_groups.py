from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from rdrop_probes.groups import Arm, compare_arms, group_result
from rdrop_probes.records import Axis, in_unit
from rdrop_reports.figures import FIGURES, figure_bytes
from rdrop_reports.figures.style import DARK, LIGHT, styled
from rdrop_reports.group_frames import group_comparisons_frame, groups_frame
from rdrop_reports.group_tables import arm_comparison_tables, arms_table
from rdrop_reports.layout_over import UNGROUPED, lines

OURS = ("groups", "over", "over_scores")


def experiment(make_sample, arms: dict[str, int], values: dict[str, list[float]] | None = None, examples: int = 40):
    """A record of groups with so many members each; `values` are those of the members on an axis."""
    names = {arm: [f"{arm}-{i}" for i in range(count)] for arm, count in arms.items()}
    record, _ = make_sample(tuple(n for part in names.values() for n in part), examples=examples)
    by_name = {c.name: c for c in record.checkpoints}
    built = [Arm(arm, [by_name[n] for n in part], list(range(len(part)))) for arm, part in names.items()]
    axis = {n: x for arm, part in names.items() for n, x in zip(part, (values or {}).get(arm, []), strict=False)}
    return replace(
        record,
        groups=[group_result(arm) for arm in built],
        reference_group=built[0].name,
        group_comparisons=[c for arm in built[1:] for c in compare_arms(built[0], arm)],
        axis=Axis(name="alpha", values=axis) if values else None,
    )


def drawn(record, name: str, theme=LIGHT) -> bytes | None:
    with styled(theme):
        figure = FIGURES[name].draw(record, None, theme)
    return None if figure is None else figure_bytes(figure, "svg", theme, live_text=True)


def test_groups_are_drawn_and_concluded_from(make_sample):
    record = experiment(make_sample, {"base": 3, "rdrop": 3, "one": 1})
    svg = drawn(record, "groups").decode()
    assert "rdrop, 3 seeds" in svg
    assert "one, 1 seed" in svg
    text = FIGURES["groups"].takeaway(record, None)
    assert text.startswith("Over seeds, against base, the mean EPKL is ")
    assert "times for one (not tested)" in text
    assert drawn(record, "groups", DARK)


def test_without_groups_or_an_axis_nothing_is_drawn(pair):
    for name in OURS:
        assert drawn(pair[0], name) is None
        assert FIGURES[name].takeaway(pair[0], None) == ""
    assert arms_table(pair[0]) is None
    assert arm_comparison_tables(pair[0]) == []


def test_groups_that_each_lie_at_one_place_are_one_line_of_means_over_seeds(make_sample):
    record = experiment(make_sample, {"a": 3, "b": 3, "c": 1}, {"a": [0.0] * 3, "b": [1.0] * 3, "c": [5.0]})
    (line,) = lines(record, "epkl")
    assert [p.x for p in line.points] == [0.0, 1.0, 5.0]
    means = [group.metrics["epkl"].estimate for group in record.groups]
    assert [p.value.estimate for p in line.points] == pytest.approx(means)
    assert [len(p.seeds) for p in line.points] == [3, 3, 1]
    assert line.points[2].value.low is None  # the interval of its examples is of another kind
    assert "at alpha 0 to" in FIGURES["over"].takeaway(record, None)
    assert b"over seeds" in drawn(record, "over")


def test_groups_along_the_axis_are_a_line_each_and_the_rest_another(make_sample):
    values = {"a": [1.0, 2.0, 3.0], "b": [1.0, 2.0, 3.0]}
    record = experiment(make_sample, {"a": 3, "b": 3}, values)
    assert [line.name for line in lines(record, "epkl")] == ["a", "b"]
    assert all(p.value.low is not None and not p.seeds for line in lines(record, "epkl") for p in line.points)
    assert "at alpha 3" in FIGURES["over"].takeaway(record, None)
    alone = replace(record, groups=record.groups[:1])
    assert [line.name for line in lines(alone, "epkl")] == ["a", UNGROUPED]
    assert b">no group<" in drawn(alone, "over")


@pytest.mark.parametrize("places", [[0.0, 0.5, 1.0, 5.0], [1e-4, 1e-3, 1e-2, 1.0], [0.0, 1e-3, 1e-2, 1.0], [2.0] * 4])
def test_axes_of_any_spacing_are_drawn(make_sample, places):
    record = experiment(make_sample, {"a": 4}, {"a": places})
    for name in ("over", "over_scores"):
        svg = drawn(record, name)
        assert (svg is None) == (len(set(places)) == 1)  # one place is no curve
        assert svg is None or all(f">{x:g}<".encode() in svg for x in (places[0], places[-1]))


def test_what_falls_is_said_to_fall_only_where_intervals_lie_apart(make_sample):
    record = experiment(make_sample, {"a": 2}, {"a": [0.0, 1.0]}, examples=400)
    assert "EPKL falls from" in FIGURES["over"].takeaway(record, None)
    wide = [
        replace(c, metrics=c.metrics | {"epkl": replace(c.metrics["epkl"], low=0.0, high=9.0)})
        for c in record.checkpoints
    ]
    assert "intervals overlapping" in FIGURES["over"].takeaway(replace(record, checkpoints=wide), None)


def test_tables_of_groups_follow_the_unit_shown(make_sample):
    record = experiment(make_sample, {"base": 3, "rdrop": 3})
    table = arms_table(record)
    assert [cell.text for cell in table.head] == ["Metric", "base", "rdrop"]
    assert [cell.note for cell in table.head] == ["", "3 seeds, reference", "3 seeds"]
    (compared,) = arm_comparison_tables(record)
    assert "Effect size" in [cell.text for cell in compared.head]
    effects = [c.effect_size for c in record.group_comparisons]
    assert [row[-2].sort for row in compared.rows] == effects
    (bits,) = arm_comparison_tables(in_unit(record, "bits"))
    nats = {row[0].text: row[1].sort for row in compared.rows}
    assert {row[0].text: row[1].sort for row in bits.rows}["EPKL"] == pytest.approx(nats["EPKL"] / np.log(2))


def test_many_groups_become_rows(make_sample):
    record = experiment(make_sample, {f"g{i}": 2 for i in range(6)})
    table = arms_table(record)
    assert [row[0].text for row in table.rows] == [f"g{i}" for i in range(6)]
    assert len(arm_comparison_tables(record)) == 5


def test_a_hundred_checkpoints_are_drawn_soon_small_and_low(make_sample):
    arms = {f"arm{i:02}": 2 for i in range(25)}
    many = experiment(make_sample, arms, {arm: [1.0, 2.0] for arm in arms}, examples=20)
    alone = experiment(make_sample, {"all": 100}, {"all": [float(x) for x in range(100)]}, examples=20)
    for record in (many, alone):
        for name in OURS:
            began = time.monotonic()
            svg = drawn(record, name)
            assert time.monotonic() - began < 10  # seconds; about one on a slow machine
            assert len(svg) < 200_000
            with styled(LIGHT):
                assert FIGURES[name].draw(record, None, LIGHT).get_figheight() < 20
    assert b"19 more" in drawn(many, "over")
    assert b"24 of 25 groups" in drawn(many, "groups")


@pytest.mark.parametrize("name", ["$\\frac", "<script>" + "x" * 200, "a\nb\x00"])
def test_hostile_names_are_only_shown(make_sample, name):
    record = experiment(make_sample, {"base": 2, "other": 2}, {"base": [0.0, 1.0], "other": [0.0, 1.0]})
    record = replace(
        record,
        groups=[record.groups[0], replace(record.groups[1], name=name)],
        axis=replace(record.axis, name=name),
        group_comparisons=[replace(c, candidate=name) for c in record.group_comparisons],
    )
    for figure in OURS:
        assert b"<script" not in drawn(record, figure)
        assert "\n" not in FIGURES[figure].takeaway(record, None)
    assert arms_table(record) is not None


def test_groups_are_data_frames(make_sample):
    record = experiment(make_sample, {"base": 3, "one": 1})
    frame = groups_frame(record).set_index(["group", "metric"])
    assert frame.loc[("base", "epkl"), "n"] == 3
    assert frame.loc[("base", "epkl"), "low"] == record.groups[0].metrics["epkl"].low
    assert np.isnan(frame.loc[("one", "epkl"), "low"])
    compared = group_comparisons_frame(record)
    assert set(compared["candidate"]) == {"one"}
    assert compared["p_value"].isna().all()
    assert list(groups_frame(replace(record, groups=[]))) == list(groups_frame(record))
