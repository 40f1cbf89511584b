"""The progressive face generator: from the face at 1/32 of its size up to full size, steered at every scale by the
degraded face through spatially-adaptive normalisation (SPADE). Source: Wan et al., TPAMI 2022; Park et al., CVPR 2019.

Input and output (N, 3, S, S) in [-1, 1], S a multiple of 32 (256 and 512 as published).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oldphoto.models import winograd
from oldphoto.models.blocks import Conv1x1, activate, resized
from oldphoto.models.winograd import Conv3x3, conv3x3

DOUBLINGS = 5
MULTIPLE = 2**DOUBLINGS
SLOPE = 0.2
# Channels of full size that are held at once for a face: so many times the width, and so many times the hidden channels
# of SPADE. Measured at 256 and 512 pixels.
HELD_WIDTHS, HELD_STEERING = 17, 3
# Blocks that several faces go through together: up to an eighth of the full size.
TOGETHER = 4


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

    def memory(self, size: int) -> int:
        """Bytes that faces of `size` pixels take to be worked on by the CPU, however many there are."""
        channels = HELD_WIDTHS * self.config.width + HELD_STEERING * self.config.steering
        return max(winograd.memory(16 * self.config.width), 4 * channels * size**2)

    def forward(self, face: Tensor) -> Tensor:
        """(N, 3, S, S) in [-1, 1] -> the same; a residual network may leave the range by a little."""
        size = face.shape[-1]
        if face.shape[-2] != size or size % MULTIPLE:
            raise ValueError(f"face of {size} x {face.shape[-2]}: must be square and a multiple of {MULTIPLE}")
        x = self.start(resized(face, (size // MULTIPLE, size // MULTIPLE)))
        x = self._through(range(TOGETHER), x, face)
        # The wide kernels of the coarse scales are prepared once for all faces; the large maps are there for one at a
        # time, which bounds the memory.
        at_once = len(x) if x.is_cuda or torch.is_grad_enabled() else 1
        parts = zip(torch.split(x, at_once), torch.split(face, at_once), strict=True)
        return torch.cat([self._finished(*part) for part in parts])

    def _through(self, numbers: range, x: Tensor, face: Tensor) -> Tensor:
        for number in numbers:
            if self.doubles[number]:
                x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = self.blocks[number](x, resized(face, (x.shape[2], x.shape[3])))
        return x

    def _finished(self, x: Tensor, face: Tensor) -> Tensor:
        x = self._through(range(TOGETHER, len(self.blocks)), x, face)
        x = self.last(F.leaky_relu(x, SLOPE))
        return face + x if self.config.residual else torch.tanh(x)
