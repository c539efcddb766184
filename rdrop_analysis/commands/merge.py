"""`rdrop-analyze merge DIR...`: put the shards of a run together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from rdrop_analysis.commands.analyze import analyze
from rdrop_analysis.commands.options import NameList, delivery, model_and_data, trust, unit_shown, verbosity
from rdrop_analysis.errors import DataError, UnsafeFileError
from rdrop_analysis.files import FORMATS, printable

OF_NUMBERS = ("seed", "sub_models", "tolerance", "masks", "strategy", "probes", "task", "limit", "memory", "precision")
MOST = 4  # values of an option that are shown


@click.command(short_help="Put the shards of a run together.")
@click.argument("directories", nargs=-1, required=True, metavar="DIR...", type=click.Path(exists=True, path_type=Path))
@model_and_data
@click.option(
    "--output", metavar="DIR", type=click.Path(file_okay=False, path_type=Path), help="Default: the first of them."
)
@click.option("--format", "formats", type=NameList(FORMATS), help="What to write. Default: as for the shards.")
@unit_shown(None, "as for the shards")
@click.option("--device", default="cpu", show_default=True, help="Where models are looked at: cpu, cuda, ...")
@delivery
@trust
@verbosity
@click.pass_context
def merge(
    ctx: click.Context, /, directories: tuple[Path, ...], output: Path | None, trust_code: bool, **given: Any
) -> None:
    """Put the shards of a run (`rdrop-analyze CHECKPOINT... --shard I/N`) together and write its results.

    DIR is where shards were written: one directory for all of them, or several. Options are those of
    the shards; checkpoints and data are read again, and only a few passes are run, by which it is seen
    that models are those of the shards. Shards may come from different machines, whose numbers are
    equal up to rounding. What the shards left stays.

    Code that the shards were measured with (such as --model net.py:Net) is to be named again, or
    trusted with --trust-code.
    """
    from rdrop_analysis.commands.running import run

    stored = _stored(directories)
    options = stored | {name: value for name, value in given.items() if value not in (None, ())}
    if not trust_code:
        _check_code(directories[0], {name: options.get(name) for name in ("model", "data") if given[name] is None})
    checkpoints = [str(path) for path in options.pop("checkpoints")]
    run(
        ctx, checkpoints, options | {"output": output or directories[0]}, trust_code=trust_code, merged_from=directories
    )


def _stored(directories: Sequence[Path]) -> dict[str, Any]:
    """The options of the shards (of most work items, where they differ), read as the command line would be.

    Raises:
        DataError: there are no shards, or their options are none.
    """
    texts = _texts(directories)
    names = {
        parameter.name: parameter.opts[-1]
        for parameter in analyze.params
        if isinstance(parameter, click.Option) and not parameter.is_flag
    }
    try:
        pairs = [part for name, text in texts.items() if name in names for part in _given(names[name], text)]
        with analyze.make_context("merge", [*pairs, "--", *texts["checkpoints"]]) as parsed:
            unwanted = ("trust_code", "quiet", "verbose")
            return {name: value for name, value in parsed.params.items() if name not in unwanted}
    except (click.UsageError, KeyError, TypeError) as problem:
        reason = problem.format_message() if isinstance(problem, click.UsageError) else problem
        raise DataError(f"{directories[0]}: the options of its shards cannot be read: {printable(reason)}") from problem


def _given(option: str, text: str | list[str]) -> list[str]:
    """An option on the command line, as often as it was given."""
    return [part for one in (text if isinstance(text, list) else [text]) for part in (option, str(one))]


def _texts(directories: Sequence[Path]) -> dict[str, Any]:
    """The options of the shards as texts; of unfinished runs only where there are no shards.

    Raises:
        DataError: there are none, or those of several runs.
    """
    from rdrop_analysis.journal import journals

    found = [stored for directory in directories for stored in journals(directory) if stored.header.options]
    found = [stored for stored in found if stored.header.shard[1] > 1] or found
    where = ", ".join(map(str, directories))
    if not found:
        raise DataError(f"nothing to merge in {where}: run rdrop-analyze CHECKPOINT... --shard I/N --output DIR first")
    several = [stored.header.options for stored in found]
    if other := [f"{name} ({_values(name, several)})" for name in OF_NUMBERS if len(_distinct(name, several)) > 1]:
        text = f"{where} has shards of several runs, with other {', '.join(other).replace('_', ' ')}"
        raise DataError(f"{text}: measure each with an --output of its own")
    items: Counter[int] = Counter()
    for stored in found:
        items[several.index(stored.header.options)] += len(stored.places)
    return several[items.most_common(1)[0][0]]


def _distinct(name: str, several: Sequence[Mapping[str, object]]) -> set[str]:
    return {str(options.get(name, "not given")) for options in several}


def _values(name: str, several: Sequence[Mapping[str, object]]) -> str:
    return ", ".join(printable(value, 20) for value in sorted(_distinct(name, several))[:MOST])


def _check_code(directory: Path, named: Mapping[str, str | None]) -> None:
    """What a directory names is not run because it lies there.

    Raises:
        UnsafeFileError: it names code.
    """
    from rdrop_analysis.data.builtin import BUILT_IN

    for option, value in named.items():
        if value is not None and ":" in value and value not in BUILT_IN:
            text = f"{directory} names code to run ({option} = {printable(value)!r})"
            raise UnsafeFileError(f"{text}: pass --{option} yourself, or --trust-code if it is yours")
