"""The page from verdict to method: causes, theory, advice, gates and groups, with whatever parts a run has."""

import re
from dataclasses import replace

import pytest
from test_report_page import parsed

from rdrop_probes.records import Averaging, Axis, Metric, NoiseFloor, in_unit
from rdrop_reports.advice import advice, averaging_summary, temperature_table
from rdrop_reports.averaging import change, compared, curve
from rdrop_reports.cause_tables import attribution_table
from rdrop_reports.claims import claims, ranks
from rdrop_reports.comparison_tables import candidates_table, comparison_tables
from rdrop_reports.figures import FIGURES, draw_all, figure_bytes
from rdrop_reports.figures.style import DARK, LIGHT
from rdrop_reports.more import more
from rdrop_reports.outcome import ratio_text
from rdrop_reports.page import render_page
from rdrop_reports.sections import sections
from rdrop_reports.select import as_rows, mark_of, place_of
from rdrop_reports.svg import recoloured, slim
from rdrop_reports.verdict import caveats, checkpoint_verdicts, headline, verdicts
from rdrop_reports.words import WORDS
from tests.reports.rich_samples import everything, rich, sweep_change

CHAPTERS = ["verdict", "groups", "over", "gap", "spread", "examples", "noise_floor", "convergence", "sites", "theory"]


@pytest.fixture(scope="module")
def page(full):
    return render_page(*full)


def changed(record, **parts):
    """The record with parts of its last checkpoint replaced."""
    return replace(record, checkpoints=[*record.checkpoints[:-1], replace(record.checkpoints[-1], **parts)])


def words_of(page):
    """What a reader reads: without style and script."""
    return "".join(parsed(re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL)).text)


def takeaway(name, record):
    return FIGURES[name].takeaway(record, None)


def bounds(low, high, unit="nats"):
    return Metric(estimate=(low + high) / 2, low=low, high=high, unit=unit)


def test_everything_is_told_in_order(page):
    ids = [attrs["id"] for tag, attrs in parsed(page).tags if tag == "section"]
    assert ids == [*CHAPTERS, "claims", "advice", "setup", "definitions"]


def test_whatever_a_cell_links_to_is_defined(page):
    tags = parsed(page).tags
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    links = {attrs["href"] for tag, attrs in tags if tag == "a"}
    assert len(ids) == len(set(ids))
    assert links <= {f"#{name}" for name in ids}
    assert {f"#def-{name}" for name in ("word-only", "word-enough", "word-noise", "word-rate")} <= links
    assert all(attrs["title"] for tag, attrs in tags if attrs.get("class") == "metric")


def test_every_word_is_used_somewhere(full):
    found = {cell.metric for s in sections(full[0]).values() for t in (*s.tables, *s.folded)
             for row in (t.head, *t.rows) for cell in row}  # fmt: skip
    assert set(WORDS) - found <= {"word-sub-model", "word-eval", "word-mean", "word-interval"}


def test_parts_that_are_missing_are_left_out_and_said_how_to_get(pair):
    ids = [attrs["id"] for tag, attrs in parsed(render_page(*pair)).tags if tag == "section"]
    assert not {"groups", "over", "noise_floor", "claims", "advice"} & set(ids)
    options = [missing.option for missing in more(pair[0])]
    assert options == [
        "--probes default,attribution", "--dropout 0.05,0.1,0.2", "--probes default,freedom",
        "--probes default,noise_floor",
        "--group NAME=GLOB",
    ]  # fmt: skip


def test_nothing_is_missing_from_a_run_that_has_everything(full):
    assert more(full[0]) == []


def test_half_measured_parts_break_nothing(full):
    record = changed(
        full[0], site_predictions=[], attribution_groups=[], temperature=None, temperature_mean=None, metrics={},
        averaging=replace(full[0].checkpoints[-1].averaging, enough={}),
        sweep=[replace(p, predicted=None, ratio=None) for p in full[0].checkpoints[-1].sweep],
        noise_floor=[NoiseFloor(name="torch.compile", divergence=None, reason="no compiler")],
    )  # fmt: skip
    parsed(render_page(replace(record, axis=Axis(name="alpha", values={})), None))


def test_divergences_of_every_part_follow_the_unit(full):
    text = words_of(render_page(in_unit(full[0], "bits"), full[1]))
    assert " bits" in text
    assert " nats" not in text


# size


