from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from rdrop_analysis import analyze, load_results
from rdrop_analysis.errors import DataError, UsageError
from rdrop_probes.records import to_json

N, FEATURES, CLASSES = 60, 6, 4

UNTRAINED = (
    "temperature_at_edge",
    "temperature_mean_at_edge",
)  # no finite temperature is the best for random weights and labels


def mlp(rate: float = 0.3, seed: int = 0, classes: int = CLASSES) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Dropout(rate), nn.Linear(16, classes))


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(N, FEATURES, generator=generator), torch.randint(0, CLASSES, (N,), generator=generator)


def numbers(results) -> bytes:
    """results.json without times."""
    from dataclasses import replace

    return to_json(replace(results.record, created="", seconds=0.0))


def test_one_seed_gives_the_same_results_json_apart_from_times(data):
    first, second = (analyze({"a": mlp(), "b": mlp(0.1)}, data, sub_models=4, strategy="vmap") for _ in range(2))
    assert numbers(first) == numbers(second)
    assert numbers(analyze({"a": mlp(), "b": mlp(0.1)}, data, sub_models=4, strategy="vmap", seed=1)) != numbers(first)


def test_the_order_of_checkpoints_does_not_change_numbers(data):
    models = {"a": mlp(), "b": mlp(0.1), "c": mlp(0.5)}
    forwards = analyze(models, data, sub_models=4, strategy="vmap", reference="a")
    backwards = analyze(dict(reversed(models.items())), data, sub_models=4, strategy="vmap", reference="a")
    assert {c.name: c for c in forwards.record.checkpoints} == {c.name: c for c in backwards.record.checkpoints}
    key = ["candidate", "metric"]
    pd.testing.assert_frame_equal(
        forwards.comparisons.sort_values(key, ignore_index=True),
        backwards.comparisons.sort_values(key, ignore_index=True),
    )


def test_eval_metrics_are_those_of_the_eval_model(data):
    inputs, labels = data
    model = mlp()
    found = analyze(model, data, sub_models=2).record.checkpoints[0].metrics
    with torch.no_grad():
        logits = model.eval()(inputs).double()
    assert found["accuracy_eval"].estimate == float((logits.argmax(1) == labels).double().mean())
    # float32 logits, summed in another order at most
    assert found["nll_eval"].estimate == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), abs=1e-9)


def test_the_candidate_with_less_dropout_is_compared_as_more_consistent(data):
    results = analyze({"much": mlp(0.5), "little": mlp(0.05)}, data, sub_models=16)
    (row,) = (c for c in results.record.comparisons if c.metric == "epkl")
    assert (row.reference, row.candidate) == ("much", "little")
    assert row.high is not None
    assert row.high < 0


def test_without_labels_nothing_about_labels_is_reported(data):
    metrics = analyze(mlp(), data[0], sub_models=4).record.checkpoints[0].metrics
    assert "epkl" in metrics
    assert "flip_rate" in metrics
    assert not [name for name in metrics if name.startswith(("accuracy", "nll", "brier", "ece"))]


def test_labels_of_minus_100_are_left_out_of_accuracy_only(data):
    inputs, labels = data
    labels = labels.clone()
    labels[::2] = -100
    metrics = analyze(mlp(), (inputs, labels), sub_models=4).record.checkpoints[0].metrics
    assert metrics["accuracy_eval"].n == N // 2
    assert metrics["epkl"].n == N


def test_a_model_that_returns_probabilities_is_measured_on_their_logarithms(data):
    model = mlp()
    plain = analyze({"m": model}, data, sub_models=8).record
    ended = analyze({"m": nn.Sequential(model, nn.Softmax(-1))}, data, sub_models=8).record
    assert [w.code for w in ended.warnings if w.code not in UNTRAINED] == ["outputs_are_probabilities"]
    for name in ("epkl", "kl_sub_to_eval", "nll_eval"):
        # softmax and its logarithm in float32
        assert ended.checkpoints[0].metrics[name].estimate == pytest.approx(
            plain.checkpoints[0].metrics[name].estimate, rel=1e-4
        )


def test_one_output_is_the_logit_of_class_1_against_class_0(data):
    inputs, labels = data
    labels = labels % 2
    one = mlp(classes=1)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = one

        def forward(self, x):
            z = self.inner(x)
            return torch.cat([torch.zeros_like(z), z], 1)

    class Flat(Two):
        def forward(self, x):
            return self.inner(x).squeeze(1)

    expected = analyze({"m": Two()}, (inputs, labels), sub_models=4).record.checkpoints[0].metrics
    for model in (one, Flat()):
        record = analyze({"m": model}, (inputs, labels), sub_models=4).record
        assert [w.code for w in record.warnings if w.code not in UNTRAINED] == ["one_output"]
        assert record.checkpoints[0].metrics["epkl"].estimate == pytest.approx(expected["epkl"].estimate, rel=1e-9)
        assert record.checkpoints[0].metrics["nll_eval"] == expected["nll_eval"]


