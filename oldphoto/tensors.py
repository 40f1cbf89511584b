"""Pixels <-> tensors, and padding to a multiple: the one place for ranges and shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[np.uint8] | NDArray[np.uint16]


def to_tensor(pixels: Pixels) -> Tensor:
    """(H, W, C) uint8 or uint16 -> (1, C, H, W) float32 in [-1, 1]."""
    top = float(np.iinfo(pixels.dtype).max)
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)
    return torch.from_numpy(planes).div_(top / 2.0).sub_(1.0)[None]


def to_pixels(x: Tensor, dtype: np.dtype[Any] | type[np.unsignedinteger[Any]]) -> Pixels:
    """(1, C, H, W) in [-1, 1] -> (H, W, C) uint8 or uint16, rounded; what lies outside the range is clipped."""
    top = float(np.iinfo(dtype).max)
    planes = x[0].float().add(1.0).mul_(top / 2.0).round_().clamp_(0.0, top)
    pixels: Pixels = planes.permute(1, 2, 0).cpu().numpy().astype(dtype)
    return pixels


def mask_to_tensor(mask: NDArray[np.bool_]) -> Tensor:
    """(H, W) bool, True = damaged -> (1, 1, H, W) float32, 1 = damaged."""
    return torch.from_numpy(np.ascontiguousarray(mask, dtype=np.float32))[None, None]


@dataclass(frozen=True)
class Padding:
    """Rows and columns added below and to the right, and the size they were added to."""

    height: int
    width: int
    bottom: int
    right: int

    def crop(self, x: Tensor) -> Tensor:
        """(N, C, height + bottom, width + right) -> (N, C, height, width)."""
        return x[..., : self.height, : self.width]


def pad_to_multiple(x: Tensor, multiple: int, least: int = 0) -> tuple[Tensor, Padding]:
    """Pad x (N, C, H, W) by reflection to multiples of `multiple`, each side at least `least`; crop() takes it back.

    Photos narrower than the padding they need are mirrored again and again.
    """
    height, width = x.shape[-2:]
    bottom = max(-(-height // multiple) * multiple, least) - height
    right = max(-(-width // multiple) * multiple, least) - width
    padding = Padding(height, width, bottom, right)
    if not bottom and not right:
        return x, padding
    if bottom < height and right < width:
        return F.pad(x, (0, right, 0, bottom), mode="reflect"), padding
    rows = torch.from_numpy(np.pad(np.arange(height), (0, bottom), mode="symmetric")).to(x.device)
    columns = torch.from_numpy(np.pad(np.arange(width), (0, right), mode="symmetric")).to(x.device)
    return x[..., rows, :][..., columns], padding
