"""Lightning checkpoints: plain files, with the hyper-parameters that the model was made with beside its weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rdrop_analysis.errors import UsageError
from rdrop_analysis.files import printable
from rdrop_analysis.loading.descriptions import Scalar

_VERSION = "pytorch-lightning_version"
_HYPER_PARAMETERS = ("hyper_parameters", "hparams")  # now, and before version 1
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def is_lightning(content: object) -> bool:
    """Whether Lightning wrote a file."""
    return isinstance(content, Mapping) and _VERSION in content


def hyper_parameters(content: object) -> dict[str, Any]:
    """The plain hyper-parameters in a Lightning checkpoint: scalars, and lists and dictionaries of them."""
    if not isinstance(content, Mapping) or not is_lightning(content):
        return {}
    given = (content.get(key) for key in _HYPER_PARAMETERS)
    found: Mapping[object, object] = next((value for value in given if isinstance(value, Mapping)), {})
    return {name: value for name, value in found.items() if isinstance(name, str) and _is_plain(value)}


def plain_settings(content: object) -> dict[str, Scalar]:
    """Those hyper-parameters that are scalars."""
    return {name: value for name, value in hyper_parameters(content).items() if isinstance(value, Scalar)}


def make_model(path: Path, factory: Callable[..., nn.Module], content: object) -> nn.Module:
    """Call the user's factory with the hyper-parameters that it takes, keeping the global random state.

    Raises:
        UsageError: it needs others, fails, or returns no module.
    """
    name = getattr(factory, "__qualname__", repr(factory))
    arguments = _arguments(path, name, factory, hyper_parameters(content))
    try:
        with torch.random.fork_rng(devices=[]):
            model = factory(**arguments)
    except (Exception, SystemExit) as problem:  # the user's own code may raise anything
        raise UsageError(
            f"the model factory {name} failed: {type(problem).__name__}: {printable(problem)}"
        ) from problem
    if not isinstance(model, nn.Module):
        raise UsageError(f"the model factory {name} returned a {type(model).__name__}, not a torch.nn.Module")
    return model


def _arguments(path: Path, name: str, factory: Callable[..., Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters that a factory has parameters for; all, if it takes any."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # some callables of C do not say
        return {}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(known)
    missing = [p.name for p in parameters if p.kind in _BY_NAME and p.default is p.empty and p.name not in known]
    if missing:
        there = f", {path} has {', '.join(map(printable, known))}" if known else ""
        raise UsageError(f"the model factory {name} takes {', '.join(missing)}, which nothing gives{there}")
    return {p.name: known[p.name] for p in parameters if p.kind in _BY_NAME and p.name in known}


def _is_plain(value: object, depth: int = 8) -> bool:
    if isinstance(value, list | tuple):
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value)
    if isinstance(value, dict):
        return depth > 0 and all(isinstance(k, str) and _is_plain(v, depth - 1) for k, v in value.items())
    return isinstance(value, Scalar)
