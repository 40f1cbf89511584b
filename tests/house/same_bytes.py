"""Whether two trees of this project do the same: `python tests/house/same_bytes.py OLD NEW`.

Each run is made by the code of both, on this machine, in one place after the other. What they write is compared byte by
byte: outputs, masks, report pages; manifests and what is printed, but for times and memory; `--help` of every command.
The clock stands still in both, so that metadata with a time in it can be compared.

The published networks have stand-in weights, as in the goldens; both trees get a weights.lock that names these.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT.parent / "shared" / "reference"
# `datetime.now` is what the package asks for the time of a record.
CLOCK = """
import datetime

class Stopped(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 1, 2, 3, 4, 5, tzinfo=tz)

datetime.datetime = Stopped
"""
# What a record says of the run rather than of the photo.
OF_THE_RUN = ("seconds", "peak_memory_bytes", "peak_device_memory_bytes")
HELP = [
    *([], ["restore"], ["verify"], ["premis"], ["faces"], ["report"], ["doctor"], ["bench"], ["train"], ["evaluate"]),
    *(["degrade"], ["weights"], ["weights", "list"], ["weights", "download"], ["weights", "verify"]),
    *(["weights", "path"], ["weights", "import"], ["weights", "remove"]),
]


@dataclass(frozen=True)
class Case:
    """One run: commands, one after the other, in an empty folder beside the folder `in` of photos."""

    name: str
    steps: tuple[tuple[str, ...], ...]
    published: bool = False


def restoring(name: str, inputs: str, *options: str, published: bool = False) -> Case:
    """A case of one `restore` with a manifest."""
    model = "published" if published else "compact"
    step = ("restore", *inputs.split(), "-o", "out", "--manifest", "run.jsonl", "--model", model, "--offline", *options)
    return Case(name, (step,), published)


def cases() -> Iterator[Case]:
    """Every run but those of `--help`."""
    yield restoring("plain", "in/a.jpg", "--no-faces")
    yield restoring("scratches", "in/a.jpg", "--no-faces", "--with-scratch", "--save-mask", "masks")
    yield restoring("threshold", "in/a.jpg", "--no-faces", "--with-scratch", "--scratch-threshold", "0.2")
    yield restoring("dilation", "in/d.webp", "--no-faces", "--with-scratch", "--mask-dilation", "2", "--compare")
    yield restoring("only damaged", "in/c.tif", "--with-scratch", "--only-damaged")
    yield restoring("mask", "in/a.jpg", "--no-faces", "--mask", "in/masks/a.png", "--report", "page.html")
    yield restoring("masks by name", "in/a.jpg in/c.tif", "--no-faces", "--mask", "in/masks", "--jobs", "2")
    yield restoring("faces", "in/face.webp", "--save-faces", "faces", "--report", "page.html", "--verbose")
    yield restoring("faces at 512", "in/face.webp", "--face-size", "512", "--face-strength", "0.7")
    yield restoring("one face", "in/face.webp", "--only-face", "1", "--skip-face", "9", "--min-face", "10")
    yield restoring("no face", "in/face.webp", "--skip-face", "1", "--json")
    yield restoring("cnn", "in/face.webp", "--face-detector", "cnn")
    yield restoring("large path", "in/face.webp", "--hr", "--with-scratch")
    yield restoring("strength", "in/a.jpg", "--no-faces", "--strength", "0.5", "--tone-strength", "0.3")
    yield restoring("nothing", "in/a.jpg", "--no-faces", "--strength", "0", "--tone-strength", "0", "--keep-blur")
    yield restoring("keep blur", "in/e.ppm", "--no-faces", "--keep-blur", "--quality", "50", "--format", "jpg")
    yield restoring("sixteen bits", "in/b.png in/c.tif", "--no-faces", "--no-provenance")
    yield restoring("pages", "in/i.tif", "--no-faces", "--report", "page.html", "--jobs", "1")
    yield restoring("inks", "in/h.tif", "--no-faces", "--with-scratch")
    yield restoring("alpha and palette", "in/j.png in/k.png in/f.bmp", "--no-faces")
    yield restoring("jpeg 2000", "in/g.jp2", "--no-faces")
    yield restoring("to png", "in/d.webp in/f.bmp", "--no-faces", "--format", "png", "--suffix", "_new")
    yield restoring("names", "in/a.jpg in/d.webp", "--no-faces", "--name-template", "{parent}_{stem}_{number}")
    yield restoring("one at a time", "in", "--with-scratch", "--jobs", "1", "--report", "page.html")
    yield restoring("three at a time", "in", "--with-scratch", "--jobs", "3", "--report", "page.html")
    yield restoring("shard", "in", "--no-faces", "--shard", "1/2", "--skip-existing")
    yield restoring("little memory", "in/face.webp", "--no-faces", "--max-memory", "300MB", "--verbose")
    yield restoring("half precision", "in/a.jpg", "--no-faces", "--precision", "bf16")
    yield restoring("dry run", "in", "--dry-run", "--json")
    yield restoring("bad photo", "in/bad.jpg in/a.jpg", "--no-faces")
    yield restoring("too many pixels", "in/a.jpg", "--max-pixels", "100", "--no-faces")
    yield restoring("clashing options", "in/a.jpg", "--quiet", "--verbose")
    restore = restoring("", "in/a.jpg in/face.webp", "--report", "first.html").steps[0]
    log = "run.jsonl"
    again = ("-o", "out", "--resume", log, "--model", "compact", "--offline")
    yield Case(
        "records",
        (
            restore,
            ("verify", log),
            ("premis", log),
            ("report", log, "-o", "second.html"),
            ("restore", "in/a.jpg", "in/face.webp", *again),
            (
                "restore",
                "in",
                "-o",
                "out",
                "--resume",
                log,
                "--model",
                "compact",
                "--offline",
                "--no-faces",
                "--jobs",
                "2",
            ),
        ),
    )
    yield Case("list of faces", (("faces", "in/face.webp", "in/a.jpg", "--json"), ("faces", "in/face.webp")))
    yield Case("weights", (("weights", "list"), ("weights", "verify"), ("weights", "path")))
    yield restoring("published", "in/small.png", "--no-faces", published=True)
    yield restoring("published, scratches", "in/small.png", "--with-scratch", "--no-faces", published=True)
    yield restoring("published, large path", "in/small.png", "--with-scratch", "--hr", published=True)
    yield restoring("published, mask", "in/small.png", "--mask", "in/masks/small.png", "--only-damaged", published=True)
    yield restoring("published, faces", "in/face.webp", "--report", "page.html", published=True)
    yield restoring("published, large faces", "in/face.webp", "--face-size", "512", published=True)
    yield restoring("published, in turn", "in/small.png in/b.png", "--strength", "0.6", "--jobs", "2", published=True)


def photos(folder: Path) -> None:
    """Small photos in every kind of file, from one of the examples."""
    folder.mkdir()
    with Image.open(ROOT / "examples" / "couple_1855.webp") as example:
        portrait = example.convert("RGB").crop((200, 60, 600, 460))
        street = example.convert("RGB").crop((300, 500, 460, 620))
    portrait.save(folder / "face.webp", quality=92)
    street.resize((64, 48)).save(folder / "small.png")
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "a street", 6
    street.save(folder / "a.jpg", quality=88, exif=exif, dpi=(300, 300))
    pixels = np.asarray(street)
    deep = pixels.astype(np.uint16) * 257 - (np.indices(pixels.shape).sum(0) % 7).astype(np.uint16) * (pixels > 0)
    cv2.imwrite(str(folder / "b.png"), deep[..., 1])
    tifffile.imwrite(folder / "c.tif", deep, photometric="rgb", compression="zlib", resolution=(600, 600))
    street.save(folder / "d.webp", lossless=True)
    street.save(folder / "e.ppm")
    street.save(folder / "f.bmp")
    street.save(folder / "g.jp2", irreversible=False)
    street.convert("CMYK").save(folder / "h.tif", compression="tiff_lzw")
    street.save(folder / "i.tif", save_all=True, append_images=[street.transpose(Image.Transpose.ROTATE_90)])
    street.quantize(64).save(folder / "j.png")
    street.convert("RGBA").save(folder / "k.png")
    buffer = io.BytesIO()
    street.save(buffer, "JPEG")
    (folder / "bad.jpg").write_bytes(buffer.getvalue()[:300])
    masks = folder / "masks"
    masks.mkdir()
    hole: NDArray[np.uint8] = np.zeros((120, 160), np.uint8)
    hole[40:60, 30:90] = hole[:, 100:102] = 255
    # The JPEG lies on its side, and its mask is of the photo as it is looked at.
    Image.fromarray(np.rot90(hole, -1)).save(masks / "a.png")
    Image.fromarray(hole).save(masks / "c.png")
    Image.fromarray(hole).resize((64, 48)).save(masks / "small.png")


def stand_ins(folder: Path, reference: Path) -> None:
    """The published checkpoints in the reference's layout: near-identity repair with random faces."""
    import torch

    sys.path.insert(0, str(reference))
    maker = importlib.import_module("make_reference_checkpoints")
    for name, (_, path) in maker.FILES.items():
        bias = -0.9 if name == "scratch_unet" else None
        state = maker.state_dict(name, "random" if name.startswith("face") else "passthrough", unet_bias=bias)
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"model_state": state} if name == "scratch_unet" else state, target)


