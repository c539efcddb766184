"""The places in a forward pass that draw randomness, as plain facts; discovery.py finds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from rdrop_probes.records import SiteRecord

Forward = Callable[[Any], Tensor]
SiteKey = tuple[str, int]


@dataclass(frozen=True)
class Site:
    """One place that draws: `key` is (module path, ordinal), `draw_shape` the mask's shape for two examples.

    `batch_dim` is the dimension that holds the examples (alone or times something), None if the mask does not
    grow with the batch and is therefore shared by all examples in it. `found_by_patching` is whether the usual
    recipe for MC dropout (`eval()`, then every dropout module into training mode) makes it draw.
    """

    key: SiteKey
    kind: str
    rate: float | None
    draw_shape: tuple[int, ...]
    batch_dim: int | None
    fires_in_eval: bool = False
    found_by_patching: bool = True

    def record(self) -> SiteRecord:
        """Plain-data form, with the mask's shape for a single example."""
        shape = list(self.draw_shape)
        if self.batch_dim is not None:
            shape[self.batch_dim] //= 2
            if shape[self.batch_dim] == 1:
                del shape[self.batch_dim]
        return SiteRecord(
            path=self.key[0],
            ordinal=self.key[1],
            kind=self.kind,
            rate=self.rate,
            mask_shape=shape,
            fires_in_eval=self.fires_in_eval,
            found_by_patching=self.found_by_patching,
            per_example=self.batch_dim is not None,
        )


@dataclass(frozen=True)
class SitePlan:
    """The sites of a model and the modules to put in training mode so that they, and only they, draw.

    `erratic`: which sites draw is itself random (LayerDrop), or a generator outside torch has a hand in it.
    `foreign`: such a generator has. `varying`: which sites draw depends on the data. `uncontrolled`: two passes
    under the same masks differ. `eval_modules` are in training mode in the model's own eval mode,
    `train_modules` in its train mode, without those that keep statistics.
    """

    sites: dict[SiteKey, Site]
    modules: frozenset[nn.Module] = field(repr=False)
    erratic: bool = False
    foreign: bool = False
    varying: bool = False
    uncontrolled: bool = False
    eval_modules: frozenset[nn.Module] = field(default=frozenset(), repr=False)
    train_modules: frozenset[nn.Module] = field(default=frozenset(), repr=False)

    @property
    def stochastic(self) -> bool:
        """Whether train mode draws anything at all."""
        return bool(self.sites) or self.erratic or self.uncontrolled

    @property
    def alike(self) -> bool:
        """Whether all sub-models are the same network: every mask is certain, at a rate of 0 or 1."""
        certain = all(site.rate in (0, 1) for site in self.sites.values())
        return bool(self.sites) and certain and not (self.erratic or self.uncontrolled)

    @property
    def needs_loop(self) -> str:
        """Why sub-models have to be run one at a time; empty if they need not."""
        if self.erratic:
            return "what the model runs is decided at random"
        if self.varying:
            return "what the model draws depends on the data"
        return "two passes under the same masks differ" if self.uncontrolled else ""

    @property
    def shared_by_batch(self) -> list[Site]:
        """Sites whose mask is one for the whole batch (weight dropout, for one)."""
        return [site for site in self.sites.values() if site.batch_dim is None]


def label(key: SiteKey) -> str:
    """What a site is called where it is shown."""
    path, ordinal = key
    return (path or "(root)") + (f"#{ordinal}" if ordinal else "")


class SilentSiteError(RuntimeError):
    """A site that train mode has did not draw: measuring would report a false consistency."""
