"""JPEG 2000 as Pillow, OpenCV and exiftool see it."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from oldphoto.errors import BadImageError, UsageError
from oldphoto.files.image import Metadata, Photo, read_photo, write_photo
from tests.pictures import IPTC, XMP, adobe_rgb, damaged_copies, exiftool, make_exif, picture, saved


def described(array: Any, **metadata: Any) -> Photo:
    block = make_exif().tobytes()[6:]
    found = Metadata(icc=adobe_rgb(), exif=block, xmp=XMP, iptc=IPTC, dpi=(600, 300), **metadata)
    photo = Photo.from_array(array)
    return Photo(photo.pixels, photo.grey, photo.alpha, found)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pixels_survive_exactly(tmp_path: Path, channels: int, dtype: type[np.uint8] | type[np.uint16]) -> None:
    array = picture(channels, dtype)
    path = tmp_path / "out.jp2"
    write_photo(Photo.from_array(array), path)
    theirs = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert theirs is not None
    np.testing.assert_array_equal(theirs if channels == 1 else theirs[..., [2, 1, 0, 3][:channels]], array)
    with Image.open(path) as image:
        # Pillow has no 16-bit RGB, which is why it is not asked for it.
        assert image.mode == {1: "L" if dtype is np.uint8 else "I;16", 3: "RGB", 4: "RGBA"}[channels]
    photo = read_photo(path)
    assert (photo.metadata.format, photo.grey, photo.depth) == ("JPEG2000", channels == 1, array.dtype.itemsize * 8)
    np.testing.assert_array_equal(photo.pixels[..., 0], array if channels == 1 else array[..., 0])
    if channels == 4:
        assert photo.alpha is not None
        np.testing.assert_array_equal(photo.alpha, array[..., 3])
    bare = path.read_bytes()
    np.testing.assert_array_equal(read_photo(bare[bare.index(b"\xff\x4f\xff\x51") :]).pixels, photo.pixels)


def test_grey_with_alpha_in_8_bits_alone(tmp_path: Path) -> None:
    array = picture(2)
    photo = Photo(np.dstack([array[..., 0]] * 3), grey=True, alpha=array[..., 1])
    write_photo(photo, tmp_path / "out.jp2")
    again = read_photo(tmp_path / "out.jp2")
    assert again.grey
    np.testing.assert_array_equal(again.pixels, photo.pixels)
    np.testing.assert_array_equal(again.alpha, photo.alpha)
    deep = Photo(picture(3, np.uint16), grey=True, alpha=picture(1, np.uint16))
    with pytest.raises(UsageError, match="16-bit grey with transparency"):
        write_photo(deep, tmp_path / "deep.jp2")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_metadata_is_kept(tmp_path: Path, dtype: type[np.uint8] | type[np.uint16]) -> None:
    photo = described(picture(3, dtype), format="JPEG2000", mode="RGB" if dtype is np.uint8 else "RGB;16")
    write_photo(photo, tmp_path / "one.jp2")
    again = read_photo(tmp_path / "one.jp2")
    assert again.metadata == photo.metadata
    write_photo(again, tmp_path / "two.jp2")
    assert (tmp_path / "one.jp2").read_bytes() == (tmp_path / "two.jp2").read_bytes()
    tags = exiftool(tmp_path / "two.jp2")
    assert tags["IFD0:Make"] == "Voigtlander"
    assert tags["XMP-dc:Title"] in ("Grandmother", {"x-default": "Grandmother"}) or "Grandmother" in str(tags)
    assert tags["IPTC:By-line"] == "Anna"
    resolution = [tags[f"Jpeg2000:Capture{axis}Resolution"] for axis in "XY"]
    assert resolution == pytest.approx([60 / 25.4, 30 / 25.4])
    assert {tags[f"Jpeg2000:Capture{axis}ResolutionUnit"] for axis in "XY"} == {"0.1 mm"}
    assert [key for key in tags if key.startswith("ICC")]
    assert not [key for key in tags if "Warning" in key]


def test_orientation_is_applied(tmp_path: Path) -> None:
    photo = described(picture())
    turned = Photo(photo.pixels, metadata=Metadata(exif=make_exif(6).tobytes()[6:]))
    write_photo(turned, tmp_path / "in.jp2")
    upright = read_photo(tmp_path / "in.jp2")
    np.testing.assert_array_equal(upright.pixels, np.rot90(picture(), -1))


def test_a_lossy_source_keeps_its_ratio(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    array = np.clip(
        np.asarray(Image.fromarray(picture()).resize((400, 300))) + rng.normal(0, 12, (300, 400, 3)), 0, 255
    )
    image = Image.fromarray(array.astype(np.uint8))
    lossy = saved(image, "JPEG2000", irreversible=True, quality_mode="rates", quality_layers=[12])
    photo = read_photo(lossy)
    assert photo.metadata.jpeg2000_ratio == pytest.approx(12, rel=0.1)
    write_photo(photo, tmp_path / "out.jp2")
    assert (tmp_path / "out.jp2").stat().st_size == pytest.approx(len(lossy), rel=0.1)
    assert read_photo(saved(image, "JPEG2000")).metadata.jpeg2000_ratio is None


def test_photos_too_small_for_its_wavelets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="begins at 32 pixels"):
        write_photo(Photo.from_array(picture()[:31]), tmp_path / "out.jp2")


def test_kinds_that_are_not_read() -> None:
    good = saved(Image.fromarray(picture(1, np.uint16)), "JPEG2000")
    at = good.index(b"\xff\x4f\xff\x51") + 42
    odd = good[:at] + bytes([11]) + good[at + 1 :]
    with pytest.raises(BadImageError, match="1 channels of 12 bits"):
        read_photo(odd)
    with pytest.raises(BadImageError, match="no JPEG 2000 codestream"):
        read_photo(good[: at - 42])
    with pytest.raises(BadImageError, match=r"60000 x 50000"):
        read_photo(good[: at - 34] + struct.pack(">2I", 60000, 50000) + good[at - 26 :])
    with pytest.raises(BadImageError):
        read_photo(good[:-200])


def test_damaged_files_fail_only_as_bad_images(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_photo(described(picture(3, np.uint16)), tmp_path / "good.jp2")
    data = (tmp_path / "good.jp2").read_bytes()
    failed = 0
    for broken in damaged_copies(data, 60, hits=4):
        try:
            read_photo(broken, max_pixels=1_000_000)
        except BadImageError:
            failed += 1
    assert failed > 20
    assert capfd.readouterr() == ("", "")


def test_pillow_reads_what_is_written(tmp_path: Path) -> None:
    write_photo(described(picture()), tmp_path / "out.jp2")
    with Image.open(BytesIO((tmp_path / "out.jp2").read_bytes())) as image:
        np.testing.assert_array_equal(np.asarray(image), picture())
        assert image.info["dpi"] == pytest.approx((600, 300))
