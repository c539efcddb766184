import base64
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from report_samples import without_dropout, without_intervals

from rdrop_probes.records import ExampleInput, Finding, Metric, in_unit
from rdrop_reports.definitions import DEFINITIONS
from rdrop_reports.figures import draw_all
from rdrop_reports.gallery import cards, png_data_uri
from rdrop_reports.page import render_page

VOID = {"meta", "img", "source", "br", "link"}
HOSTILE = ("<script>alert(1)</script>", "$\\frac{1}{2}$\" onload='x' &amp; </style>")


class Checker(HTMLParser):
    """Collects tags and text, and fails where a tag closes another."""

    def __init__(self):
        super().__init__()
        self.stack, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(page):
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.stack == []
    return checker


@pytest.fixture(scope="module")
def page(pair):
    return render_page(*pair)


def test_the_page_is_well_formed_and_answers_in_order(page):
    ids = [attrs["id"] for tag, attrs in parsed(page).tags if tag == "section"]
    assert ids[:6] == ["verdict", "gap", "spread", "examples", "convergence", "sites"]
    assert ids[-3:] == ["more", "setup", "definitions"]


def test_every_id_is_unique_and_every_link_arrives(page):
    tags = parsed(page).tags
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    links = {attrs["href"] for tag, attrs in tags if tag == "a"}
    assert len(ids) == len(set(ids))
    assert links <= {f"#{name}" for name in ids}


def test_nothing_is_loaded_from_anywhere(page):
    for tag, attrs in parsed(page).tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"}
        for name in {"src", "srcset"} & set(attrs):
            assert attrs[name].startswith(("data:image/svg+xml;base64,", "data:image/png;base64,"))
    assert "url(" not in page
    assert "@import" not in page


