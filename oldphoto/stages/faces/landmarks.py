"""Find the eyes, the nose tip and the mouth corners of a face."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import dlib
import numpy as np

from oldphoto.errors import WeightsCorruptError
from oldphoto.stages.faces.face import FoundFace
from oldphoto.stages.faces.geometry import (
    Pixels,
    Points,
    cut_out,
    five_of_68,
    lean_of,
    mirror,
    square_of,
    transform,
    turn_about,
)

# A dlib predictor reads a copy of the face in which the detector's box has this side, so that it always sees the same
# scale, and so far beyond it.
PREDICTOR_BOX = 160
PREDICTOR_MARGIN = 0.6
# Our network sees a square of so many of the box's sides.
LANDMARK_REACH = 1.4
# A face that leans by more is seen again upright by a predictor; the network looks so many times.
LANDMARK_LEAN = np.radians(10.0)
LANDMARK_LOOKS = 2
# Answers are averaged over boxes moved a little, in their sides: dlib's are whole pixels, their mean is finer.
LANDMARK_SHIFTS = ((0.0, 0.0), (-0.04, 0.0), (0.04, 0.0), (0.0, -0.04), (0.0, 0.04))


class Landmarks:
    """Says where eyes, nose tip and mouth corners are.

    path: the compact set's network (.safetensors), or a dlib shape predictor of 68 points in the iBUG order.
    Raises WeightsCorruptError where the file is neither.
    """

    def __init__(self, path: Path) -> None:
        self._find = _Network(path).find if path.suffix == ".safetensors" else _Predictor(path).find

    def find(self, pixels: Pixels, detection: FoundFace) -> Points:
        """pixels: (H, W, 3) uint8 RGB -> (5, 2) float64 in photo pixels."""
        return self._find(pixels, detection)


class _Predictor:
    """dlib's regression trees."""

    def __init__(self, path: Path) -> None:
        try:
            self._predictor: Any = dlib.shape_predictor(str(path))
        except RuntimeError as error:
            raise WeightsCorruptError(f"{path} is not a landmark model: {error}") from error
        parts = self._predictor(np.zeros((8, 8), np.uint8), dlib.rectangle(0, 0, 7, 7)).num_parts
        if parts != 68:
            raise WeightsCorruptError(f"{path} gives {parts} landmarks, not 68")

    def find(self, pixels: Pixels, detection: FoundFace) -> Points:
        """Find the points as Landmarks.find does."""
        points = self._look(pixels, detection)
        # Seen upright a second time, where the detector took a leaning face for an upright one.
        lean = lean_of(points, detection.frame)
        if abs(lean) > LANDMARK_LEAN:
            left, top, right, bottom = detection.box
            turn = turn_about(lean, np.array([left + right, top + bottom]) / 2.0)
            points = self._look(pixels, replace(detection, frame=detection.frame @ turn))
        return points

    def _look(self, pixels: Pixels, detection: FoundFace) -> Points:
        left, top, right, bottom = detection.box
        side = max(right - left, bottom - top, 1.0)
        margin = PREDICTOR_MARGIN * side
        scale = side / PREDICTOR_BOX
        # The corner of the copy, and its scale, in the frame: copy -> frame -> photo.
        to_frame = np.array([[scale, 0.0, left - margin], [0.0, scale, top - margin], [0.0, 0.0, 1.0]])
        to_photo = detection.frame @ to_frame
        copy = cut_out(pixels, to_photo, round(PREDICTOR_BOX * (1.0 + 2.0 * PREDICTOR_MARGIN)))
        # Seen in a mirror too: twice the answers, and none that leans to one side.
        views = (copy, np.ascontiguousarray(copy[:, ::-1]))
        found = []
        for right_by, down_by in LANDMARK_SHIFTS:
            corner_x = PREDICTOR_BOX * (PREDICTOR_MARGIN + right_by)
            corner_y = PREDICTOR_BOX * (PREDICTOR_MARGIN + down_by)
            edges = (corner_x, corner_y, corner_x + PREDICTOR_BOX, corner_y + PREDICTOR_BOX)
            box = dlib.rectangle(*(round(edge) for edge in edges))
            plain, mirrored = (self._five(view, box) for view in views)
            found += [plain, mirror(mirrored, copy.shape[1])]
        return transform(to_photo, np.mean(found, axis=0))

    def _five(self, picture: Pixels, box: Any) -> Points:
        """(H, W, 3) uint8 and a dlib rectangle -> (5, 2) in its pixels."""
        parts = self._predictor(picture, box).parts()
        return five_of_68(np.array([(part.x, part.y) for part in parts], np.float64))


class _Network:
    """Our own network, on the CPU: it is small."""

    def __init__(self, path: Path) -> None:
        from oldphoto.models.landmarks import LandmarkNet
        from oldphoto.models.loading import load_compact

        net = load_compact(path)
        if not isinstance(net, LandmarkNet):
            raise WeightsCorruptError(f"{path} is not a landmark model but a {type(net).__name__}")
        self._net = net

    def find(self, pixels: Pixels, detection: FoundFace) -> Points:
        """Find the points as Landmarks.find does: seen in the detector's square, then upright and in the square that
        the points ask for."""
        points = self._look(pixels, detection)
        for _ in range(LANDMARK_LOOKS - 1):
            frame = detection.frame @ turn_about(lean_of(points, detection.frame), np.zeros(2))
            (x, y), side = square_of(transform(np.asarray(np.linalg.inv(frame), np.float64), points))
            half = max(side, 1.0) / 2.0
            points = self._look(pixels, FoundFace((x - half, y - half, x + half, y + half), detection.score, frame))
        return points

    def _look(self, pixels: Pixels, detection: FoundFace) -> Points:
        import torch

        size = self._net.config.size
        box = size / LANDMARK_REACH
        # Whole pixels, so that every moved box is a window of one copy.
        moves = np.rint(np.array(LANDMARK_SHIFTS) * box).astype(int)
        spare = int(moves.max())
        whole = size + 2 * spare
        left, top, right, bottom = detection.box
        scale = max(right - left, bottom - top, 1.0) / box
        to_frame = np.diag([scale, scale, 1.0])
        to_frame[:2, 2] = np.array([left + right, top + bottom]) / 2.0 - scale * (whole - 1) / 2.0
        to_photo = detection.frame @ to_frame
        grey = cut_out(pixels, to_photo, whole).mean(axis=2, dtype=np.float32) / np.float32(255.0)
        corners = moves + spare
        windows = [grey[y : y + size, x : x + size] for x, y in corners]
        # Seen in a mirror too, so that no answer leans to one side.
        crops = torch.from_numpy(np.stack([*windows, *(window[:, ::-1] for window in windows)]))
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            found = self._net(crops[:, None]).numpy().astype(np.float64)  # (2 x windows, 5, 2)
        plain, mirrored = np.split(found, 2)
        both = np.concatenate([plain, np.array([mirror(points, size) for points in mirrored])])
        return transform(to_photo, (both + np.tile(corners, (2, 1))[:, None]).mean(axis=0))
