"""What `analyze`, `merge` and `report` do with results: write and show them, hold gates against them, tell trackers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rdrop_analysis.errors import INTERRUPTED, DataError, UsageError
from rdrop_analysis.files import check_formats, check_writable, printable, write_whole
from rdrop_analysis.gate_grammar import LONGEST, Gate, parse_gate
from rdrop_analysis.loggers import Tracker, parse_tracker

if TYPE_CHECKING:
    from rdrop_analysis.results import Results, Style
    from rdrop_probes.records import GateResult, RunRecord


@dataclass(frozen=True)
class Delivery:
    """Where results go, and what they have to keep to."""

    directory: Path
    formats: Sequence[str]
    style: Style
    gates: Sequence[Gate]
    junit: Path | None
    trackers: Sequence[Tracker]
    quiet: bool

    @classmethod
    def taken_from(cls, settings: dict[str, Any]) -> Delivery:
        """Take its options out of the settings.

        Raises:
            UsageError: a gate or a tracker is none, or `--junit` has no gates to tell of.
        """
        gates = [parse_gate(text) for text in settings.pop("fail_if")]
        trackers = [parse_tracker(text) for text in settings.pop("log_to")]
        directory, formats, style, junit, quiet = (
            settings.pop(name) for name in ("output", "formats", "style", "junit", "quiet")
        )
        if junit is not None and not gates:
            raise UsageError("--junit tells of gates: give at least one with --fail-if")
        return cls(directory, formats, style or "screen", gates, junit, trackers, quiet)

    def check(self, names: Collection[str] | None, *, leads: bool = True) -> None:
        """See that results can be delivered, before any work is done for them; what an earlier run told of gates goes.

        Args:
            names: of the checkpoints and groups to be measured; None where a record has them.
            leads: whether this is the process that delivers.

        Raises:
            UsageError: a format cannot be written, or a gate names what there will not be.
            DataError: a directory cannot be written.
        """
        check_formats(self.formats)
        check_writable(self.directory)
        if self.gates and names is not None:
            from rdrop_analysis.gate_names import check_names, known_metrics

            check_names(self.gates, known_metrics(), names)
        self._warn_of_gates()
        if self.junit is not None:
            check_writable(self.junit.parent, "--junit")
            if leads:
                _remove(self.junit)

    def _warn_of_gates(self) -> None:
        if self.gates and not self.quiet:
            from rdrop_analysis.gate_names import doubtful

            for text in doubtful(self.gates):
                click.echo(f"{click.style('Warning:', fg='yellow')} {text}", err=True)

    def deliver(self, results: Results, *, clear: bool = False) -> int:
        """Write and show results; the exit code.

        Raises:
            UsageError: a gate names what is not there; results are written nevertheless.
            DataError: something cannot be written, or a tracker refuses.
        """
        from rdrop_analysis.terminal import show

        results, problem = self._judged(results)
        results.save(self.directory, self.formats, clear=clear, style=self.style)
        show(results, self.directory, self.formats, quiet=self.quiet)
        if self.gates:
            self._tell_of_gates(results.record, problem)
        for tracker in self.trackers:
            tracker.log(results.shown)
        failures = [failure.exit_code for failure in results.record.failures]
        if problem is not None and not failures:
            raise problem
        code = INTERRUPTED if INTERRUPTED in failures else next(iter(failures), 0)
        return code or int(bool(self.gates) and any(gate.failed for gate in results.record.gates))

    def _judged(self, results: Results) -> tuple[Results, UsageError | None]:
        """Results with what was found of the gates, or why nothing was."""
        from rdrop_analysis.gates import check

        if not self.gates:
            return results, None
        try:
            found, problem = check(results.shown, self.gates), None
        except UsageError as usage:
            found, problem = [], usage
        return replace(results, record=replace(results.record, gates=found)), problem

    def _tell_of_gates(self, record: RunRecord, problem: UsageError | None) -> None:
        from rdrop_analysis.junit import junit_xml

        for gate in record.gates:
            if gate.failed or not self.quiet:
                click.echo(_line(gate), err=True)
        if problem is not None and record.failures:
            click.echo(f"Error: {problem}", err=True)
        if self.junit is not None:
            text = None if problem is None else str(problem)
            write_whole(self.junit, junit_xml(record, record.gates, text), DataError)


def _line(gate: GateResult) -> str:
    word = click.style("FAILED", fg="red") if gate.failed else "passed"
    return f"gate {word}: {printable(gate.expression, LONGEST)} - {printable(gate.message, LONGEST)}"


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as problem:
        raise DataError(f"cannot write {path}: {problem.strerror}; name another with --junit") from problem
