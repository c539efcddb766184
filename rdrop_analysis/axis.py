"""What checkpoints are laid out over (`--over alpha`, `--over epoch`): read from their metadata or their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path

from rdrop_analysis.errors import RDropAnalysisError, UsageError
from rdrop_analysis.files import printable
from rdrop_analysis.loading.descriptions import Scalar, checked_description
from rdrop_analysis.loading.lightning import plain_settings
from rdrop_analysis.loading.stored import read_stored
from rdrop_analysis.subjects import Entry
from rdrop_probes.records import Axis, CheckpointResult, Finding

NUMBER = r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"


def constant(axis: Axis | None) -> list[Finding]:
    """What the reader has to know where nothing is drawn over the axis."""
    if axis is None or len(set(axis.values.values())) > 1:
        return []
    value = next(iter(axis.values.values()))
    where = "in every checkpoint" if len(axis.values) > 1 else "in the only checkpoint"
    text = f"{printable(axis.name, 30)} is {value:g} {where}: nothing to draw over"
    return [Finding(code="constant_axis", message=text)]


def axis_of(field: str, checkpoints: Sequence[CheckpointResult]) -> Axis:
    """The axis that all checkpoints lie on.

    Raises:
        UsageError: one of them has no number of that name.
    """
    found = [(c, value_of(field, c.training, c.name, c.path or "")) for c in checkpoints]
    return Axis(name=field, values={c.name: _there(field, c.name, value, c.training) for c, value in found})


def value_of(field: str, training: Mapping[str, Scalar], *names: str) -> float | None:
    """A number that a checkpoint was trained with: from its settings, else from a name, else from their plural.

    The plural comes last: a file called `epoch=3.ckpt` may say that it was planned for 100 `epochs`.
    """
    known = {_plain(key): value for key, value in training.items()}
    wanted = _plain(field)
    if (exact := _number(known.get(wanted))) is not None:
        return exact
    found = (number_in(name, field) for name in names)
    named = next((value for value in found if value is not None), None)
    other = wanted.removesuffix("s") if wanted.endswith("s") else f"{wanted}s"
    return _number(known.get(other)) if named is None else named


def number_in(name: str, field: str) -> float | None:
    """The number that follows a field in a name, such as `alpha-0.5`, `alpha=0.5` or `epoch3`; the last of several."""
    words = r"[-_ ]?".join(map(re.escape, re.split(r"[-_ ]", field)))
    found = re.findall(rf"(?<![^\W\d_]){words}[-_= ]?({NUMBER})", name, re.IGNORECASE)
    return float(found[-1]) if found else None


def check_axis(field: str, entries: Sequence[Entry], *, trust_code: bool) -> None:
    """See that every checkpoint has a value before any is measured; one that cannot be read is not complained of here.

    Raises:
        UsageError: one of them has none, or there is no field.
    """
    if not field.strip():
        raise UsageError("--over takes the name of a training setting, such as alpha or epoch")
    for entry in entries:
        path = str(entry.model) if isinstance(entry.model, str | Path) else ""
        if value_of(field, {}, entry.name, path) is not None:
            continue
        try:
            training = _training(path, trust_code=trust_code) if path else {}
        except RDropAnalysisError:
            continue
        _there(field, entry.name, value_of(field, training), training)


def _training(path: str, *, trust_code: bool) -> Mapping[str, Scalar]:
    """The settings in a file, without a model being made of it."""
    stored = read_stored(Path(path), trust_code=trust_code)
    description = checked_description(stored.path, stored.content)
    return plain_settings(stored.content) if description is None else dict(description["training"])


def _there(field: str, name: str, value: float | None, training: Mapping[str, Scalar]) -> float:
    if value is not None:
        return value
    shown = printable(field, 30)
    if (text := next((other for key, other in training.items() if _plain(key) == _plain(field)), None)) is not None:
        raise UsageError(f"the {shown} of {printable(name)} is {printable(text, 30)!r}, which is not a number")
    known = [printable(key, 30) for key, other in training.items() if _number(other) is not None]
    numbers = f" (numbers there: {', '.join(known)})" if known else ""
    text = f"no number called {shown!r} is in the training settings{numbers} or the name of {printable(name)}"
    raise UsageError(f"{text}: name it such as {shown}-0.5, or leave --over out")


def _plain(key: str) -> str:
    return re.sub(r"[-_ ]", "", key).casefold()


def _number(value: object) -> float | None:
    """A finite number, also where it was written as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if isfinite(number) else None
