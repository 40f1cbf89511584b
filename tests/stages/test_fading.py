"""Fading undone, on photos whose fading is known; and left alone where there is none."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.color
import skimage.data
import torch
from numpy.typing import NDArray

from oldphoto import weights
from oldphoto.errors import UsageError
from oldphoto.files.image import Photo
from oldphoto.models import tone_net
from oldphoto.models.loaded import Models
from oldphoto.models.tensors import Pixels
from oldphoto.models.tone_net import ToneNet
from oldphoto.options import Options
from oldphoto.pipeline import restore
from oldphoto.stages import fading
from oldphoto.stages.fading import Curve, Fading, Tone, restore_tone, small_copy, spread_of_colour, through

color: Any = skimage.color  # untyped
# Public domain and CC0, from scikit-image.
PHOTOS: dict[str, NDArray[np.uint8]] = {
    name: np.ascontiguousarray(getattr(skimage.data, name)()[..., :3]) for name in ("astronaut", "coffee", "chelsea")
}
SAME = Curve((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), (0.0, 0.0, 0.0))
# What dyes absorb of red, green and blue; what is left of cyan, magenta and yellow; stain: an orange print of the 70s.
ABSORPTION = np.array([[1.0, 0.1, 0.0], [0.25, 1.0, 0.1], [0.1, 0.2, 1.0]])
LEFT = np.array([0.45, 0.85, 0.65])
STAIN = np.array([0.0, 0.05, 0.12])


@pytest.fixture(scope="module")
def net(models: Models) -> ToneNet:
    return models.tone_net()


def far(a: Pixels, b: Pixels) -> float:
    """Mean dE2000, of pixels of 8 or 16 bits."""
    return float(color.deltaE_ciede2000(color.rgb2lab(a), color.rgb2lab(b)).mean())


def faded(pixels: Any, left: Any = LEFT, stain: Any = STAIN, fog: float = 0.0) -> Any:
    """Dyes lost, paper stained, light added: by numpy, from the definition; of the input's depth."""
    top = np.iinfo(pixels.dtype).max
    stored = pixels / top
    light = np.where(stored <= 0.04045, stored / 12.92, ((stored + 0.055) / 1.055) ** 2.4)
    dyes = np.linalg.solve(ABSORPTION, -np.log10(np.maximum(light, 0.003)).reshape(-1, 3).T)
    seen = 10.0 ** -(ABSORPTION @ (dyes * left[:, None]) + stain[:, None])
    seen = (seen.T.reshape(light.shape) * (1.0 - fog) + fog).clip(0.0, 1.0)
    shown = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1.0 / 2.4) - 0.055)
    return np.rint(shown * top).astype(pixels.dtype)


def deep(pixels: NDArray[np.uint8]) -> NDArray[np.uint16]:
    return pixels.astype(np.uint16) * np.uint16(257)


def test_the_inverse_of_a_known_fading_brings_back_what_was() -> None:
    """The curve can say what dyes do: stain off, densities by the inverse matrix."""
    photo = deep(PHOTOS["coffee"]).clip(12000, 60000)
    back = ABSORPTION @ np.diag(1.0 / LEFT) @ np.linalg.inv(ABSORPTION)
    curve = Curve((0.0,) * 3, tuple(STAIN), tuple(tuple(row) for row in back), (0.0,) * 3)
    old = faded(photo)
    assert far(photo, old) > 8.0
    assert far(photo, through(old, curve)) < 0.5


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_curve_that_changes_nothing_changes_nothing(dtype: type) -> None:
    top = np.iinfo(dtype).max
    every: NDArray[Any] = np.linspace(0, top, 256 * 3).astype(dtype).reshape(16, 16, 3)
    assert np.abs(through(every, SAME).astype(int) - every).max() <= (0 if dtype is np.uint8 else 2)


def test_half_of_a_curve_lies_between_and_all_of_it_is_itself() -> None:
    curve = Curve((0.01,) * 3, (0.1, 0.2, 0.3), ((1.5, 0.1, 0.0), (0.0, 1.2, 0.0), (0.0, 0.0, 2.0)), (-0.1,) * 3)
    assert curve.in_part(1.0) == curve
    assert curve.in_part(0.0) == SAME
    assert curve.in_part(0.5).mix[0] == pytest.approx((1.25, 0.05, 0.0))


