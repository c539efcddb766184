"""Hugging Face directories: a `config.json` that names one of transformers' own classes, and its weights.

The weights are read like any others and handed to transformers in memory, so that it opens no file, runs no code
that came with one, and asks no server. A weight that is missing would be drawn at random: that is an error here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rdrop_analysis.errors import CheckpointError, RDropAnalysisError, UnsafeFileError, UsageError
from rdrop_analysis.files import printable
from rdrop_analysis.loading.architectures import class_names, named_class, task_of, uncovered
from rdrop_analysis.loading.fitting import check_complete, check_counts, check_layers, check_size
from rdrop_analysis.loading.json_files import read_json
from rdrop_analysis.loading.quiet import offline, quietly

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_NOT_OURS = re.compile(r"_.*|auto_map|attn_implementation|experts_implementation|use_kernels|kernel_config")


@dataclass(frozen=True)
class Pretrained:
    """A transformers model with its weights, and what its configuration says of it."""

    model: PreTrainedModel
    task: str | None
    unsupported: str | None
    class_names: list[str] | None
    unused: list[str]
    notes: dict[str, str]


def load_pretrained(config_file: Path, state: Mapping[str, Tensor]) -> Pretrained:
    """Build the model that a `config.json` describes around the weights.

    Raises:
        CheckpointError: the description names no class that transformers has, or the weights do not fit it.
        UnsafeFileError: the class is only in code that came with the weights.
        UsageError: transformers is not installed.
    """
    described = read_json(config_file)
    with quietly(), offline():
        kind = _class_of(config_file, described)
        check_counts(config_file, described, state)
        try:
            config = _configuration(kind, described)
            check_size(config_file, kind, config, state)
            model, report = _assemble(kind, config, state)
        except RDropAnalysisError:
            raise
        except Exception as problem:  # transformers raises whatever a malformed description leads to
            reason = printable(" ".join(str(problem).split()), 300)
            raise CheckpointError(
                f"{config_file}: transformers cannot build {kind.__name__}: {type(problem).__name__}: {reason}"
            ) from problem
    check_complete(config_file, kind, report)
    check_layers(config_file, model, report["unexpected_keys"])
    notes = {}
    if "auto_map" in described:
        notes["remote_code_ignored"] = f"{config_file} names code of its own: transformers' {kind.__name__} is used"
    settings = {"is_encoder_decoder": getattr(config, "is_encoder_decoder", False)} | described
    return Pretrained(
        model,
        task_of(kind.__name__, settings),
        _unsupported(config_file, uncovered(kind.__name__, settings)),
        class_names(kind.__name__, settings),
        sorted(report["unexpected_keys"]),
        notes,
    )


def _unsupported(config_file: Path, use: str | None) -> str | None:
    """Why a model cannot be measured before somebody says what its outputs are."""
    return use and (
        f"{config_file.parent} is a model {use}:"
        " name the --task if its outputs are those of one, or pass --model with what returns such outputs"
    )


def _class_of(config_file: Path, described: Mapping[str, Any]) -> type[PreTrainedModel]:
    """The class of transformers that a configuration names."""
    name = named_class(config_file, described)
    found = _look_up(name)
    if found is not None:
        return found
    if "auto_map" in described:
        raise UnsafeFileError(
            f"{config_file} needs code that came with it for {printable(name)}, which is not run:"
            " pass --model with what builds the model"
        )
    import transformers

    raise CheckpointError(
        f"{config_file} names {printable(name)}, which transformers {transformers.__version__} does not have:"
        " update transformers, or pass --model with what builds the model"
    )


def _look_up(name: str) -> type[PreTrainedModel] | None:
    try:
        import transformers
    except ImportError as problem:
        raise UsageError(
            f"a Hugging Face directory needs transformers ({problem}): pip install 'rdrop-analysis[hf]'"
        ) from problem
    try:
        found = getattr(transformers, name, None)
    except Exception as problem:  # transformers imports the class only now
        raise CheckpointError(f"transformers cannot import {name}: {printable(problem, 200)}") from problem
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if is_model else None


def _configuration(kind: type[PreTrainedModel], described: Mapping[str, Any]) -> PretrainedConfig:
    """The configuration as an object of transformers; every class of a whole model has a class of it."""
    made: PretrainedConfig = kind.config_class.from_dict(_without_code(described))  # type: ignore[union-attr]  # a class of a model has it
    return made


def _without_code(described: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what names code to fetch or run, in its parts as well."""
    return {
        key: _without_code(value) if isinstance(value, dict) else value
        for key, value in described.items()
        if not _NOT_OURS.fullmatch(key)
    }


def _assemble(
    kind: type[PreTrainedModel], config: PretrainedConfig, state: Mapping[str, Tensor]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Let transformers put weights under the names of today into a model of the type that they have."""
    dtype = next((tensor.dtype for tensor in state.values() if tensor.is_floating_point()), torch.float32)
    with torch.random.fork_rng(devices=[]):
        made: Any = kind.from_pretrained(  # two values, with output_loading_info
            None,
            config=config,
            state_dict=dict(state),
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported in one line, as are missing ones
            local_files_only=True,
            trust_remote_code=False,
        )
    return made[0], made[1]
