"""Find out by running it on a few examples what a model returns, and so how its outputs are to be read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rdrop_analysis.calling import OUTPUT_KEYS, call, find_scores, several_tensors, shape_text
from rdrop_analysis.data.examples import Batch, Data, map_tensors
from rdrop_analysis.errors import DataError
from rdrop_analysis.loading.architectures import task_of
from rdrop_analysis.reading import Reader, Squashed, of_rank, with_decoder_inputs
from rdrop_analysis.tasks import AUTO, TASKS, Targets, Task, guess
from rdrop_probes.batch import Batch as RowBatch
from rdrop_probes.families import CATEGORICAL, Gaussian
from rdrop_probes.state import flags, preserved

MAX_ROUNDING = 1e-4  # of probabilities that sum to 1
FEW = 8  # numbers that all lie in [0, 1] by chance
LEAST = 2  # examples that a model is looked at with
LOOKED_AT = 2**22  # numbers in the outputs of those that it is looked at with at most


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
    task = _of_architecture(model) if task == AUTO else task
    targets = targets or Targets.of(Data("", (batch,)))
    output, scores, batch = _looked_at(model, batch, forced=task in TASKS and TASKS[task].teacher_forcing)
    if task == AUTO and _headless(output):
        raise DataError(
            f"{type(model).__name__} returns hidden states and no scores: give a model with a head, or"
            " --task regression to compare the states themselves"
        )
    chosen = TASKS[guess(scores.unsqueeze(-1) if scores.dim() == 1 else scores, targets) if task == AUTO else task]
    scores = of_rank(scores, chosen)
    squashed = _squashed(scores, chosen)
    findings = _findings(output, scores, chosen, squashed, targets, guessed=task == AUTO)
    family = Gaussian(targets.variance or 1.0) if chosen.name == "regression" else CATEGORICAL
    reader = Reader(model, chosen, scores.shape[-1], squashed, family, findings)
    _check_labels(reader.rows(batch), scores, chosen, targets)
    return reader


def _of_architecture(model: nn.Module) -> str:
    """What a model of transformers is for, by its class and configuration; "auto" for any other."""
    config = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        return AUTO
    return task_of(type(model).__name__, config.to_dict()) or AUTO  # type: ignore[union-attr]  # it has to_dict


def _looked_at(model: nn.Module, batch: Batch, *, forced: bool) -> tuple[Any, Tensor, Batch]:
    """Output, scores and the examples they are of: two, or as many as are looked at for little memory."""
    few = _first(batch, LEAST)
    while True:
        inputs = with_decoder_inputs(model, few) if forced else few.inputs
        with preserved(model), flags(model, ()), torch.no_grad():
            output = call(model, map_tensors(torch.clone, inputs))  # a model may change what it is given
        scores = find_scores(output)
        if scores.shape[0] != len(few):
            raise DataError(f"the model returns {scores.shape[0]} rows for {len(few)} examples: is the batch first?")
        affordable = min(len(batch), LOOKED_AT // max(1, scores[0].numel()))
        if affordable <= len(few):
            return output, scores, few
        few = _first(batch, affordable)


def _headless(output: Any) -> bool:
    """Whether an output is that of an encoder without a head."""
    names = set(output) if isinstance(output, Mapping) else set(vars(output)) if hasattr(output, "__dict__") else set()
    return "last_hidden_state" in names and not names & set(OUTPUT_KEYS)


def _first(batch: Batch, n: int) -> Batch:
    labels = None if batch.labels is None else batch.labels[:n]
    return Batch(map_tensors(lambda tensor: tensor[:n], batch.inputs), labels, batch.start)


def _squashed(scores: Tensor, task: Task) -> Squashed:
    """Whether a softmax (rows in [0, 1] that sum to 1) or a sigmoid (all in [0, 1]) has been applied already."""
    if task.name == "regression" or float(scores.min()) < 0 or float(scores.max()) > 1:
        return ""
    if task.per == "label" or scores.shape[-1] == 1:
        return "sigmoid" if scores.numel() >= FEW else ""
    off = (scores.sum(-1, dtype=torch.float64) - 1).abs().max()
    return "softmax" if float(off) < max(MAX_ROUNDING, 4 * torch.finfo(scores.dtype).eps) else ""


def _findings(
    output: Any, scores: Tensor, task: Task, squashed: Squashed, targets: Targets, *, guessed: bool
) -> dict[str, str]:
    findings = {}
    if squashed:
        findings["outputs_are_probabilities"] = (
            f"the model returns probabilities ({squashed}): their logarithms are taken as logits"
        )
    if task.name == "classification" and scores.shape[-1] == 1:
        findings["one_output"] = "the model has one output: it is read as the logit of class 1 against class 0"
    if task.shift and targets.shape is not None and not targets.inputs:
        findings["labels_not_ids"] = "the labels are not the model's own tokens: they are shifted by one all the same"
    if several_tensors(output):
        findings["several_outputs"] = "the model returns several tensors: the first is taken for the scores"
    if task.name == "regression":
        findings["gaussian_surrogate"] = (
            f"regression: divergences are of the surrogate N(output, v) with v = {_of(targets)}"
        )
    if task.name == "regression" and targets.uneven:
        findings["targets_uneven"] = "the outputs differ a hundredfold in variance: those of the largest count for most"
    if guessed and task.name not in ("classification", "tokens"):
        findings["task_guessed"] = f"outputs and labels look like {task.name} ({task.meaning}): else name the --task"
    return findings


def _of(targets: Targets) -> str:
    """Where the surrogate's variance comes from."""
    if targets.variance is None:
        return "1, there being no targets"
    return (
        f"{targets.variance:.4g}, the variance of the targets" if targets.variance else "1, the targets being constant"
    )


def _check_labels(rows: RowBatch, scores: Tensor, task: Task, targets: Targets) -> None:
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
    if task.per == "label" and targets.shape is not None and not targets.flags:
        raise DataError("multi-label needs labels of 0 and 1 (-100 or NaN where not known), one for each output")
    shape = scores.shape if task.per == "label" else scores.shape[:-1]
    expected = (shape[0], shape[1] - 1) if task.shift else tuple(shape)
    if tuple(rows.places.shape) != expected:
        raise DataError(
            f"labels are {list(rows.places.shape)} and the model returns {shape_text(scores)}: {task.name} needs one"
            f" label a {task.per}"
        )
