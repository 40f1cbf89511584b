"""TIFF: every page of a file, read by the library that reads its kind whole, and written strip by strip."""

from __future__ import annotations

import importlib.util
import struct
import zlib
from collections.abc import Iterable
from fractions import Fraction
from io import BytesIO
from typing import BinaryIO, Literal, cast

import cv2
import numpy as np
import tifffile
from PIL import Image
from PIL.JpegImagePlugin import zigzag_index
from PIL.TiffImagePlugin import TiffImageFile

from oldphoto.errors import BadImageError
from oldphoto.files.colour import Pixels
from oldphoto.files.decoding import check_size, no_standard_error
from oldphoto.files.exif import Entry, Tags, Tiff, exif_of_tiff, pack_tags, swapped
from oldphoto.files.photo import DEFAULT_QUALITY, Metadata, Photo, channels, inks_of, samples_of, upright

NONE, LZW, JPEG, DEFLATE, PACKBITS = 1, 5, 7, 8, 32773
# What is written as it was found. All else becomes Deflate, which is as lossless.
_KEPT = (NONE, LZW, JPEG, DEFLATE, PACKBITS)
_DIFFERENCED = (LZW, DEFLATE)  # pay only where neighbours are taken from one another first


def page_offsets(tiff: Tiff) -> list[int]:
    """Where the directories of a file's pages lie: all of the chain but reduced copies of others.

    Raises BadImageError if the chain leads nowhere: what cannot be read would be missing from the output.
    """
    offsets: list[int] = []
    following, seen = tiff.first, set[int]()
    while following:
        if following in seen:
            raise BadImageError("is damaged: its pages go in a circle")
        seen.add(following)
        at = following
        try:
            directory, following = tiff.directory(at)
        except struct.error as error:
            raise BadImageError(f"is damaged or cut short: page {len(offsets) + 1} is missing") from error
        if not tiff.number(directory, 254) & 1:
            offsets.append(at)
    return offsets or [tiff.first]


def read_tiff(data: bytes, max_pixels: int | None, page: int = 0) -> Photo:
    """A page of a file, counted from 0."""
    tiff = Tiff(data)
    offsets = page_offsets(tiff)
    at = offsets[page]
    directory, _ = tiff.directory(at)
    check_size(tiff.number(directory, 256), tiff.number(directory, 257), max_pixels)
    for places, counts in ((273, 279), (324, 325)):  # strips, tiles
        for place, count in zip(tiff.numbers(directory, places), tiff.numbers(directory, counts), strict=False):
            if place + count > len(data):
                raise BadImageError(f"is cut short: {len(data)} bytes, its pixels go on to byte {place + count}")
    orientation = tiff.number(directory, 274, 1)
    if at != tiff.first or (orientation != 1 and 274 in directory):
        changed = bytearray(data)
        # The page becomes the file's first, and upright: Pillow and OpenCV turn some TIFF files, and others not.
        struct.pack_into(tiff.order + ("Q" if tiff.big else "I"), changed, 8 if tiff.big else 4, at)
        if 274 in directory:
            struct.pack_into(tiff.order + "H", changed, directory[274].at, 1)
        data = bytes(changed)
    bits, kinds = set(tiff.numbers(directory, 258) or (1,)), set(tiff.numbers(directory, 339) or (1,))
    icc = tiff.value(directory[34675]) if 34675 in directory else None
    if bits == {16} and kinds == {1}:
        colours, alpha = _decode_16_bits(data, tiff, directory)
        mode = ("I;16" if colours.ndim == 2 else "RGB;16") if alpha is None else "16 bits with alpha"
    elif max(bits) <= 8 and kinds == {1}:
        image = TiffImageFile(BytesIO(data))
        with no_standard_error():
            image.load()
        mode = image.mode
        colours, alpha, icc = channels(image)
    else:
        kind = {1: "", 2: "signed ", 3: "floating-point "}.get(max(kinds), "unusual ")
        text = f"has {kind}samples of {', '.join(str(number) for number in sorted(bits))} bits"
        raise BadImageError(text, "convert it to 8 or 16 bits a sample")
    compression = {6: JPEG, 32946: DEFLATE}.get(found := tiff.number(directory, 259, NONE), found)
    sampling = {(1, 1): 0, (2, 1): 1}.get(cast("tuple[int, int]", tiff.numbers(directory, 530)), 2)
    metadata = Metadata(
        format="TIFF",
        mode=mode,
        icc=icc,
        exif=exif_of_tiff(tiff, directory, turned=orientation >= 5),
        xmp=tiff.value(directory[700]) if 700 in directory else None,
        # Raw bytes: writers give IPTC all kinds of types, LONG among them.
        iptc=tiff.value(directory[33723]) if 33723 in directory else None,
        dpi=tiff.dpi(directory),
        jpeg_tables=_jpeg_tables(tiff, directory) if compression == JPEG else (),
        jpeg_subsampling=sampling if compression == JPEG and tiff.number(directory, 262) == 6 else None,
        tiff_compression=compression if compression in _KEPT else DEFLATE,
        pages=len(offsets),
    )
    return upright(colours, alpha, metadata, orientation)


