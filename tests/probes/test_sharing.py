"""Gradient passes are cut to fit into memory; numbers do not depend on how, nor on how directions are pulled back."""

import subprocess
import sys
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from rdrop_probes import weighing
from rdrop_probes.batch import Batch
from rdrop_probes.discovery import find_sites
from rdrop_probes.jacobian import Jacobian
from rdrop_probes.neutral import ENTANGLED, gradient_pass
from rdrop_probes.prediction import Prediction
from rdrop_probes.sharing import SharedGradients
from rdrop_probes.state import preserved
from rdrop_probes.weighing import GradientChoice, pays_together, weigh

N, C, L = 13, 5, 4
ROUNDING = 1e-9
OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes"


class Classifier(nn.Module):
    """Rows [N, classes] of vectors, or [N, L, classes] of sequences."""

    calls: ClassVar = []  # not of the module, whose attributes are put back

    def __init__(self, classes=C):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(6, 8),
            nn.Tanh(),
            nn.Dropout(0.3),
            nn.Linear(8, 8),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Linear(8, classes),
        )

    def forward(self, x):
        self.calls.append((len(x), self.net[2].training, torch.is_grad_enabled()))
        return self.net(x)


def vectors(n=N):
    return Batch(torch.randn(n, 6, dtype=torch.float64), n, 0)


def sequences():
    places = torch.rand(N, L) < 0.6
    places[2] = False
    return Batch(torch.randn(N, L, 6, dtype=torch.float64), N, 0, None, places)


CASES = {
    "exact": (lambda: Classifier().double().eval(), vectors),
    "many classes": (lambda: Classifier(70).double().eval(), vectors),
    "several rows": (lambda: Classifier().double().eval(), sequences),
}


def measured(model, batches, *, kinds=(Jacobian, Prediction), rows=None, **settings):
    """Columns and site predictions after the gradients of some batches; and what gave them."""
    first = batches[0]
    with preserved(model):
        plan = find_sites(model, lambda n: model(first.inputs[torch.arange(n) % first.n]))
        probes = [kind() for kind in kinds]
        for probe in probes:
            probe.start(plan, shared_masks=False)
        shared = SharedGradients(model, model, plan, **settings)
        if isinstance(model, Classifier):
            model.calls.clear()
        for batch in batches:
            shared.feed(batch, probes, rows)
    outcomes = [probe.outcome() for probe in probes]
    columns = {name: column.values for found in outcomes for name, column in found.columns.columns.items()}
    lines = [line for found in outcomes for line in found.tables.get("site_predictions", [])]
    return columns, lines, shared


def assert_same(found, expected):
    assert found[0].keys() == expected[0].keys() != set()
    for name, values in expected[0].items():
        np.testing.assert_allclose(found[0][name], values, rtol=ROUNDING, err_msg=name)
    assert [line.predicted for line in found[1]] == pytest.approx([line.predicted for line in expected[1]])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("examples", [1, 4, 13])
@pytest.mark.parametrize("directions", [1, 3, 64])
def test_no_number_depends_on_how_gradients_are_taken(case, examples, directions):
    build, data = CASES[case]
    model, batch = build(), data()
    expected = measured(model, [batch], choice=GradientChoice(N))
    assert_same(measured(model, [batch], choice=GradientChoice(examples, directions)), expected)


@pytest.mark.parametrize("case", CASES)
def test_no_number_depends_on_how_the_data_are_cut_into_batches(case):
    build, data = CASES[case]
    model, batch = build(), data()
    cut = [batch.part(slice(i, min(i + 4, N))) for i in range(0, N, 4)]
    assert_same(measured(model, cut), measured(model, [batch]))


def test_another_seed_is_another_sample():
    model, batch = CASES["many classes"][0](), vectors()
    first, second = (measured(model, [batch], seed=seed)[0] for seed in (0, 1))
    for name in ("jacobian_logits", "jacobian_probs", "jacobian_fisher", "predicted_epkl"):
        assert not (first[name] == second[name]).any()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("error", [RuntimeError(OUT_OF_MEMORY), torch.OutOfMemoryError("CUDA"), MemoryError()])
def test_running_out_of_memory_takes_smaller_parts_and_changes_no_number(case, error):
    build, data = CASES[case]

    class Large(Classifier):
        def forward(self, x):
            if len(x) > 5:
                raise error
            return super().forward(x)

    model, batch = build(), data()
    large = Large(70 if case == "many classes" else C).double().eval()
    large.load_state_dict(model.state_dict())
    found = measured(large, [batch])
    assert_same(found, measured(model, [batch]))
    assert found[2].choice.examples <= 5


