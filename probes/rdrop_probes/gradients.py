"""Gradients of the eval model, shared by every probe that wants them: with respect to input and to masks.

The model runs once with dropout activated and every mask at its neutral value, so that it computes what the
eval model computes, and the result of each mask's multiplication is noted. With out = h * m, the derivative
of anything with respect to the mask m at 1 is out * d/d(out), summed to the mask's shape. So one backward
pass gives every site at once, for any kind of multiplicative noise and wherever it hides in the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rdrop_probes.interception import Draw, DrawInterceptor, ModulePaths
from rdrop_probes.sites import Forward, SiteKey, SitePlan, flags
from rdrop_probes.submodels import agree

MAX_EXACT_CLASSES = 64
SAMPLED_CLASSES = 16


@dataclass(frozen=True)
class Row:
    """Gradient of log p(y) for one choice of y per example.

    Attributes:
        weight: [N], the weight of this y in E_{y~p}. p: [N], its probability.
        possible: [N], False where the logit is minus infinity and the gradient is given as 0.
        inputs: [N, D] or None. sites: [N, ...] by site, derivative with respect to the mask.
    """

    weight: Tensor
    p: Tensor
    possible: Tensor
    inputs: Tensor | None
    sites: dict[SiteKey, Tensor]


@dataclass
class GradientPass:
    """The differentiable eval pass over one batch.

    Attributes:
        logits: [N, C] with its graph. leaf: what gradients are taken with respect to, [N, ...]; None if the
            model's input is not differentiable. sites: results of the masks' multiplications.
        unpredictable: why a site has no gradient, by site.
    """

    logits: Tensor
    leaf: Tensor | None
    sites: dict[SiteKey, _Noted]
    unpredictable: dict[SiteKey, str]
    generator: torch.Generator = field(repr=False)

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.logits)

    @property
    def exact(self) -> bool:
        """Whether expectations over y run over all classes."""
        return self.logits.shape[1] <= MAX_EXACT_CLASSES

    def gradient(self, scalar: Tensor) -> Tensor | None:
        """Gradient [N, D] of a sum over examples with respect to the input."""
        if self.leaf is None:
            return None
        (gradient,) = torch.autograd.grad(scalar, self.leaf, retain_graph=True)
        return gradient.detach().reshape(self.n, -1)

    def rows(self) -> Iterator[Row]:
        """Gradients of log p(y): for every class weighted by p(y), or for classes sampled from p."""
        log_p = torch.log_softmax(self.logits, -1)
        p = log_p.detach().exp()
        for y, weight in self._choices(p):
            chosen = log_p.gather(1, y[:, None]).squeeze(1)
            yield self._row(chosen, weight, p.gather(1, y[:, None]).squeeze(1))

    def _choices(self, p: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        if self.exact:
            for c in range(p.shape[1]):
                yield torch.full((self.n,), c, device=p.device), p[:, c]
            return
        drawn = torch.multinomial(p.cpu(), SAMPLED_CLASSES, replacement=True, generator=self.generator).to(p.device)
        for y in drawn.T:
            yield y, torch.full((self.n,), 1 / SAMPLED_CLASSES, device=p.device, dtype=p.dtype)

    def _row(self, chosen: Tensor, weight: Tensor, p: Tensor) -> Row:
        keys = list(self.sites)
        wanted = [self.sites[key].out for key in keys] + ([] if self.leaf is None else [self.leaf])
        possible = ~torch.isneginf(chosen.detach())
        total = torch.where(possible, chosen, 0.0).sum()
        found = torch.autograd.grad(total, wanted, retain_graph=True, allow_unused=True)
        by_site = {key: self.sites[key].mask_gradient(g) for key, g in zip(keys, found, strict=False) if g is not None}
        leaf = None if self.leaf is None or found[-1] is None else found[-1].detach().reshape(self.n, -1)
        return Row(weight, p, possible, leaf, by_site)


@dataclass(frozen=True)
class _Noted:
    """Result of multiplying by a mask, with the mask's shape and the dimension that holds the examples."""

    out: Tensor
    version: int
    mask_shape: torch.Size
    batch_dim: int
    n: int

    def mask_gradient(self, gradient: Tensor) -> Tensor:
        """Derivative with respect to the mask, examples first: [N, mask elements of one example]."""
        derivative = (gradient * self.out.detach()).sum_to_size(self.mask_shape)
        by_example: Tensor = derivative.unflatten(self.batch_dim, (self.n, -1)).movedim(self.batch_dim, 0)
        return by_example.reshape(self.n, -1)


