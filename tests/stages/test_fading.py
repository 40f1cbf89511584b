"""Fading undone, on photos whose fading is known; and left alone where there is none."""

from __future__ import annotations

import colorsys
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray

from oldphoto import weights
from oldphoto.errors import UsageError
from oldphoto.files.image import Photo
from oldphoto.models.estimator import Estimator
from oldphoto.models.loaded import Models
from oldphoto.models.tensors import Pixels
from oldphoto.options import Options
from oldphoto.pipeline import restore
from oldphoto.stages import fading
from oldphoto.stages.fading import FIGURES, Tone, figures, restore_tone

# Public domain and CC0, from scikit-image.
PHOTOS: dict[str, NDArray[np.uint8]] = {
    name: np.ascontiguousarray(getattr(skimage.data, name)()[..., :3]) for name in ("astronaut", "coffee", "chelsea")
}


@pytest.fixture(scope="module")
def net(models: Models) -> Estimator:
    return models.estimator("fading")


def psnr(a: Pixels, b: Pixels) -> float:
    """In dB, of pixels of 8 or 16 bits."""
    error = np.square(a.astype(np.float64) - b.astype(np.float64)).mean()
    return float(10.0 * np.log10(float(np.iinfo(a.dtype).max) ** 2 / error))


def faded(pixels: Any, black: float, white: float, cast: tuple[float, float, float]) -> Any:
    """By the formula of degrade.fading; of the input's depth."""
    top = np.iinfo(pixels.dtype).max
    light = pixels / top
    return np.rint((black + light * (white - black)) * np.array(cast) * top).astype(pixels.dtype)


