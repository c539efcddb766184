"""Checkpoints come back as they were saved, whatever wrapped them, and no file runs code or ends in a traceback."""

import hashlib
import json
import os
import pickle
import resource
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from rdrop_analysis import checkpoints
from rdrop_analysis.checkpoints import load_checkpoint, save_checkpoint
from rdrop_analysis.errors import CheckpointError, RDropAnalysisError, UnsafeFileError, UsageError
from rdrop_analysis.models import build

ARGUMENTS = {"in_features": 6, "hidden": [5, 4], "n_classes": 3, "dropout": 0.3}
TRAINING = {"task": "digits", "alpha": 1.0, "seed": 0, "augmented": False, "note": None}


def net() -> nn.Module:
    return build("mlp", ARGUMENTS)


def saved(path: Path, **changes: Any) -> nn.Module:
    model = net()
    settings = {"architecture": "mlp", "arguments": ARGUMENTS, "data": "digits", "training": TRAINING, **changes}
    save_checkpoint(path, model, **settings)
    return model


def same_weights(model: nn.Module, other: nn.Module) -> bool:
    state, expected = model.state_dict(), other.state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)


def one_line(path: Path, error: type[RDropAnalysisError], factory: Callable[[], nn.Module] | None = net) -> str:
    """Load a bad file and return its message, which must be one line that names the file."""
    with pytest.raises(error) as caught:
        load_checkpoint(path, factory)
    message = str(caught.value)
    assert type(caught.value) is error
    assert str(path) in message
    assert "\n" not in message
    return message


def test_a_self_describing_checkpoint_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "made" / "model.pt"
    model = saved(path)
    loaded = load_checkpoint(str(path))
    assert same_weights(loaded.model, model)
    assert not loaded.model.training
    assert loaded.path == path
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.architecture == "mlp(in_features=6, hidden=[5, 4], n_classes=3, dropout=0.3)"
    assert loaded.data == "digits"
    assert loaded.training == TRAINING
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    inputs = torch.randn(4, 6)
    assert torch.equal(loaded.model(inputs), model.eval()(inputs))


def test_equal_contents_give_equal_bytes(tmp_path: Path) -> None:
    model = net()
    for name in ("a.pt", "longer-name.pt"):
        save_checkpoint(tmp_path / name, model, architecture="mlp", arguments=ARGUMENTS)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "longer-name.pt").read_bytes()


def test_loading_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    saved(tmp_path / "model.pt")
    state = torch.get_rng_state()
    load_checkpoint(tmp_path / "model.pt")
    load_checkpoint(tmp_path / "model.pt", net)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_users_factory_takes_the_place_of_what_the_file_says(tmp_path: Path) -> None:
    class Mine(nn.Sequential):
        pass

    model = saved(tmp_path / "model.pt")
    loaded = load_checkpoint(tmp_path / "model.pt", lambda: Mine(OrderedDict(net().named_children())))
    assert isinstance(loaded.model, Mine)
    assert same_weights(loaded.model, model)
    assert loaded.architecture == "Mine"
    assert loaded.training == TRAINING


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda state: {"model_state_dict": state},
        lambda state: {"epoch": torch.tensor(3), "model": state},
        lambda state: {"ema": {"model": state}},
        lambda state: {"model": state, "ema": {name: value * 0 for name, value in state.items()}},
        lambda state: {"params": {"lr": 0.1}, "weights": state},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
        lambda state: {f"module._orig_mod.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": {f"_orig_mod.module.{name}": value for name, value in state.items()}},
        lambda state: {"state_dict": {f"model.{name}": value for name, value in state.items()}},
        lambda state: {"n_averaged": torch.tensor(5)} | {f"module.{name}": v for name, v in state.items()},
    ],
)
@pytest.mark.parametrize("name", ["m.pt", "m.pth", "m.bin", "m.ckpt"])
def test_state_dicts_are_found_wherever_they_are(
    tmp_path: Path, wrap: Callable[[dict[str, Tensor]], object], name: str
) -> None:
    model = net()
    torch.save(wrap(model.state_dict()), tmp_path / name)
    loaded = load_checkpoint(tmp_path / name, net)
    assert same_weights(loaded.model, model)
    assert loaded.data is None
    assert loaded.training == {}


