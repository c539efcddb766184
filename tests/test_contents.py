"""`inspect` tells what a checkpoint is without running or building anything."""

import json
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from torch import nn

from rdrop_analysis.checkpoints import load_checkpoint, save_checkpoint
from rdrop_analysis.cli import main
from rdrop_analysis.errors import CheckpointError, UnsafeFileError, UsageError
from rdrop_analysis.files import sha256_of
from rdrop_analysis.loading.contents import inspect_checkpoint
from rdrop_analysis.models import build

CONFIG = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "id2label": {"0": "no", "1": "yes\x1b[31m"},
    "transformers_version": "5.23.0",
    "auto_map": {"AutoModel": "evil.Model"},
}


def test_a_plain_state_dict(tmp_path: Path) -> None:
    state = nn.Linear(3, 2).state_dict()
    torch.save({"model": state, "ema": state}, tmp_path / "m.pt")
    found = inspect_checkpoint(tmp_path / "m.pt")
    assert found.kind == "state dict"
    assert found.description == {"moving average": "under ema, not shown"}
    assert (list(found.tensors), found.n_values) == (["weight", "bias"], 8)
    torch.save(state, tmp_path / "m.pt")
    assert inspect_checkpoint(tmp_path / "m.pt").description is None


def test_a_self_describing_checkpoint(tmp_path: Path) -> None:
    arguments = {"in_features": 3, "hidden": [2], "n_classes": 2, "dropout": 0.1}
    save_checkpoint(tmp_path / "m.pt", build("mlp", arguments), architecture="mlp", arguments=arguments)
    found = inspect_checkpoint(tmp_path / "m.pt")
    assert found.kind == "self-describing checkpoint"
    assert found.description is not None
    assert found.description["architecture"].startswith("mlp(in_features=3")
    assert found.sha256 == load_checkpoint(tmp_path / "m.pt").sha256


def test_shards(tmp_path: Path) -> None:
    state = nn.Linear(3, 2).state_dict()
    for name, tensor in state.items():
        save_file({name: tensor}, tmp_path / f"{name}.safetensors")
    places = {name: f"{name}.safetensors" for name in state}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    found = inspect_checkpoint(tmp_path / "model.safetensors.index.json")
    assert found.kind == "state dict in several files"
    assert found.description == {"files": "2"}
    assert found.n_values == 8
    assert found.sha256 == load_checkpoint(tmp_path, lambda: nn.Linear(3, 2)).sha256


def test_a_lightning_checkpoint(tmp_path: Path) -> None:
    content = {
        "epoch": 2,
        "global_step": 40,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": OrderedDict(nn.Linear(3, 2).state_dict()),
        "hyper_parameters": {"alpha": 1.0, "name\n": "x\x1b"},
    }
    torch.save(content, tmp_path / "m.ckpt")
    found = inspect_checkpoint(tmp_path / "m.ckpt")
    assert found.kind == "Lightning checkpoint"
    assert found.description == {
        "pytorch-lightning_version": "2.6.6",
        "epoch": "2",
        "global_step": "40",
        "hyper-parameter alpha": "1.0",
        "hyper-parameter name\\n": "x\\x1b",
    }


@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_a_hugging_face_model_without_transformers(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    save_file(nn.Linear(3, 2).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    found = inspect_checkpoint(tmp_path / name)
    assert found.kind == "Hugging Face model"
    assert found.description == {
        "architecture": "BertForSequenceClassification",
        "model_type": "bert",
        "transformers_version": "5.23.0",
        "task": "classification",
        "classes": "2: no, yes\\x1b[31m",
        "code of its own": "yes, never run",
    }


def test_a_hugging_face_model_that_names_no_class_is_shown_all_the_same(tmp_path: Path) -> None:
    save_file(nn.Linear(3, 2).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert inspect_checkpoint(tmp_path).description == {"architecture": "not named", "model_type": "bert"}


@pytest.mark.parametrize("text", ['{"lr": 0.1}', "{", "[1]"])
def test_the_configuration_of_another_program_is_ignored(tmp_path: Path, text: str) -> None:
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "m.pt")
    (tmp_path / "config.json").write_text(text)
    assert inspect_checkpoint(tmp_path / "m.pt").kind == "state dict"
    with pytest.raises(UsageError, match="holds weights, not their model: pass --model"):
        load_checkpoint(tmp_path / "m.pt")


NET = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.3))
NEEDED = [f"torch.nn.modules.{name}" for name in ("container.Sequential", "linear.Linear", "dropout.Dropout")]


