"""Find the faces of a photo, small beside large, leaning, and in photos that lie on their side; and show them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from oldphoto.files.colour import eight_bits
from oldphoto.stages.faces.detectors import Detector, Search, frontal_detector
from oldphoto.stages.faces.face import FoundFace
from oldphoto.stages.faces.geometry import Matrix, Pixels, cut_grey, reduced, turned_by
from oldphoto.stages.faces.proposals import propose

LEANING = (30.0, -30.0)
LYING = (90, -90, 180)
LYING_PIXELS = 350_000  # of the copies that are leant, and laid on each side, first
LYING_PATIENCE = 8
CLEARER = 0.5  # by how much the sum of its scores has to be higher for a photo to lie on its side
LOOK_SIDE = 100  # pixels of the side of a proposed square, seen by itself
LOOK_REACH = 0.8  # how far what is seen extends from its middle, in sides
LEAST_LEAN = 12.0  # degrees from which a square is turned upright to be seen

# A face of which the detector is not sure is looked at again in LOOKS, (side of its square in pixels, degrees of lean,
# mirrored), as which a face is still one, and cloth or leaves are not. Half the sum of the detector's score and the
# looks' mean, and how much likelier than not the face finder holds it, have to be 0 or more.
DOUBTFUL_SCORE = -0.5
UNASKED = 0.6  # stands in for the finder's probability where the detector came upon a face by itself
LOOKS = ((84, 0.0, True), (112, 12.0, False), (112, -12.0, True), (128, 0.0, True))


def detect_faces(pixels: Pixels | npt.NDArray[np.uint16], detector: Detector | None = None) -> list[FoundFace]:
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
        small, to_photo = reduced(grey, LYING_PIXELS)
        quick = replace(detector, patience=min(LYING_PATIENCE, detector.patience))
        tries = {degrees: _standing(turned_by(small, degrees)[0], quick) for degrees in LYING}
        best = max(tries, key=lambda degrees: _sum(tries[degrees]))
        if tries[best] and _sum(tries[best]) > _sum(found) + (CLEARER if found else -math.inf):
            turned, back = turned_by(grey, best)
            _, small_back = turned_by(small, best)
            found = _through(back, _standing(turned, detector)) or _through(to_photo @ small_back, tries[best])
    return _ordered(found)


def _sum(faces: Sequence[FoundFace]) -> float:
    return sum(face.score for face in faces)


def _standing(picture: Pixels, detector: Detector) -> list[FoundFace]:
    """The faces of a grey (H, W) uint8 picture that stand upright or lean, in its pixels, surest first."""
    copy, back = reduced(picture, detector.pixels)
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


def _leaning(picture: Pixels, detector: Detector) -> list[FoundFace]:
    """The faces that the detector sees in the whole of a grey picture once it is turned by each of LEANING."""
    height, width = picture.shape
    across = math.hypot(width, height)
    pixels = round(across * min(1.0, math.sqrt(LYING_PIXELS / picture.size)))
    found: list[FoundFace] = []
    for degrees in LEANING:
        whole = _square((width - 1) / 2.0, (height - 1) / 2.0, across, degrees)
        to_picture = _view(whole, across / pixels, pixels)
        seen = detector.search(cut_grey(picture, to_picture, pixels), DOUBTFUL_SCORE, to_picture)
        found += [face for face in seen if _is_face(picture, face, UNASKED, detector)]
    return found


def _is_face(picture: Pixels, face: FoundFace, probability: float, detector: Detector) -> bool:
    """Whether a detection of a grey picture is one to keep; probability: what the face finder holds of it."""
    if face.score >= detector.sure_score:
        return True
    return (face.score + _second_look(picture, face, detector.search)) / 2.0 + probability - 0.5 >= 0.0


def _merged(found: Sequence[FoundFace]) -> list[FoundFace]:
    """One detection for each face, the surest."""
    faces: list[FoundFace] = []
    for detection in sorted(found, key=lambda face: -face.score):
        if not any(_overlap(detection, face) for face in faces):
            faces.append(detection)
    return faces


def _overlap(one: FoundFace, other: FoundFace) -> bool:
    return _distance(one, other) < 0.5 * max(one.side, other.side)


def _square(x: float, y: float, side: float, degrees: float) -> FoundFace:
    """A square about a point of a picture that leans clockwise by so many degrees."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    half = side / 2.0
    return FoundFace(
        (-half, -half, half, half), 0.0, np.array([[cosine, -sine, x], [sine, cosine, y], [0.0, 0.0, 1.0]])
    )


def _looked_at(
    picture: Pixels,
    square: FoundFace,
    search: Search,
    pixels: int,
    least_score: float,
    degrees: float = 0.0,
    *,
    mirrored: bool = False,
) -> FoundFace | None:
    """The detector's surest box about a square of a grey picture that is seen upright, `pixels` wide, and turned or
    mirrored as the caller likes; in the picture's pixels. None where the detector sees no face there."""
    size = 2 * round(LOOK_REACH * pixels)
    scale = (square.box[2] - square.box[0]) / pixels
    to_picture = _view(square, scale, size, degrees, mirrored=mirrored)
    seen = search(cut_grey(picture, to_picture, size), least_score, to_picture)
    return next((face for face in seen if _same_face(face, square)), None)


def _view(square: FoundFace, scale: float, size: int, degrees: float = 0.0, *, mirrored: bool = False) -> Matrix:
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


def _second_look(picture: Pixels, face: FoundFace, search: Search) -> float:
    """The detector's mean score at the place of a doubtful face of a grey picture, over LOOKS."""
    seen = (
        _looked_at(picture, face, search, pixels, -1.0, degrees, mirrored=mirrored)
        for pixels, degrees, mirrored in LOOKS
    )
    return float(np.mean([-1.0 if again is None else again.score for again in seen]))


def _through(matrix: Matrix, faces: Sequence[FoundFace]) -> list[FoundFace]:
    """Detections in the pixels of one picture as those of another."""
    return [replace(face, frame=matrix @ face.frame) for face in faces]


def _ordered(detections: Sequence[FoundFace]) -> list[FoundFace]:
    return sorted(detections, key=lambda d: (-round(d.side), round(d.bounds[1]), round(d.bounds[0])))


def joined(before: Sequence[FoundFace], after: Sequence[FoundFace]) -> list[FoundFace]:
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


def _distance(one: FoundFace, other: FoundFace) -> float:
    return math.hypot(one.middle[0] - other.middle[0], one.middle[1] - other.middle[1])


def _same_face(one: FoundFace, other: FoundFace) -> bool:
    small, large = sorted((one.side, other.side))
    return _distance(one, other) < 0.5 * large and large < 2.0 * small


def draw_faces(pixels: Pixels | npt.NDArray[np.uint16], detections: Sequence[FoundFace]) -> Pixels:
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
