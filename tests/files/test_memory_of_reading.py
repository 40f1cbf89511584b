"""What readers say that decoding takes, against what it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from oldphoto.files.image import Photo, write_photo
from tests.pictures import picture

# In a process of its own, whose peak can be reset: for each file what was asked for, and what was taken.
MEASURE = """
import json, sys
from pathlib import Path
from oldphoto.files.image import read_pages
def status(name):
    return next(int(line.split()[1]) << 10 for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith(name))
found = {}
for path in sys.argv[2:]:
    for name in (sys.argv[1], path):  # once for what a library holds ever after
        asked = []
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS:")
        photo = next(read_pages(name, admit=asked.append))
        found[Path(path).name] = sum(asked), status("VmHWM:") - before
        del photo
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_decoding_takes_no_more_than_was_asked_for(tmp_path: Path) -> None:
    colour = np.asarray(Image.fromarray(picture()).resize((1200, 800), Image.Resampling.BICUBIC))
    grey, deep = colour[..., 0].copy(), colour.astype(np.uint16) * 257
    for suffix in ("png", "jpg", "tif", "jp2", "bmp", "ppm", "webp"):
        write_photo(Photo.from_array(colour), tmp_path / f"colour.{suffix}")
        if suffix in ("png", "tif", "jp2", "ppm"):
            write_photo(Photo.from_array(deep), tmp_path / f"deep.{suffix}")
        if suffix in ("png", "jpg", "tif"):
            write_photo(Photo.from_array(grey), tmp_path / f"grey.{suffix}")
    write_photo(Photo(colour, alpha=grey), tmp_path / "alpha.png")
    write_photo(Photo(colour, alpha=grey), tmp_path / "alpha.tif")
    image = Image.fromarray(colour)
    exif = Image.Exif()
    exif[0x112] = 6
    image.save(tmp_path / "progressive.jpg", progressive=True)
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.save(tmp_path / "lzw.tif", compression="tiff_lzw")
    image.convert("CMYK").save(tmp_path / "inks.jpg")
    image.save(tmp_path / "colour.avif", speed=10)
    image.quantize(64).save(tmp_path / "palette.png")
    tifffile.imwrite(tmp_path / "one strip.tif", deep, photometric="rgb", compression="zlib", rowsperstrip=800)
    tifffile.imwrite(tmp_path / "plain.tif", deep, photometric="rgb")
    tifffile.imwrite(tmp_path / "tiles.tif", colour, photometric="rgb", compression="zlib", tile=(256, 256))
    files = sorted(str(path) for path in tmp_path.iterdir())
    Image.fromarray(picture()).save(tmp_path / "tiny.png")
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "tiny.png"), *files]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, tuple[int, int]] = json.loads(run.stdout)
    assert len(found) == len(files) == 25
    too_much = {name: (asked, taken) for name, (asked, taken) in found.items() if taken > 1.1 * asked}
    assert not too_much
    assert found["deep.tif"][1] > deep.nbytes / 2  # that the measure measures
