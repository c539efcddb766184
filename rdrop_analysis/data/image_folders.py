"""Folders of images, with a sub-folder a class or flat, as a table of examples."""

from __future__ import annotations

from itertools import islice, zip_longest
from pathlib import Path

from rdrop_analysis.data.tables import Table
from rdrop_analysis.errors import DataError

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
SPLITS = ("test", "validation", "valid", "val", "dev", "train")
"""The parts of a data set by name, the one to measure on first."""


def read_image_folder(folder: Path, split: str | None, limit: int | None) -> Table:
    """Return the images in a folder, and as labels the names of the sub-folders that they are in.

    Images are in the order of their names, the first of every class, then the second: any limit sees all
    classes. Where the sub-folders are test, validation and train, `split` or the first of these is taken.

    Raises:
        DataError: there are no images, or no such split.
    """
    folder = _split(folder, split)
    classes = _sub_folders(folder)
    labelled = [[(image, c.name) for image in _images(c, deep=True)] for c in classes]
    if not any(labelled):
        images = list(islice(_images(folder, deep=False), limit))
        _require(images, folder)
        return Table(str(folder), {"image": images})
    order = [entry for rank in zip_longest(*labelled) for entry in rank if entry is not None][:limit]
    names = [c.name for c, images in zip(classes, labelled, strict=True) if images]
    return Table(
        str(folder),
        {"image": [image for image, _ in order], "label": [name for _, name in order]},
        read_column=lambda _: names,
    )


def _split(folder: Path, split: str | None) -> Path:
    """Return the part of the data set to read."""
    found = {sub.name.lower(): sub for sub in _sub_folders(folder)}
    if split is not None:
        if split.lower() not in found:
            raise DataError(f"{folder} has no folder {split!r}: there are {', '.join(sorted(found)) or 'none'}")
        return found[split.lower()]
    if found and set(found) <= set(SPLITS):
        return next(found[name] for name in SPLITS if name in found)
    return folder


def _sub_folders(folder: Path) -> list[Path]:
    return sorted(sub for sub in folder.iterdir() if sub.is_dir() and not sub.name.startswith("."))


def _images(folder: Path, *, deep: bool) -> list[Path]:
    """Return the images in a folder, in the order of their names."""
    found = folder.rglob("*") if deep else folder.iterdir()
    return sorted(path for path in found if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))


def _require(images: list[Path], folder: Path) -> None:
    if not images:
        raise DataError(f"{folder} holds no images (such as .png or .jpg) and is no data set that datasets saved")
