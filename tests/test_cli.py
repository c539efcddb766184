from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from rdrop_analysis import terminal
from rdrop_analysis.cli import main
from rdrop_analysis.subjects import entries

NET = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))

class NoDropout(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))

class Dirty(Net):
    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.5)

class Interrupted(Net):
    def forward(self, x):
        raise KeyboardInterrupt

models = [Interrupted, Net]

def interrupted_in_the_second():
    return models.pop()()

class Nan(Net):
    def forward(self, x):
        return super().forward(x) * torch.nan

def broken():
    raise ValueError("no weights today")
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's directory: net.py, two state dicts, test.npz."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    generator = np.random.default_rng(0)
    np.savez("test.npz", x=generator.normal(size=(40, 5)), y=generator.integers(0, 3, 40))
    for seed, name in enumerate(("baseline.pt", "rdrop.pt")):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))
        torch.save(net.state_dict(), name)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


COMMON = ("--model", "net.py:Net", "--data", "test.npz", "--sub-models", "4", "--format", "json,csv")


def test_the_bare_command_analyses_and_writes_what_can_be_loaded(project):
    done = run("baseline.pt", "rdrop.pt", "--model", "net.py:Net", "--data", "test.npz", "--sub-models", "4")
    assert done.exit_code == 0, done.output
    assert "EPKL" in done.output
    assert "report.html" in done.output
    written = {p.name for p in Path("rdrop-report").iterdir()}
    assert written == {"report.html", "figures", "results.json", "summary.csv", "per_example.csv"}
    assert (project / "rdrop-report/figures/epkl.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((project / "rdrop-report/results.json").read_text(), parse_constant=pytest.fail)
    assert [c["name"] for c in record["checkpoints"]] == ["baseline", "rdrop"]
    assert record["schema_version"] == 1


def test_quiet_prints_nothing(project):
    done = run("baseline.pt", *COMMON, "-q")
    assert (done.exit_code, done.output) == (0, "")


def test_checkpoints_of_one_name_are_told_apart_by_their_folders(project):
    for folder in ("a", "b"):
        Path(folder).mkdir()
        Path("baseline.pt").rename(f"{folder}/model.pt") if folder == "a" else Path("rdrop.pt").rename("b/model.pt")
    assert run("a/model.pt", "b/model.pt", *COMMON).exit_code == 0
    record = json.loads(Path("rdrop-report/results.json").read_text())
    assert [c["name"] for c in record["checkpoints"]] == ["a/model", "b/model"]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["missing.pt"], 4, "missing.pt"),
        (["net.py"], 4, "net.py"),
        (["baseline.pt", "--sub-models", "1"], 2, "at least 2"),
        (["baseline.pt", "--probes", "nonsense"], 2, "unknown probe 'nonsense'"),
        (["baseline.pt", "--format", "docx"], 2, "docx"),
        (["baseline.pt", "--batch-size", "0"], 2, "at least 1"),
        (["baseline.pt", "--frobnicate"], 2, "frobnicate"),
        (["baseline.pt", "--data", "nowhere.npz"], 4, "nowhere.npz"),
        (["baseline.pt", "--data", "nonsense"], 4, "known are digits"),
        (["baseline.pt", "--model", "net.py:Nett"], 2, "did you mean Net"),
        (["baseline.pt", "--model", "net.py"], 2, "pkg.mod:callable"),
        (["baseline.pt", "--model", "net.py:broken"], 2, "no weights today"),
        (["baseline.pt", "--model", "net.py:Nan"], 4, "not finite"),
        (["baseline.pt", "--reference", "nobody"], 2, "there is no checkpoint 'nobody'"),
        (["baseline.pt", "--output", "net.py/out"], 4, "--output"),
    ],
)
def test_bad_input_is_one_line_with_its_exit_code(arguments, exit_code, message, project):
    done = run(*COMMON, *arguments)
    assert done.exit_code == exit_code, done.output
    error = [line for line in done.output.splitlines() if line.startswith("Error: ")]
    assert len(error) == 1
    assert message in error[0]
    assert "Traceback" not in done.output


def test_weights_without_a_model_say_what_to_pass(project):
    done = run("baseline.pt", "--data", "test.npz")
    assert done.exit_code == 2
    assert "--model" in done.output


def test_a_state_dict_that_does_not_fit_names_the_keys(project):
    state = torch.load("baseline.pt")
    state["9.bias"] = state.pop("0.bias")
    torch.save(state, "other.pt")
    done = run("other.pt", *COMMON)
    assert done.exit_code == 4
    assert "0.bias" in done.output
    assert "9.bias" in done.output