def test_two_checkpoints_with_everything_stay_below_a_megabyte():
    assert len(render_page(*everything(examples=2000, layers=12)).encode()) < 1_000_000


def test_a_hundred_checkpoints_stay_below_five_and_say_what_is_left_out():
    record, per_example = everything(tuple("abcdefghijklmnopqrst"), seeds=5, examples=20)
    page = render_page(record, per_example)
    assert len(page.encode()) < 5_000_000
    text = words_of(page)
    assert "19 groups" in text
    assert "EPKL site by site, 6 of 100 checkpoints" in text
    assert "96 more checkpoints are in the tables." in text
    assert "All metrics: " in text
    drawn = draw_all(record, None, names=["epkl"])["epkl"]
    assert b"24 of 100 checkpoints" in figure_bytes(drawn, "svg", live_text=True)


def test_many_candidates_share_a_table(make_sample):
    few, many = (make_sample(tuple(f"run{i}" for i in range(n)), examples=20)[0] for n in (4, 30))
    assert candidates_table(few, "epkl") is None
    assert len(candidates_table(many, "epkl").rows) == 29
    assert (len(comparison_tables(few)), len(comparison_tables(many))) == (3, 5)
    rows = as_rows(many)
    assert len({c.name for c in rows}) == len(rows) == 24
    assert rows[0].name == many.reference


@pytest.fixture(scope="module")
def pictures(full):
    return {name: figure_bytes(figure, "svg", live_text=True) for name, figure in draw_all(*full).items()}


def test_pictures_lose_bytes_and_no_text(pictures):
    for name, svg in pictures.items():
        small = slim(svg)
        assert len(small) < 0.9 * len(svg)
        assert re.findall(b">([^<\n]+)</text>", small) == re.findall(b">([^<\n]+)</text>", svg), name


def test_pictures_are_dark_as_if_drawn_so(full, pictures):
    dark, drawn_again = draw_all(*full, DARK), 0
    for name, svg in pictures.items():
        ours = recoloured(slim(svg), LIGHT, DARK)
        drawn_again += ours is None
        theirs = slim(figure_bytes(dark[name], "svg", DARK, live_text=True))
        assert ours is None or nameless(ours) == nameless(theirs), name
    assert drawn_again == 2  # their points are pixels


def nameless(svg):
    """Names of marks and clips are made from colours as well; some marks are defined in the order of their names."""
    return sorted(re.sub(rb'id="[^"]*"|#[mpC][0-9a-z_]+(?="|\))', b"", svg).split(b"><"))


# gates


def test_gates_are_above_all_else_and_failed_ones_first(page, pair):
    assert page.index("1 of 2 gates failed") < page.index("<nav")
    assert page.index("epkl &gt; 0.01") < page.index("nll_gap &gt; 0.5")
    assert "gates" not in words_of(render_page(*pair))


def test_passed_gates_are_said_to_be(full):
    record = replace(full[0], gates=[gate for gate in full[0].gates if not gate.failed])
    text = words_of(render_page(record, None))
    assert "✓ 1 gate passed" in text
    assert "failed" not in text


# groups


def test_groups_are_judged_over_their_seeds(full):
    (verdict,) = verdicts(full[0])
    assert "rdrop is more consistent than baseline across training seeds" in verdict.sentence
    assert "its mean EPKL over 2 training seeds is" in verdict.sentence
    assert "interval over seeds" in verdict.sentence
    assert "effect size" in verdict.sentence
    assert headline(full[0]) == "rdrop is more consistent than baseline."
    assert any("(2 each)" in note for note in caveats(full[0]))
    assert not any("one checkpoint with one" in note for note in caveats(full[0]))


def test_one_training_seed_proves_nothing():
    record = rich(seeds=1, examples=60)[0]
    (verdict,) = verdicts(record)
    assert verdict.outcome == "no difference shown"
    assert "this may be the seed's doing" in verdict.sentence
    assert any("(1 each), all on these examples." in note for note in caveats(record))
    assert any("nothing is tested of baseline and rdrop as a group" in note for note in caveats(record))
    assert "1 verdict on single checkpoints" in words_of(render_page(record, None))


def test_a_group_that_was_not_compared_is_said_to_be(full):
    (verdict,) = verdicts(replace(full[0], group_comparisons=[]))
    assert verdict.outcome == "not compared"


