"""Losses and discriminators. None needs downloaded weights: a discriminator's own features stand in for VGG's."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class PatchDiscriminator(nn.Module):
    """Judges patches of a picture or of a latent map; returns the features of every layer, the verdict last."""

    def __init__(self, channels: int, width: int, downs: int) -> None:
        super().__init__()
        widths = [channels, *(width * 2**i for i in range(downs + 1))]
        layers = [
            spectral_norm(nn.Conv2d(a, b, 4 if i < downs else 3, stride=2 if i < downs else 1, padding=1))
            for i, (a, b) in enumerate(pairwise(widths))
        ]
        self.layers = nn.ModuleList(layers)
        self.verdict = spectral_norm(nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W) -> feature maps and, last, the verdict map."""
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return [*features, self.verdict(x)]


def deceive(fake: list[Tensor]) -> Tensor:
    """LSGAN loss of the generator."""
    return (fake[-1] - 1.0).square().mean()


def discern(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """LSGAN loss of the discriminator."""
    return 0.5 * ((real[-1] - 1.0).square().mean() + fake[-1].square().mean())


def feature_matching(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Mean L1 between the discriminator's features of the true and the made picture."""
    pairs = list(zip(real[:-1], fake[:-1], strict=True))
    return torch.stack([F.l1_loss(b, a.detach()) for a, b in pairs]).mean()


def edges(a: Tensor, b: Tensor) -> Tensor:
    """L1 between the horizontal and vertical differences of each two pictures, (N,): keeps edges sharp where L1 alone
    blurs."""
    dx = (a[..., 1:] - a[..., :-1]) - (b[..., 1:] - b[..., :-1])
    dy = (a[..., 1:, :] - a[..., :-1, :]) - (b[..., 1:, :] - b[..., :-1, :])
    return dx.abs().mean(dim=(1, 2, 3)) + dy.abs().mean(dim=(1, 2, 3))


def likeness(made: Tensor, true: Tensor, floor: float) -> dict[str, Tensor]:
    """Errors of pictures (N, 3, H, W) in [-1, 1], each counted by the logarithm of itself and a floor.

    Counted as they are, the worst photos would drown the others, and the network would harm what hardly needs it;
    counted by their logarithm alone, as PSNR does, a photo that is all but perfect would weigh more than ten bad ones,
    and the network would learn to leave everything alone (tried: undamaged photos at 55 dB, and noise left in the
    others). floor: a mean difference, in the pictures' units, below which errors are all much the same.
    """
    wrong = made.float() - true
    l1, squares = wrong.abs().mean(dim=(1, 2, 3)), wrong.square().mean(dim=(1, 2, 3))
    return {
        "l1": torch.log(l1 + floor).mean(),
        "squares": 0.25 * torch.log(squares + (1.28 * floor) ** 2).mean(),
        "edges": 0.25 * torch.log(edges(made.float(), true) + 1.3 * floor).mean(),
    }


def latent_prior(latent: Tensor) -> Tensor:
    """KL to N(0, I) at a fixed variance: half the mean square of the latent mean."""
    return 0.5 * latent.square().mean()


def difference_of_colour(one: Tensor, other: Tensor) -> Tensor:
    """CIE dE2000 of colours in Lab, (N, 3, P) each -> (N, P), 0.01 where they are equal. Its gradient is that of the
    formula, but for the mean hue, which is taken as given.

    As Sharma, Wu and Dalal give it (Color Research and Application 30 (1), 2005).
    """
    (l1, a1, b1), (l2, a2, b2) = one.unbind(dim=1), other.unbind(dim=1)
    chroma = (_length(a1, b1) + _length(a2, b2)) / 2.0
    stretch = 1.5 - 0.5 * _of_25(chroma)
    a1, a2 = stretch * a1, stretch * a2
    c1, c2 = _length(a1, b1), _length(a2, b2)
    chroma, lightness = (c1 + c2) / 2.0, (l1 + l2) / 2.0
    hue = torch.atan2(b1 / c1 + b2 / c2 + 1e-7, a1 / c1 + a2 / c2 + 1e-7).detach()
    weight = torch.ones_like(hue)
    for share, times, degrees in ((-0.17, 1, -30.0), (0.24, 2, 0.0), (0.32, 3, 6.0), (-0.20, 4, -63.0)):
        weight = weight + share * torch.cos(times * hue + math.radians(degrees))
    from_middle = (lightness - 50.0).square()
    of_light = (l2 - l1) / (1.0 + 0.015 * from_middle / (20.0 + from_middle).sqrt())
    of_chroma = (c2 - c1) / (1.0 + 0.045 * chroma)
    across = ((a2 - a1).square() + (b2 - b1).square() - (c2 - c1).square()).clamp_min(0.0)
    of_hue = torch.sign(a1 * b2 - a2 * b1) * (across + 1e-6).sqrt() / (1.0 + 0.015 * chroma * weight)
    from_blue = (torch.rad2deg(hue) % 360.0 - 275.0) / 25.0
    turn = torch.sin(math.radians(60.0) * torch.exp(-from_blue.square()))
    crossed = 2.0 * turn * _of_25(chroma) * of_chroma * of_hue
    squared = of_light.square() + of_chroma.square() + of_hue.square() - crossed
    return (squared.clamp_min(0.0) + 1e-4).sqrt()


def _length(a: Tensor, b: Tensor) -> Tensor:
    return (a.square() + b.square() + 1e-6).sqrt()


def _of_25(chroma: Tensor) -> Tensor:
    seventh = chroma**7
    return (seventh / (seventh + 25.0**7) + 1e-12).sqrt()
