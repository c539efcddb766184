"""The fast sums (single precision, differences of sums) against loops in double precision; infinities; memory."""

from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rdrop_probes import block_sums, summing
from rdrop_probes.batch import Batch
from rdrop_probes.block_sums import BlockSums, rows_that_fit
from rdrop_probes.calibration import Calibration
from rdrop_probes.distributions import Distributions, EvalBatch
from rdrop_probes.families import CATEGORICAL
from rdrop_probes.gap import Gap
from rdrop_probes.memory import Space, is_out_of_memory, total_memory
from rdrop_probes.pairwise_kl import PairwiseKL
from rdrop_probes.submodels import Chunk
from rdrop_probes.summing import NotFiniteError, Summing
from rdrop_probes.terms import log_likelihood, log_ratio, probability, vote

MANY = 3000
KINDS = [PairwiseKL, Gap, Calibration]


def columns(z0, z, labels=None, *, kinds=KINDS, step=3, places=None, **options):
    """Columns of the probes for the eval model's logits [P, C] and sub-models' [K, N, ..., C]; how often these ran."""
    runs = []

    class SubModels:
        count = len(z)

        def logits(self, *_):
            runs.append(1)
            return (Chunk(k, z[k : k + step]) for k in range(0, len(z), step))

    batch = Batch(None, len(z0) if places is None else len(places), 0, labels, places)
    probes = [kind() for kind in kinds if labels is not None or not kind.needs_labels]
    sums = Summing(batch, SimpleNamespace(stochastic=True), SubModels(), probes, CATEGORICAL, **options)
    for _ in sums.run(z0):
        pass
    found = {name: column for probe in probes for name, column in probe.outcome().columns.columns.items()}
    return found, len(runs)


def small_epkl(z):
    """Mean over ordered pairs of (p_i - p_j)(log p_i - log p_j) / 2, which keeps its digits for close pairs."""
    log_p = z.double().log_softmax(-1)
    halves = [
        ((log_p[i].exp() - log_p[j].exp()) * (log_p[i] - log_p[j])).sum(-1) / 2
        for i, j in permutations(range(len(z)), 2)
    ]
    return torch.stack(halves).mean(0)


def naive(z0, z, labels):
    """Per-row values by loops over sub-models in double precision."""
    log_p0, log_p, d = z0.double().log_softmax(-1), z.double().log_softmax(-1), z.double() - z0.double()
    p = log_p.exp()
    pairs = list(permutations(range(len(z)), 2))
    here = torch.arange(len(labels))
    return {
        "epkl": small_epkl(z),
        "kl_sub_to_eval": (p * (log_p - log_p0)).sum(-1).mean(0),
        "kl_eval_to_sub": (log_p0.exp() * (log_p0 - log_p)).sum(-1).mean(0),
        "expectation_linearity": torch.stack([(d[i] * d[j]).sum(-1) for i, j in pairs]).mean(0),
        "disagreement": torch.stack([(p[i].argmax(-1) != p[j].argmax(-1)).double() for i, j in pairs]).mean(0),
        "nll_sub": -log_p[:, here, labels].mean(0),
        "nll_mean": -p.mean(0).log()[here, labels],
        "brier_sub": (p.square().sum(-1) - 2 * p[:, here, labels] + 1).mean(0),
        "brier_mean": p.mean(0).square().sum(-1) - 2 * p.mean(0)[here, labels] + 1,
    }


@pytest.mark.parametrize("peak", [1.0, 8.0])  # nearly uniform; a few classes hold everything
@pytest.mark.parametrize("noise", [0.003, 0.1, 1.0])
def test_many_classes_in_single_precision_are_right_to_five_digits(noise, peak):
    z0 = peak * torch.randn(6, MANY) - 100
    z = z0 + noise * torch.randn(12, 6, MANY) + noise * torch.randn(12, 1, 1)
    labels = torch.randint(0, MANY, (6,))
    found, _ = columns(z0, z, labels)
    expected = naive(z0, z, labels)
    exact = 3e-5  # the relative error of centred single precision
    for name, values in expected.items():
        # a divergence from the eval model hangs on the difference of two normalisers, each right to 1e-7
        slack = 4e-7 if name.startswith("kl_") else 1e-9
        assert found[name].values == pytest.approx(values.numpy(), rel=exact, abs=slack), name


