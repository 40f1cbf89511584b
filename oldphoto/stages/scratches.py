"""Where a photo is scratched: the U-Net on a copy of a fitting size, thresholded."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from oldphoto.files.colour import bands, luminance
from oldphoto.models.scratch_unet import MULTIPLE
from oldphoto.models.tensors import Pixels

Mask = NDArray[np.bool_]
LEAST_SIDE = 2 * MULTIPLE
# A sliver of 1000 x 10 pixels scaled to a short side of 256 would be 25,600 long.
MOST_PIXELS = 4_000_000


@dataclass(frozen=True)
class Detection:
    """The size a detector was trained to look at photos in, and the probability from which it is believed.

    short_side: pixels. enlarges: smaller photos are scaled up to it. antialias: reduce with a low-pass, and enlarge the
    result smoothly; the published detector does neither. threshold: the default, 0..1.
    """

    short_side: int
    enlarges: bool
    antialias: bool
    threshold: float

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) to look at a photo in: multiples of 16, at least 32 a side."""
        scale = self.short_side / min(height, width)
        if not self.enlarges:
            scale = min(scale, 1.0)
        scale = min(scale, (MOST_PIXELS / (height * width)) ** 0.5)
        h, w = (max(LEAST_SIDE, round(side * scale / MULTIPLE) * MULTIPLE) for side in (height, width))
        return h, w


PUBLISHED_DETECTION = Detection(short_side=256, enlarges=True, antialias=False, threshold=0.4)
COMPACT_DETECTION = Detection(short_side=768, enlarges=False, antialias=True, threshold=0.6)


def find_scratches(
    pixels: Pixels, unet: nn.Module, detection: Detection, threshold: float | None, device: torch.device
) -> Mask:
    """pixels: (H, W, 3) uint8 or uint16 RGB -> (H, W) bool, True = scratched: probability at least `threshold`.

    threshold: None takes the detection's own.
    """
    threshold = detection.threshold if threshold is None else threshold
    # In one expression, so that no name holds the whole grey photo while the network runs.
    seen = resized_for(grey_tensor(pixels), detection).to(device)
    probability = torch.sigmoid(unet(seen).float().cpu())
    return scratch_mask(probability, (pixels.shape[0], pixels.shape[1]), threshold, smooth=detection.antialias)


def grey_tensor(pixels: Pixels) -> Tensor:
    """(H, W, 3) uint8 or uint16 -> luminance (1, 1, H, W) float32 in [-1, 1], rounded to whole levels as 8-bit grey is.

    ITU-R 601 weights in 16-bit fixed point, as Pillow's "L", which the detector was trained on.
    """
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


def resized_for(grey: Tensor, detection: Detection) -> Tensor:
    """(1, 1, H, W) -> the size of detection.size, bilinear."""
    size = detection.size(grey.shape[2], grey.shape[3])
    if size == tuple(grey.shape[2:]):
        return grey
    return F.interpolate(grey, size=size, mode="bilinear", align_corners=False, antialias=detection.antialias)


def scratch_mask(probability: Tensor, size: tuple[int, int], threshold: float, *, smooth: bool) -> Mask:
    """Probability map (1, 1, h, w) -> (H, W) bool of `size`, enlarged smoothly or by nearest, as published."""
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
