"""What a checkpoint's numbers follow from, by name: runs in which all of it is equal give equal numbers."""

from __future__ import annotations

import hashlib
import platform
import random
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from torch import Tensor, nn

from rdrop_analysis.data.examples import Data, Inputs, map_tensors
from rdrop_analysis.reading import Reader
from rdrop_probes.probe import Probe
from rdrop_probes.settings import Settings
from rdrop_probes.state import flags, preserved

EXAMPLES = 4  # that a model is known by


def key_of(
    reader: Reader,
    data: Data,
    settings: Settings,
    probes: Sequence[type[Probe]],
    *,
    file_digest: str | None,
    batch_size: int | None,
) -> dict[str, str]:
    """What numbers follow from, the machine included; `file_digest` is of the checkpoint's file, if it has one."""
    device = next((p.device.type for p in reader.model.parameters()), "cpu")
    return {
        "checkpoint": file_digest or weights_digest(reader.model),
        "data": data.fingerprint,
        "task": f"{reader.task.name} {reader.family} {reader.squashed}".strip(),
        "probes": ", ".join(probe.name for probe in probes),
        "batch size": str(batch_size or "auto"),
        **{name.replace("_", " "): str(value) for name, value in asdict(settings).items()},
        "model": behaviour(reader, data),
        "version": tool_version(),
        "torch": str(torch.__version__),
        "device": device if device == "cpu" else torch.cuda.get_device_name(),
        "threads": str(torch.get_num_threads()),
        "cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


def tool_version() -> str:
    """Version of the installed package."""
    try:
        return version("rdrop-analysis")
    except PackageNotFoundError:
        return "unknown"


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of names, types, shapes and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def behaviour(reader: Reader, data: Data) -> str:
    """SHA-256 of what a model gives for a few examples, in eval mode and with everything but normalisation in training.

    By this a model is known whose code has changed: weights say nothing of it. What differs from pass to pass by itself
    is left out.
    """
    model = reader.model
    learning = [module for module in model.modules() if not hasattr(module, "running_mean")]
    digest = hashlib.sha256()
    for batch in data.spread(EXAMPLES):
        inputs = reader.rows(batch).inputs
        for training in ([], learning):
            with preserved(model), flags(model, training), torch.no_grad():
                first, second = _seeded(reader, inputs), _seeded(reader, inputs)
            digest.update(first if first == second else b"?")
    return digest.hexdigest()


def _seeded(reader: Reader, inputs: Inputs) -> bytes:
    """The bytes of a pass under fixed seeds; inside :func:`rdrop_probes.state.preserved`."""
    for seed in (random.seed, np.random.seed, torch.manual_seed):  # what a model may draw from
        seed(0)
    try:
        found: Tensor = reader(map_tensors(torch.clone, inputs))
    except Exception as problem:  # a model may have anything in it; measuring it says more
        return type(problem).__name__.encode()
    return found.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
