"""Plain folders of images -> training crops, cut on the device that trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage
from torch import Tensor

from oldphoto.errors import NoInputError
from oldphoto.training import degrade
from oldphoto.training.ageing import Dice

Pixels = NDArray[np.uint8]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"})
# A photo is cropped at its own size and at these shares of it, so that small things are seen too.
SCALES = (1.0, 2.0 / 3.0, 0.5)
SCALE_CHANCES = (0.5, 0.25, 0.25)


def image_files(folder: Path) -> list[Path]:
    """All images below a folder, sorted. Raises NoInputError where there are none."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not files:
        raise NoInputError(f"{folder}: no images", "give a folder of .jpg, .png, .webp or .tif files")
    return files


def read_photos(folder: Path, short_side: int = 608, least: int = 256) -> list[Pixels]:
    """The photos of a folder, each (H, W, 3) RGB.

    short_side: larger ones are reduced to it; least: those smaller than this on a side are left out, as published.
    Raises NoInputError where none is left.
    """
    photos: list[Pixels] = []
    for file in image_files(folder):
        with PillowImage.open(file) as image:
            rgb = image.convert("RGB")
        if min(rgb.size) < least:
            continue
        if min(rgb.size) > short_side:
            f = short_side / min(rgb.size)
            rgb = rgb.resize((round(rgb.width * f), round(rgb.height * f)), PillowImage.Resampling.LANCZOS)
        photos.append(np.asarray(rgb))
    if not photos:
        raise NoInputError(f"{folder}: no photo of at least {least} x {least} pixels")
    return photos


def read_judged(folder: Path, judged: Path, short_side: int, least: int) -> list[tuple[Pixels, Pixels]]:
    """The photos of a folder as `read_photos` gives them, each with what was judged of it, (H, W) uint8.

    judged: folder of grey pictures NAME.png: 0 sound, 255 damaged, 128 not known. A photo without one is not known at
    all. Raises NoInputError where there is no photo.
    """
    pairs = []
    for file in image_files(folder):
        with PillowImage.open(file) as image:
            rgb = image.convert("RGB")
        if min(rgb.size) < least:
            continue
        known = judged / f"{file.stem}.png"
        levels = PillowImage.new("L", rgb.size, 128)
        if known.is_file():
            with PillowImage.open(known) as image:
                levels = image.convert("L")
        if min(rgb.size) > short_side:
            f = short_side / min(rgb.size)
            rgb = rgb.resize((round(rgb.width * f), round(rgb.height * f)), PillowImage.Resampling.LANCZOS)
        if levels.size != rgb.size:
            levels = levels.resize(rgb.size, PillowImage.Resampling.BILINEAR)
        pairs.append((np.asarray(rgb), np.asarray(levels)))
    if not pairs:
        raise NoInputError(f"{folder}: no photo of at least {least} x {least} pixels")
    return pairs


