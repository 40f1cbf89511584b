"""AVIF, by Pillow's plug-in or, beyond 8 bits, by OpenCV; and HEIC, by pillow-heif where that is installed."""

from __future__ import annotations

import importlib
from dataclasses import replace
from io import BytesIO
from typing import Any, BinaryIO, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import features

from oldphoto.errors import BadImageError
from oldphoto.files.colour import Pixels
from oldphoto.files.decoding import Limits, animation
from oldphoto.files.exif import bytes_or_none, dpi_of_exif, exif_block, settle_orientation
from oldphoto.files.photo import DEFAULT_QUALITY, Format, Metadata, Photo, channels, contiguous, upright, upright_xmp

_INSTALL = "pip install 'oldphoto[heic]'"


def why_not_written(format: Format) -> tuple[str, str] | None:
    """Why this format cannot be written here, and what to do about it; None if it can."""
    if format == "AVIF" and not features.check("avif"):
        return "this Pillow has no AVIF", "pip install a Pillow that has it, or write another format"
    if format == "HEIC" and _plugin("pillow_heif") is None:
        return "HEIC needs pillow-heif", f"{_INSTALL}, or write another format"
    return None


def _plugin(*names: str) -> Any:
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


def read_avif(data: bytes, limits: Limits) -> Photo:
    """A still AVIF; 10 and 12 bits become 16."""
    if not features.check("avif"):
        raise BadImageError("is an AVIF picture, which this Pillow cannot read", "pip install a Pillow that has AVIF")
    from PIL.AvifImagePlugin import AvifImageFile

    image = AvifImageFile(BytesIO(data))
    limits.check(*image.size, 14 if _depth(data) == 8 else 36)
    if getattr(image, "n_frames", 1) > 1:
        raise animation()
    depth = _depth(data)
    if depth == 8:
        image.load()
        colours, alpha, icc = channels(image)
    else:
        colours, alpha = _decode_deep(data, depth)
        icc = bytes_or_none(image.info.get("icc_profile"))
    mode = image.mode if depth == 8 else f"{image.mode};16"
    return _photo("AVIF", mode, colours, alpha, icc, image.info, turn=True)


def _depth(data: bytes) -> int:
    at = data.find(b"pixi")  # version and flags, the number of channels, then the bits of each
    return max(data[at + 9 : at + 9 + data[at + 8]], default=8) if at >= 0 else 8


def _decode_deep(data: bytes, depth: int) -> tuple[Pixels, Pixels | None]:
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint16:
        text = f"has {depth} bits, for which this OpenCV has no decoder"
        raise BadImageError(text, "convert it to a 16-bit TIFF or PNG")
    top = (1 << depth) - 1
    samples = ((decoded.astype(np.uint32) * 65535 + top // 2) // top).astype(np.uint16)
    if samples.ndim == 2:
        return samples, None
    return samples[..., 2::-1], samples[..., 3] if samples.shape[2] == 4 else None


def read_heic(data: bytes, limits: Limits) -> Photo:
    """The main picture of a HEIC file; 10 and 12 bits become 16."""
    plugin = _plugin("pillow_heif", "pi_heif")
    if plugin is None:
        raise BadImageError("is a HEIC picture, which needs a plug-in", _INSTALL)
    file = plugin.open_heif(BytesIO(data), convert_hdr_to_8bit=False)
    image = file[file.primary_index]
    width, height = image.size
    limits.check(width, height, 30)
    samples = cast("NDArray[np.uint8] | NDArray[np.uint16]", np.asarray(image))
    colours = samples if samples.ndim == 2 else samples[..., :3]
    alpha = samples[..., 3] if samples.ndim == 3 and samples.shape[2] == 4 else None
    more = len(file) - 1
    notes = [f"{more} further pictures in it are left out"] if more else []
    # The decoder has turned the picture already, whatever its EXIF block and XMP packet still say.
    icc = bytes_or_none(image.info.get("icc_profile"))
    photo = _photo("HEIC", image.mode, colours, alpha, icc, image.info, turn=False)
    return replace(photo, warnings=tuple(notes))


def _photo(
    format: Format, mode: str, colours: Pixels, alpha: Pixels | None, icc: bytes | None, info: Any, *, turn: bool
) -> Photo:
    block = exif_block(info.get("exif"))
    exif, orientation = settle_orientation(block)
    xmp = bytes_or_none(info.get("xmp"))
    xmp = xmp if turn else upright_xmp(xmp)
    metadata = Metadata(format=format, mode=mode, icc=icc, exif=exif, xmp=xmp, dpi=dpi_of_exif(exif))
    return upright(contiguous(colours), alpha, metadata, orientation if turn else 1)


def write_avif(photo: Photo, handle: BinaryIO, quality: int | None) -> None:
    """8 bits, with colour at full resolution."""
    content = BytesIO()
    image = photo.to_pillow().convert("RGB" if photo.alpha is None else "RGBA")
    image.save(content, "AVIF", quality=quality or DEFAULT_QUALITY, subsampling="4:4:4", **_metadata_of(photo))
    handle.write(content.getbuffer())


def write_heic(photo: Photo, handle: BinaryIO, quality: int | None) -> None:
    """8 bits, with colour at full resolution."""
    image = photo.to_pillow().convert("RGB" if photo.alpha is None else "RGBA")
    content = BytesIO()
    heif = _plugin("pillow_heif").from_pillow(image)
    options = _metadata_of(photo)
    heif[0].info["icc_profile"] = options.pop("icc_profile", None)
    heif[0].info["icc_profile_type"] = "prof"
    heif.save(content, quality=quality or DEFAULT_QUALITY, chroma=444, **options)
    handle.write(content.getbuffer())


def _metadata_of(photo: Photo) -> dict[str, Any]:
    metadata = photo.metadata
    # These formats turn a picture by its XMP too. A grey profile does not fit three channels.
    icc = None if photo.icc is not None and photo.icc[16:20] == b"GRAY" else photo.icc
    found = {"icc_profile": icc, "exif": metadata.exif, "xmp": upright_xmp(metadata.xmp)}
    return {name: value for name, value in found.items() if value is not None}
