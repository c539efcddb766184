"""What comes from files cannot script the report: not past the escaping, and not past the page's own policy."""

import dataclasses
import html
import itertools
import re
import shutil
import subprocess
import threading
import xml.etree.ElementTree as ET
from base64 import b64decode
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rdrop_probes.records import ExampleInput, Failure, Finding, RunRecord
from rdrop_reports.page import render_page
from tests.reports.rich_samples import everything

OWN = "document.title='owned';fetch('http://127.0.0.1:PORT/')"
ATTACKS = (
    f"<script>{OWN}</script>",
    f"</script><script>{OWN}</script>",
    f"</style></title></textarea><script>{OWN}</script>",
    f'"><img src=x onerror="{OWN}">',
    f"'><svg onload={OWN}>",
    f'<svg><animate onbegin="{OWN}" attributeName=x dur=1s>',
    f"<iframe srcdoc='<script>{OWN}</script>'></iframe>",
    f'<a href="javascript:{OWN}">x</a>',
    "<img src=http://127.0.0.1:PORT/x>",
    "<link rel=stylesheet href=http://127.0.0.1:PORT/x>",
    "<style>@import url(http://127.0.0.1:PORT/x)</style>",
    "<base href=http://127.0.0.1:PORT/>",
    f"&lt;script&gt;{OWN}&lt;/script&gt;&#60;script&#62;&#x3c;img&#x3e;",
    "{{ 7 * 7 }}{% for x in y %}{# <b> #}",
    "]]><b>--><b><!--<b>",
    "\u202egnp.exe\u2066\u200b\ufeff<b>",
    "$\\alpha^2_{x}$ $<b>$ \\u003cscript\\u003e",
    "\x00\x07\x1b[31m\x1b]0;owned\x07\x7f\x9b<b>",
    "\r\n\t\u2028<b>",
)
FIXED = {"kind", "by", "pixels", "sha256", "fingerprint", "task", "per", "test", "metric", "unit", "config"}
"""Fields whose words are the program's own."""

KEYS_FIXED = {"metrics", "reliability", "config", "enough"}
DRAWN = {
    "svg", "metadata", "RDF", "Work", "type", "date", "format", "creator", "Agent", "title", "defs", "style", "g",
    "path", "use", "clipPath", "rect", "text", "tspan", "image", "linearGradient", "stop",
}  # fmt: skip
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--virtual-time-budget=2000", "--dump-dom",
)  # fmt: skip


