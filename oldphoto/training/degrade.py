"""Synthetic ageing: seeded degradations of clean photos, and damage with its true mask.

Photos are (H, W, 3) float32 in [0, 1]; every function takes a numpy Generator and returns a new array. Ranges are those
of Wan et al.'s published recipe where it has the operation; the others say so. `ageing.py` does the same to batches of
tensors, by the figures drawn here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Generator = np.random.Generator
# Opacity from which damage counts as a hole that has to be filled.
HOLE_OPACITY = 0.3


def gaussian_kernel(rng: Generator) -> Image:
    """Side 3, 5 or 7; sigma 1 to 5 pixels."""
    k = int(rng.choice((3, 5, 7)))
    line = cv2.getGaussianKernel(k, float(rng.uniform(1.0, 5.0)), cv2.CV_32F)
    return _f32(line @ line.T)


def disc_kernel(rng: Generator) -> Image:
    """Ours: out of focus, a disc of radius 0.8 to 3.5 pixels."""
    radius = rng.uniform(0.8, 3.5)
    reach = int(np.ceil(radius)) + 1
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = np.clip(radius + 0.5 - np.hypot(x, y), 0.0, 1.0)
    return _f32(disc / disc.sum())


def streak_kernel(rng: Generator) -> Image:
    """Ours: a straight streak of 3 to 9 pixels in any direction."""
    length, angle = int(rng.integers(3, 10)), rng.uniform(0.0, np.pi)
    kernel = np.zeros((length, length), np.float32)
    middle, reach = (length - 1) / 2.0, (length - 1) / 2.0
    dx, dy = np.cos(angle) * reach, np.sin(angle) * reach
    ends = [(round((middle + s * dx) * 16), round((middle + s * dy) * 16)) for s in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 1.0, 1, cv2.LINE_8, 4)
    return _f32(kernel / kernel.sum())


def gaussian_blur(photo: Image, rng: Generator) -> Image:
    """By a gaussian_kernel."""
    return _filtered(photo, gaussian_kernel(rng))


def optical_blur(photo: Image, rng: Generator) -> Image:
    """By a disc_kernel."""
    return _filtered(photo, disc_kernel(rng))


def motion_blur(photo: Image, rng: Generator) -> Image:
    """By a streak_kernel."""
    return _filtered(photo, streak_kernel(rng))


def _filtered(photo: Image, kernel: Image) -> Image:
    return _clip(cv2.filter2D(photo, -1, kernel, borderType=cv2.BORDER_REFLECT_101))


def gaussian_noise(photo: Image, rng: Generator) -> Image:
    """Standard deviation 5 to 50 of 255, independent per channel."""
    sigma = rng.uniform(5.0, 50.0) / 255.0
    return _clip(photo + sigma * rng.standard_normal(photo.shape, dtype=np.float32))


def speckle(photo: Image, rng: Generator) -> Image:
    """Noise in proportion to brightness, standard deviation 5 to 50 of 255."""
    sigma = rng.uniform(5.0, 50.0) / 255.0
    return _clip(photo * (1.0 + sigma * rng.standard_normal(photo.shape, dtype=np.float32)))


def salt_and_pepper(photo: Image, rng: Generator) -> Image:
    """Up to 1 % of the values become 0 or 1; 30 to 80 % of them 1."""
    amount, salt = rng.uniform(0.0, 0.01), rng.uniform(0.3, 0.8)
    hit = rng.random(photo.shape, dtype=np.float32) < amount
    white = rng.random(photo.shape, dtype=np.float32) < salt
    return _f32(np.where(hit, white.astype(np.float32), photo))


def low_resolution(photo: Image, rng: Generator) -> Image:
    """Width and height independently down to 1/2 to 1 (bicubic), then up again (nearest or bilinear)."""
    small, back = coarser((photo.shape[1], photo.shape[0]), rng)
    return _clip(
        cv2.resize(cv2.resize(photo, small, interpolation=cv2.INTER_CUBIC), photo.shape[1::-1], interpolation=back)
    )


def coarser(size: tuple[int, int], rng: Generator) -> tuple[tuple[int, int], int]:
    """Return what low_resolution makes of a photo of (width, height): the smaller size, and how it is enlarged
    again."""
    small = (max(1, round(size[0] * rng.uniform(0.5, 1.0))), max(1, round(size[1] * rng.uniform(0.5, 1.0))))
    return small, cv2.INTER_NEAREST if rng.random() < 0.5 else cv2.INTER_LINEAR


def jpeg(photo: Image, rng: Generator) -> Image:
    """JPEG of quality 40 to 100."""
    quality = int(rng.integers(40, 101))
    bgr = cv2.cvtColor(_u8(photo), cv2.COLOR_RGB2BGR)
    ok, data = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, quality))
    if not ok:
        raise ValueError(f"cannot encode a photo of shape {photo.shape} as JPEG")
    return _f32(cv2.cvtColor(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR)), cv2.COLOR_BGR2RGB)) / np.float32(255.0)


def film_grain(photo: Image, rng: Generator) -> Image:
    """Ours: grey grain with a size of 0.6 to 1.6 pixels, strongest in the mid-tones, 3 to 14 % of the range."""
    white = rng.standard_normal(photo.shape[:2], dtype=np.float32)
    grain = _f32(cv2.GaussianBlur(white, (0, 0), float(rng.uniform(0.6, 1.6))))
    grain *= rng.uniform(0.03, 0.14) / max(float(grain.std()), 1e-6)
    grey = photo.mean(axis=2)
    return _clip(photo + (grain * (0.4 + 2.4 * grey * (1.0 - grey)))[..., None])


def fading(photo: Image, rng: Generator) -> Image:
    """Ours: lost contrast, lifted blacks, a yellow to brown cast."""
    black, white = rng.uniform(0.0, 0.18), rng.uniform(0.78, 1.0)
    faded = black + photo * (white - black)
    cast = np.array([1.0, rng.uniform(0.92, 1.0), rng.uniform(0.75, 1.0)], np.float32)
    return _clip(faded * cast)


def uneven_exposure(photo: Image, rng: Generator) -> Image:
    """Ours: a smooth field that darkens or lightens by up to 20 % from one side to the other."""
    coarse = rng.uniform(0.8, 1.2, (3, 3)).astype(np.float32)
    field = cv2.resize(coarse, (photo.shape[1], photo.shape[0]), interpolation=cv2.INTER_CUBIC)
    return _clip(photo * field[..., None])


def halftone(photo: Image, rng: Generator) -> Image:
    """Ours: printed dots in a turned grid of 3 to 6 pixels, 30 to 80 % of full contrast."""
    cell, angle = rng.uniform(3.0, 6.0), rng.uniform(0.0, np.pi / 2)
    y, x = np.mgrid[: photo.shape[0], : photo.shape[1]].astype(np.float32)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    screen = 0.5 + 0.25 * (np.cos(2.0 * np.pi * u / cell) + np.cos(2.0 * np.pi * v / cell))
    dots = np.clip((photo - screen[..., None]) * 4.0 + 0.5, 0.0, 1.0)
    depth = rng.uniform(0.3, 0.8)
    return _clip(photo * (1.0 - depth) + cv2.GaussianBlur(_f32(dots), (0, 0), 0.7) * depth)


def one_noise(photo: Image, rng: Generator) -> Image:
    """One of the three published noises."""
    return _NOISES[int(rng.integers(3))](photo, rng)


Operation = Callable[[Image, Generator], Image]
_NOISES: tuple[Operation, ...] = (gaussian_noise, speckle, salt_and_pepper)
PUBLISHED_OPERATIONS: tuple[Operation, ...] = (gaussian_blur, one_noise, low_resolution, jpeg)
SINGLE: dict[str, Operation] = {
    f.__name__: f
    for f in (
        *(gaussian_blur, gaussian_noise, speckle, salt_and_pepper, low_resolution, jpeg),
        *(optical_blur, motion_blur, film_grain, fading, uneven_exposure, halftone),
    )
}


def published_mixture(photo: Image, rng: Generator) -> Image:
    """The paper's recipe: blur, noise, low resolution and JPEG in random order, each with probability 0.7."""
    for i in rng.permutation(len(PUBLISHED_OPERATIONS)):
        if rng.random() < 0.7:
            photo = PUBLISHED_OPERATIONS[i](photo, rng)
    return photo


