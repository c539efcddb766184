"""Records of a few random numbers, for tests of what is done with results."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from rdrop_probes.records import (
    SCHEMA_VERSION,
    CheckpointResult,
    Comparison,
    DataRecord,
    GroupResult,
    Metric,
    RunRecord,
)

METRICS = {"epkl": "nats", "nll_eval": "nats", "accuracy_eval": "", "jacobian_fisher": ""}
HOSTILE = (
    "__class__",
    "a`b.c",
    'quo"te',
    "two\nlines",
    r"\input{x}_%$#&~^{}",
    "]]><b>&amp;\x00\x1b[31m\ud800",
    "[link](javascript:x)|*",
    "reference",
)


def metric(rng: random.Random, unit: str = "", n: int = 40) -> Metric:
    low, estimate, high = sorted(rng.uniform(0.01, 1) for _ in range(3))
    return Metric(estimate=estimate, low=low, high=high, unit=unit, n=n, mask_low=low, mask_high=high)


def metrics(rng: random.Random) -> dict[str, Metric]:
    return {name: metric(rng, unit) for name, unit in METRICS.items()}


def comparison(rng: random.Random, name: str, reference: str, candidate: str) -> Comparison:
    low, difference, high = sorted(rng.uniform(-1, 1) for _ in range(3))
    return Comparison(
        metric=name, reference=reference, candidate=candidate, difference=difference, low=low, high=high,
        ratio=rng.uniform(0.5, 2), ratio_low=0.4, ratio_high=2.5, p_value=rng.random(), p_adjusted=rng.random(),
        test="paired t", unit=METRICS[name], n=40, effect_size=rng.uniform(-1, 1),
    )  # fmt: skip


def record(names: Sequence[str] = ("base", "rdrop"), seed: int = 0) -> RunRecord:
    """Checkpoints of these names, the first of them the reference if there are several."""
    rng = random.Random(seed)  # noqa: S311 - numbers for a test
    checkpoints = [
        CheckpointResult(
            name=name, path=f"{name}.pt", sha256="0" * 64, n_parameters=10, architecture="Net", metrics=metrics(rng)
        )
        for name in names
    ]
    return RunRecord(
        schema_version=SCHEMA_VERSION, tool={"name": "rdrop-analysis", "version": "0"}, seconds=1.5,
        created="2026-01-02T03:04:05+00:00", environment={}, config={"unit": "nats"}, checkpoints=checkpoints,
        data=DataRecord(source="digits", n_examples=40, n_classes=3, has_labels=True, fingerprint="f"),
        reference=names[0] if len(names) > 1 else None,
        comparisons=[comparison(rng, name, names[0], other) for other in names[1:] for name in METRICS],
    )  # fmt: skip


def grouped(seed: int = 0) -> RunRecord:
    """Two groups of two checkpoints, and one checkpoint that is in none."""
    rng = random.Random(seed)  # noqa: S311 - numbers for a test
    whole = record(("base-1", "base-2", "rdrop-1", "rdrop-2", "alone"), seed)
    return replace(
        whole,
        groups=[
            GroupResult(name=name, members=[f"{name}-1", f"{name}-2"], metrics=metrics(rng))
            for name in ("base", "rdrop")
        ],
        reference_group="base",
        group_comparisons=[comparison(rng, name, "base", "rdrop") for name in METRICS],
    )


def per_example(names: Sequence[str], n: int = 40, seed: int = 0) -> pd.DataFrame:
    rng = random.Random(seed)  # noqa: S311 - numbers for a test
    rows = [
        {"checkpoint": name, "example": i, "label": i % 3, "prediction": (i + 1) % 3, "epkl": rng.expovariate(3)}
        for name in names
        for i in range(n)
    ]
    table = pd.DataFrame(rows)
    table["label"] = table["label"].astype("Int64")
    return table
