"""Options that several commands share, and what they are turned into."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rdrop_analysis.files import FORMATS, printable

if TYPE_CHECKING:
    from torch import nn

F = TypeVar("F", bound=Callable[..., Any])

MODEL_HELP = (
    "What builds the module for bare weights: pkg.mod:callable or path/file.py:callable, or timm:NAME?arg=value where"
    " timm is installed. Given a Lightning checkpoint's hyper-parameters by name."
)
DATA_HELP = (
    "What to measure on: digits, fashion-mnist; arrays in a .npz, .pt or .safetensors file with inputs (or x) and"
    " labels (or y); texts in .csv, .tsv, .jsonl, .parquet or .txt, a folder of images or a Hugging Face data set on"
    " disk (DIR or DIR:split), read by the checkpoint's own tokenizer or processor; a table of numbers; or"
    " file.py:callable. Default: what the checkpoint names."
)
TASK_NAMES = ("auto", "classification", "tokens", "causal-lm", "seq2seq", "multi-label", "regression")
TASK_HELP = (
    "What the outputs are: one label an example, one a token (tagging, masked language models), the next token, a"
    " decoder's under teacher forcing, several yes or no, or numbers. auto goes by the checkpoint, else by shapes."
)

GROUP_HELP = (
    "Checkpoints that differ in their training seed alone, such as baseline='runs/base-*.pt': measured like any other,"
    " and compared over seeds. Again for each group, and for more files of one."
)
OVER_HELP = (
    "Draw results over a training setting (alpha, epoch, dropout, ...), read from the checkpoints' settings, else from"
    " their names: alpha-0.5.pt, epoch=3.ckpt."
)

FORMAT_HELP = f"What to write: {', '.join(FORMATS)} (latex and markdown: tables to paste)."
FAIL_IF_HELP = (
    "A gate: exit 1 if it is true, such as 'epkl > 0.05', 'epkl.high > reference.epkl.low' or 'accuracy_gap > 1%'."
    " NAME.METRIC is that of one checkpoint or group, METRIC alone that of every candidate. Divergences are in the unit"
    " shown; shares (accuracy, flips, ECE, their gaps) are fractions, or percents with a % sign. Again for each gate."
)
UNIT_HELP = (
    "What KL, NLL and entropies are told in, everywhere but in results.json, which stays in nats: there, as in"
    " summary.csv, each number has its unit, and per_example.csv has a column for it."
)
LOG_TO_HELP = "Log results to wandb[:PROJECT], mlflow[:EXPERIMENT] or tensorboard[:DIR] too. Again for each."


MOST_MEMORY = 2**62  # bytes


class AutoInt(click.ParamType):  # type: ignore[type-arg] # generic only in the newest click
    """A whole number of at least 1, or `auto`, which is None."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Number or None."""
        if value == "auto":
            return None
        try:
            number = int(value)
        except (TypeError, ValueError):
            number = 0
        if number < 1:
            self.fail(f"{value!r} is neither a whole number of at least 1 nor auto", param, ctx)
        return number


class SubModelCount(click.ParamType):  # type: ignore[type-arg] # generic only in the newest click
    """A whole number of at least 2, or `auto`."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Number or "auto"."""
        if value == "auto":
            return value
        if not re.fullmatch(r"[0-9]{1,6}", str(value)) or int(value) < 2:
            self.fail(f"{value!r} is neither a whole number of at least 2 (and at most 999999) nor auto", param, ctx)
        return int(value)


class Bytes(click.ParamType):  # type: ignore[type-arg] # generic only in the newest click
    """An amount of memory: a number of bytes, or one with K, M, G or T behind it (powers of 1024)."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Number of bytes."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", str(value).strip(), re.IGNORECASE)
        if found is None:
            self.fail(f"{value!r} is no amount of memory: 8G stands for 8 times 1024^3 bytes", param, ctx)
        from rdrop_probes.settings import LEAST_MEMORY

        number, unit = found.groups()
        size = float(number) * 1024 ** " KMGT".index(unit.upper() or " ")
        if not LEAST_MEMORY <= size < MOST_MEMORY:
            text = f"{printable(value, 40)} is not between {LEAST_MEMORY // 2**20}M and {MOST_MEMORY // 2**40}T"
            self.fail(text, param, ctx)
        return int(size)


class NameList(click.ParamType):  # type: ignore[type-arg] # generic only in the newest click
    """Names separated by commas, from a fixed set or any."""

    name = "a,b"

    def __init__(self, allowed: tuple[str, ...] = ()) -> None:
        self.allowed = allowed

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        """List of names."""
        names = value if isinstance(value, list | tuple) else [part.strip() for part in str(value).split(",")]
        unknown = [name for name in names if self.allowed and name not in self.allowed]
        if unknown or not all(names):
            known = f" from {', '.join(self.allowed)}" if self.allowed else ""
            self.fail(f"{(unknown or [value])[0]!r} does not do: give names{known}, separated by commas", param, ctx)
        return list(names)


class Rates(click.ParamType):  # type: ignore[type-arg] # generic only in the newest click
    """Drop probabilities strictly between 0 and 1, separated by commas."""

    name = "Q,Q,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[float]:
        """List of numbers."""
        parts = value if isinstance(value, list | tuple) else str(value).split(",")
        try:
            rates = [float(part) for part in parts]
        except ValueError:
            rates = []
        if not rates or not all(0 < rate < 1 for rate in rates):
            self.fail(f"{value!r} does not do: give rates between 0 and 1, such as 0.05,0.1,0.2", param, ctx)
        return rates


class Shard(click.ParamType):  # type: ignore[type-arg] # generic only in the newest click
    """`I/N`, the I-th of N parts, as two numbers."""

    name = "I/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Two numbers."""
        if isinstance(value, tuple):
            return value
        number, _, of = str(value).partition("/")
        if not re.fullmatch(r"[0-9]{1,6}/[0-9]{1,6}", str(value)) or not 1 <= int(number) <= int(of):
            self.fail(f"{value!r} is no part of a whole: 2/8 is the second of eight", param, ctx)
        return int(number), int(of)


