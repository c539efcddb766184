"""One batch, measured: its eval pass, sub-models, gradients, variants and repeats feed probes of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from rdrop_probes.batch import Batch
from rdrop_probes.distributions import EvalBatch
from rdrop_probes.items import Item, Votes
from rdrop_probes.memory import Space
from rdrop_probes.planning import Job, Plan, fresh, gradient_takers
from rdrop_probes.sites import SilentSiteError
from rdrop_probes.strategies import first_line
from rdrop_probes.summing import Summing


class ItemPasses:
    """The passes over one batch after the other, as planned."""

    def __init__(self, job: Job, plan: Plan, space: Space) -> None:
        self._job = job
        self._plan = plan
        self._space = space
        self._failures: dict[str, str] = {}

    def item(self, batch: Batch, progress: Callable[[int], None]) -> Item:
        """Measure one batch."""
        plan, sub_models = self._plan, self._plan.sub_models
        steps = _steps(batch.n, 1 + plan.variants.count)
        item = Item(batch.start, batch.n, fresh(self._job, plan))
        family, memory = self._job.family, plan.settings.memory
        summing = Summing(batch, plan.sites, sub_models, item.probes, family, memory=memory, space=self._space)
        outputs = batch.rows(sub_models.eval_logits(batch.inputs, batch.n, batch.start))
        if summing.terms and not plan.sites.erratic:
            self._check_silent(batch)
        _sum(summing, outputs, item)
        self._feed_gradients(item, batch, outputs)
        progress(next(steps))
        for _ in plan.variants.feed(batch, outputs, item.probes):
            progress(next(steps))
        self._repeat(item, batch, outputs)
        item.ran = bool(summing.terms) and plan.sites.stochastic
        item.buffers = set(sub_models.changed_buffers)
        item.fired = set(sub_models.fired)
        return item

    def _check_silent(self, batch: Batch) -> None:
        """No batch may draw where the first did not: a branch may depend on the data."""
        found = self._plan.sub_models.draws(batch.inputs, batch.n, batch.start)
        if unplanned := [path or "(root)" for path, _ in found - set(self._plan.sites.sites)]:
            where = ", ".join(sorted(set(unplanned)))
            last = batch.start + batch.n - 1
            raise SilentSiteError(
                f"dropout at {where} draws on examples {batch.start} to {last} but not on the first: put some first"
            )

    def _feed_gradients(self, item: Item, batch: Batch, outputs: Tensor) -> None:
        """Gradients for the probes that take them, unless there were none before."""
        item.failures = self._failures
        takers = gradient_takers(item.probes)
        if not takers or item.failures:
            return
        try:
            self._plan.gradients.feed(batch, takers, outputs)
        except Exception as problem:  # a model may have anything in it that autograd cannot follow
            item.failures = self._failures = dict.fromkeys((p.name for p in takers), first_line(problem))

    def _repeat(self, item: Item, batch: Batch, outputs: Tensor) -> None:
        """Eval passes in other ways, for the probes that take them."""
        takers = [probe for probe in item.probes if probe.wants_repeats]
        if not takers or self._plan.repeats is None:
            return
        owners = None if batch.owners is None else batch.owners.to(outputs.device)
        n = None if owners is None else batch.n
        seen = EvalBatch(batch.start, batch.inputs, outputs, owners=owners, n=n, family=self._job.family)
        for probe in takers:
            probe.update_repeats(self._plan.repeats, seen, batch)


def _sum(summing: Summing, outputs: Tensor, item: Item) -> None:
    """Run the sub-models, which feeds the probes, and note predictions and votes."""
    for seen, votes in summing.run(outputs):
        item.rows += len(seen.logits)
        if seen.owners is None:
            item.predictions.append(seen.prediction.cpu().numpy())
        if votes is not None:
            item.votes.append(Votes.of(votes))


def _steps(n: int, parts: int) -> Iterator[int]:
    """The numbers in which n examples are done in so many parts."""
    return (n * (part + 1) // parts - n * part // parts for part in range(parts))
