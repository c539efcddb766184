"""Leave a model exactly as it was found: training flags, buffers and random state."""

from __future__ import annotations

import copy
import random
import sys
import warnings
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Training flags, attributes, buffers and random state are afterwards as before, whatever happens.

    What the caller has turned on around it does not reach inside: autocast, `no_grad` and `inference_mode` are
    off, so that a checkpoint's numbers are the same wherever it is measured. Compiled code runs uncompiled: its
    random numbers are made inside kernels. The fused path of `nn.TransformerEncoder` and
    `nn.MultiheadAttention`, which skips dropout, is off, and so are the fused attention kernels, whose masks
    cannot be supplied and which have no second derivative. cuDNN is off for models with a recurrent layer: its
    layers draw inside, from a state of its own, and have gradients in training mode only.
    """
    fastpath = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=_cuda_devices(model)))
        for restore in (*_global_generators(), *_own_generators(model)):
            stack.callback(restore)
        stack.enter_context(buffers_kept(model))
        stack.enter_context(attributes_kept(model))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(flags(model, [m for m in model.modules() if m.training]))
        stack.enter_context(_plain_modes())
        stack.callback(torch.backends.mha.set_fastpath_enabled, fastpath)
        torch.backends.mha.set_fastpath_enabled(False)
        _keep_together(model)
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.callback(setattr, torch.backends.cudnn, "enabled", torch.backends.cudnn.enabled)
            torch.backends.cudnn.enabled = False
        yield


@contextmanager
def _plain_modes() -> Iterator[None]:
    """Gradients recorded, in the precision of the tensors, by eager code."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and importing it takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(warnings.catch_warnings())  # of hooks for all modules, which ModulePaths wants to have
            warnings.filterwarnings("ignore", "Using `torch.compile\\(module\\)` when there are global hooks")
        yield


def _keep_together(model: nn.Module) -> None:
    """Let `nn.DataParallel` run on one device: what its other threads draw cannot be seen."""
    for module in model.modules():
        if isinstance(module, nn.DataParallel):
            module.device_ids = []  # put back by attributes_kept


@contextmanager
def as_users_run() -> Iterator[None]:
    """Inside :func:`preserved`: the fused paths and attention kernels on, as they are unless turned off."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    with sdpa_kernel([kernel for kernel in SDPBackend.__members__.values() if kernel != SDPBackend.ERROR]):
        try:
            torch.backends.mha.set_fastpath_enabled(True)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fastpath)


@contextmanager
def flags(model: nn.Module, training: Iterable[nn.Module]) -> Iterator[None]:
    """Set `training` on exactly these modules of `model`; on exit every flag is as it was found."""
    before = {module: module.training for module in model.modules()}
    wanted = set(training)
    try:
        for module in before:
            module.training = module in wanted
        yield
    finally:
        for module, flag in before.items():
            module.training = flag


class Buffers:
    """The buffers of a model as they were found, to be put back when a pass has changed them.

    Off the processor values are put back unseen, because looking would wait for the device; with `look` they are
    looked at the first time.
    """

    def __init__(self, model: nn.Module, *, look: bool = True) -> None:
        self.changed: set[str] = set()
        self._look = look
        self._found = [
            (f"{path}.{name}".lstrip("."), module, name, buffer, buffer.clone())
            for path, module in model.named_modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    def restore(self) -> None:
        """Put back every tensor and value; `changed` remembers the names of those that needed it."""
        differing: list[tuple[Tensor, Tensor]] = []
        for path, module, name, buffer, value in self._found:
            if module._buffers.get(name) is not buffer:
                self.changed.add(path)
                module._buffers[name] = buffer
            if self._look or buffer.device.type == "cpu":
                if torch.equal(buffer, value):  # by value: changes through .data leave no other trace
                    continue
                self.changed.add(path)
            differing.append((buffer, value))
        self._look = False
        if differing:
            with torch.no_grad():
                torch._foreach_copy_([buffer for buffer, _ in differing], [value for _, value in differing])


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Every module's attributes are on exit the objects that they were, also those that a pass or `eval()` sets.

    Of dicts, lists and sets among them (parameters, hooks, caches) the contents are.
    """
    found = [(module, dict(vars(module))) for module in model.modules()]
    containers = [
        (value, copy.copy(value))
        for _, attributes in found
        for value in attributes.values()
        if type(value) in (dict, OrderedDict, list, set)
    ]
    was_training = model.training
    overridden = any(type(m).train is not nn.Module.train for m in model.modules())
    try:
        yield
    finally:
        if overridden:  # what train() does may reach further than attributes
            model.train(was_training)
        for module, attributes in found:
            vars(module).clear()
            vars(module).update(attributes)
        for container, contents in containers:
            container.clear()
            container.extend(contents) if isinstance(container, list) else container.update(contents)


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[Buffers]:
    """Every buffer of `model` is on exit the tensor that it was, with the values that it had."""
    buffers = Buffers(model, look=False)
    try:
        yield buffers
    finally:
        buffers.restore()


def foreign_state() -> tuple[object, ...]:
    """State of the generators outside torch that a model may draw from: Python's and NumPy's global ones."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - the state of the legacy global generator it is
    return random.getstate(), kind, bytes(np.asarray(keys)), *rest


def seed_foreign(*key: int) -> None:
    """Seed Python's and NumPy's global generators."""
    random.seed(repr(key))
    np.random.seed(zlib.crc32(repr(key).encode()))  # noqa: NPY002 - models that use it use the global one


def _global_generators() -> list[Callable[[], object]]:
    """What puts Python's and NumPy's global generators back as they are now."""
    return [
        partial(random.setstate, random.getstate()),
        partial(np.random.set_state, np.random.get_state()),  # noqa: NPY002 - the global one
    ]


def _own_generators(model: nn.Module) -> Iterator[Callable[[], object]]:
    """What puts the generators that are attributes of modules back as they are now."""
    for value in (value for module in model.modules() for value in vars(module).values()):
        if isinstance(value, torch.Generator):
            yield partial(value.set_state, value.get_state())
        elif isinstance(value, random.Random):
            yield partial(value.setstate, value.getstate())
        elif isinstance(value, np.random.RandomState):
            yield partial(value.set_state, value.get_state())
        elif isinstance(value, np.random.Generator):
            yield partial(setattr, value.bit_generator, "state", value.bit_generator.state)


def _cuda_devices(model: nn.Module) -> list[int]:
    return sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
