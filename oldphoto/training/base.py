"""Share what all training stages need: folders, recipes, samples of aged and damaged photos, networks before
training."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from oldphoto.errors import NoInputError, UsageError
from oldphoto.models.blocks import ResidualBlock
from oldphoto.models.colour_net import ColourNetConfig
from oldphoto.models.damage_net import DamageNetConfig
from oldphoto.models.estimator import EstimatorConfig
from oldphoto.models.face_finder import FaceFinderConfig
from oldphoto.models.landmarks import LandmarkNetConfig
from oldphoto.models.loading import Config, build, load_compact
from oldphoto.models.mapping import MappingConfig
from oldphoto.models.spade import FaceGeneratorConfig
from oldphoto.models.srvgg import SRVGGConfig
from oldphoto.models.tone_net import ToneNetConfig
from oldphoto.models.vae import Refine, VaeConfig
from oldphoto.stages import fading, strength
from oldphoto.training import ageing
from oldphoto.training.ageing import Dice
from oldphoto.training.data import damage_of, photos_of
from oldphoto.training.degrade import HOLE_OPACITY
from oldphoto.training.grain import grain_of
from oldphoto.training.lettering import lettering_of

COMPACT: dict[str, Config] = {
    "damage_net": DamageNetConfig(),
    "colour_net": ColourNetConfig(),
    "rebuilder": SRVGGConfig(48, 16, "bilinear"),
    "old_vae": VaeConfig(width=32, blocks=2, norm="none", mask_input=True),
    "clean_vae": VaeConfig(width=32, blocks=2, norm="none", refine=32),
    "mapping": MappingConfig(channels=(96, 96), blocks=4, norm="none"),
    "face_generator": FaceGeneratorConfig(width=16, steering=32, residual=True),
    "face_finder": FaceFinderConfig(),
    "landmarks_5": LandmarkNetConfig(),
    strength.NET: EstimatorConfig(strength.FIGURES, len(strength.MOST)),
    strength.FACE_NET: EstimatorConfig(strength.FIGURES, strength.SHARES),
    fading.NET: ToneNetConfig(),
}


# Share of the crops that show people: the photos of data/faces beside those of data/clean.
PEOPLE = 0.25
GREY = 0.35  # share of photos made grey, degraded and clean alike: old photos mostly are
GRAINY = 0.15  # share of photos with the grain of real old ones, besides what else they have
DAMAGE_MAPS = 4096
LETTERING_MAPS = 1024


@dataclass(frozen=True)
class Folders:
    """The folders in which the images lie: clean photos, real old photos, damage overlays by kind, clean faces; the
    file of points placed by hand on some of the faces; and, where there are any, more photos in colour, labels of real
    damage, whose photos' paths start from the folder that `labels` lies in, what was judged of the real old photos (see
    read_judged), and the published networks that teach ours."""

    clean: Path
    old: Path
    damage: Path
    faces: Path
    landmarks: Path
    colour: Path
    labels: Path
    judged: Path
    teachers: Path

    @staticmethod
    def below(data: Path) -> Folders:
        """`data`/clean, /old, /damage, /faces and /colour; a `train` folder inside one is preferred."""
        if not data.is_dir():
            raise NoInputError(f"{data}: no such folder")
        folders = [data / name for name in ("clean", "old", "damage", "faces", "colour")]
        clean, old, damage, faces, colour = (f / "train" if (f / "train").is_dir() else f for f in folders)
        return Folders(
            clean,
            old,
            damage,
            faces,
            data / "landmarks189.json",
            colour,
            data / "labels",
            data / "judged",
            data / "teachers",
        )


@dataclass(frozen=True)
class Recipe:
    """The length and settings of a stage's training.

    steps: optimiser steps; the rate rises over the first 200 and falls along a half cosine. batch: crops a step,
    of `size` pixels a side. rate: Adam's. seed: of weights and samples. smoothing: decay of the running mean of the
    weights that is saved.
    """

    steps: int
    batch: int
    size: int
    rate: float = 2e-4
    seed: int = 2026
    smoothing: float = 0.998

    def __post_init__(self) -> None:
        if min(self.steps, self.batch) < 1 or self.size < 64 or self.size % 32:
            raise UsageError(f"recipe {self}", "steps and batch at least 1, size a multiple of 32 from 64")

    def rate_at(self, step: int, done: float) -> float:
        """Learning rate of a step, `done` being the share of the stage that lies behind."""
        return self.rate * min(1.0, (step + 1) / 200) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


class Stage(ABC):
    """One training stage: its networks, its samples, its losses. Batches are made on `device`."""

    recipe: Recipe
    device: torch.device
    # File name (without suffix) -> network, in the order they are optimised.
    nets: dict[str, nn.Module]
    judges: dict[str, nn.Module]
    # Parameters whose names, after their network's, begin so learn at this share of the rate.
    paces: Mapping[str, float] = MappingProxyType({})

    @abstractmethod
    def sample(self, count: int, side: int, dice: Dice) -> dict[str, Tensor]:
        """`count` training samples of `side` pixels, on the device."""

    @abstractmethod
    def loss(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Terms of the networks' loss and of the judges' loss, already weighted."""

    @abstractmethod
    def validate(self, nets: dict[str, nn.Module]) -> dict[str, float]:
        """Metrics of the smoothed networks on fixed samples."""

    def batch(self, step: int) -> dict[str, Tensor]:
        """The samples of one step: of its seed alone, so that a resumed run sees what an uninterrupted one sees."""
        return self.sample(self.recipe.batch, self.recipe.size, Dice.seeded(self.device, self.recipe.seed, step))

    def fixed(self, count: int, side: int) -> dict[str, Tensor]:
        """The same samples at every validation, of a seed no training step uses."""
        return self.sample(count, side, self.fixed_dice())

    def fixed_dice(self) -> Dice:
        """Return the dice that `fixed` draws by."""
        return Dice.seeded(self.device, 7, self.recipe.seed, 0)