def test_running_out_of_memory_when_a_probe_is_done_counts_no_example_twice(monkeypatch):
    model, batch, close = CASES["exact"][0](), vectors(), Prediction.keep

    def fails_once(self, by_site, total, weights):
        if len(total.values) == N:
            raise RuntimeError(OUT_OF_MEMORY)
        close(self, by_site, total, weights)

    expected = measured(model, [batch])
    monkeypatch.setattr(Prediction, "keep", fails_once)
    assert_same(measured(model, [batch]), expected)


def test_one_example_that_does_not_fit_is_an_error():
    class Never(Classifier):
        def forward(self, x):
            if torch.is_grad_enabled() and len(x) < 2:
                raise RuntimeError(OUT_OF_MEMORY)
            return super().forward(x)

    with pytest.raises(RuntimeError, match="can't allocate"):
        measured(Never().double(), [vectors()], choice=GradientChoice(1))


def test_less_memory_means_fewer_examples_in_a_pass():
    model, batch = CASES["exact"][0](), vectors(200)
    sizes = [measured(model, [batch], memory=memory)[2].choice.examples for memory in (1, 2**15, 2**17, 2**30)]
    assert sizes[0] == 1
    assert sizes[-1] == 200
    assert sizes == sorted(set(sizes))
    with preserved(model):
        plan = find_sites(model, lambda n: model(batch.inputs[:n]))
        weight = weigh(
            model, lambda: gradient_pass(model, model, plan, batch.inputs[:4], 4, want_sites=True), inputs=True
        )
    numbers = 6 + 8 + 8 + 8 + 8  # what linear layers, tanh, GELU and the masks' products need of one example
    assert 8 * numbers < weight.held < 8 * 20 * numbers
    assert sizes[2] * weight.held < 2**17


def test_several_rows_and_many_classes_are_weighed_with_their_double_backward_pass():
    model, batch = CASES["many classes"][0](), vectors()
    with preserved(model):
        plan = find_sites(model, lambda n: model(batch.inputs[:n]))

        def run():
            return gradient_pass(model, model, plan, batch.inputs, N, want_sites=True)

        assert weigh(model, run, inputs=True).held > weigh(model, run, inputs=False).held


RSS = """
import resource, sys, torch
from torch import nn
from rdrop_probes.batch import Batch
from rdrop_probes.discovery import find_sites
from rdrop_probes.jacobian import Jacobian
from rdrop_probes.prediction import Prediction
from rdrop_probes.sharing import SharedGradients
from rdrop_probes.state import preserved
torch.set_num_threads(1)
layers = [layer for _ in range(20) for layer in (nn.Linear(256, 256), nn.Tanh(), nn.Dropout(0.1))]
model = nn.Sequential(*layers, nn.Linear(256, 5)).eval()
x = torch.randn(int(sys.argv[1]), 256)
with preserved(model):
    plan = find_sites(model, lambda n: model(x[:n]))
    probes = [Jacobian(), Prediction()]
    for probe in probes:
        probe.start(plan, shared_masks=False)
    shared = SharedGradients(model, model, plan, memory=2**25)
    shared.feed(Batch(x[:64], 64, 0), probes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    shared.choice = None
    shared.feed(Batch(x, len(x), 0), probes)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_pass_stays_within_the_memory_given():
    """Whole, these 4000 examples would hold 20 layers of three or four tensors of 4 MB: more than 240 MB."""
    run = subprocess.run([sys.executable, "-c", RSS, "4000"], capture_output=True, text=True, check=True)  # noqa: S603 - our own code
    unit = 1024 if sys.platform != "darwin" else 1
    assert int(run.stdout) * unit < 1.5 * 2**25


def test_known_rows_of_the_eval_model_spare_its_pass():
    model, batch = Classifier().double().eval(), vectors()
    with torch.no_grad():
        rows = model(batch.inputs)
    choice = GradientChoice(N)
    without = measured(model, [batch], choice=choice)
    passes = list(model.calls)
    found = measured(model, [batch], choice=choice, rows=rows)
    assert_same(found, without)
    assert passes == [(N, True, True), (N, False, False)]  # with neutral masks, and to compare
    assert model.calls == [(N, True, True)]


def test_rows_that_neutral_masks_do_not_give_are_found_out():
    """Alpha dropout at its neutral mask is another model: sites are given up, the plain pass is taken."""
    model = nn.Sequential(nn.Linear(6, 8), nn.SELU(), nn.AlphaDropout(0.2), nn.Linear(8, C)).double().eval()
    batch = vectors()
    rows = model(batch.inputs).detach()
    columns, lines, _ = measured(model, [batch], rows=rows)
    expected = measured(model, [batch], kinds=[Jacobian])[0]
    assert columns["jacobian_logits"] == pytest.approx(expected["jacobian_logits"], rel=ROUNDING)
    assert [line.reason for line in lines] == ["with neutral masks the model is not the eval model"]


def test_a_branch_on_the_data_is_seen_in_whichever_part_it_is_taken():
    """Dropout whose neutral mask is not neutral for some examples only: the parts with these give it up."""

    class Branch(Classifier):
        def forward(self, x):
            return super().forward(x) + (1.0 if self.net[2].training and (x[:, 0] > 1e3).any() else 0.0) * x[:, :1]

    model, batch = Branch().double().eval(), vectors()
    batch.inputs[7, 0] = 2e3
    rows = model(batch.inputs).detach()
    found = measured(model, [batch], rows=rows, choice=GradientChoice(1))
    assert all("not the eval model" in line.reason for line in found[1] if line.predicted is None)
    assert len(found[0]["predicted_epkl"]) == N - 1 or np.isnan(found[0]["predicted_epkl"]).sum() == 1


def test_sites_laid_out_in_another_way_are_found_once_and_left_out_of_all_parts():
    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head, self.drop = nn.Linear(6, 8), nn.Linear(8, C), nn.Dropout(0.3)

        def forward(self, x):
            h = torch.tanh(self.body(x)).transpose(0, 1)
            return self.head(self.drop(h.reshape(-1, 8)).reshape(h.shape).mean(0)).log_softmax(-1)

    model, x = TimeFirst().double().eval(), torch.randn(N, L, 6, dtype=torch.float64)
    columns, lines, shared = measured(model, [Batch(x, N, 0)])
    assert shared.choice.entangled == (("drop", 0),)
    assert [line.reason for line in lines] == [ENTANGLED]
    assert "predicted_epkl" not in columns
    again = measured(model, [Batch(x, N, 0)], choice=GradientChoice.made(shared.choice.plain()))
    assert [line.reason for line in again[1]] == [ENTANGLED]


def test_a_choice_survives_as_plain_data():
    choice = GradientChoice(7, 3, (("a.b", 0), ("", 2)))
    assert GradientChoice.made(choice.plain()) == choice


class NoBatching(torch.autograd.Function):
    """A derivative that vmap cannot run."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        if float(gradient.abs().sum()) < 0:  # asks for a number: not under vmap
            raise AssertionError
        return gradient * (1 - x.tanh().square())


