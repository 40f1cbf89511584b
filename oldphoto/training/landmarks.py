"""Teach the five-point landmark network: photos of faces, some with points placed by hand, seen anew.

Few have points, all of them frontal faces with a closed mouth. So each face is shown many times: mirrored, tilted,
turned to the side as if it had depth, with the mouth drawn about, lit from the side, blurred, noisy, scratched, packed.
On the many faces without points, the network has to find the same places in two such views of one photo: how each was
drawn is known, so that points are carried from one to the other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image as PillowImage
from torch import Tensor, nn

from oldphoto.errors import FileAccessError, NoInputError
from oldphoto.models.landmarks import CELL, LandmarkNet, LandmarkNetConfig, means
from oldphoto.stages.faces.detectors import search
from oldphoto.stages.faces.geometry import (
    FACE_HEIGHT,
    SQUARE_DOWN,
    SQUARE_SIZE,
    Pixels,
    Points,
    cut_out,
    square_of,
    transform,
)
from oldphoto.stages.faces.landmarks import LANDMARK_REACH
from oldphoto.training.ageing import Dice, coded
from oldphoto.training.base import Recipe, Stage
from oldphoto.training.data import image_files

# A portrait's picture: its side, and that of the detector's square in its middle, in pixels.
PICTURE_SIDE = 160
SQUARE_SIDE = 72
# A view is drawn from every so many pixels of the crop; in between it is smooth.
GRID = 3


@dataclass(frozen=True)
class Portrait:
    """One face: picture (PICTURE_SIDE, PICTURE_SIDE) uint8 grey, the channels' mean, black outside the photo; points
    (5, 2) in its pixels, as in faces.Face, or None where nobody placed them."""

    picture: Pixels
    points: Points | None


def five_of_189(points: Points) -> Points:
    """(189, 2) points of a webmorph delineation -> (5, 2) as faces.Face has them.

    The eyes are the middles of their corners, as in faces.five_of_68, not the pupils, which lie higher and wander. The
    nose tip has no point of its own: 54 and 60 lie beside it, 55 below at the base of the nose.
    """
    eyes = [(points[18] + points[22]) / 2.0, (points[23] + points[27]) / 2.0]
    tip = 0.8 * (points[54] + points[60]) / 2.0 + 0.2 * points[55]
    return np.array([*eyes, tip, points[87], points[93]], np.float64)


def placed_points(path: Path) -> dict[str, Points]:
    """File name of a photo -> its (5, 2) points, from a file of webmorph points by path. Raises FileAccessError."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileAccessError(f"{path} cannot be read: {error}", "it holds the hand-placed landmarks") from error
    return {Path(name).name: five_of_189(np.array(points, np.float64)) for name, points in table.items()}


def portraits(folder: Path, placed: Mapping[str, Points]) -> list[Portrait]:
    """The faces of a folder: those with points, and the surest face of each other photo that shows one."""
    found = []
    for file in image_files(folder):
        with PillowImage.open(file) as image:
            pixels = np.asarray(image.convert("RGB"))
        points = placed.get(file.name)
        if points is None:
            grey = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.uint8)
            faces = search(grey, 0.2, np.eye(3))
            if not faces:
                continue
            left, top, right, bottom = faces[0].box
            middle, side = np.array([left + right, top + bottom]) / 2.0, right - left
        else:
            middle, side = square_of(points)
        to_photo = np.diag([side / SQUARE_SIDE, side / SQUARE_SIDE, 1.0])
        to_photo[:2, 2] = middle - to_photo[0, 0] * (PICTURE_SIDE - 1) / 2.0
        picture = np.rint(cut_out(pixels, to_photo, PICTURE_SIDE).mean(axis=2)).astype(np.uint8)
        own = None if points is None else transform(np.asarray(np.linalg.inv(to_photo), np.float64), points)
        found.append(Portrait(picture, own))
    return found


# In the face's own frame, where the eyes' distance is 1 and their middle is 0: where the five points are taken to be
# while nobody knows them.
USUAL = np.array([[-0.5, 0.0], [0.5, 0.0], [0.0, 0.62], [-0.38, 1.12], [0.38, 1.12]])


def usual_points() -> Points:
    """(5, 2) where the points of a portrait mostly are."""
    middle, side = square_of(USUAL)
    points: Points = (USUAL - middle) * SQUARE_SIDE / side + (PICTURE_SIDE - 1) / 2.0
    return points


