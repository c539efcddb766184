"""Numbers as text: digits follow the interval, and nothing inexact is ever shown as 0 or 100%."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeGuard

from rdrop_probes.records import Metric

ROUNDING = 1e-12  # of an interval's width: what is left of sums that come to 0
MOST_BEFORE_POINT = 2  # powers of ten by which a bound may exceed the estimate whose exponent it is given
SMALLEST = 1e-300  # below it are zero, and what has lost its digits
LARGEST = 1e100  # beyond it are infinity, and what would overflow on an axis
MISSING = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"


class Parts(NamedTuple):
    """An estimate and its interval, as text; `interval` is empty where there is none."""

    estimate: str
    interval: str

    def __str__(self) -> str:
        return f"{self.estimate} {self.interval}".strip()


def is_number(value: float | None) -> TypeGuard[float]:
    """Whether there is a number here that can have been measured, and so be shown and drawn."""
    return value is not None and abs(value) < LARGEST


def format_estimate(metric: Metric | None, *, percent: bool = False) -> str:
    """Estimate with interval, such as `0.132 [0.128, 0.137]`; a dash where it was not measured.

    Args:
        metric: what to show.
        percent: show a share (0 to 1) as a percentage.
    """
    if metric is None:
        return MISSING
    return str(format_parts(metric.estimate, metric.low, metric.high, percent=percent))


def format_parts(
    estimate: float | None, low: float | None = None, high: float | None = None, *, percent: bool = False
) -> Parts:
    """Estimate and interval with common digits: one or two significant digits of the half-width."""
    if not is_number(estimate):
        return Parts(MISSING, "")
    scale = 100.0 if percent else 1.0
    if not (is_number(low) and is_number(high)):
        (value,) = _scaled([estimate], scale, SMALLEST)
        exponent, decimals = _layout([value], None, percent)
        return Parts(_show(value, exponent, decimals, percent), "")
    values = _scaled([estimate, low, high], scale, max(SMALLEST, abs(high - low) * ROUNDING))
    exponent, decimals = _layout(values, (high - low) / 2 * scale, percent)
    texts = [_show(value, exponent, decimals, percent) for value in values]
    return Parts(texts[0], f"[{texts[1]}, {texts[2]}]")


def _scaled(values: list[float], scale: float, least: float) -> list[float]:
    """Values times a scale, those that are not above the least as 0."""
    return [scale * value if abs(value) > least else 0.0 for value in values]


def format_number(value: float | None, *, percent: bool = False) -> str:
    """A number without an interval, to three significant digits."""
    return format_parts(value, percent=percent).estimate


def last_place(estimate: float | None, low: float | None, high: float | None) -> int:
    """The power of ten of the last digit that :func:`format_parts` shows of an estimate and its interval."""
    if not is_number(estimate):
        return 0
    half_width = (high - low) / 2 if is_number(low) and is_number(high) else None
    exponent, decimals = _layout([x for x in (estimate, low, high) if is_number(x)], half_width, False)
    return exponent - decimals


def format_to(values: Sequence[float | None], place: int) -> list[str]:
    """Numbers down to one power of ten, with a common exponent."""
    exponent, _ = _layout([x for x in values if is_number(x)] or [0.0], None, False)
    return [_show(x, exponent, max(0, exponent - place), False) if is_number(x) else MISSING for x in values]


def format_points(difference: float, low: float | None, high: float | None) -> Parts:
    """A difference between two shares, in percentage points (without the % sign)."""
    bounds = [None if bound is None else 100 * bound for bound in (low, high)]
    return format_parts(100 * difference, bounds[0], bounds[1])


def format_p(p_value: float | None) -> str:
    """A p-value with its relation: `p = 0.012` or `p < 0.001`."""
    if not is_number(p_value):
        return "p not available"
    if p_value < 0.001:
        return "p < 0.001"
    return f"p = {p_value:.2g}" if p_value < 0.1 else f"p = {p_value:.2f}"


def format_count(count: float) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{round(count):,}".replace(",", "\u202f")


def format_level(level: float) -> str:
    """A confidence level, such as `95%`."""
    return f"{100 * level:.10g}%"


def _layout(values: list[float], half_width: float | None, percent: bool) -> tuple[int, int]:
    """Common power of ten to take out of the estimate and its bounds, and decimals to keep after that."""
    largest = max(abs(value) for value in values)
    exponent = _exponent(values[0], largest) if not percent and largest > 0 and not 1e-3 <= largest < 1e6 else 0
    decimals = _decimals(largest, half_width, exponent)
    if exponent and abs(round(values[0] / 10.0**exponent, decimals)) >= 10:  # 9.99 that is rounded up
        exponent += 1
        decimals = _decimals(largest, half_width, exponent)
    return exponent, decimals


def _exponent(estimate: float, largest: float) -> int:
    """That of the estimate, which then has one digit before the point, unless it is lost in its interval."""
    own = _magnitude(estimate)
    return own if estimate and _magnitude(largest) - own <= MOST_BEFORE_POINT else _magnitude(largest)


def _decimals(largest: float, half_width: float | None, exponent: int) -> int:
    if not half_width or half_width < max(largest * 1e-9, SMALLEST):
        return max(0, 2 - (exponent or _magnitude(largest)) + exponent)
    step = _magnitude(half_width)
    return max(0, exponent - step + int(half_width / 10.0**step < 3))


def _magnitude(value: float) -> int:
    return math.floor(math.log10(abs(value))) if value else 0


def _show(value: float, exponent: int, decimals: int, percent: bool) -> str:
    """One number as text, with as many more decimals as keep it away from a false 0 or 100%."""
    scaled = value / 10.0**exponent
    forbidden = (0.0, 100.0) if percent else (0.0,)
    text = f"{scaled:.{decimals}f}" if scaled not in forbidden else f"{scaled + 0.0:.0f}"
    for extra in range(1, 7):
        if abs(float(text)) not in forbidden or float(text) == scaled:
            break
        text = f"{scaled:.{decimals + extra}f}"
    power = exponent if scaled else 0
    if float(text) == 0 and scaled != 0:
        text, _, own = f"{value:.0e}".partition("e")
        power = int(own)
    return (text.replace("-", _MINUS, 1) if scaled < 0 else text) + (f"e{power}" if power else "") + "%" * percent
