"""Find the callable that a user names on the command line: `pkg.mod:callable` or `path/file.py:callable`.

Beside these there is `timm:NAME`, for the models of that library. Only what the user typed is resolved here, never
a name found inside a file.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import sys
import urllib.parse
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from rdrop_analysis.errors import UsageError

_TIMM = "timm:"


def resolve(spec: str) -> Callable[..., Any]:
    """Return the callable named by `pkg.mod:callable` or `path/file.py:callable`, or what makes `timm:NAME`.

    A module is imported with the current directory importable; a file is run under a private module name with
    its own directory importable, so that it finds its neighbours. The callable may be a dotted attribute.

    Raises `UsageError` if the spec has no colon, the module or file or attribute does not exist, importing it
    fails, or the attribute cannot be called.
    """
    if spec.startswith(_TIMM):
        return _timm_model(spec)
    place, colon, name = spec.rpartition(":")
    if not (place and colon and name) or name.endswith(".py"):
        raise UsageError(f"{spec!r} names no callable: write pkg.mod:callable or path/file.py:callable")
    found: Any = _load(place)
    for part in name.split("."):
        found = _attribute(found, part, spec)
    if not callable(found):
        raise UsageError(f"{spec}: {name} is not callable but {type(found).__name__}")
    return found  # type: ignore[no-any-return]  # callable() does not narrow Any


def _timm_model(spec: str) -> Callable[..., Any]:
    """Return what makes the model of `timm:NAME` or `timm:NAME?argument=value&...`, without pretrained weights."""
    name, _, query = spec.removeprefix(_TIMM).partition("?")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a library's own imports
            timm = importlib.import_module("timm")
    except ImportError as problem:
        raise UsageError(f"{spec} needs timm ({problem}): pip install 'rdrop-analysis[timm]'") from problem
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models())
        raise UsageError(f"{spec}: timm has no model {name!r}{_did_you_mean(near)}")
    arguments = {key: _literal(value) for key, value in _pairs(spec, query)}

    def make() -> Any:
        return timm.create_model(name, pretrained=False, **arguments)

    make.__qualname__ = spec
    return make


def _pairs(spec: str, query: str) -> list[tuple[str, str]]:
    try:
        pairs = urllib.parse.parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as problem:
        raise UsageError(f"{spec}: write arguments as timm:NAME?argument=value&argument=value") from problem
    if "pretrained" in dict(pairs):
        raise UsageError(f"{spec}: pretrained does not do, the weights are those of the checkpoint")
    return pairs


def _literal(text: str) -> Any:
    """A number, a truth value, None, a list, or else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def call(spec: str) -> Any:
    """Call the callable that `spec` names, without arguments; its failure is a `UsageError`."""
    factory = resolve(spec)
    try:
        return factory()
    except (Exception, SystemExit) as problem:  # the user's own code may raise anything
        raise UsageError(f"{spec} failed when called without arguments: {_summary(problem)}") from problem


def _load(place: str) -> ModuleType:
    """Import a module by its dotted name, or a file by its path."""
    try:
        if place.endswith(".py") or "/" in place or "\\" in place:
            return _load_file(Path(place))
        with importable(Path.cwd()):
            return importlib.import_module(place)
    except UsageError:
        raise
    except ModuleNotFoundError as problem:
        raise UsageError(f"cannot import {place}: {problem.msg}; is it installed, or in this directory?") from problem
    except (Exception, SystemExit) as problem:  # the user's own code may raise anything
        raise UsageError(f"importing {place} failed: {_summary(problem)}") from problem


def _load_file(path: Path) -> ModuleType:
    """Run a Python file as a module of its own, once per path."""
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file")
    resolved = path.resolve()
    name = f"_rdrop_analysis_{resolved.stem}_{hashlib.sha256(str(resolved).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up by name
    try:
        with importable(resolved.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextlib.contextmanager
def importable(directory: Path) -> Iterator[None]:
    """Put a directory first on the import path for a while."""
    before = list(sys.path)
    sys.path.insert(0, str(directory))
    try:
        yield
    finally:
        sys.path[:] = before


def _attribute(owner: Any, name: str, spec: str) -> Any:
    """Return an attribute, or say which one may have been meant."""
    try:
        return getattr(owner, name)
    except AttributeError:
        near = difflib.get_close_matches(name, [entry for entry in dir(owner) if not entry.startswith("_")])
        raise UsageError(f"{spec}: there is no {name}{_did_you_mean(near)}") from None


def _did_you_mean(near: list[str]) -> str:
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _summary(problem: BaseException) -> str:
    """Return the type and the first line of an exception."""
    first = (str(problem).splitlines() or [""])[0]
    return f"{type(problem).__name__}: {first}" if first else type(problem).__name__