def test_real_wrappers_fit_in_both_directions(tmp_path: Path) -> None:
    model = net()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    torch.save(averaged.state_dict(), tmp_path / "averaged.pt")
    assert same_weights(load_checkpoint(tmp_path / "averaged.pt", net).model, model)
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    wrapped = load_checkpoint(tmp_path / "plain.pt", lambda: nn.DataParallel(net())).model
    assert isinstance(wrapped, nn.DataParallel)
    assert same_weights(wrapped.module, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing the compiler warns of torch's own deprecations
        compiled: Any = torch.compile(model)
    torch.save(compiled.state_dict(), tmp_path / "compiled.pt")
    assert same_weights(load_checkpoint(tmp_path / "compiled.pt", net).model, model)


def test_a_part_really_named_module_is_kept(tmp_path: Path) -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)
            self.head = nn.Linear(2, 2)

    model = Holder()
    torch.save(model.state_dict(), tmp_path / "m.pt")
    assert same_weights(load_checkpoint(tmp_path / "m.pt", Holder).model, model)


def test_prefixes_stay_when_dropping_them_does_not_help(tmp_path: Path) -> None:
    torch.save({"module.other": torch.zeros(2)}, tmp_path / "m.pt")
    assert "1 unexpected (module.other)" in one_line(tmp_path / "m.pt", CheckpointError)


def test_safetensors_and_the_old_format_are_read(tmp_path: Path) -> None:
    model = net()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "m.safetensors")
    safetensors.torch.save_file(model.state_dict(), tmp_path / "renamed.bin")
    torch.save(model.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("m.safetensors", "renamed.bin", "old.pt"):
        assert same_weights(load_checkpoint(tmp_path / name, net).model, model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_types_are_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    model = net().to(dtype)
    torch.save(model.state_dict(), tmp_path / "m.pt")
    save_checkpoint(tmp_path / "self.pt", model, architecture="mlp", arguments=ARGUMENTS)
    for loaded in (load_checkpoint(tmp_path / "m.pt", net), load_checkpoint(tmp_path / "self.pt")):
        assert {parameter.dtype for parameter in loaded.model.parameters()} == {dtype}
        assert same_weights(loaded.model, model)


def test_types_mixed_in_the_file_stay_mixed_and_counters_stay_integers(tmp_path: Path) -> None:
    def mixed() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))

    model = mixed()
    model[0].half()  # type: ignore[index]  # a Sequential, seen as a Module
    torch.save(model.state_dict(), tmp_path / "m.pt")
    loaded = load_checkpoint(tmp_path / "m.pt", mixed).model.state_dict()
    assert loaded["0.weight"].dtype == torch.float16
    assert loaded["1.running_var"].dtype == torch.float32
    assert loaded["1.num_batches_tracked"].dtype == torch.int64


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        first, second = nn.Linear(3, 3), nn.Linear(3, 3)
        second.weight = first.weight
        return nn.Sequential(first, second)

    torch.save(tied().half().state_dict(), tmp_path / "m.pt")
    loaded = load_checkpoint(tmp_path / "m.pt", tied).model
    assert len(list(loaded.parameters())) == 3
    assert loaded[0].weight is loaded[1].weight  # type: ignore[index]  # a Sequential, seen as a Module