@dataclass(frozen=True)
class Damage:
    """Structured damage of a photo of one size.

    opacity: (H, W) float32 in [0, 1], how much of the photo is covered. mask: (H, W) bool, what has to be repaired.
    """

    opacity: NDArray[np.float32]
    mask: NDArray[np.bool_]


# How often each kind of overlay is drawn, and the range of its longer side in pixels on the photo.
_KINDS: dict[str, tuple[float, float, float]] = {
    "hair": (3.0, 60.0, 260.0),
    "hair-short": (2.0, 25.0, 110.0),
    "lint": (2.0, 40.0, 200.0),
    "scratches": (3.0, 90.0, 360.0),
    "sprinkles": (1.5, 150.0, 380.0),
    "spots": (1.0, 80.0, 300.0),
    "dirt": (1.5, 120.0, 380.0),
    "smut": (1.0, 25.0, 90.0),
    "dots": (0.6, 10.0, 50.0),
    "stain": (0.4, 30.0, 110.0),
}


def damage(
    size: tuple[int, int], overlays: Mapping[str, Sequence[NDArray[np.uint8]]], rng: Generator, drawn: float = 0.35
) -> Damage:
    """Draw damage for a photo of `size` (H, W), covering between 0.5 and 15 % of it.

    overlays: kind -> grey overlays (uint8, 255 = fully covered). drawn: share of strokes that are lines and cracks
    drawn here instead of real overlays. Raises ValueError when there are no overlays and drawn < 1.
    """
    kinds = [k for k in _KINDS if overlays.get(k)]
    if not kinds and drawn < 1.0:
        raise ValueError(f"no damage overlays of the kinds {', '.join(_KINDS)}")
    chances = np.array([_KINDS[k][0] for k in kinds]) / max(sum(_KINDS[k][0] for k in kinds), 1e-9)
    opacity = np.zeros(size, np.float32)
    for _ in range(12):
        if rng.random() < drawn:
            stroke = _line(size, rng)
        else:
            kind = kinds[int(rng.choice(len(kinds), p=chances))]
            stroke = _pasted(overlays[kind][int(rng.integers(len(overlays[kind])))], size, _KINDS[kind][1:], rng)
        both = np.maximum(opacity, stroke)
        share = float((both > HOLE_OPACITY).mean())
        if share > 0.15:
            continue
        opacity = both
        if share > 0.005 and rng.random() < 0.35:
            break
    return Damage(opacity, opacity > HOLE_OPACITY)


