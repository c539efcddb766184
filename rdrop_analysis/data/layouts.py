"""Tell by their usual names what the columns of a table hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rdrop_analysis.errors import DataError
from rdrop_analysis.files import printable

TEXT = ("text", "sentence", "content", "document", "review", "premise", "question", "sentence1", "question1")
LAST_RESORT = ("source",)  # often where a text is from, not the text
SECOND_TEXT = ("text_pair", "sentence2", "question2", "hypothesis", "context")
QUESTION_AND_SENTENCE = {"question", "sentence"}
WORDS = ("tokens", "words")
IMAGE = ("image", "img")
TAGS = ("tags", "ner_tags", "pos_tags")
TARGET = ("target", "summary", "translation")
LABEL = ("label", "labels", "class", "category", "y", "score")
TABULAR_LABEL = (*LABEL, "target")
ARRAYS = ("input_ids", "pixel_values", "input_values", "input_features", "inputs_embeds", "inputs", "x")
BESIDE_ARRAYS = (
    "attention_mask",
    "token_type_ids",
    "position_ids",
    "pixel_mask",
    "decoder_input_ids",
    "decoder_attention_mask",
)
KNOWN = {*TEXT, *LAST_RESORT, *SECOND_TEXT, *WORDS, *IMAGE, *TAGS, *TARGET, *LABEL, *ARRAYS}

Kind = Literal["text", "words", "image"]


@dataclass(frozen=True)
class Layout:
    """Which columns of raw examples are what.

    Attributes:
        kind: what an example is.
        inputs: the column of texts (or two columns, for pairs of texts), of words (lists, or separated by
            spaces) or of images.
        label: the column with a label an example, if any.
        tags: columns that may hold a label a word.
        target: the column with the text to be generated, if any.
    """

    kind: Kind
    inputs: tuple[str, ...]
    label: str | None
    tags: tuple[str, ...]
    target: str | None


def find_layout(columns: Iterable[str]) -> Layout | None:
    """Return what the columns of texts, words or images hold, whatever their case; None if there are no such.

    Raises:
        DataError: several columns could be the text, or two have the same name but for its case.
    """
    known = known_columns(columns)
    words, images, texts = (_all(known, names) for names in (WORDS, IMAGE, TEXT))
    texts = texts or _all(known, LAST_RESORT)
    target = first(known, TARGET)
    label = first(known, LABEL)
    tags = _all(known, TAGS) or ([label] if label and words and not texts else [])
    if (words and not texts) or (tags and (words or texts)):
        return Layout("words", tuple((words or texts)[:1]), None, tuple(tags), None)
    if texts:
        return Layout("text", _texts(known, texts), label, (), target)
    return Layout("image", (images[0],), label, (), None) if images else None


def known_columns(columns: Iterable[str]) -> dict[str, str]:
    """Return columns by their names in small letters, without spaces around."""
    known: dict[str, str] = {}
    for column in columns:
        key = column.strip().lower()
        if key in KNOWN and key in known:
            raise DataError(f"two columns are called {key}: keep one of them")
        known[key] = column
    return known


def first(known: dict[str, str], names: Iterable[str]) -> str | None:
    """Return the first column that has one of the names."""
    return next((known[name] for name in names if name in known), None)


def _all(known: dict[str, str], names: Iterable[str]) -> list[str]:
    return [known[name] for name in names if name in known]


def _texts(known: dict[str, str], texts: list[str]) -> tuple[str, ...]:
    """Return the column of texts, and the second of a pair."""
    if {column.strip().lower() for column in texts} == QUESTION_AND_SENTENCE:
        return known["question"], known["sentence"]
    if len(texts) > 1:
        raise DataError(f"{_and(texts)} could each be the text: keep one of these columns")
    second = [known[name] for name in SECOND_TEXT if name in known]
    if len(second) > 1:
        raise DataError(f"{_and(second)} could each be the second text: keep one of these columns")
    return (texts[0], *second)


def unknown_layout(columns: Iterable[str]) -> DataError:
    """Return the error that lists the columns found and the names that are understood."""
    found = printable(", ".join(columns), 200)
    return DataError(
        f"cannot tell what the columns hold ({found}): name the input {', '.join(TEXT[:4])}, {', '.join(WORDS)}, "
        f"{IMAGE[0]} or {ARRAYS[0]}, and the label {', '.join(LABEL)}; "
        "a table of numbers needs numbers, with a decimal point, in all columns"
    )


def _and(names: Iterable[str]) -> str:
    return " and ".join(printable(name) for name in names)
