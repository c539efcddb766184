"""Nothing waits for a device inside the loop over sub-models, nor copies to it or from it."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("pretended_device.py")


def on_pretended_device(*cases: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: a device is registered for good."""
    return subprocess.run([sys.executable, SCRIPT, *cases], capture_output=True, text=True, check=False)  # noqa: S603 - own code


@pytest.mark.parametrize("case", ["mlp", "encoder"])
def test_sub_models_and_their_sums_never_wait(case):
    done = on_pretended_device(case)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split("\n")[:-1] == [f"{case} {what}" for what in ("replayed", "loop", "vmap", "fold")]


@pytest.mark.parametrize(("case", "error"), [("reading", "_local_scalar_dense"), ("copying", "copies from the device")])
def test_a_model_that_waits_is_found_out(case, error):
    done = on_pretended_device(case)
    assert done.returncode == 1
    assert error in done.stderr
