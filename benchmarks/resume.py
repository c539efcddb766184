"""Kill a run with SIGKILL at random points, start it again, and compare what it writes with an uninterrupted run's.

    python benchmarks/resume.py [--kills 20] [--workers 1]

Two checkpoints of a small network on made-up data. Every run takes over the decisions of the first one (how sub-models
and gradients are run is decided by time), as a resumed run does, so that the files have to be equal bit for bit.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn

from rdrop_analysis.journal import HEADER, MAGIC, _framed, encode, journals

NET = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(32, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 10))
"""
N = 1000
BATCH = 10
OPTIONS = "--model net.py:Net --data test.npz --sub-models 8 --batch-size 10 --format json,csv --quiet"
CHECKPOINTS = ["baseline.pt", "rdrop.pt"]


def main() -> None:
    """Print one line a kill, and whether all were equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1)
    chosen = parser.parse_args()
    with TemporaryDirectory() as directory:
        os.chdir(directory)
        _prepare()
        command = _command(chosen.workers)
        _decide(command)
        seconds = _seconds_of_work(command)
        print(f"uninterrupted: {seconds:.1f} s for {2 * N // BATCH} work items, {chosen.workers} worker(s)")
        equal = sum(_kill_and_resume(command, case, seconds) for case in range(chosen.kills))
    print(f"{equal} of {chosen.kills} resumed runs equal the uninterrupted one bit for bit")
    sys.exit(equal != chosen.kills)


def _prepare() -> None:
    """A user's directory."""
    Path("net.py").write_text(NET)
    generator = np.random.default_rng(0)
    np.savez("test.npz", x=generator.normal(size=(N, 32)), y=generator.integers(0, 10, N))
    for seed, name in enumerate(CHECKPOINTS):
        torch.manual_seed(seed)
        torch.save(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 10)).state_dict(), name)


def _command(workers: int) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)] if workers > 1 else []
    return [sys.executable, *launcher, "-m", "rdrop_analysis", *CHECKPOINTS, *OPTIONS.split()]


def _decide(command: list[str]) -> None:
    """Journals without items, from which every run begins."""
    subprocess.run([*command, "--shard", "1/100", "--output", "shard"], check=True, env=_environment())  # noqa: S603 - own code
    for stored in journals(Path("shard")):
        path = Path("decided") / stored.path.relative_to("shard")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(MAGIC + _framed(HEADER, encode(stored.header)))


def _seconds_of_work(command: list[str]) -> float:
    """From the first finished work item of the whole run to its end."""
    with _started(command, "whole") as process:
        _wait_for_items(process, "whole")
        started = time.perf_counter()
    return time.perf_counter() - started


def _kill_and_resume(command: list[str], case: int, seconds: float) -> bool:
    """Kill one run while it works, and resume it; whether it ends like the whole one."""
    directory = f"killed{case}"
    after = random.Random(case).uniform(0, seconds)  # noqa: S311 - no secret
    with _started(command, directory) as process:
        _wait_for_items(process, directory)
        time.sleep(after)
        finished = process.poll() is not None
        if not finished:
            os.killpg(process.pid, 9)
    had = sum(len(stored.places) for stored in journals(Path(directory)))
    with _started(command, directory):
        pass
    equal = _numbers(directory) == _numbers("whole")
    equal &= filecmp.cmp(f"{directory}/per_example.csv", "whole/per_example.csv", shallow=False)
    when = "finished before" if finished else f"killed after {after:4.1f} s with {had:3d} items done"
    print(f"{when}: {'equal' if equal else 'DIFFERENT'}", flush=True)
    return equal


def _started(command: list[str], directory: str) -> subprocess.Popen[bytes]:
    """A run, in a process group of its own."""
    if not Path(directory).exists():
        shutil.copytree("decided", directory)
    quiet = subprocess.DEVNULL
    return subprocess.Popen(  # noqa: S603 - own code
        [*command, "--output", directory], env=_environment(), stderr=quiet, start_new_session=True
    )


def _wait_for_items(process: subprocess.Popen[bytes], directory: str) -> None:
    """Until the run has a journal of its own."""
    count = len(list(Path("decided").rglob("*.journal")))
    while process.poll() is None and len(list(Path(directory).rglob("*.journal"))) <= count:
        time.sleep(0.01)


def _numbers(directory: str) -> dict[str, object]:
    record: dict[str, object] = json.loads(Path(directory, "results.json").read_text())
    return record | {"created": "", "seconds": 0}


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    main()
