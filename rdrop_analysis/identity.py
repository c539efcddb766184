"""What a checkpoint's numbers follow from, by name: runs in which all of it is equal give equal numbers."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import nn

from rdrop_analysis.data.examples import Data
from rdrop_analysis.reading import Reader
from rdrop_probes.probe import Probe
from rdrop_probes.settings import Settings


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
