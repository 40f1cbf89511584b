"""The stage that learns to find damage: drawn wear on photos as old ones look, and crops of labelled real ones.

Order of a drawn sample, as in a print's life: the photo with its tone, blur and grain; then damage, in the colours of
bare paper, black emulsion or the ground behind; then the blur, sharpening, noise and compression of its scan.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from oldphoto.models.damage_net import DamageNet, DamageNetConfig
from oldphoto.training import wear
from oldphoto.training.ageing import Dice
from oldphoto.training.base import Folders, Recipe, Stage
from oldphoto.training.data import overlays, read_judged, read_photos
from oldphoto.training.labels import Labelled, LabelScore, grown, read_labels
from oldphoto.training.lettering import lettering
from oldphoto.training.wear import Bytes, Generator, Image, Wear

LAYERS = 6000  # drawn layers that are kept, and laid on in ever new ways
OVERLAYS = 800  # of them from the overlays of real film damage
LETTERINGS = 600
# Shares of a batch: photos with drawn damage, without any, and labelled real ones.
REAL, SOUND = 0.4, 0.2
# Levels of a judged map: above the first damaged, up to the second sound, between the two not asked.
DAMAGED, SOUND_BELOW = 192, 64
# Labelled photos that are never trained on: paths that begin so.
KEPT_OUT = ("eval",)
# Damage is asked for where it changes this many levels of 255, and more than the photo's own grain: what nobody can see
# teaches a network to doubt. Stains, which are soft and large, must change twice as much.
VISIBLE = 6.0
DICE = 0.2  # weight of the Dice term against 1 of the cross entropy


def _tone(x: Image, rng: Generator) -> Image:
    """A photo (H, W, 3), 0..255, in the tones of an old one: grey, toned or in colour, faded, light or dark."""
    kind = rng.random()
    if kind < 0.72:
        weights = rng.dirichlet((2.0, 3.0, 2.0)) if rng.random() < 0.5 else np.array([0.299, 0.587, 0.114])
        x = _f32(np.repeat((x @ weights.astype(np.float32))[..., None], 3, 2))
    if rng.random() < 0.6:
        x = _f32(255.0 * (np.clip(x, 0, 255) / 255.0) ** np.float32(np.exp(rng.normal(0.0, 0.35))))
    if rng.random() < 0.6:
        low, high = rng.uniform(0, 70), rng.uniform(150, 255)
        x = _f32(low + x * (high - low) / 255.0)
    if 0.35 < kind < 0.72:  # sepia and other tones: colour goes with lightness
        light = np.array([1.0, rng.uniform(0.86, 0.99), rng.uniform(0.65, 0.97)], np.float32)
        dark = np.array([1.0, rng.uniform(0.7, 1.0), rng.uniform(0.5, 1.0)], np.float32)
        share = np.clip(x / 255.0, 0, 1)
        x = x * (share * light + (1 - share) * dark)
    return x


def _f32(a: object) -> Image:
    return np.asarray(a, np.float32)


def _grain(shape: tuple[int, int], rng: Generator, most: float) -> Image:
    """(H, W, 1 or 3) noise, white or soft, `most` levels at the strongest."""
    channels = 1 if rng.random() < 0.7 else 3
    noise = _f32(rng.standard_normal((*shape, channels)))
    if rng.random() < 0.6:
        noise = _f32(cv2.GaussianBlur(noise, (0, 0), rng.uniform(0.5, 1.6))).reshape(*shape, channels)
        noise = noise / (noise.std() + np.float32(1e-6))
    return np.asarray(noise * np.float32(most * rng.random() ** 2), np.float32)


def _blur(x: Image, sigma: float) -> Image:
    return _f32(cv2.GaussianBlur(x, (0, 0), sigma)) if sigma > 0.2 else x


def _paper(x: Image, kind: str, rng: Generator) -> Image:
    """The colour (3,) that damage of a kind has on this photo: bare paper, black emulsion, or something between."""
    top = np.percentile(x[::8, ::8].reshape(-1, 3), 98, axis=0)
    tone = top / max(1.0, float(top.max()))
    bright = {"cracks": 0.9, "fold": 0.85, "tear": 0.9, "specks": 0.6, "spots": 0.3, "loss": 0.6, "hairs": 0.5}
    if rng.random() < bright.get(kind, 0.6):
        level = rng.uniform(max(120.0, float(top.max()) * 0.85), 255.0)
        hue = tone if rng.random() < 0.5 else np.array([1.0, rng.uniform(0.95, 1.02), rng.uniform(0.85, 1.05)])
        return np.asarray(np.clip(level * hue, 0, 255), np.float32)
    if rng.random() < 0.5:
        return np.full(3, rng.uniform(0.0, 30.0), np.float32)
    brown = np.array([1.0, rng.uniform(0.75, 1.0), rng.uniform(0.55, 1.0)])
    return np.asarray(rng.uniform(20.0, 110.0) * brown, np.float32)


def _ground(rng: Generator) -> Image:
    """The colour (3,) of what lies behind a print on a scanner or in an album."""
    if rng.random() < 0.5:
        return np.asarray(rng.uniform(235, 255) * np.array([1.0, rng.uniform(0.97, 1.0), rng.uniform(0.9, 1.03)]))
    if rng.random() < 0.6:
        return np.full(3, rng.uniform(0, 50), np.float32)
    return np.asarray(rng.uniform(60, 200) * rng.uniform(0.85, 1.0, 3), np.float32)


def lay(x: Image, layer: Wear, rng: Generator) -> tuple[Image, Image]:
    """A layer of damage on a photo (S, S, 3), 0..255 -> the photo, and (S, S) how much of it the damage hides."""
    a, b = _placed(layer, rng)
    if layer.kind == "stains":
        return _stained(x, a, b, rng), np.maximum(a, b * 0.5)
    kind, size = layer.kind, (a.shape[1], a.shape[0])
    if kind in ("cracks", "fold", "scratches") and rng.random() < 0.5:  # what is lost along a line is never even
        uneven = _f32(cv2.resize(_f32(rng.uniform(0.3, 1.2, (24, 24))), size, interpolation=cv2.INTER_CUBIC))
        a = np.clip(a * uneven, 0, 1)
    y = x
    if kind in ("cracks", "fold", "tear", "loss", "edges") and rng.random() < 0.7:
        # Relief: a shadow on one side, some pixels out, and next to nothing on the other.
        angle, out = rng.uniform(0, 2 * np.pi), rng.uniform(1.0, 3.5)
        move = np.array([[1, 0, out * np.cos(angle)], [0, 1, out * np.sin(angle)]])
        shade = _f32(cv2.warpAffine(_blur(a, rng.uniform(0.6, 1.8)), move, size))
        y = y - (shade * (1 - a))[..., None] * np.float32(rng.uniform(3, 40))
    if kind == "fold" and rng.random() < 0.5:
        wide = _blur(a, rng.uniform(3, 10))
        y = y + (wide / (wide.max() + 1e-6))[..., None] * np.float32(rng.uniform(-20, 20))
    if kind == "loss" and rng.random() < 0.4:
        y = y - _blur(a, rng.uniform(1.5, 4))[..., None] * np.float32(rng.uniform(5, 35))
    texture = wear.roughness(len(a), len(a), rng, 16, 1.2)[..., None] * np.float32(
        rng.uniform(1, 9) * (kind != "hairs")
    )
    colour = _paper(x, kind, rng) + texture
    if b.any():
        other = _ground(rng) if kind == "edges" else _paper(x, kind, rng)
        colour = colour * (1 - b[..., None]) + other * b[..., None]
    a = a * np.float32(rng.uniform(0.85, 1.0) if kind in ("edges", "loss", "tear") else rng.uniform(0.25, 1.0))
    return _f32(np.clip(y * (1 - a[..., None]) + colour * a[..., None], 0, 255)), a


def _placed(layer: Wear, rng: Generator) -> tuple[Image, Image]:
    """Cover and inner part of a layer in [0, 1], mirrored and turned; at times at other widths and lengths."""
    cover, inner = layer.cover, layer.inner
    if not layer.fixed and rng.random() < 0.4:
        side, zoom = len(cover), float(np.exp(rng.uniform(np.log(0.6), np.log(2.2))))
        shift = rng.uniform(0.0, 1.0, 2) * side * (1.0 - zoom)
        move = np.array([[zoom, 0.0, shift[0]], [0.0, zoom, shift[1]]])
        way = cv2.INTER_LINEAR if zoom > 1 else cv2.INTER_AREA
        cover, inner = (np.asarray(cv2.warpAffine(m, move, (side, side), flags=way), np.uint8) for m in (cover, inner))
    turns, mirrored = int(rng.integers(4)), rng.random() < 0.5
    turned = (np.rot90(m[:, ::-1] if mirrored else m, turns) for m in (cover, inner))
    a, b = (np.ascontiguousarray(m, np.float32) / np.float32(255.0) for m in turned)
    return a, b


def _stained(x: Image, a: Image, rim: Image, rng: Generator) -> Image:
    """Another colour rather than another lightness, mostly towards yellow."""
    shift = np.array([rng.normal(0, 5), rng.normal(0, 5), -abs(rng.normal(0, 25))]) * float(rng.choice([1, 1, 1, -1]))
    shift = (shift + rng.normal(0, 12)) * min(1.0, 40.0 / (float(np.abs(shift).max()) + 1.0))
    y = x + a[..., None] * _f32(shift) - rim[..., None] * np.float32(rng.uniform(0, 25))
    return _f32(np.clip(y, 0, 255))


def _scan(x: Image, rng: Generator) -> Image:
    """What scanning and keeping does: blur or a smaller copy, sharpening, noise, JPEG."""
    side = x.shape[0]
    if rng.random() < 0.15:
        small = int(side * rng.uniform(0.5, 0.95))
        x = _f32(cv2.resize(x, (small, small), interpolation=cv2.INTER_AREA))
        x = _f32(cv2.resize(x, (side, side), interpolation=cv2.INTER_CUBIC))
    if rng.random() < 0.4:
        amount = np.float32(rng.uniform(0.2, 1.2))
        x = x + amount * (x - _blur(x, rng.uniform(0.6, 1.5)))
    x = np.clip(x + _grain((side, side), rng, 6.0), 0, 255)
    return jpeg(x, int(rng.uniform(40, 98))) if rng.random() < 0.75 else x


def jpeg(x: Image, quality: int) -> Image:
    """A photo (H, W, 3), 0..255, as it comes back from a JPEG file of this quality."""
    levels = np.clip(np.rint(x), 0, 255).astype(np.uint8)
    done, data = cv2.imencode(".jpg", levels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    made = cv2.imdecode(data, cv2.IMREAD_COLOR) if done else None
    assert made is not None  # what was just encoded
    return _f32(made[..., ::-1])


def _mesh(x: Image, rng: Generator) -> Image:
    """Regular lines on a photo, which are no damage: wires, slats, hatching, a mesh; or a mount about it."""
    side = x.shape[0]
    if rng.random() < 0.5:
        rows, columns = np.mgrid[:side, :side].astype(np.float32)
        pattern = np.zeros((side, side), np.float32)
        for angle in rng.uniform(0, np.pi) + np.array([0.0, np.pi / 2])[: int(rng.integers(1, 3))]:
            period, width = rng.uniform(4, 40), rng.uniform(0.8, 3.0)
            along = columns * np.cos(angle) + rows * np.sin(angle) + rng.uniform(0, 40)
            along = along + rng.uniform(0, 6) * wear.roughness(side, side, rng, 3, 3.0)
            away = np.abs((along + period / 2) % period - period / 2)
            pattern = _f32(np.maximum(pattern, np.clip(width / 2 - away + 0.5, 0, 1)))
        where = np.clip(wear.roughness(side, side, rng, 2, 2.5) * 3 + rng.uniform(-1, 3), 0, 1)
        share = (pattern * where)[..., None] * np.float32(rng.uniform(0.3, 1.0))
        return _f32(x * (1 - share) + np.float32(rng.uniform(0, 255)) * share)
    margin, level = rng.integers(3, side // 5, 4), _ground(rng)
    framed = np.ones_like(x) * level + _grain((side, side), rng, 8.0)
    keep = np.zeros((side, side), np.float32)
    chosen = rng.random(4) < 0.5
    top, left, bottom, right = (int(m) if c else 0 for m, c in zip(margin, chosen, strict=True))
    keep[top : side - bottom, left : side - right] = 1.0
    soft = _blur(keep, rng.uniform(0.4, 1.5))[..., None]
    return _f32(x * soft + framed * (1 - soft))


class DamageStage(Stage):
    """The detector of the compact set."""

    def __init__(
        self,
        folders: Folders,
        recipe: Recipe,
        device: torch.device,
        config: DamageNetConfig,
        kept_out: Sequence[str] = KEPT_OUT,
    ) -> None:
        """kept_out: beginnings of paths of the labelled photos to validate on; the others are trained on."""
        self.recipe, self.device = recipe, device
        self.nets = {"damage_net": DamageNet(config)}
        self.judges: dict[str, nn.Module] = {}
        side = recipe.size
        clean = read_photos(folders.clean, 608, side)
        if folders.colour.is_dir():
            clean += read_photos(folders.colour, 608, side)
        self.photos = clean + read_photos(folders.faces, 608, 200)
        self.old = read_judged(folders.old, folders.judged, 900, side)
        rng = np.random.default_rng([5, recipe.seed])
        self.layers = [wear.drawn(side, rng) for _ in range(LAYERS - OVERLAYS)]
        film = [one for kind, files in overlays(folders.damage).items() if kind != "paper_tiles" for one in files]
        for k in rng.integers(len(film), size=OVERLAYS):
            kind = "specks" if rng.random() < 0.5 else "hairs"
            self.layers.append(Wear(kind, _fitted(film[k], side, rng), np.zeros((side, side), np.uint8)))
        self.letters = [np.rint(lettering(side, rng) * 255).astype(np.uint8) for _ in range(LETTERINGS)]
        self.real: list[Labelled] = []
        self.kept: list[Labelled] = []
        if folders.labels.is_dir():
            for one in read_labels(folders.labels, folders.labels.parent):
                (self.kept if one.path.startswith(tuple(kept_out)) else self.real).append(one)

    def sample(self, count: int, side: int, dice: Dice) -> dict[str, Tensor]:
        """photo (N, 3, S, S) in [-1, 1]; mask (N, 1, S, S), 1 = damaged; weight (N, 1, S, S), 0 = not asked."""
        rng = dice.host
        pictures, masks, weights = [], [], []
        real = round(REAL * count) if self.real else 0
        for k in range(count):
            if k < real:
                picture, mask, weight = self._labelled(side, rng)
            else:
                picture, mask, weight = self._drawn(side, rng, damaged=rng.random() >= SOUND / (1 - REAL))
            if rng.random() < 0.1:  # as on a negative, where what is bright is dark
                picture = 255.0 - picture
            pictures.append(np.clip(picture, 0, 255) / 127.5 - 1.0)
            masks.append(mask)
            weights.append(weight)
        return {
            "photo": dice.placed(np.stack(pictures).astype(np.float32).transpose(0, 3, 1, 2)),
            "mask": dice.placed(np.stack(masks).astype(np.float32))[:, None],
            "weight": dice.placed(np.stack(weights).astype(np.float32))[:, None],
        }

    def _drawn(self, side: int, rng: Generator, *, damaged: bool) -> tuple[Image, Image, Image]:
        old = rng.random() < 0.5
        found = None
        if old:
            photo, judged = self.old[rng.integers(len(self.old))]
            around = np.dstack([photo, judged])
            part = crop(around, side, rng)
            x, found = np.ascontiguousarray(part[..., :3]), part[..., 3]
            x = _tone(x, rng) if rng.random() < 0.4 else x
        else:
            x = _tone(crop(self.photos[rng.integers(len(self.photos))], side, rng), rng)
            if rng.random() < 0.6:
                x = _blur(x, rng.uniform(0.3, 2.2))
            x = x + _grain(x.shape[:2], rng, 14.0)
        if rng.random() < 0.3:
            share = self.letters[rng.integers(len(self.letters))].astype(np.float32)[..., None] / 255.0
            x = x * (1 - share) + np.float32(rng.choice([rng.uniform(180, 255), rng.uniform(0, 60)])) * share
        if rng.random() < 0.2:
            x = _mesh(x, rng)
        x = np.clip(x, 0, 255)
        y, hidden, stain = x, np.zeros((side, side), np.float32), np.zeros((side, side), np.float32)
        for _ in range(1 + int(rng.geometric(0.45)) if damaged else 0):
            layer = self.layers[rng.integers(len(self.layers))]
            y, a = lay(y, layer, rng)
            if layer.kind == "stains":
                stain = np.maximum(stain, a)
            else:
                hidden = np.maximum(hidden, a)
        soft = rng.uniform(0.0, 1.1)
        change = np.abs(_blur(y, max(soft, 0.5)) - _blur(x, max(soft, 0.5))).max(2)
        least = np.maximum(VISIBLE, _roughness(x))
        seen = ((hidden > 0.15) & (change > least)) | ((stain > 0.4) & (change > 2.0 * least))
        faint = ((hidden > 0.06) | (stain > 0.1) | (change > VISIBLE)) & ~seen
        mask, weight = _asked(seen, faint, np.float32(1.0))
        if found is not None:
            mask, weight = (
                np.maximum(mask, _f32(found > DAMAGED)),
                np.where((found > SOUND_BELOW) & (found <= DAMAGED) & (mask == 0), np.float32(0.0), weight),
            )
        return _scan(_blur(y, soft), rng), mask, weight

    def _labelled(self, side: int, rng: Generator) -> tuple[Image, Image, Image]:
        one = self.real[rng.integers(len(self.real))]
        h, w = one.mask.shape
        zoom = max(side / min(h, w), float(np.exp(rng.uniform(np.log(0.6), np.log(2.2)))))
        cut = min(h, w, int(np.ceil(side / zoom)))
        for _ in range(4):  # most crops show damage
            top, left = int(rng.integers(h - cut + 1)), int(rng.integers(w - cut + 1))
            here = (slice(top, top + cut), slice(left, left + cut))
            if one.mask[here].any():
                break
        x = _resized(_f32(one.pixels[here]), side)
        damaged, unsure = (
            _f32(cv2.resize(_f32(m[here]), (side, side), interpolation=cv2.INTER_LINEAR))
            for m in (one.mask, one.unsure)
        )
        mask, weight = _f32(damaged > 0.5), _f32(unsure < 0.1)
        if rng.random() < 0.25:
            y, a = lay(x, self.layers[rng.integers(len(self.layers))], rng)
            change = np.abs(_blur(y, 0.6) - _blur(x, 0.6)).max(2)
            new, rim = _asked((a > 0.15) & (change > VISIBLE), a > 0.06, np.float32(1.0))
            mask, weight, x = np.maximum(mask, new), np.where(new > 0, rim, np.minimum(weight, rim)), y
        if rng.random() < 0.4:
            x = _tone(x, rng)
        else:
            x = x * np.float32(rng.uniform(0.8, 1.15)) + np.float32(rng.uniform(-15, 15))
        if rng.random() < 0.3:
            x = _scan(_blur(x, rng.uniform(0, 0.7)), rng)
        turns, mirrored = int(rng.integers(4)), rng.random() < 0.5
        x, mask, weight = (_f32(np.rot90(m[:, ::-1] if mirrored else m, turns)) for m in (x, mask, weight))
        return x, mask, weight

    def loss(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Cross entropy, and one less the soft Dice of the whole batch, so that sound photos count in it as well."""
        logits = self.nets["damage_net"](batch["photo"]).float()
        mask, weight = batch["mask"], batch["weight"]
        share = torch.sigmoid(logits)
        entropy = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
        both, all_of_them = (share * mask * weight).sum(), ((share + mask) * weight).sum()
        return {
            "entropy": (entropy * weight * (1.0 + mask)).sum() / weight.sum(),
            "dice": DICE * (1.0 - 2.0 * both / (all_of_them + 1.0)),
        }, {}

    @torch.no_grad()
    def validate(self, nets: dict[str, nn.Module]) -> dict[str, float]:
        """Of the labelled photos kept out, at a probability of one half: see LabelScore.figures."""
        (net,) = nets.values()
        score = LabelScore()
        for one in self.kept:
            score.add(one, probability(net, one.pixels) >= 0.5)
        return {k: v for k, v in score.figures().items() if not np.isnan(v)}


