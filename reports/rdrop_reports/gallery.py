"""The most inconsistent examples as cards: the input itself, predictions, and votes of the sub-models."""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from rdrop_probes.records import Example, ExampleInput, RunRecord
from rdrop_reports.numbers import format_number, format_parts
from rdrop_reports.select import most_telling, place_of
from rdrop_reports.text import elide

MOST_CHECKPOINTS = 4
MOST_VOTES = 4
MOST_TEXT = 600
MOST_VALUES = 16


@dataclass(frozen=True)
class Vote:
    """One class's share of the sub-models' votes; `start` and `width` in percent of the bar."""

    name: str
    share: str
    start: float
    width: float


@dataclass(frozen=True)
class Row:
    """What one checkpoint says of the example; `right` is None where there is no class to be right about."""

    checkpoint: str
    place: int
    prediction: str
    right: bool | None
    epkl: str
    votes: Sequence[Vote]


@dataclass(frozen=True)
class Card:
    """One example: `image` is a PNG data URI, `text` words or values; at most one of them is filled."""

    index: int
    label: str | None
    image: str
    text: str
    rows: Sequence[Row]


def cards(record: RunRecord) -> list[Card]:
    """One card an example, in the record's order."""
    names = [checkpoint.name for checkpoint in most_telling(record, MOST_CHECKPOINTS)]
    places = {name: place_of(record, name) for name in names}
    return [_card(example, places) for example in record.examples]


def png_data_uri(shape: Sequence[int], pixels: bytes) -> str:
    """A PNG of 8-bit grey (H, W) or RGB (H, W, 3) pixels as a data URI.

    Raises:
        ValueError: the shape is not one of these, or the number of pixels is not that of the shape.
    """
    if len(shape) not in (2, 3) or tuple(shape[2:]) not in ((), (3,)) or min(shape) < 1:
        raise ValueError(f"not the shape of a picture: {list(shape)}")
    height, width, stride = shape[0], shape[1], shape[1] * (shape[2] if len(shape) == 3 else 1)
    if len(pixels) != height * stride:
        raise ValueError(f"{len(pixels)} bytes for a picture of shape {list(shape)}")
    rows = b"".join(b"\0" + pixels[y * stride : (y + 1) * stride] for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if len(shape) == 3 else 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in parts)
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _card(example: Example, places: dict[str, int]) -> Card:
    rows = [_row(example, name, place) for name, place in places.items() if name in example.epkl]
    shown = example.input
    return Card(example.index, example.label, _image(shown), _text(shown), rows)


def _row(example: Example, name: str, place: int) -> Row:
    prediction = example.predictions.get(name, "")
    right = None if example.label is None or name not in example.votes else prediction == example.label
    votes = _votes(example.votes.get(name, {}))
    return Row(elide(name, 32), place, prediction, right, format_number(example.epkl.get(name)), votes)


def _votes(shares: dict[str, float]) -> list[Vote]:
    """The largest shares, as segments of one bar."""
    largest = sorted(shares.items(), key=lambda item: -item[1])[:MOST_VOTES]
    starts = accumulate((share for _, share in largest), initial=0.0)
    return [
        Vote(name, _whole_percent(share), round(100 * start, 2), round(100 * share, 2))
        for (name, share), start in zip(largest, starts, strict=False)
    ]


def _whole_percent(share: float) -> str:
    """A share without decimals, unless that would make it a false 0 or 100%."""
    return format_parts(share, share - 0.05, share + 0.05, percent=True).estimate


def _image(shown: ExampleInput | None) -> str:
    """The picture, or nothing where it cannot be read."""
    if shown is None or shown.kind != "image" or shown.shape is None or shown.pixels is None:
        return ""
    try:
        return png_data_uri(shown.shape, base64.b64decode(shown.pixels, validate=True))
    except (ValueError, binascii.Error):
        return ""


def _text(shown: ExampleInput | None) -> str:
    if shown is None:
        return ""
    if shown.text is not None:
        return shown.text if len(shown.text) <= MOST_TEXT else shown.text[:MOST_TEXT] + "…"
    if shown.values is not None:
        more = ", …" if len(shown.values) > MOST_VALUES else ""
        return ", ".join(f"{value:.3g}" for value in shown.values[:MOST_VALUES]) + more
    return ""
