"""What each training stage optimises: its networks, its samples, its losses, its validation.

Stage one of the paper: `old-vae`, `clean-vae`. Stage two: `mapping`, with both VAEs frozen; the published architecture
has one for photos without damage, one with and one for large photos. A third stage of ours, for the compact networks
alone: `finetune`, encoder, mapping and decoder end to end. Beside them `scratch-unet`, `face-generator`, `face-finder`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from collections.abc import Mapping as Map
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from oldphoto.errors import NoInputError, UsageError
from oldphoto.faces import Landmarks, find_faces
from oldphoto.loading import PUBLISHED, Config, build, load_compact
from oldphoto.models.blocks import ResidualBlock
from oldphoto.models.face_finder import FaceFinderConfig
from oldphoto.models.mapping import Mapping, MappingConfig
from oldphoto.models.scratch_unet import ScratchUnetConfig
from oldphoto.models.spade import FaceGenerator, FaceGeneratorConfig
from oldphoto.models.vae import Refine, Source, Vae, VaeConfig
from oldphoto.training import degrade
from oldphoto.training.data import Photos, Sample, overlays, planes
from oldphoto.training.degrade import Generator, Image
from oldphoto.training.face_finder import Tiles, scenes
from oldphoto.training.losses import PatchDiscriminator, deceive, discern, edges, feature_matching, latent_prior
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
}
# Standard deviation of the noise on latents in stage one. The paper's is 1 at an unbounded latent scale.
LATENT_NOISE = 0.2


@dataclass(frozen=True)
class Folders:
    """Where the images lie: clean photos, real old photos, damage overlays by kind, clean faces."""

    clean: Path
    old: Path
    damage: Path
    faces: Path

    @staticmethod
    def below(data: Path) -> Folders:
        """`data`/clean, /old, /damage and /faces; a `train` folder inside one is preferred."""
        if not data.is_dir():
            raise NoInputError(f"{data}: no such folder")
        folders = [data / name for name in ("clean", "old", "damage", "faces")]
        return Folders(*(f / "train" if (f / "train").is_dir() else f for f in folders))


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

    def rate_at(self, step: int) -> float:
        """Learning rate of a step."""
        warm = min(1.0, (step + 1) / 200)
        return self.rate * warm * 0.5 * (1.0 + math.cos(math.pi * step / self.steps))


class Stage(ABC):
    """One training stage: its networks, its samples, its losses."""

    recipe: Recipe
    # File name (without suffix) -> network, in the order they are optimised.
    nets: dict[str, nn.Module]
    judges: dict[str, nn.Module]

    @abstractmethod
    def draw(self, rng: Generator) -> Sample:
        """One training sample, from one seeded generator."""

    @abstractmethod
    def loss(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Terms of the networks' loss and of the judges' loss, already weighted."""

    @abstractmethod
    def validate(self, nets: dict[str, nn.Module]) -> dict[str, float]:
        """Metrics of the smoothed networks on fixed samples."""


def _psnr(a: Tensor, b: Tensor) -> float:
    """Mean over the batch, of pictures in [-1, 1]."""
    error = (a.clamp(-1, 1) - b).square().mean(dim=(1, 2, 3)) / 4.0
    return float((-10.0 * torch.log10(error.clamp_min(1e-10))).mean())


def _maybe_grey(photo: Image, rng: Generator) -> Image:
    """One photo in four is made grey, degraded and clean alike: old photos mostly are."""
    return degrade.grey(photo) if rng.random() < 0.25 else photo


