from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

from rdrop_analysis import analyze
from rdrop_analysis.arms import clustered
from rdrop_analysis.checkpoints import save_checkpoint
from rdrop_analysis.cli import main
from rdrop_analysis.errors import UsageError
from rdrop_analysis.grouping import line_up
from rdrop_analysis.models import build
from rdrop_probes.records import CheckpointResult

SMALL = {"in_features": 64, "hidden": [8], "n_classes": 10, "dropout": 0.3}
COMMON = ("--limit", "40", "--sub-models", "4", "--probes", "pairwise_kl,gap", "--format", "json", "--strategy", "loop")


def net(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build("mlp", SMALL)


def save(path: str, weights: int, **training: object) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(
        Path(path), net(weights), architecture="mlp", arguments=SMALL, data="digits", training=training
    )  # fmt: skip


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two arms of three seeds, one of a single seed."""
    monkeypatch.chdir(tmp_path)
    for seed in range(3):
        save(f"runs/base-{seed}.pt", seed, alpha=0.0, seed=seed)
        save(f"runs/rdrop-{seed}.pt", seed + 10, alpha=1.0, seed=seed)
    save("runs/strong.pt", 20, alpha=5.0, seed=0)
    save("runs/typed.pt", 21, optimizer="Adam")
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, *COMMON])


def record(directory: str = "rdrop-report") -> dict:
    return json.loads(Path(directory, "results.json").read_text())


def codes(found: dict) -> list[str]:
    return [warning["code"] for warning in found["warnings"]]


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(30, 64, generator=generator), torch.randint(0, 10, (30,), generator=generator)


def test_groups_are_measured_and_compared_over_their_seeds():
    done = run("--group", "base=runs/base-*.pt", "--group", "rdrop=runs/rdrop-*.pt")
    assert done.exit_code == 0, done.output
    found = record()
    assert [c["name"] for c in found["checkpoints"]] == [f"{x}-{i}" for x in ("base", "rdrop") for i in range(3)]
    base, rdrop = found["groups"]
    assert (base["name"], base["members"]) == ("base", ["base-0", "base-1", "base-2"])
    estimates = [c["metrics"]["epkl"]["estimate"] for c in found["checkpoints"]]
    assert base["metrics"]["epkl"]["estimate"] == pytest.approx(sum(estimates[:3]) / 3)
    assert rdrop["metrics"]["epkl"]["n"] == 3
    assert found["reference_group"] == "base"
    (epkl,) = (c for c in found["group_comparisons"] if c["metric"] == "epkl")
    assert (epkl["reference"], epkl["candidate"], epkl["test"]) == ("base", "rdrop", "t test paired by seed")
    assert epkl["difference"] == pytest.approx((sum(estimates[3:]) - sum(estimates[:3])) / 3)
    assert {r["metric"] for r in found["rankings"]} == {"kl_sub_to_eval", "kl_eval_to_sub", "kl_mean_to_eval"}
    assert all(r["correlation"] is not None and r["p_value"] is None for r in found["rankings"])
    assert found["reference"] == "base-0"
    assert [c["candidate"] for c in found["comparisons"] if c["metric"] == "epkl"] == [
        c["name"] for c in found["checkpoints"][1:]
    ]


@pytest.mark.parametrize(
    ("trainings", "groups", "expected"),
    [
        ([{"alpha": 0, "seed": 0}, {"alpha": 1, "seed": 0}, {"alpha": 5, "seed": 0}], {}, False),
        ([{"alpha": 0, "seed": 0}, {"alpha": 1, "seed": 0}, {"alpha": 1, "seed": 1}], {}, True),
        ([{"alpha": 0, "epoch": 1}, {"alpha": 0, "epoch": 2}, {"alpha": 0, "epoch": 3}], {}, True),
        ([{}, {}, {}], {}, False),
        ([{}, {}, {}], {"a": ["c0", "c1"]}, True),
        ([{}, {}, {}], {"a": ["c0", "gone"], "b": ["c1"], "c": ["c2"]}, False),
    ],
)
def test_seeds_and_epochs_of_one_training_are_no_independent_sample(trainings, groups, expected):
    checkpoints = [
        CheckpointResult(name=f"c{i}", path=None, sha256=None, n_parameters=0, architecture="", training=training)
        for i, training in enumerate(trainings)
    ]
    assert clustered(checkpoints, groups) is expected


def test_a_checkpoint_named_twice_is_measured_once_and_more_files_join_a_group():
    done = run("runs/base-0.pt", "--group", "base=runs/base-[01].pt", "--group", "base=runs/base-2.pt")
    assert done.exit_code == 0, done.output
    found = record()
    assert [c["name"] for c in found["checkpoints"]] == ["base-0", "base-1", "base-2"]
    assert found["groups"][0]["members"] == ["base-0", "base-1", "base-2"]
    assert found["group_comparisons"] == []


def test_seeds_are_counted_as_numbers_and_odd_names_are_taken_as_they_are(tmp_path):
    for name in ("s10.pt", "s9.pt", "s[1].pt"):
        Path(name).write_bytes(b"")
    found = line_up(None, {"all": "s[0-9]*.pt", "odd": Path("s[1].pt")})
    assert found.groups == {"all": ["s9", "s10"], "odd": ["s[1]"]}
    assert line_up(None, {"all": str(tmp_path / "**" / "base-?.pt")}).groups["all"] == ["base-0", "base-1", "base-2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "CHECKPOINT"),
        (("--group", "base=nowhere-*.pt"), "the group base is empty: nothing matches 'nowhere-*.pt'"),
        (("--group", "runs/base-*.pt"), "--group takes NAME=GLOB"),
        (("--group", "=runs/base-*.pt"), "--group takes NAME=GLOB"),
        (("--group", "a=runs/base-0.pt", "--group", "b=runs/base-*.pt"), "base-0 is in the groups a and b"),
        (("--group", "a=runs/base-0.pt", "--reference", "nobody"), "choose from a, base-0"),
        (
            ("--group", "a=runs/base-?.pt", "--over", "epoch"),
            "no number called 'epoch' is in the training settings (numbers there: alpha, seed) or the name of base-0",
        ),
        (("runs/typed.pt", "--over", "optimizer"), "the optimizer of typed is 'Adam', which is not a number"),
        (("runs/typed.pt", "--over", "no such"), "no number called 'no such' is in"),
        (("--group", "a=runs/base-?.pt", "--over", " "), "--over takes the name"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_measured(arguments, message):
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert message in next(line for line in done.output.splitlines() if line.startswith("Error: "))
    assert not Path("rdrop-report").exists()


def test_a_reference_may_be_a_group_or_a_checkpoint_of_one():
    for reference in ("rdrop", "rdrop-1"):
        done = run("--group", "base=runs/base-*.pt", "--group", "rdrop=runs/rdrop-*.pt", "--reference", reference)
        assert done.exit_code == 0, done.output
        found = record()
        assert found["reference_group"] == "rdrop"
        assert found["reference"] == ("rdrop-0" if reference == "rdrop" else "rdrop-1")
        assert {c["candidate"] for c in found["group_comparisons"]} == {"base"}


def test_one_seed_is_not_tested_and_said_to_be_one():
    assert run("--group", "base=runs/base-*.pt", "--group", "strong=runs/strong.pt").exit_code == 0
    found = record()
    assert codes(found) == ["one_seed"]
    assert "strong has one seed" in found["warnings"][0]["message"]
    assert {c["test"] for c in found["group_comparisons"]} == {"none, for want of seeds that differ"}
    assert all(c["p_value"] is None and c["low"] is None for c in found["group_comparisons"])
    assert found["groups"][1]["metrics"]["epkl"]["low"] is None


def test_what_speaks_against_seeds_of_one_training_is_said():
    Path("copy.pt").write_bytes(Path("runs/base-0.pt").read_bytes())
    save("again.pt", 33, alpha=1.0, seed=1)
    assert (
        run("--group", "mixed=runs/*-1.pt", "--group", "base=runs/base-[02].pt", "--group", "base=copy.pt").exit_code
        == 0
    )
    messages = {w["code"]: w["message"] for w in record()["warnings"]}
    assert "mixed differ in alpha" in messages["not_only_seeds"]
    assert "mixed has equal training seeds" in messages["same_seed"]
    assert "base has equal files" in messages["same_weights"]


def test_a_member_that_cannot_be_measured_is_missed():
    Path("runs/base-3.pt").write_bytes(b"nonsense")
    Path("bad.pt").write_bytes(b"nonsense")
    done = run("--group", "base=runs/base-*.pt", "--group", "rdrop=runs/rdrop-*.pt", "--group", "bad=bad.pt")
    assert done.exit_code == 4, done.output
    found = record()
    assert [group["name"] for group in found["groups"]] == ["base", "rdrop"]
    assert codes(found) == ["group_incomplete", "group_incomplete"]
    assert "base is of 3 checkpoint(s): 1 not measured" in found["warnings"][0]["message"]


def test_shards_of_groups_are_merged_to_the_same_numbers():
    arguments = ("--group", "base=runs/base-*.pt", "--group", "rdrop=runs/rdrop-*.pt", "--over", "alpha")
    assert run(*arguments, "--output", "whole").exit_code == 0
    for part in ("1/2", "2/2"):
        assert run(*arguments, "--output", "parts", "--shard", part).exit_code == 0
    save("runs/base-9.pt", 9)  # it matches, and was not measured
    done = CliRunner().invoke(main, ["merge", "parts"])
    assert done.exit_code == 0, done.output
    whole, parts = record("whole"), record("parts")
    for name in ("checkpoints", "groups", "group_comparisons", "axis", "rankings", "reference_group"):
        assert parts[name] == whole[name]


def test_groups_from_python_are_patterns_paths_modules_or_names(data):
    models = {f"m{seed}": net(seed) for seed in range(3)}
    results = analyze(
        models, data, groups={"named": ["m0", "m1"], "new": [net(5), net(6)], "files": "runs/base-*.pt"},
        sub_models=2, probes="pairwise_kl", reference="new",
    )  # fmt: skip
    found = {group.name: group.members for group in results.record.groups}
    assert found == {"named": ["m0", "m1"], "new": ["new-1", "new-2"], "files": ["base-0", "base-1", "base-2"]}
    assert [c.name for c in results.record.checkpoints][:3] == ["m0", "m1", "m2"]
    assert results.record.reference == "new-1"
    assert {c.test for c in results.record.group_comparisons} == {"Welch's t test over seeds"}
    with pytest.raises(UsageError, match="the group x is empty"):
        analyze(models, data, groups={"x": []})
    with pytest.raises(UsageError, match="no checkpoint given"):
        analyze(None, data)
    with pytest.raises(UsageError, match="is not a model"):
        analyze(None, data, groups={"x": [3]})


def test_an_axis_is_read_from_settings():
    assert run("runs/base-0.pt", "runs/rdrop-0.pt", "runs/strong.pt", "--over", "alpha").exit_code == 0
    assert record()["axis"] == {"name": "alpha", "values": {"base-0": 0.0, "rdrop-0": 1.0, "strong": 5.0}}


@pytest.mark.parametrize(
    ("arguments", "where"),
    [(("runs/base-0.pt", "runs/base-1.pt"), "every checkpoint"), (("runs/base-0.pt",), "the only checkpoint")],
)
def test_an_axis_with_a_single_place_is_said_to_be_one(arguments, where):
    done = run(*arguments, "--over", "alpha")
    assert done.exit_code == 0, done.output
    assert f"alpha is 0 in {where}: nothing to draw over" in done.output
    assert "constant_axis" in codes(record())
    assert run("runs/base-0.pt", "runs/rdrop-0.pt", "--over", "alpha").exit_code == 0
    assert "constant_axis" not in codes(record())


def test_an_axis_is_read_from_names_of_modules(data):
    results = analyze({"alpha-0.5": net(0), "alpha=2": net(1)}, data, over="alpha", sub_models=2, probes="pairwise_kl")
    assert results.record.axis.values == {"alpha-0.5": 0.5, "alpha=2": 2.0}
    with pytest.raises(UsageError, match="no number called 'alpha' is in the training settings or the name of m:"):
        analyze({"m": net(0)}, data, over="alpha")


def test_groups_along_an_axis_are_compared_at_its_end():
    for arm, alpha in (("a", 0.0), ("b", 1.0)):
        for seed in range(2):
            for epoch in (1, 2, 3)[: 3 if arm == "a" else 2]:
                save(f"e/{arm}-seed{seed}-epoch{epoch}.pt", 10 * seed + epoch + int(alpha), alpha=alpha, seed=seed)
    done = run("--group", "a=e/a-*.pt", "--group", "b=e/b-*.pt", "--over", "epoch")
    assert done.exit_code == 0, done.output
    found = record()
    assert len(found["groups"][0]["members"]) == 6
    assert {metric["n"] for group in found["groups"] for metric in group["metrics"].values()} == {2}
    values = {c["name"]: c["metrics"]["epkl"]["estimate"] for c in found["checkpoints"]}
    expected = (values["a-seed0-epoch2"] + values["a-seed1-epoch2"]) / 2
    assert found["groups"][0]["metrics"]["epkl"]["estimate"] == pytest.approx(expected)
    assert codes(found) == ["groups_along_axis"]


def test_help_expands_nothing_slow():
    code = (
        "import sys; import rdrop_analysis.patterns, rdrop_analysis.commands.analyze; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603 - our own code
