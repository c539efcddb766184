"""How a model's outputs are read for a task: from inputs to rows of scores, from labels to labels of rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rdrop_analysis.calling import call, find_scores, several_tensors, shape_text
from rdrop_analysis.data.examples import IGNORED, Batch, Data, Inputs, named_tensors
from rdrop_analysis.errors import DataError
from rdrop_analysis.tasks import AUTO, TASKS, Targets, Task, counted_places, guess
from rdrop_probes.families import CATEGORICAL, Family, Gaussian
from rdrop_probes.measure import Batch as RowBatch
from rdrop_probes.state import flags, preserved

MAX_ROUNDING = 1e-4  # of probabilities that sum to 1, in half precision too
FEW = 8  # numbers that all lie in [0, 1] by chance

Squashed = Literal["", "softmax", "sigmoid"]


@dataclass(frozen=True)
class Reader:
    """Calls a model and reads rows of scores from what it returns.

    Attributes:
        model: the network. task: what its outputs are.
        n_outputs: C, at least 2 for classes: a single output z is read as the logits (0, z) of two classes.
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

    def __call__(self, inputs: Inputs) -> Tensor:
        """Scores [N, C], or [N, L, C] with several rows an example; may run under vmap or autograd."""
        scores = _of_rank(find_scores(call(self.model, inputs)), self.task)
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
        labels, n = batch.labels, len(batch)
        if self.task.per == "example":
            if labels is not None and self.task.name == "regression":
                labels = labels.reshape(n, -1)
            return RowBatch(inputs, n, batch.start, labels)
        labels = token_labels(batch, self.task) if self.task.per == "token" else labels
        places = self._places(inputs, labels, n)
        known = None if labels is None else torch.where(places, labels, 0).long()
        return RowBatch(inputs, n, batch.start, known, places)

    def _places(self, inputs: Inputs, labels: Tensor | None, n: int) -> Tensor:
        """Bool [N, L], which rows count: those with a known label; without labels, those that are not padding."""
        if labels is not None:
            return ~labels.isnan() if labels.is_floating_point() else labels != IGNORED
        if self.task.per == "label":
            return torch.ones(n, self.n_outputs, dtype=torch.bool)
        if self.task.teacher_forcing:
            return counted_places(inputs, (n, self._length(inputs)), ("decoder_attention_mask",))
        ids = token_ids(inputs)
        length = self._length(inputs) if ids is None else ids.shape[1]
        places = counted_places(inputs, (n, length))
        return places[:, 1:] if self.task.shift else places

    def _length(self, inputs: Inputs) -> int:
        with preserved(self.model), flags(self.model, ()), torch.no_grad():
            return find_scores(call(self.model, inputs)).shape[1]


def recognise(model: nn.Module, batch: Batch, task: str = AUTO, targets: Targets | None = None) -> Reader:
    """Run the eval model on a batch and read off what it returns.

    Args:
        model: the network.
        batch: a few examples.
        task: a name in `TASKS`; "auto" goes by the shapes of outputs and labels.
        targets: what all labels have in common; None takes the batch for all.

    Raises:
        DataError: the model refuses the inputs, or its outputs are not those of the task.
    """
    if task in TASKS and TASKS[task].teacher_forcing:
        batch = Batch(with_decoder_inputs(model, batch), batch.labels, batch.start)
    with preserved(model), flags(model, ()), torch.no_grad():
        output = call(model, batch.inputs)
    scores = find_scores(output)
    if scores.shape[0] != len(batch):
        raise DataError(f"the model returns {scores.shape[0]} rows for {len(batch)} examples: is the batch first?")
    targets = targets or Targets.of(Data("", (batch,)))
    chosen = TASKS[guess(scores.unsqueeze(-1) if scores.dim() == 1 else scores, targets) if task == AUTO else task]
    scores = _of_rank(scores, chosen)
    squashed = _squashed(scores, chosen)
    findings = _findings(output, scores, chosen, squashed, targets.variance, guessed=task == AUTO)
    family = Gaussian(targets.variance or 1.0) if chosen.name == "regression" else CATEGORICAL
    n_outputs = scores.shape[-1]
    if chosen.per == "example" and chosen.name != "regression":
        n_outputs = max(n_outputs, 2)
    reader = Reader(model, chosen, n_outputs, squashed, family, findings)
    _check_labels(reader.rows(batch), scores, chosen)
    return reader


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


