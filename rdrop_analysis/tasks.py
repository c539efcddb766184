"""How a model is called and what its output means. The one task so far is classification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
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
        n_classes: C, at least 2: a single output z is read as the logits (0, z) of two classes.
        from_probabilities: the model returns probabilities; their logarithms serve as logits.
        findings: what the reader has to know of this reading, message by code.
    """

    model: nn.Module
    n_classes: int
    from_probabilities: bool = False
    findings: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, inputs: Inputs) -> Tensor:
        """Class logits [N, C]; may run under vmap or autograd."""
        logits = class_scores(call(self.model, inputs))
        return logits.log() if self.from_probabilities else two_columns(logits)


def recognise(model: nn.Module, batch: Batch) -> Classifier:
    """Run the eval model on a batch and read off what it returns.

    Raises:
        DataError: the model refuses the inputs, or does not return one row of class scores an example.
    """
    with preserved(model), flags(model, ()), torch.no_grad():
        output = call(model, batch.inputs)
    scores = class_scores(output)
    if scores.shape[0] != len(batch):
        raise DataError(f"the model returns {scores.shape[0]} rows for {len(batch)} examples: is the batch first?")
    probabilities = _are_probabilities(scores)
    findings = {}
    if probabilities:
        findings["outputs_are_probabilities"] = "the model returns probabilities: their logarithms are taken as logits"
    if scores.shape[1] == 1:
        findings["one_output"] = "the model has one output: it is read as the logit of class 1 against class 0"
    if isinstance(output, tuple | list) and sum(map(_is_candidate, output)) > 1 and not hasattr(output, "_fields"):
        findings["several_outputs"] = "the model returns several tensors: the first is taken for the class scores"
    return Classifier(model, max(scores.shape[1], 2), probabilities, findings)


def two_columns(logits: Tensor) -> Tensor:
    """Logits as they are [N, C], or (0, z) for a single column z [N, 1]."""
    return torch.cat([torch.zeros_like(logits), logits], -1) if logits.shape[-1] == 1 else logits


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
            f"the model refuses the data ({describe(inputs)}): {type(problem).__name__}: {first}{_hint(inputs)}"
        ) from problem


def class_scores(output: Any) -> Tensor:
    """The class scores [N, C] in a model's output: itself, a usual key or field, or the first tensor.

    A tensor [N] counts as [N, 1].

    Raises:
        DataError: there is none, or it is not a row of at least one score an example.
    """
    scores = _find_scores(output)
    if scores is None:
        raise DataError(f"the model returns a {type(output).__name__} without a tensor of class scores")
    if scores.dim() == 1:
        scores = scores.unsqueeze(-1)
    if scores.dim() != 2 or not scores.is_floating_point() or scores.shape[1] == 0:
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
    if isinstance(output, Mapping):
        candidates = [*(output[key] for key in OUTPUT_KEYS if key in output), *output.values()]
    else:
        candidates = [getattr(output, key) for key in OUTPUT_KEYS if hasattr(output, key)]
        candidates += [getattr(output, f.name) for f in fields(output)] if is_dataclass(output) else []
        candidates += list(output) if isinstance(output, tuple | list) else []
    return next(filter(_is_candidate, candidates), None)


def _is_candidate(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _hint(inputs: Inputs) -> str:
    """What may help, where the inputs are integers."""
    if any(not tensor.is_floating_point() for tensor in named_tensors(inputs).values()):
        return "; the inputs are integers: store them as floating point if the model does not take ids"
    return ""


def _are_probabilities(scores: Tensor) -> bool:
    """Rows of numbers in [0, 1] that sum to 1, of more than one class: a softmax has been applied already."""
    values = scores.double()
    in_range = bool(((values >= 0) & (values <= 1)).all())
    return scores.shape[1] > 1 and in_range and bool(((values.sum(1) - 1).abs() < MAX_ROUNDING).all())


def _shape(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