class _Translation(Stage):
    """What the stages around translation share: samples of degraded photos, most of them damaged, with masks.

    damaged: share of the samples that carry damage.
    """

    def __init__(self, folders: Folders, recipe: Recipe, damaged: float = 0.6) -> None:
        self.recipe = recipe
        self.damaged = damaged
        self.photos = Photos(folders.clean)
        self.overlays = overlays(folders.damage)
        self.judges: dict[str, nn.Module] = {}

    def draw(self, rng: Generator) -> Sample:
        """clean, degraded (3, S, S) in [-1, 1]; mask (1, S, S): 1 = damaged, as the nets are told it."""
        return self.sample(rng, self.recipe.size)

    def sample(self, rng: Generator, side: int) -> Sample:
        """As draw, of any size."""
        clean = _maybe_grey(self.photos.crop(side, rng), rng)
        old = degrade.wider_mixture(clean, rng)
        mask = np.zeros((side, side), np.bool_)
        if rng.random() < self.damaged:
            harm = degrade.damage((side, side), self.overlays, rng)
            old = degrade.covered(old, harm, rng)
            mask = told(harm.mask, rng)
        if clean is old or (
            np.array_equal(clean[..., 0], clean[..., 1]) and np.array_equal(clean[..., 1], clean[..., 2])
        ):
            old = degrade.grey(old) if rng.random() < 0.7 else old
        trusted = rng.random() < 0.4
        if not trusted and self.damaged:
            mask = mistaken(mask, old, self.overlays, rng)
        return {
            "clean": planes(clean),
            "old": planes(old),
            "mask": mask[None].astype(np.float32),
            "trusted": np.full((1, 1, 1), trusted, np.float32),
        }

    def fixed(self, count: int = 12, side: int = 192) -> dict[str, Tensor]:
        """The same samples at every validation, of seeds no training step uses."""
        samples = [self.sample(np.random.default_rng([7, self.recipe.seed, i]), side) for i in range(count)]
        return {k: torch.from_numpy(np.stack([s[k] for s in samples])) for k in samples[0]}


def told(mask: NDArray[np.bool_], rng: Generator) -> NDArray[np.bool_]:
    """The mask as its maker draws it: true, or grown by a pixel or two."""
    kind = rng.random()
    if kind < 0.4:
        return mask
    return cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=1 + int(kind > 0.75)).astype(
        np.bool_
    )


def mistaken(
    mask: NDArray[np.bool_], photo: Image, harm: Map[str, Sequence[NDArray[np.uint8]]], rng: Generator
) -> NDArray[np.bool_]:
    """The mask as a detector finds it: pieces are missed, and thin bright or dark structures of the photo, or places
    where nothing is, are taken for damage."""
    if rng.random() < 0.3:
        coarse = rng.random((4, 4), dtype=np.float32)
        mask = mask & (cv2.resize(coarse, mask.shape[::-1], interpolation=cv2.INTER_LINEAR) < 0.7)
    kind = rng.random()
    if kind < 0.2:
        return mask | degrade.damage((mask.shape[0], mask.shape[1]), harm, rng).mask
    if kind < 0.6:
        size = int(rng.choice((3, 5, 7)))
        hat = cv2.MORPH_TOPHAT if rng.random() < 0.8 else cv2.MORPH_BLACKHAT
        thin = cv2.morphologyEx(photo.mean(axis=2), hat, np.ones((size, size), np.uint8))
        found = thin > max(0.04, float(np.quantile(thin, 1.0 - rng.uniform(0.002, 0.06))))
        return mask | told(found, rng)
    return mask


class VaeStage(_Translation):
    """Stage one: a VAE of one domain; the old one also learns to make real and synthetic latents alike."""

    def __init__(self, folders: Folders, recipe: Recipe, config: Config, *, old: bool) -> None:
        super().__init__(folders, recipe)
        self.old = old
        self.real = Photos(folders.old, short_side=900) if old else None
        net = fresh(config)
        assert isinstance(net, Vae)
        self.nets = {"old_vae" if old else "clean_vae": net}
        self.vae = net
        self.judges = {"picture": PatchDiscriminator(3, 24, 2)}
        if old:
            self.judges["latent"] = PatchDiscriminator(net.config.latent_channels, 64, 0)

    def draw(self, rng: Generator) -> Sample:
        """As _Translation; the old domain adds a crop of a real old photo."""
        sample = super().draw(rng)
        if self.real is not None:
            sample["real"] = planes(self.real.crop(self.recipe.size, rng))
        return sample

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
            "edges": 5.0 * edges(made, x),
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
        batch = self.fixed()
        device = next(net.parameters()).device
        x = batch["old" if self.old else "clean"].to(device)
        return {"psnr": _psnr(net.decode(net.encode(x, batch["mask"].to(device) if self.old else None)), x)}


