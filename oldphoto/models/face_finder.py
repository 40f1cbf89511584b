"""The network that proposes where faces may be: a few convolutions over a grey photo, one answer for each 8 x 8 pixels.

Ours. Faces whose square, as dlib's detector draws it, is 20 to 40 pixels wide; larger ones show in smaller copies of
the photo. Input (N, 1, H, W) in [-1, 1], H and W multiples of 8; output (N, 5, H/8, W/8), the channels in the order of
CHANNELS: a logit; how far right and down of the cell's point the face's middle lies, in cells; log2 of the square's
side over USUAL_SIDE; degrees of clockwise lean over 90. The point of cell (row, column) is (8 * column, 8 * row) in
(x, y) pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from oldphoto.models.blocks import Conv1x1, activate

CHANNELS = ("logit", "right", "down", "size", "lean")
STRIDE = 8
USUAL_SIDE = 28.0
LEAST_SIDE, MOST_SIDE = 20.0, 40.0


@dataclass(frozen=True)
class FaceFinderConfig:
    """widths: channels at 1/2, 1/4 and 1/8 of the size. depth: residual convolutions at 1/8, which see the whole
    face."""

    widths: tuple[int, int, int] = (8, 32, 32)
    depth: int = 3

    def __post_init__(self) -> None:
        if len(self.widths) != 3 or min(self.widths) < 1 or self.depth < 1:
            raise ValueError(f"face finder of widths {self.widths} and depth {self.depth}")


class FaceFinder(nn.Module):
    """Stride 8 in three steps, then residual convolutions; every answer sees 15 + 16 * depth pixels each way across."""

    def __init__(self, config: FaceFinderConfig) -> None:
        super().__init__()
        self.config = config
        widths = (1, *config.widths)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(widths))
        self.body = nn.ModuleList(nn.Conv2d(widths[-1], widths[-1], 3, 1, 1) for _ in range(config.depth))
        self.head = Conv1x1(widths[-1], len(CHANNELS))

    @property
    def reach(self) -> int:
        """Pixels by which what an answer sees extends beyond its cell."""
        return STRIDE * (self.config.depth + 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) in [-1, 1] -> (N, 5, H/8, W/8)."""
        for conv in self.down:
            x = activate(conv(x))
        for conv in self.body:
            y = activate(conv(x))
            x = x + y if torch.is_grad_enabled() else y.add_(x)
        answers: Tensor = self.head(x)
        return answers
