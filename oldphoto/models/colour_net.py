"""The network that guesses a grey photo's colours: EfficientNet-lite0 that sees, and a decoder that tells. Ours.

Input (N, 1, H, W), the photo's lightness as sRGB grey in [0, 1], H and W multiples of 32; output (N, NODES, H/4, W/4),
logits over a grid of a* and b* (CIELAB, D65). A distribution rather than one colour, since a dress may be red or blue:
their mean would be grey (Zhang, Isola and Efros, ECCV 2016).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oldphoto.models.efficientnet import LEVEL_CHANNELS, LEVELS, EfficientNet

MULTIPLE = 32
STRIDE = 4  # pixels of the photo for each cell of the answer, each way
STEP = 10.0  # of the grid, in units of a* and b*
LOWEST = (-60.0, -80.0)  # a* and b* of its first node
SIDES = (15, 17)  # nodes of a* and of b*
NODES = SIDES[0] * SIDES[1]


@dataclass(frozen=True)
class ColourNetConfig:
    """widths: channels of the decoder at 1/32, 1/16, 1/8 and 1/4 of the size."""

    widths: tuple[int, ...] = (192, 128, 96, 64)

    def __post_init__(self) -> None:
        if len(self.widths) != 4 or min(self.widths) < 1:
            raise ValueError(f"colour network of widths {self.widths}")


class ColourNet(nn.Module):
    """Grey photo -> logits of its colours."""

    def __init__(self, config: ColourNetConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = EfficientNet()
        before = (0, *config.widths[:-1])
        skips = LEVEL_CHANNELS[:0:-1]  # at 1/32, 1/16, 1/8, 1/4
        self.scene = nn.Linear(LEVEL_CHANNELS[-1], config.widths[0])
        self.decoder = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(earlier + skip, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
            )
            for earlier, skip, width in zip(before, skips, config.widths, strict=True)
        )
        self.last = nn.Conv2d(config.widths[-1], NODES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) in [0, 1] -> (N, NODES, H/4, W/4) logits, those of one a* after each other."""
        logits: Tensor = self.last(self.decoded(self.seen(x)))
        return logits

    def seen(self, x: Tensor) -> list[Tensor]:
        """Show the photo to the encoder: (N, 1, H, W) in [0, 1] -> its results at 1/2 to 1/32 of the size."""
        found = self.encoder(x.expand(-1, 3, -1, -1))
        return [found[level] for level in LEVELS]

    def decoded(self, levels: list[Tensor]) -> Tensor:
        """The encoder's levels -> (N, widths[-1], H/4, W/4), of which the last layer makes logits."""
        coarsest, *finer = levels[:0:-1]
        scene = self.scene(coarsest.mean(dim=(2, 3)))
        made = self.decoder[0](coarsest) + scene[:, :, None, None]
        for level, block in zip(finer, list(self.decoder)[1:], strict=True):
            larger = F.interpolate(made, scale_factor=2, mode="bilinear", align_corners=False)
            made = block(torch.cat([larger, level], dim=1))
        finest: Tensor = made
        return finest


def nodes(device: torch.device) -> Tensor:
    """(NODES, 2): a* and b* of every node."""
    axes = [
        first + STEP * torch.arange(count, device=device, dtype=torch.float32)
        for first, count in zip(LOWEST, SIDES, strict=True)
    ]
    return torch.cartesian_prod(*axes)


def colours(logits: Tensor, temperature: float) -> Tensor:
    """(N, NODES, H, W) logits -> (N, 2, H, W), a* and b*: the mean of the distribution, which a temperature
    below 1 makes more certain of itself."""
    share = torch.softmax(logits.float() / temperature, dim=1)
    return torch.einsum("nqhw,qc->nchw", share, nodes(logits.device))


def places(ab: Tensor) -> tuple[Tensor, Tensor]:
    """The four nodes around each colour and their shares, whose mean is the colour: (N, 2, H, W) -> index and share,
    each (N, 4, H, W). Colours beyond the grid are brought to its rim."""
    sides = torch.tensor(SIDES, device=ab.device).view(1, 2, 1, 1)
    at = (ab - torch.tensor(LOWEST, device=ab.device).view(1, 2, 1, 1)) / STEP
    at = torch.minimum(at.clamp_min(0.0), (sides - 1).to(at.dtype))
    low = torch.minimum(at.floor().long(), sides - 2)
    rest = at - low
    index, share = [], []
    for i in (0, 1):
        for j in (0, 1):
            index.append((low[:, 0] + i) * SIDES[1] + low[:, 1] + j)
            share.append((rest[:, 0] if i else 1 - rest[:, 0]) * (rest[:, 1] if j else 1 - rest[:, 1]))
    return torch.stack(index, dim=1), torch.stack(share, dim=1)