def _jpeg_tables(tiff: Tiff, directory: dict[int, Entry]) -> tuple[tuple[int, ...], ...]:
    """The quantisation tables of JPEG strips; none if they are of an odd kind."""
    strips = tiff.numbers(directory, 273) or tiff.numbers(directory, 324)
    stream = tiff.value(directory[347]) if 347 in directory else bytes(tiff.data[strips[0] : strips[0] + 2048])
    tables: dict[int, tuple[int, ...]] = {}
    at = 2
    while stream[at : at + 1] == b"\xff" and stream[at + 1 : at + 2] not in (b"\xda", b"\xd9", b""):
        (length,) = struct.unpack_from(">H", stream, at + 2)
        segment = stream[at + 4 : at + 2 + length] if stream[at + 1] == 0xDB else b""
        while len(segment) >= 65 and segment[0] < 4:  # 8-bit tables
            tables[segment[0]], segment = tuple(segment[1 + k] for k in zigzag_index), segment[65:]
        at += 2 + length
    return tuple(table for _, table in sorted(tables.items()))


def _decode_16_bits(data: bytes, tiff: Tiff, page: dict[int, Entry]) -> tuple[Pixels, Pixels | None]:
    """16-bit grey or RGB of a file's first page, straight from the file, with its alpha if there is one."""
    photometric, count = tiff.number(page, 262, 1), tiff.number(page, 277, 1)
    colours_count = {0: 1, 1: 1, 2: 3}.get(photometric)
    volume = tiff.number(page, 32997, 1) > 1  # ImageDepth
    if colours_count is None or not colours_count <= count <= 16 or volume:
        text = f"has 16-bit samples that are neither grey nor RGB (photometric {photometric}, {count} samples)"
        raise BadImageError(text, "convert it to RGB")
    compression = tiff.number(page, 259, 1)
    if compression in (1, 8, 32773, 32946) or importlib.util.find_spec("imagecodecs") is not None:
        with tifffile.TiffFile(BytesIO(data)) as file:
            first = file.pages.first
            samples = np.asarray(first.asarray())
            if count > 1 and first.planarconfig == 2:
                samples = np.moveaxis(samples, 0, -1)
    else:
        # Without imagecodecs tifffile knows no LZW; OpenCV does, but sees planes and grey with alpha wrongly.
        alone = tiff.number(page, 284, 1) == 1 and count in (1, 3, 4)
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if alone else None
        if decoded is None:
            text = f"is damaged or of a rare kind (TIFF compression {compression}, {count} samples of 16 bits)"
            raise BadImageError(text, "if it is whole, pip install 'oldphoto[archive]' or save it uncompressed")
        samples = decoded
        if samples.ndim == 3:
            samples = samples[..., [2, 1, 0, *range(3, samples.shape[2])]]
    height, width = tiff.number(page, 257), tiff.number(page, 256)
    if samples.shape != ((height, width) if count == 1 else (height, width, count)) or samples.dtype.itemsize != 2:
        raise BadImageError(f"is damaged: decoded to {samples.shape} {samples.dtype}")
    samples = samples.astype(np.uint16, copy=False)
    extra = tiff.numbers(page, 338)
    alpha = samples[..., colours_count] if count > colours_count and extra and extra[0] in (1, 2) else None
    colours = samples if count == 1 else samples[..., 0] if colours_count == 1 else samples[..., :3]
    if photometric == 0:
        colours = np.uint16(65535) - colours
    if alpha is not None and extra[0] == 1:
        divisor = np.maximum(alpha, 1).astype(np.float64)
        straight = colours * (65535 / (divisor if colours.ndim == 2 else divisor[..., None]))
        colours = np.rint(straight).clip(0, 65535).astype(np.uint16)
    return colours, alpha


