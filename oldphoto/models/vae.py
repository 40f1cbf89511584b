"""The variational autoencoder of one photo domain: old (degraded) or clean.

A photo (N, 3, H, W) in [-1, 1] becomes a latent map (N, latent_channels, H/4, W/4) and back. Source: Wan et al.,
CVPR 2020 and TPAMI 2022. H and W are multiples of 4 and at least 16.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import EllipsisType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oldphoto.models.blocks import Doubling, Norm, ToPicture, activate, blocks, joined, normalise, reflect
from oldphoto.models.winograd import Conv3x3

STRIDE = 4
SLOPE = 0.2
GATE_BOUND = 4.0


@dataclass(frozen=True)
class VaeConfig:
    """Width and kind of a VAE.

    width: channels at full resolution. latent_channels: channels at 1/2 and 1/4 resolution.
    blocks: residual blocks on each side. norm: see blocks.Norm.
    mask_input: the encoder takes the damage mask (1 = damaged) as a fourth channel.
    refine: channels of two more convolutions at full resolution, which see the features, what was painted from the
    latents alone, and the photo itself, and mix the two: sound detail, which no bottleneck lets through whole, passes
    untouched, and noise need not pass the bottleneck to be taken away. 0 = none, as published.
    """

    width: int = 64
    latent_channels: int = 64
    blocks: int = 4
    norm: Norm = "instance"
    mask_input: bool = False
    refine: int = 0

    def __post_init__(self) -> None:
        if min(self.width, self.latent_channels) < 1 or min(self.blocks, self.refine) < 0:
            raise ValueError(f"VAE of width {self.width}, {self.latent_channels} latents, {self.blocks} blocks")


class Encoder(nn.Module):
    """Photo -> latent map at a quarter of the size."""

    # How many latent cells away `reduce` sees, by its kernels.
    reach = 2

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        c = config.latent_channels
        self.stem = nn.Conv2d(4 if config.mask_input else 3, config.width, 7)
        self.down = nn.ModuleList(
            [nn.Conv2d(config.width, c, 4, stride=2, padding=1), nn.Conv2d(c, c, 4, stride=2, padding=1)]
        )
        self.blocks = blocks(config.blocks, c, config.norm)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: (N, 3, H, W) in [-1, 1]; mask: (N, 1, H, W), 1 = damaged -> (N, C, H/4, W/4)."""
        latent: Tensor = self.blocks(self.reduce(x, mask))
        return latent

    def reduce(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Run forward up to the residual blocks."""
        if self.config.mask_input:
            mask = x.new_zeros(len(x), 1, *x.shape[2:]) if mask is None else mask
            x = joined(x, mask)
        x = activate(normalise(self.stem(reflect(x, 3)), self.config.norm))
        for conv in self.down:
            x = activate(normalise(conv(x), self.config.norm))
        return x


class Decoder(nn.Module):
    """Latent map -> photo."""

    # How many latent cells away `enlarge` sees, by its kernels.
    reach = 3

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        c = config.latent_channels
        self.blocks = blocks(config.blocks, c, config.norm)
        self.up = nn.ModuleList([Doubling(c, c), Doubling(c, config.width)])
        self.head = ToPicture(config.width)
        self.refine = Refine(config) if config.refine else None

    def paint(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, h, w) after the residual blocks -> features (N, width, 4h, 4w), and the picture painted from the
        latents alone, in [-1, 1]."""
        for conv in self.up:
            z = activate(normalise(conv(z), self.config.norm))
        return z, torch.tanh(self.head(reflect(z, 3)))

    def forward(self, z: Tensor, source: Original | None = None) -> Tensor:
        """z: (N, C, h, w); source: of 4h x 4w, or None -> (N, 3, 4h, 4w), in [-1, 1] where nothing is refined."""
        return self.enlarge(self.blocks(z), source)

    def enlarge(self, z: Tensor, source: Original | None) -> Tensor:
        """Run forward from behind the residual blocks."""
        features, painted = self.paint(z)
        return painted if self.refine is None or source is None else self.refine(features, painted, source)


@dataclass(frozen=True)
class Original:
    """The photo that a latent map came from, as a decoder that refines it needs it.

    filled: (N, 3, H, W), its holes filled. seen: (N, 3, H, W), what lay under a mask that may be mistaken; equal to
    `filled` where the mask is to be believed. mask: (N, 1, H, W), 1 = damaged.
    """

    filled: Tensor
    seen: Tensor
    mask: Tensor

    def part(self, slices: tuple[EllipsisType, slice, slice]) -> Original:
        """Some rows and columns of the photo."""
        return Original(self.filled[slices], self.seen[slices], self.mask[slices])


class Refine(nn.Module):
    """At full resolution: how much of the photo to keep, how much of the painting to take, and the change to both."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.conv1 = Conv3x3(config.width + 10, config.refine)
        self.conv2 = Conv3x3(config.refine, config.refine)
        self.last = Conv3x3(config.refine, 5)

    def forward(self, features: Tensor, painted: Tensor, source: Original) -> Tensor:
        """features: (N, width, H, W); painted: (N, 3, H, W) -> (N, 3, H, W), not clipped."""
        seen = (source.filled, source.seen, source.mask)
        x = joined(features, painted, *(part.to(features.dtype) for part in seen))
        x = F.leaky_relu(self.conv1(reflect(x, 1)), SLOPE)
        x = F.leaky_relu(self.conv2(reflect(x, 1)), SLOPE)
        x = self.last(reflect(x, 1))
        # The gates' logits are bounded: a gate stuck at "keep everything" would learn nothing more.
        gates = torch.sigmoid(GATE_BOUND * torch.tanh(x[:, 3:] / GATE_BOUND))
        keep, believe = gates[:, :1], gates[:, 1:]
        photo = source.filled + believe * (source.seen - source.filled)
        out: Tensor = painted + keep * (photo - painted) + x[:, :3]
        return out


class Vae(nn.Module):
    """One domain's encoder and decoder."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The mean of the latent distribution; see Encoder."""
        latent: Tensor = self.encoder(x, mask)
        return latent

    def decode(self, z: Tensor, source: Original | None = None) -> Tensor:
        """Latents -> picture (N, 3, H, W).

        source: the photo the latents came from, for networks that refine it. Without a source, the picture is painted
        from the latents alone, as in the first two stages of training.
        """
        picture: Tensor = self.decoder(z, source)
        return picture
