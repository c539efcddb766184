"""What a run found, as plain data: the one shape that probes fill, files hold and reports read.

The dataclasses below are `results.json` field by field (schema version 1). Divergences are in nats whatever
the unit shown; :func:`in_unit` converts a copy. The per-example table travels beside them as a DataFrame
with the columns `checkpoint`, `example`, `label`, `prediction` and one column a metric (nats).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

SCHEMA_VERSION = 1
NATS_PER_BIT = 0.6931471805599453

Scalar = str | int | float | bool | None
Unit = Literal["nats", "bits"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One estimate with its interval.

    `low` and `high` bound the mean over new data of the same kind (examples are the sample); `mask_low` and
    `mask_high` bound the mean over these very examples (only the dropout masks are the sample, or the random vectors
    of an estimate that has some). Bounds are None where there is nothing to estimate them from: one example, or a
    metric without dropout in it.
    """

    estimate: float | None
    low: float | None = None
    high: float | None = None
    level: float = 0.95
    unit: str = ""
    n: int = 0
    mask_low: float | None = None
    mask_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class SiteRecord:
    """One place in the forward pass that draws randomness.

    `path` is the module's path, `ordinal` counts the draws of that module in one pass, `rate` is the drop
    probability (None where the draw is not a dropout), `mask_shape` is the shape for a single example.
    `found_by_patching` is whether the usual recipe for MC dropout, every `nn.Dropout` module of the eval model
    into training mode, makes it draw.
    """

    path: str
    ordinal: int
    kind: str
    rate: float | None
    mask_shape: list[int]
    fires_in_eval: bool = False
    found_by_patching: bool = True
    per_example: bool = True

    @property
    def label(self) -> str:
        """Module path, with the ordinal where a module draws more than once."""
        name = self.path or "(root)"
        return name if self.ordinal == 0 else f"{name}#{self.ordinal}"


@dataclass(frozen=True, kw_only=True)
class SitePrediction:
    """Second-order share of one site in the EPKL; `predicted` is 2 R_site in nats, None if not predictable.

    `sampling_error` is the standard error that sampled expectations add to it (a part of the interval), None if exact.
    """

    site: str
    predicted: float | None
    low: float | None = None
    high: float | None = None
    share: float | None = None
    reason: str | None = None
    sampling_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class ConvergencePoint:
    """EPKL estimated from the first `sub_models` sub-models, with the interval over masks alone."""

    sub_models: int
    estimate: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """One confidence bin (`low`, `high`] of a reliability diagram; means are None where `count` is 0."""

    low: float
    high: float
    count: float
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True, kw_only=True)
class SiteAttribution:
    """What one site causes: EPKL (nats) with only it active, and with all sites but it.

    `group` is the kind of module it is in, `layer` the number of the layer; `reason` says why it cannot be switched.
    """

    site: str
    group: str
    layer: int | None = None
    only: Metric | None = None
    without: Metric | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class GroupAttribution:
    """The same for the sites of one kind of module or of one layer together; `by` says which of the two.

    `predicted` is the sum of their predictions (nats), None if one of them has none.
    """

    by: Literal["module", "layer"]
    name: str
    sites: list[str]
    only: Metric | None = None
    without: Metric | None = None
    predicted: float | None = None


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """EPKL measured and predicted (nats) with every dropout at `rate`, and the first over the second."""

    rate: float
    epkl: Metric
    predicted: Metric | None = None
    ratio: Metric | None = None


@dataclass(frozen=True, kw_only=True)
class AveragingPoint:
    """A metric (`nll`, `accuracy`, ...) of the mean of `passes` sub-models, and less the eval model's (paired)."""

    metric: str
    passes: int
    value: Metric
    difference: Metric | None = None
    p_value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Averaging:
    """Whether averaging sub-models helps: curves, and by metric the number of passes from which more do not matter."""

    points: list[AveragingPoint] = field(default_factory=list)
    enough: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """The temperature that minimises a model's NLL, cross-fitted, and what it changes (after less before)."""

    temperature: float
    low: float | None
    high: float | None
    nll_before: Metric
    nll_after: Metric
    nll_difference: Metric
    ece_before: float | None = None
    ece_after: float | None = None
    p_value: float | None = None


