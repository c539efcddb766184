"""Matplotlib's SVG made small, and dark: the page holds every figure twice."""

from __future__ import annotations

import re

from rdrop_reports.figures.style import Theme

_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_TAG = re.compile(r"<[^>]*>")
_COLOUR = re.compile("#[0-9a-f]{6}")
_PROLOGUE = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_BETWEEN = re.compile(r">\s+<")
_EMPTY = re.compile(r"<g/>")
_IN_TAGS = (
    (re.compile(r'(<g)(?: id="[^"]*")?'), r"\1"),  # nothing refers to a group
    (re.compile(r' transform="rotate\(-?0 [^"]*"'), ""),
    (re.compile(r"font-family: [^;\"]*;? ?"), ""),  # said once for all texts
    (re.compile(r"(?<![\d.])([1-9]\d*\.\d\d)\d+"), r"\1"),  # a hundredth of a point, and less near 0
    (re.compile(r"(?<![\d.])(0\.\d{4})\d+"), r"\1"),
    (re.compile(r"([:;,]) +"), r"\1"),
    (re.compile(r"\s*\n\s*"), " "),
)


def slim(svg: bytes) -> bytes:
    """The same picture in fewer bytes, its text in the reader's own font; texts are left as they are.

    Args:
        svg: as matplotlib writes it with text as text. Its texts are escaped, so that every `<` begins a tag.
    """
    text = _TAG.sub(_slim_tag, _PROLOGUE.sub("", svg.decode("utf-8"), count=1))
    text = _EMPTY.sub("", _BETWEEN.sub("><", text))
    return text.replace("</style>", f"text{{font-family:{_FONTS}}}</style>", 1).encode("utf-8")


def recoloured(svg: bytes, old: Theme, new: Theme) -> bytes | None:
    """The same picture in the colours of another theme; None where it has points in it that were made pixels."""
    if b"<image" in svg:
        return None
    instead = dict(zip(_colours(old), _colours(new), strict=True))

    def recolour(tag: re.Match[str]) -> str:
        return _COLOUR.sub(lambda found: instead.get(found.group(), found.group()), tag.group())

    return _TAG.sub(recolour, svg.decode("utf-8")).encode("utf-8")


def _colours(theme: Theme) -> tuple[str, ...]:
    return theme.ink, theme.muted, theme.grid, theme.surface, *theme.palette


def _slim_tag(found: re.Match[str]) -> str:
    tag = found.group()
    for pattern, instead in _IN_TAGS:
        tag = pattern.sub(instead, tag)
    return tag
