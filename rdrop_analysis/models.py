"""The models that `rdrop-analyze train` trains, and the only ones a checkpoint file may ask for by name.

A self-describing checkpoint names one of `ARCHITECTURES` with its arguments; no other name is ever resolved.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from rdrop_analysis.errors import CheckpointError
from rdrop_analysis.files import printable


def mlp(in_features: int, hidden: list[int], n_classes: int, dropout: float) -> nn.Sequential:
    """Return a perceptron with ReLU and dropout after each hidden layer.

    Takes inputs [N, in_features], or of any shape with as many elements an example; gives logits [N,
    n_classes].
    """
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    for i, (width_in, width) in enumerate(zip([in_features, *hidden[:-1]], hidden, strict=True), 1):
        layers |= {f"linear{i}": nn.Linear(width_in, width), f"relu{i}": nn.ReLU(), f"dropout{i}": nn.Dropout(dropout)}
    return nn.Sequential(OrderedDict(layers, output=nn.Linear(hidden[-1], n_classes)))


def cnn(channels: list[int], hidden: int, n_classes: int, dropout: float) -> nn.Sequential:
    """Return a convolutional network for grey images of 28 x 28 pixels, with dropout in its head.

    Takes inputs [N, 1, 28, 28]; gives logits [N, n_classes]. Each of the two `channels` is a 3 x 3
    convolution, ReLU and 2 x 2 max pooling.
    """
    first, second = channels
    layers: dict[str, nn.Module] = {
        **_stage(1, 1, first),
        **_stage(2, first, second),
        "flatten": nn.Flatten(),
        "dropout1": nn.Dropout(dropout),
        "linear": nn.Linear(second * 7 * 7, hidden),  # 28 -> 14 -> 7 pixels a side
        "relu": nn.ReLU(),
        "dropout2": nn.Dropout(dropout),
        "output": nn.Linear(hidden, n_classes),
    }
    return nn.Sequential(OrderedDict(layers))


def _stage(number: int, channels_in: int, channels: int) -> dict[str, nn.Module]:
    """Return a convolution that keeps the size, ReLU, and pooling that halves it."""
    return {
        f"conv{number}": nn.Conv2d(channels_in, channels, kernel_size=3, padding=1),
        f"relu{number}": nn.ReLU(),
        f"pool{number}": nn.MaxPool2d(2),
    }


ARCHITECTURES: Mapping[str, Callable[..., nn.Module]] = {"mlp": mlp, "cnn": cnn}


def build(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Return a freshly initialised model of a registered architecture.

    Raises `CheckpointError` if the name is not in `ARCHITECTURES` or the arguments are not those it takes.
    """
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise CheckpointError(f"unknown architecture {printable(name)}: this version knows {known}")
    architecture = ARCHITECTURES[name]
    _check_names(name, architecture, arguments)
    for argument, value in arguments.items():
        _check_value(name, argument, value)
    try:
        return architecture(**arguments)
    except (TypeError, ValueError, IndexError, RuntimeError) as problem:
        raise CheckpointError(f"architecture {name} does not take these arguments: {printable(problem)}") from problem


def _check_names(name: str, architecture: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> None:
    """Check that the arguments are exactly those that the architecture takes."""
    expected = set(inspect.signature(architecture).parameters)
    if set(arguments) != expected:
        given = ", ".join(printable(argument) for argument in sorted(map(str, arguments))) or "none"
        takes = ", ".join(sorted(expected))
        raise CheckpointError(f"architecture {name} takes the arguments {takes}; given: {given}")


def _check_value(name: str, argument: str, value: object) -> None:
    """Check that `dropout` is a rate in [0, 1] and all else a size, or a list of up to 16 sizes."""
    if argument == "dropout":
        good = isinstance(value, float | int) and not isinstance(value, bool) and 0 <= value <= 1
    elif isinstance(value, list):
        good = 1 <= len(value) <= 16 and all(map(_is_size, value))
    else:
        good = _is_size(value)
    if not good:
        raise CheckpointError(f"architecture {name}: {argument} = {printable(value)} is not a usable value")


def _is_size(value: object) -> bool:
    """Tell whether a value is a number of units or channels."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
