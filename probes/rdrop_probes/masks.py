"""What every draw of a pass is filled with: numbers that follow from (seed, sub-model, site, example) alone.

So the masks are the same however examples and sub-models are batched, whoever measures them and after a resume,
and for every checkpoint of one architecture.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from rdrop_probes.interception import Draw, Keep
from rdrop_probes.random_bits import Jumping, Starts, Stream, bernoulli, uniform
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
        self._starts: dict[torch.device, Starts] = {}

    def __call__(self, draw: Draw, out: Tensor) -> None:
        """Fill `out`."""
        key = (draw.path, draw.ordinal)
        self.fired.add(key)
        site = self._sites.get(key)
        whole = self._stacked(draw, site, out)
        examples = self._by_example(whole, site)
        keep = draw.keep
        if isinstance(keep, Tensor):
            keep = self._by_example(self._stacked(draw, site, keep), site)
        number = self._numbers.get(key, UNPLANNED + zlib.crc32(repr(key).encode()))
        if out.device.type != "cpu":
            self._fill(draw, number, self._sub_models, examples, keep)
            return
        for k, sub_model in enumerate(self._sub_models):
            keep_of_one = keep[k : k + 1] if isinstance(keep, Tensor) else keep
            self._fill(draw, number, [sub_model], examples[k : k + 1], keep_of_one)

    def _stacked(self, draw: Draw, site: Site | None, out: Tensor) -> Tensor:
        """`out` as [k, ...], the part of each sub-model laid out as a pass of it alone would have it."""
        if self._layout == "plain":
            return out.unsqueeze(0)
        k = len(self._sub_models)
        if self._layout == "vmap" and site is not None and out.dim() == len(site.draw_shape) + 1 and len(out) == k:
            return out
        dim = None if site is None or self._layout == "vmap" else site.batch_dim
        if dim is None or out.shape[dim] % (k * self._n):
            raise BatchedDrawMissingError(f"{draw.path or 'the model'} draws one mask for all sub-models together")
        stacked: Tensor = out.unflatten(dim, (k, -1)).movedim(dim, 0)
        return stacked

    def _by_example(self, stacked: Tensor, site: Site | None) -> Tensor:
        """[k, n, ...] with the examples in front, or [k, 1, ...] where what is drawn is of all examples together."""
        if site is None or site.batch_dim is None or stacked.shape[site.batch_dim + 1] % self._n:
            return stacked.unsqueeze(1)
        by_example: Tensor = stacked.unflatten(site.batch_dim + 1, (self._n, -1)).movedim(site.batch_dim + 1, 1)
        return by_example

    def _fill(self, draw: Draw, number: int, sub_models: Sequence[int], out: Tensor, keep: Keep) -> None:
        """Fill `out` [k, n, ...] for these sub-models."""
        rows, size = 1 if self._shared else out.shape[1], math.prod(out.shape[2:])
        stream, first = self._stream(number, sub_models, size, out.device), 0 if self._shared else self._start
        if isinstance(keep, Tensor):  # where masks are shared the numbers are, and rates are each example's own
            random = torch.empty((len(out), rows, size), dtype=torch.float64, device=out.device)
            uniform(random, stream, first)
            out.copy_((random < keep.reshape(*out.shape[:2], size)).view(out.shape))
            return
        direct = rows == out.shape[1] and out.is_contiguous()
        target = out if direct else torch.empty((len(out), rows, *out.shape[2:]), dtype=out.dtype, device=out.device)
        flat = target.view(len(out), rows, size)
        if draw.operator in _BERNOULLI:
            bernoulli(flat, 1.0 if keep is None else keep, stream, first)
        elif draw.operator in _UNIFORM:
            uniform(flat, stream, first)
        else:
            self._seeded(draw, number, sub_models, flat, first)
        if not direct:
            out.copy_(target.expand(out.shape))

    def _stream(self, number: int, sub_models: Sequence[int], size: int, device: torch.device) -> Stream:
        if device.type == "cpu":
            return Jumping(self._seed, sub_models[0], number, size)
        if device not in self._starts:
            self._starts[device] = Starts(self._seed, sub_models, device)
        return self._starts[device].stream(number, size)

    def _seeded(self, draw: Draw, number: int, sub_models: Sequence[int], out: Tensor, first: int) -> None:
        """Fill `out` [k, rows, size] by the operator itself, row by row from generators with seeds of their own."""
        for sub_model, part in zip(sub_models, out, strict=True):
            seeds = Jumping(self._seed, sub_model, number, out.shape[2]).words(first, out.shape[1], 1)
            for row, seed in zip(part, seeds.flatten().tolist(), strict=True):
                draw.fill(row, None, torch.Generator(out.device).manual_seed(seed))