def test_checkpoints_have_the_colour_of_their_group_and_a_mark_of_their_own(full):
    names = [c.name for c in full[0].checkpoints]
    assert [place_of(full[0], name) for name in names] == [0, 0, 1, 1]
    assert [mark_of(full[0], name) for name in names] == [0, 1, 0, 1]


# causes


def test_the_site_with_the_most_is_named_only_if_it_stands_out(pair):
    record = rich(("model",))[0]
    rows = record.checkpoints[0].attribution
    first = replace(rows[0], site="first", only=bounds(0.5, 0.6))
    second = replace(rows[1], site="second", only=bounds(0.3, 0.4))
    clear = takeaway("attribution", changed(record, attribution=[second, first]))
    assert first.site in clear
    assert "not clearly above" not in clear
    close = replace(second, only=bounds(0.45, 0.55))
    assert f"not clearly above {second.site}" in takeaway("attribution", changed(record, attribution=[first, close]))


def test_a_site_that_cannot_be_switched_says_why():
    table = attribution_table(rich(("model",))[0])
    (row,) = [row for row in table.rows if row[0].text == "odd.path"]
    assert row[3].text == "not measured"
    assert "boolean mask" in row[3].note


@pytest.mark.parametrize(("low", "high", "hedged"), [(0.01, 0.02, False), (-0.01, 0.02, True)])
def test_interaction_is_hedged_by_its_interval(low, high, hedged):
    record = rich(("model",))[0]
    metrics = record.checkpoints[0].metrics | {"epkl_interaction": bounds(low, high)}
    assert ("no interaction is shown" in takeaway("attribution_groups", changed(record, metrics=metrics))) == hedged


# theory


@pytest.mark.parametrize(
    ("first", "last", "change", "words"),
    [
        ((1.0, 1.2), (1.1, 1.5), (0.2, 0.1, 0.3), "a change of 0.20 [0.10, 0.30]: closer to 1 the smaller the noise"),
        ((1.0, 1.1), (1.5, 1.6), (0.5, -0.1, 1.1), "no change with the rate is shown"),
        ((1.8, 1.9), (1.1, 1.2), (-0.7, -0.8, -0.6), "not closer to 1 as the noise falls"),
        ((0.8, 0.9), (1.1, 1.2), (0.3, 0.2, 0.4), "on the other side of 1"),
    ],
)
def test_the_sweep_concludes_what_the_paired_change_allows(first, last, change, words):
    record = rich(("model",))[0]
    points = record.checkpoints[0].sweep
    ends = [replace(point, ratio=bounds(*b, "")) for point, b in ((points[-1], last), (points[0], first))]
    assert words in takeaway("sweep", changed(record, sweep=ends, sweep_change=sweep_change(*change)))
    assert takeaway("sweep", changed(record, sweep=ends, sweep_change=None)).endswith(" at 0.3 for model.")


def test_rankings_name_what_ranks_alike_and_count_the_rest():
    record = rich(tuple("abcde"), examples=60)[0]
    (sentence,) = ranks(record)
    assert "Of 5 checkpoints" in sentence
    assert "Predicted EPKL (0.990, p < 0.001)" in sentence
    assert "1 other is not shown to" in sentence
    unclear = replace(record, rankings=[replace(r, p_value=0.3) for r in record.rankings])
    assert ranks(unclear) == ["No metric is shown to rank the 5 checkpoints as EPKL does."]
    few = replace(record, rankings=[replace(r, n=4) for r in record.rankings])
    assert ranks(few) == ["4 checkpoints are too few to show that anything ranks them as EPKL does."]
    seeds = replace(record, rankings=[replace(r, p_value=None) for r in record.rankings])
    (sentence,) = ranks(seeds)
    assert "not an independent sample" in sentence
    assert "Predicted EPKL (0.990)" in sentence


def test_the_claims_give_epsilon_and_freedom(pair):
    record = rich()[0]
    epkl = next(c for c in record.comparisons if c.metric == "epkl")
    compared_too = [*record.comparisons, replace(epkl, metric="fisher_trace")]
    eps, freedom = claims(replace(record, comparisons=compared_too))
    assert "for baseline and" in eps
    assert "Fisher trace, parameters, as a multiple of that of baseline" in freedom
    assert "(lower)" in freedom
    assert claims(pair[0]) == []