def token_ids(inputs: Inputs) -> Tensor | None:
    """The token ids [N, L] among the inputs: `input_ids`, or the only input if it is of whole numbers."""
    if isinstance(inputs, dict) and "input_ids" in inputs:
        return inputs["input_ids"]
    tensors = list(named_tensors(inputs).values())
    whole = len(tensors) == 1 and tensors[0].dim() == 2 and not tensors[0].is_floating_point()
    return tensors[0] if whole else None


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


def _of_rank(scores: Tensor, task: Task) -> Tensor:
    """Scores [N, C] or [N, L, C], as the task has them.

    Raises:
        DataError: the model's have another number of dimensions.
    """
    if task.rank == 2 and scores.dim() == 1:
        return scores.unsqueeze(-1)
    if task.name == "regression":
        return scores.flatten(1)
    if scores.dim() != task.rank:
        raise DataError(f"the model returns {shape_text(scores)}, {task.name} needs {task.meaning}")
    return scores


def _two_classes(z: Tensor, squashed: Squashed) -> Tensor:
    """Logits (0, z) of no and yes [..., 2]; log-probabilities where z is one of yes already."""
    if squashed == "sigmoid":
        return torch.stack([(-z).log1p(), z.log()], -1)
    return torch.stack([torch.zeros_like(z), z], -1)


def _squashed(scores: Tensor, task: Task) -> Squashed:
    """Whether a softmax (rows in [0, 1] that sum to 1) or a sigmoid (all in [0, 1]) has been applied already."""
    values = scores.double()
    if task.name == "regression" or not bool(((values >= 0) & (values <= 1)).all()):
        return ""
    if task.per == "label" or scores.shape[-1] == 1:
        return "sigmoid" if values.numel() >= FEW else ""
    return "softmax" if bool(((values.sum(-1) - 1).abs() < MAX_ROUNDING).all()) else ""


def _findings(
    output: Any, scores: Tensor, task: Task, squashed: Squashed, variance: float | None, *, guessed: bool
) -> dict[str, str]:
    findings = {}
    if squashed:
        findings["outputs_are_probabilities"] = "the model returns probabilities: they are taken back to logits"
    if task.name == "classification" and scores.shape[-1] == 1:
        findings["one_output"] = "the model has one output: it is read as the logit of class 1 against class 0"
    if several_tensors(output):
        findings["several_outputs"] = "the model returns several tensors: the first is taken for the scores"
    if task.name == "regression":
        of = "1, there being no targets" if variance is None else f"{variance:.4g}, the variance of the targets"
        findings["gaussian_surrogate"] = f"regression: divergences are of the surrogate N(output, v) with v = {of}"
    if guessed and task.name not in ("classification", "tokens"):
        findings["task_guessed"] = f"outputs and labels look like {task.name} ({task.meaning}): else name the --task"
    return findings


def _check_labels(rows: RowBatch, scores: Tensor, task: Task) -> None:
    """Labels go with the outputs.

    Raises:
        DataError: they do not.
    """
    if rows.places is None:
        if rows.labels is not None and task.name == "classification" and rows.labels.dim() != 1:
            raise DataError(f"labels are {list(rows.labels.shape)}, classification needs one label an example")
        if rows.labels is not None and task.name == "regression" and rows.labels.shape != scores.shape:
            raise DataError(f"targets are {list(rows.labels.shape)} and the model returns {shape_text(scores)}")
        return
    shape = scores.shape if task.per == "label" else scores.shape[:-1]
    expected = (shape[0], shape[1] - 1) if task.shift else tuple(shape)
    if tuple(rows.places.shape) != expected:
        raise DataError(
            f"labels are {list(rows.places.shape)} and the model returns {shape_text(scores)}: {task.name} needs one"
            f" label a {task.per}"
        )