class Photos:
    """Photos on the device, as one run of pixels, from which crops of a batch are gathered at once.

    photos: each (H, W, 3) RGB. least: sides that a reduced copy must have to be kept.
    """

    def __init__(self, photos: Sequence[Pixels], device: torch.device, least: int) -> None:
        # Of each photo and scale: first pixel, height, width. A scale that is too small repeats the one above.
        self.places = np.zeros((len(photos), len(SCALES), 3), np.int64)
        runs, at = [], 0
        for place, photo in zip(self.places, photos, strict=True):
            for k, scale in enumerate(SCALES):
                h, w = (round(side * scale) for side in photo.shape[:2])
                if k and min(h, w) < least:
                    place[k] = place[k - 1]
                    continue
                copy = photo if not k else np.asarray(cv2.resize(photo, (w, h), interpolation=cv2.INTER_AREA))
                place[k] = at, h, w
                runs.append(np.ascontiguousarray(copy, np.uint8).reshape(-1, 3))
                at += h * w
        self.pixels = torch.from_numpy(np.concatenate(runs)).to(device)

    def __len__(self) -> int:
        return len(self.places)

    def crops(self, count: int, size: int, dice: Dice) -> Tensor:
        """(count, 3, size, size) in [0, 1]: random photos, scales, places; half of them mirrored, one in ten turned.

        Raises ValueError where `size` is larger than a photo.
        """
        rng = dice.host
        those = rng.integers(len(self.places), size=count)
        first, height, width = self.places[those, rng.choice(len(SCALES), count, p=SCALE_CHANCES)].T
        if min(height.min(), width.min()) < size:
            raise ValueError(f"crops of {size} pixels from photos of {min(height.min(), width.min())}")
        top, left = (np.floor(rng.random(count) * (side - size + 1)).astype(np.int64) for side in (height, width))
        along = np.arange(size)
        rows, columns = top[:, None] + along, left[:, None] + along
        turned = rng.random(count) < 0.1
        mirrored = rng.random(count) < 0.5
        columns[mirrored] = columns[mirrored, ::-1]
        upset = turned & (rng.random(count) < 0.5)
        rows[upset] = rows[upset, ::-1]
        starts = dice.placed(first[:, None] + rows * width[:, None])
        index = starts[:, :, None] + dice.placed(columns)[:, None]  # (count, size, size)
        turn = dice.placed(turned & (rng.random(count) < 2.0 / 3.0)).view(-1, 1, 1)
        index = torch.where(turn, index.transpose(1, 2), index)
        return self.pixels[index].permute(0, 3, 1, 2).float() / 255.0


class DamageMaps:
    """Drawn damage on the device, cropped, mirrored and turned anew each time it is laid on.

    overlays: see degrade.damage. count maps of `side` x `side` pixels are drawn.
    """

    def __init__(
        self, overlays: Mapping[str, Sequence[Pixels]], count: int, side: int, seed: int, device: torch.device
    ) -> None:
        rng = np.random.default_rng([11, seed])
        maps = np.stack(
            [
                np.rint(degrade.damage((side, side), overlays, rng).opacity * 255.0).astype(np.uint8)
                for _ in range(count)
            ]
        )
        self.maps = torch.from_numpy(maps).to(device)

    def opacity(self, count: int, size: int, dice: Dice) -> Tensor:
        """(count, 1, size, size) in [0, 1]."""
        rng, side = dice.host, self.maps.shape[1]
        those = rng.integers(len(self.maps), size=count)
        lines = rng.integers(side - size + 1, size=(2, count))[..., None] + np.arange(size)
        backwards = rng.random((2, count)) < 0.5
        lines[backwards] = lines[backwards, ::-1]
        index = dice.placed((those[:, None] * side + lines[0]) * side)[:, :, None] + dice.placed(lines[1])[:, None]
        index = torch.where(dice.placed(rng.random(count) < 0.5).view(-1, 1, 1), index.transpose(1, 2), index)
        return self.maps.view(-1)[index][:, None].float() / 255.0


@lru_cache(maxsize=8)
def photos_of(folder: Path, device: torch.device, short_side: int, least: int) -> Photos:
    """The photos of a folder, read once for all stages of a run."""
    return Photos(read_photos(folder, short_side, least), device, least)


@lru_cache(maxsize=4)
def damage_of(folder: Path, device: torch.device, count: int, side: int, seed: int) -> DamageMaps:
    """Maps of the overlays of a folder, drawn once for all stages of a run."""
    return DamageMaps(overlays(folder), count, side, seed, device)


def overlays(folder: Path) -> dict[str, list[Pixels]]:
    """Damage overlays by kind (sub-folder): grey uint8, 255 = fully covered."""
    kinds: dict[str, list[Pixels]] = {}
    for file in image_files(folder):
        with PillowImage.open(file) as image:
            kinds.setdefault(file.parent.name, []).append(np.asarray(image.convert("L")))
    return kinds
