"""The most inconsistent examples, with their inputs in a form that a report can show."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rdrop_analysis.assembling import labels_column
from rdrop_analysis.data.examples import Data, Inputs
from rdrop_analysis.measuring import Measured
from rdrop_probes.measurement import Measurement
from rdrop_probes.records import Example, ExampleInput

SHOWN = 12
MAX_VALUES = 32
MAX_SIDE = 64
MAX_TEXT = 600


def most_inconsistent(measured: Sequence[Measured], data: Data, count: int = SHOWN) -> list[Example]:
    """The examples with the highest EPKL, averaged over the checkpoints; none if EPKL was not measured."""
    columns = [m.columns["epkl"].values for m in measured if "epkl" in m.columns]
    if not columns or len(columns) < len(measured):
        return []
    mean = np.mean(columns, axis=0)
    ranked = np.argsort(-np.where(np.isfinite(mean), mean, -np.inf), kind="stable")[:count]
    return [_example(int(index), measured, data) for index in ranked if mean[index] > 0]


def _example(index: int, measured: Sequence[Measured], data: Data) -> Example:
    label = _label(data, index)
    return Example(
        index=index,
        label=None if label is None else class_name(data, label) if isinstance(label, int) else f"{label:.4g}",
        predictions={m.result.name: name for m in measured if (name := _prediction(m, data, index)) is not None},
        epkl={m.result.name: float(m.columns["epkl"].values[index]) for m in measured},
        votes={m.result.name: _votes(m.measurement, index, data) for m in measured if m.measurement.votes is not None},
        input=shown_input(data, index),
    )


def _prediction(m: Measured, data: Data, index: int) -> str | None:
    """The eval model's class or number; None where an example has several rows."""
    if m.reader.task.per != "example":
        return None
    predicted = m.measurement.predictions[index].item()
    return f"{predicted:.4g}" if m.reader.family.name == "gaussian" else class_name(data, int(predicted))


def class_name(data: Data, index: int) -> str:
    """The name of a class, its number where it has none."""
    names = data.class_names
    return names[index] if names and 0 <= index < len(names) else str(index)


def shown_input(data: Data, index: int) -> ExampleInput:
    """The input of an example as text, picture or numbers."""
    if data.texts:
        return ExampleInput(kind="text", text=data.texts[index][:MAX_TEXT])
    tensor = _first(data.example_input(index))
    shape = data.image_shape or _picture_shape(tensor)
    if shape is not None and tensor.numel() == int(np.prod(shape)):
        return _picture(tensor.reshape(shape))
    return ExampleInput(kind="values", values=[round(float(v), 6) for v in tensor.flatten()[:MAX_VALUES]])


def _label(data: Data, index: int) -> int | float | None:
    """The label of an example that has one and only one."""
    value = labels_column(data)[index]
    return None if pd.isna(value) else value.item()


def _votes(found: Measurement, index: int, data: Data) -> dict[str, float]:
    """Share of the sub-models by class, the most voted first."""
    if found.votes is None:
        return {}
    top = zip(found.votes.classes[index].tolist(), found.votes.counts[index].tolist(), strict=True)
    return {class_name(data, c): count / found.sub_models for c, count in top if count}


def _first(inputs: Inputs) -> Tensor:
    if isinstance(inputs, Tensor):
        return inputs
    return next(iter(inputs.values())) if isinstance(inputs, dict) else inputs[0]


def _picture_shape(tensor: Tensor) -> tuple[int, ...] | None:
    """Floating-point [H, W], [1, H, W] or [3, H, W] of a picture's proportions is shown as one."""
    channels = tensor.shape[0] if tensor.dim() == 3 else 1
    sides = tensor.shape[-2:]
    large = tensor.dim() in (2, 3) and channels in (1, 3) and min(sides) >= 8 and max(sides) <= 8 * min(sides)
    return tuple(tensor.shape) if large and tensor.is_floating_point() else None


def _picture(tensor: Tensor) -> ExampleInput:
    """Pixels [H, W] or [H, W, 3], scaled to 0..255 from the example's own least to greatest, and thinned."""
    pixels = tensor.float().squeeze(0) if tensor.dim() == 3 and tensor.shape[0] == 1 else tensor.float()
    pixels = pixels.permute(1, 2, 0) if pixels.dim() == 3 else pixels
    step = max(1, -(-max(pixels.shape[:2]) // MAX_SIDE))
    pixels = pixels[::step, ::step]
    low, high = float(pixels.min()), float(pixels.max())
    scaled = ((pixels - low) / (high - low or 1.0) * 255).round().to(torch.uint8).contiguous()
    encoded = base64.b64encode(scaled.numpy().tobytes()).decode()
    return ExampleInput(kind="image", shape=list(scaled.shape), pixels=encoded)
