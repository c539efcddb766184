import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axis import Axis
from matplotlib.transforms import Bbox
from report_samples import without_dropout, without_intervals

from rdrop_probes.records import in_unit
from rdrop_reports.figures import FIGURES, draw_all, figure_bytes, save_figures
from rdrop_reports.figures.style import LIGHT, PAPER, styled
from rdrop_reports.page import render_page
from rdrop_reports.per_example import values
from rdrop_reports.text import called, elide, listed


def test_a_full_comparison_draws_every_figure_and_concludes(full):
    assert list(draw_all(*full)) == list(FIGURES)
    assert [name for name, spec in FIGURES.items() if not spec.takeaway(*full)] == []


@pytest.mark.parametrize("count", [1, 2, 4, 20])
def test_any_number_of_checkpoints_can_be_drawn(make_sample, tmp_path, count):
    record, per_example = make_sample(tuple(f"run{i}" for i in range(count)), examples=60)
    written = save_figures(record, per_example, tmp_path)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    assert ("epkl_per_example.png" in [path.name for path in written]) == (count > 1)


@pytest.mark.parametrize("change", [without_dropout, without_intervals])
def test_records_with_less_in_them_are_drawn_too(pair, change):
    record = change(pair[0])
    assert "gap" in draw_all(record, pair[1])
    assert all(isinstance(spec.takeaway(record, None), str) for spec in FIGURES.values())


def test_without_labels_and_per_example_values_their_figures_are_left_out(make_sample):
    record, _ = make_sample(labels=False)
    assert set(draw_all(record, None)) == {"epkl", "divergences", "jacobian", "sites", "convergence"}


def test_exact_zeros_do_not_break_log_axes(pair):
    record, per_example = pair
    zeros = per_example.assign(epkl=np.where(per_example["checkpoint"] == "rdrop", 0.0, per_example["epkl"]))
    assert figure_bytes(draw_all(record, zeros)["epkl_per_example"], "png")


@pytest.mark.parametrize("size", [1e308, float("inf"), float("nan")])
def test_numbers_that_no_axis_holds_are_left_out_and_the_rest_is_drawn(pair, size, tmp_path):
    record, per_example = pair
    first, *others = record.checkpoints
    huge = {name: replace(m, estimate=size, low=-size, high=size) for name, m in first.metrics.items()}
    odd = replace(record, checkpoints=[replace(first, metrics=huge), *others])
    odd_rows = per_example.assign(epkl=[size, *per_example["epkl"][1:]])
    names = {path.name for path in save_figures(odd, odd_rows, tmp_path)}
    assert {"epkl.png", "gap.png", "epkl_distribution.png"} <= names
    assert "<table" in render_page(odd, odd_rows)


def test_a_figure_that_cannot_be_drawn_costs_neither_page_nor_files(pair, tmp_path, monkeypatch, caplog):
    def breaks(*_):
        raise ValueError("Axis limits cannot be NaN or Inf")

    monkeypatch.setattr("rdrop_reports.figures.FIGURES", dict(FIGURES) | {"gap": replace(FIGURES["gap"], draw=breaks)})
    assert "gap.png" not in {path.name for path in save_figures(*pair, tmp_path)}
    assert 'id="fig-epkl"' in render_page(*pair)
    assert "the figure gap is left out, for it cannot be drawn: Axis limits cannot be NaN or Inf" in caplog.messages
    caplog.clear()


def test_a_record_without_metrics_draws_nothing(pair):
    bare = [replace(c, metrics={}, convergence=[], reliability={}, site_predictions=[]) for c in pair[0].checkpoints]
    assert draw_all(replace(pair[0], checkpoints=bare), None) == {}


def test_names_are_drawn_as_they_are_and_elided(make_sample):
    record, per_example = make_sample((r"$\frac", "<script>" + "x" * 200), examples=60)
    svg = figure_bytes(draw_all(record, per_example)["epkl"], "svg", live_text=True)
    assert rb"$\frac" in svg
    assert b"&lt;script" in svg
    assert b"<script" not in svg
    assert b"x" * 50 not in svg


def test_names_in_any_script_are_drawn_without_warnings(make_sample, tmp_path):
    assert save_figures(*make_sample(("基准", "кандидат \U0001f600"), examples=60), tmp_path)


def test_the_users_matplotlib_settings_neither_matter_nor_change(pair):
    expected = figure_bytes(draw_all(*pair)["epkl"], "svg")
    with mpl.rc_context({"font.size": 30, "lines.linewidth": 9}):
        before = dict(mpl.rcParams)
        assert figure_bytes(draw_all(*pair)["epkl"], "svg") == expected
        assert dict(mpl.rcParams) == before


def test_per_example_values_follow_the_unit_shown(pair):
    record, per_example = pair
    nats, bits = (values(r, per_example, "rdrop", "epkl") for r in (record, in_unit(record, "bits")))
    np.testing.assert_allclose(bits * np.log(2), nats)


def test_importing_the_package_is_light_and_drawing_leaves_pyplot_alone():
    code = (
        "import sys, rdrop_reports; assert 'matplotlib' not in sys.modules;"
        "import rdrop_reports.verdict; assert 'pandas' not in sys.modules;"
        "import rdrop_reports.page; assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    environment = {"PYTHONPATH": ":".join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)  # noqa: S603 - our own code


def test_texts_are_made_fit_for_a_line():
    assert elide("a\nb\x00c\u202ed") == "a b c d"
    assert (
        elide("x" * 100, 11) == "xxxxxx…xxxxx"[:12].replace("xxxxxx…", "xxxxx…", 1) or len(elide("x" * 100, 11)) == 11
    )
    assert elide("") == "(no name)"
    assert len(called("y" * 500)) == 48
    assert listed(["a", "b", "c"]) == "a, b and c"


@pytest.mark.parametrize("theme", [LIGHT, PAPER])
def test_labels_of_neighbouring_ticks_neither_overlap_nor_touch(full, theme):
    with styled(theme):
        for name, figure in draw_all(*full, theme).items():
            figure.savefig(BytesIO(), format="svg")
            for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
                assert not any(first.overlaps(second) for first, second in pairwise(boxes(axis))), name


def boxes(axis: Axis) -> list[Bbox]:
    """Where the labels of an axis are that are within it and not empty."""
    low, high = sorted(axis.get_view_interval())
    ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high and tick.label1.get_text()]
    return [tick.label1.get_window_extent() for tick in ticks if tick.label1.get_visible()]


def test_panels_of_values_have_more_than_one_tick_beside_0(full):
    figures = draw_all(*full)
    for name in ("gap", "divergences", "jacobian", "attribution"):
        figures[name].savefig(BytesIO(), format="svg")
        for axes in figures[name].axes:
            low, high = axes.get_xlim()
            assert sum(low <= x <= high and x != 0 for x in axes.get_xticks()) > 1, name


def test_sites_of_several_checkpoints_are_drawn_to_one_scale(full):
    axes = draw_all(*full)["attribution"].axes
    assert len(axes) > 1
    assert len({panel.get_xlim() for panel in axes}) == 1
