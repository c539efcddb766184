"""What guards against hostile files lets through all that torch.save writes of tensors and plain data."""

import copy
import io
import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from containers import bare, honest, in_legacy, in_zip, saved, written
from pickle_assembler import Call, Name, program, push
from torch import nn

from rdrop_analysis.errors import CheckpointError
from rdrop_analysis.loading.pickles import scan
from rdrop_analysis.loading.safe_io import read_tensors

SHARED = [1, 2, 3]
ODD = nn.Parameter(torch.ones(2))
ODD.tag = "kept"  # type: ignore[attr-defined] # what some frameworks do to parameters
CONTENTS: dict[str, object] = {
    "scalars": {"int": 3, "large": 10**40, "float": 0.5, "text": "ü\x1b\n", "none": None, "true": True},
    "bytes": {"some": b"\xff\0"},
    "containers": {"list": [1, [2, (3,)]], "tuple": (1, 2, 3, 4), "set": {1, "a"}, "dict": {1: {2.0: {(3, "x"): 4}}}},
    "more": {"counter": Counter("aab"), "bytearray": bytearray(b"ab"), "complex": 1 - 2j, "size": torch.Size([1, 2])},
    "shared": {"a": SHARED, "b": SHARED, "c": (SHARED, SHARED)},
    "dtypes": {"a": torch.float32, "b": torch.bfloat16, "device": torch.device("cuda:1"), torch.bool: 1},
    "module": nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.LSTM(2, 2)).state_dict(),
    "parameters": OrderedDict(a=nn.Parameter(torch.ones(2)), b=nn.Parameter(torch.ones(2), requires_grad=False)),
    "a parameter with attributes": {"a": ODD},
    "every dtype": {
        str(dtype): torch.zeros(3).to(dtype)
        for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool,
                      torch.complex64)
    },
    "views": {"whole": (base := torch.arange(12.0).reshape(3, 4)), "column": base[:, 1], "turned": base.T},
    "shapes": {"scalar": torch.tensor(1.0), "empty": torch.zeros(0, 5), "expanded": torch.arange(4).expand(1, 4)},
    "an optimizer": torch.optim.Adam([nn.Parameter(torch.ones(2))]).state_dict() | {"lr_lambdas": [None, {}]},
    "a long history": {"loss": [0.1 * i for i in range(20_000)]},
    "many tensors": {f"layer.{i}.weight": torch.zeros(2) for i in range(500)},
}  # fmt: skip


def same(left: object, right: object) -> bool:
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and str(left) == str(right)
    if isinstance(left, dict) and isinstance(right, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("legacy", [False, True])
def test_what_torch_saves_comes_back(tmp_path: Path, name: str, legacy: bool) -> None:
    content = copy.deepcopy(CONTENTS[name])
    path = written(tmp_path / "m.pt", saved(content, legacy=legacy))
    assert same(read_tensors(path, CheckpointError), torch.load(io.BytesIO(path.read_bytes()), weights_only=True))
    assert same(read_tensors(path, CheckpointError), CONTENTS[name])


def test_entries_that_python_2_wrote_are_let_through() -> None:
    """Its pickles give an OrderedDict its items as a list of lists, and name `__builtin__`."""
    body = push(
        Call(Name("collections.OrderedDict"), ([["a", 1], ["b", Call(Name("__builtin__.set"), ([1, 2],))]],)), 2
    )
    found = scan(io.BytesIO(program(body, 2)), 10)
    assert (found.imports, found.problem) == ([], None)


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("legacy", [False, True])
def test_newer_protocols_are_named(tmp_path: Path, protocol: int, legacy: bool) -> None:
    buffer = io.BytesIO()
    torch.save(honest(), buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        CheckpointError, match=f"is of pickle protocol {protocol}, read is 3: leave out pickle_protocol"
    ):
        read_tensors(written(tmp_path / "m.pt", buffer.getvalue()), CheckpointError)


def test_the_budget_is_of_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rdrop_analysis.loading.pickles.OPERATIONS", 100)
    within = program(pickle.MARK + pickle.NONE * 96 + pickle.TUPLE, 2)
    assert scan(io.BytesIO(within), 10).problem is None
    beyond = program(pickle.MARK + pickle.NONE * 97 + pickle.TUPLE, 2)
    assert "more than 100 pickled values" in str(scan(io.BytesIO(beyond), 10).problem)


@pytest.mark.parametrize("wrap", [in_zip, in_legacy, bare])
def test_an_unfinished_pickle_is_damaged(tmp_path: Path, wrap: Callable[[bytes], bytes]) -> None:
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        read_tensors(written(tmp_path / "m.pt", wrap(program(push({"a": 1}, 2), 2)[:-1])), CheckpointError)
