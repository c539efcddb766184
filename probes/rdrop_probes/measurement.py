"""What one pass over the data found on one model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rdrop_probes.columns import Column, without_rounding
from rdrop_probes.items import Numbers, Votes
from rdrop_probes.probe import Outcome, Probe
from rdrop_probes.records import Metric
from rdrop_probes.sites import SitePlan


@dataclass
class Measurement:
    """What one pass found on one model.

    Attributes:
        plan: its sites. columns, units: by metric. tables: fields of `CheckpointResult`. findings: by code.
        metrics: those that are not the mean of a column.
        strategy: how sub-models were run. shared_masks: whether all examples had the same masks.
        sub_models: how many were run. foreseen: half the interval of the mean EPKL over masks, relative to it, that a
            pilot foretold for them; None without a pilot. rows: how many rows (examples, tokens, labels) count.
        predictions: [N], the eval model's classes or numbers; empty where examples have several rows.
        votes: the most voted classes of the sub-models; None if no probe counts votes, or examples have several rows.
    """

    plan: SitePlan
    columns: dict[str, Column] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    tables: dict[str, Any] = field(default_factory=dict)
    findings: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, Metric] = field(default_factory=dict)
    strategy: str = ""
    shared_masks: bool = False
    sub_models: int = 0
    foreseen: float | None = None
    rows: int = 0
    predictions: Numbers = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    votes: Votes | None = None

    def collect(self, probes: Sequence[Probe]) -> None:
        """Take over what the probes kept; where masks are certain, what differs by rounding differs by 0.

        Without dropout sub-models are the eval model, and at rates of 0 and 1 they are at least each other.
        """
        for probe in probes:
            self._take(probe.outcome())
            self.units |= probe.units
        if not self.plan.stochastic:
            self._round(self.columns)
        elif self.plan.alike:
            self._round(name for probe in probes for name in probe.between)
        for probe in probes:
            self.columns |= probe.derive(self.columns)
        named = {probe.name: probe for probe in probes}
        for probe in probes:
            self._take(probe.conclude(self.columns, named))

    def _round(self, names: Iterable[str]) -> None:
        """Make rounding 0 in these columns, as far as sub-models are in them."""
        for name in list(names):
            if name in self.columns and self.columns[name].mask_variance is not None:
                self.columns[name] = without_rounding(self.columns[name])

    def take_votes(self, predictions: Sequence[Numbers], votes: Sequence[Votes]) -> None:
        """Take over predictions and votes, which came in pieces."""
        if predictions:
            self.predictions = np.concatenate(predictions)
        if votes:
            self.votes = Votes(
                np.concatenate([piece.classes for piece in votes]), np.concatenate([piece.counts for piece in votes])
            )

    def _take(self, outcome: Outcome) -> None:
        self.columns |= outcome.columns.columns
        self.tables |= outcome.tables
        self.findings |= outcome.findings
        self.metrics |= outcome.metrics