def test_tied_weights_that_a_file_holds_once_are_found(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        first, second = nn.Linear(3, 3), nn.Linear(3, 3)
        second.weight = first.weight
        return nn.Sequential(first, second)

    model = tied()
    for dropped in ("0.weight", "1.weight"):
        state = {name: tensor for name, tensor in model.state_dict().items() if name != dropped}
        safetensors.torch.save_file(state, tmp_path / "m.safetensors")
        loaded = load_checkpoint(tmp_path / "m.safetensors", tied).model
        assert same_weights(loaded, model)
        assert loaded[0].weight is loaded[1].weight  # type: ignore[index]  # a Sequential, seen as a Module


def test_a_moving_average_beside_the_weights_is_noted(tmp_path: Path) -> None:
    state = net().state_dict()
    average = {name: value * 0 for name, value in state.items()}
    for content, noted in (
        ({"model": state, "ema": average}, "under ema: the plain weights are measured"),
        ({"state_dict": state, "state_dict_ema": average}, "under state_dict_ema"),
        ({"model": state, "ema_model": {"state_dict": average}}, "under ema_model"),
        ({"ema": average}, None),
        ({"model": state, "ema": {"decay": 0.9}}, None),
        (state, None),
    ):
        torch.save(content, tmp_path / "m.pt")
        notes = load_checkpoint(tmp_path / "m.pt", net).notes
        assert set(notes) == ({"ema_ignored"} if noted else set())
        assert noted is None or noted in notes["ema_ignored"]


def test_a_state_dict_without_a_factory_asks_for_one(tmp_path: Path) -> None:
    torch.save(net().state_dict(), tmp_path / "m.pt")
    message = one_line(tmp_path / "m.pt", UsageError, None)
    assert "pass --model pkg.mod:callable or path/file.py:callable" in message


def test_a_mismatch_lists_the_first_names_and_the_counts(tmp_path: Path) -> None:
    state = net().state_dict()
    torch.save(
        {"linear1.weight": torch.zeros(9, 9), "linear1.bias": state["linear1.bias"]}
        | {f"new{i}": torch.zeros(1) for i in range(5)},
        tmp_path / "m.pt",
    )
    message = one_line(tmp_path / "m.pt", CheckpointError)
    assert "4 missing (linear2.weight, linear2.bias, output.weight, ...)" in message
    assert "5 unexpected (new0, new1, new2, ...)" in message
    assert "1 of another shape (linear1.weight is 9x9 in the file, 5x6 in the model)" in message


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda: 1 / 0, "failed: ZeroDivisionError: division by zero"),
        (lambda: "a model", "returned a str, not a torch.nn.Module"),
    ],
)
def test_a_factory_that_fails_is_the_users_error(tmp_path: Path, factory: Any, message: str) -> None:
    torch.save(net().state_dict(), tmp_path / "m.pt")
    with pytest.raises(UsageError, match=message):
        load_checkpoint(tmp_path / "m.pt", factory)


class RunsCode:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("factory", [None, net])
@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_code_in_a_file_is_never_run(
    tmp_path: Path, factory: Callable[[], nn.Module] | None, new_format: bool, nested: bool
) -> None:
    trap, path = RunsCode(tmp_path / "created"), tmp_path / "m.pt"
    content = {"state_dict": net().state_dict(), "extra": trap} if nested else trap
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    message = one_line(path, UnsafeFileError, factory)
    assert "posix.mkdir" in message
    assert "state_dict()" in message
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_bare_pickle_is_refused_with_the_names_it_needs(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps(RunsCode(tmp_path / "created"), protocol=protocol))
    assert "posix.mkdir" in one_line(path, UnsafeFileError)
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickled_module_is_refused_by_name(tmp_path: Path, new_format: bool) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "m.pt", _use_new_zipfile_serialization=new_format)
    assert "torch.nn.modules.linear.Linear" in one_line(tmp_path / "m.pt", UnsafeFileError)


def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit warns that it is deprecated
        torch.jit.script(net()).save(str(tmp_path / "m.pt"))
    assert "TorchScript" in one_line(tmp_path / "m.pt", UnsafeFileError)


