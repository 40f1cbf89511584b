"""A batch with several photos in work at once, against the same photos one by one in the same process; compact set.

python benchmarks/batch.py [--count 50] [--megapixels 1] [--rounds 5] [--jobs N] [--with-scratch] [--no-faces]
                           [--photos DIR] [--processes 0]

One by one, each photo has all threads. The photos are dealt out to rounds, and each round is run both ways in turn, so
that other programs disturb both. The outputs are compared, too. --photos: real ones, scaled to the size, instead of a
made-up one. --processes: how many photos are also run in a process each, which says what start-up costs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from oldphoto import weights
from oldphoto.bench import photo
from oldphoto.files.image import PHOTO_SUFFIXES
from oldphoto.machine import memory
from oldphoto.models.loaded import Models
from oldphoto.options import Options
from oldphoto.runs import batch, planning

WAYS = ("one by one", "at once")


def main() -> None:
    """Both ways in each round, the first of them last in the next round."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--megapixels", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--with-scratch", action="store_true")
    parser.add_argument("--no-faces", action="store_true")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--processes", type=int, default=0)
    chosen = parser.parse_args()
    memory.reuse_pages()  # as the command does
    options = Options(with_scratch=chosen.with_scratch, faces=not chosen.no_faces)
    started = time.perf_counter()
    models = Models.load(weights.resolve("compact", lambda name: compact_nets()), "cpu")
    works = {
        way: batch.work_with(models, options, provenance=False, jobs=jobs)
        for way, jobs in zip(WAYS, (1, chosen.jobs), strict=True)
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        for number, picture in zip(range(chosen.count), pictures(chosen.photos, chosen.megapixels), strict=False):
            picture.save(folder / "in" / f"{number:03}.jpg", quality=92)
        paths = sorted(map(str, (folder / "in").iterdir()))
        run(paths[:1], folder / "first", works["one by one"])
        print(f"start-up and the first photo {time.perf_counter() - started:.1f} s; load {os.getloadavg()[0]:.1f}")
        wall, cpu = dict.fromkeys(WAYS, 0.0), dict.fromkeys(WAYS, 0.0)
        for number in range(chosen.rounds):
            some = paths[number :: chosen.rounds]
            seconds = {}
            for way in WAYS[:: -1 if number % 2 else 1]:
                since, cpu_since = time.perf_counter(), time.process_time()
                run(some, folder / way, works[way])
                seconds[way] = time.perf_counter() - since
                wall[way] += seconds[way]
                cpu[way] += time.process_time() - cpu_since
            times = ", ".join(f"{way} {seconds[way] / len(some):.2f} s" for way in WAYS)
            ratio = seconds[WAYS[0]] / seconds[WAYS[1]]
            print(f"round {number + 1}, {len(some)} photos: {times} a photo, {ratio:.2f} x", flush=True)
        same = sum((folder / WAYS[0] / p.name).read_bytes() == p.read_bytes() for p in (folder / WAYS[1]).iterdir())
        for way in WAYS:
            times = f"{wall[way] / len(paths):.2f} s a photo, {cpu[way] / len(paths):.2f} s CPU"
            print(f"{way:10} ({works[way].places}): {times}, {wall[WAYS[0]] / wall[way]:.2f} x")
        print(f"{same} of {len(paths)} outputs are the same; load {os.getloadavg()[0]:.1f}")
        if chosen.processes:
            single = processes(paths[: chosen.processes], folder / "processes", options)
            print(f"a process each: {single:.2f} s a photo, {single / (wall[WAYS[1]] / len(paths)):.2f} x at once")


def compact_nets() -> list[str]:
    """Every network of the set."""
    return [file.net for file in weights.read_lock() if file.set == "compact"]


def pictures(folder: Path | None, megapixels: float) -> Iterator[Image.Image]:
    """The made-up photo again and again, or the photos of a folder in a circle, scaled."""
    if folder is None:
        made_up = Image.fromarray(photo(megapixels)[0])
        while True:
            yield made_up
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in PHOTO_SUFFIXES]
    while True:
        for path in files:
            with Image.open(path) as picture:
                times = (megapixels * 1e6 / (picture.width * picture.height)) ** 0.5
                size = round(picture.width * times), round(picture.height * times)
                yield picture.convert("RGB").resize(size)


def run(paths: list[str], output: Path, work: batch.Work) -> None:
    """The batch, as the command runs it."""
    summary = batch.run(planning.plan(paths, f"{output}/").photos, lambda: work)
    assert not summary.failed
    assert not summary.interrupted


def processes(paths: list[str], output: Path, options: Options) -> float:
    """Seconds a photo in a process each."""
    command = [sys.executable, "-m", "oldphoto", "restore", "--model", "compact", "--device", "cpu", "--quiet"]
    command += ["--with-scratch"] * options.with_scratch + ["--no-faces"] * (not options.faces)
    started = time.perf_counter()
    for path in paths:
        subprocess.run([*command, path, "-o", f"{output}/"], check=True)
    return (time.perf_counter() - started) / len(paths)


if __name__ == "__main__":
    main()
