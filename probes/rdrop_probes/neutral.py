"""The differentiable eval pass, with every mask at its neutral value.

The model runs with dropout activated and every mask at its neutral value, so that it computes what the eval
model computes, and the result of each mask's multiplication is noted. With out = h * m, the derivative of
anything with respect to the mask m at 1 is out * d/d(out), summed to the mask's shape. So one backward pass
gives every site at once, for any kind of multiplicative noise and wherever it hides in the model.
"""

from __future__ import annotations

from collections.abc import Collection
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
from rdrop_probes.leaf import Leaf
from rdrop_probes.sites import Forward, SiteKey, SitePlan
from rdrop_probes.state import buffers_kept, flags
from rdrop_probes.uses import Uses

NOT_THE_EVAL_MODEL = "with neutral masks the model is not the eval model"
ENTANGLED = "which examples its mask belongs to cannot be told"


def gradient_pass(
    model: nn.Module,
    forward: Forward,
    plan: SitePlan,
    inputs: Any,
    n: int,
    *,
    want_sites: bool,
    start: int = 0,
    owners: Tensor | None = None,
    family: Family = CATEGORICAL,
    seed: int = 0,
    expected: Tensor | None = None,
    entangled: Collection[SiteKey] = (),
    directions: int = 1,
) -> GradientPass:
    """Differentiable eval pass over `n` examples; use it inside :func:`rdrop_probes.state.preserved`.

    Where dropout activated with neutral masks does not compute what the eval model computes, sites are given
    up (`unpredictable` says why) and the plain eval pass is taken.

    Args:
        model: the network.
        forward: gives the rows [P, C] that count.
        plan: the model's sites.
        inputs: of the examples.
        n: how many examples.
        want_sites: whether gradients with respect to masks are wanted.
        start: index of the first example.
        owners: [P], the example of each row; None: each is an example.
        family: what a row stands for.
        seed: random numbers follow from it.
        expected: what `forward` gives for the eval model, where that is known: then one pass will do.
        entangled: sites found by :func:`entangled_sites`.
        directions: how many are pulled back at a time.
    """
    made = partial(GradientPass, n=n, start=start, owners=owners, family=family, seed=seed, directions=directions)
    run = partial(_forward, model, forward, plan, inputs, seed)
    if not want_sites or not plan.stochastic:
        plain = run(training=False)
        return made(plain.logits, plain.leaf, {}, {})
    neutral = run(training=True)
    reason = _unusable(neutral)
    logits = neutral.logits.detach()
    if reason is None and (expected is None or not agree(logits, expected)):  # rows of a larger batch may differ
        reason = None if agree(logits, run(training=False, recorded=False).logits) else NOT_THE_EVAL_MODEL
    if reason is not None:
        del neutral  # before the other pass takes as much memory
        plain = run(training=False)
        return made(plain.logits, plain.leaf, {}, dict.fromkeys(plan.sites, reason))
    noted, reasons = _usable(plan, neutral.notes, n)
    for key in noted.keys() & set(entangled):
        reasons[key] = ENTANGLED
        del noted[key]
    return made(neutral.logits, neutral.leaf, noted, reasons)


@dataclass(frozen=True)
class _Pass:
    logits: Tensor
    leaf: Tensor | None
    notes: _Notes
    froze: bool


def _unusable(neutral: _Pass) -> str | None:
    """Why derivatives of a pass with neutral masks are not those of the eval model; None if they may be."""
    if neutral.notes.fused:  # its derivative is scaled by 1 / (1 - q), which a neutral mask does not undo
        return "the fused dropout kernel has no derivative at the neutral mask"
    if neutral.froze:  # its derivative would be of a batch normalisation in training
        return "a batch normalisation shares its training flag with the dropout"
    return None


def _usable(plan: SitePlan, notes: _Notes, n: int) -> tuple[dict[SiteKey, NotedMask], dict[SiteKey, str]]:
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


