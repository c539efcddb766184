"""What a probe is: it says what it needs, takes batches, and turns what it kept into columns and tables.

A third party adds one with an entry point in the group `rdrop_analysis.probes` that names a `Probe` subclass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor

from rdrop_probes.batch import Batch
from rdrop_probes.block_sums import BlockSums, Totals
from rdrop_probes.by_example import ByExample
from rdrop_probes.columns import Column, ColumnSet, State, as_floats, plain
from rdrop_probes.distributions import EvalBatch, Term
from rdrop_probes.families import FamilyName
from rdrop_probes.gradients import GradientPass, Row
from rdrop_probes.jackknife import Jackknife, jackknives
from rdrop_probes.records import Metric
from rdrop_probes.repeats import Repeats
from rdrop_probes.selection import Case
from rdrop_probes.settings import Settings
from rdrop_probes.sites import SitePlan
from rdrop_probes.switches import Switches
from rdrop_probes.variants import Variant


@dataclass
class Outcome:
    """What a probe leaves behind.

    Attributes:
        columns: evidence by metric name. tables: fields of `CheckpointResult` by name.
        findings: what the reader has to know, message by code.
        metrics: by name, those that are not the mean of a column.
    """

    columns: ColumnSet
    tables: dict[str, Any] = field(default_factory=dict)
    findings: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, Metric] = field(default_factory=dict)


class GradientFold(ABC):
    """Takes the rows of one batch's gradient pass, one at a time, so that none has to be kept for others."""

    @abstractmethod
    def add(self, row: Row) -> None:
        """Take the gradient of log p(y) for one y."""

    @abstractmethod
    def close(self) -> None:
        """Hand what was folded to the probe."""


class Probe(ABC):
    """One kind of measurement. Subclasses are constructed without arguments, one instance a work item (batch).

    What the instances of all items keep is merged in the order of the data. A probe that keeps more than `kept`
    overrides :meth:`merge`, :meth:`state` and :meth:`restore`.

    Class attributes:
        name: as given to `--probes`.
        units: unit by metric name, for every metric the probe may report ("" for a pure number).
        terms: what has to be summed over sub-models for it.
        needs_labels: without labels the probe does not run.
        needs_input_gradients, needs_site_gradients: gradient passes of the eval model to be shared with it.
        families: what the rows of the model's output may stand for.
        between: metrics of sub-models against each other, which are 0 where all of them are the same.
        on_request: whether it runs only where it is named. companions: names of the probes that then run beside it.
        packages: modules that it needs beyond the usual ones, and what to install for each.
        together: how many examples from all over the data it computes on together, before the pass, at most.
        wants_variants: whether it asks for passes of :meth:`variants` as well.
        wants_repeats: whether it asks for eval passes in other ways.
    """

    name: ClassVar[str]
    units: ClassVar[Mapping[str, str]]
    terms: ClassVar[tuple[Term, ...]] = ()
    needs_labels: ClassVar[bool] = False
    needs_input_gradients: ClassVar[bool] = False
    needs_site_gradients: ClassVar[bool] = False
    families: ClassVar[tuple[FamilyName, ...]] = ("categorical",)
    on_request: ClassVar[bool] = False
    packages: ClassVar[Mapping[str, str]] = {}
    together: ClassVar[int] = 0
    companions: ClassVar[tuple[str, ...]] = ()
    between: ClassVar[frozenset[str]] = frozenset()
    wants_variants: ClassVar[bool] = False
    wants_repeats: ClassVar[bool] = False

    def __init__(self) -> None:
        self.kept = ColumnSet()
        self.shared_masks = False

    def terms_for(self, *, labels: bool) -> Iterable[Term]:
        """Terms to sum for data with or without labels."""
        return self.terms

    def start(self, plan: SitePlan, *, shared_masks: bool) -> None:
        """Learn the sites before the first batch, and whether examples share their masks."""
        self.shared_masks = shared_masks

    @classmethod
    def compute(cls, case: Case) -> State:
        """What there is to compute on the examples selected, once for all workers, as plain data."""
        raise NotImplementedError(f"{cls.__name__} asks for examples and does nothing with them")

    def take(self, found: State) -> None:  # noqa: B027 - optional hook
        """Take what was computed, once the data are through."""

    def update(self, batch: EvalBatch, sums: BlockSums) -> None:  # noqa: B027 - optional hook
        """Take one batch, or the next group of its rows, with the sums over its sub-models."""

    def variants(self, switches: Switches, settings: Settings) -> Sequence[Variant]:
        """The variants of sub-models that it wants to be run as well; called once, after :meth:`start`."""
        return ()

    def update_variant(self, variant: Variant, batch: EvalBatch, sums: BlockSums) -> None:  # noqa: B027 - optional hook
        """Take one batch, or the next group of its rows, with the same terms summed over a variant's sub-models."""

    def update_repeats(self, repeats: Repeats, batch: EvalBatch, examples: Batch) -> None:  # noqa: B027 - optional hook
        """Take eval passes over some examples in other ways; `batch` has their rows as the eval model sees them."""

    def fold(self, gradients: GradientPass) -> GradientFold | None:
        """What takes the gradients of one batch; None if the probe cannot use them."""
        return None

    def derive(self, columns: Mapping[str, Column]) -> dict[str, Column]:
        """Further columns from those of all probes, once the data are through."""
        return {}

    def conclude(self, columns: Mapping[str, Column], probes: Mapping[str, Probe]) -> Outcome:
        """What follows from the columns of all probes, and from what the others kept, by name; at the very end."""
        return Outcome(ColumnSet())

    def merge(self, other: Self) -> None:
        """Take over what the same probe kept of another work item, whose examples follow the own."""
        self.kept.merge(other.kept)

    def state(self) -> State:
        """What is kept, as plain data that :meth:`restore` takes back; override it with :meth:`merge`."""
        return {"kept": self.kept.state()}

    def restore(self, state: State) -> None:
        """Take back what :meth:`state` gave of a probe that had the same start."""
        self.kept = ColumnSet.restored(state["kept"])

    def outcome(self) -> Outcome:
        """Columns and tables from everything taken so far."""
        return Outcome(self.kept)


