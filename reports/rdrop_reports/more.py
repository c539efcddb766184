"""What this run did not measure and could have: each with the option that asks for it."""

from __future__ import annotations

from dataclasses import dataclass

from rdrop_probes.records import RunRecord
from rdrop_reports.select import any_measured


@dataclass(frozen=True)
class More:
    """Something that was not measured, and how to get it."""

    what: str
    option: str


def more(record: RunRecord) -> list[More]:
    """Everything that is missing from this run, nothing where no checkpoint draws dropout."""
    checkpoints = [c for c in record.checkpoints if c.stochastic]
    if not checkpoints:
        return []
    wanted = [
        (any(c.attribution for c in checkpoints), More("EPKL site by site, exactly", "--probes default,attribution")),
        (any(c.sweep for c in checkpoints), More("EPKL over dropout rates", "--dropout 0.05,0.1,0.2")),
        (any_measured(record, "fisher_trace"), More("Freedom of the parameters", "--probes default,freedom")),
        (any(c.noise_floor for c in checkpoints), More("EPKL against numerical noise", "--probes default,noise_floor")),
        (bool(record.groups) or len(checkpoints) < 2, More("Training seeds as the unit", "--group NAME=GLOB")),
    ]
    return [missing for there, missing in wanted if not there]
