"""Find the faces of a photo, cut each out upright and aligned, and enhance the crops.

Geometry is in (x, y) pixels with (0, 0) the centre of the first pixel. Matrices are (3, 3) float64 and say which way
they map. Source of the alignment: Wan et al., TPAMI 2022 (five points, a fixed template, a least-squares similarity).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import dlib
import numpy as np
import numpy.typing as npt

from oldphoto.errors import WeightsCorruptError
from oldphoto.files.colour import eight_bits
from oldphoto.stages.faces.proposals import propose

if TYPE_CHECKING:
    from torch import nn

    from oldphoto.models.face_finder import FaceFinder

Pixels = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]
Points = npt.NDArray[np.float64]
Box = tuple[float, float, float, float]
Levels = npt.NDArray[np.float32]


class Kept(NamedTuple):
    """What is used of a network's change.

    shares: 0..1, of small and large changes of light, of small and large ones of colour. raised: how much is added of
    the result's three finest bands of light, finest first; 0 leaves them as they are. specks: whether large changes
    that stand alone are used in full.
    """

    shares: tuple[float, float, float, float]
    raised: tuple[float, float, float] = (0.0, 0.0, 0.0)
    specks: bool = False


EVERYTHING = Kept((1.0, 1.0, 1.0, 1.0))
# A face before, and what the generator makes of it, in levels -> what to use of the latter, and how much that is.
Keep = Callable[[Pixels, Levels], tuple[Levels, Kept]]

# Where the five points lie in a crop of 512 x 512 before it is spread by CLOSENESS about (256, 256): eyes, nose tip,
# mouth corners, picture-left first.
TEMPLATE_512 = np.array([[196.0, 226.0], [316.0, 226.0], [256.0, 286.0], [220.0, 360.4], [292.0, 360.4]])
CLOSENESS = 1.3

# dlib's detectors look through a window of 80 pixels at ever smaller copies of a picture. A whole photo they see with
# no more than so many pixels: 0.3 s for the frontal detector, 6 s and 0.7 GB for the network on a processor. Small and
# leaning faces they see where the face finder proposes one, enlarged and upright.
SEARCH_PIXELS, CNN_SEARCH_PIXELS = 3_500_000, 1_000_000
LEANING = (30.0, -30.0)
LYING = (90, -90, 180)
LYING_PIXELS = 350_000  # of the copies that are leant, and laid on each side, first
LYING_PATIENCE = 8
CLEARER = 0.5  # by how much the sum of its scores has to be higher for a photo to lie on its side
LOOK_SIDE = 100  # pixels of the side of a proposed square, seen by itself
LOOK_REACH = 0.8  # how far what is seen extends from its middle, in sides
LEAST_LEAN = 12.0  # degrees from which a square is turned upright to be seen

# From this score on the frontal detector is right. Below it a face is looked at again in LOOKS, (side of its square in
# pixels, degrees of lean, mirrored), as which a face is still one, and cloth or leaves are not. Half the sum of the
# detector's score and the looks' mean, and how much likelier than not the face finder holds it, have to be 0 or more.
SURE_SCORE = 0.3
DOUBTFUL_SCORE = -0.5
UNASKED = 0.6  # stands in for the finder's probability where the detector came upon a face by itself
CNN_SURE_SCORE = 0.0  # the network's scores begin here and end near 1.1
LOOKS = ((84, 0.0, True), (112, 12.0, False), (112, -12.0, True), (128, 0.0, True))

# The network's box about a frontal face, beside the frontal detector's: its side, and how far up and left it lies, both
# in the latter's sides. Measured on 41 training faces.
CNN_SIDE, CNN_UP, CNN_LEFT = 0.92, 0.06, 0.04

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
    kept: Kept | None = None


@dataclass(frozen=True)
class Detection:
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
        """Of the square, in photo pixels."""
        left, top, right, bottom = self.box
        x, y = self.frame[:2] @ [(left + right) / 2.0, (top + bottom) / 2.0, 1.0]
        return float(x), float(y)

    @cached_property
    def side(self) -> float:
        """Of the square, in photo pixels."""
        left, top, right, bottom = self.box
        return max(right - left, bottom - top) * float(np.sqrt(abs(np.linalg.det(self.frame[:2, :2]))))

    @property
    def turn(self) -> float:
        """Degrees by which the face leans clockwise in the photo, -180 to 180."""
        return float(np.degrees(np.arctan2(self.frame[1, 0], self.frame[0, 0])))


Search = Callable[[Pixels, float, Matrix], list[Detection]]


@dataclass(frozen=True)
class Detector:
    """What says that something is a face.

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
        from oldphoto.models.landmarks import LandmarkNet
        from oldphoto.models.loading import load_compact

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