def lock_of(text: str, weights: Path) -> str:
    """A weights.lock that expects the stand-ins that lie in a folder."""
    blocks = text.split("[[file]]")
    for number, block in enumerate(blocks):
        found = re.search(r'^path = "(.*)"$', block, re.M)
        if found and (path := weights / found[1]).is_file():
            block = re.sub(r"^(?:bytes|also) = .*\n", "", block, flags=re.M)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            blocks[number] = re.sub(r'^sha256 = ".*"$', f'sha256 = "{digest}"', block, flags=re.M)
    return "[[file]]".join(blocks)


def copied(tree: Path, target: Path, weights: Path) -> Path:
    """The package of a tree in a place of its own, with a lock that knows the stand-ins."""
    shutil.copytree(tree / "oldphoto", target / "oldphoto", ignore=shutil.ignore_patterns("__pycache__"))
    (target / "weights.lock").write_text(lock_of((tree / "weights.lock").read_text(), weights))
    (target / "sitecustomize.py").write_text(CLOCK)
    return target


def run(tree: Path, arguments: Sequence[str], folder: Path, home: Path, weights: Path) -> str:
    """One command by one tree: its exit code, stdout and stderr."""
    unset = {name: value for name, value in os.environ.items() if not name.startswith(("OLDPHOTO_", "HF_"))}
    environment = unset | {
        "PYTHONPATH": str(tree),
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "500",
        "TERM": "dumb",
    }
    if weights.is_dir():
        environment["OLDPHOTO_WEIGHTS"] = str(weights)
    command = [sys.executable, "-m", "oldphoto", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return f"{done.stdout}\n== stderr\n{done.stderr}\n== exit code {done.returncode}\n".replace(str(tree), "TREE")


def timeless(text: str) -> str:
    """Text without seconds and bytes of memory, its lines sorted: photos end in any order."""
    duration = r"\b(?:\d+ (?:h|min) )*\d+(?:\.\d+)? (?:s|ms|min|h)\b"
    text = re.sub(duration, "N s", text.replace("\xa0", " "))
    text = re.sub(r"\b(photo|name|data-number)([-=]\"?)\d+", r"\1\2N", text)
    text = re.sub(r"data-seconds=\"[\d.]*\"", "", text)
    text = re.sub(r"\d+(?:\.\d+)? [GM]B (of memory|at most)", r"N MB \1", text)
    lines = [steady(line) for line in text.splitlines()]
    return "\n".join(sorted(lines))


def steady(line: str) -> str:
    """A line of JSON without what a run says of itself; another line as it is."""
    try:
        record = json.loads(line)
    except ValueError:
        return re.sub(r"^\[\d+/", "[N/", line)
    return json.dumps(cut(record))


def cut(value: Any) -> Any:
    """JSON with times left out; the order of keys stays."""
    if isinstance(value, dict):
        return {k: (sorted(v) if k == "stages" else cut(v)) for k, v in value.items() if k not in OF_THE_RUN}
    return [cut(one) for one in value] if isinstance(value, list) else value


def helps(text: str) -> str:
    """What `--help` says, whatever panel it says it in."""
    lines = (re.sub(r"[│╭╮╰╯─]+", " ", line) for line in text.splitlines() if not line.startswith(("╭", "╰")))
    return "\n".join(sorted(" ".join(line.split()) for line in lines))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that a run left, by name; text without times."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).parts[0] != "in"):
        data = path.read_bytes()
        if path.suffix in (".jsonl", ".html", ".txt"):
            data = timeless(data.decode()).encode()
        found[str(path.relative_to(folder))] = data
    return found


def without_record(data: bytes, added: Sequence[str]) -> object:
    """The pictures of an output, with what its XMP says but for networks that only one tree names."""
    with Image.open(io.BytesIO(data)) as image:
        pages = []
        for page in range(getattr(image, "n_frames", 1)):
            image.seek(page)
            pages.append((image.size, image.mode, image.tobytes()))
        named = bytes(str(image.info.get("xmp", "")), "utf-8").decode()
    for name in added:
        named = re.sub(rf",? {name} sha256 [0-9a-f]{{64}}", "", named)
    return (*pages, named)


def differences(old: dict[str, bytes], new: dict[str, bytes], added: Sequence[str]) -> list[str]:
    """What two runs left that is not the same."""
    said = [f"{name} is only in one" for name in sorted(old.keys() ^ new.keys())]
    for name in sorted(old.keys() & new.keys()):
        if old[name] == new[name]:
            continue
        if (
            added
            and name.endswith((".jsonl", ".html", ".txt"))
            and unnamed(old[name], added) == unnamed(new[name], added)
        ):
            continue
        if added and name.startswith("out/") and without_record(old[name], added) == without_record(new[name], added):
            continue
        said.append(f"{name} differs")
    return said


def unnamed(data: bytes, added: Sequence[str]) -> object:
    """Text of records without networks that only one tree names, and without hashes and sizes of what names them."""
    text = data.decode()
    for name in added:
        text = re.sub(rf',? ?"{name}": "[0-9a-f]{{64}}"', "", text)
        text = re.sub(rf'<tr><th scope="row">{name}</th><td class="hash">[0-9a-f]{{64}}</td></tr>\s*', "", text)
    text = re.sub(r'"sha256": "[0-9a-f]{64}", "bytes": \d+', "", text)
    # PREMIS: digests and sizes, and the identifiers made of them.
    text = re.sub(r"(messageDigest|size)>[0-9a-f]+<", r"\1><", text)
    text = re.sub(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "", text)
    text = re.sub(r"[\d,]+ bytes, (\w+), sha256 [0-9a-f]{64}", r"\1", text)
    return sorted(text.splitlines())


def main() -> int:
    """Run the cases and say what differs; 1 if anything does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--only", action="append", default=[], help="cases whose names hold this; may be repeated")
    parser.add_argument("--work", type=Path, default=Path("/tmp/oldphoto-same-bytes"), help="weights and runs lie here")
    parser.add_argument("--reference", type=Path, default=REFERENCE, help="the folder that makes stand-in weights")
    parser.add_argument("--added", action="append", default=[], help="a network that only one tree's records name")
    chosen = parser.parse_args()
    work: Path = chosen.work
    work.mkdir(parents=True, exist_ok=True)
    weights, home = work / "weights", work / "home"
    if not weights.is_dir() and chosen.reference.is_dir():
        stand_ins(work / "making", chosen.reference)
        (work / "making").rename(weights)
    if (work / "trees").exists():
        shutil.rmtree(work / "trees")
    trees = {name: copied(getattr(chosen, name), work / "trees" / name, weights) for name in ("old", "new")}
    source = work / "photos"
    if source.exists():
        shutil.rmtree(source)
    photos(source)
    wanted = [case for case in cases() if not chosen.only or any(word in case.name for word in chosen.only)]
    wrong = 0
    for case in wanted:
        if case.published and not weights.is_dir():
            print(f"left out  {case.name}: no stand-in weights", flush=True)
            continue
        left = {name: left_by(tree, case, work, source, home, weights) for name, tree in trees.items()}
        wrong += report(case.name, differences(left["old"], left["new"], chosen.added))
    for command in HELP:
        name = " ".join([*command, "--help"])
        if not chosen.only or any(word in name for word in chosen.only):
            told = {key: helps(run(tree, [*command, "--help"], work, home, weights)) for key, tree in trees.items()}
            wrong += report(name, lines_that_differ(told["old"], told["new"]))
    print(f"{len(wanted)} runs, {wrong} that differ", flush=True)
    return min(wrong, 1)


def left_by(tree: Path, case: Case, work: Path, source: Path, home: Path, weights: Path) -> dict[str, bytes]:
    """What one tree makes of a case, in a folder that has the same name for both."""
    folder = work / "run"
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    shutil.copytree(source, folder / "in")
    printed = "\n".join(run(tree, step, folder, home, weights) for step in case.steps)
    kept = work / "left" / tree.name / case.name
    if kept.exists():
        shutil.rmtree(kept)
    kept.parent.mkdir(parents=True, exist_ok=True)
    (folder / "printed.txt").write_text(printed)
    found = contents(folder)
    folder.rename(kept)
    return found


def lines_that_differ(old: str, new: str) -> list[str]:
    """Lines that only one of two texts has, each marked with whose it is."""
    before, after = set(old.splitlines()), set(new.splitlines())
    return [f"- {line}" for line in sorted(before - after)] + [f"+ {line}" for line in sorted(after - before)]


def report(name: str, said: Sequence[str]) -> bool:
    """Print what came of one case; whether anything differs."""
    print(
        f"{'differs' if said else 'same   '}  {name}", *(f"            {line}" for line in said), sep="\n", flush=True
    )
    return bool(said)


if __name__ == "__main__":
    sys.exit(main())
