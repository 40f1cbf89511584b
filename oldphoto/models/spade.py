"""The progressive face generator: from the face at 1/32 of its size up to full size, steered at every scale by the
degraded face through spatially-adaptive normalisation (SPADE). Source: Wan et al., TPAMI 2022; Park et al., CVPR 2019.

Input and output (N, 3, S, S) in [-1, 1], S a multiple of 32 (256 and 512 as published).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oldphoto.models.blocks import Conv1x1, activate, resized
from oldphoto.models.winograd import Conv3x3, conv3x3

DOUBLINGS = 5
MULTIPLE = 2**DOUBLINGS
SLOPE = 0.2


@dataclass(frozen=True)
class FaceGeneratorConfig:
    """Width of the face generator.

    width: channels at full size; the coarsest scales have 16 times as many. steering: hidden channels of each SPADE.
    residual: the network paints the change to the degraded face instead of the whole face.
    """

    width: int = 64
    steering: int = 128
    residual: bool = False

    def __post_init__(self) -> None:
        if min(self.width, self.steering) < 1:
            raise ValueError(f"face generator of width {self.width}, steering {self.steering}")


class Spade(nn.Module):
    """Normalise, then scale and shift each cell by what the degraded face says there."""

    def __init__(self, channels: int, steering: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.shared = Conv3x3(3, steering, padding=1)
        self.gamma = Conv3x3(steering, channels, padding=1)
        self.beta = Conv3x3(steering, channels, padding=1)

    def forward(self, x: Tensor, face: Tensor) -> Tensor:
        """x: (N, C, h, w), face: (N, 3, h, w) -> (N, C, h, w)."""
        steer = activate(self.shared(face))
        # Both as one convolution, which transforms its input once; putting the weights together takes little time.
        weight = torch.cat((self.gamma.weight, self.beta.weight))
        bias = torch.cat((1.0 + self.gamma.bias, self.beta.bias))
        scale, shift = conv3x3(steer, weight, bias, (1, 1)).chunk(2, dim=1)
        return torch.addcmul(shift, self.norm(x), scale)


class SpadeBlock(nn.Module):
    """Residual block of SPADE, LeakyReLU and convolution, twice; the shortcut is learned where the width changes."""

    def __init__(self, channels_in: int, channels_out: int, steering: int) -> None:
        super().__init__()
        middle = min(channels_in, channels_out)
        self.norm1 = Spade(channels_in, steering)
        self.conv1 = Conv3x3(channels_in, middle, padding=1)
        self.norm2 = Spade(middle, steering)
        self.conv2 = Conv3x3(middle, channels_out, padding=1)
        self.shortcut_norm = Spade(channels_in, steering) if channels_in != channels_out else None
        self.shortcut = Conv1x1(channels_in, channels_out, bias=False) if channels_in != channels_out else None

    def forward(self, x: Tensor, face: Tensor) -> Tensor:
        """x: (N, channels_in, h, w), face: (N, 3, h, w) -> (N, channels_out, h, w)."""
        y: Tensor = self.conv1(F.leaky_relu(self.norm1(x, face), SLOPE))
        y = self.conv2(F.leaky_relu(self.norm2(y, face), SLOPE))
        if self.shortcut_norm is not None and self.shortcut is not None:
            x = self.shortcut(self.shortcut_norm(x, face))
        return x + y


class FaceGenerator(nn.Module):
    """Degraded face -> enhanced face."""

    def __init__(self, config: FaceGeneratorConfig) -> None:
        super().__init__()
        self.config = config
        w, s = config.width, config.steering
        self.start = Conv3x3(3, 16 * w, padding=1)
        # Whether the map is doubled before each block: the third block works at the second's size.
        self.doubles = (False, True, False, True, True, True, True)
        shapes = ((16, 16), (16, 16), (16, 16), (16, 8), (8, 4), (4, 2), (2, 1))
        self.blocks = nn.ModuleList(SpadeBlock(a * w, b * w, s) for a, b in shapes)
        self.last = Conv3x3(w, 3, padding=1)

    def forward(self, face: Tensor) -> Tensor:
        """(N, 3, S, S) in [-1, 1] -> the same; a residual network may leave the range by a little."""
        size = face.shape[-1]
        if face.shape[-2] != size or size % MULTIPLE:
            raise ValueError(f"face of {size} x {face.shape[-2]}: must be square and a multiple of {MULTIPLE}")
        steer = resized(face, (size // MULTIPLE, size // MULTIPLE))
        x = self.start(steer)
        for block, double in zip(self.blocks, self.doubles, strict=True):
            if double:
                x = F.interpolate(x, scale_factor=2, mode="nearest")
                steer = resized(face, (x.shape[2], x.shape[3]))
            x = block(x, steer)
        x = self.last(F.leaky_relu(x, SLOPE))
        return face + x if self.config.residual else torch.tanh(x)