def test_where_there_are_groups_claims_and_takeaways_are_over_seeds(full):
    """One checkpoint's difference, however sure on its examples, may be its seed's doing."""
    record, names = full[0], ("fisher_trace", "jacobian_fisher")
    epkl = next(c for c in record.comparisons if c.metric == "epkl")
    over_seeds = next(c for c in record.group_comparisons if c.metric == "epkl")
    unclear = replace(over_seeds, difference=-1.0, low=-3.0, high=1.0, ratio=0.8, ratio_low=0.5, ratio_high=1.3)
    record = replace(
        record,
        comparisons=[*record.comparisons, *(replace(epkl, metric=name) for name in names)],
        group_comparisons=[*record.group_comparisons, *(replace(unclear, metric=name) for name in names)],
    )
    end = "as a multiple of that of baseline: 0.8 [0.5, 1.3] for rdrop (no difference shown)."
    assert claims(record)[-1] == f"Fisher trace, parameters over training seeds, {end}"
    assert takeaway("jacobian", record).startswith(f"Jacobian, Fisher-weighted over training seeds, {end}")
    bound = Metric(estimate=0.0612, unit="nats", n=2)
    held = [replace(g, metrics=g.metrics | {"constraint_epsilon": bound}) for g in record.groups]
    first = "With 95% confidence the constraint, mean EPKL over training seeds ≤ ε, holds from this ε on, in nats"
    assert claims(replace(record, groups=held))[0] == f"{first}: 0.0612 for baseline and 0.0612 for rdrop."
    untold = replace(record, group_comparisons=[])
    assert not any("Fisher trace" in sentence for sentence in claims(untold))


def test_a_score_is_said_to_differ_only_where_the_adjusted_p_agrees(full):
    def contexts(**changes):
        record = replace(
            full[0],
            comparisons=[replace(c, **changes) if c.metric == "accuracy_eval" else c for c in full[0].comparisons],
            group_comparisons=[replace(c, **changes) for c in full[0].group_comparisons],
        )
        return {verdict.context for verdict in (*verdicts(record), *checkpoint_verdicts(record)[:1])}

    worse = {"difference": -0.01, "low": -0.019, "high": -0.001}
    numbers = "(−1.0 [−1.9, −0.1] percentage points)."  # noqa: RUF001 - minus signs
    assert contexts(**worse, p_adjusted=0.03) == {f"Its eval accuracy is lower {numbers}"}
    adjusted = "No difference in eval accuracy is shown once adjusted for the number of metrics tested"
    assert contexts(**worse, p_adjusted=0.3) == {f"{adjusted} {numbers}"}
    assert contexts(difference=0.0, low=-0.01, high=0.01) == {
        "No difference in eval accuracy is shown (0 [−1.0, 1.0] percentage points)."  # noqa: RUF001 - minus signs
    }


def test_a_verdict_over_seeds_adds_up(full):
    record = full[0]
    means = {"baseline": 0.0738, "rdrop": 0.0441}
    groups = [replace(g, metrics={"epkl": Metric(estimate=means[g.name], unit="nats", n=2)}) for g in record.groups]
    (epkl,) = [c for c in record.group_comparisons if c.metric == "epkl"]
    found = replace(epkl, difference=-0.0297, low=-0.051, high=-0.009, ratio=0.6, ratio_low=0.3, ratio_high=1.1)

    def sentence(**changes):
        return verdicts(replace(record, groups=groups, group_comparisons=[replace(found, **changes)]))[0].sentence

    shown = sentence()
    assert "is 0.044 nats against 0.074 over 2, a difference of −0.030 [−0.051, −0.009]" in shown  # noqa: RUF001 - minus
    assert "and a ratio of 0.600; effect" in shown
    why = "; the interval excludes 0, but not once adjusted for the number of metrics tested."
    assert sentence(p_adjusted=0.3).endswith(why)


def test_a_ratio_whose_interval_denies_the_difference_is_given_without_it(full):
    (found,) = [c for c in full[0].group_comparisons if c.metric == "epkl"]
    edge = replace(found, difference=-0.03, low=-0.051, high=-0.009, ratio=0.6, ratio_low=0.3, ratio_high=1.1)
    assert ratio_text(edge) == "0.600"
    assert ratio_text(replace(edge, high=0.01)) == "0.6 [0.3, 1.1]"
    assert ratio_text(replace(edge, ratio_high=0.9)) == "0.6 [0.3, 0.9]"


