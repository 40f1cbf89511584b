"""A photo's file at another size: what lies beside its colours, and what its metadata say of size and resolution."""

from __future__ import annotations

import re
import struct
from dataclasses import replace
from typing import cast

import cv2
import numpy as np

from oldphoto.arrays import Pixels
from oldphoto.errors import BadImageError
from oldphoto.files.exif import Tiff
from oldphoto.files.photo import Metadata, Photo

_EXIF_POINTER = 0x8769
# Pixels per unit: of the main directory, and on the camera's focal plane. And pixels across and down.
_RESOLUTIONS = (282, 283, 0xA20E, 0xA20F)
_SIZES = (256, 257, 0xA002, 0xA003)
_SHORT, _LONG, _RATIONAL = 3, 4, 5
_MOST = 2**32 - 1
# What XMP says of the same, as an attribute or an element.
_XMP = re.compile(
    rb"((?:tiff:(?:XResolution|YResolution|ImageWidth|ImageLength)"
    rb"|exif:(?:PixelXDimension|PixelYDimension|FocalPlaneXResolution|FocalPlaneYResolution))"
    rb"(?:\s*=\s*[\"']|\s*>\s*))(\d+)"
)


def enlarged(photo: Photo, pixels: Pixels, factor: int) -> Photo:
    """A photo that is `factor` times as large: these pixels; its alpha and inks enlarged smoothly; its metadata true.

    pixels: (factor H, factor W, 3) of the photo's dtype.
    """
    alpha = None if photo.alpha is None else smoothly(photo.alpha, factor)
    inks = None if photo.inks is None else np.asarray(smoothly(photo.inks, factor), np.uint8)
    return replace(photo, pixels=pixels, alpha=alpha, inks=inks, metadata=_metadata(photo.metadata, factor))


def smoothly(pixels: Pixels, factor: int) -> Pixels:
    """(H, W) or (H, W, C) -> `factor` times as many rows and columns, bicubic."""
    height, width = pixels.shape[:2]
    made = cv2.resize(pixels, (factor * width, factor * height), interpolation=cv2.INTER_CUBIC)
    return cast("Pixels", made)


def _metadata(metadata: Metadata, factor: int) -> Metadata:
    dpi = None if metadata.dpi is None else (factor * metadata.dpi[0], factor * metadata.dpi[1])
    return replace(metadata, dpi=dpi, exif=_exif(metadata.exif, factor), xmp=_xmp(metadata.xmp, factor))


def _exif(block: bytes | None, factor: int) -> bytes | None:
    """The block with its resolutions and sizes multiplied, in place; one that cannot be read stays as it is."""
    if block is None:
        return None
    data = bytearray(block)
    try:
        tiff = Tiff(data)
        main, _ = tiff.directory(tiff.first)
        for directory in (main, tiff.child(main, _EXIF_POINTER)):
            for code, entry in directory.items():
                if code in _RESOLUTIONS and entry.type == _RATIONAL and entry.count == 1:
                    above, below = struct.unpack_from(tiff.order + "II", data, entry.at)
                    fits = above * factor <= _MOST
                    fraction = (above * factor, below) if fits else (above, below // factor)
                    struct.pack_into(tiff.order + "II", data, entry.at, *fraction)
                elif code in _SIZES and entry.type in (_SHORT, _LONG) and entry.count == 1:
                    number = min(_MOST, factor * tiff.number(directory, code))
                    struct.pack_into(tiff.order + "HII", data, entry.field, _LONG, 1, number)
    except (struct.error, BadImageError):
        return block
    return bytes(data)


def _xmp(packet: bytes | None, factor: int) -> bytes | None:
    if packet is None:
        return None
    return _XMP.sub(lambda found: found[1] + str(factor * int(found[2])).encode(), packet)
