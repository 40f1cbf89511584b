"""image.py against independent readers and writers: Pillow, OpenCV, tifffile, and exiftool for the tags."""

from __future__ import annotations

import errno
import logging
import os
import stat
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import IFDRational

from oldphoto.errors import BadImageError, FileAccessError, UsageError
from oldphoto.files.image import PHOTO_SUFFIXES, Metadata, Photo, Pixels, output_format, read_photo, write_photo
from oldphoto.files.masks import read_mask, write_mask
from tests.pictures import (
    HEIGHT,
    IPTC,
    RICH,
    SUFFIX,
    WIDTH,
    XMP,
    cmyk_profile,
    exiftool,
    make_exif,
    other_rgb_profile,
    picture,
    png,
    png_chunk,
    rich,
    saved,
    srgb,
    tiff,
    with_entries,
)


def grey_of(photo: Photo) -> Pixels:
    assert photo.grey
    np.testing.assert_array_equal(photo.pixels[..., 0], photo.pixels[..., 1])
    np.testing.assert_array_equal(photo.pixels[..., 0], photo.pixels[..., 2])
    return photo.pixels[..., 0]


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "PPM", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_eight_bit_files_are_read_exactly(tmp_path: Path, format: str, mode: str) -> None:
    array = picture(3 if mode == "RGB" else 1)
    path = tmp_path / "photo"
    options = {"lossless": True} if format == "WEBP" else {}
    path.write_bytes(saved(Image.fromarray(array), format, **options))
    photo = read_photo(path)
    assert (photo.width, photo.height, photo.depth) == (WIDTH, HEIGHT, 8)
    assert photo.metadata.format == format
    assert photo.grey == (mode == "L" and format != "WEBP")  # WebP has no grey
    expected = array if mode == "RGB" else np.dstack([array] * 3)
    np.testing.assert_array_equal(photo.pixels, expected)


