"""Sample results with every part that a run can have: random numbers that are plausible."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rdrop_probes.records import (
    Averaging,
    AveragingPoint,
    Axis,
    CheckpointResult,
    Comparison,
    GateResult,
    GroupAttribution,
    GroupResult,
    Metric,
    NoiseFloor,
    Ranking,
    RunRecord,
    SiteAttribution,
    SitePrediction,
    SiteRecord,
    SweepPoint,
    Temperature,
)
from tests.reports.report_samples import Sample, sample

KINDS = ("attention.dropout", "attention.output", "mlp.dropout")
RATES = (0.02, 0.05, 0.1, 0.2, 0.3)
AVERAGED = ("nll", "accuracy", "brier")


def rich(
    names: tuple[str, ...] = ("baseline", "rdrop"), *, layers: int = 4, seeds: int = 0, examples: int = 200
) -> Sample:
    """A sample with everything; with `seeds`, names are arms and each has that many checkpoints."""
    members = {name: [f"{name}-seed{seed}" for seed in range(seeds)] for name in names} if seeds else {}
    record, per_example = sample(tuple(m for part in members.values() for m in part) or names, examples=examples)
    rng = np.random.default_rng(7)
    record = replace(record, checkpoints=[enriched(c, layers, rng) for c in record.checkpoints])
    record = replace(record, rankings=rankings(len(record.checkpoints)), axis=axis(record))
    return (with_groups(record, members) if seeds else record), per_example


def sites(layers: int) -> list[tuple[str, str, int | None, float]]:
    """Path, group, layer and rate of every site of an encoder."""
    inner = [(f"encoder.layers.{i}.{kind}", kind.split(".")[0], i, 0.1) for i in range(layers) for kind in KINDS]
    return [("embedding.dropout", "embedding", None, 0.1), *inner, ("head.dropout", "head", None, 0.3)]


def metric(estimate: float, rng: Any, width: float = 0.1, unit: str = "nats", n: int = 200) -> Metric:
    estimate, half = float(estimate), float(abs(estimate) * width * rng.uniform(0.7, 1.3))
    return Metric(estimate=estimate, low=estimate - half, high=estimate + half, unit=unit, n=n)


def enriched(checkpoint: CheckpointResult, layers: int, rng: Any) -> CheckpointResult:
    whole = checkpoint.metrics["epkl"].estimate or 0.0
    places = sites(layers)
    shares = rng.dirichlet(np.full(len(places), 0.8))
    only = 0.8 * whole * shares
    predicted = only / 1.3 * rng.lognormal(0, 0.3, len(places))
    attribution = [
        SiteAttribution(site=p, group=g, layer=i, only=metric(o, rng), without=metric(whole - 1.25 * o, rng))
        for (p, g, i, _), o in zip(places, only, strict=True)
    ]
    unknown = SiteAttribution(site="odd.path", group="other", reason="it draws a boolean mask that cannot be switched")
    return replace(
        checkpoint,
        sites=[SiteRecord(path=p, ordinal=0, kind="dropout", rate=q, mask_shape=[16, 64]) for p, _, _, q in places],
        site_predictions=[
            SitePrediction(site=p, predicted=r, low=0.9 * r, high=1.1 * r, share=r / float(predicted.sum()))
            for (p, *_), r in zip(places, predicted.tolist(), strict=True)
        ],
        attribution=[*attribution, unknown],
        attribution_groups=groups_of(places, only, predicted, whole, rng),
        sweep=sweep(whole, rng),
        sweep_change=sweep_change(0.7, 0.6, 0.8),
        averaging=averaging(checkpoint, rng),
        temperature=temperature(checkpoint.metrics["nll_eval"], rng),
        temperature_mean=temperature(checkpoint.metrics["nll_mean"], rng),
        noise_floor=noise(whole, rng),
        metrics=checkpoint.metrics
        | {
            "epkl_sum_of_parts": metric(only.sum(), rng),
            "epkl_interaction": metric(whole - only.sum(), rng, 0.2),
            "attribution_rank_correlation": Metric(estimate=0.87, n=len(places)),
            "constraint_epsilon": Metric(estimate=(checkpoint.metrics["epkl"].high or whole) * 0.99, unit="nats"),
            "fisher_trace": metric(40 * whole, rng, 0.2, ""),
            "effective_dimension": metric(120 * rng.uniform(0.8, 1.2), rng, 0.05, ""),
        },
    )


def groups_of(
    places: Sequence[tuple[str, str, int | None, float]], only: Any, predicted: Any, whole: float, rng: Any
) -> list[GroupAttribution]:
    found = []
    keys: list[tuple[str, int, object]] = [("module", 1, name) for name in dict.fromkeys(p[1] for p in places)]
    keys += [("layer", 2, i) for i in dict.fromkeys(p[2] for p in places) if i is not None]
    for by, column, key in keys:
        inside = [k for k, place in enumerate(places) if place[column] == key]
        part = float(only[inside].sum())
        found.append(
            GroupAttribution(
                by="module" if by == "module" else "layer", name=str(key), sites=[places[k][0] for k in inside],
                only=metric(1.1 * part, rng), without=metric(whole - 1.2 * part, rng),
                predicted=float(predicted[inside].sum()),
            )
        )  # fmt: skip
    return found


def sweep(whole: float, rng: Any) -> list[SweepPoint]:
    points = []
    for rate in RATES:
        predicted = whole * (rate / (1 - rate)) / (0.1 / 0.9) / 1.4
        ratio = 1 + 2.5 * rate
        points.append(
            SweepPoint(
                rate=rate, epkl=metric(predicted * ratio, rng), predicted=metric(predicted, rng),
                ratio=metric(ratio, rng, 0.03, ""),
            )
        )  # fmt: skip
    return points


def sweep_change(difference: float, low: float, high: float) -> Comparison:
    return Comparison(
        metric="epkl_over_predicted", reference=f"rate {RATES[0]:g}", candidate=f"rate {RATES[-1]:g}",
        difference=difference, low=low, high=high, ratio=None, ratio_low=None, ratio_high=None, p_value=0.001,
        p_adjusted=None, test="paired t test", n=200,
    )  # fmt: skip


def averaging(checkpoint: CheckpointResult, rng: Any) -> Averaging:
    points = []
    for name in AVERAGED:
        unit = {"nll": "nats", "accuracy": "share", "brier": ""}[name]
        eval_, sub, mean = (checkpoint.metrics[f"{name}_{mode}"].estimate or 0.0 for mode in ("eval", "sub", "mean"))
        for m in (1, 2, 4, 8, 16, 32):
            value = mean + (sub - mean) / m
            points.append(
                AveragingPoint(
                    metric=name, passes=m, value=metric(value, rng, 0.05, unit),
                    difference=replace(
                        metric(value - eval_, rng, 0.0, unit),
                        low=value - eval_ - 0.006 - 0.01 / m, high=value - eval_ + 0.006 + 0.01 / m,
                    ),
                    p_value=float(rng.uniform(0, 0.2)),
                )
            )  # fmt: skip
    return Averaging(points=points, enough=dict.fromkeys(AVERAGED, 8))


def temperature(nll: Metric, rng: Any) -> Temperature:
    before = nll.estimate or 0.0
    found = float(rng.uniform(1.05, 1.6))
    return Temperature(
        temperature=found, low=found - 0.1, high=found + 0.1, nll_before=metric(before, rng),
        nll_after=metric(0.95 * before, rng), nll_difference=metric(-0.05 * before, rng, 0.5),
        ece_before=0.05, ece_after=0.02, p_value=0.003,
    )  # fmt: skip


def noise(whole: float, rng: Any) -> list[NoiseFloor]:
    floors = {"bfloat16 autocast": 2e-5, "batch of 1": 3e-11}
    rows = [
        NoiseFloor(name=name, divergence=metric(size, rng, 0.4), ratio=whole / size, flip_rate=0.001)
        for name, size in floors.items()
    ]
    return [*rows, NoiseFloor(name="torch.compile", divergence=None, reason="no compiler was found")]


def rankings(count: int) -> list[Ranking]:
    if count < 3:
        return []
    names = ("predicted_epkl", "jacobian_fisher", "jacobian_logits", "kl_sub_to_eval")
    return [
        Ranking(metric=name, correlation=rho, p_value=p, n=count)
        for name, rho, p in zip(names, (0.99, 0.8, 0.3, None), (0.0001, 0.01, 0.4, None), strict=True)
    ]


def axis(record: RunRecord) -> Axis | None:
    return Axis(name="alpha", values={c.name: float(i % 4) for i, c in enumerate(record.checkpoints)})


def with_groups(record: RunRecord, members: dict[str, list[str]]) -> RunRecord:
    """Groups and their comparisons, the seed the unit."""
    by_name = {c.name: c for c in record.checkpoints}
    wanted = ("epkl", "accuracy_eval", "nll_gap", "flip_rate")
    values = {
        group: {m: np.array([by_name[name].metrics[m].estimate or 0.0 for name in names]) for m in wanted}
        for group, names in members.items()
    }
    groups = [
        GroupResult(name=group, members=members[group], metrics={m: over_seeds(m, v) for m, v in found.items()})
        for group, found in values.items()
    ]
    first = next(iter(members))
    return replace(
        record, groups=groups, reference_group=first,
        group_comparisons=[
            seeds_compared(first, group, m, values) for group in list(members)[1:] for m in wanted
        ],
    )  # fmt: skip


def over_seeds(name: str, values: Any) -> Metric:
    center, n = float(values.mean()), len(values)
    half = 4.3 * float(values.std(ddof=1)) / n**0.5 if n > 1 else None
    unit = {"accuracy_eval": "share", "flip_rate": "share"}.get(name, "nats")
    bounds = {} if half is None else {"low": center - half, "high": center + half}
    return Metric(estimate=center, unit=unit, n=n, **bounds)


def seeds_compared(first: str, group: str, name: str, values: dict[str, dict[str, Any]]) -> Comparison:
    ours, theirs = values[group][name], values[first][name]
    d = float(ours.mean() - theirs.mean())
    half = 4.3 * float((ours - theirs).std(ddof=1)) / len(ours) ** 0.5 if len(ours) > 1 else None
    p = 0.004 if half else None
    return Comparison(
        metric=name, reference=first, candidate=group, difference=d, low=None if half is None else d - half,
        high=None if half is None else d + half, ratio=float(ours.mean() / theirs.mean()) if theirs.mean() else None,
        ratio_low=None, ratio_high=None, p_value=p, p_adjusted=p, test="paired t over seeds",
        unit=over_seeds(name, ours).unit, n=len(ours), effect_size=-2.1 if half else None,
    )  # fmt: skip


def with_gates(record: RunRecord) -> RunRecord:
    """Two gates: one passed, one failed."""
    name = record.checkpoints[-1].name
    message = "epkl > 0.01: 0.12 against 0.01"
    return replace(
        record,
        gates=[
            GateResult(expression="epkl > 0.01", subject=name, failed=True, value=0.12, bound=0.01, message=message),
            GateResult(expression="nll_gap > 0.5", subject=name, failed=False, value=0.01, bound=0.5, message="ok"),
        ],
    )


def everything(names: tuple[str, ...] = ("baseline", "rdrop"), **options: Any) -> Sample:
    """:func:`rich` with gates."""
    record, per_example = rich(names, **options)
    return with_gates(record), per_example
