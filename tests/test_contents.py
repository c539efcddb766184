"""`inspect` tells what a checkpoint is without running or building anything."""

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rdrop_analysis.checkpoints import load_checkpoint, save_checkpoint
from rdrop_analysis.errors import CheckpointError, UnsafeFileError, UsageError
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


def test_what_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 2), tmp_path / "m.pt")
    with pytest.raises(UnsafeFileError, match=r"torch\.nn\.modules\.linear\.Linear"):
        inspect_checkpoint(tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="there is no such file"):
        inspect_checkpoint(tmp_path / "absent.pt")
