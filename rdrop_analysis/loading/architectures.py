"""What the `config.json` of a Hugging Face model says of it, without transformers and without the weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rdrop_analysis.errors import CheckpointError

_HEADS = {
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "MTModel": "seq2seq",
    "ForMaskedLM": "tokens",
    "ForPreTraining": "tokens",
    "ForTokenClassification": "tokens",
    "ForSequenceClassification": "classification",
    "ForImageClassification": "classification",
    "ForAudioClassification": "classification",
    "ForVideoClassification": "classification",
}
"""What architectures are for, by the end of their name."""


def named_class(config_file: Path, config: Mapping[str, Any]) -> str:
    """The name of the class that a configuration is for.

    Raises:
        CheckpointError: it has none.
    """
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    if not isinstance(name, str) or not name.isidentifier():
        raise CheckpointError(
            f'{config_file} names no class: add "architectures": ["..."] with one of transformers, or pass --model'
        )
    return name


def task_of(architecture: str, config: Mapping[str, Any]) -> str | None:
    """What a model is for, by the name of its class and its configuration; None where they do not say."""
    if architecture.endswith("ForConditionalGeneration"):
        return "seq2seq" if config.get("is_encoder_decoder") else None
    task = next((task for head, task in _HEADS.items() if architecture.endswith(head)), None)
    if task != "classification":
        return task
    problem = config.get("problem_type")
    if problem == "multi_label_classification":
        return "multi-label"
    return "regression" if problem == "regression" or _n_labels(config) == 1 else "classification"


def uncovered(architecture: str, config: Mapping[str, Any]) -> str | None:
    """What a class of transformers is for, by its name, in words that follow "a model", where that is no task."""
    if task_of(architecture, config) is not None:
        return None
    if head := re.search(r".For([A-Z]\w*)$", architecture):
        return f"for {head[1]}, which no task covers yet"
    return "without a head, whose outputs are features" if architecture.endswith("Model") else None


def class_names(architecture: str, config: Mapping[str, Any]) -> list[str] | None:
    """Names of the classes in their order, where somebody gave them names."""
    names = config.get("id2label")
    if not architecture.endswith("Classification") or not isinstance(names, dict) or not names:
        return None
    ordered = [names.get(str(i)) for i in range(len(names))]
    if not all(isinstance(name, str) for name in ordered) or ordered == [f"LABEL_{i}" for i in range(len(names))]:
        return None
    return ordered  # type: ignore[return-value]  # all are strings


def _n_labels(config: Mapping[str, Any]) -> int:
    names = config.get("id2label")
    return len(names) if isinstance(names, dict) else int(config.get("num_labels") or 2)
