"""A photograph as a value: its pixels, and all that its file holds beside them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oldphoto.errors import BadImageError
from oldphoto.files.colour import Pixels, cmyk_to_rgb, eight_bits, rgb_to_cmyk, srgb_profile
from oldphoto.files.decoding import as_bad_image, quiet
from oldphoto.files.exif import Tags, bytes_or_none, exif_block, pair_or_none, settle_orientation

Format = Literal["JPEG", "PNG", "TIFF", "WEBP", "JPEG2000", "BMP", "PPM", "AVIF", "HEIC"]
FORMATS: tuple[Format, ...] = get_args(Format)

# Of lossy formats; the source's own figure if the source was a JPEG.
DEFAULT_QUALITY = 95


@dataclass(frozen=True)
class RawPage:
    """A page of a TIFF that is no photo, such as an infrared channel or a mask, as it lies in its file.

    tags: its directory, in the byte order `order`. blocks: its strips or, where `tiled`, tiles, as they are stored.
    """

    tags: Tags
    order: str
    blocks: tuple[bytes, ...]
    tiled: bool


@dataclass(frozen=True)
class Metadata:
    """What a file holds beside its pixels, as the writers need it.

    format: the source's; a photo made from an array counts as PNG.
    mode: how the source stored its samples, in Pillow's words ("RGB", "CMYK", "P", "I;16"); for information.
    icc: the profile of the photo's pixels. exif: a TIFF-structured block without the "Exif" prefix, orientation 1, no
        thumbnail. xmp: the packet. iptc: the IIM records.
    dpi: horizontal and vertical dots per inch.
    photoshop: the resources of Photoshop but the IPTC records and previews, as a TIFF has them.
    comments, extended_xmp: of a JPEG; the latter as whole segments. png_chunks: a PNG's colour and text chunks, (name,
    content). Both are written to the same format only.
    beside: pages of a TIFF that follow this one and are no photos; written to TIFF only, as they are.
    jpeg_tables, jpeg_subsampling: how a JPEG was compressed; subsampling in Pillow's numbers 0 to 2.
    webp_lossless: whether the source was. jpeg2000_ratio: how many times smaller than its pixels a lossy source was,
    None for a lossless one. tiff_compression: of a TIFF, by its number in the tag.
    pages: pictures in the file, of which this is one.
    """

    format: Format = "PNG"
    mode: str = "RGB"
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    dpi: tuple[float, float] | None = None
    photoshop: bytes | None = None
    comments: tuple[bytes, ...] = ()
    extended_xmp: tuple[bytes, ...] = ()
    beside: tuple[RawPage, ...] = ()
    png_chunks: tuple[tuple[bytes, bytes], ...] = ()
    jpeg_tables: tuple[tuple[int, ...], ...] = ()
    jpeg_subsampling: int | None = None
    webp_lossless: bool = False
    jpeg2000_ratio: float | None = None
    tiff_compression: int = 8
    pages: int = 1


@dataclass(frozen=True, eq=False)
class Photo:
    """One upright photograph.

    pixels: (H, W, 3) uint8 or uint16 RGB over the dtype's whole range; a grey photo has three equal channels.
    grey: written back as one channel (the first one of `pixels`).
    alpha: (H, W) of the same dtype, not premultiplied, or None.
    inks: (H, W, 4) uint8, 255 = full ink, of a CMYK source; `pixels` are then sRGB, the profile is that of the inks.
    warnings: what of the file is damaged or left out, one line each.
    Raises ValueError if shapes or dtypes do not fit together.
    """

    pixels: Pixels
    grey: bool = False
    alpha: Pixels | None = None
    metadata: Metadata = Metadata()
    inks: NDArray[np.uint8] | None = None
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape, dtype = self.pixels.shape, self.pixels.dtype
        if dtype not in (np.uint8, np.uint16):
            raise ValueError(f"pixels are {dtype}, not uint8 or uint16")
        if len(shape) != 3 or shape[2] != 3 or 0 in shape:
            raise ValueError(f"pixels have shape {shape}, not (H, W, 3)")
        if self.alpha is not None and (self.alpha.shape != shape[:2] or self.alpha.dtype != dtype):
            raise ValueError(f"alpha is {self.alpha.shape} {self.alpha.dtype}, the pixels are {shape} {dtype}")

    @property
    def width(self) -> int:
        """Pixels across."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Pixels down."""
        return int(self.pixels.shape[0])

    @property
    def depth(self) -> int:
        """Bits a sample: 8 or 16."""
        return self.pixels.dtype.itemsize * 8

    @property
    def icc(self) -> bytes | None:
        """The profile of `pixels`, None for sRGB."""
        return None if self.inks is not None else self.metadata.icc

    def with_pixels(self, pixels: Pixels) -> Photo:
        """This photo with other pixels of the same shape and dtype; ValueError if they are not."""
        if pixels.shape != self.pixels.shape or pixels.dtype != self.pixels.dtype:
            ours = f"{self.pixels.shape} {self.pixels.dtype}"
            raise ValueError(f"new pixels are {pixels.shape} {pixels.dtype}, the photo's are {ours}")
        return replace(self, pixels=pixels)

    def for_colours(self) -> Photo:
        """This grey photo, to be written as sRGB, with a profile that says so. What its file says of grey samples is
        left out: their profile, a PNG's chunks about them, and how a JPEG compressed them."""
        kept = tuple(chunk for chunk in self.metadata.png_chunks if chunk[0] not in _PNG_COLOUR)
        metadata = replace(self.metadata, mode="RGB", icc=srgb_profile(), png_chunks=kept, jpeg_tables=())
        return replace(self, grey=False, metadata=metadata)

    def with_xmp(self, packet: bytes | None) -> Photo:
        """This photo with another XMP packet, or none; the old one is `metadata.xmp`."""
        return replace(self, metadata=replace(self.metadata, xmp=packet))

    @staticmethod
    def from_array(array: Pixels) -> Photo:
        """A photo without a file, from (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA, uint8 or uint16; else
        BadImageError.
        """
        if array.dtype not in (np.uint8, np.uint16):
            raise BadImageError(f"the array is {array.dtype}", "pass uint8 or uint16 over the whole range")
        shape = array.shape
        if len(shape) not in (2, 3) or 0 in shape or (len(shape) == 3 and shape[2] not in (3, 4)):
            raise BadImageError(f"the array has shape {shape}", "pass (H, W), (H, W, 3) RGB or (H, W, 4) RGBA")
        if len(shape) == 2:
            return Photo(three_channels(array), grey=True, metadata=Metadata(mode="L"))
        alpha = contiguous(array[..., 3]) if shape[2] == 4 else None
        mode = "RGB" if alpha is None else "RGBA"
        return Photo(contiguous(array[..., :3]), alpha=alpha, metadata=Metadata(mode=mode))

    @staticmethod
    def from_pillow(image: Image.Image) -> Photo:
        """A photo from a Pillow image of any 8-bit mode or I;16. An EXIF orientation the image carries is applied, and
        its metadata kept. BadImageError for other modes and for images that do not load.
        """
        with quiet(), as_bad_image("the image"):
            image.load()  # before asking for the orientation: TIFF images turn themselves while loading
            exif, orientation = settle_orientation(exif_block(image.info.get("exif")))
            if exif is None:
                orientation = int(image.getexif().get(0x0112, 1))
            colours, alpha, icc = channels(image)
            metadata = Metadata(
                format=image.format if image.format in FORMATS else "PNG",
                mode=image.mode,
                icc=icc,
                exif=exif,
                xmp=bytes_or_none(image.info.get("xmp")),
                dpi=pair_or_none(image.info.get("dpi")),
            )
            return upright(colours, alpha, metadata, orientation)

    def to_pillow(self) -> Image.Image:
        """The photo as an 8-bit Pillow image: L, LA, RGB or RGBA, without metadata."""
        samples = eight_bits(samples_of(self, slice(None)))
        return Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples)


