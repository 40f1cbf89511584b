"""The stage `tone`: whether a photo has faded, and the curve that undoes it, on prints that a model of dyes has faded.

What photos show is told by features that stay as ImageNet taught them, of copies whose levels are stretched: they
hardly change as a photo fades. So photos are drawn, faded and measured once, and steps cost little.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image as PillowImage
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from oldphoto.errors import NoInputError
from oldphoto.models.loading import load_strictly, placed
from oldphoto.models.tone_net import (
    LUMINANCE,
    MEASURED,
    SEEN,
    Answers,
    ToneNet,
    ToneNetConfig,
    corrected,
    lab,
    light,
    looked_at,
)
from oldphoto.stages import fading
from oldphoto.training import ageing, dyes
from oldphoto.training.ageing import Dice
from oldphoto.training.base import COMPACT, Folders, Recipe, Stage
from oldphoto.training.data import image_files
from oldphoto.training.losses import difference_of_colour
from oldphoto.training.perceptual import imagenet

Pixels8 = NDArray[np.uint8]

AT_ONCE = 256  # crops of a part
DRAWS = 5  # samples of each crop
SHORT_SIDE = 320  # of photos in memory, in pixels
COLOURFUL = 3.0  # mean chroma in Lab that a photo in colour has
FACES = 500  # of the faces: the rest are more of the same
LOOKED_AT = 256  # pixels of each copy that the error is taken of
# What a sample is, and how often: a sound photo in colour, a faded one; a black-and-white print, sound and pale; a
# hand-coloured one.
SOUND, FADED, PRINT, PALE, TINTED = range(5)
CHANCES = (0.2, 0.5, 0.07, 0.15, 0.08)
MOVED = 2.0  # dE2000 by which a photo is visibly changed


class Errors(NamedTuple):
    """Mean dE2000 of each photo, (N,); of monochrome ones the mean difference of lightness, since the tone is theirs.

    before, after: to the truth, as it came and corrected. moved: from one to the other.
    """

    before: Tensor
    after: Tensor
    moved: Tensor


class ToneStage(Stage):
    """Whether a photo has faded, and the curve that undoes it."""

    parts = 24
    sound_counts = 0.15  # how much it counts where a sound photo would go, if it were taken for faded
    harm = 0.3

    def __init__(self, folders: Folders, earlier: Path, recipe: Recipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        config = COMPACT[fading.NET]
        assert isinstance(config, ToneNetConfig)
        net = ToneNet(config)
        path, state = imagenet()
        load_strictly(net.eye, {k: v for k, v in state.items() if k in net.eye.state_dict()}, path)
        for weight in (net.last.weight, net.last.bias, net.directly.weight):
            nn.init.zeros_(weight)
        self.net = placed(net, device)
        parts = min(self.parts, -(-recipe.steps * recipe.batch // (AT_ONCE * DRAWS)))
        folder = earlier / f"{fading.NET}-samples"
        photos: list[Pixels8] = []
        measured = []
        for k in range(parts):
            kept = folder / f"{recipe.seed}-{k:04}.safetensors"
            if not kept.is_file():
                photos = photos or photos_in_colour(folders)
                kept.parent.mkdir(parents=True, exist_ok=True)
                part = kept.with_suffix(".part")
                save_file(self.measured(photos, Dice.seeded(device, recipe.seed, k)), part)
                part.replace(kept)
            measured.append(load_file(kept))
        crops = 0
        for one in measured:  # features are of crops, of which there are fewer than samples
            one["crop"] += crops
            crops += len(one["features"])
        self.all = {k: torch.cat([one[k] for one in measured]) for k in measured[0]}
        # One photo in ten is left to `validate`.
        unseen = self.all["photo"] % 10 == 0
        self.seen, self.unseen = (torch.where(which)[0] for which in (~unseen, unseen))
        self.nets = {fading.NET: net}
        self.judges: dict[str, nn.Module] = {}

    @torch.inference_mode()
    def measured(self, photos: list[Pixels8], dice: Dice) -> dict[str, Tensor]:
        """DRAWS samples of each of AT_ONCE crops, float16 but for numbers.

        features: (AT_ONCE, 2, F, CELLS, CELLS), of the crop in colour, half of them faded, and in grey. For each
        sample, crop, photo: numbers; kind: one of SOUND to TINTED; cells, whole, dark: see Look; light: (3, LOOKED_AT),
        of some pixels, and their true Lab.
        """
        which = dice.host.integers(len(photos), size=AT_ONCE)
        truth = torch.stack([crop(photos[k], dice.host) for k in which]).to(self.device)
        shown = ageing.applied(dyes.faded, truth, dice.host.random(AT_ONCE) < 0.5, dice)
        features = [
            torch.cat([self.net.features(few) for few in torch.split(x, 16)]) for x in (shown, ageing.grey(truth))
        ]
        small = F.interpolate(truth, (MEASURED, MEASURED), mode="area")
        drawn = [self._drawn(small, dice) for _ in range(DRAWS)]
        found = {k: torch.cat([one[k] for one in drawn]) for k in drawn[0]}
        found |= {"crop": torch.arange(AT_ONCE).repeat(DRAWS), "photo": torch.from_numpy(which).repeat(DRAWS)}
        found["features"] = torch.stack(features, dim=1).half()
        return {k: v.contiguous().cpu() for k, v in found.items()}

    def _drawn(self, truth: Tensor, dice: Dice) -> dict[str, Tensor]:
        """One sample of each crop (N, 3, MEASURED, MEASURED)."""
        kinds = dice.host.choice(len(CHANCES), len(truth), p=CHANCES)
        truth = ageing.applied(dyes.toned, truth, np.isin(kinds, (PRINT, PALE)), dice)
        truth = ageing.applied(dyes.tinted, truth, kinds == TINTED, dice)
        old = ageing.applied(dyes.faded, truth, kinds == FADED, dice)
        old = ageing.applied(dyes.paled, old, kinds == PALE, dice)
        look = looked_at((old + 0.004 * dice.normal(*old.shape)).clamp(0.0, 1.0))
        pixels = dice.placed(dice.host.permutation(MEASURED * MEASURED)[:LOOKED_AT])
        right = lab(light(truth.flatten(2)[..., pixels]))
        halves = {"cells": look.cells, "whole": look.whole, "dark": look.dark, "light": look.light[..., pixels]}
        return {k: v.half() for k, v in (halves | {"lab": right}).items()} | {"kind": torch.from_numpy(kinds)}

    def sample(self, count: int, side: int, dice: Dice) -> dict[str, Tensor]:
        """See Stage; `side` is of no account."""
        return self.chosen(self.seen[torch.from_numpy(dice.host.integers(len(self.seen), size=count))])

    def chosen(self, those: Tensor) -> dict[str, Tensor]:
        """Samples by their numbers (N,): see `measured`."""
        kept = {k: v[those] for k, v in self.all.items() if k != "features"}
        grey = (kept["kind"] >= PRINT).long()
        kept["features"] = self.all["features"][kept["crop"], grey]
        return {k: (v.float() if v.is_floating_point() else v).to(self.device) for k, v in kept.items()}

    def loss(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The error of what is faded, corrected; what is made worse by more than 1, again; whether correcting makes it
        a quarter better, which no sound photo can be."""
        with torch.autocast(self.device.type, enabled=False):
            answers, errors = self.judged(self.nets[fading.NET], batch)
            faded = (batch["kind"] == FADED) | (batch["kind"] == PALE)
            helps = (errors.after.detach() < 0.75 * errors.before) & faded
            entropy = F.binary_cross_entropy_with_logits(_sure(answers, batch["kind"]), helps.float())
            return {
                "after": errors.after[faded].mean() / 6.0,
                "sound": self.sound_counts / 6.0 * errors.after[~faded].mean(),
                "harm": self.harm * ((errors.after - errors.before - 1.0).clamp_min(0.0) * faded).mean(),
                "faded": entropy,
            }, {}

    def judged(self, net: nn.Module, batch: dict[str, Tensor]) -> tuple[Answers, Errors]:
        """What a network says of samples, and how good that is."""
        assert isinstance(net, ToneNet)
        answers = net.judged(batch["features"], batch["cells"], batch["whole"], batch["dark"])
        monochrome = (batch["kind"] == PRINT) | (batch["kind"] == PALE)
        return answers, errors_of(batch["light"], batch["lab"], answers, monochrome)

    @torch.no_grad()
    def validate(self, nets: dict[str, nn.Module]) -> dict[str, float]:
        """Of photos that no step sees: mean dE2000 before and after, of those taken for faded; the shares of the faded
        that are halved, and made worse by 3; the share of the sound that is visibly moved. Pale prints likewise."""
        batch = self.chosen(self.unseen)
        answers, errors = self.judged(nets[fading.NET], batch)
        acts = torch.sigmoid(_sure(answers, batch["kind"])) > fading.SURE
        after = torch.where(acts, errors.after, errors.before)
        moved = acts & (errors.moved > MOVED)
        faded, sound, pale, tinted = (batch["kind"] == kind for kind in (FADED, SOUND, PALE, TINTED))
        return {
            "before": float(errors.before[faded].mean()),
            "after": float(after[faded].mean()),
            "all": float(errors.after[faded].mean()),
            "halved": float((after < 0.5 * errors.before)[faded].float().mean()),
            "halved_all": float((errors.after < 0.5 * errors.before)[faded].float().mean()),
            "spoilt": float((after > errors.before + 3.0)[faded].float().mean()),
            "moved": float(moved[sound].float().mean()),
            "moved_tinted": float(moved[tinted].float().mean()),
            "pale_before": float(errors.before[pale].mean()),
            "pale": float(after[pale].mean()),
            "moved_print": float(moved[batch["kind"] == PRINT].float().mean()),
        }


