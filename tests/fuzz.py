"""Throws damaged files at a whole run: python -m tests.fuzz --count 1000. Needs a system with fork.

Each file is a seed of some format with a few mutations. A process of its own plans, reads, converts and writes it as a
batch would, with a stand-in for the networks, under a limit of time and memory. What may come of it: an output, or
one error of the documented kinds. What may not, each a fault: a traceback, a hang, more memory than allowed, an input
that changed, an output after an error, anything on standard error. Faults are kept in a folder.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL import Image, features

from oldphoto.arrays import Mask
from oldphoto.errors import OldphotoError
from oldphoto.files.colour import from_srgb, to_srgb
from oldphoto.files.image import Photo
from oldphoto.options import Options
from oldphoto.pipeline import Restoration
from oldphoto.records.manifest import Setting
from oldphoto.runs import batch, planning
from tests.pictures import RICH, SUFFIX, make_exif, picture, png, press_profile, rich, saved, tiff

DONE, REFUSED, TRACEBACK = 0, 10, 1
MAX_PIXELS = 20_000_000


def seeds() -> dict[str, bytes]:
    """Small sound files of every format and of most ways to store one, by name."""
    colour, grey, deep = picture(), picture(1), picture(3, np.uint16)
    image = Image.fromarray(colour)
    found = {f"rich{number}{SUFFIX[kind]}": rich(kind) for number, kind in enumerate(RICH)}
    exif = make_exif(6).tobytes()
    cmyk = Image.frombytes("CMYK", colour.shape[1::-1], picture(4).tobytes())
    found |= {
        "grey.jpg": saved(Image.fromarray(grey), "JPEG"),
        "progressive.jpg": saved(image, "JPEG", progressive=True, exif=exif),
        "cmyk.jpg": saved(cmyk, "JPEG", icc_profile=press_profile()),
        "restarts.jpg": saved(image, "JPEG", restart_marker_blocks=4, subsampling=2),
        "palette.png": saved(image.quantize(16), "PNG"),
        "bits.png": saved(Image.fromarray(grey > 100), "PNG"),
        "alpha.png": saved(Image.fromarray(picture(4)), "PNG", exif=exif),
        "deep.png": png(deep, 2),
        "grey alpha.png": png(picture(2, np.uint16), 4),
        "lossy.webp": saved(image, "WEBP", exif=exif),
        "alpha.webp": saved(Image.fromarray(picture(4)), "WEBP", lossless=True),
        "plain.bmp": saved(image, "BMP"),
        "palette.bmp": saved(image.quantize(16), "BMP"),
        "bits.bmp": saved(Image.fromarray(grey > 100), "BMP"),
        "plain.ppm": saved(image, "PPM"),
        "deep.pgm": b"P5 %d %d 65535\n" % grey.shape[::-1] + picture(1, np.uint16).astype(">u2").tobytes(),
        "words.pgm": b"P2 # words\n8 5\n1000\n" + b" ".join(b"%d" % (25 * k) for k in range(40)),
        "plain.jp2": saved(image, "JPEG2000"),
        "lossy.jp2": saved(image, "JPEG2000", irreversible=True, quality_mode="rates", quality_layers=[8]),
        "bare.jp2": saved(Image.fromarray(grey), "JPEG2000", no_jp2=True),
        "deep.jp2": cv2.imencode(".jp2", deep)[1].tobytes(),
        "plain.tif": tiff(colour, photometric="rgb"),
        "big.tif": tiff(colour, photometric="rgb", bigtiff=True, byteorder=">"),
        "tiles.tif": tiff(np.tile(colour, (2, 2, 1)), photometric="rgb", tile=(32, 32), compression="zlib"),
        "deep tiles.tif": tiff(deep, photometric="rgb", tile=(16, 16), compression="zlib", predictor=True),
        "planes.tif": tiff(np.moveaxis(deep, 2, 0), photometric="rgb", planarconfig="separate"),
        "alpha.tif": tiff(picture(4, np.uint16), photometric="rgb", extrasamples=["assocalpha"]),
        "infrared.tif": tiff(picture(4, np.uint16), photometric="rgb", extrasamples=["unspecified"]),
        "palette.tif": saved(image.quantize(16), "TIFF"),
        "cmyk.tif": saved(cmyk, "TIFF"),
        "ycbcr.tif": saved(image.convert("YCbCr"), "TIFF"),
    }
    for compression in ("tiff_lzw", "packbits", "jpeg", "zstd", "lzma"):
        found[f"{compression}.tif"] = saved(image, "TIFF", compression=compression, tiffinfo={274: 6})
    for compression in ("group3", "group4"):
        found[f"{compression}.tif"] = saved(Image.fromarray(grey > 100), "TIFF", compression=compression)
    out = BytesIO()
    with tifffile.TiffWriter(out) as writer:
        for step in (1, 2, 3):
            writer.write(colour[::step], photometric="rgb", subfiletype=2, metadata=None)
        writer.write(grey > 100, photometric="mask", metadata=None)
        writer.write(colour[::4], photometric="rgb", subfiletype=1, subifds=1, metadata=None)
        writer.write(colour, photometric="rgb", metadata=None)
    found["pages.tif"] = out.getvalue()
    if features.check("avif"):
        found["plain.avif"] = saved(image, "AVIF", speed=10)
        found["deep.avif"] = _deep_avif(deep)
    return {name: data for name, data in found.items() if data}


def _deep_avif(deep: Any) -> bytes:
    try:
        return cv2.imencode(".avif", deep >> 4, [cv2.IMWRITE_AVIF_DEPTH, 12])[1].tobytes()
    except cv2.error:
        return b""  # an OpenCV without


# Numbers that overflow, wrap, divide by zero or ask for everything.
_NUMBERS = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 40000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**64 - 1)


def _flip(data: bytearray, rng: np.random.Generator) -> None:
    for at in rng.integers(0, len(data), rng.integers(1, 6)):
        data[at] ^= 1 << int(rng.integers(0, 8))


def _garble(data: bytearray, rng: np.random.Generator) -> None:
    for at in rng.integers(0, len(data), rng.integers(1, 8)):
        data[at] = int(rng.integers(0, 256))


def _near_head(data: bytearray, rng: np.random.Generator) -> None:
    for at in rng.integers(0, min(len(data), 300), rng.integers(1, 5)):
        data[at] = int(rng.integers(0, 256))


def _number(data: bytearray, rng: np.random.Generator) -> None:
    letter = "BHIQ"[rng.integers(0, 4)]
    size = struct.calcsize(letter)
    at = int(rng.integers(0, max(1, len(data) - size)))
    value = _NUMBERS[rng.integers(0, len(_NUMBERS))] % (1 << 8 * size)
    struct.pack_into(
        "<>"[rng.integers(0, 2)] + letter, data, min(at, len(data) - size) if len(data) >= size else 0, value
    )


def _cut(data: bytearray, rng: np.random.Generator) -> None:
    del data[int(rng.integers(1, len(data))) :]


def _hole(data: bytearray, rng: np.random.Generator) -> None:
    at = int(rng.integers(0, len(data)))
    size = min(int(rng.integers(1, 600)), len(data) - at)
    data[at : at + size] = bytes(size)


def _drop(data: bytearray, rng: np.random.Generator) -> None:
    at = int(rng.integers(0, len(data)))
    del data[at : at + int(rng.integers(1, 200))]


def _repeat(data: bytearray, rng: np.random.Generator) -> None:
    at = int(rng.integers(0, len(data)))
    part = data[at : at + int(rng.integers(1, 400))]
    data[at:at] = part * int(rng.integers(1, 4))


def _move(data: bytearray, rng: np.random.Generator) -> None:
    at, to, size = (int(value) for value in rng.integers(0, len(data), 3))
    part = data[at : at + size % 200]
    data[to : to + len(part)] = part


MUTATORS: tuple[Callable[[bytearray, np.random.Generator], None], ...] = (
    *(_flip, _garble, _near_head, _near_head, _number, _number, _cut, _hole, _drop, _repeat, _move),
)


def mutated(data: bytes, others: list[bytes], rng: np.random.Generator) -> bytes:
    """A damaged copy: one to four mutations, or the head of one file and the tail of another."""
    out = bytearray(data)
    if rng.random() < 0.05:
        other = others[rng.integers(0, len(others))]
        out[int(rng.integers(0, len(out))) :] = other[int(rng.integers(0, len(other))) :]
    for _ in range(rng.integers(1, 5)):
        if len(out) > 8:
            MUTATORS[rng.integers(0, len(MUTATORS))](out, rng)
    if data.startswith(b"\x89PNG") and rng.random() < 0.8:
        _mend_checksums(out)
    return bytes(out)


def _mend_checksums(data: bytearray) -> None:
    """Give a PNG's chunks their checksums again, so that damage gets past the first gate."""
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if at + 12 + length > len(data):
            return
        struct.pack_into(">I", data, at + 8 + length, zlib.crc32(data[at + 4 : at + 8 + length]))
        at += 12 + length


