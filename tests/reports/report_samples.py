"""Sample results: a seeded simulation of a classifier under dropout, shaped as a run would be."""

import base64
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from rdrop_probes.records import (
    CheckpointResult,
    Comparison,
    ConvergencePoint,
    DataRecord,
    Example,
    ExampleInput,
    Failure,
    Finding,
    Metric,
    ReliabilityBin,
    RunRecord,
    SitePrediction,
    SiteRecord,
)

Sample = tuple[RunRecord, pd.DataFrame | None]
SUB_MODELS, CLASSES = 32, 10
SITES = [("blocks.0.drop", 0.1), ("blocks.1.drop", 0.1), ("head.dropout", 0.3)]
PLAIN = {"expectation_linearity", "jacobian_logits", "jacobian_probs", "jacobian_fisher", "jacobian_spectral"}


def log_softmax(z: Any) -> Any:
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def simulate(noise: float, examples: int, seed: int) -> dict[str, Any]:
    """Log-probabilities of the eval model (N, C) and of the sub-models (N, K, C), with labels."""
    data, rng = np.random.default_rng(0), np.random.default_rng(seed)
    labels = data.integers(CLASSES, size=examples)
    margin = 1.5 + 2.5 * data.gamma(2.0, size=examples)
    logits = data.normal(size=(examples, CLASSES))
    logits[np.arange(examples), labels] += margin - 1.2
    spread = noise * data.lognormal(0, 0.5, size=(examples, 1, 1))
    z = logits[:, None] + spread * rng.normal(size=(examples, SUB_MODELS, CLASSES))
    return {"labels": labels, "eval": log_softmax(logits + 0.3 * rng.normal(size=logits.shape)), "sub": log_softmax(z)}


def columns(run: dict[str, Any], labels: bool) -> dict[str, Any]:
    """Per-example values of every metric."""
    l0, lk = run["eval"], run["sub"]
    p0, pk = np.exp(l0), np.exp(lk)
    mean, k = pk.mean(1), lk.shape[1]
    r = lk - l0[:, None]
    pairs = k * (pk * r).sum((1, 2)) - (pk.sum(1) * r.sum(1)).sum(-1)
    votes = np.eye(CLASSES)[pk.argmax(-1)].sum(1)
    found = {
        "epkl": pairs / (k * (k - 1)),
        "mutual_information": (pk * (lk - np.log(mean)[:, None])).sum(-1).mean(1),
        "reverse_mutual_information": (mean[:, None] * (np.log(mean)[:, None] - lk)).sum(-1).mean(1),
        "kl_sub_to_eval": (pk * r).sum(-1).mean(1),
        "kl_eval_to_sub": (-p0[:, None] * r).sum(-1).mean(1),
        "kl_mean_to_eval": (mean * (np.log(mean) - l0)).sum(-1),
        "flip_rate": (pk.argmax(-1) != p0.argmax(-1)[:, None]).mean(1),
        "disagreement": 1 - (votes * (votes - 1)).sum(-1) / (k * (k - 1)),
        "expectation_linearity": np.sqrt((r.mean(1) ** 2).sum(-1)),
    }
    spread = np.random.default_rng(5).lognormal(0, 0.3, size=len(p0))
    found["predicted_epkl"] = found["epkl"] / 1.4 * spread
    found["jacobian_fisher"] = 40 * found["kl_sub_to_eval"] * spread
    found["jacobian_logits"] = 9 + 4 * np.sqrt(found["jacobian_fisher"])
    found["jacobian_probs"] = np.sqrt(found["jacobian_fisher"]) / 3
    found["jacobian_spectral"] = found["jacobian_logits"] / 1.7
    return found | (labelled(run, p0, pk, mean) if labels else {})


def labelled(run: dict[str, Any], p0: Any, pk: Any, mean: Any) -> dict[str, Any]:
    rows, y = np.arange(len(p0)), run["labels"]
    hot = np.eye(CLASSES)[y]
    found = {
        "nll_eval": -np.log(p0[rows, y]),
        "nll_sub": -np.log(pk[rows, :, y]).mean(1),
        "nll_mean": -np.log(mean[rows, y]),
        "accuracy_eval": (p0.argmax(-1) == y).astype(float),
        "accuracy_sub": (pk.argmax(-1) == y[:, None]).mean(1),
        "accuracy_mean": (mean.argmax(-1) == y).astype(float),
        "brier_eval": ((p0 - hot) ** 2).sum(-1),
        "brier_sub": ((pk - hot[:, None]) ** 2).sum(-1).mean(1),
        "brier_mean": ((mean - hot) ** 2).sum(-1),
    }
    found["nll_gap"] = found["nll_sub"] - found["nll_eval"]
    found["accuracy_gap"] = found["accuracy_eval"] - found["accuracy_sub"]
    return found


