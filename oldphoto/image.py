"""A photograph as a value: read from a file with everything but its pixels kept, written back whole or not at all.

The file's content says its format, not its name. What the decoders are trusted with, and why:
- 8 bits a sample: Pillow, called by plug-in, so that its own size limit and format guessing stay out of the way.
- 16 bits: tifffile and OpenCV. Pillow opens 16-bit RGB as 8 bits without a word, and clips 16-bit grey.

Colour profiles: pixels stay in the file's own colour space and the profile is carried byte for byte. Going to sRGB and
back would clip what sRGB cannot show and round every pixel twice, also where nothing was restored. CMYK is the
exception, since the nets know three colours: it becomes sRGB through its profile, which has then done its work.
"""

from __future__ import annotations

import errno
import importlib.util
import logging
import mmap
import os
import re
import secrets
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile, get_sampling
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from oldphoto.errors import BadImageError, FileAccessError, UsageError

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
Format = Literal["JPEG", "PNG", "TIFF", "WEBP", "BMP", "PPM"]

# A 10 x 8 inch original scanned at 2400 dpi has 461 million pixels.
DEFAULT_MAX_PIXELS = 500_000_000

# The sources' own figure if the source was a JPEG, else this.
DEFAULT_QUALITY = 95

_FORMAT_OF_SUFFIX: dict[str, Format] = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".dib": "BMP",
    ".pgm": "PPM",
    ".ppm": "PPM",
    ".pnm": "PPM",
    ".pbm": "PPM",
}

# What a folder is searched for, in lower case. A file named outright is read whatever its name is.
PHOTO_SUFFIXES: tuple[str, ...] = tuple(_FORMAT_OF_SUFFIX)

# Names that promise another format than any written here.
_FOREIGN_SUFFIXES = (".gif", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".pdf", ".psd", ".svg")

_READABLE = "JPEG, PNG, TIFF, WebP, BMP, PGM/PPM"
_FOREIGN_CONTENT = (
    (b"GIF8", 0, "a GIF picture"),
    (b"ftypavif", 4, "an AVIF picture"),
    (b"ftyphei", 4, "a HEIC picture"),
    (b"ftypmif1", 4, "a HEIC picture"),
    (b"jP  ", 4, "a JPEG 2000 picture"),
    (b"\xff\x4f\xff\x51", 0, "a JPEG 2000 picture"),
    (b"JXL ", 4, "a JPEG XL picture"),
    (b"%PDF", 0, "a PDF document"),
    (b"8BPS", 0, "a Photoshop document"),
)

_OS_ADVICE = {
    errno.ENOENT: "check the name and the folder",
    errno.EACCES: "check the permissions of the file and its folder",
    errno.EPERM: "check the permissions of the file and its folder",
    errno.EROFS: "write to another folder",
    errno.ENOSPC: "free some space or write to another disk",
    errno.EDQUOT: "free some space or write to another disk",
}


@dataclass(frozen=True)
class Metadata:
    """What a file holds beside its pixels, as the writers need it.

    format: the source's; a photo made from an array counts as PNG.
    mode: how the source stored its samples, in Pillow's words ("RGB", "CMYK", "P", "I;16"); for information.
    icc: the profile of the photo's pixels. exif: a TIFF-structured block without the "Exif" prefix, orientation 1, no
        thumbnail. xmp: the packet. iptc: the IIM records.
    dpi: horizontal and vertical dots per inch.
    comment: of a JPEG. png_chunks: a PNG's colour and text chunks, (name, content); written to PNG only.
    jpeg_tables, jpeg_subsampling: how a JPEG was compressed; subsampling in Pillow's numbers 0 to 2.
    webp_lossless, tiff_compressed: whether the source was.
    pages: pictures in the file; the first is the one read, so that more than 1 deserves a warning.
    """

    format: Format = "PNG"
    mode: str = "RGB"
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    dpi: tuple[float, float] | None = None
    comment: bytes | None = None
    png_chunks: tuple[tuple[bytes, bytes], ...] = ()
    jpeg_tables: tuple[tuple[int, ...], ...] = ()
    jpeg_subsampling: int | None = None
    webp_lossless: bool = False
    tiff_compressed: bool = True
    pages: int = 1


@dataclass(frozen=True, eq=False)
class Photo:
    """One upright photograph.

    pixels: (H, W, 3) uint8 or uint16 RGB over the dtype's whole range; a grey photo has three equal channels.
    grey: written back as one channel (the first one of `pixels`).
    alpha: (H, W) of the same dtype, not premultiplied, or None.
    Raises ValueError if shapes or dtypes do not fit together.
    """

    pixels: Pixels
    grey: bool = False
    alpha: Pixels | None = None
    metadata: Metadata = Metadata()

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

    def with_pixels(self, pixels: Pixels) -> Photo:
        """This photo with other pixels of the same shape and dtype; ValueError if they are not."""
        if pixels.shape != self.pixels.shape or pixels.dtype != self.pixels.dtype:
            ours = f"{self.pixels.shape} {self.pixels.dtype}"
            raise ValueError(f"new pixels are {pixels.shape} {pixels.dtype}, the photo's are {ours}")
        return replace(self, pixels=pixels)

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
            return Photo(_three_channels(array), grey=True, metadata=Metadata(mode="L"))
        alpha = _contiguous(array[..., 3]) if shape[2] == 4 else None
        mode = "RGB" if alpha is None else "RGBA"
        return Photo(_contiguous(array[..., :3]), alpha=alpha, metadata=Metadata(mode=mode))

    @staticmethod
    def from_pillow(image: Image.Image) -> Photo:
        """A photo from a Pillow image of any 8-bit mode or I;16. An EXIF orientation the image carries is applied, and
        its metadata kept. BadImageError for other modes and for images that do not load.
        """
        with _quiet(), _as_bad_image("the image"):
            image.load()  # before asking for the orientation: TIFF images turn themselves while loading
            exif, orientation = _settle_orientation(_exif_block(image.info.get("exif")))
            if exif is None:
                orientation = int(image.getexif().get(0x0112, 1))
            colours, alpha, icc = _channels(image)
            metadata = Metadata(
                format=cast("Format", image.format) if image.format in _FORMAT_OF_SUFFIX.values() else "PNG",
                mode=image.mode,
                icc=icc,
                exif=exif,
                xmp=_bytes_or_none(image.info.get("xmp")),
                dpi=_pair_or_none(image.info.get("dpi")),
            )
            return _upright(colours, alpha, metadata, orientation)

    def to_pillow(self) -> Image.Image:
        """The photo as an 8-bit Pillow image: L, LA, RGB or RGBA, without metadata."""
        samples = _samples(self, slice(None))
        if samples.dtype == np.uint16:
            # 65535 is 257 times 255; in blocks of rows this would save memory that a 16-bit photo has already used.
            samples = ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
        return Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples)


