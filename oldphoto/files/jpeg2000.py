"""JPEG 2000: boxes by hand, pixels by OpenJPEG, which Pillow has for 8 bits and OpenCV for 16."""

from __future__ import annotations

import importlib
import struct
from collections.abc import Iterator
from fractions import Fraction
from io import BytesIO
from typing import Any, BinaryIO, cast

import cv2
import numpy as np
from PIL import Image
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from oldphoto.errors import BadImageError
from oldphoto.files.colour import Pixels
from oldphoto.files.decoding import Limits
from oldphoto.files.exif import exif_block, pair_or_none, settle_orientation
from oldphoto.files.photo import Metadata, Photo, channels, samples_of, upright

CODESTREAM = b"\xff\x4f\xff\x51"
_SIGNATURE = b"\r\n\x87\n"
_XMP = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
_IPTC = bytes.fromhex("33c7a4d2b81d4723a0baf1a3e097ad38")
_EXIF = b"JpgTiffExif->JP2"
_KEPT = (
    *(b"jP  ", b"ftyp", b"jp2h", b"jp2c", b"rreq", b"free"),
    *(b"uuid" + name for name in (_XMP, _IPTC, _EXIF)),
)


def read_jpeg2000(data: bytes, limits: Limits) -> Photo:
    """A JP2 file or a bare codestream, of up to 8 or of 16 bits."""
    found: dict[bytes, bytes] = {}
    notes: list[str] = []
    for name, content in [(b"jp2c", data)] if data.startswith(CODESTREAM) else _boxes(data):
        if name in found and name in (b"jp2c", b"jp2h"):
            notes.append("it holds more than one picture: the first alone is taken")
        found.setdefault(name, content)
    if dropped := sorted({name[:4].decode("latin-1") for name in found if name not in _KEPT}):
        notes.append(f"boxes of a kind that is not kept are left out ({', '.join(map(repr, dropped))})")
    stream = found.get(b"jp2c", b"")
    if not stream.startswith(CODESTREAM):
        raise BadImageError("is damaged: no JPEG 2000 codestream")
    right, bottom, left, top = struct.unpack_from(">4I", stream, 8)
    (count,) = struct.unpack_from(">H", stream, 40)
    parts = stream[42 : 42 + 3 * count]
    depths = {(depth & 0x7F) + 1 for depth in parts[::3]}
    width, height = right - left, bottom - top
    if not 1 <= count <= 4 or len(parts) < 3 * count:
        raise BadImageError(f"has {count} channels, which is not read here", "convert it to 8- or 16-bit grey or RGB")
    deep = max(depths) > 8
    # OpenJPEG works in 32 bits; then come the library's own picture and ours.
    limits.check(width, height, (8 if deep else 6) * count + 6)
    header: dict[bytes, bytes] = {}
    for name, content in _boxes(found.get(b"jp2h", b"")):
        header.setdefault(name, content)
    _check_header(header, width, height, count, boxed=b"jp2h" in found)
    colour = header.get(b"colr", b"")
    icc = colour[3:] if colour[:1] in (b"\2", b"\3") else None
    # The decoders see the codestream that was looked at, and a header that says the same.
    data = stream if b"jp2h" not in found else _file(stream, _contents(header))
    if not deep:
        image = Jpeg2KImageFile(BytesIO(data))
        limits.check(*image.size, 0)
        image.load()
        colours, alpha, _ = channels(image)
        mode = image.mode
    else:
        colours, alpha = _decode_16_bits(data, depths, count, colour, header.get(b"cdef"))
        mode = "I;16" if colours.ndim == 2 else "RGB;16"
        if alpha is None and count == 4:
            notes.append("a channel beyond its colours is left out")
    exif, orientation = settle_orientation(exif_block(found.get(b"uuid" + _EXIF)))
    metadata = Metadata(
        format="JPEG2000",
        mode=mode,
        icc=icc,
        exif=exif,
        xmp=found.get(b"uuid" + _XMP),
        iptc=found.get(b"uuid" + _IPTC),
        dpi=_resolution(dict(_boxes(header.get(b"res ", b"")))),
        jpeg2000_ratio=_ratio(stream, (right - left) * (bottom - top) * count * (2 if max(depths) > 8 else 1)),
    )
    return upright(colours, alpha, metadata, orientation, notes)


def _check_header(header: dict[bytes, bytes], width: int, height: int, count: int, *, boxed: bool) -> None:
    """Raise unless the boxes say what the codestream says."""
    if not boxed:
        return
    if len(header.get(b"ihdr", b"")) != 14:
        raise BadImageError("is damaged: no JP2 header in it")
    down, across, channels = struct.unpack_from(">IIH", header[b"ihdr"])
    if (across, down, channels) != (width, height, count):
        text = f"its header says {across} x {down} and {channels} channels, its pixels {width} x {height} and {count}"
        raise BadImageError(f"is damaged: {text}")


