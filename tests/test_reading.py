"""Whatever a model returns and whatever labels look like, the right rows are read; the rest is refused in one line."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
import transformers
from torch import nn

from rdrop_analysis import analyze
from rdrop_analysis import batching as batching_module
from rdrop_analysis.commands.options import TASK_NAMES
from rdrop_analysis.data.examples import Batch, Data
from rdrop_analysis.datasets import load_data
from rdrop_analysis.errors import DataError, UsageError
from rdrop_analysis.recognising import recognise
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
        averaged = {"mse"} if task == "regression" else {"nll", "accuracy", "brier", "ece"}
        assert {point.metric for point in record.checkpoints[0].averaging.points} == averaged
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
    with pytest.raises(
        UsageError, match="unknown probe 'calibration' for regression: choose from default, pairwise_kl, gap"
    ):
        analyze(Returns(outputs=1), (torch.randn(N, 3), torch.randn(N)), sub_models=4, probes="calibration")


@pytest.fixture(scope="module")
def gpt2():
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_embd=16, n_layer=1, n_head=2, vocab_size=11, n_positions=8, bos_token_id=0, eos_token_id=0
        )
    ).eval()


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_language_model_in_memory_is_shifted_as_well(gpt2, wrapped):
    """By its architecture, and without one because its labels are its own tokens; against the model's own loss."""
    ids = torch.randint(0, 11, (N, 8))

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = gpt2

        def forward(self, input_ids):
            return self.inside(input_ids).logits

    with torch.no_grad():
        loss = float(gpt2(ids, labels=ids).loss)
    results = analyze(Bare() if wrapped else gpt2, ({"input_ids": ids}, ids), sub_models=2)
    assert results.record.data.task == "causal-lm"
    assert results.record.checkpoints[0].metrics["nll_eval"].estimate == pytest.approx(loss, rel=1e-5)
    assert ("task_guessed" in [w.code for w in results.record.warnings]) == wrapped


def test_labelled_padding_does_not_count():
    mask = torch.tensor([[0, 0, 1, 1, 1]] * N)
    ids = torch.randint(0, 11, (N, L))
    _, rows = read(Language(), {"input_ids": ids, "attention_mask": mask}, task="causal-lm")
    assert rows.places.tolist() == [[False, False, True, True]] * N  # the first real token follows nothing real

    class Masked(Returns):
        def forward(self, x, attention_mask):
            return super().forward(x)

    _, rows = read(Masked(), {"x": torch.randn(N, L, 3), "attention_mask": mask}, torch.randint(0, C, (N, L)))
    assert rows.places.tolist() == mask.bool().tolist()


class Pairs(nn.Module):
    """A decoder that looks at the tokens before and no others."""

    def __init__(self):
        super().__init__()
        self.embed, self.drop, self.head = nn.Embedding(11, 8), nn.Dropout(0.2), nn.Linear(8, 11)

    def forward(self, input_ids, decoder_input_ids, attention_mask=None, decoder_attention_mask=None):
        return self.head(self.drop(self.embed(decoder_input_ids) + self.embed(input_ids).mean(1, keepdim=True)))


@pytest.mark.parametrize("length", [L, L + 2])
def test_without_labels_the_rows_of_a_decoder_are_its_own_tokens(length):
    source, target = torch.randint(0, 11, (N, L)), torch.randint(0, 11, (N, length))
    mask = torch.ones(N, L).long()
    mask[:, 2:] = 0
    inputs = {"input_ids": source, "decoder_input_ids": target, "attention_mask": mask}
    _, rows = read(Pairs(), inputs, task="seq2seq")
    assert rows.places.tolist() == [[True] * length] * N
    kept = torch.arange(length) < torch.randint(1, length, (N, 1))
    _, rows = read(Pairs(), {**inputs, "decoder_attention_mask": kept.long()}, task="seq2seq")
    assert torch.equal(rows.places, kept)


def test_every_piece_of_the_data_has_to_fit_the_outputs():
    x, labels = torch.randn(N, L, 3), torch.randint(0, C, (N, L))
    with pytest.raises(DataError, match=r"scores for \[3, 5\] rows where the labels have \[3, 4\]"):
        analyze(Returns(), [(x[:3], labels[:3]), (x[3:], labels[3:, :4])], sub_models=2)
    data = [(x[:3, 0], torch.randn(3, C)), (x[3:, 0], torch.randn(3, 1))]
    with pytest.raises(DataError, match=r"labels are \[3, 1\] where the model's outputs need \[3, 4\]"):
        analyze(Returns(), data, sub_models=2, task="regression")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("outputs", [4, 20, 100])
def test_probabilities_in_half_precision_are_recognised(dtype, outputs):
    model = Returns(lambda z: z.softmax(-1), outputs).to(dtype)
    assert read(model, torch.randn(16, 3).to(dtype))[0].squashed == "softmax"


def test_a_sigmoid_is_undone_so_that_its_logits_are_those_without_it():
    torch.manual_seed(0)
    bare = Returns(outputs=1)
    squashed = Returns(torch.sigmoid, outputs=1)
    squashed.load_state_dict(bare.state_dict())
    data = (torch.randn(40, 3), torch.randint(0, 2, (40,)))
    first, second = (analyze(m, data, sub_models=4).record.checkpoints[0].metrics for m in (bare, squashed))
    for name in ("epkl", "expectation_linearity", "jacobian_logits", "jacobian_spectral", "nll_eval"):
        assert second[name].estimate == pytest.approx(first[name].estimate, rel=1e-3), name


def test_logits_that_begin_like_probabilities_are_named_as_what_may_be_wrong():
    x = torch.cat([torch.rand(40, 1), torch.randn(40, 1) * 9])
    with pytest.raises(DataError, match=r"not finite.*first outputs look like those of a sigmoid"):
        analyze(nn.Sequential(nn.Identity(), nn.Dropout(0.1)), (x, torch.arange(80) % 2), sub_models=2)


