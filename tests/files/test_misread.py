"""Files that are easily misread, refused or emptied in silence: each stands for a kind. Most are made here by hand."""

from __future__ import annotations

import hashlib
import os
import struct
import time
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from oldphoto.errors import BadImageError, FileAccessError, OutOfMemoryError
from oldphoto.files import jpeg2000
from oldphoto.files.image import (
    Metadata,
    Photo,
    count_pages,
    not_held,
    read_pages,
    read_photo,
    write_pages,
    write_photo,
)
from oldphoto.files.masks import read_mask
from tests.pictures import (
    HEIGHT,
    IPTC,
    RICH,
    SUFFIX,
    WIDTH,
    XMP,
    make_exif,
    picture,
    png,
    png_chunk,
    rich,
    saved,
    srgb,
    tiff,
)

GREY, RGB = picture(1), picture()


def by_hand(tags: dict[int, tuple[int, list[int]]], strip: bytes) -> bytes:
    """A classic little-endian TIFF of one strip from {code: (type, values)}."""
    tags = {273: (4, [8]), 279: (4, [len(strip)])} | tags
    body = b"II*\0" + struct.pack("<I", 8 + len(strip) + len(strip) % 2) + strip + bytes(len(strip) % 2)
    spill_at, entries, spill = len(body) + 2 + 12 * len(tags) + 4, b"", b""
    for code, (kind, values) in sorted(tags.items()):
        value = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        field = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", spill_at + len(spill))
        spill += value if len(value) > 4 else b""
        entries += struct.pack("<HHI", code, kind, len(values)) + field
    return body + struct.pack("<H", len(tags)) + entries + bytes(4) + spill


def basic(bits: int, photometric: int, samples: int = 1) -> dict[int, tuple[int, list[int]]]:
    return {
        **{256: (4, [WIDTH]), 257: (4, [HEIGHT]), 258: (3, [bits] * samples), 259: (3, [1])},
        **{262: (3, [photometric]), 277: (3, [samples]), 278: (4, [HEIGHT])},
    }


def jpeg(**options: Any) -> bytes:
    return saved(Image.fromarray(RGB), "JPEG", **({"quality": 92, "subsampling": 0} | options))


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def with_segments(data: bytes, *segments: bytes) -> bytes:
    return data[:2] + b"".join(segments) + data[2:]


def exif_of(*entries: bytes, following: bytes = bytes(4)) -> bytes:
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + following


def entry(code: int, kind: int, count: int, value: bytes) -> bytes:
    return struct.pack("<HHI", code, kind, count) + value.ljust(4, b"\0")


def close(ours: NDArray[Any], theirs: NDArray[Any], most: float) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs).max() <= most


# --- what it is ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dng", "sub-directory", "nef", "cr2"])
def test_a_raw_file_is_not_taken_for_its_thumbnail(kind: str) -> None:
    out = BytesIO()
    with tifffile.TiffWriter(out) as writer:
        tags = [(50706, 1, 4, b"\1\4\0\0", True)] if kind == "dng" else []
        small = RGB[::4, ::4].copy()
        writer.write(small, photometric="rgb", subfiletype=1, subifds=1, metadata=None, extratags=tags)
        if kind == "nef":
            writer.write(GREY, photometric="minisblack", metadata=None)
        else:
            writer.write(picture(3, np.uint16), photometric=34892, metadata=None)  # linear raw
    data = bytearray(out.getvalue())
    if kind == "nef":  # Nikon's own compression
        at = data.rindex(struct.pack("<HHIHH", 259, 3, 1, 1, 0))
        struct.pack_into("<H", data, at + 8, 34713)
    if kind == "cr2":
        directory = struct.pack("<HHHII", 1, 256, 4, 1, 10) + bytes(4)
        data = bytearray(b"II*\0\x10\0\0\0CR\2\0" + bytes(4) + directory)
    with pytest.raises(BadImageError, match="raw file of a camera") as caught:
        read_photo(bytes(data))
    assert "develop it" in caught.value.advice


def test_the_photo_below_a_reduced_copy_is_found() -> None:
    out = BytesIO()
    with tifffile.TiffWriter(out) as writer:
        writer.write(RGB[::4, ::4].copy(), photometric="rgb", subfiletype=1, subifds=1, metadata=None)
        writer.write(RGB, photometric="rgb", metadata=None)
    np.testing.assert_array_equal(read_photo(out.getvalue()).pixels, RGB)
    full = BytesIO()
    with tifffile.TiffWriter(full) as writer:
        writer.write(RGB, photometric="rgb", subifds=1, metadata=None)
        writer.write(RGB[::2], photometric="rgb", metadata=None)
    photo = read_photo(full.getvalue())
    np.testing.assert_array_equal(photo.pixels, RGB)
    assert photo.warnings == ("1 pictures in its sub-directories are left out",)


def test_of_copies_alone_the_largest_is_taken() -> None:
    out = BytesIO()
    with tifffile.TiffWriter(out) as writer:
        for step in (4, 1, 2):
            writer.write(RGB[::step, ::step].copy(), photometric="rgb", subfiletype=1, metadata=None)
    photo = read_photo(out.getvalue())
    assert photo.pixels.shape == RGB.shape
    assert "reduced copies" in photo.warnings[0]


