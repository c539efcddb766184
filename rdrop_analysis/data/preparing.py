"""From raw examples to `Data`, with the labels in the place where the task looks for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rdrop_analysis.data.batches import batch_from, joined
from rdrop_analysis.data.class_numbers import ClassNames
from rdrop_analysis.data.examples import IGNORED, Data
from rdrop_analysis.data.labelling import Labels, read_labels
from rdrop_analysis.data.layouts import Layout, unknown_layout
from rdrop_analysis.data.leaving_out import without_empty
from rdrop_analysis.data.padding import LABELS, PIECE, check_memory, padded_batches
from rdrop_analysis.data.places import ExampleError
from rdrop_analysis.data.preprocessing import Preprocessor, Row
from rdrop_analysis.data.tables import Table
from rdrop_analysis.data.tagging import as_list, tags_of_tokens
from rdrop_analysis.errors import DataError
from rdrop_analysis.files import counted, printable

MASKED_SHARE = 0.15  # of the tokens of a text, as BERT was trained
MASK_SEED = 0

Names = list[str] | None


def prepare(table: Table, preprocessor: Preprocessor, task: str | None, class_names: Names) -> Data:
    """Return the examples of a table as a checkpoint takes them; see `Table.prepare`."""
    layout = table.layout
    if layout is None:
        raise unknown_layout(table.columns)
    builders: Mapping[str, Callable[..., Data]] = {"text": _texts, "words": _words, "image": _images}
    if layout.kind != "image":
        table = without_empty(table, _read_as_text(layout, task))
    try:
        data = builders[layout.kind](table, layout, preprocessor, task, class_names)
    except ExampleError as problem:
        raise DataError(problem.at(table.place)) from problem
    return replace(data, place=table.place, notes={**table.notes, **data.notes})


def _read_as_text(layout: Layout, task: str | None) -> list[str]:
    """Return the columns whose texts or words become tokens."""
    target = layout.target if _has_targets(layout, task) else None
    return [*layout.inputs, *([target] if target else [])]


def _has_targets(layout: Layout, task: str | None) -> bool:
    """Tell whether the labels are texts to be generated."""
    return task == "seq2seq" or (task is None and layout.target is not None and not layout.label)


def _texts(table: Table, layout: Layout, preprocessor: Preprocessor, task: str | None, class_names: Names) -> Data:
    """Return texts, or pairs of them, with the labels that the task needs."""
    texts = [_strings(table, column) for column in layout.inputs]
    rows, cut = preprocessor.encode(*texts)
    notes = _cut_note(cut, preprocessor)
    _refuse_empty(rows)
    if task == "causal-lm":
        labels = Labels([list(row["input_ids"]) for row in rows])
    elif _has_targets(layout, task):
        labels, shown = _targets(table, layout, preprocessor)
        texts.append(shown)
    elif task == "tokens":
        labels = _masked(rows, preprocessor) if preprocessor.is_masked_lm else Labels(None)
    else:
        labels = _labels(table, layout.label, task, class_names)
    notes = {**table.unused([*layout.inputs, *labels.columns]), **notes, **labels.notes}
    return _data(table, rows, labels, preprocessor, [" | ".join(parts) for parts in zip(*texts, strict=True)], notes)


def _words(table: Table, layout: Layout, preprocessor: Preprocessor, task: str | None, class_names: Names) -> Data:
    """Return lists of words with the label of each on its first token, and -100 on all others."""
    column = layout.inputs[0]
    words = [
        [_text(word, column, index) for word in as_list(value, column, index)]
        for index, value in enumerate(table.columns[column])
    ]
    rows, owners = preprocessor.encode_words(words)
    _refuse_empty(rows)
    labels = tags_of_tokens(table, layout.tags, words, owners, class_names)
    notes = {**table.unused([column, *layout.tags]), **labels.notes}
    return _data(table, rows, labels, preprocessor, [" ".join(example) for example in words], notes)


def _images(table: Table, layout: Layout, preprocessor: Preprocessor, task: str | None, class_names: Names) -> Data:
    """Return images with their labels, as `pixel_values`."""
    images = [_located(value, table.source, index) for index, value in enumerate(table.columns[layout.inputs[0]])]
    labels = _labels(table, layout.label, task, class_names)
    batches = []
    for first in range(0, len(images), PIECE):
        columns: dict[str, Any] = {"pixel_values": preprocessor.pixels(images[first : first + PIECE])}
        check_memory(columns["pixel_values"][0].nbytes * len(images))
        if labels.values is not None:
            columns[LABELS] = torch.tensor(labels.values[first : first + PIECE])
        batches.append(batch_from(columns, first))
    notes = {**table.unused([*layout.inputs, *labels.columns]), **labels.notes}
    return Data(table.source, joined(batches), class_names=labels.class_names or class_names, notes=notes)


def _located(value: Any, source: str, example: int) -> Path | Mapping[str, Any]:
    """Return an image as it can be opened; a name in a text file is relative to that file."""
    if isinstance(value, str) and value:
        return Path(source).parent / value
    if not isinstance(value, Path | Mapping):
        raise ExampleError("", example, "has no image")
    return value


def _data(
    table: Table,
    rows: Sequence[Row],
    labels: Labels,
    preprocessor: Preprocessor,
    texts: list[str],
    notes: Mapping[str, str],
) -> Data:
    """Return tokens and labels as padded batches."""
    whole: list[dict[str, Any]] = [dict(row) for row in rows]
    if labels.values is not None:
        whole = [{**row, LABELS: value} for row, value in zip(rows, labels.values, strict=True)]
    pieces = padded_batches(whole, preprocessor.pad_id)
    return Data(table.source, pieces, class_names=labels.class_names, texts=texts, notes=notes)


def _labels(table: Table, column: str | None, task: str | None, class_names: Names) -> Labels:
    """Return the labels in a column; without one there are none, but classes have names all the same."""
    if column is None:
        return _a_column_a_class(table, task, class_names)
    labels = read_labels(table.columns[column], task, table.names(column, class_names))
    return replace(labels, columns=(column,))


def _a_column_a_class(table: Table, task: str | None, class_names: Names) -> Labels:
    """Return 0 and 1 from columns that have the classes' names; no labels where there are no such columns."""
    known = {column.strip().casefold(): column for column in table.columns}
    if task not in ("multi-label", None) or not all(name.casefold() in known for name in class_names or [""]):
        return Labels(None, class_names)
    columns = tuple(known[name.casefold()] for name in class_names or ())
    rows = [list(values) for values in zip(*(table.columns[column] for column in columns), strict=True)]
    return replace(read_labels(rows, "multi-label", ClassNames(class_names, None, lambda: rows)), columns=columns)