def detect_faces(pixels: Pixels | npt.NDArray[np.uint16], detector: Detector | None = None) -> list[Detection]:
    """Faces of a photo, largest first. pixels: (H, W, 3) uint8 or uint16 RGB. detector: by default dlib's frontal one.

    The order numbers the faces from 1. By size, since a portrait's sitter is then number 1, and leaving small faces
    out changes nobody else's number; of two of one size the upper, then the left one comes first.

    Upright and leaning by up to 45 degrees; where there is none to be sure of, in the photo laid on each side and on
    its head as well, and the way in which it shows clearer faces counts.
    """
    detector = detector or frontal_detector()
    grey = np.ascontiguousarray(cv2.cvtColor(eight_bits(pixels), cv2.COLOR_RGB2GRAY), np.uint8)
    found = _standing(grey, detector)
    if _sum(found) < CLEARER and grey.size <= detector.pixels:
        # The face finder misses some that lean; in a small photo there is time for the detector to look for them.
        found = _merged([*found, *_leaning(grey, detector)])
    if _sum(found) < CLEARER:
        small, to_photo = _reduced(grey, LYING_PIXELS)
        quick = replace(detector, patience=min(LYING_PATIENCE, detector.patience))
        tries = {degrees: _standing(_turned(small, degrees)[0], quick) for degrees in LYING}
        best = max(tries, key=lambda degrees: _sum(tries[degrees]))
        if tries[best] and _sum(tries[best]) > _sum(found) + (CLEARER if found else -math.inf):
            turned, back = _turned(grey, best)
            _, small_back = _turned(small, best)
            found = _through(back, _standing(turned, detector)) or _through(to_photo @ small_back, tries[best])
    return _ordered(found)


def _sum(faces: Sequence[Detection]) -> float:
    return sum(face.score for face in faces)


def _standing(picture: Pixels, detector: Detector) -> list[Detection]:
    """The faces of a grey (H, W) uint8 picture that stand upright or lean, in its pixels, surest first."""
    copy, back = _reduced(picture, detector.pixels)
    found = [face for face in detector.search(copy, DOUBTFUL_SCORE, back) if _is_face(picture, face, UNASKED, detector)]
    in_vain = 0
    for place in propose(picture, detector.finder):
        if in_vain == detector.patience:
            break
        square = _square(place.x, place.y, place.side, place.lean if abs(place.lean) >= LEAST_LEAN else 0.0)
        if any(_overlap(square, face) for face in found):
            continue
        face = _looked_at(picture, square, detector.search, LOOK_SIDE, DOUBTFUL_SCORE)
        in_vain = 0 if face is not None and _is_face(picture, face, place.probability, detector) else in_vain + 1
        if face is not None and in_vain == 0:
            found.append(face)
    return _merged(found)


def _leaning(picture: Pixels, detector: Detector) -> list[Detection]:
    """The faces that the detector sees in the whole of a grey picture once it is turned by each of LEANING."""
    height, width = picture.shape
    across = math.hypot(width, height)
    pixels = round(across * min(1.0, math.sqrt(LYING_PIXELS / picture.size)))
    found: list[Detection] = []
    for degrees in LEANING:
        whole = _square((width - 1) / 2.0, (height - 1) / 2.0, across, degrees)
        to_picture = _view(whole, across / pixels, pixels)
        seen = detector.search(_cut_grey(picture, to_picture, pixels), DOUBTFUL_SCORE, to_picture)
        found += [face for face in seen if _is_face(picture, face, UNASKED, detector)]
    return found


