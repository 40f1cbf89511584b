"""Plain folders of images -> batches. Every sample is drawn from its own seed, so that a resumed run sees what an
uninterrupted one would have seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage
from torch import Tensor

from oldphoto.errors import NoInputError
from oldphoto.training.degrade import Generator, Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"})
Sample = dict[str, NDArray[np.float32]]


def image_files(folder: Path) -> list[Path]:
    """All images below a folder, sorted. Raises NoInputError where there are none."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not files:
        raise NoInputError(f"{folder}: no images", "give a folder of .jpg, .png, .webp or .tif files")
    return files


class Photos:
    """The photos of a folder, decoded once and kept as uint8 (H, W, 3); larger ones are reduced.

    short_side: photos are reduced to it; least: those smaller than this on a side are left out, as published.
    """

    def __init__(self, folder: Path, short_side: int = 608, least: int = 256) -> None:
        self.files = image_files(folder)
        self.pixels: list[NDArray[np.uint8]] = []
        for file in self.files:
            with PillowImage.open(file) as image:
                rgb = image.convert("RGB")
            if min(rgb.size) < least:
                continue
            if min(rgb.size) > short_side:
                f = short_side / min(rgb.size)
                rgb = rgb.resize((round(rgb.width * f), round(rgb.height * f)), PillowImage.Resampling.LANCZOS)
            self.pixels.append(np.asarray(rgb))
        if not self.pixels:
            raise NoInputError(f"{folder}: no photo of at least {least} x {least} pixels")

    def crop(self, size: int, rng: Generator) -> Image:
        """A random square (size, size, 3) in [0, 1]: scaled by 1/2 to 1 where the photo allows, flipped, turned."""
        photo = self.pixels[int(rng.integers(len(self.pixels)))]
        h, w = photo.shape[:2]
        side = int(min(min(h, w), size * rng.choice((1.0, 1.0, 1.5, 2.0))))
        y, x = int(rng.integers(h - side + 1)), int(rng.integers(w - side + 1))
        crop = photo[y : y + side, x : x + side]
        if side != size:
            how = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
            crop = np.asarray(cv2.resize(crop, (size, size), interpolation=how), np.uint8)
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        if rng.random() < 0.1:
            crop = np.rot90(crop, int(rng.integers(1, 4)))
        return np.ascontiguousarray(crop, dtype=np.float32) / np.float32(255.0)


def overlays(folder: Path) -> dict[str, list[NDArray[np.uint8]]]:
    """Damage overlays by kind (sub-folder): grey uint8, 255 = fully covered."""
    kinds: dict[str, list[NDArray[np.uint8]]] = {}
    for file in image_files(folder):
        with PillowImage.open(file) as image:
            kinds.setdefault(file.parent.name, []).append(np.asarray(image.convert("L")))
    return kinds


def planes(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """(H, W, 3) in [0, 1] -> (3, H, W) in [-1, 1]."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)) * np.float32(2.0) - np.float32(1.0)


def batches(
    draw: Callable[[Generator], Sample], batch: int, seed: int, first: int, last: int, workers: int = 2
) -> Iterator[dict[str, Tensor]]:
    """Batches number first to last - 1 of the endless stream of `seed`, one step ahead of their use."""

    def one(step: int) -> dict[str, Tensor]:
        samples = [draw(np.random.default_rng([seed, step, i])) for i in range(batch)]
        return {k: torch.from_numpy(np.stack([s[k] for s in samples])) for k in samples[0]}

    with ThreadPoolExecutor(workers) as pool:
        waiting = [pool.submit(one, s) for s in range(first, min(first + workers, last))]
        for step in range(first, last):
            ready = waiting.pop(0)
            if step + workers < last:
                waiting.append(pool.submit(one, step + workers))
            yield ready.result()
