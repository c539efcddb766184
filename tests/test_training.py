"""Short trainings on the digits: the loss falls, R-Drop is what alpha > 0 trains with, and seeds decide everything."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from rdrop_analysis import training
from rdrop_analysis.checkpoints import load_checkpoint
from rdrop_analysis.datasets import load_data
from rdrop_analysis.epochs import Epoch, accuracy
from rdrop_analysis.errors import UsageError
from rdrop_analysis.losses import concatenated_forward, mean_pairwise_kl
from rdrop_analysis.models import build
from rdrop_analysis.recipes import RECIPES
from rdrop_analysis.training import TrainingRun, train


def short(**settings: Any) -> TrainingRun:
    """Train on 256 digits for two epochs."""
    return train("digits", epochs=2, limit=256, **settings)


@pytest.fixture(scope="module")
def baseline() -> TrainingRun:
    return train("digits", alpha=0.0, epochs=6)


@pytest.fixture(scope="module")
def rdrop() -> TrainingRun:
    return train("digits", alpha=5.0, epochs=6)


def same(first: nn.Module, second: nn.Module) -> bool:
    """Tell whether two models have the same weights, bit for bit."""
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_the_loss_falls_and_the_digits_are_learned(baseline: TrainingRun, rdrop: TrainingRun) -> None:
    for run in (baseline, rdrop):
        assert [epoch.number for epoch in run.history] == [1, 2, 3, 4, 5, 6]
        assert run.history[-1].loss < 0.3 * run.history[0].loss
        assert run.settings["train_loss"] == run.history[-1].loss
        found = run.settings["test_accuracy"]
        assert isinstance(found, float)
        assert found > 0.85  # a tenth is chance
        assert not run.model.training


def test_alpha_above_0_trains_with_rdrop_and_0_without(baseline: TrainingRun, rdrop: TrainingRun) -> None:
    for epoch in rdrop.history:
        assert epoch.consistency is not None
        assert epoch.consistency > 0
        # the sums over batches round in the 16th digit
        assert epoch.loss == pytest.approx(epoch.fit + 5.0 * epoch.consistency, rel=1e-6)
    for epoch in baseline.history:
        assert epoch.consistency is None
        assert epoch.loss == epoch.fit


def test_rdrop_makes_the_sub_models_agree(baseline: TrainingRun, rdrop: TrainingRun) -> None:
    """Measured 0.134 and 0.073 on these seeds; 16 sub-models of 450 examples leave a few percent of noise."""
    (piece,) = load_data("digits").pieces
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        divergences = [
            mean_pairwise_kl(concatenated_forward(run.model.train(), piece.inputs, 16).log_softmax(-1)).mean()
            for run in (baseline, rdrop)
        ]
    for run in (baseline, rdrop):
        run.model.eval()
    assert divergences[1] < 0.75 * divergences[0]


def test_the_first_step_of_the_baseline_is_plain_adam_on_one_pass() -> None:
    """One batch of everything: the weights after it follow from the seeded model and its dropout masks."""
    run = train("digits", alpha=0.0, seed=3, epochs=1, limit=200, batch_size=200)
    (piece,) = load_data("digits:train", limit=200).pieces
    assert piece.labels is not None
    order = torch.randperm(200, generator=torch.Generator().manual_seed(3))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = build("mlp", RECIPES["digits"].arguments)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        assert isinstance(piece.inputs, torch.Tensor)
        functional.cross_entropy(model(piece.inputs[order]), piece.labels[order]).backward()
        optimizer.step()
    assert same(run.model, model)


def test_equal_seeds_give_equal_bytes_and_other_seeds_other_weights(tmp_path: Path) -> None:
    runs = [short(seed=seed, output=tmp_path / f"{n}.pt") for n, seed in enumerate([7, 7, 8])]
    files = [run.path.read_bytes() for run in runs if run.path]
    assert files[0] == files[1]
    assert same(runs[0].model, runs[1].model)
    assert not same(runs[0].model, runs[2].model)
    assert runs[0].history == runs[1].history != runs[2].history


def test_alpha_changes_the_weights() -> None:
    assert not same(short(alpha=1.0).model, short(alpha=2.0).model)


def test_the_global_random_state_does_not_matter_and_is_left_alone() -> None:
    torch.manual_seed(1)
    first = short()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert same(short().model, first.model)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_number_of_threads_is_restored() -> None:
    before = torch.get_num_threads()
    during: list[int] = []
    short(progress=lambda epoch: during.append(torch.get_num_threads()))
    assert during == [1, 1]
    assert torch.get_num_threads() == before


def test_the_checkpoint_describes_its_training(tmp_path: Path) -> None:
    run = short(alpha=2.0, seed=4, output=tmp_path / "m.pt", convention="article", dropout=0.1)
    loaded = load_checkpoint(tmp_path / "m.pt")
    assert run.path == tmp_path / "m.pt"
    assert same(loaded.model, run.model)
    assert loaded.data == "digits"
    assert loaded.architecture == "mlp(in_features=64, hidden=[256, 256], n_classes=10, dropout=0.1)"
    assert loaded.training == run.settings
    assert loaded.training == {
        "task": "digits",
        "alpha": 2.0,
        "convention": "article",
        "seed": 4,
        "epochs": 2,
        "dropout": 0.1,
        "optimizer": "Adam",
        "learning_rate": 1e-3,
        "batch_size": 64,
        "limit": 256,
        "train_loss": run.history[-1].loss,
        "test_accuracy": accuracy(loaded.model, load_data("digits")),
    }


def test_the_baseline_has_no_convention() -> None:
    settings = short(alpha=0).settings
    assert settings["convention"] is None
    assert settings["alpha"] == 0.0


def test_every_epoch_can_be_kept_without_changing_the_training(tmp_path: Path) -> None:
    seen: list[Epoch] = []
    kept = short(output=tmp_path / "m.pt", every_epoch=True, progress=seen.append)
    assert tuple(seen) == kept.history
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m-epoch-1.pt", "m-epoch-2.pt", "m.pt"]
    assert same(kept.model, short().model)
    first, last = (load_checkpoint(tmp_path / f"m-epoch-{number}.pt") for number in (1, 2))
    assert (first.training["epochs"], last.training["epochs"]) == (1, 2)
    assert first.training["train_loss"] == kept.history[0].loss
    assert same(last.model, kept.model)
    assert not same(first.model, kept.model)


def test_accuracy_counts_the_right_answers_with_dropout_off() -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.Identity())
    inputs = torch.eye(4).repeat(5, 1)
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2, 0, 0, 0, 0, 0, 0, 1, 2, 3, 1, 1, 1, 1])
    data = load_data((inputs, labels))
    right = sum(int(row) % 4 == int(label) for row, label in enumerate(labels))
    assert accuracy(model, data, batch_size=3) == right / 20
    assert model.training


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "digit"}, "unknown training task 'digit': did you mean digits. known are digits, fashion-mnist"),
        ({"alpha": -1.0}, "alpha must be at least 0 and finite, not -1.0"),
        ({"convention": "blog"}, "unknown convention 'blog': known are paper"),
        ({"epochs": 0}, "epochs must be above 0, not 0"),
        ({"batch_size": -2}, "batch_size must be above 0, not -2"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0, not nan"),
        ({"limit": 0}, "limit must be above 0, not 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), not 1.0"),
        ({"seed": -1}, "the seed must be at least 0"),
        ({"every_epoch": True}, "saving every epoch needs an output file"),
        ({"learning_rate": 1e30}, "the loss is (nan|inf) in epoch 1: lower the learning rate or alpha"),
    ],
)
def test_settings_without_meaning_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        train(**{"task": "digits", "limit": 256, **settings})  # type: ignore[arg-type]  # the wrong types are the point
    assert "\n" not in str(caught.value)


def test_fashion_mnist_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """On noise in the shape of the pictures, which need not be installed."""
    generator = torch.Generator().manual_seed(0)
    noise = load_data((torch.rand(64, 1, 28, 28, generator=generator), torch.arange(64) % 10))
    monkeypatch.setattr(training, "BUILT_IN", {"fashion-mnist": lambda: noise, "fashion-mnist:train": lambda: noise})
    run = train("fashion-mnist", epochs=2)
    assert run.history[1].loss < run.history[0].loss
    assert run.settings["limit"] == 20_000
