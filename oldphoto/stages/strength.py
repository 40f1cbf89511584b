"""Use a share of what a network changed, and sharpen the result.

A network that mends noise also changes what needed no mending. The change is split into light and colour, and each into
what is small, up to EDGE levels, and what goes beyond. Of each of the four a share is kept, between 0 and 1, one for
the whole photo, which a small network judges from figures about photo and change. What was repaired as damage is kept
in full; and where there is damage, so are large changes that stand alone, which are the specks that no mask names.

Whether a photo is blurred is a matter of all of it, too. So the same judge says by how much the finest bands of the
result's light are raised, freed of noise as they are; not where damage was repaired. Of each face and what the face
generator makes of it a judge of its own says what to keep; it sharpens nothing, which is the generator's to do. Pixels
are (H, W, 3) uint8 or uint16 RGB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from oldphoto.arrays import Floats, Mask, Pixels
from oldphoto.files.colour import luminance
from oldphoto.stages.changes import ALL, ChangeUse, words_for
from oldphoto.stages.resolution import SHARP
from oldphoto.stages.stage import Case, Clock, Plain, State
from oldphoto.weights.sets import Role

if TYPE_CHECKING:
    from oldphoto.models.estimator import Estimator
    from oldphoto.models.loaded import Models

NET, FACE_NET = "restraint", "face_restraint"
# Levels of 255. Film grain and the blocks of a JPEG lie below, specks and the salt of salt-and-pepper beyond.
EDGE = 6.0
# The figures come from so many squares of so many pixels, spread over the photo: a photo of any size takes 0.1 s.
LOOKS, LOOK_SIDE = 9, 256
# Smaller photos are no matter of statistics: all of the change is kept.
LEAST_SIDE = 32
# Rings of the 8 x 8 cosine transform that are looked at together, by the sum of both indices.
_RINGS = ((1,), (2,), (3,), (4,), (5,), (6,), (7, 8), (9, 10), (11, 12, 13, 14))
_GAUSSIANS = ((0, 0.7), (0, 1.6), (0, 2.56), (0, 4.1))
# Of the Gaussians whose differences are raised, each on top of the one before, in pixels; how far they see.
SHARPENED = (0.7, 1.0, 1.6)
REACH = sum(ceil(3.0 * scale) for scale in SHARPENED)
# Answers of the network: four shares, and for photos what the bands are raised by, as multiples; and the most of each.
MOST = (1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0)
SHARES = 4
FIGURES = 6 * len(_GAUSSIANS) + 8 + 6 * len(_RINGS) + 8 + 3 * len(SHARPENED)
ROWS_AT_ONCE = 128
RIM = 3
# Large changes stand alone where less than this share of the pixels about them, in a square of that side, is changed
# so: specks do, the hairs of a beard and the blades of turf do not.
ALONE, ALONE_SIDE = 0.1, 33


class Strength(Plain):
    """Keeps of the translation's changes as much as the user says, or as the set judges right, and sharpens."""

    name: str = "strength"
    clock: Clock = "translation"

    def roles(self, case: Case) -> tuple[Role, ...]:
        """See Stage."""
        return ("strength",) if _judged_in(case) else ()

    def run(self, state: State, case: Case, models: Models) -> ChangeUse | None:
        """See Stage."""
        before, state.before = state.before, None
        assert before is not None, "translation has run"
        if case.options.only_damaged:
            return None
        use = given_use(case, "strength", case.options.strength)
        if use is None:
            use = estimate(before, state.pixels, state.mask, models.estimator("strength"))
            # What will be rebuilt is not sharpened before: the network takes what rings for what there is.
            rebuilt = case.options.rebuilds and state.native_scale >= SHARP
            use = use if case.options.sharpen and not rebuilt else use._replace(raised=(0.0, 0.0, 0.0))
        state.pixels = apply(before, state.pixels, state.holes, use)
        return use

    def record(self, fact: ChangeUse | None) -> dict[str, Any]:
        """See Stage."""
        return {
            "kept": None if fact is None else [*fact.shares],
            "raised": None if fact is None else [*fact.raised],
        }

    def words(self, entry: Mapping[str, Any]) -> list[tuple[str, str]]:
        """See Stage."""
        if entry.get("kept") is None:
            return []
        raised = entry.get("raised") or ()
        sharper = f"; sharpened by {', '.join(f'{much:.0%}' for much in raised)}" if any(raised) else ""
        return [("Kept", words_for(entry["kept"]) + sharper)]


def _judged_in(case: Case) -> bool:
    """Whether the set judges what to keep, and the user leaves it to it."""
    return not case.options.only_damaged and given_use(case, "strength", case.options.strength) is None


def given_use(case: Case, judge: Role, strength: float | None) -> ChangeUse | None:
    """Return the use of a change where it is not judged: the share that the user gives, or all where the set has no
    such judge."""
    if strength is not None:
        return ChangeUse((strength, strength, strength, strength))
    return None if case.models.can(judge) else ALL


