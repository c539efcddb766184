"""`benchmarks/speed.py` runs, and its contenders measure the same thing."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def pace(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def test_quick_mode_prints_and_writes_the_tables_of_one_model(tmp_path):
    file = tmp_path / "results.md"
    options = [
        "--quick",
        "--part",
        "models",
        "--model",
        "mlp",
        "--sub-models",
        "4",
        "--seconds",
        "0.02",
        "--output",
        str(file),
    ]
    command = [sys.executable, ROOT / "benchmarks" / "speed.py", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - ours
    assert done.stdout.strip() == file.read_text(encoding="utf-8").strip()
    for name in ("ours, pairwise_kl", "plain loop, all pairs", "K eval passes", "floor", "baal + torchmetrics"):
        assert f"| {name} | " in done.stdout, name
    assert "| baal + torchmetrics | not run |" in done.stdout
    assert "Dropout everywhere, at most 1.2x of K eval passes: " in done.stdout


@pytest.mark.parametrize("name", ["cnn-last", "mlp"])
def test_ours_and_the_plain_loop_agree(name):
    from pace.contenders import Contenders
    from pace.models import CASES

    from rdrop_probes.pairwise_kl import PairwiseKL

    contenders = Contenders(replace(CASES[name], batch_size=64, batches=1), 12)
    torch.manual_seed(1)
    difference = torch.tensor(contenders.engine([PairwiseKL])) - torch.tensor(contenders.loop())
    z = difference.mean() / (difference.std() / len(difference) ** 0.5)  # masks differ from example to example
    assert abs(z) < 3


@pytest.mark.parametrize("name", ["cnn-last", "cnn-head", "mlp", "bert-eager", "bert-sdpa", "vit", "lstm", "gpt2-256"])
def test_what_follows_the_prefix_gives_the_logits_of_the_whole(name):
    from pace.contenders import prefix_done
    from pace.models import CASES

    case = CASES[name]
    model, inputs = case.model(), case.inputs(0)[:3]
    prefix, calls = model.get_submodule(case.prefix), []
    for module in prefix.modules():
        module.register_forward_hook(lambda module, *_: calls.append(module))
    with torch.no_grad():
        expected = model(inputs)
        calls.clear()
        with prefix_done(model, case.prefix, inputs):
            first, second = model(inputs), model(inputs)
        inner = [module for module in calls if module is not prefix]
        assert torch.equal(first, expected)
        assert torch.equal(second, expected)
        assert len(inner) == len(set(inner)), "the prefix ran more than once"
        assert torch.equal(model(inputs), expected)
    assert "forward" not in vars(prefix)


def test_a_prefix_that_the_model_does_not_run_is_an_error():
    from pace.contenders import prefix_done

    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model.unused = torch.nn.Linear(2, 2)
    model.forward = model[0].forward
    with pytest.raises(ValueError, match="did not run"), prefix_done(model, "unused", torch.zeros(1, 2)):
        pass


def test_contenders_take_turns_until_each_had_its_time():
    from pace.clock import Run, in_turns

    order = []
    took = {"quick": 0.01, "middling": 2.0, "long": 9.0}
    contenders = {name: lambda name=name: order.append(name) or Run(took[name]) for name in took}
    times = in_turns(contenders, 4.0)
    assert order[:7] == ["quick", "middling", "long", "quick", "middling", "quick", "middling"]
    assert {name: len(taken.runs) for name, taken in times.items()} == {"quick": 15, "middling": 3, "long": 1}


def test_time_and_peak_memory_are_measured_in_a_fresh_process():
    from pace.growth import alone

    found = alone("classes-10", 4, 2, runs=1)
    assert found.peak >= found.before > 2**20
    assert 0 < found.passes < 1
