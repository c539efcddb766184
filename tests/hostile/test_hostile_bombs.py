"""A small file that asks for much gets nothing: it is refused, in little memory and in less than two seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bombs import write_all

BOMBS = write_all()
SECONDS = 2.0
BYTES = 300_000_000
READER = Path(__file__).with_name("bomb_disposal.py")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What became of each bomb in a process of its own."""
    directory = tmp_path_factory.mktemp("bombs")
    for name, content in BOMBS.items():
        (directory / name).write_bytes(content)
    run = subprocess.run(  # noqa: S603 - this Python, and a script beside this file
        [sys.executable, READER, directory],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    for content in BOMBS:
        (directory / content).unlink()
    assert run.returncode == 0, run.stderr
    return {outcome["name"]: outcome for outcome in map(json.loads, run.stdout.splitlines())}


def test_there_are_many_bombs() -> None:
    assert len(BOMBS) > 120


@pytest.mark.parametrize("name", sorted(BOMBS))
def test_a_bomb_is_refused_at_little_cost(outcomes: dict[str, dict[str, Any]], name: str) -> None:
    outcome = outcomes[name]
    assert outcome["error"] == ("DataError" if name.endswith(".npz") else "CheckpointError")
    assert f"/{name}" in outcome["message"]
    assert outcome["message"].isprintable()
    assert outcome["seconds"] < SECONDS
    assert outcome["growth"] < BYTES
