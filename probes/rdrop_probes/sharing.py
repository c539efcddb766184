"""One differentiable pass and one set of backward passes for every probe that wants gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rdrop_probes.batch import Batch
from rdrop_probes.families import CATEGORICAL, Family
from rdrop_probes.gradients import GradientPass
from rdrop_probes.memory import is_out_of_memory
from rdrop_probes.neutral import entangled_sites, gradient_pass
from rdrop_probes.probe import Probe
from rdrop_probes.sites import Forward, SitePlan
from rdrop_probes.state import flags
from rdrop_probes.weighing import DEFAULT_MEMORY, GradientChoice, directions_wanted, pays_together, weigh

WEIGHED = 4  # examples on which is counted what a pass holds
NOT_DIFFERENTIABLE = "with dropout activated the model cannot be differentiated"

P = TypeVar("P", bound=Probe)


class SharedGradients:
    """The gradients of a model, for the probes that take them.

    A batch is taken in parts, each of which is a differentiable pass; what is held stays within `memory` bytes (as
    counted on a few examples). Numbers do not depend on the parts: random ones follow from `seed` and the example.

    Args:
        model: the network; used inside :func:`rdrop_probes.state.preserved`.
        forward: maps a batch's inputs to logits [N, ..., C] by calling `model`.
        plan: its sites.
        choice: a decision that was made before, by another worker or before a run was interrupted.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Forward,
        plan: SitePlan,
        *,
        seed: int = 0,
        family: Family = CATEGORICAL,
        memory: int | None = None,
        choice: GradientChoice | None = None,
    ) -> None:
        self.choice = choice
        self._model = model
        self._forward = forward
        self._plan = plan
        self._seed = seed
        self._family = family
        self._memory = DEFAULT_MEMORY if memory is None else memory
        self._repeats = not any(site.fires_in_eval for site in plan.sites.values())

    def choose(
        self, batch: Batch, takers: Sequence[Probe], rows: Tensor | None = None, *, timed: bool = True
    ) -> GradientChoice:
        """Decide on a batch how gradients are taken, unless that is decided; `rows` as for :meth:`feed`.

        Without `timed` no clock has a say: directions are pulled back together wherever that can be done.
        """
        if self.choice is None:
            self.choice = self._choose(batch, takers, rows, timed=timed)
        return self.choice

    def feed(self, batch: Batch, takers: Sequence[Probe], rows: Tensor | None = None) -> None:
        """Give the gradients of a batch to the probes that take them, in smaller parts from where memory runs out.

        `rows` [P, C] of the eval model, where they are known, spare a pass.
        """
        choice = self.choose(batch, takers, rows)
        first = 0
        while first < batch.n:
            end = min(first + choice.examples, batch.n)
            try:
                fed = self._part(batch, slice(first, end), takers, rows)
            except Exception as error:
                if not is_out_of_memory(error) or end - first == 1:
                    raise
                self.choice = choice = replace(choice, examples=(end - first) // 2)
                continue
            for probe, part in zip(takers, fed, strict=True):
                probe.merge(part)
            first = end

    def _part(self, batch: Batch, examples: slice, takers: Sequence[P], rows: Tensor | None) -> list[P]:
        """Probes like `takers` that were fed with some of the examples."""
        want_sites = any(p.needs_site_gradients for p in takers)
        try:
            return self._fed(self._pass(batch, examples, rows, want_sites=want_sites), takers)
        except RuntimeError as error:
            if is_out_of_memory(error) or not (want_sites and self._plan.stochastic):
                raise
        gradients = self._pass(batch, examples, rows, want_sites=False)  # a value was changed in place, for one
        gradients.unpredictable = dict.fromkeys(self._plan.sites, NOT_DIFFERENTIABLE)
        return self._fed(gradients, takers)

    def _fed(self, gradients: GradientPass, takers: Sequence[P]) -> list[P]:
        fresh = [type(probe)() for probe in takers]
        for made, probe in zip(fresh, takers, strict=True):
            made.start(self._plan, shared_masks=probe.shared_masks)
        folds = [fold for probe in fresh if (fold := probe.fold(gradients)) is not None]
        with flags(self._model, self._plan.eval_modules):  # checkpointed parts run again in the backward passes
            for row in gradients.rows() if folds else ():
                for fold in folds:
                    fold.add(row)
            for fold in folds:
                fold.close()
        return fresh

    def _pass(
        self,
        batch: Batch,
        examples: slice,
        rows: Tensor | None,
        *,
        want_sites: bool,
        choice: GradientChoice | None = None,
    ) -> GradientPass:
        part = batch.part(examples)
        choice = choice or self.choice or GradientChoice(part.n)
        return gradient_pass(
            self._model,
            partial(_rows, self._forward, part),
            self._plan,
            part.inputs,
            part.n,
            want_sites=want_sites,
            start=part.start,
            owners=part.owners,
            family=self._family,
            seed=self._seed,
            expected=_rows_of(batch, examples, rows) if self._repeats else None,
            entangled=choice.entangled,
            directions=choice.directions,
        )

    def _choose(self, batch: Batch, takers: Sequence[Probe], rows: Tensor | None, *, timed: bool) -> GradientChoice:
        run = partial(self._pass, batch, rows=rows, want_sites=any(p.needs_site_gradients for p in takers))
        inputs = any(p.needs_input_gradients for p in takers)
        device = next(self._model.parameters(), torch.empty(0)).device
        examples = 1
        try:
            weight = weigh(self._model, lambda: run(slice(0, min(WEIGHED, batch.n))), inputs=inputs)
            examples = weight.examples(batch.n, self._memory, device)
            gradients = run(slice(0, examples))
            with flags(self._model, self._plan.eval_modules):
                entangled = tuple(entangled_sites(gradients))
                together = weight.directions(directions_wanted(gradients), examples, self._memory, device)
                pays = together > 1 and pays_together(gradients, together, timed=timed)
        except Exception as error:  # every part finds out for itself
            return GradientChoice(max(1, examples // 2) if is_out_of_memory(error) else examples)
        return GradientChoice(examples, together if pays else 1, entangled)


def _rows_of(batch: Batch, examples: slice, rows: Tensor | None) -> Tensor | None:
    """Those of the rows [P, C] of a batch that belong to some of its examples."""
    if rows is None or batch.owners is None:
        return rows if rows is None else rows[examples]
    owners = batch.owners.to(rows.device)
    return rows[(owners >= examples.start) & (owners < examples.stop)]


def _rows(forward: Forward, batch: Batch, inputs: Any) -> Tensor:
    return batch.rows(forward(inputs))