@dataclass(frozen=True, kw_only=True)
class NoiseFloor:
    """KL (nats) between two eval passes that should agree; `ratio` is the EPKL over it, None where it is 0.

    `flip_rate` is None in regression, where nothing is predicted that could flip.
    """

    name: str
    divergence: Metric | None
    ratio: float | None = None
    flip_rate: float | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Candidate minus reference on one metric, paired by example; both are checkpoints, or groups of them, or rates.

    `ratio` is candidate / reference with its own interval (None where the reference is 0 or the sign is not
    the same); `p_adjusted` is Benjamini-Hochberg over the metrics of this candidate; `effect_size` is the difference
    in standard deviations (of the paired differences, or Hedges' g between groups of training seeds).
    """

    metric: str
    reference: str
    candidate: str
    difference: float | None
    low: float | None
    high: float | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    p_value: float | None
    p_adjusted: float | None
    test: str
    level: float = 0.95
    unit: str = ""
    n: int = 0
    effect_size: float | None = None


@dataclass(frozen=True, kw_only=True)
class CheckpointResult:
    """Everything measured on one checkpoint.

    `stochastic` is whether train mode draws anything; `reliability` has the keys eval, sub and mean; `sub_models` is K
    as it was run, None where there was nothing to draw. `temperature` is of the eval model, `temperature_mean` of
    the MC mean of all passes. `sweep_change` is of measured over predicted EPKL between the lowest and the highest rate
    of `sweep`, paired by example.
    """

    name: str
    path: str | None
    sha256: str | None
    n_parameters: int
    architecture: str
    training: dict[str, Scalar] = field(default_factory=dict)
    strategy: str = ""
    stochastic: bool = True
    sub_models: int | None = None
    sites: list[SiteRecord] = field(default_factory=list)
    metrics: dict[str, Metric] = field(default_factory=dict)
    convergence: list[ConvergencePoint] = field(default_factory=list)
    reliability: dict[str, list[ReliabilityBin]] = field(default_factory=dict)
    site_predictions: list[SitePrediction] = field(default_factory=list)
    attribution: list[SiteAttribution] = field(default_factory=list)
    attribution_groups: list[GroupAttribution] = field(default_factory=list)
    sweep: list[SweepPoint] = field(default_factory=list)
    sweep_change: Comparison | None = None
    averaging: Averaging | None = None
    temperature: Temperature | None = None
    temperature_mean: Temperature | None = None
    noise_floor: list[NoiseFloor] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ExampleInput:
    """An input as it can be shown: `pixels` is base64 of uint8, row by row, in `shape` (H, W) or (H, W, 3)."""

    kind: Literal["image", "text", "values"]
    text: str | None = None
    shape: list[int] | None = None
    pixels: str | None = None
    values: list[float] | None = None


@dataclass(frozen=True, kw_only=True)
class Example:
    """One of the most inconsistent examples; the mappings have checkpoint names as keys.

    `predictions` are the eval model's class names, `votes` the share of sub-models for each class voted for.
    """

    index: int
    label: str | None
    predictions: dict[str, str]
    epkl: dict[str, float]
    votes: dict[str, dict[str, float]]
    input: ExampleInput | None = None


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """The data measured on. `fingerprint` is a sha256 over inputs and labels.

    `per` says what divergences are of, averaged over `n_rows` of them: examples, tokens or labels. `n_classes` is the
    number of outputs in regression.
    """

    source: str
    n_examples: int
    n_classes: int
    has_labels: bool
    fingerprint: str
    class_names: list[str] | None = None
    task: str = "classification"
    per: Literal["example", "token", "label"] = "example"
    n_rows: int | None = None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something the reader has to know. `checkpoint` is None where it concerns the whole run."""

    code: str
    message: str
    checkpoint: str | None = None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A checkpoint that could not be measured, and why."""

    checkpoint: str
    message: str
    exit_code: int


@dataclass(frozen=True, kw_only=True)
class GroupResult:
    """One arm of an experiment: checkpoints that differ in their training seed; metrics have n = seeds."""

    name: str
    members: list[str]
    metrics: dict[str, Metric] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What checkpoints are laid out over: a hyper-parameter or the epoch, by checkpoint."""

    name: str
    values: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Spearman correlation over checkpoints between the EPKL and another metric.

    `p_value` is None where the correlation is, and where checkpoints are seeds or epochs of a few trainings.
    """

    metric: str
    correlation: float | None
    p_value: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """A `--fail-if` expression on one checkpoint: what it compared, and whether it failed."""

    expression: str
    subject: str
    failed: bool
    value: float | None
    bound: float | None
    message: str


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The whole run. `reference` is the name of the checkpoint that the others are compared against.

    `reference_group` likewise of the groups of training seeds; in `group_comparisons` the seed is the unit.
    """

    schema_version: int
    tool: dict[str, str]
    created: str
    seconds: float
    environment: dict[str, Scalar]
    config: dict[str, Any]
    data: DataRecord
    checkpoints: list[CheckpointResult]
    reference: str | None = None
    comparisons: list[Comparison] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    groups: list[GroupResult] = field(default_factory=list)
    reference_group: str | None = None
    group_comparisons: list[Comparison] = field(default_factory=list)
    axis: Axis | None = None
    rankings: list[Ranking] = field(default_factory=list)
    gates: list[GateResult] = field(default_factory=list)


def read_record(path: Path) -> RunRecord:
    """Read a `results.json`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON, has another schema version, does not fit the schema or contradicts itself.
    """
    content = path.read_bytes()
    if (version := msgspec.json.decode(content, type=_Versioned).schema_version) != SCHEMA_VERSION:
        raise ValueError(f"schema version {version}, this version reads {SCHEMA_VERSION}")
    record = msgspec.json.decode(content, type=RunRecord)
    _check_names("checkpoint", [c.name for c in record.checkpoints], record.reference)
    _check_names("group", [g.name for g in record.groups], record.reference_group)
    return record


class _Versioned(msgspec.Struct):
    """What every version of the schema has."""

    schema_version: int


def _check_names(kind: str, names: list[str], reference: str | None) -> None:
    """Raise ValueError where one of the names is there twice, or the reference is none of them."""
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"there are two {kind}s called {twice[0]!r}")
    if reference is not None and reference not in names:
        raise ValueError(f"its reference {reference!r} is no {kind} in it")


