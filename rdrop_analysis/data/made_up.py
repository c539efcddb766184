"""Examples made up for a Hugging Face model, to find its dropout without data: what they say does not matter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rdrop_analysis.data.examples import Batch, Data, Inputs

EXAMPLES = 3
LENGTH = 8
SAMPLES = 4000  # of sound, a quarter of a second at 16 kHz
SEED = 0


def made_up_examples(model: nn.Module) -> Data | None:
    """A few random examples of the kind that the model takes first; None where that cannot be told."""
    config, kind = getattr(model, "config", None), getattr(model, "main_input_name", None)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SEED)
        inputs = _inputs(kind, config)
    return None if inputs is None else Data("made-up examples", (Batch(inputs, None, 0),))


def _inputs(kind: str | None, config: Any) -> Inputs | None:
    if kind == "input_ids" and isinstance(getattr(config, "vocab_size", None), int):
        ids = _ids(config)
        both = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return {**both, "decoder_input_ids": _ids(config)} if getattr(config, "is_encoder_decoder", False) else both
    if kind == "pixel_values" and (size := _image_size(config)) is not None:
        return {kind: torch.randn(EXAMPLES, getattr(config, "num_channels", 3), *size)}
    return {kind: torch.randn(EXAMPLES, SAMPLES)} if kind == "input_values" else None


def _ids(config: Any) -> Tensor:
    return torch.randint(0, config.vocab_size, (EXAMPLES, LENGTH))


def _image_size(config: Any) -> tuple[int, int] | None:
    size = getattr(config, "image_size", 224)
    if isinstance(size, int):
        return size, size
    return (size[0], size[1]) if isinstance(size, list | tuple) and len(size) == 2 else None
