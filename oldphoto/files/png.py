"""PNG: chunks by hand, since no library at hand keeps all metadata, or writes grey with alpha at 16 bits."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from typing import BinaryIO, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngImageFile

from oldphoto.errors import BadImageError
from oldphoto.files.colour import Pixels, bands
from oldphoto.files.decoding import Limits, animation, no_standard_error
from oldphoto.files.exif import exif_block, pair_or_none, settle_orientation
from oldphoto.files.photo import Metadata, Photo, channels, samples_of, upright


def read_png(data: bytes, limits: Limits) -> Photo:
    """A still PNG of any depth."""
    notes: list[str] = []
    chunks = _png_chunks(data, notes)
    if b"acTL" in dict(chunks):
        raise animation()
    width, height, bits, colour_type, _, _, _interlaced = struct.unpack(">IIBBBBB", chunks[0][1])
    first = dict(reversed(chunks))  # of chunks that come once, the first counts
    limits.check(width, height, _pixel_bytes(bits, colour_type, transparent=b"tRNS" in first))
    exif, orientation = settle_orientation(exif_block(first.get(b"eXIf")))
    dpi = None
    if len(density := first.get(b"pHYs", b"")) == 9 and density[8] == 1:
        across, down = struct.unpack_from(">II", density)
        dpi = pair_or_none((_dpi_from_metre(across), _dpi_from_metre(down)))
    packets = [body for name, body in chunks if name == b"iTXt" and body.startswith(_PNG_XMP)]
    xmp = next((text for body in packets if (text := _png_xmp(body))), None)
    icc = _png_profile(first.get(b"iCCP"))
    if len(packets) > (xmp is not None):
        notes.append("an XMP packet is damaged, too large or one too many: it is left out")
    if icc is None and b"iCCP" in first:
        notes.append("its colour profile is damaged or too large: it is left out")
    carried = tuple(
        (name, body) for name, body in chunks if name in _CARRIED or (name == b"iTXt" and not body.startswith(_PNG_XMP))
    )
    if dropped := sorted(
        {name.decode("latin-1") for name, _ in chunks if name not in _KEPT and name not in _OF_NO_USE}
    ):
        notes.append(f"chunks of a kind that is not kept are left out ({', '.join(map(repr, dropped))})")
    metadata = Metadata(format="PNG", icc=icc, exif=exif, xmp=xmp, dpi=dpi, png_chunks=carried)
    # The decoders see what was looked at here, and nothing else.
    data = _plain(data, chunks)
    if bits == 16:
        colours, alpha = _decode_png16(data, colour_type, first.get(b"tRNS"))
        mode = {0: "I;16", 2: "RGB;16", 4: "LA;16", 6: "RGBA;16"}[colour_type]
    else:
        image = PngImageFile(BytesIO(data))
        image.load()
        colours, alpha, _ = channels(image)
        mode = image.mode
    return upright(colours, alpha, replace(metadata, mode=mode), orientation, notes)


def _pixel_bytes(bits: int, colour_type: int, *, transparent: bool) -> float:
    """The most memory that reading takes for each pixel."""
    if bits == 16:
        return {0: 10, 2: 7}.get(colour_type, 22) if not transparent else 30
    return {0: 5.5, 2: 8.5, 3: 9.5, 4: 12.5}.get(colour_type, 13.5)


_CARRIED = (b"gAMA", b"cHRM", b"sRGB", b"cICP", b"tEXt", b"zTXt")
_KEPT = (*_CARRIED, b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"iCCP", b"iTXt", b"eXIf", b"pHYs")
_OF_NO_USE = (b"sBIT", b"bKGD", b"hIST", b"tIME")  # of how the pixels were stored, or when
_PNG_XMP = b"XML:com.adobe.xmp\0"


def _png_chunks(data: bytes, notes: list[str]) -> list[tuple[bytes, bytes]]:
    """Name and content of every chunk but the pixels'. Checksums are checked here since OpenCV shows what it has.

    notes: what is left out because its checksum is wrong is added to them.
    """
    chunks: list[tuple[bytes, bytes]] = []
    for name, start, length in _places(data):
        body = data[start : start + length] if name != b"IDAT" else memoryview(data)[start : start + length]
        whole = zlib.crc32(body, zlib.crc32(name)) == int.from_bytes(data[start + length : start + length + 4])
        if not whole and name[:1].isupper():
            raise BadImageError(f"is damaged: wrong checksum of {name.decode('latin-1')}")
        if not whole:
            notes.append(f"chunk {name.decode('latin-1')!r} has a wrong checksum and is left out")
        elif name != b"IDAT":
            chunks.append((name, bytes(body)))
    if chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
        raise BadImageError("is damaged: no PNG header")
    if [name for name, _ in chunks].count(b"IHDR") > 1:
        raise BadImageError("is damaged: it has two headers")
    return chunks


def _places(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and length of each chunk up to the end."""
    at, name = 8, b""
    for _ in range(_MOST_CHUNKS):
        length, name = struct.unpack_from(">I4s", data, at)
        if at + 12 + length > len(data):
            raise BadImageError(f"is damaged or cut short: chunk {name.decode('latin-1')!r} goes on beyond its end")
        yield name, at + 8, length
        at += 12 + length
        if name == b"IEND":
            return
    raise BadImageError(f"has more than {_MOST_CHUNKS} chunks", "save it anew")


