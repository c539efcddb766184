"""The package's own models have the shapes they promise, and files cannot ask for anything else."""

from typing import Any

import pytest
import torch
from torch import nn

from rdrop_analysis.errors import CheckpointError
from rdrop_analysis.models import ARCHITECTURES, build

ARGUMENTS: dict[str, dict[str, Any]] = {
    "mlp": {"in_features": 12, "hidden": [7, 5], "n_classes": 3, "dropout": 0.5},
    "cnn": {"channels": [2, 4], "hidden": 6, "n_classes": 3, "dropout": 0.5},
}
INPUT_SHAPES = {"mlp": (12,), "cnn": (1, 28, 28)}


def test_every_architecture_is_tested() -> None:
    assert ARCHITECTURES.keys() == ARGUMENTS.keys()


@pytest.mark.parametrize("name", ARGUMENTS)
def test_models_return_logits_that_vary_with_dropout_only_in_training(name: str) -> None:
    model = build(name, ARGUMENTS[name])
    inputs = torch.randn(9, *INPUT_SHAPES[name])
    assert model.eval()(inputs).shape == (9, 3)
    assert torch.equal(model(inputs), model(inputs))
    model.train()
    assert not torch.equal(model(inputs), model(inputs))
    still = build(name, ARGUMENTS[name] | {"dropout": 0.0})
    assert torch.equal(still(inputs), still(inputs))


def test_the_perceptron_has_dropout_after_each_hidden_layer_and_takes_pictures() -> None:
    model = build("mlp", ARGUMENTS["mlp"])
    assert [type(layer) for layer in model.children()] == [
        nn.Flatten,
        *[nn.Linear, nn.ReLU, nn.Dropout] * 2,
        nn.Linear,
    ]
    assert model(torch.randn(2, 3, 4)).shape == (2, 3)
    assert sum(parameter.numel() for parameter in model.parameters()) == 13 * 7 + 8 * 5 + 6 * 3


def test_the_network_for_fashion_mnist_has_about_200_000_parameters() -> None:
    from rdrop_analysis.recipes import RECIPES

    recipe = RECIPES["fashion-mnist"]
    model = build(recipe.architecture, recipe.arguments)
    assert 190_000 < sum(parameter.numel() for parameter in model.parameters()) < 220_000


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet", {}, "unknown architecture resnet: this version knows cnn, mlp"),
        ("os.system", {"command": "true"}, "unknown architecture os.system"),
        ("mlp", {}, "takes the arguments dropout, hidden, in_features, n_classes; given: none"),
        ("mlp", ARGUMENTS["mlp"] | {"depth": 3}, "given: depth, dropout, hidden"),
        ("mlp", ARGUMENTS["mlp"] | {"dropout": -0.1}, "dropout = -0.1 is not a usable value"),
        ("mlp", ARGUMENTS["mlp"] | {"dropout": float("nan")}, "dropout = nan is not a usable value"),
        ("mlp", ARGUMENTS["mlp"] | {"hidden": []}, r"hidden = \[\] is not a usable value"),
        ("mlp", ARGUMENTS["mlp"] | {"hidden": 5}, "does not take these arguments"),
        ("mlp", ARGUMENTS["mlp"] | {"hidden": [1] * 17}, "is not a usable value"),
        ("mlp", ARGUMENTS["mlp"] | {"n_classes": 0}, "n_classes = 0 is not a usable value"),
        ("mlp", ARGUMENTS["mlp"] | {"n_classes": True}, "n_classes = True is not a usable value"),
        ("mlp", ARGUMENTS["mlp"] | {"n_classes": "3"}, "n_classes = 3 is not a usable value"),
        ("cnn", ARGUMENTS["cnn"] | {"channels": [1, 2, 3]}, "does not take these arguments"),
    ],
)
def test_other_names_and_arguments_are_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        build(name, arguments)
    assert "\n" not in str(caught.value)
