"""How a model's outputs are read for a task: from inputs to rows of scores, from labels to labels of rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rdrop_analysis.calling import call, find_scores, shape_text
from rdrop_analysis.data.examples import IGNORED, Batch, Inputs, map_tensors
from rdrop_analysis.errors import DataError
from rdrop_analysis.tasks import Task, counted_places, token_ids
from rdrop_probes.batch import Batch as RowBatch
from rdrop_probes.families import CATEGORICAL, Family
from rdrop_probes.state import flags, preserved

Squashed = Literal["", "softmax", "sigmoid"]


@dataclass(frozen=True)
class Reader:
    """Calls a model and reads rows of scores from what it returns.

    Attributes:
        model: the network. task: what its outputs are.
        n_outputs: how many the model has.
        squashed: what the model has applied to its scores already, to be undone.
        family: what a row stands for.
        findings: what the reader has to know of this reading, message by code.
    """

    model: nn.Module
    task: Task
    n_outputs: int
    squashed: Squashed = ""
    family: Family = CATEGORICAL
    findings: Mapping[str, str] = field(default_factory=dict)

    @property
    def n_classes(self) -> int:
        """C, at least 2: a single output z is read as the logits (0, z) of two classes, as is that of a label."""
        return 2 if self.task.per == "label" else max(self.n_outputs, 2)

    def __call__(self, inputs: Inputs) -> Tensor:
        """Scores [N, C], or [N, L, C] with several rows an example; may run under vmap or autograd."""
        scores = of_rank(find_scores(call(self.model, inputs)), self.task)
        if self.task.name == "regression":
            return scores
        if self.task.per == "label" or (scores.shape[-1] == 1 and self.task.per == "example"):
            scores = scores if self.task.per == "label" else scores.squeeze(-1)
            return _two_classes(scores, self.squashed)
        scores = scores.log() if self.squashed == "softmax" else scores
        return scores[:, :-1] if self.task.shift else scores

    def rows(self, batch: Batch) -> RowBatch:
        """The examples as the engine takes them, with the labels of the rows that count.

        Raises:
            DataError: labels and outputs do not go together.
        """
        inputs = with_decoder_inputs(self.model, batch) if self.task.teacher_forcing else batch.inputs
        n = len(batch)
        if self.task.per == "example":
            return RowBatch(inputs, n, batch.start, self._one_each(batch.labels, n))
        labels = token_labels(batch, self.task) if self.task.per == "token" else batch.labels
        places = self._places(inputs, labels, n)
        known = None if labels is None else torch.where(places, labels, 0).long()
        return RowBatch(inputs, n, batch.start, known, places)

    def _one_each(self, labels: Tensor | None, n: int) -> Tensor | None:
        """Classes [N], or targets [N, D] with NaN where they are not known."""
        if labels is None:
            return None
        if self.task.name == "regression":
            targets = labels.reshape(n, -1)
            whole = not targets.is_floating_point()
            return targets.double().masked_fill(targets == IGNORED, torch.nan) if whole else targets
        return labels.squeeze(1) if labels.dim() == 2 and labels.shape[1] == 1 else labels

    def _places(self, inputs: Inputs, labels: Tensor | None, n: int) -> Tensor:
        """Bool [N, L], which rows count: those that are no padding and have, if there are labels, a known one."""
        known = None
        if labels is not None:
            known = ~labels.isnan() if labels.is_floating_point() else labels != IGNORED
        if self.task.per == "label":
            return torch.ones(n, self.n_outputs, dtype=torch.bool) if known is None else known
        places = self._not_padding(inputs, n, None if known is None else known.shape[1] + self.task.shift)
        if known is not None and places.shape != known.shape:
            raise DataError(f"labels have {list(known.shape)} rows where the inputs have {list(places.shape)}")
        return places if known is None else places & known

    def _not_padding(self, inputs: Inputs, n: int, length: int | None) -> Tensor:
        """Bool [N, L], which tokens are no padding; of the next tokens, those that a token comes before."""
        if self.task.teacher_forcing:
            return counted_places(inputs, (n, length or self._length(inputs)), ("decoder_attention_mask",))
        ids = token_ids(inputs)
        if length is None:
            length = self._length(inputs) if ids is None else ids.shape[1]
        places = counted_places(inputs, (n, length))
        return places[:, 1:] & places[:, :-1] if self.task.shift else places

    def _length(self, inputs: Inputs) -> int:
        with preserved(self.model), flags(self.model, ()), torch.no_grad():
            return find_scores(call(self.model, map_tensors(torch.clone, inputs))).shape[1]


def token_labels(batch: Batch, task: Task) -> Tensor | None:
    """Labels [N, L] of the tokens that scores are of; a causal model's own ids serve where there are none."""
    labels = batch.labels
    if not task.shift:
        return labels
    if labels is None:
        ids = token_ids(batch.inputs)
        if ids is None:
            return None
        labels = torch.where(counted_places(batch.inputs, tuple(ids.shape)), ids, IGNORED)
    if labels.dim() != 2:
        raise DataError(f"labels are {list(labels.shape)}: {task.name} needs one a token, [examples, tokens]")
    return labels[:, 1:]


def with_decoder_inputs(model: nn.Module, batch: Batch) -> Inputs:
    """Inputs with `decoder_input_ids`, the labels shifted right, unless they are there.

    Raises:
        DataError: they can be neither found nor made.
    """
    inputs = batch.inputs
    if not isinstance(inputs, dict) or "decoder_input_ids" in inputs:
        return inputs
    make = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if batch.labels is None or make is None:
        raise DataError("seq2seq needs labels for teacher forcing, or decoder_input_ids among the inputs")
    made: Any = make(labels=batch.labels)
    return {**inputs, "decoder_input_ids": made}


def of_rank(scores: Tensor, task: Task) -> Tensor:
    """Scores [N, C] or [N, L, C], as the task has them.

    Raises:
        DataError: the model's have another number of dimensions.
    """
    if task.rank == 2 and scores.dim() == 1:
        return scores.unsqueeze(-1)
    if task.name == "regression":
        return scores.flatten(1)
    if scores.dim() != task.rank or (task.rank == 3 and scores.shape[-1] < 2):
        raise DataError(f"the model returns {shape_text(scores)}, {task.name} needs {task.meaning}")
    return scores


def _two_classes(z: Tensor, squashed: Squashed) -> Tensor:
    """Logits (0, z) of no and yes [..., 2], where z may have gone through a sigmoid; (-inf, 0) where that gave 1."""
    if squashed != "sigmoid":
        return torch.stack([torch.zeros_like(z), z], -1)
    no, yes = (-z).log1p(), z.log()
    base = torch.where(z == 1, 0.0, no)
    return torch.stack([no - base, yes - base], -1)
