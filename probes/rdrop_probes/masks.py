"""Where the numbers behind the masks come from: one stream of its own for each sub-model of a work item.

The stream of sub-model k in work item i follows from (seed, i, k) alone. So the masks are the same however
sub-models are batched, whichever checkpoint of an architecture is measured, and whoever does the item.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rdrop_probes.interception import Draw, Keep
from rdrop_probes.sites import Site

Masks = Literal["per-example", "shared"]
EVAL_STREAM = 2**32 - 1  # the stream of randomness that an eval model should not have drawn
GRADIENT_STREAM = 2**32  # the first of the streams of projections and sampled classes, one for each gradient pass


def stream(seed: int, item: int, sub_model: int, device: torch.device) -> torch.Generator:
    """Generator for one sub-model of one work item."""
    state = np.random.SeedSequence([seed, item, sub_model]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]))


class BatchedDrawMissingError(RuntimeError):
    """A draw under vmap did not have the sub-model dimension: all sub-models would share one mask."""


class Sampler:
    """Responder that fills each draw from the streams, and counts how often each site fired.

    With `batched` the leading dimension of every draw is the sub-models', one stream each; without, the only
    stream fills the whole draw. With `shared` masks one example's mask is drawn and given to all examples.
    """

    def __init__(
        self,
        streams: Sequence[torch.Generator],
        sites: Mapping[tuple[str, int], Site],
        *,
        n_examples: int,
        batched: bool,
        shared: bool,
    ) -> None:
        self.fired: set[tuple[str, int]] = set()
        self._streams = streams
        self._sites = sites
        self._n_examples = n_examples
        self._batched = batched
        self._shared = shared

    def __call__(self, draw: Draw, out: Tensor) -> None:
        """Fill `out`."""
        key = (draw.path, draw.ordinal)
        self.fired.add(key)
        site = self._sites.get(key)
        if not self._batched:
            self._fill(draw, site, out, draw.keep, self._streams[0])
            return
        if site is None or out.dim() != len(site.draw_shape) + 1 or out.shape[0] != len(self._streams):
            raise BatchedDrawMissingError(f"{draw.path or 'the model'} draws one mask for all sub-models under vmap")
        for k, generator in enumerate(self._streams):
            keep = draw.keep[k] if isinstance(draw.keep, Tensor) else draw.keep
            self._fill(draw, site, out[k], keep, generator)

    def _fill(self, draw: Draw, site: Site | None, out: Tensor, keep: Keep, g: torch.Generator) -> None:
        if not self._shared or site is None or site.batch_dim is None:
            draw.fill(out, keep, g)
            return
        dim = site.batch_dim
        blocks = out.unflatten(dim, (self._n_examples, -1))  # [..., N, size / N, ...]
        one = torch.empty_like(blocks.select(dim, 0))
        if isinstance(keep, Tensor):
            keep = keep.unflatten(dim, (self._n_examples, -1)).select(dim, 0)
        draw.fill(one, keep, g)
        blocks.copy_(one.unsqueeze(dim).expand_as(blocks))
