"""Where a photo is scratched: the U-Net on a copy of a fitting size, thresholded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from oldphoto.arrays import Mask, Pixels
from oldphoto.files.colour import bands, luminance
from oldphoto.stages.stage import Case, Clock, Plain, State
from oldphoto.weights.sets import DetectorSettings, Role

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from oldphoto.models.loaded import Models

MULTIPLE = 16  # of pixels, what the network halves four times
LEAST_SIDE = 2 * MULTIPLE
# A sliver of 1000 x 10 pixels scaled to a short side of 256 would be 25,600 long.
MOST_PIXELS = 4_000_000


class Scratches(Plain):
    """Finds what is damaged; or takes the user's mask, grown by as much as the options say."""

    name: str = "scratches"
    clock: Clock = "scratches"

    def roles(self, case: Case) -> tuple[Role, ...]:
        """See Stage."""
        return ("scratch_unet",) if case.options.with_scratch and not case.has_mask else ()

    def run(self, state: State, case: Case, models: Models) -> None:
        """See Stage."""
        options = case.options
        if state.mask is not None:
            state.mask = dilated(state.mask, options.mask_dilation or 0)
        elif options.with_scratch:
            grown = case.models.detector.large_dilation if case.large else 0
            found = found_scratches(state.seen, models, options.scratch_threshold)
            state.mask = dilated(found, grown if options.mask_dilation is None else options.mask_dilation)

    def generated(self, state: State) -> bool:
        """See Stage."""
        return state.mask is not None and bool(state.mask.any())


def found_scratches(pixels: Pixels, models: Models, threshold: float | None) -> Mask:
    """(H, W, 3) pixels -> (H, W) bool, by the set's detector. In full precision whatever the others have: a mask is a
    matter of yes or no, and what is rounded across the threshold would be a hole or none."""
    import torch

    with torch.autocast(models.device.type, enabled=False):
        return find_scratches(pixels, models.net("scratch_unet"), models.set.detector, threshold, models.device)


def detector_size(settings: DetectorSettings, height: int, width: int) -> tuple[int, int]:
    """(height, width) in which a detector looks at a photo: multiples of 16, at least 32 a side."""
    scale = settings.short_side / min(height, width)
    if not settings.enlarges:
        scale = min(scale, 1.0)
    scale = min(scale, (MOST_PIXELS / (height * width)) ** 0.5)
    h, w = (max(LEAST_SIDE, round(side * scale / MULTIPLE) * MULTIPLE) for side in (height, width))
    return h, w


def find_scratches(
    pixels: Pixels, unet: nn.Module, settings: DetectorSettings, threshold: float | None, device: torch.device
) -> Mask:
    """pixels: (H, W, 3) uint8 or uint16 RGB -> (H, W) bool, True = scratched: probability at least `threshold`.

    threshold: None takes the settings' own.
    """
    import torch

    threshold = settings.threshold if threshold is None else threshold
    # In one expression, so that no name holds the whole grey photo while the network runs.
    seen = resized_for(grey_tensor(pixels), settings).to(device)
    probability = torch.sigmoid(unet(seen).float().cpu())
    return scratch_mask(probability, (pixels.shape[0], pixels.shape[1]), threshold, smooth=settings.antialias)


def grey_tensor(pixels: Pixels) -> Tensor:
    """(H, W, 3) uint8 or uint16 -> luminance (1, 1, H, W) float32 in [-1, 1], rounded to whole levels as 8-bit grey is.

    ITU-R 601 weights in 16-bit fixed point, as Pillow's "L", which the detector was trained on.
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


def resized_for(grey: Tensor, settings: DetectorSettings) -> Tensor:
    """(1, 1, H, W) -> the size of `detector_size`, bilinear."""
    import torch.nn.functional as F

    size = detector_size(settings, grey.shape[2], grey.shape[3])
    if size == tuple(grey.shape[2:]):
        return grey
    return F.interpolate(grey, size=size, mode="bilinear", align_corners=False, antialias=settings.antialias)


def scratch_mask(probability: Tensor, size: tuple[int, int], threshold: float, *, smooth: bool) -> Mask:
    """Probability map (1, 1, h, w) -> (H, W) bool of `size`, enlarged smoothly or by nearest, as published."""
    import torch.nn.functional as F

    full = (
        F.interpolate(probability, size=size, mode="bilinear", align_corners=False)
        if smooth
        else F.interpolate(probability, size=size, mode="nearest")
    )
    mask: Mask = (full[0, 0] >= threshold).numpy()
    return mask


def dilated(mask: Mask, pixels: int) -> Mask:
    """Grow a mask (H, W) by `pixels` on every side: that many dilations by a 3 x 3 square."""
    if not pixels:
        return mask
    return cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=pixels).astype(np.bool_)