def _is_face(picture: Pixels, face: Detection, probability: float, detector: Detector) -> bool:
    """Whether a detection of a grey picture is one to keep; probability: what the face finder holds of it."""
    if face.score >= detector.sure_score:
        return True
    return (face.score + _second_look(picture, face, detector.search)) / 2.0 + probability - 0.5 >= 0.0


def _merged(found: Sequence[Detection]) -> list[Detection]:
    """One detection for each face, the surest."""
    faces: list[Detection] = []
    for detection in sorted(found, key=lambda face: -face.score):
        if not any(_overlap(detection, face) for face in faces):
            faces.append(detection)
    return faces


def _overlap(one: Detection, other: Detection) -> bool:
    return _distance(one, other) < 0.5 * max(one.side, other.side)


def _square(x: float, y: float, side: float, degrees: float) -> Detection:
    """A square about a point of a picture that leans clockwise by so many degrees."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    half = side / 2.0
    return Detection(
        (-half, -half, half, half), 0.0, np.array([[cosine, -sine, x], [sine, cosine, y], [0.0, 0.0, 1.0]])
    )


def _looked_at(
    picture: Pixels,
    square: Detection,
    search: Search,
    pixels: int,
    least_score: float,
    degrees: float = 0.0,
    *,
    mirrored: bool = False,
) -> Detection | None:
    """The detector's surest box about a square of a grey picture that is seen upright, `pixels` wide, and turned or
    mirrored as the caller likes; in the picture's pixels. None where the detector sees no face there."""
    size = 2 * round(LOOK_REACH * pixels)
    scale = (square.box[2] - square.box[0]) / pixels
    to_picture = _view(square, scale, size, degrees, mirrored=mirrored)
    seen = search(_cut_grey(picture, to_picture, size), least_score, to_picture)
    return next((face for face in seen if _same_face(face, square)), None)


def _view(square: Detection, scale: float, size: int, degrees: float = 0.0, *, mirrored: bool = False) -> Matrix:
    """The matrix from a view of size x size pixels about a square's middle, upright and then turned or mirrored, to the
    square's picture. scale: how many pixels of the square's frame one of the view's takes."""
    left, top, right, bottom = square.box
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    middle = (size - 1) / 2.0
    look = np.eye(3)  # what is seen -> the square's frame
    look[:2, :2] = scale * np.array([[cosine, -sine], [sine, cosine]]) @ np.diag([-1.0 if mirrored else 1.0, 1.0])
    look[:2, 2] = np.array([left + right, top + bottom]) / 2.0 - look[:2, :2] @ [middle, middle]
    view: Matrix = square.frame @ look
    return view


def _second_look(picture: Pixels, face: Detection, search: Search) -> float:
    """The detector's mean score at the place of a doubtful face of a grey picture, over LOOKS."""
    seen = (
        _looked_at(picture, face, search, pixels, -1.0, degrees, mirrored=mirrored)
        for pixels, degrees, mirrored in LOOKS
    )
    return float(np.mean([-1.0 if again is None else again.score for again in seen]))


def _through(matrix: Matrix, faces: Sequence[Detection]) -> list[Detection]:
    """Detections in the pixels of one picture as those of another."""
    return [replace(face, frame=matrix @ face.frame) for face in faces]


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
    return math.hypot(one.middle[0] - other.middle[0], one.middle[1] - other.middle[1])


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

    def find(picture: Pixels, least_score: float, frame: Matrix) -> list[Detection]:
        if not hasattr(models, "net"):
            models.net = load()
        found = []
        for seen in models.net(np.repeat(picture[..., None], 3, axis=2), 0):
            rect, score = seen.rect, float(seen.confidence)
            side = (rect.right() - rect.left()) / CNN_SIDE
            x = (rect.left() + rect.right()) / 2.0 + CNN_LEFT * side
            y = (rect.top() + rect.bottom()) / 2.0 + CNN_UP * side
            if score >= least_score:
                found.append(Detection((x - side / 2.0, y - side / 2.0, x + side / 2.0, y + side / 2.0), score, frame))
        return sorted(found, key=lambda face: -face.score)

    return Detector(find, CNN_SEARCH_PIXELS, CNN_SURE_SCORE, patience=8, finder=finder)


