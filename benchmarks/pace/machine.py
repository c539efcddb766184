"""Where numbers were made: seconds mean nothing without it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch

HERE = Path(__file__).parent


def description() -> Iterator[tuple[str, str]]:
    """What is known of machine and software, name and value."""
    yield "processor", f"{_field('/proc/cpuinfo', 'model name') or platform.processor() or platform.machine()}"
    yield "cores", f"{os.cpu_count()}, threads used by torch: {torch.get_num_threads()}"
    if memory := _field("/proc/meminfo", "MemTotal"):
        yield "memory", f"{int(memory.split()[0]) / 2**20:.0f} GiB"
    yield "system", f"{platform.system()} {platform.release()}"
    yield "software", f"Python {platform.python_version()}, torch {torch.__version__}"
    yield "load before the run", f"{os.getloadavg()[0]:.1f}"
    if commit := _commit():
        yield "commit", commit


def _field(file: str, name: str) -> str:
    """The first value of a name in a file of `name : value` lines; empty where there is none."""
    path = Path(file)
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _commit() -> str:
    git = shutil.which("git")
    if git is None:
        return ""
    command = [git, "-C", str(HERE), "describe", "--always", "--dirty=, with changes"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - no input
    return done.stdout.strip()
