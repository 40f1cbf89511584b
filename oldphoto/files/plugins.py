"""JPEG, by libjpeg; WebP and BMP, by the plug-ins of Pillow."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any, BinaryIO

from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.WebPImagePlugin import WebPImageFile

from oldphoto.errors import BadImageError
from oldphoto.files.decoding import Limits, animation
from oldphoto.files.exif import bytes_or_none, dpi_of_exif, exif_block, pair_or_none, settle_orientation
from oldphoto.files.jpeg import Segment, decoded, end_of, frame_of, quantisation, segments
from oldphoto.files.photo import DEFAULT_QUALITY, Metadata, Photo, channels, inks_of, iptc_and_rest, upright


def read_jpeg(data: bytes, limits: Limits) -> Photo:
    """A JPEG, with the tables it was compressed by."""
    found = segments(data)
    frame = frame_of(found)
    space = frame.space
    exif, orientation = settle_orientation(exif_block(_joined(found, 0xE1, b"Exif\0\0")))
    count = len(frame.sampling)
    # libjpeg holds all coefficients of a progressive picture; inks go through Pillow.
    more = {1: 3, 3: 3 * (orientation > 1), 4: 15}[count]
    limits.check(frame.width, frame.height, count + max(2 * count * frame.progressive, more) + 0.5)
    notes: list[str] = []
    samples = decoded(data, space, notes)
    if space == "CMYK":
        samples = 255 - samples  # as Photoshop writes it
    iptc, rest = iptc_and_rest(_joined(found, 0xED, b"Photoshop 3.0\0"))
    packets = [part.body[len(_XMP) :] for part in found if part.marker == 0xE1 and part.body.startswith(_XMP)]
    if len(packets) > 1:
        notes.append(f"{len(packets) - 1} of its {len(packets)} XMP packets left out")
    notes += _left_out(data, found)
    metadata = Metadata(
        format="JPEG",
        mode={"GRAY": "L"}.get(space, space),
        icc=_icc(found),
        exif=exif,
        xmp=packets[0] or None if packets else None,
        iptc=iptc,
        photoshop=rest,
        dpi=_jfif_dpi(found) or dpi_of_exif(exif_block(_joined(found, 0xE1, b"Exif\0\0"))),
        comments=tuple(part.body for part in found if part.marker == 0xFE and part.body),
        extended_xmp=tuple(
            data[part.start : part.end] for part in found if part.marker == 0xE1 and part.body.startswith(_MORE_XMP)
        ),
        jpeg_tables=quantisation(found),
        jpeg_subsampling=frame.subsampling,
    )
    return upright(samples, None, metadata, orientation, notes)


_XMP, _MORE_XMP = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
_ICC = b"ICC_PROFILE\0"


def _joined(found: list[Segment], marker: int, name: bytes) -> bytes:
    """What segments of this name hold; the name is taken off each of them."""
    return b"".join(
        part.body.removeprefix(name) for part in found if part.marker == marker and part.body.startswith(name)
    )


def _icc(found: list[Segment]) -> bytes | None:
    """The profile, whose parts are numbered from 1 in whatever order they come; None where parts are missing."""
    parts = [part.body[len(_ICC) :] for part in found if part.marker == 0xE2 and part.body.startswith(_ICC)]
    parts = sorted((part for part in parts if len(part) > 2), key=lambda part: part[0])
    whole = bool(parts) and [part[0] for part in parts] == list(range(1, parts[0][1] + 1))
    return b"".join(part[2:] for part in parts) if whole else None


def _jfif_dpi(found: list[Segment]) -> tuple[float, float] | None:
    body = next((part.body for part in found if part.marker == 0xE0 and part.body.startswith(b"JFIF\0")), b"")
    if len(body) < 12 or body[7] not in (1, 2):
        return None
    across, down = struct.unpack_from(">HH", body, 8)
    scale = 1 if body[7] == 1 else 2.54
    return pair_or_none((across * scale, down * scale))


def _left_out(data: bytes, found: list[Segment]) -> list[str]:
    """What a JPEG holds besides one picture and the metadata that are kept."""
    notes = []
    has_icc = any(part.marker == 0xE2 and part.body.startswith(_ICC) for part in found)
    if has_icc and _icc(found) is None:
        notes.append("parts of its colour profile are missing: it is left out")
    end = end_of(data, found[-1].end)
    after = len(data) - (end or len(data))
    if data[len(data) - after :].strip(b"\0\xff"):
        what = "a further picture, a gain map or a film" if b"\xff\xd8\xff" in data[end:] else "perhaps a film"
        notes.append(f"{after} bytes behind the picture ({what}) are left out")
    known = (b"Exif\0\0", _XMP, _MORE_XMP, _ICC, b"Photoshop 3.0\0", b"JFIF\0", b"JFXX\0", b"Adobe", b"MPF\0", b"Ducky")
    unknown = {
        part.marker - 0xE0
        for part in found
        if 0xE0 <= part.marker <= 0xEF and part.body.strip(b"\0") and not part.body.startswith(known)
    }
    if unknown:
        names = ", ".join(f"APP{number}" for number in sorted(unknown))
        notes.append(f"segments of a kind that is not kept are left out ({names})")
    return notes


def read_webp(data: bytes, limits: Limits) -> Photo:
    """A still WebP."""
    # Before the plug-in opens it: that alone takes memory for the whole canvas.
    kind, body = data[12:16], data[20:30]
    if kind == b"VP8X":
        width, height = int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    elif kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 6)
        width, height = width & 0x3FFF, height & 0x3FFF
    else:
        raise BadImageError("is damaged: no WebP picture in it")
    limits.check(width, height, 22)
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


def read_bmp(data: bytes, limits: Limits) -> Photo:
    """A BMP."""
    image = BmpImageFile(BytesIO(data))
    limits.check(*image.size, 9)
    image.load()
    colours, alpha, _ = channels(image)
    dpi = pair_or_none(image.info.get("dpi"))
    metadata = Metadata(format="BMP", mode=image.mode, icc=_bmp_profile(data), dpi=dpi)
    return upright(colours, alpha, metadata, 1)


def _bmp_profile(data: bytes) -> bytes | None:
    """The profile within a BMP whose header is of version 5."""
    if len(data) < 138 or data[14:18] != b"\x7c\0\0\0" or data[70:74] != b"DEBM":  # MBED, from behind
        return None
    start, size = struct.unpack_from("<II", data, 126)
    profile = data[14 + start : 14 + start + size]
    return profile if size and len(profile) == size else None


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


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


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
    resources = metadata.photoshop or b""
    if metadata.iptc is not None:
        resources += b"8BIM" + struct.pack(">HHI", 0x0404, 0, len(metadata.iptc)) + metadata.iptc
        resources += b"\0" * (len(metadata.iptc) % 2)
    extra = b"".join(metadata.extended_xmp)
    for at in range(0, len(resources), 65000):
        extra += _segment(0xED, b"Photoshop 3.0\0" + resources[at : at + 65000])
    extra += b"".join(_segment(0xFE, comment) for comment in metadata.comments)
    if extra:
        options["extra"] = extra
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
