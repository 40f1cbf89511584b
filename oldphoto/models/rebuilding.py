"""A photo rebuilt at its own resolution: shrunk to the size at which it is just sharp, enlarged by four by a network
that makes what it is shown crisp and clean, and brought to the size it had, or is to have.

At full size the same network changes little: it takes blur for what there is to see. Pixels are (H, W, 3) uint8 or
uint16 RGB. Tile by tile, each the same as that part of the whole but for rounding, whatever the number of threads.
"""

from __future__ import annotations

import math
import threading
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from oldphoto.arrays import Pixels
from oldphoto.files.colour import LUMA
from oldphoto.models.resampling import Axis, resampled
from oldphoto.models.rrdb import RRDBNet
from oldphoto.models.srvgg import FACTOR, SRVGGNetCompact
from oldphoto.models.winograd import each_alone

Net = SRVGGNetCompact | RRDBNet
Part = tuple[slice, slice]  # rows and columns
# Dense blocks see 349 pixels far, but with the published weights what lies further than this changes no pixel by more
# than a twentieth of a level.
FAR = 40
# Bytes that a tile may take, and the least side of one, in pixels of the native size: larger ones repeat less of what
# they see around them, but leave the caches.
TILE_MEMORY, LEAST_TILE = 128 << 20, 128


def rebuilt(
    pixels: Pixels, net: Net, scale: float, device: torch.device, enlarged: int = 1, room: int | None = None
) -> Pixels:
    """The photo rebuilt, `enlarged` times as large and of its own depth; where all pixels are grey they stay so.

    scale: how many times larger than its detail the photo is, at least 1. room: bytes that tiles may take at once; one
    is worked on in any case.
    """
    height, width = pixels.shape[:2]
    shrink = _axes((height, width), (max(1, round(height / scale)), max(1, round(width / scale))))
    restore = _axes((FACTOR * shrink[0].made, FACTOR * shrink[1].made), (enlarged * height, enlarged * width))
    out = np.empty((restore[0].made, restore[1].made, 3), pixels.dtype)
    top = float(np.iinfo(pixels.dtype).max)
    grey = all(np.array_equal(pixels[..., 0], pixels[..., channel]) for channel in (1, 2))
    luma = torch.tensor(LUMA, dtype=torch.float32, device=device).view(1, 3, 1, 1)
    kind = device.type
    half, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

    def fill(tile: Part) -> None:
        with places, torch.inference_mode(), torch.autocast(kind, enabled=False):
            wanted = _seen(restore, tile)
            around = _around(wanted, shrink, net)
            photo = np.ascontiguousarray(pixels[_seen(shrink, around)].transpose(2, 0, 1), np.float32)
            small = resampled(torch.from_numpy(photo)[None].to(device).div_(top), shrink, around).clamp_(0.0, 1.0)
            with torch.autocast(kind, dtype, enabled=half):
                large = net(small.contiguous(memory_format=torch.channels_last)).float()
            made = resampled(_cut(large, wanted, around).clamp(0.0, 1.0), restore, tile)
            if grey:
                made = (made * luma).sum(dim=1, keepdim=True).expand_as(made)
            out[tile] = made[0].mul(top).round_().clamp_(0.0, top).permute(1, 2, 0).cpu().numpy()

    side = round(_tile(net) * scale * enlarged)
    tiles = [(rows, columns) for rows in _parts(out.shape[0], side) for columns in _parts(out.shape[1], side)]
    places = threading.BoundedSemaphore(len(tiles) if room is None else max(1, room // tile_memory(net)))
    if kind == "cpu":
        each_alone(fill, tiles)
    else:
        for tile in tiles:
            fill(tile)
    return out


def tile_memory(net: Net) -> int:
    """Bytes that a tile takes in the network."""
    return (_tile(net) + 2 * _halo(net)) ** 2 * _pixel_memory(net)


def _pixel_memory(net: Net) -> int:
    """Bytes for each pixel that goes into the network: three maps where it is widest."""
    widest = net.config.features * FACTOR**2 if isinstance(net, RRDBNet) else max(net.config.features, 3 * FACTOR**2)
    return 4 * 3 * widest


def _halo(net: Net) -> int:
    return min(net.reach, FAR)


def _tile(net: Net) -> int:
    """Side of a tile, in pixels of the native size."""
    return max(LEAST_TILE, math.isqrt(TILE_MEMORY // _pixel_memory(net)) - 2 * _halo(net))


def _axes(lengths: tuple[int, int], made: tuple[int, int]) -> tuple[Axis, Axis]:
    return Axis(lengths[0], made[0]), Axis(lengths[1], made[1])


def _seen(axes: tuple[Axis, Axis], part: Part) -> Part:
    return axes[0].seen(part[0]), axes[1].seen(part[1])


def _around(wanted: Part, shrink: tuple[Axis, Axis], net: Net) -> Part:
    """Return the part of the small picture that a part of the large one depends on."""
    rows, columns = (
        slice(max(0, part.start // FACTOR - _halo(net)), min(axis.made, -(-part.stop // FACTOR) + _halo(net)))
        for part, axis in zip(wanted, shrink, strict=True)
    )
    return rows, columns


def _cut(large: Tensor, wanted: Part, around: Part) -> Tensor:
    """The wanted part, counted in the whole large picture, of what was made of `around`."""
    rows, columns = (
        slice(part.start - FACTOR * given.start, part.stop - FACTOR * given.start)
        for part, given in zip(wanted, around, strict=True)
    )
    return large[:, :, rows, columns]


def _parts(length: int, side: int) -> list[slice]:
    """A length in as few parts of much the same size as are no longer than `side`."""
    count = -(-length // side)
    return [slice(first, last) for first, last in pairwise(length * k // count for k in range(count + 1))]
