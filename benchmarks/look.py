"""What the restored look does: native scale, likeness of enlarged photos to the truth, and figures of real old photos.

    python benchmarks/look.py scale DATA/clean/heldout ...      how well the native scale is measured
    python benchmarks/look.py truth DATA/clean/heldout ...      perceptual distance and PSNR after rebuilding
    python benchmarks/look.py old DATA/old/test ...             grain, edges and ringing of real photos

--every N takes every Nth photo; --weights FILE another rebuilding network than the compact set's: .safetensors of ours,
or general-x4v3 as .pth or under its published keys.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from oldphoto import weights
from oldphoto.models.estimator import Estimator
from oldphoto.models.loading import PUBLISHED, build, load_compact, load_published, load_strictly
from oldphoto.models.rebuilding import Net, rebuilt
from oldphoto.stages.resolution import SHARP, native_scale
from oldphoto.training.data import image_files
from oldphoto.training.evaluate import psnr
from oldphoto.training.perceptual import features

Pixels8 = NDArray[np.uint8]
Floats = NDArray[np.float32]
CPU = torch.device("cpu")
SEED = 19
ENLARGEMENTS = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)
SIDE = 384


class Worn(NamedTuple):
    """A photo that lost its detail beyond 1/scale, enlarged again, with soft grain and JPEG; and the truth."""

    truth: Pixels8
    photo: Pixels8
    scale: float


def photos(folders: list[Path], every: int) -> Iterator[tuple[Path, Pixels8]]:
    """The photos of the folders."""
    for file in [file for folder in folders for file in image_files(folder)][::every]:
        with Image.open(file) as image:
            yield file, np.asarray(image.convert("RGB"))


def worn(truth: Pixels8, scale: float, rng: np.random.Generator) -> Worn:
    """Reduce by `scale`, enlarge again by any of three ways, lay grain of 1 to 9 levels on it, store at 60 to 95."""
    height, width = truth.shape[:2]
    x = truth
    if scale > 1.0:
        small = cv2.resize(truth, (round(width / scale), round(height / scale)), interpolation=cv2.INTER_AREA)
        x = np.asarray(cv2.resize(small, (width, height), interpolation=ENLARGEMENTS[int(rng.integers(3))]), np.uint8)
    grain = cv2.GaussianBlur(rng.standard_normal((height, width)).astype(np.float32), (0, 0), rng.uniform(0.5, 1.4))
    noisy = x + (grain * np.float32(rng.uniform(1.0, 9.0) / grain.std()))[..., None]
    quality = (cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(60, 96)))
    stored = cv2.imencode(".jpg", np.clip(np.rint(noisy), 0, 255).astype(np.uint8), quality)[1]
    return Worn(truth, np.asarray(cv2.imdecode(stored, cv2.IMREAD_COLOR), np.uint8), scale)


def scale_figures(chosen: argparse.Namespace, net: Estimator) -> None:
    """Photos are reduced by 1.5 first, so that they are sharp; then by 1, and by 1.3 to 4 of their own pixels."""
    rng = np.random.default_rng(SEED)
    sharp, ratios = [], []
    for _, pixels in photos(chosen.folders, chosen.every):
        size = round(pixels.shape[1] / 1.5), round(pixels.shape[0] / 1.5)
        crisp = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
        sharp.append(native_scale(worn(crisp, 1.0, rng).photo, net) == 1.0)
        scale = float(np.exp(rng.uniform(np.log(1.3), np.log(4.0))))
        ratios.append(native_scale(worn(crisp, scale, rng).photo, net) / scale)
    off = np.maximum(ratios, 1.0 / np.array(ratios))
    print(f"{len(sharp)} photos: sharp ones at exactly 1: {np.mean(sharp):.1%}")
    print(f"others within 25 %: {np.mean(off < 1.25):.1%}, within 40 %: {np.mean(off < 1.4):.1%}, ", end="")
    print(f"median ratio to the truth {np.median(ratios):.2f}")


def truth_figures(chosen: argparse.Namespace, estimator: Estimator, net: Net) -> None:
    """Ratios to the input's perceptual distance, and change of PSNR, at the true and at the measured native scale."""
    rng = np.random.default_rng(SEED)
    judge = features(CPU)

    def distance(one: Pixels8, other: Pixels8) -> float:
        both = (torch.from_numpy(x.transpose(2, 0, 1).copy())[None].float() / 255.0 for x in (one, other))
        with torch.inference_mode():
            return float(judge.distance(*both))

    rows = []
    for _, pixels in photos(chosen.folders, chosen.every):
        one = worn(np.ascontiguousarray(pixels[:SIDE, :SIDE]), float(rng.uniform(1.7, 3.2)), rng)
        before = distance(one.photo, one.truth)
        row = []
        for scale in (one.scale, native_scale(one.photo, estimator)):
            made = np.asarray(rebuilt(one.photo, net, scale, CPU), np.uint8) if scale >= SHARP else one.photo
            row += [distance(made, one.truth) / before, psnr(made, one.truth) - psnr(one.photo, one.truth)]
        rows.append(row)
    true, gain, measured, change = np.mean(rows, axis=0)
    print(f"{len(rows)} photos reduced by 1.7 to 3.2, enlarged, with soft grain and JPEG:")
    print(f"at the true scale     perceptual distance {true:.3f} of the input's, PSNR {gain:+.2f} dB")
    print(f"at the measured scale perceptual distance {measured:.3f} of the input's, PSNR {change:+.2f} dB")