def to_json(record: RunRecord) -> bytes:
    """Strict, indented JSON; values that are not finite become null."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def in_unit(record: RunRecord, unit: Unit) -> RunRecord:
    """Copy of `record` with every quantity in nats converted to `unit` (nats stay as they are)."""
    if unit == "nats":
        return record
    tree = msgspec.to_builtins(record)
    _convert_all(tree)
    for checkpoint in tree["checkpoints"]:
        for row in checkpoint["convergence"] + checkpoint["site_predictions"] + checkpoint["attribution_groups"]:
            _convert(row, ("estimate", "predicted", "low", "high", "sampling_error"))
    for example in tree["examples"]:
        _convert(example["epkl"], tuple(example["epkl"]))
    tree["config"]["unit"] = unit
    return msgspec.convert(tree, RunRecord)


def _convert_all(tree: Any) -> None:
    """Convert whatever says that it is in nats: metrics and comparisons, wherever they are."""
    if isinstance(tree, list):
        for part in tree:
            _convert_all(part)
    elif isinstance(tree, dict):
        if tree.get("unit") == "nats" and ("estimate" in tree or "difference" in tree):
            tree["unit"] = "bits"
            _convert(tree, ("estimate", "difference", "low", "high", "mask_low", "mask_high"))
        for part in tree.values():
            _convert_all(part)


def _convert(row: dict[str, Any], keys: tuple[str, ...]) -> None:
    """Divide the numbers under `keys` by the nats in a bit, in place."""
    for key in keys:
        if row.get(key) is not None:
            row[key] /= NATS_PER_BIT
