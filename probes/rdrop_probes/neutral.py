"""The differentiable eval pass, with every mask at its neutral value.

The model runs with dropout activated and every mask at its neutral value, so that it computes what the eval
model computes, and the result of each mask's multiplication is noted. With out = h * m, the derivative of
anything with respect to the mask m at 1 is out * d/d(out), summed to the mask's shape. So one backward pass
gives every site at once, for any kind of multiplicative noise and wherever it hides in the model.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rdrop_probes.divergences import agree
from rdrop_probes.families import CATEGORICAL, Family
from rdrop_probes.gradients import GradientPass, NotedMask
from rdrop_probes.interception import Draw, DrawInterceptor, ModulePaths
from rdrop_probes.sites import Forward, SiteKey, SitePlan
from rdrop_probes.state import buffers_kept, flags
from rdrop_probes.uses import Uses


def gradient_pass(
    model: nn.Module,
    forward: Forward,
    plan: SitePlan,
    inputs: Any,
    n: int,
    *,
    generator: torch.Generator,
    want_sites: bool,
    owners: Tensor | None = None,
    family: Family = CATEGORICAL,
) -> GradientPass:
    """Differentiable eval pass over `n` examples; use it inside :func:`rdrop_probes.state.preserved`.

    `forward` gives the rows [P, C] that count, `owners` [P] the example of each (None: each is an example).

    Where dropout activated with neutral masks does not compute what the eval model computes, sites are given
    up (`unpredictable` says why) and the plain eval pass is taken.
    """
    plain = _forward(model, forward, plan, inputs, generator, training=False)
    made = partial(GradientPass, generator=generator, n=n, family=family)
    if owners is not None:
        made = partial(made, owners=owners.to(plain.logits.device))
    if not want_sites or not plan.stochastic:
        return made(plain.logits, plain.leaf, {}, {})
    neutral = _forward(model, forward, plan, inputs, generator, training=True)
    with flags(model, plan.eval_modules):  # under which the backward passes will run
        reason = _unusable(neutral, plain)
    if reason is not None:
        return made(plain.logits, plain.leaf, {}, dict.fromkeys(plan.sites, reason))
    noted, reasons = _usable(plan, neutral.notes, n)
    with flags(model, plan.eval_modules):
        for key in _entangled(neutral.logits, noted, owners, n):
            reasons[key] = "which examples its mask belongs to cannot be told"
            del noted[key]
    return made(neutral.logits, neutral.leaf, noted, reasons)


@dataclass(frozen=True)
class _Pass:
    logits: Tensor
    leaf: Tensor | None
    notes: _NeutralPass


def _unusable(neutral: _Pass, plain: _Pass) -> str | None:
    """Why the pass with neutral masks cannot stand for the eval pass; None if it can."""
    if neutral.notes.fused:  # its derivative is scaled by 1 / (1 - q), which a neutral mask does not undo
        return "the fused dropout kernel has no derivative at the neutral mask"
    if neutral.notes.froze:  # its derivative would be of a batch normalisation in training
        return "a batch normalisation shares its training flag with the dropout"
    if not agree(neutral.logits.detach(), plain.logits.detach()):
        return "with neutral masks the model is not the eval model"
    try:
        outs = [out for out, *_ in neutral.notes.outs.values() if out.requires_grad]
        wanted = outs if neutral.leaf is None else [*outs, neutral.leaf]
        torch.autograd.grad(neutral.logits.sum(), wanted, retain_graph=True, allow_unused=True)
    except RuntimeError:  # a value that the derivative needs was changed in place
        return "with dropout activated the model cannot be differentiated"
    return None


def _usable(plan: SitePlan, notes: _NeutralPass, n: int) -> tuple[dict[SiteKey, NotedMask], dict[SiteKey, str]]:
    """Which sites the second-order formula covers, and why not the others."""
    outs = notes.outs
    noted, reasons = {}, {}
    for key, site in plan.sites.items():
        if site.rate is None or site.rate >= 1:
            reasons[key] = "the rate is 1" if site.rate else "the noise has no single drop probability"
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
            noted[key] = NotedMask(entry[0], entry[2], batch_dim=site.batch_dim, n=n)
    return noted, reasons


def _entangled(logits: Tensor, noted: dict[SiteKey, NotedMask], owners: Tensor | None, n: int) -> list[SiteKey]:
    """Sites whose mask for other examples moves the first example's output: they are laid out in another way."""
    first = logits[:1] if owners is None else logits[owners.to(logits.device) == 0]
    if not noted or n < 2 or not len(first):
        return []
    keys = list(noted)
    outs = [noted[key].out for key in keys]
    gradients = torch.autograd.grad(first.sum(), outs, retain_graph=True, allow_unused=True)
    by_site = zip(keys, gradients, strict=True)
    return [key for key, g in by_site if g is not None and noted[key].mask_gradient(g)[1:].any()]


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
        stack.enter_context(buffers_kept(model))
        stack.enter_context(flags(model, plan.modules if training else plan.eval_modules))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(paths.tracked())
        embeds = any(isinstance(module, nn.Embedding) for module in model.modules())
        inputs, leaf = _differentiable(inputs, only_floats=embeds)
        captured = stack.enter_context(_EmbeddingLeaf(model, inputs)) if leaf is None else None
        stack.enter_context(interceptor)
        logits = forward(inputs)
    return _Pass(logits, leaf if captured is None else captured.leaf, interceptor)


