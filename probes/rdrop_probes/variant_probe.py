"""What probes of variants share: the EPKL of each variant of the plan, by example, as mergeable columns."""

from __future__ import annotations

from typing import ClassVar, Self

from rdrop_probes.by_example import ByExample
from rdrop_probes.columns import ColumnSet, State
from rdrop_probes.convergence import ConvergingProbe
from rdrop_probes.distributions import Term
from rdrop_probes.pairwise_kl import PairwiseKL
from rdrop_probes.probe import Probe


class VariantProbe(Probe):
    """A probe of the EPKL under variants; `by_variant` has its columns by the variant's name.

    `pairwise` is the probe whose EPKL it is, for the family of the outputs.
    """

    terms: ClassVar[tuple[Term, ...]] = PairwiseKL.terms
    on_request = True
    companions = ("pairwise_kl", "prediction")
    wants_variants = True
    pairwise: ClassVar[type[ConvergingProbe]] = PairwiseKL

    def __init__(self) -> None:
        super().__init__()
        self.by_variant = ColumnSet()
        self._epkl = self.pairwise().epkl
        self._examples = ByExample()

    def merge(self, other: Self) -> None:
        """Append another worker's examples."""
        super().merge(other)
        self.by_variant.merge(other.by_variant)

    def state(self) -> State:
        """With the columns of variants."""
        return super().state() | {"variants": self.by_variant.state()}

    def restore(self, state: State) -> None:
        """With the columns of variants."""
        super().restore(state)
        self.by_variant = ColumnSet.restored(state["variants"])