def test_labels_in_a_column_are_classes_and_unknown_targets_are_no_targets():
    reader, rows = read(Returns(outputs=1), torch.randn(N, 3), torch.tensor([[0.0], [1], [1], [0], [1], [0]]))
    assert (reader.task.name, rows.labels.shape) == ("classification", (N,))
    targets = torch.tensor([5, 3, -100, 8, 2, 2])
    reader, rows = read(Returns(outputs=1), torch.randn(N, 3), targets)
    assert reader.task.name == "regression"
    assert rows.labels[:, 0].isnan().tolist() == [False, False, True, False, False, False]
    known = torch.tensor([5.0, 3, 8, 2, 2])
    assert reader.family.variance == pytest.approx(float(known.var(correction=0)))


def test_what_is_odd_about_targets_is_said():
    constant, _ = read(Returns(outputs=1), torch.randn(N, 3), torch.full((N,), 0.5))
    assert "1, the targets being constant" in constant.findings["gaussian_surrogate"]
    uneven, _ = read(Returns(outputs=2), torch.randn(N, 3), torch.randn(N, 2) * torch.tensor([1.0, 1e3]))
    assert "a hundredfold" in uneven.findings["targets_uneven"]


@pytest.mark.parametrize(
    ("shape", "labels", "task", "outputs", "message"),
    [
        ((N, L, 3), torch.full((N, L), -100), AUTO, C, "no token counts: every one is padding or has the label -100"),
        ((N, L, 3), None, "tokens", 1, r"returns float32 \[6, 5, 1\], tokens needs class scores"),
        ((N, 3), torch.randint(2, 5, (N, C)), "multi-label", C, "multi-label needs labels of 0 and 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(shape, labels, task, outputs, message):
    data = torch.randn(shape) if labels is None else (torch.randn(shape), labels)
    with pytest.raises(DataError, match=message):
        analyze(Returns(outputs=outputs), data, sub_models=2, task=task)


def test_unknown_labels_of_several_may_be_nan():
    labels = torch.randint(0, 2, (N, C)).float()
    labels[1, 2] = torch.nan
    record = analyze(Returns(), (torch.randn(N, 3), labels), sub_models=2, task="multi-label").record
    assert record.data.n_rows == N * C - 1


class Long(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.drop, self.head = nn.Embedding(11, 4), nn.Dropout(0.2), nn.Linear(4, 500)

    def forward(self, input_ids):
        return self.head(self.drop(self.embed(input_ids)))


def test_each_length_has_a_batch_size_of_its_own(monkeypatch):
    monkeypatch.setattr(batching_module, "NUMBERS_A_TENSOR", 500 * 100)
    data = load_data([torch.randint(0, 11, (40, 2)), torch.randint(0, 11, (40, 50))])
    reader, _ = read(Long(), data.pieces[0].inputs, task="tokens")
    assert batching_module.batching(reader, data, None).sizes == (50, 2)
    monkeypatch.setattr(batching_module, "rows_that_fit", lambda *_: 200)
    cut = batching_module.batching(reader, data, 30)
    assert (cut.sizes, cut.cut) == ((30, 4), True)
    assert sum(batch.n for batch in cut.batches(reader, data)) == 80
    record = analyze(Long(), data, sub_models=2, task="tokens", batch_size=30, probes="pairwise_kl").record
    assert [w.code for w in record.warnings] == ["batch_size_cut"]


def test_a_run_whose_only_probe_has_nothing_to_say_is_a_result_all_the_same():
    """No input of integers without an embedding has a Jacobian: no metric, and no crash."""
    model = nn.Sequential(nn.Flatten(), Whole(), nn.Linear(3, C), nn.Dropout(0.2))
    record = analyze(model, torch.randint(0, 5, (N, 3)), sub_models=2, probes="jacobian").record
    assert record.checkpoints[0].metrics == {}
    assert {"jacobian_unavailable", "few_examples"} <= {w.code for w in record.warnings}


def test_the_record_names_the_probes_that_ran():
    ids = torch.randint(0, 11, (N, L))
    record = analyze(Language(), {"input_ids": ids}, sub_models=2, task="causal-lm").record
    labelled = ["pairwise_kl", "gap", "calibration", "jacobian", "prediction", "averaging", "temperature"]
    assert record.config["probes"] == labelled
    assert analyze(Returns(), torch.randn(N, 3), sub_models=2).record.config["probes"] == [
        *("pairwise_kl", "gap", "jacobian", "prediction")
    ]


class Whole(nn.Module):
    def forward(self, x):
        return x.float()


def test_hidden_states_are_no_scores():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.BertConfig(vocab_size=11, **sizes)
    encoder = transformers.BertModel(config).eval()
    ids = torch.randint(0, 11, (N, L))
    with pytest.raises(DataError, match="BertModel returns hidden states and no scores"):
        analyze(encoder, {"input_ids": ids}, sub_models=2)
    record = analyze(encoder, {"input_ids": ids}, sub_models=2, task="regression", probes="pairwise_kl").record
    assert record.data.n_classes == L * 8


def test_right_predictions_are_marked_right_also_where_classes_have_names():
    torch.manual_seed(0)
    model, x = Returns().eval(), torch.randn(N, 3)
    labels = model(x).argmax(-1)
    data = Data("named", (Batch(x, labels, 0),), class_names=["acq", "earn", "grain", "ship"])
    examples = analyze(model, data, sub_models=4).record.examples
    assert examples
    assert all(example.label == example.predictions["model-1"] for example in examples)
    assert {example.label for example in examples} <= {"acq", "earn", "grain", "ship"}
