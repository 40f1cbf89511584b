"""Fading undone: contrast stretched and a cast taken back where a photo has likely faded, by one line per channel.

Judged by a small network from the photo's levels and the spread of its colours. A photo that may well have been meant
so (fog, a white wall) is left alone, and where there is doubt, a part of it is done, unless the user says how much. A
toned monochrome photo keeps its tone: prints were made brown. Pixels are (H, W, 3) uint8 or uint16 RGB.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from oldphoto.arrays import Floats, Mask, Pixels
from oldphoto.stages.stage import Case, Clock, Plain, State
from oldphoto.weights.sets import Role

if TYPE_CHECKING:
    from oldphoto.models.estimator import Estimator
    from oldphoto.models.loaded import Models

NET = "tone"
# Levels are taken from a copy no larger than this on its short side, so that grain and specks count for little.
SHORT_SIDE = 256
LEVELS = (0.002, 0.01, 0.03, 0.1, 0.25, 0.5, 0.75, 0.9, 0.97, 0.99, 0.998)
FIGURES = 3 * len(LEVELS) + 9
PAIRS = ((0, 1), (0, 2), (1, 2))  # of channels
NO_SPREAD = 0.02  # what a spread is counted as more than it is, so that nothing is divided by 0
ANSWERS = 7
# How likely a photo has to have faded for any of it to be undone, and for all; between, a part. Of 163 photos made grey
# 2 % lie above the lower one for monochrome photos, and 83 % where they are made pale. In colour low light is taken
# for fading more often, and a wrong guess shows on skin.
MONOCHROME_LIKELY, COLOUR_LIKELY = (0.5, 0.6), (0.94, 0.95)
# Standard deviation of what one channel has that another does not tell: less is a monochrome photo, toned or not.
MONOCHROME = 0.03
LEAST_SPREAD = NO_SPREAD + 0.02  # of any channel, as it is counted: a wall has no contrast to bring back
LEAST_GAIN, MOST_GAIN = 0.8, 2.5
# Smaller photos say too little.
LEAST_SIDE = 32


@dataclass(frozen=True)
class Tone:
    """new = gain * old - offset of each channel, R G B, on a scale of 0 to 1; likely: that the photo has faded."""

    gain: tuple[float, float, float]
    offset: tuple[float, float, float]
    likely: float

    def in_part(self, share: float) -> Tone:
        """What undoes a share, 0..1, of the fading."""
        r, g, b = (round(1.0 + share * (gain - 1.0), 4) for gain in self.gain)
        less_r, less_g, less_b = (round(share * offset, 4) for offset in self.offset)
        return Tone((r, g, b), (less_r, less_g, less_b), self.likely)


class Fading(Plain):
    """Undoes fading: as much as the user says, or else what has likely faded, if the set does so unasked."""

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
        net = models.estimator("fading")
        state.pixels, tone = restore_tone(state.pixels, state.mask, net, case.options.tone_strength)
        return tone

    def record(self, fact: Tone | None) -> dict[str, Any]:
        """See Stage."""
        if fact is None:
            return {"tone": None}
        return {"tone": {"gain": [*fact.gain], "offset": [*fact.offset], "likely": fact.likely}}

    def words(self, entry: Mapping[str, Any]) -> list[tuple[str, str]]:
        """See Stage."""
        tone = entry.get("tone")
        return [] if tone is None else [("Tone", f"fading undone, which was {tone['likely']:.0%} likely")]


def _undone_in(case: Case) -> bool:
    return case.options.restores_tone(unasked=case.models.undoes_fading)


def restore_tone(
    pixels: Pixels, mask: Mask | None, net: Estimator, share: float | None = None
) -> tuple[Pixels, Tone | None]:
    """The photo with its contrast and colours back, and what was done; or as it came, and None.

    mask: (H, W) bool, True = damaged, which does not count. share: how much of the fading is undone, 0..1; None goes by
    how likely there is any.
    """
    tone = judged(pixels, mask, net, share)
    if tone is None:
        return pixels, None
    top = int(np.iinfo(pixels.dtype).max)
    stored = np.arange(top + 1, dtype=np.float64) / top
    out = np.empty_like(pixels)
    for channel, (gain, offset) in enumerate(zip(tone.gain, tone.offset, strict=True)):
        table = np.clip(np.rint((gain * stored - offset) * top), 0, top).astype(pixels.dtype)
        out[..., channel] = table[pixels[..., channel]]
    return out, tone


def judged(pixels: Pixels, mask: Mask | None, net: Estimator, share: float | None = None) -> Tone | None:
    """What brings the tone back, as far as `share` says or fading is likely; None where there is nothing to do, or too
    little to judge by."""
    height, width = pixels.shape[:2]
    if min(height, width) < LEAST_SIDE or (mask is not None and mask.all()):
        return None
    measured = figures(pixels, mask)
    if measured[-6:-3].max() < 3.0 * LEAST_SPREAD:
        return None
    answers = net.answers(measured[None])[0]
    gain, offset = np.clip(answers[:3], LEAST_GAIN, MOST_GAIN), answers[3:6]
    grey = bool(monochrome(measured[None])[0])
    if grey:  # no hue to mend, and none to bring in
        gain, offset = gain.mean(keepdims=True).repeat(3), offset.mean(keepdims=True).repeat(3)
    # Whatever the network thinks: shadows and lights that the photo has are not driven into black and white.
    dark, bright = measured[: 3 * len(LEVELS)].reshape(-1, 3)[[LEVELS.index(0.01), LEVELS.index(0.99)]]
    offset = np.minimum(offset, gain * (dark.min() if grey else dark))
    gain = np.minimum(gain, (1.0 + offset) / np.maximum(bright.max() if grey else bright, 1e-3))
    red, green, blue = (float(g) for g in gain)
    less_red, less_green, less_blue = (float(o) for o in offset)
    likely = 1.0 / (1.0 + math.exp(-float(answers[6])))
    if share is None:
        share = float(undone(np.array([likely]), np.array([grey]))[0])
    whole = Tone((red, green, blue), (less_red, less_green, less_blue), round(likely, 4))
    return whole.in_part(share) if share > 0.0 else None


def undone(likely: Floats, grey: Mask) -> Floats:
    """The share of the fading to undo, 0..1, by how likely photos have faded and whether they are monochrome, (N,)."""
    few, many = (np.where(grey, *both) for both in zip(MONOCHROME_LIKELY, COLOUR_LIKELY, strict=True))
    return np.asarray(((likely - few) / (many - few)).clip(0.0, 1.0), np.float32)


def monochrome(measured: Floats) -> Mask:
    """Whether photos are monochrome, toned or not, by their figures: (N, FIGURES) -> (N,)."""
    alike, spread = measured[:, -9:-6], measured[:, -6:-3] / 3.0
    of_pairs = []
    for k, (a, b) in enumerate(PAIRS):
        together = (alike[:, k] * spread[:, a] * spread[:, b]) ** 2
        for one, other in ((a, b), (b, a)):
            squares = (spread[:, [one, other]] - NO_SPREAD) ** 2
            of_pairs.append(squares[:, 0] - together / np.maximum(squares[:, 1], 1e-8))
    return np.asarray(np.max(of_pairs, axis=0) < MONOCHROME**2)


def figures(pixels: Pixels, mask: Mask | None) -> Floats:
    """What the network judges by: (FIGURES,), see `of_values`. pixels: (H, W, 3); mask: (H, W), True = left out."""
    height, width = pixels.shape[:2]
    shrink = min(1.0, SHORT_SIDE / min(height, width))
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    copy = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.float32)
    copy /= np.float32(np.iinfo(pixels.dtype).max)
    sound = np.ones(copy.shape[:2], np.bool_)
    if mask is not None:
        sound = cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA) == 0
        if not sound.any():
            sound[:] = True
    return of_values(copy[sound])


def of_values(values: Floats) -> Floats:
    """(N, 3) in [0, 1] -> (FIGURES,): the levels of each channel below which the shares LEVELS lie, how alike the
    channels are, how far each spreads, and how colourful the photo is."""
    levels = np.quantile(values, LEVELS, axis=0)
    centred = values - values.mean(axis=0)
    spread = centred.std(axis=0) + NO_SPREAD
    alike = [(centred[:, a] * centred[:, b]).mean() / (spread[a] * spread[b]) for a, b in PAIRS]
    colour = (values - values.mean(axis=1, keepdims=True)).std(axis=0)
    return np.concatenate([levels.ravel(), alike, 3.0 * spread, 6.0 * colour]).astype(np.float32)
