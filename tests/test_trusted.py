"""Files that hold code are read for a user who trusts them, and then measured rightly or refused with the reason."""

import copy
import importlib
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rdrop_analysis.analysis import analyze
from rdrop_analysis.checkpoints import LoadedCheckpoint, load_checkpoint
from rdrop_analysis.errors import CheckpointError, RDropAnalysisError, UnsafeFileError

N = 60


class Functional(nn.Module):
    """Dropout as a module and as a function, around a batch normalisation."""

    shape = (6,)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.drop, self.b = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(torch.relu(self.norm(self.a(x))))
        return self.b(nn.functional.dropout(h, 0.2, self.training))


class Channels(nn.Module):
    """Whole channels, and alpha dropout."""

    shape = (1, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Dropout2d(0.3)
        self.alpha, self.out = nn.AlphaDropout(0.2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.alpha(self.drop(torch.relu(self.norm(self.conv(x)))).mean((2, 3))))


class Recurrent(nn.Module):
    """Dropout between the layers of an LSTM."""

    shape = (4, 6)

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(6, 8, 2, dropout=0.4, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0][:, -1])


class Encoder(nn.Module):
    """Attention with dropout, whose fused path in eval mode has none."""

    shape = (4, 8)

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.2, batch_first=True)
        self.encoder, self.out = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(x)[:, -1])


class Depth(nn.Module):
    """Stochastic depth by hand."""

    shape = (6,)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        if self.training:
            h = h * torch.empty(x.shape[0], 1).bernoulli_(0.8) / 0.8
        return self.b(x + h)


MODELS = [Functional, Channels, Recurrent, Encoder, Depth]


