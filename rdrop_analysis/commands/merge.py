"""`rdrop-analyze merge DIR...`: put the shards of a run together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from rdrop_analysis.commands.analyze import analyze
from rdrop_analysis.commands.options import NameList, model_and_data, trust, verbosity
from rdrop_analysis.errors import DataError, UnsafeFileError
from rdrop_analysis.files import FORMATS, printable


@click.command()
@click.argument("directories", nargs=-1, required=True, metavar="DIR...", type=click.Path(path_type=Path))
@model_and_data
@click.option(
    "--output", metavar="DIR", type=click.Path(file_okay=False, path_type=Path), help="Default: the first of them."
)
@click.option("--format", "formats", type=NameList(FORMATS), help="What to write. Default: as for the shards.")
@click.option("--unit", type=click.Choice(["nats", "bits"]), help="Default: as for the shards.")
@trust
@verbosity
@click.pass_context
def merge(
    ctx: click.Context, /, directories: tuple[Path, ...], output: Path | None, trust_code: bool, **given: Any
) -> None:
    """Put the shards of a run (`rdrop-analyze CHECKPOINT... --shard I/N`) together and write its results.

    DIR is where shards were written: one directory for all of them, or several. Options are those of
    the shards; checkpoints and data are read again, and no sub-model is run. Shards may come from
    different machines, whose numbers are equal up to rounding. What the shards left stays.

    Code that the shards were measured with (such as --model net.py:Net) is to be named again, or
    trusted with --trust-code.
    """
    from rdrop_analysis.commands.running import run

    stored = _stored(directories)
    options = stored | {name: value for name, value in given.items() if value is not None}
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
    from rdrop_analysis.journal import decode, encode, journals

    items: Counter[bytes] = Counter()
    for stored in (stored for directory in directories for stored in journals(directory)):
        items[encode(stored.header.options)] += len(stored.places)
    if not items:
        where = ", ".join(map(str, directories))
        raise DataError(f"nothing to merge in {where}: run rdrop-analyze CHECKPOINT... --shard I/N --output DIR first")
    texts = decode(items.most_common(1)[0][0])
    names = {parameter.name: parameter.opts[-1] for parameter in analyze.params if isinstance(parameter, click.Option)}
    try:
        pairs = [part for name, text in texts.items() if name in names for part in (names[name], text)]
        with analyze.make_context("merge", [*pairs, "--", *texts["checkpoints"]]) as parsed:
            unwanted = ("trust_code", "quiet", "verbose")
            return {name: value for name, value in parsed.params.items() if name not in unwanted}
    except (click.UsageError, KeyError, TypeError) as problem:
        reason = problem.format_message() if isinstance(problem, click.UsageError) else problem
        raise DataError(f"{directories[0]}: the options of its shards cannot be read: {printable(reason)}") from problem


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