def read_photo(source: str | os.PathLike[str] | bytes, *, max_pixels: int | None = DEFAULT_MAX_PIXELS) -> Photo:
    """The first picture of a file, or of a file's content, turned upright as its EXIF orientation says.

    max_pixels: the largest width x height that is decoded, told from the header; None for any.
    Raises FileAccessError if the file cannot be read, BadImageError if it is not a picture, damaged or too large.
    A TIFF's channels beyond colour and one alpha are left out; associated alpha is made straight.
    """
    if isinstance(source, bytes):
        name, data = "the picture", source
    else:
        name, data = Path(source).name, _load(Path(source))
    with _quiet(), _as_bad_image(name):
        return _READERS[_format_of(data)](data, max_pixels)


def write_photo(
    photo: Photo,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    quality: int | None = None,
    before_move: Callable[[Path], None] = lambda part: None,
) -> None:
    """Write a photo with all the metadata the format takes: whole, in one step, or not at all.

    It goes to a temporary file in the target's folder, which then takes the target's place; a link is replaced, not
    followed. On any failure, Ctrl-C included, the temporary file is removed and what was at `path` is still there.
    format: as in output_format. quality: 1 to 100, for JPEG and WebP; the lossless formats pay no heed. None reuses a
    JPEG source's own quantisation for a JPEG, keeps a lossless WebP lossless, and else takes 95.
    before_move: called with the temporary file when it is whole; what it raises is a failure like any other.
    Raises UsageError as output_format does, FileAccessError if the file cannot be written.
    """
    path = Path(path)
    target = output_format(photo, path, format)
    if quality is not None and not 1 <= quality <= 100:
        raise UsageError(f"quality is {quality}", "use 1 to 100")
    # A name of constant length beside the target: the same disk, hidden from folder scans, never too long.
    part = path.with_name(f".oldphoto-{secrets.token_hex(6)}.part")
    try:
        try:
            with part.open("x+b") as handle:
                _WRITERS[target](photo, handle, quality)
                handle.flush()
                os.fsync(handle.fileno())
            before_move(part)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _file_access_error("write", path, error) from error


def output_format(photo: Photo, path: str | os.PathLike[str], format: str | None = None) -> Format:
    """The format that write_photo will use: `format`, else what the suffix of `path` promises, else the source's.

    Call it before a long restoration: it raises UsageError if the format is unknown or cannot hold this photo's depth,
    alpha, size or metadata.
    """
    path = Path(path)
    suffix = path.suffix.lower() if format is None else f".{format.lower().lstrip('.')}"
    chosen = _FORMAT_OF_SUFFIX.get(suffix)
    if chosen is None and (format is not None or suffix in _FOREIGN_SUFFIXES):
        raise UsageError(f"{path.name}: cannot write {suffix} files", f"use one of {_READABLE}")
    chosen = chosen or photo.metadata.format
    lossless = "write a .png or .tif file instead"
    if photo.depth == 16 and chosen in ("JPEG", "WEBP", "BMP"):
        raise UsageError(f"{path.name}: {chosen} cannot hold the photo's 16 bits", lossless)
    if photo.alpha is not None and chosen in ("JPEG", "BMP", "PPM"):
        raise UsageError(f"{path.name}: {chosen} cannot hold the photo's transparency", lossless)
    longest = {"JPEG": 65500, "WEBP": 16383}.get(chosen)
    if longest is not None and max(photo.width, photo.height) > longest:
        size = f"{photo.width} x {photo.height} pixels"
        raise UsageError(f"{path.name}: {chosen} ends at {longest} pixels a side, the photo is {size}", lossless)
    if chosen == "JPEG":
        # One JPEG segment holds 65533 bytes, of which a few name its content.
        held = photo.metadata
        for name, content, room in (("EXIF", held.exif, 65527), ("XMP", held.xmp, 65504), ("IPTC", held.iptc, 65500)):
            if content is not None and len(content) > room:
                text = f"{path.name}: the photo has {len(content)} bytes of {name}, a JPEG holds {room}"
                raise UsageError(text, lossless)
    return chosen


def read_mask(path: str | os.PathLike[str] | bytes, size: tuple[int, int]) -> NDArray[np.bool_]:
    """A damage mask as (H, W) bool, True = damaged: the bright half of any picture, and opaque where it has alpha.

    size: (width, height) of the photo; another one is a BadImageError. Other errors as in read_photo.
    """
    photo = read_photo(path, max_pixels=max(DEFAULT_MAX_PIXELS, size[0] * size[1]))
    if (photo.width, photo.height) != size:
        name = "the mask" if isinstance(path, bytes) else f"mask {Path(path).name}"
        text = f"{name} is {photo.width} x {photo.height} pixels, the photo {size[0]} x {size[1]}"
        raise BadImageError(text, "a mask has exactly its photo's size")
    half = 1 << (photo.depth - 1)
    weights = np.array([299, 587, 114], dtype=np.uint32)  # Rec. 601 luma in thousandths, exact in integers
    mask: NDArray[np.bool_] = photo.pixels @ weights >= half * 1000
    return mask if photo.alpha is None else mask & (photo.alpha >= half)


def write_mask(mask: NDArray[np.bool_], path: str | os.PathLike[str]) -> None:
    """Write an (H, W) mask as 8-bit grey PNG, 255 = damaged, whatever the name ends in. Errors as in write_photo."""
    write_photo(Photo.from_array(mask.astype(np.uint8) * np.uint8(255)), path, format="png")


# --- from file content to arrays -------------------------------------------------------------------------------------