def test_an_exported_program_is_refused_for_the_code_in_it(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export warns of its own internals
        torch.export.save(torch.export.export(net(), (torch.zeros(1, 6),)), tmp_path / "m.pt2")
    message = one_line(tmp_path / "m.pt2", UnsafeFileError)
    assert "is a torch.export program, which holds code (one exported in train mode can be measured)" in message
    assert message.endswith("--trust-code reads it, if it is your own")


@pytest.mark.parametrize("kind", ["new", "old", "safetensors", "self"])
def test_a_file_cut_anywhere_is_a_checkpoint_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"m.{'safetensors' if kind == 'safetensors' else 'pt'}"
    if kind == "safetensors":
        safetensors.torch.save_file(net().state_dict(), path)
    elif kind == "self":
        saved(path)
    else:
        torch.save(net().state_dict(), path, _use_new_zipfile_serialization=kind == "new")
    whole = path.read_bytes()
    for length in {*range(0, len(whole), 37), 1, 2, 4, 8, 9, len(whole) - 22, len(whole) - 1}:
        path.write_bytes(whole[:length])
        one_line(path, CheckpointError)


@pytest.mark.parametrize("kind", ["new", "old", "safetensors"])
def test_flipped_bytes_never_end_in_a_traceback(tmp_path: Path, kind: str) -> None:
    path, generator = tmp_path / "m.bin", np.random.default_rng(0)
    if kind == "safetensors":
        safetensors.torch.save_file(net().state_dict(), path)
    else:
        torch.save(net().state_dict(), path, _use_new_zipfile_serialization=kind == "new")
    whole = path.read_bytes()
    for place in generator.integers(len(whole), size=150):
        damaged = bytearray(whole)
        damaged[place] ^= int(generator.integers(1, 256))
        path.write_bytes(damaged)
        try:
            load_checkpoint(path, net)  # a flip inside a weight cannot be noticed
        except RDropAnalysisError as problem:
            assert "\n" not in str(problem)  # noqa: PT017  # either outcome is right, a raw exception is not


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"These are the notes of the training run.\n" * 9, "looks like text"),
        (b"class,label\n1,2\n", "looks like text"),
        (json.dumps({"weight_map": {"a": "b"}}).encode(), "looks like JSON"),
        (np.random.default_rng(3).bytes(4000), "neither a PyTorch nor a safetensors file"),
        (b"\x80" + np.random.default_rng(4).bytes(4000), "truncated or damaged"),
        (b"PK\x03\x04" + np.random.default_rng(5).bytes(4000), "truncated or damaged"),
    ],
)
def test_what_is_no_checkpoint_is_told_apart(tmp_path: Path, content: bytes, message: str) -> None:
    for name in ("m.pt", "m.bin"):
        (tmp_path / name).write_bytes(content)
        assert message in one_line(tmp_path / name, CheckpointError)
    (tmp_path / "m.safetensors").write_bytes(content)
    one_line(tmp_path / "m.safetensors", CheckpointError)


def test_a_missing_file_and_a_directory(tmp_path: Path) -> None:
    assert "there is no such file" in one_line(tmp_path / "absent.pt", CheckpointError)
    assert "is a directory" in one_line(tmp_path, CheckpointError)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "holds a list, not a state dict"),
        (torch.zeros(1), "holds a Tensor, not a state dict"),
        ({}, "holds no tensors"),
        ({"epoch": 3, "loss": 0.1}, "holds no tensors (its keys: epoch, loss)"),
        ({"1.weight": torch.zeros(1), "epoch": 3}, "epoch is a int, not a tensor"),
        ({7: torch.zeros(1)}, "has the key 7, not a parameter's name"),
    ],
)
@pytest.mark.parametrize("factory", [None, net])
def test_what_holds_no_state_dict_says_what_it_holds(
    tmp_path: Path, content: object, message: str, factory: Callable[[], nn.Module] | None
) -> None:
    torch.save(content, tmp_path / "m.pt")
    assert message in one_line(tmp_path / "m.pt", CheckpointError, factory)


def test_a_dictionary_that_contains_itself_is_no_trap(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    for new_format in (True, False):
        torch.save(content, tmp_path / "m.pt", _use_new_zipfile_serialization=new_format)
        one_line(tmp_path / "m.pt", CheckpointError)


def test_names_from_a_file_are_escaped(tmp_path: Path) -> None:
    torch.save({"\x1b[31mred\n": torch.zeros(1)}, tmp_path / "m.pt")
    assert r"\x1b[31mred\n" in one_line(tmp_path / "m.pt", CheckpointError)


class Claims:
    """A tensor of one number that says it has `length`."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __reduce__(self) -> Any:
        storage = torch.storage.TypedStorage(1, dtype=torch.float32, _internal=True)
        return torch._utils._rebuild_tensor_v2, (storage, 0, (self.length,), (1,), False, {})


def peak_memory() -> int:
    """Return the most memory this process has held so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


@pytest.mark.parametrize("new_format", [True, False])
def test_a_tensor_cannot_take_more_memory_than_its_file(tmp_path: Path, new_format: bool) -> None:
    torch.save({"weight": Claims(10**9)}, tmp_path / "m.pt", _use_new_zipfile_serialization=new_format)
    before = peak_memory()
    one_line(tmp_path / "m.pt", CheckpointError)
    assert peak_memory() - before < 10**8  # the file of 1 kB claims 4 GB


def test_a_storage_of_the_old_format_cannot_take_more_memory_than_its_file(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1000)}, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "m.pt").read_bytes()
    claimed = content.replace(b"M\xe8\x03", b"J\x00\xca\x9a\x3b")  # the pickled int 1000 becomes 10**9
    everywhere = claimed.replace((1000).to_bytes(8, "little"), (10**9).to_bytes(8, "little"))
    assert len({content, claimed, everywhere}) == 3
    before = peak_memory()
    for damaged in (claimed, everywhere):
        (tmp_path / "m.pt").write_bytes(damaged)
        one_line(tmp_path / "m.pt", CheckpointError)
    assert peak_memory() - before < 10**8  # the file of 4 kB claims 4 GB