def test_a_pickled_module_is_refused_as_unsafe_and_named(project):
    torch.save(nn.Linear(2, 2), "module.pt")
    done = run("module.pt", *COMMON)
    assert done.exit_code == 3
    assert "torch.nn.modules.linear.Linear" in done.output


def test_verbose_shows_where_an_error_came_from(project):
    assert "Traceback" in run("missing.pt", *COMMON, "-v").output


def test_the_failure_of_one_checkpoint_still_delivers_the_others(project):
    Path("third.pt").write_bytes(Path("baseline.pt").read_bytes()[:200])
    done = run("baseline.pt", "rdrop.pt", "third.pt", *COMMON)
    assert done.exit_code == 4
    assert "third was not measured" in done.output
    record = json.loads(Path("rdrop-report/results.json").read_text())
    assert [c["name"] for c in record["checkpoints"]] == ["baseline", "rdrop"]
    assert [f["checkpoint"] for f in record["failures"]] == ["third"]


@pytest.mark.parametrize(("model", "code"), [("NoDropout", "no_dropout"), ("Dirty", "dirty_eval")])
def test_findings_are_warnings_in_results_json(model, code, project):
    if model == "NoDropout":
        state = torch.load("baseline.pt")
        torch.save({key.replace("3.", "2."): value for key, value in state.items()}, "baseline.pt")
    done = run(*COMMON, "baseline.pt", "--model", f"net.py:{model}")
    assert done.exit_code == 0, done.output
    record = json.loads(Path("rdrop-report/results.json").read_text())
    assert code in [w["code"] for w in record["warnings"]]
    assert "Warning" in done.output


def test_report_is_drawn_again_without_a_model(project):
    assert run("baseline.pt", *COMMON).exit_code == 0
    done = run("report", "rdrop-report/results.json", "--unit", "bits", "--output", "again")
    assert done.exit_code == 0, done.output
    assert "bits" in Path("again/report.html").read_text()
    assert Path("again/figures/epkl.png").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema_version": 1}', b"\x80\x04."])
def test_report_refuses_what_is_not_results(content, project):
    Path("results.json").write_bytes(content)
    done = run("report", "results.json")
    assert done.exit_code == 4
    assert "results.json" in done.output


def test_sites_lists_every_draw(project):
    done = run("sites", "baseline.pt", "--model", "net.py:Net", "--data", "test.npz")
    assert done.exit_code == 0, done.output
    assert "0.3" in done.output
    assert "1 site:" in done.output


def test_inspect_shows_what_a_file_holds(project):
    done = run("inspect", "baseline.pt")
    assert done.exit_code == 0
    assert "state dict" in done.output
    assert "16 x 5" in done.output


def test_train_writes_a_checkpoint_that_needs_no_options(project):
    assert run("train", "digits", "--alpha", "1", "--epochs", "1", "--output", "d.pt", "-q").exit_code == 0
    done = run("d.pt", "--sub-models", "2", "--limit", "20", "--format", "json")
    assert done.exit_code == 0, done.output
    (checkpoint,) = json.loads(Path("rdrop-report/results.json").read_text())["checkpoints"]
    assert checkpoint["training"]["alpha"] == 1
    assert "alpha: 1.0" in run("inspect", "d.pt").output


def test_options_come_from_rdrop_toml_beside_the_checkpoint(project):
    Path("rdrop.toml").write_text('model = "net.py:Net"\ndata = "test.npz"\nsub-models = 3\nformat = ["json"]\n')
    assert run("baseline.pt").exit_code == 0
    assert json.loads(Path("rdrop-report/results.json").read_text())["config"]["sub_models"] == 3
    assert run("baseline.pt", "--sub-models", "5").exit_code == 0
    assert json.loads(Path("rdrop-report/results.json").read_text())["config"]["sub_models"] == 5


def test_options_come_from_the_projects_pyproject(project):
    Path("pyproject.toml").write_text('[tool.rdrop-analysis]\nmodel = "net.py:Net"\ndata = "test.npz"\n')
    assert run("baseline.pt", "--sub-models", "2", "--format", "json").exit_code == 0


BAD_CONFIGURATION = {
    "modle = 1": "no option 'modle'",
    "seed = -1": "seed",
    "seed = ": "cannot be read",
    "seed = true": "seed",
    "limit = 1.5": "limit",
    'reference = ["a"]': "not a list",
}


