"""What a mask costs: ours beside torch's own source of random bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from pace.clock import Run, Times, in_turns, timed
from pace.document import Document, seconds, times
from rdrop_probes.random_bits import Jumping, bernoulli

EXAMPLES = 64
MASKS = 20  # in a row: one takes too little time
RATES = (0.05, 0.1, 0.2, 0.5)


def masks(document: Document, size: int) -> None:
    """The table for masks of `size` elements at several rates."""
    document.section(
        "Masks",
        f"One float32 mask of {size} elements for {EXAMPLES} examples: by `bernoulli_`, and as measurements fill it,",
        "every example from the place in the stream that is its own.",
    )
    rows = (_row(rate, in_turns(_ways(1 - rate, size), 0.5)) for rate in RATES)
    document.table(["drop probability", "bernoulli_", "ours", "bernoulli_ / ours"], rows)


def _ways(keep: float, size: int) -> dict[str, Callable[[], Run]]:
    out = torch.empty(1, EXAMPLES, size // EXAMPLES)
    generator = torch.Generator().manual_seed(0)

    def theirs() -> tuple[float, ...]:
        for _ in range(MASKS):
            out.bernoulli_(keep, generator=generator)
        return ()

    def ours() -> tuple[float, ...]:
        for sub_model in range(MASKS):
            bernoulli(out, keep, Jumping(0, sub_model, 0, size // EXAMPLES), 0)
        return ()

    return {"theirs": timed(theirs), "ours": timed(ours)}


def _row(rate: float, found: dict[str, Times]) -> Iterator[str]:
    theirs, ours = (found[name].median / MASKS for name in ("theirs", "ours"))
    yield from (str(rate), seconds(theirs), seconds(ours), times(theirs / ours))
