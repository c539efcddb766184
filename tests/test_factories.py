"""`pkg.mod:callable` and `path/file.py:callable` are found, and every failure is one line that helps."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from rdrop_analysis.checkpoints import load_checkpoint
from rdrop_analysis.errors import UsageError
from rdrop_analysis.factories import call, resolve


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a module that imports its neighbour; sys.modules is restored afterwards."""
    (tmp_path / "rdrop_neighbour.py").write_text("VALUE = 7\n")
    (tmp_path / "rdrop_project.py").write_text(
        "import rdrop_neighbour\n"
        "def build():\n    return rdrop_neighbour.VALUE\n"
        "class Zoo:\n    @staticmethod\n    def lion():\n        return 'lion'\n"
        "number = 3\n"
        "def broken():\n    raise KeyError('first line\\nsecond line')\n"
    )
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.startswith("rdrop_neighbour")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "modules", sys.modules.copy())
    return tmp_path


@pytest.mark.parametrize("place", ["rdrop_project", "rdrop_project.py", "./rdrop_project.py"])
def test_a_module_and_a_file_are_found_with_their_neighbours(project: Path, place: str) -> None:
    before = list(sys.path)
    sys.modules.pop("rdrop_project", None)
    sys.modules.pop("rdrop_neighbour", None)
    assert call(f"{place}:build") == 7
    assert call(f"{place}:Zoo.lion") == "lion"
    assert sys.path == before


def test_an_absolute_path_is_loaded_once_and_never_under_its_own_name(project: Path) -> None:
    spec = f"{project / 'rdrop_project.py'}:build"
    sys.modules.pop("rdrop_project", None)
    assert resolve(spec) is resolve(spec)
    assert "rdrop_project" not in sys.modules
    assert resolve(spec).__module__ in sys.modules


def test_the_last_colon_separates_so_that_drive_letters_work(project: Path) -> None:
    with pytest.raises(UsageError, match=r"^C:\\models\\net.py: there is no such file$"):
        resolve("C:\\models\\net.py:build")


def test_an_installed_module_is_found() -> None:
    assert resolve("collections:OrderedDict")() == {}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rdrop_project", "names no callable: write pkg.mod:callable or path/file.py:callable"),
        ("rdrop_project.py", "names no callable"),
        (":build", "names no callable"),
        ("rdrop_project:", "names no callable"),
        ("C:net.py", "names no callable"),
        ("nowhere.py:build", "nowhere.py: there is no such file"),
        ("no_such_package_here:build", "cannot import no_such_package_here: No module named"),
        ("rdrop_project:biuld", "there is no biuld; did you mean build?"),
        ("rdrop_project.py:Zoo.tiger", "there is no tiger"),
        ("rdrop_project:number", "number is not callable but int"),
        ("..:build", "importing .. failed: "),
    ],
)
def test_a_spec_that_leads_nowhere_says_why(project: Path, spec: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise ValueError('bad\\nworse')", "ValueError: bad"),
        ("import rdrop_absent_module", "No module named 'rdrop_absent_module'"),
        ("def f(:\n", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_an_import_that_fails_names_the_exception(project: Path, source: str, message: str) -> None:
    (project / "failing.py").write_text(source)
    with pytest.raises(UsageError) as caught:
        resolve("failing.py:build")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    (project / "failing.py").write_text("def build():\n    return 1\n")
    assert call("failing.py:build") == 1  # a failed attempt leaves nothing behind


def test_a_callable_that_fails_names_the_exception(project: Path) -> None:
    with pytest.raises(UsageError, match=r"rdrop_project:broken failed when called .*KeyError: ") as caught:
        call("rdrop_project:broken")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError)


class Timm(ModuleType):
    """What is used of timm, which needs torchvision and so cannot be installed everywhere that tests run."""

    def is_model(self, name: str) -> bool:
        return name in self.list_models()

    def list_models(self) -> list[str]:
        return ["resnet18", "vit_tiny_patch16_224"]

    def create_model(self, name: str, **arguments: Any) -> nn.Module:
        model = nn.Linear(2, 2)
        model.made_with = (name, arguments)  # type: ignore[assignment]  # for the test to see
        return model


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", Timm("timm"))


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize(
    ("spec", "arguments"),
    [
        ("timm:resnet18", {}),
        ("timm:resnet18?num_classes=10", {"num_classes": 10}),
        ("timm:resnet18?drop_rate=0.1&drop_path_rate=2e-1", {"drop_rate": 0.1, "drop_path_rate": 0.2}),
        ("timm:resnet18?global_pool=avg&scriptable=True", {"global_pool": "avg", "scriptable": True}),
        ("timm:resnet18?x=None&y=", {"x": None, "y": ""}),
        ("timm:resnet18?img_size=(3,4)", {"img_size": (3, 4)}),
        ("timm:resnet18?evil=__import__('os').getcwd()", {"evil": "__import__('os').getcwd()"}),
    ],
)
def test_timm_names_make_models_without_pretrained_weights(spec: str, arguments: dict[str, Any]) -> None:
    assert call(spec).made_with == ("resnet18", {"pretrained": False, **arguments})


@pytest.mark.usefixtures("timm")
def test_timm_models_take_a_state_dict(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    torch.save(model.state_dict(), tmp_path / "m.pt")
    loaded = load_checkpoint(tmp_path / "m.pt", resolve("timm:resnet18?num_classes=2")).model
    assert torch.equal(loaded.weight, model.weight)  # type: ignore[arg-type]  # a Linear, seen as a Module


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("timm:resnet81", "timm has no model 'resnet81'; did you mean resnet18?"),
        ("timm:", "timm has no model ''"),
        ("timm:resnet18?drop_rate", "write arguments as timm:NAME?argument=value"),
        ("timm:resnet18?pretrained=True", "pretrained does not do"),
    ],
)
def test_a_timm_name_that_does_not_do_says_why(spec: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(spec)
    assert message in str(caught.value)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"pip install 'rdrop-analysis\[timm\]'"):
        resolve("timm:resnet18")