@pytest.mark.parametrize(("text", "message"), BAD_CONFIGURATION.items())
def test_a_bad_configuration_file_is_named(text, message, project):
    Path("rdrop.toml").write_text(text)
    done = run("baseline.pt", *COMMON[:-2])
    assert done.exit_code == 2
    assert message in done.output
    assert "rdrop.toml" in done.output


def test_code_named_in_a_foreign_folder_is_not_run_unasked(project):
    folder = Path("downloaded")
    folder.mkdir()
    Path("baseline.pt").rename(folder / "baseline.pt")
    (folder / "evil.py").write_text("import pathlib\npathlib.Path('ran').touch()\ndef Net(): ...\n")
    (folder / "rdrop.toml").write_text('model = "evil.py:Net"\ndata = "test.npz"\n')
    done = run("downloaded/baseline.pt")
    assert done.exit_code == 3
    assert "--trust-code" in done.output
    assert not Path("ran").exists()
    run("downloaded/baseline.pt", "--trust-code")
    assert Path("ran").exists()


def test_a_foreign_folder_does_not_choose_what_is_overwritten(project):
    folder = Path("downloaded")
    folder.mkdir()
    Path("baseline.pt").rename(folder / "baseline.pt")
    (folder / "rdrop.toml").write_text('output = "precious"\n')
    Path("precious").mkdir()
    Path("precious/results.json").touch()
    done = run("downloaded/baseline.pt", *COMMON)
    assert done.exit_code == 3
    assert "--output" in done.output
    assert Path("precious/results.json").exists()
    assert run("downloaded/baseline.pt", *COMMON, "--output", "mine").exit_code == 0


def test_help_is_quick_and_loads_no_torch():
    code = (
        "import sys; from rdrop_analysis.cli import main; main(['--help'], standalone_mode=False); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603 - own code
    assert not {"torch", "numpy", "pandas", "matplotlib", "rich"} & set(done.stdout.split())


def test_an_interrupt_keeps_what_was_finished(project):
    done = run("baseline.pt", "rdrop.pt", *COMMON, "--model", "net.py:interrupted_in_the_second")
    assert done.exit_code == 130
    assert "Traceback" not in done.output
    assert "what was finished is kept in rdrop-report: the same command goes on from it\n" in done.output
    record = json.loads(Path("rdrop-report/results.json").read_text())
    assert [c["name"] for c in record["checkpoints"]] == ["baseline"]


def test_an_interrupt_while_modules_are_loaded_is_one_line(tmp_path):
    (tmp_path / "click_default_group.py").write_text("raise KeyboardInterrupt")
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "rdrop_analysis", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})  # noqa: S603 - own code
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Error: interrupted\n")


def test_little_is_loaded_before_an_interrupt_is_one_line():
    code = "import sys; known = set(sys.modules); import rdrop_analysis.__main__; print(*set(sys.modules) - known)"
    path = {
        **os.environ,
        "PYTHONPATH": str(Path(terminal.__file__).parents[1]),
    }  # without site, which may load anything
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, env=path)  # noqa: S603 - own code
    assert set(done.stdout.split()) == {"__future__", "rdrop_analysis", "rdrop_analysis.__main__"}


def test_thousands_are_separated_by_spaces(project):
    done = run("baseline.pt", *COMMON, "--limit", "99999999999")
    assert "Measured on the first 99\u202f999\u202f999\u202f999 examples at most" in done.output


@pytest.mark.parametrize("command", [(), ("sites",), ("inspect",)])
def test_a_name_that_is_no_text_is_one_line(command, project):
    name = os.fsdecode(b"u\xff.pt")
    Path("rdrop.pt").rename(name)
    checkpoints = ["baseline.pt", name] if not command else [name]
    done = run(*command, *checkpoints, *(COMMON if not command else ()))
    assert done.exit_code == 4
    assert "Error: u\\udcff.pt: its name is not UTF-8: rename it, or make a link to it\n" in done.output
    if not command:
        Path(name).rename(data := os.fsdecode(b"\xff.npz"))
        assert run("baseline.pt", *COMMON, "--data", data).exit_code == 4


def test_an_interrupt_before_anything_is_finished_says_so(project):
    done = run("rdrop.pt", *COMMON, "--model", "net.py:Interrupted")
    assert done.exit_code == 130
    assert "interrupted" in done.output