def draw_view(rng: np.random.Generator) -> NDArray[np.float32]:
    """The numbers that say how a face is seen anew: (19,) float32, in the order that Views takes them apart."""
    tilt = rng.uniform(-0.6, 0.6) if rng.random() < 0.3 else rng.normal(0.0, 0.18)
    # Points are moved one by one, lest the network learns where they are in a face instead of what they look like.
    pulls = rng.normal(0.0, 0.06, (5, 2))
    pulls[3:] += rng.normal(0.0, 0.07) * np.array([[-1.0, -0.4], [1.0, -0.4]])  # a smile, or the opposite
    numbers = [
        rng.random() < 0.5,
        np.clip(rng.normal(0.0, 0.35), -0.65, 0.65),
        np.clip(rng.normal(0.0, 0.18), -0.35, 0.35),
        tilt,
        *np.clip(pulls, -0.15, 0.15).ravel(),
        *np.exp(rng.normal(0.0, 0.08, 2)),
        np.exp(rng.normal(0.0, 0.15)),
        *rng.normal(0.0, 0.07, 2),
    ]
    return np.array(numbers, np.float32)


class Views:
    """N portraits seen anew, and the way from their pixels to those of the crops and back.

    numbers: (N, 19) of draw_view: mirrored; turned to the side and up or down, radians; tilted, radians; how far each
    of the five points is pulled, x and y in eye distances; stretched, x and y; enlarged; moved out of the middle, x and
    y in squares of the detector. points: (N, 5, 2) in the portraits' pixels, which say where the face is. size:
    side of the crops.
    """

    def __init__(self, numbers: Tensor, points: Tensor, size: int) -> None:
        self.size = size
        self.mirrored = numbers[:, 0] > 0.5
        self.yaw, self.pitch, tilt = numbers[:, 1], numbers[:, 2], numbers[:, 3]
        self.pulls, self.stretch = numbers[:, 4:14].view(-1, 5, 2), numbers[:, None, 14:16]
        points = self._mirrored(points)
        # Portrait -> the face's own frame: eye distances, upright, from the middle of the eyes.
        self.middle = points[:, :2].mean(dim=1, keepdim=True)
        across = points[:, 1] - points[:, 0]
        x, y = across.unbind(1)
        self.upright = torch.stack([x, y, -y, x], dim=1).view(-1, 2, 2) / across.square().sum(1)[:, None, None]
        self.own = (points - self.middle) @ self.upright.mT
        moved = self._moved(self.own)
        # The detector's square about the moved face comes to lie where faces.Landmarks shows it to the network.
        eyes, mouth = moved[:, :2].mean(dim=1), moved[:, 3:].mean(dim=1)
        wide = (moved[:, 1] - moved[:, 0]).norm(dim=1)
        side = SQUARE_SIZE * torch.maximum(wide, (mouth - eyes).norm(dim=1) / FACE_HEIGHT)
        self.own_middle = (eyes + SQUARE_DOWN * (mouth - eyes))[:, None]
        square = size / LANDMARK_REACH
        cosine, sine = torch.cos(tilt), torch.sin(tilt)
        turn = torch.stack([cosine, -sine, sine, cosine], dim=1).view(-1, 2, 2)
        self.spin = turn * (numbers[:, 16] * square / side)[:, None, None]
        self.crop_middle = (size - 1) / 2.0 + square * numbers[:, None, 17:19]

    def carried(self, points: Tensor) -> Tensor:
        """(N, 5, 2) landmarks in the portraits' pixels -> in the crops'."""
        own = (self._mirrored(points) - self.middle) @ self.upright.mT
        return (self._moved(own) - self.own_middle) @ self.spin.mT + self.crop_middle

    def returned(self, points: Tensor) -> Tensor:
        """(N, 5, 2) landmarks in the crops' pixels -> in the portraits'."""
        return self._mirrored(self._sources(points))

    def crops(self, pictures: Tensor) -> Tensor:
        """(N, PICTURE_SIDE, PICTURE_SIDE) uint8 -> (N, 1, size, size) in [0, 1], black outside the portrait."""
        ticks = torch.arange(0.0, self.size + 1.0, GRID, device=pictures.device)
        places = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), dim=-1).view(1, -1, 2)
        count, side = len(ticks), self.size // GRID * GRID + 1
        sources = self._sources(places.expand(len(pictures), -1, -1)).view(-1, count, count, 2).permute(0, 3, 1, 2)
        sources = F.interpolate(sources, size=(side, side), mode="bilinear", align_corners=True)
        x, y = sources[:, :, : self.size, : self.size].unbind(1)
        last = PICTURE_SIDE - 1.0
        x = torch.where(self.mirrored[:, None, None], last - x, x)
        grid = torch.stack([x, y], dim=-1) / (last / 2.0) - 1.0
        return F.grid_sample(pictures[:, None].float() / 255.0, grid, mode="bilinear", align_corners=True)

    def _mirrored(self, points: Tensor) -> Tensor:
        other = points[:, [1, 0, 2, 4, 3]] * points.new_tensor([-1.0, 1.0]) + points.new_tensor(
            [PICTURE_SIDE - 1.0, 0.0]
        )
        return torch.where(self.mirrored[:, None, None], other, points)

    def _moved(self, own: Tensor) -> Tensor:
        """(N, K, 2) in the face's own frame, after its points were pulled, the head turned and the whole stretched.

        The head is half an ellipsoid with a nose on it; crude, but nose and mouth move against the eyes as a head's do.
        """
        apart = own[:, :, None] - self.own[:, None]  # (N, K, 5, 2)
        near = torch.exp(-apart.square().sum(dim=3) / 0.12)
        own = own + near @ self.pulls
        across, down = own.unbind(2)
        depth = 1.3 * (1.0 - (across / 1.3).square() - ((down - 0.45) / 1.9).square()).clamp_min(0.0).sqrt()
        nose = torch.where(down > 0.62, 0.2, 0.35)  # short below the tip, long above
        depth = depth + 0.38 * torch.exp(-(across / 0.3).square() - ((down - 0.62) / nose).square())
        depth = depth - 1.25  # the eyes stay where they are
        yaw, pitch = self.yaw[:, None], self.pitch[:, None]
        turned = [across * yaw.cos() + depth * yaw.sin(), down * pitch.cos() + depth * pitch.sin()]
        return torch.stack(turned, dim=2) * self.stretch

    def _sources(self, points: Tensor) -> Tensor:
        """Crop -> mirrored portrait. The movement is undone by fixed-point steps."""
        wanted = _undone(points - self.crop_middle, self.spin) + self.own_middle
        own = wanted
        for _ in range(10):
            own = wanted - (self._moved(own) - own)
        return _undone(own, self.upright) + self.middle