# A photo of 500 megapixels has some 200,000, where they are of 8 kB.
_MOST_CHUNKS = 1 << 20


def _plain(data: bytes, chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG of these chunks' pixels, with nothing else in it: what decoders make of other chunks is not wanted."""
    first = dict(reversed(chunks))
    out = bytearray(b"\x89PNG\r\n\x1a\n")
    for name in (b"IHDR", b"PLTE", b"tRNS"):
        if name in first:
            out += _chunk(name, first[name])
    for name, start, length in _places(data):
        if name == b"IDAT":
            out += memoryview(data)[start - 8 : start + length + 4]
    out += _chunk(b"IEND", b"")
    return bytes(out)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(name)))


def _inflate(data: bytes) -> bytes:
    # Bounded: a few bytes can unfold into gigabytes.
    stream = zlib.decompressobj()
    text = stream.decompress(data, _MOST_UNPACKED)
    if stream.unconsumed_tail:
        raise zlib.error("too large")
    return text


_MOST_UNPACKED = 1 << 26


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
    with no_standard_error():
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint16:
        raise BadImageError("is damaged or cut short")
    samples = cast("NDArray[np.uint16]", decoded)
    colours = samples
    if samples.ndim == 3 and samples.shape[2] == 3 and colour_type == 2:
        for rows in bands(samples):  # in its place: as one piece the photo would be there twice
            samples[rows] = samples[rows, :, ::-1].copy()
    elif samples.ndim == 3:
        colours = samples[..., 0] if colour_type in (0, 4) else samples[..., 2::-1]
    alpha = None
    if colour_type in (4, 6):
        alpha = samples[..., 3]
    elif transparent is not None:
        key = np.frombuffer(transparent, ">u2").astype(np.uint16)
        same = colours == (key[0] if colours.ndim == 2 else key[:3])
        alpha = np.where(same if same.ndim == 2 else same.all(axis=2), 0, 65535).astype(np.uint16)
    return colours, alpha


def write_png(photo: Photo, handle: BinaryIO, quality: int | None) -> None:
    """By hand, since no library at hand writes grey with alpha at 16 bits, or the metadata at any 16."""
    metadata = photo.metadata

    def chunk(name: bytes, body: bytes) -> None:
        handle.write(_chunk(name, body))

    handle.write(b"\x89PNG\r\n\x1a\n")
    colour_type = (0 if photo.grey else 2) + (0 if photo.alpha is None else 4)
    chunk(b"IHDR", struct.pack(">IIBBBBB", photo.width, photo.height, photo.depth, colour_type, 0, 0, 0))
    for name, body in metadata.png_chunks:
        chunk(name, body)
    if photo.icc is not None:
        chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(photo.icc))
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
        samples = samples_of(photo, slice(top, top + step))
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
