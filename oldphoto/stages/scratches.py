"""Where a photo is damaged: what a network says of it, thresholded.

The published detector looks at a small grey copy. The compact set's looks at the photo itself, and at smaller copies,
tile by tile, so that memory is bounded whatever the size; at small photos it looks in twice their size, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

from oldphoto.arrays import Floats, Mask, Pixels
from oldphoto.files.colour import bands, luminance
from oldphoto.stages.stage import Case, Clock, Plain, State
from oldphoto.weights.sets import Role

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from oldphoto.models.loaded import Models

# Of the compact set's detector: pixels that it halves five times; the side of a tile and what is seen around it; the
# short side that a copy must have to be looked at, and the pixels of the largest one: finer scratches than those of a
# scan of 4 megapixels are seen in a copy, too. Photos of no more pixels than the last are looked at in twice their size
# as well: cracks are a pixel wide there, and the network has seen few that are.
CELL = 32
TILE, AROUND = 768, 128
LEAST_SHORT_SIDE = 160
MOST_LOOKED_AT = 4_200_000
ENLARGED = 375_000
# Of the published one: pixels that it halves four times.
MULTIPLE = 16
LEAST_SIDE = 2 * MULTIPLE
# A sliver of 1000 x 10 pixels scaled to a short side of 256 would be 25,600 long.
MOST_PIXELS = 4_000_000


class Scratches(Plain):
    """Finds what is damaged; or takes the user's mask, grown by as much as the options say."""

    name: str = "scratches"
    clock: Clock = "scratches"

    def roles(self, case: Case) -> tuple[Role, ...]:
        """See Stage."""
        return ("detector",) if case.options.with_scratch and not case.has_mask else ()

    def run(self, state: State, case: Case, models: Models) -> None:
        """See Stage."""
        options = case.options
        if state.mask is not None:
            state.mask = dilated(state.mask, options.mask_dilation or 0)
        elif options.with_scratch:
            grown = case.models.detector.large_dilation if case.large else 0
            found = found_damage(state.seen, models, options.scratch_threshold)
            state.mask = dilated(found, grown if options.mask_dilation is None else options.mask_dilation)

    def generated(self, state: State) -> bool:
        """See Stage."""
        return state.mask is not None and bool(state.mask.any())


def found_damage(pixels: Pixels, models: Models, threshold: float | None) -> Mask:
    """(H, W, 3) pixels -> (H, W) bool, True = damaged: by the set's detector, which says so with a probability of at
    least `threshold`; None takes the set's own."""
    return damage_probability(pixels, models) >= (models.set.detector.threshold if threshold is None else threshold)


def damage_probability(pixels: Pixels, models: Models) -> Floats:
    """(H, W, 3) uint8 or uint16 sRGB -> (H, W) float32 in [0, 1]. In full precision whatever the others have: a mask is
    a matter of yes or no, and what is rounded across the threshold would be a hole or none."""
    import torch

    net, short_side = models.net("detector"), models.set.detector.short_side
    with torch.inference_mode(), torch.autocast(models.device.type, enabled=False):
        if short_side is None:
            return probability_in_sizes(pixels, net, models.device)
        return probability_in_grey(pixels, net, short_side, models.device)


def probability_in_sizes(pixels: Pixels, net: nn.Module, device: torch.device) -> Floats:
    """The probability of damage by what the network says at the photo's own size, at halves of it, and of a small photo
    at twice its size. See damage_probability.

    Neighbouring sizes are asked together, since what looks like damage in one size alone is mostly none; of all such
    pairs the highest counts, since a broad tear is as wide as a scratch only once it is seen small.
    """
    seen = pixels
    while seen.shape[0] * seen.shape[1] > MOST_LOOKED_AT:
        seen = _halved(seen)
    height, width = seen.shape[:2]
    finer = _tile_by_tile(seen, net, device)
    if height * width <= ENLARGED:
        twice = cast("Pixels", cv2.resize(seen, (2 * width, 2 * height), interpolation=cv2.INTER_CUBIC))
        np.maximum(finer, _sized(_tile_by_tile(twice, net, device), width, height), out=finer)
    most: Floats | None = None
    while min(seen.shape[:2]) >= 2 * LEAST_SHORT_SIDE:
        seen = _halved(seen)
        coarser = _sized(_tile_by_tile(seen, net, device), width, height)
        pair = _together(finer, coarser)
        most = pair if most is None else np.maximum(most, pair, out=most)
        finer = coarser
    return _sized(finer if most is None else most, pixels.shape[1], pixels.shape[0])


