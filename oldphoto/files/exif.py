"""TIFF directories, the frame of TIFF files and of every EXIF block; and EXIF blocks as they are right upright."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from oldphoto.errors import BadImageError


def bytes_or_none(value: object) -> bytes | None:
    """A decoder's word or bytes as bytes; None for anything else and for nothing."""
    if isinstance(value, str):
        value = value.encode()
    return value if isinstance(value, bytes) and value else None


def pair_or_none(value: Any) -> tuple[float, float] | None:
    """A resolution, across and down, if these are two numbers that every format can hold."""
    try:
        across, down = (float(number) for number in value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return (across, down) if 0 < across <= MOST_DPI and 0 < down <= MOST_DPI else None


MOST_DPI = 65535  # the JPEG header has 16 bits for it; no scanner comes near

_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
MOST_NUMBERS = 1 << 18  # that are taken from one tag: as many as a page may have strips, and more than a colour map has
MOST_TAGS = 65535  # of one directory; more cannot be said in a classic TIFF
_NUMBER_FORMATS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}

_EXIF_POINTER, _GPS_POINTER, _INTEROPERABILITY_POINTER = 0x8769, 0x8825, 0xA005
MAKER_NOTE = 0x927C

# What the main directory says about the photograph, not about how its pixels are stored.
DESCRIBING = (
    *(269, 270, 271, 272, 274),  # DocumentName, ImageDescription, Make, Model, Orientation
    *(282, 283, 285, 296, 297),  # XResolution, YResolution, PageName, ResolutionUnit, PageNumber
    *(305, 306, 315, 316),  # Software, DateTime, Artist, HostComputer
    *(0x4746, 0x4749, 0x8298),  # Rating, RatingPercent, Copyright
    *(0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F),  # Windows title, comment, author, keywords, subject
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One tag of a directory: its type and count, and where in the file its `size` value bytes lie; `field` is where
    type, count and value (or its offset) stand in the directory.
    """

    type: int
    count: int
    field: int
    at: int
    size: int


# What a directory to be written holds: (type, count, value bytes), or a directory of its own.
Tags = dict[int, "tuple[int, int, bytes] | Tags"]


class Content(Protocol):
    """Bytes that are taken in parts: all at hand, or read from a file when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes | bytearray: ...


class Tiff:
    """The directories in a TIFF file or EXIF block, classic or Big, either byte order; struct.error if cut short."""

    def __init__(self, data: Content) -> None:
        self.data = data
        marks = {b"II": "<", b"MM": ">"}
        self.order = marks.get(bytes(data[:2]), "")
        if not self.order:
            raise BadImageError("is damaged: no TIFF header")
        (version,) = struct.unpack(self.order + "H", data[2:4])
        self.big = version == 43
        self.slot = 8 if self.big else 4
        self.first = self.unpack("Q" if self.big else "I", 8 if self.big else 4)

    def unpack(self, format: str, at: int) -> int:
        """One number at an offset."""
        self._within(at)
        return int(struct.unpack(self.order + format, self.data[at : at + struct.calcsize("=" + format)])[0])

    def _within(self, at: int) -> None:
        # An offset of 64 bits may be more than Python takes for an index.
        if at > len(self.data):
            raise struct.error(f"offset {at} lies beyond the end")

    def directory(self, at: int) -> tuple[dict[int, Entry], int]:
        """The readable tags of the directory at this offset, by code, and the next directory's offset or 0."""
        entries, _, end = self._entries(at)
        return entries, self.unpack("Q" if self.big else "I", end)

    def beyond_end(self, at: int) -> list[int]:
        """The codes of the directory's tags whose values lie beyond the end of the data."""
        return self._entries(at)[1]

    def length(self, at: int) -> int:
        """How many tags the directory at this offset has."""
        return self.unpack("Q" if self.big else "H", at)

    def _entries(self, at: int) -> tuple[dict[int, Entry], list[int], int]:
        """The directory's tags, the codes of those that lie beyond the end, and where the directory ends."""
        count = self.length(at)
        if count > MOST_TAGS:
            raise BadImageError(f"is damaged: a directory of {count} tags")
        at += 8 if self.big else 2
        each = 4 + 2 * self.slot
        end = at + count * each
        if end > len(self.data):
            raise struct.error("the directory lies beyond the end")
        entries: dict[int, Entry] = {}
        beyond: list[int] = []
        layout = struct.Struct(self.order + ("HHQQ" if self.big else "HHII"))
        for k, (code, kind, values, place) in enumerate(layout.iter_unpack(self.data[at:end])):
            size = values * _TYPE_SIZES.get(kind, 0)
            if code in entries or not size:
                continue
            field = at + k * each + 2
            start = place if size > self.slot else field + 2 + self.slot
            if start + size <= len(self.data):
                entries[code] = Entry(kind, values, field, start, size)
            else:
                beyond.append(code)
        return entries, beyond, end

    def main(self) -> tuple[dict[int, Entry], int, int]:
        """The first directory of an EXIF block, the next one's offset or 0, and how many of its bytes are missing."""
        entries, _, end = self._entries(self.first)
        missing = max(0, end + self.slot - len(self.data))
        return entries, 0 if missing else self.unpack("Q" if self.big else "I", end), missing

    def value(self, entry: Entry) -> bytes:
        """An entry's bytes, in the file's order."""
        return bytes(self.data[entry.at : entry.at + entry.size])

    def numbers(self, directory: dict[int, Entry], code: int) -> tuple[int, ...]:
        """The whole numbers of a tag, the first MOST_NUMBERS of them; none if it is absent or of another kind."""
        entry = directory.get(code)
        if entry is None or entry.type not in _NUMBER_FORMATS:
            return ()
        count = min(entry.count, MOST_NUMBERS)
        layout = struct.Struct(f"{self.order}{count}{_NUMBER_FORMATS[entry.type]}")
        return layout.unpack(self.data[entry.at : entry.at + layout.size])

    def number(self, directory: dict[int, Entry], code: int, default: int = 0) -> int:
        """The first number of a tag."""
        return next(iter(self.numbers(directory, code)), default)

    def fractions(self, directory: dict[int, Entry], code: int) -> tuple[float, ...]:
        """The fractions of a tag; none if it is absent or of another kind."""
        entry = directory.get(code)
        if entry is None or entry.type != 5:
            return ()
        layout = struct.Struct(f"{self.order}{2 * min(entry.count, MOST_NUMBERS)}I")
        parts = layout.unpack(self.data[entry.at : entry.at + layout.size])
        return tuple(above / below if below else 0 for above, below in zip(parts[::2], parts[1::2], strict=True))

    def dpi(self, directory: dict[int, Entry]) -> tuple[float, float] | None:
        """Horizontal and vertical resolution, if it is in dots per inch or centimetre."""
        dots = [*self.fractions(directory, 282)[:1], *self.fractions(directory, 283)[:1]]
        to_inch = {2: 1.0, 3: 2.54}.get(self.number(directory, 296, 2))
        return None if to_inch is None else pair_or_none([to_inch * number for number in dots])

    def tags(self, directory: dict[int, Entry], codes: tuple[int, ...] | None = None) -> Tags:
        """These tags, or all but pointers and the maker note, whose offsets would not survive a move."""
        moved = (_EXIF_POINTER, _GPS_POINTER, _INTEROPERABILITY_POINTER, MAKER_NOTE)
        return {
            code: (entry.type, entry.count, self.value(entry))
            for code, entry in directory.items()
            if (code not in moved if codes is None else code in codes) and entry.type < 16
        }

    def child(self, directory: dict[int, Entry], pointer: int) -> dict[int, Entry]:
        """The directory a pointer tag leads to; empty if there is none or it is damaged."""
        return self.entries(self.number(directory, pointer))

    def entries(self, at: int) -> dict[int, Entry]:
        """The readable tags of a directory behind which none need follow; empty if it is damaged, or `at` is 0."""
        try:
            return self._entries(at)[0] if at else {}
        except (struct.error, BadImageError):
            return {}

    def describing_tags(self, main: dict[int, Entry]) -> Tags:
        """All that a main directory says of the photograph, with the EXIF, GPS and interoperability directories."""
        found = self.tags(main, DESCRIBING)
        exif_directory = self.child(main, _EXIF_POINTER)
        exif, gps = self.tags(exif_directory), self.tags(self.child(main, _GPS_POINTER))
        if interoperability := self.tags(self.child(exif_directory, _INTEROPERABILITY_POINTER)):
            exif[_INTEROPERABILITY_POINTER] = interoperability
        found |= {_EXIF_POINTER: exif} if exif else {}
        found |= {_GPS_POINTER: gps} if gps else {}
        return found


def pack_tags(tags: Tags, at: int, order: str, big: bool, following: int = 0) -> bytes:
    """A directory as it lies at file offset `at`: entries by code, then what is too long for its entry."""
    slot, offset_format, count_format = (8, "Q", "Q") if big else (4, "I", "H")
    spill_at = at + struct.calcsize(f"<{count_format}") + len(tags) * (4 + 2 * slot) + slot
    entries, spill = struct.pack(order + count_format, len(tags)), b""
    for code, tag in sorted(tags.items()):
        spill += b"\0" * (-(spill_at + len(spill)) % 2)  # values begin on even offsets
        here = struct.pack(order + offset_format, spill_at + len(spill))
        if isinstance(tag, dict):
            kind, count, field = 18 if big else 4, 1, here
            spill += pack_tags(tag, spill_at + len(spill), order, big)
        else:
            kind, count, value = tag
            field = value.ljust(slot, b"\0") if len(value) <= slot else here
            spill += value if len(value) > slot else b""
        entries += struct.pack(order + "HH" + offset_format, code, kind, count) + field
    return entries + struct.pack(order + offset_format, following) + spill


def swapped(tags: Tags) -> Tags:
    """The same tags with their numbers in the other byte order; what is opaque stays as it is."""
    units = {3: 2, 4: 4, 5: 4, 8: 2, 9: 4, 10: 4, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
    found: Tags = {}
    for code, tag in tags.items():
        if isinstance(tag, dict):
            found[code] = swapped(tag)
        else:
            kind, count, value = tag
            swap = np.frombuffer(value, f"u{units.get(kind, 1)}").byteswap()
            found[code] = kind, count, swap.tobytes()
    return found


def exif_block(value: object) -> bytes | None:
    """A TIFF-structured block without the "Exif" prefix that some formats have."""
    block = bytes_or_none(value) or b""
    while block.startswith(b"Exif\0\0"):  # some programs write it twice
        block = block.removeprefix(b"Exif\0\0")
    return block or None


def dpi_of_exif(block: bytes | None) -> tuple[float, float] | None:
    """The resolution that an EXIF block gives, in dots per inch."""
    if block is None:
        return None
    try:
        tiff = Tiff(block)
        return tiff.dpi(tiff.main()[0])
    except (struct.error, BadImageError):
        return None


def has_maker_note(block: bytes | None) -> bool:
    """Whether an EXIF block holds the note of the camera's maker, whose offsets a TIFF cannot keep."""
    if block is None:
        return False
    try:
        tiff = Tiff(block)
        return MAKER_NOTE in tiff.child(tiff.main()[0], _EXIF_POINTER)
    except (struct.error, BadImageError):
        return False


def settle_orientation(block: bytes | None) -> tuple[bytes | None, int]:
    """An EXIF block as it is right for the upright photo, and the orientation it had.

    It is changed in place, so that everything keeps its offset, the maker's note included: orientation 1, sizes and
    resolutions swapped where the photo was turned by a quarter, no thumbnail. An unreadable block is left alone.
    """
    if block is None:
        return None, 1
    data = bytearray(block)
    try:
        tiff = Tiff(data)
        main, thumbnail, missing = tiff.main()
    except (struct.error, BadImageError):
        return block, 1
    data += bytes(missing)
    orientation = tiff.number(main, 274, 1)
    if 274 in main:
        # Phones write LONG where SHORT is meant, and others BYTE: what is read as an orientation is also made 1 again.
        struct.pack_into(tiff.order + ("HQH6x" if tiff.big else "HIH2x"), data, main[274].field, 3, 1, 1)
    if 5 <= orientation <= 8:
        exif = tiff.child(main, _EXIF_POINTER)
        for directory, one, other in ((main, 282, 283), (exif, 0xA002, 0xA003), (exif, 0xA20E, 0xA20F)):
            if one in directory and other in directory:
                a, b, length = directory[one].field, directory[other].field, 2 + 2 * tiff.slot
                data[a : a + length], data[b : b + length] = data[b : b + length], data[a : a + length]
    if thumbnail and not tiff.big:
        _cut_thumbnail(tiff, data, thumbnail)
    return bytes(data), orientation


def _cut_thumbnail(tiff: Tiff, data: bytearray, at: int) -> None:
    """Unlink the second directory, the stored thumbnail's, and blank the picture if it can be found."""
    count = tiff.length(tiff.first)
    struct.pack_into(tiff.order + "I", data, tiff.first + 2 + 12 * count, 0)
    try:
        directory, _ = tiff.directory(at)
    except (struct.error, BadImageError):
        return  # a pointer that leads nowhere leads to no picture
    start, size = tiff.number(directory, 0x0201), tiff.number(directory, 0x0202)
    if start and size and start + size <= len(data):
        data[start : start + size] = bytes(size)
        if start + size == len(data):
            del data[start:]


def exif_of_tiff(tiff: Tiff, page: dict[int, Entry], *, turned: bool) -> bytes | None:
    """A TIFF file's description of the photograph as an EXIF block, right for the upright photo."""
    tags = tiff.describing_tags(page)
    if 274 in tags:
        tags[274] = (3, 1, struct.pack(tiff.order + "H", 1))
    if turned and 282 in tags and 283 in tags:
        tags[282], tags[283] = tags[283], tags[282]
    if not tags:
        return None
    order = b"II" if tiff.order == "<" else b"MM"
    return order + struct.pack(tiff.order + "HI", 42, 8) + pack_tags(tags, 8, tiff.order, big=False)