def unsupported() -> dict[str, tuple[bytes, str]]:
    twelve = bytearray(jpeg())
    twelve[twelve.index(b"\xff\xc0") + 4] = 12
    lossless = jpeg().replace(b"\xff\xc0", b"\xff\xc3", 1)
    return {
        "icclab": (by_hand(basic(8, 9, 3), RGB.tobytes()), "ICCLab"),
        "cielab": (by_hand(basic(8, 8, 3), RGB.tobytes()), "CIELAB"),
        "lerc": (by_hand(basic(8, 1) | {259: (3, [34887])}, bytes(100)), "LERC"),
        "cmyk 16": (by_hand(basic(16, 5, 4), bytes(HEIGHT * WIDTH * 8)), "separation with 16-bit samples"),
        "jpeg 12": (bytes(twelve), "JPEG of 12 bits"),
        "jpeg lossless": (lossless, "lossless JPEG"),
        "jpeg-ls": (jpeg().replace(b"\xff\xc0", b"\xff\xf7", 1), "JPEG-LS"),
        "old jpeg": (by_hand(basic(8, 6, 3) | {259: (3, [6])}, bytes(100)), "JPEG of before 1995"),
        "float": (tiff(RGB.astype(np.float32), photometric="rgb"), "floating-point"),
        "raw of Fuji": (b"FUJIFILMCCD-RAW 0201", "raw file of a camera"),
    }


@pytest.mark.parametrize("kind", unsupported())
def test_what_is_not_read_is_not_called_damaged(kind: str) -> None:
    data, expected = unsupported()[kind]
    with pytest.raises(BadImageError, match=expected) as caught:
        read_photo(data)
    assert "damaged" not in str(caught.value)
    assert caught.value.advice


# --- what the tags mean ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 256, 257])
def test_a_colour_map_may_hold_8_bit_values(scale: int) -> None:
    colours = Image.fromarray(RGB).quantize(256)
    table = np.array((colours.getpalette() or [])[:768] + [0] * 768)[:768].reshape(-1, 3)
    tags = basic(8, 3) | {320: (3, [int(value) for value in (table * scale).T.ravel()])}
    photo = read_photo(by_hand(tags, colours.tobytes()))
    np.testing.assert_array_equal(photo.pixels, np.asarray(colours.convert("RGB")))


@pytest.mark.parametrize("depth", [8, 16])
def test_without_a_photometric_tag_grey_is_as_stored(depth: int) -> None:
    grey = picture(1, np.uint16 if depth == 16 else np.uint8)
    tags = basic(depth, 1)
    del tags[262]
    photo = read_photo(by_hand(tags, grey.tobytes()))
    np.testing.assert_array_equal(photo.pixels[..., 0], grey)
    assert "0 is taken for black" in photo.warnings[0]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_every_byte_order_and_size_of_offset(order: str, big: bool, dtype: Any, compression: str | None) -> None:
    array = picture(3, dtype)
    data = tiff(array, photometric="rgb", bigtiff=big, byteorder=order, compression=compression)
    np.testing.assert_array_equal(read_photo(data).pixels, array)


@pytest.mark.parametrize(
    "compression", ["group3", "group4", "tiff_ccitt", "packbits", "tiff_lzw", "zstd", "lzma", None]
)
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_the_compressions_of_libtiff(compression: str | None, bits: int) -> None:
    tall = np.tile(GREY, (20, 3))
    image = Image.fromarray(tall > 100) if bits == 1 else Image.fromarray(tall)
    if bits == 4:
        if compression is not None:
            pytest.skip("Pillow writes no 4 bits")
        packed = (tall[:, :-1:2] & 0xF0) | (tall[:, 1::2] >> 4)
        tags = basic(4, 1) | {256: (4, [packed.shape[1] * 2]), 257: (4, [len(packed)]), 278: (4, [len(packed)])}
        np.testing.assert_array_equal(
            read_photo(by_hand(tags, packed.tobytes())).pixels[..., 0], (tall[:, : packed.shape[1] * 2] >> 4) * 17
        )
        return
    if bits == 8 and compression in ("group3", "group4", "tiff_ccitt"):
        pytest.skip("of two values only")
    try:
        data = saved(image, "TIFF", compression=compression)
    except (OSError, KeyError):
        pytest.skip("not in this Pillow")
    photo = read_photo(data)
    np.testing.assert_array_equal(photo.pixels[..., 0], np.asarray(image.convert("L")))


