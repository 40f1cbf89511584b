"""The network that places five points on a face: a small U-Net that ends in one map of probability for each point,
whose mean is the point. The mean gives fractions of a pixel (Sun et al., Integral Human Pose Regression, ECCV 2018).

Input (N, 1, S, S), grey in any range, S a multiple of 16; output (N, 5, 2), (x, y) in its pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oldphoto.models.blocks import Conv1x1

POINTS = 5
CELL = 2  # pixels of the crop for each cell of the maps
MULTIPLE = 16


@dataclass(frozen=True)
class LandmarkNetConfig:
    """width: channels at half the crop's size; 2, 4 and 6 times as many at the coarser ones. size: the crop's side."""

    width: int = 16
    size: int = 96

    def __post_init__(self) -> None:
        if self.width < 1 or self.size < MULTIPLE or self.size % MULTIPLE:
            raise ValueError(f"landmark network of width {self.width} for crops of {self.size}")


class ConvNorm(nn.Module):
    """Conv 3x3, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, channels_out, H / stride, W / stride)."""
        return F.relu(self.norm(self.conv(x)))


class Residual(nn.Module):
    """x + two convolutions of it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvNorm(channels, channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        out: Tensor = F.relu(x + self.norm(self.second(self.first(x))))
        return out


class LandmarkNet(nn.Module):
    """Crop of a face -> eyes, nose tip, mouth corners."""

    def __init__(self, config: LandmarkNetConfig) -> None:
        super().__init__()
        self.config = config
        w = config.width
        self.stem = nn.Sequential(ConvNorm(1, w, 2), ConvNorm(w, w))
        self.down = nn.ModuleList(
            nn.Sequential(ConvNorm(a * w, b * w, 2), *(Residual(b * w) for _ in range(count)))
            for a, b, count in ((1, 2, 1), (2, 4, 1), (4, 6, 2))
        )
        self.narrow = nn.ModuleList(Conv1x1(a * w, b * w) for a, b in ((6, 4), (4, 2), (2, 1)))
        self.up = nn.ModuleList(ConvNorm(b * w, b * w) for b in (4, 2, 1))
        self.last = Conv1x1(w, POINTS)

    def forward(self, crops: Tensor) -> Tensor:
        """(N, 1, S, S) -> (N, 5, 2), (x, y) in pixels, (0, 0) the first one's centre."""
        return means(self.maps(crops))

    def maps(self, crops: Tensor) -> Tensor:
        """(N, 1, S, S) -> (N, 5, S / 2, S / 2), the logarithm of each point's probability in each cell."""
        if crops.shape[-2:] != (self.config.size, self.config.size):
            raise ValueError(f"crops of {tuple(crops.shape[-2:])}, not {self.config.size} x {self.config.size}")
        # Faded and bright photos look the same from here on.
        spread, middle = torch.std_mean(crops.float(), dim=(2, 3), keepdim=True)
        x = self.stem((crops - middle) / (spread + 1e-3))
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(x)
        for narrow, up in zip(self.narrow, self.up, strict=True):
            x = F.interpolate(narrow(x), scale_factor=2, mode="bilinear", align_corners=False)
            x = up(x + skips.pop())
        cells: Tensor = self.last(x).float()
        return F.log_softmax(cells.flatten(2), dim=2).view(cells.shape)


def means(maps: Tensor) -> Tensor:
    """(N, 5, h, w) logarithms of probability -> (N, 5, 2), where the points are on average, in pixels of the crop."""
    likely = maps.exp()
    at = [CELL * (torch.arange(side, device=maps.device) + 0.5) - 0.5 for side in maps.shape[-2:]]
    return torch.stack([(likely.sum(dim=2) * at[1]).sum(dim=2), (likely.sum(dim=3) * at[0]).sum(dim=2)], dim=2)
