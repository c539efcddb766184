"""`pkg.mod:callable` and `path/file.py:callable` are found, and every failure is one line that helps."""

import sys
from pathlib import Path

import pytest

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
