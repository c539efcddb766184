"""Fisher trace and effective dimension against the whole Fisher matrix, made of gradients one by one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rdrop_analysis.journal import decode, encode
from rdrop_probes import gram, output_fisher
from rdrop_probes.batch import Batch, take
from rdrop_probes.columns import Column
from rdrop_probes.discovery import find_sites
from rdrop_probes.families import CATEGORICAL, Family, Gaussian
from rdrop_probes.freedom import DELTA, Freedom, _in_words, _jackknifed
from rdrop_probes.items import Work
from rdrop_probes.measure import measure
from rdrop_probes.output_fisher import VECTORS, exact, leverages
from rdrop_probes.pairwise_kl import PairwiseKL
from rdrop_probes.registry import choose
from rdrop_probes.selection import Case, Selection
from rdrop_probes.settings import Settings
from rdrop_probes.state import flags, preserved
from rdrop_probes.statistics import compare, metric

EXACT = 1e-9  # relative, in float64
Z = 4.0


class Encoder(nn.Module):
    """Token ids and a padding mask by name, as a dict of inputs."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.2, batch_first=True)
        self.head = nn.Linear(8, classes)

    def forward(self, ids: Tensor, padding: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(ids), src_key_padding_mask=padding).mean(1))


class Tagger(Encoder):
    """Scores for every token."""

    def forward(self, ids: Tensor, padding: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(ids), src_key_padding_mask=padding))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.head = kind(4, 5, 2, dropout=0.2, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 3))


def conv() -> nn.Module:
    norm = nn.BatchNorm2d(3)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return nn.Sequential(nn.Conv2d(1, 3, 3), norm, nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(27, 4))


def tokens(n: int) -> dict[str, Tensor]:
    padding = torch.zeros(n, 5, dtype=torch.bool)
    padding[::2, 4] = True
    return {"ids": torch.randint(0, 11, (n, 5)), "padding": padding}


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any]]] = {
    "mlp": (mlp, lambda n: torch.randn(n, 4)),
    "conv and batch norm": (conv, lambda n: torch.randn(n, 1, 5, 5)),
    "encoder": (Encoder, tokens),
    "lstm": (lambda: Recurrent(nn.LSTM), lambda n: torch.randn(n, 6, 4)),
    "gru": (lambda: Recurrent(nn.GRU), lambda n: torch.randn(n, 6, 4)),
    "tied and frozen": (lambda: tied(), lambda n: torch.randn(n, 4)),
}


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Dropout(0.1), nn.Linear(4, 4), nn.Linear(4, 3))
    model[3].weight = model[0].weight
    model[4].bias.requires_grad_(False)
    return model


def double(inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return {name: double(tensor) for name, tensor in inputs.items()}
    return inputs.double() if inputs.is_floating_point() else inputs


def case_of(model: nn.Module, *batches: Batch, family: Family = CATEGORICAL, seed: int = 0, of: int = 1) -> Case:
    """Every `of`-th example of some data."""

    def forward(inputs: Any) -> Tensor:
        return model(**inputs) if isinstance(inputs, dict) else model(inputs)

    first = batches[0]
    plan = find_sites(model, lambda n: forward(take(first.inputs, torch.arange(n) % first.n)), first.n)
    n = sum(batch.n for batch in batches)
    return Case(model, forward, plan, Selection(batches, range(0, n * of, of), n * of), seed, family)


def probe_of(case: Case) -> Freedom:
    probe = Freedom()
    with preserved(case.model):
        probe.take(Freedom.compute(case))
    return probe


def rows_of(case: Case) -> Tensor:
    """Square roots of the Fisher matrices of all rows: sqrt(p_y) grad log p(y) [R, C, P]."""
    parameters = [p for p in case.model.parameters() if p.requires_grad]
    found = []
    with preserved(case.model), flags(case.model, ()):
        for batch in case.selection.batches:
            for row in batch.rows(case.forward(batch.inputs)):
                if isinstance(case.family, Gaussian):
                    targets, weights = row / case.family.variance**0.5, torch.ones_like(row)
                else:
                    targets, weights = row.log_softmax(-1), row.softmax(-1).detach().sqrt()
                for y, weight in zip(targets, weights, strict=True):
                    grads = torch.autograd.grad(y, parameters, retain_graph=True, allow_unused=True)
                    flat = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters, strict=True)]
                    found.append(weight * torch.cat([g.flatten() for g in flat]))
    width = len(row)
    return torch.stack(found).reshape(-1, width, len(found[0]))


