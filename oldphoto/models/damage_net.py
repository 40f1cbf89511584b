"""The network that finds damage of every kind: a U-Net whose first level is half the resolution.

Ours. Input (N, 3, H, W), sRGB in [-1, 1] with H and W multiples of 32; output (N, 1, H, W) logits of "damaged".
Four pixels become channels before the first layer and the last layer's four channels become pixels again: no detail
is lost, and no layer works at full resolution, where most of the time of a U-Net goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

MULTIPLE = 32


@dataclass(frozen=True)
class DamageNetConfig:
    """widths: channels at 1/2, 1/4, 1/8 ... of the resolution."""

    widths: tuple[int, ...] = (48, 64, 96, 128, 192)

    def __post_init__(self) -> None:
        if len(self.widths) != 5 or min(self.widths) < 1:
            raise ValueError(f"damage network of widths {self.widths}")


class ConvNorm(nn.Module):
    """Conv 3x3, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, H, W) -> (N, channels_out, H / stride, W / stride)."""
        return F.relu(self.norm(self.conv(x)), inplace=True)


class Residual(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvNorm(channels, channels)
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return F.relu(x + self.norm(self.conv(self.first(x))), inplace=True)


class DamageNet(nn.Module):
    """Photo -> logit of "damaged" per pixel."""

    def __init__(self, config: DamageNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        pairs = list(pairwise(widths))
        self.first = ConvNorm(12, widths[0])
        self.down = nn.ModuleList(Residual(c) for c in widths)
        self.reduce = nn.ModuleList(ConvNorm(fine, coarse, 2) for fine, coarse in pairs)
        self.enlarge = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in pairs)
        self.up = nn.ModuleList(Residual(c) for c in widths[:-1])
        self.last = nn.Conv2d(widths[0], 4, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> (N, 1, H, W) logits."""
        x = self.first(F.pixel_unshuffle(x, 2))
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(x)
            if level < len(self.reduce):
                skips.append(x)
                x = self.reduce[level](x)
        for enlarge, block in zip(reversed(self.enlarge), reversed(self.up), strict=True):
            x = F.interpolate(enlarge(x), scale_factor=2, mode="bilinear", align_corners=False) + skips.pop()
            x = block(x)
        return F.pixel_shuffle(self.last(x), 2)
