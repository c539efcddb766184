"""A run that was killed, cut off, out of disk, or shared out ends with the numbers of one that was not, bit for bit."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from rdrop_analysis import analyze, batching, journal
from rdrop_analysis.cli import main
from rdrop_analysis.errors import DataError
from rdrop_analysis.journal import FOLDER, decode, discard, encode, journals, read_journal
from rdrop_probes.records import to_json

N, BATCH = 60, 10
NET = """
import os
import numpy as np
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))

class Killed(Net):
    def forward(self, x):
        if len(x) == 10 and (x[0] == fatal).all():
            os.kill(os.getpid(), int(os.environ["SIGNAL"]))
        return super().forward(x)

fatal = torch.from_numpy(np.load("test.npz")["x"][int(os.environ.get("DIES_ON", 0))]).float()
"""
COMMON = ("--data", "test.npz", "--sub-models", "4", "--batch-size", str(BATCH), "--strategy", "vmap")
COMMAND = ("baseline.pt", "rdrop.pt", "--model", "net.py:Net", *COMMON, "--format", "json,csv")


def net(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's directory: net.py, two state dicts, test.npz."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    generator = np.random.default_rng(0)
    np.savez("test.npz", x=generator.normal(size=(N, 5)), y=generator.integers(0, 3, N))
    for seed, name in enumerate(("baseline.pt", "rdrop.pt")):
        torch.save(net(seed).state_dict(), name)
    return tmp_path


@pytest.fixture(autouse=True)
def _one_thread():
    """As the subprocesses have: numbers are equal for equal numbers of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def process(*arguments: str, program: tuple[str, ...] = (sys.executable, "-m"), **environment: str):
    return subprocess.run(  # noqa: S603 - own code
        [*program, "rdrop_analysis", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=120,
    )


def numbers(directory: str) -> tuple[object, str]:
    """Everything that a run wrote, without times."""
    record = json.loads(Path(directory, "results.json").read_text())
    return {**record, "created": "", "seconds": 0}, Path(directory, "per_example.csv").read_text()


def start_from(template: str, directory: str) -> None:
    """Let runs decide alike what is decided by time: a journal that has the decisions, and no items."""
    for stored in journals(Path(template)):
        path = Path(directory) / stored.path.relative_to(template)
        path.parent.mkdir(parents=True, exist_ok=True)
        first = min(offset for offset, _ in stored.places.values()) - journal._FRAME.size
        path.write_bytes(stored.path.read_bytes()[:first])


@pytest.fixture
def whole(project: Path) -> str:
    """A run in one process that nothing befell; its journals are kept in `template`."""
    assert run(*COMMAND, "--shard", "1/2", "--output", "template").exit_code == 0
    start_from("template", "whole")
    assert run(*COMMAND, "--output", "whole").exit_code == 0
    assert not Path("whole", FOLDER).exists()
    return "whole"


def in_api(directory: Path, said: list[int] | None = None, **more):
    generator = torch.Generator().manual_seed(3)
    data = torch.randn(N, 5, generator=generator), torch.randint(0, 3, (N,), generator=generator)
    counts = [] if said is None else said
    results = analyze(
        {"a": net(0), "b": net(1)},
        data,
        **{"sub_models": 4, "batch_size": BATCH, "strategy": "vmap", "resume": directory, **more},
        progress=lambda name, done, total: counts.append(done),
    )
    return to_json(replace(results.record, created="", seconds=0.0)), results.per_example.to_csv()


def test_a_journal_that_was_cut_off_anywhere_leads_to_the_same_numbers(tmp_path):
    expected = in_api(tmp_path / "whole")
    files = [stored.path for stored in journals(tmp_path / "whole")]
    assert len(files) == 2
    contents = [path.read_bytes() for path in files]
    header = min(o for o, _ in read_journal(files[0]).places.values())
    for case in range(8):
        cut = random.Random(case).randrange(header, sum(map(len, contents)))  # noqa: S311 - no secret
        directory = tmp_path / f"cut{case}"
        for path, content, rest in zip(files, contents, (cut, cut - len(contents[0])), strict=True):
            if rest > 0:
                copy = directory / path.relative_to(tmp_path / "whole")
                copy.parent.mkdir(parents=True)
                copy.write_bytes(content[:rest])
        had = sum(len(stored.places) for stored in journals(directory))
        said: list[int] = []
        assert in_api(directory, said) == expected
        found = [len(stored.places) for stored in journals(directory)]
        assert sum(found) == 2 * N // BATCH  # what was there was not done again
        assert had <= sum(found)
        assert said[-1] == N


def test_a_killed_run_goes_on_and_redoes_at_most_one_item(project, whole):
    start_from("template", "killed")
    killed = [argument.replace(":Net", ":Killed") for argument in COMMAND]
    dead = process(*killed, "--output", "killed", DIES_ON="30", SIGNAL=str(int(signal.SIGKILL)))
    assert dead.returncode == -signal.SIGKILL
    assert not Path("killed/results.json").exists()
    done = sum(len(stored.places) for stored in journals(Path("killed")))
    assert done == 3
    end = run(*COMMAND, "--output", "killed")
    assert end.exit_code == 0, end.output
    assert f"continuing: {done} of {N // BATCH} work items of baseline were done" in end.output
    assert numbers("killed") == numbers(whole)
    assert not Path("killed", FOLDER).exists()


def test_an_interrupted_run_says_where_the_finished_items_are(project):
    command = [argument.replace(":Net", ":Killed") for argument in COMMAND]
    done = process(*command, "--output", "out", DIES_ON="30", SIGNAL=str(int(signal.SIGINT)))
    assert done.returncode == 130
    assert done.stderr.splitlines()[-2:] == [
        "what was finished is kept in out: the same command goes on from it",
        "Error: interrupted",
    ]
    assert sorted(journals(Path("out"))[0].places) == [0, 10, 20]


def test_a_full_disk_is_one_line_and_keeps_what_was_finished(project, whole, monkeypatch):
    class Full(journal.FileIO):
        room = 60_000

        def write(self, content):
            Full.room -= len(content)
            if Full.room < 0:
                super().write(content[:100])  # as much as still went in
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(content)

    start_from("template", "full")
    with monkeypatch.context() as patched:
        patched.setattr(journal, "FileIO", Full)
        done = run(*COMMAND, "--output", "full")
    assert done.exit_code == 4
    (error,) = [line for line in done.output.splitlines() if line.startswith("Error")]
    assert "No space left on device; what was finished is kept" in error
    kept = [len(stored.places) for stored in journals(Path("full"), "baseline")]
    assert 0 < sum(kept) < N // BATCH
    assert f"continuing: {sum(kept)} of" in (again := run(*COMMAND, "--output", "full")).output
    assert again.exit_code == 0
    assert numbers("full") == numbers(whole)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"sub_models": 5}, "sub models"),
        ({"masks": "shared"}, "masks"),
        ({"batch_size": 7}, "batch size"),
        ({"probes": ["gap"]}, "probes"),
        ({"limit": 50}, "data"),
    ],
)
def test_another_run_begins_afresh_and_says_why(change, named, project):
    assert run(*COMMAND, "--shard", "1/2", "--output", "out").exit_code == 0
    options = [
        part
        for name, value in change.items()
        for part in (f"--{name.replace('_', '-')}", *(value if isinstance(value, list) else [str(value)]))
    ]
    done = run(*COMMAND, "--output", "out", *options)
    assert done.exit_code == 0, done.output
    assert f"starting baseline afresh: the unfinished run in out was with other {named}\n" in done.output
    assert run(*COMMAND, "--output", "fresh", *options).exit_code == 0
    found, fresh = (json.loads(Path(d, "results.json").read_text())["checkpoints"][0] for d in ("out", "fresh"))
    assert found["metrics"]["flip_rate"] == fresh["metrics"]["flip_rate"]