def test_the_network_and_the_stage_mean_the_same_curve() -> None:
    rng = np.random.default_rng(4)
    mix = np.eye(3) * 1.4 + rng.normal(0.0, 0.05, (3, 3))
    curve = Curve((0.01, 0.0, 0.02), (0.1, -0.05, 0.2), tuple(tuple(row) for row in mix), (0.1, -0.15, 0.0))
    light = rng.random((3, 500)).astype(np.float32)
    fields = (
        torch.tensor(field, dtype=torch.float32)[None] for field in (curve.fog, curve.base, curve.mix, curve.bend)
    )
    theirs = tone_net.corrected(torch.from_numpy(light)[None], tone_net.Curve(*fields))[0].clamp(0.0, 1.0)
    assert np.abs(curve(light) - theirs.numpy()).max() < 1e-5


def test_what_is_done_to_light_alone_leaves_the_tone() -> None:
    """Of a brown print every pixel keeps the proportions of its light; of a grey one all channels stay equal."""
    curve = Curve((0.02,), (0.1,), ((1.6,),), (0.05,))
    grey = np.linspace(9000, 50000, 4096).astype(np.uint16).reshape(64, 64, 1).repeat(3, axis=2)
    done = through(grey, curve)
    assert (done.max(axis=2) - done.min(axis=2)).max() <= 1
    assert done.std() > 1.2 * grey.std()
    brown = np.rint(grey * np.array([1.0, 0.9, 0.75])).astype(np.uint16)
    before, after = ((x / 65535.0 + 0.055) ** 2.4 for x in (brown, through(brown, curve)))
    shown = after[..., 2] > 0.05  # of what is nearly black rounding is all there is
    was, now = (light[shown][:, 2] / light[shown][:, 0] for light in (before, after))
    assert np.abs(was - now).max() < 0.06