def write_tiff(pages: Iterable[Photo], handle: BinaryIO, quality: int | None, *, big: bool | None = None) -> None:
    """Write the pages in turn; none is asked for before the one before it is written.

    quality: of JPEG-compressed pages. big: whether as BigTIFF; None decides by the first page's size and page count.
    """
    order, link = "", 0
    for page in pages:
        tags, tag_order = _describing_tags(page)
        if not order:
            order = tag_order or "<"
            if big is None:
                # Half of what offsets of 32 bits reach, since later pages may be larger.
                big = page.pixels.nbytes * page.metadata.pages > 1 << 31
            mark = b"II" if order == "<" else b"MM"
            handle.write(mark + (struct.pack(order + "HHHQ", 43, 8, 0, 0) if big else struct.pack(order + "HI", 42, 0)))
            link = 8 if big else 4
        elif tag_order not in ("", order):
            tags = swapped(tags)
        tags = _storing_tags(page, handle, order, quality, big=bool(big)) | tags
        at = (handle.tell() + 7) // 8 * 8
        handle.write(b"\0" * (at - handle.tell()) + pack_tags(tags, at, order, bool(big)))
        end = handle.tell()
        handle.seek(link)
        handle.write(struct.pack(order + ("Q" if big else "I"), at))
        handle.seek(end)
        link = at + (8 + 20 * len(tags) if big else 2 + 12 * len(tags))


def _describing_tags(photo: Photo) -> tuple[Tags, str]:
    """What the photo's metadata become in its directory, and the byte order they are in; "" if they have none."""
    metadata = photo.metadata
    order, tags = "", Tags()
    if metadata.exif is not None:
        try:
            block = Tiff(metadata.exif)
            order, tags = block.order, block.describing_tags(block.directory(block.first)[0])
        except (struct.error, BadImageError):
            tags = {}  # a block that cannot be read cannot be taken apart either
    for code, kind, value in ((700, 1, metadata.xmp), (33723, 7, metadata.iptc), (34675, 7, metadata.icc)):
        if value is not None:
            tags[code] = (kind, len(value), value)
    return tags, order


