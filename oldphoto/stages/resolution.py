"""Measure how many times larger a photo is than its detail: its native scale.

An old photo has far fewer details than pixels: grain, blur and enlargement fill them. Shrunk by its native scale it is
just sharp. What tells is how steep the strongest edges still are as they are softened more and more, and where the
spectrum of the busiest places parts from that of the flattest, which is grain; a small network weighs it. Pixels are
(H, W, 3) uint8 or uint16 RGB.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from oldphoto.arrays import Floats, Pixels
from oldphoto.files.colour import luminance
from oldphoto.options import MOST_NATIVE_SCALE
from oldphoto.stages.stage import Case, Clock, Plain, State
from oldphoto.weights.sets import Role

if TYPE_CHECKING:
    from oldphoto.models.estimator import Estimator
    from oldphoto.models.loaded import Models

NET = "resolution"
# A photo that is not larger than its detail by this much is sharp: its native scale counts as exactly 1.
SHARP = 1.25
# Smaller photos say too little: they count as sharp.
LEAST_SIDE = 48
# The figures come from so many squares of so many pixels, spread over the photo, taken together.
LOOKS, LOOK_SIDE = 16, 256
# Standard deviations, in pixels, by which a photo is softened; edges are looked for at two of them.
SOFTENED = (0.7, 1.0, 1.5, 2.2, 3.2, 4.5)
REFERENCES = (2, 4)
STEEPEST = 0.05  # of pixels, those that may be edges
EDGES = 0.004  # of pixels, the edges that are looked at, and a quarter of them again by themselves
PERCENTILES = (50.0, 70.0, 85.0, 95.0)
MARGIN = 6  # pixels at the photo's rim without edges
CELL = 8
FLAT, BUSY = 15, 85  # percentiles of cells by their coarsest band
TILE = 48  # pixels a side of what is transformed
RINGS = np.concatenate([[0.03], np.linspace(0.05, 0.5, 13)])  # of frequencies, in cycles per pixel
FIGURES = 2 * 2 * (4 * (len(SOFTENED) - 1) + 2) + 4 * len(SOFTENED) + 2 * (len(RINGS) - 1)


class Resolution(Plain):
    """Measures the native scale, where the photo is to be rebuilt or enlarged, or takes the user's."""

    name: str = "resolution"
    clock: Clock = "rebuilding"

    def wanted(self, case: Case) -> bool:
        """See Stage."""
        return case.options.rebuilds or case.options.upscale is not None

    def roles(self, case: Case) -> tuple[Role, ...]:
        """See Stage."""
        return ("resolution",) if case.options.native_scale is None else ()

    def run(self, state: State, case: Case, models: Models) -> float:
        """See Stage; the native scale."""
        given = case.options.native_scale
        state.native_scale = native_scale(state.seen, models.estimator("resolution")) if given is None else given
        return state.native_scale

    def record(self, fact: float | None) -> dict[str, Any]:
        """See Stage."""
        return {"native_scale": fact}

    def words(self, entry: Mapping[str, Any]) -> list[tuple[str, str]]:
        """See Stage."""
        scale = entry.get("native_scale")
        if scale is None:
            return []
        sharp = "1: as sharp as its pixels allow"
        return [("Native scale", sharp if scale < SHARP else f"{scale:g} pixels for each one of detail")]


def native_scale(pixels: Pixels, net: Estimator) -> float:
    """Measure how many times larger than its detail a photo, or a part of one, is: 1 for a sharp one, to
    MOST_NATIVE_SCALE."""
    if min(pixels.shape[:2]) < LEAST_SIDE:
        return 1.0
    octaves = float(net.answers(figures(pixels)[None])[0, 0])
    scale = min(MOST_NATIVE_SCALE, 2.0**octaves)
    return 1.0 if scale < SHARP else round(scale, 2)


class _Look(NamedTuple):
    """The figures of one square: steepness of its edges at each softening, for each of REFERENCES (N, SOFTENED); mean
    size of each band in each cell (N, SOFTENED); power in each ring, of each tile (N, RINGS)."""

    edges: tuple[Floats, Floats]
    bands: Floats
    power: Floats


