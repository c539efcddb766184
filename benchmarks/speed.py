"""How fast: ours, the plain loop, a peer and the floor side by side in one run, and how time and memory grow.

Usage: python benchmarks/speed.py [--peer-python PYTHON] [--output benchmarks/RESULTS.md]

baal, the peer, cannot be installed beside us: PYTHON is the interpreter of an environment that has baal,
torchmetrics, transformers and the same torch (and no torchvision that fails on import).
"""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

import click
import torch
from pace.certainty import certainty
from pace.document import Document
from pace.drawing import masks
from pace.growth import growth, share_of_sums
from pace.machine import description
from pace.models import CASES, SIDE_BY_SIDE
from pace.profiling import show_profile
from pace.side_by_side import side_by_side
from pace.startup import start_up

from rdrop_probes.memory import keep_freed_memory

PARTS = ("models", "masks", "growth", "sums", "start", "certainty")
QUICK_MODELS = ("cnn-last", "mlp", "bert-sdpa", "lstm")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), default=PARTS, help="Only this; repeatable.")
@click.option("--model", "models", multiple=True, type=click.Choice(list(CASES)), help="Only this; repeatable.")
@click.option("--sub-models", type=click.IntRange(min=2), help="K side by side.  [default: 32, quick: 8]")
@click.option("--seconds", type=float, help="For each contender on a model.  [default: 3, quick: 0.3]")
@click.option("--threads", type=click.IntRange(min=1), help="Of torch.  [default: torch's own]")
@click.option("--peer-python", type=click.Path(exists=True, path_type=Path), help="Interpreter that has the peer.")
@click.option("--brown", type=click.Path(exists=True, path_type=Path), help="Directory with ca01 ... cr09 of Brown.")
@click.option("--quick", is_flag=True, help="Small sizes: to see that it runs, not how fast.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Markdown file to write at the end.")
@click.option("--profile", type=click.Choice(list(CASES)), help="Only print where the time goes on a model.")
def main(
    parts: tuple[str, ...],
    models: tuple[str, ...],
    sub_models: int | None,
    seconds: float | None,
    threads: int | None,
    peer_python: Path | None,
    brown: Path | None,
    quick: bool,
    output: Path | None,
    profile: str | None,
) -> None:
    """Time measurements side by side, and see time and memory grow."""
    torch.set_num_threads(threads or torch.get_num_threads())
    keep_freed_memory()
    count = sub_models or (8 if quick else 32)
    if profile is not None:
        show_profile(Document(), profile, count)
        return
    document, started = Document(), time.monotonic()
    heading(document)
    if "models" in parts:
        names = models or (QUICK_MODELS if quick else SIDE_BY_SIDE)
        side_by_side(document, names, count, seconds or (0.3 if quick else 3.0), peer_python, small=quick)
    if "masks" in parts:
        masks(document, size=2**14 if quick else 2**18)
    if "growth" in parts:
        growth(document, quick=quick)
    if "sums" in parts:
        share_of_sums(document, ("gpt2-256",) if quick else ("gpt2-256", "gpt2-768", "gpt2-small"), quick=quick)
    if "start" in parts:
        start_up(document, runs=1 if quick else 3)
    if "certainty" in parts:
        certainty(document, brown, runs=1 if quick else 3, quick=quick)
    document.say(f"The run took {(time.monotonic() - started) / 60:.1f} minutes.")
    if output is not None:
        output.write_text("\n".join(document.lines) + "\n", encoding="utf-8")


def heading(document: Document) -> None:
    """What made the numbers, and where."""
    document.say("# Speed", "", f"Made by `python benchmarks/speed.py {_arguments(sys.argv[1:])}`.", "")
    document.say(*(f"- {name}: {value}" for name, value in description()), "")


def _arguments(given: list[str]) -> str:
    """The command's arguments, with names for the places that are this machine's own."""
    names = {"--peer-python": "PYTHON", "--brown": "DIRECTORY"}
    return shlex.join(names.get(before, argument) for before, argument in zip(["", *given], given, strict=False))


if __name__ == "__main__":
    main()
