"""The stages that learn to rebuild a photo from its native resolution: a small network taught by a published one.

First by plain distillation, since the teacher's answer is one and the truth's are many; then with the truth, a
perceptual distance and a discriminator besides. Samples are made as old scans come about: a photo loses detail (blur
and a smaller copy), is enlarged, and gets grain and compression at its full size; the network sees what is left of it
once it is shrunk to about the size of its detail. Crops of real old photos have no truth: there the teacher alone says
what is wanted.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from oldphoto.errors import NoInputError
from oldphoto.models.loading import load_strictly, placed
from oldphoto.models.srvgg import SRVGGConfig, SRVGGNetCompact
from oldphoto.training.ageing import Dice
from oldphoto.training.base import Folders, Recipe, Stage
from oldphoto.training.damage import jpeg
from oldphoto.training.data import read_photos
from oldphoto.training.losses import PatchDiscriminator, deceive, discern
from oldphoto.training.perceptual import features
from oldphoto.training.wear import Bytes, Generator, Image

TEACHER = SRVGGConfig()
OLD = 0.25  # share of a batch that is real old photos
GREY = 0.5
SCALES = (1.5, 2.0, 2.5, 3.0, 4.0)  # pixels for each one of detail; one for all photos of a batch
ERROR = 0.15  # by which the native scale is estimated too large or too small
JUDGED = (16, 96)  # samples of a validation, and their side in pixels
# Weights of the second stage's terms, against 1 of the distance to the teacher.
PERCEPTUAL, TRUTH, ADVERSARY = 0.06, 0.25, 0.005


def aged(truth: Image, scale: float, rng: Generator) -> Image:
    """A photo (S, S, 3), 0..255, that has lost all detail beyond 1/scale of its pixels, with grain and compression."""
    side = truth.shape[0]
    x = truth
    if rng.random() < 0.7:
        x = _f32(cv2.GaussianBlur(x, (0, 0), rng.uniform(0.15, 0.45) * scale))
    small = max(16, round(side / scale))
    down = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)[int(rng.choice(3, p=[0.6, 0.2, 0.2]))]
    x = _f32(cv2.resize(x, (small, small), interpolation=down))
    if rng.random() < 0.3:
        x = _f32(x + rng.standard_normal((small, small, int(rng.choice([1, 3])))) * rng.uniform(0, 6))
    if rng.random() < 0.3:
        x = jpeg(x, int(rng.uniform(50, 95)))
    up = (cv2.INTER_CUBIC, cv2.INTER_LINEAR, cv2.INTER_LANCZOS4)[int(rng.integers(3))]
    x = _f32(cv2.resize(x, (side, side), interpolation=up))
    if rng.random() < 0.75:
        noise = _f32(rng.standard_normal((side, side, 1 if rng.random() < 0.7 else 3)))
        if rng.random() < 0.7:
            soft = rng.uniform(0.5, 1.0) * rng.uniform(0.8, scale * 0.7)
            noise = _f32(cv2.GaussianBlur(noise, (0, 0), soft)).reshape(side, side, -1)
            noise = noise / (noise.std() + np.float32(1e-6))
        x = x + noise * np.float32(rng.uniform(0, 14))
    if rng.random() < 0.7:
        x = jpeg(x, int(rng.uniform(45, 97)))
    return np.clip(x, 0, 255)


def _f32(a: object) -> Image:
    return np.asarray(a, np.float32)


class RebuildStage(Stage):
    """The compact set's rebuilding network. adversarial: the second stage."""

    def __init__(
        self, folders: Folders, recipe: Recipe, device: torch.device, config: SRVGGConfig, *, adversarial: bool
    ) -> None:
        """Raises NoInputError where the teacher's file is missing: data/teachers/realesr-general-x4v3.safetensors."""
        self.recipe, self.device, self.adversarial = recipe, device, adversarial
        self.teacher = placed(_teacher(folders.teachers / "realesr-general-x4v3.safetensors"), device)
        net = SRVGGNetCompact(config)
        for layer in net.body:
            if isinstance(layer, nn.Conv2d):  # torch's own initialisation starves a chain of this many layers
                nn.init.kaiming_normal_(layer.weight, a=0.25)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # it has one
        last = net.body[-1]
        assert isinstance(last, nn.Conv2d)
        last.weight.data.mul_(0.1)
        self.nets = {"rebuilder": net}
        self.judges: dict[str, nn.Module] = {"picture": PatchDiscriminator(3, 32, 3)} if adversarial else {}
        self.features = features(device)
        photos = read_photos(folders.clean, 608, 256) + read_photos(folders.faces, 608, 224)
        self.photos = photos + (read_photos(folders.colour, 608, 256) if folders.colour.is_dir() else [])
        self.old = read_photos(folders.old, 1200, 256)

    def sample(self, count: int, side: int, dice: Dice) -> dict[str, Tensor]:
        """small (N, 3, S, S): photos at their native scale; truth (M, 3, T, T) of the first M, T/S being the scale. All
        in [0, 1]."""
        rng = dice.host
        scale = float(rng.choice(SCALES))
        large = round(side * scale)
        old = round(OLD * count)
        small, truth = [], []
        for k in range(count):
            if k < count - old:
                photo = self.photos[rng.integers(len(self.photos))]
                y = _crop(photo, large, float(rng.uniform(1.0, 1.6)), rng)
                if rng.random() < GREY:
                    y = np.repeat((y @ np.array([0.299, 0.587, 0.114], np.float32))[..., None], 3, 2)
                x = aged(y, scale * float(np.exp(rng.uniform(-ERROR, ERROR))), rng)
                truth.append(y)
                small.append(cv2.resize(x, (side, side), interpolation=cv2.INTER_AREA))
            else:
                photo = self.old[rng.integers(len(self.old))]
                small.append(_crop(photo, side, float(np.exp(rng.uniform(0.0, np.log(4.0)))), rng))
        stack = [np.clip(np.stack(a), 0, 255).astype(np.float32).transpose(0, 3, 1, 2) / 255.0 for a in (small, truth)]
        return {"small": dice.placed(stack[0]), "truth": dice.placed(stack[1])}

    def loss(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Distance to the teacher and of its differences; in the second stage perceptual distance to the truth, too."""
        small, truth = batch["small"], batch["truth"]
        with torch.no_grad():
            wanted = self.teacher(small).float().clamp(0, 1)
        made = self.nets["rebuilder"](small).float()
        flat = (made - wanted).abs().mean()
        dx = (made.diff(dim=-1) - wanted.diff(dim=-1)).abs().mean()
        dy = (made.diff(dim=-2) - wanted.diff(dim=-2)).abs().mean()
        if not self.adversarial:
            return {"teacher": flat, "edges": dx + dy}, {}
        back = F.interpolate(made[: len(truth)], size=truth.shape[-2:], mode="bicubic", antialias=True)
        mine = {
            "teacher": flat,
            "edges": dx + dy,
            "truth": TRUTH * (back - truth).abs().mean(),
            "perceptual": PERCEPTUAL * self.features.distance(back, truth).mean(),
        }
        judge = self.judges["picture"]
        mine["adversary"] = ADVERSARY * deceive(judge(2 * back - 1))
        judged = {"judge": discern(judge(2 * truth - 1), judge(2 * back.detach() - 1))}
        return mine, judged

    @torch.no_grad()
    def validate(self, nets: dict[str, nn.Module]) -> dict[str, float]:
        """On fixed samples: perceptual distance to the truth over that of the enlarged input, and the teacher's."""
        batch = self.fixed(*JUDGED)
        small, truth = batch["small"], batch["truth"]
        size, count = truth.shape[-2:], len(truth)

        def away(x: Tensor) -> float:
            x = F.interpolate(x[:count].float(), size=size, mode="bicubic", antialias=True).clamp(0, 1)
            return float(self.features.distance(x, truth).mean())

        plain = away(small)
        (net,) = nets.values()
        return {"ours": away(net(small)) / plain, "teachers": away(self.teacher(small)) / plain}


def _crop(photo: Bytes, side: int, shrink: float, rng: Generator) -> Image:
    """A crop of `side` pixels of a photo shrunk by `shrink`, or less where it is too small."""
    h, w = photo.shape[:2]
    cut = min(h, w, round(side * shrink))
    top, left = int(rng.integers(h - cut + 1)), int(rng.integers(w - cut + 1))
    part = _f32(photo[top : top + cut, left : left + cut])
    if cut != side:
        part = _f32(cv2.resize(part, (side, side), interpolation=cv2.INTER_AREA if cut > side else cv2.INTER_CUBIC))
    part = part[:, ::-1] if rng.random() < 0.5 else part
    return np.rot90(part, int(rng.integers(4))) if rng.random() < 0.2 else part


def _teacher(path: Path) -> SRVGGNetCompact:
    if not path.is_file():
        raise NoInputError(f"{path}: no teacher", "put the published network there, as safetensors")
    net = SRVGGNetCompact(TEACHER)
    load_strictly(net, load_file(path), path)
    return net
