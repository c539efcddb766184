"""One pass over the data feeds every probe: eval pass, sub-model passes and gradient passes run once, shared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rdrop_probes.columns import Column
from rdrop_probes.discovery import draws, find_sites
from rdrop_probes.divergences import agree
from rdrop_probes.families import CATEGORICAL, Family
from rdrop_probes.masks import GRADIENT_STREAM, Masks, stream
from rdrop_probes.neutral import gradient_pass
from rdrop_probes.probe import Probe
from rdrop_probes.sites import Forward, SilentSiteError, SitePlan
from rdrop_probes.state import flags, preserved
from rdrop_probes.submodels import Chunk, Strategy, SubModels, first_line
from rdrop_probes.terms import BlockSums, EvalBatch, Term, rows_that_fit, vote

GRADIENT_EXAMPLES = 64  # at most in a differentiable pass: rows of the Jacobian are kept for all its examples
ROUNDING = 1e-6  # below which a divergence of a model without dropout is rounding, of single precision at worst
GRADIENT_SHARE = 4  # part of a batch in such a pass: batches are cut to what a pass without gradients can hold


@dataclass(frozen=True)
class Settings:
    """How to measure: number of sub-models K, seed, masks, strategy, sub-models at a time under vmap."""

    sub_models: int = 32
    seed: int = 0
    masks: Masks = "per-example"
    strategy: Strategy = "auto"
    chunk: int = 8

    def __post_init__(self) -> None:
        if self.sub_models < 2:
            raise ValueError(f"{self.sub_models} sub-models have no pairs: take at least 2")


@dataclass(frozen=True)
class Batch:
    """Examples to measure on: inputs as the forward function takes them, `n` of them.

    Attributes:
        labels: [n], or [n, ...] one a row of the output (for a Gaussian [n, D] targets); None without labels.
        places: bool [n, ...], which rows of the output [n, ..., C] count (tokens that are not padding, labels that
            are known); None where each example is one row.
    """

    inputs: Any
    n: int
    start: int
    labels: Tensor | None = None
    places: Tensor | None = None

    def part(self, examples: slice) -> Batch:
        """Some of the examples."""
        first, end, _ = examples.indices(self.n)
        labels, places = (None if t is None else t[examples] for t in (self.labels, self.places))
        return Batch(take(self.inputs, examples), end - first, self.start + first, labels, places)

    def rows(self, outputs: Tensor) -> Tensor:
        """The rows that count [..., P, C] of outputs [..., n, L, C]; as they are where each example is one row."""
        if self.places is None:
            return outputs
        dims = self.places.dim()
        if outputs.shape[-1 - dims : -1] != self.places.shape:
            found, wanted = list(outputs.shape[-1 - dims : -1]), list(self.places.shape)
            raise LayoutError(f"the model returns scores for {found} rows where the labels have {wanted}")
        flat = outputs.flatten(outputs.dim() - 1 - dims, -2)
        return flat[..., self.places.flatten().nonzero().squeeze(1).to(outputs.device), :]

    @property
    def owners(self) -> Tensor | None:
        """[P], the example in 0..n-1 of each row that counts; None where each example is one row."""
        return None if self.places is None else self.places.nonzero()[:, 0]

    @property
    def row_labels(self) -> Tensor | None:
        """[P], the labels of the rows that count."""
        return self.labels if self.labels is None or self.places is None else self.labels[self.places]


@dataclass
class Measurement:
    """What one pass found on one model.

    Attributes:
        plan: its sites. columns, units: by metric. tables: fields of `CheckpointResult`. findings: by code.
        strategy: how sub-models were run. shared_masks: whether all examples had the same masks.
        predictions: [P], the eval model's classes by row. votes: [N, C], how many sub-models voted for each class;
            empty if no probe counts votes, or examples have several rows.
    """

    plan: SitePlan
    columns: dict[str, Column]
    units: dict[str, str]
    tables: dict[str, Any] = field(default_factory=dict)
    findings: dict[str, str] = field(default_factory=dict)
    strategy: str = ""
    shared_masks: bool = False
    predictions: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    votes: Tensor = field(default_factory=lambda: torch.zeros(0, 0))


class LayoutError(ValueError):
    """Labels and outputs of some examples do not go together."""


class NotFiniteError(ValueError):
    """The model's logits are NaN or +infinity."""


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


