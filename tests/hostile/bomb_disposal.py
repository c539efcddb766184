"""Reads every file of a directory in a process of its own, and says what became of each, and at what price.

Run as `python bomb_disposal.py DIRECTORY`; prints a line of JSON a file.
"""

import json
import resource
import sys
import time
from pathlib import Path

from torch import nn

from rdrop_analysis.checkpoints import load_checkpoint
from rdrop_analysis.datasets import load_data

LIMIT = 12 * 2**30
"""Bytes of address space, so that a bomb that goes off ends this process and not the machine."""


def resident(field: str) -> int:
    """Return the memory that this process holds ("VmRSS") or has held at most ("VmHWM"), in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def outcome(path: Path) -> dict[str, object]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now
    before, start = resident("VmRSS"), time.process_time()
    try:
        load_data(str(path)) if path.suffix == ".npz" else load_checkpoint(path, lambda: nn.Linear(3, 2))
        error, message = "", ""
    except Exception as problem:
        error, message = type(problem).__name__, str(problem)
    seconds, growth = time.process_time() - start, resident("VmHWM") - before
    return {"name": path.name, "error": error, "message": message, "seconds": seconds, "growth": growth}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    for path in sorted(Path(sys.argv[1]).iterdir()):
        sys.stdout.write(json.dumps(outcome(path)) + "\n")
        sys.stdout.flush()
