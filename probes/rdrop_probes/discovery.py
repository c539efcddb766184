"""Find the sites of a model, and which training flags make them draw, by running it.

Only dropout is turned on: the smallest set of modules whose `training` flag brings every draw of train mode
back, never a module that keeps running statistics.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rdrop_probes.interception import Draw, DrawInterceptor, ModulePaths
from rdrop_probes.sites import SilentSiteError, Site, SiteKey, SitePlan
from rdrop_probes.state import buffers_kept, flags

ERRATIC_PASSES = 16  # a layer that runs half of the time is missed once in 65 thousand


@dataclass
class _Sighting:
    draw: Draw
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Observation:
    """Draws by site, whether Python's generator was used, and whether chance decided which sites drew."""

    sightings: dict[SiteKey, _Sighting]
    pythons: bool = False
    erratic: bool = False


def find_sites(model: nn.Module, run: Callable[[int], Tensor]) -> SitePlan:
    """Find the sites of `model`; `run(n)` is a forward pass over `n` examples.

    Raises:
        SilentSiteError: no set of training flags brings back every draw of full train mode.
    """
    in_eval = _observe(model, frozenset(), lambda: run(2)).sightings
    everything = frozenset(module for module in model.modules() if not keeps_statistics(module))
    with buffers_kept(model):  # full train mode may update running values that the eval model computes with
        seen = _observe(model, everything, lambda: run(2))
    expected = seen.sightings
    modules = _smallest_flags(model, everything, seen, lambda: run(2))
    larger = _observe(model, modules, lambda: run(3)).sightings
    sites = {
        key: Site(
            key,
            _kind(model.get_submodule(key[0]), sighting),
            sighting.draw.rate,
            sighting.shape,
            _batch_dim(sighting.shape, larger[key].shape) if key in larger else None,
            key in in_eval,
        )
        for key, sighting in expected.items()
    }
    return SitePlan(sites, modules, erratic=seen.erratic)


def keeps_statistics(module: nn.Module) -> bool:
    """Whether training mode would make the module use or update statistics of the batch."""
    norms = (nn.modules.batchnorm._NormBase,)
    return isinstance(module, norms) or "running_mean" in module._buffers


def _smallest_flags(
    model: nn.Module, everything: frozenset[nn.Module], wanted: _Observation, run: Callable[[], Tensor]
) -> frozenset[nn.Module]:
    """Start from the modules that draw; add the ancestors of those that then stay silent."""
    modules = frozenset(model.get_submodule(path) for path, _ in wanted.sightings) & everything
    while True:
        found = _observe(model, modules, run)
        missing = wanted.sightings.keys() - found.sightings.keys()
        if not missing and found.pythons >= wanted.pythons:
            return modules
        ancestors = {
            model.get_submodule(parent) for path, _ in missing or wanted.sightings for parent in _parents(path)
        }
        if not (ancestors & everything) - modules:
            if not missing:
                return everything  # who uses Python's generator leaves no trace
            names = ", ".join(sorted(path or "(root)" for path, _ in missing))
            raise SilentSiteError(f"dropout at {names} draws in train mode but not when activated alone")
        modules |= ancestors & everything


def _parents(path: str) -> list[str]:
    parts = path.split(".") if path else []
    return [".".join(parts[:i]) for i in range(len(parts))]


def _observe(model: nn.Module, training: Iterable[nn.Module], run: Callable[[], Tensor]) -> _Observation:
    """Every draw of a forward pass under these flags; of several passes where chance may decide what runs."""
    flags_set = frozenset(training)
    seen, pythons = _observe_once(model, flags_set, run, 0)
    if not pythons and all(sighting.draw.keep is not None for sighting in seen.values()):
        return _Observation(seen)
    passes = [seen, *(_observe_once(model, flags_set, run, seed)[0] for seed in range(1, ERRATIC_PASSES))]
    union = {key: sighting for found in passes for key, sighting in found.items()}
    return _Observation(union, pythons, erratic=pythons or any(found.keys() != union.keys() for found in passes))


def _observe_once(
    model: nn.Module, training: Iterable[nn.Module], run: Callable[[], Tensor], seed: int
) -> tuple[dict[SiteKey, _Sighting], bool]:
    """Every draw of one forward pass, and whether Python's generator was used in it."""
    seen: dict[SiteKey, _Sighting] = {}
    certain: list[tuple[str, tuple[int, ...]]] = []
    paths = ModulePaths(model)

    def note(draw: Draw, out: Tensor) -> None:
        seen[draw.path, draw.ordinal] = _Sighting(draw, tuple(out.shape))
        draw.fill(out, draw.keep, torch.Generator(out.device).manual_seed(seed))

    random.seed(seed)
    before = random.getstate()
    with ExitStack() as stack:
        stack.enter_context(flags(model, training))
        stack.enter_context(torch.no_grad())
        stack.enter_context(paths.tracked())
        stack.enter_context(_CertainDropout(paths, certain))
        stack.enter_context(DrawInterceptor(paths, note))
        run()
    for path, shape in certain:  # numbered behind the module's draws, whose ordinals have to stay theirs
        ordinal = sum(path == other for other, _ in seen)
        seen[path, ordinal] = _Sighting(Draw(path, ordinal, "dropout", 0.0, lambda out, *_: None), shape)
    return seen, random.getstate() != before


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


def _batch_dim(two: tuple[int, ...], three: tuple[int, ...]) -> int | None:
    """The dimension that grows with the number of examples, from the shapes for 2 and for 3 of them."""
    growing = [d for d, (a, b) in enumerate(zip(two, three, strict=True)) if a * 3 == b * 2 and a != b]
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
