"""Several rows an example (tokens, labels) and Gaussian outputs: against loops over passes, tokens and pairs."""

import itertools
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from rdrop_probes import block_sums, distributions, summing
from rdrop_probes.batch import Batch
from rdrop_probes.calibration import Calibration
from rdrop_probes.columns import Column
from rdrop_probes.discovery import find_sites
from rdrop_probes.families import CATEGORICAL, Gaussian
from rdrop_probes.gap import Gap
from rdrop_probes.jacobian import Jacobian
from rdrop_probes.measure import measure
from rdrop_probes.pairwise_kl import PairwiseKL
from rdrop_probes.prediction import Prediction
from rdrop_probes.regression import GaussianGap, GaussianPairwise
from rdrop_probes.settings import Settings
from rdrop_probes.state import preserved
from rdrop_probes.statistics import compare, metric
from rdrop_probes.submodels import SubModels

N, L, D, C, K = 7, 5, 4, 3, 6
ALL = [PairwiseKL, Gap, Calibration]


class Tagger(nn.Module):
    """Scores [N, L, C] for inputs [N, L, D]: neighbours matter, so that tokens of an example depend on each other."""

    def __init__(self, outputs: int = C) -> None:
        super().__init__()
        self.body, self.drop, self.head = nn.Linear(D, 16), nn.Dropout(0.3), nn.Linear(16, outputs)

    def forward(self, x):
        h = self.drop(torch.tanh(self.body(x)))
        return self.head(h + h.roll(1, 1) / 2)


@pytest.fixture
def model():
    return Tagger().eval()


@pytest.fixture
def batch():
    places = torch.rand(N, L) < 0.6
    places[:, 0] = True
    places[3] = False  # an example of which nothing counts
    return Batch(torch.randn(N, L, D), N, 0, torch.randint(0, C, (N, L)), places)


def passes(model, batch):
    """Outputs [K, N, L, C] of the very sub-models that are measured, one by one."""
    with preserved(model):
        plan = find_sites(model, lambda n: model(batch.inputs[torch.arange(n) % batch.n]), batch.n)
        sub_models = SubModels(model, model, plan, count=K, strategy="loop")
        return torch.cat([chunk.logits for chunk in sub_models.logits(batch.inputs, batch.n, batch.start)]).double()


def measured(model, batches, probes, **settings):
    family = settings.pop("family", CATEGORICAL)
    settings = Settings(sub_models=K, **settings)
    return measure(model, batches, forward=model, probes=probes, settings=settings, family=family)


def naive_epkl(z):
    """[N, L] by a loop over ordered pairs of passes [K, N, L, C]."""
    log_p = z.log_softmax(-1)
    pairs = [(log_p[i].exp() * (log_p[i] - log_p[j])).sum(-1) for i, j in itertools.permutations(range(len(z)), 2)]
    return torch.stack(pairs).mean(0)


def mean_of_counted(values, places):
    return [float(v[p].mean()) if p.any() else float("nan") for v, p in zip(values, places, strict=True)]


def test_every_metric_is_the_mean_over_the_tokens_that_count(model, batch):
    found = measured(model, [batch], ALL)
    z, z0 = passes(model, batch), model(batch.inputs).double().detach()
    log_p, log_p0, labels = z.log_softmax(-1), z0.log_softmax(-1), batch.labels
    onehot = torch.nn.functional.one_hot(labels, C)
    expected = {
        "epkl": naive_epkl(z),
        "kl_sub_to_eval": (log_p.exp() * (log_p - log_p0)).sum(-1).mean(0),
        "flip_rate": (log_p.argmax(-1) != log_p0.argmax(-1)).double().mean(0),
        "nll_eval": -log_p0.gather(-1, labels[..., None]).squeeze(-1),
        "nll_sub": -log_p.gather(-1, labels.expand(K, N, L)[..., None]).squeeze(-1).mean(0),
        "accuracy_mean": (log_p.exp().mean(0).argmax(-1) == labels).double(),
        "brier_eval": (log_p0.exp() - onehot).square().sum(-1),
    }
    for name, values in expected.items():
        column = found.columns[name]
        assert column.values == pytest.approx(mean_of_counted(values, batch.places), nan_ok=True), name
        assert column.weights == pytest.approx(batch.places.sum(1).numpy())
        over_all = metric(column, unit="", shared_masks=False)
        assert over_all.estimate == pytest.approx(float(values[batch.places].mean())), name
        assert over_all.n == N - 1


