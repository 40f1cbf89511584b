"""The stage that learns to colour grey photos: photos in colour, made grey as old plates saw them, then aged.

A photo is seen whole, or nearly so, since what a thing is tells its colour. The target is a distribution over a grid of
a* and b*; rare colours count for more, or all would be brown (Zhang, Isola and Efros, ECCV 2016).
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oldphoto.errors import NoInputError
from oldphoto.models.colour_net import NODES, SIDES, STRIDE, ColourNet, ColourNetConfig, colours, places
from oldphoto.training.ageing import Dice
from oldphoto.training.base import Folders, Recipe, Stage
from oldphoto.training.damage import jpeg
from oldphoto.training.data import read_photos
from oldphoto.training.perceptual import features
from oldphoto.training.wear import Bytes, Generator, Image

SHORT_SIDE = 236  # of the photos that crops are cut from
COLOURFUL = 5.0  # mean chroma below which a photo counts as grey, and teaches nothing
PEOPLE = 0.4  # share of a batch that is portraits
EVEN = 0.5  # how far rare colours count for more: 0 not at all, 1 all colours alike
PLAIN = 0.3  # share of the photos that are made grey and nothing else
MEAN = 0.02  # weight of the distance between the distribution's mean and the truth
TEMPERATURE = 0.5  # at validation
# Sensitivity to red, green and blue light of a plate that sees blue alone, of an orthochromatic one, of panchromatic
# film, and of the eye.
PLATES = ((0.02, 0.13, 0.85), (0.05, 0.55, 0.40), (0.30, 0.40, 0.30), (0.2126, 0.7152, 0.0722))
SETTLED = 3  # blocks of the encoder that stay as they are: edges and textures
JUDGED = (48, 192)  # samples of a validation, and their side in pixels


def grey_of(photo: Image, weights: Image) -> Image:
    """What a plate of such sensitivity to red, green and blue light makes of a photo: (H, W, 3) sRGB in [0, 1] ->
    (H, W), as sRGB grey."""
    light = np.where(photo <= 0.04045, photo / 12.92, ((photo + 0.055) / 1.055) ** 2.4)
    seen = np.clip(light @ (weights / weights.sum()), 0.0, 1.0)
    return _f32(np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055))


def aged(grey: Image, rng: Generator) -> Image:
    """A grey photo (H, W) in [0, 1] with the tones, softness, grain and compression of an old one."""
    x = grey ** np.float32(np.exp(rng.uniform(-0.45, 0.45)))
    if rng.random() < 0.6:  # faded: neither black nor white is left
        low, high = rng.uniform(0.0, 0.3), rng.uniform(0.7, 1.0)
        x = _f32(low + (high - low) * x)
    elif rng.random() < 0.4:  # hard
        x = np.clip((x - 0.5) * np.float32(rng.uniform(1.0, 1.6)) + np.float32(rng.uniform(0.4, 0.6)), 0, 1)
    if rng.random() < 0.5:
        x = _f32(cv2.GaussianBlur(x, (0, 0), rng.uniform(0.4, 1.4)))
    if rng.random() < 0.5:
        noise = _f32(rng.standard_normal(x.shape))
        if rng.random() < 0.5:
            noise = _f32(cv2.GaussianBlur(noise, (0, 0), 0.8)) * np.float32(2.4)
        x = x + noise * np.float32(rng.uniform(0.0, 0.07))
    x = np.clip(x, 0, 1)
    if rng.random() < 0.2:
        x = jpeg(np.repeat(x[..., None] * 255, 3, axis=2), int(rng.uniform(40, 90)))[..., 1] / np.float32(255)
    return _f32(x)


def _f32(a: object) -> Image:
    return np.asarray(a, np.float32)


class ColourStage(Stage):
    """The compact set's colour network, from ImageNet weights on."""

    def __init__(self, folders: Folders, recipe: Recipe, device: torch.device, config: ColourNetConfig) -> None:
        """Raises NoInputError where no photo has colour, UsageError where the ImageNet weights are absent."""
        self.recipe, self.device = recipe, device
        net = ColourNet(config)
        self.features = features(device)
        net.encoder.load_state_dict(self.features.state_dict())
        net.encoder.settled = SETTLED
        self.nets = {"colour_net": net}
        self.judges: dict[str, nn.Module] = {}
        self.paces = {"colour_net.encoder.": 0.3}  # it need not learn to see
        least = min(recipe.size, SHORT_SIDE)
        things = [folders.clean, *([folders.colour] if folders.colour.is_dir() else [])]
        self.photos = _colourful([photo for one in things for photo in read_photos(one, SHORT_SIDE, least)], things[0])
        self.people = _colourful(read_photos(folders.faces, SHORT_SIDE, least), folders.faces)
        self.weights = self._weights().to(device)

    def _weights(self) -> Tensor:
        """(NODES,): how much a colour counts, 1 in the mean over the photos."""
        found = torch.zeros(NODES)
        for photo in [*self.photos, *self.people][:: max(1, (len(self.photos) + len(self.people)) // 1000)]:
            small = cv2.resize(photo, (48, 48), interpolation=cv2.INTER_AREA).astype(np.float32) / 255.0
            ab = torch.from_numpy(np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2LAB))[..., 1:]).permute(2, 0, 1)[None]
            index, share = places(ab)
            found.index_add_(0, index.flatten(), share.flatten())
        smooth = cv2.GaussianBlur(found.view(SIDES).numpy(), (0, 0), 0.7, borderType=cv2.BORDER_REPLICATE)
        often = torch.from_numpy(smooth).flatten()
        often = often / often.sum()
        weights = 1.0 / ((1.0 - EVEN) * often + EVEN / NODES)
        return weights / (weights * often).sum()

    def sample(self, count: int, side: int, dice: Dice) -> dict[str, Tensor]:
        """grey (N, 1, S, S) in [0, 1]; ab (N, 2, S/STRIDE, S/STRIDE); truth (N, 3, S, S), sRGB in [0, 1]."""
        rng = dice.host
        grey, ab, truth = [], [], []
        for k in range(count):
            photos = self.people if k < round(PEOPLE * count) else self.photos
            photo = _f32(_crop(photos[rng.integers(len(photos))], side, rng)) / np.float32(255)
            if rng.random() < PLAIN:
                seen = grey_of(photo, _f32(PLATES[-1]))
            else:
                weights = _f32(PLATES[int(rng.integers(len(PLATES)))]) * _f32(np.exp(rng.normal(0.0, 0.3, 3)))
                seen = aged(grey_of(photo, weights), rng)
            small = np.asarray(cv2.resize(photo, (side // STRIDE,) * 2, interpolation=cv2.INTER_AREA))
            grey.append(seen[None])
            ab.append(np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2LAB))[..., 1:].transpose(2, 0, 1))
            truth.append(photo.transpose(2, 0, 1))
        return {name: dice.placed(_f32(np.stack(a))) for name, a in (("grey", grey), ("ab", ab), ("truth", truth))}

    def loss(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Cross entropy, rare colours counting for more, and the distance of the distribution's mean to the truth."""
        net = self.nets["colour_net"]
        assert isinstance(net, ColourNet)
        made = net.decoded(net.seen(batch["grey"]))
        # Of each four cells one: neighbours say the same, and the last layer has the most to compute.
        down, across = (int(torch.randint(2, ())) for _ in range(2))
        logits = net.last(made[..., down::2, across::2]).float()
        ab = batch["ab"][..., down::2, across::2]
        index, share = places(ab)
        weight = self.weights[index] * share
        entropy = -(F.log_softmax(logits, dim=1).gather(1, index) * weight).sum(dim=1).mean()
        away = (colours(logits, 1.0) - ab).square().sum(dim=1).add(1.0).sqrt().mean()
        return {"entropy": entropy, "mean": MEAN * away}, {}

    @torch.no_grad()
    def validate(self, nets: dict[str, nn.Module]) -> dict[str, float]:
        """On fixed samples, those of photos as they are first: distance in a* and b* and perceptual distance over those
        of the grey photo, and colourfulness over the truth's."""
        (net,) = nets.values()
        batch = self.fixed(*JUDGED)
        truth, ab = batch["truth"], batch["ab"]
        lab = torch.stack([_lab(one) for one in truth])
        made, shape = [], truth.shape[-2:]
        for grey in torch.split(batch["grey"], 8):
            made.append(colours(net(grey), TEMPERATURE))
        ours = torch.cat(made)
        full = F.interpolate(ours, size=shape, mode="bilinear", align_corners=False)
        coloured = torch.stack([_rgb(torch.cat([a[:1], b])) for a, b in zip(lab, full, strict=True)])
        plain = torch.stack([_rgb(torch.cat([a[:1], 0 * b])) for a, b in zip(lab, full, strict=True)])
        judge = self.features.distance
        return {
            "away": float((ours - ab).norm(dim=1).mean() / ab.norm(dim=1).mean()),
            "chroma": float(ours.norm(dim=1).mean() / ab.norm(dim=1).mean()),
            "perceptual": float(judge(coloured, truth).mean() / judge(plain, truth).mean()),
        }


def _lab(rgb: Tensor) -> Tensor:
    """(3, H, W) sRGB in [0, 1] -> CIELAB."""
    pixels = np.ascontiguousarray(rgb.permute(1, 2, 0).cpu().numpy())
    return torch.from_numpy(np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB))).permute(2, 0, 1).to(rgb.device)


