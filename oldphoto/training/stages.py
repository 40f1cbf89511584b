"""What each training stage optimises: its networks, its samples, its losses, its validation.

Stage one of the paper: `old-vae`, `clean-vae`. Stage two: `mapping`, with both VAEs frozen; the published architecture
has one for photos without damage, one with and one for large photos. A third stage of ours, for the compact networks
alone: `finetune`, encoder, mapping and decoder end to end. Then `restraint`, which judges what these three change.
Beside them `tone`, `landmarks`, `scratch-unet`, `face-generator`, `face-finder`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image as PillowImage
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from oldphoto import restraint, tone
from oldphoto.errors import NoInputError, UsageError
from oldphoto.faces import LANDMARK_REACH, SQUARE_SIZE, Landmarks, find_faces
from oldphoto.loading import PUBLISHED, Config, build, load_compact, placed
from oldphoto.models.blocks import ResidualBlock
from oldphoto.models.estimator import Estimator, EstimatorConfig
from oldphoto.models.face_finder import FaceFinderConfig
from oldphoto.models.landmarks import CELL, LandmarkNet, LandmarkNetConfig, means
from oldphoto.models.mapping import Mapping, MappingConfig
from oldphoto.models.scratch_unet import ScratchUnet, ScratchUnetConfig
from oldphoto.models.spade import FaceGenerator, FaceGeneratorConfig
from oldphoto.models.vae import Refine, Source, Vae, VaeConfig
from oldphoto.training import ageing
from oldphoto.training.ageing import Dice
from oldphoto.training.data import Pixels, damage_of, photos_of, read_photos
from oldphoto.training.degrade import HOLE_OPACITY, Image
from oldphoto.training.face_finder import Tiles, scenes
from oldphoto.training.grain import grain_of
from oldphoto.training.landmarks import (
    SQUARE_SIDE,
    Portrait,
    Views,
    aged,
    draw_view,
    placed_points,
    portraits,
    usual_points,
)
from oldphoto.training.lettering import lettering_of
from oldphoto.training.losses import (
    PatchDiscriminator,
    deceive,
    discern,
    edges,
    feature_matching,
    latent_prior,
    likeness,
)
from oldphoto.translation import TranslationNets, translate_latents, translate_whole

COMPACT: dict[str, Config] = {
    "scratch_unet": ScratchUnetConfig(width=16),
    "old_vae": VaeConfig(width=32, blocks=2, norm="none", mask_input=True),
    "clean_vae": VaeConfig(width=32, blocks=2, norm="none", refine=32),
    "mapping": MappingConfig(
        channels=(96, 96), blocks=4, context="non_local", context_blocks=1, norm="none", combine="add", any_damage=True
    ),
    "face_generator": FaceGeneratorConfig(width=12, steering=16, residual=True),
    "face_finder": FaceFinderConfig(),
    "landmarks_5": LandmarkNetConfig(),
    restraint.NET: EstimatorConfig(restraint.FIGURES, 4),
    tone.NET: EstimatorConfig(tone.FIGURES, tone.ANSWERS, 96),
}
# Standard deviation of the noise on latents in stage one. The paper's is 1 at an unbounded latent scale.
LATENT_NOISE = 0.2
# Standard deviation of what the landmark network is asked for around each point, in pixels; the eyes are 30 apart.
BLOB = 2.5
# Share of the crops that show people: the photos of data/faces beside those of data/clean.
PEOPLE = 0.25
GREY = 0.35  # share of photos made grey, degraded and clean alike: old photos mostly are
GRAINY = 0.15  # share of photos with the grain of real old ones, besides what else they have
LETTERED = 0.2  # share of photos with drawn lettering, which is no damage
DAMAGE_MAPS = 4096
MEASURED_AT_ONCE = 32
Measured = NDArray[np.float32]
LETTERING_MAPS = 1024


@dataclass(frozen=True)
class Folders:
    """Where the images lie: clean photos, real old photos, damage overlays by kind, clean faces; and the file of points
    placed by hand on some of the faces."""

    clean: Path
    old: Path
    damage: Path
    faces: Path
    landmarks: Path

    @staticmethod
    def below(data: Path) -> Folders:
        """`data`/clean, /old, /damage and /faces; a `train` folder inside one is preferred."""
        if not data.is_dir():
            raise NoInputError(f"{data}: no such folder")
        folders = [data / name for name in ("clean", "old", "damage", "faces")]
        chosen = (f / "train" if (f / "train").is_dir() else f for f in folders)
        return Folders(*chosen, landmarks=data / "landmarks189.json")  # type: ignore[misc]  # four, says the line above


@dataclass(frozen=True)
class Recipe:
    """How long and how a stage trains.

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
        return self.sample(count, side, Dice.seeded(self.device, 7, self.recipe.seed, 0))


def _psnr(a: Tensor, b: Tensor) -> float:
    """Mean over the batch, of pictures in [-1, 1]."""
    error = (a.float().clamp(-1, 1) - b).square().mean(dim=(1, 2, 3)) / 4.0
    return float((-10.0 * torch.log10(error.clamp_min(1e-10))).mean())


def _signed(x: Tensor) -> Tensor:
    """[0, 1] -> [-1, 1], rounded to 8 bits as what comes from a file is."""
    return (x * 255.0).round() / 127.5 - 1.0


