"""Numbers as text: digits follow the interval, and nothing inexact is ever shown as 0 or 100%."""

from __future__ import annotations

import math
from typing import NamedTuple, TypeGuard

from rdrop_probes.records import Metric

ROUNDING = 1e-12  # of an interval's width: what is left of sums that come to 0
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
        exponent, decimals = _layout([estimate * scale], None, percent)
        return Parts(_show(estimate * scale, exponent, decimals, percent), "")
    half_width = (high - low) / 2 * scale
    values = [scale * (value if abs(value) > abs(high - low) * ROUNDING else 0.0) for value in (estimate, low, high)]
    exponent, decimals = _layout(values, half_width, percent)
    texts = [_show(value, exponent, decimals, percent) for value in values]
    return Parts(texts[0], f"[{texts[1]}, {texts[2]}]")


def format_number(value: float | None, *, percent: bool = False) -> str:
    """A number without an interval, to three significant digits."""
    return format_parts(value, percent=percent).estimate


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
    """Common power of ten to take out, and decimals to keep after that."""
    largest = max(abs(value) for value in values)
    magnitude = math.floor(math.log10(largest)) if largest > 0 else 0
    exponent = magnitude if not percent and largest > 0 and not 1e-3 <= largest < 1e6 else 0
    if not half_width or half_width < largest * 1e-9:
        return exponent, max(0, 2 - magnitude + exponent)
    step = math.floor(math.log10(half_width))
    one_more = half_width / 10**step < 3
    return exponent, max(0, exponent - step + int(one_more))


def _show(value: float, exponent: int, decimals: int, percent: bool) -> str:
    """One number as text, with as many more decimals as keep it away from a false 0 or 100%."""
    scaled = value / 10.0**exponent
    forbidden = (0.0, 100.0) if percent else (0.0,)
    text = f"{scaled:.{decimals}f}" if scaled not in forbidden else f"{scaled + 0.0:.0f}"
    for extra in range(1, 7):
        if abs(float(text)) not in forbidden or float(text) == scaled:
            break
        text = f"{scaled:.{decimals + extra}f}"
    if float(text) == 0 and scaled != 0:
        text = f"{scaled:.1g}"
    return text.replace("-", _MINUS, 1) + (f"e{exponent}" if exponent else "") + ("%" if percent else "")
