"""Fading undone: light and colours of the whole photo set right by one smooth curve, where it has plainly faded.

A small network judges from a small copy what the photo shows and in which colours, how it has faded, and how sure that
is. The curve is of density: fog and stain are taken off, the dyes' lost shares are given back by a matrix, and each
channel is bent a little. A monochrome photo keeps its tone: prints were made brown, or have become so. Its light alone
is set right. Pixels are (H, W, 3) uint8 or uint16 RGB.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from oldphoto.arrays import Floats, Mask, Pixels
from oldphoto.files.colour import bands
from oldphoto.stages.stage import Case, Clock, Plain, State
from oldphoto.weights.sets import Role

if TYPE_CHECKING:
    from oldphoto.models.loaded import Models
    from oldphoto.models.tone_net import ToneNet

NET = "tone"
# How sure the network has to be that its curve brings a photo nearer to what it was, unasked.
SURE = 0.8
SURE_OF_MONOCHROME = 0.75
# The same where there is hardly any colour: it may be a brown print with stains.
SURE_OF_FEW_COLOURS = 0.88
# Standard deviation of Lab's a and b among pixels alike in lightness: less is a monochrome photo, toned or not; less
# than the second has few colours.
MONOCHROME, FEW_COLOURS = 2.2, 2.8
# Smaller photos say too little.
LEAST_SIDE = 32
# Less of a range of lightness, from the 2nd to the 98th percentile in Lab, is a wall: no contrast to bring back.
LEAST_RANGE = 8.0
LUMINANCE = np.array([0.2126729, 0.7151522, 0.0721750], np.float32)
FLOOR = 0.003  # of light, as the network counts it; see models/tone_net.py


@dataclass(frozen=True)
class Curve:
    """density = bend(mix @ (density of (light - fog) / (1 - fog) - base)), bend(d) = d (1 + bend (d - 1)).

    Of R, G, B; of luminance alone, all else in proportion, where there is one of each. Values are those of
    models/tone_net.py.
    """

    fog: tuple[float, ...]
    base: tuple[float, ...]
    mix: tuple[tuple[float, ...], ...]
    bend: tuple[float, ...]

    def in_part(self, share: float) -> Curve:
        """What undoes a share, 0..1, of the fading."""
        even = np.eye(len(self.fog))
        mix = even + share * (np.array(self.mix) - even)
        return Curve(
            tuple(round(share * x, 6) for x in self.fog),
            tuple(round(share * x, 5) for x in self.base),
            tuple(tuple(round(float(x), 5) for x in row) for row in mix),
            tuple(round(share * x, 5) for x in self.bend),
        )

    def __call__(self, light: Floats) -> Floats:
        """Linear light (C, N) -> (C, N), in 0..1."""
        fog, base, bend = (np.array(x, np.float32)[:, None] for x in (self.fog, self.base, self.bend))
        clear = np.maximum((light - fog) / (1.0 - fog), 0.0)
        density = -np.log10((clear + np.float32(FLOOR)) / np.float32(1.0 + FLOOR)) - base
        mixed = np.clip(np.array(self.mix, np.float32) @ density, -1.0, 3.0)
        bent = mixed * (1.0 + bend * (mixed - 1.0))
        made: Floats = np.clip(np.exp(bent * np.float32(-math.log(10.0))) * np.float32(1.0 + FLOOR) - FLOOR, 0.0, 1.0)
        return made


@dataclass(frozen=True)
class Tone:
    """What was done. likely: that the photo had faded, 0..1. cast: what was taken off the mean colour, in Lab's a, b.
    lightness: what was added to the mean, in Lab's L. contrast: how many times more range of L there is."""

    curve: Curve
    likely: float
    cast: tuple[float, float]
    lightness: float
    contrast: float


class Fading(Plain):
    """Undoes fading: as much as the user says, or else where a photo has plainly faded, if set and look do so."""

    name: str = "fading"
    clock: Clock = "translation"

    def roles(self, case: Case) -> tuple[Role, ...]:
        """See Stage."""
        return ("fading",) if _undone_in(case) else ()

    def copies(self, case: Case) -> int:
        """See Stage."""
        return int(_undone_in(case))

    def run(self, state: State, case: Case, models: Models) -> Tone | None:
        """See Stage."""
        if not _undone_in(case):
            return None
        state.pixels, tone = restore_tone(state.pixels, state.mask, models.tone_net(), case.options.tone_strength)
        return tone

    def record(self, fact: Tone | None) -> dict[str, Any]:
        """See Stage."""
        if fact is None:
            return {"tone": None}
        whole = fact.curve
        curve: dict[str, Any] = {"fog": [*whole.fog], "base": [*whole.base], "bend": [*whole.bend]}
        curve["mix"] = [[*row] for row in whole.mix]
        numbers = {"likely": fact.likely, "cast": [*fact.cast], "lightness": fact.lightness, "contrast": fact.contrast}
        return {"tone": numbers | {"curve": curve}}

    def words(self, entry: Mapping[str, Any]) -> list[tuple[str, str]]:
        """See Stage."""
        tone = entry.get("tone")
        if tone is None:
            return []
        likely = f"{tone['likely']:.0%} likely to have faded"
        if "cast" not in tone:  # lines of earlier versions
            return [("Tone", f"fading undone; {likely}")]
        a, b = tone["cast"]
        size = math.hypot(a, b)
        cast = f"{_hue(a, b)} cast of {size:.0f} taken off (Lab a {a:+.0f}, b {b:+.0f}), " if size >= 1.0 else ""
        return [("Tone", f"{cast}lightness {tone['lightness']:+.0f}, contrast x {tone['contrast']:.2f}; {likely}")]


