"""Gates: what `--fail-if` says of a record, in the unit shown, shares as fractions. One fails where it is true.

What cannot be known fails as well: a gate never passes because a number is missing.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from rdrop_analysis.errors import UsageError
from rdrop_analysis.files import printable
from rdrop_analysis.gate_grammar import Gate, Product, Quantity
from rdrop_analysis.gate_names import OF_METRICS, check_names, no_reference, of_shares
from rdrop_probes.records import Comparison, GateResult, Metric, RunRecord

SIGNS: Mapping[str, Callable[[float, float], bool]] = MappingProxyType(
    {
        "<": operator.lt,
        "<=": operator.le,
        ">": operator.gt,
        ">=": operator.ge,
        "==": operator.eq,
        "!=": operator.ne,
    }
)


def check(record: RunRecord, gates: Iterable[Gate]) -> list[GateResult]:
    """Hold gates against a record that is in the unit to be shown.

    Quantities without a name are those of each candidate in turn: every group but the reference group and every
    checkpoint that is in no group and not the reference; the only one, where there is nothing to compare with.

    Raises:
        UsageError: a gate names a metric, a checkpoint or a group that is not there.
    """
    arms = _Arms(record)
    gates = list(gates)
    for gate in gates:
        arms.check_names(gate)
    return [_result(arms, gate, subject) for gate in gates for subject in arms.subjects(gate)]


class _Arms:
    """What a record holds by the names that a gate may use; a group goes before a checkpoint of the same name."""

    def __init__(self, record: RunRecord) -> None:
        self.reference = record.reference_group or record.reference
        self.metrics = {c.name: c.metrics for c in record.checkpoints} | {g.name: g.metrics for g in record.groups}
        self.comparisons: dict[tuple[str, str], Comparison] = {
            (comparison.candidate, comparison.metric): comparison
            for comparison in (*record.comparisons, *record.group_comparisons)
        }
        members = {name for group in record.groups for name in group.members}
        arms = [c.name for c in record.checkpoints if c.name not in members and c.name != record.reference]
        arms = [group.name for group in record.groups if group.name != record.reference_group] + arms
        self.candidates = list(dict.fromkeys(arms)) or list(self.metrics)

    def check_names(self, gate: Gate) -> None:
        metrics = {name for found in self.metrics.values() for name in found}
        check_names([gate], metrics, self.metrics)
        if self.reference is None and any(quantity.of_reference for quantity in gate.quantities()):
            raise UsageError(no_reference(gate))

    def subjects(self, gate: Gate) -> list[str]:
        """Whom a gate is checked for: every candidate, or those that it names alone."""
        named = [self.name_of(quantity, "") for quantity in gate.quantities()]
        return self.candidates if "" in named else list(dict.fromkeys(named))[:1]

    def name_of(self, quantity: Quantity, subject: str) -> str:
        if quantity.of_reference:
            return self.reference or ""
        return subject if quantity.subject is None else quantity.subject

    def value(self, quantity: Quantity, subject: str) -> float | None:
        """The number, None where it is missing or not finite."""
        field = _FIELDS.get(quantity.part, quantity.part[0])
        value: float | None = getattr(self._found(quantity, subject), field, None)
        return value if value is not None and math.isfinite(value) else None

    def unit(self, quantity: Quantity, subject: str) -> str:
        """Of a difference that of the comparison, which may be of squares."""
        found = self._found(quantity, subject)
        has_unit = quantity.part[0] in OF_METRICS or quantity.part[0] == "difference"
        return found.unit if found is not None and has_unit else ""

    def _found(self, quantity: Quantity, subject: str) -> Metric | Comparison | None:
        name = self.name_of(quantity, subject)
        if quantity.part[0] in OF_METRICS:
            return self.metrics.get(name, {}).get(quantity.metric)
        return self.comparisons.get((name, quantity.metric))


_FIELDS: Mapping[tuple[str, ...], str] = MappingProxyType(
    {
        ("difference", "low"): "low",
        ("difference", "high"): "high",
        ("ratio", "low"): "ratio_low",
        ("ratio", "high"): "ratio_high",
    }
)


def _result(arms: _Arms, gate: Gate, subject: str) -> GateResult:
    missing = [quantity for quantity in gate.quantities() if arms.value(quantity, subject) is None]
    value, bound = (_total(arms, side, subject) for side in (gate.left, gate.right))
    if value is None or bound is None:
        what = f"{missing[0]} is missing" if missing else "a number in it is too large"
        text, failed = f"{what}, so the gate cannot pass", True
    else:
        failed = SIGNS[gate.sign](value, bound)
        sign, percent = gate.sign if failed else f"is not {gate.sign}", _in_percent(gate)
        unit, scale = ("%", 100.0) if percent else (_units(arms, gate, subject), 1.0)
        text = _compared(value * scale, sign, bound * scale, unit)
    return GateResult(
        expression=gate.text,
        subject=subject,
        failed=failed,
        value=value,
        bound=bound,
        message=f"{printable(subject)}: {text}",
    )


def _total(arms: _Arms, side: Sequence[Product], subject: str) -> float | None:
    """A side's value, None where it cannot be had."""
    total = 0.0
    for product in side:
        values = [arms.value(quantity, subject) for quantity in product.quantities]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        total += product.factor * math.prod(known)
    return total if math.isfinite(total) else None


def _units(arms: _Arms, gate: Gate, subject: str) -> str:
    """The unit of what is compared, where it is one."""
    units = {arms.unit(quantity, subject) for quantity in gate.quantities()}
    return f" {units.pop()}".rstrip() if len(units) == 1 else ""


def _in_percent(gate: Gate) -> bool:
    """Whether both sides are shares, which are shown in percent; the product of two is none."""
    alone = all(len(product.quantities) < 2 for product in (*gate.left, *gate.right))
    return alone and all(of_shares(quantity) for quantity in gate.quantities())


def _compared(value: float, sign: str, bound: float, unit: str) -> str:
    """Both numbers, with as many digits as tell them apart."""
    digits = next((n for n in (4, 6, 9, 12) if value == bound or f"{value:.{n}g}" != f"{bound:.{n}g}"), 17)
    return f"{value:.{digits}g}{unit if unit == '%' else ''} {sign} {bound:.{digits}g}{unit}"
