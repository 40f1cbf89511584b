"""Propose where faces may be: the face finder's proposals for a whole photo, tiny faces too, in a fraction of a second.

Of the faces of a photo it misses few; of its proposals many are none. What is one is for `faces` to say.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from oldphoto.models.face_finder import FaceFinder

NET = "face_finder"
# A photo is looked at in copies, each half as wide as the one before; the first has at most so many pixels, and shows
# faces of 20 to 40.
LARGEST_COPY = 12_500_000
SMALLEST_COPY = 24  # pixels on the shorter side
# Halving a copy takes detail away, and halving it again takes more. The first loss over the second is 0.43 and up in
# the photos of old/train, and mostly below 0.39 once they are enlarged to four times their width. Such a copy is left
# out where it has more than so many pixels: letters and leaves, enlarged, look like faces of 20 to 40 in it. Smaller
# ones are always seen, since blurred faces are faces too.
LEAST_DETAIL, LARGE_COPY = 0.39, 3_500_000
STRIP = 512  # rows that go through the network at once: what fits a processor's cache
LEAST_PROBABILITY = 0.05
MOST_PLACES = 500  # that are told apart


@dataclass(frozen=True)
class Proposal:
    """A square (middle x, middle y, side) in pixels that may be a face's, its lean in degrees clockwise, and how likely
    it is, 0 to 1."""

    x: float
    y: float
    side: float
    lean: float
    probability: float


def propose(picture: NDArray[np.uint8], net: FaceFinder | None = None) -> list[Proposal]:
    """Places of faces in a grey (H, W) uint8 picture that lean by no more than 60 degrees, likeliest first, one for
    each face. Nothing below LEAST_PROBABILITY.

    net: None takes the package's own. Raises WeightsCorruptError where its file is not what it was,
    WeightsUnavailableError where it is missing.
    """
    net = net or _of_package()
    height, width = picture.shape
    copy = picture
    if picture.size > LARGEST_COPY:
        times = float(np.sqrt(LARGEST_COPY / picture.size))
        copy = _reduced(picture, (max(1, round(width * times)), max(1, round(height * times))))
    if copy.size > LARGE_COPY:
        half = _half(copy)
        if _lost(copy, half) < LEAST_DETAIL * _lost(half, _half(half)):
            copy = half
    found = []
    while min(copy.shape) >= SMALLEST_COPY:
        across, down = width / copy.shape[1], height / copy.shape[0]
        found.append(_places(copy, net) * [across, down, across, 1.0, 1.0])
        copy = _half(copy)
    if not found:
        return []
    return [Proposal(*(float(value) for value in row)) for row in _apart(np.concatenate(found))]


def _reduced(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def _half(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return _reduced(picture, (max(1, picture.shape[1] // 2), max(1, picture.shape[0] // 2)))


def _lost(picture: NDArray[np.uint8], half: NDArray[np.uint8]) -> float:
    """The detail of a picture that its half does not show, root mean square."""
    again = cv2.resize(half, (picture.shape[1], picture.shape[0]), interpolation=cv2.INTER_LINEAR)
    return float(cv2.norm(picture, again, cv2.NORM_L2)) / math.sqrt(picture.size)


def _places(copy: NDArray[np.uint8], net: FaceFinder) -> NDArray[np.float64]:
    """(N, 5): x, y, side, lean, probability of the places in one copy that are likelier than their neighbours."""
    from oldphoto.models.face_finder import STRIDE, USUAL_SIDE

    answers = _answers(copy, net)
    logits = answers[0]
    likely = logits > np.log(LEAST_PROBABILITY / (1.0 - LEAST_PROBABILITY))
    likely &= logits >= cv2.dilate(logits, np.ones((3, 3), np.uint8))
    rows, columns = np.nonzero(likely)
    logit, right, down, size, lean = answers[:, rows, columns].astype(np.float64)
    places = [(columns + right) * STRIDE, (rows + down) * STRIDE, USUAL_SIDE * 2.0**size, 90.0 * lean]
    return np.stack([*places, 1.0 / (1.0 + np.exp(-logit))], axis=1)


def _answers(copy: NDArray[np.uint8], net: FaceFinder) -> NDArray[np.float32]:
    """(5, h, w) float32, the network's answers for a grey picture, strip by strip."""
    import torch

    from oldphoto.models.blocks import in_bands
    from oldphoto.models.face_finder import STRIDE

    high, wide = (-(-side // STRIDE) for side in copy.shape)  # cells
    spare = [(0, cells * STRIDE - side) for cells, side in zip((high, wide), copy.shape, strict=True)]
    padded = np.pad(copy, spare, mode="edge")

    def answered(rows: slice) -> torch.Tensor:
        levels = torch.from_numpy(padded[STRIDE * rows.start : STRIDE * rows.stop]).float().div_(127.5).sub_(1.0)
        answers: torch.Tensor = net(levels[None, None].contiguous(memory_format=torch.channels_last))
        return answers

    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        answers = in_bands(high, STRIP // STRIDE, net.reach // STRIDE, answered)
    return np.ascontiguousarray(answers[0].numpy())


def _apart(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keep of (N, 5) places those that lie on no likelier one of much the same size, likeliest first, at most
    MOST_PLACES."""
    places = places[np.argsort(-places[:, 4], kind="stable")][:MOST_PLACES]
    x, y, side = places[:, :3].T
    larger, smaller = np.maximum.outer(side, side), np.minimum.outer(side, side)
    away = np.hypot(np.subtract.outer(x, x), np.subtract.outer(y, y))
    one = (away < 0.5 * larger) & (larger < 2.0 * smaller)
    kept = np.zeros(len(places), bool)
    for number, same in enumerate(one):
        kept[number] = not (same & kept).any()
    return places[kept]


def load_finder(path: Path) -> FaceFinder:
    """The network of a file, on the processor: it is small."""
    import torch

    from oldphoto.models.loading import load_compact, placed

    return cast("FaceFinder", placed(load_compact(path), torch.device("cpu")))


_loading = threading.Lock()


@cache
def _load() -> FaceFinder:
    from oldphoto import weights

    file = next(file for file in weights.read_lock() if (file.set, file.net) == ("compact", NET))
    return load_finder(weights.obtain(file))


def _of_package() -> FaceFinder:
    """The network that comes with the package, for those who look for faces without the models of a set."""
    with _loading:
        return _load()
