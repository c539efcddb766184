"""Time until the mean EPKL is known to 5%, on models trained on real data: a larger K is not the same as being sure."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pace.document import Document, number, seconds, times
from rdrop_analysis import Results, analyze, train

TAGGER = Path(__file__).parents[2] / "examples" / "train_tagger.py"
TOLERANCE = 0.05
USUAL = "K = 32"
AUTO = "auto"
WAYS: dict[str, dict[str, Any]] = {
    AUTO: {"sub_models": "auto", "tolerance": TOLERANCE},
    **{f"K = {count}": {"sub_models": count} for count in (4, 8, 32)},
}
Trained = tuple[Path, Path | None]  # a checkpoint, and its data unless it names them


@dataclass(frozen=True)
class Known:
    """What one way of choosing K led to: seconds of its runs, and half of the intervals' width relative to the EPKL."""

    seconds: list[float]
    n: int
    epkl: float
    new_data: float
    same_data: float | None


def certainty(document: Document, corpus: Path | None, runs: int, *, quick: bool) -> None:
    """The tables for Fashion-MNIST and, if its directory is given, the Brown corpus."""
    document.section(
        "Time to an interval of 5%",
        "Whole runs of `analyze` with the probe `pairwise_kl`, in turns, on models that were trained for one epoch.",
        "Half the width of the 95% interval for the mean EPKL is given relative to it: for new data, where examples",
        "vary as well as masks, and for the same data, where masks alone do.",
    )
    limit = 50 if quick else None
    with tempfile.TemporaryDirectory() as directory:
        images = _fashion_mnist(Path(directory), 2000 if quick else 20_000)
        _table(document, "Fashion-MNIST, a CNN", images, runs, limit)
        if corpus is None:
            document.say("Brown corpus: not run, for want of its directory (`--brown`).", "")
        else:
            _table(
                document, "Brown corpus, a tagger", _brown(Path(directory), corpus, 500 if quick else 3000), runs, limit
            )


def _fashion_mnist(directory: Path, limit: int) -> Trained:
    path = directory / "fashion-mnist.pt"
    train("fashion-mnist", alpha=0, epochs=1, limit=limit, output=path)
    return path, None


def _brown(directory: Path, corpus: Path, sentences: int) -> Trained:
    options = ["--alpha", "0", "--epochs", "1", "--sentences", str(sentences), "--corpus", str(corpus.resolve())]
    command = [sys.executable, str(TAGGER), str(directory / "tagger"), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - ours
    return directory / "tagger", directory / "test.jsonl"


def _table(document: Document, title: str, trained: Trained, runs: int, limit: int | None) -> None:
    """Every way on one model, on the first `limit` examples."""
    path, data = trained
    ways = {name: _measuring(path, data, given | {"limit": limit}) for name, given in WAYS.items()}
    found = _in_turns(ways, runs)
    usual = statistics.median(found[USUAL].seconds)
    document.say(f"### {title}", "", f"N = {next(iter(found.values())).n}.", "")
    head = ["", "median", f"of {USUAL}", "EPKL (nats)", "new data, half width", "same data, half width"]
    document.table(head, (_row(name, known, usual) for name, known in found.items()))
    auto = found[AUTO]
    ratio = usual / statistics.median(auto.seconds)
    width = "no interval" if auto.same_data is None else f"{auto.same_data:.1%} over masks"
    document.sentences([f"`auto` came to {width} (asked for {TOLERANCE:.0%}) {times(ratio)} sooner than {USUAL}."])


def _row(name: str, known: Known, usual: float) -> list[str]:
    taken = statistics.median(known.seconds)
    widths = ("" if width is None else f"{width:.1%}" for width in (known.new_data, known.same_data))
    return [name, seconds(taken), times(taken / usual), number(known.epkl), *widths]


def _measuring(path: Path, data: Path | None, given: Mapping[str, Any]) -> Callable[[], Results]:
    return lambda: analyze(path, data, probes="pairwise_kl", **given)


def _in_turns(ways: Mapping[str, Callable[[], Results]], runs: int) -> dict[str, Known]:
    taken: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, Results] = {}
    next(iter(ways.values()))()  # to warm up
    for _ in range(runs):
        for name, way in ways.items():
            started = time.perf_counter()
            results[name] = way()
            taken[name].append(time.perf_counter() - started)
    return {name: _known(taken[name], results[name]) for name in ways}


def _known(taken: list[float], results: Results) -> Known:
    metric = results.record.checkpoints[0].metrics["epkl"]
    if metric.low is None or metric.high is None or metric.estimate is None:
        raise ValueError("there is no interval for the EPKL")
    new_data = (metric.high - metric.low) / 2 / metric.estimate
    masks = None if metric.mask_low is None or metric.mask_high is None else metric.mask_high - metric.mask_low
    return Known(taken, metric.n, metric.estimate, new_data, None if masks is None else masks / 2 / metric.estimate)
