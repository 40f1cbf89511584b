"""Pictures that tests are made of, and what exiftool says of a file."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import IFDRational

HEIGHT, WIDTH = 37, 53
XMP = (
    b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    b'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6">'
    b'<dc:title><rdf:Alt><rdf:li xml:lang="x-default">Grandmother</rdf:li></rdf:Alt></dc:title>'
    b'</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)
IPTC = b"\x1c\x02\x05\x00\x08Portrait" + b"\x1c\x02\x50\x00\x04Anna"  # ObjectName, By-line


def picture(channels: int = 3, dtype: type[np.uint8] | type[np.uint16] = np.uint8) -> Any:
    """(H, W) or (H, W, channels): slopes with some noise, different in every channel, over the whole range."""
    rng = np.random.default_rng(7)
    top = np.iinfo(dtype).max
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] / (HEIGHT + WIDTH)
    planes = [np.clip((y * (k + 1) + x * (4 - k)) / 4 + rng.normal(0, 0.02, y.shape), 0, 1) for k in range(channels)]
    array = np.stack([np.rint(plane * top) for plane in planes], axis=2).astype(dtype)
    array[0, :2], array[1, :2] = 0, top
    return array[..., 0] if channels == 1 else array


@cache  # made anew it would have another time in it
def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def other_rgb_profile() -> bytes:
    """A profile that is valid and not sRGB: its red and blue primaries change places."""
    profile = bytearray(srgb())
    (count,) = struct.unpack_from(">I", profile, 128)
    at = {bytes(profile[k : k + 4]): k for k in range(132, 132 + 12 * count, 12)}
    red, blue = at[b"rXYZ"] + 4, at[b"bXYZ"] + 4
    profile[red : red + 8], profile[blue : blue + 8] = profile[blue : blue + 8], profile[red : red + 8]
    return bytes(profile)


def make_exif(orientation: int = 1) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x013B] = "Voigtlander", "Bessa", "Anna Müller"
    exif[0x8298], exif[0x0112] = "public domain", orientation
    exif[0x011A], exif[0x011B], exif[0x0128] = IFDRational(600), IFDRational(300), 2
    sub = exif.get_ifd(0x8769)
    sub[0x9003], sub[0x829A], sub[0xA002], sub[0xA003] = "1931:05:04 10:00:00", IFDRational(1, 125), WIDTH, HEIGHT
    sub[0x9286] = b"ASCII\0\0\0on the stairs"
    gps = exif.get_ifd(0x8825)
    gps[1], gps[2] = "N", (IFDRational(52), IFDRational(31), IFDRational(12))
    return exif


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(samples: NDArray[Any], colour_type: int, *between: bytes) -> bytes:
    """A PNG written by hand: no filter, one pixel chunk; `between` are whole chunks before it."""
    depth = samples.dtype.itemsize * 8
    rows = samples.astype(samples.dtype.newbyteorder(">")).reshape(len(samples), -1).view(np.uint8)
    raw = np.concatenate([np.zeros((len(rows), 1), np.uint8), rows], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", samples.shape[1], len(samples), depth, colour_type, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + b"".join(between) + png_chunk(b"IDAT", zlib.compress(raw))
    return b"\x89PNG\r\n\x1a\n" + body + png_chunk(b"IEND", b"")


def tiff(array: NDArray[Any], **options: Any) -> bytes:
    out = BytesIO()
    tifffile.imwrite(out, array, metadata=None, **options)
    return out.getvalue()


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    out = BytesIO()
    image.save(out, format=format, **options)
    return out.getvalue()


def profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile of version 2 from its tags."""
    white = struct.pack(">3i", 63190, 65536, 54061)
    text = b"text\0\0\0\0test\0"
    tags = {b"desc": text, b"cprt": text, b"wtpt": b"XYZ \0\0\0\0" + white} | tags
    body, directory, at = b"", struct.pack(">I", len(tags)), 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += b"\0" * (-len(content) % 4)
        directory += struct.pack(">4sII", name, at + len(body), len(content))
        body += content
    header = struct.pack(">I4sI4s4s4s", at + len(body), b"lcms", 0x02200000, kind, space, connection)
    header += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28 + white
    return header.ljust(128, b"\0") + directory + body


def _table(channels_in: int, channels_out: int, grid: NDArray[np.uint8]) -> bytes:
    """An 8-bit lookup table tag over an even grid, its curves straight."""
    line = bytes(range(256))
    identity = struct.pack(">9i", *[0x10000 if k in (0, 4, 8) else 0 for k in range(9)])
    head = b"mft1\0\0\0\0" + bytes([channels_in, channels_out, len(grid), 0]) + identity
    return head + line * channels_in + grid.tobytes() + line * channels_out


