"""Call a model, whatever it takes, and find the scores in what it returns, whatever that is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from rdrop_analysis.data.examples import Inputs, map_tensors, named_tensors
from rdrop_analysis.errors import DataError
from rdrop_analysis.files import printable
from rdrop_probes.memory import is_out_of_memory

OUTPUT_KEYS = ("logits", "output", "outputs", "scores", "prediction_logits")


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Call the model with floating-point inputs in its own dtype, and everything on its device.

    Raises:
        DataError: the model raised anything; but that memory ran out is raised as it is.
    """
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    if parameter is not None:
        inputs = map_tensors(lambda t: t.to(parameter if t.is_floating_point() else parameter.device), inputs)
    try:
        if isinstance(inputs, Tensor):
            return model(inputs)
        return model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    except Exception as problem:  # the user's model may raise anything
        if is_out_of_memory(problem):
            raise
        first = printable((str(problem).splitlines() or [""])[0], 200)
        raise DataError(
            f"the model refuses the data ({describe(inputs)}): {type(problem).__name__}: {first}{_hint(model, inputs)}"
        ) from problem


def find_scores(output: Any) -> Tensor:
    """The floating-point scores [N, ...] in an output: itself, a usual key or field, or the first tensor.

    Raises:
        DataError: there is none.
    """
    scores = output if isinstance(output, Tensor) else next(filter(is_candidate, _candidates(output)), None)
    if not isinstance(scores, Tensor):
        raise DataError(f"the model returns a {type(output).__name__} without a tensor of scores")
    if not scores.is_floating_point() or scores.dim() == 0 or 0 in scores.shape[1:]:
        raise DataError(f"the model returns {shape_text(scores)}, not floating-point scores [examples, ...]")
    return scores


def is_candidate(value: object) -> bool:
    """Whether a part of an output may be its scores."""
    return isinstance(value, Tensor) and value.dim() > 0


def several_tensors(output: Any) -> bool:
    """Whether an output is a plain tuple of several tensors, of which only the place says which has the scores."""
    return isinstance(output, tuple | list) and not hasattr(output, "_fields") and sum(map(is_candidate, output)) > 1


def describe(inputs: Inputs) -> str:
    """Names, dtypes and shapes of inputs in a few words."""
    return ", ".join(f"{printable(name)}: {shape_text(tensor)}" for name, tensor in named_tensors(inputs).items())


def shape_text(tensor: Tensor) -> str:
    """Dtype and shape, as in `float32 [4, 10]`."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _candidates(output: Any) -> Iterator[Any]:
    """Parts of an output, the likeliest first."""
    if isinstance(output, Mapping):
        yield from (output[key] for key in OUTPUT_KEYS if key in output)
        yield from output.values()
        return
    yield from (getattr(output, key) for key in OUTPUT_KEYS if hasattr(output, key))
    if is_dataclass(output):
        yield from (getattr(output, f.name) for f in fields(output))
    if isinstance(output, tuple | list):
        yield from output


def _hint(model: nn.Module, inputs: Inputs) -> str:
    """What may help, by what the model embeds and what it is given."""
    tables = [module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)]
    whole = [tensor for tensor in named_tensors(inputs).values() if not tensor.is_floating_point() and tensor.numel()]
    if not tables:
        return "; the inputs are integers: store them as floating point if the model does not take ids" if whole else ""
    if not whole:
        return "; the model has an embedding: it may take token ids, which are whole numbers"
    largest = max(int(tensor.max()) for tensor in whole)
    return (
        f"; the largest id is {largest}, the largest embedding has {max(tables)} rows" if largest >= max(tables) else ""
    )
