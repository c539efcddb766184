"""How a model is called and what its output means. The one task so far is classification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rdrop_analysis.data import Batch, Inputs, map_tensors, named_tensors
from rdrop_analysis.errors import DataError
from rdrop_analysis.files import printable
from rdrop_probes.state import flags, preserved

TASKS = ("classification",)
OUTPUT_KEYS = ("logits", "output", "outputs", "scores")
MAX_ROUNDING = 1e-4  # of probabilities that sum to 1, in half precision too


@dataclass(frozen=True)
class Classifier:
    """Calls a classification model and reads class logits [N, C] from what it returns.

    Attributes:
        model: the network.
        n_classes: C.
        from_probabilities: the model returns probabilities; their logarithms serve as logits.
    """

    model: nn.Module
    n_classes: int
    from_probabilities: bool = False

    def __call__(self, inputs: Inputs) -> Tensor:
        """Class logits [N, C]; may run under vmap or autograd."""
        logits = class_scores(call(self.model, inputs))
        return logits.log() if self.from_probabilities else logits


def recognise(model: nn.Module, batch: Batch) -> Classifier:
    """Run the eval model on a batch and read off what it returns.

    Raises:
        DataError: the model refuses the inputs, or does not return one row of class scores an example.
    """
    with preserved(model), flags(model, ()), torch.no_grad():
        scores = class_scores(call(model, batch.inputs))
    if scores.shape[0] != len(batch):
        raise DataError(f"the model returns {scores.shape[0]} rows for {len(batch)} examples: is the batch first?")
    return Classifier(model, scores.shape[1], from_probabilities=_are_probabilities(scores))


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Call the model with floating-point inputs in its own dtype, and everything on its device.

    Raises:
        DataError: the model raised anything.
    """
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    if parameter is not None:
        inputs = map_tensors(lambda t: t.to(parameter if t.is_floating_point() else parameter.device), inputs)
    try:
        if isinstance(inputs, Tensor):
            return model(inputs)
        return model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    except Exception as problem:  # the user's model may raise anything
        first = printable((str(problem).splitlines() or [""])[0], 200)
        raise DataError(
            f"the model refuses the data ({describe(inputs)}): {type(problem).__name__}: {first}"
        ) from problem


def class_scores(output: Any) -> Tensor:
    """The tensor of class scores [N, C] in a model's output: itself, a usual key or field, or the first tensor.

    Raises:
        DataError: there is none, or it is not a row of at least one score an example.
    """
    scores = _find_scores(output)
    if scores is None:
        raise DataError(f"the model returns a {type(output).__name__} without a tensor of class scores")
    if scores.dim() != 2 or not scores.is_floating_point():
        raise DataError(
            f"the model returns {_shape(scores)}, classification needs floating-point class scores [examples, classes]"
        )
    return scores


def describe(inputs: Inputs) -> str:
    """Names, dtypes and shapes of inputs in a few words."""
    return ", ".join(f"{printable(name)}: {_shape(tensor)}" for name, tensor in named_tensors(inputs).items())


def _find_scores(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    if is_dataclass(output) and not isinstance(output, type | Mapping):
        output = {field.name: getattr(output, field.name) for field in fields(output)}
    if isinstance(output, Mapping):
        named = [output[key] for key in OUTPUT_KEYS if key in output]
        candidates = [*named, *output.values()]
    else:
        candidates = list(output) if isinstance(output, tuple | list) else []
    return next((value for value in candidates if isinstance(value, Tensor) and value.dim() > 0), None)


def _are_probabilities(scores: Tensor) -> bool:
    """Rows of numbers in [0, 1] that sum to 1, of more than one class: a softmax has been applied already."""
    values = scores.double()
    in_range = bool(((values >= 0) & (values <= 1)).all())
    return scores.shape[1] > 1 and in_range and bool(((values.sum(1) - 1).abs() < MAX_ROUNDING).all())


def _shape(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