def test_the_policy_admits_exactly_the_style_and_script_inside(page):
    policy = next(a["content"] for t, a in parsed(page).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    assert not any("style" in attrs or any(name.startswith("on") for name in attrs) for _, attrs in parsed(page).tags)


def test_every_picture_has_a_dark_variant_for_screens_and_an_alt_text(pair, page):
    tags = parsed(page).tags
    sources = [attrs for tag, attrs in tags if tag == "source"]
    assert len(sources) == len([1 for tag, _ in tags if tag == "figure"]) == len(draw_all(*pair))
    assert {attrs["media"] for attrs in sources} == {"screen and (prefers-color-scheme: dark)"}
    assert all(len(attrs["alt"]) > 10 for tag, attrs in tags if tag == "img")


def test_what_comes_from_the_record_is_escaped(make_sample):
    record, per_example = make_sample(HOSTILE, examples=60, notes=True)
    record = replace(
        record,
        config=record.config | {HOSTILE[0]: HOSTILE[0]},
        environment={HOSTILE[0]: HOSTILE[1]},
        warnings=[Finding(code=HOSTILE[0], message=HOSTILE[0])],
        examples=[replace(e, label=HOSTILE[0], input=ExampleInput(kind="text", text=HOSTILE[0]))
                  for e in record.examples],
    )  # fmt: skip
    checkpoints = [replace(c, metrics=c.metrics | {HOSTILE[0]: Metric(estimate=1.0)}) for c in record.checkpoints]
    page = render_page(replace(record, checkpoints=checkpoints), per_example)
    checker = parsed(page)
    assert [tag for tag, _ in checker.tags].count("script") == 1
    assert [tag for tag, _ in checker.tags].count("style") == 1
    assert HOSTILE[0] in "".join(checker.text)
    assert HOSTILE[0] not in page
    assert not any("onload" in attrs for _, attrs in checker.tags)
    for uri in re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", page):
        assert b"<script" not in base64.b64decode(uri)


def test_the_same_record_gives_the_same_bytes(pair, page):
    assert render_page(*pair) == page


def test_a_page_for_two_checkpoints_and_2000_examples_stays_below_a_megabyte(make_sample):
    assert len(render_page(*make_sample(examples=2000)).encode()) < 1_000_000


@pytest.mark.parametrize("change", [without_dropout, without_intervals, lambda r: replace(r, examples=[])])
def test_records_with_less_in_them_give_a_page(pair, change):
    parsed(render_page(change(pair[0]), None))


def test_missing_parts_are_said_to_be_missing(pair):
    bare = [
        replace(c, metrics={}, convergence=[], reliability={}, site_predictions=[], sites=[])
        for c in pair[0].checkpoints
    ]
    page = render_page(replace(pair[0], checkpoints=bare, comparisons=[], examples=[]), None)
    assert "There are no per-example values of EPKL to show." in page
    assert "No site was found that draws dropout." in page
    assert 'id="examples"' not in page


def test_sites_of_which_nothing_was_measured_are_not_denied(pair):
    bare = [replace(c, site_predictions=[]) for c in pair[0].checkpoints]
    page = render_page(replace(pair[0], checkpoints=bare), None)
    assert "No site was found" not in page
    assert "What each site adds to the EPKL was neither measured nor predicted" in page
    assert "<summary>All sites</summary>" in page


def test_the_error_that_sampling_leaves_in_a_prediction_stands_beside_its_interval(pair):
    checkpoint = pair[0].checkpoints[0]
    known = next(line for line in checkpoint.site_predictions if line.predicted is not None)
    sampled = replace(checkpoint, site_predictions=[replace(known, sampling_error=0.0123)])
    pages = [render_page(replace(pair[0], checkpoints=[c]), None) for c in (checkpoint, sampled)]
    assert ["sampling error 0.0123" in page for page in pages] == [False, True]


def test_a_single_checkpoint_is_not_compared(single):
    page = render_page(*single)
    assert "How consistent is it?" in page
    assert "The sub-models of model diverge by" in page
    assert "Adjusted p" not in page


def test_many_checkpoints_become_rows_and_their_verdicts_fold(make_sample):
    record, per_example = make_sample(tuple(f"run{i}" for i in range(8)), examples=60)
    text = "".join(parsed(render_page(record, per_example)).text)
    assert "3 more" in text
    assert "7 of 7 candidates are more consistent than run0." in text


def test_bits_are_named_where_they_are_shown(pair):
    text = "".join(parsed(render_page(in_unit(pair[0], "bits"), pair[1])).text)
    assert " bits" in text
    assert " nats" not in text


def test_notices_are_linked_from_the_top(make_sample):
    page = render_page(*make_sample(examples=60, notes=True))
    assert page.index('href="#notices"') < page.index("<main>")
    assert "1 checkpoint could not be measured" in page
    assert "not a checkpoint" in page


def test_metrics_without_a_definition_are_shown_under_their_own_name(pair):
    record, per_example = pair
    more = [replace(c, metrics=c.metrics | {"my_metric": Metric(estimate=3.0)}) for c in record.checkpoints]
    assert "my_metric" in render_page(replace(record, checkpoints=more), per_example)


def test_every_metric_in_the_sample_is_defined(pair):
    assert {name for c in pair[0].checkpoints for name in c.metrics} <= set(DEFINITIONS)


@pytest.mark.parametrize("shape", [[2, 3], [2, 3, 3]])
def test_pixels_become_a_png(shape):
    pixels = bytes(range(6 if len(shape) == 2 else 18))
    data = base64.b64decode(png_data_uri(shape, pixels).removeprefix("data:image/png;base64,"))
    assert data.startswith(b"\x89PNG")
    stored = data[data.index(b"IDAT") + 4 : -16]
    row = len(pixels) // 2
    assert zlib.decompress(stored) == b"\0" + pixels[:row] + b"\0" + pixels[row:]


@pytest.mark.parametrize(
    ("shape", "count", "message"), [([2], 2, "not the shape"), ([2, 2, 4], 16, "not the shape"), ([2, 2], 3, "3 bytes")]
)
def test_pixels_that_do_not_fit_are_refused(shape, count, message):
    with pytest.raises(ValueError, match=message):
        png_data_uri(shape, bytes(count))


def test_an_unreadable_picture_is_left_out(pair):
    broken = ExampleInput(kind="image", shape=[2, 2], pixels="!!")
    record = replace(pair[0], examples=[replace(pair[0].examples[0], input=broken)])
    assert [card.image for card in cards(record)] == [""]
