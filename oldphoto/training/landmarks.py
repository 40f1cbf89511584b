"""Train the five-point landmark model of the compact set: dlib's regression trees on openly licensed photos.

Few of them have hand-placed points, all of frontal faces with a closed mouth. So each is shown many times: mirrored,
tilted, turned to the side as if it had depth, with the mouth drawn about, lit from the side, blurred, noisy, packed.
Then the model places the points on the other training faces itself, those count on which it agrees with itself seen
in a mirror, and it learns again from both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import dlib
import numpy as np
import numpy.typing as npt

from oldphoto.errors import FileAccessError
from oldphoto.faces import Landmarks, Pixels, Points, detect_faces, mirror, search

# Each drawn picture: its side, and the distance between the eyes before it varies, in pixels.
PICTURE_SIDE = 288
GRID = 6
EYE_DISTANCE = 68.0
# The detector's box about a frontal face: its side in eye distances, and where its middle lies on the way from the eyes
# to the mouth. Measured on the training pictures; used where the detector does not find a drawn face.
BOX_SIDE = 2.28
BOX_DOWN = 0.49


@dataclass(frozen=True)
class LandmarkRecipe:
    """How the model is made. The trees' figures set the file's size: about 1 kB a tree."""

    variants: int = 14  # drawn pictures for each photo with hand-placed points
    rounds: int = 2  # how often the model labels the other photos and learns anew
    own_variants: int = 3  # drawn pictures for each photo that the model labelled
    agreement: float = 0.05  # between a photo's points and its mirror image's, in eye distances, for its label to count
    boxes: int = 2  # detector boxes for each drawn picture, jittered
    starts: int = 4  # initial shapes for each box
    cascades: int = 10
    trees: int = 150  # for each cascade
    depth: int = 4
    learning_rate: float = 0.1
    features: int = 400  # pixels compared in each cascade
    splits: int = 20  # tried for each node
    padding: float = 0.1  # how far beyond the shape pixels are looked at, in shape sizes
    lambda_: float = 0.1  # how near to one another the compared pixels are
    checks: int = 20  # drawn pictures for each held-out photo
    seed: int = 20


@dataclass(frozen=True)
class Portrait:
    """One photo with five points: picture (H, W) uint8 grey, the channels' mean; points (5, 2) as in faces.Face."""

    name: str
    picture: Pixels
    points: Points


@dataclass(frozen=True)
class LandmarkError:
    """Distances from the true points over the distance between the eyes.

    mean, p90: of the faces' mean distances. failures: share of faces above 0.1. found: by the detector, of total.
    points: mean for each of the five.
    """

    mean: float
    p90: float
    failures: float
    found: int
    total: int
    points: tuple[float, ...]


def five_of_189(points: Points) -> Points:
    """(189, 2) points of a webmorph delineation -> (5, 2) as faces.Face has them.

    The nose tip has no point of its own: 54 and 60 lie beside it, 55 below at the base of the nose.
    """
    tip = 0.8 * (points[54] + points[60]) / 2.0 + 0.2 * points[55]
    return np.array([points[0], points[1], tip, points[87], points[93]], np.float64)


def read_grey(path: Path) -> Pixels:
    """A picture as (H, W) uint8, the mean of its channels, as dlib's landmark models see it. Raises FileAccessError."""
    try:
        picture = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    except (OSError, cv2.error) as error:
        raise FileAccessError(f"{path} cannot be read: {error}") from error
    if picture is None:
        raise FileAccessError(f"{path} is not a picture")
    grey: Pixels = np.rint(picture.mean(axis=2)).astype(np.uint8)
    return grey


