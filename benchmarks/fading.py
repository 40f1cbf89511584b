"""How well fading is undone: photos that a model of dyes has faded, and sound ones that are to be left alone.

    python benchmarks/fading.py DATA/clean/heldout DATA/colour/heldout ...

Of every photo in colour of these folders: three fadings (oldphoto/training/dyes.py, fixed seeds), the photo as it is,
a black-and-white print of some tone, that print paled, and a hand-coloured print. Of photos made or found monochrome
the difference counted is that of lightness, since their tone stays, and how far the tone moved stands beside it. CIE
dE2000, by scikit-image, at no more than 192 pixels on the short side; unasked unless --tone-strength says how much.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import skimage.color
import torch
from numpy.typing import NDArray
from PIL import Image

from oldphoto import weights
from oldphoto.models.loading import load_compact
from oldphoto.models.tone_net import ToneNet
from oldphoto.stages.fading import restore_tone
from oldphoto.training import dyes
from oldphoto.training.ageing import Dice, Operation
from oldphoto.training.data import image_files
from oldphoto.training.fading import in_colour

color: Any = skimage.color  # untyped
Pixels8 = NDArray[np.uint8]
Lab = NDArray[np.float64]
SIDE = 192
SEED = 20200604
FADINGS = 3
MOVED = 2.0


def read(file: Path) -> Pixels8:
    """A photo, no larger than SIDE on its short side."""
    with Image.open(file) as image:
        rgb = image.convert("RGB")
    shrink = min(1.0, SIDE / min(rgb.size))
    return np.asarray(rgb.resize((round(rgb.width * shrink), round(rgb.height * shrink)), Image.Resampling.BOX))


def aged(photo: Pixels8, operation: Operation, dice: Dice) -> Pixels8:
    """The photo after an operation of batches."""
    x = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].float() / 255.0
    made = operation(x, dice)[0].permute(1, 2, 0).numpy()
    return np.rint(made * 255.0).astype(np.uint8)


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--weights", type=Path, help="a file of `tone` weights instead of the package's")
    parser.add_argument("--tone-strength", type=float, help="as of the command; by default unasked")
    parser.add_argument("--every", type=int, default=1, help="take one photo in so many")
    parser.add_argument("--each", action="store_true", help="print a line for each photo, too")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    file = given.weights or weights.resolve("compact", lambda _: ["tone"], offline=True).files["tone"]
    net = cast("ToneNet", load_compact(file))
    rows: dict[str, list[tuple[float, float, float]]] = {}

    def judge(name: str, file: Path, truth: Pixels8, old: Pixels8, *, light: bool = False) -> None:
        """Add (before, after, moved), means of one photo; with `light` (before, after, tone moved)."""
        with torch.inference_mode():
            new = np.asarray(restore_tone(old, None, net, given.tone_strength)[0])
        true, was, now = (color.rgb2lab(x) for x in (truth, old, new))
        if light:
            chroma = float(np.hypot(*np.moveaxis((now - was)[..., 1:].mean(axis=(0, 1)), 0, 0)))
            row = (abs_mean(was, true), abs_mean(now, true), chroma)
        else:
            row = (difference(was, true), difference(now, true), difference(now, was))
        rows.setdefault(name, []).append(row)
        if given.each:
            print(f"{name:8} {file.name:40} " + " ".join(f"{value:6.2f}" for value in row), flush=True)

    files = [file for folder in given.folders for file in image_files(folder)][:: given.every]
    for k, file in enumerate(files):
        photo = read(file)
        if not in_colour(photo):
            judge("grey", file, photo, photo, light=True)
            continue
        dice = Dice.seeded(torch.device("cpu"), SEED, k)
        for _ in range(FADINGS):
            judge("faded", file, photo, aged(photo, dyes.faded, dice))
        judge("sound", file, photo, photo)
        print_ = aged(photo, dyes.toned, dice)
        judge("print", file, print_, print_, light=True)
        judge("pale", file, print_, aged(print_, dyes.paled, dice), light=True)
        tinted = aged(photo, dyes.tinted, dice)
        judge("tinted", file, tinted, tinted)
    say(rows)


def difference(one: Lab, other: Lab) -> float:
    """Mean dE2000."""
    return float(color.deltaE_ciede2000(one, other).mean())


def abs_mean(one: Lab, other: Lab) -> float:
    """Mean difference of lightness."""
    return float(np.abs(one[..., 0] - other[..., 0]).mean())


def say(rows: dict[str, list[tuple[float, float, float]]]) -> None:
    """The figures, a line for each sort of photo."""
    for name, found in rows.items():
        before, after, moved = np.array(found).T
        line = f"{name:8} {len(found):4} photos"
        if name in ("faded", "pale"):
            line += f"  before {before.mean():.2f} after {after.mean():.2f} ({after.mean() / before.mean() - 1:+.0%})"
            line += f"  halved {(after < before / 2).mean():.1%}"
            line += f"  worse by more than 3: {(after > before + 3).mean():.1%}, at most {(after - before).max():+.1f}"
            line += f"  left alone {(after == before).mean():.1%}"
        else:
            moves = moved if name in ("sound", "tinted") else after
            line += f"  moved by more than {MOVED:g}: {(moves > MOVED).mean():.1%}, mean {moves.mean():.2f}"
        if name in ("pale", "print", "grey"):
            line += f"  mean chroma moved by more than {MOVED:g}: {(moved > MOVED).mean():.1%}"
        print(line)


if __name__ == "__main__":
    cv2.setNumThreads(1)
    main()
