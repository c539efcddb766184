"""Weights in several files come back whole, and an index leads nowhere but to its neighbours."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rdrop_analysis.checkpoints import load_checkpoint
from rdrop_analysis.errors import CheckpointError, UnsafeFileError, UsageError


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 2))


def split(directory: Path, kind: str = "safetensors") -> tuple[Path, nn.Module]:
    """A model with one file a tensor, and its index."""
    model, places = net(), {}
    stem, write = ("model", save_file) if kind == "safetensors" else ("pytorch_model", torch.save)
    for i, (name, tensor) in enumerate(model.state_dict().items(), 1):
        places[name] = f"{stem}-{i:05d}-of-00004.{kind}"
        write({name: tensor}, directory / places[name])
    return write_index(directory / f"{stem}.{kind}.index.json", places), model


def write_index(path: Path, places: object) -> Path:
    path.write_text(json.dumps({"metadata": {"total_size": 104}, "weight_map": places}))
    return path


def same_weights(loaded: nn.Module, model: nn.Module) -> bool:
    state, expected = loaded.state_dict(), model.state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)


def one_line(path: Path, error: type[Exception] = CheckpointError) -> str:
    with pytest.raises(error) as caught:
        load_checkpoint(path, net)
    assert type(caught.value) is error
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_come_back_by_their_index_and_by_their_directory(tmp_path: Path, kind: str) -> None:
    index, model = split(tmp_path, kind)
    by_index, by_directory = load_checkpoint(index, net), load_checkpoint(tmp_path, net)
    assert same_weights(by_index.model, model)
    assert same_weights(by_directory.model, model)
    assert by_index.sha256 == by_directory.sha256
    with pytest.raises(UsageError, match="pass --model"):
        load_checkpoint(index)


def test_links_to_a_store_are_followed(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    index, model = split(tmp_path / "snapshot")
    for file in (tmp_path / "snapshot").iterdir():
        (tmp_path / "blobs" / file.name).write_bytes(file.read_bytes())
        file.unlink()
        file.symlink_to(Path("..") / "blobs" / file.name)
    assert same_weights(load_checkpoint(index, net).model, model)


def test_the_hash_is_of_every_file(tmp_path: Path) -> None:
    index, model = split(tmp_path)
    before = load_checkpoint(index, net).sha256
    name, tensor = next(iter(model.state_dict().items()))
    save_file({name: tensor + 1}, tmp_path / "model-00001-of-00004.safetensors")
    assert load_checkpoint(index, net).sha256 != before


@pytest.mark.parametrize(
    "place",
    ["../secret.safetensors", "/etc/passwd", "sub/model.safetensors", "C:\\model.bin", "..", "", "a\0b", 3, None],
)
def test_an_index_may_not_lead_elsewhere(tmp_path: Path, place: object) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    index, model = split(directory)
    save_file(model.state_dict(), tmp_path / "secret.safetensors")
    write_index(index, dict.fromkeys(model.state_dict(), place))
    assert "only files beside the index are read" in one_line(index)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    index, _ = split(tmp_path)
    (tmp_path / "model-00002-of-00004.safetensors").unlink()
    assert "needs model-00002-of-00004.safetensors, which is not beside it: copy all 4" in one_line(index)


def test_a_tensor_that_is_not_where_the_index_says(tmp_path: Path) -> None:
    index, _ = split(tmp_path)
    save_file({"other": torch.zeros(1)}, tmp_path / "model-00002-of-00004.safetensors")
    assert "does not hold 0.bias, as model.safetensors.index.json says (1 missing)" in one_line(index)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    index, model = split(tmp_path)
    save_file(dict(list(model.state_dict().items())[:2]), tmp_path / "model-00002-of-00004.safetensors")
    assert "holds 0.weight, which another file of model.safetensors.index.json holds too" in one_line(index)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "has no weight_map"),
        ({"weight_map": {}}, "has no weight_map"),
        ({"weight_map": ["a"]}, "has no weight_map"),
        ([], "holds a JSON list"),
    ],
)
def test_what_is_no_index(tmp_path: Path, content: object, message: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(content))
    assert message in one_line(tmp_path / "model.safetensors.index.json")


def test_an_index_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.index.json")
    assert "is not a regular file" in one_line(tmp_path / "a.index.json")


def test_a_directory_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_self: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)
    assert one_line(tmp_path) == f"cannot read {tmp_path}: Permission denied"


def test_a_tensor_named_twice_is_refused(tmp_path: Path) -> None:
    index, _ = split(tmp_path)
    twice = '{"weight_map": {"0.weight": "model-00001-of-00004.safetensors", "0.weight": "b.safetensors"}}'
    index.write_text(twice)
    assert "the key 0.weight stands in it twice" in one_line(index)


def test_an_index_too_large_to_be_one(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    with index.open("wb") as file:
        file.truncate(40 << 20)
    assert "has more than 32 MB" in one_line(index)
    assert "there is no such file" in one_line(tmp_path / "other.safetensors.index.json")


class RunsCode:
    """Unpickling this would create a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_code_in_a_shard_is_refused(tmp_path: Path) -> None:
    index, _ = split(tmp_path, "bin")
    torch.save({"0.bias": RunsCode(tmp_path / "created")}, tmp_path / "pytorch_model-00002-of-00004.bin")
    assert "posix.mkdir" in one_line(index, UnsafeFileError)
    assert not (tmp_path / "created").exists()