# Chunks that say of a PNG what a profile says.
_PNG_COLOUR = (b"gAMA", b"cHRM", b"sRGB", b"cICP")


def upright(
    colours: Pixels, alpha: Pixels | None, metadata: Metadata, orientation: int, notes: Sequence[str] = ()
) -> Photo:
    """The photo of decoded (H, W), (H, W, 3) or CMYK (H, W, 4) samples, turned by an EXIF orientation (1 to 8).

    notes: the photo's warnings.
    """
    if 2 <= orientation <= 8:
        turned = _TURNS[orientation]
        colours = turned(colours)
        alpha = None if alpha is None else turned(alpha)
        dpi = metadata.dpi
        if dpi is not None and orientation >= 5:
            dpi = (dpi[1], dpi[0])
        metadata = replace(metadata, dpi=dpi, xmp=upright_xmp(metadata.xmp))
    if colours.ndim == 3 and colours.shape[2] == 4:
        inks = cast("NDArray[np.uint8]", contiguous(colours))
        return Photo(cmyk_to_rgb(inks, metadata.icc), metadata=metadata, inks=inks, warnings=tuple(notes))
    grey = colours.ndim == 2
    pixels = three_channels(colours) if grey else contiguous(colours)
    return Photo(pixels, grey, None if alpha is None else contiguous(alpha), metadata, warnings=tuple(notes))