def _load(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise FileAccessError(f"{path} is a folder, not a picture", "name a file in it")
        return path.read_bytes()
    except OSError as error:
        raise _file_access_error("read", path, error) from error


def _file_access_error(verb: str, path: Path, error: OSError) -> FileAccessError:
    return FileAccessError(f"cannot {verb} {path}: {error.strerror or error}", _OS_ADVICE.get(error.errno or 0, ""))


def _format_of(data: bytes) -> Format:
    if not data:
        raise BadImageError("is empty (0 bytes)")
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith(b"BM"):
        return "BMP"
    if re.match(rb"P[1-6][\s#]", data):
        return "PPM"
    for magic, at, what in _FOREIGN_CONTENT:
        if data[at:].startswith(magic):
            raise BadImageError(f"is {what}, which is not read here", f"convert it to one of {_READABLE}")
    raise BadImageError(f"is not a picture that is read here ({_READABLE})")


@contextmanager
def _as_bad_image(name: str) -> Iterator[None]:
    """Whatever a decoder raises comes out as one BadImageError that begins with the picture's name."""
    try:
        yield
    except BadImageError as error:
        raise BadImageError(f"{name} {error}", error.advice) from error
    except MemoryError:
        raise
    except struct.error as error:
        raise BadImageError(f"{name} is damaged or cut short: its header ends too early") from error
    except Exception as error:
        # Decoders fail on damaged files with nearly every type there is; all of them mean the same here.
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise BadImageError(f"{name} is damaged or cut short: {reason}") from error


_DECODER_LOCK = threading.Lock()
# OpenCV 4 has it at the top, OpenCV 5 in a module of its own.
_set_cv2_log_level: Callable[[int], int] = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel


def _drop_record(_: logging.LogRecord) -> bool:
    return False


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the decoders' warnings, logs and Pillow's size limit, and gives each back as it was.

    Every one of these is global, hence the lock: a second thread would otherwise restore the first one's silence.
    """
    with _DECODER_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loggers = [logging.getLogger(name) for name in ("tifffile", "PIL.TiffImagePlugin", "PIL.PngImagePlugin")]
        for logger in loggers:
            logger.addFilter(_drop_record)
        level, limit = _set_cv2_log_level(0), Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None  # max_pixels is checked instead, before anything is decoded
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
            _set_cv2_log_level(level)
            for logger in loggers:
                logger.removeFilter(_drop_record)


@contextmanager
def _no_standard_error() -> Iterator[None]:
    """For libtiff inside Pillow, which prints its own line about a damaged file beside the error that Pillow raises."""
    try:
        kept = os.dup(2)
    except OSError:  # a program without standard error
        yield
        return
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _check_size(width: int, height: int, max_pixels: int | None) -> None:
    if width <= 0 or height <= 0:
        raise BadImageError(f"is {width} x {height} pixels: there is nothing in it")
    if max_pixels is not None and width * height > max_pixels:
        millions = f"{width * height / 1e6:,.1f} million pixels"
        text = f"is {width} x {height}, {millions}; the limit is {max_pixels / 1e6:,.1f} million"
        raise BadImageError(text, f"if you trust the file, allow it with --max-pixels {width * height}")


def _upright(colours: Pixels, alpha: Pixels | None, metadata: Metadata, orientation: int) -> Photo:
    """The photo of decoded (H, W) or (H, W, 3) samples, turned by an EXIF orientation (1 to 8)."""
    if 2 <= orientation <= 8:
        turned = _TURNS[orientation]
        colours = turned(colours)
        alpha = None if alpha is None else turned(alpha)
        dpi = metadata.dpi
        if dpi is not None and orientation >= 5:
            dpi = (dpi[1], dpi[0])
        xmp = metadata.xmp and _XMP_ORIENTATION.sub(rb"\g<1>1", metadata.xmp)
        metadata = replace(metadata, dpi=dpi, xmp=xmp)
    grey = colours.ndim == 2
    pixels = _three_channels(colours) if grey else _contiguous(colours)
    return Photo(pixels, grey, None if alpha is None else _contiguous(alpha), metadata)


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


def _contiguous(array: Pixels) -> Pixels:
    return cast("Pixels", np.ascontiguousarray(array))


def _three_channels(grey: Pixels) -> Pixels:
    return cast("Pixels", np.repeat(grey[..., None], 3, axis=2))


def _samples(photo: Photo, rows: slice) -> Pixels:
    """Some rows as they are written: (h, W, C) with C 1 grey, 2 grey and alpha, 3 RGB or 4 RGBA."""
    colours = photo.pixels[rows, :, :1] if photo.grey else photo.pixels[rows]
    if photo.alpha is None:
        return colours
    return cast("Pixels", np.concatenate([colours, photo.alpha[rows, :, None]], axis=2))


def _channels(image: Image.Image) -> tuple[Pixels, Pixels | None, bytes | None]:
    """A loaded Pillow image as (H, W) or (H, W, 3) colours, alpha, and the profile that these colours have."""
    icc = _bytes_or_none(image.info.get("icc_profile"))
    mode = image.mode
    if mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16), None, icc
    if mode not in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr"):
        raise BadImageError(f"has samples of a kind that is not read here ({mode})", "convert it to 8- or 16-bit RGB")
    if mode == "CMYK":
        return np.asarray(_cmyk_to_rgb(image, icc)), None, None
    has_alpha = mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    if mode in ("1", "L", "LA", "La"):
        image = image.convert("LA" if has_alpha else "L")
    else:
        image = image.convert("RGBA" if has_alpha else "RGB")
    samples = np.asarray(image)
    if samples.ndim == 2:
        return samples.copy(), None, icc
    alpha = samples[..., -1].copy() if has_alpha else None
    colours = samples[..., 0] if samples.shape[2] == 2 else samples[..., :3]
    # A palette of greys is a way to store a grey photo, unless its profile says RGB.
    palette_grey = mode in ("P", "PA") and (icc is None or icc[16:20] == b"GRAY")
    if palette_grey and np.array_equal(colours[..., :2], colours[..., 1:]):
        colours = colours[..., 0]
    return colours.copy(), alpha, icc


def _cmyk_to_rgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    if icc is not None:
        try:
            converted = ImageCms.profileToProfile(
                image,
                ImageCms.ImageCmsProfile(BytesIO(icc)),
                ImageCms.createProfile("sRGB"),
                renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
                outputMode="RGB",
                flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )
        except (ImageCms.PyCMSError, OSError):
            converted = None  # a profile that is damaged or not for CMYK: as if there were none
        if converted is not None:
            return converted
    return image.convert("RGB")


def _bytes_or_none(value: object) -> bytes | None:
    if isinstance(value, str):
        value = value.encode()
    return value if isinstance(value, bytes) and value else None


def _pair_or_none(value: Any) -> tuple[float, float] | None:
    try:
        across, down = (float(number) for number in value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (across, down) if across > 0 and down > 0 else None


def _read_jpeg(data: bytes, max_pixels: int | None) -> Photo:
    image = JpegImageFile(BytesIO(data))
    _check_size(*image.size, max_pixels)
    image.load()
    colours, alpha, icc = _channels(image)
    exif, orientation = _settle_orientation(_exif_block(image.info.get("exif")))
    photoshop = image.info.get("photoshop")
    sampling = get_sampling(image)
    # The tables of four inks say nothing about three colours.
    tables = {} if image.mode == "CMYK" else image.quantization
    metadata = Metadata(
        format="JPEG",
        mode=image.mode,
        icc=icc,
        exif=exif,
        xmp=_bytes_or_none(image.info.get("xmp")),
        iptc=_bytes_or_none(photoshop.get(0x0404)) if isinstance(photoshop, dict) else None,
        dpi=_pair_or_none(image.info.get("dpi")),
        comment=_bytes_or_none(image.info.get("comment")),
        jpeg_tables=tuple(tuple(table) for _, table in sorted(tables.items())),
        jpeg_subsampling=sampling if tables and sampling in (0, 1, 2) else None,
    )
    return _upright(colours, alpha, metadata, orientation)


def _read_png(data: bytes, max_pixels: int | None) -> Photo:
    chunks = _png_chunks(data)
    width, height, bits, colour_type = struct.unpack_from(">IIBB", chunks[0][1])
    _check_size(width, height, max_pixels)
    first = dict(reversed(chunks))  # of chunks that come once, the first counts
    exif, orientation = _settle_orientation(_exif_block(first.get(b"eXIf")))
    dpi = None
    if len(density := first.get(b"pHYs", b"")) == 9 and density[8] == 1:
        across, down = struct.unpack_from(">II", density)
        dpi = _pair_or_none((_dpi_from_metre(across), _dpi_from_metre(down)))
    xmp = next((text for name, body in chunks if name == b"iTXt" and (text := _png_xmp(body))), None)
    carried = tuple(
        (name, body)
        for name, body in chunks
        if name in (b"gAMA", b"cHRM", b"sRGB", b"cICP", b"tEXt", b"zTXt")
        or (name == b"iTXt" and not body.startswith(_PNG_XMP))
    )
    metadata = Metadata(
        format="PNG", icc=_png_profile(first.get(b"iCCP")), exif=exif, xmp=xmp, dpi=dpi, png_chunks=carried
    )
    if bits == 16:
        colours, alpha = _decode_png16(data, colour_type, first.get(b"tRNS"))
        mode = {0: "I;16", 2: "RGB;16", 4: "LA;16", 6: "RGBA;16"}[colour_type]
    else:
        image = PngImageFile(BytesIO(data))
        image.load()
        colours, alpha, _ = _channels(image)
        mode = image.mode
        metadata = replace(metadata, pages=getattr(image, "n_frames", 1))
    return _upright(colours, alpha, replace(metadata, mode=mode), orientation)


_PNG_XMP = b"XML:com.adobe.xmp\0"


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Name and content of every chunk but the pixels'. Checksums are checked here since OpenCV shows what it has."""
    chunks: list[tuple[bytes, bytes]] = []
    at, name = 8, b""
    while name != b"IEND":
        length, name = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        (checksum,) = struct.unpack_from(">I", data, at + 8 + length)
        at += 12 + length
        whole = zlib.crc32(body, zlib.crc32(name)) == checksum
        if not whole and name[:1].isupper():
            raise BadImageError(f"is damaged: wrong checksum of {name.decode('latin-1')}")
        if whole and name != b"IDAT":
            chunks.append((name, body))
    if chunks[0][0] != b"IHDR":
        raise BadImageError("is damaged: no PNG header")
    return chunks


def _inflate(data: bytes) -> bytes:
    # Bounded: a few bytes can unfold into gigabytes.
    return zlib.decompressobj().decompress(data, 1 << 26)


def _png_profile(body: bytes | None) -> bytes | None:
    try:
        return _inflate(body.split(b"\0", 1)[1][1:]) or None if body else None
    except (zlib.error, IndexError):
        return None


def _png_xmp(body: bytes) -> bytes | None:
    if not body.startswith(_PNG_XMP):
        return None
    compressed = body[len(_PNG_XMP) :][:1] == b"\1"
    try:
        text = body[len(_PNG_XMP) + 2 :].split(b"\0", 2)[2]
        return _inflate(text) if compressed else text
    except (zlib.error, IndexError):
        return None


def _dpi_from_metre(dots: int) -> float:
    # A whole number of dots a metre is up to 0.013 dpi off the number meant.
    dpi = dots * 0.0254
    return float(round(dpi)) if abs(dpi - round(dpi)) < 0.013 else dpi


def _decode_png16(data: bytes, colour_type: int, transparent: bytes | None) -> tuple[Pixels, Pixels | None]:
    # OpenCV gives BGR, or BGRA where there is alpha or a transparent colour; grey with alpha comes as BGRA too.
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint16:
        raise BadImageError("is damaged or cut short")
    samples = cast("NDArray[np.uint16]", decoded)
    colours = samples
    if samples.ndim == 3:
        colours = samples[..., 0] if colour_type in (0, 4) else samples[..., 2::-1]
    alpha = None
    if colour_type in (4, 6):
        alpha = samples[..., 3]
    elif transparent is not None:
        key = np.frombuffer(transparent, ">u2").astype(np.uint16)
        same = colours == (key[0] if colours.ndim == 2 else key[:3])
        alpha = np.where(same if same.ndim == 2 else same.all(axis=2), 0, 65535).astype(np.uint16)
    return colours, alpha


def _read_webp(data: bytes, max_pixels: int | None) -> Photo:
    # Before the plug-in opens it: that alone takes memory for the whole canvas.
    kind, body = data[12:16], data[20:30]
    if kind == b"VP8X":
        _check_size(int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1, max_pixels)
    elif kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        _check_size((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, max_pixels)
    elif kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 6)
        _check_size(width & 0x3FFF, height & 0x3FFF, max_pixels)
    else:
        raise BadImageError("is damaged: no WebP picture in it")
    image = WebPImageFile(BytesIO(data))
    pages = image.n_frames
    image.load()
    colours, alpha, icc = _channels(image)
    block = _exif_block(image.info.get("exif"))
    exif, orientation = _settle_orientation(block)
    metadata = Metadata(
        format="WEBP",
        mode=image.mode,
        icc=icc,
        exif=exif,
        dpi=_dpi_of_exif(block),  # the one place a WebP has for it
        xmp=_bytes_or_none(image.info.get("xmp")),
        webp_lossless=kind == b"VP8L" or (kind == b"VP8X" and _has_riff_chunk(data, b"VP8L")),
        pages=pages,
    )
    return _upright(colours, alpha, metadata, orientation)


def _has_riff_chunk(data: bytes, wanted: bytes) -> bool:
    at = 12
    while at + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, at)
        if name == wanted:
            return True
        at += 8 + length + length % 2
    return False