def unit_of(name: str) -> str:
    if name in PLAIN or name.startswith("brier"):
        return ""
    return "share" if name.startswith(("accuracy", "flip", "disagreement", "ece")) else "nats"


def t_metric(name: str, values: Any) -> Metric:
    center, half = float(values.mean()), float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))
    stochastic = not name.endswith("_eval") and not name.startswith("jacobian")
    masks = {"mask_low": center - half / 4, "mask_high": center + half / 4} if stochastic else {}
    return Metric(estimate=center, low=center - half, high=center + half, unit=unit_of(name), n=len(values), **masks)


def reliability(probabilities: Any, labels: Any) -> list[ReliabilityBin]:
    confidence, right = probabilities.max(-1), probabilities.argmax(-1) == labels
    bins = []
    for low, high in pairwise(np.linspace(0, 1, 11)):
        inside = (confidence > low) & (confidence <= high)
        some = bool(inside.any())
        bins.append(
            ReliabilityBin(
                low=float(low), high=float(high), count=float(inside.sum()),
                confidence=float(confidence[inside].mean()) if some else None,
                accuracy=float(right[inside].mean()) if some else None,
            )
        )  # fmt: skip
    return bins


def ece(bins: list[ReliabilityBin]) -> Metric:
    total = sum(b.count for b in bins)
    gap = sum(b.count * abs((b.accuracy or 0) - (b.confidence or 0)) for b in bins) / total
    return Metric(estimate=gap, low=gap * 0.7, high=gap * 1.4, unit="share", n=int(total))


def checkpoint(name: str, noise: float, run: dict[str, Any], found: dict[str, Any], labels: bool) -> CheckpointResult:
    metrics = {key: t_metric(key, values) for key, values in found.items()}
    mean, epkl = np.exp(run["sub"]).mean(1), metrics["epkl"]
    shapes = {"eval": np.exp(run["eval"]), "sub": np.exp(run["sub"][:, 0]), "mean": mean}
    bins = {mode: reliability(p, run["labels"]) for mode, p in shapes.items()} if labels else {}
    metrics |= {f"ece_{mode}": ece(rows) for mode, rows in bins.items()}
    predicted = metrics["predicted_epkl"].estimate or 0.0
    ratio = (epkl.estimate or 0) / predicted
    metrics["epkl_over_predicted"] = Metric(estimate=ratio, low=ratio * 0.97, high=ratio * 1.04, n=epkl.n)
    return CheckpointResult(
        name=name, path=f"runs/{name}/model.pt", sha256="ab" * 32, n_parameters=1_234_567,
        architecture="MLP(64, 128, 10)", training={"alpha": noise, "epochs": 30, "seed": 0}, strategy="vmap",
        sites=[SiteRecord(path=p, ordinal=0, kind="dropout", rate=q, mask_shape=[128]) for p, q in SITES],
        metrics=metrics, reliability=bins, convergence=convergence(run), site_predictions=predictions(predicted),
    )  # fmt: skip


def convergence(run: dict[str, Any]) -> list[ConvergencePoint]:
    points = []
    for k in (2, 4, 8, 16, 32):
        mean = float(columns(run | {"sub": run["sub"][:, :k]}, labels=False)["epkl"].mean())
        half = mean * 0.5 / k
        points.append(ConvergencePoint(sub_models=k, estimate=mean, low=mean - half, high=mean + half))
    return points


def predictions(total: float) -> list[SitePrediction]:
    shares = [0.15, 0.22, 0.63]
    rows = [
        SitePrediction(site=path, predicted=total * s, low=total * s * 0.9, high=total * s * 1.1, share=s)
        for (path, _), s in zip(SITES, shares, strict=True)
    ]
    unknown = SitePrediction(site="blocks.0.path", predicted=None, reason="DropPath drops a whole branch")
    return [*rows, unknown]


def compare(reference: str, candidate: str, a: dict[str, Any], b: dict[str, Any]) -> list[Comparison]:
    rows = []
    for name in a:
        d = b[name] - a[name]
        half = 1.96 * d.std(ddof=1) / np.sqrt(len(d))
        ratio = float(b[name].mean() / a[name].mean()) if a[name].mean() else None
        p = float(stats.ttest_1samp(d, 0).pvalue) if d.std() else 1.0
        rows.append(
            Comparison(
                metric=name, reference=reference, candidate=candidate, difference=float(d.mean()),
                low=float(d.mean() - half), high=float(d.mean() + half), ratio=ratio,
                ratio_low=ratio * 0.96 if ratio else None, ratio_high=ratio * 1.04 if ratio else None,
                p_value=p, p_adjusted=min(1.0, 2 * p), test="paired t", unit=unit_of(name), n=len(d),
            )
        )  # fmt: skip
    return rows