class _NeutralPass(DrawInterceptor):
    """Gives every mask its neutral value and notes where it is multiplied in."""

    def __init__(self, paths: ModulePaths, generator: torch.Generator) -> None:
        super().__init__(paths, self._neutral)
        self.outs: dict[SiteKey, tuple[Tensor, int, torch.Size]] = {}
        self.repeated: set[SiteKey] = set()
        self.fused = False
        self._masks: dict[int, tuple[Tensor, SiteKey]] = {}  # the tensor is kept so that its id stays its own
        self._generator = generator

    def _neutral(self, draw: Draw, out: Tensor) -> None:
        self.fused |= draw.operator == "native_dropout"
        if draw.keep is None:
            draw.fill(out, None, self._generator)
            return
        out.copy_(draw.keep) if isinstance(draw.keep, Tensor) else out.fill_(draw.keep)
        self._masks[id(out)] = (out, (draw.path, draw.ordinal))

    def pass_through(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Follow masks through scaling by a number, and note their product with a tensor."""
        result = func(*args, **kwargs)
        operator = func.overloadpacket.__name__
        if operator in {"mul", "mul_", "div", "div_"}:
            masks = [i for i, a in enumerate(args[:2]) if isinstance(a, Tensor) and id(a) in self._masks]
            if masks:
                self._follow(args[masks[0]], args[1 - masks[0]], result, in_place=operator.endswith("_"))
        return result

    def _follow(self, mask: Tensor, other: Any, result: Tensor, *, in_place: bool) -> None:
        key = self._masks[id(mask)][1]
        if isinstance(other, Tensor) and other.dim() > 0:
            if key in self.outs:
                self.repeated.add(key)
            self.outs[key] = (result, result._version + int(in_place), mask.shape)
        else:
            self._masks[id(result)] = (result, key)


def gradient_pass(
    model: nn.Module,
    forward: Forward,
    plan: SitePlan,
    inputs: Any,
    n: int,
    *,
    generator: torch.Generator,
    want_sites: bool,
) -> GradientPass:
    """Differentiable eval pass over `n` examples; use it inside :func:`rdrop_probes.submodels.preserved`.

    Where dropout activated with neutral masks does not compute what the eval model computes, sites are given
    up (`unpredictable` says why) and the plain eval pass is taken.
    """
    plain = _forward(model, forward, plan, inputs, generator, training=False)
    if not want_sites or not plan.stochastic:
        return GradientPass(plain.logits, plain.leaf, {}, {}, generator)
    neutral = _forward(model, forward, plan, inputs, generator, training=True)
    reason = _unusable(neutral, plain)
    if reason is not None:
        return GradientPass(plain.logits, plain.leaf, {}, dict.fromkeys(plan.sites, reason), generator)
    noted, reasons = _usable(plan, neutral.notes, n)
    return GradientPass(neutral.logits, neutral.leaf, noted, reasons, generator)


@dataclass(frozen=True)
class _Pass:
    logits: Tensor
    leaf: Tensor | None
    notes: _NeutralPass


def _unusable(neutral: _Pass, plain: _Pass) -> str | None:
    """Why the pass with neutral masks cannot stand for the eval pass; None if it can."""
    if neutral.notes.fused:  # its derivative is scaled by 1 / (1 - q), which a neutral mask does not undo
        return "the fused dropout kernel has no derivative at the neutral mask"
    if not agree(neutral.logits.detach(), plain.logits.detach()):
        return "with neutral masks the model is not the eval model"
    return None


def _forward(
    model: nn.Module,
    forward: Forward,
    plan: SitePlan,
    inputs: Any,
    generator: torch.Generator,
    *,
    training: bool,
) -> _Pass:
    paths = ModulePaths(model)
    interceptor = _NeutralPass(paths, generator)
    with ExitStack() as stack:
        stack.enter_context(flags(model, plan.modules if training else ()))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(paths.tracked())
        inputs, leaf = _differentiable(inputs)
        captured = stack.enter_context(_EmbeddingLeaf(model)) if leaf is None else None
        stack.enter_context(interceptor)
        logits = forward(inputs)
    return _Pass(logits, leaf if captured is None else captured.leaf, interceptor)


def _usable(plan: SitePlan, notes: _NeutralPass, n: int) -> tuple[dict[SiteKey, _Noted], dict[SiteKey, str]]:
    """Which sites the second-order formula covers, and why not the others."""
    outs = notes.outs
    noted, reasons = {}, {}
    for key, site in plan.sites.items():
        if site.rate is None or site.rate >= 1:
            reasons[key] = "the rate is 1" if site.rate else "not a dropout"
        elif key not in outs:
            reasons[key] = "the noise is not a mask multiplied in"
        elif key in notes.repeated:
            reasons[key] = "the mask is multiplied in more than once"
        elif site.batch_dim is None:
            reasons[key] = "the mask is shared by the examples of a batch"
        elif (entry := outs[key])[0]._version != entry[1]:
            reasons[key] = "the result of the dropout is changed in place"
        elif not entry[0].requires_grad:
            reasons[key] = "no gradient reaches it"
        else:
            noted[key] = _Noted(*entry, batch_dim=site.batch_dim, n=n)
    return noted, reasons


def _differentiable(inputs: Any) -> tuple[Any, Tensor | None]:
    """Inputs with the first floating-point tensor made a leaf, and that leaf (None: there is none)."""
    if isinstance(inputs, Tensor):
        if not inputs.is_floating_point():
            return inputs, None
        leaf = inputs.detach().clone().requires_grad_()
        return leaf, leaf
    items = list(inputs.items()) if isinstance(inputs, dict) else list(enumerate(inputs))
    if any(not value.is_floating_point() for _, value in items):
        return inputs, None  # token ids: the embedding output is the input
    first, value = items[0]
    items[0] = first, (leaf := value.detach().clone().requires_grad_())
    return (dict(items) if isinstance(inputs, dict) else tuple(v for _, v in items)), leaf


class _EmbeddingLeaf:
    """Makes the output of the first embedding that runs a leaf: the input of a model that takes token ids."""

    def __init__(self, model: nn.Module) -> None:
        self.leaf: Tensor | None = None
        self._model = model
        self._handles: list[Any] = []

    def __enter__(self) -> _EmbeddingLeaf:
        for module in self._model.modules():
            if isinstance(module, nn.Embedding):
                self._handles.append(module.register_forward_hook(self._capture))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _capture(self, _module: nn.Module, _args: Any, output: Tensor) -> Tensor | None:
        if self.leaf is not None:
            return None
        self.leaf = output.detach().requires_grad_()
        return self.leaf