def _read_bmp(data: bytes, max_pixels: int | None) -> Photo:
    image = BmpImageFile(BytesIO(data))
    _check_size(*image.size, max_pixels)
    image.load()
    colours, alpha, _ = _channels(image)
    metadata = Metadata(format="BMP", mode=image.mode, dpi=_pair_or_none(image.info.get("dpi")))
    return _upright(colours, alpha, metadata, 1)


_PNM_HEADER = re.compile(rb"P([1-6])(?:\s|#[^\r\n]*[\r\n])+(\d+)(?:\s|#[^\r\n]*[\r\n])+(\d+)(?:\s|#[^\r\n]*[\r\n])")
_PNM_MAXIMUM = re.compile(rb"(?:\s|#[^\r\n]*[\r\n])*(\d+)\s")


def _read_pnm(data: bytes, max_pixels: int | None) -> Photo:
    header = _PNM_HEADER.match(data)
    if header is None:
        raise BadImageError("is damaged: no PGM/PPM header")
    kind, width, height = (int(number) for number in header.groups())
    _check_size(width, height, max_pixels)
    top = None if kind in (1, 4) else _PNM_MAXIMUM.match(data, header.end())
    if top is None or int(top[1]) < 256:
        image = PpmImageFile(BytesIO(data))
        image.load()
        colours, alpha, _ = _channels(image)
        return _upright(colours, alpha, Metadata(format="PPM", mode=image.mode), 1)
    maximum, channels = int(top[1]), 3 if kind in (3, 6) else 1
    if maximum > 65535:
        raise BadImageError(f"has samples up to {maximum}, more than 16 bits")
    count = width * height * channels
    if kind in (2, 3):
        samples = np.array(data[top.end() :].split()[:count], dtype=np.uint32)
    else:
        samples = np.frombuffer(data, ">u2", count, top.end()).astype(np.uint32)
    if samples.size != count:
        raise BadImageError(f"is cut short: {samples.size} of {count} samples")
    colours = ((samples * 65535 + maximum // 2) // maximum).clip(0, 65535).astype(np.uint16)
    colours = colours.reshape((height, width, 3) if channels == 3 else (height, width))
    return _upright(colours, None, Metadata(format="PPM", mode="RGB;16" if channels == 3 else "I;16"), 1)


def _read_tiff(data: bytes, max_pixels: int | None) -> Photo:
    tiff = _Tiff(data)
    page, following = tiff.directory(tiff.first)
    _check_size(tiff.number(page, 256), tiff.number(page, 257), max_pixels)
    for offsets, counts in ((273, 279), (324, 325)):  # strips, tiles
        for offset, count in zip(tiff.numbers(page, offsets), tiff.numbers(page, counts), strict=False):
            if offset + count > len(data):
                raise BadImageError(f"is cut short: {len(data)} bytes, its pixels go on to byte {offset + count}")
    orientation = tiff.number(page, 274, 1)
    if orientation != 1 and 274 in page:
        # Pillow and OpenCV turn some TIFF files themselves, and others not: none of them gets to see it.
        upright = bytearray(data)
        struct.pack_into(tiff.order + "H", upright, page[274].at, 1)
        data = bytes(upright)
    bits, kinds = set(tiff.numbers(page, 258) or (1,)), set(tiff.numbers(page, 339) or (1,))
    icc = tiff.value(page[34675]) if 34675 in page else None
    if bits == {16} and kinds == {1}:
        colours, alpha = _decode_tiff16(data, tiff, page)
        mode = ("I;16" if colours.ndim == 2 else "RGB;16") if alpha is None else "16 bits with alpha"
    elif max(bits) <= 8 and kinds == {1}:
        image = TiffImageFile(BytesIO(data))
        with _no_standard_error():
            image.load()
        mode = image.mode
        colours, alpha, icc = _channels(image)
    else:
        kind = {1: "", 2: "signed ", 3: "floating-point "}.get(max(kinds), "unusual ")
        text = f"has {kind}samples of {', '.join(str(number) for number in sorted(bits))} bits"
        raise BadImageError(text, "convert it to 8 or 16 bits a sample")
    metadata = Metadata(
        format="TIFF",
        mode=mode,
        icc=icc,
        exif=_exif_of_tiff(tiff, page, turned=orientation >= 5),
        xmp=tiff.value(page[700]) if 700 in page else None,
        # Raw bytes: writers give IPTC all kinds of types, LONG among them.
        iptc=tiff.value(page[33723]) if 33723 in page else None,
        dpi=tiff.dpi(page),
        tiff_compressed=tiff.number(page, 259, 1) != 1,
        pages=_count_pages(tiff, following),
    )
    return _upright(colours, alpha, metadata, orientation)


def _count_pages(tiff: _Tiff, following: int) -> int:
    pages, seen = 1, {tiff.first}
    while following and following not in seen:
        seen.add(following)
        try:
            directory, following = tiff.directory(following)
        except (struct.error, BadImageError):
            break  # the first page is whole, and it is the one that is read
        pages += not tiff.number(directory, 254, 0) & 1  # a reduced copy of another page is none
    return pages


def _decode_tiff16(data: bytes, tiff: _Tiff, page: dict[int, _Entry]) -> tuple[Pixels, Pixels | None]:
    """16-bit grey or RGB of the first page, straight from the file, with its alpha if there is one."""
    photometric, count = tiff.number(page, 262, 1), tiff.number(page, 277, 1)
    colours_count = {0: 1, 1: 1, 2: 3}.get(photometric)
    volume = tiff.number(page, 32997, 1) > 1  # ImageDepth
    if colours_count is None or not colours_count <= count <= 16 or volume:
        text = f"has 16-bit samples that are neither grey nor RGB (photometric {photometric}, {count} samples)"
        raise BadImageError(text, "convert it to RGB")
    compression = tiff.number(page, 259, 1)
    if compression in (1, 8, 32773, 32946) or importlib.util.find_spec("imagecodecs") is not None:
        with tifffile.TiffFile(BytesIO(data)) as file:
            first = file.pages.first
            samples = np.asarray(first.asarray())
            if count > 1 and first.planarconfig == 2:
                samples = np.moveaxis(samples, 0, -1)
    else:
        # Without imagecodecs tifffile knows no LZW; OpenCV does, but sees planes and grey with alpha wrongly.
        alone = tiff.number(page, 284, 1) == 1 and count in (1, 3, 4)
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if alone else None
        if decoded is None:
            text = f"is damaged or of a rare kind (TIFF compression {compression}, {count} samples of 16 bits)"
            raise BadImageError(text, "if it is whole, pip install 'oldphoto[archive]' or save it uncompressed")
        samples = decoded
        if samples.ndim == 3:
            samples = samples[..., [2, 1, 0, *range(3, samples.shape[2])]]
    height, width = tiff.number(page, 257), tiff.number(page, 256)
    if samples.shape != ((height, width) if count == 1 else (height, width, count)) or samples.dtype.itemsize != 2:
        raise BadImageError(f"is damaged: decoded to {samples.shape} {samples.dtype}")
    samples = samples.astype(np.uint16, copy=False)
    extra = tiff.numbers(page, 338)
    alpha = samples[..., colours_count] if count > colours_count and extra and extra[0] in (1, 2) else None
    colours = samples if count == 1 else samples[..., 0] if colours_count == 1 else samples[..., :3]
    if photometric == 0:
        colours = np.uint16(65535) - colours
    if alpha is not None and extra[0] == 1:
        divisor = np.maximum(alpha, 1).astype(np.float64)
        straight = colours * (65535 / (divisor if colours.ndim == 2 else divisor[..., None]))
        colours = np.rint(straight).clip(0, 65535).astype(np.uint16)
    return colours, alpha


_READERS: dict[Format, Callable[[bytes, int | None], Photo]] = {
    "JPEG": _read_jpeg,
    "PNG": _read_png,
    "TIFF": _read_tiff,
    "WEBP": _read_webp,
    "BMP": _read_bmp,
    "PPM": _read_pnm,
}


# --- TIFF directories: the frame of TIFF files and of every EXIF block -----------------------------------------------

# Bytes of one value, by type number.
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_NUMBER_FORMATS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}

_EXIF_POINTER, _GPS_POINTER, _INTEROPERABILITY_POINTER = 0x8769, 0x8825, 0xA005
_MAKER_NOTE = 0x927C

# What the main directory says about the photograph, not about how its pixels are stored.
_DESCRIBING = (
    *(269, 270, 271, 272, 274),  # DocumentName, ImageDescription, Make, Model, Orientation
    *(282, 283, 285, 296),  # XResolution, YResolution, PageName, ResolutionUnit
    *(305, 306, 315, 316),  # Software, DateTime, Artist, HostComputer
    *(0x4746, 0x4749, 0x8298),  # Rating, RatingPercent, Copyright
    *(0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F),  # Windows title, comment, author, keywords, subject
)


@dataclass(frozen=True)
class _Entry:
    """One tag of a directory: its type and count, and where in the file its `size` value bytes lie; `field` is where
    type, count and value (or its offset) stand in the directory.
    """

    type: int
    count: int
    field: int
    at: int
    size: int


# What a directory to be written holds: (type, count, value bytes), or a directory of its own.
_Tags = dict[int, "tuple[int, int, bytes] | _Tags"]


class _Tiff:
    """The directories in a TIFF file or EXIF block, classic or Big, either byte order; struct.error if cut short."""

    def __init__(self, data: bytes | bytearray | mmap.mmap) -> None:
        self.data = data
        marks = {b"II": "<", b"MM": ">"}
        self.order = marks.get(bytes(data[:2]), "")
        if not self.order:
            raise BadImageError("is damaged: no TIFF header")
        (version,) = struct.unpack_from(self.order + "H", data, 2)
        self.big = version == 43
        self.slot = 8 if self.big else 4
        self.first = self.unpack("Q" if self.big else "I", 8 if self.big else 4)

    def unpack(self, format: str, at: int) -> int:
        return int(struct.unpack_from(self.order + format, self.data, at)[0])

    def directory(self, at: int) -> tuple[dict[int, _Entry], int]:
        """The readable tags of the directory at this offset, by code, and the next directory's offset or 0."""
        count = self.unpack("Q" if self.big else "H", at)
        at += 8 if self.big else 2
        entries: dict[int, _Entry] = {}
        for _ in range(min(count, 65535)):
            code, kind = self.unpack("H", at), self.unpack("H", at + 2)
            values = self.unpack("Q" if self.big else "I", at + 4)
            size = values * _TYPE_SIZES.get(kind, 0)
            value_at = at + 4 + self.slot
            if size > self.slot:
                value_at = self.unpack("Q" if self.big else "I", value_at)
            if size and value_at + size <= len(self.data):
                entries.setdefault(code, _Entry(kind, values, at + 2, value_at, size))
            at += 4 + 2 * self.slot
        return entries, self.unpack("Q" if self.big else "I", at)

    def value(self, entry: _Entry) -> bytes:
        return bytes(self.data[entry.at : entry.at + entry.size])

    def numbers(self, directory: dict[int, _Entry], code: int) -> tuple[int, ...]:
        entry = directory.get(code)
        if entry is None or entry.type not in _NUMBER_FORMATS:
            return ()
        return struct.unpack_from(f"{self.order}{entry.count}{_NUMBER_FORMATS[entry.type]}", self.data, entry.at)

    def number(self, directory: dict[int, _Entry], code: int, default: int = 0) -> int:
        return next(iter(self.numbers(directory, code)), default)

    def dpi(self, directory: dict[int, _Entry]) -> tuple[float, float] | None:
        """Horizontal and vertical resolution, if it is in dots per inch or centimetre."""
        entries = [directory[code] for code in (282, 283) if code in directory and directory[code].type == 5]
        to_inch = {2: 1.0, 3: 2.54}.get(self.number(directory, 296, 2))
        if len(entries) < 2 or to_inch is None:
            return None
        fractions = [struct.unpack_from(self.order + "II", self.data, entry.at) for entry in entries]
        return _pair_or_none([to_inch * above / below if below else 0 for above, below in fractions])

    def tags(self, directory: dict[int, _Entry], codes: tuple[int, ...] | None = None) -> _Tags:
        """These tags, or all but pointers and the maker note, whose offsets would not survive a move."""
        moved = (_EXIF_POINTER, _GPS_POINTER, _INTEROPERABILITY_POINTER, _MAKER_NOTE)
        return {
            code: (entry.type, entry.count, self.value(entry))
            for code, entry in directory.items()
            if (code not in moved if codes is None else code in codes) and entry.type < 16
        }

    def child(self, directory: dict[int, _Entry], pointer: int) -> dict[int, _Entry]:
        """The directory a pointer tag leads to; empty if there is none or it is damaged."""
        try:
            return self.directory(at)[0] if (at := self.number(directory, pointer)) else {}
        except struct.error:
            return {}

    def describing_tags(self, main: dict[int, _Entry]) -> _Tags:
        """All that a main directory says of the photograph, with the EXIF, GPS and interoperability directories."""
        found = self.tags(main, _DESCRIBING)
        exif_directory = self.child(main, _EXIF_POINTER)
        exif, gps = self.tags(exif_directory), self.tags(self.child(main, _GPS_POINTER))
        if interoperability := self.tags(self.child(exif_directory, _INTEROPERABILITY_POINTER)):
            exif[_INTEROPERABILITY_POINTER] = interoperability
        found |= {_EXIF_POINTER: exif} if exif else {}
        found |= {_GPS_POINTER: gps} if gps else {}
        return found


def _pack_tags(tags: _Tags, at: int, order: str, big: bool, following: int = 0) -> bytes:
    """A directory as it lies at file offset `at`: entries by code, then what is too long for its entry."""
    slot, offset_format, count_format = (8, "Q", "Q") if big else (4, "I", "H")
    spill_at = at + struct.calcsize(f"<{count_format}") + len(tags) * (4 + 2 * slot) + slot
    entries, spill = struct.pack(order + count_format, len(tags)), b""
    for code, tag in sorted(tags.items()):
        spill += b"\0" * (-(spill_at + len(spill)) % 2)  # values begin on even offsets
        here = struct.pack(order + offset_format, spill_at + len(spill))
        if isinstance(tag, dict):
            kind, count, field = 18 if big else 4, 1, here
            spill += _pack_tags(tag, spill_at + len(spill), order, big)
        else:
            kind, count, value = tag
            field = value.ljust(slot, b"\0") if len(value) <= slot else here
            spill += value if len(value) > slot else b""
        entries += struct.pack(order + "HH" + offset_format, code, kind, count) + field
    return entries + struct.pack(order + offset_format, following) + spill


def _exif_block(value: object) -> bytes | None:
    block = _bytes_or_none(value)
    return block.removeprefix(b"Exif\0\0") or None if block else None


def _dpi_of_exif(block: bytes | None) -> tuple[float, float] | None:
    if block is None:
        return None
    try:
        tiff = _Tiff(block)
        return tiff.dpi(tiff.directory(tiff.first)[0])
    except (struct.error, BadImageError):
        return None


def _settle_orientation(block: bytes | None) -> tuple[bytes | None, int]:
    """An EXIF block as it is right for the upright photo, and the orientation it had.

    It is changed in place, so that everything keeps its offset, the maker's note included: orientation 1, sizes and
    resolutions swapped where the photo was turned by a quarter, no thumbnail. An unreadable block is left alone.
    """
    if block is None:
        return None, 1
    try:
        tiff = _Tiff(bytearray(block))
        main, thumbnail = tiff.directory(tiff.first)
        orientation = tiff.number(main, 274, 1)
        data = cast("bytearray", tiff.data)
        if 274 in main and main[274].type == 3:
            struct.pack_into(tiff.order + "H", data, main[274].at, 1)
        if 5 <= orientation <= 8:
            exif = tiff.child(main, _EXIF_POINTER)
            for directory, one, other in ((main, 282, 283), (exif, 0xA002, 0xA003), (exif, 0xA20E, 0xA20F)):
                if one in directory and other in directory:
                    a, b, length = directory[one].field, directory[other].field, 2 + 2 * tiff.slot
                    data[a : a + length], data[b : b + length] = data[b : b + length], data[a : a + length]
        if thumbnail:
            _cut_thumbnail(tiff, data, thumbnail)
    except (struct.error, BadImageError):
        return block, 1
    return bytes(data), orientation


def _cut_thumbnail(tiff: _Tiff, data: bytearray, at: int) -> None:
    """Unlink the second directory, the stored thumbnail's, and blank the picture."""
    count = tiff.unpack("H", tiff.first)
    directory, _ = tiff.directory(at)
    struct.pack_into(tiff.order + "I", data, tiff.first + 2 + 12 * count, 0)
    start, size = tiff.number(directory, 0x0201), tiff.number(directory, 0x0202)
    if start and size and start + size <= len(data):
        data[start : start + size] = bytes(size)
        if start + size == len(data):
            del data[start:]


def _exif_of_tiff(tiff: _Tiff, page: dict[int, _Entry], *, turned: bool) -> bytes | None:
    """A TIFF file's description of the photograph as an EXIF block, right for the upright photo."""
    tags = tiff.describing_tags(page)
    if 274 in tags:
        tags[274] = (3, 1, struct.pack(tiff.order + "H", 1))
    if turned and 282 in tags and 283 in tags:
        tags[282], tags[283] = tags[283], tags[282]
    if not tags:
        return None
    order = b"II" if tiff.order == "<" else b"MM"
    return order + struct.pack(tiff.order + "HI", 42, 8) + _pack_tags(tags, 8, tiff.order, big=False)


# --- from a photo to file content ------------------------------------------------------------------------------------


def _pillow_options(photo: Photo, *, three_channels: bool = False) -> dict[str, Any]:
    """Metadata as Pillow's writers of JPEG and WebP take it."""
    metadata = photo.metadata
    options: dict[str, Any] = {}
    # A grey profile does not fit three channels.
    if metadata.icc is not None and not (three_channels and metadata.icc[16:20] == b"GRAY"):
        options["icc_profile"] = metadata.icc
    if metadata.xmp is not None:
        options["xmp"] = metadata.xmp
    return options


def _save(image: Image.Image, handle: BinaryIO, **options: Any) -> None:
    # Through memory: Pillow's own writing turns a full disk into "encoder error -2".
    content = BytesIO()
    image.save(content, **options)
    handle.write(content.getbuffer())


def _write_jpeg(photo: Photo, handle: BinaryIO, quality: int | None) -> None:
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
    # Neither optimised nor progressive: for these Pillow guesses a buffer's size, and fails on very noisy photos.
    _save(photo.to_pillow(), handle, format="JPEG", subsampling=metadata.jpeg_subsampling or 0, **options)


def _write_webp(photo: Photo, handle: BinaryIO, quality: int | None) -> None:
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


def _write_bmp(photo: Photo, handle: BinaryIO, quality: int | None) -> None:
    options = {} if photo.metadata.dpi is None else {"dpi": photo.metadata.dpi}
    _save(photo.to_pillow(), handle, format="BMP", **options)


def _write_pnm(photo: Photo, handle: BinaryIO, quality: int | None) -> None:
    top = (1 << photo.depth) - 1
    handle.write(f"P{5 if photo.grey else 6}\n{photo.width} {photo.height}\n{top}\n".encode())
    samples = _samples(photo, slice(None))
    handle.write(np.ascontiguousarray(samples, dtype=samples.dtype.newbyteorder(">")).data)


def _write_png(photo: Photo, handle: BinaryIO, quality: int | None) -> None:
    """By hand, since no library at hand writes grey with alpha at 16 bits, or the metadata at any 16."""
    metadata = photo.metadata

    def chunk(name: bytes, body: bytes) -> None:
        handle.write(struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(name))))

    handle.write(b"\x89PNG\r\n\x1a\n")
    colour_type = (0 if photo.grey else 2) + (0 if photo.alpha is None else 4)
    chunk(b"IHDR", struct.pack(">IIBBBBB", photo.width, photo.height, photo.depth, colour_type, 0, 0, 0))
    for name, body in metadata.png_chunks:
        chunk(name, body)
    if metadata.icc is not None:
        chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc))
    if metadata.dpi is not None:
        across, down = (round(dots / 0.0254) for dots in metadata.dpi)
        chunk(b"pHYs", struct.pack(">IIB", across, down, 1))
    if metadata.exif is not None:
        chunk(b"eXIf", metadata.exif)
    if metadata.xmp is not None:
        chunk(b"iTXt", _PNG_XMP + b"\0\0\0\0" + metadata.xmp)
    packer = zlib.compressobj(6, strategy=zlib.Z_FILTERED)
    above: NDArray[np.uint8] | None = None
    step = max(1, (1 << 21) // (photo.width * photo.depth // 2))  # rows that make about 2 MB
    for top in range(0, photo.height, step):
        samples = _samples(photo, slice(top, top + step))
        pixel_bytes = samples.shape[2] * photo.depth // 8
        big_endian = np.ascontiguousarray(samples, dtype=samples.dtype.newbyteorder(">"))
        rows = big_endian.view(np.uint8).reshape(len(samples), -1)
        if packed := packer.compress(_paeth_filtered(rows, above, pixel_bytes)):
            chunk(b"IDAT", packed)
        above = rows[-1]
    chunk(b"IDAT", packer.flush())
    chunk(b"IEND", b"")


def _paeth_filtered(rows: NDArray[np.uint8], above: NDArray[np.uint8] | None, pixel_bytes: int) -> bytes:
    """PNG rows (h, bytes) less what their neighbours foretell, each with its filter number before it.

    above: the row before the first, None at the top of the picture. pixel_bytes: from a byte to the same one of the
    pixel to its left.
    """
    here = rows.astype(np.int16)
    up = np.vstack([np.zeros_like(here[:1]) if above is None else above[None].astype(np.int16), here[:-1]])
    left, corner = np.zeros_like(here), np.zeros_like(here)
    left[:, pixel_bytes:], corner[:, pixel_bytes:] = here[:, :-pixel_bytes], up[:, :-pixel_bytes]
    to_left, to_up, to_corner = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
    guess = np.where(to_up <= to_corner, up, corner)
    guess = np.where((to_left <= to_up) & (to_left <= to_corner), left, guess)
    filtered = np.empty((rows.shape[0], rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = 4
    filtered[:, 1:] = (here - guess).astype(np.uint8)
    return filtered.tobytes()


def _write_tiff(photo: Photo, handle: BinaryIO, quality: int | None) -> None:
    """tifffile writes the pixels; the tags it does not take are added behind them."""
    metadata = photo.metadata
    order, tags = "<", _Tags()
    if metadata.exif is not None:
        try:
            block = _Tiff(metadata.exif)
            order, tags = block.order, block.describing_tags(block.directory(block.first)[0])
        except (struct.error, BadImageError):
            tags = {}  # a block that cannot be read cannot be taken apart either
    for code, kind, value in ((700, 1, metadata.xmp), (33723, 7, metadata.iptc), (34675, 7, metadata.icc)):
        if value is not None:
            tags[code] = (kind, len(value), value)
    samples = _samples(photo, slice(None))
    options: dict[str, Any] = {}
    if metadata.tiff_compressed:
        # Deflate, also for what was LZW: tifffile writes it without a 78 MB codec library, and it is as lossless.
        options |= {"compression": "zlib", "predictor": True}
    if metadata.dpi is not None:
        options |= {"resolution": metadata.dpi, "resolutionunit": "INCH"}
    tifffile.imwrite(
        handle,
        samples[..., 0] if samples.shape[2] == 1 else samples,
        photometric="minisblack" if photo.grey else "rgb",
        planarconfig=None if samples.shape[2] == 1 else "contig",
        extrasamples=None if photo.alpha is None else ["unassalpha"],
        byteorder=cast("Literal['<', '>']", order),
        software=False,
        metadata=None,
        **options,
    )
    handle.flush()
    _add_tags(handle, tags)


def _add_tags(handle: BinaryIO, tags: _Tags) -> None:
    """Put a new main directory behind the file's end, the old one's tags and these, and let the header point to it."""
    with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
        tiff = _Tiff(content)
        page, _ = tiff.directory(tiff.first)
        # LONG8 values included: the offsets of a BigTIFF's pixels, which stay where they are.
        tags = {code: (entry.type, entry.count, tiff.value(entry)) for code, entry in page.items()} | tags
        end = len(content)
        tiff.data = b""
    at = (end + 7) // 8 * 8
    handle.seek(end)
    handle.write(b"\0" * (at - end) + _pack_tags(tags, at, tiff.order, tiff.big))
    handle.seek(8 if tiff.big else 4)
    handle.write(struct.pack(tiff.order + ("Q" if tiff.big else "I"), at))


_WRITERS: dict[Format, Callable[[Photo, BinaryIO, int | None], None]] = {
    "JPEG": _write_jpeg,
    "PNG": _write_png,
    "TIFF": _write_tiff,
    "WEBP": _write_webp,
    "BMP": _write_bmp,
    "PPM": _write_pnm,
}