@pytest.mark.parametrize("name", ["astronaut", "coffee"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_plain_fading_is_undone(name: str, dtype: type, net: ToneNet) -> None:
    photo = PHOTOS[name] if dtype is np.uint8 else deep(PHOTOS[name])
    old = faded(photo)
    done, found = restore_tone(old, None, net)
    assert found is not None
    assert found.likely >= fading.SURE
    assert found.cast[0] > 0.0, "red was taken off"
    assert done.dtype == photo.dtype
    assert far(photo, done) < 0.6 * far(photo, old)


def test_what_is_said_is_what_was_done(net: ToneNet) -> None:
    old = faded(PHOTOS["astronaut"])
    done, found = restore_tone(old, None, net)
    assert found is not None
    before, after = (color.rgb2lab(x) for x in (old, done))
    change = (before - after).mean(axis=(0, 1))
    assert np.allclose(found.cast, change[1:], atol=1.0)
    assert found.lightness == pytest.approx(-change[0], abs=1.0)
    assert np.array_equal(done, through(old, found.curve))


def test_the_user_may_say_how_much(net: ToneNet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked, it is done however unsure; and half of it when half is asked for."""
    old = faded(PHOTOS["coffee"])
    monkeypatch.setattr(fading, "SURE", 1.1)
    assert restore_tone(old, None, net) == (old, None)
    assert restore_tone(old, None, net, 0.0) == (old, None)
    whole, found = restore_tone(old, None, net, 1.0)
    half, said = restore_tone(old, None, net, 0.5)
    assert found is not None
    assert said is not None
    assert np.allclose(said.curve.mix, found.curve.in_part(0.5).mix, atol=1e-4)
    assert np.allclose(said.curve.base, found.curve.in_part(0.5).base, atol=1e-4)
    assert 0.2 * far(old, whole) < far(old, half) < 0.8 * far(old, whole)


def test_what_cannot_be_asked_for() -> None:
    with pytest.raises(UsageError, match=r"tone strength is -0\.1"):
        Options(tone_strength=-0.1)
    with pytest.raises(UsageError, match="tone is left alone"):
        Options(tone_strength=1.0, with_scratch=True, only_damaged=True)
    assert not Options(tone_strength=0.0, with_scratch=True, only_damaged=True).restores_tone(unasked=True)


def test_the_faithful_look_leaves_tone_alone_unless_asked() -> None:
    assert Options().restores_tone(unasked=True)
    assert not Options(look="faithful").restores_tone(unasked=True)
    assert Options(look="faithful", tone_strength=0.5).restores_tone(unasked=False)


@pytest.mark.parametrize("name", PHOTOS)
def test_a_sound_photo_is_left_exactly_as_it_is(name: str, net: ToneNet) -> None:
    done, found = restore_tone(PHOTOS[name], None, net)
    assert found is None
    assert done is PHOTOS[name]


def test_a_pale_print_gains_contrast_and_keeps_its_tone(net: ToneNet) -> None:
    """Sepia stays sepia, grey stays grey; with their contrast, they are left."""
    grey = PHOTOS["astronaut"].mean(axis=2, keepdims=True).repeat(3, axis=2)
    for tone in ([1.0, 1.0, 1.0], [1.0, 0.92, 0.78]):
        print_, pale = (np.rint(x * np.array(tone)).astype(np.uint8) for x in (grey, 60.0 + grey * 0.5))
        assert restore_tone(print_, None, net)[1] is None
        done, found = restore_tone(pale, None, net)
        assert found is not None
        assert found.contrast > 1.2
        hue = [math.atan2(*color.rgb2lab(x)[..., :0:-1].mean(axis=(0, 1))) for x in (pale, done)]
        chroma = np.hypot(*color.rgb2lab(done)[..., 1:].mean(axis=(0, 1)))
        assert chroma < 1.0 if tone[2] == 1.0 else abs(hue[0] - hue[1]) < 0.15


@pytest.mark.parametrize("name", PHOTOS)
def test_grey_and_brown_photos_are_told_from_those_in_colour(name: str) -> None:
    colour = PHOTOS[name]
    grey = np.rint(colour.mean(axis=2, keepdims=True)).repeat(3, axis=2).astype(np.uint8)
    brown = np.rint(grey * [1.0, 0.92, 0.78]).astype(np.uint8)
    print_ = cv2.imdecode(cv2.imencode(".jpg", brown, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_COLOR)
    photos = (colour, faded(colour), grey, brown, np.asarray(print_, np.uint8))
    spread = [spread_of_colour(fading.lab(small_copy(x, None))) for x in photos]
    assert [x < fading.MONOCHROME for x in spread] == [False, False, True, True, True]


def test_a_wall_has_no_contrast_to_bring_back(net: ToneNet) -> None:
    wall = np.random.default_rng(3).integers(116, 124, (64, 64, 1), np.uint8).repeat(3, axis=2)
    assert restore_tone(wall, None, net, 1.0)[1] is None


def test_damage_does_not_count(net: ToneNet) -> None:
    photo = faded(PHOTOS["coffee"])
    mask = np.zeros(photo.shape[:2], np.bool_)
    mask[:, 100:110] = True
    hurt = np.where(mask[..., None], np.uint8(255), photo)
    plain, blind, told = (fading.judged(x, m, net, 1.0) for x, m in ((photo, None), (hurt, None), (hurt, mask)))
    assert plain is not None
    assert blind is not None
    assert told is not None

    def off(tone: Tone) -> float:
        return far(through(photo, plain.curve), through(photo, tone.curve))

    assert off(told) < 2.0
    assert off(told) < off(blind)


@pytest.mark.parametrize("size", [(1, 1), (10, 400), (32, 32)])
def test_small_photos_and_photos_all_damaged_are_left(size: tuple[int, int], net: ToneNet) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (*size, 3), np.uint8)
    assert restore_tone(pixels, np.ones(size, np.bool_), net, 1.0) == (pixels, None)
    assert restore_tone(pixels, None, net, 1.0)[1] is None or min(size) >= fading.LEAST_SIDE


@pytest.mark.parametrize(
    ("cast", "name"), [((9.0, 1.0), "red"), ((9.0, 12.0), "orange"), ((0.0, 9.0), "yellow"), ((-9.0, 1.0), "green")]
)
def test_a_cast_has_a_name(cast: tuple[float, float], name: str) -> None:
    record = Fading().record(Tone(SAME, 0.9, cast, 3.0, 1.5))
    size = round(math.hypot(*cast))
    assert Fading().words(record)[0][1].startswith(f"{name} cast of {size} taken off")
    assert Fading().words({"tone": {"gain": [1.0] * 3, "offset": [0.0] * 3, "likely": 0.5}})[0][0] == "Tone"
    assert Fading().words(Fading().record(None)) == []


def test_the_pipeline_undoes_fading_unless_told_not_to(models: Models) -> None:
    photo = np.ascontiguousarray(PHOTOS["coffee"][:256, 100:356])
    old = faded(photo)
    done = restore(Photo.from_array(old), models, Options(faces=False))
    assert isinstance(done.tone, Tone)
    left = restore(Photo.from_array(old), models, Options(faces=False, tone_strength=0.0))
    assert left.tone is None
    with_tone, without = (far(photo, d.photo.pixels.astype(np.uint8)) for d in (done, left))
    assert with_tone < 0.7 * without
    published = Models.load(weights.resolve("published", lambda _: [fading.NET], offline=True), "cpu")
    asked = restore_tone(old, None, published.tone_net(), 1.0)
    assert np.array_equal(asked[0], restore_tone(old, None, models.tone_net(), 1.0)[0])
    mask = np.zeros(photo.shape[:2], np.bool_)
    mask[5:9] = True
    only = restore(Photo.from_array(old), models, Options(faces=False, only_damaged=True), mask)
    assert only.tone is None
    assert only.kept is None
    assert np.array_equal(only.photo.pixels[~mask], old[~mask])