def entangled_sites(gradients: GradientPass) -> list[SiteKey]:
    """Sites whose mask for other examples moves the first example's output: they are laid out in another way."""
    owners = gradients.owners
    if not gradients.sites or gradients.n < 2 or not len(gradients.logits):
        return []
    first = torch.arange(len(gradients.logits)) == 0 if owners is None else (owners == owners[0]).cpu()
    numbers = torch.randn(gradients.logits.shape, generator=torch.Generator().manual_seed(gradients.seed))
    direction = (numbers * first[:, None]).to(gradients.logits)
    outs = [noted.out for noted in gradients.sites.values()]
    found = torch.autograd.grad(gradients.logits, outs, direction, retain_graph=True, allow_unused=True)
    example = 0 if owners is None else int(owners[0])
    return [
        key
        for (key, noted), gradient in zip(gradients.sites.items(), found, strict=True)
        if gradient is not None and _others(noted.mask_gradient(gradient[None])[0], example).any()
    ]


def _others(by_example: Tensor, example: int) -> Tensor:
    return torch.cat([by_example[:example], by_example[example + 1 :]])


def _forward(
    model: nn.Module,
    forward: Forward,
    plan: SitePlan,
    inputs: Any,
    seed: int,
    *,
    training: bool,
    recorded: bool = True,
) -> _Pass:
    paths, notes = ModulePaths(model), _Notes(seed)
    interceptor = _NeutralPass(paths, notes)
    with ExitStack() as stack:
        stack.enter_context(buffers_kept(model))
        stack.enter_context(flags(model, plan.modules if training else plan.eval_modules))
        stack.enter_context(torch.set_grad_enabled(recorded))
        stack.enter_context(paths.tracked())
        leaf = stack.enter_context(Leaf(model, inputs))
        stack.enter_context(interceptor)
        logits = forward(leaf.inputs)
    return _Pass(logits, leaf.tensor, notes, interceptor.froze)


class _NeutralPass(DrawInterceptor):
    """Gives every mask its neutral value and has noted where it is multiplied in.

    The notes, which hold the graph, are an object of their own: one that refers to itself would outlive the pass.
    """

    def __init__(self, paths: ModulePaths, notes: _Notes) -> None:
        super().__init__(paths, notes.answer)
        self._notes = notes

    def pass_through(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator that draws nothing."""
        result = func(*args, **kwargs)
        self._notes.see(func.overloadpacket.__name__, args, result)
        return result


class _Notes:
    """Follows neutral masks through a pass, to the products with what they mask."""

    def __init__(self, seed: int) -> None:
        self.outs: dict[SiteKey, tuple[Tensor, int, torch.Size]] = {}
        self.repeated: set[SiteKey] = set()
        self.fused = False
        self._masks: dict[int, tuple[Tensor, SiteKey]] = {}  # the tensor is kept so that its id stays its own
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}
        self._uses = Uses()

    def answer(self, draw: Draw, out: Tensor) -> None:
        """Give a mask its neutral value."""
        self.fused |= draw.operator == "native_dropout"
        if draw.keep is None:
            draw.fill(out, None, self._generator(out.device))
            self._uses.note((draw.path, draw.ordinal), draw.operator, None, out)
            return
        out.copy_(draw.keep) if isinstance(draw.keep, Tensor) else out.fill_(draw.keep)
        self._masks[id(out)] = (out, (draw.path, draw.ordinal))

    def see(self, operator: str, args: tuple[Any, ...], result: Any) -> None:
        """Follow masks through scaling by a number, and note their product with a tensor."""
        self._uses.follow(operator, args, result)
        if not any(id(a) in self._masks for a in args if isinstance(a, Tensor)):
            self._neutralise(result)
        if operator in {"mul", "mul_", "div", "div_"}:
            masks = [i for i, a in enumerate(args[:2]) if isinstance(a, Tensor) and id(a) in self._masks]
            if masks:
                self._follow(args[masks[0]], args[1 - masks[0]], result, in_place=operator.endswith("_"))

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]

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
