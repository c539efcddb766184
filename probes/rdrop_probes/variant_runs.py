"""The variants of sub-models that probes ask for, run on batch after batch as the whole is run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from rdrop_probes.batch import Batch, take
from rdrop_probes.block_sums import BlockSums
from rdrop_probes.distributions import EvalBatch, Term
from rdrop_probes.divergences import agree
from rdrop_probes.examples import Examples
from rdrop_probes.families import Family
from rdrop_probes.items import Work
from rdrop_probes.memory import Space
from rdrop_probes.passes import Passes
from rdrop_probes.probe import Probe
from rdrop_probes.settings import Settings
from rdrop_probes.sites import SilentSiteError, SitePlan, label
from rdrop_probes.strategies import Choice, problem_with
from rdrop_probes.submodels import SubModels
from rdrop_probes.summing import Summing
from rdrop_probes.switches import Switches, find_switches
from rdrop_probes.variants import Variant

TRIED = 4  # examples that switches are tried on, and replayed passes compared on


class VariantRuns:
    """The variants that some probes ask for.

    Args:
        sub_models: the whole's, which say how sub-models are run.
        space: where sums are kept.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: SitePlan,
        sub_models: SubModels,
        settings: Settings,
        family: Family,
        space: Space,
    ) -> None:
        self._plan = plan
        self._whole = sub_models
        self._settings = settings
        self._family = family
        self._space = space
        self._modules = dict(model.named_modules())
        self._switches: Switches | None = None
        self._runs: dict[Variant, SubModels] = {}

    def choose(self, batch: Batch, probes: Sequence[Probe], work: Work) -> None:
        """Find out on the first batch of all data, once for all workers, how sites are switched off for some probes."""
        if not self._plan.stochastic or not any(probe.wants_variants for probe in probes):
            return
        n, passes = min(batch.n, TRIED), self._whole.passes
        few = Examples(take(batch.inputs, torch.arange(n)), n, batch.start)
        found = work.decide("switches", lambda: find_switches(self._modules, passes, self._plan, few).plain())
        switches = self._switches = Switches.made(self._plan, self._modules, found)
        wanted = dict.fromkeys(variant for probe in probes for variant in self.wanted(probe))
        under = {variant: passes.under(switches.drawing(variant)) for variant in wanted}
        ways = work.decide("variants", lambda: {v.name: self._way(own, few).plain() for v, own in under.items()})
        self._runs = {v: self._whole.under(own, Choice(**ways[v.name])) for v, own in under.items()}

    def wanted(self, probe: Probe) -> Sequence[Variant]:
        """The variants that a probe asks for; it learns by this which there are."""
        return () if self._switches is None else probe.variants(self._switches, self._settings)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._runs)

    def feed(self, batch: Batch, outputs: Tensor, probes: Sequence[Probe]) -> Iterator[None]:
        """Run the variants on a batch, one at each step, and let the probes that asked for it take its sums.

        Raises:
            SilentSiteError: a site that draws in the whole does not draw without the others.
        """
        asked = [(probe, self.wanted(probe)) for probe in probes]
        for variant, sub_models in self._runs.items():
            takers = [_Taker(probe, variant) for probe, variants in asked if variant in variants]
            memory = self._settings.memory
            summing = Summing(batch, self._plan, sub_models, takers, self._family, memory=memory, space=self._space)
            for _ in summing.run(outputs):
                pass
            sub_models.forget()
            self._check_drawn(variant, sub_models)
            yield

    def _way(self, passes: Passes, few: Examples) -> Choice:
        """How a variant is run: as the whole is, as far as on a few examples that gives what single passes give."""
        choice = self._whole.choice
        if choice is None:
            raise RuntimeError("decide how sub-models are run before their variants")
        expected = [passes.one(few, k, replay=False).clone() for k in (0, 1)]
        passes.replay = choice.replay
        passes.replay = all(agree(passes.one(few, k), expected[k]) for k in (0, 1, 0)) and choice.replay
        run = {"vmap": passes.vmapped, "fold": passes.folded}.get(choice.strategy)
        if run is not None and (problem := problem_with(choice.strategy, partial(run, few, range(2)), expected)):
            choice = Choice("loop", reason=problem)
        passes.forget()
        return replace(choice, replay=passes.replay)

    def _check_drawn(self, variant: Variant, sub_models: SubModels) -> None:
        """Sites that are on draw as they do in the whole, or measuring would report a false consistency."""
        active = self._whole.fired if variant.active is None else self._whole.fired & variant.active
        if silent := active - sub_models.fired:
            where = ", ".join(sorted(map(label, silent)))
            raise SilentSiteError(f"dropout at {where} draws only where other sites do: it cannot be measured alone")


class _Taker(Probe):
    """Takes the sums over a variant's sub-models for the probe that asked for it."""

    name = "variant"
    units: ClassVar = {}

    def __init__(self, probe: Probe, variant: Variant) -> None:
        super().__init__()
        self._variant = variant
        self._probe = probe

    def terms_for(self, *, labels: bool) -> Iterable[Term]:
        """The same as over the whole's."""
        return self._probe.terms_for(labels=labels)

    def update(self, batch: EvalBatch, sums: BlockSums) -> None:
        """Hand them on."""
        self._probe.update_variant(self._variant, batch, sums)
