"""Grain that is measured on photos and drawn anew: as strong and as coarse as what was there.

Up to about a pixel: what is slower than that counts as the picture.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from oldphoto.training.ageing import Dice
from oldphoto.training.grain import Grain, measured

CPU = torch.device("cpu")


def scan(coarse: float, strength: float, seed: int = 0, along: float | None = None) -> Any:
    """A flat scan (256, 256, 3) with grain of a size in pixels, and of a standard deviation in levels."""
    noise = np.random.default_rng(seed).standard_normal((256, 256))
    noise = gaussian_filter(noise, coarse) if along is None else gaussian_filter1d(noise, along, axis=1)
    noise *= strength / noise.std()
    return np.clip(np.rint(128.0 + noise), 0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)


def likeness(plane: Any, down: int, right: int) -> float:
    """Correlation of a plane with itself, some pixels off."""
    a, b = plane[: -down or None, : -right or None], plane[down:, right:]
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def drawn(grain: Grain, count: int = 4) -> Any:
    """Grain on mid-grey, in levels, (count, S, S)."""
    x = torch.full((count, 3, 128, 128), 0.5)
    return (grain.laid(x, 1.0, Dice.seeded(CPU, 3)) - x)[:, 0].numpy() * 255.0


@pytest.mark.parametrize(("coarse", "strength"), [(0.4, 4.0), (0.5, 8.0), (0.7, 12.0)])
def test_grain_is_as_strong_and_as_coarse_as_measured(coarse: float, strength: float) -> None:
    photo = scan(coarse, strength)
    grain = measured([photo], CPU)
    assert float(grain.strengths[0]) * 255.0 == pytest.approx(strength, rel=0.15)
    new = drawn(grain)
    assert 0.6 * 0.85 * strength < new.std() < 1.5 * strength
    for shift in ((0, 1), (1, 0), (1, 1), (0, 2)):
        wanted = likeness(photo[..., 0].astype(float), *shift)
        assert np.mean([likeness(one, *shift) for one in new]) == pytest.approx(wanted, abs=0.12)


def test_stripes_stay_stripes() -> None:
    new = drawn(measured([scan(0.0, 8.0, along=1.5)], CPU))
    assert np.mean([likeness(one, 0, 1) for one in new]) > 0.5
    assert abs(np.mean([likeness(one, 1, 0) for one in new])) < 0.15


def test_photos_without_grain_or_flat_places_teach_none() -> None:
    smooth = np.full((256, 256, 3), 128, np.uint8)
    steep = np.repeat(np.tile(np.arange(0, 256, 8, dtype=np.uint8), 8)[None, :, None], 256, axis=0).repeat(3, axis=2)
    none = measured([smooth, steep], CPU)
    assert none.kernels.shape == (0, 32, 32)
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(none.laid(x, 1.0, Dice.seeded(CPU, 1)), x)


def test_grain_is_laid_on_the_share_asked_for_and_the_same_by_one_seed() -> None:
    grain = measured([scan(0.8, 8.0)], CPU)
    x = torch.full((400, 3, 64, 64), 0.5)
    one, two = (grain.laid(x, 0.25, Dice.seeded(CPU, 5)) for _ in range(2))
    assert torch.equal(one, two)
    share = float((one != x).flatten(1).any(dim=1).float().mean())
    assert share == pytest.approx(0.25, abs=0.07)
    dark = grain.laid(torch.full((8, 3, 64, 64), 0.02), 1.0, Dice.seeded(CPU, 6))
    assert float(dark.std()) < 0.6 * float(grain.laid(x[:8], 1.0, Dice.seeded(CPU, 6)).std())
