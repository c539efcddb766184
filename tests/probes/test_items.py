"""Work items: stored and taken back they are what they were, whoever measured them."""

from __future__ import annotations

import json
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from rdrop_probes.batch import Batch
from rdrop_probes.columns import Column, ColumnSet, join, plain
from rdrop_probes.families import CATEGORICAL, Gaussian
from rdrop_probes.items import Item, PartDone, Votes, Work, unstorable
from rdrop_probes.measure import measure
from rdrop_probes.measurement import Measurement
from rdrop_probes.pairwise_kl import PairwiseKL
from rdrop_probes.precision import Pilot
from rdrop_probes.probe import Outcome, Probe
from rdrop_probes.registry import BUILT_IN
from rdrop_probes.settings import Settings
from rdrop_probes.sites import SilentSiteError
from rdrop_probes.terms import flip

N, C, BATCH = 22, 5, 6
STARTS = range(0, N, BATCH)


class Decided(Work):
    """Decides by time what others take over."""

    def __init__(self, decisions=None):
        super().__init__()
        self.decisions = {} if decisions is None else decisions

    def decide(self, name, decision):
        if name not in self.decisions:
            self.decisions[name] = decision()
        return self.decisions[name]


class States(Decided):
    """Keeps nothing but states; measures the items that begin with `wanted`, and merges where all are there."""

    def __init__(self, wanted=STARTS, states=(), decisions=None):
        super().__init__(decisions)
        self.wanted = wanted
        self.states = {state["start"]: state for state in states}

    def wants(self, start):
        return start in self.wanted

    def put(self, item):
        self.states[item.start] = item.state()

    def items(self, fresh):
        if len(self.states) < len(STARTS):
            raise PartDone
        return (Item.restored(self.states[start], fresh()) for start in STARTS)


def net(rate=0.3):
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(rate), nn.Linear(8, C))


def batches(family=CATEGORICAL):
    x = torch.randn(N, 4)
    y = torch.randint(0, C, (N,)) if family is CATEGORICAL else torch.randn(N, C)
    parts = [slice(start, min(start + BATCH, N)) for start in STARTS]
    return [Batch(x[p], p.stop - p.start, p.start, y[p]) for p in parts]


def run(model, data, probes, work=None, family=CATEGORICAL, **settings) -> Measurement:
    chosen = Settings(**{"sub_models": 6, "strategy": "loop", **settings})
    return measure(model, data, forward=model, probes=probes, settings=chosen, family=family, work=work)


def assert_equal(found, expected):
    assert found.columns.keys() == expected.columns.keys()
    for name, column in expected.columns.items():
        for field, value in vars(column).items():
            np.testing.assert_array_equal(getattr(found.columns[name], field), value, err_msg=f"{name}.{field}")
    for field in ("tables", "findings", "strategy", "rows", "units", "shared_masks"):
        assert getattr(found, field) == getattr(expected, field)
    np.testing.assert_array_equal(found.predictions, expected.predictions)
    assert (found.votes is None) == (expected.votes is None)
    if expected.votes is not None:
        np.testing.assert_array_equal(found.votes.classes, expected.votes.classes)
        np.testing.assert_array_equal(found.votes.counts, expected.votes.counts)


@pytest.mark.parametrize("masks", ["per-example", "shared"])
@pytest.mark.parametrize("family", [CATEGORICAL, Gaussian(1.5)], ids=["categorical", "gaussian"])
def test_stored_items_give_the_same_bits_whoever_measured_them(family, masks):
    probes = [probe for probe in BUILT_IN if family.name in probe.families]
    model, data = net(), batches(family)
    first = Decided()
    whole = run(model, data, probes, first, family=family, masks=masks)
    assert len(whole.columns) > 5
    assert_equal(run(model, data, probes, States(decisions=first.decisions), family=family, masks=masks), whole)
    odd, even = (States(STARTS[part::2], decisions=first.decisions) for part in (1, 0))
    for work in (odd, even):
        with pytest.raises(PartDone):
            run(model, data, probes, work, family=family, masks=masks)
    merged = States((), [*odd.states.values(), *even.states.values()], first.decisions)
    assert_equal(run(model, data, probes, merged, family=family, masks=masks), whole)


def test_states_are_plain_data():
    work = States()
    run(net(), batches(), [probe for probe in BUILT_IN if "categorical" in probe.families], work)

    def arrays_as_lists(value):
        if isinstance(value, np.ndarray):
            return value.tolist()
        raise TypeError(type(value))

    assert json.dumps(work.states[0], default=arrays_as_lists)
    assert json.dumps(work.decisions)


@pytest.mark.parametrize(
    "damage", [{"probes": []}, {"probes": [["gap", {}]]}, {"votes": 3}, {"fired": [["a"]]}, "rows"]
)
def test_what_is_no_state_of_these_probes_is_refused(damage):
    work = States()
    run(net(), batches(), [PairwiseKL], work)
    state = work.states[0]
    state = {k: v for k, v in state.items() if k != damage} if isinstance(damage, str) else state | damage
    with pytest.raises(ValueError, match=r"state|shorter|longer|gap is not|unpack"):
        Item.restored(state, [PairwiseKL()])


def test_a_site_that_no_item_drew_at_is_an_error_after_the_merge():
    work = States()
    model, data = net(), batches()
    run(model, data, [PairwiseKL], work)
    silent = [state | {"fired": []} for state in work.states.values()]
    with pytest.raises(SilentSiteError, match="dropout at 2 never drew"):
        run(model, data, [PairwiseKL], States((), silent))
    once = [*silent[:-1], silent[-1] | {"fired": [["2", 0]]}]
    assert "epkl" in run(model, data, [PairwiseKL], States((), once)).columns


