"""Run a model as its sub-models and as its eval model.

Sub-models are run many at a time with `torch.func.vmap`: values stay unbatched until the first draw, so what
lies before it runs once. A plain loop over sub-models is the fallback and the oracle; both draw the same masks.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rdrop_probes.divergences import agree
from rdrop_probes.interception import DrawInterceptor, ModulePaths
from rdrop_probes.masks import EVAL_STREAM, Masks, Sampler, stream
from rdrop_probes.sites import Forward, SilentSiteError, SiteKey, SitePlan
from rdrop_probes.state import Buffers, flags, seed_foreign

Strategy = Literal["auto", "vmap", "loop"]


@dataclass(frozen=True)
class Chunk:
    """Logits [k, N, C] of the sub-models `start`, ..., `start` + k - 1."""

    start: int
    logits: Tensor


class StrategyError(ValueError):
    """The strategy that was insisted on cannot run the model, or not rightly."""


class SubModels:
    """The `count` sub-models of a model.

    Args:
        model: the network; used inside :func:`rdrop_probes.state.preserved`.
        forward: maps a batch's inputs to logits [N, C] by calling `model`.
        plan: its sites.
        count: K, the number of sub-models.
        seed: all masks follow from it.
        masks: "per-example", as in training, or "shared" by all examples.
        strategy: "auto" takes vmap where it reproduces the loop on the first batch.
        chunk: how many sub-models run at a time under vmap.
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
        chunk: int = 8,
    ) -> None:
        self.count = count
        self.strategy = strategy
        self.reason = ""
        self._model = model
        self._forward = forward
        self._plan = plan
        self._seed = seed
        self._masks = masks
        self._chunk = chunk
        self._paths = ModulePaths(model)
        self._fired: set[SiteKey] = set()
        self._ran = False
        self._chosen = False
        self._buffers = Buffers(model)

    def eval_logits(self, inputs: Any, n: int, item: int) -> Tensor:
        """Logits [N, C] of the eval model: dropout off."""
        return self._run(inputs, n, [EVAL_STREAM], item, training=False)

    def logits(self, inputs: Any, n: int, item: int) -> Iterator[Chunk]:
        """Logits of all sub-models on one batch (work item `item`) of `n` examples, a chunk at a time.

        Raises:
            StrategyError: vmap was insisted on and does not reproduce the loop.
        """
        self._ran = True
        if not self._chosen:
            self._choose(inputs, n, item)
        step = self._chunk if self.strategy == "vmap" else 1
        for start in range(0, self.count, step):
            ks = list(range(start, min(start + step, self.count)))
            if self.strategy == "vmap":
                yield Chunk(start, self._run_batched(inputs, n, ks, item))
            else:
                yield Chunk(start, self._run(inputs, n, ks, item, training=True).unsqueeze(0))

    @property
    def changed_buffers(self) -> list[str]:
        """Names of the buffers that passes changed, and that were put back after each."""
        return sorted(self._buffers.changed)

    def check_all_fired(self) -> None:
        """Raise SilentSiteError if sub-models ran and a site of the plan never drew in them."""
        if not self._ran:
            return
        certain = {key for key, site in self._plan.sites.items() if site.rate == 1}
        if (self._plan.erratic or self._plan.varying) and self._fired:
            return  # a rare site may have had no turn
        if silent := set(self._plan.sites) - self._fired - certain:
            raise SilentSiteError(f"dropout at {', '.join(sorted(path for path, _ in silent))} never drew")

    def _choose(self, inputs: Any, n: int, item: int) -> None:
        """Take vmap if two sub-models come out as in the loop, the loop otherwise; remember why."""
        self._chosen = True
        wanted = self.strategy
        if wanted != "loop":
            self._try_vmap(inputs, n, item)
        if wanted == "vmap" and self.strategy == "loop":
            raise StrategyError(f"the strategy vmap does not do for this model: {self.reason}")

    def _try_vmap(self, inputs: Any, n: int, item: int) -> None:
        if reason := self._plan.needs_loop:
            self.strategy, self.reason = "loop", reason
            return
        ks = [0, 1]
        expected = torch.stack([self._run(inputs, n, [k], item, training=True) for k in ks])
        try:
            batched = self._run_batched(inputs, n, ks, item)
        except Exception as error:  # whatever a model does that vmap cannot, the loop can
            self.strategy, self.reason = "loop", f"vmap cannot run this model: {first_line(error.__cause__ or error)}"
            return
        if agree(batched, expected):
            self.strategy, self.reason = "vmap", "it reproduces the loop on the first batch"
        else:
            self.strategy, self.reason = "loop", "vmap does not reproduce the loop on the first batch"

    def _run(self, inputs: Any, n: int, ks: list[int], item: int, *, training: bool) -> Tensor:
        sampler = self._sampler(ks, n, item, batched=False)
        seed_foreign(self._seed, 0 if self._masks == "shared" else item, ks[0])  # for layers dropped by Python
        with self._context(sampler, training=training):
            logits = self._forward(inputs)
        if training:
            self._note(sampler)
        return logits

    def _run_batched(self, inputs: Any, n: int, ks: list[int], item: int) -> Tensor:
        sampler = self._sampler(ks, n, item, batched=True)
        with self._context(sampler, training=True), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")  # vmap loops over an operator
            logits: Tensor = torch.func.vmap(lambda _: self._forward(inputs), randomness="different")(
                torch.arange(len(ks))
            )
        self._note(sampler)
        return logits

    def _sampler(self, ks: list[int], n: int, item: int, *, batched: bool) -> Sampler:
        shared = self._masks == "shared"
        device = next((p.device for p in self._model.parameters()), torch.device("cpu"))
        streams = [stream(self._seed, 0 if shared else item, k, device) for k in ks]
        return Sampler(streams, self._plan.sites, n_examples=n, batched=batched, shared=shared)

    def _note(self, sampler: Sampler) -> None:
        self._fired |= sampler.fired

    @contextmanager
    def _context(self, sampler: Sampler, *, training: bool) -> Iterator[None]:
        with ExitStack() as stack:
            stack.callback(self._buffers.restore)
            stack.enter_context(flags(self._model, self._plan.modules if training else self._plan.eval_modules))
            stack.enter_context(torch.no_grad())
            stack.enter_context(self._paths.tracked())
            stack.enter_context(DrawInterceptor(self._paths, sampler))
            yield


def first_line(error: BaseException) -> str:
    """What went wrong in one line; the kind of error where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
