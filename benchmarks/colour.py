"""How near made-up colours come to the truth, on photos in colour that were made grey.

    python benchmarks/colour.py things DATA/clean/heldout DATA/colour/heldout ...
    python benchmarks/colour.py skin DATA

things: mean dE2000, perceptual distance over the grey photo's, and colourfulness (Hasler and Suesstrunk, SPIE 2003)
over the truth's; of grey, a constant sepia, and the network. skin: of the held-out portraits that DATA/index.csv lists
with five landmarks, in groups of people: how far the mean colour of the cheeks is from the truth's, in dE2000.
--every N takes every Nth photo; --weights FILE another network than the package's; --temperature T another than the
stage's.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from oldphoto.files.colour import from_light, light_of
from oldphoto.models.colour_net import ColourNet
from oldphoto.models.loading import load_compact, placed
from oldphoto.stages import colour
from oldphoto.stages.colour import TO_XYZ, by_network, coloured
from oldphoto.training.data import image_files
from oldphoto.training.perceptual import features

Pixels8 = NDArray[np.uint8]
Floats = NDArray[np.float64]
CPU = torch.device("cpu")
SIDE = 512  # of the longer side, at most
COLOURFUL = 5.0  # mean chroma below which a photo says nothing about colour
SEPIA = np.array([6.0, 18.0], np.float32)  # a* and b*
NEAR = 12.0  # dE2000 within which skin counts as right

Method = Callable[[Pixels8], Pixels8]


def methods(net: ColourNet) -> dict[str, Method]:
    """What is compared: grey photo, three equal channels -> photo in colour."""
    sepia = np.broadcast_to(SEPIA[:, None, None], (2, 8, 8)).astype(np.float32)
    return {
        "grey": lambda grey: grey,
        "sepia": lambda grey: np.asarray(coloured(grey, lambda _seen: sepia), np.uint8),
        "network": lambda grey: np.asarray(coloured(grey, by_network(net, CPU)), np.uint8),
    }


def read(path: Path) -> Pixels8:
    """A photo (H, W, 3), no larger than SIDE."""
    with Image.open(path) as image:
        rgb = image.convert("RGB")
    rgb.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(rgb)


def grey_of(photo: Pixels8) -> Pixels8:
    """The photo with its luminance alone."""
    luminance = light_of(photo) @ TO_XYZ[1].astype(np.float32)
    return np.asarray(from_light(np.repeat(luminance[..., None], 3, axis=2), np.uint8), np.uint8)


def difference(one: Floats, other: Floats) -> Floats:
    """The dE2000 of each two colours, CIELAB (..., 3)."""
    return np.asarray(deltaE_ciede2000(one, other))  # type: ignore[no-untyped-call]


def colourfulness(photo: Pixels8) -> float:
    """Hasler's and Suesstrunk's measure: spread and mean of the opponent colours."""
    red, green, blue = photo.astype(np.float64).transpose(2, 0, 1)
    across, up = red - green, 0.5 * (red + green) - blue
    return float(np.hypot(across.std(), up.std()) + 0.3 * np.hypot(across.mean(), up.mean()))


def things(folders: list[Path], every: int, made: dict[str, Method]) -> None:
    """Figures of whole photos."""
    judge = features(CPU)
    rows: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for file in [file for folder in folders for file in image_files(folder)][::every]:
        truth = read(file)
        lab = rgb2lab(truth)
        if float(np.hypot(lab[..., 1], lab[..., 2]).mean()) < COLOURFUL:
            continue
        grey = grey_of(truth)
        for name, method in made.items():
            answer = method(grey)
            pair = [torch.tensor(x).permute(2, 0, 1)[None].float() / 255 for x in (answer, truth)]
            with torch.inference_mode():
                distance = float(judge.distance(*pair))
            away = float(difference(rgb2lab(answer), lab).mean())
            rows[name].append((away, distance, colourfulness(answer) / colourfulness(truth)))
    plain = np.array(rows["grey"])
    print(f"{len(plain)} photos")
    for name, figures in rows.items():
        table = np.array(figures)
        of_grey = table.mean(axis=0) / plain.mean(axis=0)
        ratios = table[:, 2]
        near = (abs(ratios - 1) <= 0.3).mean()
        print(
            f"{name:8} dE2000 {table[:, 0].mean():6.2f} ({of_grey[0]:.3f} of grey's), perceptual {of_grey[1]:.3f} of "
            f"grey's, colourfulness {ratios.mean():.2f}, median {np.median(ratios):.2f}, within 30 % for {near:.0%}"
        )


def cheeks(shape: tuple[int, ...], points: Floats) -> NDArray[np.bool_]:
    """Where the cheeks are, by five landmarks (5, 2): a disc halfway between each eye and corner of the mouth."""
    apart = float(np.hypot(*(points[1] - points[0])))
    seen = np.zeros(shape[:2], np.uint8)
    for eye, corner in ((0, 3), (1, 4)):
        x, y = (points[eye] + points[corner]) / 2
        cv2.circle(seen, (round(float(x)), round(float(y))), max(2, round(0.16 * apart)), 1, -1)
    return seen > 0


def skin(data: Path, every: int, made: dict[str, Method]) -> None:
    """Figures of cheeks, group by group."""
    with (data / "index.csv").open(newline="") as table:
        rows = [row for row in csv.DictReader(table) if row["file"].startswith("eval/faces/") and row["landmarks5"]]
    groups: dict[str, list[float]] = defaultdict(list)
    for row in rows[::every]:
        with Image.open(data / row["file"]) as image:
            truth = np.asarray(image.convert("RGB"))
        where = cheeks(
            truth.shape, np.array([[float(n) for n in pair.split(",")] for pair in row["landmarks5"].split()])
        )
        lab = rgb2lab(truth)[where].mean(axis=0)
        if np.hypot(*lab[1:]) < COLOURFUL:
            continue  # the portrait itself is grey
        answer = rgb2lab(made["network"](grey_of(truth)))[where].mean(axis=0)
        groups[row["file"].split("/")[2]].append(float(difference(answer, lab)))
    every_one = np.concatenate([np.array(some) for some in groups.values()])
    near = (every_one <= NEAR).mean()
    print(f"{len(every_one)} portraits: mean {every_one.mean():.2f}, within {NEAR:g} for {near:.0%}")
    for group, some in sorted(groups.items()):
        print(f"  {group:24} {np.mean(some):6.2f}, {np.mean(some) / every_one.mean():.2f} of the mean")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("things", "skin"))
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--temperature", type=float, default=colour.TEMPERATURE)
    options = parser.parse_args()
    path = options.weights or Path(colour.__file__).parents[1] / "compact" / "colour_net.safetensors"
    net = placed(load_compact(path), CPU)
    assert isinstance(net, ColourNet)
    colour.TEMPERATURE = options.temperature
    made = methods(net)
    with torch.inference_mode():
        if options.what == "things":
            things(options.folders, options.every, made)
        else:
            skin(options.folders[0], options.every, made)


if __name__ == "__main__":
    main()