def figures(pixels: Pixels) -> Floats:
    """Return the figures by which the network judges: (FIGURES,). pixels: at least LEAST_SIDE on a side."""
    to_8_bits = np.float32(255.0 / np.iinfo(pixels.dtype).max)
    squares = _squares(*pixels.shape[:2])
    looks = [_look(luminance(np.asarray(pixels[part], np.float32) * to_8_bits)) for part in squares]
    area = sum((rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in squares)
    found: list[Floats] = []
    for k, reference in enumerate(REFERENCES):
        edges = np.concatenate([look.edges[k] for look in looks])
        steepest = np.argsort(-edges[:, reference])[: max(12, int(area * EDGES))]
        for some in (edges[steepest[: len(steepest) // 4]], edges[steepest]):
            found += _of_edges(some if len(some) else np.ones((1, len(SOFTENED)), np.float32), reference)
    bands = np.concatenate([look.bands for look in looks])
    flat, busy = np.percentile(bands[:, -1], (FLAT, BUSY))
    for cells in (bands[bands[:, -1] <= flat], bands[bands[:, -1] >= busy]):
        found.append(_log(np.median(cells, axis=0)))
    found += [_log(np.percentile(bands, share, axis=0)) for share in (10, 97)]
    power = np.concatenate([look.power for look in looks])
    order = np.argsort(power.sum(axis=1))
    fifth = max(1, len(order) // 5)
    found += [0.5 * _log(power[some].mean(axis=0)) for some in (order[:fifth], order[-fifth:])]
    return np.concatenate(found).astype(np.float32)


def _squares(height: int, width: int) -> list[tuple[slice, slice]]:
    """Squares, fewer where the photo is small, evenly spread; never more than LOOKS."""
    most = round(LOOKS**0.5)
    down, across = (
        [
            slice(start, start + min(side, LOOK_SIDE))
            for start in np.linspace(0, max(0, side - LOOK_SIDE), min(most, -(-side // LOOK_SIDE)), dtype=int)
        ]
        for side in (height, width)
    )
    return [(rows, columns) for rows in down for columns in across]


def _look(light: Floats) -> _Look:
    """light: (h, w) in [0, 255]."""
    soft = [np.asarray(cv2.GaussianBlur(light, (0, 0), sigma), np.float32) for sigma in SOFTENED]
    slopes = [_slopes(plane) for plane in soft]
    bands = [_cells(np.abs(finer - coarser)) for finer, coarser in zip([light, *soft], soft, strict=False)]
    edges = _edges(slopes, REFERENCES[0]), _edges(slopes, REFERENCES[1])
    return _Look(edges, np.stack(bands, axis=1), _power(light))


def _slopes(plane: Floats) -> tuple[Floats, Floats]:
    """Differences across and down, in levels per pixel."""
    across, down = (np.asarray(cv2.Sobel(plane, cv2.CV_32F, 1 - k, k, ksize=1, scale=0.5), np.float32) for k in (0, 1))
    return across, down


def _edges(slopes: list[tuple[Floats, Floats]], reference: int) -> Floats:
    """Measure how steep the edges are at each softening, in the direction in which they are steepest at the reference:
    (N, SOFTENED). Edges are where no neighbour along that direction is steeper."""
    across, down = slopes[reference]
    steep = np.hypot(across, down)
    lying = np.abs(across) >= np.abs(down)
    ridge = [np.asarray(cv2.dilate(steep, np.ones(side, np.uint8))) for side in ((1, 5), (5, 1))]
    least = np.partition(steep.ravel(), -max(1, int(steep.size * STEEPEST)))[-max(1, int(steep.size * STEEPEST))]
    peak = (steep >= np.where(lying, *ridge)) & (steep >= least)
    peak[:MARGIN] = peak[-MARGIN:] = peak[:, :MARGIN] = peak[:, -MARGIN:] = False
    y, x = np.nonzero(peak)
    length = steep[y, x] + np.float32(1e-6)
    direction = across[y, x] / length, down[y, x] / length
    step = lying[y, x]
    found = []
    for horizontal, vertical in slopes:
        near = [
            np.abs(horizontal[place] * direction[0] + vertical[place] * direction[1])
            for place in ((y + k * ~step, x + k * step) for k in (-1, 0, 1))
        ]
        found.append(np.max(near, axis=0))
    return np.stack(found, axis=1)


def _cells(plane: Floats) -> Floats:
    """Means of cells: (N,)."""
    down, across = plane.shape[0] // CELL, plane.shape[1] // CELL
    whole = plane[: down * CELL, : across * CELL].reshape(down, CELL, across, CELL)
    return np.asarray(whole.mean(axis=(1, 3)).ravel(), np.float32)


def _power(light: Floats) -> Floats:
    """Return each tile's mean power in each of RINGS: (N, RINGS)."""
    down, across = light.shape[0] // TILE, light.shape[1] // TILE
    whole = light[: down * TILE, : across * TILE].reshape(down, TILE, across, TILE)
    tiles = whole.transpose(0, 2, 1, 3).reshape(-1, TILE, TILE)
    window = np.outer(np.hanning(TILE), np.hanning(TILE)).astype(np.float32)
    window /= np.sqrt(np.square(window).mean())
    power = np.square(np.abs(np.fft.rfft2((tiles - tiles.mean(axis=(1, 2), keepdims=True)) * window))) / TILE**2
    lines = np.arange(TILE)
    frequency = np.hypot(np.minimum(lines, TILE - lines)[:, None], lines[: TILE // 2 + 1]) / TILE
    ring = np.digitize(frequency, RINGS) - 1
    return np.stack([power[:, ring == k].mean(axis=1) for k in range(len(RINGS) - 1)], axis=1).astype(np.float32)


def _of_edges(edges: Floats, reference: int) -> list[Floats]:
    """Percentiles of how much steeper edges are at each softening than at the reference, and of how steep there."""
    ratios = np.log((edges + 0.02) / (edges[:, reference : reference + 1] + 0.02))
    found = []
    for k in range(len(SOFTENED)):
        if k != reference:
            shares = PERCENTILES if k < reference else tuple(100.0 - share for share in PERCENTILES)
            found.append(np.asarray(np.percentile(ratios[:, k], shares), np.float32))
    return [*found, _log(np.percentile(edges[:, reference], (10, 50)))]


def _log(values: NDArray[np.floating]) -> Floats:
    return np.asarray(np.log(np.maximum(values, 0.0) + 0.05), np.float32)