def test_the_expected_calibration_error_is_that_of_all_tokens(model, batch):
    column = measured(model, [batch], [Calibration]).columns["ece_eval"]
    p = model(batch.inputs).detach().double().softmax(-1)[batch.places]
    confidence, hit = p.max(-1).values, (p.argmax(-1) == batch.labels[batch.places]).double()
    bins = (confidence * 15).ceil().clamp(1, 15)
    gaps = [abs(float((confidence - hit)[bins == b].sum())) for b in bins.unique()]
    assert metric(column, unit="", shared_masks=False).estimate == pytest.approx(sum(gaps) / len(p))


def test_the_jackknife_leaves_out_sub_models_of_the_whole_example(model, batch):
    column = measured(model, [batch], [PairwiseKL]).columns["epkl"]
    z = passes(model, batch)
    without = [mean_of_counted(naive_epkl(torch.cat([z[:k], z[k + 1 :]])), batch.places) for k in range(K)]
    without = np.array(without)
    expected = (K - 1) / K * ((without - without.mean(0)) ** 2).sum(0)
    assert column.mask_variance == pytest.approx(expected, nan_ok=True, rel=1e-6)
    counts = batch.places.sum(1).numpy()
    assert column.leave_out == pytest.approx(np.nansum(counts * without, 1))
    assert column.leave_out_n == counts.sum()


def test_groups_of_rows_change_no_number(model, batch, monkeypatch):
    for probes in (ALL, [PairwiseKL]):
        whole = measured(model, [batch], probes)
        with monkeypatch.context() as patch:
            patch.setattr(summing, "rows_that_fit", lambda *_: 4)
            patch.setattr(summing, "IN_CACHE", 2 * C)
            parts = measured(model, [batch], probes)
        assert whole.columns.keys() == parts.columns.keys()
        for name, column in whole.columns.items():
            other = parts.columns[name]
            assert other.values == pytest.approx(column.values, nan_ok=True, rel=1e-9, abs=1e-12), name
            assert other.weights == pytest.approx(column.weights)
            if column.mask_variance is not None:
                assert other.mask_variance == pytest.approx(column.mask_variance, nan_ok=True, rel=1e-6, abs=1e-15)


def test_many_classes_are_summed_in_fewer_blocks_and_single_precision(model, batch, monkeypatch):
    whole = measured(model, [batch], ALL).columns
    for module in (block_sums, distributions):
        monkeypatch.setattr(module, "MANY_CLASSES", 2)
    monkeypatch.setattr(block_sums, "FEW_BLOCKS", 3)
    lean = measured(model, [batch], ALL).columns
    for name in ("epkl", "nll_mean", "disagreement", "kl_sub_to_eval", "brier_mean"):
        assert lean[name].values == pytest.approx(whole[name].values, nan_ok=True, rel=1e-5, abs=1e-7), name
    assert len(lean["epkl"].leave_out) == 3
    unequal = [lean[name].values for name in ("mutual_information", "kl_mean_to_eval")]
    assert all(np.isfinite(values).sum() == N - 1 for values in unequal)


def test_an_interval_treats_examples_and_not_tokens_as_the_sample():
    """Tokens of an example that are all alike carry as much as one: the interval must cover 95% all the same."""
    rng = np.random.default_rng(0)
    covered = 0
    rounds = 2000
    for _ in range(rounds):
        counts = rng.integers(1, 40, 60).astype(float)
        means = rng.gamma(2.0, 0.5, 60)  # true mean 1 whatever the count
        found = metric(Column(means, weights=counts), unit="nats", shared_masks=False)
        covered += found.low <= 1.0 <= found.high
    se = (0.95 * 0.05 / rounds) ** 0.5
    assert abs(covered / rounds - 0.945) < 4 * se  # the delta method on 60 examples is a little short of 95%


def test_paired_comparisons_are_of_the_mean_over_tokens():
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 9, 30).astype(float)
    a, b = rng.gamma(2.0, 1.0, (2, 30))
    b[4] = np.nan
    kept = ~np.isnan(b)
    found = compare("epkl", ("a", Column(a, weights=counts)), ("b", Column(b, weights=counts)), unit="nats",
                    shared_masks=False)  # fmt: skip
    mean_a, mean_b = (np.average(x[kept], weights=counts[kept]) for x in (a, b))
    assert found.difference == pytest.approx(mean_b - mean_a)
    assert found.ratio == pytest.approx(mean_b / mean_a)
    assert found.n == 29
    resampled = []
    for _ in range(4000):
        rows = rng.choice(np.flatnonzero(kept), kept.sum())
        resampled.append(np.average(b[rows], weights=counts[rows]) - np.average(a[rows], weights=counts[rows]))
    half = (found.high - found.low) / 2 / stats.t.ppf(0.975, 28)
    assert half == pytest.approx(np.std(resampled), rel=0.1)  # the bootstrap's standard error, itself good to 1%