def rgb_profile(colourants: list[list[float]], gamma: float) -> bytes:
    """By matrix (linear RGB to XYZ at D50, in rows) and a gamma curve."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    tags = {name + b"TRC": curve for name in (b"r", b"g", b"b")}
    for name, column in zip((b"r", b"g", b"b"), np.array(colourants).T, strict=True):
        tags[name + b"XYZ"] = b"XYZ \0\0\0\0" + struct.pack(">3i", *np.rint(column * 65536).astype(int))
    return profile(b"mntr", b"RGB ", b"XYZ ", tags)


def adobe_rgb() -> bytes:
    """The colours of Adobe RGB (1998)."""
    return rgb_profile([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]], 2.199)


def prophoto_rgb() -> bytes:
    """The colours of ProPhoto RGB, far wider than sRGB."""
    return rgb_profile([[0.79767, 0.13519, 0.03135], [0.28804, 0.71188, 0.00009], [0.0, 0.0, 0.82521]], 1.8)


def grey_profile(gamma: float = 1.8) -> bytes:
    """Grey with a gamma curve."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    return profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": curve})


def scanner_profile() -> bytes:
    """RGB by a table to Lab alone, as scanners have it: there is no table back."""
    axis = np.linspace(0, 1, 9)
    r, g, b = np.meshgrid(axis, axis, axis, indexing="ij")
    light = 100 * (0.3 * r + 0.55 * g + 0.15 * b) ** 0.9
    lab = np.stack([light * 2.55, 128 + 50 * (r - g), 128 + 60 * (0.5 * (r + g) - b)], axis=-1)
    return profile(b"scnr", b"RGB ", b"Lab ", {b"A2B0": _table(3, 3, np.rint(lab).astype(np.uint8))})


def cmyk_profile() -> bytes:
    """A CMYK profile whose table says: L* falls with black ink alone, a* and b* are always 0. There is none back."""
    grid = np.zeros((2, 2, 2, 2, 3), np.uint8)
    grid[..., 0, 0], grid[..., 1, 0] = 255, 0
    grid[..., 1:] = 128
    return profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": _table(4, 3, grid)})


def press_profile() -> bytes:
    """A CMYK profile with tables both ways: each ink takes its colour, and black is put where all three are."""
    axis = np.linspace(0, 1, 7)
    inks = np.stack(np.meshgrid(axis, axis, axis, axis, indexing="ij"), axis=-1)
    rgb = (1 - 0.9 * inks[..., :3]) * (1 - 0.95 * inks[..., 3:])
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    relative = ImageCms.Intent.RELATIVE_COLORIMETRIC
    to_lab = ImageCms.buildTransform(*profiles, "RGB", "LAB", renderingIntent=relative)
    shown = Image.fromarray(np.rint(rgb.reshape(-1, 49, 3) * 255).astype(np.uint8))
    forward = np.asarray(ImageCms.applyTransform(shown, to_lab)).copy().reshape(*inks.shape[:4], 3)
    forward[..., 1:] += 128  # signed in Pillow, offset in a profile
    light = np.linspace(0, 255, 9)
    lab = np.stack(np.meshgrid(light, light, light, indexing="ij"), axis=-1).astype(np.uint8)
    lab[..., 1:] -= 128
    to_rgb = ImageCms.buildTransform(*profiles[::-1], "LAB", "RGB", renderingIntent=relative)
    flat = Image.frombytes("LAB", (27, 27), lab.tobytes())
    seen = np.asarray(ImageCms.applyTransform(flat, to_rgb)).reshape(9, 9, 9, 3) / 255
    missing = 1 - seen
    black = missing.min(axis=-1, keepdims=True) * 0.8
    wanted = np.concatenate([(missing - black) / (1 - black) / 0.9, black / 0.95], axis=-1).clip(0, 1)
    tables = {b"A2B0": _table(4, 3, forward), b"B2A0": _table(3, 4, np.rint(wanted * 255).astype(np.uint8))}
    return profile(b"prtr", b"CMYK", b"Lab ", tables)