def test_divergence_from_the_eval_model_survives_logits_that_move_together():
    z0 = torch.randn(64, MANY)
    z = z0 + 1e-3 * torch.randn(6, 64, MANY) + 20 * torch.randn(6, 64, 1)
    found, _ = columns(z0, z, torch.randint(0, MANY, (64,)))
    exact = naive(z0, z, torch.zeros(64, dtype=torch.int64))
    for name in ("kl_sub_to_eval", "kl_eval_to_sub"):
        # what rounding the logits themselves leaves: 1e-6 of 20, twice, averaged over many classes
        assert found[name].values == pytest.approx(exact[name].numpy(), rel=0.02, abs=1e-7), name


def left_out(z0, z, labels, kept):
    return columns(z0.double(), z.double()[kept], labels, kinds=[PairwiseKL, Gap])[0]


@pytest.mark.parametrize("classes", [5, MANY])
def test_the_jackknife_from_differences_is_that_of_sums_without_a_block(classes):
    z0 = torch.randn(4, classes)
    z = z0 + 0.3 * torch.randn(9, 4, classes)
    labels = torch.randint(0, classes, (4,))
    found, _ = columns(z0, z, labels, kinds=[PairwiseKL, Gap])
    single = [range(k, k + 1) for k in range(9)]
    blocks = single if classes == 5 else [range(2), *single[2:]]  # eight blocks of many classes
    for name in ("epkl", "kl_sub_to_eval", "kl_eval_to_sub", "disagreement", "flip_rate", "expectation_linearity"):
        without = [
            left_out(z0, z, labels, [k for k in range(9) if k not in block])[name].values.sum() for block in blocks
        ]
        # single precision of many classes; the linearity is a small difference of large sums
        assert found[name].leave_out == pytest.approx(np.array(without), rel=2e-4 if classes == MANY else 1e-9), name


@pytest.mark.parametrize("count", [7, 32, 45, 70])
def test_votes_alike_are_those_of_a_loop_over_pairs(count):
    votes = torch.randint(0, 4, (count, 5))
    z = torch.nn.functional.one_hot(votes, 4).double()
    sums = BlockSums([vote], count, 5, 4)
    sums.add(0, Distributions(EvalBatch(0, None, z[0]), z))

    def alike(kept):
        return sum((votes[i] == votes[j]).long() for i in kept for j in kept if i != j)

    for blocks in (4, sums.blocks):
        inside = [k for k in range(count) if sums.block_of[k] < blocks]
        assert sums.total(blocks).alike(vote).tolist() == alike(inside).tolist()
        for block, values in enumerate(sums.leave_one_out(blocks).alike(vote)):
            assert values.tolist() == (alike([k for k in inside if sums.block_of[k] != block]) + 0 * votes[0]).tolist()


def test_products_over_prefixes_are_those_of_the_sums():
    z0 = torch.randn(3, 6, dtype=torch.float64)
    z = z0 + torch.randn(40, 3, 6, dtype=torch.float64)
    batch = EvalBatch(0, None, z0)
    fast, exact = (BlockSums([probability, log_ratio], 40, 3, 6, exact=e) for e in (False, True))
    for sums in (fast, exact):
        sums.add(0, Distributions(batch, z, exact=sums.exact))
    for blocks in (2, 8, 32):
        for one, two in zip(
            (fast.total(blocks), fast.leave_one_out(blocks)),
            (exact.total(blocks), exact.leave_one_out(blocks)),
            strict=True,
        ):
            product = one.product(probability, log_ratio), two.product(probability, log_ratio)
            torch.testing.assert_close(*product, rtol=1e-10, atol=1e-12)  # float64 rounding
            weighted = one.weighted(batch.p, log_ratio), two.weighted(batch.p, log_ratio)
            torch.testing.assert_close(*weighted, rtol=1e-10, atol=1e-12)


