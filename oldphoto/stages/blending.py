"""Put enhanced faces back into their photo: match the colours, warp back, feather.

Everything happens in each face's own region, so that the cost does not grow with the photo. Source of the method: Wan
et al., TPAMI 2022. BlendConfig's defaults depart from the published code where that shows boxes or loses detail;
REFERENCE is what it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from oldphoto.stages.faces import Face
from oldphoto.stages.faces.geometry import Matrix, Pixels, bounds, shrink_for
from oldphoto.stages.stage import Case, Clock, Plain, State

if TYPE_CHECKING:
    from oldphoto.models.loaded import Models

Floats = npt.NDArray[np.float32]
PhotoPixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
Bounds = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom excluded

# Rows warped at once: bounds the memory of the sixteen taps for a face of thousands of pixels.
ROWS_AT_ONCE = 256


class Blending(Plain):
    """Puts the enhanced faces back into the photo."""

    name: str = "blending"
    clock: Clock = "blending"

    def wanted(self, case: Case) -> bool:
        """See Stage."""
        return case.options.enhances_faces

    def run(self, state: State, case: Case, models: Models) -> None:
        """See Stage."""
        state.pixels = blend(state.pixels, state.faces)


@dataclass(frozen=True)
class BlendConfig:
    """The settings by which faces are blended.

    feather: width of the soft edge on either side of its middle, as a share of the crop's side in the photo.
    feather_pixels: the same in photo pixels whatever the face's size; None takes `feather`.
    match_outside: the black outside the photo takes part in matching the colours.
    change_only: add what the enhancement changed, shared where faces overlap, so that detail and grain finer than the
        crop and all bits of a 16-bit photo stay; else replace the photo's pixels, a later face covering an earlier one.
    antialias: average crops that are finer than the photo before they are sampled.
    grain: where the enhancement took grain away that the surroundings have, put as much back.
    """

    feather: float = 0.1
    feather_pixels: int | None = None
    match_outside: bool = False
    change_only: bool = True
    antialias: bool = True
    grain: bool = True


REFERENCE = BlendConfig(feather_pixels=12, match_outside=True, change_only=False, antialias=False, grain=False)

# Grain is measured around the face to this share of its side, and put back only where this share of it is missing.
SURROUNDINGS = 0.25
LEAST_MISSING = 0.1


def blend(pixels: PhotoPixels, faces: Sequence[Face], config: BlendConfig | None = None) -> PhotoPixels:
    """The photo with its enhanced faces put in. pixels: (H, W, 3) uint8 or uint16 RGB -> the same shape and dtype.

    Faces without `after` are left out, and without any the input itself is returned. Pixels outside the feathered areas
    are bit-identical; the input is not changed.
    """
    enhanced = [face for face in faces if face.after is not None]
    if not enhanced:
        return pixels
    config = config or BlendConfig()
    height, width = pixels.shape[:2]
    full = float(np.iinfo(pixels.dtype).max)
    masks = [soft_mask(face, width, height, config) for face in enhanced]
    result = pixels.copy()
    for number, (face, (region, mask)) in enumerate(zip(enhanced, masks, strict=True)):
        left, top, right, bottom = region
        if left >= right or top >= bottom:
            continue
        if config.change_only:
            others = [other for index, other in enumerate(masks) if index != number]
            mask = (mask / np.maximum(_total(region, mask, others), 1.0)).astype(np.float32)
        source = match_colours(face, width, height, config)
        if config.change_only:
            source = source - face.before
        for row in range(top, bottom, ROWS_AT_ONCE):
            last = min(row + ROWS_AT_ONCE, bottom)
            warped = warp_back(source, face.matrix, (left, row, right, last), config.antialias) * (full / 255.0)
            weight = mask[row - top : last - top, :, None]
            old = result[row:last, left:right].astype(np.float32)
            new = old + weight * warped if config.change_only else weight * warped + (1.0 - weight) * old
            result[row:last, left:right] = np.clip(np.rint(new), 0.0, full).astype(pixels.dtype)
        if config.grain:
            missing = missing_grain(pixels, result, region, masks[number][1])
            if missing > 0.0:
                _add_grain(result, region, mask, missing)
    return result


def grain_of(pixels: PhotoPixels, seen: npt.NDArray[np.bool_] | None = None) -> float:
    """The deviation of the finest detail, a robust measure of grain, in the photo's own levels.

    pixels: (H, W, 3). seen: (H, W), where to look; 2 x 2 blocks count where all four pixels are seen.
    """
    height, width = (side - side % 2 for side in pixels.shape[:2])
    grey = pixels[:height, :width].astype(np.float32).mean(axis=2)
    # The diagonal detail of the Haar wavelet: nothing smooth and no straight edge is in it (Donoho, 1994).
    detail = (grey[::2, ::2] - grey[::2, 1::2] - grey[1::2, ::2] + grey[1::2, 1::2]) / 2.0
    if seen is not None:
        seen = seen[:height, :width]
        detail = detail[seen[::2, ::2] & seen[::2, 1::2] & seen[1::2, ::2] & seen[1::2, 1::2]]
    return float(np.median(np.abs(detail))) / 0.6745 if detail.size else 0.0


def missing_grain(before: PhotoPixels, after: PhotoPixels, region: Bounds, mask: Floats) -> float:
    """The deviation of the grain that a blended face lacks, in the photo's levels; 0 where it lacks none.

    It is to have the grain of its surroundings, but never more than it had itself: leaves and cloth look like grain.
    """
    left, top, right, bottom = region
    height, width = before.shape[:2]
    reach = round(SURROUNDINGS * max(right - left, bottom - top))
    low_x, low_y, high_x, high_y = left - reach, top - reach, right + reach, bottom + reach
    low_x, low_y, high_x, high_y = max(0, low_x), max(0, low_y), min(width, high_x), min(height, high_y)
    outside = np.ones((high_y - low_y, high_x - low_x), np.bool_)
    outside[top - low_y : bottom - low_y, left - low_x : right - low_x] = mask <= 0.0
    inside = mask > 0.5
    here = (slice(top, bottom), slice(left, right))
    wanted = min(grain_of(before[low_y:high_y, low_x:high_x], outside), grain_of(before[here], inside))
    has = grain_of(after[here], inside)
    return float(np.sqrt(wanted**2 - has**2)) if has < (1.0 - LEAST_MISSING) * wanted else 0.0


def _add_grain(result: PhotoPixels, region: Bounds, mask: Floats, deviation: float) -> None:
    """Normally distributed grain, alike in all channels, on one face; the same face gets the same."""
    left, top, right, bottom = region
    noise = np.random.default_rng(region).standard_normal(mask.shape, np.float32) * mask * np.float32(deviation)
    new = result[top:bottom, left:right].astype(np.float32) + noise[..., None]
    result[top:bottom, left:right] = np.clip(np.rint(new), 0.0, np.iinfo(result.dtype).max).astype(result.dtype)


def _total(region: Bounds, mask: Floats, others: Sequence[tuple[Bounds, Floats]]) -> Floats:
    """The sum of all faces' masks inside one face's region."""
    total = mask.copy()
    left, top, right, bottom = region
    for (other_left, other_top, other_right, other_bottom), other in others:
        low_x, low_y = max(left, other_left), max(top, other_top)
        high_x, high_y = min(right, other_right), min(bottom, other_bottom)
        if low_x < high_x and low_y < high_y:
            total[low_y - top : high_y - top, low_x - left : high_x - left] += other[
                low_y - other_top : high_y - other_top, low_x - other_left : high_x - other_left
            ]
    return total


def level_table(source: Pixels, reference: Pixels) -> Pixels:
    """(256,) uint8: for each level the first one of the reference that is at least as high in rank. Both (N,) uint8."""
    source_rank = np.cumsum(np.bincount(source, minlength=256)) / source.size
    reference_rank = np.cumsum(np.bincount(reference, minlength=256)) / reference.size
    # Ranks are counts over sizes; the slack keeps equal ones equal. All above the last level is the last level.
    table = np.searchsorted(reference_rank, source_rank - 1e-9, side="left")
    levels: Pixels = np.minimum(table, 255).astype(np.uint8)
    return levels


def match_colours(face: Face, width: int, height: int, config: BlendConfig) -> Floats:
    """`face.after` with the level distribution of `face.before`, channel by channel: (S, S, 3) float32 in [0, 255].

    What the photo does not show stays as in `before`, unless config.match_outside.
    """
    if face.after is None:
        raise ValueError("the face has not been enhanced")
    size = face.before.shape[0]
    seen = np.ones((size, size), np.bool_)
    if not config.match_outside:
        columns, rows = np.meshgrid(np.arange(float(size)), np.arange(float(size)))
        x, y = _moved(face.matrix, columns, rows)
        seen = (x >= 0.0) & (x <= width - 1.0) & (y >= 0.0) & (y <= height - 1.0)
        if not seen.any():
            return face.after
    levels = np.arange(256, dtype=np.float32)
    matched = np.empty_like(face.after)
    for channel in range(3):
        after = face.after[..., channel]
        whole = np.clip(np.rint(after[seen]), 0, 255).astype(np.uint8)
        table = level_table(whole, face.before[..., channel][seen])
        # Between two levels the table is interpolated: a float picture does not fall into steps.
        matched[..., channel] = np.interp(after, levels, table)
    return np.where(seen[..., None], matched, face.before)


def soft_mask(face: Face, width: int, height: int, config: BlendConfig) -> tuple[Bounds, Floats]:
    """Return the share that each photo pixel takes of the face: the region, and (bottom - top, right - left) float32 in
    0..1.

    1 well inside the crop, 0 at its edge and outside; at the photo's own border there is no soft edge.
    """
    size = face.before.shape[0]
    left, top, right, bottom = bounds(face.matrix, size, width, height, margin=2)
    if left >= right or top >= bottom:
        return (0, 0, 0, 0), np.zeros((0, 0), np.float32)
    columns, rows = np.meshgrid(np.arange(left, right, dtype=np.float64), np.arange(top, bottom, dtype=np.float64))
    x, y = _moved(np.linalg.inv(face.matrix).astype(np.float64), columns, rows)
    x, y = np.rint(x), np.rint(y)
    covered = (x >= 0) & (x < size) & (y >= 0) & (y < size)
    # The crop's own pixel must have come from inside the photo.
    x, y = _moved(face.matrix, x, y)
    covered &= (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
    side = size * float(np.sqrt(abs(np.linalg.det(face.matrix[:2, :2]))))
    radius = max(2, round(config.feather * side)) if config.feather_pixels is None else config.feather_pixels
    window = 2 * radius + 1
    # Eroded by as much as the blur reaches: beyond the crop nothing is touched.
    mask = cv2.erode(covered.astype(np.float32), np.ones((window, window), np.uint8))
    return (left, top, right, bottom), np.asarray(cv2.GaussianBlur(mask, (window, window), 0), np.float32)


def warp_back(source: Floats, matrix: Matrix, region: Bounds, antialias: bool) -> Floats:
    """A crop seen from the photo: (S, S, 3) float32 -> (bottom - top, right - left, 3), 0 outside the crop.

    matrix: crop -> photo. Catmull-Rom, clipped to the source's range.
    """
    to_crop: Matrix = np.linalg.inv(matrix).astype(np.float64)
    shrink = shrink_for(to_crop) if antialias else 1
    while shrink > 1 and source.shape[0] % shrink:
        shrink -= 1
    if shrink > 1:
        side = source.shape[0] // shrink
        source = np.asarray(cv2.resize(source, (side, side), interpolation=cv2.INTER_AREA), np.float32)
        reduce = np.diag([1.0 / shrink, 1.0 / shrink, 1.0])
        reduce[:2, 2] = 0.5 / shrink - 0.5
        to_crop = reduce @ to_crop
    left, top, right, bottom = region
    columns, rows = np.meshgrid(np.arange(left, right, dtype=np.float64), np.arange(top, bottom, dtype=np.float64))
    x, y = _moved(to_crop, columns, rows)
    size = source.shape[0]
    framed = np.pad(source, ((2, 2), (2, 2), (0, 0)))
    x, y = np.clip(x, -1.0, size - 0.001), np.clip(y, -1.0, size - 0.001)
    x0, y0 = np.floor(x).astype(np.intp), np.floor(y).astype(np.intp)
    x_weights, y_weights = _catmull_rom(x - x0), _catmull_rom(y - y0)
    warped = np.zeros((*x.shape, source.shape[2]), np.float32)
    for down in range(4):
        line = np.zeros_like(warped)
        # Tap `down` lies at y0 - 1 + down, two further in the framed picture; clipped where x0 or y0 is -1 or size - 1.
        from_row = np.clip(y0 + 1 + down, 0, size + 3)
        for across in range(4):
            line += x_weights[across][..., None] * framed[from_row, np.clip(x0 + 1 + across, 0, size + 3)]
        warped += y_weights[down][..., None] * line
    inside = (x > -1.0) & (x < size - 0.001) & (y > -1.0) & (y < size - 0.001)
    clipped: Floats = np.where(inside[..., None], np.clip(warped, source.min(), source.max()), np.float32(0.0))
    return clipped


def _catmull_rom(share: npt.NDArray[np.float64]) -> tuple[Floats, Floats, Floats, Floats]:
    """The four taps' weights at a share 0..1 of the way from the second to the third."""
    t = share.astype(np.float32)
    return (
        ((2.0 - t) * t - 1.0) * t / 2.0,
        ((3.0 * t - 5.0) * t * t + 2.0) / 2.0,
        ((4.0 - 3.0 * t) * t + 1.0) * t / 2.0,
        (t - 1.0) * t * t / 2.0,
    )


def _moved(
    matrix: Matrix, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Coordinates x, y of any shape through an affine matrix."""
    return (
        matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2],
        matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2],
    )