class MappingStage(_Translation):
    """Stage two: the mapping between the latents of two frozen VAEs."""

    def __init__(self, folders: Folders, earlier: Path, recipe: Recipe, file: str, config: Config) -> None:
        # A mapping without attention is for photos without damage.
        damaged = 0.6 if isinstance(config, MappingConfig) and config.context != "none" else 0.0
        super().__init__(folders, recipe, damaged)
        self.old_vae, self.clean_vae = _vae(earlier / "old_vae.safetensors"), _vae(earlier / "clean_vae.safetensors")
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
        (mapping,) = nets.values()
        batch = {k: v.to(next(mapping.parameters()).device) for k, v in self.fixed().items()}
        _, made = self._translated(nets, batch)
        return {"psnr": _psnr(made, batch["clean"]), "psnr_input": _psnr(batch["old"], batch["clean"])}

    def _translated(self, nets: dict[str, nn.Module], batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mapped latents, and the picture painted from them."""
        for vae in (self.old_vae, self.clean_vae):
            vae.to(batch["old"].device)
        (mapping,) = nets.values()
        assert isinstance(mapping, Mapping)
        trio = TranslationNets(self.old_vae, mapping, self.clean_vae)
        _, mapped = translate_latents(batch["old"], batch["mask"] if self.damaged else None, trio)
        return mapped, self.clean_vae.decode(mapped)


class FinetuneStage(_Translation):
    """Stage three, ours: encoder, mapping and decoder end to end, the decoder refining the photo."""

    def __init__(self, folders: Folders, earlier: Path, recipe: Recipe) -> None:
        super().__init__(folders, recipe)
        loaded = load_compact(earlier / "mapping.safetensors")
        assert isinstance(loaded, Mapping)
        self.nets = {
            "old_vae": _vae(earlier / "old_vae.safetensors"),
            "mapping": loaded,
            "clean_vae": _vae(earlier / "clean_vae.safetensors"),
        }

    @staticmethod
    def _nets(nets: dict[str, nn.Module]) -> TranslationNets:
        old, mapping, clean = nets["old_vae"], nets["mapping"], nets["clean_vae"]
        assert isinstance(old, Vae)
        assert isinstance(mapping, Mapping)
        assert isinstance(clean, Vae)
        return TranslationNets(old, mapping, clean)

    def loss(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """L1 and edges of the restored picture, and of what was painted from the latents alone.

        Without the second, the deep layers would drift: next to nothing depends on them until they are used, and
        Adam makes full steps of their faint gradients.
        """
        nets = self._nets(self.nets)
        old, mask = batch["old"], batch["mask"]
        filled, latent = translate_latents(old, mask, nets)
        decoder, clean = nets.clean_vae.decoder, batch["clean"]
        features, painted = decoder.paint(latent)
        terms = {"painted": 0.3 * F.l1_loss(painted, clean), "painted_edges": 0.1 * edges(painted, clean)}
        if decoder.refine is not None:
            seen = torch.where(batch["trusted"] > 0, filled, old)
            made = decoder.refine(features, painted, Source(filled, seen, mask))
            terms |= {"l1": F.l1_loss(made, clean), "edges": 0.25 * edges(made, clean)}
        return terms, {}

    @torch.no_grad()
    def validate(self, nets: dict[str, nn.Module]) -> dict[str, float]:
        """PSNR of restored and of degraded photos, and of undamaged photos put through."""
        trio = self._nets(nets)
        device = next(nets["mapping"].parameters()).device
        batch = {k: v.to(device) for k, v in self.fixed(count=24).items()}
        made = translate_whole(batch["old"], batch["mask"], trio)
        told = translate_whole(batch["old"], batch["mask"], trio, trusted=False)
        kept = translate_whole(batch["clean"], None, trio)
        return {
            "psnr": _psnr(made, batch["clean"]),
            "psnr_untrusted": _psnr(told, batch["clean"]),
            "psnr_input": _psnr(batch["old"], batch["clean"]),
            "psnr_undamaged": _psnr(kept, batch["clean"]),
        }


class ScratchStage(Stage):
    """The scratch detector, on synthetic damage over degraded photos."""

    def __init__(self, folders: Folders, recipe: Recipe, config: Config) -> None:
        self.recipe = recipe
        self.photos = Photos(folders.clean)
        self.overlays = overlays(folders.damage)
        self.nets = {"scratch_unet": fresh(config)}
        self.judges: dict[str, nn.Module] = {}

    def draw(self, rng: Generator) -> Sample:
        """grey (1, S, S) in [-1, 1]; mask (1, S, S). Two photos in five carry no damage."""
        photo = self.photos.crop(self.recipe.size, rng)
        photo = degrade.wider_mixture(photo, rng)
        side = self.recipe.size
        mask = np.zeros((side, side), np.bool_)
        if rng.random() > 0.4:
            harm = degrade.damage((side, side), self.overlays, rng)
            photo, mask = degrade.covered(photo, harm, rng), harm.mask
        if rng.random() < 0.3:
            photo = degrade.jpeg(photo, rng)
        return {"grey": planes(degrade.grey(photo))[:1], "mask": mask[None].astype(np.float32)}

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
        """Share of damaged pixels found and share of sound pixels mistaken, at threshold 0.4."""
        net = nets["scratch_unet"]
        device = next(net.parameters()).device
        samples = [self.draw(np.random.default_rng([7, self.recipe.seed, i])) for i in range(16)]
        grey = torch.from_numpy(np.stack([s["grey"] for s in samples])).to(device)
        mask = torch.from_numpy(np.stack([s["mask"] for s in samples])).to(device) > 0
        found = torch.sigmoid(net(grey)) >= 0.4
        return {
            "recall": float((found & mask).sum() / mask.sum().clamp_min(1)),
            "false": float((found & ~mask).sum() / (~mask).sum()),
        }


class FaceStage(Stage):
    """The face generator, on aligned clean faces and degraded copies of them."""

    def __init__(self, folders: Folders, earlier: Path, recipe: Recipe, file: str, config: Config) -> None:
        self.recipe = recipe
        self.faces = aligned_faces(folders.faces, Landmarks(earlier / "landmarks_5.dat"), recipe.size)
        net = fresh(config)
        assert isinstance(net, FaceGenerator)
        if net.config.residual:
            _silence(net.last)
        self.file, self.nets = file, {file: net}
        self.judges: dict[str, nn.Module] = {"picture": PatchDiscriminator(3, 24, 3)}

    def draw(self, rng: Generator) -> Sample:
        """clean, degraded (3, S, S) in [-1, 1]. One face in six is only lightly degraded or not at all."""
        side = self.recipe.size
        clean = self.faces[int(rng.integers(len(self.faces)))].astype(np.float32) / np.float32(255.0)
        if rng.random() < 0.5:
            clean = np.ascontiguousarray(clean[:, ::-1])
        if rng.random() < 0.4:
            clean = degrade.grey(clean)
        old = clean
        if rng.random() > 0.17:
            # Faces in old photos are small: what reaches the generator is mostly enlarged from fewer pixels.
            small = int(rng.integers(side // 5, side + 1))
            old = degrade.resampled(old, (small, small), rng)
            old = degrade.wider_mixture(old, rng)
            old = degrade.resampled(old, (side, side), rng)
        return {"clean": planes(clean), "old": planes(old)}

    def loss(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """L1, edges, feature matching and LSGAN."""
        made = self.nets[self.file](batch["old"])
        judge = self.judges["picture"]
        real, fake = judge(batch["clean"]), judge(made)
        mine = {
            "l1": F.l1_loss(made, batch["clean"]),
            "edges": 0.5 * edges(made, batch["clean"]),
            "features": 0.2 * feature_matching(real, fake),
            "gan": 0.005 * deceive(fake),
        }
        return mine, {"judge": discern(real, judge(made.detach()))}

    @torch.no_grad()
    def validate(self, nets: dict[str, nn.Module]) -> dict[str, float]:
        """PSNR of the enhanced and of the degraded face."""
        net = nets[self.file]
        device = next(net.parameters()).device
        samples = [self.draw(np.random.default_rng([7, self.recipe.seed, i])) for i in range(12)]
        old, clean = (torch.from_numpy(np.stack([s[k] for s in samples])).to(device) for k in ("old", "clean"))
        return {"psnr": _psnr(net(old), clean), "psnr_input": _psnr(old, clean)}


class FinderStage(Stage):
    """The network that proposes where faces are."""

    def __init__(self, folders: Folders, recipe: Recipe, config: Config) -> None:
        self.recipe = recipe
        # Small faces of the larger photos show to the detector once they are enlarged.
        self.tiles = Tiles(scenes(folders.faces, 1), scenes(folders.clean, 2), scenes(folders.old, 2))
        self.nets = {"face_finder": fresh(config)}
        self.judges = {}

    def draw(self, rng: Generator) -> Sample:
        """A picture of tiles and its truth."""
        return self.tiles.draw(self.recipe.size, rng)

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
        device = next(net.parameters()).device
        samples = [self.draw(np.random.default_rng([7, self.recipe.seed, i])) for i in range(24)]
        picture, truth = (torch.from_numpy(np.stack([s[k] for s in samples])).to(device) for k in ("picture", "truth"))
        logits = torch.cat([net(one)[:, 0] for one in torch.split(picture, 4)])
        inside = logits[(truth[:, 0] > 0) & (truth[:, 5] > 0)]
        outside = logits[(truth[:, 0] == 0) & (truth[:, 5] > 0)]
        return {
            f"recall_{wrong}": float((inside > torch.quantile(outside, 1.0 - 1.0 / wrong)).float().mean())
            for wrong in (100, 1000)
        }


def aligned_faces(folder: Path, landmarks: Landmarks, side: int) -> list[NDArray[np.uint8]]:
    """The surest face of every photo of a folder, aligned, (side, side, 3) uint8; photos without one are left out,
    and so are faces with fewer than two thirds of the pixels. Raises NoInputError where nothing is left."""
    found = []
    for pixels in Photos(folder, least=64).pixels:
        faces = find_faces(pixels, landmarks, side)
        if faces and np.hypot(faces[0].matrix[0, 0], faces[0].matrix[1, 0]) > 2.0 / 3.0:
            found.append(np.asarray(faces[0].before, np.uint8))
    if not found:
        raise NoInputError(f"{folder}: no face was found")
    return found


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


Build = Callable[[Folders, Path, Recipe], Stage]
Architecture = Literal["compact", "published"]
# The stages by name, in order. Configs are looked up when a stage is built, so that tests can put smaller ones there.
STAGES: dict[Architecture, dict[str, tuple[Build, Recipe]]] = {
    "compact": {
        "old-vae": (
            lambda f, _, r: VaeStage(f, r, COMPACT["old_vae"], old=True),
            Recipe(steps=500, batch=4, size=128, rate=6e-4),
        ),
        "clean-vae": (
            lambda f, _, r: VaeStage(f, r, COMPACT["clean_vae"], old=False),
            Recipe(steps=450, batch=8, size=128, rate=6e-4),
        ),
        "mapping": (
            lambda f, e, r: MappingStage(f, e, r, "mapping", COMPACT["mapping"]),
            Recipe(steps=260, batch=8, size=128, rate=6e-4),
        ),
        "finetune": (FinetuneStage, Recipe(steps=7500, batch=4, size=128, rate=4e-4)),
        "scratch-unet": (
            lambda f, _, r: ScratchStage(f, r, COMPACT["scratch_unet"]),
            Recipe(steps=4300, batch=5, size=192, rate=1e-3),
        ),
        "face-generator": (
            lambda f, e, r: FaceStage(f, e, r, "face_generator", COMPACT["face_generator"]),
            Recipe(steps=500, batch=4, size=256, rate=6e-4),
        ),
        "face-finder": (
            lambda f, _, r: FinderStage(f, r, COMPACT["face_finder"]),
            Recipe(steps=4000, batch=8, size=256, rate=2e-3),
        ),
    },
    # The paper's crops and rate; its 200 epochs in batches of 36 to 120 are a matter of the machine at hand.
    "published": {
        "old-vae": (
            lambda f, _, r: VaeStage(f, r, PUBLISHED["old_vae"], old=True),
            Recipe(steps=50_000, batch=16, size=256),
        ),
        "clean-vae": (
            lambda f, _, r: VaeStage(f, r, PUBLISHED["clean_vae"], old=False),
            Recipe(steps=50_000, batch=16, size=256),
        ),
        "mapping": (
            lambda f, e, r: MappingStage(f, e, r, "mapping", PUBLISHED["mapping"]),
            Recipe(steps=50_000, batch=16, size=256),
        ),
        "mapping-scratch": (
            lambda f, e, r: MappingStage(f, e, r, "mapping_scratch", PUBLISHED["mapping_scratch"]),
            Recipe(steps=50_000, batch=16, size=256),
        ),
        "mapping-patch-attention": (
            lambda f, e, r: MappingStage(f, e, r, "mapping_patch_attention", PUBLISHED["mapping_patch_attention"]),
            Recipe(steps=50_000, batch=8, size=256),
        ),
        "scratch-unet": (
            lambda f, _, r: ScratchStage(f, r, PUBLISHED["scratch_unet"]),
            Recipe(steps=50_000, batch=16, size=256),
        ),
        "face-generator-256": (
            lambda f, e, r: FaceStage(f, e, r, "face_generator_256", PUBLISHED["face_generator_256"]),
            Recipe(steps=50_000, batch=8, size=256),
        ),
        "face-generator-512": (
            lambda f, e, r: FaceStage(f, e, r, "face_generator_512", PUBLISHED["face_generator_512"]),
            Recipe(steps=50_000, batch=4, size=512),
        ),
    },
}