def test_an_archive_that_unpacks_to_more_than_it_has_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1000)}, tmp_path / "m.pt")
    with zipfile.ZipFile(tmp_path / "m.pt") as plain, zipfile.ZipFile(tmp_path / "z.pt", "w", 8) as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry), zipfile.ZIP_DEFLATED)
    assert "declares more bytes than it has" in one_line(tmp_path / "z.pt", CheckpointError)


def test_sizes_in_a_safetensors_header_are_checked(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [10**8], "data_offsets": [0, 4 * 10**8]}}).encode()
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    one_line(tmp_path / "m.safetensors", CheckpointError)
    (tmp_path / "m.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    one_line(tmp_path / "m.safetensors", CheckpointError)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "format version 2, this program reads 1"),
        ({"architecture": "os:system"}, "unknown architecture os:system: this version knows cnn, mlp"),
        ({"architecture": None}, "its architecture is missing or malformed"),
        ({"state_dict": None}, "its state_dict is missing or malformed"),
        ({"arguments": {"hidden": [4]}}, "takes the arguments dropout, hidden, in_features, n_classes; given: hidden"),
        ({"arguments": ARGUMENTS | {"hidden": [10**9] * 2}}, "does not fit the model"),
        ({"arguments": ARGUMENTS | {"hidden": [10**12] * 2}}, "mlp"),
        ({"arguments": ARGUMENTS | {"dropout": 2.0}}, "dropout = 2.0 is not a usable value"),
        ({"data": "evil.py:data"}, "data must be one of digits, "),
        ({"training": {"nested": {}}}, "training setting nested is not a plain scalar"),
        ({"training": [1]}, "its training is missing or malformed"),
    ],
)
def test_a_self_describing_file_is_not_believed(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "m.pt"
    saved(path)
    torch.save(torch.load(path, weights_only=True) | changes, path)
    assert message in one_line(path, CheckpointError, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "transformer"},
        {"arguments": ARGUMENTS | {"n_classes": 4}},
        {"training": {"history": [1, 2]}},
        {"data": "mine.npz"},
    ],
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError):
        saved(tmp_path / "m.pt", **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.pt"
    saved(path)
    before = path.read_bytes()

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        saved(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_saving_where_no_directory_can_be_is_a_checkpoint_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        saved(tmp_path / "file" / "m.pt")


def test_the_format_is_what_the_documentation_says(tmp_path: Path) -> None:
    saved(tmp_path / "m.pt")
    content = torch.load(tmp_path / "m.pt", weights_only=True)
    assert content["format"] == checkpoints.FORMAT == "rdrop-analysis/checkpoint"
    assert content["version"] == checkpoints.VERSION == 1
    assert set(content) == {"format", "version", "architecture", "arguments", "state_dict", "data", "training"}


class Positions(nn.Module):
    """Makes a buffer that it does not save."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("position_ids", torch.arange(3), persistent=False)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_buffers_that_older_code_saved_are_left_out_with_a_note(tmp_path: Path, prefix: str) -> None:
    state = {**Positions().state_dict(), "position_ids": torch.arange(3)}
    path = tmp_path / "old.pt"
    torch.save({prefix + name: tensor for name, tensor in state.items()}, path)
    loaded = load_checkpoint(path, Positions)
    assert torch.equal(loaded.model.state_dict()["linear.weight"], state["linear.weight"])
    assert "position_ids" in loaded.notes["weights_unused"]