class Aged(Stage):
    """A stage as most are: crops of clean photos and of people, aged, and damage laid on them.

    damaged, lettered: shares of the samples that carry damage, and drawn lettering, which is none.
    """

    def __init__(
        self,
        folders: Folders,
        recipe: Recipe,
        device: torch.device,
        damaged: float = 0.5,
        lettered: float = 0.2,
    ) -> None:
        self.recipe, self.device, self.damaged, self.lettered = recipe, device, damaged, lettered
        least = max(256, recipe.size)
        self.photos = photos_of(folders.clean, device, 608, least)
        self.people = photos_of(folders.faces, device, 608, least)
        maps = min(DAMAGE_MAPS, recipe.steps * recipe.batch)
        self.harm = damage_of(folders.damage, device, maps, least, recipe.seed)
        self.lettering = lettering_of(device, min(LETTERING_MAPS, maps), least, recipe.seed)
        self.grain = grain_of(folders.old, device)
        self.judges: dict[str, nn.Module] = {}

    def clean(self, count: int, side: int, dice: Dice) -> tuple[Tensor, Tensor]:
        """(count, 3, side, side) in [0, 1], and the opacity of the lettering that a share of them carries."""
        people = round(PEOPLE * count)
        x = self.photos.crops(count - people, side, dice)
        if people:
            x = torch.cat([x, self.people.crops(people, side, dice)])
        x, letters = self.lettering.laid(x, self.lettered, dice)
        return torch.where(dice.some(count, GREY), ageing.grey(x), x), letters

    def aged(self, x: Tensor, dice: Dice) -> Tensor:
        """Age photos (N, 3, S, S) in [0, 1] as years do, but for damage."""
        return ageing.wider_mixture(self.grain.laid(x, GRAINY, dice), dice)

    def hurt(self, x: Tensor, dice: Dice) -> tuple[Tensor, Tensor]:
        """Damage on a share of the photos, and its mask (N, 1, H, W), 1 = damaged."""
        opacity = self.harm.opacity(len(x), x.shape[-1], dice) * dice.some(len(x), self.damaged)
        return ageing.covered(x, opacity, dice), (opacity > HOLE_OPACITY).to(x.dtype)

    def sample(self, count: int, side: int, dice: Dice) -> dict[str, Tensor]:
        """clean, old (N, 3, S, S) in [-1, 1]; mask (N, 1, S, S), 1 = damaged, as a user draws it."""
        clean, _ = self.clean(count, side, dice)
        old, mask = self.hurt(self.aged(clean, dice), dice)
        # Of a grey photo most copies stay grey; the others have the tints of paper, scanner and noise.
        same = (clean[:, :1] == clean).all(dim=1, keepdim=True).all(dim=2, keepdim=True).all(dim=3, keepdim=True)
        old = torch.where(same & dice.some(count, 0.7), ageing.grey(old), old)
        return {"clean": signed(clean), "old": signed(old), "mask": drawn(mask, dice)}


def mean_psnr(a: Tensor, b: Tensor) -> float:
    """Mean over the batch, of pictures in [-1, 1]."""
    error = (a.float().clamp(-1, 1) - b).square().mean(dim=(1, 2, 3)) / 4.0
    return float((-10.0 * torch.log10(error.clamp_min(1e-10))).mean())


def signed(x: Tensor) -> Tensor:
    """[0, 1] -> [-1, 1], rounded to 8 bits as what comes from a file is."""
    return (x * 255.0).round() / 127.5 - 1.0


def levels_of(x: Tensor) -> NDArray[np.uint8]:
    """Pictures (N, 3, H, W) in [-1, 1] -> (N, H, W, 3) uint8."""
    levels = ((x.float().clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def quickly(device: torch.device) -> torch.autocast:
    """bfloat16 for networks on a GPU, and on processors that have it of their own."""
    processor = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=processor or device.type == "cuda")


def fresh(config: Config) -> nn.Module:
    """A new network to train.

    Without normalisation the signal has to keep its size by itself: He's initialisation, with residual branches small,
    so that each block starts near the identity.
    """
    net = build(config)
    plain = isinstance(config, VaeConfig | MappingConfig) and config.norm == "none"
    if plain or isinstance(config, FaceFinderConfig):
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias) if module.bias is not None else None
                if isinstance(module, nn.ConvTranspose2d):  # one in stride^2 of its taps meets each output pixel
                    module.weight.data.mul_(2.0)
        for module in net.modules():
            if isinstance(module, ResidualBlock):
                module.conv2.weight.data.mul_(0.1)
            if isinstance(module, Refine):
                module.last.weight.data.mul_(0.1)
    return net


def silence(layer: nn.Conv2d) -> None:
    """Let a last layer give 0 until it has learned otherwise."""
    with torch.no_grad():
        layer.weight.zero_()
        if layer.bias is not None:
            layer.bias.zero_()


Net = TypeVar("Net", bound=nn.Module)


def loaded(path: Path, kind: type[Net]) -> Net:
    """An earlier stage's network of this kind."""
    net = load_compact(path)
    assert isinstance(net, kind)
    return net


def drawn(mask: Tensor, dice: Dice) -> Tensor:
    """Masks (N, 1, H, W) as a user draws them: true, or grown by a pixel or two."""
    once = F.max_pool2d(mask, 3, stride=1, padding=1)
    twice = F.max_pool2d(once, 3, stride=1, padding=1)
    grown = torch.where(dice.some(len(mask), 0.4), twice, once)
    return torch.where(dice.some(len(mask), 0.4), mask, grown)
