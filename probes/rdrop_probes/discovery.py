"""Find the sites of a model, and which training flags make them draw, by running it.

Only dropout is turned on: the smallest set of modules whose `training` flag brings every draw of train mode
back, never a module that keeps running statistics.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from rdrop_probes.divergences import agree
from rdrop_probes.observation import Observation, Sighting, observe, observe_once
from rdrop_probes.sites import SilentSiteError, Site, SiteKey, SitePlan
from rdrop_probes.state import as_users_run, flags

_Norm = nn.modules.batchnorm._NormBase
OBSERVED_EXAMPLES = 32  # enough for most data-dependent branches, and cheap
_SCRIPTED = (
    "aten::dropout",
    "aten::dropout_",
    "aten::feature_dropout",
    "aten::feature_dropout_",
    "aten::alpha_dropout",
)


def find_sites(model: nn.Module, run: Callable[[int], Tensor], available: int = 3) -> SitePlan:
    """Find the sites of `model`; `run(n)` is a forward pass over the first `n` of `available` examples.

    Raises:
        SilentSiteError: no set of training flags brings back every draw of full train mode.
    """
    larger = max(3, min(available, OBSERVED_EXAMPLES))
    everything = _trainable(model, lambda: run(larger))
    eval_modules = _flags_after(model, training=False)  # last, so that the model is as eval() leaves it
    in_eval = observe(model, eval_modules, lambda: run(larger)).sightings
    patched = _patched(model, eval_modules, lambda: run(larger))
    two = observe(model, everything, lambda: run(2))
    many = observe(model, everything, lambda: run(larger))
    uncontrolled = not _repeats(model, everything, run)
    modules = everything if uncontrolled else _smallest_flags(model, everything, many, lambda: run(larger))
    _check_not_baked(model, many)
    sites = {key: _site(model, key, two.sightings, many.sightings, larger) for key in many.sightings | two.sightings}
    dirty, reached = (_same_draws(many.sightings, found) for found in (in_eval, patched))
    modules_at = dict(model.named_modules())
    reached |= {key for key, site in sites.items() if site.rate == 1 and is_dropout_module(modules_at[key[0]])}
    return SitePlan(
        {
            key: replace(site, fires_in_eval=key in dirty, found_by_patching=key in reached)
            for key, site in sites.items()
        },
        modules,
        erratic=two.erratic or many.erratic,
        foreign=two.foreign or many.foreign,
        varying=two.sightings.keys() != many.sightings.keys() and not (two.erratic or many.erratic),
        uncontrolled=uncontrolled,
        eval_modules=eval_modules,
        train_modules=everything,
    )


def draws(model: nn.Module, training: Iterable[nn.Module], run: Callable[[], Tensor]) -> list[SiteKey]:
    """The sites that draw in one forward pass under these flags."""
    return list(observe_once(model, training, run, 0).sightings)


def keeps_statistics(module: nn.Module) -> bool:
    """Whether training mode would make the module use or update statistics of the batch."""
    return isinstance(module, _Norm) or "running_mean" in module._buffers


def _trainable(model: nn.Module, run: Callable[[], Tensor]) -> frozenset[nn.Module]:
    """Modules in training mode in the model's own train mode, without those that keep statistics.

    A module of the user's that keeps statistics and draws as well is in it: what it does with `F.batch_norm` is
    held back operator by operator.
    """
    training = frozenset(m for m in _flags_after(model, training=True) if not isinstance(m, _Norm))
    at = dict(model.named_modules())  # scripted modules have no get_submodule
    drawing = {at[path] for path, _ in draws(model, training, run)}
    return frozenset(m for m in training if m in drawing or not keeps_statistics(m))


def _check_not_baked(model: nn.Module, found: Observation) -> None:
    """Traced code has the mode that it was traced in for good: dropout that is off in it is no sign of consistency."""
    for path, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule) or any(site.startswith(path) for site, _ in found.sightings):
            continue
        graph = getattr(module, "inlined_graph", None)  # some containers have none
        nodes = [] if graph is None else [node for kind in _SCRIPTED for node in graph.findAllNodes(kind)]
        if any(_baked(*(value.toIValue() for value in list(node.inputs())[1:3])) for node in nodes):
            where = path or "(root)"
            raise SilentSiteError(f"dropout at {where} was traced in eval mode and stays off: give the untraced model")


def _baked(rate: float | None, training: bool | None) -> bool:
    """Whether constants say that dropout of some rate is off; None is what is no constant."""
    return training is False and rate != 0


def _patched(
    model: nn.Module, eval_modules: frozenset[nn.Module], run: Callable[[], Tensor]
) -> dict[SiteKey, Sighting]:
    """What draws under the usual recipe for MC dropout: `eval()`, then every dropout module into training mode."""
    switched = frozenset(m for m in model.modules() if is_dropout_module(m))
    with as_users_run(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fused paths, which are not taken to measure
        try:
            return observe(model, eval_modules | switched, run, certain=False).sightings
        except Exception:  # a model that the recipe breaks: it finds nothing
            return {}


def is_dropout_module(module: nn.Module) -> bool:
    """Whether tools that patch modules take it for dropout."""
    return isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__.startswith("Dropout")


def _same_draws(sites: dict[SiteKey, Sighting], found: dict[SiteKey, Sighting]) -> set[SiteKey]:
    """Which sites the draws of another pass are: in each module the first that are alike, in the same order."""
    same: set[SiteKey] = set()
    for path in {path for path, _ in found}:
        places = iter(sorted(key for key in sites if key[0] == path))
        for drawn in sorted(key for key in found if key[0] == path):
            same.update(itertools.islice((key for key in places if sites[key].like(found[drawn])), 1))
    return same


def _site(
    model: nn.Module, key: SiteKey, two: dict[SiteKey, Sighting], many: dict[SiteKey, Sighting], larger: int
) -> Site:
    """A site from what was seen of it with 2 and with `larger` examples, or with one of them."""
    if key in two:
        sighting, shape = two[key], two[key].shape
        batch_dim = _batch_dim(shape, many[key].shape, larger) if key in many else None
    else:
        sighting, shape = many[key], many[key].shape
        batch_dim = 0 if shape and shape[0] % larger == 0 else None
        shape = (shape[0] // larger * 2, *shape[1:]) if batch_dim == 0 else shape
    kind = _kind(dict(model.named_modules())[key[0]], sighting)
    return Site(key, kind, sighting.rate, shape, batch_dim)


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
    first, second = (observe_once(model, modules, lambda: run(2), 0).output for _ in range(2))
    return agree(first, second)


def _smallest_flags(
    model: nn.Module, everything: frozenset[nn.Module], wanted: Observation, run: Callable[[], Tensor]
) -> frozenset[nn.Module]:
    """Start from the modules that draw; add their ancestors, then all, until no wanted draw is missing."""
    at = dict(model.named_modules())
    drawing = frozenset(at[path] for path, _ in wanted.sightings) & everything
    parents = {at[parent] for path, _ in wanted.sightings for parent in _parents(path)} & everything
    for modules in dict.fromkeys((drawing, drawing | parents, everything)):
        found = observe(model, modules, run)
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


def _batch_dim(two: tuple[int, ...], many: tuple[int, ...], n: int) -> int | None:
    """The dimension that grows with the number of examples, from the shapes for 2 and for `n` of them."""
    if len(two) != len(many):
        return None
    growing = [d for d, (a, b) in enumerate(zip(two, many, strict=True)) if a * n == b * 2 and a != b]
    return growing[0] if growing else None


def _kind(module: nn.Module, sighting: Sighting) -> str:
    """Name of what is dropped: from what became of the mask, the module around it and the mask's shape."""
    if sighting.kind:
        return sighting.kind
    if sighting.rate is None and sighting.draw.keep is None:
        return f"random ({sighting.draw.operator})"
    if isinstance(module, nn.MultiheadAttention):
        return "attention dropout"
    if isinstance(module, nn.RNNBase):
        return "recurrent dropout"
    if isinstance(module, nn.AlphaDropout | nn.FeatureAlphaDropout):
        return "alpha dropout"
    trailing = sighting.shape[1:]
    if all(size == 1 for size in trailing):
        return "stochastic depth"
    if len(trailing) > 1 and all(size == 1 for size in trailing[1:]):
        return "feature dropout"
    return "dropout"
