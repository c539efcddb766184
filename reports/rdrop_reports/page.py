"""The report as one HTML file: offline, no network, everything from the record escaped."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from importlib.resources import files

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from rdrop_probes.records import RunRecord
from rdrop_reports.definitions import DEFINITIONS, DIRECTIONS, Definition
from rdrop_reports.figures import FIGURES, draw_all, figure_bytes
from rdrop_reports.figures.style import DARK, LIGHT, Theme
from rdrop_reports.gallery import cards
from rdrop_reports.html_tables import scalar_text
from rdrop_reports.numbers import format_count
from rdrop_reports.sections import sections
from rdrop_reports.select import unit_of
from rdrop_reports.verdict import caveats, headline, verdicts

# what the page's own font is called in the figures, which matplotlib measures with the font it ships
MODES = ("_eval", "_sub", "_mean")
_SYSTEM_FONTS = b"system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


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
    style, script = _resource("style.css"), _resource("sort.js")
    page = _environment().get_template("report.html.j2")
    return page.render(
        record=record, headline=headline(record), verdicts=verdicts(record), caveats=caveats(record),
        sections=sections(record), pictures=_pictures(record, per_example), cards=cards(record),
        definitions=_definitions(record), directions=DIRECTIONS, unit=unit_of(record),
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


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("rdrop_reports"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"count": format_count, "setting": scalar_text}
    return environment


def _resource(name: str) -> str:
    """A file of this package; its text must not depend on how line ends were checked out."""
    return files("rdrop_reports").joinpath("templates", name).read_text("utf-8").replace("\r\n", "\n")


def _hash(text: str) -> str:
    """Hash of an inline style or script, as a Content-Security-Policy source."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _pictures(record: RunRecord, per_example: pd.DataFrame | None) -> dict[str, Picture]:
    drawn = {theme: draw_all(record, per_example, theme) for theme in (LIGHT, DARK)}
    found = {}
    for name, figure in drawn[LIGHT].items():
        found[name] = Picture(
            name=name,
            title=FIGURES[name].title,
            takeaway=FIGURES[name].takeaway(record, per_example),
            light=_svg_uri(figure, LIGHT),
            dark=_svg_uri(drawn[DARK][name], DARK),
            width=round(96 * figure.get_figwidth()),
            height=round(96 * figure.get_figheight()),
        )
    return found


def _svg_uri(figure: Figure, theme: Theme) -> str:
    svg = figure_bytes(figure, "svg", theme, live_text=True).replace(b"'DejaVu Sans'", _SYSTEM_FONTS)
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")
