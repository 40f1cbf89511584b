"""Judging by eye what a detector takes for damage on real photos, so that the next one learns from its errors.

    python -m tools.judge look NET.safetensors PHOTOS OUT      sheets of what NET takes for damage, numbered
    python -m tools.judge settle OUT VERDICTS.json JUDGED      maps for `oldphoto train damage` from what was seen

`look` writes OUT/sheet_00.png and so on, OUT/pieces.json, and for each photo OUT/NAME.png, what NET says in levels.
VERDICTS.json names, of the numbers on the sheets, those that are damage and those where one cannot tell:
{"damaged": [3, 17], "unknown": [5]}; the others are sound. `settle` writes JUDGED/NAME.png (0 sound, 255 damaged, 128
not known), on top of an earlier round's maps where there are any. A photo on which nothing was damage or doubtful is
sound all over; on others what was not looked at is not known.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from oldphoto.models.loading import load_compact, placed
from oldphoto.training.damage import probability
from oldphoto.training.data import image_files

Bytes = NDArray[np.uint8]
# Levels of 255: pieces reach over the first and have a pixel above the second; above the third nothing is surely sound.
PIECE, LOOKED_AT, DOUBTFUL = 115, 184, 76
LEAST, EACH = 6, 9  # pixels of a piece; pieces of a photo, the surest first
CELL, COLUMNS, ROWS = 112, 14, 9


def pieces_of(levels: Bytes) -> NDArray[np.int32]:
    """Numbers (H, W) of what hangs together and is taken for damage, 0 = nothing."""
    numbers = cv2.connectedComponents((levels > PIECE).astype(np.uint8), connectivity=8)[1]
    return np.asarray(numbers, np.int32)


def look(net: Path, photos: Path, out: Path) -> int:
    """Write sheets of the pieces that a network finds on the photos of a folder; returns how many these are."""
    out.mkdir(parents=True, exist_ok=True)
    detector = placed(load_compact(net).eval(), torch.device("cpu"))
    found: list[tuple[str, int]] = []
    cells: list[Bytes] = []
    for file in image_files(photos):
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB"))
        with torch.no_grad():
            levels = np.rint(255.0 * probability(detector, pixels)).astype(np.uint8)
        Image.fromarray(levels).save(out / f"{file.stem}.png")
        numbers = pieces_of(levels)
        size = np.bincount(numbers.ravel())
        surest = np.zeros(len(size), np.uint8)
        np.maximum.at(surest, numbers.ravel(), levels.ravel())
        chosen = [k for k in range(1, len(size)) if size[k] >= LEAST and surest[k] > LOOKED_AT]
        for k in sorted(chosen, key=lambda k: -int(surest[k]))[:EACH]:
            found.append((file.stem, k))
            cells.append(_cell(pixels, numbers == k))
    for first in range(0, len(cells), COLUMNS * ROWS):
        sheet = Image.new("RGB", (COLUMNS * (CELL + 4), ROWS * (CELL + 16)), (255, 0, 255))
        draw = ImageDraw.Draw(sheet)
        for k, cell in enumerate(cells[first : first + COLUMNS * ROWS]):
            left, top = (k % COLUMNS) * (CELL + 4), (k // COLUMNS) * (CELL + 16)
            sheet.paste(Image.fromarray(cell), (left, top + 12))
            draw.text((left + 2, top), str(first + k), fill=(255, 255, 255))
        sheet.save(out / f"sheet_{first // (COLUMNS * ROWS):02d}.png")
    (out / "pieces.json").write_text(json.dumps(found), encoding="utf-8")
    return len(found)


def _cell(pixels: Bytes, piece: NDArray[np.bool_]) -> Bytes:
    """A square of the photo about a piece, the piece outlined in red."""
    rows, columns = np.flatnonzero(piece.any(1)), np.flatnonzero(piece.any(0))
    long = max(np.ptp(rows), np.ptp(columns)) + 1
    side = int(np.clip(2.2 * long, 48, 224))
    top, left = (
        int(np.clip((int(at[0]) + int(at[-1])) // 2 - side // 2, 0, max(0, whole - side)))
        for at, whole in zip((rows, columns), piece.shape, strict=True)
    )
    part, mask = (a[top : top + side, left : left + side] for a in (pixels, piece.astype(np.uint8)))
    zoom = CELL / max(part.shape[:2])
    size = (max(1, round(part.shape[1] * zoom)), max(1, round(part.shape[0] * zoom)))
    cell = np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_CUBIC if zoom > 1 else cv2.INTER_AREA), np.uint8)
    wide = cv2.dilate(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST), np.ones((5, 5), np.uint8))
    cell[(wide - cv2.erode(wide, np.ones((3, 3), np.uint8))) > 0] = (255, 0, 0)
    return cell


def settle(out: Path, verdicts: Path, judged: Path) -> int:
    """Write the maps of what was judged; returns how many photos are sound all over."""
    judged.mkdir(parents=True, exist_ok=True)
    found = [(str(name), int(k)) for name, k in json.loads((out / "pieces.json").read_text(encoding="utf-8"))]
    said = json.loads(verdicts.read_text(encoding="utf-8"))
    damaged, unknown = set(said["damaged"]), set(said["unknown"])
    sound = 0
    for name in sorted({name for name, _ in found}):
        levels = _grey(out / f"{name}.png")
        numbers, file = pieces_of(levels), judged / f"{name}.png"
        mine = [(number, numbers == k) for number, (photo, k) in enumerate(found) if photo == name]
        if file.is_file():
            told = _grey(file).copy()
        elif any(number in damaged or number in unknown for number, _ in mine):
            told = np.where(_grown(levels > DOUBTFUL, 5), np.uint8(128), np.uint8(0))
        else:
            told, sound = np.zeros_like(levels), sound + 1
        for number, piece in mine:
            if number not in damaged and number not in unknown:
                told[_grown(piece, 11)] = 0
        for number, piece in mine:
            if number in unknown:
                told[_grown(piece, 5)] = 128
        for number, piece in mine:
            if number in damaged:
                told[piece] = 255
        Image.fromarray(told).save(file)
    return sound


def _grey(file: Path) -> Bytes:
    with Image.open(file) as image:
        return np.asarray(image.convert("L"))


def _grown(mask: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    return cv2.dilate(mask.astype(np.uint8), np.ones((side, side), np.uint8)) > 0


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    for step, names in (("look", ("net", "photos", "out")), ("settle", ("out", "verdicts", "judged"))):
        one = steps.add_parser(step)
        for name in names:
            one.add_argument(name, type=Path)
    given = parser.parse_args()
    if given.step == "look":
        print(f"{look(given.net, given.photos, given.out)} pieces to look at")
    else:
        print(f"{settle(given.out, given.verdicts, given.judged)} photos sound all over")


if __name__ == "__main__":
    main()
