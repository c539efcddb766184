"""Single passes of a model: as its eval model, as one sub-model, or as several at a time."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rdrop_probes.examples import Examples, Given, tensors
from rdrop_probes.interception import DrawInterceptor, ModulePaths
from rdrop_probes.masks import EVAL_STREAM, Layout, Masks, Sampler
from rdrop_probes.prefix import EndOfPrefix, Player, Prefix, Recorder, Run
from rdrop_probes.sites import Forward, SiteKey, SitePlan
from rdrop_probes.state import Buffers, flags, seed_foreign
from rdrop_probes.variants import Drawing, VariantInterceptor, rates_set

logger = logging.getLogger(__name__)

Tape = Recorder | Player | None
Training = Literal["", "sites", "all"]  # which modules are in training mode: none, those of the plan, as in training


@dataclass(frozen=True)
class Suffix:
    """What a sub-model does after its first draw: numbers in its largest tensor; and operators in all."""

    largest: int = 1
    operators: int = 0


class Passes:
    """Runs a model on batches, and what comes before the first draw of a batch once.

    Args:
        model: the network; used inside :func:`rdrop_probes.state.preserved`.
        forward: maps a batch's inputs to logits [N, ..., C] by calling `model`.
        plan: its sites.
        seed: all masks follow from it.
        masks: "per-example", as in training, or "shared" by all examples.
        drawing: which sites draw, and how, in sub-models; None for all of them as they are.
        buffers: the model's, where others hold them already.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Forward,
        plan: SitePlan,
        *,
        seed: int,
        masks: Masks,
        drawing: Drawing | None = None,
        buffers: Buffers | None = None,
    ) -> None:
        self.fired: set[SiteKey] = set()
        self.buffers = buffers or Buffers(model)
        self.replay = False
        self.replayable = plan.stochastic and not (plan.erratic or plan.uncontrolled)
        self._model = model
        self._forward = forward
        self._plan = plan
        self._seed = seed
        self._masks: Masks = masks
        self._shared = masks == "shared"
        self._drawing = drawing
        self._paths = ModulePaths(model)
        self._own = [t for m in model.modules() for t in (*m._parameters.values(), *m._buffers.values())]
        self._examples: Examples | None = None
        self._prefixes: dict[tuple[Layout, int], Prefix | None] = {}
        self._given: dict[tuple[Layout, int], Given] = {}
        self._guarded: dict[Layout, frozenset[int]] = {}
        self._without: set[tuple[Layout, Training]] = set()
        self._vmap_apart = False
        self._drawn: set[SiteKey] = set()
        self._weigh = False
        self._suffix = Suffix()

    def under(self, drawing: Drawing) -> Passes:
        """Passes of the same model in which sub-models draw in another way, under the same masks."""
        return Passes(
            self._model,
            self._forward,
            self._plan,
            seed=self._seed,
            masks=self._masks,
            drawing=drawing,
            buffers=self.buffers,
        )

    def eval_model(self, examples: Examples) -> Tensor:
        """Logits [N, ..., C] with dropout off."""
        return self._replayed(examples, "plain", [EVAL_STREAM], training="")

    def one(self, examples: Examples, sub_model: int, *, replay: bool = True) -> Tensor:
        """Logits [N, ..., C] of one sub-model."""
        if not replay:
            return self._run(examples, "plain", [sub_model], training="sites")
        return self._replayed(examples, "plain", [sub_model], training="sites")

    def vmapped(self, examples: Examples, sub_models: Sequence[int]) -> Tensor:
        """Logits [k, N, ..., C] of several sub-models, by `torch.func.vmap`."""
        return self._replayed(examples, "vmap", sub_models, training="sites")

    def folded(self, examples: Examples, sub_models: Sequence[int]) -> Tensor:
        """Logits [k, N, ..., C] of several sub-models, run as one batch of k N examples."""
        logits = self._replayed(examples, "fold", sub_models, training="sites")
        by_sub_model: Tensor = logits.unflatten(0, (len(sub_models), examples.n))
        return by_sub_model

    def draws(self, examples: Examples) -> set[SiteKey]:
        """The sites that draw on these examples in the model's own train mode."""
        self._replayed(examples, "plain", [0], training="all")
        return self._drawn

    def weigh_suffix(self, examples: Examples) -> Suffix:
        """What sub-model 0 does after its first draw."""
        self._weigh = True
        try:
            self.one(examples, 0)
        finally:
            self._weigh = False
        return self._suffix

    def forget(self) -> None:
        """Let go of what is held of the last batch."""
        self._examples = None
        self._prefixes.clear()
        self._given.clear()

    def _replayed(self, examples: Examples, layout: Layout, sub_models: Sequence[int], *, training: Training) -> Tensor:
        """A pass that is spared the prefix, if one of its kind has been recorded over these examples or can be."""
        kind = self._kind(layout, len(sub_models))
        prefix = None if (kind[0], training) in self._without else self._prefix(examples, *kind)
        if prefix is None:
            return self._run(examples, layout, sub_models, training=training)
        prefix.restore()
        player = Player(prefix)
        try:
            logits = self._run(examples, layout, sub_models, training=training, tape=player)
        except BaseException:  # TorchScript makes errors of its own of everything
            if not player.failed:
                raise
        if player.failed or not player.done:  # a pass may also end before the recorded one came to its first draw
            return self._mismatched(examples, layout, sub_models, training=training)
        logits = logits.clone() if prefix.holds(logits) else logits  # lest later passes change it
        if changed := prefix.changed():  # this pass was right, the next would not be
            self._guarded[kind[0]] = self._guarded.get(kind[0], frozenset()) | changed
            del self._prefixes[kind]
        return logits

    def _mismatched(
        self, examples: Examples, layout: Layout, sub_models: Sequence[int], *, training: Training
    ) -> Tensor:
        """A pass that did not do what the recorded one did: vmap may have its own, others do without."""
        if layout == "vmap" and not self._vmap_apart:
            self._vmap_apart = True
            return self._replayed(examples, layout, sub_models, training=training)
        self._without.add((layout, training))
        return self._run(examples, layout, sub_models, training=training)

    def _kind(self, layout: Layout, k: int) -> tuple[Layout, int]:
        """Which passes share a prefix: what vmap does before the first draw is as a rule what any pass does."""
        if layout == "fold":
            return layout, k
        return ("vmap" if layout == "vmap" and self._vmap_apart else "plain"), 1

    def _prefix(self, examples: Examples, layout: Layout, k: int) -> Prefix | None:
        if not self.replay:
            return None
        if (layout, k) not in self._prefixes:
            self._prefixes[layout, k] = self._recorded(examples, layout, k)
        return self._prefixes[layout, k]

    def _recorded(self, examples: Examples, layout: Layout, k: int) -> Prefix | None:
        """The prefix of a pass, which ends there; None if it is not to be used."""
        inputs = self._inputs(examples, layout, k).inputs
        prefix = Prefix([*[t for t in self._own if t is not None], *tensors(inputs)])
        try:
            tape = Recorder(prefix, self._guarded.get(layout, frozenset()))
            self._run(examples, layout, range(k), training="sites", tape=tape)
        except EndOfPrefix:
            pass
        except Exception:  # TorchScript makes one of everything; any other comes again when the whole pass is run
            logger.debug("the pass for the prefix ended", exc_info=True)
        else:
            return None
        return prefix if prefix.frozen and prefix.usable else None

    def _inputs(self, examples: Examples, layout: Layout, k: int) -> Given:
        """The inputs of a pass over these examples, the same tensors every time."""
        if self._examples is not examples:
            self.forget()
            self._examples = examples
        kind: tuple[Layout, int] = (layout, k) if layout == "fold" else ("plain", 1)
        if kind not in self._given:
            self._given[kind] = Given(partial(examples.folded, k) if layout == "fold" else examples.copied)
        return self._given[kind]

    def _run(
        self, examples: Examples, layout: Layout, sub_models: Sequence[int], *, training: Training, tape: Tape = None
    ) -> Tensor:
        sampler = self._sampler(examples, layout, sub_models)
        given = self._inputs(examples, layout, len(sub_models))
        inputs = given.inputs
        seed_foreign(self._seed, 0 if self._shared else examples.start, sub_models[0])  # for layers dropped by Python
        places = torch.arange(len(sub_models))
        interceptor = self._interceptor(sampler, tape, training)
        try:
            with self._context(interceptor, self._modules(training)):
                logits = _vmap(lambda: self._forward(inputs), places) if layout == "vmap" else self._forward(inputs)
        finally:
            given.restore()
        if training == "sites":
            self.fired |= sampler.fired
        self._drawn = sampler.fired
        if isinstance(interceptor, _Weighing):
            self._suffix = Suffix(interceptor.largest, interceptor.operators)
        return logits

    def _modules(self, training: Training) -> frozenset[nn.Module]:
        """The modules that are in training mode."""
        if training == "":
            return self._plan.eval_modules
        if training == "all":
            return self._plan.train_modules
        return self._plan.modules if self._drawing is None else self._drawing.modules

    def _interceptor(self, sampler: Sampler, tape: Tape, training: Training) -> DrawInterceptor:
        if self._drawing is not None and training == "sites":
            return VariantInterceptor(self._paths, sampler, tape, self._plan.sites, self._drawing)
        return (_Weighing if self._weigh else DrawInterceptor)(self._paths, sampler, tape)

    def _sampler(self, examples: Examples, layout: Layout, sub_models: Sequence[int]) -> Sampler:
        return Sampler(
            self._plan.sites,
            seed=self._seed,
            sub_models=sub_models,
            start=examples.start,
            n=examples.n,
            layout=layout,
            shared=self._shared,
        )

    @contextmanager
    def _context(self, interceptor: DrawInterceptor, training: Iterable[nn.Module]) -> Iterator[None]:
        with ExitStack() as stack:
            stack.callback(self.buffers.restore)
            stack.enter_context(flags(self._model, training))
            if self._drawing is not None:
                stack.enter_context(rates_set(training, self._drawing.rate))
            stack.enter_context(torch.no_grad())
            stack.enter_context(self._paths.tracked())
            stack.enter_context(interceptor)
            yield


class _Weighing(DrawInterceptor):
    """Fills draws, and notes the size of the largest result among what is computed."""

    largest = 1
    operators = 0

    def _taped(
        self, tape: Recorder | Player, run: Run, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self.operators += 1  # to hand out what was noted takes time as well
        return super()._taped(tape, run, func, args, kwargs)

    def pass_through(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator and weigh what it gives."""
        result = func(*args, **kwargs)
        self.operators += 1
        for tensor in result if isinstance(result, list | tuple) else (result,):
            if isinstance(tensor, Tensor) and self._tape is None and not func.is_view:
                self.largest = max(self.largest, tensor.numel())
        return result


def _vmap(run: Callable[[], Tensor], places: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # vmap loops over an operator
        logits: Tensor = torch.func.vmap(lambda _: run(), randomness="different")(places)
    return logits
