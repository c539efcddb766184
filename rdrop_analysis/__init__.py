"""Measure how far a dropout-trained PyTorch model is from the model that is deployed.

The public API; names are imported when first used, so that importing the package costs nothing: not even `typing`, for
an interrupt while that is loaded would be met by nobody (the command begins in `__main__`).
"""

from __future__ import annotations

TYPE_CHECKING = False  # what typing has, for type checkers and linters

if TYPE_CHECKING:
    from typing import Any

    from rdrop_analysis.analysis import analyze
    from rdrop_analysis.checkpoints import load_checkpoint, save_checkpoint
    from rdrop_analysis.losses import RDropLoss
    from rdrop_analysis.results import Results, load_results
    from rdrop_analysis.training import train

_HOMES = {
    "RDropLoss": "losses",
    "Results": "results",
    "analyze": "analysis",
    "load_checkpoint": "checkpoints",
    "load_results": "results",
    "save_checkpoint": "checkpoints",
    "train": "training",
}

__all__ = ["RDropLoss", "Results", "analyze", "load_checkpoint", "load_results", "save_checkpoint", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
