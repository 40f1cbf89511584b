"""The anti-aliased U-Net that finds scratches. Source: Wan et al., CVPR 2020; blur pooling after Zhang, ICML 2019.

Input (N, 1, H, W), a grey photo in [-1, 1] with H and W multiples of 16 and at least 32; output (N, 1, H, W) logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from oldphoto.models.blocks import in_bands, reflect
from oldphoto.models.winograd import Conv3x3, conv3x3

LEVELS = 4
MULTIPLE = 2**LEVELS
SLOPE = 0.2
BAND = 64  # rows of full resolution that are worked on at once
REACH = 3  # rows of half the size that the layers at full resolution see beyond their own, by their kernels
BINOMIAL = [[0.0625, 0.125, 0.0625], [0.125, 0.25, 0.125], [0.0625, 0.125, 0.0625]]


@dataclass(frozen=True)
class ScratchUnetConfig:
    """width: channels at full resolution; they double at each of the four levels."""

    width: int = 64

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"scratch U-Net of width {self.width}")


class ConvNorm(nn.Module):
    """Reflect 1, conv 3x3, batch norm, LeakyReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = Conv3x3(channels_in, channels_out)
        self.norm = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, channels_out, H, W)."""
        x, conv, norm = reflect(x, 1), self.conv, self.norm
        if self.training or torch.is_grad_enabled():
            return F.leaky_relu(norm(conv(x)), SLOPE)
        # Passes over the map that need not be made take a fifth of the time.
        mean, variance = cast("Tensor", norm.running_mean), cast("Tensor", norm.running_var)
        weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, mean, variance, norm.eps, norm.weight, norm.bias)
        return F.leaky_relu_(conv3x3(x, weight, bias, (0, 0)), SLOPE)


class BlurPool(nn.Module):
    """Halve the size through a fixed binomial low-pass, so that a thin line does not flicker with its position."""

    filt: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        # From figures: arithmetic on the device without data, where networks are built, loads torch's compiler (1 s).
        self.register_buffer("filt", torch.tensor([[BINOMIAL]] * channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H/2, W/2)."""
        return F.conv2d(reflect(x, 1), self.filt, stride=2, groups=x.shape[1])


class Down(nn.Module):
    """One level down: c channels -> 2c at half the size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.before = ConvNorm(channels, channels)
        self.pool = BlurPool(channels)
        self.conv1 = ConvNorm(channels, 2 * channels)
        self.conv2 = ConvNorm(2 * channels, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c, H, W) -> (N, 2c, H/2, W/2)."""
        return self.deepen(self.reduce(x))

    def reduce(self, x: Tensor) -> Tensor:
        """(N, c, H, W) -> (N, c, H/2, W/2)."""
        out: Tensor = self.pool(self.before(x))
        return out

    def deepen(self, x: Tensor) -> Tensor:
        """(N, c, h, w) -> (N, 2c, h, w)."""
        out: Tensor = self.conv2(self.conv1(x))
        return out


class Up(nn.Module):
    """One level up: c channels -> c/2 at twice the size, with the skip of that level."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.up = Conv3x3(channels, channels // 2)
        self.conv1 = ConvNorm(channels, channels // 2)
        self.conv2 = ConvNorm(channels // 2, channels // 2)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """x: (N, c, h, w), skip: (N, c/2, 2h, 2w) -> (N, c/2, 2h, 2w)."""
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        x = torch.cat([self.up(reflect(x, 1)), skip], dim=1)
        out: Tensor = self.conv2(self.conv1(x))
        return out


class ScratchUnet(nn.Module):
    """Grey photo -> logit of "scratched" per pixel."""

    def __init__(self, config: ScratchUnetConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * 2**i for i in range(LEVELS + 1)]
        self.first = nn.Conv2d(1, config.width, 7)
        self.down = nn.ModuleList(Down(c) for c in widths[:-1])
        self.up = nn.ModuleList(Up(c) for c in reversed(widths[1:]))
        self.last = Conv3x3(config.width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) in [-1, 1] -> (N, 1, H, W) logits.

        What is of full resolution is there for BAND rows at a time, and the first level's skip is made twice rather
        than kept: quicker by a sixth, with a quarter less memory.
        """

        def full(rows: slice) -> Tensor:
            return F.leaky_relu(self.first(reflect(x[:, :, 2 * rows.start : 2 * rows.stop], 3)), SLOPE)

        def reduced(rows: slice) -> Tensor:
            return outer.reduce(full(rows))

        def logits(rows: slice) -> Tensor:
            made: Tensor = self.last(reflect(self.up[-1](deep[:, :, rows], full(rows)), 1))
            return made

        outer = cast("Down", self.down[0])
        height = x.shape[2] // 2
        band = height if torch.is_grad_enabled() else BAND // 2
        deep = outer.deepen(in_bands(height, band, REACH, reduced))
        skips = []
        for down in self.down[1:]:
            skips.append(deep)
            deep = down(deep)
        for up in self.up[:-1]:
            deep = up(deep, skips.pop())
        return in_bands(height, band, REACH, logits)