def take(inputs: Any, index: slice | Tensor) -> Any:
    """Rows of inputs given as a tensor, a tuple or a dict of tensors."""
    if isinstance(inputs, Tensor):
        return inputs[index]
    if isinstance(inputs, dict):
        return {key: value[index] for key, value in inputs.items()}
    return tuple(value[index] for value in inputs)


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
        self._settings = _effective(self._settings, plan, self._findings)
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
        terms = dict.fromkeys(t for p in self._probes for t in p.terms_for(labels=batch.labels is not None))
        outputs = batch.rows(sub_models.eval_logits(batch.inputs, batch.n, item))
        if terms and not plan.erratic:
            self._check_silent(plan, batch)
        for group in _groups(len(outputs), outputs.shape[-1]):
            seen = self._seen(item, batch, outputs, group)
            if terms:
                self._sum(terms, seen, self._chunks(plan, sub_models, seen, batch, group))
            self._predictions.append(seen.prediction.cpu())
        self._gradients(item, batch, plan)

    def _seen(self, item: int, batch: Batch, outputs: Tensor, group: slice) -> EvalBatch:
        """What the eval model says of some of the batch's rows."""
        logits = outputs[group].double()
        owners, labels = batch.owners, batch.row_labels
        expected = outputs.shape if self._family.name == "gaussian" else outputs.shape[:1]
        if labels is not None and labels.shape != expected:
            raise LayoutError(f"labels are {list(labels.shape)} where the model's outputs need {list(expected)}")
        owners = None if owners is None else owners[group].to(logits.device)
        labels = None if labels is None else labels[group].to(logits.device)
        _check_finite(logits, batch.start, "the eval model", owners)
        last = group.stop >= len(outputs)
        normalised = self._family.normalised(logits)
        n = None if owners is None else batch.n
        return EvalBatch(item, batch.start, batch.inputs, logits, normalised, labels, owners, n, last, self._family)

    def _sum(self, terms: dict[Term, None], seen: EvalBatch, chunks: Iterable[Chunk]) -> None:
        """Sum the terms over the sub-models and let every probe take the sums."""
        sums = BlockSums(terms, self._settings.sub_models, seen.logits.shape[-1])
        for chunk in chunks:
            sums.add(seen, chunk.start, chunk.logits, self._family.normalised(chunk.logits))
        for probe in self._probes:
            probe.update(seen, sums)
        if vote in terms and seen.owners is None:
            self._votes.append(sums.total()[vote].to("cpu", torch.int32))

    def _chunks(
        self, plan: SitePlan, sub_models: SubModels, seen: EvalBatch, batch: Batch, group: slice
    ) -> Iterable[Chunk]:
        """Checked logits [k, P, C] of all sub-models; without any site they are the eval model's."""
        if not plan.stochastic:
            yield Chunk(0, seen.logits.expand(self._settings.sub_models, -1, -1))
            return
        for chunk in sub_models.logits(batch.inputs, batch.n, seen.item):
            for k, part in enumerate(batch.rows(chunk.logits), chunk.start):
                logits = part[group].double()
                _check_finite(logits, batch.start, f"sub-model {k}", seen.owners)
                yield Chunk(k, logits[None])

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
            self._share_gradients(item, batch, plan, takers)
        except Exception as problem:  # a model may have anything in it that autograd cannot follow
            names = ", ".join(probe.name for probe in takers)
            self._findings["gradients_unavailable"] = f"{names} left out: {first_line(problem)}"
            self._probes = [p for p in self._probes if p not in takers]

    def _share_gradients(self, item: int, batch: Batch, plan: SitePlan, takers: list[Probe]) -> None:
        """One differentiable pass and one set of backward passes for every probe that wants gradients."""
        want_sites = any(p.needs_site_gradients for p in takers)
        size = min(GRADIENT_EXAMPLES, -(-batch.n // GRADIENT_SHARE))
        for offset in range(0, batch.n, size):
            rows = slice(offset, min(offset + size, batch.n))
            part = batch.part(rows)
            gradients = gradient_pass(
                self._model,
                partial(self._rows, part),
                plan,
                part.inputs,
                part.n,
                owners=part.owners,
                family=self._family,
                generator=stream(self._settings.seed, item, GRADIENT_STREAM + offset, torch.device("cpu")),
                want_sites=want_sites,
            )
            folds = [fold for p in takers if (fold := p.fold(gradients)) is not None]
            with flags(self._model, plan.eval_modules):  # checkpointed parts run again in the backward passes
                for row in gradients.rows() if folds else ():
                    for fold in folds:
                        fold.add(row)
                for fold in folds:
                    fold.close()

    def _rows(self, batch: Batch, inputs: Any) -> Tensor:
        return batch.rows(self._forward(inputs))

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
        for probe in self._probes:
            outcome = probe.outcome()
            result.columns |= outcome.columns.columns
            result.tables |= outcome.tables
            result.findings |= outcome.findings
            result.units |= probe.units
        if not plan.stochastic:
            _round_to_zero(result.columns)
        for probe in self._probes:
            result.columns |= probe.derive(result.columns)
        result.predictions = torch.cat(self._predictions)
        if self._votes:
            result.votes = torch.cat(self._votes)
        return result


def _round_to_zero(columns: dict[str, Column]) -> None:
    """Without dropout sub-models are the eval model: what differs from it by rounding differs by 0."""
    for column in columns.values():
        if column.mask_variance is not None and np.abs(column.values[column.finite]).max(initial=0) < ROUNDING:
            column.values = np.where(column.finite, 0.0, column.values)
            column.mask_variance = np.zeros_like(column.values)
            column.leave_out = None if column.leave_out is None else np.zeros_like(column.leave_out)
            column.proportion = False


def _effective(settings: Settings, plan: SitePlan, findings: dict[str, str]) -> Settings:
    """Settings with masks shared by all examples where the model itself shares them within a batch."""
    if not (plan.shared_by_batch or plan.erratic) or settings.masks == "shared":
        return settings
    where = ", ".join(dict.fromkeys(site.key[0] or "(root)" for site in plan.shared_by_batch)) or "a random choice"
    text = f"masks of {where} cannot be told apart by example: all examples share theirs, sub-model by sub-model"
    findings["masks_shared"] = text
    return Settings(**{**settings.__dict__, "masks": "shared"})


def _groups(rows: int, classes: int) -> Iterator[slice]:
    """Rows in groups whose sums fit into memory; one empty group where there are none."""
    size = rows_that_fit(classes)
    for first in range(0, max(rows, 1), size):
        yield slice(first, min(first + size, rows))


def _check_finite(logits: Tensor, start: int, who: str, owners: Tensor | None) -> None:
    """Minus infinity is a class ruled out; NaN and plus infinity are errors, as is a row of minus infinities."""
    bad = (torch.isnan(logits) | torch.isposinf(logits)).any(-1) | torch.isneginf(logits).all(-1)
    if bad.any():
        row = int(bad.nonzero()[0])
        example = start + (row if owners is None else int(owners[row]))
        raise NotFiniteError(f"the logits of example {example} are not finite under {who}")
