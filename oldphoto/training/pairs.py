"""Degraded copies of a folder of clean photos, written as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from oldphoto.errors import RefusedOverwriteError, UsageError
from oldphoto.files.image import Photo, read_photo, write_photo
from oldphoto.files.masks import write_mask
from oldphoto.training import ageing, degrade
from oldphoto.training.data import image_files, overlays

RECIPES = {"published": degrade.published_mixture, "wider": ageing.wider_mixture_of_one, **degrade.SINGLE}


def write_pairs(inputs: Sequence[Path], output: Path, recipe: str, damage: Path | None, seed: int) -> int:
    """Write a degraded PNG for every photo of the folders, and with `damage` a mask beside it; returns how many.

    The same seed and files give the same pixels. Raises UsageError for an unknown recipe, RefusedOverwriteError where
    `output` exists or two photos share a name.
    """
    if recipe not in RECIPES:
        raise UsageError(f"there is no recipe {recipe!r}", f"one of {', '.join(RECIPES)}")
    if output.exists():
        raise RefusedOverwriteError(f"{output} exists", "name a new folder")
    files = [file for folder in inputs for file in image_files(folder)]
    names = [file.stem for file in files]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise RefusedOverwriteError(f"two photos are named {double}", "run the folders one by one")
    harm = None if damage is None else overlays(damage)
    output.mkdir(parents=True)
    for number, file in enumerate(files):
        rng = np.random.default_rng([seed, number])
        pixels = read_photo(file).pixels
        top = np.float32(np.iinfo(pixels.dtype).max)
        old = RECIPES[recipe](pixels.astype(np.float32) / top, rng)
        if harm is not None:
            mask = degrade.damage((old.shape[0], old.shape[1]), harm, rng, drawn=0.0).mask
            old = degrade.whitened(old, mask)
            write_mask(mask, output / f"{file.stem}.mask.png")
        degraded = np.clip(np.rint(old * 255.0), 0, 255).astype(np.uint8)
        write_photo(Photo.from_array(degraded), output / f"{file.stem}.png")
    return len(files)