def estimate(before: Pixels, after: Pixels, mask: Mask | None, net: Estimator) -> ChangeUse:
    """Judge how much of a change to use, and how much to sharpen.

    before, after: the photo as it came and as it was translated, of one shape and depth. mask: (H, W), True = damaged.
    """
    height, width = before.shape[:2]
    if min(height, width) < LEAST_SIDE:
        return ALL
    to_8_bits = np.float32(255.0 / np.iinfo(before.dtype).max)
    looks = []
    for rows, columns in _looks(height, width):
        one, other = (np.rint(np.asarray(pixels[rows, columns], np.float32) * to_8_bits) for pixels in (before, after))
        holes = np.zeros(one.shape[:2], np.bool_) if mask is None else mask[rows, columns]
        if not holes.all():
            looks.append(figures(one, other, holes))
    if not looks:
        return ALL
    answers = net.answers(np.stack(looks))
    much = answers.clip(0.0, MOST[: answers.shape[1]]).mean(axis=0)
    small, large, colour, more, *finest = (round(float(answer), 4) for answer in much)
    sharper = (finest[0], finest[1], finest[2]) if finest else (0.0, 0.0, 0.0)
    return ChangeUse((small, large, colour, more), sharper, specks=mask is not None)


def _looks(height: int, width: int) -> list[tuple[slice, slice]]:
    """Squares, fewer where the photo is small, evenly spread; never more than LOOKS."""
    most = round(LOOKS**0.5)
    down, across = (
        [
            slice(start, start + min(side, LOOK_SIDE))
            for start in np.linspace(0, max(0, side - LOOK_SIDE), count, dtype=int)
        ]
        for side, count in ((s, min(most, -(-s // LOOK_SIDE))) for s in (height, width))
    )
    return [(rows, columns) for rows in down for columns in across]


def apply(before: Pixels, after: Pixels, mask: Mask | None, use: ChangeUse) -> Pixels:
    """`after` with so much of the change, sharpened; but as it is where damage was repaired. See `estimate`."""
    if use == ALL:
        return after
    out = np.empty_like(after)
    top = np.iinfo(before.dtype).max
    edge = EDGE * top / 255.0
    for start in range(0, before.shape[0], ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        old, new = np.asarray(before[rows], np.float32), np.asarray(after[rows], np.float32)
        change = new - old
        specks = None
        if use.specks:
            around, own = _about(start, ALONE_SIDE // 2)
            holes = None if mask is None else mask[around]
            specks = alone(before[around], after[around], holes, edge)[own]
        less = lessened(change, use, edge, specks)
        if any(use.raised):
            around, own = _about(start, REACH)
            less += raised(np.asarray(after[around], np.float32), use)[own][..., None]
        if mask is not None:
            around, own = _about(start, RIM)
            less += repaired(mask[around])[own][..., None] * (change - less)
        out[rows] = np.clip(np.rint(old + less), 0, top)
    return out


def _about(start: int, reach: int) -> tuple[slice, slice]:
    """Return the slice of rows grown by `reach` on each side, and where the original rows lie inside it."""
    above = min(start, reach)
    return slice(start - above, start + ROWS_AT_ONCE + reach), slice(above, above + ROWS_AT_ONCE)


def alone(before: Pixels, after: Pixels, mask: Mask | None, edge: float = EDGE) -> Mask:
    """Find where large changes of light, outside of the mask, are few: (H, W). Sees half of ALONE_SIDE far."""
    light = luminance(np.asarray(after, np.float32) - np.asarray(before, np.float32))
    changed = np.abs(light) > edge
    large = (changed if mask is None else changed & ~mask).astype(np.uint8)
    side = (ALONE_SIDE, ALONE_SIDE)
    count = cv2.boxFilter(large, cv2.CV_32S, side, normalize=False, borderType=cv2.BORDER_REFLECT)
    return np.asarray(count < ALONE * ALONE_SIDE**2)


def lessened(change: Floats, use: ChangeUse, edge: float = EDGE, specks: Mask | None = None) -> Floats:
    """The shares to keep of the parts of a change (H, W, 3), summed. edge: see `parts`. specks: (H, W), where all of
    what is large is kept."""
    small_light, large_light, small_colour, large_colour = parts(change, edge)
    small, large, colour, more = (np.full(change.shape[:2], share, np.float32) for share in use.shares)
    if specks is not None:
        large[specks] = more[specks] = 1.0
    light = (small * small_light + large * large_light)[..., None]
    return np.asarray(light + colour[..., None] * small_colour + more[..., None] * large_colour, np.float32)


def raised(after: Floats, use: ChangeUse) -> Floats:
    """Return what sharpening adds to the light of a photo (H, W, 3): (H, W)."""
    bands = detail(luminance(after))
    return np.asarray(sum(much * band for much, band in zip(use.raised, bands, strict=True)), np.float32)


def detail(plane: Floats) -> list[Floats]:
    """The bands of (H, W) that sharpening raises; each sees three standard deviations far."""
    return _bands(plane, [(2 * ceil(3.0 * scale) + 1, scale) for scale in SHARPENED])


def parts(change: Floats, edge: float = EDGE) -> tuple[Floats, Floats, Floats, Floats]:
    """A change (H, W, 3) -> the small and the large part of its light, (H, W) each, and of its colour, (H, W, 3) each.

    All four sum to the change. edge: most of a small part.
    """
    light = luminance(change)
    colour = change - light[..., None]
    small, small_colour = np.clip(light, -edge, edge), np.clip(colour, -edge, edge)
    return small, light - small, small_colour, colour - small_colour


def repaired(mask: Mask) -> Floats:
    """(H, W) in [0, 1]: 1 where damage was repaired and on its rim, falling off within RIM pixels."""
    rim = cv2.dilate(mask.astype(np.float32), np.ones((3, 3), np.uint8))
    return np.asarray(np.maximum(cv2.blur(cv2.dilate(rim, np.ones((3, 3), np.uint8)), (3, 3)), rim), np.float32)


def figures(before: Floats, after: Floats, mask: Mask) -> Floats:
    """Return the figures by which the network judges: (FIGURES,) of a part of a photo as it came and as it was
    translated.

    before, after: (H, W, 3) in [0, 255], at least LEAST_SIDE on a side. mask: (H, W), True = left out; not all of it.
    """
    sound = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9), np.uint8)) == 0  # what filters carry out of holes
    if not sound.any():
        sound = ~mask
    change = after - before
    light, lighter = luminance(before), luminance(change)
    other_colour = change - lighter[..., None]
    found: list[np.floating | float] = []
    for one, two in zip(*(_bands(plane, _GAUSSIANS) for plane in (light, lighter)), strict=True):
        a, b = one[sound], two[sound]
        spread = a.std(), b.std()
        found += [
            _log(spread[0]),
            _log(spread[1]),
            _log((a + b).std()),
            (a * b).mean() / (spread[0] * spread[1] + 0.05),
        ]
        found += [_log(np.abs(a).mean()), _log(np.abs(b).mean())]
    for channel in (0, 2):
        for plane in (before[..., channel] - light, other_colour[..., channel]):
            fine = plane - cv2.GaussianBlur(plane, (0, 0), 1.5)
            found += [_log(plane[sound].std()), _log(fine[sound].std())]
    # A JPEG's own grid has fewer large coefficients than the same grid shifted by half a block.
    aligned, shifted, changed = _cosines(light, sound), _cosines(light[4:, 4:], sound[4:, 4:]), _cosines(lighter, sound)
    for ring in _RINGS:
        cells = np.isin(np.add.outer(np.arange(8), np.arange(8)), ring)
        a, b = aligned[:, cells], shifted[:, cells]
        found += [_log(a.mean()), _log(a.mean()) - _log(b.mean())]
        found += [(a < 1.0).mean(), (a < 1.0).mean() - (b < 1.0).mean()]
        found += [_log(np.percentile(a, 90)), _log(changed[:, cells].mean())]
    found += [_log(value) for value in np.percentile(np.abs(lighter[sound]), (50.0, 90.0, 99.0, 99.8))]
    # Its sharpest edges tell a blurred photo from one of smooth things.
    for band in detail(light + lighter):
        size = np.abs(band[sound])
        found += [_log(size.mean()), *(_log(value) for value in np.percentile(size, (98.0, 99.7)))]
    found += [
        light[sound].mean() / 255.0,
        light[sound].std() / 100.0,
        *np.percentile(light[sound], (1.0, 99.0)) / 255.0,
    ]
    return np.array(found, np.float32)


def _log(value: np.floating | float) -> float:
    return float(np.log(value + 0.05))


def _bands(plane: Floats, gaussians: Sequence[tuple[int, float]]) -> list[Floats]:
    """Differences of Gaussians, each on top of the one before: side of the kernel in pixels, 0 as OpenCV has it, and
    standard deviation; finest first."""
    bands = []
    for side, scale in gaussians:
        soft = np.asarray(cv2.GaussianBlur(plane, (side, side), scale), np.float32)
        bands.append(plane - soft)
        plane = soft
    return bands


def _cosines(plane: Floats, sound: Mask) -> Floats:
    """Sizes of the cosine transform's coefficients of all blocks without damage, or of all if there is none: (N, 8,
    8)."""
    k = np.arange(8)
    cosine = np.cos(np.pi * (2 * k + 1) * k[:, None] / 16.0) * np.where(k[:, None] == 0, np.sqrt(1.0 / 8.0), 0.5)
    cosine = cosine.astype(np.float32)
    blocks, whole = _blocks(plane), _blocks(sound).all(axis=(2, 3))
    chosen = blocks[whole] if whole.any() else blocks.reshape(-1, 8, 8)
    return np.asarray(np.abs(cosine @ chosen @ cosine.T), np.float32)


def _blocks(plane: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """(H, W) -> (H // 8, W // 8, 8, 8)."""
    down, across = plane.shape[0] // 8, plane.shape[1] // 8
    return plane[: down * 8, : across * 8].reshape(down, 8, across, 8).transpose(0, 2, 1, 3)