def _targets(table: Table, layout: Layout, preprocessor: Preprocessor) -> tuple[Labels, list[str]]:
    """Return the tokens of the texts to be generated as labels, and these texts."""
    if layout.target is None:
        raise DataError("there is no text to be generated: name its column target")
    texts = _strings(table, layout.target)
    ids, cut = preprocessor.encode_targets(texts)
    notes = (
        {"targets_cut": f"{counted(cut, 'target')} longer than {preprocessor.max_length} tokens, and cut"}
        if cut
        else {}
    )
    return Labels(ids, notes=notes, columns=(layout.target,)), texts


def _masked(rows: Sequence[Row], preprocessor: Preprocessor) -> Labels:
    """Put the mask in the place of 15% of each text's tokens, at least one, and return those as labels."""
    tokenizer, labels = preprocessor.tokenizer, []
    for index, row in enumerate(rows):
        ids = row["input_ids"]
        special = tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
        own = np.flatnonzero(np.asarray(special) == 0)
        count = min(len(own), max(1, round(MASKED_SHARE * len(own))))
        chosen = set(np.random.default_rng([MASK_SEED, index]).choice(own, count, replace=False).tolist())
        labels.append([token if place in chosen else IGNORED for place, token in enumerate(ids)])
        row["input_ids"] = [tokenizer.mask_token_id if place in chosen else token for place, token in enumerate(ids)]
    note = "15% of each text's tokens were masked, the same in every run: the labels are what was there"
    return Labels(labels, notes={"tokens_masked": note})


def _strings(table: Table, column: str) -> list[str]:
    """Return a column of texts, none of which may be missing."""
    return [_text(value, column, index) for index, value in enumerate(table.columns[column])]


def _text(value: Any, column: str, example: int) -> str:
    """Return a text or word, which must have something in it that can be written."""
    if isinstance(value, str) and value.strip():
        reason = "has half a character: it was cut in two when it was written"
        with suppress(UnicodeEncodeError):
            value.encode()
            return value
    else:
        reason = "is empty" if value is None or isinstance(value, str) else f"is a {type(value).__name__}, not text"
    raise ExampleError(f"{printable(column)} at", example, reason)


def _refuse_empty(rows: Sequence[Row]) -> None:
    for index, row in enumerate(rows):
        if not row["input_ids"]:
            raise ExampleError("the tokenizer makes no tokens of", index)


def _cut_note(cut: int, preprocessor: Preprocessor) -> dict[str, str]:
    if not cut:
        return {}
    text = f"{counted(cut, 'text')} longer than {preprocessor.max_length} tokens, and cut to the tokenizer's most"
    return {"texts_cut": text}
