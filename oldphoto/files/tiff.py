"""TIFF: every page of a file, and what lies beside them; written strip by strip."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from typing import BinaryIO, Literal, cast

import numpy as np
from PIL import Image

from oldphoto.errors import BadImageError
from oldphoto.files.colour import Pixels
from oldphoto.files.decoding import Limits
from oldphoto.files.exif import DESCRIBING, MAKER_NOTE, Entry, Tags, Tiff, exif_of_tiff, pack_tags, swapped
from oldphoto.files.jpeg import quantisation, segments
from oldphoto.files.photo import DEFAULT_QUALITY, Metadata, Photo, RawPage, inks_of, iptc_and_rest, samples_of, upright
from oldphoto.files.tiff_blocks import (
    DEFLATE,
    JPEG,
    LZW,
    MASK,
    NONE,
    PACKBITS,
    WHITE_IS_ZERO,
    Layout,
    layout_of,
    read_samples,
)

# What is written as it was found. All else becomes Deflate, which is as lossless.
_KEPT = (NONE, LZW, JPEG, DEFLATE, PACKBITS)
_DIFFERENCED = (LZW, DEFLATE)  # pay only where neighbours are taken from one another first
# All directories of a file together: some 50,000 pages. Each takes its time, however often the same bytes are used.
_MOST_TAGS = 1 << 20
_REDUCED, _MASK_PAGE = 1, 4  # bits of NewSubfileType
_SUB_DIRECTORIES, _DNG_VERSION = 330, 50706
# Tags without which pixels would be misread, and names of others whose loss is told.
_STORING = (*range(254, 260), 262, 266, 273, 277, 278, 279, 284, 317, 320, *range(322, 326), 332, 338, 339, 347, 530)
_OF_NO_USE = (*range(263, 266), *range(280, 282), *range(288, 294), 330, 340, 341, *range(512, 522), *range(529, 533))
_TAG_NAMES = {
    **{34675: "profile", 700: "XMP", 33723: "IPTC records", 34377: "Photoshop resources"},
    **{34665: "EXIF data", 34853: "GPS data"},
}
_RAW_COMPRESSIONS = (32767, 32769, 34713, 34892, 65000, 65535)  # of Sony, Packed, Nikon, Adobe, Kodak, Pentax
_RAW_PHOTOMETRICS = (32803, 34892)


@dataclass(frozen=True)
class Pages:
    """Where a file's directories lie: those of photos; and, by the number of the photo they follow, those of others.

    pixels: of all photos together.
    """

    offsets: tuple[int, ...]
    beside: dict[int, tuple[int, ...]]
    pixels: int
    notes: tuple[str, ...] = ()


def find_pages(tiff: Tiff) -> Pages:
    """The pages of a file: all of its chain but reduced copies; for a copy, the originals below it.

    Raises BadImageError if the chain leads nowhere: what cannot be read would be missing from the output; and for the
    raw file of a camera, whose first picture is not the photo.
    """
    photos: list[int] = []
    beside: dict[int, tuple[int, ...]] = {}
    copies: list[tuple[int, int]] = []
    left_out = pixels = 0
    for at, directory, above in _directories(tiff):
        _refuse_raw(tiff, directory)
        area = tiff.number(directory, 256) * tiff.number(directory, 257)
        if _is_copy(tiff, directory):
            if above is None:
                copies.append((area, at))
        elif above is not None and not _is_copy(tiff, above):
            left_out += 1
        elif tiff.number(directory, 254) & _MASK_PAGE or tiff.number(directory, 262) == MASK:
            number = max(0, len(photos) - 1)
            beside[number] = (*beside.get(number, ()), at)
        else:
            photos.append(at)
            pixels += area
    notes = [f"{left_out} pictures in its sub-directories are left out"] if left_out else []
    if not photos and beside:
        photos, beside = [at for some in beside.values() for at in some], {}
    if not photos and copies:
        photos = [max(copies, key=lambda copy: copy[0])[1]]
        notes += ["all its pages are said to be reduced copies: the largest alone is taken"] * (len(copies) > 1)
    return Pages(tuple(photos), beside, pixels, tuple(notes))


def _is_copy(tiff: Tiff, directory: dict[int, Entry]) -> bool:
    # 255 is the older tag for it.
    return bool(tiff.number(directory, 254) & _REDUCED) or (254 not in directory and tiff.number(directory, 255) == 2)


def _directories(tiff: Tiff) -> Iterator[tuple[int, dict[int, Entry], dict[int, Entry] | None]]:
    """Each directory of the chain and, behind it, its sub-directories: where it lies, its tags, and those above it."""
    following, seen, tags, pages = tiff.first, set[int](), 0, 0
    while following:
        if following in seen:
            raise BadImageError("is damaged: its pages go in a circle")
        at = following
        seen.add(at)
        pages += 1
        try:
            tags += tiff.length(at)
            directory, following = tiff.directory(at)
        except struct.error as error:
            raise BadImageError(f"is damaged or cut short: page {pages} is missing") from error
        yield at, directory, None
        for below in tiff.numbers(directory, _SUB_DIRECTORIES):
            try:
                tags += tiff.length(below)
                if tags <= _MOST_TAGS:
                    yield below, tiff.entries(below), directory
            except struct.error:
                continue  # of a copy, or of what is left out
        if tags > _MOST_TAGS:
            raise BadImageError(f"has more than {_MOST_TAGS} tags in its directories", "split it into several files")


def _refuse_raw(tiff: Tiff, directory: dict[int, Entry]) -> None:
    canon = tiff.first == 16 and bytes(tiff.data[8:12]) == b"CR\2\0"
    stored = tiff.number(directory, 259) in _RAW_COMPRESSIONS or tiff.number(directory, 262) in _RAW_PHOTOMETRICS
    if canon or stored or _DNG_VERSION in directory:
        raise BadImageError(
            "is the raw file of a camera or scanner, which is not read here",
            "develop it first, for example with darktable or RawTherapee, and restore the TIFF that gives",
        )


def read_tiff(tiff: Tiff, pages: Pages, page: int, limits: Limits) -> Photo:
    """A page of a file, counted from 0."""
    at = pages.offsets[page]
    directory, _ = tiff.directory(at)
    beyond = tiff.beyond_end(at)
    if cut := [code for code in beyond if code in _STORING]:
        raise BadImageError(f"is damaged or cut short: tag {cut[0]} lies beyond its end")
    limits.check(tiff.number(directory, 256), tiff.number(directory, 257), 0)
    layout = layout_of(tiff, directory)
    limits.check(layout.width, layout.height, _pixel_bytes(layout, tiff.number(directory, 274, 1)))
    notes = [*(pages.notes if page == 0 else ()), *layout.notes]
    if beyond:
        names = [_TAG_NAMES.get(code, f"tag {code}") for code in beyond]
        notes.append(f"it is cut short: {', '.join(names)} lies beyond its end and is left out")
    samples, damage = read_samples(tiff, layout)
    notes += damage
    colours, alpha = _colours(samples, layout, notes)
    del samples
    icc = tiff.value(directory[34675]) if 34675 in directory else None
    if layout.palette is not None:
        used = layout.palette
        # A palette of greys is a way to store a grey photo, unless its profile says RGB.
        grey = (icc is None or icc[16:20] == b"GRAY") and (used[0] == used[1]).all() and (used[0] == used[2]).all()
        colours = used[0][colours] if grey else np.ascontiguousarray(used.T)[colours]
    orientation = tiff.number(directory, 274, 1)
    compression = {6: JPEG, 32946: DEFLATE}.get(layout.compression, layout.compression)
    sampling = {(1, 1): 0, (2, 1): 1}.get(cast("tuple[int, int]", tiff.numbers(directory, 530)), 2)
    jpeg = compression == JPEG
    photoshop = tiff.value(directory[34377]) if 34377 in directory else b""
    iptc, rest = iptc_and_rest(photoshop)
    if 33723 in directory:
        # Raw bytes: writers give IPTC all kinds of types, LONG among them.
        iptc = tiff.value(directory[33723])
    notes += _left_out(tiff, directory)
    metadata = Metadata(
        format="TIFF",
        mode=_mode(layout, colours.ndim, alpha is not None),
        icc=icc,
        exif=exif_of_tiff(tiff, directory, turned=orientation >= 5),
        xmp=tiff.value(directory[700]) if 700 in directory else None,
        iptc=iptc,
        photoshop=rest,
        dpi=tiff.dpi(directory),
        jpeg_tables=_jpeg_tables(tiff, layout) if jpeg else (),
        jpeg_subsampling=sampling if jpeg and tiff.number(directory, 262) == 6 else None,
        tiff_compression=compression if compression in _KEPT else DEFLATE,
        pages=len(pages.offsets),
        beside=tuple(_raw_pages(tiff, pages.beside.get(page, ()), notes)),
    )
    return upright(colours, alpha, metadata, orientation, notes)


def _left_out(tiff: Tiff, directory: dict[int, Entry]) -> Iterator[str]:
    """What of a directory is not kept, but for what says how the pixels were stored."""
    exif = tiff.child(directory, 0x8769)
    if 0x8769 in directory and not exif:
        yield "its EXIF data cannot be read and are left out"
    if MAKER_NOTE in exif:
        yield "the maker's note in its EXIF data is left out: it would not survive the move"
    if unknown := sorted(set(directory) - set(_STORING) - set(DESCRIBING) - set(_TAG_NAMES) - set(_OF_NO_USE)):
        yield f"tags of a kind that is not kept are left out ({', '.join(map(str, unknown))})"


def _pixel_bytes(layout: Layout, orientation: int) -> float:
    """The most memory that reading takes for each pixel."""
    depth = 2 if layout.bits == 16 else 1
    colours = 3 if layout.palette is not None else layout.colours
    copies = {1: 3, 3: 0 if layout.count == 3 and layout.palette is None else 3, 4: 16}[colours]
    if orientation >= 2 and colours == 3:
        copies = 3
    block = layout.block[0] * layout.block[1] / max(1, layout.width * layout.height)
    large = min(1.0, block) * (3 if layout.compression != NONE else 2) * layout.count
    extra = 0 if layout.count == layout.colours else 5 if layout.extra[:1] == (1,) else 2
    return depth * (layout.count + max(copies + extra, large)) + 0.5


def _mode(layout: Layout, axes: int, alpha: bool) -> str:
    if layout.bits == 16:
        return "16 bits with alpha" if alpha else "I;16" if axes == 2 else "RGB;16"
    if layout.palette is not None:
        return "P"
    if layout.colours == 4:
        return "CMYK"
    name = "L" if layout.colours == 1 else "RGB"
    return "1" if layout.bits == 1 and not alpha else name + "A" * alpha


def _jpeg_tables(tiff: Tiff, layout: Layout) -> tuple[tuple[int, ...], ...]:
    start = layout.offsets[0]
    stream = layout.tables or bytes(tiff.data[start : start + min(layout.sizes[0], 1 << 16)])
    return quantisation(segments(stream))


def _raw_pages(tiff: Tiff, offsets: Iterable[int], notes: list[str]) -> Iterator[RawPage]:
    """The pages beside a photo, with all that can be moved of them."""
    room = len(tiff.data)  # what overlaps would be written many times over
    for at in offsets:
        directory, _ = tiff.directory(at)
        tiled = 324 in directory
        starts, sizes = (tiff.numbers(directory, code) for code in ((324, 325) if tiled else (273, 279)))
        whole = len(starts) == len(sizes) > 0 and all(
            start + size <= len(tiff.data) for start, size in zip(starts, sizes, strict=True)
        )
        room -= sum(sizes)
        if not whole or room < 0:
            notes.append("a page beside it (a mask or an infrared channel) is damaged or cut short, and is left out")
            continue
        notes.append("a page beside it (a mask or an infrared channel) goes unchanged into a TIFF")
        blocks = tuple(bytes(tiff.data[start : start + size]) for start, size in zip(starts, sizes, strict=True))
        tags = {code: tag for code, tag in tiff.tags(directory).items() if code not in (273, 279, 324, 325, 330)}
        yield RawPage(tags, tiff.order, blocks, tiled)


def _colours(samples: Pixels, layout: Layout, notes: list[str]) -> tuple[Pixels, Pixels | None]:
    """Stored samples as the colours alone and the alpha, if there is one; indices of a palette stay such."""
    photometric, count = layout.colours, layout.count
    if samples.ndim == 2:
        colours = samples
    else:
        colours = samples[..., 0] if photometric == 1 else samples if count == 3 else samples[..., :photometric]
    if layout.photometric == WHITE_IS_ZERO:
        colours = ~colours
    more = count - layout.colours
    if not more:
        return colours, None
    alpha, kind = None, layout.extra[0] if layout.extra else None
    if kind in (1, 2, None) and layout.colours != 4:
        alpha = samples[..., layout.colours].copy()
        more -= 1
        if kind is None:
            notes.append("a channel that it does not name is taken for transparency")
    if more:
        channels = "a channel" if more == 1 else f"{more} channels"
        notes.append(f"{channels} beyond its colours (transparency of inks, infrared or the like) left out")
    if alpha is not None and kind == 1:
        colours = _straight(colours, alpha)
    return cast("Pixels", np.ascontiguousarray(colours)), alpha


def _straight(colours: Pixels, alpha: Pixels) -> Pixels:
    """Colours that were multiplied by their alpha, as they were before."""
    top = np.iinfo(alpha.dtype).max
    out = np.empty_like(colours)
    step = max(1, (1 << 20) // alpha.shape[1])
    for at in range(0, len(alpha), step):
        rows = slice(at, at + step)
        divisor = np.maximum(alpha[rows], 1).astype(np.float64)
        straight = colours[rows] * (top / (divisor if colours.ndim == 2 else divisor[..., None]))
        out[rows] = np.rint(straight).clip(0, top)
    return out


def write_tiff(pages: Iterable[Photo], handle: BinaryIO, quality: int | None, *, big: bool | None = None) -> None:
    """Write the pages in turn; none is asked for before the one before it is written.

    quality: of JPEG-compressed pages. big: whether as BigTIFF; None decides by the first page's size and page count.
    """
    order, link = "", 0

    def write_directory(tags: Tags) -> None:
        nonlocal link
        at = (handle.tell() + 7) // 8 * 8
        handle.write(b"\0" * (at - handle.tell()) + pack_tags(tags, at, order, bool(big)))
        end = handle.tell()
        handle.seek(link)
        handle.write(struct.pack(order + ("Q" if big else "I"), at))
        handle.seek(end)
        link = at + (8 + 20 * len(tags) if big else 2 + 12 * len(tags))

    for page in pages:
        tags, tag_order = _describing_tags(page)
        beside = page.metadata.beside
        if not order:
            # Pages that are written as they were stored keep the order of their bytes.
            order = beside[0].order if beside else tag_order or "<"
            if big is None:
                # Half of what offsets of 32 bits reach, since later pages may be larger.
                big = page.pixels.nbytes * page.metadata.pages > 1 << 31
            mark = b"II" if order == "<" else b"MM"
            handle.write(mark + (struct.pack(order + "HHHQ", 43, 8, 0, 0) if big else struct.pack(order + "HI", 42, 0)))
            link = 8 if big else 4
        if tag_order not in ("", order):
            tags = swapped(tags)
        write_directory(_storing_tags(page, handle, order, quality, big=bool(big)) | tags)
        for raw in beside:
            if raw.order == order:
                write_directory(raw.tags | _raw_places(raw, handle, big=bool(big)))


def _raw_places(raw: RawPage, handle: BinaryIO, *, big: bool) -> Tags:
    """Write the strips or tiles of a page as they are; where they lie."""
    offsets = []
    for block in raw.blocks:
        offsets.append(handle.tell())
        handle.write(block + b"\0" * (len(block) % 2))
    kind, letter = (16, "Q") if big else (4, "I")
    lists = (
        ((324, offsets), (325, map(len, raw.blocks))) if raw.tiled else ((273, offsets), (279, map(len, raw.blocks)))
    )
    return {
        code: (kind, len(raw.blocks), struct.pack(f"{raw.order}{len(raw.blocks)}{letter}", *numbers))
        for code, numbers in lists
    }


def _describing_tags(photo: Photo) -> tuple[Tags, str]:
    """What the photo's metadata become in its directory, and the byte order they are in; "" if they have none."""
    metadata = photo.metadata
    order, tags = "", Tags()
    if metadata.exif is not None:
        try:
            block = Tiff(metadata.exif)
            order, tags = block.order, block.describing_tags(block.main()[0])
        except (struct.error, BadImageError):
            tags = {}  # a block that cannot be read cannot be taken apart either
    more = ((34377, 7, metadata.photoshop), (34675, 7, metadata.icc))
    for code, kind, value in ((700, 1, metadata.xmp), (33723, 7, metadata.iptc), *more):
        if value is not None:
            tags[code] = (kind, len(value), value)
    return tags, order