def test_a_model_whose_code_changed_begins_afresh(project):
    assert run(*COMMAND, "--shard", "1/2", "--output", "out").exit_code == 0
    for name, text in {"rate": NET.replace("0.3", "0.4"), "activation": NET.replace("nn.ReLU", "nn.GELU")}.items():
        Path(f"{name}.py").write_text(text)
        done = run(*[a.replace("net.py", f"{name}.py") for a in COMMAND], "--shard", "2/2", "--output", "out")
        assert "starting baseline afresh: the unfinished run in out was with other model" in done.output


class Payload:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def test_a_hostile_journal_runs_nothing_and_takes_no_memory(project, whole):
    start_from("template", "hostile")
    folder = next(Path("hostile", FOLDER).iterdir())
    header = encode({"checkpoint": "baseline"})
    huge = journal._FRAME.pack(0, 2**60, bytes(16))
    array = b"\xc8\xff\xff\x01"
    contents = {
        "pickle": pickle.dumps(Payload()),
        "inside": journal.MAGIC + journal._framed(-1, pickle.dumps(Payload())),
        "header": journal.MAGIC + journal._framed(-1, header),
        "huge": journal.MAGIC + huge,
        "deep": journal.MAGIC + journal._framed(-1, b"\x91" * 100_000),
        "array": journal.MAGIC + journal._framed(-1, array),
        "empty": b"",
    }
    for name, content in contents.items():
        (folder / f"{name}.journal").write_bytes(content)
    (folder / "directory.journal").mkdir()
    assert len(journals(Path("hostile"), "baseline")) == 1
    done = run(*COMMAND, "--output", "hostile")
    assert done.exit_code == 0, done.output
    assert numbers("hostile") == numbers(whole)
    assert not Path("ran").exists()