def _rgb(lab: Tensor) -> Tensor:
    """Inverse of _lab, clipped to what sRGB can show."""
    pixels = np.ascontiguousarray(lab.permute(1, 2, 0).cpu().numpy())
    rgb = torch.from_numpy(np.asarray(cv2.cvtColor(pixels, cv2.COLOR_LAB2RGB))).permute(2, 0, 1).to(lab.device)
    return rgb.clamp(0.0, 1.0)


def _colourful(photos: list[Bytes], folder: Path) -> list[Bytes]:
    """Those that have colour. Raises NoInputError where none has."""
    kept = []
    for photo in photos:
        small = cv2.resize(photo, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32) / 255.0
        ab = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2LAB))[..., 1:]
        if float(np.hypot(ab[..., 0], ab[..., 1]).mean()) >= COLOURFUL:
            kept.append(photo)
    if not kept:
        raise NoInputError(f"{folder}: no photo has colour")
    return kept


def _crop(photo: Bytes, side: int, rng: Generator) -> Bytes:
    """A square of a photo, of `side` pixels, from 0.75 times its short side on; mirrored or not."""
    h, w = photo.shape[:2]
    cut = min(h, w, max(side // 2, round(min(h, w) * float(rng.uniform(0.75, 1.1)))))
    top, left = int(rng.integers(h - cut + 1)), int(rng.integers(w - cut + 1))
    part = photo[top : top + cut, left : left + cut]
    part = np.asarray(cv2.resize(part, (side, side), interpolation=cv2.INTER_AREA if cut >= side else cv2.INTER_CUBIC))
    return part[:, ::-1] if rng.random() < 0.5 else part
