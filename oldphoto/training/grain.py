"""Grain as scans show it: its spectrum is measured on flat places of real old photos, and drawn anew by random phases.

Beside the made-up grain of `ageing.film_grain`, which is finer and more even than that of plates, prints and scanners.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oldphoto.training.ageing import Dice, grained
from oldphoto.training.data import Pixels, read_photos

SIDE = 32
# What is smoother than this, in pixels, is the picture; a place is flat if its picture varies by fewer levels.
PICTURE, FLAT = 3.0, 6.0
LEAST_PLACES = 4
# Standard deviations as shares of the range: less is none, more is no grain.
LEAST_STRENGTH, MOST_STRENGTH = 0.004, 0.14


@dataclass(frozen=True)
class Grain:
    """The grain of some photos: kernels (K, SIDE, SIDE), which make white noise of variance 1 into grain of variance 1;
    strengths (K,), its standard deviation in the photo, as a share of the range."""

    kernels: Tensor
    strengths: Tensor

    def laid(self, x: Tensor, share: float, dice: Dice) -> Tensor:
        """Grain of one of the photos, 0.6 to 1.5 times as strong as there and strongest in the mid-tones, on this share
        of photos (N, 3, S, S) in [0, 1]. Where none was measured the photos stay as they are."""
        some = dice.some(len(x), share)
        if not len(self.kernels):
            return x
        those = dice.placed(dice.host.integers(len(self.kernels), size=len(x)))
        shape = (x.shape[2], x.shape[3])
        spectra = torch.fft.rfft2(self.kernels[those], shape)
        drawn = torch.fft.irfft2(torch.fft.rfft2(dice.normal(len(x), *shape)) * spectra, shape)[:, None]
        strength = self.strengths[those].view(-1, 1, 1, 1) * dice.figures(len(x), 0.6, 1.5)
        return torch.where(some, grained(x, drawn * strength.clamp(max=MOST_STRENGTH)), x)


def measured(photos: Sequence[Pixels], device: torch.device) -> Grain:
    """The grain of those of the photos, (H, W, 3), that have flat places and grain in them."""
    window = np.outer(np.hanning(SIDE), np.hanning(SIDE)).astype(np.float32)
    kernels, strengths = [], []
    for photo in photos:
        light = np.asarray(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), np.float32)
        picture = np.asarray(cv2.GaussianBlur(light, (0, 0), PICTURE), np.float32)
        pictures, rest = _tiles(picture), _tiles(light - picture)
        mean, slope, spread = pictures.mean(axis=(1, 2)), pictures.std(axis=(1, 2)), rest.std(axis=(1, 2))
        # A speck is no grain: the residual of grain is spread evenly.
        flat = (slope < FLAT) & (mean > 35.0) & (mean < 225.0) & (np.abs(rest).max(axis=(1, 2)) < 6.0 * spread)
        strength = float(np.median(spread[flat])) / 255.0 if flat.sum() >= LEAST_PLACES else 0.0
        if not LEAST_STRENGTH <= strength <= MOST_STRENGTH:
            continue
        power = np.square(np.abs(np.fft.fft2(rest[flat] * window))).mean(axis=0)
        kernel = np.fft.fftshift(np.fft.ifft2(np.sqrt(power)).real)
        kernels.append((kernel / np.sqrt(np.square(kernel).sum())).astype(np.float32))
        strengths.append(strength)
    stacked = np.stack(kernels) if kernels else np.zeros((0, SIDE, SIDE), np.float32)
    return Grain(torch.from_numpy(stacked).to(device), torch.tensor(strengths, dtype=torch.float32, device=device))


def _tiles(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """(H, W) -> (N, SIDE, SIDE)."""
    down, across = plane.shape[0] // SIDE, plane.shape[1] // SIDE
    whole = plane[: down * SIDE, : across * SIDE].reshape(down, SIDE, across, SIDE)
    return np.ascontiguousarray(whole.transpose(0, 2, 1, 3)).reshape(-1, SIDE, SIDE)


@lru_cache(maxsize=2)
def grain_of(folder: Path, device: torch.device) -> Grain:
    """The grain of a folder's photos, measured once for all stages of a run."""
    return measured(read_photos(folder, short_side=900), device)