def test_likelihoods_without_a_block_are_those_of_the_others():
    z0 = torch.randn(4, 5, dtype=torch.float64)
    z = z0 + torch.randn(40, 4, 5, dtype=torch.float64)
    z[:39, 1, 2] = -torch.inf  # nothing is left without the last
    labels = torch.tensor([0, 2, 4, -100])
    batch, sums = EvalBatch(0, None, z0, labels), BlockSums([log_likelihood], 40, 4, 5)
    sums.add(0, Distributions(batch, z))
    for block, found in enumerate(sums.leave_one_out().mean(log_likelihood)):
        p = z[sums.block_of != block].softmax(-1).mean(0)
        expected = p.gather(1, labels.clamp(min=0)[:, None])[:3, 0].log()
        torch.testing.assert_close(found[:3], expected, rtol=1e-12, atol=1e-12)
        assert found[3].isnan()


@pytest.mark.parametrize("classes", [7, MANY])
def test_logits_of_ten_thousand(classes):
    z0 = 1e4 * torch.randn(5, classes)
    z = z0 + 1e3 * torch.randn(4, 5, classes)
    found, runs = columns(z0, z, torch.randint(0, classes, (5,)))
    assert runs == 1
    assert found["epkl"].values == pytest.approx(small_epkl(z).numpy(), rel=1e-5)
    assert all(np.isfinite(column.values).all() for column in found.values())