class Structure(HTMLParser):
    """The elements of a page in order, with the names of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.links: set[str] = set()
        self.title = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.links |= {value or "" for name, value in attrs if name in {"href", "src", "srcset", "action", "data"}}

    def handle_comment(self, data: str) -> None:
        self.elements.append(("a comment", ()))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] == "title" and not self.title:
            self.title = data


def with_text(value: Any, added: Callable[[str], str], field: str = "") -> Any:
    """The value with something added to every text in it that could come from a file."""
    if isinstance(value, str):
        return value if field in FIXED else added(value)
    if isinstance(value, dict):
        return {
            name if field in KEYS_FIXED else added(name): with_text(item, added, field) for name, item in value.items()
        }
    if isinstance(value, list):
        return [with_text(item, added, field) for item in value]
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fields = {one.name: with_text(getattr(value, one.name), added, one.name) for one in dataclasses.fields(value)}
    return dataclasses.replace(value, **fields)


def with_each(texts: tuple[str, ...]) -> tuple[RunRecord, pd.DataFrame]:
    """A sample with the texts in turn after all that could come from a file, and always the same after the same."""
    turn, after = itertools.cycle(texts), dict[str, str]()

    def added(text: str) -> str:
        if text not in after:
            after[text] = next(turn)
        return text + after[text]

    record, per_example = everything(seeds=1, examples=40)
    notes = {
        "warnings": [Finding(code="dirty-eval", message="two passes differ", checkpoint=record.checkpoints[0].name)],
        "failures": [Failure(checkpoint="broken.pt", message="not a checkpoint", exit_code=4)],
    }
    record = dataclasses.replace(record, **notes)
    assert per_example is not None
    texts_shown = [
        dataclasses.replace(example, input=ExampleInput(kind="text", text="input")) for example in record.examples
    ]
    record = dataclasses.replace(record, examples=[*record.examples, *texts_shown])
    record = with_text(record, added)
    record = dataclasses.replace(record, config=record.config | {text: text for text in texts})
    return record, per_example.assign(checkpoint=per_example["checkpoint"].map(added))


@pytest.fixture(scope="module")
def hostile_page() -> str:
    return render_page(*with_each(ATTACKS))


@pytest.fixture(scope="module")
def harmless_page() -> str:
    return render_page(*with_each(tuple(f" harmless {i}" for i in range(len(ATTACKS)))))


def test_no_text_makes_an_element_or_an_attribute(hostile_page: str, harmless_page: str) -> None:
    assert Structure(hostile_page).elements == Structure(harmless_page).elements
    assert sum(tag == "script" for tag, _ in Structure(hostile_page).elements) == 1


def test_every_attack_is_in_the_page_as_text(hostile_page: str) -> None:
    for attack in ATTACKS:
        assert html.escape(attack).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in hostile_page


def test_no_link_leads_out_of_the_page(hostile_page: str) -> None:
    assert all(link.startswith(("#", "data:image/")) for link in Structure(hostile_page).links)


def test_the_policy_comes_before_everything_from_files(hostile_page: str) -> None:
    policy = hostile_page.index("Content-Security-Policy")
    assert policy < hostile_page.index("<title>") < min(hostile_page.index(word) for word in ("baseline", "owned"))
    assert "unsafe-" not in hostile_page


def test_no_text_makes_an_element_of_a_picture(hostile_page: str) -> None:
    pictures = re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", hostile_page)
    assert len(pictures) > 4
    for picture in pictures:
        for element in ET.fromstring(b64decode(picture)).iter():  # noqa: S314 - drawn by this package
            assert element.tag.rpartition("}")[2] in DRAWN
            assert not any(name.startswith("on") for name in element.attrib)
            links = [value for name, value in element.attrib.items() if name.endswith("href")]
            assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)


class Listener(ThreadingHTTPServer):
    """A server on this machine, for pages to call."""

    daemon_threads = True

    def __init__(self) -> None:
        self.called = False
        super().__init__(("127.0.0.1", 0), Answer)


class Answer(BaseHTTPRequestHandler):
    """Notes the call and answers it with nothing, so that the page is not kept waiting."""

    server: Listener

    def do_GET(self) -> None:
        self.server.called = True
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def opened(tmp_path: Path, page: str, listener: Listener) -> Structure:
    """Open a page in Chromium and return what it became."""
    path = tmp_path / "page.html"
    path.write_text(page.replace("127.0.0.1:PORT", f"127.0.0.1:{listener.server_port}"), "utf-8")
    assert CHROMIUM is not None
    run = subprocess.run(  # noqa: S603 - the browser, on a page in a directory of this test
        [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()],
        capture_output=True,
        timeout=60,
        check=True,
    )
    return Structure(run.stdout.decode("utf-8"))


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed; the parsed page is checked")


@needs_chromium
def test_chromium_runs_such_scripts_where_nothing_prevents_it(tmp_path: Path, listener: Listener) -> None:
    page = opened(tmp_path, f"<title>mine</title>{''.join(ATTACKS[:6])}<img src=http://127.0.0.1:PORT/x>", listener)
    assert page.title == "owned"
    assert listener.called


FOLLOWING = """
const tip = document.getElementById("tip"), links = document.querySelectorAll("dl a.metric, table a.metric");
const link = [...links].filter((one) => one.checkVisibility()).at(-1), found = [];
const later = (then) => new Promise((done) => setTimeout(() => { then(); done(); }, 200));
const near = () => Math.abs(tip.getBoundingClientRect().left - link.getBoundingClientRect().left) < innerWidth
  && Math.min(Math.abs(tip.getBoundingClientRect().top - link.getBoundingClientRect().bottom),
              Math.abs(tip.getBoundingClientRect().bottom - link.getBoundingClientRect().top)) < 10;
addEventListener("load", async () => {
  document.documentElement.style.scrollBehavior = "auto";
  await later(() => { link.focus(); link.scrollIntoView({ block: "center" }); });
  await later(() => found.push(scrollY > 0, !tip.hidden, near()));
  scrollBy(0, -50);
  await later(() => found.push(!tip.hidden, near()));
  link.blur();
  found.push(tip.hidden);
  document.title = found.join();
});
"""


@needs_chromium
def test_a_definition_stays_with_the_link_that_has_the_focus(tmp_path: Path, listener: Listener) -> None:
    page = re.sub(r"<meta http-equiv=\S+ content=\".*?\">", "", render_page(*everything(seeds=2)), count=1)
    page = page.replace("</body>", f"<script>{{{FOLLOWING}}}</script></body>")
    assert opened(tmp_path, page, listener).title == "true,true,true,true,true,true"


@needs_chromium
def test_chromium_runs_nothing_from_a_hostile_report(
    tmp_path: Path, listener: Listener, hostile_page: str, harmless_page: str
) -> None:
    hostile = opened(tmp_path, hostile_page, listener)
    harmless = opened(tmp_path, harmless_page, listener)
    assert not listener.called
    title = Structure(hostile_page).title.replace("127.0.0.1:PORT", f"127.0.0.1:{listener.server_port}")
    assert hostile.title == title != "owned"
    assert hostile.elements == harmless.elements


@needs_chromium
def test_the_policy_holds_where_escaping_would_have_failed(
    tmp_path: Path, listener: Listener, harmless_page: str
) -> None:
    broken = harmless_page.replace("<main>", f"<main>{''.join(ATTACKS[:14])}", 1)
    page = opened(tmp_path, broken, listener)
    assert len(page.elements) > len(Structure(harmless_page).elements)
    assert page.title == Structure(harmless_page).title
    assert not listener.called
