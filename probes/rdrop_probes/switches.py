"""Which sites can be switched off one by one: found by trying on a few examples, and never taken on trust.

With every site off the model has to be the eval model. A module whose flag turns its own sites off and no others is
left in eval mode; where that cannot be, masks are given their neutral value.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor, nn

from rdrop_probes.divergences import agree
from rdrop_probes.examples import Examples
from rdrop_probes.passes import Passes
from rdrop_probes.sites import SiteKey, SitePlan
from rdrop_probes.variants import Drawing, Variant, has_rate

RANDOM = "which sites draw is itself decided at random"
VARYING = "which sites draw depends on the data"
UNCONTROLLED = "two passes under the same masks differ"
CHANGED = "with every site off the model is not the eval model"
TOGETHER = "the sites of its module can only be switched off together"
NOT_RATED = "its noise is not a mask whose rate can be changed"
NEVER_DRAWN = "at rate 1 it draws no mask whose rate could be changed"


@dataclass(frozen=True)
class Switches:
    """How the sites of a plan are switched off, by the path of their module.

    Attributes:
        plan: the sites. modules: by path.
        flags: paths whose training flag turns their own sites off, and no others.
        neutral: paths whose masks have a neutral value.
        unable: why no site can be switched off; empty if some can.
    """

    plan: SitePlan
    modules: Mapping[str, nn.Module] = field(repr=False)
    flags: frozenset[str] = frozenset()
    neutral: frozenset[str] = frozenset()
    unable: str = ""

    def plain(self) -> dict[str, Any]:
        """What was found, as plain data."""
        return {"flags": sorted(self.flags), "neutral": sorted(self.neutral), "unable": self.unable}

    @classmethod
    def made(cls, plan: SitePlan, modules: Mapping[str, nn.Module], found: Mapping[str, Any]) -> Self:
        """From what :meth:`plain` gave."""
        return cls(plan, modules, frozenset(found["flags"]), frozenset(found["neutral"]), found["unable"])

    def reason(self, variant: Variant) -> str:
        """Why a variant cannot be run; empty if it can."""
        if self.unable:
            return self.unable
        active = self._active(variant)
        for path, keys in by_path(self.plan).items():
            off = keys - active
            if off and path not in self.neutral and (off != keys or path not in self.flags):
                return TOGETHER
        return ""

    def drawing(self, variant: Variant) -> Drawing:
        """How a variant is run."""
        active = self._active(variant)
        left = {path for path, keys in by_path(self.plan).items() if path in self.flags and not keys & active}
        neutral = frozenset(key for key in self.plan.sites.keys() - active if key[0] not in left)
        return Drawing(self.plan.modules - {self.modules[path] for path in left}, neutral, variant.rate)

    @property
    def unrated(self) -> dict[SiteKey, str]:
        """Dropout that cannot draw at another rate than its own, and why."""
        if self.unable:
            return dict.fromkeys(self.plan.sites, self.unable)
        fixed = {key: site.rate for key, site in self.plan.sites.items() if not has_rate(self.modules[key[0]])}
        whole = {key: NEVER_DRAWN for key, rate in fixed.items() if rate == 1}
        other = {key for key, rate in fixed.items() if rate is not None and 0 < rate < 1}
        return whole | {key: NOT_RATED for key in other if key[0] not in self.neutral}

    def _active(self, variant: Variant) -> frozenset[SiteKey]:
        return frozenset(self.plan.sites) if variant.active is None else variant.active


def find_switches(modules: Mapping[str, nn.Module], passes: Passes, plan: SitePlan, examples: Examples) -> Switches:
    """Try on some examples how sites are switched off; use it inside :func:`rdrop_probes.state.preserved`."""
    if reason := _out_of_hand(plan):
        return Switches(plan, modules, unable=reason)
    trial = _Trial(passes, plan, modules, examples)
    found = trial.flags()
    flags = next((flags for flags in (found, frozenset[str]()) if trial.off(flags) and trial.apart(flags)), None)
    if flags is None:
        return Switches(plan, modules, unable=CHANGED)
    neutral = frozenset(path for path in by_path(plan) if path not in flags or trial.off(flags - {path}))
    return Switches(plan, modules, flags, neutral)


def by_path(plan: SitePlan) -> dict[str, frozenset[SiteKey]]:
    """The sites of each module, by its path."""
    return {path: frozenset(key for key in plan.sites if key[0] == path) for path, _ in plan.sites}


def _out_of_hand(plan: SitePlan) -> str:
    """Why sites of a model cannot be told apart at all; empty if they can."""
    if plan.erratic:
        return RANDOM
    if plan.varying:
        return VARYING
    return UNCONTROLLED if plan.uncontrolled else ""


class _Trial:
    """Passes over some examples with sites off in one way or another, against the eval model."""

    def __init__(self, passes: Passes, plan: SitePlan, modules: Mapping[str, nn.Module], examples: Examples) -> None:
        self._passes = passes
        self._plan = plan
        self._modules = modules
        self._examples = examples
        self._eval, self._undying = self._run(plan.eval_modules, plan.sites)
        self._drawn = self._run(plan.modules)[1]

    def flags(self) -> frozenset[str]:
        """Paths whose flag turns their own sites off, and no others."""
        sites = by_path(self._plan).items()
        return frozenset(path for path, keys in sites if self._run(self._without([path]))[1] == self._drawn - keys)

    def apart(self, flags: frozenset[str]) -> bool:
        """Whether sites draw as before while all that have a flag are off by it, and while all these but one are."""
        for off in (flags, *(flags - {path} for path in flags)):
            if self._run(self._without(off))[1] != {key for key in self._drawn if key[0] not in off}:
                return False
        return True

    def off(self, flags: Collection[str]) -> bool:
        """Whether with all sites off, by flag or by neutral masks, the model is the eval model and draws nothing."""
        neutral = [key for key in self._plan.sites if key[0] not in flags]
        output, drawn = self._run(self._without(flags), neutral)
        return not drawn and not self._undying and agree(output, self._eval)

    def _without(self, paths: Iterable[str]) -> frozenset[nn.Module]:
        return self._plan.modules - {self._modules[path] for path in paths}

    def _run(self, modules: frozenset[nn.Module], neutral: Iterable[SiteKey] = ()) -> tuple[Tensor, set[SiteKey]]:
        """The output, and which sites drew."""
        passes = self._passes.under(Drawing(modules, frozenset(neutral)))
        return passes.one(self._examples, 0, replay=False), passes.fired
