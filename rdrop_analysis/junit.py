"""JUnit XML of gates, which most CI services show beside the other tests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from rdrop_analysis.files import visible
from rdrop_probes.records import GateResult, RunRecord

SUITE = "rdrop-analyze"
_NOT_XML = re.compile("[^\t\n -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(record: RunRecord, gates: Sequence[GateResult], problem: str | None = None) -> bytes:
    """One test case a gate and checkpoint; what could not be measured or checked is an error.

    Args:
        record: the run.
        gates: what was found of its gates.
        problem: why gates could not be checked.
    """
    errors = [(failure.checkpoint, "measured", failure.message) for failure in record.failures]
    errors += [(SUITE, "gates", problem)] if problem is not None else []
    counts = {"tests": len(gates) + len(errors), "failures": sum(gate.failed for gate in gates), "errors": len(errors)}
    attributes = {name: str(count) for name, count in counts.items()} | {"time": f"{record.seconds:.3f}"}
    root = Element("testsuites", attributes)
    suite = SubElement(
        root, "testsuite", {"name": SUITE, "skipped": "0", "timestamp": _text(record.created)} | attributes
    )
    for gate in gates:
        case = _case(suite, gate.subject, gate.expression)
        if gate.failed:
            _told(case, "failure", gate.message)
    for subject, name, message in errors:
        _told(_case(suite, subject, name), "error", message)
    indent(root)
    content: bytes = tostring(root, encoding="utf-8", xml_declaration=True)
    return content + b"\n"


def _case(suite: Element, subject: str, name: str) -> Element:
    return SubElement(suite, "testcase", {"classname": _text(subject), "name": _text(name), "time": "0"})


def _told(case: Element, kind: str, message: str) -> None:
    told = SubElement(case, kind, {"message": _text(message), "type": kind})
    told.text = _text(message)


def _text(text: str) -> str:
    """Text without what XML cannot hold, not even escaped."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", visible(text))
