"""Compute where a crop lies in its photo; cut out, turn and reduce pictures.

Source of the alignment: Wan et al., TPAMI 2022 (five points, a fixed template, a least-squares similarity).
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]
Points = npt.NDArray[np.float64]
Box = tuple[float, float, float, float]

# Where the five points lie in a crop of 512 x 512 before it is spread by CLOSENESS about (256, 256): eyes, nose tip,
# mouth corners, picture-left first.
TEMPLATE_512 = np.array([[196.0, 226.0], [316.0, 226.0], [256.0, 286.0], [220.0, 360.4], [292.0, 360.4]])
CLOSENESS = 1.3


# The detector's square about a face: its side in eye distances, where its middle lies on the way from the eyes to the
# mouth, and how long that way is. Measured on upright faces.
SQUARE_SIZE = 2.28
SQUARE_DOWN = 0.49
FACE_HEIGHT = 1.12


def lean_of(points: Points, frame: Matrix) -> float:
    """Radians by which the line of the eyes leans clockwise in a frame (frame -> photo)."""
    across = (points[1] - points[0]) @ frame[:2, :2]
    return float(np.arctan2(across[1], across[0]))


def turn_about(radians: float, middle: Points) -> Matrix:
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


def reduced(picture: Pixels, count: int) -> tuple[Pixels, Matrix]:
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


def turned_by(picture: Pixels, degrees: int) -> tuple[Pixels, Matrix]:
    """A grey picture turned by quarters, and the matrix from its pixels to the picture's."""
    height, width = picture.shape
    # The photo's right and down, and its first pixel, as the turned picture has them.
    back = {
        90: np.array([[0.0, -1.0, width - 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
        -90: np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, height - 1.0], [0.0, 0.0, 1.0]]),
        180: np.array([[-1.0, 0.0, width - 1.0], [0.0, -1.0, height - 1.0], [0.0, 0.0, 1.0]]),
    }[degrees]
    return np.array(np.rot90(picture, {90: 1, -90: -1, 180: 2}[degrees]), order="C"), back


def cut_grey(picture: Pixels, matrix: Matrix, size: int) -> Pixels:
    """Cut out of a grey (H, W) picture, its edge repeated outside: black would be an edge to the detector."""
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
