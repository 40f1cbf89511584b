"""What readers and writers say that they take of memory, against what they take."""

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
from oldphoto.machine.memory import give_back
def status(name):
    return next(int(line.split()[1]) << 10 for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith(name))
found = {}
for path in sys.argv[2:]:
    for name in (sys.argv[1], path):  # once for what a library holds ever after
        asked = []
        give_back()  # what is free and kept would be taken without being seen
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
    # Read strip by strip into its place: neither the file nor a second copy of the pixels beside them.
    assert found["plain.tif"][1] < 1.5 * deep.nbytes
    assert found["deep.tif"][1] > deep.nbytes / 2  # that the measure measures


# As MEASURE, for each way to write: the photo is read from a file, and written with other metadata.
MEASURE_WRITING = """
import json, sys
from dataclasses import replace
from pathlib import Path
from oldphoto.files import image, jpeg2000
from oldphoto.machine.memory import give_back
def status(name):
    return next(int(line.split()[1]) << 10 for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith(name))
jpeg2000._TILE = 256  # what is large, in a small test
image._WHILE_WRITING = 0  # which would hide all else
found = {}
for name, (source, suffix, more) in json.loads(sys.argv[2]).items():
    one = image.read_photo(source)
    tiny = image.Photo(one.pixels[:100, :100].copy(), one.grey, None if one.alpha is None else one.alpha[:100, :100])
    for each in (tiny, one):  # once for what a library holds ever after
        each = replace(each, metadata=replace(one.metadata, **more), inks=one.inks if each is one else None)
        target = Path(sys.argv[1]) / f"out.{suffix}"
        format = image.output_format(each, target)
        give_back()
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS:")
        image.write_photo(each, target)
        found[name] = image.writing_bytes(each, format), status("VmHWM:") - before
    del each, one
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_writing_takes_no_more_than_was_said(tmp_path: Path) -> None:
    colour = np.asarray(Image.fromarray(picture()).resize((900, 600), Image.Resampling.BICUBIC))
    rough = np.random.default_rng(0).integers(0, 40, colour.shape, np.uint8) + colour // 2
    sources = {
        "colour": Photo.from_array(rough),
        "grey": Photo.from_array(rough[..., 0].copy()),
        "deep": Photo.from_array(rough.astype(np.uint16) * 257),
        "alpha": Photo(rough, alpha=rough[..., 0].copy()),
    }
    for name, photo in sources.items():
        write_photo(photo, tmp_path / f"{name}.png")
    Image.fromarray(rough).convert("CMYK").save(tmp_path / "inks.jpg")
    ways: dict[str, tuple[str, str, dict[str, object]]] = {}
    for name in ("colour", "grey", "alpha"):
        for suffix in ("png", "tif", "ppm", "bmp", "jpg", "jp2", "webp"):
            if name != "alpha" or suffix not in ("ppm", "bmp", "jpg"):
                ways[f"{name}.{suffix}"] = str(tmp_path / f"{name}.png"), suffix, {}
    for suffix in ("png", "tif", "ppm", "jp2"):
        ways[f"deep.{suffix}"] = str(tmp_path / "deep.png"), suffix, {}
    for suffix in ("jpg", "tif"):
        ways[f"inks.{suffix}"] = str(tmp_path / "inks.jpg"), suffix, {}
    ways["lossy.jp2"] = str(tmp_path / "colour.png"), "jp2", {"jpeg2000_ratio": 10}
    ways["lossless.webp"] = str(tmp_path / "colour.png"), "webp", {"webp_lossless": True}
    ways["lzw.tif"] = str(tmp_path / "deep.png"), "tif", {"tiff_compression": 5}
    run = subprocess.run(
        [sys.executable, "-c", MEASURE_WRITING, str(tmp_path), json.dumps(ways)],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, tuple[int, int]] = json.loads(run.stdout)
    assert len(found) == len(ways) == 27
    # What goes out by bands or tiles takes some memory for any photo; all else grows with it.
    whole = [name for name in found if name.endswith((".bmp", ".jpg", ".webp")) and not name.startswith("inks")]
    whole += ["lossy.jp2", "deep.jp2"]
    room = {name: 1.1 * said + (1 << (20 if name in whole else 26)) for name, (said, _) in found.items()}
    assert not {name: taken for name, taken in found.items() if taken[1] > room[name]}
    assert found["colour.jpg"][1] > rough.nbytes / 2  # that the measure measures
