"""Find the faces of a photo, cut each out upright and aligned, and enhance the crops.

Geometry is in (x, y) pixels with (0, 0) the centre of the first pixel. Matrices are (3, 3) float64 and say which way
they map. Source of the alignment: Wan et al., TPAMI 2022 (five points, a fixed template, a least-squares similarity).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import cv2
import dlib
import numpy as np
import numpy.typing as npt

from oldphoto.errors import WeightsCorruptError

if TYPE_CHECKING:
    from torch import nn

Pixels = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]
Points = npt.NDArray[np.float64]
Box = tuple[float, float, float, float]

# Where the five points lie in a crop of 512 x 512 before it is spread by CLOSENESS about (256, 256): eyes, nose tip,
# mouth corners, picture-left first.
TEMPLATE_512 = np.array([[196.0, 226.0], [316.0, 226.0], [256.0, 286.0], [220.0, 360.4], [292.0, 360.4]])
CLOSENESS = 1.3

# dlib's frontal detector looks through a window of 80 pixels at ever smaller copies of a picture. To see smaller faces
# the photo is enlarged, to bound the cost it is reduced: to so many pixels, which take 0.6 s. A photo of 12 megapixels
# is searched for faces from 105 pixels on, one of 0.8 from 27.
SEARCH_PIXELS = 7_000_000
MOST_ENLARGED = 3.0
LEAST_ENLARGED = 1.3  # less is not worth a second search
# Each copy that is turned, for faces that lean and for photos that lie on their side or stand on their head.
TURNED_PIXELS = 1_000_000
LEANING = (-30, 30)
LYING = (90, -90, 180)

# From this score on the detector is right. Below it a face is looked at again in LOOKS, (side of its box in pixels,
# degrees of lean, mirrored), as which a face is still one, and cloth or leaves are not; only so many of the best, which
# bounds the cost.
SURE_SCORE = 0.3
DOUBTFUL_SCORE = -0.25
MEAN_SCORE = -0.1  # of the detector's score and the looks' mean
MOST_DOUBTFUL = 6
LOOKS = ((84, 0, True), (112, 12, False), (112, -12, True), (128, 0, True))

# The detector's square about a face: its side in eye distances, where its middle lies on the way from the eyes to the
# mouth, and how long that way is. Measured on upright faces.
SQUARE_SIZE = 2.28
SQUARE_DOWN = 0.49
FACE_HEIGHT = 1.12

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

_threads = threading.local()


@dataclass(frozen=True)
class Face:
    """One face of one photo.

    box: (left, top, right, bottom) in photo pixels, around the detector's square. score: the detector's, about 0
    (unsure) to 3. landmarks: (5, 2) float64 in photo pixels: eyes, nose tip, mouth corners, picture-left first.
    matrix: crop pixels -> photo pixels. before: (S, S, 3) uint8 RGB, the crop, black outside the photo.
    after: (S, S, 3) float32 RGB in [0, 255], enhanced; None for a face left as it is.
    number: from 1, the one that `oldphoto faces` lists.
    """

    box: Box
    score: float
    landmarks: Points
    matrix: Matrix
    before: Pixels
    after: npt.NDArray[np.float32] | None = None
    number: int = 1


@dataclass(frozen=True)
class Detection:
    """A detector's box (left, top, right, bottom) in a frame where the face is upright; frame: frame -> photo."""

    box: Box
    score: float
    frame: Matrix

    @property
    def corners(self) -> Points:
        """(4, 2), clockwise from the face's own top left, in photo pixels."""
        left, top, right, bottom = self.box
        return transform(self.frame, np.array([[left, top], [right, top], [right, bottom], [left, bottom]]))

    @property
    def bounds(self) -> Box:
        """(left, top, right, bottom) in photo pixels, upright around the square."""
        low, high = self.corners.min(axis=0), self.corners.max(axis=0)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])

    @property
    def side(self) -> float:
        """Of the square, in photo pixels."""
        left, top, right, bottom = self.box
        return max(right - left, bottom - top) * float(np.sqrt(abs(np.linalg.det(self.frame[:2, :2]))))

    @property
    def turn(self) -> float:
        """Degrees by which the face leans clockwise in the photo, -180 to 180."""
        return float(np.degrees(np.arctan2(self.frame[1, 0], self.frame[0, 0])))


