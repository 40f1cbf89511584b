"""Holes of the shapes of real damage in sound photos, filled: how far from the truth, against what OpenCV and
scikit-image have.

    python benchmarks/filling.py LABELS PHOTOS... [--thin] [--each N] [--only METHOD] [--sheets DIR]

LABELS: NAME.pieces.png (the number of each pixel's piece of damage) and NAME.json (its kind) of labelled photos; a
hole is what was labelled in one of them, scaled to the photo: lost edges and emulsion, tears and folds where they are
12 pixels wide or more; with --thin everything but stains that is less wide. PHOTOS: folders of sound photos, of which
N (12) each are taken, 380 pixels a side or larger; a fifth of holes is the most. Perceptual distance is taken of the
cells in and within 8 pixels of the holes, PSNR inside. Sheets show hole, filled, truth.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from skimage.restoration import inpaint_biharmonic

from oldphoto.files.image import read_photo
from oldphoto.models.tensors import Pixels
from oldphoto.stages.filling import fill
from oldphoto.training.perceptual import features

Mask = NDArray[np.bool_]
WIDE_KINDS = ("edge/corner loss", "emulsion loss", "tear", "fold")
WIDE, LEAST_SIDE, MOST_SHARE, LEAST_HOLE = 12, 380, 0.2, 100


def biharmonic(pixels: Pixels, mask: Mask) -> Pixels:
    """scikit-image's, which takes and gives floats."""
    made = inpaint_biharmonic(pixels / 255.0, mask, channel_axis=-1)
    return np.asarray(np.rint(255.0 * made.clip(0.0, 1.0)), np.uint8)


def opencv(method: int) -> Callable[[Pixels, Mask], Pixels]:
    """One of OpenCV's two, with its customary radius."""
    return lambda pixels, mask: np.asarray(cv2.inpaint(pixels, mask.astype(np.uint8), 3, method), np.uint8)


METHODS: dict[str, Callable[[Pixels, Mask], Pixels]] = {
    "fill": fill,
    "telea": opencv(cv2.INPAINT_TELEA),
    "navier-stokes": opencv(cv2.INPAINT_NS),
    "biharmonic": biharmonic,
}


def hole(folder: Path, name: str, size: tuple[int, int], thin: bool) -> Mask:
    """The damage of one labelled photo that is wide, or thin, at the size of another; turned if that lies and it
    stands, or the other way round."""
    numbers = np.asarray(cv2.imread(str(folder / f"{name}.pieces.png"), cv2.IMREAD_UNCHANGED))
    if (numbers.shape[0] > numbers.shape[1]) != (size[0] > size[1]):
        numbers = np.rot90(numbers)
    numbers = cv2.resize(np.ascontiguousarray(numbers), size[::-1], interpolation=cv2.INTER_NEAREST)
    mask = np.zeros(size, np.bool_)
    for piece in json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["pieces"]:
        shape = numbers == piece["id"]
        if piece.get("unsure") or not shape.any():
            continue
        wide = 2 * cv2.distanceTransform(np.pad(shape, 1).astype(np.uint8), cv2.DIST_L2, 3).max() >= WIDE
        if (thin and not wide and piece["kind"] != "stain") or (not thin and wide and piece["kind"] in WIDE_KINDS):
            mask |= shape
    return mask


def cases(labels: Path, folders: list[Path], each: int, thin: bool) -> Iterator[tuple[str, Pixels, Mask]]:
    """Photos and holes: photo after photo, the labelled ones in turn."""
    names = sorted(path.name.removesuffix(".pieces.png") for path in labels.glob("*.pieces.png"))
    turn = 0
    for folder in folders:
        photos = [(path.stem, read_photo(path).pixels) for path in sorted(folder.iterdir())]
        large = [(stem, pixels) for stem, pixels in photos if min(pixels.shape[:2]) >= LEAST_SIDE]
        for stem, pixels in large[:: max(1, len(large) // each)][:each]:
            for _ in names:
                name = names[turn % len(names)]
                turn += 1
                mask = hole(labels, name, pixels.shape[:2], thin)
                if mask.sum() >= LEAST_HOLE and mask.mean() <= MOST_SHARE:
                    yield f"{stem} {name}", pixels, mask
                    break


def distance(one: Pixels, other: Pixels, about: Mask) -> float:
    """Perceptual distance of two pictures where `about` says."""
    net = features(torch.device("cpu"))
    inputs = (torch.from_numpy(np.ascontiguousarray(p.transpose(2, 0, 1))).float()[None] / 255.0 for p in (one, other))
    weight = torch.from_numpy(about)[None, None].float()
    levels = []
    with torch.inference_mode():
        for a, b in zip(*(net(x) for x in inputs), strict=True):
            far = (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(dim=1)
            share = F.interpolate(weight, size=far.shape[1:], mode="area")[:, 0]
            levels.append(float((far * share).sum() / share.sum()))
    return float(np.mean(levels))


def main() -> None:
    """Print a line for each photo, then the means of each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("--thin", action="store_true")
    parser.add_argument("--each", type=int, default=12)
    parser.add_argument("--only", choices=list(METHODS), action="append")
    parser.add_argument("--sheets", type=Path)
    given = parser.parse_args()
    methods = given.only or list(METHODS)
    figures: dict[str, list[tuple[float, float, float]]] = {method: [] for method in methods}
    for name, truth, mask in cases(given.labels, given.photos, given.each, given.thin):
        about = cv2.dilate(mask.astype(np.uint8), np.ones((17, 17), np.uint8)).astype(np.bool_)
        hollow = np.where(mask[..., None], np.uint8(255), truth)
        for method in methods:
            start = time.process_time()
            made = METHODS[method](hollow, mask)
            spent = time.process_time() - start
            error = ((made[mask].astype(np.float64) - truth[mask]) ** 2).mean()
            psnr = float(10.0 * np.log10(255.0**2 / max(error, 0.1)))
            figures[method].append((distance(made, truth, about), psnr, spent * 1e6 / mask.sum()))
            if given.sheets is not None:
                given.sheets.mkdir(parents=True, exist_ok=True)
                sheet = np.hstack([hollow, made, truth])[..., ::-1]
                cv2.imwrite(str(given.sheets / f"{name.replace(' ', '_')}_{method}.png"), sheet)
        shown = "  ".join(f"{method} {figures[method][-1][0]:.3f} {figures[method][-1][1]:.1f}" for method in methods)
        print(f"{name[:40]:40} {mask.mean():6.2%}  {shown}", flush=True)
    for method, rows in figures.items():
        far, psnr, spent = np.mean(rows, axis=0)
        less = 1.0 - np.mean([row[0] for row in figures["fill"]]) / far if "fill" in figures else 0.0
        print(
            f"{method:14} {len(rows)} photos, distance {far:.4f}, PSNR {psnr:.2f}, {spent:.0f} CPU us a pixel", end=""
        )
        print("" if method == "fill" else f"; fill is {less:.0%} below")


if __name__ == "__main__":
    main()