def _together(one: Floats, other: Floats) -> Floats:
    """The probability whose logit is the mean of two others'."""
    damaged, sound = np.sqrt(one * other), np.sqrt((1.0 - one) * (1.0 - other))
    return np.asarray(damaged / np.maximum(damaged + sound, 1e-9), np.float32)


def _sized(share: Floats, width: int, height: int) -> Floats:
    if share.shape == (height, width):
        return share
    smaller = height < share.shape[0]
    return np.asarray(
        cv2.resize(share, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR), np.float32
    )


def _tile_by_tile(pixels: Pixels, net: nn.Module, device: torch.device) -> Floats:
    """(H, W, 3) -> (H, W), at this size. Tiles begin where the network's coarsest cells do, and see AROUND pixels more
    on each side, so that the answer is that of one piece but for next to nothing."""
    import torch
    import torch.nn.functional as F

    height, width = pixels.shape[:2]
    share: Floats = np.empty((height, width), np.float32)
    middle = np.float32(np.iinfo(pixels.dtype).max / 2.0)
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            above, before = min(top, AROUND), min(left, AROUND)
            part = pixels[top - above : top + TILE + AROUND, left - before : left + TILE + AROUND]
            h, w = part.shape[:2]
            levels = part.transpose(2, 0, 1).astype(np.float32) / middle - np.float32(1.0)
            x = torch.from_numpy(levels)[None].to(device)
            x = F.pad(x, (0, -w % CELL, 0, -h % CELL), mode="replicate")
            made = torch.sigmoid(net(x.contiguous(memory_format=torch.channels_last)).float())[0, 0, :h, :w]
            there = share[top : top + TILE, left : left + TILE]
            there[:] = made[above:, before:][: there.shape[0], : there.shape[1]].cpu().numpy()
    return share


def _halved(pixels: Pixels) -> Pixels:
    size = (max(1, pixels.shape[1] // 2), max(1, pixels.shape[0] // 2))
    return cast("Pixels", cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))


def probability_in_grey(pixels: Pixels, unet: nn.Module, short_side: int, device: torch.device) -> Floats:
    """What the published detector says of a grey copy whose short side has so many pixels, enlarged by nearest. See
    damage_probability."""
    import torch

    # In one expression, so that no name holds the whole grey photo while the network runs.
    seen = resized_for(grey_tensor(pixels), short_side).to(device)
    return enlarged(torch.sigmoid(unet(seen).float().cpu()), (pixels.shape[0], pixels.shape[1]))


def enlarged(share: Tensor, size: tuple[int, int]) -> Floats:
    """(1, 1, h, w) -> (H, W) of `size`, by nearest, as published."""
    import torch.nn.functional as F

    full: Floats = F.interpolate(share, size=size, mode="nearest")[0, 0].numpy()
    return full


def grey_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) of the grey copy: multiples of 16, at least 32 a side."""
    scale = min(short_side / min(height, width), (MOST_PIXELS / (height * width)) ** 0.5)
    h, w = (max(LEAST_SIDE, round(side * scale / MULTIPLE) * MULTIPLE) for side in (height, width))
    return h, w


def grey_tensor(pixels: Pixels) -> Tensor:
    """(H, W, 3) uint8 or uint16 -> luminance (1, 1, H, W) float32 in [-1, 1], rounded to whole levels as 8-bit grey is.

    ITU-R 601 weights in 16-bit fixed point, as Pillow's "L", which the published detector was trained on.
    """
    import torch

    grey = np.empty(pixels.shape[:2], np.float32)
    for rows in bands(pixels):
        if pixels.dtype == np.uint8:
            r, g, b = (pixels[rows, :, i].astype(np.uint32) for i in range(3))
            grey[rows] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16
        else:
            grey[rows] = luminance(pixels[rows].astype(np.float32))
    grey /= np.float32(np.iinfo(pixels.dtype).max / 2)
    grey -= np.float32(1.0)
    return torch.from_numpy(grey)[None, None]


def resized_for(grey: Tensor, short_side: int) -> Tensor:
    """(1, 1, H, W) -> the size of `grey_size`, bilinear without a low-pass, as published."""
    import torch.nn.functional as F

    size = grey_size(grey.shape[2], grey.shape[3], short_side)
    if size == tuple(grey.shape[2:]):
        return grey
    return F.interpolate(grey, size=size, mode="bilinear", align_corners=False)


def dilated(mask: Mask, pixels: int) -> Mask:
    """Grow a mask (H, W) by `pixels` on every side: that many dilations by a 3 x 3 square."""
    if not pixels:
        return mask
    return cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=pixels).astype(np.bool_)
