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
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from rdrop_analysis import analyze, batching, belonging, journal, workers
from rdrop_analysis.cli import main
from rdrop_analysis.decisions import are_sound
from rdrop_analysis.errors import DataError
from rdrop_analysis.journal import FOLDER, Header, Spent, Stored, decode, encode, journals, read_journal
from rdrop_analysis.locks import held_elsewhere, lock
from rdrop_analysis.workers import Torchrun, started_by_torchrun
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
    """Run the command, with interrupts coming through also where the tests themselves run in the background."""
    return subprocess.run(  # noqa: S603 - own code
        [*program, "rdrop_analysis", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=120,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def numbers(directory: str) -> tuple[object, str]:
    """Everything that a run wrote, without times."""
    record = json.loads(Path(directory, "results.json").read_text())
    return {**record, "created": "", "seconds": 0}, Path(directory, "per_example.csv").read_text()


def start_from(template: str, directory: str) -> None:
    """Let runs decide alike what is decided by time: a journal that has the decisions, and no items."""
    for stored in journals(Path(template)):
        copied(stored, Path(directory) / stored.path.relative_to(template), items=False)


def copied(stored: Stored, path: Path, *, items: bool, **changed: object) -> None:
    """Write a journal as one of a whole run, with other things changed in its header, and with its items or without."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {**msgspec.structs.asdict(stored.header), "shard": (1, 1), **changed}
    records = [journal._framed(start, stored.load(start)) for start in stored.places if items]
    path.write_bytes(b"".join((journal.MAGIC, journal._framed(journal.HEADER, encode(header)), *records)))


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


def test_an_interrupt_while_figures_are_drawn_says_where_the_finished_items_are(project, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("rdrop_analysis.results.write_whole", interrupted)
    done = run(*COMMAND, "--output", "out")
    assert done.exit_code == 130
    assert "what was finished is kept in out: the same command goes on from it\n" in done.output
    assert "continuing: 6 of 6" in run(*COMMAND, "--output", "out").output


def test_a_shard_with_nothing_to_do_leaves_and_names_no_directory(project):
    done = run(*COMMAND, "--shard", "7/8", "--output", "out")
    assert done.exit_code == 0, done.output
    assert "shard 7 of 8 has no work items, of which there are fewer" in done.output
    assert not Path("out").exists()


def test_shards_of_other_data_are_named_by_a_merge(project):
    assert run(*COMMAND, "--shard", "1/2", "--output", "out").exit_code == 0
    with np.load("test.npz") as data:
        np.savez("test.npz", x=data["x"] + 1, y=data["y"])
    assert run(*COMMAND, "--shard", "2/2", "--output", "out").exit_code == 0
    done = run("merge", "out", "--model", "net.py:Net")
    assert done.exit_code == 4
    errors = [line for line in done.output.splitlines() if line.startswith("Error")]
    assert errors == [
        "Error: 3 of 6 work items of baseline are missing (from examples 0, 20, 40), as others in out are with other "
        "data: run the command with --shard 1/2"
    ]


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


def test_only_what_a_run_is_done_with_is_removed(tmp_path):
    in_api(tmp_path)
    (tmp_path / FOLDER / "mine.txt").touch()
    one, other = journals(tmp_path)
    works = [(stored.header.checkpoint, stored.header.key) for stored in (one, other)]
    others = {"shard": {"shard": (1, 2)}, "seed": {"key": {**one.header.key, "seed": "7"}}}
    for name, changed in others.items():
        copied(one, one.path.with_name(f"{name}.journal"), items=True, **changed)
    Spent(tmp_path, works).discard()
    left = {path.name for path in (tmp_path / FOLDER).rglob("*") if path.is_file()}
    assert left == {"mine.txt", "shard.journal", "seed.journal"}
    assert not other.path.parent.exists()
    Spent(tmp_path / "nowhere", works).discard()


@contextmanager
def held(path: Path):
    """Another process, alive, that writes a journal."""
    program = "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX); print(); input()"
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:  # noqa: S603 - own code
        other.stdout.readline()
        yield
        other.communicate(b"\n")


def test_two_runs_in_one_directory_do_not_take_each_others_items(project, monkeypatch):
    monkeypatch.setattr(belonging, "PATIENCE", 0.1)
    assert run(*COMMAND, "--shard", "1/2", "--output", "out").exit_code == 0
    shard = journals(Path("out"), "baseline")[0]
    ours = shard.path.with_name("0.journal")
    copied(shard, ours, items=True)
    with held(shard.path):  # another part may be measured meanwhile
        assert run(*COMMAND, "--shard", "2/2", "--output", "out").exit_code == 0
    with held(ours):
        done = run(*COMMAND, "--output", "out")
        assert done.exit_code == 4
        errors = [line for line in done.output.splitlines() if line.startswith("Error")]
        assert errors == [
            "Error: another process is measuring baseline in out with the same options: let it end, or name another "
            "--output"
        ]
        Spent(Path("out"), [("baseline", shard.header.key)]).discard()
        assert ours.exists()
        other = run(*COMMAND, "--seed", "1", "--output", "out")
        assert other.exit_code == 0, other.output
        assert ours.exists()
    assert run(*COMMAND, "--output", "out").exit_code == 0
    assert not ours.exists()
    assert len(journals(Path("out"))) == 4  # of the shards, to be merged


SLOW = """
class Slow(Net):
    def forward(self, x):
        import time
        time.sleep(0.1)
        return super().forward(x)
"""


def test_of_two_equal_commands_that_start_together_one_is_refused(project, monkeypatch):
    monkeypatch.setattr(belonging, "PATIENCE", 0.1)
    Path("slow.py").write_text(NET + SLOW)
    program = [sys.executable, "-m", "rdrop_analysis", *COMMAND, "--model", "slow.py:Slow", "--output", "out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as first:  # noqa: S603 - own code
        until = time.monotonic() + 60
        while not list(Path("out").rglob("*.lock")) and time.monotonic() < until:
            time.sleep(0.001)
        assert not journals(Path("out"))  # nothing is finished yet
        second = run(*COMMAND, "--output", "out")
        other = run(*COMMAND, "--seed", "1", "--output", "out")
        output, _ = first.communicate(timeout=120)
    assert second.exit_code == 4
    assert "Error: another process is measuring baseline in out with the same options: let it end" in second.output
    assert other.exit_code == 0, other.output
    assert first.returncode == 0, output
    assert not Path("out", FOLDER).exists()


def test_a_lock_is_had_once_by_a_process_and_goes_with_who_has_it(tmp_path):
    path = tmp_path / "a" / "b" / "c.lock"
    one, other = lock(path), lock(path)
    assert one is other
    del one
    program = (
        "import sys; from pathlib import Path; from rdrop_analysis.locks import lock; print(lock(Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", program, str(path)]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "None\n"  # noqa: S603 - own code
    assert path.exists()
    del other
    assert not (tmp_path / "a").exists()


def test_a_journal_that_cannot_be_written_is_not_taken_for_one_that_is_being_written(tmp_path, monkeypatch):
    path, opened = tmp_path / "a.journal", Path.open

    def read_only(self, mode="r", *args, **more):
        if mode != "rb":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(self, mode, *args, **more)

    path.touch()
    with held(path):
        monkeypatch.setattr(Path, "open", read_only)
        assert held_elsewhere(path)
    assert not held_elsewhere(path)


def test_a_journal_that_goes_while_it_is_needed_is_named(tmp_path, monkeypatch):
    in_api(tmp_path)
    monkeypatch.setattr(Stored, "load", lambda stored, start: Path("nowhere").read_bytes())
    with pytest.raises(DataError, match="was removed while this run needed it: run the same command again"):
        in_api(tmp_path)


def test_that_nothing_can_be_kept_is_found_before_anything_is_measured(project, monkeypatch):
    def refused(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(belonging, "lock", refused)
    done = run(*COMMAND, "--output", "out")
    assert done.exit_code == 4
    (error,) = [line for line in done.output.splitlines() if line.startswith("Error")]
    assert error.startswith(f"Error: cannot write out/{FOLDER}/baseline-")
    assert error.endswith(": Permission denied; make it writable, or name another with --output")


def decided_otherwise(stored: Stored) -> dict[str, object]:
    """Decisions as of a worker that took gradients of fewer examples at a time."""
    gradients = stored.header.decisions["gradients"]
    return {**stored.header.decisions, "gradients": {**gradients, "examples": gradients["examples"] + 1}}


@pytest.mark.parametrize("theirs", ["0", "z"])  # before and after the names of all others
def test_a_shard_goes_on_from_its_own_items_whatever_other_shards_decided(theirs, project):
    for number in (1, 2):
        assert run(*COMMAND, "--shard", f"{number}/2", "--output", "out").exit_code == 0
    for stored in journals(Path("out")):
        if stored.header.shard == (2, 2):
            path = stored.path.with_name(f"{theirs}.journal")
            copied(stored, path, items=True, shard=(2, 2), decisions=decided_otherwise(stored))
            stored.path.unlink()
    for number in (1, 2):
        again = run(*COMMAND, "--shard", f"{number}/2", "--output", "out")
        assert "continuing: 3 of 3 work items of baseline were done\n" in again.output
    third = run(*COMMAND, "--shard", "1/3", "--output", "out")  # has items of both, and takes those of one
    assert "continuing: 1 of 2 work items of baseline were done; others, of workers that decided" in third.output
    merged = run("merge", "out", "--model", "net.py:Net", "--output", "merged")
    assert merged.exit_code == 0, merged.output


def test_a_journal_that_is_removed_is_not_made_again(tmp_path):
    kept = journal.Journal(tmp_path, "a")
    header = Header("a", {}, {}, {}, [0, 1], (1, 1), {})
    kept.put(header, 0, encode({}))
    journals(tmp_path)[0].path.unlink()
    with pytest.raises(journal.JournalError, match=r"was removed while .*: run the same command again"):
        kept.put(header, 1, encode({}))
    kept.close()
    assert not journals(tmp_path)


def test_a_file_in_the_place_of_the_journals_is_one_line(project):
    Path("out").mkdir()
    Path("out", FOLDER).touch()
    done = run(*COMMAND, "--output", "out")
    assert done.exit_code == 4
    assert f"Error: out/{FOLDER} is no directory: remove it, or name another with --output\n" in done.output


@pytest.mark.parametrize(
    "changed",
    [
        {"shard": (3, 2)},
        {"shard": (0, 2)},
        {"shard": (1, 2**40)},
        {"starts": [0, 0]},
        {"starts": [-1, 0]},
        {"starts": [2**63]},
        {"checkpoint": "a\0"},
        {"options": {"checkpoints": ["a\0"]}},
        {"options": {"seed": 3}},
        {"key": {"seed": 3}},
    ],
)
def test_a_header_that_makes_no_sense_is_passed_over(changed, tmp_path):
    in_api(tmp_path)
    stored = journals(tmp_path)[0]
    path = tmp_path / "changed.journal"
    copied(stored, path, items=True)
    assert read_journal(path).places.keys() == stored.places.keys()
    copied(stored, path, items=True, **changed)
    assert read_journal(path) is None


def test_a_record_that_says_it_is_longer_than_any_takes_no_memory(tmp_path):
    path = tmp_path / "a.journal"
    content = journal.MAGIC + journal._FRAME.pack(journal.HEADER, 2**40, bytes(16))
    path.write_bytes(content)
    os.truncate(path, len(content) + 2**40)  # a hole
    assert read_journal(path) is None


@pytest.mark.parametrize(
    ("name", "decision"),
    [
        ("batching", {"sizes": [0], "cut": False}),
        ("batching", {"sizes": ["a"], "cut": False}),
        ("batching", {"sizes": [10], "cut": False, "more": 1}),
        ("choice", {"strategy": "magic"}),
        ("choice", {"strategy": "vmap", "chunk": -1}),
        ("gradients", {"examples": 0}),
        ("sub_models", {"sub_models": 1, "half_width": 0.1}),
        ("unheard", {}),
    ],
)
def test_decisions_that_make_no_sense_are_not_taken_over(name, decision, tmp_path):
    expected = in_api(tmp_path)
    for stored in journals(tmp_path):
        assert are_sound(stored.header.decisions)
        copied(stored, stored.path, items=True, decisions={**stored.header.decisions, name: decision})
        assert not are_sound(read_journal(stored.path).header.decisions)
    said: list[int] = []
    assert in_api(tmp_path, said) == expected
    assert said[:2] == [0, 0]  # nothing was done


@pytest.mark.parametrize("damage", [{"start": 10}, {"n": 9}])
def test_a_record_of_other_examples_is_refused(damage, tmp_path):
    in_api(tmp_path)
    stored = journals(tmp_path)[0]
    items = {start: decode(stored.load(start)) for start in stored.places}
    items[0] |= damage
    framed = [journal._framed(-1, encode(stored.header))] + [journal._framed(s, encode(i)) for s, i in items.items()]
    stored.path.write_bytes(journal.MAGIC + b"".join(framed))
    with pytest.raises(DataError, match="not the examples from 0 on"):
        in_api(tmp_path)


def test_nothing_is_taken_over_from_a_run_that_is_rejected(project, monkeypatch):
    """Neither how the data were cut nor K, both of which were decided for a model with other code."""
    monkeypatch.setattr(batching, "MAX_BATCH", BATCH)
    auto = [*COMMAND[:4], "--data", "test.npz", "--sub-models", "auto", "--strategy", "loop", "--format", "json,csv"]
    assert run(*auto, "--shard", "1/2", "--output", "out").exit_code == 0
    Path("rate.py").write_text(NET.replace("0.3", "0.02"))
    for stored in journals(Path("out")):
        cut = {**stored.header.decisions, "batching": {"sizes": [7], "cut": False}}
        copied(stored, stored.path, items=False, shard=(1, 2), decisions=cut)
    done = run(*[a.replace("net.py", "rate.py") for a in auto], "--shard", "2/2", "--output", "out")
    assert "starting baseline afresh: the unfinished run in out was with other model" in done.output
    for name in ("baseline", "rdrop"):
        old, new = sorted(journals(Path("out"), name), key=lambda stored: stored.header.shard)
        assert new.header.decisions["batching"]["sizes"] != [7]
        assert new.header.decisions["sub_models"] != old.header.decisions["sub_models"]


def chosen(directory: str, checkpoint: str) -> set[int]:
    """How many sub-models pilots chose."""
    return {s.header.decisions["sub_models"]["sub_models"] for s in journals(Path(directory), checkpoint)}


def test_sub_models_that_the_first_checkpoint_chose_hold_for_the_others_in_shards_too(project):
    torch.save({name: 3 * value for name, value in net(1).state_dict().items()}, "rdrop.pt")
    more = ["--model", "net.py:Net", "--data", "test.npz", "--sub-models", "auto", "--tolerance", "0.3"]
    more += ["--masks", "shared", "--batch-size", str(BATCH), "--strategy", "loop", "--format", "json,csv"]
    both = ["baseline.pt", "rdrop.pt", *more]
    assert run(*both, "--output", "whole").exit_code == 0
    for number in (1, 2):
        assert run(*both, "--shard", f"{number}/2", "--output", "part").exit_code == 0
    assert run("rdrop.pt", *more, "--shard", "1/2", "--output", "alone").exit_code == 0
    assert chosen("part", "rdrop") == chosen("part", "baseline") != chosen("alone", "rdrop")
    merged = run("merge", "part", "--model", "net.py:Net", "--output", "merged")
    assert merged.exit_code == 0, merged.output
    assert numbers("merged") == numbers("whole")
    own = run("rdrop.pt", *more, "--shard", "1/2", "--output", "part")  # where K was not its own choice
    assert "starting rdrop afresh: the unfinished run in part was with other sub models\n" in own.output
    assert chosen("part", "rdrop") == chosen("part", "baseline") | chosen("alone", "rdrop")
    merged = run("merge", "part", "--model", "net.py:Net", "--output", "merged")
    assert merged.exit_code == 0, merged.output
    assert numbers("merged") == numbers("whole")
    other = next(stored for stored in journals(Path("part"), "rdrop") if stored.header.shard == (2, 2))
    decisions = {**other.header.decisions, "sub_models": {"sub_models": 5, "half_width": 0.3}}
    copied(other, other.path, items=True, shard=(2, 2), decisions=decisions)
    refused = run("merge", "part", "--model", "net.py:Net", "--output", "mixed")
    assert "as another number of sub-models was chosen" in refused.output


def test_shards_of_several_runs_are_not_merged(project):
    for number, seed in ((1, 0), (2, 1)):
        assert run(*COMMAND, "--seed", str(seed), "--shard", f"{number}/2", "--output", "part").exit_code == 0
    done = run("merge", "part", "--model", "net.py:Net")
    assert done.exit_code == 4
    errors = [line for line in done.output.splitlines() if line.startswith("Error")]
    assert errors == [
        "Error: part has shards of several runs, with other seed (0, 1): measure each with an --output of its own"
    ]


TWICE = """
class Twice(nn.Dropout):
    def forward(self, x):
        return super().forward(x) * (2 if self.training else 1)
"""


def test_a_model_is_known_by_its_sub_models_too(project):
    assert run(*COMMAND, "--shard", "1/2", "--output", "out").exit_code == 0
    Path("twice.py").write_text(NET.replace("nn.Dropout", "Twice").replace("\nclass Net", f"{TWICE}\nclass Net"))
    changed = [argument.replace("net.py", "twice.py") for argument in COMMAND]
    done = run(*changed, "--shard", "2/2", "--output", "out")
    assert "starting baseline afresh: the unfinished run in out was with other model" in done.output
    merged = run("merge", "out", "--model", "twice.py:Net")
    assert merged.exit_code == 4
    assert "3 of 6 work items of baseline are missing" in merged.output


def test_shards_of_an_older_model_that_were_cut_otherwise_are_not_in_the_way(project, whole):
    Path("twice.py").write_text(NET.replace("nn.Dropout", "Twice").replace("\nclass Net", f"{TWICE}\nclass Net"))
    older = [argument.replace("net.py", "twice.py") for argument in with_size(15)]
    for command in (older, COMMAND):
        start_from("template", "out")
        for number in (1, 2):
            assert run(*command, "--shard", f"{number}/2", "--output", "out").exit_code == 0
    for name, model in (("old", "twice.py:Net"), ("new", "net.py:Net")):
        merged = run("merge", "out", "--model", model, "--output", name)
        assert merged.exit_code == 0, merged.output
    assert numbers("new") == numbers(whole) != numbers("old")


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


def test_shards_of_a_device_that_is_not_here_are_merged(project):
    for number in (1, 2):
        assert run(*COMMAND, "--shard", f"{number}/2", "--output", "out").exit_code == 0
    for stored in journals(Path("out")):
        options, key = stored.header.options | {"device": "cuda:7"}, stored.header.key | {"device": "NVIDIA H200"}
        copied(stored, stored.path, items=True, shard=stored.header.shard, options=options, key=key)
    merged = run("merge", "out", "--model", "net.py:Net")
    assert merged.exit_code == 0, merged.output
    assert "'cuda:7' is not available" in run("merge", "out", "--model", "net.py:Net", "--device", "cuda:7").output


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
    assert run("merge", "nowhere").exit_code == 2


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


def test_that_a_worker_is_gone_is_said_without_the_words_of_a_library():
    class Gone:
        def all_gather_object(self, everybody, mine):
            raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:5005")

    team = Torchrun.__new__(Torchrun)  # without others
    team.size, team._agreed, team._dist = 2, [], Gone()
    with pytest.raises(DataError) as failed:
        team.meet()
    text = "another worker was killed or has ended: what was finished is kept, and the same command goes on from it"
    assert str(failed.value) == text
    assert "gloo" in str(failed.value.__cause__)  # which -v shows


def test_variables_that_a_scheduler_left_do_not_make_a_team(monkeypatch):
    told = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999", "LOCAL_RANK": "1"}
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert not started_by_torchrun()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert started_by_torchrun()
    monkeypatch.setattr(workers, "PATIENCE", timedelta(seconds=1))
    with pytest.raises(DataError, match=r"not found within 1 seconds: start all of them, or unset TORCHELASTIC_RUN_ID"):
        Torchrun()  # there is nobody


def torchrun(workers: int, *arguments: str, **environment: str):
    program = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers), "-m")
    return process(*arguments, program=program, **environment)


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_make_the_whole_also_where_another_number_of_them_was_killed(workers, project, whole):
    start_from("template", "shared")
    first = next(stored for stored in journals(Path("template")) if stored.header.checkpoint == "baseline")
    copy = Path("shared", *first.path.relative_to("template").parts)
    copied(first, copy, items=True)  # what another worker had done: every second item
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