@pytest.mark.parametrize("classes", [6, MANY])
def test_a_class_that_all_rule_out_costs_nothing_and_changes_nothing(classes):
    z0 = torch.randn(4, classes)
    z = z0 + 0.2 * torch.randn(5, 4, classes)
    labels = torch.randint(0, classes - 1, (4,))
    without, _ = columns(z0[:, :-1], z[..., :-1], labels)
    z0[:, -1], z[..., -1] = -torch.inf, -torch.inf
    found, runs = columns(z0, z, labels)
    assert runs == 1
    for name, column in found.items():
        assert column.values == pytest.approx(without[name].values, rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("classes", [6, MANY])
def test_a_class_that_some_rule_out_is_followed_through_in_a_second_run(classes):
    z0 = torch.randn(4, classes)
    z = z0 + 0.2 * torch.randn(5, 4, classes)
    z[2, 1, 3] = -torch.inf  # by a sub-model
    z0[2, 4] = -torch.inf  # by the eval model
    found, runs = columns(z0, z, torch.randint(5, classes, (4,)))
    assert runs == 2
    assert np.isinf(found["epkl"].values).tolist() == [False, True, False, False]
    assert np.isinf(found["kl_sub_to_eval"].values).tolist() == [False, False, True, False]
    assert np.isinf(found["kl_eval_to_sub"].values).tolist() == [False, True, False, False]
    assert np.isinf(found["kl_mean_to_eval"].values).tolist() == [False, False, True, False]
    assert found["epkl"].values[[0, 3]] == pytest.approx(small_epkl(z[:, [0, 3]]).numpy(), rel=3e-5)
    p = z[:, 2].double().softmax(-1)
    pairs = [(p[i] * (p[i].log() - p[j].log())).sum() for i, j in permutations(range(5), 2)]
    assert found["epkl"].values[2] == pytest.approx(float(torch.stack(pairs).mean()), rel=3e-5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("classes", [6, MANY])
def test_bad_logits_name_the_example_and_the_sub_model(classes, bad):
    z0 = torch.randn(4, classes)
    z0[:, 0] = -torch.inf
    z = z0 + torch.zeros(5, 4, classes)
    z[3, 2, 0] = bad
    with pytest.raises(NotFiniteError, match="example 2 are not finite under sub-model 3"):
        columns(z0, z)
    z[3, 2, 0] = 0
    z[1, 3] = -torch.inf
    with pytest.raises(NotFiniteError, match="example 3 are not finite under sub-model 1"):
        columns(z0, z)


class Tight(Space):
    """Memory for so many numbers in one tensor, and no more."""

    def __init__(self, numbers, error):
        super().__init__()
        self.numbers, self.error, self.refused = numbers, error, 0

    def take(self, name, shape, *args):
        if torch.Size(shape).numel() > self.numbers:
            self.refused += 1
            raise self.error
        return super().take(name, shape, *args)


CPU_ERROR = RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: you tried")


@pytest.mark.parametrize("error", [CPU_ERROR, MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
@pytest.mark.parametrize("classes", [6, MANY])
def test_where_memory_runs_out_fewer_rows_at_a_time_give_the_same_numbers(error, classes):
    places = torch.rand(3, 8) < 0.8
    z0 = torch.randn(3, 8, classes)
    z = z0 + 0.3 * torch.randn(5, 3, 8, classes)
    labels = torch.randint(0, classes, (3, 8))
    whole, _ = columns(z0[places], z, labels, places=places)
    space = Tight(5 * 5 * max(classes, 3), error)
    parts, runs = columns(z0[places], z, labels, places=places, space=space)
    assert space.refused
    assert runs > 1
    for name, column in whole.items():
        assert parts[name].values == pytest.approx(column.values, rel=1e-12, abs=1e-15), name


def test_another_error_is_not_taken_for_a_lack_of_memory():
    space = Tight(0, RuntimeError("no such operator"))
    with pytest.raises(RuntimeError, match="no such operator"):
        columns(torch.randn(3, 4), torch.randn(5, 3, 4), space=space)
    assert not is_out_of_memory(space.error)


def test_one_row_that_does_not_fit_is_an_error():
    with pytest.raises(MemoryError):
        columns(torch.randn(3, 4), torch.randn(5, 3, 4), space=Tight(0, MemoryError()))


def test_sums_that_are_used_again_keep_nothing_of_the_last_batch():
    space, z0 = Space(), torch.randn(8, 5)
    z = z0 + torch.randn(40, 8, 5)
    columns(z0, z, space=space)
    again, _ = columns(z0[:3], z[:, :3], space=space)
    fresh, _ = columns(z0[:3], z[:, :3])
    for name, column in fresh.items():
        assert again[name].values.tolist() == column.values.tolist(), name


def test_chunks_of_sub_models_change_no_bit():
    z0 = torch.randn(5, MANY)
    z = z0 + torch.randn(20, 5, MANY)
    by_chunk = [columns(z0, z, step=step)[0] for step in (1, 7, 20)]
    for other in by_chunk[1:]:
        for name, column in by_chunk[0].items():
            assert other[name].values.tolist() == column.values.tolist(), name


def test_rows_that_fit_follow_the_memory():
    assert rows_that_fit(50_000, 2**30) == pytest.approx(10 * rows_that_fit(50_000, 2**30 // 10), rel=0.1)
    assert rows_that_fit(10**9, 2**20) == 1
    assert rows_that_fit(100) == rows_that_fit(100, total_memory())
    assert total_memory() > 2**28


def test_the_sums_stay_within_what_rows_that_fit_says():
    classes, memory = MANY, 2**26
    rows, space = rows_that_fit(classes, memory), Space()
    z0 = torch.randn(2 * rows, classes)
    columns(z0, z0 + torch.zeros(9, 1, 1), kinds=[PairwiseKL, Gap], memory=memory, space=space)
    held = sum(t.numel() * t.element_size() for t in space._held.values())
    assert held < 1.1 * memory / block_sums.SHARE_OF_SUMS
    assert summing.IN_CACHE * 8 <= 2**21


@pytest.mark.parametrize("classes", [MANY, 50_257])
def test_kl_to_the_eval_model_keeps_its_sign_where_it_is_tiny(classes):
    """Single precision of the normaliser would put 5e-8 on every row; the mean over rows is held to 1e-9."""
    g = torch.Generator().manual_seed(0)
    eval_logits = 3 * torch.randn(64, classes, generator=g)
    logits = eval_logits + 1e-3 * torch.randn(4, 64, classes, generator=g)
    batch = EvalBatch(0, None, eval_logits, ruled_out=False)
    found = Distributions(batch, logits, exact=False).kl_to_eval.mean()
    log_p, log_q = (x.double().log_softmax(-1) for x in (logits, eval_logits))
    expected = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-3, abs=1e-9)
