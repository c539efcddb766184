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
from rdrop_probes.records import Axis, CheckpointResult

NUMBER = r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"


def axis_of(field: str, checkpoints: Sequence[CheckpointResult]) -> Axis:
    """The axis that all checkpoints lie on.

    Raises:
        UsageError: one of them has no number of that name.
    """
    values = {c.name: value_of(field, c.training, c.name, c.path or "") for c in checkpoints}
    return Axis(name=field, values={name: _there(field, name, value) for name, value in values.items()})


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


def _there(field: str, name: str, value: float | None, training: Mapping[str, Scalar] | None = None) -> float:
    if value is not None:
        return value
    known = [printable(key, 30) for key, other in (training or {}).items() if _number(other) is not None]
    numbers = f" (numbers in it: {', '.join(known)})" if known else ""
    text = f"{printable(name)} has no {printable(field, 30)}, neither in its training settings{numbers} nor in its name"
    raise UsageError(f"{text}: name it such as {printable(field, 30)}-0.5, or leave --over out")


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
