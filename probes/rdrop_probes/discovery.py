"""Find the sites of a model, and which training flags make them draw, by running it.

Only dropout is turned on: the smallest set of modules whose `training` flag brings every draw of train mode
back, never a module that keeps running statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rdrop_probes.divergences import agree
from rdrop_probes.interception import Draw, DrawInterceptor, ModulePaths
from rdrop_probes.sites import SilentSiteError, Site, SiteKey, SitePlan
from rdrop_probes.state import buffers_kept, flags, foreign_state, seed_foreign

_Norm = nn.modules.batchnorm._NormBase
OBSERVED_EXAMPLES = 32  # enough for most data-dependent branches, and cheap
ERRATIC_PASSES = 16  # a layer that runs half of the time is missed once in 65 thousand


@dataclass
class _Sighting:
    draw: Draw
    shape: tuple[int, ...]

    @property
    def may_decide(self) -> bool:
        """Whether a branch may hang on it: a single number, or no mask at all."""
        return self.draw.keep is None or math.prod(self.shape) == 1


@dataclass(frozen=True)
class _Observation:
    """Draws by site, whether a generator outside torch was used, and whether chance decided which sites drew."""

    sightings: dict[SiteKey, _Sighting]
    foreign: bool = False
    erratic: bool = False


@dataclass(frozen=True)
class _Pass:
    """One forward pass: draws by site, whether a generator outside torch was used, and the output."""

    sightings: dict[SiteKey, _Sighting]
    foreign: bool
    output: Tensor


def find_sites(model: nn.Module, run: Callable[[int], Tensor], available: int = 3) -> SitePlan:
    """Find the sites of `model`; `run(n)` is a forward pass over the first `n` of `available` examples.

    Raises:
        SilentSiteError: no set of training flags brings back every draw of full train mode.
    """
    larger = max(3, min(available, OBSERVED_EXAMPLES))
    everything = _trainable(model, lambda: run(larger))
    eval_modules = _flags_after(model, training=False)  # last, so that the model is as eval() leaves it
    in_eval = _observe(model, eval_modules, lambda: run(2)).sightings
    two = _observe(model, everything, lambda: run(2))
    many = _observe(model, everything, lambda: run(larger))
    uncontrolled = not _repeats(model, everything, run)
    modules = everything if uncontrolled else _smallest_flags(model, everything, many, lambda: run(larger))
    keys = many.sightings | two.sightings
    sites = {
        key: _site(model, key, two.sightings, many.sightings, larger, fires_in_eval=key in in_eval) for key in keys
    }
    return SitePlan(
        sites,
        modules,
        erratic=two.erratic or many.erratic,
        varying=two.sightings.keys() != many.sightings.keys() and not (two.erratic or many.erratic),
        uncontrolled=uncontrolled,
        eval_modules=eval_modules,
        train_modules=everything,
    )


def draws(model: nn.Module, training: Iterable[nn.Module], run: Callable[[], Tensor]) -> list[SiteKey]:
    """The sites that draw in one forward pass under these flags."""
    return list(_observe_once(model, training, run, 0).sightings)


def keeps_statistics(module: nn.Module) -> bool:
    """Whether training mode would make the module use or update statistics of the batch."""
    return isinstance(module, _Norm) or "running_mean" in module._buffers


def _trainable(model: nn.Module, run: Callable[[], Tensor]) -> frozenset[nn.Module]:
    """Modules in training mode in the model's own train mode, without those that keep statistics.

    A module of the user's that keeps statistics and draws as well is in it: what it does with `F.batch_norm` is
    held back operator by operator.
    """
    training = frozenset(m for m in _flags_after(model, training=True) if not isinstance(m, _Norm))
    drawing = {model.get_submodule(path) for path, _ in draws(model, training, run)}
    return frozenset(m for m in training if m in drawing or not keeps_statistics(m))


def _site(
    model: nn.Module,
    key: SiteKey,
    two: dict[SiteKey, _Sighting],
    many: dict[SiteKey, _Sighting],
    larger: int,
    *,
    fires_in_eval: bool,
) -> Site:
    """A site from what was seen of it with 2 and with `larger` examples, or with one of them."""
    if key in two:
        sighting, shape = two[key], two[key].shape
        batch_dim = _batch_dim(shape, many[key].shape, larger) if key in many else None
    else:
        sighting, shape = many[key], many[key].shape
        batch_dim = 0 if shape and shape[0] % larger == 0 else None
        shape = (shape[0] // larger * 2, *shape[1:]) if batch_dim == 0 else shape
    kind = _kind(model.get_submodule(key[0]), sighting)
    return Site(key, kind, sighting.draw.rate, shape, batch_dim, fires_in_eval)


def _flags_after(model: nn.Module, *, training: bool) -> frozenset[nn.Module]:
    """Modules in training mode after `model.train(training)`, which the model may have overridden."""
    if not any(_overrides(module) for module in model.modules()):
        return frozenset(model.modules()) if training else frozenset()
    with flags(model, [module for module in model.modules() if module.training]):
        model.train() if training else model.eval()
        return frozenset(module for module in model.modules() if module.training)


def _overrides(module: nn.Module) -> bool:
    """Whether the module has its own idea of training and eval mode."""
    return type(module).train is not nn.Module.train or type(module).eval is not nn.Module.eval


def _repeats(model: nn.Module, modules: frozenset[nn.Module], run: Callable[[int], Tensor]) -> bool:
    """Whether two passes under the same masks give the same output."""
    first, second = (_observe_once(model, modules, lambda: run(2), 0).output for _ in range(2))
    return agree(first, second)


def _smallest_flags(
    model: nn.Module, everything: frozenset[nn.Module], wanted: _Observation, run: Callable[[], Tensor]
) -> frozenset[nn.Module]:
    """Start from the modules that draw; add their ancestors, then all, until no wanted draw is missing."""
    drawing = frozenset(model.get_submodule(path) for path, _ in wanted.sightings) & everything
    parents = {model.get_submodule(parent) for path, _ in wanted.sightings for parent in _parents(path)} & everything
    for modules in dict.fromkeys((drawing, drawing | parents, everything)):
        found = _observe(model, modules, run)
        missing = wanted.sightings.keys() - found.sightings.keys()
        if not missing and found.foreign >= wanted.foreign:
            return modules
    if not missing:
        return everything
    names = ", ".join(sorted(path or "(root)" for path, _ in missing))
    raise SilentSiteError(f"dropout at {names} draws in train mode but not when it is activated again")


def _parents(path: str) -> list[str]:
    parts = path.split(".") if path else []
    return [".".join(parts[:i]) for i in range(len(parts))]


def _observe(model: nn.Module, training: Iterable[nn.Module], run: Callable[[], Tensor]) -> _Observation:
    """Every draw of a forward pass under these flags; of several passes where chance may decide what runs."""
    flags_set = frozenset(training)
    first = _observe_once(model, flags_set, run, 0)
    if not first.foreign and not any(sighting.may_decide for sighting in first.sightings.values()):
        return _Observation(first.sightings)
    others = [_observe_once(model, flags_set, run, seed).sightings for seed in range(1, ERRATIC_PASSES)]
    passes = [first.sightings, *others]
    union = {key: sighting for found in passes for key, sighting in found.items()}
    erratic = first.foreign or any(found.keys() != union.keys() for found in passes)
    return _Observation(union, first.foreign, erratic)


def _observe_once(model: nn.Module, training: Iterable[nn.Module], run: Callable[[], Tensor], seed: int) -> _Pass:
    """Every draw of one forward pass."""
    seen: dict[SiteKey, _Sighting] = {}
    certain: list[tuple[str, tuple[int, ...]]] = []
    paths = ModulePaths(model)

    def note(draw: Draw, out: Tensor) -> None:
        seen[draw.path, draw.ordinal] = _Sighting(draw, tuple(out.shape))
        draw.fill(out, draw.keep, torch.Generator(out.device).manual_seed(seed))

    seed_foreign(seed)
    before = foreign_state()
    with ExitStack() as stack:
        stack.enter_context(buffers_kept(model))
        stack.enter_context(flags(model, training))
        stack.enter_context(torch.no_grad())
        stack.enter_context(paths.tracked())
        stack.enter_context(_CertainDropout(paths, certain))
        stack.enter_context(DrawInterceptor(paths, note))
        output = run()
    for path, shape in certain:  # numbered behind the module's draws, whose ordinals have to stay theirs
        ordinal = sum(path == other for other, _ in seen)
        seen[path, ordinal] = _Sighting(Draw(path, ordinal, "dropout", 0.0, lambda out, *_: None), shape)
    return _Pass(seen, foreign_state() != before, output)


class _CertainDropout(TorchFunctionMode):
    """Notices dropout at rate 1, which zeroes its input without drawing anything: module path and shape."""

    def __init__(self, paths: ModulePaths, found: list[tuple[str, tuple[int, ...]]]) -> None:
        super().__init__()
        self._paths = paths
        self._found = found

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Record the call if it drops with certainty, then run it."""
        kwargs = kwargs or {}
        if func in _DROPOUTS:
            named = dict(zip(("input", "p", "train"), args, strict=False)) | kwargs
            if named.get("p") == 1 and named.get("train", named.get("training")):
                self._found.append((self._paths.current, tuple(named["input"].shape)))
        return func(*args, **kwargs)


