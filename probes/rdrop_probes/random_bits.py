"""Random bits that have addresses: row r of a stream is the same whoever asks for it, with which rows around it.

A stream is named by whole numbers (seed, sub-model, site, size of a row). On CPU its bits are those of NumPy's
PCG64-DXSM, which can jump to any place; elsewhere those of a counter hashed twice by the mixer of SplitMix64
(Steele, Lea and Flood 2014), because jumping generators run on one core.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

BLOCK = 2**17  # 64-bit words at a time: they stay in the cache until they are used

_GOLDEN = -7046029254386353131
_FIRST, _SECOND = -4658895280553007687, -7723592293110705685


class Bits:
    """The stream called `name`, on `device`."""

    def __init__(self, *name: int, device: torch.device) -> None:
        self._name = name
        self._device = device
        self.jumps = device.type == "cpu"

    def words(self, first: int, rows: int, width: int, *, part: int = 0) -> Tensor:
        """Rows `first`, ... of the stream, int64 [rows, width], every bit random; other `part`s are other streams."""
        seeds = np.random.SeedSequence((*self._name, part))
        if not self.jumps:
            keys = seeds.generate_state(2, np.uint64).view(np.int64).tolist()
            counter = torch.arange(first * width, (first + rows) * width, device=self._device)
            return _mixed(_mixed(counter + keys[0]) + keys[1]).view(rows, width)
        generator = np.random.PCG64DXSM(seeds)
        generator.advance(first * width)
        return torch.from_numpy(generator.random_raw(rows * width).view(np.int64)).view(rows, width)


def bernoulli(out: Tensor, keep: float, bits: Bits, first: int) -> None:
    """Fill `out` [rows, size] with 1 where a random number is below `keep`, else 0; row 0 is row `first` of `bits`.

    On CPU a byte decides, and what 256 levels leave of the probability is made up for by turning elements over at
    geometric gaps of 53 bits: the probability is `keep` but for rounding in double precision, and elements are
    independent. On other devices 32 bits decide: the probability is rounded to a multiple of 2^-32.
    """
    if not 0 < keep < 1:
        out.fill_(float(keep >= 1))
    elif bits.jumps:
        _by_bytes(out, keep, bits, first)
    else:
        _by_integers(out, keep, bits, first)


def uniform(out: Tensor, bits: Bits, first: int) -> None:
    """Fill `out` [rows, size] with multiples of 2^-24 (2^-53 in double precision) in [0, 1), all equally likely."""
    digits = 53 if out.dtype == torch.float64 else 24
    if out.dtype in (torch.float16, torch.bfloat16):
        digits = 11 if out.dtype == torch.float16 else 8
    for rows in _blocks(len(out), out.shape[1]):
        words = bits.words(first + rows.start, rows.stop - rows.start, out.shape[1])
        whole = (words >> (64 - digits)) & (2**digits - 1)
        out[rows] = (whole.double() * 2.0**-digits).to(out.dtype)


def _by_bytes(out: Tensor, keep: float, bits: Bits, first: int) -> None:
    """Compare bytes with the nearest of 256 levels, and turn over the few elements that are too many or too few."""
    whole, rest = divmod(keep * 256, 1.0)
    up, down = rest / (256 - whole), (1 - rest) / (whole + 1)
    threshold, chance, value = (whole, up, 1.0) if up <= down else (whole + 1, down, 0.0)
    width = -(-out.shape[1] // 8)
    for rows in _blocks(len(out), width):
        start, part = first + rows.start, out[rows]
        numbers = bits.words(start, len(part), width).view(torch.uint8)[:, : out.shape[1]]
        torch.lt(numbers, int(threshold), out=part) if threshold < 256 else part.fill_(1)
        if chance:
            part.view(-1)[_turned(part.shape[1], chance, bits, start, len(part))] = value


def _turned(size: int, chance: float, bits: Bits, first: int, rows: int) -> Tensor:
    """Places in [rows, size] that are each taken with probability `chance`: gaps between them are geometric."""
    width = int(size * chance + 4 * (size * chance) ** 0.5) + 2
    found, reached, part = [], np.full((rows, 1), -1.0), 0
    while (reached < size).any():  # as a rule once
        uniform = ((bits.words(first, rows, width, part=part + 1).numpy() >> 11 & (2**53 - 1)) + 1) * 2.0**-53
        places = reached + (np.floor(np.log(uniform) / np.log1p(-chance)) + 1).cumsum(1)
        row, column = np.nonzero(places < size)
        found.append(row * size + places[row, column].astype(np.int64))
        reached, part = places[:, -1:], part + 1
    return torch.from_numpy(np.concatenate(found))


def _by_integers(out: Tensor, keep: float, bits: Bits, first: int) -> None:
    threshold = round(keep * 2**32) - 2**31  # of the bits read as signed integers
    width = -(-out.shape[1] // 2)
    numbers = bits.words(first, len(out), width).view(torch.int32)[:, : out.shape[1]]
    torch.lt(numbers, min(threshold, 2**31 - 1), out=out)


def _blocks(rows: int, width: int) -> Iterator[slice]:
    step = max(1, BLOCK // max(width, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _mixed(z: Tensor) -> Tensor:
    """SplitMix64's output function, in place; products wrap around."""
    z *= _GOLDEN
    z ^= (z >> 30) & (2**34 - 1)
    z *= _FIRST
    z ^= (z >> 27) & (2**37 - 1)
    z *= _SECOND
    z ^= (z >> 31) & (2**33 - 1)
    return z
