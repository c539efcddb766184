"""Results as others take them: tables to paste, parquet, figures for papers, experiment trackers."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from markdown_it import MarkdownIt
from small_records import HOSTILE, METRICS, grouped, per_example, record
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rdrop_analysis import files
from rdrop_analysis.cli import main
from rdrop_analysis.errors import DataError, UsageError
from rdrop_analysis.loggers import flat_metrics, parse_tracker
from rdrop_analysis.results import Results, load_results
from rdrop_analysis.terminal import show
from rdrop_probes.records import Finding, GateResult, RunRecord, to_json
from rdrop_reports.html_tables import Cell, Table
from rdrop_reports.latex import latex_table, latex_tables
from rdrop_reports.markdown import markdown_table, markdown_tables
from rdrop_reports.numbers import format_parts
from rdrop_reports.text import elide
from rdrop_reports.verdict import verdicts

FREEDOM = ("fisher_trace", "effective_dimension")


def results(*names: str) -> Results:
    names = names or ("base", "rdrop")
    return Results(record(names), per_example(names))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return results().save(tmp_path / "out", "json,csv")


# --- tables to paste


def shown(whole: RunRecord, name: str) -> tuple[str, str]:
    metric = whole.checkpoints[0].metrics[name]
    return tuple(format_parts(metric.estimate, metric.low, metric.high))


def test_markdown_has_estimates_and_intervals():
    whole = record()
    estimate, interval = shown(whole, "epkl")
    lines = markdown_tables(whole).splitlines()
    (row,) = [line for line in lines if line.startswith("| EPKL (nats) ↓ | ") and line.count("|") == 4]
    assert f"| {estimate} {interval} |" in row
    assert "| Metric | `base` (reference) | `rdrop` |" in lines


def test_markdown_lists_gates():
    gates = [
        GateResult(expression="epkl > 1", subject="rdrop", failed=failed, value=2.0, bound=1.0, message="rdrop: 2 > 1")
        for failed in (True, False)
    ]
    text = markdown_tables(replace(record(), gates=gates))
    assert "\n- gate **failed**: epkl &gt; 1, rdrop: 2 &gt; 1\n- gate passed: epkl &gt; 1," in text


def test_latex_has_estimates_and_intervals():
    whole = record()
    estimate, interval = shown(whole, "epkl")
    lines = latex_tables(whole).splitlines()
    assert any(line.startswith(rf"EPKL (nats) $\downarrow$ & {estimate} {interval} & ") for line in lines)
    assert r"Metric & base (reference) & rdrop \\" in lines


def test_many_checkpoints_become_rows():
    whole = record([f"seed-{i}" for i in range(9)])
    assert r"seed-8 & " in latex_tables(whole)
    assert "\n| `seed-8` | " in markdown_tables(whole)


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_shows_any_name_as_it_is(name):
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown_tables(record(("base", name))))
    inline = [child for token in tokens if token.type == "inline" for child in token.children or ()]
    assert {child.type for child in inline} <= {"text", "text_special", "code_inline", "strong_open", "strong_close",
                                               "em_open", "em_close"}  # fmt: skip
    assert {token.type for token in tokens if token.type.endswith("_open")} <= {
        "paragraph_open", "heading_open", "table_open", "thead_open", "tbody_open", "tr_open", "th_open", "td_open",
    }  # fmt: skip
    heads = [token.children for token in tokens if token.type == "inline" and token.children]
    texts = ["".join(child.content for child in children) for children in heads]
    assert elide(name, 32) in texts  # a cell of its own


@pytest.mark.parametrize("name", HOSTILE)
def test_latex_of_any_name_is_balanced_and_runs_no_command_of_it(name):
    text = latex_tables(record(("base", name)))
    assert r"\input" not in text
    bare = re.sub(r"\\[\\{}$&#%_]", "", text)  # without what is escaped
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert "#" not in bare
    assert bare.count("%") == 1  # of the first line
    for tabular in re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", text, flags=re.DOTALL):
        rows = [line for line in tabular[1].splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(tabular[0]) - 1}


def test_a_row_of_latex_is_no_argument_of_the_row_before():
    rows = [[Cell(text), Cell("1", sort=1.0)] for text in ("[1cm]", "*", "a--b", "---")]
    lines = latex_table(Table("Caption", [Cell("Name"), Cell("n")], rows), "tab:x").splitlines()
    assert [line for line in lines if " & 1" in line] == [
        r"{}[1cm] & 1 \\", r"{}* & 1 \\", r"a-{}-b & 1 \\", r"-{}-{}- & 1 \\",
    ]  # fmt: skip


def test_powers_of_ten_and_signs_are_set_as_such():
    minus = "\N{MINUS SIGN}"
    cells = [Cell("1e5"), Cell(f"{minus}6.5e-5", f"[{minus}7.1e-5, 2.0e-7]", sort=-6.5e-5)]
    table = Table("C", [Cell("Metric"), Cell("Value")], [cells])
    assert r"1e5 & $-$6.5$\times 10^{-5}$ [$-$7.1$\times 10^{-5}$, 2.0$\times 10^{-7}$] \\" in latex_table(table, "t")
    assert f"| 1e5 | {minus}6.5e-5 [{minus}7.1e-5, 2.0e-7] |" in markdown_table(table)


# --- files


def test_parquet_takes_the_place_of_csv_and_is_read_back(tmp_path):
    whole = results()
    whole.save(tmp_path, "json,parquet")
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "summary.parquet", "per_example.parquet"}
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "summary.parquet"), whole.summary)
    found = load_results(tmp_path).per_example
    assert found is not None
    assert whole.per_example is not None
    pd.testing.assert_frame_equal(found, whole.per_example, check_dtype=False)
    assert str(found["label"].dtype) == "Int64"


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_per_example_table_is_in_the_unit_shown_says_so_and_is_read_back_in_nats(suffix, tmp_path):
    whole = results()
    shown = replace(whole, record=replace(whole.record, config={"unit": "bits"}))
    shown.per_example["accuracy_eval"] = 0.5
    for name, one in {"nats": whole, "bits": shown}.items():
        one.save(tmp_path / name, f"json,{suffix}")
    read = pd.read_csv if suffix == "csv" else pd.read_parquet
    nats, bits = (read(tmp_path / name / f"per_example.{suffix}") for name in ("nats", "bits"))
    assert set(nats["divergence_unit"]) == {"nats"}
    assert set(bits["divergence_unit"]) == {"bits"}
    np.testing.assert_allclose(bits["epkl"] * math.log(2), nats["epkl"])
    assert set(bits["accuracy_eval"]) == {0.5}
    found = load_results(tmp_path / "bits").per_example
    pd.testing.assert_frame_equal(found, shown.per_example, check_dtype=False)


def test_a_per_example_table_in_no_known_unit_is_one_line(tmp_path):
    results().save(tmp_path, "json,csv")
    path = tmp_path / "per_example.csv"
    path.write_text(path.read_text().replace(",nats,", ",hartleys,"))
    with pytest.raises(
        DataError, match=r"per_example\.csv cannot be read: its divergence_unit is neither nats nor bits"
    ):
        load_results(tmp_path)


def test_a_damaged_parquet_is_one_line(tmp_path):
    results().save(tmp_path, "json,parquet")
    (tmp_path / "per_example.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(DataError, match=r"per_example\.parquet cannot be read: ") as caught:
        load_results(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_parquet_without_its_package_says_what_to_install(saved, monkeypatch):
    monkeypatch.setattr(files, "find_spec", lambda name: None if name == "pyarrow" else find_spec(name))
    done = run("report", "out", "--format", "parquet")
    assert done.exit_code == 2
    assert "pip install 'rdrop-analysis[parquet]'" in done.stderr


def test_what_an_earlier_run_wrote_is_removed(tmp_path):
    results().save(tmp_path, "json,csv,parquet,latex,markdown,svg,html")
    results().save(tmp_path, "json", clear=True)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"results.json"}


def test_an_unknown_style_is_refused(tmp_path):
    with pytest.raises(UsageError, match="choose from screen, paper"):
        results().save(tmp_path, "svg", style="poster")  # type: ignore[arg-type] # what is refused


# --- figures


def width_of(svg: Path) -> float:
    return float(ElementTree.parse(svg).getroot().attrib["width"].removesuffix("pt"))  # noqa: S314 - ours


def box_of(pdf: Path) -> float:
    found = re.search(rb"/MediaBox \[ ?0 0 ([0-9.]+)", pdf.read_bytes())
    assert found is not None
    return float(found.group(1))


def test_figures_of_a_paper_fit_a_column_and_keep_their_proportions(tmp_path):
    for style in ("screen", "paper"):
        results().save(tmp_path / style, "svg,pdf,png", style=style)
    names = {path.stem for path in (tmp_path / "screen" / "figures").iterdir()}
    assert "epkl" in names
    for name in names:
        screen, paper = (tmp_path / style / "figures" / f"{name}.svg" for style in ("screen", "paper"))
        assert width_of(paper) == pytest.approx(3.3 * 72)
        assert box_of(paper.with_suffix(".pdf")) == pytest.approx(3.3 * 72)
        assert box_of(screen.with_suffix(".pdf")) == pytest.approx(width_of(screen)) == pytest.approx(4.6 * 72)
        assert b"STIX" in paper.with_suffix(".pdf").read_bytes()
        assert paper.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_no_text_of_a_paper_is_larger_than_its_largest_setting():
    from matplotlib.text import Text

    from rdrop_reports.figures import draw_all
    from rdrop_reports.figures.style import PAPER

    whole = results()
    sizes = {
        name: [float(text.get_fontsize()) for text in figure.findobj(Text)]
        for name, figure in draw_all(whole.record, whole.per_example, PAPER).items()
    }
    assert max(max(found) for found in sizes.values()) <= 10.5 * PAPER.scale + 1e-9
    assert min(min(found) for found in sizes.values()) >= 5


# --- trackers


def test_keys_are_flat_and_are_what_all_trackers_allow():
    flat = flat_metrics(record())
    assert flat["base/epkl"] == record().checkpoints[0].metrics["epkl"].estimate
    assert flat["rdrop/epkl.low"] == record().checkpoints[1].metrics["epkl"].low
    assert flat["rdrop/epkl.difference.high"] == record().comparisons[0].high
    hostile = flat_metrics(record(("base", *HOSTILE, "../../etc", "." * 300 + "x" * 300)))
    assert len(hostile) == 11 * len(METRICS) * 3 + 10 * len(METRICS) * 5
    assert all(re.fullmatch(r"[\w./-]{1,210}", key, flags=re.ASCII) and ".." not in key.split("/") for key in hostile)
    assert all(math.isfinite(value) for value in hostile.values())


def test_groups_are_logged():
    whole = grouped()
    assert flat_metrics(whole)["rdrop/epkl.difference"] == whole.group_comparisons[0].difference


def test_names_that_become_equal_stay_apart():
    whole = record(("base", "a b", "a_b"))
    flat = flat_metrics(whole)
    assert [flat["a_b/epkl"], flat["a_b/epkl_"]] == [c.metrics["epkl"].estimate for c in whole.checkpoints[1:]]


def test_what_is_missing_is_not_logged():
    whole = record()
    base, rdrop = whole.checkpoints
    lost = replace(base.metrics["epkl"], low=None, estimate=float("nan"))
    flat = flat_metrics(replace(whole, checkpoints=[replace(base, metrics={"epkl": lost}), rdrop]))
    assert [key for key in flat if key.startswith("base/")] == ["base/epkl.high"]


def test_tensorboard_reads_back_what_was_logged(saved):
    done = run("report", "out", "--format", "markdown", "--log-to", "tensorboard:board")
    assert done.exit_code == 0, done.output
    (directory,) = Path("board").iterdir()
    events = EventAccumulator(str(directory))
    events.Reload()
    logged = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    assert logged == {key: pytest.approx(value, rel=1e-6) for key, value in flat_metrics(record()).items()}


class Tracked:
    """What W&B and MLflow offer of what is used here, as their documentation has it."""

    def __init__(self) -> None:
        self.calls: dict[str, Any] = {}
        self.summary = self.metrics = {}  # type: dict[str, float]

    def __enter__(self) -> Tracked:
        return self

    def __exit__(self, *_: object) -> None:
        self.calls["finished"] = True


def installed(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Any) -> None:
    module = ModuleType(name)
    module.__spec__ = SimpleNamespace(name=name)  # type: ignore[assignment] # only looked for
    for function, value in functions.items():
        setattr(module, function, value)
    monkeypatch.setitem(sys.modules, name, module)


def test_wandb_is_told_the_summary(monkeypatch):
    tracked = Tracked()

    def init(**given: Any) -> Tracked:
        tracked.calls |= given
        return tracked

    installed(monkeypatch, "wandb", init=init)
    parse_tracker("wandb:my-project").log(record())
    assert tracked.calls["project"] == "my-project"
    assert tracked.calls["finished"]
    assert tracked.summary == flat_metrics(record())


def test_mlflow_is_told_at_most_a_thousand_metrics_at_once(monkeypatch):
    tracked, sizes = Tracked(), []

    def log_metrics(metrics: dict[str, float]) -> None:
        sizes.append(len(metrics))
        tracked.metrics |= metrics

    installed(
        monkeypatch, "mlflow", set_experiment=lambda name: tracked.calls.update(experiment=name),
        start_run=lambda: tracked, log_metrics=log_metrics, log_params=tracked.calls.update,
    )  # fmt: skip
    whole = record([f"seed-{i}" for i in range(60)])
    parse_tracker("mlflow").log(whole)
    assert tracked.calls["experiment"] == "rdrop-analysis"
    assert tracked.calls["data"] == "digits"
    assert tracked.metrics == flat_metrics(whole)
    assert max(sizes) == 1000


def test_a_tracker_that_is_not_installed_is_said_before_anything_is_done(saved, monkeypatch):
    from rdrop_analysis import loggers

    monkeypatch.setattr(loggers, "find_spec", lambda _: None)
    done = run("report", "out", "--format", "markdown", "--log-to", "wandb")
    assert done.exit_code == 2
    assert "pip install 'rdrop-analysis[wandb]'" in done.stderr
    assert not Path("out/tables.md").exists()
    assert run("report", "out", "--log-to", "clearml").stderr.strip().endswith("choose from tensorboard, wandb, mlflow")


def test_a_tracker_that_refuses_is_one_line_and_results_are_there(saved, monkeypatch):
    def init(**_: Any) -> None:
        raise RuntimeError("no network\nat all\x1b[31m")

    installed(monkeypatch, "wandb", init=init)
    done = run("report", "out", "--format", "markdown", "--log-to", "wandb")
    assert done.exit_code == 4
    assert done.stderr == "Error: results could not be logged to wandb: no network\\nat all\\x1b[31m\n"
    assert Path("out/tables.md").exists()


# --- the terminal


def printed(whole: RunRecord, capsys: pytest.CaptureFixture[str]) -> str:
    show(Results(whole, None), Path("out"), ["json"], quiet=False)
    return capsys.readouterr().out


def test_the_terminal_shows_what_was_asked_for_and_no_empty_table(capsys):
    whole = record(("only",))
    freedom = {name: replace(whole.checkpoints[0].metrics["epkl"], unit="") for name in FREEDOM}
    found = printed(replace(whole, checkpoints=[replace(whole.checkpoints[0], metrics=freedom)]), capsys)
    assert "Fisher trace" in found
    assert "Effective dimension" in found
    assert "metric" not in printed(replace(whole, checkpoints=[replace(whole.checkpoints[0], metrics={})]), capsys)


def test_how_something_was_estimated_is_a_note_and_no_warning(capsys):
    found = [Finding(code="freedom_examples", message="on 9 of 10"), Finding(code="few_examples", message="rough")]
    text = printed(replace(record(), warnings=found), capsys)
    assert "Note: on 9 of 10" in text
    assert "Warning: rough" in text


def test_findings_of_many_checkpoints_are_shown_for_two_and_counted(capsys):
    found = [Finding(code="sampled_jacobian", message="by sampling", checkpoint=f"c{i}") for i in range(12)]
    text = printed(replace(record(), warnings=[*found, Finding(code="few_examples", message="rough")]), capsys)
    assert text.count("by sampling") == 2
    assert "10 more like it" in text
    assert "Warning: rough" in text


def test_a_checkpoint_beside_groups_has_a_column(capsys):
    head = next(line for line in printed(grouped(), capsys).splitlines() if line.startswith(" metric"))
    assert head.split() == ["metric", "base", "rdrop", "alone"]


# --- what is pasted, and what notebooks show


@pytest.mark.parametrize("tables", [markdown_tables, latex_tables])
def test_pasted_tables_begin_with_the_verdict_and_what_it_comes_with(tables):
    before = re.split(r"\\begin\{table\}|\n## ", tables(record()))[0]
    (verdict,) = verdicts(record())
    assert "eval accuracy" in verdict.context
    assert set(re.findall(r"[A-Za-z]{4,}", verdict.text)) <= set(re.findall(r"[A-Za-z]{4,}", before))


def test_results_say_shortly_what_they_are():
    shown = repr(results("base", "one", "two", "three", "four"))
    assert shown.startswith("<Results of 5 checkpoints (base, one, two, three, ...), 4 metrics: ")
    assert len(repr(Results(record(("x" * 999, *HOSTILE)), None))) < 600
    assert repr(results("only")).startswith(
        "<Results of 1 checkpoint (only), 4 metrics: The sub-models of only diverge"
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_a_notebook_shows_headline_verdicts_and_labelled_metrics(name):
    html = Results(record(("base", name)), None)._repr_html_()
    root = ElementTree.fromstring(f"<div>{html}</div>")  # noqa: S314 - ours
    assert {element.tag for element in root.iter()} == {"div", "p", "b", "table", "thead", "tbody", "tr", "th", "td"}
    assert "eval accuracy" in html
    assert "<th>EPKL (nats)</th>" in html
    assert "<td" in html


# --- results.json by hand


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"reference": "nobody"}, "its reference 'nobody' is no checkpoint in it"),
        ({"reference_group": "nobody"}, "its reference 'nobody' is no group in it"),
        ({"checkpoints": [record().checkpoints[0]] * 2}, "there are two checkpoints called 'base'"),
        ({"groups": [grouped().groups[0]] * 2}, "there are two groups called 'base'"),
        ({"schema_version": 99}, "schema version 99, this version reads 1"),
    ],
)
def test_results_that_contradict_themselves_are_refused_in_one_line(change, reason, saved):
    path = saved / "results.json"
    path.write_bytes(to_json(replace(results().record, **change)))
    done = run("report", str(path))
    assert done.exit_code == 4
    assert done.stderr == f"Error: {path} cannot be read as results: {reason}\n"


def test_another_schema_is_named_before_anything_that_it_lacks(saved):
    (saved / "results.json").write_text('{"schema_version": 2, "other": []}')
    assert "schema version 2, this version reads 1" in run("report", str(saved)).stderr