def dimension_of(rows: Tensor, weights: Tensor | None = None) -> float:
    """Of the whole matrix F [P, P], rows weighted by `weights` [R] (all alike by default)."""
    weights = torch.ones(len(rows), dtype=rows.dtype) if weights is None else weights
    fisher = torch.einsum("rcp,rcq,r->pq", rows, rows, weights / weights.sum())
    values = torch.linalg.eigvalsh(fisher).clamp(min=0)
    return float((values / (values + DELTA)).sum())


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients do not fit into memory: K is known by its products."""
    monkeypatch.setattr(gram, "HELD", 0)


@pytest.mark.parametrize("held", [gram.HELD, 0])
@pytest.mark.parametrize("name", MODELS)
def test_trace_and_dimension_are_those_of_the_fisher_matrix(
    name: str, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gram, "HELD", held)
    make, draw = MODELS[name]
    case = case_of(make().double(), Batch(double(draw(7)), 7, 0), Batch(double(draw(5)), 5, 7))
    probe, rows = probe_of(case), rows_of(case)
    columns = probe.kept.columns
    assert columns["fisher_trace"].values == pytest.approx(rows.square().sum((1, 2)).numpy(), rel=EXACT)
    found = metric(columns["effective_dimension"], unit="", shared_masks=False)
    assert found.estimate == pytest.approx(dimension_of(rows), rel=1e-6)
    assert found.mask_low is None
    assert columns["fisher_trace"].values.mean() == pytest.approx(
        float(torch.linalg.eigvalsh(torch.einsum("rcp,rcq->pq", rows, rows) / len(rows)).sum()), rel=EXACT
    )


@pytest.mark.parametrize("name", ["lstm", "encoder"])
def test_single_precision_gives_the_same(name: str) -> None:
    make, draw = MODELS[name]
    model, inputs = make(), draw(12)
    single = probe_of(case_of(model, Batch(inputs, 12, 0))).kept.columns
    exact = probe_of(case_of(model.double(), Batch(double(inputs), 12, 0))).kept.columns
    for metric_name in ("fisher_trace", "effective_dimension"):
        assert single[metric_name].values == pytest.approx(exact[metric_name].values, rel=1e-3)
    assert torch.backends.mkldnn.enabled


def test_a_gaussian_has_the_squared_jacobian_over_its_variance() -> None:
    case = case_of(mlp().double(), Batch(torch.randn(9, 4).double(), 9, 0), family=Gaussian(0.3))
    columns, rows = probe_of(case).kept.columns, rows_of(case)
    assert columns["fisher_trace"].values == pytest.approx(rows.square().sum((1, 2)).numpy(), rel=EXACT)
    assert columns["effective_dimension"].values.mean() == pytest.approx(dimension_of(rows), rel=1e-6)


def test_tokens_weigh_alike_and_padding_does_not_count() -> None:
    inputs = tokens(10)
    places = ~inputs["padding"]
    places[3] = False
    case = case_of(Tagger().double(), Batch(inputs, 10, 0, places=places))
    probe, rows = probe_of(case), rows_of(case)
    assert len(rows) == places.sum()
    trace = probe.kept.columns["fisher_trace"]
    exact = rows.square().sum((1, 2))
    owners = places.nonzero()[:, 0]
    by_example = torch.zeros(10, dtype=torch.float64).index_add_(0, owners, exact) / places.sum(1)
    error = np.sqrt(probe.sampling.columns["fisher_trace"].values)
    kept = places.any(1).numpy()
    assert np.isnan(trace.values[~kept]).all()
    z = (trace.values - by_example.numpy())[kept] / error[kept]
    assert np.abs(z.mean()) * kept.sum() ** 0.5 < Z
    assert np.abs(z).max() < 2 * Z
    found = metric(probe.kept.columns["effective_dimension"], unit="", shared_masks=False)
    assert found.estimate == pytest.approx(dimension_of(rows), rel=1e-6)


def test_many_classes_are_sampled() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.1), nn.Linear(5, 80)).double()
    case = case_of(model, Batch(torch.randn(40, 3).double(), 40, 0))
    probe, rows = probe_of(case), rows_of(case)
    error = probe.sampling.columns["fisher_trace"].values.sum() ** 0.5 / 40
    assert abs(probe.kept.columns["fisher_trace"].values.mean() - float(rows.square().sum() / 40)) < Z * error
    assert "sampled_freedom" in probe.outcome().findings


def test_the_interval_is_the_jackknife() -> None:
    inputs = tokens(6)
    places = ~inputs["padding"]
    case = case_of(Tagger().double(), Batch(inputs, 6, 0, places=places), Batch(inputs, 6, 6, places=places))
    rows = rows_of(case)
    owners = torch.cat([places.nonzero()[:, 0], 6 + places.nonzero()[:, 0]])
    values = probe_of(case).kept.columns["effective_dimension"].values
    fisher = torch.einsum("rcp,rcq->pq", rows, rows) / len(rows)

    def dimension(matrix: Tensor) -> float:
        found = torch.linalg.eigvalsh(matrix).clamp(min=0)
        return float((found / (found + DELTA)).sum())

    falls, shares = [], []
    for example in range(12):
        own = rows[owners == example]
        falls.append(dimension(fisher) - dimension(fisher - torch.einsum("rcp,rcq->pq", own, own) / len(rows)))
        shares.append(len(own) / len(rows))
    expected = dimension(fisher) + 12 * (np.array(falls) - np.array(shares) * sum(falls))
    assert values == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("n", [20, 60])
def test_the_interval_of_the_dimension_covers(n: int) -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 3)).double()
    with torch.no_grad():
        model[3].weight.mul_(3)
    rows = rows_of(case_of(model, Batch(torch.randn(1000, 4).double(), 1000, 0)))  # [N, C, P]
    estimates, halves = [], []
    for _ in range(300):
        some = rows[torch.randperm(1000)[:n]].flatten(0, 1)
        values = _jackknifed(exact(some @ some.T / n, DELTA), torch.arange(n), 3, n)["values"]
        found = metric(Column(values), unit="", shared_masks=False)
        estimates.append(found.estimate)
        halves.append((found.high - found.low) / 2)
    held = np.abs(np.array(estimates) - np.mean(estimates)) <= np.array(halves)
    error = (0.95 * 0.05 / 300) ** 0.5
    assert 0.93 - 3 * error <= held.mean() <= 0.97 + 3 * error  # of what data of this size have on average


def test_diagonals_alone_give_a_little_less_than_the_whole(products: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1)).double()
    case = case_of(model, Batch(torch.randn(30, 4).double(), 30, 0), family=Gaussian(1.0))
    whole = probe_of(case).kept.columns["effective_dimension"]
    monkeypatch.setattr(output_fisher, "SMALL", 0)  # one output an example: nothing is left out but noise
    random = probe_of(case).kept.columns["effective_dimension"]
    assert random.values.std() == pytest.approx(whole.values.std(), rel=0.5)


@pytest.mark.usefixtures("products")
def test_random_vectors_miss_by_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_fisher, "SMALL", 0)
    case = case_of(mlp().double(), Batch(torch.randn(60, 4).double(), 60, 0))
    exact, z = dimension_of(rows_of(case)), []
    for seed in range(30):
        column = probe_of(case_of(case.model, *case.selection.batches, seed=seed)).kept.columns["effective_dimension"]
        assert column.leave_out is not None
        means = column.leave_out / column.leave_out_n
        error = ((VECTORS - 1) / VECTORS * ((means - means.mean()) ** 2).sum()) ** 0.5
        z.append((column.values.mean() - exact) / error)
    assert abs(np.mean(z)) * 30**0.5 < Z
    assert 0.6 < np.std(z) < 1.8  # Student's t with 5 degrees of freedom has 1.29


def test_lanczos_needs_few_steps_and_stops_where_everything_is_known() -> None:
    values = torch.cat([torch.logspace(1, -6, 40), torch.zeros(400)]).double()
    turned = torch.linalg.qr(torch.randn(440, 440).double())[0]
    matrix = turned @ torch.diag(values) @ turned.T
    calls: list[int] = []

    def product(vectors: Tensor) -> Tensor:
        calls.append(vectors.shape[1])
        return matrix @ vectors

    found = leverages(product, 440, DELTA, seed=3)
    counted = turned @ torch.diag(values / (values + DELTA)) @ turned.T
    signs = torch.randint(0, 2, (440, VECTORS), generator=torch.Generator().manual_seed(3)).double() * 2 - 1
    assert torch.allclose(found.counted.T, signs * (counted @ signs), atol=1e-2)
    assert len(calls) <= 24
    few = leverages(lambda v: torch.zeros_like(v), 300, DELTA, seed=0)
    assert (few.counted == 0).all()


def test_what_takes_long_says_how_far_it_is(products: None) -> None:
    told: list[tuple[str, int, int]] = []
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Dropout(0.2), nn.Linear(40, 30))
    case = replace(case_of(model, Batch(torch.randn(12, 6), 12, 0)), stage=lambda *seen: told.append(seen))
    probe_of(case)
    traces = [seen for seen in told if seen[0] == "Fisher trace"]
    assert traces == [("Fisher trace", done, 12) for done in range(1, 13)]
    steps = [done for what, done, _ in told if what == "effective dimension"]
    assert steps == sorted(steps)
    assert len(steps) > 4
    assert told[-1] == ("effective dimension", 64, 64)  # at the end all is done, though fewer steps were needed


def test_vectors_in_turn_are_vectors_together() -> None:
    torch.manual_seed(5)
    root = torch.randn(300, 20).double()
    apart, together = (leverages(lambda v: root @ (root.T @ v), 300, 0.1, seed=1, at_a_time=k) for k in (1, VECTORS))
    assert torch.allclose(apart.counted, together.counted, rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("products")
def test_the_same_examples_and_vectors_pair_two_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_fisher, "SMALL", 0)
    batch = Batch(torch.randn(60, 4).double(), 60, 0)
    model = mlp().double()
    columns = []
    for scale in (1.0, 1.01):
        with torch.no_grad():
            model[3].weight.mul_(scale)
        columns.append(probe_of(case_of(model, batch)).kept.columns["effective_dimension"])
    alone = metric(columns[0], unit="", shared_masks=False)
    pair = compare("effective_dimension", ("a", columns[0]), ("b", columns[1]), unit="", shared_masks=False)
    assert alone.mask_low is not None
    assert alone.high - alone.low > 5 * (pair.high - pair.low)
    assert "crossed" in pair.test


def test_examples_that_were_not_selected_have_no_value() -> None:
    case = case_of(mlp(), Batch(torch.randn(9, 4), 9, 0), of=3)
    column = probe_of(case).kept.columns["fisher_trace"]
    assert len(column.values) == 27
    assert np.isfinite(column.values).tolist() == [i % 3 == 0 for i in range(27)]


def test_the_model_is_left_as_it_was() -> None:
    model = conv()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    probe_of(case_of(model, Batch(torch.randn(9, 1, 5, 5), 9, 0)))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.dropout(x, 0.5))


class OneWay(nn.Module):
    """Has a derivative, but only backwards."""

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return 2 * ctx.saved_tensors[0] * gradient

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.Square.apply(self.body(x))


def frozen() -> nn.Module:
    return mlp().requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "code", "says"),
    [
        (Noisy, "freedom_unavailable", "draws randomness"),
        (frozen, "freedom_unavailable", "none of them is trainable"),
        (OneWay, "dimension_unavailable", "no effective dimension"),
    ],
)
@pytest.mark.usefixtures("products")
def test_what_cannot_be_had_is_said(make: Callable[[], nn.Module], code: str, says: str) -> None:
    probe = probe_of(case_of(make(), Batch(torch.randn(9, 4), 9, 0)))
    assert says in probe.outcome().findings[code]
    assert "effective_dimension" not in probe.kept.columns
    assert ("fisher_trace" in probe.kept.columns) == (make is OneWay)


def test_few_examples_have_a_trace_and_no_spectrum() -> None:
    probe = probe_of(case_of(mlp(), Batch(torch.randn(3, 4), 3, 0)))
    assert set(probe.kept.columns) == {"fisher_trace"}
    assert "8 examples" in probe.outcome().findings["dimension_unavailable"]


def test_fewer_examples_where_outputs_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rdrop_probes.freedom.NUMBERS", 3 * 20)
    columns = probe_of(case_of(mlp(), Batch(torch.randn(40, 4), 40, 0))).kept.columns
    assert np.isfinite(columns["fisher_trace"].values).all()
    assert np.flatnonzero(columns["effective_dimension"].finite).tolist() == list(range(0, 40, 2))


def test_it_goes_through_the_engine_and_is_decided_once() -> None:
    class Shared(Work):
        """What was decided elsewhere is taken over."""

        decided: ClassVar[dict[str, Any]] = {}

        def decide(self, name: str, decision: Callable[[], Any]) -> Any:
            if name not in self.decided:
                self.decided[name] = decode(encode(decision()))
            return self.decided[name]

    case = case_of(mlp(), Batch(torch.randn(12, 4), 12, 0))
    found = []
    for _ in range(2):
        measured = measure(
            case.model,
            [part for batch in case.selection.batches for part in (batch.part(slice(0, 5)), batch.part(slice(5, 12)))],
            forward=case.forward,
            probes=[PairwiseKL, Freedom],
            settings=Settings(sub_models=4),
            selection=case.selection,
            work=Shared(),
        )
        found.append([metric(measured.columns[name], unit="", shared_masks=False) for name in Freedom.units])
    assert found[0] == found[1]
    assert found[0][0].n == 12
    assert "freedom_examples" not in measured.findings  # none was left out


TRACE, DIMENSION = "the Fisher trace is estimated on", "the effective dimension is estimated on"


@pytest.mark.parametrize(
    ("made", "text"),
    [
        ({"n": 9, "indices": range(9), "dimension": {"indices": range(9)}}, ""),
        ({"n": 9, "indices": range(9)}, ""),
        ({"n": 9, "indices": range(9), "dimension": {"indices": range(8)}}, f"{DIMENSION} 8 of 9 examples"),
        ({"n": 9, "indices": range(8)}, f"{TRACE} 8 of 9 examples"),
        (
            {"n": 9, "indices": range(8), "dimension": {"indices": range(4)}},
            f"{TRACE} 8 of 9 examples; {DIMENSION} 4 of 9 examples",
        ),
    ],
)
def test_examples_are_counted_where_some_are_left_out(made, text) -> None:
    assert _in_words(made) == text


def test_it_runs_on_request_only_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Freedom not in choose(None, labels=True)
    assert Freedom in choose(["freedom"], labels=False, family="gaussian")
    monkeypatch.setattr("rdrop_probes.registry.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=re.escape("needs curvlinops: pip install 'rdrop-analysis[freedom]'")):
        choose(["freedom"], labels=False)
