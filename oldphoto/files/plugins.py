"""JPEG, WebP and BMP, by the plug-ins of Pillow."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any, BinaryIO

from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile, get_sampling
from PIL.WebPImagePlugin import WebPImageFile

from oldphoto.errors import BadImageError
from oldphoto.files.decoding import animation, check_size
from oldphoto.files.exif import bytes_or_none, dpi_of_exif, exif_block, pair_or_none, settle_orientation
from oldphoto.files.photo import DEFAULT_QUALITY, Metadata, Photo, channels, inks_of, upright


def read_jpeg(data: bytes, max_pixels: int | None) -> Photo:
    """A JPEG, with the tables it was compressed by."""
    image = JpegImageFile(BytesIO(data))
    check_size(*image.size, max_pixels)
    image.load()
    colours, alpha, icc = channels(image)
    exif, orientation = settle_orientation(exif_block(image.info.get("exif")))
    photoshop = image.info.get("photoshop")
    sampling = get_sampling(image)
    metadata = Metadata(
        format="JPEG",
        mode=image.mode,
        icc=icc,
        exif=exif,
        xmp=bytes_or_none(image.info.get("xmp")),
        iptc=bytes_or_none(photoshop.get(0x0404)) if isinstance(photoshop, dict) else None,
        dpi=pair_or_none(image.info.get("dpi")),
        comment=bytes_or_none(image.info.get("comment")),
        jpeg_tables=tuple(tuple(table) for _, table in sorted(image.quantization.items())),
        jpeg_subsampling=sampling if sampling in (0, 1, 2) else None,
    )
    return upright(colours, alpha, metadata, orientation)


def read_webp(data: bytes, max_pixels: int | None) -> Photo:
    """A still WebP."""
    # Before the plug-in opens it: that alone takes memory for the whole canvas.
    kind, body = data[12:16], data[20:30]
    if kind == b"VP8X":
        check_size(int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1, max_pixels)
    elif kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        check_size((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, max_pixels)
    elif kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 6)
        check_size(width & 0x3FFF, height & 0x3FFF, max_pixels)
    else:
        raise BadImageError("is damaged: no WebP picture in it")
    image = WebPImageFile(BytesIO(data))
    if image.n_frames > 1:
        raise animation()
    image.load()
    colours, alpha, icc = channels(image)
    block = exif_block(image.info.get("exif"))
    exif, orientation = settle_orientation(block)
    metadata = Metadata(
        format="WEBP",
        mode=image.mode,
        icc=icc,
        exif=exif,
        dpi=dpi_of_exif(block),  # the one place a WebP has for it
        xmp=bytes_or_none(image.info.get("xmp")),
        webp_lossless=kind == b"VP8L" or (kind == b"VP8X" and _has_riff_chunk(data, b"VP8L")),
    )
    return upright(colours, alpha, metadata, orientation)


def _has_riff_chunk(data: bytes, wanted: bytes) -> bool:
    at = 12
    while at + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, at)
        if name == wanted:
            return True
        at += 8 + length + length % 2
    return False


def read_bmp(data: bytes, max_pixels: int | None) -> Photo:
    """A BMP."""
    image = BmpImageFile(BytesIO(data))
    check_size(*image.size, max_pixels)
    image.load()
    colours, alpha, _ = channels(image)
    metadata = Metadata(format="BMP", mode=image.mode, dpi=pair_or_none(image.info.get("dpi")))
    return upright(colours, alpha, metadata, 1)


def _pillow_options(photo: Photo, *, three_channels: bool = False) -> dict[str, Any]:
    """Metadata as Pillow's writers of JPEG and WebP take it."""
    metadata = photo.metadata
    options: dict[str, Any] = {}
    # A grey profile does not fit three channels.
    if photo.icc is not None and not (three_channels and photo.icc[16:20] == b"GRAY"):
        options["icc_profile"] = photo.icc
    if metadata.xmp is not None:
        options["xmp"] = metadata.xmp
    return options


def _save(image: Image.Image, handle: BinaryIO, **options: Any) -> None:
    # Through memory: Pillow's own writing turns a full disk into "encoder error -2".
    content = BytesIO()
    image.save(content, **options)
    handle.write(content.getbuffer())


def write_jpeg(photo: Photo, handle: BinaryIO, quality: int | None) -> None:
    """By the source's own tables, or in the quality given."""
    metadata = photo.metadata
    options = _pillow_options(photo)
    if quality is None and metadata.jpeg_tables:
        options["qtables"] = [list(table) for table in metadata.jpeg_tables]
    else:
        options["quality"] = quality or DEFAULT_QUALITY
    if metadata.exif is not None:
        options["exif"] = b"Exif\0\0" + metadata.exif
    if metadata.dpi is not None:
        options["dpi"] = metadata.dpi
    if metadata.comment is not None:
        options["comment"] = metadata.comment
    if metadata.iptc is not None:
        records = b"Photoshop 3.0\0" + b"8BIM" + struct.pack(">HHI", 0x0404, 0, len(metadata.iptc)) + metadata.iptc
        records += b"\0" * (len(metadata.iptc) % 2)
        options["extra"] = b"\xff\xed" + struct.pack(">H", len(records) + 2) + records
    inks = inks_of(photo)
    image = photo.to_pillow() if inks is None else Image.frombytes("CMYK", inks.shape[1::-1], inks.tobytes())
    if inks is not None and metadata.icc is not None:
        options["icc_profile"] = metadata.icc
    # Neither optimised nor progressive: for these Pillow guesses a buffer's size, and fails on very noisy photos.
    _save(image, handle, format="JPEG", subsampling=metadata.jpeg_subsampling or 0, **options)


def write_webp(photo: Photo, handle: BinaryIO, quality: int | None) -> None:
    """Lossless if the source was and no quality is given."""
    options = _pillow_options(photo, three_channels=True)
    if photo.metadata.exif is not None:
        options["exif"] = photo.metadata.exif
    image = photo.to_pillow().convert("RGB" if photo.alpha is None else "RGBA")
    _save(
        image,
        handle,
        format="WEBP",
        lossless=quality is None and photo.metadata.webp_lossless,
        quality=quality or DEFAULT_QUALITY,
        exact=True,  # the colours under full transparency are pixels too
        **options,
    )


def write_bmp(photo: Photo, handle: BinaryIO, quality: int | None) -> None:
    """With the resolution; a BMP holds no other metadata."""
    options = {} if photo.metadata.dpi is None else {"dpi": photo.metadata.dpi}
    _save(photo.to_pillow(), handle, format="BMP", **options)
