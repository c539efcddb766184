"""See every random draw of a forward pass, and decide what it returns.

In PyTorch each random mask is the result of an ATen operator, whatever the module around it looks like:
`nn.Dropout`, `F.dropout`, attention probabilities and the dropout between LSTM layers all end in `bernoulli`.
:class:`DrawInterceptor` catches them below autograd and vmap, and hands each to a *responder*, which fills it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from rdrop_probes.prefix import Player, Recorder, Run

aten = torch.ops.aten

Keep = float | Tensor | None
Fill = Callable[[Tensor, Keep, torch.Generator], None]


@dataclass(frozen=True)
class Draw:
    """One call of a random operator.

    `path` and `ordinal` say where (innermost module, how many draws it made before in this pass). `keep` is
    the probability of a 1 in a Bernoulli draw (a number, or a tensor of the draw's shape), None for any other
    distribution. `fill(out, keep, generator)` samples the operator's distribution into `out`.
    """

    path: str
    ordinal: int
    operator: str
    keep: Keep
    fill: Fill

    @property
    def rate(self) -> float | None:
        """Drop probability, where it is one number; None where it differs between elements."""
        if isinstance(self.keep, Tensor):
            alike = self.keep.numel() > 0 and bool((self.keep == self.keep.flatten()[0]).all())
            keep = float(self.keep.flatten()[0]) if alike else None
        else:
            keep = self.keep
        return None if keep is None else round(1 - keep, 6)


class ModulePaths:
    """Which module of `model` is running: a stack kept by torch's hooks for all modules, removed on exit.

    Hooks on the modules themselves would do the same, but turn the fused path of `nn.TransformerEncoder` off.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = {module: name for name, module in model.named_modules()}
        self._stack: list[str] = []

    @property
    def current(self) -> str:
        """Path of the innermost running module; the root's is empty."""
        return self._stack[-1] if self._stack else ""

    @contextmanager
    def tracked(self) -> Iterator[None]:
        """Keep the stack while the block runs."""
        before = register_module_forward_pre_hook(lambda module, _: self._push(module))
        try:
            after = register_module_forward_hook(lambda module, *_: self._pop(module), always_call=True)
            try:
                yield
            finally:
                after.remove()
        finally:
            before.remove()
            self._stack.clear()

    def _push(self, module: nn.Module) -> None:
        if module in self._names:  # a module that is made in the pass counts as its maker
            self._stack.append(self._names[module])

    def _pop(self, module: nn.Module) -> None:
        if module in self._names and self._stack:
            self._stack.pop()


class DrawInterceptor(TorchDispatchMode):
    """Context in which `respond(draw, out)` fills the result of every random operator in place.

    `out` has the operator's physical shape: under `torch.func.vmap` the sub-model dimension comes first. `froze`
    is whether a batch normalisation had to be held in eval; autograd, above, does not know of it.
    """

    def __init__(
        self, paths: ModulePaths, respond: Callable[[Draw, Tensor], None], tape: Recorder | Player | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch leaves it untyped
        self._paths = paths
        self._respond = respond
        self._count: Counter[str] = Counter()
        self._tape = tape
        self.froze = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Do without torch's wrapper that keeps its compiler away: it imports the compiler and slows every operator."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Answer random operators through the responder, pass every other through."""
        kwargs = kwargs or {}
        kind = _kind(func)
        if kind == "composite":  # under inference_mode these arrive before they are taken apart
            with self:
                return func.decompose(*args, **kwargs)
        if kind == "random" and _draws(func, args, kwargs):
            return self._drawn(func, args, kwargs)
        if kind == "batch norm":
            frozen = _frozen(func, args)
            self.froze |= frozen is not args
            args = frozen
        return self.repeated(self.pass_through, func, args, kwargs)

    def repeated(self, run: Run, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator whose result is the same in every pass, as `run` does it: once, before the first draw."""
        if self._tape is not None:
            return self._taped(self._tape, run, func, args, kwargs)
        return run(func, args, kwargs)

    def pass_through(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator that draws nothing."""
        return func(*args, **kwargs)

    def _taped(
        self, tape: Recorder | Player, run: Run, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Before the first draw: note the operator, or hand out what was noted."""
        if isinstance(tape, Player) and tape.done:
            self._tape = None
            return run(func, args, kwargs)
        return tape(run, func, args, kwargs)

    def _drawn(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer a random operator."""
        if self._tape is not None:
            self._tape.first_draw()
            self._tape = None
        if func is aten.native_dropout.default:
            return self._native_dropout(*args)
        kwargs = {name: None if name == "generator" else value for name, value in kwargs.items()}  # ours is used
        prepared = prepare(func, args, kwargs)
        if prepared is None:
            return self._other(func, args, kwargs)
        self._answer(str(func.overloadpacket.__name__), *prepared)
        return prepared[0]

    def _answer(self, operator: str, out: Tensor, keep: Keep, fill: Fill) -> None:
        path = self._paths.current
        draw = Draw(path, self._count[path], operator, keep, fill)
        self._count[path] += 1
        self._respond(draw, out)

    def _native_dropout(self, x: Tensor, rate: float, _train: bool | None = True) -> tuple[Tensor, Tensor]:
        """The fused operator of CUDA, in two steps."""
        mask = torch.empty_like(x, dtype=torch.bool)
        self._answer("native_dropout", mask, 1 - rate, _fill_bernoulli)
        kept = self.pass_through(aten.mul.Tensor, (x, mask), {})
        return kept.div_(1 - rate) if rate < 1 else kept, mask

    def _other(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Any other random operator, run on a global generator that is seeded from the responder's numbers."""
        with torch.random.fork_rng(devices=_cuda_devices(args, kwargs)):
            like = func(*args, **kwargs)
            first = next(t for t in (like if isinstance(like, tuple | list) else (like,)) if isinstance(t, Tensor))
            seeds = torch.zeros(first.shape, dtype=torch.int64)  # here: reading it would wait for another device
            self._answer(str(func.overloadpacket.__name__), seeds, None, _fill_integers)
            torch.manual_seed(int(seeds.flatten()[0]) if seeds.numel() else 0)
            return func(*args, **kwargs)


def _cuda_devices(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    """Numbers of the devices that an operator with these arguments may draw on."""
    values = [v for a in (*args, *kwargs.values()) for v in (a if isinstance(a, list | tuple) else [a])]
    devices = [v.device if isinstance(v, Tensor) else v for v in values if isinstance(v, Tensor | torch.device)]
    return sorted({d.index or 0 for d in devices if d.type == "cuda"})


@cache
def _kind(func: Any) -> str:
    """What has to be done about an operator; empty if nothing."""
    if func.name() in _COMPOSITE:
        return "composite"
    if torch.Tag.nondeterministic_seeded in func.tags:
        return "random"
    return "batch norm" if func.overloadpacket.__name__ in _BATCH_NORMS else ""


def _frozen(func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments of a batch normalisation that has running statistics, with training off: it stays in eval."""
    if args[3] is None or not args[5]:
        return args
    return (*args[:5], False, *args[6:])


def _draws(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this call of an operator that may draw really does (fused attention often has dropout 0)."""
    named = {argument.name: argument.default_value for argument in func._schema.arguments}
    named |= dict(zip(named, args, strict=False)) | kwargs
    if named.get("dropout_p", named.get("dropout", 1)) == 0:
        return False
    return named.get("train", named.get("training", True)) is not False


def prepare(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Keep, Fill] | None:
    """Result tensor (its values still to be filled), keep probability and sampler; None for a rarer operator."""
    operator = func.overloadpacket.__name__
    if operator == "bernoulli_":
        return (
            args[0],
            _broadcast(args[1] if len(args) > 1 else kwargs.get("p", 0.5), args[0]),
            _fill_bernoulli,
        )
    if operator == "bernoulli":
        keep = args[1] if len(args) > 1 else args[0]
        return torch.empty_like(args[0]), _broadcast(keep, args[0]), _fill_bernoulli
    if operator in _IN_PLACE:
        return args[0], None, lambda out, _, g: func(out, *args[1:], **{**kwargs, "generator": g})
    if operator in _FACTORIES:
        refill = _FACTORIES[operator]
        return func(*args, **kwargs), None, lambda out, _, g: refill(out, func, args, g)
    return None


def _broadcast(keep: float | Tensor, like: Tensor) -> float | Tensor:
    return keep.expand_as(like) if isinstance(keep, Tensor) else keep


def _fill_bernoulli(out: Tensor, keep: Keep, generator: torch.Generator) -> None:
    if isinstance(keep, Tensor):
        out.bernoulli_(keep, generator=generator)
    else:
        out.bernoulli_(1.0 if keep is None else keep, generator=generator)


def _fill_integers(out: Tensor, _keep: Keep, generator: torch.Generator) -> None:
    out.random_(generator=generator)


def _refill_integers(out: Tensor, func: Any, args: tuple[Any, ...], generator: torch.Generator) -> None:
    bounds = [a for a in args if isinstance(a, int)]
    out.random_(*(bounds if len(bounds) == 2 else [0, *bounds]), generator=generator)


_BATCH_NORMS = frozenset({"native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm", "miopen_batch_norm"})
_COMPOSITE = frozenset(
    f"aten::{name}"
    for name in (
        *("dropout", "dropout_", "alpha_dropout", "alpha_dropout_", "feature_dropout", "feature_dropout_"),
        *("feature_alpha_dropout", "feature_alpha_dropout_", "scaled_dot_product_attention"),
    )
)
_IN_PLACE = frozenset({"uniform_", "normal_", "random_", "exponential_", "geometric_", "cauchy_", "log_normal_"})
_FACTORIES: dict[str, Callable[[Tensor, Any, tuple[Any, ...], torch.Generator], Any]] = {
    "rand": lambda out, _f, _a, g: out.uniform_(generator=g),
    "rand_like": lambda out, _f, _a, g: out.uniform_(generator=g),
    "randn": lambda out, _f, _a, g: out.normal_(generator=g),
    "randn_like": lambda out, _f, _a, g: out.normal_(generator=g),
    "randint": _refill_integers,
    "randint_like": _refill_integers,
}
