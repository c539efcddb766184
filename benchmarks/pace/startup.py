"""How long it takes from the command line to the first batch of a small checkpoint."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from pace.document import Document, seconds
from rdrop_analysis.checkpoints import save_checkpoint
from rdrop_analysis.models import build

HERE = Path(__file__).parents[1]
ARGUMENTS = {"in_features": 64, "hidden": [256, 256], "n_classes": 10, "dropout": 0.3}


def start_up(document: Document, runs: int) -> None:
    """Time whole commands beside one that only imports torch."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "small.pt"
        torch.manual_seed(0)
        save_checkpoint(path, build("mlp", ARGUMENTS), architecture="mlp", arguments=ARGUMENTS, data="digits")
        found = _in_turns(_commands(path), runs)
    base = found["import torch"]
    document.section("Starting up", "Whole processes, in turns; an MLP on scikit-learn's digits.")
    document.table(
        ["command", "median", "beyond importing torch"],
        ([f"`{name}`", seconds(value), seconds(value - base) if value > base else ""] for name, value in found.items()),
    )
    planned = found["rdrop-analyze sites small.pt"] - base
    document.sentences([f"Importing, loading and finding the sites take {seconds(planned)} beyond importing torch."])


def _commands(path: Path) -> dict[str, list[str]]:
    here = [sys.executable, "-c", "from rdrop_analysis.cli import main; main()"]
    least = ["--limit", "2", "--sub-models", "2", "--probes", "pairwise_kl", "--format", "json", "-q"]
    output = ["--output", str(path.parent / "report")]
    return {
        "import torch": [sys.executable, "-c", "import torch"],
        "rdrop-analyze --help": [*here, "--help"],
        "rdrop-analyze sites small.pt": [*here, "sites", str(path)],
        "rdrop-analyze small.pt": [*here, str(path), *output],
        f"rdrop-analyze small.pt {' '.join(least)}": [*here, str(path), *least, *output],
    }


def _in_turns(commands: dict[str, list[str]], runs: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, cwd=HERE, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - ours
            taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}