def _storing_tags(photo: Photo, handle: BinaryIO, order: str, quality: int | None, *, big: bool) -> Tags:
    """Write a photo's strips; what its directory has to say of them."""
    metadata = photo.metadata
    inks = inks_of(photo)
    count = 4 if inks is not None else (1 if photo.grey else 3) + (photo.alpha is not None)
    compression = metadata.tiff_compression
    if compression == JPEG and (photo.depth == 16 or photo.alpha is not None or inks is not None):
        compression = DEFLATE
    row_bytes = photo.width * count * photo.depth // 8
    rows = min(max(1, (1 << 18) // row_bytes), photo.height)
    if compression == JPEG:
        rows = -(-rows // 16) * 16  # whole blocks
    offsets, sizes = [], []
    for top in range(0, photo.height, rows):
        samples = samples_of(photo, slice(top, top + rows)) if inks is None else inks[top : top + rows]
        strip = _packed(samples, compression, order, metadata, quality)
        offsets.append(handle.tell())
        sizes.append(len(strip))
        handle.write(strip + b"\0" * (len(strip) % 2))

    letters = {3: "H", 4: "I", 16: "Q"}

    def numbers(kind: int, *values: int) -> tuple[int, int, bytes]:
        return kind, len(values), struct.pack(f"{order}{len(values)}{letters[kind]}", *values)

    def fractions(*values: float) -> tuple[int, int, bytes]:
        pairs = [Fraction(value).limit_denominator(10_000).as_integer_ratio() for value in values]
        return 5, len(pairs), b"".join(struct.pack(order + "II", *pair) for pair in pairs)

    place = 16 if big else 4
    tags: Tags = {
        254: numbers(4, 2 if metadata.pages > 1 else 0),
        256: numbers(4, photo.width),
        257: numbers(4, photo.height),
        258: numbers(3, *[photo.depth] * count),
        259: numbers(3, compression),
        262: numbers(3, 5 if inks is not None else 1 if photo.grey else 6 if compression == JPEG else 2),
        273: numbers(place, *offsets),
        277: numbers(3, count),
        278: numbers(4, rows),
        279: numbers(place, *sizes),
        284: numbers(3, 1),
    }
    if metadata.dpi is not None:
        tags |= {282: fractions(metadata.dpi[0]), 283: fractions(metadata.dpi[1]), 296: numbers(3, 2)}
    if compression in _DIFFERENCED:
        tags[317] = numbers(3, 2)
    if photo.alpha is not None:
        tags[338] = numbers(3, 2)
    if compression == JPEG and not photo.grey:
        tags[530] = numbers(3, *_SAMPLINGS[metadata.jpeg_subsampling or 0])
        tags[532] = fractions(0, 255, 128, 255, 128, 255)
    return tags


_SAMPLINGS = {0: (1, 1), 1: (2, 1), 2: (2, 2)}


def _packed(samples: Pixels, compression: int, order: str, metadata: Metadata, quality: int | None) -> bytes:
    """Rows (h, W, C) as one strip."""
    if compression == JPEG:
        image = Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples)
        return _jpeg_strip(image, metadata, quality)
    if compression in _DIFFERENCED:
        differences = samples.copy()
        differences[:, 1:] -= samples[:, :-1]
        samples = differences
    rows = np.ascontiguousarray(samples, dtype=samples.dtype.newbyteorder(cast("Literal['<', '>']", order)))
    if compression == NONE:
        return rows.tobytes()
    if compression == DEFLATE:
        return zlib.compress(rows.data)
    # By the libtiff within Pillow: to it the bytes are a grey picture.
    content = BytesIO()
    grey = Image.fromarray(rows.view(np.uint8).reshape(len(rows), -1))
    grey.save(
        content, "TIFF", compression={LZW: "tiff_lzw", PACKBITS: "packbits"}[compression], tiffinfo={278: len(rows)}
    )
    written = Tiff(content.getvalue())
    directory, _ = written.directory(written.first)
    (start,), (size,) = written.numbers(directory, 273), written.numbers(directory, 279)
    return content.getvalue()[start : start + size]


def _jpeg_strip(image: Image.Image, metadata: Metadata, quality: int | None) -> bytes:
    content = BytesIO()
    if quality is None and metadata.jpeg_tables:
        image.save(
            content,
            "JPEG",
            qtables=[list(table) for table in metadata.jpeg_tables],
            subsampling=metadata.jpeg_subsampling or 0,
        )
    else:
        image.save(content, "JPEG", quality=quality or DEFAULT_QUALITY, subsampling=metadata.jpeg_subsampling or 0)
    return content.getvalue()