class _NeutralPass(DrawInterceptor):
    """Gives every mask its neutral value and notes where it is multiplied in."""

    def __init__(self, paths: ModulePaths, generator: torch.Generator) -> None:
        super().__init__(paths, self._neutral)
        self.outs: dict[SiteKey, tuple[Tensor, int, torch.Size]] = {}
        self.repeated: set[SiteKey] = set()
        self.fused = False
        self._masks: dict[int, tuple[Tensor, SiteKey]] = {}  # the tensor is kept so that its id stays its own
        self._generator = generator
        self._uses = Uses()

    def _neutral(self, draw: Draw, out: Tensor) -> None:
        self.fused |= draw.operator == "native_dropout"
        if draw.keep is None:
            draw.fill(out, None, self._generator)
            self._uses.note((draw.path, draw.ordinal), draw.operator, None, out)
            return
        out.copy_(draw.keep) if isinstance(draw.keep, Tensor) else out.fill_(draw.keep)
        self._masks[id(out)] = (out, (draw.path, draw.ordinal))

    def pass_through(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Follow masks through scaling by a number, and note their product with a tensor."""
        result = func(*args, **kwargs)
        operator = func.overloadpacket.__name__
        self._uses.follow(operator, args, result)
        if not any(id(a) in self._masks for a in args if isinstance(a, Tensor)):
            self._neutralise(result)
        if operator in {"mul", "mul_", "div", "div_"}:
            masks = [i for i, a in enumerate(args[:2]) if isinstance(a, Tensor) and id(a) in self._masks]
            if masks:
                self._follow(args[masks[0]], args[1 - masks[0]], result, in_place=operator.endswith("_"))
        return result

    def _neutralise(self, result: Any) -> None:
        """A mask that was made of uniform numbers, by floor(keep + rand) for one, gets its neutral value as well."""
        if not isinstance(result, Tensor) or not result.is_floating_point() or id(result) in self._masks:
            return
        if (mask := self._uses.mask(result)) is not None:
            key, keep = mask
            result.fill_(keep)
            self._masks[id(result)] = (result, key)

    def _follow(self, mask: Tensor, other: Any, result: Tensor, *, in_place: bool) -> None:
        key = self._masks[id(mask)][1]
        if isinstance(other, Tensor) and other.dim() > 0:
            if key in self.outs:
                self.repeated.add(key)
            self.outs[key] = (result, result._version + int(in_place), mask.shape)
        else:
            self._masks[id(result)] = (result, key)


def _differentiable(inputs: Any, *, only_floats: bool) -> tuple[Any, Tensor | None]:
    """Inputs with the first floating-point tensor made a leaf, and that leaf (None: there is none).

    With `only_floats` nothing is done if one of the inputs is of integers: token ids, whose embedding is taken.
    """
    items = _items(inputs)
    floating = [key for key, value in items.items() if value.is_floating_point()]
    if not floating or (only_floats and len(floating) < len(items)):
        return inputs, None
    leaf = items[floating[0]].detach().clone().requires_grad_()
    items[floating[0]] = leaf
    if isinstance(inputs, Tensor):
        return leaf, leaf
    return (items if isinstance(inputs, dict) else tuple(items.values())), leaf


def _items(inputs: Any) -> dict[Any, Tensor]:
    """Tensors of the inputs by name or place."""
    if isinstance(inputs, Tensor):
        return {0: inputs}
    return dict(inputs) if isinstance(inputs, dict) else dict(enumerate(inputs))


class _EmbeddingLeaf:
    """Makes the output of the embedding of the model's own ids a leaf: the input of a model that takes token ids."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        self.leaf: Tensor | None = None
        self._model = model
        self._ids = [tensor for tensor in _items(inputs).values() if not tensor.is_floating_point()]
        self._handles: list[Any] = []

    def __enter__(self) -> _EmbeddingLeaf:
        for module in self._model.modules():
            if isinstance(module, nn.Embedding):
                self._handles.append(module.register_forward_hook(self._capture))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _capture(self, _module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if self.leaf is not None or not any(_same_ids(args[0], ids) for ids in self._ids):
            return None
        self.leaf = output.detach().requires_grad_()
        return self.leaf


def _same_ids(used: Tensor, given: Tensor) -> bool:
    """Whether an embedding looks up the ids that the model was given, perhaps changed on the way; not positions."""
    return used.data_ptr() == given.data_ptr() or (used.dim() > 1 and used.shape[0] == given.shape[0] > 1)
