"""Shared fixtures: sums over given sub-models, and a whole measurement of a small model."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rdrop_probes.batch import Batch
from rdrop_probes.block_sums import BlockSums
from rdrop_probes.distributions import Distributions, EvalBatch, Term
from rdrop_probes.families import CATEGORICAL, Family
from rdrop_probes.measure import measure
from rdrop_probes.measurement import Measurement
from rdrop_probes.probe import Probe
from rdrop_probes.settings import Settings

Summed = tuple[EvalBatch, BlockSums]


@pytest.fixture(autouse=True)
def _seeded_and_single_threaded() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are too small to share out
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def summed() -> Callable[..., Summed]:
    """Batch and block sums for eval logits [N, C] and sub-models' logits [K, N, C], added `step` at a time."""

    def sums_of(
        terms: Sequence[Term],
        z0: Tensor,
        z: Tensor,
        labels: Tensor | None = None,
        *,
        step: int = 3,
        start: int = 0,
        exact: bool = True,
    ) -> Summed:
        batch = EvalBatch(start, None, z0, labels)
        sums = BlockSums(terms, len(z), *z0.shape, exact=exact)
        for k in range(0, len(z), step):
            sums.add(k, Distributions(batch, z[k : k + step], exact=exact))
        return batch, sums

    return sums_of


def call(model: nn.Module, inputs: Any) -> Tensor:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def size(inputs: Any) -> int:
    if isinstance(inputs, Tensor):
        return len(inputs)
    return size(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs[0])


def rows(inputs: Any, part: slice) -> Any:
    if isinstance(inputs, Tensor):
        return inputs[part]
    if isinstance(inputs, dict):
        return {key: value[part] for key, value in inputs.items()}
    return tuple(value[part] for value in inputs)


@pytest.fixture
def measured() -> Callable[..., Measurement]:
    """Measurement of a model on inputs (a tensor, or a tuple or dict of them) in batches of `batch`."""

    def run(
        model: nn.Module,
        inputs: Any,
        probes: Sequence[type[Probe]],
        labels: Tensor | None = None,
        *,
        batch: int = 1000,
        family: Family = CATEGORICAL,
        **settings: Any,
    ) -> Measurement:
        parts = [slice(i, min(i + batch, size(inputs))) for i in range(0, size(inputs), batch)]
        batches = [
            Batch(rows(inputs, p), p.stop - p.start, p.start, None if labels is None else labels[p]) for p in parts
        ]
        return measure(
            model,
            batches,
            forward=lambda x: call(model, x),
            probes=probes,
            settings=Settings(**settings),
            family=family,
        )

    return run


@pytest.fixture
def z_score() -> Callable[[Any, float], float]:
    """How many standard errors the mean of some independent values is from what it should be."""

    def score(values: Any, expected: float) -> float:
        values = np.asarray(values, dtype=float)
        return float((values.mean() - expected) / (values.std(ddof=1) / len(values) ** 0.5))

    return score
