"""Load the detectors that tell faces from other things: dlib's detector of frontal faces, or its network."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dlib
import numpy as np

from oldphoto.errors import WeightsCorruptError
from oldphoto.stages.faces.face import FoundFace
from oldphoto.stages.faces.geometry import Matrix, Pixels

if TYPE_CHECKING:
    from oldphoto.models.face_finder import FaceFinder

# dlib's detectors look through a window of 80 pixels at ever smaller copies of a picture. A whole photo they see with
# no more than so many pixels: 0.3 s for the frontal detector, 6 s and 0.7 GB for the network on a processor. Small and
# leaning faces they see where the face finder proposes one, enlarged and upright.
SEARCH_PIXELS, CNN_SEARCH_PIXELS = 3_500_000, 1_000_000
# From this score on the frontal detector is right.
SURE_SCORE = 0.3
CNN_SURE_SCORE = 0.0  # the network's scores begin here and end near 1.1

# The network's box about a frontal face, beside the frontal detector's: its side, and how far up and left it lies, both
# in the latter's sides. Measured on 41 training faces.
CNN_SIDE, CNN_UP, CNN_LEFT = 0.92, 0.06, 0.04


_threads = threading.local()

Search = Callable[[Pixels, float, Matrix], list[FoundFace]]


@dataclass(frozen=True)
class Detector:
    """A detector that tells faces from other things.

    search: of a grey (H, W) uint8 picture, with the least score and the matrix picture -> photo, as `search` does it.
    pixels: of the copy of a whole photo that it sees, at most. sure_score: from which it is right; below, it looks
    again. patience: so many proposals of the face finder in a row that are no face end the search, which bounds the
    time for a photo without people, and gives a photo of many the time that it needs. finder: the network that proposes
    places; None takes that of the package.
    """

    search: Search
    pixels: int
    sure_score: float
    patience: int
    finder: FaceFinder | None = None


def search(picture: Pixels, least_score: float, frame: Matrix) -> list[FoundFace]:
    """The detector's boxes in one picture, (H, W, 3) or grey (H, W) uint8, from least_score on, surest first;
    frame: picture -> photo, passed on."""
    # dlib's detector keeps scratch memory inside: two threads in one object crash.
    if not hasattr(_threads, "detector"):
        _threads.detector = dlib.get_frontal_face_detector()
    boxes, scores, _ = _threads.detector.run(picture, 0, least_score)
    found = [
        FoundFace((float(box.left()), float(box.top()), float(box.right()), float(box.bottom())), float(score), frame)
        for box, score in zip(boxes, scores, strict=True)
    ]
    return sorted(found, key=lambda face: -face.score)


def frontal_detector(finder: FaceFinder | None = None) -> Detector:
    """dlib's detector of frontal faces. finder: see Detector."""
    return Detector(search, SEARCH_PIXELS, SURE_SCORE, patience=24, finder=finder)


def cnn_detector(path: Path, finder: FaceFinder | None = None) -> Detector:
    """dlib's convolutional detector, from its file. Its scores are 0 to about 1.1.

    On a processor it takes seconds for each photo, and a quarter second for each small face: so it looks at few
    proposals. finder: see Detector. Raises WeightsCorruptError.
    """

    def load() -> Any:
        try:
            return dlib.cnn_face_detection_model_v1(str(path))
        except RuntimeError as error:
            raise WeightsCorruptError(f"{path} is not dlib's face detector: {error}") from error

    models = threading.local()  # as with the frontal detector
    models.net = load()

    def find(picture: Pixels, least_score: float, frame: Matrix) -> list[FoundFace]:
        if not hasattr(models, "net"):
            models.net = load()
        found = []
        for seen in models.net(np.repeat(picture[..., None], 3, axis=2), 0):
            rect, score = seen.rect, float(seen.confidence)
            side = (rect.right() - rect.left()) / CNN_SIDE
            x = (rect.left() + rect.right()) / 2.0 + CNN_LEFT * side
            y = (rect.top() + rect.bottom()) / 2.0 + CNN_UP * side
            if score >= least_score:
                found.append(FoundFace((x - side / 2.0, y - side / 2.0, x + side / 2.0, y + side / 2.0), score, frame))
        return sorted(found, key=lambda face: -face.score)

    return Detector(find, CNN_SEARCH_PIXELS, CNN_SURE_SCORE, patience=8, finder=finder)
