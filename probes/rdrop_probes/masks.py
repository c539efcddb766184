"""What every draw of a pass is filled with: numbers that follow from (seed, sub-model, site, example) alone.

So the masks are the same however examples and sub-models are batched, whoever measures them and after a resume,
and for every checkpoint of one architecture.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from rdrop_probes.interception import Draw, Keep
from rdrop_probes.random_bits import Bits, bernoulli, uniform
from rdrop_probes.sites import Site, SiteKey

Masks = Literal["per-example", "shared"]
Layout = Literal["plain", "vmap", "fold"]
EVAL_STREAM = 2**32 - 1  # the sub-model of randomness that an eval model should not have drawn
UNPLANNED = 2**32  # added to the number of a site that is not in the plan

_BERNOULLI = frozenset({"bernoulli", "bernoulli_", "native_dropout"})
_UNIFORM = frozenset({"rand", "rand_like"})


class BatchedDrawMissingError(RuntimeError):
    """A draw of several sub-models did not have their dimension: all would share one mask."""


class Sampler:
    """Responder that fills each draw of a pass, and counts which sites fired.

    Args:
        sites: those of the plan, in its order.
        sub_models: which ones run in the pass.
        start: index of the first of `n` examples.
        layout: "plain" for one sub-model; with "vmap" the leading dimension of every draw is the sub-models', with
            "fold" the dimension of the examples holds those of the first sub-model, then those of the next.
        shared: one example's mask is drawn and given to all examples.
    """

    def __init__(
        self,
        sites: Mapping[SiteKey, Site],
        *,
        seed: int,
        sub_models: Sequence[int],
        start: int,
        n: int,
        layout: Layout = "plain",
        shared: bool = False,
    ) -> None:
        self.fired: set[SiteKey] = set()
        self._sites = sites
        self._numbers = {key: number for number, key in enumerate(sites)}
        self._seed = seed
        self._sub_models = sub_models
        self._start = start
        self._n = n
        self._layout = layout
        self._shared = shared

    def __call__(self, draw: Draw, out: Tensor) -> None:
        """Fill `out`."""
        key = (draw.path, draw.ordinal)
        self.fired.add(key)
        site = self._sites.get(key)
        parts = self._parts(draw, site, out)
        keeps = self._parts(draw, site, draw.keep) if isinstance(draw.keep, Tensor) else [draw.keep] * len(parts)
        number = self._numbers.get(key, UNPLANNED + zlib.crc32(repr(key).encode()))
        for sub_model, part, keep in zip(self._sub_models, parts, keeps, strict=True):
            self._fill(draw, site, part, keep, (self._seed, sub_model, number))

    def _parts(self, draw: Draw, site: Site | None, out: Tensor) -> Sequence[Tensor]:
        """The part of each sub-model, laid out as a pass of it alone would have it."""
        if self._layout == "plain":
            return [out]
        k = len(self._sub_models)
        if self._layout == "vmap" and site is not None and out.dim() == len(site.draw_shape) + 1 and len(out) == k:
            return list(out.unbind(0))
        dim = None if site is None or self._layout == "vmap" else site.batch_dim
        if dim is None or out.shape[dim] % (k * self._n):
            raise BatchedDrawMissingError(f"{draw.path or 'the model'} draws one mask for all sub-models together")
        return list(out.unflatten(dim, (k, -1)).unbind(dim))

    def _fill(self, draw: Draw, site: Site | None, out: Tensor, keep: Keep, name: tuple[int, ...]) -> None:
        """Fill the draw of one sub-model."""
        whole = site is None or site.batch_dim is None or out.shape[site.batch_dim] % self._n > 0
        by_example = _as_rows(out) if whole or site is None else _by_example(out, site.batch_dim or 0, self._n)
        if isinstance(keep, Tensor):
            keep = _as_rows(keep) if whole or site is None else _by_example(keep, site.batch_dim or 0, self._n)
        shape = by_example.shape
        rows = 1 if self._shared else shape[0]
        direct = by_example.is_contiguous() and rows == shape[0]
        target = by_example if direct else torch.empty((rows, *shape[1:]), dtype=out.dtype, device=out.device)
        flat = target.reshape(rows, -1) if target.numel() else target.view(rows, 0)
        flat_keep = keep[:rows].reshape(rows, -1) if isinstance(keep, Tensor) else keep
        bits = Bits(*name, flat.shape[1], device=out.device)
        _draw(draw, flat, flat_keep, bits, 0 if self._shared else self._start)
        if not direct:
            by_example.copy_(target.expand(shape))


def _by_example(out: Tensor, dim: int, n: int) -> Tensor:
    """`out` with the examples in front [n, ...]."""
    by_example: Tensor = out.unflatten(dim, (n, -1)).movedim(dim, 0)
    return by_example


def _as_rows(out: Tensor) -> Tensor:
    """`out` as if it were of a single example [1, ...]."""
    return out.unsqueeze(0)


def _draw(draw: Draw, out: Tensor, keep: Keep, bits: Bits, first: int) -> None:
    """Fill `out` [rows, size], the rows `first`, ... of a stream."""
    if draw.operator in _BERNOULLI and not isinstance(keep, Tensor):
        bernoulli(out, 1.0 if keep is None else keep, bits, first)
    elif isinstance(keep, Tensor) and draw.operator in _BERNOULLI:
        random = torch.empty(out.shape, dtype=torch.float64, device=out.device)
        uniform(random, bits, first)
        out.copy_(random < keep)
    elif draw.operator in _UNIFORM:
        uniform(out, bits, first)
    else:
        for row, seed in zip(out, bits.words(first, len(out), 1).flatten().tolist(), strict=True):
            draw.fill(row, keep, torch.Generator(out.device).manual_seed(seed))


GRADIENT_STREAM = 2**32


def stream(seed: int, item: int, sub_model: int, device: torch.device) -> torch.Generator:
    """Generator for one sub-model of one work item."""
    import numpy as np

    state = np.random.SeedSequence([seed, item, sub_model]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]))