def read_portraits(data_dir: Path, part: str) -> list[Portrait]:
    """The photos with hand-placed points of one part: "train" or "heldout"."""
    try:
        all_points = json.loads((data_dir / "landmarks189.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise FileAccessError(f"{data_dir} has no readable landmarks189.json: {error}") from error
    names = sorted(name for name in all_points if name.startswith(f"faces/{part}/"))
    return [
        Portrait(name, read_grey(data_dir / name), five_of_189(np.array(all_points[name], np.float64)))
        for name in names
    ]


def turned(points: Points, yaw: float, pitch: float) -> Points:
    """Where points (N, 2), in eye distances from the eyes' middle, go when the head turns by yaw and pitch (radians).

    The head is half an ellipsoid with a nose on it; crude, but it moves nose and mouth against the eyes as heads do.
    """
    across, down = points[:, 0], points[:, 1]
    depth = 1.3 * np.sqrt(np.clip(1.0 - (across / 1.3) ** 2 - ((down - 0.45) / 1.9) ** 2, 0.0, None))
    nose_width = np.where(down > 0.62, 0.12, 0.35)  # long above the tip, short below
    depth = depth + 0.35 * np.exp(-((across / 0.22) ** 2) - ((down - 0.62) / nose_width) ** 2)
    depth -= 1.25  # the eyes stay where they are
    return np.stack([across * np.cos(yaw) + depth * np.sin(yaw), down * np.cos(pitch) + depth * np.sin(pitch)], axis=1)


def draw_variant(portrait: Portrait, random: np.random.Generator) -> tuple[Pixels, Points]:
    """The portrait seen anew: (PICTURE_SIDE, PICTURE_SIDE) uint8 and its (5, 2) points."""
    picture, points = portrait.picture, portrait.points
    if random.random() < 0.5:
        picture = np.ascontiguousarray(picture[:, ::-1])
        points = mirror(points, picture.shape[1])

    # Photo pixels -> the face's own frame: eye distances, upright, from the middle of the eyes.
    middle, across = (points[0] + points[1]) / 2.0, points[1] - points[0]
    eye_distance = float(np.hypot(*across))
    upright = np.array([[across[0], across[1]], [-across[1], across[0]]]) / eye_distance**2
    own = (points - middle) @ upright.T

    yaw = float(np.clip(random.normal(0.0, 0.3), -0.6, 0.6))
    pitch = float(np.clip(random.normal(0.0, 0.15), -0.3, 0.3))
    mouth_pull = random.normal(0.0, 0.05, (2, 2)) + random.normal(0.0, 0.06) * np.array([[-1.0, -0.4], [1.0, -0.4]])
    stretch = random.normal(1.0, 0.06, 2)

    def moved(where: Points) -> Points:
        pulled = where.copy()
        for corner, pull in zip(own[3:], mouth_pull, strict=True):
            pulled += pull * np.exp(-((where - corner) ** 2).sum(axis=1, keepdims=True) / 0.12)
        return turned(pulled, yaw, pitch) * stretch

    tilt = float(random.uniform(-np.radians(35), np.radians(35)) if random.random() < 0.3 else random.normal(0, 0.18))
    scale = EYE_DISTANCE * float(np.exp(random.normal(0.0, 0.1)))
    spin = scale * np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    centre = np.array([PICTURE_SIDE / 2.0, PICTURE_SIDE / 2.0]) + random.normal(0.0, 6.0, 2)
    centre -= spin @ np.array([0.0, 0.5])
    new_points = moved(own) @ spin.T + centre

    # Backwards for the pixels: undo the affine part, then the movement by fixed-point steps. It is smooth: every
    # GRID-th pixel is enough.
    ticks = np.arange(0.0, PICTURE_SIDE + 1.0, GRID)
    columns, rows = np.meshgrid(ticks, ticks)
    target = (np.stack([columns.ravel(), rows.ravel()], axis=1) - centre) @ np.linalg.inv(spin).T
    source = target.copy()
    for _ in range(6):
        source = target - (moved(source) - source)
    coarse = (source @ np.linalg.inv(upright).T + middle).reshape(len(ticks), len(ticks), 2).astype(np.float32)
    between = (np.arange(PICTURE_SIDE, dtype=np.float32) / GRID).astype(np.float32)
    maps = cv2.split(cv2.remap(coarse, *np.meshgrid(between, between), cv2.INTER_LINEAR))
    if eye_distance > 1.5 * EYE_DISTANCE:
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), 0.4 * eye_distance / EYE_DISTANCE), np.uint8)
    fill = float(random.uniform(0.0, 255.0))
    drawn = cv2.remap(picture, maps[0], maps[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=fill)
    return damage(np.asarray(drawn, np.uint8), random), new_points


def damage(picture: Pixels, random: np.random.Generator) -> Pixels:
    """A grey (H, W) uint8 picture lit, blurred, shrunk, scratched, made noisy, compressed at random, or left alone."""
    if random.random() < 0.3:
        return picture
    height, width = picture.shape
    levels: npt.NDArray[Any] = picture.astype(np.float32) / 255.0
    if random.random() < 0.6:  # lit from one side
        angle, strength = random.uniform(0.0, 2.0 * np.pi), random.uniform(0.2, 1.2)
        columns, rows = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
        ramp = np.cos(angle) * columns + np.sin(angle) * rows
        levels = levels * (1.0 / (1.0 + np.exp(4.0 * strength * ramp)) * 1.6).astype(np.float32)
    levels = np.clip(levels, 0.0, 1.0) ** float(np.exp(random.normal(0.0, 0.4)))
    levels = random.uniform(0.4, 1.1) * levels + random.uniform(-0.1, 0.3)
    if random.random() < 0.4:
        levels = cv2.GaussianBlur(levels, (0, 0), float(random.uniform(0.5, 3.0)))
    if random.random() < 0.3:  # something lies across the face
        for _ in range(int(random.integers(1, 4))):
            ends = random.integers(0, width, 4).tolist()
            shade, thickness = float(random.uniform(0.0, 1.0)), int(random.integers(1, 7))
            cv2.line(levels, (ends[0], ends[1]), (ends[2], ends[3]), shade, thickness)
    shrink = float(random.uniform(1.0, 5.0)) if random.random() < 0.5 else 1.0
    small = (max(16, round(width / shrink)), max(16, round(height / shrink)))
    levels = cv2.resize(levels, small, interpolation=cv2.INTER_AREA)
    levels = levels + random.normal(0.0, random.uniform(0.0, 0.06), levels.shape).astype(np.float32)
    damaged: Pixels = (np.clip(levels, 0.0, 1.0) * 255.0).astype(np.uint8)
    if random.random() < 0.4:
        _, packed = cv2.imencode(".jpg", damaged, [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(25, 90))])
        damaged = np.asarray(cv2.imdecode(packed, cv2.IMREAD_GRAYSCALE), np.uint8)
    return np.asarray(cv2.resize(damaged, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def box_for(picture: Pixels, points: Points) -> tuple[float, float, float]:
    """(middle x, middle y, side) of the square the detector gives for this face, or would usually give."""
    eyes, mouth = (points[0] + points[1]) / 2.0, (points[3] + points[4]) / 2.0
    height = float(np.hypot(*(mouth - eyes)))
    size = max(float(np.hypot(*(points[1] - points[0]))), height / 1.12)  # a head turned away keeps its height
    usual = eyes + BOX_DOWN * (mouth - eyes)
    for detection in search(picture, -0.2, np.eye(3)):
        left, top, right, bottom = detection.box
        middle = np.array([left + right, top + bottom]) / 2.0
        if np.hypot(*(middle - usual)) < 0.6 * size:
            return float(middle[0]), float(middle[1]), (right - left + bottom - top) / 2.0
    return float(usual[0]), float(usual[1]), BOX_SIDE * size


def label_portraits(data_dir: Path, landmarks: Landmarks, known: Collection[str], agreement: float) -> list[Portrait]:
    """The training faces not known, with the model's own points: the mean of the photo's and its mirror image's.

    Left out: photos without exactly one face, and those where the two differ by more than `agreement` eye distances.
    """
    labelled = []
    for path in sorted((data_dir / "faces" / "train").iterdir()):
        name = f"faces/train/{path.name}"
        if name in known:
            continue
        picture = read_grey(path)
        views = [picture, np.ascontiguousarray(picture[:, ::-1])]
        seen = [search(view, 0.2, np.eye(3)) for view in views]
        if [len(detections) for detections in seen] != [1, 1]:
            continue
        plain, mirrored = (
            landmarks.find(as_rgb(view), detections[0]) for view, detections in zip(views, seen, strict=True)
        )
        mirrored = mirror(mirrored, picture.shape[1])
        differ = np.hypot(*(plain - mirrored).T).mean() / np.hypot(*(plain[1] - plain[0]))
        if differ < agreement:
            labelled.append(Portrait(name, picture, (plain + mirrored) / 2.0))
    return labelled


def as_rgb(grey: Pixels) -> Pixels:
    """(H, W) -> (H, W, 3)."""
    return np.repeat(grey[..., None], 3, axis=2)


def samples(
    portraits: Iterable[Portrait], variants: int, boxes: int, random: np.random.Generator
) -> tuple[list[Pixels], list[list[dlib.full_object_detection]]]:
    """Drawn pictures and, for each, the points in each of its jittered boxes, as dlib's trainer takes them."""
    pictures, shapes = [], []
    for portrait in portraits:
        for _ in range(variants):
            picture, points = draw_variant(portrait, random)
            middle_x, middle_y, side = box_for(picture, points)
            parts = [dlib.point(round(float(x)), round(float(y))) for x, y in points]
            jittered = []
            for _ in range(boxes):
                half = side / 2.0 * float(np.exp(random.normal(0.0, 0.05)))
                x, y = middle_x + random.normal(0.0, 0.04) * side, middle_y + random.normal(0.0, 0.04) * side
                edges = [x - half, y - half, x + half, y + half]
                jittered.append(dlib.full_object_detection(dlib.rectangle(*(round(float(e)) for e in edges)), parts))
            pictures.append(picture)
            shapes.append(jittered)
    return pictures, shapes


def fit(sets: Sequence[tuple[Sequence[Portrait], int]], recipe: LandmarkRecipe, out_path: Path) -> Landmarks:
    """Train one model on sets of portraits, each with its number of variants, and write it to out_path."""
    random = np.random.default_rng(recipe.seed)
    pictures: list[Pixels] = []
    shapes: list[list[dlib.full_object_detection]] = []
    for portraits, variants in sets:
        more_pictures, more_shapes = samples(portraits, variants, recipe.boxes, random)
        pictures += more_pictures
        shapes += more_shapes
    options = dlib.shape_predictor_training_options()
    options.cascade_depth = recipe.cascades
    options.num_trees_per_cascade_level = recipe.trees
    options.tree_depth = recipe.depth
    options.nu = recipe.learning_rate
    options.oversampling_amount = recipe.starts
    options.feature_pool_size = recipe.features
    options.num_test_splits = recipe.splits
    options.feature_pool_region_padding = recipe.padding
    options.lambda_param = recipe.lambda_
    options.random_seed = str(recipe.seed)
    options.num_threads = 1
    model = dlib.train_shape_predictor(pictures, shapes, options)
    out_path.parent.mkdir(parents=True, exist_ok=True)
    model.save(str(out_path))
    return Landmarks(out_path)


def measure(landmarks: Landmarks, pictures: Sequence[tuple[Pixels, Points]]) -> LandmarkError:
    """The error of a model on (H, W, 3) uint8 pictures with five true points each, in the boxes the detector gives."""
    errors = []
    for pixels, truth in pictures:
        eye_distance = float(np.hypot(*(truth[1] - truth[0])))
        candidates = [landmarks.find(pixels, detection) for detection in detect_faces(pixels)]
        distances = [np.hypot(*(points - truth).T) / eye_distance for points in candidates]
        # Another face in the picture is not an error of this one.
        near = [distance for distance in distances if distance.mean() < 1.0]
        if near:
            errors.append(min(near, key=lambda distance: float(distance.mean())))
    if not errors:
        return LandmarkError(float("nan"), float("nan"), float("nan"), 0, len(pictures), ())
    table: npt.NDArray[np.float64] = np.array(errors)
    faces = table.mean(axis=1)
    return LandmarkError(
        mean=float(faces.mean()),
        p90=float(np.quantile(faces, 0.9)),
        failures=float((faces > 0.1).mean()),
        found=len(faces),
        total=len(pictures),
        points=tuple(float(value) for value in table.mean(axis=0)),
    )


def train_landmarks(
    data_dir: Path,
    out_path: Path,
    recipe: LandmarkRecipe | None = None,
    *,
    tell: Callable[[str], None] | None = None,
) -> LandmarkError:
    """Train the five-point model, write it to out_path, and return its error on drawn pictures of held-out people.

    data_dir: holds landmarks189.json and faces/. tell: called with one line per round. One thread and fixed seeds: the
    same data give the same file.
    """
    recipe = recipe or LandmarkRecipe()
    tell = tell or (lambda _line: None)
    people = read_portraits(data_dir, "train")
    random = np.random.default_rng(recipe.seed + 1)
    heldout = [
        draw_variant(person, random) for person in read_portraits(data_dir, "heldout") for _ in range(recipe.checks)
    ]
    pictures = [(as_rgb(grey), points) for grey, points in heldout]

    sets: list[tuple[Sequence[Portrait], int]] = [(people, recipe.variants)]
    for number in range(recipe.rounds + 1):
        landmarks = fit(sets, recipe, out_path)
        error = measure(landmarks, pictures)
        count = sum(len(portraits) for portraits, _ in sets)
        tell(
            f"round {number}: {count} portraits; held out: mean {error.mean:.4f}, "
            f"90 % below {error.p90:.4f}, {error.failures:.1%} above 0.1"
        )
        if number < recipe.rounds:
            known = {person.name for person in people}
            labelled = label_portraits(data_dir, landmarks, known, recipe.agreement)
            sets = [(people, recipe.variants), (labelled, recipe.own_variants)]
    return error
