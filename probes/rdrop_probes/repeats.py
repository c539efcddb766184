"""Other ways to compute what the eval model says: in half precision, compiled, with fused kernels, one by one.

They should agree with the eval pass. What they differ by is numerical, and goes for every kind of dropout effect.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rdrop_probes.arithmetic import Precision
from rdrop_probes.batch import Batch
from rdrop_probes.sites import Forward, SitePlan
from rdrop_probes.state import Buffers, as_users_run, flags
from rdrop_probes.strategies import first_line

Way = Literal["bfloat16", "compiled", "fused kernels", "one by one"]

MOST_COMPILED = 2**16  # times that one function is compiled
BACKEND = "inductor"  # what `torch.compile` uses
MOST_ALONE = 16  # examples of a batch that are run one by one
NOTHING_COMPILED = "nothing of the model was run as compiled code"
_CALL = "_compiled_call_impl"  # where a module keeps what it runs instead of its own code (nn.Module.compile)


class NotComparableError(RuntimeError):
    """A way that cannot be gone with this model, or here."""


class Repeats:
    """Runs eval passes in other ways.

    Args:
        model: the network; used inside :func:`rdrop_probes.state.preserved`.
        forward: maps a batch's inputs to logits by calling `model`.
        plan: its sites.
        first: the first batch of all data: compiled code is run on batches of its shape alone, so that which code an
            example goes through does not depend on what was compiled before.
        precision: what `forward` computes in.
    """

    def __init__(
        self, model: nn.Module, forward: Forward, plan: SitePlan, first: Batch, precision: Precision | None = None
    ) -> None:
        self._model = model
        self._forward = forward
        self._plan = plan
        self._shapes = _shapes(first)
        self._precision = precision
        self._buffers = Buffers(model)
        self._compiled: Callable[..., Any] | None = None
        self._ran = 0

    def run(self, way: Way, batch: Batch) -> tuple[Tensor, Tensor]:
        """Rows [P', C] in some way, and which rows of the batch these are [P'].

        Raises:
            NotComparableError: they cannot be had so; the message says why.
        """
        if self._plan.uncontrolled or self._plan.erratic or any(s.fires_in_eval for s in self._plan.sites.values()):
            raise NotComparableError("the model draws randomness in eval mode")
        ways: Mapping[Way, Callable[[Batch], tuple[Tensor, Tensor]]] = {
            "bfloat16": self._bfloat16,
            "compiled": self._in_compiled_code,
            "fused kernels": self._fused,
            "one by one": self._alone,
        }
        with torch.no_grad(), flags(self._model, self._plan.eval_modules):
            try:
                return ways[way](batch)
            finally:
                self._buffers.restore()

    def _bfloat16(self, batch: Batch) -> tuple[Tensor, Tensor]:
        parameter = next(self._model.parameters(), torch.empty(0))
        if parameter.dtype != torch.float32 or self._precision in ("bf16", "fp16"):
            raise NotComparableError("the passes are not in float32")
        with torch.autocast(parameter.device.type, dtype=torch.bfloat16):
            return self._whole(batch)

    def _fused(self, batch: Batch) -> tuple[Tensor, Tensor]:
        with as_users_run():
            return self._whole(batch)

    def _alone(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Some examples of the batch, from all over it."""
        places = torch.linspace(0, batch.n - 1, min(batch.n, MOST_ALONE)).long().tolist()
        parts = [self._whole(batch.part(slice(i, i + 1)))[0] for i in places]
        owners = torch.arange(batch.n) if batch.owners is None else batch.owners
        return torch.cat(parts), torch.cat([(owners == i).nonzero()[:, 0] for i in places])

    def _in_compiled_code(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if _shapes(batch) != self._shapes:
            return torch.empty(0, 0), torch.empty(0, dtype=torch.long)
        if hasattr(self._model, "_orig_mod"):
            raise NotComparableError("the model is compiled already: give the one that it was made from")
        before = self._ran
        try:
            with self._compiling():
                found = self._whole(batch)
        except Exception as problem:  # a compiler may fail in any way
            raise NotComparableError(f"it cannot be compiled here: {first_line(problem)}") from problem
        if self._ran == before:
            raise NotComparableError(NOTHING_COMPILED)
        return found

    def _whole(self, batch: Batch) -> tuple[Tensor, Tensor]:
        rows = batch.rows(self._forward(batch.inputs))
        return rows, torch.arange(len(rows))

    @contextmanager
    def _compiling(self) -> Iterator[None]:
        """Calls of the model run compiled code, made when it is first called."""
        if self._compiled is None:
            self._compiled = torch.compile(self._called, backend=self._counted, dynamic=False)
        attributes = vars(self._model)
        found = {name: attributes[name] for name in (_CALL,) if name in attributes}
        with torch.compiler.set_stance("default"), _unlimited_recompiling(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a compiler says much that is no concern of who measures
            attributes[_CALL] = self._compiled
            try:
                yield
            finally:
                del attributes[_CALL]
                attributes.update(found)

    def _called(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own code, in a frame that is not torch's: of `nn.Sequential` nothing else would be compiled."""
        return self._model._call_impl(*args, **kwargs)

    def _counted(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        """Compile a graph, and count how often it is run."""
        from torch._dynamo import lookup_backend  # takes seconds

        compiled = lookup_backend(BACKEND)(graph, inputs)

        def run(*args: Any) -> Any:
            self._ran += 1
            return compiled(*args)

        return run


def _shapes(batch: Batch) -> list[tuple[str, list[int]]]:
    """Names and shapes of a batch's inputs."""
    inputs = batch.inputs
    if isinstance(inputs, Tensor):
        return [("", list(inputs.shape))]
    named = inputs.items() if isinstance(inputs, dict) else ((str(i), value) for i, value in enumerate(inputs))
    return [(name, list(value.shape)) for name, value in named]


def _unlimited_recompiling() -> AbstractContextManager[None]:
    """All checkpoints of a run share the code that is compiled: after a few, torch would go back to eager mode."""
    from torch._dynamo import config  # takes seconds

    limits: AbstractContextManager[None] = config.patch(
        recompile_limit=MOST_COMPILED, accumulated_recompile_limit=MOST_COMPILED
    )
    return limits