def test_a_jpeg_is_what_opencv_reads(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(saved(Image.fromarray(picture()), "JPEG", quality=92, subsampling=0))
    theirs = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert theirs is not None
    # Two builds of libjpeg may round a step apart.
    assert np.abs(read_photo(path).pixels.astype(int) - theirs[..., ::-1]).max() <= 1


@pytest.mark.parametrize("compression", [None, "zlib", "lzw-by-opencv", "packbits-by-pillow"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_compressions(compression: str | None, channels: int, dtype: type[np.uint8] | type[np.uint16]) -> None:
    array = picture(channels, dtype)
    if compression == "lzw-by-opencv":
        order = array if channels == 1 else array[..., [2, 1, 0, 3][:channels]]
        data = cv2.imencode(".tif", order, [cv2.IMWRITE_TIFF_COMPRESSION, 5])[1].tobytes()
        with tifffile.TiffFile(BytesIO(data)) as file:
            assert file.pages.first.compression == 5
    elif compression == "packbits-by-pillow":
        if dtype is np.uint16:
            pytest.skip("Pillow writes no 16-bit RGB")
        data = saved(Image.fromarray(array), "TIFF", compression="packbits")
    else:
        predictor = {"predictor": True} if compression else {}
        data = tiff(
            array,
            photometric="minisblack" if channels == 1 else "rgb",
            compression=compression,
            extrasamples=["unassalpha"] if channels == 4 else None,
            **predictor,
        )
    photo = read_photo(data)
    assert photo.depth == (16 if dtype is np.uint16 else 8)
    numbers = {None: 1, "zlib": 8, "lzw-by-opencv": 5, "packbits-by-pillow": 32773}
    assert photo.metadata.tiff_compression == numbers[compression]
    if channels == 1:
        np.testing.assert_array_equal(grey_of(photo), array)
    else:
        np.testing.assert_array_equal(photo.pixels, array[..., :3])
    if channels == 4 and compression == "lzw-by-opencv":
        return  # OpenCV leaves the fourth channel's meaning unsaid, by version
    if channels == 4:
        assert photo.alpha is not None
        np.testing.assert_array_equal(photo.alpha, array[..., 3])
    else:
        assert photo.alpha is None


@pytest.mark.parametrize("layout", ["big-endian", "planar", "tiled", "white is zero", "bigtiff", "grey alpha"])
def test_sixteen_bit_tiff_layouts(layout: str) -> None:
    array = picture(3, np.uint16)
    if layout == "big-endian":
        data = tiff(array, photometric="rgb", byteorder=">", compression="zlib", predictor=True)
    elif layout == "planar":
        data = tiff(np.moveaxis(array, 2, 0), photometric="rgb", planarconfig="separate")
    elif layout == "tiled":
        data = tiff(array, photometric="rgb", tile=(16, 16))
    elif layout == "white is zero":
        data = tiff(65535 - array[..., 0], photometric="miniswhite")
    elif layout == "bigtiff":
        data = tiff(array, photometric="rgb", bigtiff=True)
    else:
        data = tiff(array[..., :2], photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"])
    photo = read_photo(data)
    if layout in ("white is zero", "grey alpha"):
        np.testing.assert_array_equal(grey_of(photo), array[..., 0])
    else:
        np.testing.assert_array_equal(photo.pixels, array)
    if layout == "grey alpha":
        assert photo.alpha is not None
        np.testing.assert_array_equal(photo.alpha, array[..., 1])


def test_associated_alpha_is_made_straight() -> None:
    alpha = np.full((4, 5), 32768, np.uint16)
    array = np.dstack([np.full((4, 5, 3), 16384, np.uint16), alpha])
    photo = read_photo(tiff(array, photometric="rgb", extrasamples=["assocalpha"]))
    assert photo.alpha is not None
    assert set(np.unique(photo.pixels)) == {round(16384 * 65535 / 32768)}
    np.testing.assert_array_equal(photo.alpha, alpha)


def test_a_channel_that_is_no_alpha_is_left_out() -> None:
    array = picture(4, np.uint16)  # as infrared scans have it
    photo = read_photo(tiff(array, photometric="rgb", extrasamples=["unspecified"]))
    np.testing.assert_array_equal(photo.pixels, array[..., :3])
    assert photo.alpha is None


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_colour_types(colour_type: int, channels: int, dtype: type[np.uint8] | type[np.uint16]) -> None:
    array = picture(channels, dtype)
    photo = read_photo(png(array, colour_type))
    planes = array[..., None] if channels == 1 else array
    assert photo.grey == (channels <= 2)
    assert photo.pixels.dtype == dtype
    np.testing.assert_array_equal(photo.pixels[..., 0], planes[..., 0])
    np.testing.assert_array_equal(photo.pixels[..., 2], planes[..., 0 if photo.grey else 2])
    if channels in (2, 4):
        assert photo.alpha is not None
        np.testing.assert_array_equal(photo.alpha, planes[..., -1])
    else:
        assert photo.alpha is None


@pytest.mark.parametrize("colour_type", [0, 2])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_transparent_colour_becomes_alpha(colour_type: int, dtype: type[np.uint8] | type[np.uint16]) -> None:
    array = picture(3 if colour_type == 2 else 1, dtype)
    key = array[10, 10]
    data = png(array, colour_type, png_chunk(b"tRNS", np.atleast_1d(key).astype(">u2").tobytes()))
    photo = read_photo(data)
    same = array == key if colour_type == 0 else (array == key).all(axis=2)
    assert photo.alpha is not None
    np.testing.assert_array_equal(photo.alpha, np.where(same, 0, np.iinfo(dtype).max))
    np.testing.assert_array_equal(photo.pixels[..., 0], array if colour_type == 0 else array[..., 0])


def test_sixteen_bits_carry_more_than_256_levels() -> None:
    # What Pillow does to the same files: 256 levels.
    ramp = np.linspace(0, 65535, 4000).astype(np.uint16).reshape(40, 100)
    for data in (tiff(np.dstack([ramp] * 3), photometric="rgb"), png(np.dstack([ramp] * 3), 2), png(ramp, 0)):
        assert len(np.unique(read_photo(data).pixels[..., 1])) == 4000


def test_palette_one_bit_and_grey_palette() -> None:
    colour = Image.fromarray(picture()).quantize(16)
    photo = read_photo(saved(colour, "PNG"))
    assert not photo.grey
    np.testing.assert_array_equal(photo.pixels, np.asarray(colour.convert("RGB")))

    clear = colour.copy()
    clear.info["transparency"] = 3
    alpha = read_photo(saved(clear, "PNG")).alpha
    assert alpha is not None
    np.testing.assert_array_equal(alpha, np.where(np.asarray(colour) == 3, 0, 255))

    greys = Image.fromarray((picture(1) // 16).astype(np.uint8)).convert("P")
    greys.putpalette([value for level in range(256) for value in (level * 16 % 256,) * 3])
    np.testing.assert_array_equal(grey_of(read_photo(saved(greys, "PNG"))), picture(1) // 16 * 16)

    bits = picture(1) > 100
    for format in ("PNG", "TIFF", "BMP", "PPM"):
        black = read_photo(saved(Image.fromarray(bits), format))
        np.testing.assert_array_equal(grey_of(black), bits * np.uint8(255))


def test_cmyk_without_a_profile() -> None:
    inks = picture(4)
    for format, options in (("TIFF", {}), ("JPEG", {"quality": 100})):
        photo = read_photo(saved(Image.frombytes("CMYK", inks.shape[1::-1], inks.tobytes()), format, **options))
        c_m_y, k = inks[..., :3].astype(float), inks[..., 3:].astype(float)
        expected = (255 - c_m_y) * (255 - k) / 255
        assert np.abs(photo.pixels - expected).mean() < (1 if format == "TIFF" else 3), format
        assert (photo.grey, photo.metadata.mode, photo.metadata.icc) == (False, "CMYK", None)


def test_cmyk_goes_through_its_profile() -> None:
    inks = np.zeros((8, 8, 4), np.uint8)
    inks[:, :4] = (255, 0, 0, 0)  # all cyan: this profile calls it white
    inks[:, 4:] = (0, 0, 0, 255)
    photo = read_photo(
        saved(Image.frombytes("CMYK", inks.shape[1::-1], inks.tobytes()), "TIFF", icc_profile=cmyk_profile())
    )
    assert photo.pixels[:, :4].min() >= 253
    assert photo.pixels[:, 4:].max() <= 2
    assert (photo.icc, photo.metadata.icc) == (None, cmyk_profile())


@pytest.mark.parametrize("kind", ["P2", "P3", "P5", "P6"])
@pytest.mark.parametrize("maximum", [65535, 1023])
def test_sixteen_bit_pnm(kind: str, maximum: int) -> None:
    array = picture(3 if kind in ("P3", "P6") else 1, np.uint16) // (65535 // maximum)
    array = np.minimum(array, maximum)
    header = f"{kind}\n# a comment\n{WIDTH} {HEIGHT}\n{maximum}\n".encode()
    plain = " ".join(str(value) for value in array.ravel()).encode()
    photo = read_photo(header + (plain if kind in ("P2", "P3") else array.astype(">u2").tobytes()))
    expected = np.rint(array / maximum * 65535)
    assert photo.depth == 16
    np.testing.assert_array_equal(grey_of(photo) if kind in ("P2", "P5") else photo.pixels, expected)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF LZW", "TIFF 16", "PNG 16", "TIFF 16 LZW"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_written_back_as_one(tmp_path: Path, format: str, orientation: int) -> None:
    array = picture(3, np.uint16 if "16" in format else np.uint8)
    exif = make_exif(orientation)
    if format == "TIFF 16":
        data = tiff(array, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    elif format == "TIFF 16 LZW":
        data = cv2.imencode(".tif", array[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 5])[1].tobytes()
        data = with_entries(data, "<", struct.pack("<HHIHH", 274, 3, 1, orientation, 0))
    elif format == "TIFF LZW":
        data = saved(Image.fromarray(array), "TIFF", compression="tiff_lzw", tiffinfo={274: orientation})
    elif format == "PNG 16":
        data = png(array, 2, png_chunk(b"eXIf", exif.tobytes()[6:]))
    else:
        options: dict[str, Any] = {"exif": exif.tobytes()}
        if format == "WEBP":
            options["lossless"] = True
        data = saved(Image.fromarray(array), format.split()[0], **options)
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    planes = [Image.fromarray(array[..., k]) for k in range(3)]
    expected = np.dstack([np.asarray(plane if turn is None else plane.transpose(turn)) for plane in planes])
    photo = read_photo(data)
    if format == "JPEG":
        assert photo.pixels.shape == expected.shape
        assert np.abs(photo.pixels - expected.astype(int)).mean() < 12
    else:
        np.testing.assert_array_equal(photo.pixels, expected)
    out = tmp_path / ("out." + format.split()[0].lower())
    write_photo(photo, out)
    with Image.open(out) as image:
        assert image.getexif().get(0x0112, 1) == 1
        assert image.size == expected.shape[1::-1]
    again = read_photo(out)
    if format == "JPEG":
        assert np.abs(again.pixels - expected.astype(int)).mean() < 12
    elif format != "WEBP" or photo.metadata.webp_lossless:
        np.testing.assert_array_equal(again.pixels, expected)


def test_sizes_and_resolutions_turn_with_the_photo(tmp_path: Path) -> None:
    data = saved(Image.fromarray(picture()), "JPEG", exif=make_exif(6).tobytes(), dpi=(600, 300), xmp=XMP)
    photo = read_photo(data)
    assert photo.metadata.dpi == (300, 600)
    write_photo(photo, tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as image:
        sub = image.getexif().get_ifd(0x8769)
        assert (sub[0xA002], sub[0xA003]) == image.size == (HEIGHT, WIDTH)
        assert image.getexif()[0x011A] == 300
        assert b'tiff:Orientation="1"' in image.info["xmp"]


def test_the_thumbnail_is_dropped() -> None:
    thumbnail = saved(Image.new("RGB", (16, 16), "red"), "JPEG")
    main = struct.pack("<HHHII", 1, 0x0112, 3, 1, 3) + struct.pack("<I", 26)
    second = struct.pack("<HHHIIHHIII", 2, 0x0201, 4, 1, 56, 0x0202, 4, 1, len(thumbnail), 0)
    block = b"II*\0\x08\0\0\0" + main + second + thumbnail
    assert block.index(thumbnail) == 56
    photo = read_photo(saved(Image.fromarray(picture()), "JPEG", exif=b"Exif\0\0" + block))
    exif = photo.metadata.exif
    assert exif is not None
    assert thumbnail[:20] not in exif
    found = Image.Exif()
    found.load(exif)
    assert found[0x0112] == 1
    assert not found.get_ifd(1)


def test_an_unreadable_exif_block_is_carried_as_it_is(tmp_path: Path) -> None:
    block = b"II*\0\xff\xff\xff\x00nonsense"
    photo = read_photo(saved(Image.fromarray(picture()), "JPEG", exif=b"Exif\0\0" + block))
    assert photo.metadata.exif == block
    write_photo(photo, tmp_path / "out.jpg")
    assert read_photo(tmp_path / "out.jpg").metadata.exif == block
    write_photo(photo, tmp_path / "out.tif")  # has no place for it
    assert read_photo(tmp_path / "out.tif").pixels.shape == photo.pixels.shape


def test_an_animation_is_refused_since_its_other_pictures_would_be_lost() -> None:
    pages = [Image.fromarray(picture()), Image.fromarray(picture()[::-1].copy())]
    for format in ("WEBP", "PNG"):
        with pytest.raises(BadImageError, match="is an animation"):
            read_photo(saved(pages[0], format, save_all=True, append_images=pages[1:], duration=100))


# --- files that are not read -----------------------------------------------------------------------------------------


def plain_jpeg() -> bytes:
    return saved(Image.fromarray(picture()), "JPEG", quality=95)


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.jpg": (lambda: b"", "is empty"),
    "notes.jpg": (lambda: b"Dear diary,\nnothing happened today.\n", "is not a picture"),
    "zeros.jpg": (lambda: bytes(1000), "is not a picture"),
    "cut.jpg": (lambda: plain_jpeg()[:-300], "damaged or cut short"),
    "begun.jpg": (lambda: plain_jpeg()[:5], "damaged or cut short"),
    "cut.png": (lambda: saved(Image.fromarray(picture()), "PNG")[:-200], "damaged or cut short"),
    "cut16.png": (lambda: png(picture(3, np.uint16), 2)[:-200], "damaged or cut short"),
    "no_end.png": (lambda: png(picture(), 2)[:-12], "damaged or cut short"),
    "flipped.png": (lambda: png(picture(3, np.uint16), 2).replace(b"IDATx", b"IDATy"), "wrong checksum of IDAT"),
    "cut.tif": (lambda: tiff(picture(), photometric="rgb")[:-100], "is cut short"),
    "cut16.tif": (lambda: tiff(picture(3, np.uint16), photometric="rgb", compression="zlib")[:-100], "is cut short"),
    "begun.tif": (lambda: b"II*\0\x08\0\0\0\x05\0", "damaged or cut short"),
    "float.tif": (lambda: tiff(picture().astype(np.float32), photometric="rgb"), "floating-point samples of 32 bits"),
    "long.tif": (lambda: tiff(picture(1).astype(np.uint32)), "samples of 32 bits"),
    "cut.webp": (lambda: saved(Image.fromarray(picture()), "WEBP")[:-100], "damaged or cut short"),
    "cut.bmp": (lambda: saved(Image.fromarray(picture()), "BMP")[:-500], "damaged or cut short"),
    "cut.ppm": (lambda: saved(Image.fromarray(picture()), "PPM")[:-500], "damaged or cut short"),
    "cut16.pgm": (lambda: b"P5 40 40 65535 " + bytes(100), "damaged or cut short"),
    "nothing.pgm": (lambda: b"P5 0 10 255 ", "is 0 x 10 pixels"),
    "nothing.png": (lambda: png(np.zeros((10, 0), np.uint8), 0), "is 0 x 10 pixels"),
    "photo.gif": (lambda: saved(Image.fromarray(picture(1)), "GIF"), "is a GIF picture"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_clear_line(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    make, expected = BAD[name]
    path = tmp_path / name
    path.write_bytes(make())
    with pytest.raises(BadImageError) as caught:
        read_photo(path)
    message = str(caught.value)
    assert message.startswith(name)
    assert expected in message
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")


def test_files_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileAccessError, match=r"missing\.jpg: No such file"):
        read_photo(tmp_path / "missing.jpg")
    with pytest.raises(FileAccessError, match="is a folder"):
        read_photo(tmp_path)
    path = tmp_path / "locked.jpg"
    path.write_bytes(plain_jpeg())
    path.chmod(0)
    if os.access(path, os.R_OK):  # root reads everything

        def refuse(_: Path) -> bytes:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr("oldphoto.files.image.open_file", refuse)
    with pytest.raises(FileAccessError, match="Permission denied") as caught:
        read_photo(path)
    assert "permissions" in caught.value.advice


def huge(format: str) -> bytes:
    """A file that says it is 60000 x 50000 (WebP: 16000 x 16000), with next to no content."""
    if format == "PNG":
        data = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 50000, 8, 2, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + data + png_chunk(b"IDAT", zlib.compress(bytes(10))) + png_chunk(b"IEND", b"")
    if format == "TIFF":
        entries = [(256, 4, 60000), (257, 4, 50000), (258, 3, 8), (262, 3, 1), (273, 4, 8), (278, 4, 50000)]
        entries += [(279, 4, 4)]
        body = b"".join(struct.pack("<HHII", code, kind, 1, value) for code, kind, value in entries)
        return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4)
    if format == "JPEG":
        data = plain_jpeg()
        at = data.index(b"\xff\xc0") + 5
        return data[:at] + struct.pack(">HH", 50000, 60000) + data[at + 4 :]
    if format == "WEBP":
        body = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (15999).to_bytes(3, "little") * 2
        return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
    if format == "BMP":
        data = saved(Image.fromarray(picture()), "BMP")
        return data[:18] + struct.pack("<ii", 60000, 50000) + data[26:]
    return b"P6 60000 50000 255 "


@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG", "WEBP", "BMP", "PPM"])
def test_a_bomb_is_refused_from_its_header(tmp_path: Path, format: str) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(huge(format))
    limit = 100_000_000
    with pytest.raises(BadImageError) as caught:
        read_photo(path, max_pixels=limit)
    size = "16000 x 16000, 256.0" if format == "WEBP" else "60000 x 50000, 3,000.0"
    assert f"bomb is {size} million pixels; the limit is 100.0 million" in str(caught.value)
    assert "--max-pixels" in caught.value.advice


def test_the_limit_is_ours_and_pillows_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow raises from 20 pixels on
    for format in ("PNG", "TIFF", "JPEG", "WEBP", "BMP", "PPM"):
        data = saved(Image.fromarray(picture()), format)
        assert read_photo(data, max_pixels=WIDTH * HEIGHT).width == WIDTH
        assert read_photo(data, max_pixels=None).width == WIDTH
        with pytest.raises(BadImageError, match="limit"):
            read_photo(data, max_pixels=WIDTH * HEIGHT - 1)
    assert Image.MAX_IMAGE_PIXELS == 10
    assert not logging.getLogger("tifffile").filters
    with pytest.warns(UserWarning, match="still heard"):
        warnings.warn("still heard", UserWarning, stacklevel=1)


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("grey", [True, False])
@pytest.mark.parametrize("with_alpha", [True, False])
def test_lossless_files_as_others_read_them(
    tmp_path: Path, suffix: str, dtype: type[np.uint8] | type[np.uint16], grey: bool, with_alpha: bool
) -> None:
    colours, alpha = picture(1 if grey else 3, dtype), picture(2, dtype)[..., 1]
    pixels = np.dstack([colours] * 3) if grey else colours
    photo = Photo(pixels, grey=grey, alpha=alpha if with_alpha else None)
    path = tmp_path / f"out{suffix}"
    write_photo(photo, path)
    if suffix == ".tif":
        theirs = tifffile.imread(path)
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            assert page.photometric == (1 if grey else 2)
            assert page.extrasamples == ((2,) if with_alpha else ())
            assert page.bitspersample == np.dtype(dtype).itemsize * 8
    elif dtype is np.uint8:
        theirs = np.asarray(Image.open(path))
    else:
        decoded = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert decoded is not None
        theirs = decoded
        if theirs.ndim == 3:
            theirs = theirs[..., [2, 1, 0, 3][: theirs.shape[2]]]
        if grey and with_alpha:
            theirs = theirs[..., [0, 3]]
    ours = colours if not with_alpha else np.dstack([colours, alpha])
    assert theirs.dtype == dtype
    np.testing.assert_array_equal(theirs, ours)
    again = read_photo(path)
    np.testing.assert_array_equal(again.pixels, pixels)
    assert again.grey == grey
    assert (again.alpha is not None) == with_alpha


def test_other_readers_agree_on_written_tiffs(tmp_path: Path) -> None:
    write_photo(Photo(picture(3, np.uint16)), tmp_path / "16.tif")
    theirs = cv2.imread(str(tmp_path / "16.tif"), cv2.IMREAD_UNCHANGED)
    assert theirs is not None
    np.testing.assert_array_equal(theirs[..., ::-1], picture(3, np.uint16))
    write_photo(Photo(picture(), alpha=picture(1)), tmp_path / "8.tif")
    with Image.open(tmp_path / "8.tif") as image:
        assert image.mode == "RGBA"
        np.testing.assert_array_equal(np.asarray(image), np.dstack([picture(), picture(1)]))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("grey", [True, False])
def test_pnm_and_bmp_as_opencv_reads_them(tmp_path: Path, dtype: type[np.uint8] | type[np.uint16], grey: bool) -> None:
    photo = Photo.from_array(picture(1 if grey else 3, dtype))
    for suffix in (".pgm", ".ppm") + ((".bmp",) if dtype is np.uint8 else ()):
        path = tmp_path / f"out{suffix}"
        write_photo(photo, path)
        theirs = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert theirs is not None
        assert theirs.dtype == dtype
        if suffix != ".bmp":
            assert path.read_bytes()[:2] == (b"P5" if grey else b"P6")
            assert (theirs.ndim == 2) == grey
        expected = photo.pixels if theirs.ndim == 3 else photo.pixels[..., 0]
        np.testing.assert_array_equal(theirs[..., ::-1] if theirs.ndim == 3 else theirs, expected)
        again = read_photo(path)
        assert again.grey == grey
        np.testing.assert_array_equal(again.pixels, photo.pixels)


def test_big_pngs_are_packed_in_blocks(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 65536, (900, 700, 3), dtype=np.uint16)  # two blocks of rows
    write_photo(Photo(array), tmp_path / "big.png")
    theirs = cv2.imread(str(tmp_path / "big.png"), cv2.IMREAD_UNCHANGED)
    assert theirs is not None
    np.testing.assert_array_equal(theirs[..., ::-1], array)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("quality", [60, 88])
def test_a_jpegs_own_quantisation_is_used_again(tmp_path: Path, subsampling: int, quality: int) -> None:
    source = Image.open(BytesIO(saved(Image.fromarray(picture()), "JPEG", quality=quality, subsampling=subsampling)))
    photo = read_photo(saved(Image.fromarray(picture()), "JPEG", quality=quality, subsampling=subsampling))
    write_photo(photo.with_pixels(picture()[::-1].copy()), tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as image:
        assert image.quantization == source.quantization  # type: ignore[attr-defined]  # of JPEG images only
        assert image.layer == source.layer  # type: ignore[attr-defined]
    write_photo(photo, tmp_path / "fine.jpg", quality=99)
    assert (tmp_path / "fine.jpg").stat().st_size > (tmp_path / "out.jpg").stat().st_size


def test_jpeg_from_other_sources_takes_quality_95(tmp_path: Path) -> None:
    write_photo(Photo.from_array(picture()), tmp_path / "out.jpg")
    expected = Image.open(BytesIO(saved(Image.fromarray(picture()), "JPEG", quality=95, subsampling=0)))
    with Image.open(tmp_path / "out.jpg") as image:
        assert image.quantization == expected.quantization  # type: ignore[attr-defined]
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))
    grey = read_photo(saved(Image.fromarray(picture(1)), "JPEG", quality=70, progressive=True))
    write_photo(grey, tmp_path / "grey.jpg")
    with Image.open(tmp_path / "grey.jpg") as image:
        assert image.mode == "L"
    # More than two bytes a pixel, which Pillow's optimised and progressive writing cannot do.
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    write_photo(Photo(noise), tmp_path / "noise.jpg", quality=100)
    assert (tmp_path / "noise.jpg").stat().st_size > 2 * 200 * 200


def test_webp_keeps_lossless_and_alpha(tmp_path: Path) -> None:
    array = picture(4)
    array[:5, :, 3] = 0
    photo = read_photo(saved(Image.fromarray(array), "WEBP", lossless=True, exact=True))
    write_photo(photo, tmp_path / "out.webp")
    with Image.open(tmp_path / "out.webp") as image:
        np.testing.assert_array_equal(np.asarray(image), array)
    lossy = read_photo(saved(Image.fromarray(picture()), "WEBP", quality=80))
    assert not lossy.metadata.webp_lossless
    write_photo(lossy, tmp_path / "small.webp", quality=20)
    write_photo(lossy, tmp_path / "large.webp")
    assert (tmp_path / "small.webp").stat().st_size < (tmp_path / "large.webp").stat().st_size


def test_the_format_comes_from_the_argument_the_name_or_the_source(tmp_path: Path) -> None:
    photo = read_photo(saved(Image.fromarray(picture()), "BMP"))
    assert output_format(photo, "a.JPG") == "JPEG"
    assert output_format(photo, "a.jpg", "tiff") == "TIFF"
    assert output_format(photo, "a.jpg", "PNG") == "PNG"
    assert output_format(photo, "without suffix") == "BMP"
    assert output_format(photo, "Aunt M. 1931") == "BMP"
    write_photo(photo, tmp_path / "写真.古い")
    with Image.open(tmp_path / "写真.古い") as image:
        assert image.format == "BMP"
    for name, format in (("a.gif", None), ("a.jxl", None), ("a.jpg", "gif"), ("a.jpg", "")):
        with pytest.raises(UsageError, match="cannot write"):
            output_format(photo, name, format)
    assert {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".pgm", ".ppm"} <= set(PHOTO_SUFFIXES)


def test_a_format_that_cannot_hold_the_photo_is_refused(tmp_path: Path) -> None:
    deep = Photo(picture(3, np.uint16))
    clear = Photo(picture(), alpha=picture(1))
    wide = Photo(np.zeros((1, 70000, 3), np.uint8))
    talkative = Photo(picture(), metadata=Metadata(xmp=XMP + b" " * 70000))
    cases = [(deep, "JPEG", "16 bits"), (deep, "WEBP", "16 bits"), (deep, "BMP", "16 bits")]
    cases += [(clear, "JPEG", "transparency"), (clear, "BMP", "transparency"), (clear, "PPM", "transparency")]
    cases += [(wide, "JPEG", "65500 pixels"), (wide, "WEBP", "16383 pixels"), (talkative, "JPEG", "bytes of XMP")]
    cases += [(Photo(picture(), metadata=Metadata(iptc=IPTC * 3000)), "JPEG", "bytes of IPTC")]
    for photo, format, expected in cases:
        with pytest.raises(UsageError, match=expected):
            write_photo(photo, tmp_path / "out", format=format)
    for quality in (0, 101):
        with pytest.raises(UsageError, match="quality"):
            write_photo(Photo(picture()), tmp_path / "out.jpg", quality=quality)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out.png"
    target.write_bytes(b"the old one")

    def disk_full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(FileAccessError, match=r"cannot write .*out\.png: No space left") as caught:
        write_photo(Photo(picture()), target)
    assert "free some space" in caught.value.advice
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_photo(Photo(picture()), target)
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
    assert target.read_bytes() == b"the old one"


@pytest.mark.skipif(sys.platform == "win32", reason="limits and modes of POSIX")
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "bmp", "ppm"])
def test_a_disk_that_fills_up_while_writing(tmp_path: Path, suffix: str) -> None:
    # In a process of its own, since the limit on file sizes cannot be lifted again.
    code = f"""
import resource, signal, numpy as np
from oldphoto.errors import FileAccessError
from oldphoto.files.image import Photo, write_photo
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
try:
    write_photo(Photo(pixels), {str(tmp_path / "out")!r} + ".{suffix}")
except FileAccessError as error:
    assert "File too large" in str(error), error
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
    assert not list(tmp_path.iterdir())


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match="No such file"):
        write_photo(Photo(picture()), tmp_path / "no folder" / "out.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(FileAccessError, match="cannot write"):
        write_photo(Photo(picture()), tmp_path / "folder.png")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="modes and links of POSIX")
def test_a_link_is_replaced_and_modes_are_usual(tmp_path: Path) -> None:
    original = tmp_path / "original.png"
    write_photo(Photo(picture()), original)
    before = original.read_bytes()
    link = tmp_path / "link.png"
    link.symlink_to(original)
    write_photo(Photo(picture()[::-1].copy()), link)
    assert not link.is_symlink()
    assert original.read_bytes() == before
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert stat.S_IMODE(link.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


# --- metadata --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", RICH)
@pytest.mark.parametrize("target", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_metadata_reaches_every_format(tmp_path: Path, source: str, target: str) -> None:
    photo = read_photo(rich(source))
    if photo.depth == 16 and target in ("JPEG", "WEBP"):
        eight = (photo.pixels // 257).astype(np.uint8)
        photo = Photo(eight, metadata=photo.metadata)
    path = tmp_path / f"out{SUFFIX[target]}"
    write_photo(photo, path)
    with Image.open(path) as image:
        assert image.info["icc_profile"] == other_rgb_profile()
        exif = image.getexif()
        assert exif[0x010F] == "Voigtlander"
        assert exif.get_ifd(0x8769)[0x9003] == "1931:05:04 10:00:00"
        assert exif.get_ifd(0x8769)[0x829A] == IFDRational(1, 125)
        assert exif.get_ifd(0x8825)[2] == (52, 31, 12)
        xmp = image.info.get("xmp") or exif.get(700)
        assert xmp == XMP
        if target != "WEBP":
            assert image.info["dpi"] == pytest.approx((600, 600), abs=0.01)
        if target == "WEBP":
            assert exif[0x011A] == 600
    again = read_photo(path)
    if target not in ("PNG", "WEBP") and source not in ("PNG", "WEBP"):
        assert again.metadata.iptc == IPTC
    if target in ("PNG", "TIFF"):
        np.testing.assert_array_equal(again.pixels, photo.pixels)


@pytest.mark.parametrize("format", RICH)
def test_exiftool_finds_the_same_tags_before_and_after(tmp_path: Path, format: str) -> None:
    before, after = tmp_path / f"before{SUFFIX[format]}", tmp_path / f"after{SUFFIX[format]}"
    before.write_bytes(rich(format))
    write_photo(read_photo(before), after)
    ours, theirs = exiftool(after), exiftool(before)
    assert len(theirs) > 30
    assert ours == theirs
    assert not [key for key in ours if "Warning" in key]


def test_exiftool_finds_a_turned_jpeg_upright(tmp_path: Path) -> None:
    before, after = tmp_path / "before.jpg", tmp_path / "after.jpg"
    source = Image.fromarray(picture())
    before.write_bytes(saved(source, "JPEG", exif=make_exif(6).tobytes(), xmp=XMP, dpi=(600, 300)))
    write_photo(read_photo(before), after)
    ours, theirs = exiftool(after), exiftool(before)
    changed = {key: ours.get(key) for key in theirs.keys() | ours.keys() if ours.get(key) != theirs.get(key)}
    assert changed == {
        "IFD0:Orientation": "Horizontal (normal)",
        "XMP-tiff:Orientation": "Horizontal (normal)",
        "IFD0:XResolution": 300,
        "IFD0:YResolution": 600,
        "JFIF:XResolution": 300,
        "JFIF:YResolution": 600,
        "ExifIFD:ExifImageWidth": HEIGHT,
        "ExifIFD:ExifImageHeight": WIDTH,
    }


def test_the_makers_note_stays_in_its_place(tmp_path: Path) -> None:
    note = b"MAKER\0" + bytes(range(200))
    exif = make_exif(3)
    exif.get_ifd(0x8769)[0x927C] = note
    block = exif.tobytes()
    write_photo(read_photo(saved(Image.fromarray(picture()), "JPEG", exif=block)), tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as image:
        carried = image.info["exif"]
    assert carried.index(note) == block.index(note)
    assert sum(a != b for a, b in zip(carried, block, strict=True)) == 1  # the orientation


def test_a_grey_profile_does_not_go_into_webp(tmp_path: Path) -> None:
    profile = bytearray(srgb())
    profile[16:20] = b"GRAY"
    photo = Photo.from_array(picture(1))
    photo = Photo(photo.pixels, grey=True, metadata=Metadata(icc=bytes(profile)))
    write_photo(photo, tmp_path / "out.webp")
    write_photo(photo, tmp_path / "out.png")
    assert read_photo(tmp_path / "out.webp").metadata.icc is None
    assert read_photo(tmp_path / "out.png").metadata.icc == bytes(profile)


def test_a_restoration_keeps_the_metadata_of_its_source(tmp_path: Path) -> None:
    photo = read_photo(rich("PNG"))
    changed = photo.with_pixels(255 - photo.pixels)
    write_photo(changed, tmp_path / "out.png")
    assert read_photo(tmp_path / "out.png").metadata == photo.metadata


# --- masks -----------------------------------------------------------------------------------------------------------


def test_masks_round_trip(tmp_path: Path) -> None:
    mask = picture(1) > 128
    write_mask(mask, tmp_path / "mask.jpg")  # PNG, whatever it is called
    with Image.open(tmp_path / "mask.jpg") as image:
        assert (image.format, image.mode) == ("PNG", "L")
        np.testing.assert_array_equal(np.asarray(image), mask * np.uint8(255))
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.jpg", (WIDTH, HEIGHT)), mask)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK"])
def test_any_picture_is_a_mask(tmp_path: Path, mode: str) -> None:
    grey = picture(1)
    image = Image.fromarray(grey if mode != "1" else grey >= 128).convert(mode)
    path = tmp_path / "mask"
    path.write_bytes(saved(image, "TIFF" if mode == "CMYK" else "PNG"))
    np.testing.assert_array_equal(read_mask(path, (WIDTH, HEIGHT)), grey >= 128)


def test_mask_colours_count_by_brightness_and_clear_ones_not(tmp_path: Path) -> None:
    rgba = picture(4)
    path = tmp_path / "mask.png"
    path.write_bytes(saved(Image.fromarray(rgba), "PNG"))
    luma = rgba[..., :3].astype(float) @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_array_equal(read_mask(path, (WIDTH, HEIGHT)), (luma >= 128 - 1e-9) & (rgba[..., 3] >= 128))


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    write_mask(np.zeros((HEIGHT, WIDTH), np.bool_), tmp_path / "mask.png")
    with pytest.raises(BadImageError, match=r"mask mask\.png is 53 x 37 pixels, the photo 37 x 53"):
        read_mask(tmp_path / "mask.png", (HEIGHT, WIDTH))


# --- photos without files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_from_array(channels: int, dtype: type[np.uint8] | type[np.uint16]) -> None:
    array = picture(channels, dtype)
    photo = Photo.from_array(array)
    assert photo.pixels.shape == (HEIGHT, WIDTH, 3)
    assert photo.grey == (channels == 1)
    assert (photo.alpha is not None) == (channels == 4)
    np.testing.assert_array_equal(photo.pixels[..., 0], array if channels == 1 else array[..., 0])
    image = photo.to_pillow()
    assert image.mode == {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    expected = array if dtype is np.uint8 else np.rint(array / 257)
    np.testing.assert_array_equal(np.asarray(image), expected)


def test_from_array_says_what_is_wrong() -> None:
    for array in (picture().astype(np.float32), picture(2), picture()[None], np.zeros((0, 5), np.uint8)):
        with pytest.raises(BadImageError, match="the array"):
            Photo.from_array(array)


def test_a_photo_checks_its_parts() -> None:
    photo = Photo(picture())
    for wrong in (picture()[1:], picture(3, np.uint16)):
        with pytest.raises(ValueError, match="new pixels"):
            photo.with_pixels(wrong)
    for pixels, alpha in ((picture(4), None), (picture(1), None), (picture(), picture(1, np.uint16))):
        with pytest.raises(ValueError, match="pixels"):
            Photo(pixels, alpha=alpha)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I;16"])
def test_from_pillow(mode: str) -> None:
    image = Image.fromarray(picture(1, np.uint16)) if mode == "I;16" else Image.fromarray(picture()).convert(mode)
    photo = Photo.from_pillow(image)
    assert photo.grey == (mode in ("1", "L", "LA", "I;16"))
    assert photo.depth == (16 if mode == "I;16" else 8)
    expected = np.asarray(image if mode == "I;16" else image.convert("L" if photo.grey else "RGB"))
    np.testing.assert_array_equal(photo.pixels[..., 0], expected if expected.ndim == 2 else expected[..., 0])


@pytest.mark.parametrize("format", ["JPEG", "TIFF", "PNG"])
def test_from_pillow_turns_as_pillow_does(format: str) -> None:
    data = saved(Image.fromarray(picture()), format, exif=make_exif(6).tobytes(), dpi=(600, 600))
    photo = Photo.from_pillow(Image.open(BytesIO(data)))
    expected = ImageOps.exif_transpose(Image.open(BytesIO(data)))
    np.testing.assert_array_equal(photo.pixels, np.asarray(expected))
    assert photo.metadata.format == format
    with pytest.raises(BadImageError, match="the image"):
        Photo.from_pillow(Image.open(BytesIO(data[:-100])))


def test_from_pillow_refuses_what_it_cannot_hold() -> None:
    for mode in ("F", "I", "LAB", "HSV"):
        with pytest.raises(BadImageError, match="kind that is not read"):
            Photo.from_pillow(Image.new(mode, (4, 4)))


# --- damage of every kind --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", [*RICH, "BMP", "TIFF LZW", "TIFF 16 LZW"])
def test_damaged_files_fail_only_as_bad_images(format: str, capfd: pytest.CaptureFixture[str]) -> None:
    if format == "TIFF 16 LZW":
        data = cv2.imencode(".tif", picture(3, np.uint16), [cv2.IMWRITE_TIFF_COMPRESSION, 5])[1].tobytes()
    elif format in ("TIFF LZW", "BMP"):
        options = {"compression": "tiff_lzw"} if format == "TIFF LZW" else {}
        data = saved(Image.fromarray(picture()), format.split()[0], **options)
    else:
        data = rich(format)
    rng = np.random.default_rng(3)
    messages = []
    for _ in range(150):
        broken = bytearray(data)
        for at in rng.integers(0, min(len(broken), 3000), 4):
            broken[at] = rng.integers(0, 256)
        if rng.random() < 0.3:
            broken = broken[: rng.integers(1, len(broken))]
        try:
            read_photo(bytes(broken), max_pixels=1_000_000)
        except BadImageError as error:
            messages.append(str(error))
    assert messages
    assert not [message for message in messages if "\n" in message]
    assert capfd.readouterr() == ("", "")