@pytest.mark.parametrize("sampling", [(1, 1), (2, 1), (2, 2)])
def test_uncompressed_ycbcr(sampling: tuple[int, int]) -> None:
    across, down = sampling
    smooth = np.asarray(Image.fromarray(RGB[: HEIGHT // 4, : WIDTH // 4]).resize((48, 36), Image.Resampling.BICUBIC))
    ycc = np.asarray(Image.fromarray(smooth).convert("YCbCr")).astype(int)
    luma = (
        ycc[..., 0]
        .reshape(36 // down, down, 48 // across, across)
        .swapaxes(1, 2)
        .reshape(36 // down, -1, across * down)
    )
    colours = ycc[..., 1:].reshape(36 // down, down, 48 // across, across, 2).mean(axis=(1, 3))
    units = np.concatenate([luma, np.rint(colours)], axis=2).astype(np.uint8)
    tags = basic(8, 6, 3) | {256: (4, [48]), 257: (4, [36]), 278: (4, [36]), 530: (3, [across, down])}
    photo = read_photo(by_hand(tags, units.tobytes()))
    close(photo.pixels, smooth, 3 if sampling == (1, 1) else 40)
    assert np.abs(photo.pixels.astype(int) - smooth).mean() < 4


@pytest.mark.parametrize("kind", ["cmyk alpha", "strip count", "old jpeg grey", "bits reversed", "no strip count"])
def test_sound_tiffs_of_odd_kinds_are_read(kind: str) -> None:
    if kind == "cmyk alpha":
        inks = np.dstack([255 - RGB, GREY // 2])
        array = np.dstack([inks, GREY])
        photo = read_photo(tiff(array, photometric="separated", extrasamples=["unassalpha"]))
        assert photo.inks is not None
        np.testing.assert_array_equal(photo.inks, inks)
        assert "left out" in photo.warnings[0]
        return
    if kind == "strip count":
        data = by_hand(basic(8, 1) | {279: (4, [GREY.size + 5000])}, GREY.tobytes())
    elif kind == "no strip count":
        strip = zlib.compress(GREY.tobytes())
        data = by_hand(basic(8, 1) | {259: (3, [8])}, strip)
        at = data.index(struct.pack("<HHII", 279, 4, 1, len(strip)))
        data = data[:at] + struct.pack("<HHII", 60000, 4, 1, 0) + data[at + 12 :]
    elif kind == "bits reversed":
        mirrored = bytes(int(f"{value:08b}"[::-1], 2) for value in GREY.tobytes())
        data = by_hand(basic(8, 1) | {266: (3, [2])}, mirrored)
    else:
        strip = saved(Image.fromarray(GREY), "JPEG", quality=95)
        data = by_hand(basic(8, 1) | {259: (3, [6]), 513: (4, [8]), 514: (4, [len(strip)])}, strip)
        np.testing.assert_array_equal(read_photo(data).pixels[..., 0], np.asarray(Image.open(BytesIO(strip))))
        return
    np.testing.assert_array_equal(read_photo(data).pixels[..., 0], GREY)


@pytest.mark.parametrize("photometric", [2, 6])
def test_the_colours_of_jpeg_strips_are_what_the_directory_says(photometric: int) -> None:
    # Three channels named 1, 2, 3 and no Adobe mark: by itself the strip says YCbCr.
    strip = jpeg()
    planes = np.asarray(Image.open(BytesIO(strip)).convert("RGB" if photometric == 6 else "YCbCr"))
    photo = read_photo(by_hand(basic(8, photometric, 3) | {259: (3, [7]), 530: (3, [1, 1])}, strip))
    close(photo.pixels, planes, 2)


# --- orientation -----------------------------------------------------------------------------------------------------

SIX = entry(0x112, 3, 1, struct.pack("<H", 6))
BLOCKS = {
    "long": exif_of(entry(0x112, 4, 1, struct.pack("<I", 6))),
    "byte": exif_of(entry(0x112, 1, 1, b"\6")),
    "bad thumbnail pointer": exif_of(SIX, following=struct.pack("<I", 0xFFFFF0)),
    "no next pointer": exif_of(SIX, following=b""),
    "header twice": b"Exif\0\0" + exif_of(SIX),
}


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_an_orientation_that_is_obeyed_is_also_made_1(tmp_path: Path, kind: str, suffix: str) -> None:
    photo = read_photo(with_segments(jpeg(), segment(0xE1, b"Exif\0\0" + BLOCKS[kind])))
    close(photo.pixels, np.rot90(RGB, -1), 30)
    write_photo(photo, tmp_path / f"out{suffix}")
    with Image.open(tmp_path / f"out{suffix}") as image:
        assert image.getexif().get(0x112) == 1
        assert image.size == (HEIGHT, WIDTH)


# --- damage ----------------------------------------------------------------------------------------------------------


def test_a_jpeg_without_its_end_mark_is_whole() -> None:
    photo = read_photo(jpeg()[:-2])
    np.testing.assert_array_equal(photo.pixels, read_photo(jpeg()).pixels)
    assert "lack the end mark" in photo.warnings[0]


def hollow(data: bytes) -> bytes:
    half = len(data) // 2
    return data[:half] + bytes(len(data) - half - 2) + data[-2:]


@pytest.mark.parametrize("kind", ["zeros", "half", "larger frame", "strip", "progressive"])
def test_damaged_jpeg_data_are_told(kind: str) -> None:
    data = jpeg(progressive=kind == "progressive")
    if kind == "zeros":
        data = hollow(data)
    elif kind in ("half", "progressive"):
        data = data[: len(data) // 2] + b"\xff\xd9"
    elif kind == "larger frame":
        at = data.index(b"\xff\xc0") + 5
        data = data[:at] + struct.pack(">H", 3 * HEIGHT) + data[at + 2 :]
    else:
        data = by_hand(basic(8, 6, 3) | {259: (3, [7]), 530: (3, [1, 1])}, hollow(data))
    photo = read_photo(data)
    assert "JPEG data are damaged" in photo.warnings[0]
    assert not read_photo(jpeg()).warnings


@pytest.mark.parametrize("kind", ["zeroed", "too few strips", "short strip", "short lzw", "xmp"])
def test_damaged_tiffs_are_refused(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (80, 100), dtype=np.uint8)
    size = {256: (4, [100]), 257: (4, [80]), 278: (4, [80])}
    if kind == "zeroed":
        strip = bytearray(zlib.compress(np.tile(GREY, (20, 2))[:80, :100].tobytes()))
        strip[len(strip) // 2 : len(strip) // 2 + 40] = bytes(40)
        data = by_hand(basic(8, 1) | size | {259: (3, [8])}, bytes(strip))
    elif kind == "too few strips":
        data = by_hand(basic(8, 1) | size | {278: (4, [40])}, noise[:40].tobytes())
    elif kind == "short strip":
        data = by_hand(basic(8, 1) | size | {259: (3, [8])}, zlib.compress(noise[:70].tobytes()))
    elif kind == "short lzw":
        whole = saved(Image.fromarray(noise), "TIFF", compression="tiff_lzw")
        with tifffile.TiffFile(BytesIO(whole)) as file:
            start, count = file.pages.first.dataoffsets[0], file.pages.first.databytecounts[0]
        data = by_hand(basic(8, 1) | size | {259: (3, [5])}, whole[start : start + count // 2])
    else:
        data = by_hand(basic(8, 1) | size, noise.tobytes())
        at = data.index(struct.pack("<HH", 278, 4))
        data = data[:at] + struct.pack("<HHII", 258, 3, 3, 1 << 30) + data[at + 12 :]
        data = data.replace(struct.pack("<HHIHH", 258, 3, 1, 8, 0), struct.pack("<HHIHH", 255, 3, 1, 0, 0))
    with pytest.raises(BadImageError, match=r"damaged|cut short"):
        read_photo(data)


def test_a_tag_beyond_the_end_is_missed() -> None:
    data = tiff(RGB, photometric="rgb", iccprofile=srgb())
    with tifffile.TiffFile(BytesIO(data)) as file:
        tag = file.pages.first.tags["InterColorProfile"]
        moved = bytearray(data)
        struct.pack_into("<I", moved, tag.offset + 8, len(data) - 10)
    photo = read_photo(bytes(moved))
    assert photo.metadata.icc is None
    assert "profile" in photo.warnings[0]
    assert "beyond its end" in photo.warnings[0]


# --- the part that is judged is the part that is decoded -------------------------------------------------------------


def test_a_png_with_two_headers_is_refused() -> None:
    data = png(GREY, 0, png_chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 0, 0, 0, 0)))
    with pytest.raises(BadImageError, match="two headers"):
        read_photo(data)


def test_jpeg2000_boxes_must_say_what_the_codestream_says() -> None:
    good = saved(Image.fromarray(RGB), "JPEG2000")
    at = good.index(b"ihdr") + 4
    with pytest.raises(BadImageError, match=r"header says 40000 x 40000 .* pixels 53 x 37"):
        read_photo(good[:at] + struct.pack(">II", 40000, 40000) + good[at + 8 :])


@pytest.mark.parametrize("first", ["large", "small"])
def test_of_two_codestreams_the_judged_one_is_decoded(first: str) -> None:
    small = saved(Image.fromarray(RGB), "JPEG2000", no_jp2=True)
    at = small.index(b"\xff\x51") + 2
    large = small[: at + 4] + struct.pack(">II", 16000, 16000) + small[at + 12 :]
    file = saved(Image.fromarray(RGB), "JPEG2000")
    head = file[: file.index(b"jp2c") - 4]
    one, other = (large, small) if first == "large" else (small, large)
    data = (
        head + struct.pack(">I4s", 8 + len(one), b"jp2c") + one + struct.pack(">I4s", 8 + len(other), b"jp2c") + other
    )
    if first == "large":
        with pytest.raises(BadImageError, match="16000 x 16000"):
            read_photo(data, max_pixels=1_000_000)
    else:
        photo = read_photo(data, max_pixels=1_000_000)
        np.testing.assert_array_equal(photo.pixels, RGB)
        assert "more than one picture" in photo.warnings[0]


@pytest.mark.parametrize("depth", [8, 16])
def test_a_strip_gets_no_more_room_than_its_rows(depth: int) -> None:
    import tracemalloc

    grey = picture(1, np.uint16 if depth == 16 else np.uint8)
    bomb = zlib.compressobj(9)
    strip = bomb.compress(grey.tobytes()) + b"".join(bomb.compress(bytes(1 << 20)) for _ in range(64)) + bomb.flush()
    tracemalloc.start()
    try:
        with pytest.raises(BadImageError, match="more than twice as many"):
            read_photo(by_hand(basic(depth, 1) | {259: (3, [8])}, strip))
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    whole = zlib.compress(grey.tobytes() + bytes(100))  # with rows that some programs fill up
    np.testing.assert_array_equal(read_photo(by_hand(basic(depth, 1) | {259: (3, [8])}, whole)).pixels[..., 0], grey)


def test_a_mask_of_another_size_is_not_decoded() -> None:
    # With no pixels in it: decoding would call it damaged.
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 22000, 22000, 8, 0, 0, 0, 0))
    mask = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")
    with pytest.raises(BadImageError, match="is 22000 x 22000 pixels, the photo 53 x 37"):
        read_mask(mask, (WIDTH, HEIGHT))


# --- bounded work ----------------------------------------------------------------------------------------------------


def test_directories_that_share_their_bytes_are_not_followed_for_ever(tmp_path: Path) -> None:
    # Each of 400 directories has 65,535 tags, and they overlap: 26 million tags in less than a megabyte.
    data = bytearray(800_000)
    data[:8] = b"II*\0\x08\0\0\0"
    for k in range(400):
        at = 8 + 2 * k
        struct.pack_into("<H", data, at, 65535)
        struct.pack_into("<I", data, at + 2 + 12 * 65535, at + 2 if k < 399 else 0)
    (tmp_path / "chain.tif").write_bytes(data)
    started = time.process_time()
    with pytest.raises(BadImageError):
        read_photo(tmp_path / "chain.tif")
    assert count_pages(tmp_path / "chain.tif") == 1
    assert time.process_time() - started < 4


def test_many_pages_cost_no_more_than_their_number() -> None:
    def seconds(pages: int) -> float:
        one = by_hand(basic(8, 1) | {256: (4, [1]), 257: (4, [1]), 278: (4, [1])}, b"\0\0")
        at = struct.unpack_from("<I", one, 4)[0]
        directory = one[at:-4]
        data = bytearray(one[:at])
        for k in range(pages):
            data += directory + struct.pack("<I", 0 if k == pages - 1 else len(data) + len(directory) + 4)
        started = time.process_time()
        assert sum(1 for _ in read_pages(bytes(data))) == pages
        return time.process_time() - started

    seconds(50)
    assert seconds(1600) < 25 * max(seconds(100), 0.01)


def test_pages_are_bounded_together() -> None:
    one = by_hand(basic(8, 1) | {256: (4, [1000]), 257: (4, [1000]), 278: (4, [1000])}, bytes(1_000_000))
    at = struct.unpack_from("<I", one, 4)[0]
    data = bytearray(one[:at])
    for k in range(30):  # all of the same strip
        data += one[at:-4] + struct.pack("<I", 0 if k == 29 else len(data) + len(one) - at)
    assert len(list(read_pages(bytes(data), max_pixels=1_500_000))) == 30
    with pytest.raises(BadImageError, match="30 pages of 30 million pixels together"):
        next(read_pages(bytes(data), max_pixels=1_000_000))


def test_a_jpeg_of_very_many_scans_is_refused() -> None:
    data = jpeg(progressive=True)
    last = data.rindex(b"\xff\xda")
    with pytest.raises(BadImageError, match="more than 100 scans"):
        read_photo(data[:-2] + data[last:-2] * 200 + data[-2:])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of POSIX")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tif")
    assert count_pages(tmp_path / "a.tif") == 1
    with pytest.raises(FileAccessError, match="it is a pipe"):
        read_photo(tmp_path / "a.tif")
    with pytest.raises(FileAccessError, match="it is a device"):
        read_photo("/dev/zero")


def test_an_offset_beyond_any_file_is_damage(tmp_path: Path) -> None:
    data = bytearray(tiff(RGB, photometric="rgb", bigtiff=True))
    with tifffile.TiffFile(BytesIO(data)) as file:
        last = file.pages.first.offset
    (count,) = struct.unpack_from("<Q", data, last)
    struct.pack_into("<Q", data, last + 8 + 20 * count, 2**64 - 1)
    (tmp_path / "a.tif").write_bytes(data)
    assert count_pages(tmp_path / "a.tif") == 1
    with pytest.raises(BadImageError, match="page 2 is missing"):
        read_photo(tmp_path / "a.tif")


def test_reading_asks_for_room_before_it_decodes(tmp_path: Path) -> None:
    asked: list[int] = []
    large = np.zeros((600, 800, 3), np.uint8)
    for suffix in (".png", ".jpg", ".tif", ".jp2", ".bmp", ".ppm", ".webp", ".avif"):
        path = tmp_path / f"a{suffix}"
        write_photo(Photo.from_array(large), path)
        asked.clear()
        next(read_pages(path, admit=asked.append))
        if suffix != ".tif":  # which is never in memory as a whole
            assert asked.pop(0) == path.stat().st_size
        assert large.nbytes <= sum(asked) < 60 * 600 * 800, suffix

    def refuse(size: int) -> None:
        if size > 100_000:
            raise OutOfMemoryError("too much")

    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(OutOfMemoryError):
            next(read_pages(path, admit=refuse))


# --- nothing is dropped without a word -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", ["named", "unnamed"])
def test_a_channel_beyond_the_colours_is_kept_or_missed(dtype: Any, kind: str) -> None:
    array = picture(4, dtype)
    if kind == "named":
        photo = read_photo(tiff(array, photometric="rgb", extrasamples=["unspecified"]))
        assert photo.alpha is None
        assert "left out" in photo.warnings[0]
    else:
        photo = read_photo(by_hand(basic(array.dtype.itemsize * 8, 2, 4), array.tobytes()))
        np.testing.assert_array_equal(photo.alpha, array[..., 3])
        assert "taken for transparency" in photo.warnings[0]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["infrared", "mask"])
def test_pages_that_are_no_photos_stay_as_they_are(tmp_path: Path, kind: str, order: Literal["<", ">"]) -> None:
    infrared = picture(1, np.uint16)
    out = BytesIO()
    with tifffile.TiffWriter(out, byteorder=order) as writer:
        writer.write(picture(3, np.uint16), photometric="rgb", metadata=None)
        if kind == "infrared":
            writer.write(infrared, photometric="minisblack", subfiletype=2, metadata=None, description="IR")
        else:
            writer.write(GREY > 110, photometric="mask", subfiletype=2, metadata=None, description="IR")
        writer.write(RGB[:20], photometric="rgb", metadata=None)
    with tifffile.TiffFile(BytesIO(out.getvalue())) as file:
        page = file.pages[1]
        assert isinstance(page, tifffile.TiffPage)
        at = page.tags[254].valueoffset
    data = bytearray(out.getvalue())
    struct.pack_into(f"{order}I", data, at, 4)
    photos = list(read_pages(bytes(data)))
    assert [photo.height for photo in photos] == [HEIGHT, 20]
    assert "goes unchanged" in photos[0].warnings[0]
    changed = [photo.with_pixels(255 - photo.pixels) for photo in photos]
    write_pages(changed, tmp_path / "out.tif")
    with tifffile.TiffFile(tmp_path / "out.tif") as file, tifffile.TiffFile(BytesIO(data)) as source:
        assert len(file.pages) == 3
        page, before = file.pages[1], source.pages[1]
        assert isinstance(page, tifffile.TiffPage)
        assert isinstance(before, tifffile.TiffPage)
        assert (page.subfiletype, page.photometric) == (4, before.photometric)
        assert page.description == "IR"
        np.testing.assert_array_equal(page.asarray(), before.asarray())
    again = list(read_pages(tmp_path / "out.tif"))
    np.testing.assert_array_equal(again[1].pixels, changed[1].pixels)
    assert not_held(photos[0], "PNG") == ["PNG has no place for the photo's pages beside the photo (masks, infrared)"]


def test_metadata_of_a_jpeg_come_back(tmp_path: Path) -> None:
    more = XMP + b" " * 70_000
    guid = hashlib.md5(more).hexdigest().upper().encode()
    extended = [
        segment(
            0xE1, b"http://ns.adobe.com/xmp/extension/\0" + guid + struct.pack(">II", len(more), at) + more[at:][:60000]
        )
        for at in (0, 60000)
    ]
    flag = b"8BIM" + struct.pack(">HHI", 0x040A, 0, 1) + b"\1\0"
    records = b"8BIM" + struct.pack(">HHI", 0x0404, 0, len(IPTC)) + IPTC + bytes(len(IPTC) % 2)
    preview = b"8BIM" + struct.pack(">HHI", 0x040C, 0, 4) + b"tiny"
    data = with_segments(
        jpeg(),
        *extended,
        segment(0xED, b"Photoshop 3.0\0" + flag + records + preview),
        segment(0xFE, b"first: negative 12"),
        segment(0xFE, b"second"),
    )
    photo = read_photo(data)
    assert not photo.warnings
    write_photo(photo, tmp_path / "out.jpg")
    written = (tmp_path / "out.jpg").read_bytes()
    for part in (*extended, flag, records, b"first: negative 12", b"second"):
        assert written.count(part) == 1
    assert b"tiny" not in written
    assert read_photo(written).metadata == photo.metadata
    lines = not_held(photo, "WEBP")
    assert len(lines) == 4
    for word in ("IPTC", "Photoshop", "comments", "extended XMP"):
        assert any(word in line for line in lines)
    assert not not_held(photo, "JPEG")
    write_photo(photo, tmp_path / "out.tif")
    assert read_photo(tmp_path / "out.tif").metadata.photoshop == flag
    assert read_photo(tmp_path / "out.tif").metadata.iptc == IPTC


def test_what_lies_behind_a_jpeg_is_missed() -> None:
    second = saved(Image.fromarray(GREY), "JPEG")
    photo = read_photo(jpeg(progressive=True) + second)
    assert photo.warnings == (
        f"{len(second)} bytes behind the picture (a further picture, a gain map or a film) are left out",
    )
    assert not read_photo(jpeg() + bytes(1000)).warnings


@pytest.mark.parametrize("format", RICH)
def test_of_what_is_kept_nothing_is_said(tmp_path: Path, format: str) -> None:
    photo = read_photo(rich(format))
    assert not photo.warnings
    write_photo(photo, tmp_path / f"out{SUFFIX[format]}")
    assert not read_photo(tmp_path / f"out{SUFFIX[format]}").warnings
    assert not not_held(photo, photo.metadata.format)


def test_tags_chunks_and_boxes_that_are_not_kept_are_missed() -> None:
    layers = tiff(RGB, photometric="rgb", extratags=[(37724, 7, 8, b"Adobe Ph", True), (33432, 2, 0, "me", True)])
    assert read_photo(layers).warnings == ("tags of a kind that is not kept are left out (37724)",)
    signed = png(RGB, 2, png_chunk(b"caBX", b"C2PA"), png_chunk(b"tIME", bytes(7)))
    assert read_photo(signed).warnings == ("chunks of a kind that is not kept are left out ('caBX')",)
    boxed = saved(Image.fromarray(RGB), "JPEG2000")
    at = boxed.index(b"jp2c") - 4
    boxed = boxed[:at] + struct.pack(">I4s", 12, b"xml ") + b"<a/>" + boxed[at:]
    assert read_photo(boxed).warnings == ("boxes of a kind that is not kept are left out ('xml ')",)
    assert "APP11" in read_photo(with_segments(jpeg(), segment(0xEB, b"JP\0\1C2PA"))).warnings[0]


def test_a_second_xmp_packet_is_missed() -> None:
    packet = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP)
    photo = read_photo(with_segments(jpeg(), packet, packet))
    assert photo.metadata.xmp == XMP
    assert "1 of its 2 XMP packets" in photo.warnings[0]


def test_iptc_within_photoshops_resources_of_a_tiff_is_found() -> None:
    block = b"8BIM" + struct.pack(">HHI", 0x0404, 0, len(IPTC)) + IPTC
    photo = read_photo(tiff(RGB, photometric="rgb", extratags=[(34377, 7, len(block), block, True)]))
    assert photo.metadata.iptc == IPTC


def test_the_profile_of_a_bmp_is_read() -> None:
    plain = saved(Image.fromarray(RGB), "BMP")
    pixels, profile = plain[54:], srgb()
    header = struct.pack("<IiiHHIIiiII", 124, WIDTH, HEIGHT, 1, 24, 0, len(pixels), 2835, 2835, 0, 0)
    header += bytes(16) + b"DEBM" + bytes(36 + 12) + struct.pack("<IIII", 4, 124 + len(pixels), len(profile), 0)
    data = b"BM" + struct.pack("<IHHI", 138 + len(pixels) + len(profile), 0, 0, 138) + header + pixels + profile
    photo = read_photo(data)
    np.testing.assert_array_equal(photo.pixels, RGB)
    assert photo.metadata.icc == profile
    assert any("colour profile" in line for line in not_held(photo, "BMP"))


def png_chunks() -> dict[str, tuple[bytes, str]]:
    def broken(chunk: bytes) -> bytes:
        return chunk[:-1] + bytes([chunk[-1] ^ 1])

    text = zlib.compress(b"a long story " * 170_000)
    return {
        "long text": (png_chunk(b"zTXt", b"Notes\0\0" + text), ""),
        "long XMP": (png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP + b" " * 2_000_000)), ""),
        "long profile": (png_chunk(b"iCCP", b"big\0\0" + zlib.compress(srgb() + bytes(2_000_000))), ""),
        "checksum of a profile": (broken(png_chunk(b"iCCP", b"x\0\0" + zlib.compress(srgb()))), "wrong checksum"),
        "checksum of a text": (broken(png_chunk(b"tEXt", b"Notes\0abc")), "wrong checksum"),
        "method of a profile": (png_chunk(b"iCCP", b"x\0\1" + b"abc"), "profile is damaged"),
    }


@pytest.mark.parametrize("kind", png_chunks())
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_png_is_not_lost_for_a_chunk_beside_its_pixels(kind: str, dtype: Any) -> None:
    chunk, warning = png_chunks()[kind]
    photo = read_photo(png(picture(3, dtype), 2, chunk))
    np.testing.assert_array_equal(photo.pixels, picture(3, dtype))
    assert bool(photo.warnings) == bool(warning)
    assert warning in "".join(photo.warnings)


@pytest.mark.parametrize("unit", [2, 3])
@pytest.mark.parametrize("suffix", [".tif", ".png", ".bmp", ".jpg", ".jp2"])
def test_a_resolution_that_no_format_holds_is_left_out(tmp_path: Path, unit: int, suffix: str) -> None:
    data = tiff(RGB, photometric="rgb", resolution=((4294967295, 1), (4294967295, 1)), resolutionunit=unit)
    photo = read_photo(data)
    assert photo.metadata.dpi is None
    write_photo(photo, tmp_path / f"out{suffix}")
    assert cv2.imread(str(tmp_path / f"out{suffix}")) is not None


# --- JPEG 2000 as small as its source --------------------------------------------------------------------------------


def decibels(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, ((one.astype(float) - other) ** 2).mean())))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_lossy_jpeg2000_keeps_as_much_as_its_size_allows(tmp_path: Path, channels: int) -> None:
    rng = np.random.default_rng(0)
    small = Image.fromarray(picture(channels)).resize((640, 480), Image.Resampling.BICUBIC)
    array = np.asarray(small) + rng.normal(0, 6, (480, 640) + (3,) * (channels == 3))
    image = Image.fromarray(array.clip(0, 255).astype(np.uint8))
    lossy = saved(
        image, "JPEG2000", irreversible=True, mct=int(channels == 3), quality_mode="rates", quality_layers=[15]
    )
    photo = read_photo(lossy)
    write_photo(photo, tmp_path / "out.jp2")
    assert (tmp_path / "out.jp2").stat().st_size < 1.1 * len(lossy)
    before = np.asarray(Image.open(BytesIO(lossy)))
    ours = decibels(np.asarray(Image.open(tmp_path / "out.jp2")), before)
    # The best that an encoder told all can do with as many bytes.
    options: dict[str, Any] = {"irreversible": True, "mct": int(channels == 3), "quality_mode": "rates"}
    others = [saved(Image.fromarray(before), "JPEG2000", **options, quality_layers=[rate]) for rate in (14.7, 15, 15.3)]
    fitting = [other for other in others if len(other) <= (tmp_path / "out.jp2").stat().st_size]
    assert ours > max(decibels(np.asarray(Image.open(BytesIO(other))), before) for other in fitting) - 1
    assert ours > 45


def test_deep_colours_are_coded_as_well_where_the_library_is_there(tmp_path: Path) -> None:
    codec = pytest.importorskip("imagecodecs")
    smooth = np.asarray(Image.fromarray(RGB).resize((320, 240), Image.Resampling.BICUBIC)).astype(float)
    noisy = smooth + np.random.default_rng(0).normal(0, 4, smooth.shape)
    array = np.rint(noisy.clip(0, 255) * 257).astype(np.uint16)
    source = bytes(codec.jpeg2k_encode(array, 50, reversible=False, mct=True, codecformat="jp2"))
    photo = read_photo(source)
    write_photo(photo, tmp_path / "out.jp2")
    size = (tmp_path / "out.jp2").stat().st_size
    assert 0.97 * len(source) < size < 1.02 * len(source)

    def off(pixels: Any) -> float:
        return float(10 * np.log10(65535**2 / max(1e-9, ((pixels.astype(float) - photo.pixels) ** 2).mean())))

    # The best that the best encoder at hand does with no more bytes.
    others = [codec.jpeg2k_encode(photo.pixels, level, reversible=False, mct=True) for level in np.arange(46, 54, 0.1)]
    best = max(off(codec.jpeg2k_decode(other)) for other in others if len(other) <= size)
    ours = off(read_photo(tmp_path / "out.jp2").pixels)
    assert ours > max(best - 1, 50)


def test_deep_colours_lose_nothing_where_no_library_codes_them_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jpeg2000, "_imagecodecs", lambda: None)
    deep = np.asarray(Image.fromarray(RGB).resize((80, 60))).astype(np.uint16) * 257
    photo = Photo(deep, metadata=Metadata(format="JPEG2000", jpeg2000_ratio=10.0))
    write_photo(photo, tmp_path / "out.jp2")
    np.testing.assert_array_equal(read_photo(tmp_path / "out.jp2").pixels, deep)
    (line,) = not_held(photo, "JPEG2000")
    assert "written without loss, and larger" in line
    assert not not_held(replace(photo, metadata=Metadata(format="JPEG2000")), "JPEG2000")


def test_a_lossless_jpeg2000_is_no_larger_than_others_make_it(tmp_path: Path) -> None:
    big = np.asarray(Image.fromarray(RGB).resize((400, 300), Image.Resampling.BICUBIC))
    write_photo(Photo(big, metadata=Metadata(format="JPEG2000")), tmp_path / "out.jp2")
    assert (tmp_path / "out.jp2").stat().st_size < 1.02 * len(saved(Image.fromarray(big), "JPEG2000", mct=1)) + 100
    np.testing.assert_array_equal(read_photo(tmp_path / "out.jp2").pixels, big)


def test_maker_notes_that_a_tiff_cannot_hold_are_missed() -> None:
    exif = make_exif()
    exif.get_ifd(0x8769)[0x927C] = b"MAKER\0" + bytes(range(200))
    photo = read_photo(saved(Image.fromarray(RGB), "JPEG", exif=exif.tobytes()))
    assert not_held(photo, "TIFF") == ["TIFF has no place for the photo's maker's note in the EXIF data"]
    assert not not_held(photo, "JPEG")
