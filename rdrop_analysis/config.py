"""Options from files: `[tool.rdrop-analysis]` in ./pyproject.toml, and an `rdrop.toml` beside the checkpoint."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from rdrop_analysis.commands.options import NameList
from rdrop_analysis.errors import UnsafeFileError, UsageError

OWN_FILE = "rdrop.toml"
TABLE = "rdrop-analysis"
NOT_FROM_FILES = frozenset({"checkpoints", "groups", "trust_code"})


def fill_from_files(
    ctx: click.Context,
    given: Mapping[str, Any],
    checkpoints: Sequence[Path],
    *,
    trust_code: bool,
    ignore_others: bool = False,
) -> dict[str, Any]:
    """Options with those that were not given on the command line taken from files, the nearest first.

    With `ignore_others` the files may have options that this command does not know.

    Raises:
        UsageError: a file is not TOML, or has an option that does not exist or does not fit.
        UnsafeFileError: an rdrop.toml outside the current directory names code to run or where to write,
            without `trust_code`.
    """
    settings = dict(given)
    first = checkpoints[0]
    for path, table in _tables([first.parent, first] if first.is_dir() else [first.parent]):
        for key, value in table.items():
            if ignore_others and key not in given:
                continue
            parameter = _parameter(ctx, path, key)
            name = parameter.name or ""
            if name in settings and ctx.get_parameter_source(name) is ParameterSource.DEFAULT:
                value = _in_place(path, name, value)
                _check_trusted(path, name, value, trust_code=trust_code)
                settings[name] = _converted(ctx, parameter, path, key, value)
    return settings


def _tables(places: Sequence[Path]) -> list[tuple[Path, dict[str, Any]]]:
    """Tables that apply, the farthest first so that the nearer ones are written over them."""
    tables = []
    project = Path("pyproject.toml")
    if project.is_file():
        tools = _read(project).get("tool", {})
        table = tools.get(TABLE, {}) if isinstance(tools, dict) else {}
        if not isinstance(table, dict):
            raise UsageError(f"{project}: tool.{TABLE} must be a table of options")
        tables.append((project, table))
    owns = [place / OWN_FILE for place in places]
    return tables + [(own, _read(own)) for own in owns if own.is_file()]


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise UsageError(f"{path} cannot be read: {problem}") from problem


def _parameter(ctx: click.Context, path: Path, key: str) -> click.Parameter:
    by_key = {
        option.lstrip("-"): parameter
        for parameter in ctx.command.params
        for option in parameter.opts
        if option.startswith("--") and parameter.name not in NOT_FROM_FILES
    }
    if key not in by_key:
        raise UsageError(f"{path}: there is no option {key!r}: choose from {', '.join(sorted(by_key))}")
    return by_key[key]


def _in_place(path: Path, name: str, value: Any) -> Any:
    """Files that are named relative to the configuration file, as paths from here."""
    if name not in ("model", "data") or not isinstance(value, str):
        return value
    place, colon, rest = value.partition(":")
    near = path.parent / place
    return f"{near}{colon}{rest}" if near.is_file() else value


def _check_trusted(path: Path, name: str, value: Any, *, trust_code: bool) -> None:
    """A directory somebody else made must not get its code run by lying around: only the current one may."""
    is_elsewhere = not trust_code and path.parent.resolve() != Path.cwd()
    if is_elsewhere and name in ("output", "junit", "log_to"):
        option = name.replace("_", "-")
        raise UnsafeFileError(f"{path} chooses where to write ({value!r}): pass --{option} yourself, or --trust-code")
    is_code = name in ("model", "data") and isinstance(value, str) and ":" in value and not _is_built_in(value)
    if is_code and is_elsewhere:
        raise UnsafeFileError(
            f"{path} names code to run ({name} = {value!r}): pass --{name} yourself, or --trust-code if it is yours"
        )


def _is_built_in(value: str) -> bool:
    from rdrop_analysis.data.builtin import BUILT_IN

    return value in BUILT_IN


def _converted(ctx: click.Context, parameter: click.Parameter, path: Path, key: str, value: Any) -> Any:
    several = isinstance(parameter, click.Option) and parameter.multiple
    if isinstance(value, list) and not (several or isinstance(parameter.type, NameList)):
        raise UsageError(f"{path}: {key} takes one value, not a list")
    is_flag = isinstance(parameter, click.Option) and parameter.is_flag
    if several:
        value = [str(one) for one in (value if isinstance(value, list) else [value])]
    elif not is_flag and not isinstance(value, list):
        value = str(value)  # as it would stand on the command line, so that true is no 1 and 1.5 no 1
    try:
        return parameter.type_cast_value(ctx, value)
    except click.BadParameter as problem:
        raise UsageError(f"{path}: {key}: {problem.message}") from problem
