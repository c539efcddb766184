"""Names in gates: whether there are such metrics, parts and checkpoints, and what there is instead."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from difflib import SequenceMatcher, get_close_matches
from typing import get_args

from rdrop_analysis.errors import UsageError
from rdrop_analysis.files import printable
from rdrop_analysis.gate_grammar import PARTS_LISTED, REFERENCE, Gate, Quantity
from rdrop_reports.definitions import DEFINITIONS, is_share

OF_METRICS = frozenset({"estimate", "low", "high", "mask_low", "mask_high"})
MOST_NAMES = 8


def check_names(gates: Iterable[Gate], metrics: Collection[str], names: Collection[str] | None) -> None:
    """See that gates name known metrics, and checkpoints or groups of these names, before anything is measured.

    Raises:
        UsageError: one does not.
    """
    for gate in gates:
        for quantity in gate.quantities():
            if quantity.metric not in metrics:
                raise UsageError(_unknown_metric(gate, quantity, metrics))
            if names is None or quantity.subject is None:
                continue
            if not quantity.of_reference:
                _check_subject(gate, quantity.subject, names)
            elif len(names) < 2:
                raise UsageError(no_reference(gate))


def no_reference(gate: Gate) -> str:
    """One line that says that there is none."""
    return f"{printable(gate.text)!r} names the {REFERENCE}, and there is nothing to compare with"


def doubtful(gates: Iterable[Gate]) -> Iterator[str]:
    """What to warn of: shares held against a bare number from 1 up, which none exceeds."""
    for gate in gates:
        bare = [p.factor for p in (*gate.left, *gate.right) if not p.quantities and not p.in_percent]
        found = list(gate.quantities())
        if all(of_shares(q) for q in found) and (above := [x for x in bare if abs(x) >= 1]):
            text = f"{printable(gate.text)!r}: {found[0].metric} is a fraction, and {above[0]:g} is {100 * above[0]:g}%"
            yield f"{text}; write {above[0]:g}% for {above[0]:g} percent"


def known_metrics() -> set[str]:
    """Names of the metrics that probes give."""
    from rdrop_probes.families import FamilyName
    from rdrop_probes.registry import available

    probes = [probe for family in get_args(FamilyName) for probe in available(family).values()]
    return set(DEFINITIONS).union(*(probe.units for probe in probes))


def of_shares(quantity: Quantity) -> bool:
    """Whether it is a share, or a difference of shares."""
    return is_share(quantity.metric) and (quantity.part[0] in OF_METRICS or quantity.part[0] == "difference")


def _check_subject(gate: Gate, subject: str, names: Collection[str]) -> None:
    if subject not in names:
        raise UsageError(_unknown(gate, "checkpoint or group", subject, names))


def _unknown_metric(gate: Gate, quantity: Quantity, metrics: Collection[str]) -> str:
    """One line that says which metrics there are, or which parts where a metric stands before the dot."""
    if quantity.subject not in metrics:
        return _unknown(gate, "metric", quantity.metric, metrics)
    text = f"{printable(gate.text)!r} names no part of {quantity.subject}: there is no {printable(quantity.metric)!r}"
    return f"{text}, but {PARTS_LISTED}"


def _unknown(gate: Gate, kind: str, name: str, known: Collection[str]) -> str:
    """One line that says what there is instead, the nearest first."""
    near = get_close_matches(name, known, n=3) or _nearest(name, known)[:MOST_NAMES]
    more = ", ..." if len(near) < len(known) else ""
    text = f"{printable(gate.text)!r} names no {kind} of this run: there is no {printable(name)!r}"
    return f"{text}, but {', '.join(printable(other) for other in near)}{more}"


def _nearest(name: str, known: Collection[str]) -> list[str]:
    return sorted(known, key=lambda other: (-SequenceMatcher(None, name, other).ratio(), other))