class Landmarks:
    """Says where eyes, nose tip and mouth corners are.

    path: the compact set's network (.safetensors), or a dlib shape predictor of 68 points in the iBUG order.
    Raises WeightsCorruptError where the file is neither.
    """

    def __init__(self, path: Path) -> None:
        self._find = _Network(path).find if path.suffix == ".safetensors" else _Predictor(path).find

    def find(self, pixels: Pixels, detection: Detection) -> Points:
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

    def find(self, pixels: Pixels, detection: Detection) -> Points:
        """As Landmarks.find."""
        points = self._look(pixels, detection)
        # Seen upright a second time, where the detector took a leaning face for an upright one.
        lean = _lean(points, detection.frame)
        if abs(lean) > LANDMARK_LEAN:
            left, top, right, bottom = detection.box
            turn = _turn(lean, np.array([left + right, top + bottom]) / 2.0)
            points = self._look(pixels, replace(detection, frame=detection.frame @ turn))
        return points

    def _look(self, pixels: Pixels, detection: Detection) -> Points:
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
        from oldphoto.loading import load_compact
        from oldphoto.models.landmarks import LandmarkNet

        net = load_compact(path)
        if not isinstance(net, LandmarkNet):
            raise WeightsCorruptError(f"{path} is not a landmark model but a {type(net).__name__}")
        self._net = net

    def find(self, pixels: Pixels, detection: Detection) -> Points:
        """As Landmarks.find: seen in the detector's square, then upright and in the square that the points ask for."""
        points = self._look(pixels, detection)
        for _ in range(LANDMARK_LOOKS - 1):
            frame = detection.frame @ _turn(_lean(points, detection.frame), np.zeros(2))
            (x, y), side = square_of(transform(np.asarray(np.linalg.inv(frame), np.float64), points))
            half = max(side, 1.0) / 2.0
            points = self._look(pixels, Detection((x - half, y - half, x + half, y + half), detection.score, frame))
        return points

    def _look(self, pixels: Pixels, detection: Detection) -> Points:
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


def _lean(points: Points, frame: Matrix) -> float:
    """Radians by which the line of the eyes leans clockwise in a frame (frame -> photo)."""
    across = (points[1] - points[0]) @ frame[:2, :2]
    return float(np.arctan2(across[1], across[0]))


def _turn(radians: float, middle: Points) -> Matrix:
    """Turns clockwise about a point."""
    turn = np.array(
        [[np.cos(radians), -np.sin(radians), 0.0], [np.sin(radians), np.cos(radians), 0.0], [0.0, 0.0, 1.0]]
    )
    turn[:2, 2] = middle - turn[:2, :2] @ middle
    return turn


def square_of(points: Points) -> tuple[Points, float]:
    """(5, 2) points of an upright face -> middle and side of the square the detector would usually give."""
    eyes, mouth = points[:2].mean(axis=0), points[3:].mean(axis=0)
    # A head turned away keeps its height.
    size = max(float(np.hypot(*(points[1] - points[0]))), float(np.hypot(*(mouth - eyes))) / FACE_HEIGHT)
    return eyes + SQUARE_DOWN * (mouth - eyes), SQUARE_SIZE * size


def mirror(points: Points, width: int) -> Points:
    """(5, 2) landmarks in a picture of that width -> the landmarks in its mirror image."""
    mirrored: Points = points[[1, 0, 2, 4, 3]] * [-1.0, 1.0] + [width - 1.0, 0.0]
    return mirrored


def five_of_68(points: Points) -> Points:
    """(68, 2) points in the iBUG order -> (5, 2): the middles of the eyes' corners, nose tip, mouth corners."""
    eyes = [(points[36] + points[39]) / 2.0, (points[42] + points[45]) / 2.0]
    return np.array([*eyes, points[30], points[48], points[54]], np.float64)