# Not the cat: brown on brown, it might have been meant so.
@pytest.mark.parametrize("name", ["astronaut", "coffee"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_strong_fading_is_undone(name: str, dtype: type, net: Estimator) -> None:
    photo = PHOTOS[name].astype(dtype) * dtype(np.iinfo(dtype).max // 255)
    old = faded(photo, 0.17, 0.8, (1.0, 0.95, 0.8))
    done, found = restore_tone(old, None, net)
    assert found is not None
    assert found.likely >= fading.COLOUR_LIKELY[1]
    assert done.dtype == photo.dtype
    before, after = (psnr(photo, x) for x in (old, done))
    assert after > before + 3.0


def test_where_there_is_doubt_a_part_is_done(net: Estimator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half as sure, half as far, and as the result says."""
    old = faded(PHOTOS["coffee"], 0.17, 0.8, (1.0, 0.95, 0.8))
    whole, found = restore_tone(old, None, net)
    assert found is not None
    monkeypatch.setattr(fading, "COLOUR_LIKELY", (found.likely - 0.1, found.likely + 0.1))
    half, said = restore_tone(old, None, net)
    assert said is not None
    assert np.abs(half - (old + whole.astype(float)) / 2.0).max() <= 1.0
    by_hand = 255.0 * (np.array(said.gain) * (old / 255.0) - np.array(said.offset))
    assert np.abs(half - np.clip(by_hand, 0.0, 255.0)).max() < 0.51
    monkeypatch.setattr(fading, "COLOUR_LIKELY", (found.likely + 0.001, 1.0))
    assert restore_tone(old, None, net)[1] is None


def test_the_user_may_say_how_much(net: Estimator) -> None:
    """The cat is left alone unasked; asked, it comes nearer to what it was, half of it half as far."""
    photo = PHOTOS["chelsea"]
    old = faded(photo, 0.15, 0.85, (1.0, 0.95, 0.8))
    assert restore_tone(old, None, net)[1] is None
    assert restore_tone(old, None, net, 0.0) == (old, None)
    whole, found = restore_tone(old, None, net, 1.0)
    assert found is not None
    assert found.likely < fading.COLOUR_LIKELY[0]
    assert psnr(photo, whole) > psnr(photo, old) + 3.0
    half, _ = restore_tone(old, None, net, 0.5)
    assert np.abs(half - (old + whole.astype(float)) / 2.0).max() <= 1.0


def test_what_cannot_be_asked_for() -> None:
    with pytest.raises(UsageError, match=r"tone strength is -0\.1"):
        Options(tone_strength=-0.1)
    with pytest.raises(UsageError, match="tone is left alone"):
        Options(tone_strength=1.0, with_scratch=True, only_damaged=True)
    assert not Options(tone_strength=0.0, with_scratch=True, only_damaged=True).restores_tone(unasked=True)


@pytest.mark.parametrize("name", PHOTOS)
def test_a_sound_photo_is_left_exactly_as_it_is(name: str, net: Estimator) -> None:
    done, found = restore_tone(PHOTOS[name], None, net)
    assert found is None
    assert done is PHOTOS[name]


def test_a_toned_print_keeps_its_tone(net: Estimator) -> None:
    """Sepia stays sepia, with more contrast where it has paled."""
    grey = np.repeat(PHOTOS["astronaut"].mean(axis=2, keepdims=True), 3, axis=2)
    print_ = np.rint(grey * np.array([1.0, 0.94, 0.8])).astype(np.uint8)
    pale = np.rint((45.0 + grey * 0.6) * np.array([1.0, 0.94, 0.8])).astype(np.uint8)
    assert restore_tone(print_, None, net)[1] is None

    def hue_and_saturation(pixels: Pixels) -> tuple[float, float]:
        hue, saturation, _ = colorsys.rgb_to_hsv(*(pixels.reshape(-1, 3).mean(axis=0) / 255.0))
        return hue, saturation

    done, found = restore_tone(pale, None, net)
    assert found is not None
    assert done.std() > 1.2 * pale.std()
    assert np.allclose(hue_and_saturation(done), hue_and_saturation(print_), atol=(0.03, 0.12))


@pytest.mark.parametrize("name", PHOTOS)
def test_grey_and_brown_photos_are_told_from_those_in_colour(name: str) -> None:
    """By what a line fitted with numpy leaves of one channel, given another."""
    colour = PHOTOS[name]
    grey = np.repeat(np.rint(colour.mean(axis=2, keepdims=True)), 3, axis=2)
    for pixels in (colour, grey.astype(np.uint8), np.rint(grey * [1.0, 0.94, 0.8]).astype(np.uint8)):
        small = cv2.resize(pixels, None, fx=256 / min(pixels.shape[:2]), fy=256 / min(pixels.shape[:2]))
        of_channels = small.reshape(-1, 3).T / 255.0
        left = max(
            float((one - np.polyval(np.polyfit(other, one, 1), other)).std())
            for one in of_channels
            for other in of_channels
        )
        assert fading.monochrome(figures(pixels, None)[None])[0] == (left < fading.MONOCHROME)
        assert (left < fading.MONOCHROME) == (pixels is not colour)


def test_a_pale_grey_photo_gains_contrast_and_no_tint(net: Estimator) -> None:
    grey = np.repeat(PHOTOS["astronaut"].mean(axis=2, keepdims=True), 3, axis=2)
    pale = np.rint(45.0 + grey * 0.6).astype(np.uint8)
    done, found = restore_tone(pale, None, net)
    assert found is not None
    assert np.array_equal(done[..., 0], done[..., 1])
    assert np.array_equal(done[..., 0], done[..., 2])
    assert psnr(done, np.rint(grey).astype(np.uint8)) > psnr(pale, np.rint(grey).astype(np.uint8)) + 3.0


def test_a_wall_has_no_contrast_to_bring_back(net: Estimator) -> None:
    wall = np.random.default_rng(3).integers(116, 124, (64, 64, 1), np.uint8).repeat(3, axis=2)
    assert restore_tone(wall, None, net)[1] is None


def test_damage_does_not_count() -> None:
    photo = PHOTOS["coffee"]
    mask = np.zeros(photo.shape[:2], np.bool_)
    mask[:, 100:110] = True
    hurt = np.where(mask[..., None], np.uint8(255), photo)
    assert figures(photo, None).shape == (FIGURES,)
    assert np.abs(figures(hurt, mask) - figures(photo, None)).max() < 0.05
    assert np.abs(figures(hurt, None) - figures(photo, None)).max() > 0.05


def test_levels_are_those_of_the_photo() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 256, axis=1).repeat(3, axis=2)
    levels = figures(ramp, None)[: 3 * len(fading.LEVELS)].reshape(-1, 3)
    assert np.allclose(levels, np.array(fading.LEVELS)[:, None], atol=0.004)


@pytest.mark.parametrize("size", [(1, 1), (10, 400), (32, 32)])
def test_small_photos_and_photos_all_damaged_are_left(size: tuple[int, int], net: Estimator) -> None:
    pixels = np.full((*size, 3), 90, np.uint8)
    assert restore_tone(pixels, np.ones(size, np.bool_), net) == (pixels, None) or min(size) >= fading.LEAST_SIDE
    assert restore_tone(pixels, np.ones(size, np.bool_), net)[1] is None


def test_the_pipeline_undoes_fading_unless_told_not_to(models: Models) -> None:
    photo = np.ascontiguousarray(PHOTOS["coffee"][:256, 100:356])
    old = faded(photo, 0.17, 0.8, (1.0, 0.95, 0.8))
    done = restore(Photo.from_array(old), models, Options(faces=False))
    assert isinstance(done.tone, Tone)
    left = restore(Photo.from_array(old), models, Options(faces=False, tone_strength=0.0))
    assert left.tone is None
    with_tone, without = (psnr(photo, d.photo.pixels) for d in (done, left))
    assert with_tone > without + 3.0
    published = Models.load(weights.resolve("published", lambda _: [fading.NET], offline=True), "cpu")
    asked = restore_tone(old, None, published.estimator("fading"), 1.0)
    assert np.array_equal(asked[0], restore_tone(old, None, models.estimator("fading"), 1.0)[0])
    half = restore(Photo.from_array(old), models, Options(faces=False, tone_strength=0.5))
    assert half.tone is not None
    assert np.allclose(half.tone.gain, [1.0 + (gain - 1.0) / 2.0 for gain in done.tone.gain], atol=1e-4)
    mask = np.zeros(photo.shape[:2], np.bool_)
    mask[5:9] = True
    only = restore(Photo.from_array(old), models, Options(faces=False, only_damaged=True), mask)
    assert only.tone is None
    assert only.kept is None
    assert np.array_equal(only.photo.pixels[~mask], old[~mask])