def full_jacobian(model, x):
    """[L, C, L * D] of one example."""
    return torch.autograd.functional.jacobian(lambda v: model(v[None])[0], x).reshape(L, -1, L * D).double()


def test_jacobians_of_tokens_are_those_of_the_rows_that_count(model, batch):
    """Sampled classes and projections: means over many passes against the full Jacobian, by a z-score."""
    one = Batch(batch.inputs[:1], 1, 0, None, torch.tensor([[True, True, False, True, False]]))
    many = [replace(one, start=i) for i in range(200)]
    found = measured(model, many, [Jacobian]).columns
    jacobian = full_jacobian(model, batch.inputs[0])[one.places[0]]
    p = model(batch.inputs[:1]).detach().double().softmax(-1)[0][one.places[0]]
    fisher = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    expected = {
        "jacobian_fisher": torch.einsum("tcd,tce,ted->t", jacobian, fisher, jacobian).mean(),
        "jacobian_logits": jacobian.square().sum((1, 2)).mean(),
    }
    for name, value in expected.items():
        values = found[name].values ** (2 if name == "jacobian_logits" else 1)
        z = (values.mean() - float(value)) / (values.std(ddof=1) / len(values) ** 0.5)
        assert abs(z) < 4, name
    spectral = torch.linalg.matrix_norm(jacobian.reshape(-1, L * D), 2)
    assert found["jacobian_spectral"].values == pytest.approx(float(spectral), rel=0.02)


def test_predicted_epkl_of_tokens_is_the_mean_over_the_rows_that_count(model, batch):
    """R = q / (2 (1 - q)) sum_t E_y |d log p_t(y) / d mask|^2 / T by full Jacobians in the mask, by a z-score."""
    places = torch.tensor([[True, True, False, True, False]])
    x = batch.inputs[:1]
    found = measured(model, [Batch(x, 1, i, None, places) for i in range(200)], [Prediction]).columns
    h = torch.tanh(model.body(x))

    def log_p(mask):
        dropped = h * mask
        return model.head(dropped + dropped.roll(1, 1) / 2).log_softmax(-1)[0]

    jacobian = torch.autograd.functional.jacobian(log_p, torch.ones_like(h)).reshape(L, C, -1)[places[0]]
    p = model(x).detach().softmax(-1)[0][places[0]]
    expected = 0.3 / 0.7 * float((p * jacobian.square().sum(-1)).sum(-1).mean())
    values = found["predicted_epkl"].values
    z = (values.mean() - expected) / (values.std(ddof=1) / len(values) ** 0.5)
    assert abs(z) < 4


def test_an_example_of_which_nothing_counts_has_no_value_in_any_probe(model, batch):
    found = measured(model, [batch], [*ALL, Jacobian, Prediction])
    for name, column in found.columns.items():
        assert len(column.values) == N, name
        if name != "jacobian_spectral":
            assert np.isnan(column.values[3]), name
    empty = replace(batch, places=torch.zeros(N, L, dtype=torch.bool))
    nothing = measured(model, [empty, replace(batch, start=N)], [*ALL, Jacobian, Prediction])
    assert np.isnan(nothing.columns["epkl"].values[:N]).all()