def _contents(header: dict[bytes, bytes]) -> list[bytes]:
    # In the order that the standard asks for: ihdr first.
    names = (b"ihdr", b"bpcc", b"colr", b"pclr", b"cmap", b"cdef", b"res ")
    return [_box(name, header[name]) for name in names if name in header]


def _box(name: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), name) + body


def _file(stream: bytes, header: list[bytes], *more: bytes) -> bytes:
    """A JP2 file of a codestream."""
    return (
        _box(b"jP  ", _SIGNATURE)
        + _box(b"ftyp", b"jp2 ", bytes(4), b"jp2 ")
        + _box(b"jp2h", *header)
        + b"".join(more)
        + struct.pack(">I4s", 0, b"jp2c")  # up to the end
        + stream
    )


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of each box; of a uuid box the name is "uuid" and its uuid."""
    at = 0
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, start)
            start += 8
        end = at + length if length else len(data)
        if end < start:
            raise BadImageError(f"is damaged: a box of {length} bytes")
        if name == b"uuid":
            name += data[start : start + 16]
            start += 16
        yield name, data[start:end]
        at = end


def _decode_16_bits(
    data: bytes, depths: set[int], count: int, colour: bytes, roles: bytes | None
) -> tuple[Pixels, Pixels | None]:
    if depths != {16} or count not in (1, 3, 4) or colour[3:7] == struct.pack(">I", 18):
        text = f"has {count} channels of {', '.join(str(depth) for depth in sorted(depths))} bits"
        raise BadImageError(text, "convert it to 8- or 16-bit grey or RGB")
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint16:
        raise BadImageError("is damaged or cut short")
    samples = cast("Pixels", decoded)
    if samples.ndim == 2:
        return samples, None
    # (channel, role, what it belongs to): role 1 is straight opacity.
    opaque = roles is not None and any(
        struct.unpack_from(">HH", roles, at) == (3, 1) for at in range(2, len(roles) - 5, 6)
    )
    return samples[..., 2::-1], samples[..., 3] if count == 4 and opaque else None


def _resolution(boxes: dict[bytes, bytes]) -> tuple[float, float] | None:
    """Of the scan, else as it should be shown: dots per inch."""
    content = boxes.get(b"resc") or boxes.get(b"resd")
    if content is None or len(content) < 10:
        return None
    down, down_by, across, across_by, down_power, across_power = struct.unpack_from(">4H2b", content)
    metre = [Fraction(across, across_by or 1) * Fraction(10) ** across_power]
    metre.append(Fraction(down, down_by or 1) * Fraction(10) ** down_power)
    return pair_or_none([dots * Fraction(254, 10_000) for dots in metre])


def _ratio(stream: bytes, size: int) -> float | None:
    """How much smaller a codestream is than its pixels, if its wavelet is the lossy one."""
    at = 2
    while stream[at : at + 2] != b"\xff\x52":
        (length,) = struct.unpack_from(">H", stream, at + 2)
        at += 2 + length
    return size / len(stream) if stream[at + 13] == 0 else None


def bytes_to_write(count: int, photo: Photo) -> float:
    """The most memory that writing takes for each pixel of so many channels."""
    deep = photo.depth == 16
    if not _in_tiles(photo.width, photo.height, photo.metadata.jpeg2000_ratio, deep=deep and count > 1):
        return 17 * count
    return 2 + 5 * max(1, count)  # Pillow's picture, ours in its order, and the stream


def _in_tiles(width: int, height: int, ratio: float | None, *, deep: bool) -> bool:
    """Whether a photo is coded tile by tile: a large one, without loss. A lossy one has its bytes where its detail is,
    which tiles, all of one size, would take from it; 16-bit colours are coded by libraries that know no tiles."""
    return ratio is None and not deep and width * height > _TILE**2 * 4


# Pixels a side of a tile.
_TILE = 1024


def write_jpeg2000(photo: Photo, handle: BinaryIO, quality: int | None) -> None:
    """A JP2 file, lossless unless the source was lossy: then as many times smaller than its pixels as that."""
    metadata = photo.metadata
    samples = samples_of(photo, slice(None))
    count = samples.shape[2]
    stream = dict(_boxes(_encoded(samples, metadata.jpeg2000_ratio)))[b"jp2c"]
    if photo.icc is not None:
        colour = b"\2\0\0" + photo.icc
    else:
        colour = b"\1\0\0" + struct.pack(">I", 17 if photo.grey else 16)
    header = [
        _box(b"ihdr", struct.pack(">IIHBBBB", photo.height, photo.width, count, photo.depth - 1, 7, 0, 0)),
        _box(b"colr", colour),
    ]
    if photo.alpha is not None:
        roles = [(k, 0, k + 1) for k in range(count - 1)] + [(count - 1, 1, 0)]
        header.append(_box(b"cdef", struct.pack(">H", count), *(struct.pack(">HHH", *role) for role in roles)))
    if metadata.dpi is not None:
        across, down = (Fraction(dots).limit_denominator(200) for dots in metadata.dpi)
        # Dots a metre: by 254 and ten thousand, so that whole dots an inch stay whole.
        numbers = (down.numerator, 254 * down.denominator, across.numerator, 254 * across.denominator)
        if max(numbers) < 1 << 16:
            header.append(_box(b"res ", _box(b"resc", struct.pack(">4H2b", *numbers, 4, 4))))
    named = ((_EXIF, metadata.exif), (_XMP, metadata.xmp), (_IPTC, metadata.iptc))
    more = [_box(b"uuid", name, packet) for name, packet in named if packet is not None]
    handle.write(_file(stream, header, *more))


def _encoded(samples: Pixels, ratio: float | None) -> bytes:
    """A JP2 file of (H, W, C) samples: lossless, or `ratio` times smaller than they are.

    Colours are coded as luma and two differences, as every other writer does: without that a lossy file of the same
    size loses 5 to 27 dB more, and a lossless one is up to twice as large.
    """
    count, deep = samples.shape[2], samples.dtype == np.uint16
    if ratio is not None:
        # Encoders stay a little below the size that they are told, which is mostly a whole ratio: by the same one the
        # steps are the same again, and next to nothing is lost.
        whole = max(1, round(ratio))
        ratio = whole if abs(ratio / whole - 1) < 0.025 else ratio / 1.01
    if deep and count >= 3:
        codec = _imagecodecs()
        if codec is not None:
            return _encoded_deep(codec, samples, None if ratio is None else samples.nbytes / ratio)
        # OpenCV codes colours one by one, and by the lossless wavelet alone: smaller than that it would lose far more
        # than it must, 15 dB and more. See larger_than_its_source.
        order = samples[..., [2, 1, 0, 3][:count]]
        return cv2.imencode(".jp2", order, [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000])[1].tobytes()
    content = BytesIO()
    options: dict[str, Any] = {"mct": int(count >= 3)}
    if ratio is not None:
        options |= {"irreversible": True, "quality_mode": "rates", "quality_layers": [ratio]}
    if _in_tiles(samples.shape[1], samples.shape[0], ratio, deep=False):
        options["tile_size"] = (_TILE, _TILE)
    Image.fromarray(samples[..., 0] if count == 1 else samples).save(content, "JPEG2000", **options)
    return content.getvalue()


def larger_than_its_source(photo: Photo) -> str | None:
    """What to say of a lossy photo that is written without loss, since no library here codes it well; else None."""
    lossy_deep_colours = photo.metadata.jpeg2000_ratio is not None and photo.depth == 16 and not photo.grey
    if not lossy_deep_colours or _imagecodecs() is not None:
        return None
    return "16-bit colours are written without loss, and larger; pip install 'oldphoto[archive]' for small files"


def _imagecodecs() -> Any:
    """The library of the extra `archive`, or None: it codes 16-bit colours as luma and differences, too."""
    try:
        return importlib.import_module("imagecodecs")
    except ImportError:
        return None


def _encoded_deep(codec: Any, samples: Pixels, size: float | None) -> bytes:
    """A JP2 file of 16-bit colours by imagecodecs: lossless, or of about `size` bytes.

    The library is told decibels, not bytes: what it makes of them is looked at, and they are set anew.
    """
    options = {"mct": True, "codecformat": "jp2"}
    if size is None:
        return bytes(codec.jpeg2k_encode(samples, reversible=True, **options))
    made, quality = b"", 50.0
    for _ in range(9):
        found = bytes(codec.jpeg2k_encode(samples, quality, reversible=False, **options))
        if not made or len(made) < len(found) < 1.02 * size or 1.02 * size < len(made) > len(found):
            made = found
        # No smaller than the source was: by its own steps next to nothing is lost, a percent below them a lot.
        if size <= len(found) < 1.02 * size:
            break
        # A bit for each sample is worth 6 dB.
        quality = max(10.0, quality + 6.02 * 8 * (size - len(found)) / samples.size)
    return made