def transform(matrix: Matrix, points: Points) -> Points:
    """(N, 2) points through an affine matrix -> (N, 2)."""
    return points @ matrix[:2, :2].T + matrix[:2, 2]


def similarity(source: Points, target: Points) -> Matrix:
    """The turn, scale and shift that take source (N, 2) nearest to target (N, 2), least squares, without mirroring.

    Source: Umeyama, PAMI 1991. Raises ValueError where all source points are one.
    """
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    from_mean, to_mean = source - source_mean, target - target_mean
    variance = float((from_mean**2).sum())
    if variance <= 0.0:
        raise ValueError("the points coincide: no similarity is defined")
    left, sizes, right = np.linalg.svd(to_mean.T @ from_mean)
    mirror = np.array([1.0, np.sign(np.linalg.det(left) * np.linalg.det(right)) or 1.0])
    matrix = np.eye(3)
    matrix[:2, :2] = (left * mirror) @ right * float((sizes * mirror).sum()) / variance
    matrix[:2, 2] = target_mean - matrix[:2, :2] @ source_mean
    return matrix


def crop_matrix(landmarks: Points, size: int) -> Matrix:
    """(5, 2) landmarks in photo pixels -> matrix from the pixels of a crop of size x size to the photo's."""
    template = (TEMPLATE_512 / 256.0 - 1.0) * CLOSENESS
    return similarity((template + 1.0) / 2.0 * size, landmarks)


def bounds(matrix: Matrix, size: int, width: int, height: int, margin: int) -> tuple[int, int, int, int]:
    """Whole photo pixels (left, top, right, bottom; right and bottom excluded) that a crop covers, margin wider, inside
    a photo of width x height. Empty (left >= right or top >= bottom) where it lies outside."""
    last = size - 1.0
    corners = transform(matrix, np.array([[0.0, 0.0], [last, 0.0], [0.0, last], [last, last]]))
    left, top = np.floor(corners.min(axis=0)).astype(int) - margin
    right, bottom = np.ceil(corners.max(axis=0)).astype(int) + 1 + margin
    return max(0, int(left)), max(0, int(top)), min(width, int(right)), min(height, int(bottom))


def shrink_for(matrix: Matrix) -> int:
    """Blocks of how many pixels' side are averaged before a matrix samples a picture, so that nothing aliases."""
    return max(1, int(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))) + 0.25))


