"""The report as one HTML file: offline, no network, everything from the record escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from rdrop_probes.records import RunRecord
from rdrop_reports.definitions import DEFINITIONS, DIRECTIONS, Definition
from rdrop_reports.figures import FIGURES, draw_all, rendered
from rdrop_reports.figures.style import DARK, LIGHT, Theme
from rdrop_reports.gallery import cards
from rdrop_reports.html_tables import scalar_text
from rdrop_reports.more import more
from rdrop_reports.numbers import format_count
from rdrop_reports.sections import Section, sections
from rdrop_reports.select import unit_of
from rdrop_reports.svg import recoloured, slim
from rdrop_reports.verdict import caveats, checkpoint_verdicts, headline, most_telling_first, verdicts
from rdrop_reports.words import ALWAYS, WORDS, Word

TIPS = {name: found.meaning for name, found in DEFINITIONS.items()} | {n: word.meaning for n, word in WORDS.items()}
MODES = ("_eval", "_sub", "_mean")


@dataclass(frozen=True)
class Picture:
    """One figure on the page, as SVG data URIs for a light and a dark page; sizes in CSS pixels."""

    name: str
    title: str
    takeaway: str
    light: str
    dark: str
    width: int
    height: int


def render_page(record: RunRecord, per_example: pd.DataFrame | None) -> str:
    """The whole report as HTML, for a record in the unit to be shown and the per-example table in nats.

    The page loads nothing: styles, figures and the script that sorts tables are inside, the latter admitted
    by its hash. It is complete without that script. The same record gives the same bytes.
    """
    style, script = _resource("style.css"), _resource("sort.js") + _resource("tips.js")
    definitions, found, pictures = _definitions(record), sections(record), _pictures(record, per_example)
    page = _environment().get_template("report.html.j2")
    return page.render(
        record=record, headline=headline(record), caveats=caveats(record),
        verdicts=most_telling_first(record, verdicts(record)),
        members=checkpoint_verdicts(record) if record.groups else [], more=more(record),
        sections=found, shown=_shown(found, pictures), pictures=pictures, cards=cards(record),
        definitions=definitions, words=_words(found), tips=TIPS, directions=DIRECTIONS, unit=unit_of(record),
        style=Markup(style), script=Markup(script),  # noqa: S704 - files of this package, not input
        style_hash=_hash(style), script_hash=_hash(script),
    )  # fmt: skip


def _definitions(record: RunRecord) -> dict[str, Definition]:
    """Definitions of the metrics that the record has, and of those that share a row with one of them."""
    found = {name for checkpoint in record.checkpoints for name in checkpoint.metrics}
    rows = {name.rpartition("_")[0] for name in found if name.endswith(MODES)}
    return {
        name: definition
        for name, definition in DEFINITIONS.items()
        if name in found or (name.endswith(MODES) and name.rpartition("_")[0] in rows)
    }


def _shown(found: Mapping[str, Section], pictures: Mapping[str, Picture]) -> list[Section]:
    """The sections that tell the story and have something to show or to say."""
    return [
        s for s in found.values()
        if s.chapter != "Method" and (s.tables or s.folded or s.notes or s.missing or set(s.figures) & set(pictures))
    ]  # fmt: skip


def _chapters(shown: list[Section]) -> list[tuple[str, list[Section]]]:
    return [(chapter, list(parts)) for chapter, parts in groupby(shown, key=lambda section: section.chapter)]


def _words(found: Mapping[str, Section]) -> dict[str, Word]:
    """The words that the tables link to, and those that nothing here can be read without."""
    cells = (c for s in found.values() for t in (*s.tables, *s.folded) for row in (t.head, *t.rows) for c in row)
    used = {cell.metric for cell in cells} | set(ALWAYS)
    return {name: word for name, word in WORDS.items() if name in used}


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("rdrop_reports"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"count": format_count, "setting": scalar_text, "chapters": _chapters}
    return environment


def _resource(name: str) -> str:
    """A file of this package; its text must not depend on how line ends were checked out."""
    return files("rdrop_reports").joinpath("templates", name).read_text("utf-8").replace("\r\n", "\n")


def _hash(text: str) -> str:
    """Hash of an inline style or script, as a Content-Security-Policy source."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _pictures(record: RunRecord, per_example: pd.DataFrame | None) -> dict[str, Picture]:
    figures = draw_all(record, per_example, LIGHT)
    light = _svgs(figures, LIGHT)
    dark = _dark(record, per_example, light)
    return {
        name: Picture(
            name=name,
            title=FIGURES[name].title,
            takeaway=FIGURES[name].takeaway(record, per_example),
            light=_uri(light[name]),
            dark=_uri(dark[name]),
            width=round(96 * figure.get_figwidth()),
            height=round(96 * figure.get_figheight()),
        )
        for name, figure in figures.items()
        if name in light
    }


def _dark(record: RunRecord, per_example: pd.DataFrame | None, light: Mapping[str, bytes]) -> dict[str, bytes]:
    """The light figures in dark colours; those with pixels in them are drawn again."""
    again = {name: recoloured(svg, LIGHT, DARK) for name, svg in light.items()}
    drawn = draw_all(record, per_example, DARK, [name for name, svg in again.items() if svg is None])
    return {name: svg for name, svg in again.items() if svg is not None} | _svgs(drawn, DARK)


def _svgs(figures: Mapping[str, Figure], theme: Theme) -> dict[str, bytes]:
    return {name: slim(svg) for name, svg in rendered(figures, "svg", theme, live_text=True).items()}


def _uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")