def probability(net: nn.Module, pixels: Bytes) -> Image:
    """(H, W, 3) uint8 -> (H, W), what the network says at the photo's own size."""
    h, w = pixels.shape[:2]
    x = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float()[None] / 127.5 - 1.0
    x = F.pad(x, (0, -w % 32, 0, -h % 32), mode="replicate").contiguous(memory_format=torch.channels_last)
    x = x.to(next(net.parameters()).device)
    return np.asarray(torch.sigmoid(net(x).float())[0, 0, :h, :w].cpu().numpy())


def _roughness(x: Image) -> Image:
    """(H, W): by how many levels the photo varies from pixel to pixel, over some 15 pixels about each."""
    grey = x.mean(axis=2)
    return np.sqrt(_blur((grey - _blur(grey, 1.0)) ** 2, 5.0))


def crop(photo: Bytes, side: int, rng: Generator) -> Image:
    """A square of a photo at 0.4 to 1.6 times its size, or as near as it is large enough for; mirrored or not."""
    h, w = photo.shape[:2]
    zoom = max(side / min(h, w), float(np.exp(rng.uniform(np.log(0.4), np.log(1.6)))))
    cut = min(h, w, int(np.ceil(side / zoom)))
    top, left = int(rng.integers(h - cut + 1)), int(rng.integers(w - cut + 1))
    part = _resized(_f32(photo[top : top + cut, left : left + cut]), side)
    return part[:, ::-1] if rng.random() < 0.5 else part


