"""Names and settings that a file holds cannot script the terminal: no control character of theirs reaches it."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from containers import honest, saved, written

from rdrop_analysis.checkpoints import save_checkpoint
from rdrop_analysis.cli import main
from rdrop_analysis.files import printable
from rdrop_analysis.models import build

SCRIPT = "\x1b]0;owned\x07\x1b[2J\x1b[31m\r\n\x08\x9b31m\u202e\u200b[red]bold[/red]"
ARGUMENTS = {"in_features": 64, "hidden": [4], "n_classes": 10, "dropout": 0.3}
CONTENTS: dict[str, Any] = {
    "names of tensors": {SCRIPT: torch.zeros(2), "b": torch.zeros(2)},
    "names of what is no tensor": {SCRIPT: SCRIPT},
    "nested names": {"state_dict": {SCRIPT: torch.zeros(2)}, "epoch": SCRIPT},
    "a format of another version": {"format": "rdrop-analysis/checkpoint", "version": SCRIPT},
    "a format of a list": {"format": "rdrop-analysis/checkpoint", "version": [[SCRIPT] * 100] * 100},
    "an architecture": {"format": "rdrop-analysis/checkpoint", "version": 1, "architecture": SCRIPT, "arguments": {},
                        "state_dict": honest(), "training": {}, "data": None},
    "an argument": {"format": "rdrop-analysis/checkpoint", "version": 1, "architecture": "mlp", "state_dict": honest(),
                    "arguments": {SCRIPT: SCRIPT}, "training": {}, "data": None},
    "a data set": {"format": "rdrop-analysis/checkpoint", "version": 1, "architecture": "mlp", "state_dict": honest(),
                   "arguments": ARGUMENTS, "training": {}, "data": SCRIPT},
    "a setting": {"format": "rdrop-analysis/checkpoint", "version": 1, "architecture": "mlp", "state_dict": honest(),
                  "arguments": ARGUMENTS, "training": {SCRIPT: [SCRIPT]}, "data": None},
}  # fmt: skip


def quiet(output: str) -> bool:
    """Whether a text does nothing to a terminal but fill lines."""
    return all(character.isprintable() for character in re.sub("[\n]", "", output))


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("command", [[], ["inspect"], ["sites"]])
def test_what_a_file_says_is_escaped(tmp_path: Path, name: str, command: list[str]) -> None:
    path = written(tmp_path / "m.pt", saved(CONTENTS[name]))
    result = CliRunner().invoke(main, [*command, str(path)])
    assert result.exit_code in (0, 2, 4)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert quiet(result.output)


def test_settings_of_a_whole_checkpoint_are_escaped(tmp_path: Path) -> None:
    model = build("mlp", ARGUMENTS)
    path = save_checkpoint(
        tmp_path / "m.pt", model, architecture="mlp", arguments=ARGUMENTS, data="digits", training={SCRIPT: SCRIPT}
    )
    result = CliRunner().invoke(main, ["inspect", str(path)])
    assert result.exit_code == 0
    assert quiet(result.output)


def test_the_name_of_the_file_itself_is_escaped(tmp_path: Path) -> None:
    path = written(tmp_path / f"{SCRIPT.replace('/', '')}.pt", b"nothing")
    for command in ([], ["inspect"], ["sites"]):
        result = CliRunner().invoke(main, [*command, str(path)])
        assert result.exit_code == 4
        assert quiet(result.output)


def test_what_holds_itself_many_times_over_is_shown_in_part() -> None:
    laughs: list[Any] = ["ha"]
    for _ in range(60):
        laughs = [laughs] * 10
    assert len(printable(laughs)) == 80
    assert printable({"a": 1}) == "{'a': 1}"
    assert printable("x" * 81) == "x" * 77 + "..."
    assert printable("\x1b" * 10**7) == (r"\x1b" * 80)[:77] + "..."
    assert printable("\ud800") == r"\ud800"
