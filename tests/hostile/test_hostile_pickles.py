"""No pickle runs: whatever it names, however it is written, and in whatever it is wrapped."""

import pickle
import pickletools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from containers import CONTAINERS, entries, honest, in_zip, saved, written
from payloads import LIVE, first_names, payloads
from pickle_assembler import FORMS, Call, Name, by_reduce, program, push

from rdrop_analysis.checkpoints import load_checkpoint
from rdrop_analysis.cli import main
from rdrop_analysis.errors import UnsafeFileError
from rdrop_analysis.loading.plain_values import permitted

NAMES = sorted(payloads(""))
PROTOCOLS = range(6)
Form = Callable[[Call, int], bytes]
CORE = ("os.system", "builtins.eval", "subprocess.Popen", "torch.load", "getattr chain to eval")


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[str]:
    """The path of a file that is made if a payload runs."""
    path = tmp_path / "canary"
    yield str(path)
    assert not path.exists()


def refusal(path: Path) -> str:
    """Load a file that must be refused as unsafe, and return the message, one line."""
    with pytest.raises(UnsafeFileError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path} needs ")
    assert message.isprintable()
    return message


def named_in(message: str, payload: Call) -> bool:
    """Whether a message names the first three things that a payload needs and plain tensors do not."""
    unsafe = [name for name in dict.fromkeys(first_names(payload)) if not permitted(name)]
    return f"needs {', '.join(unsafe[:3])}{', ...' if len(unsafe) > 3 else ''} to be read" in message


def test_there_are_enough_payloads_and_each_names_something_unsafe() -> None:
    assert len(NAMES) >= 80
    assert all(any(not permitted(name) for name in first_names(payload)) for payload in payloads("").values())


@pytest.mark.parametrize("name", LIVE)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_the_payloads_are_live(tmp_path: Path, name: str, protocol: int) -> None:
    canary = tmp_path / "canary"
    pickle.loads(program(by_reduce(payloads(str(canary))[name], protocol), protocol))  # noqa: S301 - what it shows
    assert canary.exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_payload_in_every_container_and_protocol_is_refused_by_name(tmp_path: Path, canary: str, name: str) -> None:
    payload = payloads(canary)[name]
    for protocol in PROTOCOLS:
        pickled = program(by_reduce(payload, protocol), protocol)
        for wrap in CONTAINERS.values():
            assert named_in(refusal(written(tmp_path / "m.pt", wrap(pickled))), payload)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", ["os.system", "subprocess.Popen", "torch.load", "collections.namedtuple"])
def test_a_payload_in_every_form_is_refused_by_name(
    tmp_path: Path, canary: str, form: Form, container: str, name: str
) -> None:
    payload = payloads(canary)[name]
    for protocol in PROTOCOLS:
        pickled = program(form(payload, protocol), protocol)
        assert named_in(refusal(written(tmp_path / "m.pt", CONTAINERS[container](pickled))), payload)


@pytest.mark.parametrize("name", CORE)
def test_a_payload_anywhere_in_an_honest_state_dict_is_refused_by_name(tmp_path: Path, canary: str, name: str) -> None:
    payload = payloads(canary)[name]
    inserted = push(payload, 2) + pickle.POP
    pickled = entries(saved(honest()))["archive/data.pkl"]
    for _, _, position in list(pickletools.genops(pickled))[1:]:
        infected = pickled[:position] + inserted + pickled[position:]
        assert named_in(refusal(written(tmp_path / "m.pt", in_zip(infected))), payload)


def test_a_payload_after_the_honest_pickles_of_the_old_format_is_refused(tmp_path: Path, canary: str) -> None:
    payload = payloads(canary)["os.system"]
    content = saved(honest(), legacy=True)
    keys = content.index(b"\x80\x02]", 100)  # the last pickle lists the storages
    infected = content[:keys] + program(by_reduce(payload, 2), 2) + content[keys:]
    assert named_in(refusal(written(tmp_path / "m.pt", infected)), payload)


@pytest.mark.parametrize("opcode", [pickle.EXT1 + b"\x07", pickle.EXT2 + b"\x07\0", pickle.EXT4 + b"\x07\0\0\0"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_names_registered_as_numbers_are_refused(tmp_path: Path, canary: str, opcode: bytes, container: str) -> None:
    body = opcode + push((canary,), 2) + pickle.REDUCE
    message = refusal(written(tmp_path / "m.pt", CONTAINERS[container](program(body, 2))))
    assert "copyreg extension 7" in message


def test_a_name_that_the_file_computes_is_said_to_be_computed(tmp_path: Path, canary: str) -> None:
    body = push(Call(Name("_codecs.encode"), ("os", "latin1")), 4) + push("system", 4) + pickle.STACK_GLOBAL
    message = refusal(written(tmp_path / "m.pt", in_zip(program(body, 4))))
    assert "a name computed by the file" in message


def test_a_name_that_scripts_the_terminal_is_escaped(tmp_path: Path, canary: str) -> None:
    for protocol in (2, 4):
        pickled = program(push(Call(Name("os.\x1b]0;owned\x07\x1b[31m"), (canary,)), protocol), protocol)
        assert r"\x1b]0;owned\x07" in refusal(written(tmp_path / "m.pt", in_zip(pickled)))


@pytest.mark.parametrize("name", CORE)
@pytest.mark.parametrize("command", [[], ["inspect"], ["sites"]])
def test_the_command_line_exits_3_with_one_line(tmp_path: Path, canary: str, name: str, command: list[str]) -> None:
    payload = payloads(canary)[name]
    for container, wrap in CONTAINERS.items():
        path = written(tmp_path / f"{container}.pt", wrap(program(by_reduce(payload, 2), 2)))
        result = CliRunner().invoke(main, [*command, str(path)])
        assert result.exit_code == 3
        assert result.stderr.startswith(f"Error: {path} needs ")
        assert result.stderr.count("\n") == 1
        assert "Traceback" not in result.output
