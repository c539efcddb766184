"""Random bits that have addresses: row r of a stream is the same whoever asks for it, with which rows around it.

A stream is named by whole numbers: seed, sub-model, site, size of a row. On CPU its bits are those of NumPy's
PCG64-DXSM, which can jump to any place. Jumping generators run on one core, so that elsewhere bits are those of
SplitMix64 (Steele, Lea and Flood 2014), which is a hash of a counter, for all sub-models of a pass at a time. They
are made of ordinary operators: nothing is copied to the device and nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

_IN_CACHE = 2**17  # 64-bit words that are made at a time on CPU, and used while they are in the cache
_ON_DEVICE = 2**24
_LEVELS = 2**16  # of the numbers that decide off the processor

_GOLDEN = -7046029254386353131
_FIRST, _SECOND = -4658895280553007687, -7723592293110705685


class Jumping:
    """The stream of one sub-model on CPU."""

    block = _IN_CACHE

    def __init__(self, seed: int, sub_model: int, site: int, size: int) -> None:
        self._name = (seed, sub_model, site, size)
        self._generators: dict[int, np.random.PCG64DXSM] = {}
        self._reached: dict[int, int] = {}

    def words(self, first: int, rows: int, width: int, *, part: int = 0) -> Tensor:
        """Rows `first`, ... of the stream, int64 [1, rows, width], every bit random; each `part` is a stream."""
        if part not in self._generators:
            self._generators[part] = np.random.PCG64DXSM(np.random.SeedSequence((*self._name, part)))
        generator, start = self._generators[part], first * width
        if gap := start - self._reached.get(part, 0):
            generator.advance(gap)
        self._reached[part] = start + rows * width
        return torch.from_numpy(generator.random_raw(rows * width).view(np.int64)).view(1, rows, width)


class Starts:
    """Where in SplitMix64's cycle of 2^64 the streams of some sub-models, numbered one after the other, start.

    Places are random: of ten thousand streams of a billion words, two overlap somewhere once in two hundred times.
    """

    def __init__(self, seed: int, sub_models: Sequence[int], device: torch.device) -> None:
        self._seed = seed
        self._of_sub_models = _mixed(torch.arange(sub_models[0], sub_models[-1] + 1, device=device) + _key(seed))

    def stream(self, site: int, size: int) -> Hashed:
        """The streams of a site whose rows have so many elements."""
        return Hashed((self._of_sub_models + _key(self._seed, site, size))[:, None])


class Hashed:
    """The streams of one site and several sub-models, off the processor; `starts` is [k, 1]."""

    block = _ON_DEVICE

    def __init__(self, starts: Tensor) -> None:
        self._starts = starts

    def words(self, first: int, rows: int, width: int) -> Tensor:
        """Rows `first`, ... of the streams, int64 [k, rows, width], every bit random."""
        counter = torch.arange(first * width, (first + rows) * width, device=self._starts.device)
        return _mixed(self._starts + counter).view(-1, rows, width)


Stream = Jumping | Hashed


def bernoulli(out: Tensor, keep: float, stream: Stream, first: int) -> None:
    """Fill `out` [k, rows, size] with 1 where a random number is below `keep`, else 0; its row 0 is the row `first`.

    On CPU a byte decides, and what 256 levels leave of the probability is made up for by turning elements over at
    geometric gaps of 53 bits. On other devices 16 bits decide, and what 65536 levels leave of it by the level, the
    nearest below or above, which is drawn for each row. So the probability is `keep` but for rounding in double
    precision; elements are independent (within a row on other devices but for a correlation below 1e-9 in most
    masks, 2^-34 in the covariance).
    """
    if not 0 < keep < 1:
        out.fill_(float(keep >= 1))
    elif isinstance(stream, Jumping):
        _by_bytes(out[0], keep, stream, first)
    else:
        _by_levels(out, keep, stream, first)


def uniform(out: Tensor, stream: Stream, first: int) -> None:
    """Fill `out` [k, rows, size] with multiples of 2^-24 (2^-53 in double precision) in [0, 1), all equally likely."""
    digits = 53 if out.dtype == torch.float64 else 24
    if out.dtype in (torch.float16, torch.bfloat16):
        digits = 11 if out.dtype == torch.float16 else 8
    for rows in _blocks(out.shape[1], len(out) * out.shape[2], stream.block):
        words = stream.words(first + rows.start, rows.stop - rows.start, out.shape[2])
        whole = (words >> (64 - digits)) & (2**digits - 1)
        out[:, rows] = (whole.double() * 2.0**-digits).to(out.dtype)


def _by_bytes(out: Tensor, keep: float, stream: Jumping, first: int) -> None:
    """Compare bytes with the nearest of 256 levels, and turn over the few elements that are too many or too few."""
    whole, rest = divmod(keep * 256, 1.0)
    up, down = rest / (256 - whole), (1 - rest) / (whole + 1)
    threshold, chance, value = (whole, up, 1.0) if up <= down else (whole + 1, down, 0.0)
    size = out.shape[1]
    width = -(-size // 8)
    for rows in _blocks(len(out), width, stream.block):
        start, part = first + rows.start, out[rows]
        numbers = stream.words(start, len(part), width)[0].view(torch.uint8)[:, :size]
        torch.lt(numbers, int(threshold), out=part) if threshold < 256 else part.fill_(1)
        if chance:
            part.view(-1)[_turned(size, chance, stream, start, len(part))] = value


def _turned(size: int, chance: float, stream: Jumping, first: int, rows: int) -> Tensor:
    """Places in [rows, size] that are each taken with probability `chance`: gaps between them are geometric."""
    width = int(size * chance + 4 * (size * chance) ** 0.5) + 2
    found, reached, part = [], np.full((rows, 1), -1.0), 0
    while (reached < size).any():  # as a rule once
        uniform = ((stream.words(first, rows, width, part=part + 1)[0].numpy() >> 11 & (2**53 - 1)) + 1) * 2.0**-53
        places = reached + (np.floor(np.log(uniform) / np.log1p(-chance)) + 1).cumsum(1)
        row, column = np.nonzero(places < size)
        found.append(row * size + places[row, column].astype(np.int64))
        reached, part = places[:, -1:], part + 1
    return torch.from_numpy(np.concatenate(found))


def _by_levels(out: Tensor, keep: float, stream: Hashed, first: int) -> None:
    """Compare numbers of 16 bits with a level of their row, for which each row has a word of its own."""
    below, rest = divmod(keep * _LEVELS, 1.0)
    size = out.shape[2]
    width = -(-size // 4)
    for rows in _blocks(out.shape[1], len(out) * (width + 1), stream.block):
        words = stream.words(first + rows.start, rows.stop - rows.start, width + 1)
        level = (words[..., width:] < int(rest * 2**64) - 2**63) + (int(below) - _LEVELS // 2)
        torch.lt(words.view(torch.int16)[..., :size], level, out=out[:, rows])


def _blocks(rows: int, width: int, block: int) -> Iterator[slice]:
    step = max(1, block // max(width, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _key(*name: int) -> int:
    """A random integer of 64 bits, signed, that follows from the name."""
    return int(np.random.SeedSequence(name).generate_state(1, np.uint64).view(np.int64)[0])


def _mixed(z: Tensor) -> Tensor:
    """SplitMix64's output function, in place; products wrap around."""
    z *= _GOLDEN
    z ^= (z >> 30) & (2**34 - 1)
    z *= _FIRST
    z ^= (z >> 27) & (2**37 - 1)
    z *= _SECOND
    z ^= (z >> 31) & (2**33 - 1)
    return z
