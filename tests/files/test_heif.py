"""AVIF and HEIC, where their plug-ins are."""

from __future__ import annotations

import importlib.util
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, features

from oldphoto.errors import BadImageError, UsageError
from oldphoto.files import heif
from oldphoto.files.image import Photo, read_photo, write_photo
from tests.pictures import XMP, adobe_rgb, damaged_copies, exiftool, make_exif, picture, saved

needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
needs_heic = pytest.mark.skipif(importlib.util.find_spec("pillow_heif") is None, reason="pillow-heif is not installed")
FORMATS = [pytest.param("AVIF", marks=needs_avif), pytest.param("HEIC", marks=needs_heic)]


UPRIGHT = XMP.replace(b'Orientation="6"', b'Orientation="1"')


def smooth(channels: int = 3) -> Any:
    return np.asarray(Image.fromarray(picture(channels)).resize((128, 96), Image.Resampling.BICUBIC))


def file_of(format: str, orientation: int = 1) -> bytes:
    options = {"exif": make_exif(orientation).tobytes(), "xmp": UPRIGHT, "icc_profile": adobe_rgb(), "quality": 95}
    image = Image.fromarray(smooth())
    if format == "AVIF":
        return saved(image, "AVIF", **options)
    import pillow_heif

    image.info["icc_profile"] = options.pop("icc_profile")
    out = BytesIO()
    pillow_heif.from_pillow(image).save(out, chroma=444, **options)
    return out.getvalue()


@pytest.mark.parametrize("format", FORMATS)
def test_pixels_and_metadata_are_kept(tmp_path: Path, format: str) -> None:
    suffix = f".{format.lower()}"
    (tmp_path / f"in{suffix}").write_bytes(file_of(format))
    photo = read_photo(tmp_path / f"in{suffix}")
    assert np.abs(photo.pixels.astype(int) - smooth()).mean() < 3
    write_photo(photo, tmp_path / f"out{suffix}")
    again = read_photo(tmp_path / f"out{suffix}")
    assert again.metadata == photo.metadata
    assert (again.metadata.xmp, again.metadata.icc, again.metadata.format) == (UPRIGHT, adobe_rgb(), format)
    assert again.metadata.dpi == (600, 300)
    assert np.abs(again.pixels.astype(int) - photo.pixels).mean() < 2
    before, after = exiftool(tmp_path / f"in{suffix}"), exiftool(tmp_path / f"out{suffix}")
    groups = ("IFD0", "ExifIFD", "GPS", "XMP", "ICC")
    kept = {key: value for key, value in before.items() if key.startswith(groups)}
    assert len(kept) > 20
    assert {key: after.get(key) for key in kept} == kept


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("orientation", [3, 6])
def test_orientation_is_applied(format: str, orientation: int) -> None:
    photo = read_photo(file_of(format, orientation))
    expected = np.rot90(smooth(), -1 if orientation == 6 else 2)
    assert photo.pixels.shape == expected.shape
    assert np.abs(photo.pixels.astype(int) - expected).mean() < 3
    exif = Image.Exif()
    assert photo.metadata.exif is not None
    exif.load(photo.metadata.exif)
    assert exif[0x0112] == 1


@pytest.mark.parametrize("format", FORMATS)
def test_a_packet_that_says_otherwise_does_not_turn_the_photo(tmp_path: Path, format: str) -> None:
    photo = Photo.from_array(smooth()).with_xmp(XMP)
    write_photo(photo, tmp_path / f"out.{format.lower()}")
    assert read_photo(tmp_path / f"out.{format.lower()}").pixels.shape == smooth().shape


@pytest.mark.parametrize("format", FORMATS)
def test_alpha_is_kept(tmp_path: Path, format: str) -> None:
    photo = Photo.from_array(smooth(4))
    write_photo(photo, tmp_path / f"out.{format.lower()}")
    again = read_photo(tmp_path / f"out.{format.lower()}")
    assert again.alpha is not None
    assert np.abs(again.alpha.astype(int) - smooth(4)[..., 3]).mean() < 2


@needs_avif
@pytest.mark.parametrize("depth", [10, 12])
def test_deep_avif_is_read_as_sixteen_bits(tmp_path: Path, depth: int) -> None:
    ramp = np.linspace(0, (1 << depth) - 1, 96 * 128).astype(np.uint16).reshape(96, 128)
    array = np.dstack([ramp, ramp[::-1], ramp[:, ::-1]])
    done, encoded = cv2.imencode(
        ".avif", array[..., ::-1], [cv2.IMWRITE_AVIF_DEPTH, depth, cv2.IMWRITE_AVIF_QUALITY, 100]
    )
    if not done:
        pytest.skip("this OpenCV has no AVIF")
    photo = read_photo(encoded.tobytes())
    assert photo.depth == 16
    assert np.abs(photo.pixels / 65535 - array / ((1 << depth) - 1)).max() < 0.01
    assert len(np.unique(photo.pixels)) > 900
    with pytest.raises(UsageError, match="AVIF cannot hold the photo's 16 bits"):
        write_photo(photo, tmp_path / "out.avif")


@needs_heic
def test_deep_heic_is_read_as_sixteen_bits() -> None:
    import pillow_heif

    ramp = np.linspace(0, 65535, 96 * 128).astype(np.uint16).reshape(96, 128)
    array = np.dstack([ramp] * 3)
    out = BytesIO()
    pillow_heif.from_bytes("RGB;16", (128, 96), array.tobytes()).save(out, quality=-1, chroma=444)
    photo = read_photo(out.getvalue())
    assert photo.depth == 16
    assert np.abs(photo.pixels.astype(int) - array).mean() < 400
    assert len(np.unique(photo.pixels)) > 900


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heif, "_plugin", lambda *names: None)
    monkeypatch.setattr(features, "check", lambda name: False)
    box = b"\0\0\0\x18ftyp"
    with pytest.raises(BadImageError, match="HEIC picture, which needs a plug-in") as caught:
        read_photo(box + b"heic" + bytes(12))
    assert "oldphoto[heic]" in caught.value.advice
    with pytest.raises(BadImageError, match="AVIF picture, which this Pillow cannot read"):
        read_photo(box + b"avif" + bytes(12))
    for suffix, expected in ((".heic", "needs pillow-heif"), (".avif", "this Pillow has no AVIF")):
        with pytest.raises(UsageError, match=expected):
            write_photo(Photo.from_array(picture()), tmp_path / f"out{suffix}")


@needs_avif
def test_an_animated_avif_is_refused() -> None:
    pages = [Image.fromarray(smooth()), Image.fromarray(smooth()[::-1].copy())]
    with pytest.raises(BadImageError, match="animation"):
        read_photo(saved(pages[0], "AVIF", save_all=True, append_images=pages[1:]))


@pytest.mark.parametrize("format", FORMATS)
def test_damaged_files_fail_only_as_bad_images(format: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = file_of(format)
    failed = 0
    for broken in damaged_copies(data, 25, hits=6, first=12):
        try:
            read_photo(broken, max_pixels=1_000_000)
        except BadImageError:
            failed += 1
    assert failed > 8
    assert capfd.readouterr() == ("", "")
