"""Before and after, as pictures for people to look at: side by side in a file, or small enough for a page of many."""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import BytesIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageDraw, ImageFont

from oldphoto.files.image import read_photo, write_photo
from oldphoto.files.masks import read_mask
from oldphoto.files.photo import Photo

# Of a comparison's two pictures, in pixels: fine enough for a large screen, small enough to be sent.
COMPARISON_SIDE = 1600
LOOK_SIDE = 1280
# Below this a picture says nothing, and its bytes hardly shrink any more.
_LEAST_SIDE = 320
_LOOK_QUALITY, _LEAST_QUALITY = 80, 60

_PAPER = (250, 248, 244)
_INK = (74, 68, 62)
_REPAIRED = (255, 77, 61)


@dataclass(frozen=True)
class Look:
    """A photo before and after, small. All pictures are upright sRGB of one size, width x height pixels.

    before, after: WebP. mask: PNG, coloured where damage was repaired and clear elsewhere; None without a mask.
    """

    before: bytes
    after: bytes
    mask: bytes | None
    width: int
    height: int


def side_by_side(before: Photo, after: Photo) -> Image.Image:
    """Both states, labelled, as one 8-bit sRGB picture: left and right, or for a panorama above and below.

    Each has at most COMPARISON_SIDE pixels a side. Raises ValueError if `after` is neither as large as `before` nor a
    whole number of times larger.
    """
    pictures = _alike(before, after, COMPARISON_SIDE)
    width, height = pictures[0].size
    stacked = width > 2 * height
    text = max(13, round(max(width, height) / 45))
    margin, line = text, round(text * 2.2)
    font = ImageFont.load_default(text)
    step = (0, height + line + margin) if stacked else (width + margin, 0)
    sheet = Image.new("RGB", (2 * margin + width + step[0], margin + height + line + step[1]), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (label, picture) in enumerate(zip(("before", "after"), pictures, strict=True)):
        left, top = margin + number * step[0], margin + number * step[1]
        sheet.paste(picture, (left, top))
        draw.text((left + width / 2, top + height + line / 2), label, _INK, font, anchor="mm")
    return sheet


def write_comparison(before: Photo, after: Photo, path: str | os.PathLike[str]) -> None:
    """Write side_by_side as a JPEG, whole or not at all. Raises FileAccessError."""
    write_photo(Photo.from_pillow(side_by_side(before, after)), path, format="jpeg", quality=90)


def look_at(before: Photo, after: Photo, mask: NDArray[np.bool_] | None = None, *, room: int = 400_000) -> Look:
    """Both states and the (H, W) mask, small.

    room: bytes for all three together. The pictures get smaller until they fit, down to 320 pixels a side.
    Raises ValueError for sizes as side_by_side does.
    """
    side = min(LOOK_SIDE, max(after.width, after.height))
    pictures = _alike(before, after, side)
    quality = _LOOK_QUALITY
    while True:
        size = pictures[0].size
        encoded = [_webp(picture, quality) for picture in pictures]
        overlay = None if mask is None else _overlay(mask, size)
        used = sum(map(len, encoded)) + len(overlay or b"")
        if used <= room or side <= _LEAST_SIDE:
            return Look(encoded[0], encoded[1], overlay, *size)
        if quality > _LEAST_QUALITY:
            quality = _LEAST_QUALITY  # grain costs most, and is missed least
            continue
        # Bytes grow about with the area, but grain goes first: in steps, so as not to end far too small.
        side = max(_LEAST_SIDE, int(side * max(0.75, min(0.95, (room / used) ** 0.5))))
        for picture in pictures:
            picture.thumbnail((side, side), Image.Resampling.LANCZOS)


def look_at_files(
    before: str | os.PathLike[str],
    after: str | os.PathLike[str],
    mask: str | os.PathLike[str] | None = None,
    *,
    room: int = 400_000,
) -> Look:
    """look_at for files. Raises FileAccessError, BadImageError; ValueError for sizes as side_by_side does."""
    photo = read_photo(before)
    return look_at(
        photo, read_photo(after), None if mask is None else read_mask(mask, (photo.width, photo.height)), room=room
    )


def _alike(before: Photo, after: Photo, side: int) -> list[Image.Image]:
    """Both photos, at most `side` pixels a side and of one size."""
    factor = max(1, after.width // before.width)
    if (factor * before.width, factor * before.height) != (after.width, after.height):
        raise ValueError(f"before is {before.width} x {before.height}, after {after.width} x {after.height}")
    small, large = _shown(before, side), _shown(after, side)
    return [small if small.size == large.size else small.resize(large.size, Image.Resampling.BICUBIC), large]


def _shown(photo: Photo, side: int) -> Image.Image:
    """RGB in sRGB, at most `side` pixels a side, on white where the photo is clear."""
    picture = photo.to_pillow()
    picture.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    alpha = picture.getchannel("A") if picture.mode in ("LA", "RGBA") else None
    colours = _srgb(picture.convert("L" if picture.mode in ("L", "LA") else "RGB"), photo.metadata.icc)
    if alpha is None:
        return colours
    paper = Image.new("RGB", colours.size, "white")
    paper.paste(colours, mask=alpha)
    return paper


def _srgb(picture: Image.Image, icc: bytes | None) -> Image.Image:
    """An L or RGB picture through its profile; as it is where the profile does not fit it or cannot be read."""
    if icc is not None:
        try:
            converted = ImageCms.profileToProfile(
                picture.convert("L" if icc[16:20] == b"GRAY" else "RGB"),
                ImageCms.ImageCmsProfile(BytesIO(icc)),
                ImageCms.createProfile("sRGB"),
                renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
                outputMode="RGB",
                flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )
        except (ImageCms.PyCMSError, OSError):
            converted = None
        if converted is not None:
            return converted
    return picture.convert("RGB")


def _webp(picture: Image.Image, quality: int) -> bytes:
    stream = BytesIO()
    picture.save(stream, "WEBP", quality=quality, method=4)
    return stream.getvalue()


def _overlay(mask: NDArray[np.bool_], size: tuple[int, int]) -> bytes:
    """(H, W) -> PNG of `size`. A pixel counts from a tenth on: a thin scratch stays a line when it shrinks."""
    share = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    picture = Image.fromarray((share >= 0.1).astype(np.uint8), "L").convert("P")
    picture.putpalette([0, 0, 0, *_REPAIRED])
    stream = BytesIO()
    picture.save(stream, "PNG", transparency=0, bits=1, optimize=True)
    return stream.getvalue()