def test_a_record_that_does_not_fit_is_named(tmp_path):
    in_api(tmp_path)
    stored = journals(tmp_path)[0]
    items = {start: decode(stored.load(start)) for start in stored.places}
    items[0]["probes"] = items[0]["probes"][:1]
    framed = [journal._framed(-1, encode(stored.header))] + [journal._framed(s, encode(i)) for s, i in items.items()]
    stored.path.write_bytes(journal.MAGIC + b"".join(framed))
    with pytest.raises(DataError, match=r"does not hold what it should .*: delete it and run the same command again"):
        in_api(tmp_path)


@pytest.mark.parametrize(
    "described",
    [
        ("|O", (1,), b"12345678"),
        ("<f8", (2**40,), b""),
        ("<f8", (-1,), bytes(8)),
        ("<f8", (3,), bytes(8)),
        ("x", (), b""),
    ],
)
def test_arrays_are_numbers_and_as_large_as_they_say(described):
    import msgspec

    record = msgspec.msgpack.encode({"a": msgspec.msgpack.Ext(1, msgspec.msgpack.encode(described))})
    with pytest.raises(ValueError, match="not a record"):
        decode(record)


def test_records_come_back_as_they_were():
    state = {
        "numbers": [1, -2.5, float("inf"), None, True, "text", np.float64(3), np.int64(4)],
        "arrays": [
            np.arange(6.0).reshape(2, 3),
            np.zeros((0, 3), np.int32),
            np.array([np.nan, -0.0]),
            np.ones(2, bool),
        ],
    }
    found = decode(encode(state))
    assert found["numbers"] == state["numbers"]
    for one, other in zip(found["arrays"], state["arrays"], strict=True):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
        one[...] = 0  # nobody else's
    with pytest.raises(TypeError, match="object is no plain data"):
        encode({"a": object()})


def test_only_journals_are_removed(tmp_path):
    in_api(tmp_path)
    (tmp_path / FOLDER / "mine.txt").touch()
    discard(tmp_path)
    assert [path.name for path in (tmp_path / FOLDER).rglob("*")] == ["mine.txt"]
    discard(tmp_path / "nowhere")


def test_shards_make_the_whole(project, whole):
    for number in (3, 1, 2):
        start_from("template", f"part{number % 2}")
        done = run(*COMMAND, "--shard", f"{number}/3", "--output", f"part{number % 2}")
        assert done.exit_code == 0, done.output
        assert f"shard {number} of 3 is in part" in done.output
        assert not Path(f"part{number % 2}/results.json").exists()
    refused = run("merge", "part0", "part1")
    assert refused.exit_code == 3
    assert "pass --model yourself, or --trust-code" in refused.output
    merged = run("merge", "part0", "part1", "--model", "net.py:Net", "--output", "merged")
    assert merged.exit_code == 0, merged.output
    assert numbers("merged") == numbers(whole)
    assert run("merge", "part0", "part1", "--trust-code", "--unit", "bits", "--format", "json").exit_code == 0
    assert json.loads(Path("part0/results.json").read_text())["config"]["unit"] == "bits"


def test_a_merge_says_which_shards_are_missing(project):
    assert run(*COMMAND, "--shard", "2/3", "--output", "part").exit_code == 0
    done = run("merge", "part", "--model", "net.py:Net")
    assert done.exit_code == 4
    errors = [line for line in done.output.splitlines() if line.startswith("Error")]
    assert errors == [
        "Error: 4 of 6 work items of baseline are missing (from examples 0, 20, 30, 50): run the command with "
        "--shard 1/3, --shard 3/3"
    ]
    assert "nothing to merge in net.py" in (empty := run("merge", "net.py")).output
    assert empty.exit_code == 4


