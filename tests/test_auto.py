"""`--sub-models auto`: as few sub-models as make the mean EPKL as sure as asked, and what is said of it."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from rdrop_analysis import analyze
from rdrop_analysis.cli import main
from rdrop_analysis.data.examples import Batch, Data
from rdrop_analysis.errors import UsageError


def net(seed: int = 0, rate: float = 0.3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(rate), nn.Linear(32, 4)).eval()


def examples(n: int = 600) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return 2 * torch.randn(n, 8, generator=g), torch.randint(0, 4, (n,), generator=g)


def half_width(checkpoint) -> float:
    epkl = checkpoint.metrics["epkl"]
    return (epkl.mask_high - epkl.estimate) / epkl.estimate


@pytest.mark.parametrize("tolerance", [0.2, 0.05, 0.02])
def test_the_interval_is_as_tight_as_asked(tolerance):
    record = analyze(net(), examples(), sub_models="auto", tolerance=tolerance, probes="pairwise_kl").record
    assert half_width(record.checkpoints[0]) <= tolerance
    assert record.config["tolerance"] == tolerance
    assert "by a pilot" in next(w.message for w in record.warnings if w.code == "sub_models_chosen")


def test_more_certainty_takes_more_sub_models():
    def chosen(tolerance: float) -> int:
        record = analyze(net(), examples(), sub_models="auto", tolerance=tolerance, probes="pairwise_kl").record
        return int(next(w.message for w in record.warnings if w.code == "sub_models_chosen").split()[0])

    assert chosen(0.2) < chosen(0.05) < chosen(0.02)


def test_checkpoints_with_shared_masks_have_as_many_sub_models():
    models = {"base": net(), "less": net(1, rate=0.1)}
    results = analyze(models, examples(), sub_models="auto", tolerance=0.3, masks="shared", probes="pairwise_kl")
    chosen = {w.message.split()[0] for w in results.record.warnings if w.code == "sub_models_chosen"}
    assert len(chosen) == 1
    assert results.record.comparisons[0].low is not None


@pytest.mark.parametrize("probes", ["gap", "pairwise_kl"])
def test_how_many_were_chosen_is_said_whatever_is_measured(probes):
    record = analyze(net(), examples(), sub_models="auto", tolerance=0.1, probes=probes).record
    (finding,) = [w for w in record.warnings if w.code == "sub_models_chosen"]
    assert int(finding.message.split()[0]) == record.checkpoints[0].sub_models
    assert ("was not measured" in finding.message) == (probes == "gap")


def test_what_depends_on_the_number_of_sub_models_is_not_compared_across_numbers():
    models = {"base": net(), "less": net(1, rate=0.02)}
    found = analyze(models, examples(), sub_models="auto", tolerance=0.02, probes="gap,calibration").record
    counts = [checkpoint.sub_models for checkpoint in found.checkpoints]
    assert len(set(counts)) == 2
    compared = {comparison.metric for comparison in found.comparisons}
    assert compared & {"nll_sub", "accuracy_eval", "kl_mean_to_eval"}
    left_out = ["accuracy_mean", "brier_mean", "ece_mean", "nll_mean"]
    assert not compared & set(left_out)
    (finding,) = [w for w in found.warnings if w.code == "different_sub_models"]
    assert finding.message == (
        f"the checkpoints were measured with different numbers of sub-models ({min(counts)}, {max(counts)}), on which "
        f"{', '.join(left_out)} depend: where these differ, neither checkpoints nor groups are compared on them"
    )
    over_seeds = analyze(
        models, examples(), groups={"a": ["base"], "b": ["less"]}, sub_models="auto", tolerance=0.02, probes="gap"
    ).record
    compared = {comparison.metric for comparison in over_seeds.group_comparisons}
    assert "accuracy_sub" in compared
    assert not compared & set(left_out)
    alike = analyze(models, examples(), probes="gap").record
    assert "nll_mean" in {comparison.metric for comparison in alike.comparisons}
    assert "different_sub_models" not in [w.code for w in alike.warnings]


def test_without_dropout_there_is_nothing_to_choose():
    record = analyze(net(rate=0.0), examples(), sub_models="auto", probes="pairwise_kl").record
    assert record.checkpoints[0].metrics["epkl"].estimate == 0
    assert "sub_models_chosen" not in [w.code for w in record.warnings]
    assert record.checkpoints[0].sub_models is None


def test_a_tolerance_goes_with_auto():
    with pytest.raises(UsageError, match="make their number auto"):
        analyze(net(), examples(), tolerance=0.1)
    with pytest.raises(UsageError, match="makes no sense"):
        analyze(net(), examples(), sub_models="auto", tolerance=5)


def test_the_command_and_its_results(tmp_path):
    inputs, labels = examples()
    torch.save({"inputs": inputs, "labels": labels}, tmp_path / "data.pt")
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 4))\n"
    )
    torch.save(net().state_dict(), tmp_path / "net.pt")
    given = [str(tmp_path / "net.pt"), "--model", f"{tmp_path}/net.py:build", "--data", str(tmp_path / "data.pt")]
    common = [*given, "--output", str(tmp_path / "out"), "--format", "json"]
    done = CliRunner().invoke(main, [*common, "--sub-models", "auto", "--tolerance", "0.1", "--memory", "1.5G"])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["config"]["memory"] == int(1.5 * 2**30)
    assert "sub-models, by a pilot" in done.output
    for wrong in (["--tolerance", "0.1"], ["--sub-models", "auto", "--tolerance", "2"], ["--memory", "much"]):
        refused = CliRunner().invoke(main, [*common, *wrong])
        assert refused.exit_code == 2, refused.output


def test_a_pilot_takes_examples_from_all_pieces():
    pieces = (
        Batch(torch.arange(10.0)[:, None], None, 0),
        Batch(torch.arange(10.0, 13)[:, None], None, 10),
        Batch(torch.arange(13.0, 30)[:, None], torch.arange(17), 13),
    )
    data = Data("made up", pieces)
    for n in (1, 3, 7, 15, 30, 99):
        taken = torch.cat([batch.inputs.flatten() for batch in data.spread(n)])
        step = max(1, 30 // n)
        assert taken.tolist() == list(range(0, 30, step))
