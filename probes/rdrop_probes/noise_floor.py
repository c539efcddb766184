"""The noise floor: divergences of eval passes that should agree, beside which a dropout effect is to be read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self, get_args

import torch
from torch import Tensor

from rdrop_probes.batch import Batch
from rdrop_probes.by_example import ByExample
from rdrop_probes.columns import Column, ColumnSet, State, plain
from rdrop_probes.distributions import EvalBatch
from rdrop_probes.divergences import kl
from rdrop_probes.families import Family
from rdrop_probes.probe import Outcome, Probe
from rdrop_probes.records import NoiseFloor
from rdrop_probes.repeats import NotComparableError, Repeats, Way
from rdrop_probes.statistics import metric, ratio_column

AT_A_TIME = 2**22  # numbers that are held against each other
NAMES: Mapping[Way, str] = {
    "bfloat16": "float32 vs bfloat16",
    "compiled": "eager vs compiled",
    "fused kernels": "plain vs fused kernels",
    "one by one": "batch vs one by one",
}


class NoiseFloors(Probe):
    """KL(p_eval || p_other) in nats, averaged over examples, and how often the class predicted changes.

    The other pass is the eval model under bfloat16 autocast, compiled by `torch.compile`, with fused attention kernels
    and fast paths, or on one example at a time (at most 16 of each batch; compiled code on batches of the first one's
    shape). `ratio` is the mean EPKL over that mean, on the same examples. A way that cannot be gone has its reason.
    """

    name = "noise_floor"
    units: ClassVar = {}
    families = ("categorical", "gaussian")
    on_request = True
    companions = ("pairwise_kl",)
    wants_repeats = True

    def __init__(self) -> None:
        super().__init__()
        self._reasons: dict[str, str] = {}

    def update_repeats(self, repeats: Repeats, batch: EvalBatch, examples: Batch) -> None:
        """Run one batch in every way, and hold what comes out against the eval model's rows."""
        for way in get_args(Way):
            found = torch.full((2, len(batch.logits)), torch.nan, dtype=torch.float64, device=batch.logits.device)
            try:
                rows, places = repeats.run(way, examples)
                if len(places):  # none of a batch that is left out
                    found[:, places] = _differences(batch, rows, places)
            except NotComparableError as problem:
                self._reasons.setdefault(way, str(problem))
            self._keep(batch, way, found)

    def _keep(self, batch: EvalBatch, way: Way, found: Tensor) -> None:
        for name, values in zip(("kl", "flips"), found, strict=True):
            means = ByExample().means(batch, name, values)
            if means is not None:
                column = plain(means.values, weights=means.weights, proportion=name == "flips", floor=0.0)
                self.kept.add(f"{name}/{way}", column)

    def merge(self, other: Self) -> None:
        """Append another worker's examples."""
        super().merge(other)
        self._reasons = {**other._reasons, **self._reasons}  # the first to fail says why

    def state(self) -> State:
        """With what could not be had, and why."""
        return super().state() | {"reasons": self._reasons}

    def restore(self, state: State) -> None:
        """Take back what :meth:`state` gave."""
        super().restore(state)
        self._reasons = dict(state["reasons"])

    def outcome(self) -> Outcome:
        """No columns: these are no metrics of the model."""
        return Outcome(ColumnSet())

    def conclude(self, columns: Mapping[str, Column], _probes: Mapping[str, Probe]) -> Outcome:
        """A line for every way, beside the EPKL; what could not be had is said."""
        lines = [self._line(way, columns.get("epkl")) for way in get_args(Way)]
        left_out = "; ".join(f"{line.name} ({line.reason})" for line in lines if line.reason)
        findings = {"noise_floor_incomplete": f"numerical noise was not measured: {left_out}"} if left_out else {}
        return Outcome(ColumnSet(), {"noise_floor": lines}, findings)

    def _line(self, way: Way, epkl: Column | None) -> NoiseFloor:
        divergence = self.kept.columns.get(f"kl/{way}")
        if divergence is None or not divergence.finite.any():
            reason = self._reasons.get(way, "no finite numbers came of it")
            return NoiseFloor(name=NAMES[way], divergence=None, reason=reason)
        ratio = None if epkl is None else ratio_column(epkl, divergence)
        return NoiseFloor(
            name=NAMES[way],
            divergence=metric(divergence, unit="nats", shared_masks=False),
            ratio=None if ratio is None else metric(ratio, unit="", shared_masks=False).estimate,
            flip_rate=metric(self.kept.columns[f"flips/{way}"], unit="", shared_masks=False).estimate,
        )


def _differences(batch: EvalBatch, rows: Tensor, places: Tensor) -> Tensor:
    """KL to other outputs of the rows at some places, and 1 where the class predicted is another [2, P']."""
    places = places.to(batch.logits.device)
    size = max(1, AT_A_TIME // max(batch.logits.shape[-1], 1))
    parts = [
        _compared(batch.family, batch.logits[some], other)
        for some, other in zip(places.split(size), rows.split(size), strict=True)
    ]
    return torch.cat(parts, -1)


def _compared(family: Family, logits: Tensor, other: Tensor) -> Tensor:
    own, others = family.normalised(logits.double()), family.normalised(other.double())
    if family.name != "categorical":  # numbers, which are never quite the same: there is no class to flip
        divergence = family.between(own, others)
        return torch.stack([divergence, torch.full_like(divergence, torch.nan)])
    flips = family.prediction(logits) != family.prediction(other)
    return torch.stack([kl(own, others), flips.double()])