def cut_out(pixels: Pixels, matrix: Matrix, size: int) -> Pixels:
    """Crop of size x size, bilinear, black outside the photo; a large face is averaged down first.

    pixels: (H, W, 3) uint8; matrix: crop -> photo. Returns (size, size, 3) uint8. Only the face's region is touched.
    """
    height, width = pixels.shape[:2]
    shrink = shrink_for(matrix)
    left, top, right, bottom = bounds(matrix, size, width, height, margin=2 * shrink)
    if left >= right or top >= bottom:
        return np.zeros((size, size, 3), np.uint8)
    region = pixels[top:bottom, left:right]
    shift = np.eye(3)
    shift[:2, 2] = -left, -top
    to_region = shift @ matrix
    if shrink > 1:
        # Whole blocks of shrink x shrink pixels; what is left over at the far edge is repeated, not stretched.
        spare_down, spare_right = -region.shape[0] % shrink, -region.shape[1] % shrink
        region = np.pad(region, ((0, spare_down), (0, spare_right), (0, 0)), mode="edge")
        smaller = (region.shape[1] // shrink, region.shape[0] // shrink)
        region = np.asarray(cv2.resize(region, smaller, interpolation=cv2.INTER_AREA), np.uint8)
        reduce = np.diag([1.0 / shrink, 1.0 / shrink, 1.0])
        reduce[:2, 2] = 0.5 / shrink - 0.5
        to_region = reduce @ to_region
    # One black pixel around the region stands for everything outside: bilinear weights fall to it.
    framed = np.pad(region, ((1, 1), (1, 1), (0, 0))).astype(np.float32)
    columns, rows = np.meshgrid(np.arange(size, dtype=np.float64), np.arange(size, dtype=np.float64))
    x = to_region[0, 0] * columns + to_region[0, 1] * rows + to_region[0, 2] + 1.0
    y = to_region[1, 0] * columns + to_region[1, 1] * rows + to_region[1, 2] + 1.0
    x = np.clip(x, 0.0, framed.shape[1] - 1.001)
    y = np.clip(y, 0.0, framed.shape[0] - 1.001)
    x0, y0 = x.astype(np.intp), y.astype(np.intp)
    right_share = (x - x0).astype(np.float32)[..., None]
    down_share = (y - y0).astype(np.float32)[..., None]
    upper = framed[y0, x0] * (1.0 - right_share) + framed[y0, x0 + 1] * right_share
    lower = framed[y0 + 1, x0] * (1.0 - right_share) + framed[y0 + 1, x0 + 1] * right_share
    crop: Pixels = np.rint(upper * (1.0 - down_share) + lower * down_share).astype(np.uint8)
    return crop


def eight_bits(pixels: Pixels | npt.NDArray[np.uint16]) -> Pixels:
    """A picture of 8 or 16 bits a sample with 8."""
    if pixels.dtype == np.uint8:
        return cast("Pixels", pixels)
    return np.rint(pixels / 257.0).astype(np.uint8)


def detect_faces(pixels: Pixels | npt.NDArray[np.uint16]) -> list[Detection]:
    """Faces of a photo, largest first. pixels: (H, W, 3) uint8 or uint16 RGB.

    The order numbers the faces from 1. By size, since a portrait's sitter is then number 1, and leaving small faces
    out changes nobody else's number; of two of one size the upper, then the left one comes first.

    Upright and leaning by up to 45 degrees; where there is none, in the photo laid on each side and on its head.
    """
    grey = np.ascontiguousarray(cv2.cvtColor(eight_bits(pixels), cv2.COLOR_RGB2GRAY), np.uint8)
    found = _standing(grey, np.eye(3))
    if not found:
        small, frame = _resized(grey, np.eye(3), TURNED_PIXELS)
        tries = {degrees: checked_search(*_turned(small, degrees, frame)) for degrees in LYING}
        best = max(tries, key=lambda degrees: sum(detection.score for detection in tries[degrees]))
        if tries[best]:
            found = _standing(*_turned(grey, best, np.eye(3))) or tries[best]
    return _ordered(found)


def _standing(picture: Pixels, frame: Matrix) -> list[Detection]:
    """The faces of a grey (H, W) uint8 picture that stand upright or lean; frame: picture -> photo."""
    found: list[Detection] = []
    times = np.sqrt(SEARCH_PIXELS / picture.size)
    if times >= 1.0:
        found = checked_search(picture, frame)
    if times < 1.0 or times >= LEAST_ENLARGED:
        found = _merged(found, checked_search(*_resized(picture, frame, SEARCH_PIXELS)))
    small, small_frame = _resized(picture, frame, TURNED_PIXELS)
    leaning = [face for degrees in LEANING for face in checked_search(*_turned(small, degrees, small_frame))]
    # The detector scores an upright face high in turned copies too: only a doubtful one gives way to a leaning one.
    sure = [face for face in found if face.score >= SURE_SCORE]
    unsure = [face for face in found if face.score < SURE_SCORE]
    return _merged(sure, sorted(unsure + leaning, key=lambda face: -face.score))


def _merged(kept: Sequence[Detection], more: Sequence[Detection]) -> list[Detection]:
    """One detection for each face: `kept`, and of `more` in its order what overlaps nothing taken before."""
    faces = list(kept)
    for detection in more:
        if not any(_overlap(detection, face) for face in faces):
            faces.append(detection)
    return faces


def _overlap(one: Detection, other: Detection) -> bool:
    return _distance(one, other) < 0.5 * max(one.side, other.side)


def checked_search(picture: Pixels, frame: Matrix) -> list[Detection]:
    """The detector's boxes in a grey picture, surest first, without those that are no face on a second look."""
    found = search(picture, DOUBTFUL_SCORE, frame)
    doubtful = [face for face in found if face.score < SURE_SCORE][:MOST_DOUBTFUL]
    seen = [face for face in doubtful if (face.score + _second_look(picture, face)) / 2.0 >= MEAN_SCORE]
    return [face for face in found if face.score >= SURE_SCORE] + seen


def _second_look(picture: Pixels, face: Detection) -> float:
    """The detector's mean score at the place of a face it found in a grey picture, over LOOKS."""
    left, top, right, bottom = face.box
    scores = []
    for side, degrees, mirrored in LOOKS:
        half = 0.85 * side
        to_look = cv2.getRotationMatrix2D((0.0, 0.0), degrees, side / max(right - left, 1.0))
        to_look[:, 2] = half - to_look[:, :2] @ np.array([left + right, top + bottom]) / 2.0
        look = cv2.warpAffine(picture, to_look, (round(2 * half),) * 2, borderMode=cv2.BORDER_REPLICATE)
        view = np.ascontiguousarray(look[:, ::-1] if mirrored else look, np.uint8)
        again = Detection((half - side / 2.0, half - side / 2.0, half + side / 2.0, half + side / 2.0), 0.0, np.eye(3))
        here = [found.score for found in search(view, -1.0, np.eye(3)) if _overlap(found, again)]
        scores.append(max(here, default=-1.0))
    return float(np.mean(scores))


def _ordered(detections: Sequence[Detection]) -> list[Detection]:
    return sorted(detections, key=lambda d: (-round(d.side), round(d.bounds[1]), round(d.bounds[0])))


def joined(before: Sequence[Detection], after: Sequence[Detection]) -> list[Detection]:
    """The faces of the photo as it came and of its restored self in one list.

    Each keeps its place, and so its number, among those of the photo as it came: what `oldphoto faces` lists. Faces
    that show only once the damage is gone follow. Where both show a face, the box is the restored photo's.
    """
    left = list(after)
    found = []
    for detection in before:
        same = [other for other in left if _same_face(detection, other)]
        best = min(same, key=lambda other: _distance(detection, other), default=detection)
        left = [other for other in left if other is not best]
        found.append(best)
    return found + left


def _distance(one: Detection, other: Detection) -> float:
    return float(np.hypot(*(one.corners.mean(axis=0) - other.corners.mean(axis=0))))


def _same_face(one: Detection, other: Detection) -> bool:
    small, large = sorted((one.side, other.side))
    return _distance(one, other) < 0.5 * large and large < 2.0 * small


def search(picture: Pixels, least_score: float, frame: Matrix) -> list[Detection]:
    """The detector's boxes in one picture, (H, W, 3) or grey (H, W) uint8, from least_score on, surest first;
    frame: picture -> photo, passed on."""
    # dlib's detector keeps scratch memory inside: two threads in one object crash.
    if not hasattr(_threads, "detector"):
        _threads.detector = dlib.get_frontal_face_detector()
    boxes, scores, _ = _threads.detector.run(picture, 0, least_score)
    found = [
        Detection((float(box.left()), float(box.top()), float(box.right()), float(box.bottom())), float(score), frame)
        for box, score in zip(boxes, scores, strict=True)
    ]
    return sorted(found, key=lambda face: -face.score)


def _resized(picture: Pixels, frame: Matrix, count: int) -> tuple[Pixels, Matrix]:
    """A grey picture with about `count` pixels, at most MOST_ENLARGED times as wide, and its frame -> photo."""
    height, width = picture.shape
    times = min(MOST_ENLARGED, float(np.sqrt(count / (width * height))))
    size = (max(1, round(width * times)), max(1, round(height * times)))
    how = cv2.INTER_AREA if times < 1.0 else cv2.INTER_CUBIC
    copy = np.asarray(cv2.resize(picture, size, interpolation=how), np.uint8)
    back = np.diag([width / size[0], height / size[1], 1.0])
    back[:2, 2] = back[0, 0] / 2.0 - 0.5, back[1, 1] / 2.0 - 0.5
    return copy, frame @ back


def _turned(picture: Pixels, degrees: int, frame: Matrix) -> tuple[Pixels, Matrix]:
    """A grey picture turned about its middle, and its frame -> photo."""
    height, width = picture.shape
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    wide = round(abs(width * cosine) + abs(height * sine))
    high = round(abs(width * sine) + abs(height * cosine))
    turn = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    middle = np.array([(wide - 1) / 2.0, (high - 1) / 2.0])
    turn[:2, 2] = np.array([(width - 1) / 2.0, (height - 1) / 2.0]) - turn[:2, :2] @ middle
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    turned = cv2.warpAffine(picture, turn[:2], (wide, high), flags=flags, borderMode=cv2.BORDER_CONSTANT)
    return np.asarray(turned, np.uint8), frame @ turn


def find_faces(pixels: Pixels, landmarks: Landmarks, size: int) -> list[Face]:
    """All faces of a photo, largest first, each cut out at size x size pixels. pixels: (H, W, 3) uint8 RGB."""
    return cut_faces(pixels, detect_faces(pixels), landmarks, size)


def cut_faces(pixels: Pixels, detections: Sequence[Detection], landmarks: Landmarks, size: int) -> list[Face]:
    """A Face for each detection, in order and numbered from 1, cut out at size x size from (H, W, 3) uint8 RGB."""
    faces = []
    for number, detection in enumerate(detections, 1):
        points = landmarks.find(pixels, detection)
        matrix = crop_matrix(points, size)
        crop = cut_out(pixels, matrix, size)
        faces.append(Face(detection.bounds, detection.score, points, matrix, crop, number=number))
    return faces


def draw_faces(pixels: Pixels | npt.NDArray[np.uint16], detections: Sequence[Detection]) -> Pixels:
    """The photo (H, W, 3) of 8 or 16 bits with the detections' squares and numbers on it, (H, W, 3) uint8 RGB."""
    drawn = np.array(eight_bits(pixels), order="C")
    width = max(1, round(max(pixels.shape[:2]) / 500))
    for number, detection in enumerate(detections, 1):
        corners = np.rint(detection.corners).astype(np.int32)
        text, scale = str(number), max(0.4, detection.side / 130.0)
        (wide, high), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, width)
        left, top = (int(edge) for edge in detection.bounds[:2])
        # Above the box where there is room, else inside it.
        left, foot = (
            max(0, min(left, pixels.shape[1] - wide)),
            top - 3 * width if top > high + 4 * width else top + high,
        )
        for colour, thickness in (((0, 0, 0), 3 * width), ((255, 220, 0), width)):
            cv2.polylines(drawn, [corners], True, colour, thickness, cv2.LINE_AA)
            cv2.putText(drawn, text, (left, foot), cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thickness, cv2.LINE_AA)
    return drawn