_DROPOUTS = frozenset(
    getattr(namespace, name)
    for namespace in (torch, nn.functional)  # those of nn.functional come with their defaults filled in
    for name in (
        *("dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "alpha_dropout_"),
        *("feature_dropout", "feature_dropout_", "feature_alpha_dropout", "feature_alpha_dropout_"),
    )
    if hasattr(namespace, name)
)


def _batch_dim(two: tuple[int, ...], many: tuple[int, ...], n: int) -> int | None:
    """The dimension that grows with the number of examples, from the shapes for 2 and for `n` of them."""
    if len(two) != len(many):
        return None
    growing = [d for d, (a, b) in enumerate(zip(two, many, strict=True)) if a * n == b * 2 and a != b]
    return growing[0] if growing else None


def _kind(module: nn.Module, sighting: _Sighting) -> str:
    """Name of what is dropped, from the operator, the module around it and the mask's shape."""
    if sighting.draw.keep is None:
        return f"random ({sighting.draw.operator})"
    if isinstance(module, nn.MultiheadAttention):
        return "attention dropout"
    if isinstance(module, nn.RNNBase):
        return "recurrent dropout"
    if isinstance(module, nn.AlphaDropout | nn.FeatureAlphaDropout):
        return "alpha dropout"
    trailing = sighting.shape[1:]
    if trailing and all(size == 1 for size in trailing):
        return "stochastic depth"
    if len(trailing) > 1 and all(size == 1 for size in trailing[1:]):
        return "feature dropout"
    return "dropout"