def verbosity(command: F) -> F:
    """`-v` (remembered for errors) and `-q`."""

    def remember(ctx: click.Context, _param: click.Parameter, value: bool) -> bool:
        ctx.meta["verbose"] = value
        if value:
            logging.basicConfig()
            logging.getLogger("rdrop_analysis").setLevel(logging.DEBUG)
        return value

    command = click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")(command)
    return click.option(
        "-v", "--verbose", is_flag=True, callback=remember, expose_value=False, help="Show the traceback of an error."
    )(command)


def model_and_data(command: F) -> F:
    """`--model` and `--data`."""
    command = click.option("--data", metavar="SPEC", help=DATA_HELP)(command)
    return click.option("--model", metavar="SPEC", help=MODEL_HELP)(command)


def task(command: F) -> F:
    """`--task`."""
    option = click.option("--task", type=click.Choice(TASK_NAMES), default="auto", show_default=True, help=TASK_HELP)
    return option(command)


def group_and_over(command: F) -> F:
    """`--group` (repeatable) and `--over`."""

    def expanded(_ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...]:
        from rdrop_analysis.patterns import expand_all

        return expand_all(texts)

    command = click.option("--over", metavar="FIELD", help=OVER_HELP)(command)
    return click.option("--group", "groups", metavar="NAME=GLOB", multiple=True, callback=expanded, help=GROUP_HELP)(
        command
    )


def first_named(checkpoints: Sequence[Path], groups: Sequence[str]) -> Sequence[Path]:
    """The checkpoints, or where there are none those of the groups.

    Raises:
        click.UsageError: there are none at all.
    """
    if not checkpoints and not groups:
        raise click.UsageError("Missing argument 'CHECKPOINT...': name at least one file, or a --group of them.")
    return checkpoints or [Path(text.partition("=")[2]) for text in groups]


def delivery(command: F) -> F:
    """`--style`, `--fail-if` and `--log-to` (repeatable), `--junit`."""
    file = click.Path(dir_okay=False, path_type=Path)
    command = click.option("--log-to", metavar="TRACKER", multiple=True, help=LOG_TO_HELP)(command)
    command = click.option("--junit", metavar="FILE", type=file, help="Write what came of gates as JUnit XML.")(command)
    command = click.option("--fail-if", metavar="EXPR", multiple=True, help=FAIL_IF_HELP)(command)
    text = "Of figures in files: paper is 3.3 inches wide, with serifs. Default: screen."
    return click.option("--style", type=click.Choice(["screen", "paper"]), help=text)(command)


def unit_shown(default: str | None, said: str = "") -> Callable[[F], F]:
    """`--unit`; where it has no default, what is `said` of it."""
    text = f"{UNIT_HELP} Default: {said}." if said else UNIT_HELP
    return click.option(
        "--unit", type=click.Choice(["nats", "bits"]), default=default, show_default=default is not None, help=text
    )


def trust(command: F) -> F:
    """`--trust-code`."""
    text = (
        "Run code that comes with files: pickled modules, TorchScript, exported programs, and what an rdrop.toml in"
        " another directory names."
    )
    return click.option("--trust-code", is_flag=True, help=text)(command)


def output(default: str) -> Callable[[F], F]:
    """`--output DIR`."""
    return click.option(
        "--output",
        metavar="DIR",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path(default),
        show_default=True,
        help="Where results are written.",
    )


def factory(spec: str | None) -> Callable[..., nn.Module] | None:
    """What `--model` names."""
    if spec is None:
        return None
    from rdrop_analysis.factories import resolve

    return resolve(spec)
