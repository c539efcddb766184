"""The dropout audit: repeated layers in one row, what module patching misses, strict JSON."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from rdrop_analysis import terminal
from rdrop_analysis.audit import Audit, rows
from rdrop_analysis.cli import main
from rdrop_probes.records import SiteRecord


def site(path, **facts):
    return SiteRecord(**{"path": path, "ordinal": 0, "kind": "dropout", "rate": 0.1, "mask_shape": [9, 24]} | facts)


def attention(layer):
    facts = {"kind": "attention dropout", "mask_shape": [2, 9, 9], "found_by_patching": False}
    return site(f"encoder.layer.{layer}.attention.self", **facts)


DEEP = [
    site("embeddings.dropout"),
    *(s for i in range(12) for s in (attention(i), site(f"encoder.layer.{i}.output.dropout"))),
    site("dropout", mask_shape=[24]),
]


def test_repeated_layers_share_a_row_and_every_shows_each():
    found = rows(DEEP)
    assert [(row.label, len(row.sites)) for row in found] == [
        ("embeddings.dropout", 1),
        ("encoder.layer.{0-11}.attention.self", 12),
        ("encoder.layer.{0-11}.output.dropout", 12),
        ("dropout", 1),
    ]
    assert [row.label for row in rows(DEEP, every=True)] == [s.label for s in DEEP]


@pytest.mark.parametrize(
    "other",
    [
        {"kind": "alpha dropout"},
        {"mask_shape": [9, 12]},
        {"fires_in_eval": True},
        {"found_by_patching": False},
        {"per_example": False},
        {"rate": None},
    ],
)
def test_layers_that_differ_in_more_than_their_number_and_rate_have_rows_of_their_own(other):
    first, second = site("a.0.x"), site("a.1.x", **other)
    assert [row.label for row in rows([first, second])] == ["a.0.x", "a.1.x"]
    assert len(rows([first, replace(second, **{name: getattr(first, name) for name in other})])) == 1


def test_rates_and_numbers_with_gaps_are_spelt_out():
    rates = {0: 0.04285, 1: 0.1, 2: 0.2, 5: 0.3}
    (row,) = rows([site(f"a.{i}.c", rate=rate, ordinal=1) for i, rate in rates.items()])
    assert row.label == "a.{0-2,5}.c#1"
    assert row.rate == "0.0428 to 0.3"


def test_draws_of_one_module_called_again_and_again_share_a_row():
    (row,) = rows([site("shared.dropout", ordinal=i) for i in range(3)])
    assert row.label == "shared.dropout#{0-2}"
    (row,) = rows([site("", ordinal=i) for i in range(2)])
    assert row.label == "(root)#{0-1}"


def test_the_verdict_counts_what_module_patching_misses_by_kind():
    depth = [site(f"l.{i}", kind="stochastic depth", found_by_patching=False) for i in range(2)]
    (said,) = Audit(checkpoint="x", sites=[*DEEP, *depth]).sentences()
    assert said.startswith("28 sites")
    assert "reaches 14 and misses 14 (12 attention dropout, 2 stochastic depth)" in said
    (said,) = Audit(checkpoint="x", sites=depth).sentences()
    assert "reaches none and misses 2 (stochastic depth)" in said
    (said,) = Audit(checkpoint="x", sites=DEEP[:1]).sentences()
    assert "reaches all of them" in said


def test_the_verdict_names_dirty_eval_and_randomness_without_a_mask():
    audit = Audit(checkpoint="x", sites=[site("a", fires_in_eval=True)], outside_torch=True, uncontrolled=True)
    said = audit.sentences()
    assert "Dirty eval: 1 (dropout)" in said[1]
    assert "NumPy" in said[2]
    assert "generators of its own" in said[3]
    assert Audit(checkpoint="x", sites=[]).sentences() == ["The model draws nothing: it has no active dropout."]
    assert "NumPy" in Audit(checkpoint="x", sites=[], outside_torch=True).sentences()[0]


def test_json_is_strict_and_complete():
    found = json.loads(Audit(checkpoint="x", sites=DEEP).to_json())
    assert len(found["sites"]) == len(DEEP)
    assert found["sites"][1]["found_by_patching"] is False
    assert found["outside_torch"] is False


def test_a_deep_model_is_readable_in_100_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    hostile = site("[red]evil\x1b[31m")
    terminal.show_sites(Audit(checkpoint="x", sites=[*DEEP, hostile]))
    shown = capsys.readouterr().out
    table = shown[: shown.index("27 sites")].splitlines()
    assert max(map(len, table)) <= 100
    assert len(table) < 15
    assert "encoder.layer.{0-11}.attention.self" in shown
    assert "[red]evil" in shown
    assert "\x1b[31m" not in shown


NET = """
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head, self.drop = nn.Linear(5, 8), nn.Linear(8, 3), nn.Dropout(0.3)

    def forward(self, x):
        h = self.drop(self.body(x))
        return self.head(F.dropout(F.dropout(h, 0.2, self.training), 0.1))

def clean():
    return nn.Sequential(nn.Linear(5, 3))
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    np.savez("x.npz", x=np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32))
    body, head = torch.nn.Linear(5, 8), torch.nn.Linear(8, 3)
    tensors = {
        f"{name}.{part}": t for name, m in (("body", body), ("head", head)) for part, t in m.state_dict().items()
    }
    torch.save(tensors, "net.pt")
    torch.save(torch.nn.Sequential(torch.nn.Linear(5, 3)).state_dict(), "clean.pt")
    return CliRunner()


def audit(runner, checkpoint, factory, *options):
    return runner.invoke(main, ["sites", checkpoint, "--model", f"net.py:{factory}", "--data", "x.npz", *options])


def test_the_command_tells_module_from_functional_from_dirty_dropout(project):
    done = audit(project, "net.pt", "Net", "--json")
    assert done.exit_code == 0, done.output
    sites = json.loads(done.stdout)["sites"]
    found = {s["rate"]: (s["path"], s["ordinal"], s["found_by_patching"], s["fires_in_eval"]) for s in sites}
    assert found == {0.3: ("drop", 0, True, False), 0.2: ("", 0, False, False), 0.1: ("", 1, True, True)}
    shown = audit(project, "net.pt", "Net", "-v").output
    assert "reaches 2 and misses 1 (dropout)" in shown
    assert "Dirty eval: 1 (dropout) fires in eval mode" in shown


def test_the_command_says_that_a_model_has_no_dropout(project):
    done = audit(project, "clean.pt", "clean")
    assert done.exit_code == 0, done.output
    assert done.output == "The model draws nothing: it has no active dropout.\n"
    assert audit(project, "clean.pt", "clean", "-q").output == ""
    assert json.loads(audit(project, "clean.pt", "clean", "--json").stdout)["sites"] == []
