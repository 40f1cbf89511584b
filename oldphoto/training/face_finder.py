"""Teach the face finder: pictures put together of tiles, faces among what is none, with their true squares.

Squares are those of dlib's detector, which later has to confirm what the network proposes: (middle x, middle y, side)
in pixels. Where the detector is unsure the picture counts neither way.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from oldphoto.errors import NoInputError
from oldphoto.files.colour import LUMA
from oldphoto.models.face_finder import STRIDE, USUAL_SIDE
from oldphoto.models.loading import Config
from oldphoto.stages.faces.detectors import search
from oldphoto.training import ageing
from oldphoto.training.ageing import Dice
from oldphoto.training.base import Folders, Recipe, Stage, fresh
from oldphoto.training.data import read_photos
from oldphoto.training.degrade import Generator, Image

TILE = 64
# Sides that the network has to find: those of an octave, and a little more, since the next copy of a photo is not
# exactly half as large. Between these and the next figures a face counts neither way; beyond, it is to be passed over.
LEAST_SIDE, MOST_SIDE = 18.0, 44.0
IGNORED_FROM, IGNORED_TO = 13.0, 62.0
SURE_SCORE, DOUBTFUL_SCORE = 0.1, -0.6
Square = tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """A photo (H, W, 3) uint8 with the faces that the detector is sure of, and squares that may be one."""

    pixels: NDArray[np.uint8]
    faces: tuple[Square, ...]
    doubtful: tuple[Square, ...]


def scenes(folder: Path, enlarged: int) -> list[Scene]:
    """The photos of a folder with what the detector finds in them, `enlarged` times as wide."""
    found = []
    for pixels in read_photos(folder, short_side=1200, least=TILE):
        grey = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.uint8)
        if enlarged > 1:
            size = (grey.shape[1] * enlarged, grey.shape[0] * enlarged)
            grey = np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_CUBIC), np.uint8)
        sure: list[Square] = []
        doubtful: list[Square] = []
        for detection in search(grey, DOUBTFUL_SCORE, np.eye(3)):
            left, top, right, bottom = (edge / enlarged for edge in detection.box)
            square = ((left + right) / 2.0, (top + bottom) / 2.0, right - left)
            (sure if detection.score >= SURE_SCORE else doubtful).append(square)
        found.append(Scene(pixels, tuple(sure), tuple(doubtful)))
    return found


class Tiles:
    """Draws pictures of tiles: of portraits, of the faces of old photos, and of photos without a face.

    portraits: one clean face each. others: any photos; old: real old photos, of which only the surroundings of faces
    are taken, since more people may stand where the detector sees none. Raises NoInputError without any face.
    """

    def __init__(self, portraits: list[Scene], others: list[Scene], old: list[Scene]) -> None:
        self.portraits = [(s, s.faces[0]) for s in portraits if s.faces]
        self.aged = [(s, face) for s in old for face in s.faces]
        self.others = others
        if not self.portraits or not others:
            raise NoInputError("there are no portraits to learn faces from, or no other photos")

    def draw(self, size: int, rng: Generator) -> dict[str, NDArray[np.float32]]:
        """picture (1, size, size) in [-1, 1]; truth (6, size/8, size/8): the network's channels, the first 1 for a
        face, 0 for none; and a weight, 0 where nothing counts."""
        finer = 2 if rng.random() < 0.4 else 1  # damaged at twice the size, as a scan that was reduced later
        canvas = np.zeros((size * finer, size * finer, 3), np.float32)
        squares: list[tuple[float, float, float, float]] = []
        unsure: list[Square] = []
        for y in range(0, size, TILE):
            for x in range(0, size, TILE):
                pixels, faces, doubtful = self._tile(finer, rng)
                canvas[y * finer : (y + TILE) * finer, x * finer : (x + TILE) * finer] = pixels
                squares += [(a + x, b + y, side, lean) for a, b, side, lean in faces]
                unsure += [(a + x, b + y, side) for a, b, side in doubtful]
        picture = _aged(canvas, rng)
        if finer > 1:
            picture = np.asarray(cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA), np.float32)
        if rng.random() < 0.3:
            picture = np.clip(picture + rng.normal(0.0, rng.uniform(0.0, 0.06), picture.shape), 0.0, 1.0)
        return {
            "picture": np.asarray(picture[None] * 2.0 - 1.0, np.float32),
            "truth": truth(size, squares, unsure),
        }

    def _tile(self, finer: int, rng: Generator) -> tuple[Image, list[tuple[float, float, float, float]], list[Square]]:
        """One tile, TILE * finer pixels wide, its faces (x, y, side, lean in degrees) and its doubtful squares, both in
        pixels of a tile TILE wide."""
        kind = rng.random()
        if kind < 0.42:
            return self._with_face(*self.portraits[int(rng.integers(len(self.portraits)))], finer, rng)
        if kind < 0.52 and self.aged:
            return self._with_face(*self.aged[int(rng.integers(len(self.aged)))], finer, rng)
        if kind < 0.62:  # a part of a large face
            scene, face = self.portraits[int(rng.integers(len(self.portraits)))]
            return self._with_face(scene, face, finer, rng, sides=(IGNORED_TO + 4.0, 250.0))
        scene = self.others[int(rng.integers(len(self.others)))]
        return self._background(scene, finer, rng)

    def _with_face(
        self,
        scene: Scene,
        face: Square,
        finer: int,
        rng: Generator,
        sides: tuple[float, float] = (LEAST_SIDE - 3.0, MOST_SIDE + 4.0),
    ) -> tuple[Image, list[tuple[float, float, float, float]], list[Square]]:
        side = float(np.exp(rng.uniform(*np.log(sides))))
        lean = float(rng.uniform(-60.0, 60.0) if rng.random() < 0.4 else rng.normal(0.0, 8.0))
        reach = 0.35 * side if side < IGNORED_TO else 0.0
        x, y = rng.uniform(min(reach, TILE / 2), max(TILE - reach, TILE / 2), 2)
        to_tile = _placing(face, (x, y, side), lean, mirrored=rng.random() < 0.5)
        pixels = _seen(scene.pixels, to_tile, finer)
        if rng.random() < 0.5:  # the head alone, before something else
            behind, _, _ = self._background(self.others[int(rng.integers(len(self.others)))], finer, rng)
            rows, columns = (np.mgrid[: TILE * finer, : TILE * finer].astype(np.float32)) / finer
            away = np.hypot((columns - x) / 0.75, rows - y + 0.05 * side) / side
            share = np.clip((float(rng.uniform(0.85, 1.1)) - away) / 0.1, 0.0, 1.0)[..., None].astype(np.float32)
            pixels = pixels * share + behind * (np.float32(1.0) - share)
        faces, doubtful = _moved(scene, to_tile, lean, side / face[2])
        return pixels, faces, doubtful

    def _background(
        self, scene: Scene, finer: int, rng: Generator
    ) -> tuple[Image, list[tuple[float, float, float, float]], list[Square]]:
        height, width = scene.pixels.shape[:2]
        scale = float(np.exp(rng.uniform(np.log(0.12), np.log(1.3))))
        turn = float(rng.choice((0.0, 90.0, 180.0, 270.0)) if rng.random() < 0.3 else rng.normal(0.0, 8.0))
        at = (rng.uniform(0.0, width), rng.uniform(0.0, height), 1.0)
        to_tile = _placing(at, (TILE / 2, TILE / 2, scale), turn, mirrored=rng.random() < 0.5)
        pixels = _seen(scene.pixels, to_tile, finer)
        faces, doubtful = _moved(scene, to_tile, turn, scale)
        # A face that lies or stands on its head is neither asked for nor to be passed over.
        lying = [face[:3] for face in faces if abs((face[3] + 180.0) % 360.0 - 180.0) > 60.0]
        return pixels, [face for face in faces if face[:3] not in lying], doubtful + lying


def _placing(source: Square, target: Square, degrees: float, *, mirrored: bool) -> NDArray[np.float64]:
    """The (2, 3) matrix that takes one square (middle x, middle y, side) onto another, turned clockwise."""
    scale, angle = target[2] / source[2], np.radians(degrees)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if mirrored:
        turn = turn @ np.diag([-1.0, 1.0])
    return np.column_stack([turn, np.array(target[:2]) - turn @ np.array(source[:2])])


def _seen(pixels: NDArray[np.uint8], to_tile: NDArray[np.float64], finer: int) -> Image:
    """The tile, in [0, 1], of a photo through a matrix; averaged down first where it shrinks a lot."""
    scale = float(np.sqrt(abs(np.linalg.det(to_tile[:, :2])))) * finer
    matrix = to_tile * finer
    shrink = max(1, int(1.0 / scale))
    if shrink > 1:
        size = (max(1, pixels.shape[1] // shrink), max(1, pixels.shape[0] // shrink))
        matrix = matrix @ np.diag([pixels.shape[1] / size[0], pixels.shape[0] / size[1], 1.0])
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    side = TILE * finer
    tile = cv2.warpAffine(pixels, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(tile, np.float32) / np.float32(255.0)


def _moved(
    scene: Scene, to_tile: NDArray[np.float64], lean: float, scale: float
) -> tuple[list[tuple[float, float, float, float]], list[Square]]:
    """A scene's faces and doubtful squares in a tile, as far as they touch it."""

    def moved(square: Square) -> Square:
        x, y = to_tile @ np.array([square[0], square[1], 1.0])
        return float(x), float(y), square[2] * scale

    def touches(square: Square) -> bool:
        return all(-square[2] / 2 < place < TILE + square[2] / 2 for place in square[:2])

    faces = [square for square in map(moved, scene.faces) if touches(square)]
    whole = [(*square, lean) for square in faces if 0.0 <= square[0] < TILE and 0.0 <= square[1] < TILE]
    cut = [square for square in faces if not (0.0 <= square[0] < TILE and 0.0 <= square[1] < TILE)]
    return whole, cut + [square for square in map(moved, scene.doubtful) if touches(square)]