def _stand_in(photo: Photo, mask: Mask | None) -> Restoration:
    """What the networks are replaced by: the way through sRGB and back."""
    seen = to_srgb(photo.pixels, photo.icc)
    pixels = from_srgb(seen, seen, photo.pixels, photo.icc)
    return Restoration(photo.with_pixels(pixels), mask, warnings=photo.warnings)


def one_run(path: Path, out: Path, memory: int) -> int:
    """What a run of this one file ends with."""
    try:
        plan = planning.plan([str(path)], f"{out}/")
        setting = Setting(Options(max_memory=memory), "compact", {})
        (outcome,) = batch.run(plan.photos, lambda: batch.Work(_stand_in, setting), max_pixels=MAX_PIXELS).outcomes
    except OldphotoError:
        return REFUSED
    if outcome.error is None:
        return DONE
    if isinstance(outcome.error, OldphotoError):
        return REFUSED
    traceback.print_exception(outcome.error)
    return TRACEBACK


def child(path: Path, out: Path, said: Path, memory: int, seconds: int) -> None:
    """The run of one file in a forked process, which it ends."""
    code = TRACEBACK
    try:
        handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        code = one_run(path, out, memory)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def attempt(path: Path, folder: Path, memory: int, seconds: int) -> tuple[str, str, int]:
    """Run one file: what came of it ("restored", "refused" or a fault), what it said, and the most memory it took."""
    out, said = folder / "out", folder / "said.txt"
    shutil.rmtree(out, ignore_errors=True)
    before = hashlib.sha256(path.read_bytes()).digest()
    pid = os.fork()
    if pid == 0:
        child(path, out, said, memory, seconds)
    _, status, usage = os.wait4(pid, 0)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    words = said.read_text(errors="replace")
    files = sorted(out.iterdir()) if out.is_dir() else []
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return ("hang" if number == signal.SIGALRM else f"crash by signal {number}"), words, peak
    code = os.WEXITSTATUS(status)
    if hashlib.sha256(path.read_bytes()).digest() != before:
        return "input changed", words, peak
    if code not in (DONE, REFUSED):
        return "traceback", words, peak
    if peak > memory * 1.1:
        return "memory", words, peak
    if (code == DONE) != (len(files) == 1) or any(file.name.startswith(".") for file in files):
        return "files left", words, peak
    if words:
        return "words on standard error", words, peak
    return ("restored" if code == DONE else "refused"), words, peak


