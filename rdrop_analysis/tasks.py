"""The tasks: what a row of a model's output stands for, and which rows count.

A row is what one divergence is taken of: an example in classification, a token in language modelling, a label in
multi-label classification.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from rdrop_analysis.calling import shape_text
from rdrop_analysis.data.examples import IGNORED, Batch, Data, Inputs, named_tensors
from rdrop_analysis.errors import DataError

Per = Literal["example", "token", "label"]

AUTO = "auto"
UNEVEN = 100.0  # times the variance of another output
KEPT_BY = ("attention_mask",)
IGNORED_BY = ("src_key_padding_mask", "key_padding_mask", "padding_mask", "pad_mask")


@dataclass(frozen=True)
class Task:
    """How outputs are read: `per` what a row is, `rank` the dimensions of the outputs, the class dimension last.

    `shift`: the scores at a token are of the next one. `teacher_forcing`: a decoder is given the labels before.
    """

    name: str
    per: Per
    rank: int
    meaning: str
    shift: bool = False
    teacher_forcing: bool = False


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            Task("classification", "example", 2, "class scores [N, C], one label an example"),
            Task("tokens", "token", 3, "class scores [N, L, C], one label a token: tagging, masked language models"),
            Task("causal-lm", "token", 3, "scores [N, L, V] of the token that follows each", shift=True),
            Task("seq2seq", "token", 3, "scores [N, L, V] of a decoder under teacher forcing", teacher_forcing=True),
            Task("multi-label", "label", 2, "one score [N, C] a label, each yes or no: Bernoulli KL per label"),
            Task("regression", "example", 2, "numbers [N, D]: a Gaussian surrogate, MSE between passes"),
        )
    }
)


@dataclass(frozen=True)
class Targets:
    """What all labels of a data set have in common.

    `shape` is that of one example's, None without labels; `whole` says that they are numbers of classes, `flags` that
    they are 0 or 1; unknown ones (-100, NaN) count as anything. `variance` is about the mean of each output, and
    `uneven` says that one output's is more than a hundred times another's. `inputs`: they are the token ids that
    the model is given.
    """

    shape: tuple[int, ...] | None = None
    whole: bool = False
    flags: bool = False
    variance: float | None = None
    uneven: bool = False
    inputs: bool = False

    @classmethod
    def of(cls, data: Data) -> Targets:
        """Look at all labels of a data set."""
        labels = [piece.labels for piece in data.pieces if piece.labels is not None]
        if not labels:
            return cls()
        known = torch.cat([_known(part) for part in labels])
        whole = bool(((known >= 0) & (known == known.round())).all())
        flags = bool(((known == 0) | (known == 1)).all())
        spreads = _variances(labels)
        variance = None if spreads is None else float(spreads.mean())
        uneven = spreads is not None and bool(spreads.max() > UNEVEN * spreads.min())
        return cls(tuple(labels[0].shape[1:]), whole, flags, variance, uneven, all(map(_repeat_inputs, data.pieces)))


def guess(scores: Tensor, targets: Targets) -> str:
    """Name of the task that outputs [N, C] or [N, L, C] and labels look like.

    Raises:
        DataError: they look like none.
    """
    shape = targets.shape
    if scores.dim() == 3 and (shape is None or len(shape) == 1):
        return "causal-lm" if targets.inputs else "tokens"
    if scores.dim() == 2:
        one = shape in ((), (1,))
        if shape is None or (one and targets.whole and (scores.shape[1] > 1 or targets.flags)):
            return "classification"
        if shape == scores.shape[1:] and targets.flags:
            return "multi-label"
        if (one or shape == scores.shape[1:]) and not (targets.whole and scores.shape[1] > 1):
            return "regression"
    said = "there are no labels" if shape is None else f"labels are {['N', *shape]}".replace("'", "")
    raise DataError(
        f"the model returns {shape_text(scores)} and {said}, which no task has: classification needs one label an"
        f" example, tokens one a token; or name the --task, one of {', '.join(TASKS)}"
    )


def token_ids(inputs: Inputs) -> Tensor | None:
    """The token ids [N, L] among the inputs: `input_ids`, or the only input if it is of whole numbers."""
    if isinstance(inputs, dict) and "input_ids" in inputs:
        return inputs["input_ids"]
    tensors = list(named_tensors(inputs).values())
    whole = len(tensors) == 1 and tensors[0].dim() == 2 and not tensors[0].is_floating_point()
    return tensors[0] if whole else None


def counted_places(inputs: Inputs, shape: tuple[int, ...], kept_by: Sequence[str] = KEPT_BY) -> Tensor:
    """Bool [N, L], which tokens are not padding by the masks among the inputs; all of them where there is none."""
    if isinstance(inputs, dict):
        for names, kept in ((kept_by, True), (IGNORED_BY, False)):
            for name in names:
                if name in inputs and tuple(inputs[name].shape) == shape:
                    return inputs[name].bool() == kept
    return torch.ones(shape, dtype=torch.bool)


def _known(labels: Tensor) -> Tensor:
    """Labels that are known, in one row."""
    values = labels.flatten().double()
    return values[~values.isnan() & (values != IGNORED)]


def _variances(labels: list[Tensor]) -> Tensor | None:
    """Variance of each output about its mean [D]; None where labels differ in shape."""
    if len({part.shape[1:] for part in labels}) > 1:
        return None
    targets = torch.cat([part.reshape(len(part), -1) for part in labels]).double()
    if not labels[0].is_floating_point():
        targets = targets.masked_fill(targets == IGNORED, torch.nan)
    spreads: Tensor = (targets - targets.nanmean(0)).square().nanmean(0)
    return spreads[~spreads.isnan()] if (~spreads.isnan()).any() else None


def _repeat_inputs(piece: Batch) -> bool:
    """Whether the known labels are the token ids at their own places, as for a causal language model."""
    ids, labels = token_ids(piece.inputs), piece.labels
    if ids is None or labels is None or ids.shape != labels.shape:
        return False
    known = labels != IGNORED
    return bool(known.any()) and bool((ids == labels)[known].all())
