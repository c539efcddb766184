"""Examples as the engine takes them, and the rows of a model's output that belong to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Examples to measure on: inputs as the forward function takes them, `n` of them.

    Attributes:
        labels: [n], or [n, ...] one a row of the output (for a Gaussian [n, D] targets); None without labels.
        places: bool [n, ...], which rows of the output [n, ..., C] count (tokens that are not padding, labels that
            are known); None where each example is one row.
    """

    inputs: Any
    n: int
    start: int
    labels: Tensor | None = None
    places: Tensor | None = None

    def part(self, examples: slice) -> Batch:
        """Some of the examples."""
        first, end, _ = examples.indices(self.n)
        labels, places = (None if t is None else t[examples] for t in (self.labels, self.places))
        return Batch(take(self.inputs, examples), end - first, self.start + first, labels, places)

    def rows(self, outputs: Tensor) -> Tensor:
        """The rows that count [..., P, C] of outputs [..., n, L, C]; as they are where each example is one row."""
        if self.places is None:
            return outputs
        dims = self.places.dim()
        if outputs.shape[-1 - dims : -1] != self.places.shape:
            found, wanted = list(outputs.shape[-1 - dims : -1]), list(self.places.shape)
            raise LayoutError(f"the model returns scores for {found} rows where the labels have {wanted}")
        flat = outputs.flatten(outputs.dim() - 1 - dims, -2)
        return flat[..., self.places.flatten().nonzero().squeeze(1).to(outputs.device), :]

    @property
    def owners(self) -> Tensor | None:
        """[P], the example in 0..n-1 of each row that counts; None where each example is one row."""
        return None if self.places is None else self.places.nonzero()[:, 0]

    @property
    def row_labels(self) -> Tensor | None:
        """[P], the labels of the rows that count."""
        return self.labels if self.labels is None or self.places is None else self.labels[self.places]


class LayoutError(ValueError):
    """Labels and outputs of some examples do not go together."""


def take(inputs: Any, index: slice | Tensor) -> Any:
    """Rows of inputs given as a tensor, a tuple or a dict of tensors."""
    if isinstance(inputs, Tensor):
        return inputs[index]
    if isinstance(inputs, dict):
        return {key: value[index] for key, value in inputs.items()}
    return tuple(value[index] for value in inputs)
