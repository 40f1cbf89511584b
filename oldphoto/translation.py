"""Old latents -> clean latents: the global restoration of a photo, of any size.

Photos are (N, 3, H, W) float32 in [-1, 1]; masks (N, 1, H, W), 1 = damaged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from oldphoto.models.mapping import PATCH_SIZES, Mapping
from oldphoto.models.vae import STRIDE, Source, Vae
from oldphoto.tensors import pad_to_multiple

# The least side the encoder's first reflection and two halvings can take.
LEAST_SIDE = 16
# Networks without normalisation see a bounded neighbourhood, so large photos run tile by tile, with the same result as
# in one piece as long as the halo covers that neighbourhood. Both in pixels, multiples of 4.
TILE = 1024
HALO = 128


@dataclass(frozen=True)
class TranslationNets:
    """The three networks one translation runs through."""

    old_vae: Vae
    mapping: Mapping
    clean_vae: Vae

    @property
    def bounded(self) -> bool:
        """Whether each output pixel depends on a bounded neighbourhood (but for the attention inside holes)."""
        configs = (self.old_vae.config, self.mapping.config, self.clean_vae.config)
        return all(c.norm == "none" for c in configs)

    @property
    def multiple(self) -> int:
        """What the photo's sides have to be multiples of: whole cells, or whole patches of the largest size."""
        return STRIDE * max(PATCH_SIZES) if self.mapping.config.context == "patches" else STRIDE


def translate(x: Tensor, mask: Tensor | None, nets: TranslationNets, *, trusted: bool = True) -> Tensor:
    """Restore a photo (1, 3, H, W), any H and W; mask (1, 1, H, W) or None. Returns the same shape, in [-1, 1].

    trusted: nothing of what lies under the mask is looked at. Otherwise networks that refine the photo may keep what
    was masked by mistake.
    """
    padded, padding = pad_to_multiple(x, nets.multiple, LEAST_SIDE)
    padded_mask = None if mask is None else pad_to_multiple(mask, nets.multiple, LEAST_SIDE)[0]
    run = _by_tiles if nets.bounded else translate_whole
    out = run(padded, padded_mask, nets, trusted)
    return padding.crop(out).clamp(-1.0, 1.0)


def translate_whole(x: Tensor, mask: Tensor | None, nets: TranslationNets, trusted: bool = True) -> Tensor:
    """The networks on photos in one piece: (N, 3, H, W), H and W multiples of nets.multiple -> the same shape."""
    filled, latent = translate_latents(x, mask, nets)
    mask = torch.zeros_like(x[:, :1]) if mask is None else mask
    return nets.clean_vae.decode(latent, Source(filled, filled if trusted else x, mask))


def translate_latents(x: Tensor, mask: Tensor | None, nets: TranslationNets) -> tuple[Tensor, Tensor]:
    """The photo with its holes filled, (N, 3, H, W), and its clean latents, (N, C, H/4, W/4)."""
    if mask is not None:
        x = fill_from_surroundings(x, mask) if nets.old_vae.config.mask_input else fill_white(x, mask)
    return x, nets.mapping(nets.old_vae.encode(x, mask), mask)


def fill_white(x: Tensor, mask: Tensor) -> Tensor:
    """Paint holes white, as the published networks were trained to see them; a mask between 0 and 1 blends."""
    return torch.lerp(x, torch.ones_like(x[:, :1]), mask)


def fill_from_surroundings(x: Tensor, mask: Tensor) -> Tensor:
    """Fill holes smoothly from their rim: average the sound pixels down a pyramid, then look up the nearest level.

    x: (N, 3, H, W), mask: (N, 1, H, W) -> (N, 3, H, W). A photo without a sound pixel becomes mid-grey.
    """
    sound = 1.0 - (mask > 0).to(x.dtype)
    if bool((sound == 1.0).all()):
        return x
    levels = [(x * sound, sound)]
    while bool((levels[-1][1] == 0.0).any()) and min(levels[-1][0].shape[-2:]) > 1:
        value, known = levels[-1]
        weight = F.avg_pool2d(known, 2, ceil_mode=True, count_include_pad=False)
        mean = F.avg_pool2d(value * known, 2, ceil_mode=True, count_include_pad=False) / weight.clamp_min(1e-6)
        levels.append((mean, (weight > 0).to(x.dtype)))
    coarse = levels[-1][0]
    for value, known in reversed(levels[:-1]):
        up = F.interpolate(coarse, size=value.shape[-2:], mode="bilinear", align_corners=False)
        coarse = torch.where(known > 0, value, up)
    return torch.where(mask > 0, coarse, x)


def _by_tiles(x: Tensor, mask: Tensor | None, nets: TranslationNets, trusted: bool) -> Tensor:
    """As translate_whole, tile by tile. Attention looks no further than its tile and halo, 1,280 pixels across."""
    height, width = x.shape[-2:]
    out = torch.empty_like(x)
    for top, bottom in _spans(height):
        for left, right in _spans(width):
            y0, y1 = max(0, top - HALO), min(height, bottom + HALO)
            x0, x1 = max(0, left - HALO), min(width, right + HALO)
            part = None if mask is None else mask[..., y0:y1, x0:x1]
            tile = translate_whole(x[..., y0:y1, x0:x1], part, nets, trusted)
            out[..., top:bottom, left:right] = tile[..., top - y0 : bottom - y0, left - x0 : right - x0]
    return out


def _spans(length: int) -> Iterator[tuple[int, int]]:
    """Cut a length into parts of at most TILE, even in size, at multiples of STRIDE."""
    count = -(-length // TILE)
    step = -(-length // (count * STRIDE)) * STRIDE
    for start in range(0, length, step):
        yield start, min(start + step, length)
