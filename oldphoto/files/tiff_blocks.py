"""The pixels of a TIFF page: how its directory says that they lie, and each strip or tile unpacked by itself.

What a tag means is decided here, and is the same for every compression and depth; libraries only unpack bytes: zlib,
liblzma, libjpeg, and libtiff for LZW, PackBits, Zstandard and fax. No strip or tile is given more room than the
directory's width and height make of it, whatever its bytes would unfold to.
"""

from __future__ import annotations

import itertools
import lzma
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from oldphoto.errors import BadImageError
from oldphoto.files.colour import Pixels
from oldphoto.files.decoding import no_standard_error
from oldphoto.files.exif import MOST_NUMBERS, Entry, Tiff, pack_tags
from oldphoto.files.jpeg import decoded, frame_size, with_transform

NONE, RLE, FAX3, FAX4, LZW, OLD_JPEG, JPEG, DEFLATE, PACKBITS = 1, 2, 3, 4, 5, 6, 7, 8, 32773
OLD_DEFLATE, LZMA, ZSTD, WEBP, JPEG2000 = 32946, 34925, 50000, 50001, 34712
_FAX = (RLE, FAX3, FAX4)
_BY_LIBTIFF = (LZW, PACKBITS, ZSTD)
_PICTURES = (OLD_JPEG, JPEG, WEBP, JPEG2000)  # each strip or tile is a file of its own
_READ = (NONE, *_FAX, *_BY_LIBTIFF, DEFLATE, OLD_DEFLATE, LZMA, *_PICTURES)
_NAMES = {
    **{32766: "NeXT", 32809: "ThunderScan", 34661: "JBIG", 34676: "SGILog", 34677: "SGILog 24", 34887: "LERC"},
    **{33003: "Aperio JPEG 2000", 33005: "Aperio JPEG 2000", 22610: "JPEG XR", 34934: "JPEG XR", 50002: "JPEG XL"},
    52546: "JPEG XL",
}
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, MASK, CMYK, YCBCR = range(7)
_PHOTOMETRIC_NAMES = {
    **{8: "CIELAB", 9: "ICCLab", 10: "ITULab", 32844: "LogL", 32845: "LogLuv"},
    **{32803: "raw sensor data", 34892: "raw sensor data"},
}
_CONVERT = "convert it to 8- or 16-bit grey or RGB, for example with ImageMagick"
# More strips or tiles than this are no photo's: each takes its time, however small it is.
_MOST_BLOCKS = MOST_NUMBERS
_AT_ONCE = 1 << 20  # bytes that are unpacked at once where strips are small