# advice


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-0.2, -0.1, "Average with dropout on: the mean of 32 passes lowers NLL by 0.15 [0.10, 0.20]; 8 passes are"),
        (0.1, 0.2, "Keep dropout off: the mean of 32 passes raises NLL by 0.15 [0.10, 0.20]."),
        (-0.1, 0.2, "Keep dropout off, which is cheaper: the mean of 32 passes is not shown to change NLL"),
    ],
)
def test_averaging_is_advised_only_where_it_is_shown_to_help(low, high, words):
    record = rich(("model",))[0]
    points = [replace(p, difference=bounds(low, high)) for p in curve(record.checkpoints[0], "nll")]
    averaging = replace(record.checkpoints[0].averaging, points=points)
    (sentence,) = advice(changed(record, averaging=averaging))
    assert words in sentence


def test_in_regression_advice_is_of_the_squared_error():
    record = rich(("model",))[0]
    points = [replace(p, metric="mse", difference=bounds(-0.2, -0.1)) for p in curve(record.checkpoints[0], "nll")]
    record = changed(
        record, averaging=Averaging(points=points, enough={"mse": 8}), temperature=None, temperature_mean=None
    )
    (sentence,) = advice(record)
    assert "the mean of 32 passes lowers the squared error by 0.15 [0.10, 0.20]; 8 passes are enough." in sentence
    assert "NLL" not in sentence
    assert "lowers the squared error by" in takeaway("averaging", record)
    heads = [cell.text for cell in averaging_summary(record).head]
    assert heads[1:] == ["MSE, less eval", "Enough"]


def test_more_accuracy_is_better_and_more_nll_worse():
    checkpoint = rich(("model",))[0].checkpoints[0]
    up = [replace(compared(checkpoint, m), difference=bounds(0.1, 0.2)) for m in ("accuracy", "nll", "brier")]
    assert [change(point) for point in up] == ["better", "worse", "worse"]


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-0.1, 0.1, "is not shown to change the eval model's NLL"),
        (0.1, 0.3, "raises the eval model's NLL by 0.20 [0.10, 0.30]"),
        (-0.3, -0.1, "lowers the eval model's NLL by 0.20 [0.10, 0.30]"),
    ],
)
def test_a_temperature_is_said_to_help_only_where_it_does(low, high, words):
    record = rich(("model",))[0]
    found = replace(record.checkpoints[0].temperature, nll_difference=bounds(low, high))
    assert words in advice(changed(record, temperature=found))[0]


def test_a_temperature_of_the_mc_mean_is_told_beside_that_of_the_eval_model():
    record = rich(("model",))[0]
    found = replace(record.checkpoints[0].temperature_mean, nll_difference=bounds(-0.3, -0.1))
    (sentence,) = advice(changed(record, temperature_mean=found))
    assert sentence.index("Dividing the logits by") < sentence.index("Dividing the logarithms of the MC mean by")
    assert sentence.endswith("fitted on other examples, lowers its NLL by 0.20 [0.10, 0.30].")
    assert [row[1].text for row in temperature_table(record).rows] == ["eval model", "MC mean"]
    alone = changed(record, temperature=None, averaging=None)
    assert [row[1].text for row in temperature_table(alone).rows] == ["MC mean"]
    assert advice(alone)[0].startswith("model: Dividing the logarithms of the MC mean by")


# noise


@pytest.mark.parametrize(
    ("noise", "words"),
    [
        (1e-5, "at least 3 700 for model (a)"),
        (0.0078, "at least 4.7 for model (a)"),
        (0.0371, "not clear of 1 for model (a)"),
        (0.05, "not clear of 1 for model (a)"),
        (0.0, "endless, with a noise of exactly 0, for model"),
        (1e-13, "at least a million for model"),
    ],
)
def test_epkl_is_read_against_the_largest_noise(noise, words):
    record = rich(("model",))[0]
    metrics = record.checkpoints[0].metrics | {"epkl": bounds(0.0371, 0.05)}
    rows = [NoiseFloor(name=name, divergence=Metric(estimate=m, unit="nats")) for name, m in (("a", noise), ("b", 0))]
    record = changed(record, metrics=metrics, noise_floor=rows)
    assert words in takeaway("noise_floor", record).replace("\u202f", " ")
    assert draw_all(record, None, names=["noise_floor"])
