"""TIFF pages and compressions, as other programs see them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from oldphoto.errors import BadImageError, UsageError
from oldphoto.files.image import Metadata, Photo, Pixels, read_pages, read_photo, write_pages, write_photo
from oldphoto.files.tiff import write_tiff
from tests.pictures import IPTC, XMP, exiftool, make_exif, picture, rich, saved, srgb, tiff


def theirs(path: Path, page: int = 0) -> Any:
    """A page as OpenCV sees it, in RGB."""
    decoded, pages = cv2.imreadmulti(str(path), flags=cv2.IMREAD_UNCHANGED)
    assert decoded
    return pages[page] if pages[page].ndim == 2 else pages[page][..., [2, 1, 0, 3][: pages[page].shape[2]]]


def album() -> bytes:
    """Six pages of different kinds, each with its own description, and a reduced copy of the first."""
    out = BytesIO()
    with tifffile.TiffWriter(out, byteorder=">") as writer:

        def add(array: Pixels, **options: Any) -> None:
            tag = (285, 2, 0, f"page {len(array)}", True)
            writer.write(array, metadata=None, extratags=[tag], resolution=(300, 300), **options)

        add(picture(3, np.uint16), photometric="rgb", compression="zlib", predictor=True, iccprofile=srgb())
        writer.write(picture()[::2, ::2], photometric="rgb", subfiletype=1, metadata=None)
        add(picture()[:20], photometric="rgb")
        add(picture(1, np.uint16)[:21], photometric="minisblack", compression="zlib")
        add(picture(1)[:22], photometric="minisblack")
        add(picture(4, np.uint16)[:23], photometric="rgb", extrasamples=["unassalpha"])
        add(picture(4)[:24], photometric="rgb", extrasamples=["unassalpha"])
    return out.getvalue()


def test_every_page_is_read_and_written(tmp_path: Path) -> None:
    photos = list(read_pages(album()))
    assert [photo.height for photo in photos] == [37, 20, 21, 22, 23, 24]
    assert {photo.metadata.pages for photo in photos} == {6}
    write_pages((photo.with_pixels(photo.pixels) for photo in photos), tmp_path / "out.tif")
    ours = list(read_pages(tmp_path / "out.tif"))
    assert len(ours) == 6
    for before, after in zip(photos, ours, strict=True):
        np.testing.assert_array_equal(after.pixels, before.pixels)
        assert (after.alpha is None) == (before.alpha is None)
        assert after.metadata == before.metadata
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert len(file.pages) == 6
        for number, page in enumerate(file.pages):
            assert isinstance(page, tifffile.TiffPage)
            assert page.tags["PageName"].value == f"page {ours[number].height}"
            assert page.tags["NewSubfileType"].value == 2
            expected = photos[number].pixels if not photos[number].grey else photos[number].pixels[..., 0]
            found = page.asarray()
            np.testing.assert_array_equal(found[..., :3] if found.ndim == 3 else found, expected)
    np.testing.assert_array_equal(theirs(tmp_path / "out.tif", 3), picture(1)[:22])


def test_pages_are_taken_one_by_one(tmp_path: Path) -> None:
    taken: list[int] = []

    def pages() -> Iterator[Photo]:
        for number, photo in enumerate(read_pages(album())):
            taken.append(number)
            yield photo
            if number == 3:
                raise BadImageError("this page is bad")

    with pytest.raises(BadImageError, match="this page"):
        write_pages(pages(), tmp_path / "out.tif")
    assert taken == [0, 1, 2, 3]
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="PNG holds one picture"):
        write_pages(read_pages(album()), tmp_path / "out.png")
    assert not list(tmp_path.iterdir())


def test_a_thumbnail_in_front_is_not_the_photo() -> None:
    out = BytesIO()
    with tifffile.TiffWriter(out) as writer:
        writer.write(picture()[::4, ::4], photometric="rgb", subfiletype=1, metadata=None)
        writer.write(picture(3, np.uint16), photometric="rgb", metadata=None)
    photo = read_photo(out.getvalue())
    assert photo.metadata.pages == 1
    np.testing.assert_array_equal(photo.pixels, picture(3, np.uint16))


def test_pages_that_cannot_be_found_are_an_error() -> None:
    data = tiff(picture(), photometric="rgb")
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    link = at + 2 + 12 * count
    circle = data[:link] + struct.pack("<I", at) + data[link + 4 :]
    with pytest.raises(BadImageError, match="in a circle"):
        read_photo(circle)
    beyond = data[:link] + struct.pack("<I", len(data) + 100) + data[link + 4 :]
    with pytest.raises(BadImageError, match="page 2 is missing"):
        read_photo(beyond)
    second = bytearray(album())
    with tifffile.TiffFile(BytesIO(second)) as file:
        page = file.pages[2]
        assert isinstance(page, tifffile.TiffPage)
        struct.pack_into(">I", second, page.tags["StripOffsets"].valueoffset, len(second))
    with pytest.raises(BadImageError, match=r"the picture, page 2, is cut short"):
        list(read_pages(bytes(second)))


@pytest.mark.parametrize("compression", [1, 5, 8, 32773])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_compression_is_kept(
    tmp_path: Path, compression: int, channels: int, dtype: type[np.uint8] | type[np.uint16]
) -> None:
    tall = np.tile(picture(channels, dtype), (120, 2) + (1,) * (channels > 1))  # several strips
    colours = tall if channels in (1, 3) else tall[..., :-1]
    photo = Photo.from_array(np.squeeze(colours))
    alpha = tall[..., -1] if channels in (2, 4) else None
    photo = Photo(photo.pixels, photo.grey, alpha, Metadata(format="TIFF", tiff_compression=compression))
    write_photo(photo, tmp_path / "out.tif")
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        page = file.pages.first
        assert page.compression == compression
        assert page.predictor == (2 if compression in (5, 8) else 1)
        assert len(page.dataoffsets) > 1
        if compression != 5:  # tifffile alone knows no LZW
            np.testing.assert_array_equal(page.asarray(), tall)
    if dtype is np.uint8:
        with Image.open(tmp_path / "out.tif") as image:
            np.testing.assert_array_equal(np.asarray(image), tall)
    elif channels != 2:  # OpenCV has no grey with alpha
        np.testing.assert_array_equal(theirs(tmp_path / "out.tif"), tall)
    if compression == 5 and channels == 2 and dtype is np.uint16:
        return  # read here by imagecodecs alone
    again = read_photo(tmp_path / "out.tif")
    np.testing.assert_array_equal(again.pixels, photo.pixels)
    assert again.metadata.tiff_compression == compression


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_jpeg_within_tiff_is_kept_with_its_tables(tmp_path: Path, mode: str, subsampling: int) -> None:
    big = Image.fromarray(picture()).resize((700, 500)).convert(mode)
    data = saved(big, "TIFF", compression="jpeg", quality=80)
    photo = read_photo(data)
    assert photo.metadata.tiff_compression == 7
    assert len(photo.metadata.jpeg_tables) >= 1
    # The same tables as a JPEG of that quality has.
    alone = Image.open(BytesIO(saved(big, "JPEG", quality=80)))
    assert photo.metadata.jpeg_tables[0] == tuple(alone.quantization[0])  # type: ignore[attr-defined]
    write_photo(photo, tmp_path / "out.tif")
    with Image.open(tmp_path / "out.tif") as image:
        assert image.info["compression"] == "jpeg"
        assert image.mode == mode
        assert np.abs(np.asarray(image).astype(int) - np.asarray(big)).mean() < 3
    found = theirs(tmp_path / "out.tif")
    assert np.abs(found.astype(int) - np.asarray(big)).mean() < 3
    again = read_photo(tmp_path / "out.tif")
    assert again.metadata.jpeg_tables == photo.metadata.jpeg_tables
    assert again.metadata.tiff_compression == 7
    write_photo(photo, tmp_path / "small.tif", quality=10)
    assert (tmp_path / "small.tif").stat().st_size < (tmp_path / "out.tif").stat().st_size / 2


@pytest.mark.parametrize("big", [False, True])
def test_bigtiff_holds_the_same(tmp_path: Path, big: bool) -> None:
    photo = read_photo(rich("TIFF"))
    with (tmp_path / "out.tif").open("w+b") as handle:
        write_tiff([photo, photo], handle, None, big=big)
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert (file.is_bigtiff, len(file.pages)) == (big, 2)
        page = file.pages[1]
        assert isinstance(page, tifffile.TiffPage)
        np.testing.assert_array_equal(page.asarray(), photo.pixels)
        assert page.tags["XMP"].value == XMP
        assert page.tags["ExifTag"].value["ExposureTime"] == (1, 125)
        assert page.tags["GPSTag"].value["GPSLatitude"] == (52, 1, 31, 1, 12, 1)
        assert page.tags["ImageDescription"].value == "on the stairs"
    again = read_photo(tmp_path / "out.tif").metadata
    assert again.pages == 2
    assert (again.xmp, again.iptc, again.exif) == (XMP, IPTC, photo.metadata.exif)


def test_pages_of_both_byte_orders_share_a_file(tmp_path: Path) -> None:
    photos = [read_photo(rich("TIFF")), read_photo(rich("TIFF big-endian"))]
    write_pages(photos, tmp_path / "out.tif")
    one, other = read_pages(tmp_path / "out.tif")
    np.testing.assert_array_equal(one.pixels, other.pixels)
    assert one.metadata.exif == other.metadata.exif
    assert "Warning" not in str(exiftool(tmp_path / "out.tif"))
    jpeg = read_photo(saved(Image.fromarray(picture()), "JPEG", exif=make_exif().tobytes()))
    write_photo(jpeg, tmp_path / "jpeg.tif")
    assert exiftool(tmp_path / "jpeg.tif")["IFD0:Make"] == "Voigtlander"