def _levels(x: Tensor) -> NDArray[np.uint8]:
    """Pictures (N, 3, H, W) in [-1, 1] -> (N, H, W, 3) uint8."""
    levels = ((x.float().clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def quickly(device: torch.device) -> torch.autocast:
    """bfloat16 for networks on a GPU, and on processors that have it of their own."""
    processor = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=processor or device.type == "cuda")


class _Aged(Stage):
    """What most stages share: crops of clean photos and of people, aged, and damage laid on them.

    damaged: share of the samples that carry damage.
    """

    def __init__(self, folders: Folders, recipe: Recipe, device: torch.device, damaged: float = 0.5) -> None:
        self.recipe, self.device, self.damaged = recipe, device, damaged
        least = max(256, recipe.size)
        self.photos = photos_of(folders.clean, device, 608, least)
        self.people = photos_of(folders.faces, device, 608, least)
        maps = min(DAMAGE_MAPS, recipe.steps * recipe.batch)
        self.harm = damage_of(folders.damage, device, maps, least, recipe.seed)
        self.lettering = lettering_of(device, min(LETTERING_MAPS, maps), least, recipe.seed)
        self.grain = grain_of(folders.old, device)
        self.judges: dict[str, nn.Module] = {}

    def clean(self, count: int, side: int, dice: Dice) -> Tensor:
        """(count, 3, side, side) in [0, 1]."""
        people = round(PEOPLE * count)
        x = self.photos.crops(count - people, side, dice)
        if people:
            x = torch.cat([x, self.people.crops(people, side, dice)])
        x = self.lettering.laid(x, LETTERED, dice)
        return torch.where(dice.some(count, GREY), ageing.grey(x), x)

    def aged(self, x: Tensor, dice: Dice) -> Tensor:
        """What the years did to photos (N, 3, S, S) in [0, 1], but for damage."""
        return ageing.wider_mixture(self.grain.laid(x, GRAINY, dice), dice)

    def hurt(self, x: Tensor, dice: Dice) -> tuple[Tensor, Tensor]:
        """Damage on a share of the photos, and its mask (N, 1, H, W), 1 = damaged."""
        opacity = self.harm.opacity(len(x), x.shape[-1], dice) * dice.some(len(x), self.damaged)
        return ageing.covered(x, opacity, dice), (opacity > HOLE_OPACITY).to(x.dtype)

    def sample(self, count: int, side: int, dice: Dice) -> dict[str, Tensor]:
        """clean, old (N, 3, S, S) in [-1, 1]; mask (N, 1, S, S), 1 = damaged, as a user draws it."""
        clean = self.clean(count, side, dice)
        old, mask = self.hurt(self.aged(clean, dice), dice)
        # Of a grey photo most copies stay grey; the others have the tints of paper, scanner and noise.
        same = (clean[:, :1] == clean).all(dim=1, keepdim=True).all(dim=2, keepdim=True).all(dim=3, keepdim=True)
        old = torch.where(same & dice.some(count, 0.7), ageing.grey(old), old)
        return {"clean": _signed(clean), "old": _signed(old), "mask": drawn(mask, dice)}


def drawn(mask: Tensor, dice: Dice) -> Tensor:
    """Masks (N, 1, H, W) as a user draws them: true, or grown by a pixel or two."""
    once = F.max_pool2d(mask, 3, stride=1, padding=1)
    twice = F.max_pool2d(once, 3, stride=1, padding=1)
    grown = torch.where(dice.some(len(mask), 0.4), twice, once)
    return torch.where(dice.some(len(mask), 0.4), mask, grown)


class VaeStage(_Aged):
    """Stage one: a VAE of one domain; the old one also learns to make real and synthetic latents alike."""

    def __init__(self, folders: Folders, recipe: Recipe, device: torch.device, config: Config, *, old: bool) -> None:
        super().__init__(folders, recipe, device)
        self.old = old
        self.real = photos_of(folders.old, device, 900, max(256, recipe.size)) if old else None
        net = fresh(config)
        assert isinstance(net, Vae)
        self.nets = {"old_vae" if old else "clean_vae": net}
        self.vae = net
        self.judges = {"picture": PatchDiscriminator(3, 24, 2)}
        if old:
            self.judges["latent"] = PatchDiscriminator(net.config.latent_channels, 64, 0)

    def sample(self, count: int, side: int, dice: Dice) -> dict[str, Tensor]:
        """As _Aged; the old domain adds crops of real old photos."""
        batch = super().sample(count, side, dice)
        if self.real is not None:
            batch["real"] = _signed(self.real.crops(count, side, dice))
        return batch

    def loss(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """L1, edges, KL, LSGAN and feature matching on the picture; LSGAN on the latents of the two old domains."""
        x, mask = batch["clean"], None
        if self.old:
            x = torch.cat([batch["old"], batch["real"]])
            mask = torch.cat([batch["mask"], torch.zeros_like(batch["mask"])])
        latent = self.vae.encode(x, mask)
        made = self.vae.decode(latent + LATENT_NOISE * torch.randn_like(latent))
        real, fake = self.judges["picture"](x), self.judges["picture"](made)
        mine = {
            "l1": 10.0 * F.l1_loss(made, x),
            "edges": 5.0 * edges(made, x).mean(),
            "kl": 0.01 * latent_prior(latent),
            "gan": 0.1 * deceive(fake),
            "features": 1.0 * feature_matching(real, fake),
        }
        judged = {"judge": discern(real, self.judges["picture"](made.detach()))}
        if self.old:
            half = len(batch["old"])
            mine["latent_gan"] = 0.1 * deceive(self.judges["latent"](latent[:half]))
            seen = self.judges["latent"](latent.detach())
            real_seen, fake_seen = [f[half:] for f in seen], [f[:half] for f in seen]
            judged["latent_judge"] = discern(real_seen, fake_seen)
        return mine, judged

    @torch.no_grad()
    def validate(self, nets: dict[str, nn.Module]) -> dict[str, float]:
        """PSNR of the reconstruction."""
        (net,) = nets.values()
        assert isinstance(net, Vae)
        batch = self.fixed(12, 192)
        x = batch["old" if self.old else "clean"]
        return {"psnr": _psnr(net.decode(net.encode(x, batch["mask"] if self.old else None)), x)}


class MappingStage(_Aged):
    """Stage two: the mapping between the latents of two frozen VAEs."""

    def __init__(
        self, folders: Folders, earlier: Path, recipe: Recipe, device: torch.device, file: str, config: Config
    ) -> None:
        # A mapping without attention is for photos without damage.
        damaged = 0.5 if isinstance(config, MappingConfig) and config.context != "none" else 0.0
        super().__init__(folders, recipe, device, damaged)
        self.old_vae, self.clean_vae = (
            placed(_vae(earlier / f"{name}.safetensors"), device) for name in ("old_vae", "clean_vae")
        )
        net = fresh(config)
        assert isinstance(net, Mapping)
        self.nets = {file: net}
        self.judges = {"picture": PatchDiscriminator(3, 24, 2)}

    def loss(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Latent L1 (60), feature matching (10) and LSGAN on the decoded picture, as published."""
        mapped, made = self._translated(self.nets, batch)
        with torch.no_grad():
            wanted = self.clean_vae.encode(batch["clean"])
        judge = self.judges["picture"]
        real, fake = judge(batch["clean"]), judge(made)
        mine = {
            "latent": 60.0 * F.l1_loss(mapped, wanted),
            "features": 10.0 * feature_matching(real, fake),
            "gan": deceive(fake),
        }
        return mine, {"judge": discern(real, judge(made.detach()))}

    @torch.no_grad()
    def validate(self, nets: dict[str, nn.Module]) -> dict[str, float]:
        """PSNR of the decoded picture, and of the degraded input beside it."""
        batch = self.fixed(12, 192)
        _, made = self._translated(nets, batch)
        return {"psnr": _psnr(made, batch["clean"]), "psnr_input": _psnr(batch["old"], batch["clean"])}

    def _translated(self, nets: dict[str, nn.Module], batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mapped latents, and the picture painted from them."""
        (mapping,) = nets.values()
        assert isinstance(mapping, Mapping)
        trio = TranslationNets(self.old_vae, mapping, self.clean_vae)
        _, mapped = translate_latents(batch["old"], batch["mask"] if self.damaged else None, trio)
        return mapped, self.clean_vae.decode(mapped)


class FinetuneStage(_Aged):
    """Stage three, ours: encoder, mapping and decoder end to end, the decoder refining the photo."""

    def __init__(self, folders: Folders, earlier: Path, recipe: Recipe, device: torch.device) -> None:
        super().__init__(folders, recipe, device)
        self.detector = placed(_detector(earlier / "scratch_unet.safetensors"), device)
        loaded = load_compact(earlier / "mapping.safetensors")
        assert isinstance(loaded, Mapping)
        self.nets = {
            "old_vae": _vae(earlier / "old_vae.safetensors"),
            "mapping": loaded,
            "clean_vae": _vae(earlier / "clean_vae.safetensors"),
        }

    def sample(self, count: int, side: int, dice: Dice) -> dict[str, Tensor]:
        """As _Aged; for half of the samples the mask is what the detector finds, misses and mistakes included.

        trusted (N, 1, 1, 1): 1 where the mask is the user's.
        """
        batch = super().sample(count, side, dice)
        trusted = dice.some(count, 0.5)
        with torch.no_grad(), quickly(self.device):
            found = torch.sigmoid(self.detector(ageing.grey(batch["old"])[:, :1]).float())
        found = (found >= dice.figures(count, 0.3, 0.7)).to(batch["mask"].dtype)
        return batch | {"mask": torch.where(trusted, batch["mask"], found), "trusted": trusted.to(found.dtype)}

    @staticmethod
    def trio(nets: dict[str, nn.Module]) -> TranslationNets:
        """The networks of this stage as translation takes them."""
        old, mapping, clean = nets["old_vae"], nets["mapping"], nets["clean_vae"]
        assert isinstance(old, Vae)
        assert isinstance(mapping, Mapping)
        assert isinstance(clean, Vae)
        return TranslationNets(old, mapping, clean)

    def loss(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Likeness of the restored picture, and of what was painted from the latents alone.

        Without the second, the deep layers would drift: next to nothing depends on them until they are used, and
        Adam makes full steps of their faint gradients.
        """
        nets = self.trio(self.nets)
        old, mask = batch["old"], batch["mask"]
        filled, latent = translate_latents(old, mask, nets)
        decoder, clean = nets.clean_vae.decoder, batch["clean"]
        features, painted = decoder.paint(decoder.blocks(latent))
        terms = {"painted": 0.1 * torch.stack(list(likeness(painted, clean).values())).sum()}
        if decoder.refine is not None:
            seen = torch.where(batch["trusted"] > 0, filled, old)
            made = decoder.refine(features, painted, Source(filled, seen, mask))
            terms |= likeness(made, clean)
        return terms, {}

    @torch.no_grad()
    def validate(self, nets: dict[str, nn.Module]) -> dict[str, float]:
        """PSNR of restored and of degraded photos, and of undamaged photos put through."""
        trio = self.trio(nets)
        batch = self.fixed(32, 128)
        old, mask, trusted = batch["old"], batch["mask"], batch["trusted"]
        made = torch.where(
            trusted > 0, translate_whole(old, mask, trio), translate_whole(old, mask, trio, trusted=False)
        )
        kept = translate_whole(batch["clean"], None, trio)
        return {
            "psnr": _psnr(made, batch["clean"]),
            "psnr_input": _psnr(batch["old"], batch["clean"]),
            "psnr_undamaged": _psnr(kept, batch["clean"]),
        }


class _EstimatorStage(Stage):
    """An estimator, on figures of photos and on how its answers bear on the error.

    The error of a photo's answers p is a quadratic form, rest - 2 p.linear + p'quadratic p, in squared levels of 255:
    so photos are drawn and measured once, `samples` of them, and kept beside the weights; steps cost nothing.
    """

    samples: int
    # Squared levels of 255 that count little: an error of this size has half the weight that none would have.
    floor = 2.0

    def __init__(self, file: str, earlier: Path, recipe: Recipe, device: torch.device) -> None:
        self.recipe, self.device, self.file = recipe, device, file
        config = COMPACT[file]
        assert isinstance(config, EstimatorConfig)
        net = Estimator(config)
        parts = -(-min(self.samples, recipe.steps * recipe.batch) // MEASURED_AT_ONCE)
        folder = earlier / f"{file}-samples"
        measured = [self._part(folder / f"{recipe.seed}-{recipe.size}-{k:04}.safetensors", k) for k in range(parts)]
        self.all = {k: torch.from_numpy(np.concatenate([m[k] for m in measured])).to(device) for k in measured[0]}
        net.usual.copy_(self.all["figures"].mean(dim=0))
        net.spread.copy_(self.all["figures"].std(dim=0) + 0.01)
        # At first: as photos on average want it.
        with torch.no_grad():
            net.last.weight.zero_()
            net.last.bias.zero_()
            net.last.bias[: len(self.first)] = torch.tensor(self.first)
        self.nets = {file: net}
        self.judges: dict[str, nn.Module] = {}

    first: tuple[float, ...]

    def _part(self, path: Path, number: int) -> dict[str, Measured]:
        """Samples that were measured before, or are now."""
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            made = self.measured(MEASURED_AT_ONCE, Dice.seeded(self.device, self.recipe.seed, number))
            part = path.with_suffix(".part")
            save_file(made, part)
            part.replace(path)
        return load_file(path)

    @abstractmethod
    def measured(self, count: int, dice: Dice) -> dict[str, Measured]:
        """figures (N, F), quadratic (N, K, K), linear (N, K), rest (N,), all float32; see the class."""

    def sample(self, count: int, side: int, dice: Dice) -> dict[str, Tensor]:
        """Some of the samples; the first in sixteen are left to `validate`."""
        kept = len(self.all["rest"]) // 16
        those = dice.placed(dice.host.integers(kept, len(self.all["rest"]), count))
        return {k: v[those] for k, v in self.all.items()}

    @staticmethod
    def error(answers: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """(N,) squared levels of 255."""
        one = answers[..., None]
        form = (one.mT @ batch["quadratic"] @ one)[:, 0, 0] - 2.0 * (answers * batch["linear"]).sum(dim=1)
        return (form + batch["rest"]).clamp_min(0.0)

    def kept_back(self) -> dict[str, Tensor]:
        """The samples that no step sees."""
        return {k: v[: max(1, len(v) // 16)] for k, v in self.all.items()}


def _decibels(error: Tensor) -> float:
    """Mean PSNR of squared levels of 255."""
    return float((10.0 * torch.log10(65025.0 / error.clamp_min(0.05))).mean())


class RestraintStage(_EstimatorStage):
    """How much of the translation's changes to keep."""

    samples = 3072
    first = (0.9, 0.9, 0.9, 0.9)

    def __init__(self, folders: Folders, earlier: Path, recipe: Recipe, device: torch.device) -> None:
        self.drawn = _Lightly(folders, earlier, recipe, device)
        self.restorer = FinetuneStage.trio({name: placed(net, device).eval() for name, net in self.drawn.nets.items()})
        super().__init__(restraint.NET, earlier, recipe, device)

    @torch.inference_mode()
    def measured(self, count: int, dice: Dice) -> dict[str, Measured]:
        """See _EstimatorStage; p are the shares."""
        batch = self.drawn.sample(count, self.recipe.size, dice)
        old, mask = batch["old"], batch["mask"]
        filled, latent = translate_latents(old, mask, self.restorer)
        seen = torch.where(batch["trusted"] > 0, filled, old)
        made = self.restorer.clean_vae.decode(latent, Source(filled, seen, mask))
        before, after, clean = (_levels(x).astype(np.float32) for x in (old, made, batch["clean"]))
        holes = (mask[:, 0] > 0).cpu().numpy()
        rows = [self._of_one(*one) for one in zip(before, after, clean, holes, strict=True)]
        return {k: np.stack([row[k] for row in rows]).astype(np.float32) for k in rows[0]}

    @staticmethod
    def _of_one(before: Image, after: Image, clean: Image, hole: NDArray[np.bool_]) -> dict[str, Measured]:
        change = after - before
        whole = restraint.repaired(hole)[..., None]
        split = [part if part.ndim == 3 else part[..., None] for part in restraint.parts(change)]
        free = np.stack([np.broadcast_to((1.0 - whole) * part, change.shape).ravel() for part in split])
        wanted = (clean - before - whole * change).ravel()
        return {
            "figures": restraint.figures(before, after, hole & (not hole.all())),
            "quadratic": free @ free.T / wanted.size,
            "linear": free @ wanted / wanted.size,
            "rest": np.array(wanted @ wanted / wanted.size),
        }

    def loss(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Logarithm of the error: a photo that needed little counts as much as one that needed a lot."""
        error = self.error(self.nets[self.file](batch["figures"]), batch)
        return {"error": torch.log(error + self.floor).mean()}, {}

    @torch.no_grad()
    def validate(self, nets: dict[str, nn.Module]) -> dict[str, float]:
        """PSNR with the shares, with all of the change, and with none."""
        batch = self.kept_back()
        shares = nets[self.file](batch["figures"]).clamp(0.0, 1.0)
        every = torch.ones_like(shares)
        return {
            "psnr": _decibels(self.error(shares, batch)),
            "psnr_all": _decibels(self.error(every, batch)),
            "psnr_input": _decibels(self.error(0.0 * every, batch)),
        }


class _Lightly(FinetuneStage):
    """Its samples, with more of those that need little: restraint is for them."""

    def aged(self, x: Tensor, dice: Dice) -> Tensor:
        """Half by the wider mixture; of the others a sixth untouched, the rest by one operation alone, four times as
        often one that leaves most as it was, and three times real grain, as old photos have little else."""
        rng = dice.host
        lightly = rng.random(len(x)) < 0.5
        x = ageing.applied(super().aged, x, ~lightly, dice)
        operations = [*ageing.SINGLE, *[ageing.jpeg, ageing.low_resolution] * 3, *[self.grained] * 3]
        which = np.where(rng.random(len(x)) < 0.15, -1, rng.integers(len(operations), size=len(x)))
        for k, operation in enumerate(operations):
            x = ageing.applied(operation, x, lightly & (which == k), dice)
        return x

    def grained(self, x: Tensor, dice: Dice) -> Tensor:
        """Real grain, and mostly what scanning and storing does to it."""
        x = self.grain.laid(x, 1.0, dice)
        rng = dice.host
        x = ageing.applied(ageing.low_resolution, x, rng.random(len(x)) < 0.2, dice)
        return ageing.applied(ageing.jpeg, x, rng.random(len(x)) < 0.6, dice)


class ToneStage(_EstimatorStage, _Aged):
    """Whether a photo has faded, and what would bring its tone back."""

    samples = 24576
    floor = 4.0
    first = (1.0, 1.0, 1.0)

    def __init__(self, folders: Folders, earlier: Path, recipe: Recipe, device: torch.device) -> None:
        _Aged.__init__(self, folders, recipe, device, damaged=0.15)
        _EstimatorStage.__init__(self, tone.NET, earlier, recipe, device)

    def measured(self, count: int, dice: Dice) -> dict[str, Measured]:
        """See _EstimatorStage; p are gains and offsets. faded (N,): 1 where a line takes half of the error away."""
        rng = dice.host
        clean = self.clean(count, self.recipe.size, dice)
        monochrome = (clean[:, :1] == clean).flatten(1).all(dim=1).cpu().numpy()
        # Prints are toned: that is theirs, and stays, however faded.
        toned = monochrome & (rng.random(count) < 0.7)
        clean = ageing.applied(ageing.toned, clean, toned, dice)
        kind = rng.choice(4, count, p=(0.25, 0.35, 0.2, 0.2))  # anything, faded, unevenly exposed, both
        old = ageing.applied(ageing.wider_mixture, clean, kind == 0, dice)
        fades = np.isin(kind, (1, 3))
        old = ageing.applied(ageing.fading, old, fades & ~monochrome, dice)
        old = ageing.applied(ageing.paling, old, fades & monochrome, dice)
        old = ageing.applied(ageing.uneven_exposure, old, np.isin(kind, (2, 3)), dice)
        worn = (kind > 0) & (rng.random(count) < 0.4)
        for operation in ageing.PUBLISHED:
            old = ageing.applied(operation, old, worn & (rng.random(count) < 0.5), dice)
        old, _ = self.hurt(old, dice)
        old = (old * 255.0).round() / 255.0
        figures = [tone.of_values(one.permute(1, 2, 0).reshape(-1, 3).cpu().numpy()) for one in old]
        # Small copies, on which noise does not count as error.
        x, y = (255.0 * F.adaptive_avg_pool2d(z, 32).flatten(2).cpu().numpy() for z in (old, clean))
        rows = [self._of_one(*one) for one in zip(x, y, strict=True)]
        found = {k: np.stack([row[k] for row in rows]) for k in rows[0]}
        found["faded"] = np.where(fades | (kind == 0), found["faded"], 0.0)
        return {k: v.astype(np.float32) for k, v in found.items()} | {"figures": np.stack(figures)}

    @staticmethod
    def _of_one(old: Image, clean: Image) -> dict[str, Measured]:
        """(3, N) each, in levels."""
        quadratic, linear = np.zeros((6, 6)), np.zeros(6)
        best = 0.0
        for c, (x, y) in enumerate(zip(old, clean, strict=True)):
            quadratic[c, c], quadratic[3 + c, 3 + c] = (x * x).mean() / 3.0, 255.0**2 / 3.0
            quadratic[c, 3 + c] = quadratic[3 + c, c] = -255.0 * x.mean() / 3.0
            linear[c], linear[3 + c] = (x * y).mean() / 3.0, -255.0 * y.mean() / 3.0
            gain = np.clip(
                ((x - x.mean()) * (y - y.mean())).mean() / max(x.var(), 1.0), tone.LEAST_GAIN, tone.MOST_GAIN
            )
            best += float(np.square(gain * (x - x.mean()) + y.mean() - y).mean()) / 3.0
        error = float(np.square(old - clean).mean())
        return {
            "quadratic": quadratic,
            "linear": linear,
            "rest": np.array(np.square(clean).mean()),
            "faded": np.array(error > 30.0 and best < 0.5 * error),
        }

    def loss(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Logarithm of the error of those that have faded; cross-entropy of which have, sound photos counting three
        times: a photo spoilt is worse than one left faded."""
        answers, faded = self.nets[self.file](batch["figures"]), batch["faded"]
        error = torch.log(self.error(answers[:, :6], batch) + self.floor)
        entropy = F.binary_cross_entropy_with_logits(answers[:, 6], faded, reduction="none")
        return {
            "error": 0.3 * (error * faded).sum() / faded.sum().clamp_min(1.0),
            "faded": (entropy * (3.0 - 2.0 * faded)).mean(),
        }, {}

    @torch.no_grad()
    def validate(self, nets: dict[str, nn.Module]) -> dict[str, float]:
        """PSNR of the small copies of faded photos with and without what would be done; the shares of the faded and of
        the other photos that would be taken for faded."""
        batch = self.kept_back()
        answers, faded = nets[self.file](batch["figures"]), batch["faded"] > 0
        sure = torch.sigmoid(answers[:, 6]) >= tone.SURE
        nothing = answers.new_tensor((1.0, 1.0, 1.0, 0.0, 0.0, 0.0)).expand(len(answers), 6)
        gains = answers[:, :3].clamp(tone.LEAST_GAIN, tone.MOST_GAIN)
        done = torch.where(sure[:, None], torch.cat([gains, answers[:, 3:6]], dim=1), nothing)
        before, after = self.error(nothing, batch), self.error(done, batch)
        return {
            "psnr": _decibels(after[faded]),
            "psnr_input": _decibels(before[faded]),
            "found": float(sure[faded].float().mean()),
            "false": float(sure[~faded].float().mean()),
        }


class ScratchStage(_Aged):
    """The scratch detector, on synthetic damage over degraded photos."""

    def __init__(self, folders: Folders, recipe: Recipe, device: torch.device, config: Config) -> None:
        super().__init__(folders, recipe, device, damaged=0.6)
        self.nets = {"scratch_unet": fresh(config)}

    def sample(self, count: int, side: int, dice: Dice) -> dict[str, Tensor]:
        """grey (N, 1, S, S) in [-1, 1]; mask (N, 1, S, S)."""
        old, mask = self.hurt(ageing.wider_mixture(self.clean(count, side, dice), dice), dice)
        old = ageing.applied(ageing.jpeg, old, dice.host.random(count) < 0.3, dice)
        return {"grey": _signed(ageing.grey(old)[:, :1]), "mask": mask}

    def loss(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Cross-entropy and the Dice loss."""
        logits, mask = self.nets["scratch_unet"](batch["grey"]).float(), batch["mask"]
        entropy = F.binary_cross_entropy_with_logits(logits, mask)
        p = torch.sigmoid(logits)
        overlap = (p * mask).sum(dim=(1, 2, 3)) + 1.0
        dice = 1.0 - (2.0 * overlap / (p.sum(dim=(1, 2, 3)) + mask.sum(dim=(1, 2, 3)) + 2.0)).mean()
        return {"entropy": entropy, "dice": 0.5 * dice}, {}

    @torch.no_grad()
    def validate(self, nets: dict[str, nn.Module]) -> dict[str, float]:
        """Share of damaged pixels found and share of sound pixels mistaken, at threshold 0.5."""
        net = nets["scratch_unet"]
        batch = self.fixed(32, 256)
        grey, mask = batch["grey"], batch["mask"] > 0
        found = torch.sigmoid(net(grey)) >= 0.5
        return {
            "recall": float((found & mask).sum() / mask.sum().clamp_min(1)),
            "false": float((found & ~mask).sum() / (~mask).sum()),
        }


# Faces in old photos are small: what reaches the generator is mostly enlarged from fewer pixels than it shows. Sides in
# pixels that a batch of crops may have while it is aged, as shares of the generator's, and how often.
FACE_SIDES = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
FACE_SIDE_CHANCES = (0.06, 0.14, 0.2, 0.2, 0.16, 0.12, 0.12)


class FaceStage(Stage):
    """The face generator, on aligned clean faces and copies of them that were aged and then restored as a whole: what
    it sees in a run is a photo that translation and restraint have been over."""

    def __init__(
        self, folders: Folders, earlier: Path, recipe: Recipe, device: torch.device, file: str, config: Config
    ) -> None:
        self.recipe, self.device = recipe, device
        self.faces = aligned_faces(folders.faces, earlier, recipe.size, device)
        trio = {name: load_compact(earlier / f"{name}.safetensors") for name in ("old_vae", "mapping", "clean_vae")}
        self.restorer = FinetuneStage.trio({name: placed(net, device) for name, net in trio.items()})
        judge = load_compact(earlier / f"{restraint.NET}.safetensors")
        assert isinstance(judge, Estimator)
        self.restraint = judge
        net = fresh(config)
        assert isinstance(net, FaceGenerator)
        if net.config.residual:
            _silence(net.last)
        self.file, self.nets = file, {file: net}
        self.judges: dict[str, nn.Module] = {"picture": PatchDiscriminator(3, 32, 3)}

    def sample(self, count: int, side: int, dice: Dice) -> dict[str, Tensor]:
        """clean, old (N, 3, S, S) in [-1, 1]; old is aged and restored."""
        rng = dice.host
        clean = self.faces[dice.placed(rng.integers(len(self.faces), size=count))].float() / 255.0
        clean = torch.where(dice.some(count, 0.5), clean.flip(3), clean)
        clean = torch.where(dice.some(count, GREY), ageing.grey(clean), clean)
        small = max(32, round(side * rng.choice(FACE_SIDES, p=FACE_SIDE_CHANCES) / 16) * 16)
        old = clean if small == side else ageing.resized(clean, small, cv2.INTER_AREA)
        old = self._restored(_signed(ageing.wider_mixture(old, dice)))
        if small != side:
            old = ageing.resized(old, side, cv2.INTER_LINEAR if rng.random() < 0.7 else cv2.INTER_CUBIC)
        return {"clean": _signed(clean), "old": _signed(old)}

    @torch.no_grad()
    def _restored(self, old: Tensor) -> Tensor:
        """Photos (N, 3, S, S) in [-1, 1] as a run restores them, but for faces, in [0, 1]."""
        with quickly(self.device):
            made = translate_whole(old, None, self.restorer)
        kept = []
        for before, after in zip(_levels(old), _levels(made), strict=True):
            shares = restraint.judged(before, after, None, self.restraint)
            kept.append(restraint.kept(before, after, None, shares))
        return torch.from_numpy(np.stack(kept)).permute(0, 3, 1, 2).to(self.device) / 255.0

    def loss(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Likeness, feature matching and LSGAN."""
        made = self.nets[self.file](batch["old"])
        judge = self.judges["picture"]
        real, fake = judge(batch["clean"]), judge(made)
        mine = likeness(made, batch["clean"]) | {
            "features": 2.0 * feature_matching(real, fake),
            "gan": 0.05 * deceive(fake),
        }
        return mine, {"judge": discern(real, judge(made.detach()))}

    @torch.no_grad()
    def validate(self, nets: dict[str, nn.Module]) -> dict[str, float]:
        """PSNR of the enhanced face and of what it was made from, and of sharp faces put through."""
        net = nets[self.file]
        batch = self.fixed(32, self.recipe.size)
        old, clean = batch["old"], batch["clean"]
        return {"psnr": _psnr(net(old), clean), "psnr_input": _psnr(old, clean), "psnr_sharp": _psnr(net(clean), clean)}


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
        """How far off and how unsure the points are: from the true ones, and from where the two views of a photo see
        them on average."""
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


@lru_cache(maxsize=2)
def aligned_faces(folder: Path, earlier: Path, side: int, device: torch.device) -> Tensor:
    """The surest face of every photo of a folder, aligned: (count, 3, side, side) uint8.

    Photos without one are left out, and so are faces with fewer than two thirds of the pixels. The search takes
    minutes: what it finds is kept in `earlier`/aligned-<side>, and read from there if that folder is there. Raises
    NoInputError where nothing is left.
    """
    kept = earlier / f"aligned-{side}"
    found: list[Pixels] = []
    if kept.is_dir():
        found = read_photos(kept, side, side)
    else:
        landmarks = Landmarks(earlier / "landmarks_5.safetensors")
        for pixels in read_photos(folder, least=64):
            faces = find_faces(pixels, landmarks, side)
            if faces and np.hypot(faces[0].matrix[0, 0], faces[0].matrix[1, 0]) > 2.0 / 3.0:
                found.append(np.asarray(faces[0].before, np.uint8))
        if not found:
            raise NoInputError(f"{folder}: no face was found")
        part = kept.with_suffix(".part")
        part.mkdir(parents=True, exist_ok=True)
        for number, face in enumerate(found):
            PillowImage.fromarray(face).save(part / f"{number:05}.png")
        part.replace(kept)
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous().to(device)


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


def _silence(layer: nn.Conv2d) -> None:
    """Let a last layer give 0 until it has learned otherwise."""
    with torch.no_grad():
        layer.weight.zero_()
        if layer.bias is not None:
            layer.bias.zero_()


def _vae(path: Path) -> Vae:
    net = load_compact(path)
    assert isinstance(net, Vae)
    return net


def _detector(path: Path) -> ScratchUnet:
    net = load_compact(path)
    assert isinstance(net, ScratchUnet)
    return net


def _landmark_config() -> LandmarkNetConfig:
    config = COMPACT["landmarks_5"]
    assert isinstance(config, LandmarkNetConfig)
    return config


Build = Callable[[Folders, Path, Recipe, torch.device], Stage]
Architecture = Literal["compact", "published"]
# The stages by name, in order. Configs are looked up when a stage is built, so that tests can put smaller ones there.
STAGES: dict[Architecture, dict[str, tuple[Build, Recipe]]] = {
    "compact": {
        "landmarks": (
            lambda f, _, r, d: LandmarkStage(portraits(f.faces, placed_points(f.landmarks)), r, d, _landmark_config()),
            Recipe(steps=1300, batch=256, size=96, rate=2e-3),
        ),
        "scratch-unet": (
            lambda f, _, r, d: ScratchStage(f, r, d, COMPACT["scratch_unet"]),
            Recipe(steps=1422, batch=32, size=224, rate=1e-3),
        ),
        "old-vae": (
            lambda f, _, r, d: VaeStage(f, r, d, COMPACT["old_vae"], old=True),
            Recipe(steps=400, batch=24, size=128, rate=6e-4),
        ),
        "clean-vae": (
            lambda f, _, r, d: VaeStage(f, r, d, COMPACT["clean_vae"], old=False),
            Recipe(steps=800, batch=48, size=128, rate=6e-4),
        ),
        "mapping": (
            lambda f, e, r, d: MappingStage(f, e, r, d, "mapping", COMPACT["mapping"]),
            Recipe(steps=800, batch=48, size=128, rate=6e-4),
        ),
        "finetune": (FinetuneStage, Recipe(steps=6000, batch=48, size=160, rate=8e-4)),
        "restraint": (RestraintStage, Recipe(steps=12_000, batch=64, size=192, rate=2e-3)),
        "tone": (ToneStage, Recipe(steps=30_000, batch=96, size=256, rate=1e-3)),
        "face-generator": (
            lambda f, e, r, d: FaceStage(f, e, r, d, "face_generator", COMPACT["face_generator"]),
            Recipe(steps=4000, batch=24, size=256, rate=4e-4),
        ),
        "face-finder": (
            lambda f, _, r, d: FinderStage(f, r, d, COMPACT["face_finder"]),
            Recipe(steps=4000, batch=8, size=256, rate=2e-3),
        ),
    },
    # The paper's crops and rate; its 200 epochs in batches of 36 to 120 are a matter of the machine at hand.
    "published": {
        "old-vae": (
            lambda f, _, r, d: VaeStage(f, r, d, PUBLISHED["old_vae"], old=True),
            Recipe(steps=50_000, batch=16, size=256),
        ),
        "clean-vae": (
            lambda f, _, r, d: VaeStage(f, r, d, PUBLISHED["clean_vae"], old=False),
            Recipe(steps=50_000, batch=16, size=256),
        ),
        "mapping": (
            lambda f, e, r, d: MappingStage(f, e, r, d, "mapping", PUBLISHED["mapping"]),
            Recipe(steps=50_000, batch=16, size=256),
        ),
        "mapping-scratch": (
            lambda f, e, r, d: MappingStage(f, e, r, d, "mapping_scratch", PUBLISHED["mapping_scratch"]),
            Recipe(steps=50_000, batch=16, size=256),
        ),
        "mapping-patch-attention": (
            lambda f, e, r, d: MappingStage(
                f, e, r, d, "mapping_patch_attention", PUBLISHED["mapping_patch_attention"]
            ),
            Recipe(steps=50_000, batch=8, size=256),
        ),
        "scratch-unet": (
            lambda f, _, r, d: ScratchStage(f, r, d, PUBLISHED["scratch_unet"]),
            Recipe(steps=50_000, batch=16, size=256),
        ),
        "face-generator-256": (
            lambda f, e, r, d: FaceStage(f, e, r, d, "face_generator_256", PUBLISHED["face_generator_256"]),
            Recipe(steps=50_000, batch=8, size=256),
        ),
        "face-generator-512": (
            lambda f, e, r, d: FaceStage(f, e, r, d, "face_generator_512", PUBLISHED["face_generator_512"]),
            Recipe(steps=50_000, batch=4, size=512),
        ),
    },
}
