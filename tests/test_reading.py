"""Whatever a model returns and whatever labels look like, the right rows are read; the rest is refused in one line."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from rdrop_analysis import analyze
from rdrop_analysis.commands.options import TASK_NAMES
from rdrop_analysis.data.examples import Batch, Data
from rdrop_analysis.errors import DataError, UsageError
from rdrop_analysis.reading import recognise
from rdrop_analysis.tasks import AUTO, TASKS, Targets

N, L, C = 6, 5, 4


class Returns(nn.Module):
    """Dropout before a linear layer, whose output goes through a function."""

    def __init__(self, wrap=lambda z: z, outputs=C):
        super().__init__()
        self.wrap, self.drop, self.head = wrap, nn.Dropout(0.3), nn.Linear(3, outputs)

    def forward(self, x):
        return self.wrap(self.head(self.drop(x)))


@dataclass
class Output:
    hidden: torch.Tensor
    logits: torch.Tensor


Named = namedtuple("Named", "hidden logits")


def read(model, inputs, labels=None, task=AUTO):
    batch = Batch(inputs, labels, 0)
    reader = recognise(model.eval(), batch, task, Targets.of(Data("", (batch,))))
    return reader, reader.rows(batch)


def test_the_command_line_knows_every_task():
    assert (AUTO, *TASKS) == TASK_NAMES


@pytest.mark.parametrize(
    ("labels", "outputs", "expected"),
    [
        (None, C, "classification"),
        (torch.randint(0, C, (N,)), C, "classification"),
        (torch.randint(0, C, (N,)).float(), C, "classification"),
        (torch.tensor([0.0, 1, 1, 0, 1, 0]), 1, "classification"),
        (torch.randn(N), 1, "regression"),
        (torch.arange(N), 1, "regression"),
        (torch.randn(N, 1), 1, "regression"),
        (torch.randn(N, C), C, "regression"),
        (torch.randint(0, 2, (N, C)), C, "multi-label"),
        (torch.randint(0, 2, (N, C)).float(), C, "multi-label"),
    ],
)
def test_the_task_of_one_row_an_example_is_read_off_labels_and_outputs(labels, outputs, expected):
    reader, _ = read(Returns(outputs=outputs), torch.randn(N, 3), labels)
    assert reader.task.name == expected
    assert ("task_guessed" in reader.findings) == (expected != "classification")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda z: {"loss": z.sum(), "logits": z},
        lambda z: (z, z.mean(1)),
        lambda z: Output(z[:, :1], z),
        lambda z: Named(z[:, :1], z),
        lambda z: [z],
    ],
    ids=["dict", "tuple", "dataclass", "namedtuple", "list"],
)
@pytest.mark.parametrize("shape", [(N, 3), (N, L, 3)])
def test_scores_are_found_in_whatever_a_model_returns(wrap, shape):
    x = torch.randn(shape)
    model = Returns(wrap)
    reader, rows = read(model, x)
    assert torch.equal(reader(rows.inputs), model.head(x))
    assert reader.task.name == ("classification" if len(shape) == 2 else "tokens")


def test_tokens_that_count_are_those_with_a_label_or_else_those_that_are_not_padding():
    x, labels = torch.randn(N, L, 3), torch.randint(0, C, (N, L))
    labels[:, 3:] = -100
    _, rows = read(Returns(), x, labels)
    assert rows.places.tolist() == [[True, True, True, False, False]] * N
    assert rows.row_labels.tolist() == labels[:, :3].flatten().tolist()

    class Masked(Returns):
        def forward(self, x, attention_mask=None, padding_mask=None):
            return super().forward(x)

    mask = torch.arange(L) < torch.tensor([1, 2, 3, 4, 5, 5])[:, None]
    for name, value in (("attention_mask", mask.long()), ("padding_mask", ~mask)):
        _, rows = read(Masked(), {"x": x, name: value})
        assert torch.equal(rows.places, mask)
    _, rows = read(Returns(), x)
    assert rows.places.all()


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.drop, self.head = nn.Embedding(11, 8), nn.Dropout(0.2), nn.Linear(8, 11)

    def forward(self, input_ids, attention_mask=None):
        return self.head(self.drop(self.embed(input_ids)))


def test_a_causal_model_is_scored_on_the_token_that_follows():
    ids = torch.randint(0, 11, (N, L))
    mask = torch.ones(N, L, dtype=torch.long)
    mask[0, 3:] = 0
    model = Language()
    reader, rows = read(model, {"input_ids": ids, "attention_mask": mask}, task="causal-lm")
    assert torch.equal(reader(rows.inputs), model(ids)[:, :-1])
    assert rows.row_labels.tolist() == [*ids[0, 1:3].tolist(), *ids[1:, 1:].flatten().tolist()]
    given = torch.where(torch.arange(L) < 2, -100, ids)
    _, rows = read(model, ids, given, task="causal-lm")
    assert rows.row_labels.tolist() == ids[:, 2:].flatten().tolist()


def test_several_labels_are_rows_of_two_classes():
    x, labels = torch.randn(N, 3), torch.randint(0, 2, (N, C))
    labels[0, 0] = -100
    model = Returns()
    reader, rows = read(model, x, labels, task="multi-label")
    z = model.head(x)
    assert torch.equal(reader(x), torch.stack([torch.zeros_like(z), z], -1))
    assert rows.places.sum() == N * C - 1
    probabilities, rows = read(Returns(torch.sigmoid), x, labels, task="multi-label")
    model = probabilities.model
    assert torch.allclose(probabilities(x).log_softmax(-1)[..., 1], nn.functional.logsigmoid(model.head(x)), atol=1e-6)
    assert "outputs_are_probabilities" in probabilities.findings


def test_probabilities_are_taken_back_to_logits_also_by_token():
    for shape in ((N, 3), (N, L, 3)):
        model = Returns(lambda z: z.softmax(-1))
        reader, rows = read(model, torch.randn(shape))
        assert torch.allclose(reader(rows.inputs), model.head(rows.inputs).log_softmax(-1), atol=1e-6)
        assert "outputs_are_probabilities" in reader.findings


def test_the_surrogate_of_regression_has_the_variance_of_all_targets():
    targets = torch.randn(100, 2) * torch.tensor([1.0, 3.0])
    batch = Batch(torch.randn(100, 3), targets, 0)
    reader = recognise(Returns(outputs=2).eval(), batch, "regression", Targets.of(Data("", (batch,))))
    expected = float((targets - targets.mean(0)).square().mean())
    assert reader.family.variance == pytest.approx(expected)
    assert f"v = {expected:.4g}, the variance of the targets" in reader.findings["gaussian_surrogate"]
    unlabelled, _ = read(Returns(outputs=2), torch.randn(N, 3), task="regression")
    assert unlabelled.family.variance == 1


@pytest.mark.parametrize(
    ("shape", "labels", "task", "message"),
    [
        ((N, 3), torch.randint(0, C, (N, L)), AUTO, r"returns float32 \[6, 4\] and labels are \[N, 5\], which no task"),
        ((N, L, 3), torch.randint(0, C, (N,)), AUTO, r"returns float32 \[6, 5, 4\] and labels are \[N\], which no"),
        ((N, L, 3), torch.randint(0, C, (N, L + 1)), AUTO, r"labels are \[6, 6\] and the model returns"),
        ((N, 3), torch.randint(0, 2, (N, C)), "classification", "classification needs one label an example"),
        ((N, 3), torch.randint(0, C, (N, L)), "tokens", r"returns float32 \[6, 4\], tokens needs class scores \[N, L"),
        ((N, L, 3), None, "classification", r"classification needs class scores \[N, C\]"),
        ((N, 3), torch.randn(N, 2), "regression", r"targets are \[6, 2\] and the model returns float32 \[6, 4\]"),
        ((N, 2, L, 3), None, AUTO, r"returns float32 \[6, 2, 5, 4\] and there are no labels, which no task has"),
    ],
)
def test_what_does_not_go_together_is_said_in_one_line(shape, labels, task, message):
    with pytest.raises(DataError, match=message):
        read(Returns(), torch.randn(shape), labels, task)


def test_analyze_runs_every_task(tmp_path):
    ids = torch.randint(0, 11, (N, L))
    cases = {
        "tokens": (Returns(), torch.randn(N, L, 3), torch.randint(0, C, (N, L)), "token", N * L),
        "causal-lm": (Language(), ids, None, "token", N * (L - 1)),
        "multi-label": (Returns(), torch.randn(N, 3), torch.randint(0, 2, (N, C)), "label", N * C),
        "regression": (Returns(outputs=1), torch.randn(N, 3), torch.randn(N), "example", N),
    }
    for task, (model, inputs, labels, per, rows) in cases.items():
        data = (inputs, labels) if labels is not None else inputs
        results = analyze(
            {"a": model, "b": type(model)()} if task == "causal-lm" else model, data, sub_models=4, task=task
        )
        record = results.record
        assert (record.data.task, record.data.per, record.data.n_rows) == (task, per, rows)
        assert record.checkpoints[0].metrics["epkl"].estimate > 0
        assert not record.failures
        results.save(tmp_path / task)
        assert (tmp_path / task / "report.html").stat().st_size > 10_000
        assert ("rows" in results.per_example) == (per != "example")


def test_checkpoints_of_different_tasks_are_measured_but_not_compared():
    x = torch.randn(N, 3)
    models = {"classes": Returns(), "number": Returns(outputs=1)}
    results = analyze(models, (x, torch.tensor([0.0, 1, 2, 1, 0, 1])), sub_models=4)
    assert "different_tasks" in [w.code for w in results.record.warnings]
    assert not results.record.comparisons


def test_a_probe_that_does_not_fit_the_task_is_refused():
    with pytest.raises(UsageError, match="unknown probe 'calibration' for regression: choose from pairwise_kl, gap"):
        analyze(Returns(outputs=1), (torch.randn(N, 3), torch.randn(N)), sub_models=4, probes="calibration")
