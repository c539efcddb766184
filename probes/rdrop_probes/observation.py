"""One forward pass under given training flags, watched: every draw in it, with its rate and what it is of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rdrop_probes.certain import CertainDropout, CertainDropouts
from rdrop_probes.interception import Draw, DrawInterceptor, ModulePaths
from rdrop_probes.sites import SiteKey
from rdrop_probes.state import buffers_kept, flags, foreign_state, seed_foreign
from rdrop_probes.uses import Uses

ERRATIC_PASSES = 16  # a layer that runs half of the time is missed once in 65 thousand


@dataclass(frozen=True)
class Sighting:
    """A draw with the shape of its result, its rate, and its kind where what became of it tells."""

    draw: Draw
    shape: tuple[int, ...]
    rate: float | None = None
    kind: str = ""

    @property
    def may_decide(self) -> bool:
        """Whether a branch may hang on it: a single number, or no mask at all."""
        return (self.rate is None and self.draw.keep is None) or math.prod(self.shape) == 1

    def like(self, other: Sighting) -> bool:
        """Whether the two may be the same draw, seen in two passes."""
        return (self.draw.operator, self.shape, self.rate) == (other.draw.operator, other.shape, other.rate)


@dataclass(frozen=True)
class Observation:
    """Draws by site, whether a generator outside torch was used, and whether chance decided which sites drew."""

    sightings: dict[SiteKey, Sighting]
    foreign: bool = False
    erratic: bool = False


@dataclass(frozen=True)
class Pass:
    """One forward pass: draws by site, whether a generator outside torch was used, and the output."""

    sightings: dict[SiteKey, Sighting]
    foreign: bool
    output: Tensor


def observe(
    model: nn.Module, training: Iterable[nn.Module], run: Callable[[], Tensor], *, certain: bool = True
) -> Observation:
    """Every draw of a forward pass under these flags; of several passes where chance may decide what runs."""
    flags_set = frozenset(training)
    first = observe_once(model, flags_set, run, 0, certain=certain)
    if not first.foreign and not any(sighting.may_decide for sighting in first.sightings.values()):
        return Observation(first.sightings)
    seeds = range(1, ERRATIC_PASSES)
    others = [observe_once(model, flags_set, run, seed, certain=certain).sightings for seed in seeds]
    passes = [first.sightings, *others]
    union = {key: sighting for found in passes for key, sighting in found.items()}
    erratic = first.foreign or any(found.keys() != union.keys() for found in passes)
    return Observation(union, first.foreign, erratic)


def observe_once(
    model: nn.Module, training: Iterable[nn.Module], run: Callable[[], Tensor], seed: int, *, certain: bool = True
) -> Pass:
    """Every draw of one forward pass, and with `certain` every dropout at rate 1 (watching turns fused paths off)."""
    paths = ModulePaths(model)
    watch, whole = _Watch(paths, seed), CertainDropouts(paths)
    seed_foreign(seed)
    before = foreign_state()
    with ExitStack() as stack:
        stack.enter_context(buffers_kept(model))
        stack.enter_context(flags(model, training))
        stack.enter_context(torch.no_grad())
        stack.enter_context(paths.tracked())
        if certain:
            stack.enter_context(whole)
        stack.enter_context(watch)
        output = run()
    return Pass(_numbered(watch.sightings(), whole.found), foreign_state() != before, output)


def _numbered(seen: dict[SiteKey, Sighting], certain: list[CertainDropout]) -> dict[SiteKey, Sighting]:
    """What drew and what dropped with certainty, this behind its module's draws, whose ordinals have to stay theirs."""
    numbered = dict(seen)
    for one in certain:
        ordinal = sum(one.path == other for other, _ in numbered)
        draw = Draw(one.path, ordinal, "dropout", 0.0, lambda out, *_: None)
        numbered[one.path, ordinal] = Sighting(draw, one.shape, 1.0, one.kind)
    return numbered


class _Watch(DrawInterceptor):
    """Fills every draw from one generator, notes it and follows what becomes of it."""

    def __init__(self, paths: ModulePaths, seed: int) -> None:
        super().__init__(paths, self._note)
        self._seed = seed
        self._seen: dict[SiteKey, tuple[Draw, tuple[int, ...]]] = {}
        self._uses = Uses()

    def sightings(self) -> dict[SiteKey, Sighting]:
        """What was seen, with rates and kinds as far as they can be told."""
        rates, attention = self._uses.rates, self._uses.attention
        return {
            key: Sighting(draw, shape, rates.get(key, draw.rate), "attention dropout" if key in attention else "")
            for key, (draw, shape) in self._seen.items()
        }

    def pass_through(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Follow draws through operators that draw nothing."""
        result = func(*args, **kwargs)
        self._uses.follow(func.overloadpacket.__name__, args, result)
        return result

    def _note(self, draw: Draw, out: Tensor) -> None:
        key = draw.path, draw.ordinal
        self._seen[key] = draw, tuple(out.shape)
        draw.fill(out, draw.keep, torch.Generator(out.device).manual_seed(self._seed))
        rate = draw.rate
        self._uses.note(key, draw.operator, None if rate is None else 1 - rate, out)
