"""What `analyze` and `merge` share: run in the right place, write and print, end with the right exit code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rdrop_analysis.commands.options import factory
from rdrop_analysis.errors import INTERRUPTED

if TYPE_CHECKING:
    from rdrop_analysis.results import Results
    from rdrop_analysis.work import Place

OF_ONE_PROCESS = frozenset({"output", "quiet", "shard", "junit", "log_to"})


def run(
    ctx: click.Context,
    checkpoints: Sequence[str],
    settings: Mapping[str, Any],
    *,
    trust_code: bool,
    merged_from: Sequence[Path] = (),
) -> None:
    """Analyse with `settings`, the options of `analyze`, alone or with the workers that torchrun started."""
    from rdrop_analysis.work import Place
    from rdrop_analysis.workers import Team, Torchrun, started_by_torchrun
    from rdrop_probes.memory import keep_freed_memory

    keep_freed_memory()
    place = Place(
        team=Torchrun(cuda=settings["device"].startswith("cuda")) if started_by_torchrun() else Team(),
        directories=merged_from or (settings["output"],),
        shard=settings["shard"],
        stored_only=bool(merged_from),
        options={"checkpoints": list(checkpoints), **as_texts(settings)},
        say=lambda text: None if settings["quiet"] else click.echo(text, err=True),
    )
    try:
        codes = place.team.meet(_run(place, checkpoints, dict(settings), trust_code=trust_code))
    except Exception as problem:
        agreed = place.team.agree(problem)
        if agreed is problem:
            raise
        raise agreed from problem
    ctx.exit(codes[0])


def as_texts(settings: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """Options as they would stand on the command line, of those that were given and are not of one process alone.

    An option that can be given several times, which click makes a tuple of, is a list of texts.
    """
    return {
        name: [str(one) for one in value] if isinstance(value, tuple) else _as_text(value)
        for name, value in settings.items()
        if value is not None and value != () and name not in OF_ONE_PROCESS
    }


def _as_text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _run(place: Place, checkpoints: Sequence[str], settings: dict[str, Any], *, trust_code: bool) -> int:
    """Measure, and where the numbers come together deliver them; the exit code."""
    from rdrop_analysis.commands.delivery import Delivery
    from rdrop_analysis.grouping import line_up
    from rdrop_probes.items import PartDone

    delivery = Delivery.taken_from(settings)
    del settings["shard"]
    lineup = line_up(list(checkpoints), settings["groups"])
    delivery.check([*lineup.groups, *(entry.name for entry in lineup.entries)], leads=place.team.leads)
    try:
        results = _results(place, checkpoints, settings, trust_code=trust_code, quiet=delivery.quiet)
    except PartDone:
        if place.team.leads and not delivery.quiet:
            _say_where_the_shard_is(place, delivery.directory)
        return 0
    except KeyboardInterrupt:
        _say_what_is_kept(place, delivery.directory)
        raise
    try:
        code = delivery.deliver(results, clear=True)
    except KeyboardInterrupt:
        _say_what_is_kept(place, delivery.directory)
        raise
    if code == INTERRUPTED:
        _say_what_is_kept(place, delivery.directory)
    return code


def _results(
    place: Place, checkpoints: Sequence[str], settings: dict[str, Any], *, trust_code: bool, quiet: bool
) -> Results:
    from rdrop_analysis.analysis import analyze
    from rdrop_analysis.terminal import progress_bars

    build = factory(settings.pop("model"))
    with progress_bars(quiet=quiet or not place.team.leads) as progress:
        return analyze(
            list(checkpoints),
            model=build,
            progress=progress,
            keep_going=True,
            trust_code=trust_code,
            place=place,
            **settings,
        )


def _say_where_the_shard_is(place: Place, directory: Path) -> None:
    number, of = place.shard
    where = f"is in {directory}" if _has_journals(directory) else "has no work items, of which there are fewer"
    click.echo(f"shard {number} of {of} {where}: when all are done, rdrop-analyze merge {directory}")


def _has_journals(directory: Path) -> bool:
    from rdrop_analysis.journal import FOLDER, SUFFIX

    return any((directory / FOLDER).glob(f"*/*{SUFFIX}"))


def _say_what_is_kept(place: Place, directory: Path) -> None:
    if place.team.leads and _has_journals(directory):
        place.say(f"what was finished is kept in {directory}: the same command goes on from it")