def errors_of(linear: Tensor, truth: Tensor, answers: Answers, monochrome: Tensor) -> Errors:
    """linear: (N, 3, P), light of some pixels; truth: (N, 3, P), Lab that they should have; monochrome: (N,)."""

    def shown(x: Tensor) -> Tensor:
        """Clipped, but for so little that what is out of range finds its way back."""
        return torch.lerp(x.clamp(0.0, 1.0), x, 0.01)

    old, new = lab(linear), lab(shown(corrected(linear, answers.colour)))
    colour = [difference_of_colour(x, y).mean(dim=1) for x, y in ((old, truth), (new, truth), (new, old))]
    grey = torch.einsum("c,ncp->np", linear.new_tensor(LUMINANCE), linear)[:, None]
    made = lab(shown(corrected(grey, answers.luminance)).expand(-1, 3, -1))[:, 0]
    light_alone = ((old[:, 0], truth[:, 0]), (made, truth[:, 0]), (made, old[:, 0]))
    of_light = [(x - y).abs().mean(dim=1) for x, y in light_alone]
    return Errors(*(torch.where(monochrome, x, y) for x, y in zip(of_light, colour, strict=True)))


def _sure(answers: Answers, kind: Tensor) -> Tensor:
    """(N,) logits of what is asked for photos of these kinds."""
    return torch.where((kind == PRINT) | (kind == PALE), answers.faded[:, 1], answers.faded[:, 0])