def _undone(points: Tensor, matrix: Tensor) -> Tensor:
    """(N, K, 2) points that a turn and enlargement (N, 2, 2) has moved -> before that."""
    before: Tensor = points @ matrix / matrix[:, :1].square().sum(dim=2, keepdim=True)
    return before


def aged(crops: Tensor, dice: Dice) -> Tensor:
    """(N, 1, S, S) in [0, 1], each lit, faded, scratched, blurred, coarse, noisy, printed and packed at random, or left
    alone."""
    count, size = len(crops), crops.shape[-1]

    def between(low: float, high: float) -> Tensor:
        return dice.figures(count, low, high)

    def sometimes(chance: float, changed: Tensor, kept: Tensor) -> Tensor:
        return torch.where(dice.some(count, chance), changed, kept)

    line = torch.linspace(-1.0, 1.0, size, device=crops.device)
    across, down = line.view(1, 1, 1, -1), line.view(1, 1, -1, 1)

    def along(angle: Tensor) -> Tensor:
        return angle.cos() * across + angle.sin() * down

    x = crops
    light = 1.6 * torch.sigmoid(-4.0 * between(0.1, 0.9) * along(between(0.0, 2.0 * math.pi)))
    x = sometimes(0.5, (x * light).clamp(0.0, 1.0), x)
    x = x ** (0.4 * dice.normal(count, 1, 1, 1)).exp()
    x = between(0.4, 1.1) * x + between(-0.1, 0.3)
    for _ in range(2):  # something lies across the face
        far = (along(between(0.0, 2.0 * math.pi)) - between(-0.9, 0.9)).abs() * size / 2.0
        shade, wide = between(0.0, 1.0), between(0.3, 3.0)
        x = sometimes(0.25, x + (shade - x) * torch.sigmoid(3.0 * (wide - far)), x)
    wide, high = ((line - between(-1.0, 1.0)) / between(0.1, 0.4) for line in (across, down))
    spot = wide.square() + high.square()
    x = sometimes(0.2, x + (between(0.0, 1.0) - x) * torch.sigmoid(8.0 * (1.0 - spot)), x)
    x = sometimes(0.5, _blurred(x, between(0.3, 2.2)), x)
    x = _coarse(x, dice)
    angle, cell = between(0.0, math.pi / 2.0), between(0.05, 0.1)
    waves = [torch.cos(2.0 * math.pi / cell * along(angle + turn)) for turn in (0.0, math.pi / 2.0)]
    screen = torch.stack(waves).sum(dim=0)
    dots = ((x - 0.5 - 0.25 * screen) * 4.0 + 0.5).clamp(0.0, 1.0)
    x = sometimes(0.06, x + between(0.3, 0.6) * (dots - x), x)
    x = sometimes(0.4, _packed(x.clamp(0.0, 1.0), between(0.5, 3.0)), x)
    return sometimes(0.4, crops, x.clamp(0.0, 1.0))


