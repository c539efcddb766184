"""What is found and decided on the first batch of a run, once for all its workers: sites, K, strategy, gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rdrop_probes.batch import Batch, take
from rdrop_probes.columns import State
from rdrop_probes.discovery import find_sites
from rdrop_probes.divergences import agree
from rdrop_probes.families import Family
from rdrop_probes.items import Work
from rdrop_probes.memory import SHARE_OF_GRADIENTS, Space
from rdrop_probes.precision import Pilot, run_pilot
from rdrop_probes.probe import Probe
from rdrop_probes.repeats import Repeats
from rdrop_probes.selection import Case, Selection, Stage
from rdrop_probes.settings import Settings, effective
from rdrop_probes.sharing import SharedGradients
from rdrop_probes.sites import Forward, SitePlan
from rdrop_probes.state import flags
from rdrop_probes.strategies import Choice
from rdrop_probes.submodels import SubModels
from rdrop_probes.variant_runs import VariantRuns
from rdrop_probes.weighing import GradientChoice

SAMPLE = 256  # numbers of each output by which equal models are known
SAMPLE_EXAMPLES, SAMPLE_SUB_MODELS = 4, 2


@dataclass(frozen=True)
class Job:
    """What is to be measured, and how; the fields are the arguments of :func:`rdrop_probes.measure.measure`."""

    model: nn.Module
    forward: Forward
    probes: Sequence[type[Probe]]
    settings: Settings
    family: Family
    work: Work
    pilot: Pilot | None
    selection: Selection | None
    stage: Stage


@dataclass
class Plan:
    """What was found and decided.

    Attributes:
        sites: where the model draws. settings: as the sites and the pilot make them.
        sub_models, variants, gradients, repeats: what runs the passes; no repeats where no probe wants them.
        computed: what probes found on the examples selected, by name. findings: message by code.
        foreseen: half the interval of the mean EPKL over masks, relative to it, that a pilot foretold.
    """

    sites: SitePlan
    settings: Settings
    sub_models: SubModels
    variants: VariantRuns
    gradients: SharedGradients
    repeats: Repeats | None = None
    computed: dict[str, State] = field(default_factory=dict)
    findings: dict[str, str] = field(default_factory=dict)
    foreseen: float | None = None

    @property
    def strategy(self) -> str:
        """How sub-models were run, and why so."""
        how = str(self.sub_models.choice or self.settings.strategy) if self.sites.stochastic else "eval pass only"
        precision = self.settings.precision
        return how if precision is None else f"{how}; passes in {precision}"


def plan_for(job: Job, batch: Batch, space: Space) -> Plan:
    """Find the sites on a few examples of the first batch, check the eval model, and decide how to run."""

    def run(n: int) -> Tensor:
        return job.forward(take(batch.inputs, torch.arange(n) % batch.n))

    sites = find_sites(job.model, run, batch.n)
    findings: dict[str, str] = {}
    settings = effective(job.settings, sites, findings)
    shared = settings.masks == "shared"
    job.work.begin({"sites": _facts(sites), "sample": _sample(job, sites, settings, batch), "shared_masks": shared})
    settings, foreseen = _with_sub_models(job, sites, settings)
    sub_models = SubModels(
        job.model,
        job.forward,
        sites,
        count=settings.sub_models,
        seed=settings.seed,
        masks=settings.masks,
        strategy=settings.strategy,
        chunk=settings.chunk,
    )
    findings |= _eval_findings(job, sites, run)
    _choose_strategy(job, sites, sub_models, batch)
    variants = VariantRuns(job.model, sites, sub_models, settings, job.family, space)
    variants.choose(batch, started(job, sites, settings), job.work)
    found = Plan(sites, settings, sub_models, variants, _gradients(job, sites, settings), findings=findings)
    found.foreseen = foreseen
    _choose_gradients(job, found, batch)
    found.computed = _computed(job, found)
    if any(kind.wants_repeats for kind in job.probes):
        found.repeats = Repeats(job.model, job.forward, sites, batch, settings.precision)
    return found


def started(job: Job, sites: SitePlan, settings: Settings) -> list[Probe]:
    """Probes that know the sites."""
    probes = [kind() for kind in job.probes]
    for probe in probes:
        probe.start(sites, shared_masks=settings.masks == "shared")
    return probes


def fresh(job: Job, plan: Plan) -> list[Probe]:
    """Probes that have been fed nothing, and know the sites and the variants."""
    probes = started(job, plan.sites, plan.settings)
    for probe in probes:
        plan.variants.wanted(probe)
    return probes


def gradient_takers(probes: Sequence[Probe]) -> list[Probe]:
    """Those that want gradients."""
    return [probe for probe in probes if probe.needs_input_gradients or probe.needs_site_gradients]


def _with_sub_models(job: Job, sites: SitePlan, settings: Settings) -> tuple[Settings, float | None]:
    """With as many sub-models as a pilot finds to make the interval as tight as asked, and what it foretells."""
    pilot, tolerance = job.pilot, settings.tolerance
    if tolerance is None or pilot is None or not sites.stochastic:
        return settings, None

    def decide() -> dict[str, Any]:
        run = run_pilot(job.model, job.forward, sites, pilot, settings=settings, family=job.family)
        k = pilot.known or run.enough(tolerance)
        return {"sub_models": k, "half_width": run.half_width(k)}

    decided = job.work.decide("sub_models", decide)
    return replace(settings, sub_models=decided["sub_models"]), float(decided["half_width"])


def _choose_strategy(job: Job, sites: SitePlan, sub_models: SubModels, batch: Batch) -> None:
    """Decide how sub-models are run."""
    terms = [term for kind in job.probes for term in kind().terms_for(labels=batch.labels is not None)]
    if terms and sites.stochastic:
        decided = job.work.decide("choice", lambda: sub_models.choose(batch.inputs, batch.n, batch.start).plain())
        sub_models.choice = Choice(**decided)


def _gradients(job: Job, sites: SitePlan, settings: Settings) -> SharedGradients:
    memory = None if settings.memory is None else settings.memory // SHARE_OF_GRADIENTS
    return SharedGradients(job.model, job.forward, sites, seed=settings.seed, family=job.family, memory=memory)


def _choose_gradients(job: Job, plan: Plan, batch: Batch) -> None:
    """Decide how gradients are taken."""
    takers, timed = gradient_takers(fresh(job, plan)), plan.settings.strategy == "auto"
    if takers:
        chosen = job.work.decide("gradients", lambda: plan.gradients.choose(batch, takers, timed=timed).plain())
        plan.gradients.choice = GradientChoice.made(chosen)


def _computed(job: Job, plan: Plan) -> dict[str, State]:
    """What probes compute on the examples selected."""
    if job.selection is None:
        return {}
    case = Case(job.model, job.forward, plan.sites, job.selection, plan.settings.seed, job.family, job.stage)
    return {
        kind.name: job.work.decide(f"computed.{kind.name}", partial(kind.compute, case))
        for kind in job.probes
        if kind.together
    }


def _eval_findings(job: Job, sites: SitePlan, run: Callable[[int], Tensor]) -> dict[str, str]:
    """Dirty eval: sites that fire, or outputs that differ, with dropout off."""
    findings = {}
    dirty = [site.key[0] or "(root)" for site in sites.sites.values() if site.fires_in_eval]
    with torch.no_grad(), flags(job.model, sites.eval_modules):
        first, second = run(2), run(2)
    if dirty:
        where = ", ".join(dict.fromkeys(dirty))
        findings["dirty_eval"] = f"the model draws randomness in eval mode, at {where}: one draw is taken"
    elif not agree(first, second):
        findings["dirty_eval"] = "two eval passes over the same examples differ"
    if sites.uncontrolled:
        text = "two passes under the same masks differ: these numbers do not follow from the seed alone"
        findings["uncontrolled_randomness"] = text
    return findings


def _sample(job: Job, sites: SitePlan, settings: Settings, batch: Batch) -> list[float]:
    """Some of the numbers that the eval model and two sub-models give, in whole passes over a few examples.

    None where they do not follow from the seed.
    """
    if sites.uncontrolled:
        return []
    n = min(batch.n, SAMPLE_EXAMPLES)
    passes = SubModels(
        job.model,
        job.forward,
        sites,
        count=SAMPLE_SUB_MODELS if sites.stochastic else 0,
        seed=settings.seed,
        masks=settings.masks,
        choice=Choice("loop"),
    )
    few = take(batch.inputs, torch.arange(n))
    outputs = [passes.eval_logits(few, n, batch.start)]
    outputs += [chunk.logits for chunk in passes.logits(few, n, batch.start)]
    return [float(value) for output in outputs for value in _spread(output)]


def _facts(sites: SitePlan) -> list[list[object]]:
    """What the sites are, as plain data."""
    return [[*site.key, site.kind, site.rate, list(site.draw_shape)] for site in sites.sites.values()]


def _spread(output: Tensor) -> Tensor:
    """Some numbers from all over an output."""
    numbers = output.detach().flatten()
    return numbers[torch.linspace(0, len(numbers) - 1, min(SAMPLE, len(numbers))).long()].cpu()
