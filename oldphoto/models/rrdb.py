"""Residual-in-residual dense blocks that enlarge a picture by four. Source: Wang et al., ECCVW 2018 and ICCVW 2021.

Input (N, 3, H, W), RGB in [0, 1], no mean taken off; output (N, 3, 4 H, 4 W), about [0, 1], not clamped.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FACTOR = 4
_conv = partial(nn.Conv2d, kernel_size=3, padding=1)  # the direct sum, for the same reason as in srvgg
SLOPE = 0.2
SHARE = 0.2  # of what a block finds is added to what it was given: many blocks would otherwise drive one another off


@dataclass(frozen=True)
class RRDBConfig:
    """features: channels between blocks; blocks: of three dense blocks each; growth: channels a dense layer adds."""

    features: int = 64
    blocks: int = 23
    growth: int = 32

    def __post_init__(self) -> None:
        if min(self.features, self.blocks, self.growth) < 1:
            raise ValueError(f"RRDB of {self.features} features, {self.blocks} blocks and growth {self.growth}")


def leaky(x: Tensor) -> Tensor:
    """LeakyReLU; in place without gradients."""
    return F.leaky_relu(x, SLOPE) if torch.is_grad_enabled() else F.leaky_relu_(x, SLOPE)


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees all that came before it."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.conv1 = _conv(features, growth)
        self.conv2 = _conv(features + growth, growth)
        self.conv3 = _conv(features + 2 * growth, growth)
        self.conv4 = _conv(features + 3 * growth, growth)
        self.conv5 = _conv(features + 4 * growth, features)

    def forward(self, x: Tensor) -> Tensor:
        """(N, features, H, W) -> the same shape."""
        seen = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen = torch.cat((seen, leaky(conv(seen))), dim=1)
        return torch.add(x, self.conv5(seen), alpha=SHARE)


class ResidualBlock(nn.Module):
    """Three dense blocks, of which a share is added to what went in."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = DenseBlock(features, growth)
        self.rdb2 = DenseBlock(features, growth)
        self.rdb3 = DenseBlock(features, growth)

    def forward(self, x: Tensor) -> Tensor:
        """(N, features, H, W) -> the same shape."""
        return torch.add(x, self.rdb3(self.rdb2(self.rdb1(x))), alpha=SHARE)


class RRDBNet(nn.Module):
    """Dense blocks at the input's size, then twice as large, twice. Keys as published."""

    def __init__(self, config: RRDBConfig) -> None:
        super().__init__()
        self.config = config
        features = config.features
        self.conv_first = _conv(3, features)
        self.body = nn.Sequential(*(ResidualBlock(features, config.growth) for _ in range(config.blocks)))
        self.conv_body = _conv(features, features)
        self.conv_up1 = _conv(features, features)
        self.conv_up2 = _conv(features, features)
        self.conv_hr = _conv(features, features)
        self.conv_last = _conv(features, 3)

    @property
    def reach(self) -> int:
        """The farthest that a pixel of the input lies from what depends on it, in pixels of the input."""
        # conv_first, fifteen in each block, conv_body; then half a pixel and three quarters of one, and their rounding.
        return 15 * self.config.blocks + 2 + 2

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, 3, 4 H, 4 W)."""
        first = self.conv_first(x)
        features = first + self.conv_body(self.body(first))
        for conv in (self.conv_up1, self.conv_up2):
            features = leaky(conv(F.interpolate(features, scale_factor=2, mode="nearest")))
        made: Tensor = self.conv_last(leaky(self.conv_hr(features)))
        return made