def photos_in_colour(folders: Folders) -> list[Pixels8]:
    """The clean photos, those in colour, and some of the faces, but for what is grey; (H, W, 3), small."""
    rng = np.random.default_rng(5)
    faces = image_files(folders.faces)
    some = [faces[k] for k in rng.permutation(len(faces))[:FACES]]
    files = [f for folder in (folders.clean, folders.colour) if folder.is_dir() for f in image_files(folder)]
    found = []
    for file in files + some:
        with PillowImage.open(file) as image:
            image.draft("RGB", (SHORT_SIDE, SHORT_SIDE))  # of a JPEG no more is decoded than is needed
            rgb = image.convert("RGB")
        shrink = SHORT_SIDE / min(rgb.size)
        if shrink < 1.0:
            rgb = rgb.resize((round(rgb.width * shrink), round(rgb.height * shrink)), PillowImage.Resampling.BOX)
        pixels = np.asarray(rgb)
        if in_colour(pixels):
            found.append(pixels)
    if not found:
        raise NoInputError(f"{folders.clean}: no photo in colour")
    return found


def in_colour(photo: Pixels8) -> bool:
    """Whether a photo is no monochrome one, by its mean chroma."""
    tiny = cv2.resize(photo, (64, 64), interpolation=cv2.INTER_AREA).astype(np.float32) / np.float32(255.0)
    a, b = np.moveaxis(np.asarray(cv2.cvtColor(tiny, cv2.COLOR_RGB2LAB)), 2, 0)[1:]
    return bool(np.hypot(a, b).mean() > COLOURFUL)


def crop(photo: Pixels8, rng: np.random.Generator) -> Tensor:
    """(3, SEEN, SEEN) in [0, 1] of most of a photo, whatever its proportions; one in eight has a border of paper."""
    h, w = photo.shape[:2]
    down, across = (1.0, 1.0) if rng.random() < 0.3 else rng.uniform(0.55, 1.0, 2)
    height, width = max(32, round(h * down)), max(32, round(w * across))
    y, x = rng.integers(max(1, h - height + 1)), rng.integers(max(1, w - width + 1))
    cut = photo[y : y + height, x : x + width]
    edge = int(rng.integers(2, 9)) if rng.random() < 0.12 else 0
    inner = (SEEN - 2 * edge, SEEN - 2 * edge)
    small = np.asarray(cv2.resize(cut, inner, interpolation=cv2.INTER_AREA), np.float32) / np.float32(255.0)
    if rng.random() < 0.5:
        small = small[:, ::-1]
    paper = rng.uniform(0.88, 1.0) + rng.normal(0.0, 0.01, 3)
    whole = np.broadcast_to(paper.clip(0.0, 1.0).astype(np.float32), (SEEN, SEEN, 3)).copy()
    whole[edge : SEEN - edge, edge : SEEN - edge] = small
    return torch.from_numpy(whole).permute(2, 0, 1).contiguous()
