"""What `rdrop-analyze train` can train: a data set, a model and the settings that suit them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rdrop_analysis.errors import UsageError


@dataclass(frozen=True)
class Recipe:
    """A training task: `data` is the built-in test set, `train_data` what is trained on, `limit` how much of it.

    `architecture` and `arguments` are those of `rdrop_analysis.models.build`.
    """

    data: str
    train_data: str
    architecture: str
    arguments: Mapping[str, Any]
    epochs: int
    batch_size: int
    learning_rate: float
    limit: int | None = None


RECIPES: Mapping[str, Recipe] = {
    "digits": Recipe(
        data="digits",
        train_data="digits:train",
        architecture="mlp",
        arguments={"in_features": 64, "hidden": [256, 256], "n_classes": 10, "dropout": 0.3},
        epochs=30,
        batch_size=64,
        learning_rate=1e-3,
    ),
    "fashion-mnist": Recipe(
        data="fashion-mnist",
        train_data="fashion-mnist:train",
        architecture="cnn",
        arguments={"channels": [16, 32], "hidden": 128, "n_classes": 10, "dropout": 0.3},
        epochs=5,
        batch_size=64,
        learning_rate=1e-3,
        limit=20_000,
    ),
}
"""Training tasks by name."""


def find_recipe(task: str) -> Recipe:
    """Return the recipe of a task; raises `UsageError` if there is none of that name."""
    if task in RECIPES:
        return RECIPES[task]
    near = difflib.get_close_matches(task, RECIPES, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    raise UsageError(f"unknown training task {task!r}: {meant}known are {', '.join(RECIPES)}")