@contextmanager
def unwarned() -> Iterator[None]:
    """torch warns that TorchScript is deprecated, and torch.export of its own internals."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def made(kind: type[Any]) -> Any:
    """A model with larger weights than fresh ones have, so that there is something to measure."""
    model = kind().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
    return model


def scripted(path: Path, model: nn.Module) -> Path:
    with unwarned():
        torch.jit.script(model).save(str(path))
    return path


def exported(path: Path, model: nn.Module, shape: tuple[int, ...], *, any_batch: bool = True) -> Path:
    dynamic = ({0: torch.export.Dim.DYNAMIC},) if any_batch else None
    with unwarned():
        torch.export.save(torch.export.export(model, (torch.randn(5, *shape),), dynamic_shapes=dynamic), path)
    return path


def measured(model: nn.Module, shape: tuple[int, ...]) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(N, *shape, generator=generator), torch.randint(3, (N,), generator=generator)
    found = analyze(model, data, sub_models=8).record.checkpoints[0]
    return {name: metric.estimate for name, metric in found.metrics.items()}


def brute_force(model: nn.Module, shape: tuple[int, ...], passes: int) -> tuple[float, float]:
    """EPKL and its standard error, by training mode with batch normalisation held back, looping over pairs."""
    x = torch.randn(N, *shape, generator=torch.Generator().manual_seed(0))
    model = copy.deepcopy(model).train()
    for module in model.modules():
        module.training = not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    values = []
    with torch.no_grad():
        for _ in range(passes):
            one, two = model(x).log_softmax(-1).double(), model(x).log_softmax(-1).double()
            values.append(float((one.exp() * (one - two)).sum(-1).mean()))
    sample = torch.tensor(values)
    return float(sample.mean()), float(sample.std() / passes**0.5)


def one_line(path: Path, error: type[RDropAnalysisError], **how: Any) -> str:
    with pytest.raises(error) as caught:
        load_checkpoint(path, **how)
    assert type(caught.value) is error
    assert str(caught.value).isprintable()
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", MODELS)
def test_a_scripted_module_gives_the_numbers_of_the_module_it_was_made_from(tmp_path: Path, kind: type[Any]) -> None:
    model = made(kind)
    path = scripted(tmp_path / "m.pt", model)
    assert "TorchScript" in one_line(path, UnsafeFileError)
    loaded = load_checkpoint(path, trust_code=True)
    assert loaded.architecture == f"{kind.__name__} (TorchScript)"
    assert not loaded.model.training
    ours, theirs = measured(loaded.model, kind.shape), measured(model, kind.shape)
    assert ours["epkl"] > 1e-6
    for name in ("epkl", "kl_sub_to_eval", "accuracy_eval", "nll_eval", "nll_sub"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4)  # float32, in another order


def test_a_scripted_module_agrees_with_brute_force(tmp_path: Path) -> None:
    model = made(Functional)
    loaded = load_checkpoint(scripted(tmp_path / "m.pt", model), trust_code=True)
    expected, error = brute_force(model, model.shape, 400)
    generator = torch.Generator().manual_seed(0)
    found = analyze(loaded.model, (torch.randn(N, 6, generator=generator), None), sub_models=128).record
    epkl = found.checkpoints[0].metrics["epkl"]
    assert epkl.mask_low is not None
    spread = (epkl.estimate - epkl.mask_low) / 1.96
    assert abs(epkl.estimate - expected) < 5 * (error**2 + spread**2) ** 0.5


def test_a_scripted_module_is_left_as_it_was_and_can_be_moved(tmp_path: Path) -> None:
    model = made(Functional)
    loaded = load_checkpoint(scripted(tmp_path / "m.pt", model), trust_code=True).model
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    measured(loaded, model.shape)
    assert not loaded.training
    assert all(torch.equal(before[name], value) for name, value in loaded.state_dict().items())
    assert {parameter.dtype for parameter in loaded.double().parameters()} == {torch.float64}
    assert loaded(torch.randn(3, 6, dtype=torch.float64)).dtype == torch.float64
    assert sum(parameter.numel() for parameter in loaded.parameters()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind", ["script", "program"])
def test_batch_normalisation_stays_in_eval_mode_and_counts_nothing(tmp_path: Path, kind: str) -> None:
    model = made(Functional)
    if kind == "script":
        path = scripted(tmp_path / "m.pt", model)
    else:
        path = exported(tmp_path / "m.pt2", copy.deepcopy(model).train(), model.shape)
    loaded = load_checkpoint(path, trust_code=True).model.train()
    before = {name: buffer.clone() for name, buffer in loaded.named_buffers()}
    x = torch.randn(4, 6)
    assert not torch.equal(loaded(x), loaded(x))
    assert len(before) == 3
    assert all(torch.equal(before[name], buffer) for name, buffer in loaded.named_buffers())
    assert torch.allclose(loaded.eval()(x), model(x), atol=1e-6)  # float32


@pytest.mark.parametrize("fixed", ["traced in eval mode", "traced in train mode", "frozen", "scripted around a trace"])
def test_a_script_in_a_fixed_mode_is_refused_but_for_its_weights(tmp_path: Path, fixed: str) -> None:
    model, x, path = made(Functional), torch.randn(4, 6), tmp_path / "m.pt"
    with unwarned():
        if fixed == "frozen":
            script = torch.jit.freeze(torch.jit.script(model))
        else:
            model.train("train mode" in fixed)
            script = torch.jit.trace(model, x, check_trace=False)
        if fixed == "scripted around a trace":
            script = torch.jit.script(nn.Sequential(script, nn.Dropout(0.1)))
        script.save(str(path))
    assert "is TorchScript in a fixed mode" in one_line(path, CheckpointError, trust_code=True)
    if "traced" in fixed:
        loaded = load_checkpoint(path, Functional, trust_code=True).model
        assert torch.allclose(loaded(x), model.eval()(x))


@pytest.mark.parametrize("kind", [Functional, Channels, Recurrent, Encoder])
def test_a_program_exported_in_train_mode_gives_the_numbers_of_its_model(tmp_path: Path, kind: type[Any]) -> None:
    model = made(kind)
    path = exported(tmp_path / "m.pt2", copy.deepcopy(model).train(), kind.shape)
    assert "torch.export" in one_line(path, UnsafeFileError)
    loaded = load_checkpoint(path, trust_code=True)
    assert "exported in train mode" in loaded.notes["exported_program"]
    ours, theirs = measured(loaded.model, kind.shape), measured(model, kind.shape)
    assert ours["epkl"] > 1e-6
    for name in ("epkl", "kl_sub_to_eval", "accuracy_eval", "nll_eval", "nll_sub"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4)  # float32, in another order


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("any_batch", [True, False])
def test_a_program_exported_in_eval_mode_has_nothing_to_compare(
    tmp_path: Path, kind: type[Any], any_batch: bool
) -> None:
    model = made(kind)
    path = exported(tmp_path / "m.pt2", model, kind.shape, any_batch=any_batch)
    assert "was exported in eval mode" in one_line(path, CheckpointError, trust_code=True)
    x = torch.randn(3, *kind.shape)
    loaded = load_checkpoint(path, kind, trust_code=True).model
    assert torch.allclose(loaded(x), model(x))


def test_an_unguarded_dropout_does_not_make_an_eval_program_one_of_train_mode(tmp_path: Path) -> None:
    class Dirty(Functional):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(super().forward(x), 0.1, True)

    path = exported(tmp_path / "m.pt2", made(Dirty), Dirty.shape)
    assert "was exported in eval mode" in one_line(path, CheckpointError, trust_code=True)


def test_a_program_that_draws_what_has_no_eval_mode_is_refused(tmp_path: Path) -> None:
    path = exported(tmp_path / "m.pt2", made(Depth).train(), Depth.shape)
    assert "draws with aten.bernoulli_.float, which has no eval mode" in one_line(
        path, CheckpointError, trust_code=True
    )


def test_a_program_for_one_size_of_batch_is_refused(tmp_path: Path) -> None:
    path = exported(tmp_path / "m.pt2", made(Functional).train(), Functional.shape, any_batch=False)
    assert "is for batches of 5 only: export it with dynamic_shapes" in one_line(path, CheckpointError, trust_code=True)


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: model,
        lambda model: {"model": model, "epoch": 3},
        lambda model: {"ema": None, "net": model},
        lambda model: nn.DataParallel(model),
    ],
)
def test_a_pickled_module_is_measured_if_trusted(
    tmp_path: Path, wrap: Callable[[nn.Module], object], new_format: bool
) -> None:
    model, path = made(Functional), tmp_path / "m.pt"
    torch.save(wrap(model.train()), path, _use_new_zipfile_serialization=new_format)
    message = one_line(path, UnsafeFileError)
    assert "test_trusted.Functional" in message
    assert message.endswith("--trust-code reads it, if it is your own")
    loaded: LoadedCheckpoint = load_checkpoint(path, trust_code=True)
    assert loaded.architecture == "Functional"
    assert not loaded.model.training
    x = torch.randn(3, 6)
    assert torch.equal(loaded.model(x), model.eval()(x))
    assert torch.equal(load_checkpoint(path, Functional, trust_code=True).model(x), model(x))


def test_what_needs_no_trust_is_read_without_running_code(tmp_path: Path) -> None:
    torch.save(made(Functional).state_dict(), tmp_path / "m.pt")
    assert isinstance(load_checkpoint(tmp_path / "m.pt", Functional, trust_code=True).model, Functional)


def test_a_class_that_is_not_here_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = SimpleNamespace(Net=type("Net", (nn.Linear,), {"__module__": "gone_module", "__qualname__": "Net"}))
    monkeypatch.setitem(sys.modules, "gone_module", place)  # type: ignore[arg-type]  # stands for a module
    torch.save(place.Net(2, 2), tmp_path / "m.pt")
    monkeypatch.delitem(sys.modules, "gone_module")
    assert "needs the module gone_module: install it" in one_line(tmp_path / "m.pt", CheckpointError, trust_code=True)


def test_modules_in_the_current_directory_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rdrop_own_net.py").write_text("from torch import nn\nclass Net(nn.Linear):\n    pass\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        torch.save(importlib.import_module("rdrop_own_net").Net(2, 2), tmp_path / "m.pt")
    monkeypatch.delitem(sys.modules, "rdrop_own_net")
    monkeypatch.chdir(tmp_path)
    assert type(load_checkpoint(tmp_path / "m.pt", trust_code=True).model).__name__ == "Net"
    monkeypatch.delitem(sys.modules, "rdrop_own_net")


class Fails:
    """Unpickling this raises whatever it likes."""

    def __reduce__(self) -> Any:
        return exec, ("raise RuntimeError('first\\nsecond \\x1b[31m')",)


@pytest.mark.parametrize("content", [Fails(), {"model": Fails()}, SystemExit(3), b"x"])
def test_code_that_fails_is_one_line(tmp_path: Path, content: object) -> None:
    (tmp_path / "m.pt").write_bytes(pickle.dumps(content))
    one_line(tmp_path / "m.pt", CheckpointError, trust_code=True)


class RunsCode:
    """Unpickling this creates a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_trust_is_what_makes_the_difference(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.zeros(1)}, "x": RunsCode(tmp_path / "created")}, tmp_path / "m.pt")
    one_line(tmp_path / "m.pt", UnsafeFileError)
    assert not (tmp_path / "created").exists()
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_checkpoint(tmp_path / "m.pt", Functional, trust_code=True)
    assert (tmp_path / "created").exists()