# What turns stored rows into upright ones, by EXIF orientation.
_TURNS: dict[int, Callable[[Any], Any]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}

# Of the same length after the change, as attribute or element.
_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation(?:\s*=\s*[\"']|\s*>)\s*)[2-8]")


def upright_xmp(packet: bytes | None) -> bytes | None:
    """A packet that says the photo is upright, if it said otherwise."""
    return None if packet is None else _XMP_ORIENTATION.sub(rb"\g<1>1", packet)


_PREVIEWS = (0x0409, 0x040C)


def iptc_and_rest(resources: bytes) -> tuple[bytes | None, bytes | None]:
    """The IPTC records among Photoshop's resources, and the others but previews, which are of the old picture."""
    iptc, at = None, 0
    rest: list[bytes] = []
    while resources[at : at + 4] == b"8BIM" and at + 12 <= len(resources):
        name = (resources[at + 6] + 2) // 2 * 2  # its length and itself, to an even number
        start = at + 10 + name
        size = int.from_bytes(resources[start - 4 : start])
        code = int.from_bytes(resources[at + 4 : at + 6])
        end = start + size + size % 2
        if code == 0x0404:
            iptc = iptc or resources[start : start + size] or None
        elif code not in _PREVIEWS:
            rest.append(resources[at:end])
        at = end
    return iptc, b"".join(rest) or None


def contiguous(array: Pixels) -> Pixels:
    """The array with its rows one behind the other."""
    return cast("Pixels", np.ascontiguousarray(array))


def three_channels(grey: Pixels) -> Pixels:
    """(H, W) -> (H, W, 3)."""
    return cast("Pixels", np.repeat(grey[..., None], 3, axis=2))


def samples_of(photo: Photo, rows: slice) -> Pixels:
    """Some rows as they are written: (h, W, C) with C 1 grey, 2 grey and alpha, 3 RGB or 4 RGBA."""
    colours = photo.pixels[rows, :, :1] if photo.grey else photo.pixels[rows]
    if photo.alpha is None:
        return colours
    return cast("Pixels", np.concatenate([colours, photo.alpha[rows, :, None]], axis=2))


def inks_of(photo: Photo) -> NDArray[np.uint8] | None:
    """(H, W, 4) CMYK as a photo with inks is written, for formats that have it; None for other photos."""
    if photo.inks is None:
        return None
    pixels = cast("NDArray[np.uint8]", photo.pixels)
    return rgb_to_cmyk(pixels, photo.inks, photo.metadata.icc)


def channels(image: Image.Image) -> tuple[Pixels, Pixels | None, bytes | None]:
    """A loaded Pillow image as (H, W), (H, W, 3) or CMYK (H, W, 4) colours, alpha, and the profile of the colours."""
    icc = bytes_or_none(image.info.get("icc_profile"))
    mode = image.mode
    if mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16), None, icc
    if mode not in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr"):
        raise BadImageError(f"has samples of a kind that is not read here ({mode})", "convert it to 8- or 16-bit RGB")
    if mode == "CMYK":
        return _array_of(image), None, icc
    has_alpha = mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    wanted = ("LA" if has_alpha else "L") if mode in ("1", "L", "LA", "La") else "RGBA" if has_alpha else "RGB"
    samples = _array_of(image if mode == wanted else image.convert(wanted))
    if samples.ndim == 2:
        return samples, None, icc
    alpha = samples[..., -1].copy() if has_alpha else None
    colours = samples[..., 0] if samples.shape[2] == 2 else samples[..., :3]
    # A palette of greys is a way to store a grey photo, unless its profile says RGB.
    palette_grey = mode in ("P", "PA") and (icc is None or icc[16:20] == b"GRAY")
    if palette_grey and np.array_equal(colours[..., :2], colours[..., 1:]):
        colours = colours[..., 0]
    return contiguous(colours), alpha, icc


def _array_of(image: Image.Image) -> NDArray[np.uint8]:
    """A Pillow image's samples, copied band by band: as one piece they would be there three times meanwhile."""
    step = max(1, (1 << 20) // image.width)
    bands = (
        np.asarray(image.crop((0, top, image.width, min(top + step, image.height))))
        for top in range(0, image.height, step)
    )
    first = next(bands)
    out = np.empty((image.height, *first.shape[1:]), np.uint8)
    out[: len(first)] = first
    for k, band in enumerate(bands, start=1):
        out[k * step : k * step + len(band)] = band
    return out