def test_gaussian_divergences_are_those_of_pairs_of_passes(batch):
    model, variance = Tagger(2).eval(), 0.7
    x, targets = batch.inputs, torch.randn(N, 2).double()
    targets[2, 1] = torch.nan

    def forward(inputs):
        return model(inputs)[:, 0]

    found = measure(
        model,
        [Batch(x, N, 0, targets)],
        forward=forward,
        probes=[GaussianPairwise, GaussianGap, Jacobian, Prediction],
        settings=Settings(sub_models=K),
        family=Gaussian(variance),
    ).columns
    f, f0 = passes(model, batch)[:, :, 0], model(x)[:, 0].double().detach()
    pairs = torch.stack([(f[i] - f[j]).square().sum(-1) for i, j in itertools.permutations(range(K), 2)]).mean(0)
    crossed = [((f[i] - f0) * (f[j] - f0)).sum(-1) for i, j in itertools.permutations(range(K), 2)]
    shift = torch.stack(crossed).mean(0)
    errors = (f - targets).square().nanmean(-1)
    expected = {
        "epkl": pairs / (2 * variance),
        "pairwise_mse": pairs / 2,
        "kl_sub_to_eval": (f - f0).square().sum(-1).mean(0) / (2 * variance),
        "kl_mean_to_eval": shift / (2 * variance),
        "expectation_linearity": shift,
        "mse_eval": (f0 - targets).square().nanmean(-1),
        "mse_sub": errors.mean(0),
        "mse_mean": (f.mean(0) - targets).square().nanmean(-1),
        "mse_gap": errors.mean(0) - (f0 - targets).square().nanmean(-1),
    }
    for name, values in expected.items():
        assert found[name].values == pytest.approx(values.numpy(), rel=1e-5, abs=1e-9), name
    jacobian = [torch.autograd.functional.jacobian(lambda v: forward(v[None])[0], row).reshape(2, -1) for row in x]
    norms = torch.stack([j.square().sum() for j in jacobian]).numpy()
    assert found["jacobian_fisher"].values == pytest.approx(norms / variance, rel=1e-4)
    assert found["jacobian_logits"].values == pytest.approx(norms**0.5, rel=1e-4)
    assert "jacobian_probs" not in found


def test_gaussian_prediction_is_exact_for_a_model_that_is_linear_in_its_mask():
    """Dropout before a linear layer: EPKL = q / (1 - q) sum h^2 w^2 / v, which is what the theory says exactly."""
    linear = nn.Linear(6, 1)
    model = nn.Sequential(nn.Dropout(0.2), linear).eval()
    x = torch.randn(4, 6)
    settings = Settings(sub_models=2000)
    found = measure(model, [Batch(x, 4, 0)], forward=model, probes=[GaussianPairwise, Prediction], settings=settings,
                    family=Gaussian(0.5)).columns  # fmt: skip
    expected = 0.25 * (x * linear.weight).square().sum(1).detach().numpy() / 0.5
    assert found["predicted_epkl"].values == pytest.approx(expected, rel=1e-5)
    epkl = found["epkl"]
    assert (np.abs(epkl.values - expected) / epkl.mask_variance**0.5).max() < 4


VOCABULARY = """
import resource, torch
from torch import nn
from rdrop_probes.gap import Gap
from rdrop_probes.jacobian import Jacobian
from rdrop_probes.batch import Batch
from rdrop_probes.measure import measure
from rdrop_probes.settings import Settings
from rdrop_probes.state import preserved
from rdrop_probes.pairwise_kl import PairwiseKL
from rdrop_probes.prediction import Prediction
from rdrop_probes.calibration import Calibration
from rdrop_probes import block_sums
torch.set_num_threads(1)
block_sums.total_memory = lambda device: 2**28 * block_sums.SHARE_OF_SUMS
model = nn.Sequential(nn.Embedding(50_000, 8), nn.Dropout(0.1), nn.Linear(8, 50_000)).eval()
ids = torch.randint(0, 50_000, (1, 60))
places = torch.ones(1, 60, dtype=torch.bool)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = measure(model, [Batch(ids, 1, 0, ids, places)], forward=model,
                probes=[PairwiseKL, Gap, Calibration], settings=Settings(sub_models=4, chunk=1))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, float(found.columns["epkl"].values[0]) > 0)
"""


def test_a_vocabulary_of_fifty_thousand_fits_into_bounded_memory():
    """In float64 and all at once, the sums of these 60 tokens would take 3 GB and more."""
    run = subprocess.run([sys.executable, "-c", VOCABULARY], capture_output=True, text=True, check=True)  # noqa: S603 - our own code
    kilobytes, positive = run.stdout.split()
    unit = 1024 if sys.platform != "darwin" else 1
    assert int(kilobytes) * unit < 2.5 * 2**28
    assert positive == "True"