def _pasted(overlay: NDArray[np.uint8], size: tuple[int, int], sides: tuple[float, float], rng: Generator) -> Image:
    """The overlay turned, scaled and put down at random on an empty map of `size`."""
    scale = rng.uniform(*sides) / max(overlay.shape)
    angle = rng.uniform(0.0, 2.0 * np.pi)
    flip = -1.0 if rng.random() < 0.5 else 1.0
    turn = np.array([[np.cos(angle) * flip, -np.sin(angle)], [np.sin(angle) * flip, np.cos(angle)]])
    at = np.array([rng.uniform(0, size[1]), rng.uniform(0, size[0])])
    return _f32(put_down(overlay, turn, scale, at, size)) / np.float32(255.0)


def put_down(
    overlay: NDArray[np.uint8],
    turn: NDArray[np.float64],
    scale: float,
    at: NDArray[np.float64],
    size: tuple[int, int],
) -> NDArray[np.uint8]:
    """A grey overlay turned by a 2 x 2 matrix and scaled, its middle at (x, y), on an empty map of `size` (H, W)."""
    h, w = overlay.shape
    turn = turn * scale
    shift = at - turn @ np.array([w / 2.0, h / 2.0])
    matrix = np.column_stack([turn, shift]).astype(np.float32)
    source = overlay
    if scale < 0.5:  # shrinking by more than half would skip thin lines
        f = 2.0 * scale
        source = np.asarray(cv2.resize(overlay, None, fx=f, fy=f, interpolation=cv2.INTER_AREA), np.uint8)
        matrix[:, :2] /= f
    return np.asarray(cv2.warpAffine(source, matrix, (size[1], size[0]), flags=cv2.INTER_LINEAR), np.uint8)


