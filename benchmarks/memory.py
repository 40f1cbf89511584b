"""Peak memory of reading and writing large photos, against what --max-memory allows.

python benchmarks/memory.py [--megapixels 60 200] [--limits 0.5 1 4] [--formats tif png ...] [--bits 8 16]

Each file is read, admitted, and written in its own format by a run in a process of its own, which does all but restore:
networks, whose memory `benchmarks/strips.py` shows, are stood in for. A photo is done, or refused before it is decoded.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from oldphoto.arrays import Pixels
from oldphoto.files.image import Photo, write_photo
from oldphoto.files.photo import Metadata

DEEP = ("tif", "tif-deflate", "png", "jp2", "ppm")
FORMATS = (*DEEP, "jpg", "webp", "bmp")

RUN = """
import json, sys
from dataclasses import replace
from oldphoto.machine.memory import reuse_pages
from oldphoto.options import Options
from oldphoto.pipeline import Restoration
from oldphoto.records.manifest import Setting
from oldphoto.runs import batch, planning
reuse_pages()
source, target, limit = sys.argv[1], sys.argv[2], int(float(sys.argv[3]) * 1e9)
plan = planning.plan([source], target)
setting = Setting(Options(max_memory=limit), "compact", {}, provenance=False)
work = batch.Work(lambda photo, mask: Restoration(replace(photo, pixels=photo.pixels.copy())), setting)
(outcome,) = batch.run(plan.photos, lambda: work).outcomes
status = open("/proc/self/status").read().split("VmHWM:")[1].split()
error = outcome.error
print(json.dumps([int(status[0]) * 1024, outcome.record["seconds"],
                  error and type(error).__name__, error and str(error), error and getattr(error, "advice", "")]))
"""


def photo_of(megapixels: float, bits: int) -> Photo:
    """A slope with grain, four wide to three high; the grain repeats."""
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    width = height * 4 // 3
    grain = np.random.default_rng(0).integers(0, 6, (64, width, 3), np.uint8)
    slope = np.linspace(30, 200, width).astype(np.uint8)[None, :, None]
    shape = height, width, 3
    pixels: Pixels = np.empty(shape, np.uint8) if bits == 8 else np.empty(shape, np.uint16)
    for top in range(0, height, len(grain)):
        rows = grain[: height - top] + slope + np.uint8(40 * top // height)
        pixels[top : top + len(rows)] = rows if bits == 8 else rows * np.uint16(256) + 77
    return Photo(pixels, metadata=Metadata(pages=1))


def main() -> None:
    """Exit code 1 if a process took more than it was allowed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--megapixels", type=float, nargs="+", default=[60, 200])
    parser.add_argument("--limits", type=float, nargs="+", default=[0.5, 1, 4], help="GB")
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    given = parser.parse_args()
    exceeded = False
    with tempfile.TemporaryDirectory() as folder:
        for megapixels in given.megapixels:
            for bits in given.bits:
                photo = photo_of(megapixels, bits)
                for format in given.formats:
                    if bits == 8 or format in DEEP:
                        exceeded |= compared(photo, format, megapixels, given.limits, Path(folder))
                del photo
    sys.exit(int(exceeded))


def compared(photo: Photo, format: str, megapixels: float, limits: list[float], folder: Path) -> bool:
    """Run one file under each limit, and print how it went; whether one was exceeded."""
    suffix, _, how = format.partition("-")
    source, target = folder / f"in.{suffix}", folder / f"out.{suffix}"
    compression = 8 if how == "deflate" else 1
    write_photo(replace(photo, metadata=replace(photo.metadata, tiff_compression=compression)), source)
    exceeded = False
    for limit in limits:
        target.unlink(missing_ok=True)
        command = [sys.executable, "-c", RUN, str(source), str(target), str(limit)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        peak, seconds, kind, text, advice = json.loads(done.stdout)
        end = f"{seconds:6.1f} s" if kind is None else f"{kind}: {text}; {advice}"
        over = peak > limit * 1e9
        exceeded |= over
        mark = "  EXCEEDED" if over else ""
        print(
            f"{megapixels:4g} MP {photo.depth:2} bits {format:11} {limit:3g} GB: {peak / 1e9:5.2f} GB{mark}  {end}",
            flush=True,
        )
    source.unlink()
    return exceeded


if __name__ == "__main__":
    main()