def _aged(canvas: Image, rng: Generator) -> NDArray[np.float32]:
    """(H, W, 3) in [0, 1] -> (H, W), as one of many films and years would have made it grey."""
    # Early plates see blue and green alone, some films mostly red.
    weights = LUMA if rng.random() < 0.5 else rng.dirichlet((1.0, 1.5, 1.0))
    grey = canvas @ weights.astype(np.float32)
    if rng.random() < 0.7:
        grey = np.clip(grey, 0.0, 1.0) ** np.float32(np.exp(rng.normal(0.0, 0.35)))
        grey = np.float32(rng.uniform(0.35, 1.1)) * (grey - 0.5) + np.float32(rng.uniform(0.35, 0.65))
    picture = np.repeat(np.clip(grey, 0.0, 1.0)[..., None], 3, axis=2).astype(np.float32)
    if rng.random() < 0.5:
        picture = ageing.wider_mixture_of_one(picture, rng)
    return np.asarray(picture.mean(axis=2), np.float32)


def truth(size: int, faces: list[tuple[float, float, float, float]], doubtful: list[Square]) -> NDArray[np.float32]:
    """Return the truth that Tiles.draw gives: (6, size/8, size/8) float32 of faces (x, y, side, lean) and doubtful (x,
    y, side)."""
    cells = size // STRIDE
    target = np.zeros((6, cells, cells), np.float32)
    target[5] = 1.0
    rows, columns = np.mgrid[:cells, :cells] * float(STRIDE)
    for x, y, side in doubtful:
        if IGNORED_FROM / 1.5 < side < IGNORED_TO * 1.5:
            target[5][np.hypot(columns - x, rows - y) < max(0.6 * side, STRIDE)] = 0.0
    for x, y, side, _ in faces:
        if IGNORED_FROM < side < IGNORED_TO:
            target[5][np.hypot(columns - x, rows - y) < max(0.5 * side, STRIDE)] = 0.0
    for x, y, side, lean in faces:
        if LEAST_SIDE < side < MOST_SIDE:
            away = np.hypot(columns - x, rows - y)
            here = away < max(0.22 * side, float(away.min()) + 1e-6)
            target[0][here], target[5][here] = 1.0, 1.0
            target[1][here], target[2][here] = (x - columns[here]) / STRIDE, (y - rows[here]) / STRIDE
            target[3][here], target[4][here] = np.log2(side / USUAL_SIDE), lean / 90.0
    return target


