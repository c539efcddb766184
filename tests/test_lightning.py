"""Lightning checkpoints give their weights, and their hyper-parameters to whoever has a use for them.

The files are laid out as Lightning 2.6 writes them, key by key.
"""

import pathlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rdrop_analysis.checkpoints import load_checkpoint
from rdrop_analysis.errors import CheckpointError, UnsafeFileError, UsageError

HYPER_PARAMETERS = {"hidden": 7, "dropout": 0.3, "alpha": 1.0, "layers": (4, 4), "note": None, "more": {"a": [1]}}


def inner(hidden: int, dropout: float = 0.1) -> nn.Module:
    return nn.Sequential(nn.Linear(4, hidden), nn.Dropout(dropout), nn.Linear(hidden, 3))


class Whole(nn.Module):
    """What a LightningModule is to torch: the network in an attribute, and whatever else it keeps."""

    def __init__(self, hidden: int = 5, layers: tuple[int, ...] = (), **others: Any) -> None:
        super().__init__()
        self.net, self.layers, self.others = inner(hidden), layers, others


def saved(path: Path, state: dict[str, Tensor], hyper_parameters: object = HYPER_PARAMETERS) -> Path:
    content = {
        "epoch": 3,
        "global_step": 40,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": OrderedDict(state),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(1.0), "dirpath": "/x"}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(4.0)}}, "param_groups": [{"betas": (0.9, 0.999)}]}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": hyper_parameters,
    }
    torch.save(content, path)
    return path


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def same_weights(loaded: nn.Module, model: nn.Module) -> bool:
    state, expected = loaded.state_dict(), model.state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)


def test_the_factory_is_given_the_hyper_parameters_it_takes(tmp_path: Path) -> None:
    model = Whole(7)
    path = saved(tmp_path / "m.ckpt", model.state_dict())
    loaded = load_checkpoint(path, Whole)
    assert same_weights(loaded.model, model)
    assert loaded.model.layers == (4, 4)
    assert loaded.model.others == {"dropout": 0.3, "alpha": 1.0, "note": None, "more": {"a": [1]}}
    assert loaded.training == {"hidden": 7, "dropout": 0.3, "alpha": 1.0, "note": None}


@pytest.mark.parametrize("prefix", ["net.", "model.", "module.model.", "backbone.", "model._orig_mod."])
def test_the_inner_model_is_found_in_the_lightning_module(tmp_path: Path, prefix: str) -> None:
    model = inner(7)
    path = saved(tmp_path / "m.ckpt", prefixed(prefix, model.state_dict()))
    loaded = load_checkpoint(path, inner)
    assert same_weights(loaded.model, model)
    assert loaded.model[1].p == 0.3  # type: ignore[index]  # a Sequential, seen as a Module
    assert loaded.notes == {}


def test_what_else_the_lightning_module_keeps_is_noted(tmp_path: Path) -> None:
    model = inner(7)
    state = prefixed("net.", model.state_dict()) | {"criterion.weight": torch.ones(3)}
    loaded = load_checkpoint(saved(tmp_path / "m.ckpt", state), inner)
    assert same_weights(loaded.model, model)
    assert loaded.notes == {"weights_unused": "1 tensors in the file are not the model's: criterion.weight"}


def test_the_plain_model_is_preferred_to_its_moving_average(tmp_path: Path) -> None:
    model, average = inner(7), inner(7)
    state = prefixed("ema_model.", average.state_dict()) | prefixed("net.", model.state_dict())
    loaded = load_checkpoint(saved(tmp_path / "m.ckpt", state), inner)
    assert same_weights(loaded.model, model)
    assert "4 tensors in the file are not the model's: ema_model.0.weight" in loaded.notes["weights_unused"]


def test_a_lone_prefix_is_dropped_from_any_file_but_nothing_is_left_over(tmp_path: Path) -> None:
    model = inner(7)
    torch.save(prefixed("encoder.", model.state_dict()), tmp_path / "m.pt")
    assert same_weights(load_checkpoint(tmp_path / "m.pt", lambda: inner(7)).model, model)
    torch.save(prefixed("encoder.", model.state_dict()) | {"head.bias": torch.ones(3)}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="5 unexpected"):
        load_checkpoint(tmp_path / "m.pt", lambda: inner(7))


def test_a_factory_without_parameters_is_called_as_before(tmp_path: Path) -> None:
    model = inner(2)
    path = saved(tmp_path / "m.ckpt", model.state_dict())
    assert same_weights(load_checkpoint(path, lambda: inner(2)).model, model)


def test_a_parameter_that_no_file_gives_is_named(tmp_path: Path) -> None:
    def wide(hidden: int, width: int, *, depth: int) -> nn.Module:
        raise AssertionError(hidden, width, depth)

    path = saved(tmp_path / "m.ckpt", inner(7).state_dict())
    with pytest.raises(UsageError, match=r"wide takes width, depth, which nothing gives, .* has hidden, dropout"):
        load_checkpoint(path, wide)
    torch.save(inner(7).state_dict(), tmp_path / "m.pt")
    with pytest.raises(UsageError, match=r"takes hidden, width, depth, which nothing gives$"):
        load_checkpoint(tmp_path / "m.pt", wide)


def test_hyper_parameters_of_other_files_are_not_taken(tmp_path: Path) -> None:
    model = Whole()
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": {"hidden": 9}}, tmp_path / "m.pt")
    loaded = load_checkpoint(tmp_path / "m.pt", Whole)
    assert same_weights(loaded.model, model)
    assert loaded.training == {}


@pytest.mark.parametrize("given", [None, [1], {1: 2}, {"bad": torch.ones(2)}, {"deep": [[[[[[[[[[1]]]]]]]]]]}])
def test_what_is_not_plain_is_not_passed_on(tmp_path: Path, given: object) -> None:
    loaded = load_checkpoint(saved(tmp_path / "m.ckpt", Whole().state_dict(), given), Whole)
    assert loaded.training == {}
    assert loaded.model.others == {}


@pytest.mark.parametrize("value", [pathlib.PurePosixPath("/x"), nn.ReLU()])
def test_objects_among_the_hyper_parameters_are_refused_with_a_way_out(tmp_path: Path, value: object) -> None:
    path = saved(tmp_path / "m.ckpt", Whole(7).state_dict(), {"hidden": 7, "value": value})
    with pytest.raises(UnsafeFileError, match=r"(pathlib|torch\.nn).*--trust-code reads it, if it is your own"):
        load_checkpoint(path, Whole)
    loaded = load_checkpoint(path, Whole, trust_code=True)
    assert loaded.training == {"hidden": 7}
    assert loaded.model.others == {}
