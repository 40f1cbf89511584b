"""Lettering for training photos: captions, stamps and handwriting are part of a photo, and no damage.

Without it a detector of scratches takes thin bright strokes on a dark ground for what it was taught to find.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont
from torch import Tensor

from oldphoto.training.ageing import Dice, tints
from oldphoto.training.degrade import Generator, Image, put_down

LETTERS = "eeeetttaaaooiinnnsshhrrdlucmwfgypbvkEATSRNBMHCDPGLW"
DIGITS = "0123456789"
STROKES = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_COMPLEX_SMALL,
    cv2.FONT_HERSHEY_TRIPLEX,
    cv2.FONT_HERSHEY_SCRIPT_SIMPLEX,
    cv2.FONT_HERSHEY_SCRIPT_COMPLEX,
)
# Height of a line in pixels; most captions of a scan are small.
HEIGHTS = (7.0, 40.0)


def lettering(side: int, rng: Generator) -> Image:
    """(side, side) opacity in [0, 1]: one to three lines of made-up words, printed, lettered or in longhand, at a
    slant; one in five framed as a stamp is."""
    # Drawn larger than needed, so that turning it leaves no empty corner and thin strokes are smooth.
    height = 2.0 * float(np.exp(rng.uniform(*np.log(HEIGHTS))))
    lines = [_words(rng) for _ in range(int(rng.integers(1, 4)))]
    if rng.random() < 0.25:
        canvas = _longhand(lines, height, rng)
    else:
        if rng.random() < 0.3:  # as captions in negatives are
            lines = [" ".join(line.upper()) for line in lines]
        canvas = _printed(lines, height) if rng.random() < 0.5 else _lettered(lines, height, rng)
    if rng.random() < 0.2:
        canvas = _framed(canvas, height, rng)
    angle = rng.normal(0.0, 0.06) if rng.random() < 0.8 else rng.uniform(-np.pi, np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    laid = put_down(canvas, turn, 0.5, rng.uniform(0.15, 0.85, 2) * side, (side, side))
    soft = cv2.GaussianBlur(laid, (0, 0), rng.uniform(0.3, 0.9))
    return np.asarray(soft, np.float32) / np.float32(255.0)


def _words(rng: Generator) -> str:
    words = []
    for _ in range(int(rng.integers(1, 6))):
        source = DIGITS if rng.random() < 0.2 else LETTERS
        word = "".join(source[int(i)] for i in rng.integers(len(source), size=int(rng.integers(1, 9))))
        words.append(word.upper() if rng.random() < 0.3 else word)
    return " ".join(words)


def _printed(lines: list[str], height: float) -> NDArray[np.uint8]:
    font = ImageFont.load_default(height)
    text = "\n".join(lines)
    left, top, right, bottom = ImageDraw.Draw(PillowImage.new("L", (1, 1))).multiline_textbbox((0, 0), text, font)
    canvas = PillowImage.new("L", (int(right - left) + 8, int(bottom - top) + 8))
    ImageDraw.Draw(canvas).multiline_text((4 - left, 4 - top), text, 255, font)
    return np.array(canvas)


def _lettered(lines: list[str], height: float, rng: Generator) -> NDArray[np.uint8]:
    font = STROKES[int(rng.integers(len(STROKES)))]
    scale = height / 30.0
    width = max(1, round(height * rng.uniform(0.04, 0.14)))
    hand = 0.04 * height if rng.random() < 0.5 else 0.0  # by how much letters leave their line and their distance
    sizes = [[cv2.getTextSize(letter, font, scale, width)[0][0] for letter in line] for line in lines]
    longest = max(sum(size) + round(3.0 * hand * len(size)) for size in sizes)
    canvas = np.zeros((int(height * 1.5 * len(lines) + height), longest + 16), np.uint8)
    for number, (line, size) in enumerate(zip(lines, sizes, strict=True)):
        x, y = 8.0, height * (1.2 + 1.5 * number)
        for letter, wide in zip(line, size, strict=True):
            place = (round(x), round(y + hand * rng.normal()))
            cv2.putText(canvas, letter, place, font, scale, 255, width, cv2.LINE_AA)
            x += wide + hand * rng.uniform(0.0, 3.0)
    return canvas


def _longhand(lines: list[str], height: float, rng: Generator) -> NDArray[np.uint8]:
    """Words as one stroke each that goes up and down at every letter, more or less like a joined hand."""
    wide = height * rng.uniform(0.35, 0.6)  # of a letter
    slant = rng.uniform(0.0, 0.5)
    width = max(1, round(height * rng.uniform(0.03, 0.09)))
    room = int(2.0 * height)
    canvas = np.zeros((int(1.8 * height * len(lines)) + room, int(wide * max(map(len, lines))) + 3 * room), np.uint8)
    for number, line in enumerate(lines):
        x, foot = height, height * (1.5 + 1.8 * number)
        for count in (max(3, len(word)) for word in line.split(" ")):
            ups = np.where(rng.random(count) < 0.3, 1.0, 0.45) * rng.uniform(0.85, 1.15, count)
            downs = np.where(rng.random(count) < 0.15, 0.4, 0.0) + rng.uniform(-0.05, 0.05, count)
            heights = np.stack([ups, ups * rng.uniform(0.7, 1.0, count), -downs, np.zeros(count)], axis=1).ravel()
            across = np.arange(count)[:, None] + np.array([0.35, 0.1, 0.3, 0.8])  # back at the top: a loop
            across = across.ravel() + rng.normal(0.0, 0.06, 4 * count)
            points = np.stack([x + wide * across + slant * height * heights, foot - height * heights], axis=1)
            cv2.polylines(canvas, [np.rint(8.0 * _rounded(points)).astype(np.int32)], False, 255, width, cv2.LINE_AA, 3)
            x += wide * (count + 1)
    return canvas


def _rounded(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """A smooth line past points (N, 2): a uniform quadratic B-spline."""
    middles = (points[:-1] + points[1:]) / 2.0
    t = np.linspace(0.0, 1.0, 8)[:, None, None]
    start, turn, end = middles[:-1], points[1:-1], middles[1:]
    line: NDArray[np.float64] = (1.0 - t) ** 2 * start + 2.0 * t * (1.0 - t) * turn + t**2 * end
    return line.transpose(1, 0, 2).reshape(-1, 2)


def _framed(text: NDArray[np.uint8], height: float, rng: Generator) -> NDArray[np.uint8]:
    room = int(height * rng.uniform(0.3, 0.8)) + 4
    width = max(1, round(height * rng.uniform(0.04, 0.12)))
    canvas = np.pad(text, room)
    h, w = canvas.shape
    if rng.random() < 0.5:
        cv2.rectangle(canvas, (width, width), (w - width - 1, h - width - 1), 255, width, cv2.LINE_AA)
    else:
        cv2.ellipse(canvas, (w // 2, h // 2), (w // 2 - width, h // 2 - width), 0, 0, 360, 255, width, cv2.LINE_AA)
    return canvas


class Lettering:
    """Drawn lettering on the device, laid on crops. count maps of `side` x `side` pixels are drawn."""

    def __init__(self, count: int, side: int, seed: int, device: torch.device) -> None:
        rng = np.random.default_rng([13, seed])
        maps = np.stack([np.rint(lettering(side, rng) * 255.0).astype(np.uint8) for _ in range(count)])
        self.maps = torch.from_numpy(maps).to(device)

    def laid(self, x: Tensor, share: float, dice: Dice) -> tuple[Tensor, Tensor]:
        """Photos (N, 3, H, W) in [0, 1] with lettering on a share of them, and its opacity (N, 1, H, W): two in three
        white or nearly, the others dark, each in one tint and strength. H and W up to the maps' side."""
        rng, (n, _, h, w) = dice.host, x.shape
        side = self.maps.shape[1]
        chosen = dice.placed(rng.integers(len(self.maps), size=n))
        top, left = int(rng.integers(side - h + 1)), int(rng.integers(side - w + 1))
        opacity = self.maps[chosen, None, top : top + h, left : left + w].float() / 255.0
        level = np.where(rng.random(n) < 0.67, rng.uniform(0.65, 1.0, n), rng.uniform(0.0, 0.25, n))
        tint = tints(level, 0.02, dice)
        opacity = opacity * dice.figures(n, 0.5, 1.0) * dice.some(n, share)
        return torch.lerp(x, tint.expand_as(x), opacity), opacity


@lru_cache(maxsize=4)
def lettering_of(device: torch.device, count: int, side: int, seed: int) -> Lettering:
    """Lettering drawn once for all stages of a run."""
    return Lettering(count, side, seed, device)