def _summary(results: Counter[str]) -> str:
    return ", ".join(f"{number} {what}" for what, number in sorted(results.items()))


def fuzz(count: int, seed: int, memory: int, seconds: int, kept: Path) -> Counter[str]:
    """Run so many files; how many came to what. Those that show a fault are kept, with what they said."""
    cv2.setNumThreads(1)
    found = seeds()
    names, contents = list(found), list(found.values())
    results: Counter[str] = Counter()
    slowest, largest = 0.0, 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, data in found.items():
            path = folder / name
            path.write_bytes(data)
            result, words, _ = attempt(path, folder, memory, seconds)
            if result != "restored" and name != "deep.avif":  # which is read, but cannot be written with 16 bits
                raise SystemExit(f"the sound seed {name} came to: {result}\n{words}")
            path.unlink()
        for number in range(count):
            rng = np.random.default_rng([seed, number])
            name = names[number % len(names)]
            path = folder / name
            path.write_bytes(mutated(found[name], contents, rng))
            started = time.monotonic()
            result, words, peak = attempt(path, folder, memory, seconds)
            slowest, largest = max(slowest, time.monotonic() - started), max(largest, peak)
            results[result] += 1
            if result not in ("restored", "refused"):
                kept.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, kept / f"{seed}-{number}-{name}")
                (kept / f"{seed}-{number}-{name}.txt").write_text(f"{result}\n{words}")
                print(f"{result}: {kept / f'{seed}-{number}-{name}'}", flush=True)
            path.unlink()
            if (number + 1) % 250 == 0:
                print(f"{number + 1} of {count}: {_summary(results)}", flush=True)
    print(f"{count} files of {len(names)} seeds: {_summary(results)}")
    print(f"the slowest took {slowest:.1f} s, the largest {largest / 1e9:.2f} GB")
    return results


def main() -> int:
    """Exit code 1 if a file showed a fault."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", type=float, default=1.5, help="GB that a file may take, as --max-memory")
    parser.add_argument("--seconds", type=int, default=20, help="that a file may take")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-faults"), help="folder for files that show a fault")
    given = parser.parse_args()
    results = fuzz(given.count, given.seed, int(given.memory * 1e9), given.seconds, given.keep)
    return int(bool(set(results) - {"restored", "refused"}))


if __name__ == "__main__":
    sys.exit(main())