def test_no_dropout_gives_zeros_and_a_warning(data):
    record = analyze(mlp(0.0), data, sub_models=4).record
    assert [w.code for w in record.warnings if w.code not in UNTRAINED] == ["no_dropout"]
    metrics = record.checkpoints[0].metrics
    assert metrics["epkl"].estimate == metrics["nll_gap"].estimate == metrics["flip_rate"].estimate == 0
    assert metrics["nll_sub"].estimate == metrics["nll_eval"].estimate


class Returns(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.inner = mlp()
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.inner(x))


@pytest.mark.parametrize(
    "wrap",
    [lambda z: {"loss": None, "logits": z}, lambda z: (z, z.sum()), lambda z: [z]],
    ids=["dict", "tuple", "list"],
)
def test_outputs_in_containers_are_read(wrap, data):
    expected = analyze({"m": mlp()}, data, sub_models=4, probes=["pairwise_kl"]).record.checkpoints[0].metrics
    assert (
        analyze({"m": Returns(wrap)}, data, sub_models=4, probes=["pairwise_kl"]).record.checkpoints[0].metrics
        == expected
    )


def test_half_precision_models_take_float32_data(data):
    record = analyze(mlp().bfloat16(), data, sub_models=8).record
    assert record.checkpoints[0].metrics["epkl"].estimate > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_data_of_another_dtype_than_the_model_is_converted_or_refused(dtype, data):
    inputs = data[0].to(dtype)
    if dtype is torch.float64:
        assert analyze(mlp(), inputs, sub_models=2).record.checkpoints[0].metrics["epkl"].n == N
    else:
        with pytest.raises(DataError, match=r"refuses the data \(inputs: int64"):
            analyze(mlp(), inputs, sub_models=2)


def test_a_last_batch_of_one_example_is_measured(data):
    record = analyze(mlp(), data, sub_models=4, batch_size=N - 1).record
    assert record.checkpoints[0].metrics["epkl"].n == N


def test_one_example_has_an_estimate_without_an_interval(data):
    metric = analyze(mlp(), data, sub_models=8, limit=1).record.checkpoints[0].metrics["epkl"]
    assert metric.n == 1
    assert metric.low is None
    assert metric.mask_low is not None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sub_models": 1}, UsageError, "at least 2"),
        ({"seed": -1}, UsageError, "seed"),
        ({"task": "poetry"}, UsageError, "unknown task 'poetry'"),
        ({"probes": ["nonsense"]}, UsageError, "unknown probe 'nonsense': choose from default, pairwise_kl"),
        ({"masks": "carnival"}, UsageError, "unknown masks 'carnival': choose from per-example, shared"),
        ({"unit": "furlongs"}, UsageError, "unknown unit"),
        ({"sub_models": 4.0}, UsageError, "whole number"),
        ({"reference": "nobody"}, UsageError, "there is no checkpoint 'nobody'"),
        ({"device": "cuda:77"}, UsageError, "not available"),
        ({"device": "toaster"}, UsageError, "not available"),
    ],
)
def test_senseless_arguments_are_refused(arguments, error, message, data):
    with pytest.raises(error, match=message):
        analyze(mlp(), data, **arguments)


def test_what_does_not_go_together_is_named(data):
    inputs, labels = data
    with pytest.raises(DataError, match=r"refuses the data \(inputs: float32 \[2, 3\]\): RuntimeError: mat1"):
        analyze(mlp(), inputs[:, :3])
    with pytest.raises(DataError, match="label 9 at example 5 is out of range for 4 classes"):
        analyze(mlp(), (inputs, torch.where(torch.arange(N) == 5, 9, labels)))
    with pytest.raises(DataError, match="one label an example"):
        analyze(mlp(), (inputs, labels[:, None].expand(-1, 2)))
    with pytest.raises(DataError, match="empty"):
        analyze(mlp(), (inputs[:0], labels[:0]))
    with pytest.raises(UsageError, match="pass --data"):
        analyze(mlp())


def test_nan_logits_name_the_example(data):
    class Nan(nn.Module):
        def forward(self, x):
            return torch.where(torch.arange(len(x))[:, None] == 7, torch.nan, x)

    with pytest.raises(DataError, match="logits of example 7 are not finite under the eval model"):
        analyze(Nan(), data[0])


