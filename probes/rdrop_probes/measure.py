"""One pass over the data feeds every probe: eval pass, sub-model passes and gradient passes run once, shared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from rdrop_probes.batch import Batch, take
from rdrop_probes.discovery import draws, find_sites
from rdrop_probes.divergences import agree
from rdrop_probes.families import CATEGORICAL, Family
from rdrop_probes.measurement import Measurement
from rdrop_probes.probe import Probe
from rdrop_probes.settings import Settings, effective
from rdrop_probes.sharing import share_gradients
from rdrop_probes.sites import Forward, SilentSiteError, SitePlan
from rdrop_probes.state import flags, preserved
from rdrop_probes.submodels import SubModels, first_line
from rdrop_probes.summing import Summing


def measure(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    forward: Forward,
    probes: Sequence[type[Probe]],
    settings: Settings,
    family: Family = CATEGORICAL,
    progress: Callable[[int], None] = lambda _: None,
) -> Measurement:
    """Measure `model` on `batches` (at least one); it is left exactly as it was found.

    Args:
        model: the network.
        forward: maps a batch's inputs to logits [N, C], or [N, ..., C] with `places`, by calling `model`.
        batches: every example once.
        probes: classes of the probes to feed.
        settings: number of sub-models, seed, masks, strategy.
        family: what a row of the output stands for; a categorical distribution by default.
        progress: called after each batch with its number of examples.

    Raises:
        NotFiniteError: NaN or +infinity among the logits, naming the example and the sub-model.
        SilentSiteError: dropout that was activated did not draw.
    """
    with preserved(model):
        taken = [probe() for probe in probes]
        return _Pass(model, forward, taken, settings, family).run(batches, progress)


class _Pass:
    """The state of one pass."""

    def __init__(
        self, model: nn.Module, forward: Forward, probes: list[Probe], settings: Settings, family: Family
    ) -> None:
        self._model = model
        self._forward = forward
        self._probes = probes
        self._settings = settings
        self._family = family
        self._findings: dict[str, str] = {}
        self._predictions: list[Tensor] = []
        self._votes: list[Tensor] = []

    def run(self, batches: Iterable[Batch], progress: Callable[[int], None]) -> Measurement:
        sub_models: SubModels | None = None
        plan: SitePlan | None = None
        for item, batch in enumerate(batches):
            if plan is None or sub_models is None:
                plan, sub_models = self._plan(batch)
            self._batch(item, batch, plan, sub_models)
            progress(batch.n)
        if plan is None or sub_models is None:
            raise ValueError("no examples to measure on")
        sub_models.check_all_fired()
        return self._measurement(plan, sub_models)

    def _plan(self, batch: Batch) -> tuple[SitePlan, SubModels]:
        """Find the sites on a few examples and check the eval model."""

        def run(n: int) -> Tensor:
            return self._forward(take(batch.inputs, torch.arange(n) % batch.n))

        plan = find_sites(self._model, run, batch.n)
        self._settings = effective(self._settings, plan, self._findings)
        shared = self._settings.masks == "shared"
        for probe in self._probes:
            probe.start(plan, shared_masks=shared)
        settings = self._settings
        sub_models = SubModels(
            self._model,
            self._forward,
            plan,
            count=settings.sub_models,
            seed=settings.seed,
            masks=settings.masks,
            strategy=settings.strategy,
            chunk=settings.chunk,
        )
        self._check_eval(run, plan)
        return plan, sub_models

    def _check_eval(self, run: Callable[[int], Tensor], plan: SitePlan) -> None:
        """Dirty eval: sites that fire, or outputs that differ, with dropout off."""
        dirty = [site.key[0] or "(root)" for site in plan.sites.values() if site.fires_in_eval]
        with torch.no_grad(), flags(self._model, plan.eval_modules):
            first, second = run(2), run(2)
        if dirty:
            where = ", ".join(dict.fromkeys(dirty))
            self._findings["dirty_eval"] = f"the model draws randomness in eval mode, at {where}: one draw is taken"
        elif not agree(first, second):
            self._findings["dirty_eval"] = "two eval passes over the same examples differ"
        if plan.uncontrolled:
            text = "two passes under the same masks differ: these numbers do not follow from the seed alone"
            self._findings["uncontrolled_randomness"] = text

    def _batch(self, item: int, batch: Batch, plan: SitePlan, sub_models: SubModels) -> None:
        summing = Summing(batch, item, plan, sub_models, self._probes, self._family)
        outputs = batch.rows(sub_models.eval_logits(batch.inputs, batch.n, item))
        if summing.terms and not plan.erratic:
            self._check_silent(plan, batch)
        for seen, votes in summing.run(outputs):
            self._predictions.append(seen.prediction.cpu())
            if votes is not None:
                self._votes.append(votes)
        self._gradients(item, batch, plan)

    def _check_silent(self, plan: SitePlan, batch: Batch) -> None:
        """No batch may draw where the first did not: a branch may depend on the data."""
        found = draws(self._model, plan.train_modules, lambda: self._forward(batch.inputs))
        if unplanned := [path or "(root)" for path, ordinal in found if (path, ordinal) not in plan.sites]:
            where = ", ".join(sorted(set(unplanned)))
            last = batch.start + batch.n - 1
            raise SilentSiteError(
                f"dropout at {where} draws on examples {batch.start} to {last} but not on the first: put some first"
            )

    def _gradients(self, item: int, batch: Batch, plan: SitePlan) -> None:
        takers = [p for p in self._probes if p.needs_input_gradients or p.needs_site_gradients]
        if not takers:
            return
        try:
            share_gradients(
                self._model,
                self._forward,
                plan,
                batch,
                takers,
                item=item,
                seed=self._settings.seed,
                family=self._family,
            )
        except Exception as problem:  # a model may have anything in it that autograd cannot follow
            names = ", ".join(probe.name for probe in takers)
            self._findings["gradients_unavailable"] = f"{names} left out: {first_line(problem)}"
            self._probes = [p for p in self._probes if p not in takers]

    def _measurement(self, plan: SitePlan, sub_models: SubModels) -> Measurement:
        result = Measurement(plan, {}, {}, findings=self._findings, shared_masks=self._settings.masks == "shared")
        if plan.stochastic:
            result.strategy = (
                f"{sub_models.strategy}: {sub_models.reason}" if sub_models.reason else sub_models.strategy
            )
        else:
            result.strategy = "eval pass only"
            result.findings["no_dropout"] = "the model draws nothing in train mode: sub-models are the eval model"
        if sub_models.changed_buffers:
            names = ", ".join(sub_models.changed_buffers[:3])
            result.findings["buffers_change"] = f"with dropout on, buffers change ({names}); they are put back"
        result.collect(self._probes)
        result.predictions = torch.cat(self._predictions)
        if self._votes:
            result.votes = torch.cat(self._votes)
        return result
