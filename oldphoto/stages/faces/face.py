"""A face of a photo, as a detector finds it and as it is cut out and enhanced.

Geometry is in (x, y) pixels with (0, 0) the centre of the first pixel. Matrices are (3, 3) float64 and say which way
they map.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from oldphoto.stages.faces.geometry import Box, Matrix, Pixels, Points, transform

if TYPE_CHECKING:
    pass

if TYPE_CHECKING:
    from oldphoto.stages.changes import ChangeUse

Levels = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Face:
    """One face of one photo.

    box: (left, top, right, bottom) in photo pixels, around the detector's square. score: the detector's own, of the
    frontal one about 0 (unsure) to 3, of the network 0 to 1.1. landmarks: (5, 2) float64 in photo pixels: eyes, nose
    tip, mouth corners, picture-left first. matrix: crop pixels -> photo pixels. before: (S, S, 3) uint8 RGB, the crop,
    black outside the photo.
    after: (S, S, 3) float32 RGB in [0, 255], enhanced; None for a face left as it is.
    number: from 1, the one that `oldphoto faces` lists.
    kept: how much `after` has of the generator's changes; None for a face left as it is.
    """

    box: Box
    score: float
    landmarks: Points
    matrix: Matrix
    before: Pixels
    after: Levels | None = None
    number: int = 1
    kept: ChangeUse | None = None


@dataclass(frozen=True)
class FoundFace:
    """A detector's box (left, top, right, bottom) in a frame where the face is upright; frame: frame -> photo."""

    box: Box
    score: float
    frame: Matrix

    @cached_property
    def corners(self) -> Points:
        """(4, 2), clockwise from the face's own top left, in photo pixels."""
        left, top, right, bottom = self.box
        return transform(self.frame, np.array([[left, top], [right, top], [right, bottom], [left, bottom]]))

    @property
    def bounds(self) -> Box:
        """(left, top, right, bottom) in photo pixels, upright around the square."""
        low, high = self.corners.min(axis=0), self.corners.max(axis=0)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])

    @cached_property
    def middle(self) -> tuple[float, float]:
        """The middle (x, y) of the square, in photo pixels."""
        left, top, right, bottom = self.box
        x, y = self.frame[:2] @ [(left + right) / 2.0, (top + bottom) / 2.0, 1.0]
        return float(x), float(y)

    @cached_property
    def side(self) -> float:
        """The side of the square, in photo pixels."""
        left, top, right, bottom = self.box
        return max(right - left, bottom - top) * float(np.sqrt(abs(np.linalg.det(self.frame[:2, :2]))))

    @property
    def turn(self) -> float:
        """Degrees by which the face leans clockwise in the photo, -180 to 180."""
        return float(np.degrees(np.arctan2(self.frame[1, 0], self.frame[0, 0])))
