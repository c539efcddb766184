"""Hugging Face directories: a `config.json` that names one of transformers' own classes, and its weights.

The weights are read like any others and handed to transformers in memory, so that it opens no file, runs no code
that came with one, and asks no server. A weight that is missing would be drawn at random: that is an error here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rdrop_analysis.errors import CheckpointError, RDropAnalysisError, UnsafeFileError, UsageError
from rdrop_analysis.files import printable
from rdrop_analysis.loading.architectures import class_names, named_class, task_of
from rdrop_analysis.loading.json_files import read_json
from rdrop_analysis.loading.quiet import offline, quietly

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_FEW = 64  # layers that may share their weights, as those of ALBERT do
_PARTS = re.compile(r"^(num|n)_.*(layer|block|stage|expert)s?$|_layers$|^depths?$")
_NOT_OURS = re.compile(r"_.*|auto_map|attn_implementation|experts_implementation|use_kernels|kernel_config")


@dataclass(frozen=True)
class Pretrained:
    """A transformers model with its weights, and what its configuration says of it."""

    model: PreTrainedModel
    task: str | None
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
        _check_counts(config_file, described, state)
        try:
            config = _configuration(kind, described)
            _check_size(config_file, kind, config, state)
            model, report = _assemble(kind, config, state)
        except RDropAnalysisError:
            raise
        except Exception as problem:  # transformers raises whatever a malformed description leads to
            first = printable((str(problem).splitlines() or [""])[0], 200)
            raise CheckpointError(
                f"{config_file}: transformers cannot build {kind.__name__}: {type(problem).__name__}: {first}"
            ) from problem
    _check_complete(config_file, kind, report)
    notes = {}
    if "auto_map" in described:
        notes["remote_code_ignored"] = f"{config_file} names code of its own: transformers' {kind.__name__} is used"
    settings = {"is_encoder_decoder": getattr(config, "is_encoder_decoder", False)} | described
    return Pretrained(
        model,
        task_of(kind.__name__, settings),
        class_names(kind.__name__, settings),
        sorted(report["unexpected_keys"]),
        notes,
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
    made: PretrainedConfig = kind.config_class.from_dict(_without_code(described))  # type: ignore[union-attr]
    return made


def _without_code(described: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what names code to fetch or run, in its parts as well."""
    return {
        key: _without_code(value) if isinstance(value, dict) else value
        for key, value in described.items()
        if not _NOT_OURS.fullmatch(key)
    }


def _check_counts(config_file: Path, described: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Check that there are not more parts than weights, before time is taken to make them."""
    present = sum(tensor.numel() for tensor in state.values())
    for key, value in _whole_numbers(described):
        most = max(_FEW, len(state)) if _PARTS.search(key) else present if key == "num_labels" else None
        if most is not None and value > most:
            shown = f"{printable(key)} is {printable(value, 30)}"
            raise CheckpointError(f"{config_file}: {shown}, too many for {len(state)} weights")


def _whole_numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Every whole number in a configuration with its key, those in lists and parts too."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _whole_numbers(value)
        else:
            listed = value if isinstance(value, list) else [value]
            yield from ((key, number) for number in listed if isinstance(number, int))


def _check_size(
    config_file: Path, kind: type[PreTrainedModel], config: PretrainedConfig, state: Mapping[str, Tensor]
) -> None:
    """Check that the file has as many numbers as the model, before memory is taken for them."""
    with torch.device("meta"):
        skeleton = kind(config)
    needed = sum(parameter.numel() for parameter in skeleton.parameters())
    present = sum(tensor.numel() for tensor in state.values())
    if needed > 2 * present:
        raise CheckpointError(
            f"{config_file} describes a {kind.__name__} of {needed:,} numbers, the weights have {present:,}:"
            " they do not belong together"
        )


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


def _check_complete(config_file: Path, kind: type[PreTrainedModel], report: Mapping[str, Any]) -> None:
    """Refuse a model of which a part was drawn at random."""
    shapes = sorted(printable(entry[0]) for entry in report["mismatched_keys"])
    missing = sorted(printable(name) for name in report["missing_keys"] if name not in shapes)
    found = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("of another shape", shapes))
        if names
    ]
    if found:
        raise CheckpointError(
            f"{config_file.parent}: the weights are not all of {kind.__name__}: {'; '.join(found)};"
            " they would be drawn at random"
        )
