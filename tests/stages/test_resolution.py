"""The native scale: of photos that were reduced and enlarged by known factors, and of sharp ones."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from skimage import data

from oldphoto.models.loaded import Models
from oldphoto.stages.resolution import FIGURES, LEAST_SIDE, figures, native_scale

Pixels8 = NDArray[np.uint8]


def sharp(name: str, side: int = 256) -> Pixels8:
    """A photo reduced to half its size, so that it is as sharp as its pixels allow; in colour."""
    photo = np.asarray(getattr(data, name)())
    if photo.ndim == 2:
        photo = photo[..., None].repeat(3, axis=2)
    half = cv2.resize(photo, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return np.asarray(half[:side, :side], np.uint8)


def enlarged(photo: Pixels8, factor: float, grain: float, side: int = 400) -> Pixels8:
    """Enlarged, with soft grain on top, in levels, and stored as a JPEG."""
    keep = round(side / factor)
    size = round(min(keep, photo.shape[1]) * factor), round(min(keep, photo.shape[0]) * factor)
    large = cv2.resize(photo[:keep, :keep], size, interpolation=cv2.INTER_CUBIC).astype(np.float32)
    noise = cv2.GaussianBlur(np.random.default_rng(4).standard_normal(large.shape[:2]).astype(np.float32), (0, 0), 0.8)
    noisy = np.clip(large + (noise * np.float32(grain / noise.std()))[..., None], 0, 255).astype(np.uint8)
    stored = cv2.imdecode(cv2.imencode(".jpg", noisy, (cv2.IMWRITE_JPEG_QUALITY, 88))[1], cv2.IMREAD_COLOR)
    return np.asarray(stored, np.uint8)


PHOTOS = ("astronaut", "camera", "coffee")


@pytest.mark.parametrize("name", PHOTOS)
def test_sharp_photos_have_a_native_scale_of_one(name: str, models: Models) -> None:
    net = models.estimator("resolution")
    assert native_scale(sharp(name), net) == 1.0
    assert native_scale(enlarged(sharp(name), 1.0, grain=4.0), net) == 1.0


@pytest.mark.parametrize("name", PHOTOS)
def test_it_grows_with_the_factor_by_which_photos_were_enlarged(name: str, models: Models) -> None:
    net = models.estimator("resolution")
    found = [native_scale(enlarged(sharp(name), factor, grain=4.0), net) for factor in (1.0, 2.0, 4.0)]
    assert found[0] < found[1] < found[2]
    assert found[1] == pytest.approx(2.0, rel=0.3)
    assert found[2] == pytest.approx(4.0, rel=0.3)


def test_grain_is_not_taken_for_detail(models: Models) -> None:
    net = models.estimator("resolution")
    soft = [native_scale(enlarged(sharp("astronaut"), 3.0, grain=grain), net) for grain in (1.0, 8.0)]
    assert soft == [pytest.approx(3.0, rel=0.35)] * 2


def test_sixteen_bits_and_tiny_photos(models: Models) -> None:
    net = models.estimator("resolution")
    photo = enlarged(sharp("coffee"), 2.5, grain=3.0)
    deep = photo.astype(np.uint16) * np.uint16(257)
    assert native_scale(deep, net) == pytest.approx(native_scale(photo, net), abs=0.02)
    assert native_scale(photo[: LEAST_SIDE - 1], net) == 1.0


@pytest.mark.parametrize("size", [(LEAST_SIDE, LEAST_SIDE), (LEAST_SIDE, 700), (300, 300)])
@pytest.mark.parametrize("level", [0, 255, None])
def test_figures_are_finite_whatever_the_photo(size: tuple[int, int], level: int | None) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    found = figures(noise if level is None else np.full((*size, 3), level, np.uint8))
    assert found.shape == (FIGURES,)
    assert bool(np.isfinite(found).all())