def with_size(size: int) -> list[str]:
    command = list(COMMAND)
    command[command.index("--batch-size") + 1] = str(size)
    return command


def test_shards_that_were_cut_otherwise_are_named_with_the_size_to_give(project, whole):
    start_from("template", "part")
    assert run(*with_size(7), "--shard", "3/3", "--output", "part").exit_code == 0
    for number in (1, 2):
        assert run(*COMMAND, "--shard", f"{number}/3", "--output", "part").exit_code == 0
    done = run("merge", "part", "--model", "net.py:Net")
    assert done.exit_code == 4
    errors = [line for line in done.output.splitlines() if line.startswith("Error")]
    assert errors == [
        "Error: 2 of 6 work items of baseline are missing (from examples 20, 50): run the command with --shard 3/3 and "
        "--batch-size 10, as shards were cut into other batches on another machine"
    ]
    assert run(*COMMAND, "--shard", "3/3", "--output", "part").exit_code == 0
    merged = run("merge", "part", "--model", "net.py:Net", "--output", "merged")
    assert merged.exit_code == 0, merged.output
    assert numbers("merged") == numbers(whole)


def test_a_shard_whose_size_was_given_goes_with_others_whose_size_was_chosen(project, whole, monkeypatch):
    monkeypatch.setattr(batching, "MAX_BATCH", BATCH)
    start_from("template", "part")
    auto = [argument for argument in COMMAND if argument not in ("--batch-size", str(BATCH))]
    assert run(*auto, "--shard", "1/2", "--output", "part").exit_code == 0
    assert run(*COMMAND, "--shard", "2/2", "--output", "part").exit_code == 0
    merged = run("merge", "part", "--model", "net.py:Net", "--output", "merged")
    assert merged.exit_code == 0, merged.output
    found, expected = (numbers(directory)[0]["checkpoints"] for directory in ("merged", whole))
    for one, other in zip(found, expected, strict=True):
        for name, metric in other["metrics"].items():
            assert one["metrics"][name]["estimate"] == pytest.approx(metric["estimate"], rel=1e-5, abs=1e-9), name


def test_what_was_kept_of_a_run_goes_when_its_results_are_saved(tmp_path):
    data = torch.randn(N, 5), torch.randint(0, 3, (N,))
    results = analyze(net(0), data, sub_models=2, resume=tmp_path / "kept")
    assert journals(tmp_path / "kept")
    analyze(net(0), data, sub_models=2).save(tmp_path / "kept", "json")  # another run's results
    assert journals(tmp_path / "kept")
    results.save(tmp_path / "saved", "json")
    assert not (tmp_path / "kept" / FOLDER).exists()


@pytest.mark.parametrize("value", ["0/3", "4/3", "1", "a/b", "1/", "-1/2", "1/2/3"])
def test_a_shard_is_one_of_several(value, project):
    done = run(*COMMAND, "--shard", value)
    assert done.exit_code == 2
    assert "2/8 is the second of eight" in done.output


def torchrun(workers: int, *arguments: str, **environment: str):
    program = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers), "-m")
    return process(*arguments, program=program, **environment)


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_make_the_whole_also_where_another_number_of_them_was_killed(workers, project, whole):
    start_from("template", "shared")
    first = next(stored for stored in journals(Path("template")) if stored.header.checkpoint == "baseline")
    copy = Path("shared", *first.path.relative_to("template").parts)
    copy.write_bytes(first.path.read_bytes())  # what another worker had done: every second item
    done = torchrun(workers, *COMMAND, "--output", "shared")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("continuing: 3 of 6 work items of baseline were done") == 1
    assert done.stdout.count("also in shared") == 1
    assert numbers("shared") == numbers(whole)
    assert not Path("shared", FOLDER).exists()


def test_the_failure_of_one_worker_is_said_once_and_ends_all(project):
    Path("bad.py").write_text(
        NET + "\nclass Bad(Net):\n    def forward(self, x):\n"
        "        return super().forward(x) * (float('nan') if os.environ['RANK'] == '1' else 1)\n"
    )
    bad = [argument.replace("net.py:Net", "bad.py:Bad") for argument in COMMAND]
    done = torchrun(2, bad[0], *bad[2:], "--output", "out")
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    assert len(errors) == 1
    assert "baseline: the logits of example" in errors[0]
    assert "not finite under the eval model" in errors[0]
    assert "exitcode  : 4 " in done.stderr  # of the worker that ended first, in torchrun's own words