def _blurred(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur, each crop with its own standard deviation in pixels."""
    reach = 5
    taps = torch.exp(-torch.arange(-reach, reach + 1, device=x.device).square() / (2.0 * sigma.square()))
    taps = taps / taps.sum(dim=3, keepdim=True)  # (N, 1, 1, 11)
    count = len(x)
    rows = F.pad(x, (reach,) * 4, mode="replicate").transpose(0, 1)  # (1, N, S + 10, S + 10)
    rows = F.conv2d(F.conv2d(rows, taps, groups=count), taps.mT, groups=count)
    return rows.transpose(0, 1)


def _coarse(x: Tensor, dice: Dice) -> Tensor:
    """Noise, in pixels of one to three of the crop's, to which it is reduced before."""
    noise = 0.06 * dice.figures(len(x), 0.0, 1.0) ** 2
    pixel = dice.host.choice(3, len(x), p=(0.6, 0.25, 0.15)) + 1
    coarse = x.clone()
    for times in (1, 2, 3):
        chosen = dice.placed(np.flatnonzero(pixel == times))
        small = F.avg_pool2d(x[chosen], times)
        small = small + noise[chosen] * dice.normal(*small.shape)
        coarse[chosen] = F.interpolate(small, size=x.shape[-2:], mode="bilinear", align_corners=False)
    return coarse


def _packed(x: Tensor, coarseness: Tensor) -> Tensor:
    """Pack a picture as JPEG leaves it: the cosine coefficients of blocks of 8 x 8 in steps that grow with the
    frequency."""
    order = torch.arange(8.0, device=x.device)
    steps = (12.0 + 7.0 * (order[:, None] + order)) / 255.0 * coarseness[:, 0]
    return coded(x, steps.flatten(1))


# Standard deviation of what the landmark network is asked for around each point, in pixels; the eyes are 30 apart.
BLOB = 2.5


class LandmarkStage(Stage):
    """The landmark network, on faces seen anew: those with points placed by hand, and others in pairs."""

    def __init__(
        self, portraits: Sequence[Portrait], recipe: Recipe, device: torch.device, config: LandmarkNetConfig
    ) -> None:
        self.recipe, self.device = recipe, device
        self.net = LandmarkNet(replace(config, size=recipe.size))
        self.nets = {"landmarks_5": self.net}
        self.judges: dict[str, nn.Module] = {}
        self.known = np.array([portrait.points is not None for portrait in portraits])
        self.placed = np.flatnonzero(self.known)
        if not len(self.placed):
            raise NoInputError("no face has points placed by hand")
        self.pictures = torch.from_numpy(np.stack([portrait.picture for portrait in portraits])).to(device)
        usual = usual_points()
        points = [usual if portrait.points is None else portrait.points for portrait in portraits]
        self.points = np.stack(points).astype(np.float32)

    def sample(self, count: int, side: int, dice: Dice) -> dict[str, Tensor]:
        """Two views of each of `count` faces, the first of each pair before all second ones; at least half of the faces
        have true points.

        crops (2N, 1, S, S) in [0, 1], aged; points (2N, 1, 5, 2) in the portraits' pixels, true where known
        (2N, 1, 1, 1) is 1; views (2N, 1, 1, 19), see draw_view.
        """
        rng = dice.host
        any_face, chosen = rng.integers(len(self.points), size=count), rng.choice(self.placed, count)
        faces = np.tile(np.where(rng.random(count) < 0.5, chosen, any_face), 2)
        numbers = dice.placed(np.stack([draw_view(rng) for _ in faces]))
        points = dice.placed(self.points[faces])
        crops = Views(numbers, points, side).crops(self.pictures[dice.placed(faces)])
        return {
            "crops": aged(crops, dice),
            "points": points[:, None],
            "known": dice.placed(self.known[faces].astype(np.float32)).view(-1, 1, 1, 1),
            "views": numbers[:, None, None],
        }

    def loss(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return how far off and how unsure the points are: from the true ones, and from where the two views of a photo
        see them on average."""
        maps = self.net.maps(batch["crops"])
        with torch.autocast(maps.device.type, enabled=False):  # half precision is too coarse for places
            points = batch["points"][:, 0]
            views = Views(batch["views"][:, 0, 0], points, self.recipe.size)
            return self._terms(maps, views, points, batch["known"][:, 0, 0, 0]), {}

    def _terms(self, maps: Tensor, views: Views, points: Tensor, known: Tensor) -> dict[str, Tensor]:
        """(2B, 5, h, w) maps, their views, (2B, 5, 2) points in the portraits and (2B,) whether they are true."""
        found = means(maps)
        far, unsure = self._far(maps, found, views.carried(points))
        placed = (known * far).sum() / known.sum().clamp_min(1.0)
        with torch.no_grad():
            back = torch.stack(views.returned(found).chunk(2))
            agreed = back.mean(dim=0)
            # A point on which the views differ by more than a twentieth of the eyes' distance teaches less. Before the
            # network knows where points are at all, its views agree on the middle of the crop.
            apart = (back - agreed).norm(dim=-1).mean(dim=0) * SQUARE_SIZE / SQUARE_SIDE
            trust = torch.exp(-placed / 0.05) / (1.0 + (apart / 0.05).square())
            there = views.carried(agreed.repeat(2, 1, 1))
        same, blurred = self._far(maps, found, there, trust.repeat(2, 1))
        others = 1.0 - known
        count = others.sum().clamp_min(1.0)
        return {
            "far": 10.0 * placed,
            "unsure": (known * unsure).sum() / known.sum().clamp_min(1.0),
            "apart": 10.0 * (others * same).sum() / count,
            "apart_unsure": (others * blurred).sum() / count,
        }

    @torch.no_grad()
    def validate(self, nets: dict[str, nn.Module]) -> dict[str, float]:
        """Mean distance in eye distances, and share of faces above a tenth, on fixed views of the faces with points."""
        batch = self.fixed(64, self.recipe.size)
        points = batch["points"][:, 0]
        true = Views(batch["views"][:, 0, 0], points, self.recipe.size).carried(points)
        known = batch["known"].flatten() > 0
        far = (nets["landmarks_5"](batch["crops"]) - true).norm(dim=-1).mean(dim=1)
        error = (far / (true[:, 1] - true[:, 0]).norm(dim=1))[known]
        return {"error": float(error.mean()), "failures": float((error > 0.1).float().mean())}

    def _far(self, maps: Tensor, found: Tensor, wanted: Tensor, trust: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """For each face: mean distance over the usual eye distance; cross-entropy of the maps with a blob
        about the wanted points. trust: (N, 5), weight of each point."""
        trust = torch.ones_like(found[..., 0]) if trust is None else trust
        eyes = self.recipe.size / LANDMARK_REACH / SQUARE_SIZE
        far = (found - wanted).abs().sum(dim=-1) / eyes
        cells = (torch.arange(maps.shape[-1], device=maps.device) + 0.5) * CELL - 0.5
        x, y = (-((cells - wanted[..., i, None]) / BLOB).square() / 2.0 for i in (0, 1))
        blob = torch.softmax((y[..., None] + x[..., None, :]).flatten(2), dim=2)
        entropy = -(blob * maps.flatten(2)).sum(dim=2)
        return (trust * far).mean(dim=1), (trust * entropy).mean(dim=1)