def rich(format: str) -> bytes:
    """A photo with EXIF, GPS, XMP, IPTC (where the format has it), a profile that is not sRGB, and 600 dpi."""
    profile, exif = other_rgb_profile(), make_exif()
    exif[0x011B] = IFDRational(600)
    block = exif.tobytes()
    image = Image.fromarray(picture())
    if format == "JPEG":
        resource = b"8BIM" + struct.pack(">HHI", 0x0404, 0, len(IPTC)) + IPTC + b"\0" * (len(IPTC) % 2)
        app13 = b"Photoshop 3.0\0" + resource
        extra = b"\xff\xed" + struct.pack(">H", len(app13) + 2) + app13
        return saved(
            image,
            "JPEG",
            exif=block,
            icc_profile=profile,
            xmp=XMP,
            dpi=(600, 600),
            extra=extra,
            comment=b"from the attic",
        )
    if format == "WEBP":
        return saved(image, "WEBP", lossless=True, exif=block, icc_profile=profile, xmp=XMP)
    if format == "PNG":
        chunks = [
            png_chunk(b"gAMA", struct.pack(">I", 45455)),
            png_chunk(b"iCCP", b"mine\0\0" + zlib.compress(profile)),
            png_chunk(b"pHYs", struct.pack(">IIB", 23622, 23622, 1)),
            png_chunk(b"eXIf", block[6:]),
            png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)),
            png_chunk(b"tEXt", b"Title\0Grandmother"),
        ]
        return png(picture(), 2, *chunks)
    order = ">" if format == "TIFF big-endian" else "<"
    exif.endian = order
    tags: list[tuple[int, int, int, Any, bool]] = [(700, 1, len(XMP), XMP, True)]
    tags += [(33723, 7, len(IPTC), IPTC, True)]
    tags += [(271, 2, 0, "Voigtlander", True), (315, 2, 0, "Anna M", True), (274, 3, 1, 1, True)]
    array = picture(3, np.uint16)
    data = tiff(
        array,
        photometric="rgb",
        byteorder=order,
        iccprofile=profile,
        resolution=(600, 600),
        description="on the stairs",
        extratags=tags,
        software="scanner 1.0",
    )
    return with_exif_directories(data, order)


def with_exif_directories(data: bytes, order: str) -> bytes:
    """The TIFF file with an EXIF and a GPS directory; its main directory is written again at the end, by hand."""

    def directory(entries: list[tuple[int, int, int, bytes]], at: int) -> bytes:
        fixed, late = b"", b""
        late_at = at + 2 + 12 * len(entries) + 4
        for code, kind, count, value in entries:
            field = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(order + "I", late_at + len(late))
            late += value if len(value) > 4 else b""
            fixed += struct.pack(order + "HHI", code, kind, count) + field
        return struct.pack(order + "H", len(entries)) + fixed + bytes(4) + late

    def rational(*numbers: int) -> bytes:
        return struct.pack(order + f"{len(numbers)}I", *numbers)

    data += b"\0" * (len(data) % 2)
    exif_at = len(data)
    data += directory(
        [
            (0x829A, 5, 1, rational(1, 125)),
            (0x9003, 2, 20, b"1931:05:04 10:00:00\0"),
            (0x9286, 7, 22, b"ASCII\0\0\0on the stairs\0"),
            (0x9000, 7, 4, b"0230"),
        ],
        exif_at,
    )
    data += b"\0" * (len(data) % 2)
    gps_at = len(data)
    data += directory([(1, 2, 2, b"N\0"), (2, 5, 3, rational(52, 1, 31, 1, 12, 1))], gps_at)
    exif_pointer = struct.pack(order + "HHII", 0x8769, 4, 1, exif_at)
    return with_entries(data, order, exif_pointer, struct.pack(order + "HHII", 0x8825, 4, 1, gps_at))


def with_entries(data: bytes, order: str, *more: bytes) -> bytes:
    """The TIFF file with these 12-byte entries in its main directory, which is written again at the end."""
    (main_at,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, main_at)
    entries = [data[main_at + 2 + 12 * k : main_at + 14 + 12 * k] for k in range(count)] + list(more)
    entries.sort(key=lambda entry: struct.unpack_from(order + "H", entry))
    main = struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4)
    data += b"\0" * (len(data) % 2)
    return data[:4] + struct.pack(order + "I", len(data)) + data[8:] + main


RICH = ["JPEG", "PNG", "WEBP", "TIFF", "TIFF big-endian"]
SUFFIX = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "TIFF": ".tif", "TIFF big-endian": ".tif"}


def exiftool(path: Path) -> dict[str, Any]:
    program = shutil.which("exiftool")
    if program is None:
        pytest.skip("exiftool is not installed")
    run = subprocess.run([program, "-json", "-G1", "-b", "-struct", str(path)], capture_output=True, check=True)
    tags: dict[str, Any] = json.loads(run.stdout)[0]
    # What describes the file and its compression, not the photograph, and offsets that must differ.
    groups = ("System:", "File:", "ExifTool:Exif", "Composite:", "SourceFile")
    names = (
        *("StripOffsets", "StripByteCounts", "RowsPerStrip", "Compression", "Predictor", "Filter", "Interlace"),
        *("SamplesPerPixel", "BitsPerSample", "PhotometricInterpretation", "SubfileType", "PlanarConfiguration"),
        *("SampleFormat", "ThumbnailOffset", "ProfileName"),
    )
    return {key: tags[key] for key in tags if not key.startswith(groups) and not key.endswith(names)}


def damaged_copies(data: bytes, count: int, *, hits: int, first: int = 0) -> Iterator[bytes]:
    """Copies of a file with `hits` random bytes, from `first` on, and cut off somewhere; the same every time."""
    rng = np.random.default_rng(5)
    for _ in range(count):
        broken = bytearray(data)
        for at in rng.integers(first, len(data), hits):
            broken[at] = rng.integers(0, 256)
        yield bytes(broken[: rng.integers(100, len(data))])
