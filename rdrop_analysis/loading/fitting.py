"""Whether a `config.json` and the weights beside it are of one model: neither too large, nor a part of it only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rdrop_analysis.errors import CheckpointError
from rdrop_analysis.files import printable

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_FEW = 64  # layers that may share their weights, as those of ALBERT do
_PARTS = re.compile(r"^(num|n)_.*(layer|block|stage|expert)s?$|_layers$|^depths?$")
_LAYERS = re.compile(r"(num_)?(hidden_|encoder_|decoder_)?layers|n_layers?|depths?")
_INDEX = re.compile(r"\.(\d{1,9})\.")


def check_counts(config_file: Path, described: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Check that there are layers, and not more parts than weights, before time is taken to make them."""
    present = sum(tensor.numel() for tensor in state.values())
    for key, value in _whole_numbers(described):
        if value <= 0 and _LAYERS.fullmatch(key):
            raise CheckpointError(f"{config_file}: {printable(key)} is {printable(value, 30)}, which leaves no layer")
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


def check_size(
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


def check_layers(config_file: Path, model: PreTrainedModel, unused: Iterable[str]) -> None:
    """Refuse a model with fewer layers than its weights: parts that are repeated, not heads that it does without."""
    stacks = {name: part for name, part in model.named_modules() if isinstance(part, nn.ModuleList | nn.Sequential)}
    prefix = f"{model.base_model_prefix}."
    stacks |= {prefix + name: part for name, part in stacks.items()}
    stacks |= {name.removeprefix(prefix): part for name, part in stacks.items()}
    for weight in unused:
        for index in _INDEX.finditer(weight):
            stack = stacks.get(weight[: index.start()])
            if stack is not None and int(index[1]) >= len(stack):
                raise CheckpointError(
                    f"{config_file} describes {len(stack)} of {printable(weight[: index.start()])}, the weights have"
                    f" more ({printable(weight)}): correct the number of layers, or pass --model with what builds it"
                )


def check_complete(config_file: Path, kind: type[PreTrainedModel], report: Mapping[str, Any]) -> None:
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
