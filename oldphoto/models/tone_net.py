"""How a photo has faded, and the curve that undoes it, judged from a small copy. Ours, on EfficientNet-lite0's blocks.

What a photo shows (sky, skin, leaves: features of a copy whose levels are stretched, so that a cast counts for little)
stands beside the colours that it shows them in, cell by cell; some cells are looked at more than others. Curves are of
density, -log10 of light: what fading changes is linear in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from oldphoto.models.efficientnet import CHANNELS, EfficientNet

SEEN = 128  # pixels a side of the copy that features are taken of, whatever the photo's proportions
MEASURED = 48  # pixels a side of the copy that colours are taken of
CELLS = 8  # on a side: EfficientNet's blocks 5 to 10 reduce to a sixteenth
LEVELS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.995)
DARK, BRIGHT = LEVELS.index(0.005), LEVELS.index(0.98)
BINS = 16  # of the histogram of Lab's a and b, each 8 wide
OCTILES = 8  # of lightness, in each of which the mean colour is taken
COLOURS = 15  # figures of a cell beside the features
GLOBAL = 2 * 3 * len(LEVELS) + 4 * OCTILES + BINS * BINS
# Light less than this is not told from black. Densities start from paper white: this makes 0 of light 1 density 2.5.
FLOOR = 0.003
XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
WHITE = (0.95047, 1.0, 1.08883)  # D65
LUMINANCE = XYZ[1]


@dataclass(frozen=True)
class ToneNetConfig:
    """blocks: of EfficientNet-lite0. width: channels of a cell."""

    blocks: int = 11
    width: int = 96

    def __post_init__(self) -> None:
        if not 6 <= self.blocks <= 11 or self.width < 1:
            raise ValueError(f"tone net of {self.blocks} blocks and width {self.width}: blocks are 6 to 11")


class Curve(NamedTuple):
    """density = bend(mix @ (density of (light - fog) / (1 - fog) - base)); see `corrected`.

    fog, base, bend: (N, C) of light, density, and -0.2..0.2; mix: (N, C, C). C is 3 for R, G, B and 1 for luminance.
    """

    fog: Tensor
    base: Tensor
    mix: Tensor
    bend: Tensor


class Answers(NamedTuple):
    """colour: what sets a photo in colour right. luminance: what sets a monochrome one right. faded: (N, 2), the logit
    of how sure either is to bring the photo nearer to what it was."""

    colour: Curve
    luminance: Curve
    faded: Tensor


def light(x: Tensor) -> Tensor:
    """sRGB in [0, 1] -> linear light."""
    return torch.where(x <= 0.04045, x / 12.92, ((x.clamp_min(0.04) + 0.055) / 1.055) ** 2.4)


def encoded(x: Tensor) -> Tensor:
    """Linear light -> sRGB, both clipped to [0, 1]."""
    x = x.clamp(0.0, 1.0)
    return torch.where(x <= 0.0031308, 12.92 * x, 1.055 * x.clamp_min(0.003) ** (1.0 / 2.4) - 0.055)


def density(of_light: Tensor) -> Tensor:
    """Linear light -> density, 0 of white."""
    return -torch.log10((of_light.clamp_min(0.0) + FLOOR) / (1.0 + FLOOR))


def lab(of_light: Tensor) -> Tensor:
    """Linear light (N, 3, P) -> CIE Lab (N, 3, P)."""
    xyz = torch.einsum("ij,njp->nip", of_light.new_tensor(XYZ), of_light) / of_light.new_tensor(WHITE)[:, None]
    root: Tensor = torch.where(xyz > 0.008856, xyz.clamp_min(0.0088) ** (1.0 / 3.0), 7.787 * xyz + 16.0 / 116.0)
    x, y, z = root.unbind(dim=1)
    return torch.stack([116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)], dim=1)


def corrected(of_light: Tensor, curve: Curve) -> Tensor:
    """Linear light (N, C, P) by the curve; what is out of 0..1 is left so."""
    clear = (of_light - curve.fog[..., None]) / (1.0 - curve.fog[..., None])
    mixed = torch.einsum("nij,njp->nip", curve.mix, density(clear) - curve.base[..., None]).clamp(-1.0, 3.0)
    bent = mixed * (1.0 + curve.bend[..., None] * (mixed - 1.0))
    made: Tensor = torch.exp(bent * -math.log(10.0)) * (1.0 + FLOOR) - FLOOR
    return made


class Look(NamedTuple):
    """What is measured on small copies: see `looked_at`.

    cells: (N, COLOURS, CELLS, CELLS). whole: (N, GLOBAL). dark: (N, 3), the light of each channel's darkest. light,
    lab: (N, 3, P) of each pixel.
    """

    cells: Tensor
    whole: Tensor
    dark: Tensor
    light: Tensor
    lab: Tensor


def looked_at(x: Tensor) -> Look:
    """Copies (N, 3, MEASURED, MEASURED), sRGB in [0, 1]."""
    n, flat = len(x), x.flatten(2)
    linear = light(flat)
    colours = lab(linear)
    levels = torch.quantile(flat, x.new_tensor(LEVELS), dim=2).permute(1, 2, 0)
    order = colours[:, 0].argsort(dim=1)
    ab = torch.gather(colours[:, 1:], 2, order[:, None].expand(-1, 2, -1)).view(n, 2, OCTILES, -1)
    of_lightness = torch.cat([ab.mean(dim=3), ab.std(dim=3)], dim=1).flatten(1) / 30.0
    a, b = ((colours[:, k] / 8.0 + BINS / 2).long().clamp(0, BINS - 1) for k in (1, 2))
    share = flat.new_full((n, flat.shape[2]), 1.0 / flat.shape[2])
    histogram = flat.new_zeros(n, BINS * BINS).scatter_add_(1, a * BINS + b, share).sqrt()
    whole = torch.cat([levels.flatten(1), density(light(levels)).flatten(1), of_lightness, histogram], dim=1)
    low, high = levels[..., 1, None, None], levels[..., BRIGHT, None, None]
    stretched = ((x - low) / (high - low).clamp_min(0.04)).clamp(0.0, 1.0)
    scaled = colours / colours.new_tensor([100.0, 50.0, 50.0])[:, None]
    each = torch.cat([x, density(light(x)), stretched, scaled.view_as(x)], dim=1)
    side = MEASURED // CELLS
    means = F.avg_pool2d(each, side)
    spread = (F.avg_pool2d(stretched.square(), side) - means[:, 6:9].square()).clamp_min(0.0).sqrt()
    return Look(torch.cat([means, spread], dim=1), whole, light(levels[..., DARK]), linear, colours)


def levelled(x: Tensor) -> Tensor:
    """Copies (N, 3, H, W) in [0, 1] with the levels of each channel stretched, as features are taken of them."""
    low, high = torch.quantile(x.flatten(2), x.new_tensor([0.01, 0.99]), dim=2)[..., None, None]
    made: Tensor = ((x - low) / (high - low).clamp_min(0.04)).clamp(0.0, 1.0)
    return made


class ToneNet(nn.Module):
    """Small copies of photos -> Answers."""

    HEADS = 4  # ways of weighing the cells

    def __init__(self, config: ToneNetConfig) -> None:
        super().__init__()
        self.config = config
        width, features = config.width, CHANNELS[config.blocks - 1]
        self.eye = EfficientNet(config.blocks)
        self.reduced = nn.Conv2d(features, 64, 1)
        self.first, self.second = nn.Conv2d(64 + COLOURS, width, 1), nn.Conv2d(width, width, 1)
        self.weighing = nn.Conv2d(width, self.HEADS, 1)
        self.figures = nn.Linear(GLOBAL, 128)
        self.third = nn.Linear(128 + width * (self.HEADS + 1) + 12 * self.HEADS, 192)
        self.fourth, self.last = nn.Linear(192, 128), nn.Linear(128, 24)
        self.directly = nn.Linear(6 * len(LEVELS), 24, bias=False)

    def forward(self, x: Tensor) -> Answers:
        """Copies (N, 3, SEEN, SEEN), sRGB in [0, 1]."""
        look = looked_at(F.interpolate(x, (MEASURED, MEASURED), mode="area"))
        return self.judged(self.features(x), look.cells, look.whole, look.dark)

    def judge(self, copy: NDArray[np.float32]) -> tuple[tuple[Any, ...], tuple[Any, ...], list[float]]:
        """Of one copy (SEEN, SEEN, 3): the fields of the two curves as nested lists, and the two logits. In full
        precision, wherever the network is."""
        device = self.last.weight.device
        x = torch.from_numpy(np.ascontiguousarray(copy.transpose(2, 0, 1)))[None].to(device)
        with torch.autocast(device.type, enabled=False):
            answers = self(x)
        colour, luminance = (
            tuple(field[0].tolist() for field in curve) for curve in (answers.colour, answers.luminance)
        )
        return colour, luminance, answers.faded[0].tolist()

    def features(self, x: Tensor) -> Tensor:
        """What copies (N, 3, SEEN, SEEN) show: (N, features, CELLS, CELLS)."""
        found: Tensor = self.eye(levelled(x))[-1]
        return found

    def judged(self, features: Tensor, look: Tensor, whole: Tensor, dark: Tensor) -> Answers:
        """Of photos whose features are known, and what Look has as `cells`, `whole` and `dark`."""

        def dropped(y: Tensor) -> Tensor:
            return F.dropout(y, 0.2, self.training)

        seen = F.leaky_relu(self.reduced(dropped(features / 4.0)), 0.1)
        cells = F.leaky_relu(self.first(torch.cat([seen, look], dim=1)), 0.1)
        cells = F.leaky_relu(self.second(cells), 0.1)
        weights = self.weighing(cells).flatten(2).softmax(dim=2)
        cells = cells.flatten(2)
        pooled = torch.einsum("nap,ncp->nac", weights, cells).flatten(1)
        colours = torch.einsum("nap,ncp->nac", weights, look[:, :12].flatten(2)).flatten(1)
        figures = F.leaky_relu(self.figures(whole), 0.1)
        y = torch.cat([figures, pooled, cells.mean(dim=2), colours], dim=1)
        y = F.leaky_relu(self.fourth(dropped(F.leaky_relu(self.third(dropped(y)), 0.1))), 0.1)
        return self._answers(self.last(y) + self.directly(whole[:, : 6 * len(LEVELS)]), dark)

    @staticmethod
    def _answers(y: Tensor, dark: Tensor) -> Answers:
        """(N, 24), dark (N, 3) -> Answers. Fog is no more than the darkest that the photo has, however sure the network
        is."""
        y = y.float()
        grey_dark = (dark * dark.new_tensor(LUMINANCE)).sum(dim=1, keepdim=True)
        mix = torch.diag_embed(_gain(y[:, 6:9]))
        rows, columns = (0, 0, 1, 1, 2, 2), (1, 2, 0, 2, 0, 1)
        mix[:, rows, columns] = 0.1 * y[:, 9:15]
        colour = Curve(_fog(y[:, 0:3], dark), 0.2 * y[:, 3:6], mix, _bend(y[:, 15:18]))
        grey = Curve(_fog(y[:, 18:19], grey_dark), 0.2 * y[:, 19:20], _gain(y[:, 20:21])[..., None], _bend(y[:, 21:22]))
        return Answers(colour, grey, y[:, 22:24])


def _fog(y: Tensor, dark: Tensor) -> Tensor:
    return 0.98 * dark * torch.sigmoid(y - 2.0)


def _gain(y: Tensor) -> Tensor:
    return torch.exp((0.3 * y).clamp(-0.7, 1.3))


def _bend(y: Tensor) -> Tensor:
    return 0.2 * torch.tanh(0.5 * y)
