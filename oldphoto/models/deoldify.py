"""The published colouriser: DeOldify's "artistic" generator (Antic 2019; MIT), a U-Net over ResNet-34.

Module names are those of the file. As it was trained: batch norms come after the ReLU, every doubling of the size is
blurred, and attention's softmax runs over the cells that are asked. Spectral and weight norms are folded when the file
is read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MULTIPLE = 16
# What the network's input and output are measured in: mean and spread of ImageNet's photos.
MEAN = (0.485, 0.456, 0.406)
SPREAD = (0.229, 0.224, 0.225)
REACH = 3.0  # of the output, in those spreads


@dataclass(frozen=True)
class DeOldifyConfig:
    """channels: of the decoder's blocks, from coarse to fine, before the last doubling. keys: of attention."""

    channels: tuple[int, ...] = (768, 768, 672, 300)
    keys: int = 96

    def __post_init__(self) -> None:
        if len(self.channels) != 4 or min(*self.channels, self.keys) < 1:
            raise ValueError(f"DeOldify of {self.channels} channels and {self.keys} keys")


def _normed(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.ReLU(), nn.BatchNorm2d(channels_out)
    )


class BasicBlock(nn.Module):
    """A residual block of ResNet-34."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1:
            shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, H, W) -> (N, channels, H / stride, W / stride)."""
        made = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(made + (x if self.downsample is None else self.downsample(x)))


def _resnet34() -> nn.Sequential:
    """ResNet-34 (He et al., CVPR 2016) without its classifier."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    inputs = 64
    for channels, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        first = BasicBlock(inputs, channels, 1 if channels == inputs else 2)
        layers.append(nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1))))
        inputs = channels
    return nn.Sequential(*layers)


class Attention(nn.Module):
    """Each cell gets what the cells that it is alike to have: softmax over the asked ones, which are named `query`."""

    def __init__(self, channels: int, keys: int) -> None:
        super().__init__()
        self.query = nn.Conv1d(channels, keys, 1, bias=False)
        self.key = nn.Conv1d(channels, keys, 1, bias=False)
        self.value = nn.Conv1d(channels, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        cells = x.flatten(2)
        likeness = torch.softmax(self.query(cells).transpose(1, 2) @ self.key(cells), dim=1)
        made: Tensor = self.gamma * (self.value(cells) @ likeness) + cells
        return made.view_as(x)


class Doubling(nn.Module):
    """Twice the height and width, by a convolution whose channels become pixels, and a mean of 2 x 2 against a grid."""

    def __init__(self, channels_in: int, channels_out: int, *, normed: bool) -> None:
        super().__init__()
        conv = nn.Conv2d(channels_in, 4 * channels_out, 1, bias=not normed)
        self.conv = nn.Sequential(conv, nn.BatchNorm2d(4 * channels_out)) if normed else nn.Sequential(conv)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, H, W) -> (N, channels_out, 2 H, 2 W)."""
        large = F.pixel_shuffle(F.relu(self.conv(x)), 2)
        return F.avg_pool2d(F.pad(large, (1, 0, 1, 0), mode="replicate"), 2, stride=1)


class Up(nn.Module):
    """One level of the decoder: doubled, joined with the encoder's level, convolved twice."""

    def __init__(self, channels_in: int, skip: int, channels: int, keys: int = 0) -> None:
        super().__init__()
        self.shuf = Doubling(channels_in, channels_in // 2, normed=True)
        self.bn = nn.BatchNorm2d(skip)
        self.conv1 = _normed(channels_in // 2 + skip, channels)
        self.conv2 = _normed(channels, channels)
        if keys:
            self.conv2.append(Attention(channels, keys))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(N, channels_in, h, w), (N, skip, H, W) -> (N, channels, H, W)."""
        large = self.shuf(x)
        if large.shape[-2:] != skip.shape[-2:]:
            large = F.interpolate(large, size=skip.shape[-2:], mode="nearest")
        made: Tensor = self.conv2(self.conv1(F.relu(torch.cat([large, self.bn(skip)], dim=1))))
        return made


class Refinement(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        first, second = self.layers
        return x + F.relu(second(F.relu(first(x))))


class DeOldify(nn.Module):
    """Grey photo in three channels, normalised -> photo in colour, normalised."""

    def __init__(self, config: DeOldifyConfig) -> None:
        super().__init__()
        self.config = config
        a, b, c, last = config.channels
        self.layers = nn.ModuleList(
            [
                _resnet34(),
                nn.BatchNorm2d(512),
                nn.ReLU(),
                nn.Sequential(_normed(512, 1024), _normed(1024, 512)),
                Up(512, 256, a),
                Up(a, 128, b, config.keys),
                Up(b, 64, c),
                Up(c, 64, last),
                Doubling(last, last, normed=False),
                nn.Identity(),
                Refinement(last + 3),
                nn.Sequential(nn.Conv2d(last + 3, 3, 1)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> the same shape, in -REACH..REACH. H and W are even."""
        encoder, norm, relu, middle, *ups, doubling, _, refinement, last = self.layers
        assert isinstance(encoder, nn.Sequential)
        made, skips = x, []
        for number, layer in enumerate(encoder):
            made = layer(made)
            if number in (2, 4, 5, 6):
                skips.append(made)
        made = middle(relu(norm(made)))
        for up in ups:
            made = up(made, skips.pop())
        made = last(refinement(torch.cat([doubling(made), x], dim=1)))
        return 2 * REACH * torch.sigmoid(made) - REACH


def painted(net: DeOldify, grey: Tensor) -> Tensor:
    """What the network makes of grey photos: (N, 1, H, W) in [0, 1], sides multiples of MULTIPLE -> (N, 3, H, W) sRGB
    in [0, 1]."""
    mean, spread = (torch.tensor(three, device=grey.device).view(1, 3, 1, 1) for three in (MEAN, SPREAD))
    made: Tensor = net((grey - mean) / spread).float() * spread + mean
    return made.clamp(0.0, 1.0)