class Facts(Decided):
    """Remembers what came in which order, and the facts."""

    def __init__(self):
        super().__init__()
        self.order, self.facts = [], {}

    def begin(self, facts):
        self.order.append("facts")
        self.facts = facts

    def decide(self, name, decision):
        self.order.append(name)
        return super().decide(name, decision)


class Twice(nn.Dropout):
    def forward(self, x):
        return super().forward(x) * (2 if self.training else 1)


def facts(model, **settings):
    work = Facts()
    run(model, [Batch(torch.linspace(-1, 1, N * 4).reshape(N, 4), N, 0)], [PairwiseKL], work, **settings)
    return work.facts


def test_facts_are_known_before_anything_is_decided():
    work = Facts()
    data = batches()
    chosen = Settings(tolerance=0.5, strategy="loop")
    model = net()
    pilot = Pilot(data[:1], N)
    measure(model, data, forward=model, probes=[PairwiseKL], settings=chosen, work=work, pilot=pilot)
    assert work.order[:2] == ["facts", "sub_models"]


def test_facts_tell_models_apart_by_sub_models_and_by_the_far_end_of_outputs():
    inner = [nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1000)]
    first = facts(nn.Sequential(*inner))
    assert facts(nn.Sequential(*inner)) == first
    twice = facts(nn.Sequential(*inner[:2], Twice(0.3), inner[3]))
    assert twice["sites"] == first["sites"]
    assert twice["sample"] != first["sample"]
    with torch.no_grad():
        inner[3].bias[-1] += 1
    assert facts(nn.Sequential(*inner))["sample"] != first["sample"]
    assert not first["shared_masks"]
    assert facts(nn.Sequential(*inner), masks="shared")["shared_masks"]


class NoGradientsFrom(nn.Module):
    """Autograd fails on batches that hold a certain example."""

    def __init__(self, marked):
        super().__init__()
        self.inner, self.marked = net(), marked

    def forward(self, x):
        z = self.inner(x)
        return z.detach() if torch.is_grad_enabled() and (x == self.marked).all(1).any() else z


def test_gradients_that_one_item_lacks_are_left_out_whoever_measured_it():
    data = batches()
    model = NoGradientsFrom(data[1].inputs[2].clone())
    probes = [probe for probe in BUILT_IN if "categorical" in probe.families]
    first = Decided()
    whole = run(model, data, probes, first)
    assert "gradients_unavailable" in whole.findings
    assert "epkl" in whole.columns
    assert not [name for name in whole.columns if name.startswith(("jacobian", "predicted"))]
    odd, even = (States(STARTS[part::2], decisions=first.decisions) for part in (1, 0))
    for work in (odd, even):
        with pytest.raises(PartDone):
            run(model, data, probes, work)
    merged = States((), [*odd.states.values(), *even.states.values()], first.decisions)
    assert_equal(run(model, data, probes, merged), whole)


def test_votes_are_the_most_voted_classes():
    votes = torch.randint(0, 4, (50, 9))
    found = Votes.of(votes)
    for row, classes, counts in zip(votes.tolist(), found.classes.tolist(), found.counts.tolist(), strict=True):
        expected = sorted(range(9), key=lambda c: (-row[c], c))[:4]
        assert classes == expected
        assert counts == [row[c] for c in expected]
    assert Votes.of(votes[:, :2]).classes.shape == (50, 2)


def test_joined_columns_are_those_of_all_pieces():
    pieces = [Column(np.arange(3.0) + i, np.ones(3), np.full(4, i + 0.1), 3, weights=np.ones(3)) for i in range(5)]
    kept = ColumnSet()
    for piece in pieces:
        kept.add("a", piece)
    kept.add("b", plain(torch.zeros(2)))
    found = kept.columns["a"]
    np.testing.assert_array_equal(found.values, np.concatenate([p.values for p in pieces]))
    np.testing.assert_array_equal(found.leave_out, sum(p.leave_out for p in pieces))
    assert (found.leave_out_n, len(found.mask_variance), len(found.weights)) == (15, 15, 15)
    assert pieces[0].values.tolist() == [0, 1, 2]  # not grown in place
    assert join([Column(np.zeros(1)), Column(np.zeros(1), np.ones(1))]).mask_variance is None
    again = ColumnSet.restored(kept.state()).columns
    np.testing.assert_array_equal(again["a"].values, found.values)


class Counts(Probe):
    """Keeps more than columns, and says how that is merged."""

    name = "counts"
    units: ClassVar = {}
    terms = (flip,)

    def __init__(self):
        super().__init__()
        self.seen = 0

    def update(self, batch, sums):
        self.seen += len(batch.logits)

    def merge(self, other):
        super().merge(other)
        self.seen += other.seen

    def outcome(self):
        return Outcome(self.kept, {"seen": self.seen})


class StoredCounts(Counts):
    def state(self):
        return super().state() | {"seen": self.seen}

    def restore(self, state):
        super().restore(state)
        self.seen = state["seen"]


def test_a_probe_of_others_is_merged_and_known_where_it_cannot_be_stored():
    assert run(net(), batches(), [Counts]).tables == {"seen": N}
    assert unstorable([Counts, *BUILT_IN]) == ["counts"]
    assert unstorable([StoredCounts]) == []
    assert run(net(), batches(), [StoredCounts], States()).tables == {"seen": N}
