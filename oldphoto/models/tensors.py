"""Pixels <-> tensors, and padding: the one place for ranges and shapes."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
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


def mirrored(size: tuple[int, int], padded: tuple[int, int]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The rows and columns of a photo of (height, width) that, mirrored below and to the right, make the padded one.

    Photos narrower than the padding they need are mirrored again and again.
    """
    added = [after - before for before, after in zip(size, padded, strict=True)]
    mode: Literal["reflect", "symmetric"] = (
        "reflect" if all(more < side for more, side in zip(added, size, strict=True)) else "symmetric"
    )
    rows, columns = (np.pad(np.arange(side), (0, more), mode=mode) for side, more in zip(size, added, strict=True))
    return rows, columns
