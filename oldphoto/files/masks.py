"""Masks of damage: read from any picture, written as grey PNG or as pages of a TIFF."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oldphoto.errors import BadImageError
from oldphoto.files.colour import bands
from oldphoto.files.decoding import TooLargeError
from oldphoto.files.image import read_pages, write_pages
from oldphoto.files.photo import Metadata, Photo


def read_mask(
    path: str | os.PathLike[str] | bytes,
    size: tuple[int, int],
    *,
    page: int = 0,
    pages: int = 1,
    admit: Callable[[int], None] = lambda size: None,
) -> NDArray[np.bool_]:
    """A damage mask as (H, W) bool, True = damaged: the bright half of any picture, and opaque where it has alpha.

    size: (width, height) of the photo. page, pages: which page of how many the photo is; the mask has as many.
    admit: as in read_pages. Another size or number is a BadImageError. Other errors as in read_photo.
    """
    name = "the mask" if isinstance(path, bytes) else f"mask {Path(path).name}"

    def another_size(width: int, height: int) -> BadImageError:
        text = f"{name} is {width} x {height} pixels, the photo {size[0]} x {size[1]}"
        return BadImageError(text, "a mask has exactly its photo's size")

    try:
        photo = next(read_pages(path, max_pixels=size[0] * size[1], admit=admit, only=page))
    except TooLargeError as error:  # not worth decoding to say so
        raise another_size(*error.size) from error
    if photo.metadata.pages != pages:
        text = f"{name} has {photo.metadata.pages} pages, the photo {pages}"
        raise BadImageError(text, "a mask has exactly its photo's pages; a TIFF holds several")
    if (photo.width, photo.height) != size:
        raise another_size(photo.width, photo.height)
    half = 1 << (photo.depth - 1)
    weights = np.array([299, 587, 114], dtype=np.uint32)  # Rec. 601 luma in thousandths, exact in integers
    mask = np.empty((photo.height, photo.width), np.bool_)
    for rows in bands(photo.pixels):
        mask[rows] = photo.pixels[rows] @ weights >= half * 1000
        if photo.alpha is not None:
            mask[rows] &= photo.alpha[rows] >= half
    return mask


def write_mask(mask: NDArray[np.bool_], path: str | os.PathLike[str]) -> None:
    """Write an (H, W) mask as 8-bit grey PNG, 255 = damaged, whatever the name ends in. Errors as in write_photo."""
    write_masks([mask], path)


def write_masks(masks: Sequence[NDArray[np.bool_]], path: str | os.PathLike[str]) -> None:
    """As write_mask, but several masks become the pages of a TIFF."""
    metadata = Metadata(mode="L", pages=len(masks))
    # In turn, and each with one channel that is seen three times: as a photo a mask would take five times its bytes.
    photos = (
        Photo(np.broadcast_to((mask * np.uint8(255))[..., None], (*mask.shape, 3)), grey=True, metadata=metadata)
        for mask in masks
    )
    write_pages(photos, path, format="png" if len(masks) == 1 else "tif")