class OldFigures(NamedTuple):
    """Of one photo: grain in its flattest twentieth, in levels; width of its sharpest edges, in pixels; overshoot next
    to them, in levels."""

    grain: float
    width: float
    ringing: float


def old_figures(pixels: Pixels8, places: Pixels8) -> OldFigures:
    """places: the photo in which flat places and edges are looked for, so that both states are measured at the same."""
    light, of = (cv2.cvtColor(x, cv2.COLOR_RGB2GRAY).astype(np.float32) for x in (pixels, places))
    soft = np.asarray(cv2.GaussianBlur(of, (0, 0), 3.0), np.float32)
    across, down = (cv2.Sobel(soft, cv2.CV_32F, 1 - k, k, ksize=1, scale=0.5) for k in (0, 1))
    slope = np.hypot(across, down)
    rest = np.asarray(light - cv2.GaussianBlur(light, (0, 0), 3.0), np.float32)
    flat = cv2.boxFilter(slope, -1, (17, 17))
    quiet = flat <= np.percentile(flat, 5)
    inner = np.zeros_like(quiet)
    inner[8:-8, 8:-8] = True
    steep = slope >= np.percentile(slope[inner], 99.5)
    y, x = np.nonzero(steep & inner)
    along = np.arange(-8, 9)
    lying = (np.abs(across) >= np.abs(down))[y, x][:, None]
    profile = light[y[:, None] + along * ~lying, x[:, None] + along * lying]
    profile = np.where(profile[:, -1:] < profile[:, :1], -profile, profile)
    low, high = profile[:, :3].mean(axis=1), profile[:, -3:].mean(axis=1)
    rise = np.diff(profile, axis=1).max(axis=1)
    width = np.maximum(high - low, 1.0) / np.maximum(rise, 0.1)
    over = profile.max(axis=1) - profile[:, -5:].max(axis=1)
    return OldFigures(float(rest[quiet].std()), float(np.percentile(width, 20)), float(np.median(over)))


def old_photo_figures(chosen: argparse.Namespace, estimator: Estimator, net: Net) -> None:
    """Before and after, of the photos that are rebuilt."""
    scales, before, after = [], [], []
    for file, pixels in photos(chosen.folders, chosen.every):
        scale = native_scale(pixels, estimator)
        scales.append(scale)
        if scale >= SHARP:
            made = np.asarray(rebuilt(pixels, net, scale, CPU), np.uint8)
            before.append(old_figures(pixels, pixels))
            after.append(old_figures(made, pixels))
            figures = (f"{one:.2f} -> {two:.2f}" for one, two in zip(before[-1], after[-1], strict=True))
            print(f"{file.name}: native scale {scale:g}; grain, edges, ringing: {'; '.join(figures)}")
    print(f"{len(scales)} photos, {len(before)} of them larger than their detail")
    if before:
        ratio = np.median(np.array(after)[:, :2] / np.maximum(np.array(before)[:, :2], 1e-3), axis=0)
        ringing = np.median(np.array(after)[:, 2] - np.array(before)[:, 2])
        print(f"median: grain {ratio[0] - 1:+.0%}, width of edges {ratio[1] - 1:+.0%}, ringing {ringing:+.1f} levels")


def rebuilder(path: Path | None) -> Net:
    """The compact set's rebuilding network, or that of a file."""
    if path is None:
        return cast("Net", load_compact(compact("rebuilder")))
    if path.suffix == ".pth":
        return cast("Net", load_published("rebuilder", path))
    with safe_open(path, framework="pt") as file:
        ours = "config" in (file.metadata() or {})
    if ours:
        return cast("Net", load_compact(path))
    return cast("Net", load_strictly(build(PUBLISHED["rebuilder"]), load_file(path), path))


def compact(net: str) -> Path:
    """The file of a network that comes with the package."""
    return weights.obtain(next(file for file in weights.read_lock() if (file.set, file.net) == ("compact", net)))


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("scale", "truth", "old"))
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--weights", type=Path)
    chosen = parser.parse_args()
    estimator = cast("Estimator", load_compact(compact("resolution")))
    if chosen.what == "scale":
        scale_figures(chosen, estimator)
    elif chosen.what == "truth":
        truth_figures(chosen, estimator, rebuilder(chosen.weights))
    else:
        old_photo_figures(chosen, estimator, rebuilder(chosen.weights))


if __name__ == "__main__":
    main()
