"""Variants of a model's sub-models: only some sites draw, or all draw at another rate; masks stay what they were.

A site that is not to draw is left in eval mode where that is possible (switches.py finds out), or its mask is given the
value with which its dropout changes nothing. Every mask still follows from seed, sub-model, site and example, so that a
variant differs from the whole by its sites alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from rdrop_probes.interception import Draw, DrawInterceptor, Fill, Keep, ModulePaths, prepare
from rdrop_probes.prefix import Player, Recorder
from rdrop_probes.sites import Site, SiteKey
from rdrop_probes.uses import Uses

_BERNOULLI = frozenset({"bernoulli", "bernoulli_"})
_UNIFORM = frozenset({"rand", "rand_like"})
_KEPT = 0.5  # a uniform number by which nothing is dropped at rates below it; masks made of it are filled later


@dataclass(frozen=True)
class Variant:
    """Sub-models in which only some sites draw, `active`, or all of them (None); at `rate` or at their own (None)."""

    name: str
    active: frozenset[SiteKey] | None = None
    rate: float | None = None


@dataclass(frozen=True)
class Drawing:
    """How a variant is run: which modules are in training mode, and which sites have to be `neutral` in them.

    At a `rate` every dropout draws at it that has a rate of its own above 0.
    """

    modules: frozenset[nn.Module] = field(repr=False)
    neutral: frozenset[SiteKey] = frozenset()
    rate: float | None = None


class VariantInterceptor(DrawInterceptor):
    """Answers the draws of sites that are on through `respond`, and gives masks of the others their neutral value.

    A neutral draw is the same in every pass, and so part of what is run before the first draw.
    """

    def __init__(
        self,
        paths: ModulePaths,
        respond: Callable[[Draw, Tensor], None],
        tape: Recorder | Player | None,
        sites: Mapping[SiteKey, Site],
        drawing: Drawing,
    ) -> None:
        super().__init__(paths, respond, tape)
        self._sites = sites
        self._neutral = drawing.neutral
        self._rate = drawing.rate
        self._uses = Uses()
        self._waiting: set[SiteKey] = set()  # draws of uniform numbers whose mask is still to come

    def pass_through(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator that draws nothing; a mask that it makes of uniform numbers is filled anew."""
        result = func(*args, **kwargs)
        if self._waiting:
            self._uses.follow(func.overloadpacket.__name__, args, result)
            if isinstance(result, Tensor) and result.is_floating_point() and (found := self._uses.mask(result)):
                self._refill(*found, result)
        return result

    def _drawn(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer a random operator, unless its site is off."""
        operator = str(func.overloadpacket.__name__)
        if self._here not in self._neutral or operator not in _NEUTRAL:
            return super()._drawn(func, args, kwargs)
        self._count[self._paths.current] += 1
        return self.repeated(_NEUTRAL[operator], func, args, kwargs)

    def _answer(self, operator: str, out: Tensor, keep: Keep, fill: Fill) -> None:
        """Fill a draw at the rate that is wanted; uniform numbers as they are, and their mask later."""
        key, rate = self._here, self._rate_of(self._here)
        if operator in _UNIFORM and (key in self._neutral or rate is not None):
            self._waiting.add(key)
            self._uses.note(key, operator, None, out)
        if key in self._neutral and operator in _UNIFORM:
            self._count[key[0]] += 1
            out.fill_(_KEPT)
        elif rate is None or keep is None:
            super()._answer(operator, out, keep, fill)
        else:
            super()._answer(operator, out, 1 - rate, fill)
            _scale(out, keep, 1 - rate)

    def _native_dropout(self, x: Tensor, rate: float, train: bool | None = True) -> tuple[Tensor, Tensor]:
        wanted = self._rate_of(self._here)
        return super()._native_dropout(x, rate if wanted is None else wanted, train)

    @property
    def _here(self) -> SiteKey:
        """The site that draws next."""
        path = self._paths.current
        return path, self._count[path]

    def _rate_of(self, key: SiteKey) -> float | None:
        """The rate that a site is to draw at instead of its own; None if it is to keep that."""
        own = None if key not in self._sites else self._sites[key].rate
        return self._rate if own not in (None, 0, 1, self._rate) else None

    def _refill(self, key: SiteKey, keep: float, mask: Tensor) -> None:
        """Give a mask that was made of uniform numbers its neutral value, or draw it at the rate that is wanted."""
        if key not in self._waiting:
            return
        self._waiting.remove(key)
        if key in self._neutral:
            mask.fill_(keep)
        elif (rate := self._rate_of(key)) is not None:
            self._respond(Draw(*key, "bernoulli", 1 - rate, lambda out, *_: None), mask)
            _scale(mask, keep, 1 - rate)


def _scale(mask: Tensor, own: Keep, wanted: float) -> None:
    """What is divided by the site's own keep probability later is then divided by the wanted one."""
    if mask.is_floating_point() and own is not None and (isinstance(own, Tensor) or own != wanted):
        mask.mul_(own / wanted)


def _neutral_mask(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What, divided by the keep probability, is 1."""
    prepared = prepare(func, args, kwargs)
    if prepared is None:
        raise RuntimeError(f"{func} is no Bernoulli draw")
    out, keep, _ = prepared
    return out.copy_(keep) if isinstance(keep, Tensor) else out.fill_(1.0 if keep is None else keep)


def _nothing_dropped(_func: Any, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    x: Tensor = args[0]
    return x.clone(), torch.ones_like(x, dtype=torch.bool)


_NEUTRAL: dict[str, Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]] = {
    **dict.fromkeys(_BERNOULLI, _neutral_mask),
    "native_dropout": _nothing_dropped,
}


@contextmanager
def rates_set(modules: Iterable[nn.Module], rate: float | None) -> Iterator[None]:
    """Set the rate of dropout modules that drop anything; on exit every rate is as it was found.

    At rate 1 they draw nothing that could be answered at another rate, and are reached by this alone.
    """
    found = [(module, module.p) for module in modules if isinstance(module, _DropoutNd)]
    try:
        for module, own in found:
            module.p = rate if rate is not None and own > 0 else own
        yield
    finally:
        for module, own in found:
            module.p = own


def has_rate(module: nn.Module) -> bool:
    """Whether it is one of torch's dropout modules, whose rate is an attribute."""
    return isinstance(module, _DropoutNd)
