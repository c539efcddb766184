"""One pass over the data feeds every probe: eval pass, sub-model passes and gradient passes run once, shared.

Each batch is a work item with probes of its own; the measurement is the merge of all items in the order of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain

from torch import nn

from rdrop_probes.batch import Batch
from rdrop_probes.families import CATEGORICAL, Family
from rdrop_probes.item_passes import ItemPasses
from rdrop_probes.items import Item, Work
from rdrop_probes.measurement import Measurement
from rdrop_probes.memory import Space
from rdrop_probes.planning import Job, Plan, fresh, plan_for
from rdrop_probes.precision import Pilot
from rdrop_probes.probe import Probe
from rdrop_probes.selection import Selection, Stage
from rdrop_probes.settings import Settings
from rdrop_probes.sites import Forward, SilentSiteError, SiteKey, SitePlan
from rdrop_probes.state import preserved


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
    stage: Stage = lambda *_: None,
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
        stage: told how far these are, before the pass over the data.
        work: which items are measured here and what becomes of them; by default all of them, in memory.

    Raises:
        NotFiniteError: NaN or +infinity among the logits, naming the example and the sub-model.
        SilentSiteError: dropout that was activated did not draw.
        PartDone: the items were measured, and are merged elsewhere.
    """
    job = Job(model, forward, probes, settings, family, work or Work(), pilot, selection, stage)
    with preserved(model):
        return _run(job, batches, progress)


def _run(job: Job, batches: Iterable[Batch], progress: Callable[[int], None]) -> Measurement:
    rest = iter(batches)
    first = next(rest, None)
    if first is None:
        raise ValueError("no examples to measure on")
    space = Space()
    plan = plan_for(job, first, space)
    passes = ItemPasses(job, plan, space)
    for batch in chain([first], rest):
        if job.work.wants(batch.start):
            job.work.put(passes.item(batch, progress))
    return _measurement(plan, _merged(job, plan))


def _merged(job: Job, plan: Plan) -> Item:
    """All items in the order of the data, as one."""
    merged = Item(0, 0, fresh(job, plan))
    for item in job.work.items(lambda: fresh(job, plan)):
        merged.merge(item)
    for probe in merged.probes:
        if probe.name in plan.computed:
            probe.take(plan.computed[probe.name])
    return merged


def _measurement(plan: Plan, found: Item) -> Measurement:
    if found.ran:
        _check_fired(plan.sites, found.fired)
    result = Measurement(
        plan.sites,
        findings=plan.findings | _findings(plan, found),
        strategy=plan.strategy,
        shared_masks=plan.settings.masks == "shared",
        sub_models=plan.settings.sub_models,
        foreseen=plan.foreseen,
        rows=found.rows,
    )
    result.collect([probe for probe in found.probes if probe.name not in found.failures])
    result.take_votes(found.predictions, found.votes)
    return result


def _findings(plan: Plan, found: Item) -> dict[str, str]:
    """What the reader has to know of the pass itself."""
    findings = {}
    if found.failures:
        text = f"{', '.join(found.failures)} left out: {next(iter(found.failures.values()))}"
        findings["gradients_unavailable"] = text
    if not plan.sites.stochastic:
        findings["no_dropout"] = "the model draws nothing in train mode: sub-models are the eval model"
    if plan.sites.alike:
        findings["alike_sub_models"] = "all sub-models are alike, if not the eval model: no mask is random"
    if found.buffers:
        names = ", ".join(sorted(found.buffers)[:3])
        findings["buffers_change"] = f"with dropout on, buffers change ({names}); they are put back"
    return findings


def _check_fired(sites: SitePlan, fired: set[SiteKey]) -> None:
    """Every site of the plan draws in some batch, or measuring would report a false consistency."""
    if (sites.erratic or sites.varying) and fired:
        return  # a rare site may have had no turn
    certain = {key for key, site in sites.sites.items() if site.rate == 1}
    if silent := set(sites.sites) - fired - certain:
        raise SilentSiteError(f"dropout at {', '.join(sorted(path for path, _ in silent))} never drew")