def covered_share(counts_of, n, rounds=1500):
    """How often the interval holds the mean over all rows, whatever the lengths of the examples."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(rounds):
        found = metric(Column(rng.gamma(2.0, 0.5, n), weights=counts_of(rng, n)), unit="nats", shared_masks=False)
        hits += found.low <= 1.0 <= found.high
    return hits / rounds


@pytest.mark.parametrize(
    ("counts_of", "n", "least"),
    [
        (lambda rng, n: np.full(n, 7.0), 20, 0.92),
        (lambda rng, n: rng.integers(1, 40, n).astype(float), 20, 0.92),
        (lambda rng, n: np.ceil(5 * rng.lognormal(0, 1, n)), 20, 0.90),
        (lambda rng, n: np.where(rng.random(n) < 0.1, 200.0, 5.0), 60, 0.92),
    ],
    ids=["equal", "uniform", "lognormal", "few long"],
)
def test_an_interval_covers_also_where_few_examples_have_most_of_the_rows(counts_of, n, least):
    """Skewed means on few examples cost a little of the 95%."""
    se = (0.95 * 0.05 / 1500) ** 0.5
    assert least - 3 * se < covered_share(counts_of, n) < 0.98


def test_equal_weights_change_nothing():
    values = np.random.default_rng(0).gamma(2.0, 0.5, 25)
    plain, weighted = Column(values), Column(values, weights=np.full(25, 4.0))
    assert weighted.linearised().values == pytest.approx(values)
    first, second = (metric(c, unit="nats", shared_masks=False) for c in (plain, weighted))
    assert (second.low, second.high) == pytest.approx((first.low, first.high))


def test_the_linearised_column_is_the_jackknife_of_the_mean_over_rows():
    rng = np.random.default_rng(0)
    values, weights = rng.gamma(2.0, 0.5, 12), rng.integers(1, 30, 12).astype(float)
    without = np.array([np.average(np.delete(values, i), weights=np.delete(weights, i)) for i in range(12)])
    expected = 11 / 12 * ((without - without.mean()) ** 2).sum()
    found = Column(values, weights=weights).linearised()
    assert found.values.mean() == pytest.approx(np.average(values, weights=weights))
    assert found.values.var(ddof=1) / 12 == pytest.approx(expected)


def test_shares_stay_between_nothing_and_everything():
    counts = np.array([1.0, 30, 2, 7, 3])
    right = metric(Column(np.ones(5), weights=counts, proportion=True), unit="", shared_masks=False)
    assert (right.estimate, right.high) == (1.0, 1.0)
    assert right.low == pytest.approx(stats.binomtest(5, 5).proportion_ci(method="wilson").low)
    mixed = metric(Column(np.array([1, 0.95, 1, 0.2, 1]), weights=counts, proportion=True), unit="", shared_masks=False)
    assert 0 <= mixed.low < mixed.estimate < mixed.high <= 1


def test_one_impossible_token_does_not_discard_its_sentence(model):
    class Forbids(Tagger):
        def forward(self, x):
            z = super().forward(x)
            return torch.where((torch.arange(C) == 1) & (torch.arange(L) == 2)[:, None], -torch.inf, z)

    forbidding = Forbids().eval()
    labels = torch.zeros(N, L, dtype=torch.long)
    labels[0, 2] = 1  # impossible
    batch = Batch(torch.randn(N, L, D), N, 0, labels, torch.ones(N, L, dtype=torch.bool))
    found = measured(forbidding, [batch], [PairwiseKL, Gap]).columns
    column, plain = found["nll_eval"], -forbidding(batch.inputs).detach().double().log_softmax(-1)[0, [0, 1, 3, 4], 0]
    assert column.values[0] == pytest.approx(float(plain.mean()))
    assert column.weights.tolist() == [L - 1] + [L] * (N - 1)
    assert column.infinite.tolist() == [1] + [0] * (N - 1)
    assert found["epkl"].weights.tolist() == [L] * N  # a class ruled out by all is no divergence


def test_the_mean_probability_of_a_label_is_exact_however_small(model, batch):
    """Logits of 1e4: no probability of a label but underflows, and the largest of the sub-models decides."""
    huge = Tagger().eval()
    with torch.no_grad():
        huge.head.weight *= 1e4
    column = measured(huge, [batch], [Gap]).columns["nll_mean"]
    log_p = passes(huge, batch).log_softmax(-1).gather(-1, batch.labels.expand(K, N, L)[..., None]).squeeze(-1)
    exact = np.log(K) - torch.logsumexp(log_p, 0)
    assert float(exact.max()) > 750
    assert column.values == pytest.approx(mean_of_counted(exact, batch.places), nan_ok=True, rel=1e-5)
