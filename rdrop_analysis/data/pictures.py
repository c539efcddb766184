"""Open images as models are trained on them: upright, in three colours or in grey, and from no odd format."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rdrop_analysis.errors import DataError
from rdrop_analysis.files import printable

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What Pillow may open: formats that it reads by itself, running no other program."""


def open_image(image: Path | Mapping[str, Any], mode: str) -> np.ndarray[Any, Any]:
    """Return the pixels of an image, turned upright: [H, W, 3] for the mode "RGB", [H, W, 1] for "L".

    The image is a file, or as `datasets` stores it: its `bytes`, or the `path` of a file.

    Raises:
        DataError: it cannot be opened, or has more than 8 bits a channel.
    """
    from PIL import Image, ImageOps

    stored = None if isinstance(image, Path) else image["bytes"]
    name = str(image) if isinstance(image, Path) else str(image.get("path") or "an image in the data set")
    try:
        with Image.open(Path(name) if stored is None else io.BytesIO(stored), formats=FORMATS) as file:
            if file.mode.startswith(("I", "F")):
                raise DataError(f"{printable(name)} has more than 8 bits a channel: save it with 8")
            pixels = np.asarray(ImageOps.exif_transpose(file).convert(mode))
    except DataError:
        raise
    except Exception as problem:  # Pillow's readers of damaged files raise anything
        raise DataError(f"{printable(name)} cannot be opened as an image: {first_line(problem)}") from problem
    return pixels if pixels.ndim == 3 else pixels[..., None]


def first_line(problem: Exception) -> str:
    """Return the kind of an error and the first line of its message."""
    return f"{type(problem).__name__}: {printable((str(problem).splitlines() or [''])[0], 150)}"
