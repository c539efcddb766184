"""The data sets known by name: `digits` from scikit-learn, `fashion-mnist` from the system's files."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rdrop_analysis.data.examples import Batch, Data
from rdrop_analysis.errors import DataError

SYSTEM_DATA = Path("/usr/share/datasets")
"""Where Debian's data set packages put their files, unless $RDROP_DATA_DIR names another place."""

_CLOTHES = [
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
]


def digits(part: str) -> Data:
    """Return scikit-learn's 8 x 8 pixel digits, "train" (1347) or "test" (450): inputs [N, 64] in [0, 1].

    The split is stratified by class and always the same.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    rows = np.arange(len(labels))
    train, test = train_test_split(rows, test_size=450, random_state=0, stratify=labels)
    chosen = np.sort(train if part == "train" else test)
    inputs = torch.tensor(pixels[chosen] / 16, dtype=torch.float32)  # 16 grey levels
    batch = Batch(inputs, torch.tensor(labels[chosen], dtype=torch.int64), 0)
    names = [str(digit) for digit in range(10)]
    return Data(_spec("digits", part), (batch,), class_names=names, image_shape=(8, 8))


def fashion_mnist(part: str, directory: Path | None = None) -> Data:
    """Return Fashion-MNIST, "train" (60,000) or "test" (10,000): inputs [N, 1, 28, 28] in [0, 1].

    The four gzip idx files are looked for in `directory`, else in $RDROP_DATA_DIR or its folder
    fashion-mnist, else where Debian's package dataset-fashion-mnist puts them.

    Raises `DataError` if they are not there or damaged.
    """
    prefix = {"train": "train", "test": "t10k"}[part]
    folder = _folder("fashion-mnist", f"{prefix}-images-idx3-ubyte.gz", directory)
    pixels = _read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", n_dimensions=3)
    labels = _read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", n_dimensions=1)
    if len(pixels) != len(labels):
        raise DataError(f"{folder} has {len(pixels)} images and {len(labels)} labels: install the files again")
    inputs = pixels.unsqueeze(1).to(torch.float32) / 255
    batch = Batch(inputs, labels.to(torch.int64), 0)
    return Data(_spec("fashion-mnist", part), (batch,), class_names=list(_CLOTHES), image_shape=(28, 28))


BUILT_IN: Mapping[str, Callable[[], Data]] = {
    "digits": lambda: digits("test"),
    "digits:train": lambda: digits("train"),
    "fashion-mnist": lambda: fashion_mnist("test"),
    "fashion-mnist:train": lambda: fashion_mnist("train"),
}
"""Data sets by the name that `--data` takes; without a part, the name means the test split."""


def _spec(name: str, part: str) -> str:
    """Return the name under which `BUILT_IN` has a part of a data set."""
    return name if part == "test" else f"{name}:{part}"


def _folder(name: str, file: str, directory: Path | None) -> Path:
    """Return the first folder that has the file."""
    own = directory or (Path(os.environ["RDROP_DATA_DIR"]) if "RDROP_DATA_DIR" in os.environ else None)
    places = [own, own / name] if own else [SYSTEM_DATA / name]
    for place in places:
        if (place / file).is_file():
            return place
    raise DataError(
        f"{name} is not in {places[0]}: install the Debian package dataset-{name}, "
        f"or set RDROP_DATA_DIR to the folder with {file}"
    )


def _read_idx(path: Path, n_dimensions: int) -> Tensor:
    """Read an idx file: 0, 0, 8 for unsigned bytes, the number of dimensions, their sizes, the values."""
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as problem:
        raise DataError(f"cannot read {path}: it is missing or damaged, install it again") from problem
    start = 4 + 4 * n_dimensions
    shape = tuple(np.frombuffer(content[4:start], dtype=">u4").tolist())
    if content[:4] != bytes([0, 0, 8, n_dimensions]) or int(np.prod(shape)) != len(content) - start:
        raise DataError(f"{path} is not a whole idx file: install it again")
    return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).reshape(shape)