class SubModelProbe(Probe):
    """A probe of functions of sums over sub-models: one estimator, jackknifed over blocks of sub-models.

    `bias_corrected` names the metrics whose plug-in estimate is biased in K, `squared` those that are
    the root of a mean of what `estimate` gives, `proportions` those that are
    shares of hits, `share_differences` differences of two such, `signed` those that may truly be negative.
    """

    bias_corrected: ClassVar[frozenset[str]] = frozenset()
    proportions: ClassVar[frozenset[str]] = frozenset()
    share_differences: ClassVar[frozenset[str]] = frozenset()
    squared: ClassVar[frozenset[str]] = frozenset()
    signed: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def estimate(self, batch: EvalBatch, totals: Totals) -> dict[str, Tensor]:
        """Per-example estimates [N] by metric name, or [G, N] from sums with a leading dimension G."""

    def __init__(self) -> None:
        super().__init__()
        self.examples = ByExample()

    def update(self, batch: EvalBatch, sums: BlockSums) -> None:
        """Estimate from all sub-models and without each block."""
        self.keep(self.jackknife(batch, sums))

    def keep(self, found: Mapping[str, Jackknife]) -> None:
        """Keep the columns of one batch."""
        for name, jackknife in found.items():
            column = jackknife.column(corrected=name in self.bias_corrected, proportion=name in self.proportions)
            column.squared = name in self.squared
            column.share_difference = name in self.share_differences
            column.tabulated = not column.squared
            column.floor = -np.inf if name in self.signed else 0.0
            self.kept.add(name, column)

    def jackknife(self, batch: EvalBatch, sums: BlockSums) -> dict[str, Jackknife]:
        """Estimates by example with and without each block; empty until the last of the batch's rows are in."""
        return jackknives(self.estimate, batch, sums, self.examples)

    def keep_plain(self, batch: EvalBatch, name: str, values: Tensor, *, proportion: bool = False) -> None:
        """Keep values [P] of the eval model, by example."""
        means = self.examples.means(batch, name, values)
        if means is not None:
            column = plain(means.values, proportion=proportion, weights=means.weights)
            column.infinite = None if means.infinite is None else as_floats(means.infinite)
            self.kept.add(name, column)
