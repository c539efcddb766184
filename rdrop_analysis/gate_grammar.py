"""The grammar of `--fail-if`: one comparison of sums of products of numbers and metrics. Nothing is ever evaluated.

    gate     = sum ("<" | "<=" | ">" | ">=" | "==" | "!=") sum
    sum      = product (("+" | "-") product)*
    product  = ["-"] (number ["%"] | quantity) ("*" ["-"] (number ["%"] | quantity))*
    quantity = [name "."] metric ["." part]

A name is `reference`, a checkpoint or a group; one with signs other than letters, digits, `_` and `-` stands in
backticks. A part is one of PARTS; without one the estimate is meant. `1%` is 0.01.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from rdrop_analysis.errors import UsageError
from rdrop_analysis.files import printable

REFERENCE = "reference"
LONGEST = 1000
SIGNS = ("<", "<=", ">", ">=", "==", "!=")
PARTS = (
    ("estimate",), ("low",), ("high",), ("mask_low",), ("mask_high",),
    ("difference",), ("difference", "low"), ("difference", "high"),
    ("ratio",), ("ratio", "low"), ("ratio", "high"), ("p_value",), ("p_adjusted",), ("effect_size",),
)  # fmt: skip
PARTS_LISTED = ", ".join(".".join(part) for part in PARTS[1:])
_TOKEN = re.compile(
    r"(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|`(?P<quoted>(?:[^`]|``)+)`"
    r"|(?P<word>[^\W\d]\w*(?:-\w+)*)"
    r"|(?P<sign><=|>=|==|!=|[<>.+*%-])"
    r"|(?P<other>\S)"
)


@dataclass(frozen=True)
class Quantity:
    """A number that a record holds: `subject` is None for every candidate, REFERENCE unquoted for the reference."""

    metric: str
    part: tuple[str, ...] = ("estimate",)
    subject: str | None = None
    of_reference: bool = False

    def __str__(self) -> str:
        part = () if self.part == ("estimate",) else self.part
        return printable(".".join([*filter(None, (self.subject,)), self.metric, *part]))


@dataclass(frozen=True)
class Product:
    """A number times quantities; `in_percent` where the number was written with a % sign."""

    factor: float
    quantities: tuple[Quantity, ...]
    in_percent: bool = False


@dataclass(frozen=True)
class Gate:
    """A parsed expression: sums of products on both sides of a sign."""

    text: str
    left: tuple[Product, ...]
    sign: str
    right: tuple[Product, ...]

    def quantities(self) -> Iterator[Quantity]:
        """Every quantity named, from left to right."""
        for product in (*self.left, *self.right):
            yield from product.quantities


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str


def parse_gate(text: str) -> Gate:
    """Read an expression.

    Raises:
        UsageError: it does not fit the grammar.
    """
    return _Parser(text).gate()


class _Parser:
    """Goes once over the tokens, from left to right."""

    def __init__(self, text: str) -> None:
        self.text = text
        if len(text) > LONGEST:
            self.refuse(f"it is longer than {LONGEST} characters")
        found = _TOKEN.finditer(text)
        self.tokens = [_Token(match.lastgroup or "", match.group(match.lastgroup or 0)) for match in found]
        self.place = 0

    def refuse(self, reason: str) -> NoReturn:
        example = "write for example 'epkl.high > 0.05' or 'epkl > 1.1 * reference.epkl'"
        raise UsageError(f"{printable(self.text)!r} is no gate: {reason}; {example}")

    @property
    def next(self) -> _Token:
        return self.tokens[self.place] if self.place < len(self.tokens) else _Token("end", "")

    def take(self, *signs: str) -> str | None:
        """The next token if it is one of these signs."""
        if self.next.kind != "sign" or self.next.text not in signs:
            return None
        self.place += 1
        return self.tokens[self.place - 1].text

    def gate(self) -> Gate:
        left = self.sum()
        sign = self.take(*SIGNS)
        if sign is None:
            self.unexpected(f"one of {' '.join(SIGNS)}")
        gate = Gate(self.text, left, sign, self.sum())
        if self.next.kind != "end":
            self.unexpected("the end")
        if not any(gate.quantities()):
            self.refuse("it names no metric")
        return gate

    def sum(self) -> tuple[Product, ...]:
        products = [self.product(1.0)]
        while sign := self.take("+", "-"):
            products.append(self.product(-1.0 if sign == "-" else 1.0))
        return tuple(products)

    def product(self, factor: float) -> Product:
        quantities: list[Quantity] = []
        in_percent = False
        while True:
            factor = -factor if self.take("-") else factor
            if self.next.kind == "number":
                factor *= float(self.next.text)
                self.place += 1
                if self.take("%"):
                    factor, in_percent = factor / 100, True
            else:
                quantities.append(self.quantity())
            if not self.take("*"):
                break
        if not math.isfinite(factor):
            self.refuse("a number in it is too large")
        return Product(factor, tuple(quantities), in_percent)

    def quantity(self) -> Quantity:
        path = [self.name()]
        while self.take("."):
            path.append(self.name())
        length = next((n for n in (2, 1) if len(path) > n and self.is_part(path[-n:])), 0)
        part = tuple(token.text for token in path[len(path) - length :]) or ("estimate",)
        rest = path[: len(path) - length]
        if len(rest) > 2:
            spelled = ".".join(token.text for token in path)
            why = f"the parts of a metric are {PARTS_LISTED}; a name with a dot in it stands in backticks"
            self.refuse(f"{printable(spelled)} has too many dots: {why}")
        subject = rest[0] if len(rest) == 2 else None
        return Quantity(
            metric=rest[-1].text,
            part=part,
            subject=None if subject is None else subject.text,
            of_reference=subject == _Token("word", REFERENCE),
        )

    def is_part(self, path: list[_Token]) -> bool:
        return all(token.kind == "word" for token in path) and tuple(token.text for token in path) in PARTS

    def name(self) -> _Token:
        token = self.next
        if token.kind not in ("word", "quoted"):
            self.unexpected("a metric or a number")
        self.place += 1
        return _Token(token.kind, token.text.replace("``", "`"))

    def unexpected(self, wanted: str) -> NoReturn:
        if self.next.kind == "end":
            self.refuse(f"it ends where {wanted} should be")
        hint = " (names with dots or other signs stand in backticks, a minus has spaces around it)"
        hint = "" if self.next.kind in ("word", "sign") else hint
        self.refuse(f"{printable(self.next.text)!r} stands where {wanted} should be{hint}")
