"""Looks and enlarging, of whole restorations: what is rebuilt, what stays, and what files say afterwards."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oldphoto.errors import UsageError
from oldphoto.files.photo import Metadata, Photo
from oldphoto.models.loaded import Models
from oldphoto.options import Options
from oldphoto.pipeline import Restoration, restore
from oldphoto.stages.enlarging import Enlarging
from oldphoto.stages.rebuilding import Rebuilding, mixed
from oldphoto.stages.resolution import Resolution
from tests.pictures import XMP, make_exif, other_rgb_profile

FAITHFUL = Options(faces=False, look="faithful")
RESTORED = Options(faces=False, native_scale=2.0)


def pixels(height: int = 40, width: int = 56, dtype: Any = np.uint8) -> Any:
    """Soft blobs of colour, with some noise."""
    y, x = np.mgrid[0:height, 0:width] / 7.0
    waves = np.stack([0.5 + 0.35 * np.sin(x + k) * np.cos(y - k) for k in range(3)], axis=2)
    noisy = waves + 0.02 * np.random.default_rng(2).standard_normal(waves.shape)
    return np.rint(noisy.clip(0.0, 1.0) * np.iinfo(dtype).max).astype(dtype)


def distance(one: Any, other: Any) -> float:
    return float(np.abs(one.astype(float) - other.astype(float)).mean())


def test_only_a_photo_larger_than_its_detail_is_rebuilt(models: Models) -> None:
    photo = Photo.from_array(pixels())
    rebuilt = restore(photo, models, RESTORED)
    sharp = restore(photo, models, replace(RESTORED, native_scale=1.1))
    faithful = restore(photo, models, FAITHFUL)
    assert (rebuilt.facts["rebuilding"], sharp.facts["rebuilding"]) == (True, False)
    assert np.array_equal(sharp.photo.pixels, faithful.photo.pixels)
    assert not np.array_equal(rebuilt.photo.pixels, faithful.photo.pixels)
    assert "rebuilding" not in faithful.facts
    assert (rebuilt.generated, sharp.generated, faithful.generated) == (True, False, False)
    assert (rebuilt.native_scale, faithful.native_scale) == (2.0, None)


def test_what_was_done_is_recorded_and_said(models: Models) -> None:
    photo = Photo.from_array(pixels())
    entry = restore(photo, models, replace(RESTORED, upscale=2)).changes
    assert entry["native_scale"] == 2.0
    assert entry["rebuilt"] is True
    assert entry["enlarged"] == 2
    assert Resolution().words(entry) == [("Native scale", "2 pixels for each one of detail")]
    assert Rebuilding().words(entry) == [("Rebuilt", "at its native scale")]
    assert Enlarging().words(entry) == [("Enlarged", "2 times")]
    untouched = restore(photo, models, FAITHFUL).changes
    assert (untouched["native_scale"], untouched["rebuilt"], untouched["enlarged"]) == (None, False, None)
    assert [row for stage in (Resolution(), Rebuilding(), Enlarging()) for row in stage.words({})] == []


def test_strength_is_a_share_of_the_rebuilding_too(models: Models) -> None:
    photo = Photo.from_array(pixels())
    none, half, full = (
        restore(photo, models, replace(RESTORED, strength=share)).photo.pixels for share in (0.0, 0.5, 1.0)
    )
    assert np.array_equal(none, photo.pixels)
    assert 0.0 < distance(half, none) < distance(full, none)


def test_mixed_is_the_line_between_two_photos() -> None:
    one, other = pixels(), 255 - pixels()
    assert np.array_equal(mixed(one, other, 0.0), one)
    assert np.array_equal(mixed(one, other, 1.0), other)
    assert np.abs(mixed(one, other, 0.5).astype(int) - 128).max() <= 1


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", ["colour", "grey", "alpha", "profile"])
def test_every_kind_of_photo_is_enlarged(kind: str, dtype: Any, factor: Any, models: Models) -> None:
    array = pixels(dtype=dtype)
    if kind == "grey":
        array = array[..., 0]
    elif kind == "alpha":
        array = np.concatenate([array, array[..., :1]], axis=2)
    photo = Photo.from_array(array)
    if kind == "profile":
        photo = replace(photo, metadata=replace(photo.metadata, icc=other_rgb_profile()))
    made = restore(photo, models, Options(faces=False, look="faithful", native_scale=1.5, upscale=factor)).photo
    assert (made.width, made.height, made.depth) == (factor * photo.width, factor * photo.height, photo.depth)
    assert made.grey == photo.grey
    top = np.iinfo(dtype).max
    reduced = made.pixels.reshape(photo.height, factor, photo.width, factor, 3).mean(axis=(1, 3))
    assert distance(reduced, photo.pixels) < 0.04 * top
    if kind == "grey":
        assert np.array_equal(made.pixels[..., 0], made.pixels[..., 2])
    if kind == "alpha":
        assert made.alpha is not None
        assert photo.alpha is not None
        small = made.alpha.reshape(photo.height, factor, photo.width, factor).mean(axis=(1, 3))
        assert distance(small, photo.alpha) < 0.03 * top


def test_inks_are_enlarged(models: Models) -> None:
    held = BytesIO()
    Image.fromarray(np.concatenate([255 - pixels(), pixels()[..., :1] // 4], axis=2), "CMYK").save(held, "TIFF")
    photo = Photo.from_pillow(Image.open(held))
    made = restore(photo, models, Options(faces=False, look="faithful", native_scale=1.5, upscale=2)).photo
    assert made.inks is not None
    assert made.inks.shape == (2 * photo.height, 2 * photo.width, 4)
    assert made.pixels.shape == (2 * photo.height, 2 * photo.width, 3)


def test_metadata_say_the_new_size_and_resolution(models: Models) -> None:
    exif = make_exif()
    exif[282], exif[283], exif[296] = 300.0, 150.0, 2
    exif.get_ifd(0x8769)[0xA002], exif.get_ifd(0x8769)[0xA003] = 56, 40
    packet = XMP.replace(b'tiff:Orientation="6"', b'tiff:XResolution="300/1" exif:PixelXDimension="56"')
    metadata = Metadata(exif=exif.tobytes()[6:], xmp=packet, dpi=(300.0, 150.0))
    photo = replace(Photo.from_array(pixels()), metadata=metadata)
    made = restore(photo, models, Options(faces=False, look="faithful", native_scale=1.0, upscale=4)).photo.metadata
    assert made.dpi == (1200.0, 600.0)
    again = Image.Exif()
    assert made.exif is not None
    again.load(b"Exif\0\0" + made.exif)
    assert (float(again[282]), float(again[283])) == (1200.0, 600.0)
    assert (again.get_ifd(0x8769)[0xA002], again.get_ifd(0x8769)[0xA003]) == (224, 160)
    assert made.xmp is not None
    assert b'tiff:XResolution="1200/1" exif:PixelXDimension="224"' in made.xmp
    assert b"Grandmother" in made.xmp


def test_faces_and_mask_keep_the_input_s_size(models: Models) -> None:
    photo = Photo.from_array(pixels())
    mask = np.zeros((photo.height, photo.width), np.bool_)
    mask[4:8, 10:30] = True
    made: Restoration = restore(photo, models, Options(native_scale=2.0, upscale=2), mask)
    assert made.mask is not None
    assert made.mask.shape == mask.shape
    assert made.photo.pixels.shape == (80, 112, 3)


@pytest.mark.parametrize(
    "choice",
    [
        {"look": "painted"},
        {"native_scale": 0.5},
        {"native_scale": 7.0},
        {"native_scale": 2.0, "look": "faithful"},
        {"upscale": 3},
        {"upscale": 2, "only_damaged": True, "with_scratch": True},
    ],
)
def test_contradictions_are_refused(choice: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Options(**choice)


def test_faithful_needs_neither_network_of_the_restored_look() -> None:
    from oldphoto.stages import needed_nets

    for name in ("compact", "published"):
        faithful = set(needed_nets(name, FAITHFUL, large=False))
        restored = set(needed_nets(name, Options(faces=False), large=False))
        enlarged = set(needed_nets(name, replace(FAITHFUL, upscale=2), large=False))
        fading = {"tone"} if name == "compact" else set()  # which faithful leaves alone, too
        assert restored - faithful - fading == enlarged - faithful == {"resolution", "rebuilder"}
