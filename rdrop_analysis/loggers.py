"""Results for experiment trackers: W&B, MLflow and TensorBoard are told what results.json holds, and no more.

Each tracker is an extra of the same name, imported when it is used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from rdrop_analysis.errors import DataError, UsageError
from rdrop_analysis.files import printable
from rdrop_probes.records import Metric, RunRecord

BOUNDS = ("low", "high")
_NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9_./-]")  # what one of the trackers refuses
_LONGEST = 200
_AT_ONCE = 1000  # metrics that MLflow takes


@dataclass(frozen=True)
class Tracker:
    """Where results are logged: a tracker's name, and a directory (TensorBoard) or a project (the others)."""

    name: str
    place: str | None = None

    def log(self, record: RunRecord) -> None:
        """Write a record in the unit to be shown.

        Raises:
            DataError: the tracker refuses.
        """
        try:
            _LOGGERS[self.name](record, self.place)
        except Exception as problem:  # whatever a tracker raises: network, login, a full disk
            reason = printable(problem or type(problem).__name__, _LONGEST)
            raise DataError(f"results could not be logged to {self.name}: {reason}") from problem


def parse_tracker(text: str) -> Tracker:
    """Read `NAME` or `NAME:PLACE`.

    Raises:
        UsageError: there is no such tracker, or its package is not installed.
    """
    name, _, place = text.partition(":")
    if name not in _LOGGERS:
        raise UsageError(f"unknown tracker {printable(name)!r}: choose from {', '.join(_LOGGERS)}")
    if find_spec(name) is None:
        raise UsageError(f"--log-to {name} needs the package {name}: pip install 'rdrop-analysis[{name}]'")
    return Tracker(name, place or None)


def flat_metrics(record: RunRecord) -> dict[str, float]:
    """Every metric as `checkpoint/metric`, its interval as `checkpoint/metric.low` and `.high`, as gates name them.

    A difference is `candidate/metric.difference`. Keys hold only what all trackers allow, and stay distinct.
    """
    found: dict[str, float] = {}
    for key, value in _numbers(record):
        clean = _key(key)
        while clean in found:
            clean += "_"
        found[clean] = value
    return found


def _numbers(record: RunRecord) -> Iterator[tuple[str, float]]:
    arms = [(c.name, c.metrics) for c in record.checkpoints] + [(g.name, g.metrics) for g in record.groups]
    for arm, metrics in arms:
        for name, metric in metrics.items():
            yield from _of_metric(f"{_one(arm)}/{_one(name)}", metric)
    for comparison in (*record.comparisons, *record.group_comparisons):
        key = f"{_one(comparison.candidate)}/{_one(comparison.metric)}"
        for name in ("difference", "ratio", "p_adjusted"):
            yield from _finite(f"{key}.{name}", getattr(comparison, name))
        for bound in BOUNDS:
            yield from _finite(f"{key}.difference.{bound}", getattr(comparison, bound))


def _of_metric(key: str, metric: Metric) -> Iterator[tuple[str, float]]:
    yield from _finite(key, metric.estimate)
    for bound in BOUNDS:
        yield from _finite(f"{key}.{bound}", getattr(metric, bound))


def _finite(key: str, value: float | None) -> Iterator[tuple[str, float]]:
    if value is not None and math.isfinite(value):
        yield key, float(value)


def _one(name: str) -> str:
    """A name that is one part of a key, and leads nowhere where keys become paths."""
    return _NOT_IN_KEYS.sub("_", name).replace("/", "_").lstrip(".") or "_"


def _key(key: str) -> str:
    return key if len(key) <= _LONGEST else key[-_LONGEST:]


def _settings(record: RunRecord) -> dict[str, str]:
    """How the run was made."""
    return {
        **{f"config/{_one(name)}": str(value) for name, value in record.config.items()},
        "data": record.data.source,
        "n_examples": str(record.data.n_examples),
        "version": record.tool.get("version", ""),
    }


def _to_tensorboard(record: RunRecord, place: str | None) -> None:
    """Scalars of a run of its own."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(log_dir=str(Path(place or "runs") / f"rdrop-{_one(record.created)}")) as writer:
        for key, value in flat_metrics(record).items():
            writer.add_scalar(key, value)
        for name, text in _settings(record).items():
            writer.add_text(name, text)


def _to_wandb(record: RunRecord, place: str | None) -> None:
    """A run whose summary holds the numbers; WANDB_MODE=offline keeps it on this machine."""
    import wandb

    with wandb.init(project=place or "rdrop-analysis", job_type="rdrop-analyze", config=_settings(record)) as run:
        run.summary.update(flat_metrics(record))


def _to_mlflow(record: RunRecord, place: str | None) -> None:
    """A run of an experiment, where MLFLOW_TRACKING_URI or MLflow's own default says."""
    import mlflow

    mlflow.set_experiment(place or "rdrop-analysis")
    with mlflow.start_run():
        mlflow.log_params({name: value[:_LONGEST] for name, value in _settings(record).items()})
        metrics = list(flat_metrics(record).items())
        for start in range(0, len(metrics), _AT_ONCE):
            mlflow.log_metrics(dict(metrics[start : start + _AT_ONCE]))


_LOGGERS: Mapping[str, Callable[[RunRecord, str | None], None]] = MappingProxyType(
    {"tensorboard": _to_tensorboard, "wandb": _to_wandb, "mlflow": _to_mlflow}
)
