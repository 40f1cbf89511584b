"""PGM and PPM: 8 bits by Pillow, 16 by hand, since Pillow has no 16-bit RGB."""

from __future__ import annotations

import re
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL.PpmImagePlugin import PpmImageFile

from oldphoto.errors import BadImageError
from oldphoto.files.colour import bands
from oldphoto.files.decoding import Limits
from oldphoto.files.photo import Metadata, Photo, channels, samples_of, upright

_PNM_HEADER = re.compile(rb"P([1-6])(?:\s|#[^\r\n]*[\r\n])+(\d+)(?:\s|#[^\r\n]*[\r\n])+(\d+)(?:\s|#[^\r\n]*[\r\n])")
_PNM_MAXIMUM = re.compile(rb"(?:\s|#[^\r\n]*[\r\n])*(\d+)\s")

_AT_ONCE = 1 << 18


def read_pnm(data: bytes, limits: Limits) -> Photo:
    """P1 to P6; samples of more than 8 bits become 16."""
    header = _PNM_HEADER.match(data)
    if header is None:
        raise BadImageError("is damaged: no PGM/PPM header")
    kind, width, height = (int(number) for number in header.groups())
    top = None if kind in (1, 4) else _PNM_MAXIMUM.match(data, header.end())
    maximum, count_each = 1 if top is None else int(top[1]), 3 if kind in (3, 6) else 1
    if maximum > 65535:
        raise BadImageError(f"has samples up to {maximum}, more than 16 bits")
    # Samples in words take a number each, before they are samples.
    limits.check(width, height, 9 + 4 * count_each * (kind < 4))
    if maximum < 256 or top is None:
        image = PpmImageFile(BytesIO(data))
        limits.check(*image.size, 0)
        image.load()
        colours, alpha, _ = channels(image)
        return upright(colours, alpha, Metadata(format="PPM", mode=image.mode), 1)
    count = width * height * count_each
    if kind in (2, 3):
        stored: NDArray[Any] = np.fromstring(data[top.end() :], np.uint32, count, sep=" ")
    else:
        stored = np.frombuffer(data, ">u2", min(count, (len(data) - top.end()) // 2), top.end())
    if stored.size != count:
        raise BadImageError(f"is damaged or cut short: {stored.size} of {count} samples")
    samples = np.empty(count, np.uint16)
    for at in range(0, count, _AT_ONCE):
        some = slice(at, at + _AT_ONCE)
        samples[some] = ((stored[some].astype(np.uint64) * 65535 + maximum // 2) // maximum).clip(0, 65535)
    colours = samples.reshape((height, width, 3) if count_each == 3 else (height, width))
    return upright(colours, None, Metadata(format="PPM", mode="RGB;16" if count_each == 3 else "I;16"), 1)


def write_pnm(photo: Photo, handle: BinaryIO, quality: int | None) -> None:
    """P5 or P6; there is no place for metadata."""
    top = (1 << photo.depth) - 1
    handle.write(f"P{5 if photo.grey else 6}\n{photo.width} {photo.height}\n{top}\n".encode())
    for rows in bands(photo.pixels):
        samples = samples_of(photo, rows)
        handle.write(np.ascontiguousarray(samples, dtype=samples.dtype.newbyteorder(">")).data)
