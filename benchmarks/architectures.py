"""EPKL of many architectures: as measured here, by brute force, and by tools that patch dropout modules.

Usage: python benchmarks/architectures.py [--output docs/architectures.md]

Brute force is plain train mode (batch normalisation in eval), many passes with torch's own randomness and no
interception: slow and right. The usual recipe for MC dropout switches every dropout module of the eval model on;
baal (an optional peer: `pip install baal`) replaces `nn.Dropout` and `nn.Dropout2d` by versions that are always
on. Both run under `no_grad` with torch's defaults, as such tools do. The models are tiny and have random weights:
those of the tests.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.metadata
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rdrop_probes.batch import Batch
from rdrop_probes.discovery import is_dropout_module
from rdrop_probes.measure import measure
from rdrop_probes.pairwise_kl import PairwiseKL
from rdrop_probes.settings import Settings
from rdrop_probes.statistics import mask_spread

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "probes"))

from hard_models import HARD_CASES
from hugging_face_zoo import ARCHITECTURES
from model_zoo import CASES, brute_force, mean_pairwise_kl, run, with_standard_error

SUB_MODELS, PASSES = 256, 600
SMALL = {
    "MLP": "modules",
    "CNN, Dropout2d and batch norm": "feature maps beside batch norm",
    "F.dropout only": "functional",
    "nn.MultiheadAttention": "multi-head attention",
    "nn.TransformerEncoder (fused in eval)": "transformer encoder",
    "nn.Transformer": "transformer",
    "nn.LSTM, 2 layers": "lstm",
    "nn.GRU, 3 layers": "gru",
    "scaled_dot_product_attention": "scaled dot product attention",
    "stochastic depth, bernoulli_": "stochastic depth",
    "stochastic depth, floor(keep + rand)": "depth by floor",
    "dropped weights": "weights",
    "low-rank adapter": "adapter",
    "Gaussian noise": "gaussian noise",
}


@dataclass(frozen=True)
class Subject:
    """A model with inputs and how class scores [N, C] come of them."""

    name: str
    model: nn.Module
    inputs: Any
    forward: Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Estimate:
    """A mean pairwise KL in nats with its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        """Value and standard error; a plain 0 where every pass gave the same."""
        return "0" if abs(self.value) < 1e-9 else f"{self.value:.3g} ± {self.error:.1g}"


def subjects(seed: int) -> Iterator[Subject]:
    """Every row, each from the same seed."""
    for name, case in ((name, (CASES | HARD_CASES)[key]) for name, key in SMALL.items()):
        _seed(seed)
        yield Subject(name, case.build().eval(), case.inputs(), run)
    for name, architecture in ARCHITECTURES.items():
        _seed(seed)
        yield Subject(name, architecture.build(), architecture.inputs(), architecture.forward)


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - Wav2Vec2 draws from the global one


def here(subject: Subject) -> tuple[Estimate, int]:
    """EPKL as this package measures it, and how many sites it finds."""
    n = len(next(iter(subject.inputs.values()))) if isinstance(subject.inputs, dict) else len(subject.inputs)
    forward = lambda inputs: subject.forward(subject.model, inputs)  # noqa: E731 - shorter than a function
    batch, settings = Batch(subject.inputs, n, 0), Settings(sub_models=SUB_MODELS)
    found = measure(subject.model, [batch], forward=forward, probes=[PairwiseKL], settings=settings)
    column = found.columns["epkl"]
    error = mask_spread(column, shared_masks=found.shared_masks).variance ** 0.5
    return Estimate(float(column.values.mean()), float(error)), len(found.plan.sites)


def by_brute_force(subject: Subject) -> Estimate:
    """EPKL of plain train mode."""
    log_p = brute_force(subject.model, subject.inputs, PASSES, subject.forward)
    return Estimate(*with_standard_error(mean_pairwise_kl, log_p))


def by_switching_modules(subject: Subject) -> Estimate:
    """EPKL with every dropout module of the eval model in training mode."""
    subject.model.eval()
    for module in subject.model.modules():
        if is_dropout_module(module):
            module.train()
    found = _of_passes(subject.model, subject)
    subject.model.eval()
    return found


def by_baal(subject: Subject) -> Estimate | None:
    """EPKL of what baal's `patch_module` makes of the eval model; None where baal is not installed."""
    try:
        peer = importlib.import_module("baal.bayesian.dropout")
    except ImportError:
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No layer was modified")  # what the table shows
        return _of_passes(peer.patch_module(copy.deepcopy(subject.model.eval())), subject)


def _of_passes(model: nn.Module, subject: Subject) -> Estimate:
    with torch.no_grad():
        passes = [subject.forward(model, subject.inputs).double().log_softmax(-1) for _ in range(PASSES)]
    return Estimate(*with_standard_error(mean_pairwise_kl, torch.stack(passes)))


def table(seed: int) -> Iterator[str]:
    """The rows of the Markdown table, and what they amount to."""
    yield "| architecture | sites | EPKL here | brute force | z | modules switched on | baal |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    scores = []
    for subject in subjects(seed):
        own, sites = here(subject)
        oracle, switched, peer = by_brute_force(subject), by_switching_modules(subject), by_baal(subject)
        scores.append((own.value - oracle.value) / (own.error**2 + oracle.error**2) ** 0.5)
        cells = [subject.name, sites, own, oracle, f"{scores[-1]:+.1f}", switched, peer or "not installed"]
        yield f"| {' | '.join(map(str, cells))} |"
    within = sum(abs(score) < 3 for score in scores)
    yield ""
    yield f"{within} of {len(scores)} rows agree with brute force within 3 standard errors; the largest |z| is"
    yield f"{max(map(abs, scores)):.1f}."


def heading(command: str) -> str:
    """What the table is, how it was made and where."""
    versions = {name: _version(name) for name in ("torch", "transformers", "baal")}
    software = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return f"""# Every architecture against brute force

Made by `{command}` on {platform.system()} {platform.machine()} (CPU), Python {platform.python_version()}, {software}.

EPKL in nats ± standard error over masks, on tiny models with random weights: {SUB_MODELS} sub-models here,
{PASSES} passes for the others. *Brute force* is plain train mode with batch normalisation in eval, without any
interception. *Modules switched on* is the usual recipe for MC dropout, every dropout module of the eval model in
training mode; *baal* is that package's `patch_module`. z is the difference to brute force in standard errors.
Attention of Hugging Face models is eager or sdpa.
"""


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Print the table, or write it to a file."""
    parser = argparse.ArgumentParser(description="EPKL of many architectures, here and by others.")
    parser.add_argument("--output", type=Path, help="Markdown file to write; else the table is printed.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the models are too small to share out
    lines = []
    for line in table(options.seed):
        lines.append(line)
        print(line, flush=True)
    if options.output:
        command = f"python benchmarks/architectures.py --output {options.output.as_posix()}"
        options.output.write_text(heading(command) + "\n" + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