def test_the_model_is_left_as_it_was(data):
    model = mlp().train()
    model[0].eval()
    state = torch.random.get_rng_state()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    analyze(model, data, sub_models=4)
    assert [m.training for m in model.modules()] == [True, False, True, True, True]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_results_come_back_from_their_directory(data, tmp_path):
    results = analyze({"a": mlp(), "b": mlp(0.1)}, data, sub_models=4)
    results.save(tmp_path, ["json", "csv"])
    loaded = load_results(tmp_path)
    assert loaded.record == results.record
    # the table has been through decimal text
    pd.testing.assert_frame_equal(loaded.per_example, results.per_example, check_dtype=False, rtol=1e-12)


def test_per_example_columns_average_to_the_metrics(data):
    results = analyze({"a": mlp()}, data, sub_models=8)
    metrics = results.record.checkpoints[0].metrics
    table = results.per_example
    for name in set(metrics) & set(table.columns):
        assert np.nanmean(table[name]) == pytest.approx(metrics[name].estimate, rel=1e-12, abs=1e-15)


def test_bits_are_shown_and_nats_are_kept(data):
    nats, bits = (analyze({"a": mlp()}, data, sub_models=4, strategy="vmap", unit=unit) for unit in ("nats", "bits"))
    assert bits.record.checkpoints == nats.record.checkpoints
    as_shown = [r.summary.set_index("metric").loc["epkl"] for r in (nats, bits)]
    assert as_shown[1]["unit"] == "bits"
    assert as_shown[1]["estimate"] == pytest.approx(as_shown[0]["estimate"] / np.log(2), rel=1e-12)


@pytest.mark.parametrize("models", [None, nn.Linear, {"weights": torch.zeros(1)}, 7, []])
def test_what_is_no_model_is_refused(models, data):
    with pytest.raises(UsageError, match=r"is not a model|no checkpoint given"):
        analyze(models, data)


def test_several_tensors_in_a_tuple_are_a_warning(data):
    record = analyze(Returns(lambda z: (z, z.repeat(1, 2))), data, sub_models=2).record
    assert [w.code for w in record.warnings if w.code not in UNTRAINED] == ["several_outputs"]


def test_different_numbers_of_classes_are_a_warning(data):
    record = analyze({"a": mlp(), "b": mlp(classes=7)}, data, sub_models=2).record
    assert [w.code for w in record.warnings if w.code not in UNTRAINED] == ["different_classes"]


def test_without_dropout_nothing_is_left_of_rounding(data):
    record = analyze({"a": mlp(0.0)}, data, sub_models=5).record
    metrics = record.checkpoints[0].metrics
    for name in ("epkl", "mutual_information", "kl_mean_to_eval", "expectation_linearity", "flip_rate", "nll_gap"):
        assert (metrics[name].estimate, metrics[name].low, metrics[name].high) == (0, 0, 0), name


class WeightDropout(nn.Module):
    """One mask for a whole batch."""

    def __init__(self):
        super().__init__()
        self.inner = mlp(0.0)

    def forward(self, x):
        weight = nn.functional.dropout(self.inner[0].weight, 0.3, self.training)
        return self.inner[3](nn.functional.relu(nn.functional.linear(x, weight, self.inner[0].bias)))


def test_masks_shared_in_one_of_two_checkpoints_widen_their_comparison_both_ways(data):
    models = {"shared": WeightDropout(), "own": mlp(0.3)}
    widths = []
    for reference in models:
        record = analyze(models, data, sub_models=8, reference=reference).record
        (row,) = (c for c in record.comparisons if c.metric == "epkl")
        widths.append(row.high - row.low)
    assert widths[0] == pytest.approx(widths[1])


class NumpyDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = mlp(0.0)

    def forward(self, x):
        h = self.inner[:2](x)
        if self.training:
            h = h * torch.from_numpy(np.random.random(h.shape) > 0.3).to(h) / 0.7  # noqa: NPY002 - as users do
        return self.inner[3](h)


def test_randomness_that_is_no_site_is_not_called_no_dropout(data):
    record = analyze({"m": NumpyDropout()}, data, sub_models=8).record
    (checkpoint,) = record.checkpoints
    assert checkpoint.stochastic
    assert checkpoint.metrics["epkl"].estimate > 0
    assert "predicted_epkl" not in checkpoint.metrics
    assert "no dropout" not in analyze({"m": NumpyDropout()}, data, sub_models=8).page()
