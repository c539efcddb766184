from __future__ import annotations

import json
import operator
import random
import re
import shlex
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from small_records import HOSTILE, METRICS, grouped, record
from torch import nn

from rdrop_analysis.cli import main
from rdrop_analysis.errors import UsageError
from rdrop_analysis.gate_grammar import PARTS, parse_gate
from rdrop_analysis.gate_names import doubtful, known_metrics
from rdrop_analysis.gates import check
from rdrop_analysis.junit import junit_xml
from rdrop_probes.records import Failure, GateResult, RunRecord, in_unit

NET = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))
"""
OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq,
             "!=": operator.ne}  # fmt: skip


def gates(whole: RunRecord, *texts: str) -> list[GateResult]:
    return check(whole, [parse_gate(text) for text in texts])


def one(whole: RunRecord, text: str) -> GateResult:
    (found,) = gates(whole, text)
    return found


def test_a_difference_is_in_the_unit_of_the_comparison():
    whole = record()
    squares = [replace(c, unit="logits²", difference=0.7) for c in whole.comparisons if c.metric == "jacobian_fisher"]
    whole = replace(whole, comparisons=squares)
    assert one(whole, "jacobian_fisher.difference > 0.5").message == "rdrop: 0.7 > 0.5 logits²"


# --- the grammar


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it ends where a metric or a number"),
        ("epkl", "it ends where one of < <= > >= == !="),
        ("epkl >", "it ends where a metric or a number"),
        ("1 < 2", "names no metric"),
        ("epkl = 1", "'=' stands where one of"),
        ("epkl >> 1", "'>' stands where a metric"),
        ("0 < epkl < 1", "'<' stands where the end"),
        ("epkl > 1 and epkl < 2", "'and' stands where the end"),
        ("(epkl) > 1", r"'\(' stands where a metric"),
        ("epkl / 2 > 1", "'/' stands where one of"),
        ("epkl-0.1 > 0", "a minus has spaces around it"),
        ("alpha0.5.epkl > 0", "stand in backticks"),
        ("a.b.c.d > 1", "a name with a dot in it stands in backticks"),
        ("rdrop.epkl.foo > 1", "the parts of a metric are low, high, .*ratio.low"),
        ("epkl > \uff10.\uff11", "'\uff10' stands where a metric or a number"),
        ("epkl > 1 % 2", "'2' stands where the end"),
        ("epkl% > 1", "'%' stands where one of"),
        ("epkl > 1e999", "too large"),
        ("epkl > 1e308 * 1e308", "too large"),
        ("epkl > `", "stands where a metric"),
        ("epkl.__class__() > 1", r"'\(' stands where one of"),
        ("epkl > 1" + " + 1" * 999, "longer than 1000 characters"),
        ("epkl > \x1b[31m", "x1b' stands"),
    ],
)
def test_what_does_not_fit_the_grammar_is_refused_with_the_reason(text, reason):
    with pytest.raises(UsageError, match=reason) as caught:
        parse_gate(text)
    assert len(str(caught.value).splitlines()) == 1


def test_random_gates_say_what_arithmetic_says():
    rng = random.Random(0)  # noqa: S311 - numbers for a test
    outcomes = set()
    for seed in range(300):
        whole = record(seed=seed)
        (left, expected_left), (right, expected_right) = (random_side(rng, whole) for _ in range(2))
        sign = rng.choice(list(OPERATORS))
        if not any(metric in left + right for metric in METRICS):
            continue
        found = one(whole, f"{left} {sign} {right}")
        assert found.value == pytest.approx(expected_left, rel=1e-12, abs=1e-12)
        assert found.bound == pytest.approx(expected_right, rel=1e-12, abs=1e-12)
        assert found.failed == OPERATORS[sign](found.value, found.bound)
        outcomes.add((sign, found.failed))
    assert len(outcomes) >= 10


def random_side(rng: random.Random, whole: RunRecord) -> tuple[str, float]:
    """A sum of up to three products of up to two factors, and what it comes to."""
    text, total = "", 0.0
    for place in range(rng.randint(1, 3)):
        minus = rng.random() < 0.5
        factors = [random_factor(rng, whole) for _ in range(rng.randint(1, 2))]
        text += (" - " if minus else " + ") if place else ("-" if minus else "")
        text += rng.choice(["*", " * "]).join(text for text, _ in factors)
        total += (-1 if minus else 1) * float(np.prod([value for _, value in factors]))
    return text, total


def random_factor(rng: random.Random, whole: RunRecord) -> tuple[str, float]:
    if rng.random() < 0.4:
        number = rng.choice([f"{rng.randint(0, 9)}", f"{rng.random():.4f}", f"{rng.random():.3e}"])
        return number, float(number)
    metric, part = rng.choice(list(METRICS)), rng.choice(PARTS)
    candidate = rng.choice(["rdrop.", "`rdrop`.", ""])
    base, rdrop = (checkpoint.metrics[metric] for checkpoint in whole.checkpoints)
    if len(part) == 1 and hasattr(base, part[0]):
        name, found = rng.choice([("reference.", base), ("base.", base), (candidate, rdrop)])
        return f"{name}{metric}.{part[0]}", getattr(found, part[0])
    comparison = next(c for c in whole.comparisons if c.metric == metric)
    field = part[0] if len(part) == 1 else {"difference": part[1], "ratio": f"ratio_{part[1]}"}[part[0]]
    return f"{candidate}{metric}.{'.'.join(part)}", getattr(comparison, field)


# --- who is meant, and what is missing


def test_a_metric_without_a_name_is_that_of_each_candidate():
    whole = record(("base", "one", "two"))
    assert [found.subject for found in gates(whole, "epkl > 0.05", "reference.epkl > 0.05", "two.epkl > one.epkl")] == [
        "one", "two", "base", "two",
    ]  # fmt: skip
    assert one(record(("only",)), "epkl > 0.05").subject == "only"


def test_groups_are_candidates_and_their_members_are_not():
    whole = grouped()
    assert [found.subject for found in gates(whole, "epkl > 0")] == ["rdrop", "alone"]
    found = gates(whole, "epkl > reference.epkl")[0]
    base, rdrop = whole.groups
    assert (found.value, found.bound) == (rdrop.metrics["epkl"].estimate, base.metrics["epkl"].estimate)
    assert one(whole, "rdrop.epkl.difference > 0").value == whole.group_comparisons[0].difference
    assert one(whole, "base-2.epkl > 0").value == whole.checkpoints[1].metrics["epkl"].estimate


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("epk > 1", "no metric of this run: there is no 'epk', but epkl"),
        ("rdop.epkl > 1", "no checkpoint or group of this run: there is no 'rdop', but rdrop"),
        ("__class__.__mro__ > 1", "there is no '__mro__'"),
        ("epkl.foo > 1", "names no part of epkl: there is no 'foo', but low, high, mask_low"),
        ("zzz_eval > 1", "'zzz_eval', but nll_eval, "),
        ("qq > 1", "'qq', but accuracy_eval, epkl, jacobian_fisher, nll_eval$"),
        ("`reference`.epkl > 1", "no checkpoint or group of this run: there is no 'reference'"),
    ],
)
def test_what_is_not_there_is_a_usage_error(text, reason):
    with pytest.raises(UsageError, match=reason):
        gates(record(), text)


def test_there_is_no_reference_where_nothing_is_compared():
    with pytest.raises(UsageError, match="nothing to compare with"):
        gates(record(("only",)), "epkl > reference.epkl")


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
@pytest.mark.parametrize("text", ["epkl.low > 1", "epkl.low < 1", "epkl.low != 1", "1 > 0 * epkl.low"])
def test_a_missing_number_never_passes(value, text):
    whole = record()
    rdrop = whole.checkpoints[1]
    lost = replace(rdrop, metrics={**rdrop.metrics, "epkl": replace(rdrop.metrics["epkl"], low=value)})
    found = one(replace(whole, checkpoints=[whole.checkpoints[0], lost]), text)
    assert found.failed
    assert "epkl.low is missing" in found.message


def test_a_metric_that_only_others_have_never_passes():
    whole = record()
    lost = replace(whole.checkpoints[1], metrics={})
    assert one(replace(whole, checkpoints=[whole.checkpoints[0], lost]), "epkl < 0").failed


def test_the_reference_has_no_comparison_to_pass_by():
    assert one(record(), "reference.epkl.difference > 99").failed


def test_gates_go_by_the_unit_shown():
    whole = record()
    nats, bits = one(whole, "epkl > 0.05"), one(in_unit(whole, "bits"), "epkl > 0.05")
    assert bits.value == pytest.approx(nats.value / np.log(2))
    assert nats.message.endswith("0.05 nats")
    assert bits.message.endswith("0.05 bits")
    assert one(whole, "epkl.ratio > 0").message.endswith("> 0")


@pytest.mark.parametrize(
    ("text", "bound", "message"),
    [
        ("accuracy_eval > 1%", 0.01, r"% > 1%$"),
        ("accuracy_eval > 0.01", 0.01, r"% > 1%$"),
        ("accuracy_eval > 0.1 * 5 %", 0.005, r"% > 0.5%$"),
        ("accuracy_eval.difference > -100%", -1.0, r"% > -100%$"),
        ("accuracy_eval.ratio > 1%", 0.01, r" > 0.01$"),
        ("accuracy_eval * accuracy_eval > 1%", 0.0001, None),
    ],
)
def test_shares_are_fractions_or_percents_and_are_told_as_shown(text, bound, message):
    found = one(record(), text)
    if message is None:
        assert "%" not in found.message
    else:
        assert found.bound == pytest.approx(bound)
        assert re.search(message, found.message)


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        ("flip_rate > 1", True),
        ("-2 > accuracy_gap.difference", True),
        ("flip_rate > 1%", False),
        ("flip_rate > 0.5", False),
        ("flip_rate > 2 * reference.flip_rate", False),
        ("flip_rate.ratio > 1.1", False),
        ("flip_rate * epkl > 2", False),
        ("epkl > 2", False),
    ],
)
def test_a_share_held_against_all_or_more_is_warned_of(text, warned):
    said = list(doubtful([parse_gate(text)]))
    assert len(said) == warned
    assert not warned or re.search("is a fraction, and -?[12] is -?[12]00%; write -?[12]% for", said[0])


def test_both_numbers_are_told_apart_in_the_message():
    whole = record()
    value = whole.checkpoints[1].metrics["epkl"].estimate
    message = one(whole, f"epkl < {value + 1e-9!r}").message
    left, right = message.removeprefix("rdrop: ").removesuffix(" nats").split(" < ")
    assert float(left) < float(right)


@pytest.mark.parametrize("name", HOSTILE)
def test_any_name_can_be_quoted(name):
    whole = record(("base", name))
    found = one(whole, f"`{name.replace('`', '``')}`.epkl > 0.05")
    assert found.value == whole.checkpoints[1].metrics["epkl"].estimate
    assert "\n" not in found.message
    assert "\x1b" not in found.message


# --- JUnit


def test_junit_survives_any_name():
    whole = replace(record(("base", *HOSTILE)), failures=[Failure(checkpoint="\x00<bad>", message="]]>", exit_code=4)])
    found = gates(whole, "epkl > 0.5", "epkl.low >= 0")
    root = ElementTree.fromstring(junit_xml(whole, found, "no 'such' \x01 metric"))  # noqa: S314 - ours
    (suite,) = root
    failed = sum(gate.failed for gate in found)
    assert 0 < failed < len(found)
    assert len(suite.findall("testcase")) == len(found) + 2 == int(suite.attrib["tests"])
    assert len(suite.findall("testcase/failure")) == failed == int(root.attrib["failures"])
    assert len(suite.findall("testcase/error")) == 2 == int(root.attrib["errors"])
    assert suite[0].attrib["classname"] == "__class__"
    assert suite[0].attrib["name"] == "epkl > 0.5"


# --- the command


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's directory: net.py, two state dicts, test.npz."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    generator = np.random.default_rng(0)
    np.savez("test.npz", x=generator.normal(size=(40, 5)), y=generator.integers(0, 3, 40))
    for seed, name in enumerate(("baseline.pt", "rdrop.pt")):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))
        torch.save(net.state_dict(), name)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


COMMON = ("--model", "net.py:Net", "--data", "test.npz", "--sub-models", "4", "--format", "json", "--output", "out")
MEASURE = ("baseline.pt", "rdrop.pt", "--probes", "pairwise_kl,gap", *COMMON)


def stored(directory: str = "out") -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(Path(directory, "results.json").read_text())["gates"]
    return found


def test_gates_that_pass_and_fail_end_with_their_exit_codes_and_are_kept(project):
    done = run(*MEASURE, "--fail-if", "epkl < 0", "--fail-if", "epkl > 9 * reference.epkl", "--junit", "ci/gates.xml")
    assert done.exit_code == 0, done.output
    assert done.stderr.count("gate passed: ") == 2
    assert [gate["failed"] for gate in stored()] == [False, False]
    done = run(*MEASURE, "--fail-if", "epkl < 0", "--fail-if", "epkl.high > 0.001", "--junit", "ci/gates.xml")
    assert done.exit_code == 1
    (line,) = [line for line in done.stderr.splitlines() if "FAILED" in line]
    value = stored()[1]["value"]
    assert line == f"gate FAILED: epkl.high > 0.001 - rdrop: {value:.4g} > 0.001 nats"
    root = ElementTree.parse("ci/gates.xml").getroot()  # noqa: S314 - ours
    assert (root.attrib["tests"], root.attrib["failures"], root.attrib["errors"]) == ("2", "1", "0")


def test_quiet_prints_failing_gates_alone(project):
    done = run(*MEASURE, "-q", "--fail-if", "epkl < 0", "--fail-if", "epkl > 0")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("epkl > > 1", "is no gate"),
        ("epk > 1", "there is no 'epk', but epkl"),
        ("rdop.epkl > 1", "there is no 'rdop', but rdrop"),
        ("epkl.foo > 1", "there is no 'foo', but low, high"),
    ],
)
def test_a_malformed_gate_ends_before_anything_is_measured(project, expression, reason):
    Path("old.xml").write_text("an earlier run passed")
    done = run(*MEASURE, "--fail-if", expression, "--junit", "old.xml")
    assert done.exit_code == 2
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not Path("out").exists()


def test_a_metric_that_no_probe_gave_ends_with_2_and_results_are_kept(project):
    done = run(*MEASURE, "--fail-if", "jacobian_fisher > 1", "--junit", "gates.xml")
    assert done.exit_code == 2
    assert "there is no 'jacobian_fisher'" in done.stderr
    assert stored() == []
    assert "jacobian_fisher" in Path("gates.xml").read_text()


def test_a_checkpoint_that_failed_goes_before_a_gate_that_did(project):
    Path("broken.pt").write_bytes(b"nothing")
    done = run(*MEASURE[:1], "broken.pt", *MEASURE[2:], "--fail-if", "epkl > 0", "--junit", "gates.xml")
    assert done.exit_code == 4
    assert "gate FAILED" in done.stderr
    root = ElementTree.parse("gates.xml").getroot()  # noqa: S314 - ours
    assert (root.attrib["failures"], root.attrib["errors"]) == ("1", "1")
    assert run("report", "out", "--format", "json", "--fail-if", "epkl < 0").exit_code == 4


def test_an_old_junit_file_does_not_outlive_a_run_that_could_not_begin(project):
    Path("gates.xml").write_text("an earlier run passed")
    Path("baseline.pt").write_bytes(b"nothing")
    assert run("baseline.pt", *COMMON, "--fail-if", "epkl > 0", "--junit", "gates.xml").exit_code == 4
    assert not Path("gates.xml").exists()


def test_junit_without_gates_is_refused(project):
    done = run(*MEASURE, "--junit", "gates.xml")
    assert (done.exit_code, "--fail-if" in done.stderr) == (2, True)


def test_bits_are_what_gates_go_by_when_they_are_shown(project):
    assert run(*MEASURE, "--unit", "bits", "--fail-if", "epkl > 0").exit_code == 1
    value = stored()[0]["value"]
    shown = json.loads(Path("out/results.json").read_text())["checkpoints"][1]["metrics"]["epkl"]["estimate"]
    assert value == pytest.approx(shown / np.log(2))


def test_gates_are_tried_on_results_without_measuring(project):
    assert run(*MEASURE).exit_code == 0
    before = Path("out/results.json").read_bytes()
    assert run("report", "out", "--format", "markdown", "--fail-if", "epkl > 0").exit_code == 1
    assert run("report", "out", "--format", "markdown", "--fail-if", "epkl < 0").exit_code == 0
    assert run("report", "out", "--format", "markdown", "--fail-if", "epkl").exit_code == 2
    assert Path("out/results.json").read_bytes() == before


def test_gates_of_shards_are_checked_where_they_come_together(project):
    for number in (1, 2):
        done = run(*MEASURE, "--batch-size", "10", "--shard", f"{number}/2", "--fail-if", "epkl > 0")
        assert done.exit_code == 0, done.output
    merged = run("merge", "out", "--model", "net.py:Net")
    assert merged.exit_code == 1
    assert "gate FAILED: epkl > 0" in merged.stderr
    assert run("merge", "out", "--model", "net.py:Net", "--fail-if", "epkl < 0").exit_code == 0


def test_every_metric_that_is_measured_may_be_named_before(project):
    assert run("baseline.pt", *COMMON).exit_code == 0
    (checkpoint,) = json.loads(Path("out/results.json").read_text())["checkpoints"]
    assert set(checkpoint["metrics"]) <= known_metrics()


def test_the_example_of_a_ci_job_runs(project):
    job = yaml.safe_load(Path(__file__).parents[1].joinpath("examples", "gates.yml").read_text())
    steps = [step["run"] for step in job["jobs"]["consistency"]["steps"] if "run" in step]
    (command,) = [shlex.split(step.replace("\\\n", "")) for step in steps if step.startswith("rdrop-analyze")]
    done = run(*command[1:])
    assert isinstance(done.exception, SystemExit | None), done.output
    assert done.exit_code in (0, 1), done.output
    assert Path(command[command.index("--junit") + 1]).exists()
    assert len(stored(command[command.index("--output") + 1])) == command.count("--fail-if")


def test_junit_that_cannot_be_written_is_named_before_anything_is_measured(project):
    Path("file").write_text("no directory")
    done = run(*MEASURE, "--fail-if", "epkl > 0", "--junit", "file/gates.xml")
    assert done.exit_code == 4
    assert "Error: cannot write to file: Not a directory; name another with --junit" in done.stderr
    assert not Path("out").exists()
