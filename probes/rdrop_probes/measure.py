"""One pass over the data feeds every probe: eval pass, sub-model passes and gradient passes run once, shared.

Each batch is a work item with probes of its own; the measurement is the merge of all items in the order of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from rdrop_probes.batch import Batch, take
from rdrop_probes.columns import State
from rdrop_probes.discovery import find_sites
from rdrop_probes.distributions import EvalBatch
from rdrop_probes.divergences import agree
from rdrop_probes.families import CATEGORICAL, Family
from rdrop_probes.items import Item, Votes, Work
from rdrop_probes.measurement import Measurement
from rdrop_probes.memory import SHARE_OF_GRADIENTS, Space
from rdrop_probes.precision import Pilot, run_pilot
from rdrop_probes.probe import Probe
from rdrop_probes.repeats import Repeats
from rdrop_probes.selection import Case, Selection
from rdrop_probes.settings import Settings, effective
from rdrop_probes.sharing import SharedGradients
from rdrop_probes.sites import Forward, SilentSiteError, SiteKey, SitePlan
from rdrop_probes.state import flags, preserved
from rdrop_probes.strategies import Choice, first_line
from rdrop_probes.submodels import SubModels
from rdrop_probes.summing import Summing
from rdrop_probes.variant_runs import VariantRuns
from rdrop_probes.weighing import GradientChoice

SAMPLE = 256  # numbers of each output by which equal models are known
SAMPLE_EXAMPLES, SAMPLE_SUB_MODELS = 4, 2


def measure(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    forward: Forward,
    probes: Sequence[type[Probe]],
    settings: Settings,
    family: Family = CATEGORICAL,
    progress: Callable[[int], None] = lambda _: None,
    work: Work | None = None,
    pilot: Pilot | None = None,
    selection: Selection | None = None,
) -> Measurement:
    """Measure `model` on `batches` (at least one); it is left exactly as it was found.

    Args:
        model: the network.
        forward: maps a batch's inputs to logits [N, C], or [N, ..., C] with `places`, by calling `model`.
        batches: every example once, in order; each batch is a work item.
        probes: classes of the probes to feed.
        settings: number of sub-models, seed, masks, strategy.
        family: what a row of the output stands for; a categorical distribution by default.
        progress: called now and then with how many more examples are done: after each item that is measured here, and
            within it where variants of its sub-models are run as well.
        pilot: with `settings.tolerance`, the examples by which the number of sub-models is chosen.
        selection: the examples for probes that compute on some of them together, if there are such probes.
        work: which items are measured here and what becomes of them; by default all of them, in memory.

    Raises:
        NotFiniteError: NaN or +infinity among the logits, naming the example and the sub-model.
        SilentSiteError: dropout that was activated did not draw.
        PartDone: the items were measured, and are merged elsewhere.
    """
    with preserved(model):
        return _Pass(model, forward, probes, settings, family, work or Work(), pilot, selection).run(batches, progress)


class _Pass:
    """One pass over the data."""

    def __init__(
        self,
        model: nn.Module,
        forward: Forward,
        probes: Sequence[type[Probe]],
        settings: Settings,
        family: Family,
        work: Work,
        pilot: Pilot | None,
        selection: Selection | None,
    ) -> None:
        self._model = model
        self._forward = forward
        self._kinds = probes
        self._settings = settings
        self._family = family
        self._work = work
        self._pilot = pilot
        self._selection = selection
        self._computed: dict[str, State] = {}
        self._space = Space()
        self._foreseen: float | None = None
        self._findings: dict[str, str] = {}
        self._failures: dict[str, str] = {}

    def run(self, batches: Iterable[Batch], progress: Callable[[int], None]) -> Measurement:
        rest = iter(batches)
        first = next(rest, None)
        if first is None:
            raise ValueError("no examples to measure on")
        self._plan_for(first)
        for batch in chain([first], rest):
            if self._work.wants(batch.start):
                self._work.put(self._item(batch, progress))
        return self._measurement(self._merged())

    def _plan_for(self, batch: Batch) -> None:
        """Find the sites on a few examples of the first batch, check the eval model, and decide how to run."""

        def run(n: int) -> Tensor:
            return self._forward(take(batch.inputs, torch.arange(n) % batch.n))

        self._plan = find_sites(self._model, run, batch.n)
        self._settings = effective(self._settings, self._plan, self._findings)
        self._work.begin(
            {
                "sites": _site_facts(self._plan),
                "sample": self._sample(batch),
                "shared_masks": self._settings.masks == "shared",
            }
        )
        self._choose_sub_models()
        settings = self._settings
        self._sub_models = SubModels(
            self._model,
            self._forward,
            self._plan,
            count=settings.sub_models,
            seed=settings.seed,
            masks=settings.masks,
            strategy=settings.strategy,
            chunk=settings.chunk,
        )
        self._check_eval(run)
        self._choose_strategy(batch)
        self._variants = VariantRuns(self._model, self._plan, self._sub_models, settings, self._family, self._space)
        self._variants.choose(batch, self._started(), self._work)
        self._choose_gradients(batch)
        self._compute_together()
        if any(kind.wants_repeats for kind in self._kinds):
            self._repeats = Repeats(self._model, self._forward, self._plan, batch, settings.precision)

    def _compute_together(self) -> None:
        """Let probes compute on the examples selected, once for all workers."""
        if self._selection is None:
            return
        case = Case(self._model, self._forward, self._plan, self._selection, self._settings.seed, self._family)
        for kind in self._kinds:
            if kind.together:
                self._computed[kind.name] = self._work.decide(f"computed.{kind.name}", partial(kind.compute, case))

    def _choose_sub_models(self) -> None:
        """Decide by a pilot how many sub-models make the interval as tight as asked."""
        settings, pilot, tolerance = self._settings, self._pilot, self._settings.tolerance
        if tolerance is None or pilot is None or not self._plan.stochastic:
            return

        def decide() -> dict[str, Any]:
            run = run_pilot(self._model, self._forward, self._plan, pilot, settings=settings, family=self._family)
            k = pilot.known or run.enough(tolerance)
            return {"sub_models": k, "half_width": run.half_width(k)}

        decided = self._work.decide("sub_models", decide)
        self._settings = replace(settings, sub_models=decided["sub_models"])
        self._foreseen = float(decided["half_width"])

    def _choose_strategy(self, batch: Batch) -> None:
        """Decide on the first batch of all data, once for all workers, how sub-models are run."""
        terms = [term for kind in self._kinds for term in kind().terms_for(labels=batch.labels is not None)]
        if not (terms and self._plan.stochastic):
            return
        ours = self._sub_models
        ours.choice = Choice(
            **self._work.decide("choice", lambda: ours.choose(batch.inputs, batch.n, batch.start).plain())
        )

    def _choose_gradients(self, batch: Batch) -> None:
        """Decide likewise how gradients are taken."""
        self._gradients = SharedGradients(
            self._model,
            self._forward,
            self._plan,
            seed=self._settings.seed,
            family=self._family,
            memory=None if self._settings.memory is None else self._settings.memory // SHARE_OF_GRADIENTS,
        )
        takers, timed = _takers(self._fresh()), self._settings.strategy == "auto"
        if takers:
            chosen = self._work.decide("gradients", lambda: self._gradients.choose(batch, takers, timed=timed).plain())
            self._gradients.choice = GradientChoice.made(chosen)

    def _check_eval(self, run: Callable[[int], Tensor]) -> None:
        """Dirty eval: sites that fire, or outputs that differ, with dropout off."""
        dirty = [site.key[0] or "(root)" for site in self._plan.sites.values() if site.fires_in_eval]
        with torch.no_grad(), flags(self._model, self._plan.eval_modules):
            first, second = run(2), run(2)
        if dirty:
            where = ", ".join(dict.fromkeys(dirty))
            self._findings["dirty_eval"] = f"the model draws randomness in eval mode, at {where}: one draw is taken"
        elif not agree(first, second):
            self._findings["dirty_eval"] = "two eval passes over the same examples differ"
        if self._plan.uncontrolled:
            text = "two passes under the same masks differ: these numbers do not follow from the seed alone"
            self._findings["uncontrolled_randomness"] = text

    def _sample(self, batch: Batch) -> list[float]:
        """Some of the numbers that the eval model and two sub-models give, in whole passes over a few examples.

        None where they do not follow from the seed.
        """
        if self._plan.uncontrolled:
            return []
        n, settings = min(batch.n, SAMPLE_EXAMPLES), self._settings
        passes = SubModels(
            self._model,
            self._forward,
            self._plan,
            count=SAMPLE_SUB_MODELS if self._plan.stochastic else 0,
            seed=settings.seed,
            masks=settings.masks,
            choice=Choice("loop"),
        )
        few = take(batch.inputs, torch.arange(n))
        outputs = [passes.eval_logits(few, n, batch.start)]
        outputs += [chunk.logits for chunk in passes.logits(few, n, batch.start)]
        return [float(value) for output in outputs for value in _spread(output)]

    def _started(self) -> list[Probe]:
        """Probes that know the sites."""
        probes = [kind() for kind in self._kinds]
        for probe in probes:
            probe.start(self._plan, shared_masks=self._settings.masks == "shared")
        return probes

    def _fresh(self) -> list[Probe]:
        """Probes that have been fed nothing, and know the sites and the variants."""
        probes = self._started()
        for probe in probes:
            self._variants.wanted(probe)
        return probes

    def _item(self, batch: Batch, progress: Callable[[int], None]) -> Item:
        """Measure one batch."""
        steps = _steps(batch.n, 1 + self._variants.count)
        item = Item(batch.start, batch.n, self._fresh())
        summing = Summing(
            batch,
            self._plan,
            self._sub_models,
            item.probes,
            self._family,
            memory=self._settings.memory,
            space=self._space,
        )
        outputs = batch.rows(self._sub_models.eval_logits(batch.inputs, batch.n, batch.start))
        if summing.terms and not self._plan.erratic:
            self._check_silent(batch)
        for seen, votes in summing.run(outputs):
            item.rows += len(seen.logits)
            if seen.owners is None:
                item.predictions.append(seen.prediction.cpu().numpy())
            if votes is not None:
                item.votes.append(Votes.of(votes))
        self._feed_gradients(item, batch, outputs)
        progress(next(steps))
        for _ in self._variants.feed(batch, outputs, item.probes):
            progress(next(steps))
        self._repeat(item, batch, outputs)
        item.ran = bool(summing.terms) and self._plan.stochastic
        item.buffers = set(self._sub_models.changed_buffers)
        item.fired = set(self._sub_models.fired)
        return item

    def _repeat(self, item: Item, batch: Batch, outputs: Tensor) -> None:
        """Eval passes in other ways, for the probes that take them."""
        takers = [probe for probe in item.probes if probe.wants_repeats]
        if not takers:
            return
        owners = None if batch.owners is None else batch.owners.to(outputs.device)
        n = None if owners is None else batch.n
        seen = EvalBatch(batch.start, batch.inputs, outputs, owners=owners, n=n, family=self._family)
        for probe in takers:
            probe.update_repeats(self._repeats, seen, batch)

    def _check_silent(self, batch: Batch) -> None:
        """No batch may draw where the first did not: a branch may depend on the data."""
        found = self._sub_models.draws(batch.inputs, batch.n, batch.start)
        if unplanned := [path or "(root)" for path, _ in found - set(self._plan.sites)]:
            where = ", ".join(sorted(set(unplanned)))
            last = batch.start + batch.n - 1
            raise SilentSiteError(
                f"dropout at {where} draws on examples {batch.start} to {last} but not on the first: put some first"
            )

    def _feed_gradients(self, item: Item, batch: Batch, outputs: Tensor) -> None:
        """Gradients for the probes that take them, unless there were none before."""
        item.failures = self._failures
        takers = _takers(item.probes)
        if not takers or item.failures:
            return
        try:
            self._gradients.feed(batch, takers, outputs)
        except Exception as problem:  # a model may have anything in it that autograd cannot follow
            item.failures = self._failures = dict.fromkeys((p.name for p in takers), first_line(problem))

    def _merged(self) -> Item:
        """All items in the order of the data, as one."""
        merged = Item(0, 0, self._fresh())
        for item in self._work.items(self._fresh):
            merged.merge(item)
        for probe in merged.probes:
            if probe.name in self._computed:
                probe.take(self._computed[probe.name])
        return merged

    def _measurement(self, found: Item) -> Measurement:
        if found.ran:
            _check_fired(self._plan, found.fired)
        findings = dict(self._findings)
        if found.failures:
            text = f"{', '.join(found.failures)} left out: {next(iter(found.failures.values()))}"
            findings["gradients_unavailable"] = text
        if not self._plan.stochastic:
            findings["no_dropout"] = "the model draws nothing in train mode: sub-models are the eval model"
        if found.buffers:
            names = ", ".join(sorted(found.buffers)[:3])
            findings["buffers_change"] = f"with dropout on, buffers change ({names}); they are put back"
        result = Measurement(
            self._plan,
            findings=findings,
            strategy=self._strategy,
            shared_masks=self._settings.masks == "shared",
            sub_models=self._settings.sub_models,
            foreseen=self._foreseen,
            rows=found.rows,
        )
        result.collect([probe for probe in found.probes if probe.name not in found.failures])
        result.take_votes(found.predictions, found.votes)
        return result

    @property
    def _strategy(self) -> str:
        """How sub-models were run, and why so."""
        how = str(self._sub_models.choice or self._settings.strategy) if self._plan.stochastic else "eval pass only"
        precision = self._settings.precision
        return how if precision is None else f"{how}; passes in {precision}"


def _steps(n: int, parts: int) -> Iterator[int]:
    """The numbers in which n examples are done in so many parts."""
    return (n * (part + 1) // parts - n * part // parts for part in range(parts))


def _takers(probes: Sequence[Probe]) -> list[Probe]:
    """Those that want gradients."""
    return [probe for probe in probes if probe.needs_input_gradients or probe.needs_site_gradients]


def _check_fired(plan: SitePlan, fired: set[SiteKey]) -> None:
    """Every site of the plan draws in some batch, or measuring would report a false consistency."""
    if (plan.erratic or plan.varying) and fired:
        return  # a rare site may have had no turn
    certain = {key for key, site in plan.sites.items() if site.rate == 1}
    if silent := set(plan.sites) - fired - certain:
        raise SilentSiteError(f"dropout at {', '.join(sorted(path for path, _ in silent))} never drew")


def _site_facts(plan: SitePlan) -> list[list[object]]:
    """What the sites are, as plain data."""
    return [[*site.key, site.kind, site.rate, list(site.draw_shape)] for site in plan.sites.values()]


def _spread(output: Tensor) -> Tensor:
    """Some numbers from all over an output."""
    numbers = output.detach().flatten()
    return numbers[torch.linspace(0, len(numbers) - 1, min(SAMPLE, len(numbers))).long()].cpu()