def test_an_unexpected_error_loses_nothing_that_was_measured(project, monkeypatch):
    from rdrop_analysis import analysis

    measured = analysis.measure_subject

    def breaks_on_the_second(subject, *arguments, **more):
        if subject.name == "rdrop":
            raise ZeroDivisionError("of all things")
        return measured(subject, *arguments, **more)

    monkeypatch.setattr(analysis, "measure_subject", breaks_on_the_second)
    done = run("baseline.pt", "rdrop.pt", *COMMON)
    assert done.exit_code == 70
    assert "unexpected error: ZeroDivisionError: of all things; -v shows where; please report it" in done.output
    assert [c["name"] for c in json.loads(Path("rdrop-report/results.json").read_text())["checkpoints"]] == ["baseline"]


@pytest.mark.parametrize("verbose", [False, True])
def test_an_unexpected_error_is_one_line_and_no_failed_gate(verbose, project, monkeypatch):
    def breaks(*_arguments, **_more):
        raise ZeroDivisionError("of all\nthings")

    monkeypatch.setattr("rdrop_analysis.results.Results.save", breaks)
    done = run("baseline.pt", *COMMON, *(["-v"] if verbose else []))
    assert done.exit_code == 70
    line = "Error: unexpected error: ZeroDivisionError: of all\\nthings; -v shows where; please report it"
    assert line in done.output.splitlines()
    assert ("Traceback" in done.output) == verbose


def test_a_reference_that_fails_is_replaced_and_said_so(project):
    Path("third.pt").write_bytes(b"PK")
    done = run("baseline.pt", "rdrop.pt", "third.pt", *COMMON, "--reference", "third")
    assert done.exit_code == 4
    assert "baseline takes its place" in done.output
    assert json.loads(Path("rdrop-report/results.json").read_text())["reference"] == "baseline"


def test_a_failed_run_makes_no_directory_and_a_new_one_leaves_nothing_old(project):
    assert run("missing.pt", *COMMON, "--output", "a/b").exit_code == 4
    assert not Path("a").exists()
    assert run("baseline.pt", "rdrop.pt", *COMMON[:-2]).exit_code == 0
    Path("rdrop-report/mine.txt").touch()
    assert run("baseline.pt", *COMMON[:-2], "--format", "json").exit_code == 0
    left = sorted(p.relative_to("rdrop-report").as_posix() for p in Path("rdrop-report").rglob("*") if p.is_file())
    assert left == ["mine.txt", "results.json"]


def test_sites_take_their_options_from_rdrop_toml_as_well(project):
    Path("rdrop.toml").write_text('model = "net.py:Net"\ndata = "test.npz"\nlimit = 5\n')
    assert "1 site:" in run("sites", "baseline.pt").output


def test_a_reader_that_stops_reading_is_no_error(project):
    command = f"{sys.executable} -m rdrop_analysis baseline.pt {' '.join(COMMON)} | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)  # noqa: S603, S607 - own code
    assert done.returncode == 0, done.stderr
    assert Path("rdrop-report/results.json").exists()


def test_long_runs_say_how_far_they_are_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "SECONDS_BETWEEN_LINES", 0.0)
    with terminal.progress_bars(quiet=False) as advance:
        advance("a\x1b[31m", 64, 450)
    assert capsys.readouterr().err == "a\\x1b[31m: 64 of 450 done\n"
    with terminal.progress_bars(quiet=True) as advance:
        advance("a", 64, 450)
    monkeypatch.setattr(terminal, "SECONDS_BETWEEN_LINES", 60.0)
    with terminal.progress_bars(quiet=False) as advance:
        advance("a", 64, 450)
    assert capsys.readouterr().err == ""


def test_weights_of_a_directory_are_called_after_it(tmp_path: Path) -> None:
    for name in ("bert.v1", "bert.v2"):
        (tmp_path / name).mkdir()
        for file in ("config.json", "model.safetensors"):
            (tmp_path / name / file).touch()
    paths = [tmp_path / "bert.v1", tmp_path / "bert.v2" / "model.safetensors", tmp_path / "lone.pt"]
    assert [entry.name for entry in entries(paths)] == ["bert.v1", "bert.v2", "lone"]


@pytest.mark.parametrize("size", ["9" * 400, "8B", "63M", "9999999T"])
def test_an_amount_of_memory_has_a_least_and_a_most(size, project):
    done = run("baseline.pt", "--memory", size)
    assert done.exit_code == 2
    assert "Invalid value for '--memory': " in done.output
    assert "is not between 64M and 4194304T" in done.output