def _hue(a: float, b: float) -> str:
    """The name of a cast."""
    names = ("red", "orange", "yellow", "yellow-green", "green", "cyan", "blue", "violet", "magenta")
    edges = (25.0, 65.0, 100.0, 130.0, 180.0, 245.0, 290.0, 320.0, 345.0)
    angle = math.degrees(math.atan2(b, a)) % 360.0
    return next((name for name, edge in zip(names, edges, strict=True) if angle < edge), "red")


def _undone_in(case: Case) -> bool:
    return case.options.restores_tone(unasked=case.models.undoes_fading)


def restore_tone(
    pixels: Pixels, mask: Mask | None, net: ToneNet, share: float | None = None
) -> tuple[Pixels, Tone | None]:
    """The photo with its contrast and colours back, and what was done; or as it came, and None.

    mask: (H, W) bool, True = damaged, which does not count. share: how much of the fading is undone, 0..1; None undoes
    all of it where the network is sure that there is some, and else nothing.
    """
    tone = judged(pixels, mask, net, share)
    return (pixels, None) if tone is None else (through(pixels, tone.curve), tone)


def judged(pixels: Pixels, mask: Mask | None, net: ToneNet, share: float | None = None) -> Tone | None:
    """What brings the tone back; None where there is nothing to do, or too little to judge by. See `restore_tone`."""
    if min(pixels.shape[:2]) < LEAST_SIDE or (mask is not None and mask.all()) or share == 0.0:
        return None
    copy = small_copy(pixels, mask)
    before = lab(copy)
    if _range(before) < LEAST_RANGE:
        return None
    colours = spread_of_colour(before)
    grey = colours < MONOCHROME
    colour, luminance, sure = net.judge(np.asarray(copy, np.float32))
    likely = 1.0 / (1.0 + math.exp(-float(sure[int(grey)])))
    if share is None:
        if likely < (SURE_OF_MONOCHROME if grey else SURE_OF_FEW_COLOURS if colours < FEW_COLOURS else SURE):
            return None
        share = 1.0
    curve = Curve(*(luminance if grey else colour)).in_part(share)
    after = lab(np.asarray(through(np.rint(copy * 65535.0).astype(np.uint16), curve), np.float32) / np.float32(65535.0))
    lightness, a, b = (before - after).mean(axis=(0, 1))
    return Tone(
        curve,
        round(likely, 4),
        (round(float(a), 2), round(float(b), 2)),
        round(float(-lightness), 2),
        round(float(_range(after) / _range(before)), 3),
    )


def through(pixels: Pixels, curve: Curve) -> Pixels:
    """Every pixel by the curve."""
    top = int(np.iinfo(pixels.dtype).max)
    stored = np.arange(top + 1, dtype=np.float64) / top
    light = np.where(stored <= 0.04045, stored / 12.92, ((stored + 0.055) / 1.055) ** 2.4).astype(np.float32)
    out = np.empty_like(pixels)
    for rows in bands(pixels):
        now = np.ascontiguousarray(light[pixels[rows]].reshape(-1, 3).T)
        if len(curve.fog) == 1:
            grey = np.maximum(LUMINANCE @ now, np.float32(1e-6))
            # In proportion, and no further than the lightest channel goes: so the tone stays.
            made = now * np.minimum(curve(grey[None])[0] / grey, 1.0 / np.maximum(now.max(axis=0), np.float32(1e-6)))
        else:
            made = curve(now)
        shown = np.where(made <= 0.0031308, 12.92 * made, 1.055 * np.power(made, np.float32(1.0 / 2.4)) - 0.055)
        out[rows] = np.rint(shown.T * np.float32(top)).reshape(out[rows].shape)
    return out


def small_copy(pixels: Pixels, mask: Mask | None) -> Floats:
    """(128, 128, 3) in 0..1, whatever the photo's proportions; what is damaged has the mean colour of what is not."""
    from oldphoto.models.tone_net import SEEN

    whole = np.asarray(cv2.resize(pixels, (SEEN, SEEN), interpolation=cv2.INTER_AREA), np.float32)
    copy: Floats = whole / np.float32(np.iinfo(pixels.dtype).max)
    if mask is not None:
        hurt = cv2.resize(mask.astype(np.uint8) * 255, (SEEN, SEEN), interpolation=cv2.INTER_AREA) > 0
        if hurt.any() and not hurt.all():
            copy[hurt] = copy[~hurt].mean(axis=0)
    return copy


def lab(copy: Floats) -> NDArray[np.float32]:
    """(H, W, 3) in 0..1 -> CIE Lab."""
    return np.asarray(cv2.cvtColor(np.asarray(copy, np.float32), cv2.COLOR_RGB2LAB), np.float32)


def _range(colours: Floats) -> float:
    low, high = np.percentile(colours[..., 0], (2.0, 98.0))
    return max(float(high - low), 0.01)


def spread_of_colour(colours: Floats) -> float:
    """Standard deviation of a and b of a small copy, in Lab, among pixels alike in lightness: of a monochrome photo,
    toned or not, it is small."""
    side = min(colours.shape[:2]) // 2
    coarse = np.asarray(cv2.resize(colours, (side, side), interpolation=cv2.INTER_AREA), np.float32).reshape(-1, 3)
    ordered = coarse[np.argsort(coarse[:, 0])]
    steps = np.array_split(ordered[:, 1:], 16)
    return float(np.sqrt(np.mean([step.var(axis=0).sum() / 2.0 for step in steps])))