class FinderStage(Stage):
    """The network that proposes where faces are."""

    def __init__(self, folders: Folders, recipe: Recipe, device: torch.device, config: Config) -> None:
        self.recipe, self.device = recipe, device
        # Small faces of the larger photos show to the detector once they are enlarged.
        self.tiles = Tiles(scenes(folders.faces, 1), scenes(folders.clean, 2), scenes(folders.old, 2))
        self.nets = {"face_finder": fresh(config)}
        self.judges = {}

    def sample(self, count: int, side: int, dice: Dice) -> dict[str, Tensor]:
        """Pictures of tiles and their truth."""
        drawn = [self.tiles.draw(side, dice.host) for _ in range(count)]
        return {k: dice.placed(np.stack([one[k] for one in drawn])) for k in drawn[0]}

    def loss(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Focal cross-entropy of the logit, so that the few hard places outweigh the many easy ones; L1 of the rest
        at faces."""
        answers, truth = self.nets["face_finder"](batch["picture"]), batch["truth"]
        face, weight = truth[:, 0], truth[:, 5]
        count = (face * weight).sum().clamp_min(1.0)
        entropy = F.binary_cross_entropy_with_logits(answers[:, 0], face, reduction="none")
        focus = torch.exp(-entropy.detach()).neg().add(1.0).square()
        away = (answers[:, 1:5] - truth[:, 1:5]).abs() * face[:, None]
        return {
            "face": (entropy * focus * weight).sum() / count,
            "place": 0.1 * away[:, :2].sum() / count,
            "size": 0.3 * away[:, 2].sum() / count,
            "lean": 0.3 * away[:, 3].sum() / count,
        }, {}

    @torch.no_grad()
    def validate(self, nets: dict[str, nn.Module]) -> dict[str, float]:
        """The share of the faces' cells that are likelier than all but one in 100, or in 1000, of those without."""
        net = nets["face_finder"]
        batch = self.fixed(24, self.recipe.size)
        picture, truth = batch["picture"], batch["truth"]
        logits = torch.cat([net(one)[:, 0] for one in torch.split(picture, 4)])
        inside = logits[(truth[:, 0] > 0) & (truth[:, 5] > 0)]
        outside = logits[(truth[:, 0] == 0) & (truth[:, 5] > 0)]
        return {
            f"recall_{wrong}": float((inside > torch.quantile(outside, 1.0 - 1.0 / wrong)).float().mean())
            for wrong in (100, 1000)
        }