@dataclass(frozen=True)
class Layout:
    """How the samples of a page lie in its file.

    bits: of each sample, 1, 2, 4, 8 or 16. count: samples a pixel, of which the first `colours` are colours; all that
    JPEG 2000 and WebP have in them. extra: what the others are, by ExtraSamples. block: width and height of a strip or
    tile. offsets, sizes: of each, plane by plane where `planar`. sampling: of YCbCr, across and down.
    palette: (3, n) uint8 of a palette, else None.
    """

    width: int
    height: int
    bits: int
    count: int
    colours: int
    extra: tuple[int, ...]
    photometric: int
    compression: int
    planar: bool
    predicted: bool
    reversed_bits: bool
    order: str
    block: tuple[int, int]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    sampling: tuple[int, int]
    coefficients: tuple[float, ...]
    reference: tuple[float, ...]
    tables: bytes
    fax_options: int
    palette: NDArray[np.uint8] | None
    notes: tuple[str, ...] = ()

    @property
    def across(self) -> int:
        """Blocks side by side."""
        return -(-self.width // self.block[0])

    @property
    def down(self) -> int:
        """Blocks one below the other."""
        return -(-self.height // self.block[1])


def layout_of(tiff: Tiff, directory: dict[int, Entry]) -> Layout:
    """What a directory says of its pixels; a BadImageError if that contradicts itself, or is of a kind not read."""
    number, numbers = tiff.number, tiff.numbers
    width, height = number(directory, 256), number(directory, 257)
    depths = set(numbers(directory, 258) or (1,))
    kinds = set(numbers(directory, 339) or (1,))
    count = number(directory, 277, max(1, len(numbers(directory, 258))))
    compression = number(directory, 259, NONE)
    notes: list[str] = []
    photometric = number(directory, 262, -1)
    if photometric < 0:
        photometric = RGB if count >= 3 else BLACK_IS_ZERO
        notes.append("it does not say what its samples mean: " + ("RGB" if count >= 3 else "0 is taken for black"))
    if photometric == MASK:
        photometric = BLACK_IS_ZERO
    if photometric in _PHOTOMETRIC_NAMES or photometric > YCBCR:
        what = _PHOTOMETRIC_NAMES.get(photometric, f"photometric {photometric}")
        raise BadImageError(f"has colours of a kind that is not read here ({what})", _CONVERT)
    if kinds - {1, 4} or len(depths) != 1 or not depths <= {1, 2, 4, 8, 16}:
        kind = {1: "", 2: "signed ", 3: "floating-point "}.get(max(kinds - {4}, default=1), "unusual ")
        text = f"has {kind}samples of {', '.join(str(depth) for depth in sorted(depths))} bits"
        raise BadImageError(text, "convert it to 8 or 16 bits a sample")
    (bits,) = depths
    colours = {RGB: 3, YCBCR: 3, CMYK: 4}.get(photometric, 1)
    if count < colours or count > 64:
        raise BadImageError(f"is damaged: {count} samples a pixel, {colours} of them colours")
    if photometric == CMYK and (bits != 8 or number(directory, 332, 1) != 1):
        what = f"{bits}-bit samples" if bits != 8 else "inks other than cyan, magenta, yellow and black"
        raise BadImageError(f"is a separation with {what}, which are not read here", _CONVERT)
    if photometric == YCBCR and bits != 8:
        raise BadImageError(f"has {bits}-bit samples that are neither grey nor RGB", _CONVERT)
    if photometric == PALETTE and bits > 8:
        raise BadImageError("has a palette of 16 bits, which is not read here", _CONVERT)
    if number(directory, 32997, 1) > 1:
        raise BadImageError("is a volume, which is not read here", "save a slice of it as a TIFF")
    if compression not in _READ:
        name = _NAMES.get(compression, f"number {compression}")
        raise BadImageError(f"is compressed by a method that is not read here ({name})", "save it with LZW or Deflate")
    if (compression in _FAX and (bits, count) != (1, 1)) or (compression in _PICTURES and bits != 8):
        raise BadImageError(f"has {bits}-bit samples in a compression that is not read with them", _CONVERT)
    planar = number(directory, 284, 1) == 2 and count > 1
    sampling = cast("tuple[int, int]", (*numbers(directory, 530), 2, 2)[:2]) if photometric == YCBCR else (1, 1)
    if compression in _PICTURES:
        sampling = (1, 1)  # the picture within knows
    if not set(sampling) <= {1, 2, 4} or (planar and (sampling != (1, 1) or compression in (WEBP, JPEG2000))):
        raise BadImageError(f"stores its colours at {sampling[0]} x {sampling[1]} in a way not read here", _CONVERT)
    tiled = 322 in directory or 323 in directory
    if tiled:
        block = number(directory, 322), number(directory, 323)
    else:
        rows = number(directory, 278, height)
        block = width, min(rows, height) if rows > 0 else height
    if not tiled and sampling[1] > 1 and block[1] < height:
        block = block[0], max(1, block[1] // sampling[1]) * sampling[1]
    predictor = number(directory, 317, 1)
    predicted = predictor == 2 and compression in (LZW, DEFLATE, OLD_DEFLATE, LZMA, ZSTD)
    if (predictor not in (1, 2) and compression != NONE) or (predicted and bits < 8):
        raise BadImageError(f"is stored as differences of a kind that is not read here ({predictor})", _CONVERT)
    layout = Layout(
        *(width, height, bits, count, colours),
        extra=numbers(directory, 338),
        photometric=photometric,
        compression=compression,
        planar=planar,
        predicted=predicted,
        reversed_bits=number(directory, 266, 1) == 2,
        order=tiff.order,
        block=block,
        offsets=numbers(directory, 324 if 324 in directory else 273),
        sizes=numbers(directory, 325 if 325 in directory else 279),
        sampling=sampling,
        coefficients=tiff.fractions(directory, 529) or (0.299, 0.587, 0.114),
        reference=tiff.fractions(directory, 532) or (0, 255, 128, 255, 128, 255),
        tables=tiff.value(directory[347]) if 347 in directory else b"",
        fax_options=number(directory, {FAX3: 292, FAX4: 293}.get(compression, 0)),
        palette=_palette(numbers(directory, 320), bits) if photometric == PALETTE else None,
        notes=tuple(notes),
    )
    if width > 0 and height > 0:
        layout = _with_blocks(layout, tiff, directory)
    return layout


def _palette(values: tuple[int, ...], bits: int) -> NDArray[np.uint8]:
    """(3, 2**bits) from a colour map. Some programs write 8-bit values into its 16 bits; no real one is that dark."""
    if len(values) < 3 << bits:
        raise BadImageError(f"is damaged: a colour map of {len(values)} values")
    table = np.array(values[: 3 << bits]).reshape(3, -1)
    return (table if table.max() < 256 else table >> 8).astype(np.uint8)


def _with_blocks(layout: Layout, tiff: Tiff, directory: dict[int, Entry]) -> Layout:
    """The layout with exactly as many strips or tiles as it takes."""
    whole = len(tiff.data)
    offsets, sizes = layout.offsets, layout.sizes
    if layout.compression == OLD_JPEG:
        start, size = tiff.number(directory, 513), tiff.number(directory, 514)
        if not start or bytes(tiff.data[start : start + 2]) != b"\xff\xd8":
            raise BadImageError("is compressed by the JPEG of before 1995, in parts, which is not read here", _CONVERT)
        return replace(layout, offsets=(start,), sizes=(size or whole - start,), block=(layout.width, layout.height))
    if min(layout.block) <= 0:
        raise BadImageError(f"is damaged: strips or tiles of {layout.block[0]} x {layout.block[1]}")
    wanted = layout.across * layout.down * (layout.count if layout.planar else 1)
    if wanted > _MOST_BLOCKS:
        text = f"is cut into {wanted} strips or tiles, more than are read here"
        raise BadImageError(text, "save it with larger ones")
    if not offsets:
        raise BadImageError("is damaged or cut short: it does not say where its pixels are")
    if len(offsets) < wanted:
        raise BadImageError(f"is damaged: {len(offsets)} of its {wanted} strips or tiles are there")
    offsets = offsets[:wanted]
    if len(sizes) < wanted:  # some old programs leave them out
        ends = sorted({*offsets, whole})
        following = dict(itertools.pairwise(ends))
        sizes = tuple(following.get(start, whole) - start for start in offsets)
    sizes = sizes[:wanted]
    if layout.compression == NONE:
        # Exactly: programs have written both more and less than there is.
        row = _row_bytes(layout)
        rows = [_block_rows(layout, k // layout.across % layout.down) for k in range(wanted)]
        sizes = tuple(row * (-(-each // layout.sampling[1])) for each in rows)
    if layout.compression == NONE and layout.sampling == (1, 1) and layout.across == 1:
        layout, offsets, sizes = _finer(layout, offsets, sizes)
    for start, size in zip(offsets, sizes, strict=True):
        if start >= whole or (start + size > whole and layout.compression == NONE):
            raise BadImageError(f"is cut short: {whole} bytes, its pixels go on to byte {start + size}")
    return replace(layout, offsets=offsets, sizes=sizes)


def _finer(
    layout: Layout, offsets: tuple[int, ...], sizes: tuple[int, ...]
) -> tuple[Layout, tuple[int, ...], tuple[int, ...]]:
    """An uncompressed page of large strips as one of small ones: no more of it than that is then held twice."""
    row, whole = _row_bytes(layout), layout.block[1]
    rows = max(1, _AT_ONCE // max(1, row))
    if layout.planar or layout.block[0] != layout.width or len(offsets) > 1 or whole <= rows:
        return layout, offsets, sizes
    tops = range(0, whole, rows)
    finer = replace(layout, block=(layout.width, rows))
    return (
        finer,
        tuple(offsets[0] + top * row for top in tops),
        tuple(row * min(rows, whole - top) for top in tops),
    )


def _block_rows(layout: Layout, band: int) -> int:
    """Rows of pixels in a block of this row of blocks: tiles are always whole, the last strip is not."""
    if layout.block[0] != layout.width or layout.down == 1:
        return layout.block[1]
    return min(layout.block[1], layout.height - band * layout.block[1])


def _samples_each(layout: Layout) -> int:
    return 1 if layout.planar else layout.count


def _row_bytes(layout: Layout) -> int:
    """Bytes of a row of a block as it is stored unpacked; of as many rows as share colours, where some do."""
    across, down = layout.sampling
    if layout.sampling != (1, 1):
        return -(-layout.block[0] // across) * (across * down + layout.count - 1)
    return -(-layout.block[0] * _samples_each(layout) * layout.bits // 8)


def read_samples(data: Tiff, layout: Layout) -> tuple[Pixels, list[str]]:
    """(H, W) or (H, W, count) samples as they are stored, uint8 or uint16, YCbCr as RGB; and what was found damaged."""
    shape = (layout.height, layout.width) + (() if layout.count == 1 else (layout.count,))
    out = np.empty(shape, np.uint16 if layout.bits == 16 else np.uint8)
    notes: list[str] = []
    planes = [out] if not layout.planar else [out[..., k] for k in range(layout.count)]
    per_plane = layout.across * layout.down
    for number, plane in enumerate(planes):
        blocks = _decoded_blocks(data, layout, range(number * per_plane, (number + 1) * per_plane), notes)
        for k, block in enumerate(blocks):
            top, left = k // layout.across * layout.block[1], k % layout.across * layout.block[0]
            target = plane[top : top + layout.block[1], left : left + layout.block[0]]
            target[...] = block[: target.shape[0], : target.shape[1]]
    return out, notes


def _decoded_blocks(data: Tiff, layout: Layout, numbers: range, notes: list[str]) -> Iterator[Pixels]:
    if layout.compression in _PICTURES:
        yield from (_picture(_raw(data, layout, number), layout, number, notes) for number in numbers)
        return
    row = _row_bytes(layout)
    step = max(1, _AT_ONCE // max(1, row * layout.block[1]))
    for first in range(numbers.start, numbers.stop, step):
        some = range(first, min(first + step, numbers.stop))
        rows = [-(-_block_rows(layout, k // layout.across % layout.down) // layout.sampling[1]) for k in some]
        raws = [_raw(data, layout, k) for k in some]
        for content, height in zip(_unpacked(raws, rows, row, layout), rows, strict=True):
            yield _samples(content, height, layout)


_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _raw(data: Tiff, layout: Layout, number: int) -> bytes:
    start = layout.offsets[number]
    raw = bytes(data.data[start : start + layout.sizes[number]])
    turned = layout.reversed_bits and layout.compression not in (*_FAX, *_PICTURES)
    return raw.translate(_REVERSED) if turned else raw


def _unpacked(raws: list[bytes], rows: list[int], row: int, layout: Layout) -> list[bytes]:
    """Blocks of exactly `row` bytes times their rows."""
    if layout.compression == NONE:
        return raws
    if layout.compression in (*_BY_LIBTIFF, *_FAX):
        return _by_libtiff(raws, rows, row, layout)
    whole = row * -(-layout.block[1] // layout.sampling[1])
    unpack = _inflated if layout.compression in (DEFLATE, OLD_DEFLATE) else _unpacked_lzma
    found = []
    for raw, height in zip(raws, rows, strict=True):
        # The last strip is written with all its rows by some programs, and with those that are there by most.
        content = unpack(raw, max(whole, row * height))
        if len(content) < row * height:
            raise BadImageError(f"is cut short: {len(content)} of {row * height} bytes in a strip or tile")
        found.append(content[: row * height])
    return found


def _inflated(raw: bytes, most: int) -> bytes:
    # Unlike libtiff's, this checks the sum at the end: without it damaged rows would look like a photo.
    stream = zlib.decompressobj()
    content = stream.decompress(raw, most)
    over = 0
    while stream.unconsumed_tail and not stream.eof:
        over += len(stream.decompress(stream.unconsumed_tail, _AT_ONCE))
        if over > most + _AT_ONCE:
            raise BadImageError(f"is damaged: a strip or tile of {most} bytes unfolds to more than twice as many")
    return content


def _unpacked_lzma(raw: bytes, most: int) -> bytes:
    return lzma.LZMADecompressor(memlimit=1 << 28).decompress(raw, most)


def _by_libtiff(raws: list[bytes], rows: list[int], row: int, layout: Layout) -> list[bytes]:
    """Blocks by the libtiff within Pillow, in a file of ours: to it the bytes are strips of a grey picture."""
    width, mode = (layout.block[0], "1") if layout.compression in _FAX else (row, "L")

    def numbers(kind: int, *values: int) -> tuple[int, int, bytes]:
        return kind, len(values), struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)

    found: list[bytes] = []
    while raws:
        # Strips of a file are all of one height but the last one.
        same = next((k for k, height in enumerate(rows) if height != rows[0]), len(rows))
        offsets, at = [], 8
        for raw in raws[:same]:
            offsets.append(at)
            at += len(raw)
        tags = {
            256: numbers(4, width),
            257: numbers(4, sum(rows[:same])),
            258: numbers(3, 1 if mode == "1" else 8),
            259: numbers(3, layout.compression),
            262: numbers(3, BLACK_IS_ZERO),
            266: numbers(3, 2 if layout.reversed_bits and mode == "1" else 1),
            273: numbers(4, *offsets),
            277: numbers(3, 1),
            278: numbers(4, rows[0]),
            279: numbers(4, *(len(raw) for raw in raws[:same])),
        }
        if layout.compression in (FAX3, FAX4):
            tags[292 if layout.compression == FAX3 else 293] = numbers(4, layout.fax_options)
        place = at + at % 2
        body = b"".join(raws[:same]) + bytes(at % 2)
        file = struct.pack("<2sHI", b"II", 42, place) + body + pack_tags(dict(tags), place, "<", big=False)
        with TiffImageFile(BytesIO(file)) as image, no_standard_error():
            image.load()
            content = np.asarray(image)
        if mode == "1":
            content = np.packbits(content, axis=1)
        bottom = 0
        for height in rows[:same]:
            found.append(content[bottom : bottom + height].tobytes())
            bottom += height
        raws, rows = raws[same:], rows[same:]
    return found


def _samples(content: bytes, rows: int, layout: Layout) -> Pixels:
    """A block's unpacked bytes as (h, w) or (h, w, C)."""
    each = _samples_each(layout)
    width = layout.block[0]
    if layout.sampling != (1, 1) or layout.photometric == YCBCR:
        return _from_ycbcr(np.frombuffer(content, np.uint8).reshape(rows, -1), layout)
    samples: Pixels
    if layout.bits < 8:
        packed = np.frombuffer(content, np.uint8).reshape(rows, -1)
        parts = np.unpackbits(packed, axis=1)[:, : width * each * layout.bits]
        weights = (1 << np.arange(layout.bits - 1, -1, -1)).astype(np.uint8)
        values = (parts.reshape(rows, width * each, layout.bits) * weights).sum(axis=2, dtype=np.uint8)
        samples = values if layout.palette is not None else values * np.uint8(255 // ((1 << layout.bits) - 1))
    else:
        order = cast("Literal['<', '>']", layout.order)
        stored = np.frombuffer(content, np.dtype(f"u{layout.bits // 8}").newbyteorder(order)).reshape(rows, -1)
        samples = cast("Pixels", stored.astype(stored.dtype.newbyteorder("="), copy=False))
    samples = samples.reshape(rows, width) if each == 1 else samples.reshape(rows, width, each)
    if layout.predicted:
        samples = cast("Pixels", np.cumsum(samples, axis=1, dtype=samples.dtype))
    return samples


def _from_ycbcr(units: NDArray[np.uint8], layout: Layout) -> NDArray[np.uint8]:
    """(units down, bytes) of luma blocks, each with its two colours -> (h, w, C) with RGB first."""
    across, down = layout.sampling
    count = across * down
    parts = units.reshape(len(units), -1, count + layout.count - 1)
    luma = parts[..., :count].reshape(*parts.shape[:2], down, across).swapaxes(1, 2)
    height, width = len(units) * down, parts.shape[1] * across
    planes = [luma.reshape(height, width)]
    for k in range(count, parts.shape[2]):
        planes.append(parts[..., k].repeat(down, axis=0).repeat(across, axis=1))
    rgb = converted_ycbcr(np.dstack(planes[:3]), layout.coefficients, layout.reference)
    return np.dstack([rgb, *planes[3:]]) if len(planes) > 3 else rgb


def converted_ycbcr(
    samples: NDArray[np.uint8], coefficients: tuple[float, ...], reference: tuple[float, ...]
) -> NDArray[np.uint8]:
    """(h, w, 3) YCbCr -> RGB, by the luma of red, green and blue and the values of black and white for each channel."""
    red, green, blue = coefficients[:3]
    black = reference[0::2]
    span = [high - low or 1 for low, high in zip(black, reference[1::2], strict=True)]
    y = (samples[..., 0] - np.float32(black[0])) * np.float32(255 / span[0])
    cb = (samples[..., 1] - np.float32(black[1])) * np.float32(127 / span[1])
    cr = (samples[..., 2] - np.float32(black[2])) * np.float32(127 / span[2])
    r = y + np.float32(2 - 2 * red) * cr
    b = y + np.float32(2 - 2 * blue) * cb
    g = (y - np.float32(red) * r - np.float32(blue) * b) / np.float32(green or 1)
    return np.stack([np.rint(plane).clip(0, 255).astype(np.uint8) for plane in (r, g, b)], axis=-1)


def _picture(raw: bytes, layout: Layout, number: int, notes: list[str]) -> Pixels:
    """A strip or tile that is a picture of its own, (h, w) or (h, w, C)."""
    size = layout.block[0], _block_rows(layout, number // layout.across % layout.down)
    if layout.compression in (JPEG, OLD_JPEG):
        return _jpeg_picture(raw, size, layout, notes)
    image = (WebPImageFile if layout.compression == WEBP else Jpeg2KImageFile)(BytesIO(raw))
    _check_picture(image.size, size, layout)
    image.load()
    samples = np.asarray(image)
    if (samples.ndim == 2) != (layout.count == 1) or (samples.ndim == 3 and samples.shape[2] != layout.count):
        raise BadImageError(f"is damaged: {layout.count} samples a pixel, {image.mode} in a strip or tile")
    return samples


def _jpeg_picture(raw: bytes, size: tuple[int, int], layout: Layout, notes: list[str]) -> Pixels:
    wanted = {1: "GRAY", 3: "RGB", 4: "CMYK"}.get(_samples_each(layout))
    if wanted is None or (layout.photometric == YCBCR and wanted == "CMYK"):
        raise BadImageError(f"has {layout.count} samples in JPEG strips, which is not read here", _CONVERT)
    # Its colours are what the directory says, not what the strips say.
    transform = layout.photometric == YCBCR if wanted == "RGB" else None
    stream = with_transform(raw, layout.tables, transform)
    _check_picture(frame_size(stream), size, layout)
    return decoded(stream, cast("Literal['GRAY', 'RGB', 'CMYK']", wanted), notes)


def _check_picture(found: tuple[int, int], size: tuple[int, int], layout: Layout) -> None:
    # Up to a whole strip, and whole blocks of a JPEG, more than is said, but not less: pixels would be missing.
    most = layout.block[0] + 64, layout.block[1] + 64
    if not (size[0] <= found[0] <= most[0] and size[1] <= found[1] <= most[1]):
        raise BadImageError(f"is damaged: a strip or tile of {size[0]} x {size[1]} holds {found[0]} x {found[1]}")