def _resized(x: Image, side: int) -> Image:
    if len(x) == side:
        return x
    return _f32(cv2.resize(x, (side, side), interpolation=cv2.INTER_AREA if len(x) > side else cv2.INTER_CUBIC))


def _asked(seen: NDArray[np.bool_], faint: NDArray[np.bool_], doubt: np.float32) -> tuple[Image, Image]:
    """Mask with its soft rim of a pixel, and weights: nothing is asked just outside, nor where damage is faint."""
    mask = grown(seen, 1)
    rim = (grown(mask, 1) & ~mask) | (grown(faint, 1) & ~mask)
    weight = np.where(mask, np.float32(1.0), np.where(rim, np.float32(0.0), doubt))
    return _f32(mask), _f32(weight)


def _fitted(overlay: Bytes, side: int, rng: Generator) -> Bytes:
    """A crop or an enlarged copy of an overlay, (side, side)."""
    h, w = overlay.shape
    scale = float(np.exp(rng.uniform(np.log(0.25), np.log(1.0)))) * side / min(h, w, side)
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    small = np.asarray(cv2.resize(overlay, size, interpolation=cv2.INTER_AREA), np.uint8)
    out = np.zeros((side, side), np.uint8)
    for _ in range(int(rng.integers(1, 4))):
        part = small[:side, :side]
        top, left = (int(rng.integers(side - s + 1)) for s in part.shape)
        place = out[top : top + part.shape[0], left : left + part.shape[1]]
        np.maximum(place, part, out=place)
    return out