def inspected(path: Path, code: int) -> Result:
    done = CliRunner().invoke(main, ["inspect", str(path)])
    assert done.exit_code == code, done.output
    assert f", sha256 {sha256_of(path)}" in done.stdout
    assert "--" not in done.stderr
    assert done.stderr.count("\n") == (1 if code else 0)
    return done


@pytest.mark.parametrize("new_format", [True, False])
def test_the_names_that_a_pickle_needs_are_shown_and_it_is_refused(tmp_path: Path, new_format: bool) -> None:
    torch.save(NET, tmp_path / "m.pt", _use_new_zipfile_serialization=new_format)
    found = inspect_checkpoint(tmp_path / "m.pt")
    assert isinstance(found.problem, UnsafeFileError)
    assert (found.kind, found.code, found.tensors) == ("pickle that needs code", NEEDED, {})
    done = inspected(tmp_path / "m.pt", 3)
    assert all(f"  code, not run: {name}\n" in done.stdout for name in NEEDED)
    assert NEEDED[0] in done.stderr


def test_code_in_a_shard_is_shown(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "a.bin")
    torch.save({"bias": NET}, tmp_path / "b.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"weight": "a.bin", "bias": "b.bin"}}))
    found = inspect_checkpoint(tmp_path)
    assert found.code == NEEDED
    assert str(found.problem).startswith(f"{tmp_path / 'b.bin'} needs torch.nn.modules")


def test_a_script_is_shown_without_running_it(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit warns that it is deprecated
        torch.jit.script(NET).save(str(tmp_path / "m.pt"))
    done = inspected(tmp_path / "m.pt", 0)
    assert "TorchScript archive" in done.stdout
    assert "  code, not run: code/__torch__/torch/nn/modules/dropout.py\n" in done.stdout
    assert "debug_pkl" not in done.stdout


def test_the_operators_of_an_exported_program_are_shown(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export warns of its own internals
        torch.export.save(torch.export.export(NET, (torch.zeros(2, 3),)), tmp_path / "m.pt2")
    done = inspected(tmp_path / "m.pt2", 0)
    assert "torch.export program" in done.stdout
    assert "  code, not run: torch.ops.aten.dropout.default\n" in done.stdout


@pytest.mark.parametrize("graph", [b"", b"[" * 100_000, b"[]", b'{"graph_module": {"graph": {"nodes": [3]}}}', b"\xff"])
def test_a_program_whose_graph_is_damaged_is_shown_all_the_same(tmp_path: Path, graph: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
        archive.writestr("m/models/model.json", graph)
        archive.writestr("m/code/\x1b[31m.py", b"")
    done = inspected(tmp_path / "m.pt2", 0)
    assert r"code, not run: code/\x1b[31m.py" in done.stdout


def test_more_names_than_fit_are_counted(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        for name in ("constants.pkl", *(f"code/{i}.py" for i in range(50))):
            archive.writestr(f"m/{name}", b"")
    assert "  and 10 more\n" in inspected(tmp_path / "m.pt", 0).stdout


def test_a_missing_shard_is_marked_among_those_that_are_there(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2), "b": torch.zeros(3)}, tmp_path / "1.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"}}))
    for path in (tmp_path, index):
        done = CliRunner().invoke(main, ["inspect", str(path)])
        assert done.exit_code == 4
        assert "index of 2 files, sha256 " in done.stdout
        assert "  1.safetensors: 2 tensors\n  2.safetensors: 1 tensors, missing\n" in done.stdout
        assert done.stderr == f"Error: {index} needs 2.safetensors, which is not beside it: copy all 2\n"


def test_a_head_that_no_task_covers_is_said(tmp_path: Path) -> None:
    save_file(nn.Linear(3, 2).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architectures": ["RoFormerForQuestionAnswering"]}')
    described = inspect_checkpoint(tmp_path).description
    assert described is not None
    assert described["task"] == "none: a model for QuestionAnswering, which no task covers yet"


def test_what_is_not_there_cannot_be_shown(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such file"):
        inspect_checkpoint(tmp_path / "absent.pt")
