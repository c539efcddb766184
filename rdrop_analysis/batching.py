"""How many examples at a time: as large as memory allows, for each shape that the examples come in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from rdrop_analysis.data.examples import Batch, Data, map_tensors, named_tensors
from rdrop_analysis.reading import Reader
from rdrop_probes.batch import Batch as RowBatch
from rdrop_probes.block_sums import rows_that_fit
from rdrop_probes.footprint import largest_tensor
from rdrop_probes.state import flags, preserved

NUMBERS_A_TENSOR = 2**22  # in the largest tensor of a batch: the system is slow to hand out larger pieces of memory
MAX_BATCH = 256
LOOKED_AT = 2  # examples whose pass is weighed


@dataclass(frozen=True)
class Batching:
    """Examples a batch, for each piece of the data; whether the user's size was cut."""

    sizes: tuple[int, ...]
    cut: bool = False

    def batches(self, reader: Reader, data: Data) -> Iterator[RowBatch]:
        """The data in batches, as the engine takes them."""
        for piece, size in zip(data.pieces, self.sizes, strict=True):
            yield from map(reader.rows, replace(data, pieces=(piece,)).batches(size))


def batching(reader: Reader, data: Data, wanted: int | None, memory: int | None = None) -> Batching:
    """Batches whose largest tensor has at most 2^22 numbers and whose sums over sub-models fit into memory.

    At most 256 examples, or the `wanted` number of them where that fits. `memory` is for everything, in bytes. Every
    shape is weighed by a pass over two examples: attention grows with the square of the length.
    """
    weighed: dict[object, tuple[float, int]] = {}
    sizes, cut = [], False
    for piece in data.pieces:
        shape = tuple(tensor.shape[1:] for tensor in named_tensors(piece.inputs).values())
        if shape not in weighed:
            weighed[shape] = _weigh(reader, replace(data, pieces=(piece,)), memory)
        numbers, fitting = weighed[shape]
        size = min(MAX_BATCH, int(NUMBERS_A_TENSOR // numbers)) if wanted is None else wanted
        cut |= wanted is not None and wanted > max(fitting, 1) and len(piece) > max(fitting, 1)
        sizes.append(max(1, min(size, fitting)))
    return Batching(tuple(sizes), cut)


def _weigh(reader: Reader, data: Data, memory: int | None) -> tuple[float, int]:
    """Numbers of an example in the largest tensor of the eval pass, and how many examples' sums fit into memory."""
    sample: Batch = next(data.batches(LOOKED_AT))
    rows = reader.rows(sample)
    with preserved(reader.model), flags(reader.model, ()):
        numbers = max(1.0, largest_tensor(lambda: reader(map_tensors(torch.clone, rows.inputs))) / len(sample))
    places = 1 if rows.places is None else max(1, rows.places[0].numel())
    return numbers, rows_that_fit(reader.n_classes, memory) // places
