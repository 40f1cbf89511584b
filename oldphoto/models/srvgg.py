"""A plain chain of convolutions that makes a picture four times as large, and clean. Source: Wang et al., ICCVW 2021.

Input (N, 3, H, W), RGB in [0, 1], no mean taken off; output (N, 3, 4 H, 4 W), about [0, 1], not clamped.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

FACTOR = 4
# The direct sum: Winograd's is no quicker at so few channels, and 34 layers of it are 1e-5 off.
_conv = partial(nn.Conv2d, kernel_size=3, padding=1)


@dataclass(frozen=True)
class SRVGGConfig:
    """features: channels; convolutions: layers between the first, from the picture, and the last, to its pixels.

    base: how the input is enlarged before the network's answer is added to it; "nearest" as published.
    """

    features: int = 64
    convolutions: int = 32
    base: Literal["nearest", "bilinear"] = "nearest"

    def __post_init__(self) -> None:
        if self.features < 1 or self.convolutions < 0 or self.base not in ("nearest", "bilinear"):
            raise ValueError(
                f"SRVGG of {self.features} features and {self.convolutions} convolutions, base {self.base!r}"
            )


class SRVGGNetCompact(nn.Module):
    """Convolutions with PReLU at the input's size, whose channels become pixels at the end. Keys as published."""

    def __init__(self, config: SRVGGConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        for inputs in (3, *(config.features for _ in range(config.convolutions))):
            layers += [_conv(inputs, config.features), nn.PReLU(config.features)]
        self.body = nn.Sequential(*layers, _conv(config.features, 3 * FACTOR**2))

    @property
    def reach(self) -> int:
        """The farthest that a pixel of the input lies from what depends on it, in pixels of the input."""
        return self.config.convolutions + 2

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, 3, 4 H, 4 W)."""
        detail = F.pixel_shuffle(self.body(x), FACTOR)
        if self.config.base == "nearest":
            return detail + F.interpolate(x, scale_factor=FACTOR, mode="nearest")
        return detail + F.interpolate(x, scale_factor=FACTOR, mode="bilinear", align_corners=False)