def _storing_tags(photo: Photo, handle: BinaryIO, order: str, quality: int | None, *, big: bool) -> Tags:
    """Write a photo's strips; what its directory has to say of them."""
    metadata = photo.metadata
    inks = inks_of(photo)
    count = 4 if inks is not None else (1 if photo.grey else 3) + (photo.alpha is not None)
    compression = metadata.tiff_compression
    if compression == JPEG and (photo.depth == 16 or photo.alpha is not None or inks is not None):
        compression = DEFLATE
    row_bytes = photo.width * count * photo.depth // 8
    rows = min(max(1, (1 << 18) // row_bytes), photo.height)
    if compression == JPEG:
        rows = -(-rows // 16) * 16  # whole blocks
    offsets, sizes = [], []
    for top in range(0, photo.height, rows):
        samples = samples_of(photo, slice(top, top + rows)) if inks is None else inks[top : top + rows]
        strip = _packed(samples, compression, order, metadata, quality)
        offsets.append(handle.tell())
        sizes.append(len(strip))
        handle.write(strip + b"\0" * (len(strip) % 2))

    letters = {3: "H", 4: "I", 16: "Q"}

    def numbers(kind: int, *values: int) -> tuple[int, int, bytes]:
        return kind, len(values), struct.pack(f"{order}{len(values)}{letters[kind]}", *values)

    def fractions(*values: float) -> tuple[int, int, bytes]:
        pairs = [Fraction(value).limit_denominator(10_000).as_integer_ratio() for value in values]
        return 5, len(pairs), b"".join(struct.pack(order + "II", *pair) for pair in pairs)

    place = 16 if big else 4
    tags: Tags = {
        254: numbers(4, 2 if metadata.pages > 1 else 0),
        256: numbers(4, photo.width),
        257: numbers(4, photo.height),
        258: numbers(3, *[photo.depth] * count),
        259: numbers(3, compression),
        262: numbers(3, 5 if inks is not None else 1 if photo.grey else 6 if compression == JPEG else 2),
        273: numbers(place, *offsets),
        277: numbers(3, count),
        278: numbers(4, rows),
        279: numbers(place, *sizes),
        284: numbers(3, 1),
    }
    if metadata.dpi is not None:
        tags |= {282: fractions(metadata.dpi[0]), 283: fractions(metadata.dpi[1]), 296: numbers(3, 2)}
    if compression in _DIFFERENCED:
        tags[317] = numbers(3, 2)
    if photo.alpha is not None:
        tags[338] = numbers(3, 2)
    if compression == JPEG and not photo.grey:
        tags[530] = numbers(3, *_SAMPLINGS[metadata.jpeg_subsampling or 0])
        tags[532] = fractions(0, 255, 128, 255, 128, 255)
    return tags


_SAMPLINGS = {0: (1, 1), 1: (2, 1), 2: (2, 2)}


def _packed(samples: Pixels, compression: int, order: str, metadata: Metadata, quality: int | None) -> bytes:
    """Rows (h, W, C) as one strip."""
    if compression == JPEG:
        image = Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples)
        return _jpeg_strip(image, metadata, quality)
    if compression in _DIFFERENCED:
        differences = samples.copy()
        differences[:, 1:] -= samples[:, :-1]
        samples = differences
    rows = np.ascontiguousarray(samples, dtype=samples.dtype.newbyteorder(cast("Literal['<', '>']", order)))
    if compression == NONE:
        return rows.tobytes()
    if compression == DEFLATE:
        return zlib.compress(rows.data)
    # By the libtiff within Pillow: to it the bytes are a grey picture.
    content = BytesIO()
    grey = Image.fromarray(rows.view(np.uint8).reshape(len(rows), -1))
    grey.save(
        content, "TIFF", compression={LZW: "tiff_lzw", PACKBITS: "packbits"}[compression], tiffinfo={278: len(rows)}
    )
    written = Tiff(content.getvalue())
    directory, _ = written.directory(written.first)
    (start,), (size,) = written.numbers(directory, 273), written.numbers(directory, 279)
    return content.getvalue()[start : start + size]


def _jpeg_strip(image: Image.Image, metadata: Metadata, quality: int | None) -> bytes:
    content = BytesIO()
    if quality is None and metadata.jpeg_tables:
        image.save(
            content,
            "JPEG",
            qtables=[list(table) for table in metadata.jpeg_tables],
            subsampling=metadata.jpeg_subsampling or 0,
        )
    else:
        image.save(content, "JPEG", quality=quality or DEFAULT_QUALITY, subsampling=metadata.jpeg_subsampling or 0)
    return content.getvalue()