def _line(size: tuple[int, int], rng: Generator) -> Image:
    """A straight scratch, a crack (a random walk), a fold right across or a torn corner on a map of `size`."""
    h, w = size
    canvas = np.zeros(size, np.uint8)
    if rng.random() < 0.06:
        return _torn_corner(size, rng)
    kind = rng.random()
    start = np.array([rng.uniform(0, w), rng.uniform(0, h)])
    if kind < 0.5:  # scratch: long, straight, mostly upright as in film
        angle = np.pi / 2 + rng.normal(0.0, 0.15) if rng.random() < 0.6 else rng.uniform(0, np.pi)
        reach = rng.uniform(0.2, 1.2) * max(h, w)
        points = [start + s * reach * np.array([np.cos(angle), np.sin(angle)]) for s in (-0.5, 0.5)]
        width = int(rng.integers(1, 4))
    else:  # crack: steps that keep their direction more or less; a fold is one right across
        fold = kind > 0.85
        angle, step = rng.uniform(0, 2 * np.pi), max(h, w) / (6.0 if fold else 20.0)
        points = [start - 4 * step * np.array([np.cos(angle), np.sin(angle)]) if fold else start]
        for _ in range(9 if fold else int(rng.integers(6, 25))):
            angle += rng.normal(0.0, 0.06 if fold else 0.5)
            points.append(points[-1] + step * np.array([np.cos(angle), np.sin(angle)]))
        width = int(rng.integers(1, 5) if rng.random() < 0.85 else rng.integers(5, 10))
    line = np.round(np.array(points) * 16).astype(np.int32).reshape(-1, 1, 2)
    cv2.polylines(canvas, [line], False, 255, width, cv2.LINE_AA, 4)
    ragged = rng.random() < 0.6
    out = _f32(canvas) / np.float32(255.0)
    if ragged:  # a scratch comes and goes along its length
        coarse = rng.uniform(0.0, 1.6, (max(2, h // 12), max(2, w // 12))).astype(np.float32)
        out *= np.clip(cv2.resize(coarse, (w, h), interpolation=cv2.INTER_LINEAR), 0.0, 1.0)
    return out


def _torn_corner(size: tuple[int, int], rng: Generator) -> Image:
    """A corner of up to a quarter of each side, with a ragged edge."""
    h, w = size
    at = np.linspace(0.0, 1.0, 12)
    along = np.array([w, h]) * rng.uniform(0.05, 0.25, 2)
    edge = np.column_stack([along[0] * (1.0 - at), along[1] * at]) * (1.0 + rng.normal(0.0, 0.06, (12, 1)))
    corner = np.vstack([[0.0, 0.0], edge])
    if rng.random() < 0.5:
        corner[:, 0] = w - corner[:, 0]
    if rng.random() < 0.5:
        corner[:, 1] = h - corner[:, 1]
    canvas = np.zeros(size, np.uint8)
    cv2.fillPoly(canvas, [np.round(corner * 16).astype(np.int32).reshape(-1, 1, 2)], 255, cv2.LINE_AA, 4)
    return _f32(canvas) / np.float32(255.0)


def whitened(photo: Image, mask: NDArray[np.bool_]) -> Image:
    """The paper's damage: masked pixels set to white."""
    return _f32(np.where(mask[..., None], np.float32(1.0), photo))


def _u8(photo: Image) -> NDArray[np.uint8]:
    return np.asarray(np.clip(np.rint(photo * 255.0), 0, 255), np.uint8)


def _f32(a: object) -> Image:
    return np.asarray(a, np.float32)


def _clip(a: object) -> Image:
    return np.clip(_f32(a), 0.0, 1.0)