def _reduced(picture: Pixels, count: int) -> tuple[Pixels, Matrix]:
    """A grey picture with no more than about `count` pixels, and the matrix from its pixels to the picture's."""
    height, width = picture.shape
    times = float(np.sqrt(count / (width * height)))
    if times >= 1.0:
        return picture, np.eye(3)
    size = (max(1, round(width * times)), max(1, round(height * times)))
    copy = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
    back = np.diag([width / size[0], height / size[1], 1.0])
    back[:2, 2] = back[0, 0] / 2.0 - 0.5, back[1, 1] / 2.0 - 0.5
    return copy, back


def _turned(picture: Pixels, degrees: int) -> tuple[Pixels, Matrix]:
    """A grey picture turned by quarters, and the matrix from its pixels to the picture's."""
    height, width = picture.shape
    # The photo's right and down, and its first pixel, as the turned picture has them.
    back = {
        90: np.array([[0.0, -1.0, width - 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
        -90: np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, height - 1.0], [0.0, 0.0, 1.0]]),
        180: np.array([[-1.0, 0.0, width - 1.0], [0.0, -1.0, height - 1.0], [0.0, 0.0, 1.0]]),
    }[degrees]
    return np.array(np.rot90(picture, {90: 1, -90: -1, 180: 2}[degrees]), order="C"), back


def _cut_grey(picture: Pixels, matrix: Matrix, size: int) -> Pixels:
    """As cut_out of a grey (H, W) picture, but its edge repeated outside: black would be one to the detector."""
    shrink = shrink_for(matrix)
    left, top, right, bottom = bounds(matrix, size, picture.shape[1], picture.shape[0], margin=2 * shrink)
    if left >= right or top >= bottom:
        return np.zeros((size, size), np.uint8)
    region = picture[top:bottom, left:right]
    smaller = (max(1, region.shape[1] // shrink), max(1, region.shape[0] // shrink))
    reduce = np.diag([smaller[0] / region.shape[1], smaller[1] / region.shape[0], 1.0])
    reduce[:2, 2] = reduce[0, 0] / 2.0 - 0.5, reduce[1, 1] / 2.0 - 0.5
    reduce[:2, 2] -= reduce[:2, :2] @ [left, top]
    if shrink > 1:
        region = np.asarray(cv2.resize(region, smaller, interpolation=cv2.INTER_AREA), np.uint8)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    to_region = (reduce @ matrix)[:2]
    seen = cv2.warpAffine(region, to_region, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(seen, np.uint8)


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
    faces: Sequence[Face], generator: nn.Module, device: str, batch: int, keep: Keep | None = None
) -> list[Face]:
    """The same faces with `after` and `kept` filled in; batch: how many the generator is given at once.

    generator: (N, 3, S, S) in [-1, 1] -> the same, on the given device and in eval mode. keep: see Keep; None is all.
    """
    import torch

    from oldphoto.models.tensors import to_tensor

    if batch < 1:
        raise ValueError(f"batch is {batch}, not at least 1")
    precision = next((parameter.dtype for parameter in generator.parameters()), torch.float32)
    enhanced: list[Face] = []
    for start in range(0, len(faces), batch):
        some = faces[start : start + batch]
        crops = torch.cat([to_tensor(face.before) for face in some])  # (n, 3, S, S)
        with torch.inference_mode():
            made = generator(crops.to(device=device, dtype=precision)).float().cpu()
        levels = ((made + 1.0) * 127.5).clamp(0.0, 255.0).permute(0, 2, 3, 1).contiguous().numpy()  # (n, S, S, 3)
        for face, after in zip(some, levels, strict=True):
            better, kept = (after, EVERYTHING) if keep is None else keep(face.before, after)
            enhanced.append(replace(face, after=better, kept=kept))
    return enhanced
