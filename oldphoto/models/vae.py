"""The variational autoencoder of one photo domain: old (degraded) or clean.

A photo (N, 3, H, W) in [-1, 1] becomes a latent map (N, latent_channels, H/4, W/4) and back. Source: Wan et al.,
CVPR 2020 and TPAMI 2022. H and W are multiples of 4 and at least 16.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from oldphoto.models.blocks import Norm, activate, blocks, normalise, reflect

STRIDE = 4


@dataclass(frozen=True)
class VaeConfig:
    """Width and kind of a VAE.

    width: channels at full resolution. latent_channels: channels at 1/2 and 1/4 resolution.
    blocks: residual blocks on each side. norm: see blocks.Norm.
    mask_input: the encoder takes the damage mask (1 = damaged) as a fourth channel.
    residual: given the photo, the decoder paints the change to it, so that sound detail, which no bottleneck lets
    through whole, passes untouched.
    """

    width: int = 64
    latent_channels: int = 64
    blocks: int = 4
    norm: Norm = "instance"
    mask_input: bool = False
    residual: bool = False

    def __post_init__(self) -> None:
        if min(self.width, self.latent_channels) < 1 or self.blocks < 0:
            raise ValueError(f"VAE of width {self.width}, {self.latent_channels} latents, {self.blocks} blocks")


class Encoder(nn.Module):
    """Photo -> latent map at a quarter of the size."""

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
        if self.config.mask_input:
            x = torch.cat([x, torch.zeros_like(x[:, :1]) if mask is None else mask], dim=1)
        x = activate(normalise(self.stem(reflect(x, 3)), self.config.norm))
        for conv in self.down:
            x = activate(normalise(conv(x), self.config.norm))
        latent: Tensor = self.blocks(x)
        return latent


class Decoder(nn.Module):
    """Latent map -> photo, or the change to one."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        c = config.latent_channels
        self.blocks = blocks(config.blocks, c, config.norm)
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(c, c, 4, stride=2, padding=1), nn.ConvTranspose2d(c, config.width, 4, 2, 1)]
        )
        self.head = nn.Conv2d(config.width, 3, 7)

    def forward(self, z: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, 3, 4h, 4w), in [-1, 1] unless the config is residual."""
        x = self.blocks(z)
        for conv in self.up:
            x = activate(normalise(conv(x), self.config.norm))
        x = self.head(reflect(x, 3))
        return x if self.config.residual else torch.tanh(x)


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

    def decode(self, z: Tensor, source: Tensor | None = None) -> Tensor:
        """Latents -> picture (N, 3, H, W).

        source: the photo the latents came from, (N, 3, H, W); a residual decoder changes it. Without a source, the
        picture is painted from the latents alone, as in the first two stages of training.
        """
        painted: Tensor = self.decoder(z)
        return source + painted if self.config.residual and source is not None else painted