def gallery(runs: dict[str, dict[str, Any]], found: dict[str, dict[str, Any]], labels: bool) -> list[Example]:
    first = next(iter(found.values()))["epkl"]
    return [example(int(i), runs, found, labels) for i in np.argsort(-first)[:8]]


def example(i: int, runs: dict[str, dict[str, Any]], found: dict[str, dict[str, Any]], labels: bool) -> Example:
    votes = {}
    for name, run in runs.items():
        counts = np.bincount(run["sub"][i].argmax(-1), minlength=CLASSES) / SUB_MODELS
        votes[name] = {str(c): float(counts[c]) for c in np.argsort(-counts) if counts[c]}
    pixels = (255 * np.random.default_rng(i).beta(0.4, 0.6, size=(8, 8))).astype(np.uint8)
    return Example(
        index=i, label=str(next(iter(runs.values()))["labels"][i]) if labels else None, votes=votes,
        predictions={name: str(run["eval"][i].argmax()) for name, run in runs.items()},
        epkl={name: float(f["epkl"][i]) for name, f in found.items()},
        input=ExampleInput(kind="image", shape=[8, 8], pixels=base64.b64encode(pixels.tobytes()).decode()),
    )  # fmt: skip


def sample(
    names: tuple[str, ...] = ("baseline", "rdrop"), *, labels: bool = True, examples: int = 400, notes: bool = False
) -> Sample:
    """A record and its per-example table; noise shrinks from the first checkpoint to the last."""
    noises = np.linspace(1.2, 0.5, len(names))
    runs = {n: simulate(float(s), examples, seed=i) for i, (n, s) in enumerate(zip(names, noises, strict=True))}
    found = {name: columns(run, labels) for name, run in runs.items()}
    record = RunRecord(
        schema_version=1,
        tool={"name": "rdrop-analysis", "version": "0.1.0"}, created="2025-01-01T12:00:00Z", seconds=12.3,
        environment={"python": "3.11.7", "torch": "2.10.0", "cpu": True, "device": None},
        config={"sub_models": SUB_MODELS, "seed": 0, "masks": "per-example", "batch_size": 64, "limit": None,
                "task": "classification", "probes": ["pairwise_kl", "gap"], "unit": "nats", "level": 0.95},
        data=DataRecord(
            source="digits", n_examples=examples, n_classes=CLASSES, has_labels=labels, fingerprint="cd" * 32
        ),
        checkpoints=[checkpoint(n, float(s), runs[n], found[n], labels) for n, s in zip(names, noises, strict=True)],
        reference=names[0] if len(names) > 1 else None,
        comparisons=[c for n in names[1:] for c in compare(names[0], n, found[names[0]], found[n])],
        examples=gallery(runs, found, labels),
        warnings=[Finding(code="dirty-eval", message="two passes differ", checkpoint=names[0])] if notes else [],
        failures=[Failure(checkpoint="broken.pt", message="not a checkpoint", exit_code=4)] if notes else [],
    )  # fmt: skip
    return record, pd.concat([frame(n, runs[n], found[n], labels) for n in names], ignore_index=True)


def frame(name: str, run: dict[str, Any], found: dict[str, Any], labels: bool) -> pd.DataFrame:
    count = len(run["labels"])
    head = {"checkpoint": name, "example": np.arange(count), "prediction": run["eval"].argmax(-1)}
    return pd.DataFrame(head | ({"label": run["labels"]} if labels else {"label": None}) | found)


def without_dropout(record: RunRecord) -> RunRecord:
    """The same record from models that draw nothing: exact zeros and no intervals."""
    zero = {"epkl", "flip_rate", "disagreement", "kl_sub_to_eval", "kl_eval_to_sub", "kl_mean_to_eval"}
    checkpoints = [
        replace(
            c, stochastic=False, sites=[], site_predictions=[], convergence=[],
            metrics={k: replace(m, estimate=0.0, low=None, high=None, mask_low=None, mask_high=None) if k in zero else m
                     for k, m in c.metrics.items()},
        )
        for c in record.checkpoints
    ]  # fmt: skip
    return replace(record, checkpoints=checkpoints)


def without_intervals(record: RunRecord) -> RunRecord:
    """The same record from a single example: estimates without bounds."""
    bare = {"low": None, "high": None, "mask_low": None, "mask_high": None}
    checkpoints = [
        replace(c, metrics={k: replace(m, **bare) for k, m in c.metrics.items()}) for c in record.checkpoints
    ]
    gone = {"low": None, "high": None, "ratio_low": None, "ratio_high": None, "p_value": None, "p_adjusted": None}
    return replace(record, checkpoints=checkpoints, comparisons=[replace(c, **gone) for c in record.comparisons])
