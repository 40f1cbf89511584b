"""JPEG streams, of files and of TIFF strips: segments by hand, pixels by libjpeg, whose warnings are heard."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL.JpegImagePlugin import zigzag_index

from oldphoto.errors import BadImageError

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
_SOS, _DQT, _APP14 = 0xDA, 0xDB, 0xEE
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# What libjpeg decodes: baseline, extended and progressive, by Huffman or arithmetic codes.
_DECODED, _PROGRESSIVE = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA), (0xC2, 0xCA)
_WITHOUT_LENGTH = frozenset({0x01, 0xD8, *range(0xD0, 0xD8)})
# In entropy-coded data: neither a stuffed byte nor a restart mark nor filling.
_MARK = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_MOST_SEGMENTS = 1 << 16
_MOST_SCANS = 100  # each takes its time for every pixel; encoders write some ten
_CONVERT = "convert it to 8- or 16-bit grey or RGB, for example with ImageMagick"

Space = Literal["GRAY", "RGB", "CMYK"]


@dataclass(frozen=True)
class Segment:
    """A marker's number, its content, and where the marker and what follows it lie in the stream."""

    marker: int
    body: bytes
    start: int
    end: int


@dataclass(frozen=True)
class Frame:
    """What a JPEG's frame header says. sampling: across and down, of each component."""

    width: int
    height: int
    sampling: tuple[tuple[int, int], ...]
    progressive: bool

    @property
    def space(self) -> Space:
        """What its components are decoded to."""
        found: dict[int, Space] = {1: "GRAY", 3: "RGB", 4: "CMYK"}
        if len(self.sampling) not in found:
            raise BadImageError(f"is a JPEG of {len(self.sampling)} channels, which is not read here", _CONVERT)
        return found[len(self.sampling)]

    @property
    def subsampling(self) -> int | None:
        """In Pillow's numbers 0 to 2; None for others."""
        known: dict[tuple[tuple[int, int], ...], int] = {
            ((1, 1), (1, 1), (1, 1)): 0,
            ((2, 1), (1, 1), (1, 1)): 1,
            ((2, 2), (1, 1), (1, 1)): 2,
        }
        return known.get(self.sampling)


def segments(data: bytes) -> list[Segment]:
    """The segments from the start mark to the first scan's header, which is the last of them if it is there."""
    return list(_segments(data))


def _segments(data: bytes) -> Iterator[Segment]:
    at = 2
    for _ in range(_MOST_SEGMENTS):
        at = data.find(b"\xff", at)
        if at < 0 or at + 2 > len(data):
            return
        marker = data[at + 1]
        if marker in (0xFF, 0x00):
            at += 1
            continue
        if marker in _WITHOUT_LENGTH:
            at += 2
            continue
        if marker == 0xD9:
            return
        (length,) = struct.unpack_from(">H", data, at + 2)
        end = at + 2 + max(2, length)
        yield Segment(marker, data[at + 4 : end], at, end)
        if marker == _SOS:
            return
        at = end
    raise BadImageError(f"is damaged: more than {_MOST_SEGMENTS} segments before its pixels")


def end_of(data: bytes, scan: int) -> int | None:
    """Where a stream's end mark ends; None where it has none. scan: where the first scan's header ends."""
    at, scans = scan, 1
    while (found := _MARK.search(data, at)) is not None:
        marker = data[found.start() + 1]
        if marker == 0xD9:
            return found.end()
        scans += marker == _SOS
        if scans > _MOST_SCANS:
            raise BadImageError(f"has more than {_MOST_SCANS} scans", "save it anew, if you trust it")
        if marker in _WITHOUT_LENGTH or found.end() + 2 > len(data):
            at = found.end()
        else:
            at = found.end() + max(2, int.from_bytes(data[found.end() : found.end() + 2]))
    return None


