"""The sub-models of a model, in chunks, and its eval model: what the engine asks for, however it is run."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from rdrop_probes.examples import Examples
from rdrop_probes.masks import Masks
from rdrop_probes.memory import is_out_of_memory
from rdrop_probes.passes import Passes
from rdrop_probes.sites import Forward, SiteKey, SitePlan
from rdrop_probes.strategies import Choice, Strategy, choose


@dataclass(frozen=True)
class Chunk:
    """Logits [k, N, ..., C] of the sub-models `start`, ..., `start` + k - 1."""

    start: int
    logits: Tensor


class SubModels:
    """The `count` sub-models of a model.

    Args:
        model: the network; used inside :func:`rdrop_probes.state.preserved`.
        forward: maps a batch's inputs to logits [N, ..., C] by calling `model`.
        plan: its sites.
        count: K, the number of sub-models.
        seed: all masks follow from it.
        masks: "per-example", as in training, or "shared" by all examples.
        strategy: "auto" tries on the first batch which way is the fastest; the others insist on one.
        chunk: how many sub-models run at a time; None for what fits.
        choice: a decision that was made before, by another worker or before a run was interrupted.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Forward,
        plan: SitePlan,
        *,
        count: int,
        seed: int = 0,
        masks: Masks = "per-example",
        strategy: Strategy = "auto",
        chunk: int | None = None,
        choice: Choice | None = None,
    ) -> None:
        self.count = count
        self._plan = plan
        self._wanted = strategy
        self._chunk = chunk
        self._passes = Passes(model, forward, plan, seed=seed, masks=masks)
        self.choice = choice
        self._last: Examples | None = None

    @property
    def choice(self) -> Choice | None:
        """How sub-models are run; None while that is not decided."""
        return self._choice

    @choice.setter
    def choice(self, choice: Choice | None) -> None:
        self._choice = choice
        self._passes.replay = choice is not None and choice.replay

    def choose(self, inputs: Any, n: int, start: int) -> Choice:
        """Decide on a batch how sub-models are run, unless that is decided.

        Raises:
            StrategyError: a strategy was insisted on that does not reproduce the loop.
        """
        if self.choice is None:
            self.choice = choose(
                self._passes,
                self._examples(inputs, n, start),
                wanted=self._wanted,
                count=self.count,
                needs_loop=self._plan.needs_loop,
                chunk=self._chunk,
            )
        return self.choice

    @property
    def passes(self) -> Passes:
        """Single passes of the model."""
        return self._passes

    def under(self, passes: Passes, choice: Choice) -> SubModels:
        """As many sub-models, by other passes, run in a way of their own."""
        other = copy.copy(self)
        other._passes, other._last = passes, None
        other.choice = choice
        return other

    def forget(self) -> None:
        """Let go of what is held of the last batch."""
        self._passes.forget()
        self._last = None

    def eval_logits(self, inputs: Any, n: int, start: int) -> Tensor:
        """Logits [N, ..., C] of the eval model (dropout off) on `n` examples, of which the first is number `start`."""
        return self._passes.eval_model(self._examples(inputs, n, start))

    def draws(self, inputs: Any, n: int, start: int) -> set[SiteKey]:
        """The sites, of the plan or not, that draw on a batch in the model's own train mode."""
        return self._passes.draws(self._examples(inputs, n, start))

    def logits(self, inputs: Any, n: int, start: int) -> Iterator[Chunk]:
        """Logits of all sub-models on one batch, a chunk at a time; smaller chunks from where memory runs out.

        Raises:
            StrategyError: a strategy was insisted on that does not reproduce the loop.
        """
        choice = self.choose(inputs, n, start)
        examples = self._examples(inputs, n, start)
        first = 0
        while first < self.count:
            chunk = range(first, min(first + choice.chunk, self.count))
            try:
                logits = self._run(choice, examples, chunk)
            except Exception as error:
                if not is_out_of_memory(error) or choice.chunk == 1:
                    raise
                self._passes.forget()
                self.choice = choice = replace(choice, chunk=choice.chunk // 2)
                continue
            yield Chunk(first, logits)
            first = chunk.stop

    @property
    def changed_buffers(self) -> list[str]:
        """Names of the buffers that passes changed, and that were put back after each."""
        return sorted(self._passes.buffers.changed)

    @property
    def fired(self) -> set[SiteKey]:
        """Sites that have drawn so far."""
        return self._passes.fired

    def _run(self, choice: Choice, examples: Examples, sub_models: range) -> Tensor:
        if choice.strategy == "vmap":
            return self._passes.vmapped(examples, sub_models)
        if choice.strategy == "fold":
            return self._passes.folded(examples, sub_models)
        return self._passes.one(examples, sub_models[0]).unsqueeze(0)

    def _examples(self, inputs: Any, n: int, start: int) -> Examples:
        """The batch, the same object for as long as it is the same batch: its prefix is held by it."""
        if self._last is None or self._last.inputs is not inputs or (self._last.n, self._last.start) != (n, start):
            self._last = Examples(inputs, n, start)
        return self._last
