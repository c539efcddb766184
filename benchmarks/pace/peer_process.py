"""The peer as a contender: a process that measures when asked, so that it takes turns with the others."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from pace.clock import Run
from pace.contenders import Contenders

HERE = Path(__file__).parents[1]
KEPT = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**25)}  # as keep_freed_memory has it


@dataclass(frozen=True)
class Peer:
    """A running peer; `versions` of its packages."""

    process: subprocess.Popen[str]
    versions: dict[str, str]

    def run(self) -> Run:
        """Let it measure once."""
        if self.process.stdin is None:
            raise RuntimeError("the peer's process takes no orders")
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        answer = json.loads(self._line())
        return Run(answer["seconds"], tuple(answer["epkl"]))

    def _line(self) -> str:
        return _answer(self.process)


@contextmanager
def peer(python: Path, name: str, contenders: Contenders, count: int) -> Iterator[Peer]:
    """Start the peer on the same model and inputs, and end it."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.pt"
        torch.save({"case": name, "state": contenders.model.state_dict(), "inputs": contenders.inputs}, path)
        command = [str(python), "-m", "pace.peer", str(path), str(count), str(torch.get_num_threads())]
        pipe = subprocess.PIPE
        with subprocess.Popen(  # noqa: S603 - named by the user
            command, cwd=HERE, stdin=pipe, stdout=pipe, text=True, env=os.environ | KEPT
        ) as process:
            try:
                yield Peer(process, json.loads(_answer(process)))
            finally:
                process.terminate()


def _answer(process: subprocess.Popen[str]) -> str:
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        raise RuntimeError("the peer ended without an answer: see what it wrote above")
    return line