def frame_of(found: list[Segment]) -> Frame:
    """The frame header among a stream's segments; BadImageError if there is none or of a kind that is not decoded."""
    for segment in found:
        if segment.marker == 0xF7:
            raise BadImageError("is a JPEG-LS picture, which is not read here", _CONVERT)
        if segment.marker in _SOF:
            precision, height, width, count = struct.unpack_from(">BHHB", segment.body)
            if segment.marker not in _DECODED:
                kind = "lossless" if segment.marker in (0xC3, 0xCB) else "hierarchical"
                raise BadImageError(f"is a {kind} JPEG, which is not read here", _CONVERT)
            if precision != 8:
                raise BadImageError(f"is a JPEG of {precision} bits a sample, which is not read here", _CONVERT)
            parts = segment.body[6 : 6 + 3 * count]
            if len(parts) < 3 * count:
                raise BadImageError("is damaged: its frame header ends too early")
            sampling = tuple((pair >> 4, pair & 15) for pair in parts[1::3])
            return Frame(width, height, sampling, segment.marker in _PROGRESSIVE)
    raise BadImageError("is damaged or cut short: no JPEG frame in it")


def frame_size(stream: bytes) -> tuple[int, int]:
    """(width, height) of a stream; errors as in frame_of."""
    frame = frame_of(segments(stream))
    return frame.width, frame.height


def quantisation(found: list[Segment]) -> tuple[tuple[int, ...], ...]:
    """The quantisation tables of a stream, each of 64 numbers row by row; none if they are of an odd kind."""
    tables: dict[int, tuple[int, ...]] = {}
    for segment in found:
        body = segment.body if segment.marker == _DQT else b""
        while body:
            wide, number = body[0] >> 4, body[0] & 15
            size = 64 << wide
            if wide > 1 or number > 3 or len(body) < 1 + size:
                return ()
            values = struct.unpack_from(f">64{'H' if wide else 'B'}", body, 1)
            tables[number] = tuple(values[k] for k in zigzag_index)
            body = body[1 + size :]
    return tuple(table for _, table in sorted(tables.items()))


def with_transform(stream: bytes, tables: bytes, ycbcr: bool | None) -> bytes:
    """A TIFF's strip with its shared tables, and with an Adobe mark that says whether its three channels are YCbCr.

    By itself a strip leaves this to be guessed from its channels' names. ycbcr: None for other channels.
    """
    if not stream.startswith(SOI):
        raise BadImageError("is damaged: a strip or tile that is no JPEG")
    shared = b"".join(tables[part.start : part.end] for part in segments(tables))
    mark = b"" if ycbcr is None else b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([ycbcr])
    own, at = b"", 2
    for part in segments(stream):
        if part.marker != _APP14 and not 0xE0 <= part.marker <= 0xEF:
            own += stream[part.start : part.end]
        at = part.end
    return SOI + mark + shared + own + stream[at:]


def decoded(stream: bytes, space: Space, notes: list[str]) -> NDArray[np.uint8]:
    """(H, W) or (H, W, C) of a stream. What libjpeg warns of is added to `notes`; BadImageError if it gives up.

    The size is to be checked before: this takes all the memory that the frame header says.
    """
    frame = frame_of(found := segments(stream))
    if found[-1].marker == _SOS and end_of(stream, found[-1].end) is None:
        stream += EOI  # the end mark may be all that is missing
        cut = True
    else:
        cut = False
    options: dict[str, Any] = {"colorspace": space}
    try:
        samples = simplejpeg.decode_jpeg(stream, **options, strict=True)
    except ValueError as error:
        reason = str(error).strip().split("\n")[0]
        if cut:
            raise BadImageError(f"is damaged or cut short: {reason}") from error
        samples = simplejpeg.decode_jpeg(stream, **options, strict=False)
        if (note := f"its JPEG data are damaged, and some of its pixels are likely wrong: {reason}") not in notes:
            notes.append(note)
    else:
        if cut and (note := "its JPEG data lack the end mark; all pixels are there") not in notes:
            notes.append(note)
    if samples.shape[:2] != (frame.height, frame.width):
        raise BadImageError(f"is damaged: {samples.shape[1]} x {samples.shape[0]} pixels were decoded")
    grey: NDArray[np.uint8] = samples[..., 0] if space == "GRAY" else samples
    return grey
