"""Photographs from files and into files: read with everything but the pixels kept, written whole or not at all.

The file's content says its format, not its name. What the decoders are trusted with, and why:
- JPEG: libjpeg through simplejpeg, which passes on what libjpeg warns of; Pillow and OpenCV do not.
- 8 bits a sample: Pillow, called by plug-in, so that its own size limit and format guessing stay out of the way.
- 16 bits: OpenCV, which also has JPEG 2000 and deep AVIF. Pillow opens 16-bit RGB as 8 bits without a word, and clips
  16-bit grey.
- TIFF: see tiff_blocks.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from oldphoto.errors import BadImageError, FileAccessError, RefusedOverwriteError, UsageError
from oldphoto.files.colour import Pixels
from oldphoto.files.decoding import Limits, as_bad_image, quiet
from oldphoto.files.exif import Content, Tiff, has_maker_note
from oldphoto.files.heif import read_avif, read_heic, why_not_written, write_avif, write_heic
from oldphoto.files.jpeg2000 import CODESTREAM, bytes_to_write, larger_than_its_source, read_jpeg2000, write_jpeg2000
from oldphoto.files.netpbm import read_pnm, write_pnm
from oldphoto.files.photo import FORMATS, Format, Metadata, Photo
from oldphoto.files.plugins import read_bmp, read_jpeg, read_webp, write_bmp, write_jpeg, write_webp
from oldphoto.files.png import read_png, write_png
from oldphoto.files.tiff import find_pages, read_tiff, write_tiff
from oldphoto.machine.disk import is_folder, move, open_file, sync

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "PHOTO_SUFFIXES",
    "Metadata",
    "Photo",
    "Pixels",
    "count_pages",
    "format_of_suffix",
    "format_suffix",
    "hidden_name",
    "not_held",
    "output_format",
    "read_pages",
    "read_photo",
    "remove_parts",
    "same_format",
    "write_pages",
    "write_photo",
    "writing_bytes",
]

# A 10 x 8 inch original scanned at 2400 dpi has 461 million pixels.
DEFAULT_MAX_PIXELS = 500_000_000
# The pages of a file may have as many pixels together as so many photos.
_PAGES_AT_MOST = 20

_FORMAT_OF_SUFFIX: dict[str, Format] = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
    ".jp2": "JPEG2000",
    ".jpx": "JPEG2000",
    ".bmp": "BMP",
    ".dib": "BMP",
    ".pgm": "PPM",
    ".ppm": "PPM",
    ".pnm": "PPM",
    ".pbm": "PPM",
    ".avif": "AVIF",
    ".heic": "HEIC",
    ".heif": "HEIC",
}

# What a folder is searched for, in lower case. A file named outright is read whatever its name is.
PHOTO_SUFFIXES: tuple[str, ...] = tuple(_FORMAT_OF_SUFFIX)

# Names that promise another format than any written here.
_FOREIGN_SUFFIXES = (".gif", ".jxl", ".pdf", ".psd", ".svg")

_READABLE = "JPEG, PNG, TIFF, WebP, JPEG 2000, BMP, PGM/PPM, AVIF, HEIC"
_FOREIGN_CONTENT = (
    (b"GIF8", 0, "a GIF picture"),
    (b"JXL ", 4, "a JPEG XL picture"),
    (b"%PDF", 0, "a PDF document"),
    (b"8BPS", 0, "a Photoshop document"),
    (b"ftypcrx ", 4, "the raw file of a camera"),
    (b"IIRO", 0, "the raw file of a camera"),
    (b"IIRS", 0, "the raw file of a camera"),
    (b"MMOR", 0, "the raw file of a camera"),
    (b"IIU\0", 0, "the raw file of a camera"),
    (b"FUJIFILMCCD-RAW", 0, "the raw file of a camera"),
    (b"\xff\x0a", 0, "a JPEG XL picture"),
)

_HIDDEN = re.compile(r"\.oldphoto-[0-9a-f]{12}-")

_OS_ADVICE = {
    errno.ENOENT: "check the name and the folder",
    errno.EACCES: "check the permissions of the file and its folder",
    errno.EPERM: "check the permissions of the file and its folder",
    errno.EROFS: "write to another folder",
    errno.ENOSPC: "free some space or write to another disk",
    errno.EDQUOT: "free some space or write to another disk",
}


def read_photo(source: str | os.PathLike[str] | bytes, *, max_pixels: int | None = DEFAULT_MAX_PIXELS) -> Photo:
    """The first page of a file, or of a file's content, turned upright as its EXIF orientation says.

    max_pixels: the largest width x height that is decoded, told from the header; None for any.
    Raises FileAccessError if the file cannot be read, BadImageError if it is not a picture, damaged or too large.
    A TIFF's channels beyond colour and one alpha are left out; associated alpha is made straight.
    """
    return next(read_pages(source, max_pixels=max_pixels))


def read_pages(
    source: str | os.PathLike[str] | bytes,
    *,
    max_pixels: int | None = DEFAULT_MAX_PIXELS,
    admit: Callable[[int], None] = lambda size: None,
    only: int | None = None,
) -> Iterator[Photo]:
    """The photos of a file in turn, each decoded when it is asked for: a TIFF may hold more than one.

    admit: is called before a file is loaded, which a TIFF is not, and before each page is decoded, with the bytes of
        memory that takes more; it returns when they may be taken. Its errors go on.
    only: the page to read, counted from 0, or the last one where there are fewer; None for all.
    Other arguments and errors as in read_photo.
    """
    limits = Limits(max_pixels, admit)
    if isinstance(source, bytes):
        yield from _pages(source, "the picture", limits, only)
        return
    path = Path(source)
    with _opened(path) as file:
        content = _FileContent(file, path)
        head = content[:_HEAD]
        if head[:4] in _TIFF_MARKS:  # read strip by strip
            yield from _pages(content, path.name, limits, only)
            return
        admit(len(content))
        data = content[:]
    yield from _pages(data, path.name, limits, only)


def _pages(content: Content, name: str, limits: Limits, only: int | None) -> Iterator[Photo]:
    with quiet(), as_bad_image(name):
        format = _format_of(bytes(content[:_HEAD]))
        if format != "TIFF":
            photo = _READERS[format](bytes(content[:]), limits)
    if format != "TIFF":
        yield photo
        return
    max_pixels = limits.max_pixels
    with as_bad_image(name):
        tiff = Tiff(content)
        pages = find_pages(tiff)
        count = len(pages.offsets)
        most = None if max_pixels is None else _PAGES_AT_MOST * max_pixels
        if most is not None and count > 1 and pages.pixels > most:
            text = f"has {count} pages of {pages.pixels / 1e6:,.0f} million pixels together"
            raise BadImageError(f"{text}; the limit is {most / 1e6:,.0f} million", "split it, or raise --max-pixels")
    for page in range(count) if only is None else [min(only, count - 1)]:
        with quiet(), as_bad_image(name if count == 1 else f"{name}, page {page + 1},"):
            photo = read_tiff(tiff, pages, page, limits)
        yield photo


def count_pages(path: Path) -> int:
    """How many photos read_pages will give, told from the file's directories alone; 1 if they cannot be read."""
    try:
        with open_file(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return len(find_pages(Tiff(content)).offsets) if _format_of(content[:64]) == "TIFF" else 1
    except Exception:  # decoders' are of every kind
        return 1  # what is wrong is told when it is read


def write_photo(
    photo: Photo,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    quality: int | None = None,
    before_move: Callable[[Path], None] = lambda part: None,
) -> None:
    """Write one photo with all the metadata the format takes; as write_pages does."""
    write_pages([photo], path, format=format, quality=quality, before_move=before_move)


def write_pages(
    photos: Iterable[Photo],
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    quality: int | None = None,
    before_move: Callable[[Path], None] = lambda part: None,
    replace_file: bool = True,
) -> None:
    """Write photos into one file, with all the metadata its format takes: whole, in one step, or not at all.

    It goes to a temporary file in the target's folder, which then takes the target's place; a link is replaced, not
    followed. On any failure, Ctrl-C included, the temporary file is removed and what was at `path` is still there.
    photos: at least one, asked for when its turn has come; more than one for TIFF only. A failure of theirs goes on.
    format: as in output_format. quality: 1 to 100, for JPEG and WebP; the lossless formats pay no heed. None reuses a
    JPEG source's own quantisation for a JPEG, keeps a lossless WebP lossless, and else takes 95.
    before_move: called with the temporary file when it is whole; what it raises is a failure like any other.
    replace_file: not set, what has come to be at `path` by then stays, and is a RefusedOverwriteError.
    Raises UsageError as output_format does, FileAccessError if the file cannot be written.
    """
    path = Path(path)
    if quality is not None and not 1 <= quality <= 100:
        raise UsageError(f"quality is {quality}", "use 1 to 100")
    turn = iter(photos)
    first = next(turn)
    target = output_format(first, path, format)
    part = hidden_name(path)
    try:
        try:
            with part.open("x+b") as handle:
                if target == "TIFF":
                    write_tiff(chain([first], turn), handle, quality)
                else:
                    _WRITERS[target](first, handle, quality)
                    if any(True for _ in turn):
                        raise UsageError(f"{path.name}: {target} holds one picture", "write a .tif file instead")
                sync(handle)
            before_move(part)
            move(part, path, replace=replace_file)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except FileExistsError as error:
        raise RefusedOverwriteError(f"{path} has come to exist meanwhile", "is another run writing there?") from error
    except OSError as error:
        raise _file_access_error("write", path, error) from error


def remove_parts(*paths: Path) -> None:
    """Delete the temporary files that a killed process left behind while it wrote these; never raises OSError."""
    ours: dict[Path, set[str]] = {}
    for path in paths:
        ours.setdefault(path.parent, set()).add(_hidden_prefix(path))
    for folder, prefixes in ours.items():
        with suppress(OSError):
            for part in folder.glob(".oldphoto-*"):
                if _HIDDEN.match(part.name) and _hidden_prefix(part) in prefixes:
                    part.unlink()


def hidden_name(path: Path) -> Path:
    """A new name of the same suffix beside `path`, for a file that is to take its place; remove_parts finds it."""
    return path.with_name(f"{_hidden_prefix(path)}{secrets.token_hex(6)}{path.suffix}")


def _hidden_prefix(path: Path) -> str:
    if hidden := _HIDDEN.match(path.name):
        return hidden[0]  # what is written on the way to a hidden file belongs to the same target
    # Beside the target, so on the same disk; of constant length, so never too long; hidden from folder scans.
    return f".oldphoto-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]}-"


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
    if (why := why_not_written(chosen)) is not None:
        raise UsageError(f"{path.name}: {why[0]}", why[1])
    if photo.depth == 16 and chosen in ("JPEG", "WEBP", "BMP", "AVIF", "HEIC"):
        raise UsageError(f"{path.name}: {chosen} cannot hold the photo's 16 bits", lossless)
    if photo.depth == 16 and photo.grey and photo.alpha is not None and chosen == "JPEG2000":
        raise UsageError(f"{path.name}: JPEG 2000 cannot hold 16-bit grey with transparency here", lossless)
    if photo.alpha is not None and chosen in ("JPEG", "BMP", "PPM"):
        raise UsageError(f"{path.name}: {chosen} cannot hold the photo's transparency", lossless)
    if chosen == "JPEG2000" and min(photo.width, photo.height) < 32:
        raise UsageError(f"{path.name}: JPEG 2000 begins at 32 pixels a side here", lossless)
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


def not_held(photo: Photo, format: Format) -> list[str]:
    """What of the photo's metadata this format has no place for, one line each: it will be missing from the file."""
    held = photo.metadata
    grey_profile = photo.icc is not None and photo.icc[16:20] == b"GRAY"
    without_icc: tuple[Format, ...] = ("BMP", "PPM", "WEBP", "AVIF", "HEIC")
    if not grey_profile:
        without_icc = "BMP", "PPM"
    lost: list[tuple[object, str, tuple[Format, ...]]] = [
        (held.icc if photo.inks is None or format in ("JPEG", "TIFF") else None, "colour profile", without_icc),
        (held.exif, "EXIF data", ("BMP", "PPM")),
        (held.xmp, "XMP", ("BMP", "PPM")),
        (held.iptc, "IPTC records", ("PNG", "WEBP", "BMP", "PPM", "AVIF", "HEIC")),
        (held.photoshop, "Photoshop's resources", _all_but("JPEG", "TIFF")),
        (held.comments, "comments", _all_but("JPEG")),
        (held.extended_xmp, "extended XMP", _all_but("JPEG")),
        (held.beside, "pages beside the photo (masks, infrared)", _all_but("TIFF")),
        (any(name in (b"tEXt", b"zTXt", b"iTXt") for name, _ in held.png_chunks), "PNG texts", _all_but("PNG")),
        (held.dpi if held.exif is None else None, "resolution", ("PPM", "WEBP", "AVIF", "HEIC")),
        (format == "TIFF" and has_maker_note(held.exif), "maker's note in the EXIF data", ("TIFF",)),
    ]
    lines = [
        f"{format} has no place for the photo's {what}" for value, what, missing in lost if value and format in missing
    ]
    larger = larger_than_its_source(photo) if format == "JPEG2000" else None
    return lines if larger is None else [*lines, larger]


def writing_bytes(photo: Photo, format: Format, scale: int = 1) -> int:
    """The most memory in bytes that writing takes beside the photo itself, which is `scale` times larger by then."""
    count = 4 if photo.inks is not None else (1 if photo.grey else 3) + (photo.alpha is not None)
    return int(photo.width * photo.height * scale * scale * _WRITTEN[format](count, photo)) + _WHILE_WRITING


# Bands, strips and their compression.
_WHILE_WRITING = 64 << 20
# Bytes for each pixel of so many channels: libraries hold the picture as they want it, and what they make of it.
_WRITTEN: dict[Format, Callable[[int, Photo], float]] = {
    "PNG": lambda count, photo: 0,
    "TIFF": lambda count, photo: 4 if photo.inks is not None else 0,
    "PPM": lambda count, photo: 0,
    "BMP": lambda count, photo: 3 if count == 1 else 8,
    "JPEG": lambda count, photo: {1: 3, 3: 7}.get(count, 13),
    "WEBP": lambda count, photo: 90 if count in (2, 4) or photo.metadata.webp_lossless else 20,
    "JPEG2000": lambda count, photo: bytes_to_write(count, photo),
    "AVIF": lambda count, photo: 60,
    "HEIC": lambda count, photo: 60,
}


def _all_but(*formats: Format) -> tuple[Format, ...]:
    return tuple(format for format in FORMATS if format not in formats)


def format_suffix(format: str) -> str:
    """What names of files in this format end in. Raises UsageError if it is unknown or cannot be written here."""
    suffix = f".{format.lower().lstrip('.')}"
    chosen = _FORMAT_OF_SUFFIX.get(suffix)
    if chosen is None:
        raise UsageError(f"cannot write {format} files", f"use one of {', '.join(sorted(_FORMAT_OF_SUFFIX))}")
    if (why := why_not_written(chosen)) is not None:
        raise UsageError(why[0], why[1])
    return {".jpeg": ".jpg", ".tiff": ".tif"}.get(suffix, suffix)


def same_format(one: str, other: str) -> bool:
    """Whether two suffixes promise the same format."""
    return _FORMAT_OF_SUFFIX.get(one.lower()) == _FORMAT_OF_SUFFIX.get(other.lower())


# What a format is told by, brands of HEIC and comments of PGM included.
_HEAD = 512
_TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _opened(path: Path) -> BinaryIO:
    try:
        if is_folder(path):
            raise FileAccessError(f"{path} is a folder, not a picture", "name a file in it")
        return open_file(path)
    except OSError as error:
        raise _file_access_error("read", path, error) from error


class _FileContent:
    """The bytes of an open file, read when they are asked for. Raises FileAccessError where they cannot be."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._size = file.seek(0, os.SEEK_END)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice, /) -> bytes:
        start, stop, _ = part.indices(self._size)
        try:
            self._file.seek(start)
            return self._file.read(max(0, stop - start))
        except OSError as error:
            raise _file_access_error("read", self._path, error) from error


def _file_access_error(verb: str, path: Path, error: OSError) -> FileAccessError:
    return FileAccessError(f"cannot {verb} {path}: {error.strerror or error}", _OS_ADVICE.get(error.errno or 0, ""))


def _format_of(data: bytes) -> Format:
    if not data:
        raise BadImageError("is empty (0 bytes)")
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] in _TIFF_MARKS:
        return "TIFF"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith(CODESTREAM) or data[4:8] == b"jP  ":
        return "JPEG2000"
    if data[4:8] == b"ftyp":
        brands = {data[8:12], *(data[at : at + 4] for at in range(16, min(int.from_bytes(data[:4]), 256), 4))}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        if brands & {b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"}:
            return "HEIC"
    if data.startswith(b"BM"):
        return "BMP"
    if re.match(rb"P[1-6][\s#]", data):
        return "PPM"
    for magic, at, what in _FOREIGN_CONTENT:
        if data[at:].startswith(magic):
            raise BadImageError(f"is {what}, which is not read here", f"convert it to one of {_READABLE}")
    raise BadImageError(f"is not a picture that is read here ({_READABLE})")


_READERS: dict[Format, Callable[[bytes, Limits], Photo]] = {
    "JPEG": read_jpeg,
    "PNG": read_png,
    "WEBP": read_webp,
    "JPEG2000": read_jpeg2000,
    "BMP": read_bmp,
    "PPM": read_pnm,
    "AVIF": read_avif,
    "HEIC": read_heic,
}
_WRITERS: dict[Format, Callable[[Photo, BinaryIO, int | None], None]] = {
    "JPEG": write_jpeg,
    "PNG": write_png,
    "WEBP": write_webp,
    "JPEG2000": write_jpeg2000,
    "BMP": write_bmp,
    "PPM": write_pnm,
    "AVIF": write_avif,
    "HEIC": write_heic,
}


def format_of_suffix(suffix: str) -> Format:
    """The format that a suffix of PHOTO_SUFFIXES promises."""
    return _FORMAT_OF_SUFFIX[suffix]