def test_directions_that_cannot_be_pulled_back_together_are_pulled_back_one_by_one():
    class Model(Classifier):
        def forward(self, x):
            return super().forward(NoBatching.apply(x))

    model, batch = Model().double().eval(), vectors()
    with preserved(model):
        plan = find_sites(model, lambda n: model(batch.inputs[:n]))
        gradients = gradient_pass(model, model, plan, batch.inputs, N, want_sites=True)
        assert not pays_together(gradients, 3)
    columns, _, shared = measured(model, [batch])
    assert shared.choice.directions == 1
    assert np.isfinite(columns["jacobian_logits"]).all()


def test_directions_pulled_back_together_must_give_what_one_by_one_gives(monkeypatch):
    model, batch = CASES["exact"][0](), vectors()
    grad = torch.autograd.grad

    def wrong(*args, is_grads_batched=False, **kwargs):
        found = grad(*args, is_grads_batched=is_grads_batched, **kwargs)
        return tuple(1.01 * g for g in found) if is_grads_batched else found

    with preserved(model):
        plan = find_sites(model, lambda n: model(batch.inputs[:n]))
        gradients = gradient_pass(model, model, plan, batch.inputs, N, want_sites=True)
        monkeypatch.setattr(torch.autograd, "grad", wrong)
        assert not any(pays_together(gradients, 5) for _ in range(5))


@pytest.mark.parametrize(("power", "directions"), [(2, 1), (0.5, C)])
def test_where_a_strategy_is_insisted_on_no_clock_decides(monkeypatch, power, directions):
    ticks = iter(range(10**6))  # directions together are timed second: they seem to take longer, or less long
    monkeypatch.setattr(weighing.time, "perf_counter", lambda: next(ticks) ** power)
    model, batch = CASES["exact"][0](), vectors()
    with preserved(model):
        plan = find_sites(model, lambda n: model(batch.inputs[:n]))
        chosen = []
        for timed in (True, False):
            probes = [Jacobian(), Prediction()]
            for probe in probes:
                probe.start(plan, shared_masks=False)
            chosen.append(SharedGradients(model, model, plan).choose(batch, probes, timed=timed))
    assert [choice.directions for choice in chosen] == [directions, C]
