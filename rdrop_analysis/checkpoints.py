"""Load checkpoints, whoever wrote them: the weights that a path leads to, in the model that they belong to.

The model is the one that the user's factory builds, else the one that the file describes: this package's own, or
one of transformers' classes named in a `config.json`. Code in a file is run only for a user who trusts it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from rdrop_analysis.errors import UsageError
from rdrop_analysis.files import printable
from rdrop_analysis.loading.descriptions import (
    FORMAT,
    VERSION,
    Scalar,
    build_described,
    checked_description,
    in_words,
    save_checkpoint,
)
from rdrop_analysis.loading.lightning import is_lightning, make_model, plain_settings
from rdrop_analysis.loading.state_dicts import find_state_dict, fit, ignored_average
from rdrop_analysis.loading.stored import Stored, digest, read_stored

__all__ = ["FORMAT", "VERSION", "LoadedCheckpoint", "Scalar", "load_checkpoint", "save_checkpoint"]


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A model read from a file, ready to be analysed.

    Attributes:
        model: on the CPU, in eval mode, with the dtypes of the file.
        path: what was named.
        sha256: of the file's bytes, or of the names and hashes of all files that were read.
        architecture: describes the model in words.
        data: the name of a built-in data set, if the file has one.
        training: the settings it was trained with, if known.
        notes: what the reader has to know of how it was read, message by code.
        source: the directory with the model's tokenizer or processor, if there is one.
        task: what the architecture is for, if it says so.
        unsupported: why it cannot be measured unless the user names the task, where it is for something else.
        class_names: names of the classes in their order, if the file has them.
    """

    model: nn.Module
    path: Path
    sha256: str
    architecture: str
    data: str | None = None
    training: Mapping[str, Scalar] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    source: Path | None = None
    task: str | None = None
    unsupported: str | None = None
    class_names: list[str] | None = None


def load_checkpoint(
    path: str | Path, factory: Callable[..., nn.Module] | None = None, *, trust_code: bool = False
) -> LoadedCheckpoint:
    """Read a checkpoint; without `trust_code` no code from it is run.

    Args:
        path: a self-describing checkpoint, or a state dict as `.pt`, `.pth`, `.bin`, `.ckpt` or `.safetensors`,
            alone or under a usual key (`state_dict`, `model`, `ema`, ...), possibly with the prefixes of wrapped
            models (`module.`, `_orig_mod.`); an index of shards; a Hugging Face directory, or the weights in it.
        factory: builds the model to load the weights into, strictly; it takes the place of what the files say.
            Of the hyper-parameters in a Lightning checkpoint it is given those that it has parameters for.
        trust_code: also read pickled modules, TorchScript and exported programs, which run code when read.

    The global random state is left as it was.

    Raises:
        CheckpointError: it cannot be read or does not fit.
        UnsafeFileError: reading it would run code.
        UsageError: a state dict comes without a factory, or the factory fails, or transformers is not installed.
    """
    stored = read_stored(Path(path), trust_code=trust_code)
    if factory is not None:
        return _in_factory(stored, factory, trust_code=trust_code)
    if trust_code and (own := _own_module(stored)) is not None:
        return own
    description = checked_description(stored.path, stored.content)
    if description is not None:
        return _self_described(stored, description)
    find_state_dict(stored.path, stored.content)  # a file without weights is the first thing to complain about
    if stored.config is not None:
        return _pretrained(stored, stored.config)
    raise UsageError(
        f"{stored.path} holds weights, not their model: pass --model pkg.mod:callable or path/file.py:callable"
    )


def _loaded(stored: Stored, model: nn.Module, architecture: str, **more: Any) -> LoadedCheckpoint:
    """The checkpoint, with what is known of every kind of file."""
    return LoadedCheckpoint(model.eval(), stored.path, digest(stored.files), architecture, **more)


def _self_described(stored: Stored, description: Mapping[str, Any]) -> LoadedCheckpoint:
    """Build the model that the file describes."""
    model = build_described(stored.path, description)
    data, training = description["data"], description["training"]
    return _loaded(stored, model, in_words(description), data=data, training=training)


def _in_factory(stored: Stored, factory: Callable[..., nn.Module], *, trust_code: bool) -> LoadedCheckpoint:
    """Load the weights into the model that the user's factory builds."""
    content = _without_modules(stored.content) if trust_code else stored.content
    description = checked_description(stored.path, content)
    state = find_state_dict(stored.path, content)
    model = make_model(stored.path, factory, content)
    unused = fit(stored.path, model, state, partial=is_lightning(content))
    return _loaded(
        stored,
        model,
        type(model).__name__,
        data=description["data"] if description else None,
        training=description["training"] if description else plain_settings(content),
        notes=_averages(content) | _unused(unused),
        source=stored.config.parent if stored.config else None,
    )


def _pretrained(stored: Stored, config: Path) -> LoadedCheckpoint:
    """Build the transformers model that a `config.json` describes."""
    from rdrop_analysis.loading.pretrained import load_pretrained

    found = load_pretrained(config, find_state_dict(stored.path, stored.content))
    return _loaded(
        replace(stored, files=(*stored.files, config)),
        found.model,
        type(found.model).__name__,
        notes=_averages(stored.content) | found.notes | _unused(found.unused),
        source=config.parent,
        task=found.task,
        unsupported=found.unsupported,
        class_names=found.class_names,
    )


def _own_module(stored: Stored) -> LoadedCheckpoint | None:
    """The module that a trusted file holds, if it is not only weights."""
    from rdrop_analysis.loading.trusted import module_in

    own = module_in(stored.path, stored.content)
    return None if own is None else _loaded(stored, own.module, own.architecture, notes=own.notes)


def _without_modules(content: object) -> object:
    """What a trusted file holds, with the weights of modules in place of the modules."""
    from rdrop_analysis.loading.trusted import weights_in

    return weights_in(content)


def _averages(content: object) -> dict[str, str]:
    """The note on a moving average that is not what is measured."""
    key = ignored_average(content)
    text = f"the file also holds a moving average under {key}: the plain weights are measured"
    return {"ema_ignored": text} if key else {}


def _unused(names: Sequence[str]) -> dict[str, str]:
    """The note on weights in the file that the model has no place for."""
    shown = f"{', '.join(map(printable, names[:3]))}{', ...' if len(names) > 3 else ''}"
    return {"weights_unused": f"{len(names)} tensors in the file are not the model's: {shown}"} if names else {}