def enhance_faces(
    faces: Sequence[Face], generator: nn.Module, device: str, batch: int, strength: float = 1.0
) -> list[Face]:
    """The same faces with `after` filled in; batch: how many go through the generator at once, which bounds the memory.

    generator: (N, 3, S, S) in [-1, 1] -> the same, on the given device and in eval mode. strength: `after` lies this
    share of the way from `before` to what the generator gives.
    """
    import torch

    from oldphoto.tensors import to_tensor

    if batch < 1:
        raise ValueError(f"batch is {batch}, not at least 1")
    precision = next((parameter.dtype for parameter in generator.parameters()), torch.float32)
    enhanced: list[Face] = []
    for start in range(0, len(faces), batch):
        some = faces[start : start + batch]
        crops = torch.cat([to_tensor(face.before) for face in some])  # (n, 3, S, S)
        with torch.inference_mode():
            better = generator(crops.to(device=device, dtype=precision)).float().cpu()
        levels = ((better + 1.0) * 127.5).clamp(0.0, 255.0).permute(0, 2, 3, 1).contiguous().numpy()  # (n, S, S, 3)
        for face, after in zip(some, levels, strict=True):
            before = face.before.astype(np.float32)
            enhanced.append(replace(face, after=before + np.float32(strength) * (after - before)))
    return enhanced
