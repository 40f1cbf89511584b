"""Real damage labelled by hand: reading the labels, and judging masks and restorations by them.

A folder of labels holds index.csv (its column `photo` is a path), and for each photo NAME.mask.png (above 127 =
damaged, soft rim included), NAME.unsure.png (not judged), NAME.pieces.png (uint16, the number of the piece that a pixel
is of) and NAME.json (of each piece its number `id`, its `kind`, and whether it is `unsure`).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from oldphoto.errors import BadImageError, NoInputError

Bytes = NDArray[np.uint8]
Mask = NDArray[np.bool_]

FOUND = 0.6  # share of a piece's pixels that must be near a predicted one
NEAR, ABOUT = 1, 2  # pixels: how near, for recall; how far about a label a prediction counts as right
VISIBLE = 6.0  # levels by which damage stands out, below which it is not asked whether it has gone
FEW = 5  # kinds with fewer pieces are left out of the mean of kinds


@dataclass(frozen=True)
class Labelled:
    """A real photo and what a person found on it.

    path: as in the index. pixels: (H, W, 3) uint8. mask, unsure: (H, W) bool. pieces: kind and mask of each.
    """

    path: str
    pixels: Bytes
    mask: Mask
    unsure: Mask
    pieces: tuple[tuple[str, Mask], ...] = ()

    @property
    def name(self) -> str:
        """Its file's name without suffix."""
        return Path(self.path).stem


def read_labels(labels: Path, photos: Path) -> list[Labelled]:
    """Read the labelled photos of a folder; `photos` is where the paths in its index start.

    Raises NoInputError where there is no index, BadImageError where a label is not of its photo's size.
    """
    index = labels / "index.csv"
    if not index.is_file():
        raise NoInputError(f"{index}: no such file", "give a folder of labels with its index")
    with index.open(newline="", encoding="utf-8") as table:
        paths = [row["photo"] for row in csv.DictReader(table)]
    return [_read_one(labels, photos, path) for path in paths]


def _read_one(labels: Path, photos: Path, path: str) -> Labelled:
    name = Path(path).stem
    with PillowImage.open(photos / path) as image:
        pixels = np.asarray(image.convert("RGB"))
    size = pixels.shape[:2]
    mask, unsure = (_mask(labels / f"{name}.{sort}.png", size) for sort in ("mask", "unsure"))
    pieces = []
    listed = labels / f"{name}.json"
    if listed.is_file():
        numbers = np.asarray(PillowImage.open(labels / f"{name}.pieces.png")) if mask.any() else np.zeros(size)
        for piece in json.loads(listed.read_text(encoding="utf-8"))["pieces"]:
            where = numbers == piece.get("id")
            if not piece.get("unsure") and where.any():
                pieces.append((str(piece["kind"]), where))
    return Labelled(path, pixels, mask, unsure, tuple(pieces))


def _mask(file: Path, size: tuple[int, ...]) -> Mask:
    if not file.is_file():
        return np.zeros(size, np.bool_)
    mask: Mask = np.asarray(PillowImage.open(file).convert("L")) > 127
    if mask.shape != size:
        raise BadImageError(f"{file}: {mask.shape[1]} x {mask.shape[0]}, its photo {size[1]} x {size[0]}")
    return mask


@dataclass
class Kind:
    """The score of one kind of damage: how many pieces there are, which of them were found, and what is left of
    each."""

    found: list[bool] = field(default_factory=list)
    left: list[float] = field(default_factory=list)


@dataclass
class LabelScore:
    """The score of masks, and of restorations if there are any, on labelled photos.

    recalls, precisions: of each damaged photo, by pixels. kinds: by name. false, sound: pixels of photos without damage
    that were taken for it, and all of theirs.
    """

    recalls: list[float] = field(default_factory=list)
    precisions: list[float] = field(default_factory=list)
    kinds: dict[str, Kind] = field(default_factory=dict)
    false: int = 0
    sound: int = 0

    def add(self, one: Labelled, predicted: Mask, restored: Bytes | None = None) -> None:
        """Count one photo. predicted: (H, W) bool. restored: (H, W, 3) uint8 of the photo's size."""
        wrong = int((predicted & ~grown(one.mask, ABOUT) & ~grown(one.unsure, ABOUT)).sum())
        if not one.pieces:
            self.false, self.sound = self.false + wrong, self.sound + one.mask.size
            return
        near = grown(predicted, NEAR)
        right = int((predicted & grown(one.mask, ABOUT)).sum())
        self.recalls.append(float(near[one.mask].mean()))
        if right + wrong:
            self.precisions.append(right / (right + wrong))
        before, after = (None, None) if restored is None else (_stands_out(p, one.mask) for p in (one.pixels, restored))
        for name, where in one.pieces:
            kind = self.kinds.setdefault(name, Kind())
            kind.found.append(bool(near[where].mean() >= FOUND))
            if before is not None and after is not None and (strength := float(before[where].mean())) >= VISIBLE:
                kind.left.append(float(after[where].mean()) / strength)

    def figures(self) -> dict[str, float]:
        """recall, precision, pieces (share found), kinds (mean of the kinds with at least FEW pieces), false (share),
        left (1 = damage shows as before); nan where there was nothing to judge."""
        kinds = self.kinds.values()
        return {
            "recall": _mean(self.recalls),
            "precision": _mean(self.precisions),
            "pieces": _mean([f for k in kinds for f in k.found]),
            "kinds": _mean([_mean(k.found) for k in kinds if len(k.found) >= FEW]),
            "false": self.false / self.sound if self.sound else float("nan"),
            "left": _mean([left for k in kinds for left in k.left]),
        }


def grown(mask: Mask, pixels: int) -> Mask:
    """Grow a mask (H, W) by a disc of this radius; a square of 3 x 3 for one pixel."""
    side = 2 * pixels + 1
    shape = cv2.MORPH_ELLIPSE if pixels > 1 else cv2.MORPH_RECT
    return cv2.dilate(mask.astype(np.uint8), cv2.getStructuringElement(shape, (side, side))) > 0


def _stands_out(pixels: Bytes, mask: Mask) -> NDArray[np.float64]:
    """By how many levels each pixel differs from what its surroundings outside the mask would give."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    around = cv2.inpaint(grey, grown(mask, ABOUT).astype(np.uint8), 5, cv2.INPAINT_TELEA)
    return np.asarray(cv2.absdiff(grey, around), np.float64)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
