"""Finding faces, against dlib's detector as it comes: how many are found, how often something else is, what it costs.

    python benchmarks/faces.py DATA [--faces N] [--rows TEXT]

DATA holds index.csv, the held-out faces it names with five landmarks, and the old photos of old_faces.json, in which
the faces were marked by hand: [x, y, side] of the square that the detector would draw; what is in profile, tiny or
hidden is "unsure" and counts neither way. Prints a Markdown table. Times are of one thread, for each photo. dlib's
network is a column where its file is on this machine; it takes seconds for each photo.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import dlib
import numpy as np
import torch
from numpy.typing import NDArray

from oldphoto import weights
from oldphoto.stages.faces import Detector, cnn_detector, detect_faces

Pixels = NDArray[np.uint8]
Square = tuple[float, float, float]  # middle x, middle y, side
Finder = Callable[[Pixels], list[Square]]

# The detector's square in terms of the eyes and the mouth, measured on upright faces.
SQUARE_SIDE = 2.28
SQUARE_DOWN = 0.49
LARGE = (3000, 4000)


@dataclass(frozen=True)
class Case:
    """A picture, its faces, and squares that count neither as found nor as wrong."""

    pixels: Pixels
    faces: Sequence[Square]
    unsure: Sequence[Square] = ()


def plain(doublings: int) -> Finder:
    """dlib's frontal detector with its own enlargement."""
    detector = dlib.get_frontal_face_detector()

    def find(pixels: Pixels) -> list[Square]:
        boxes = detector(pixels, doublings)
        return [((b.left() + b.right()) / 2, (b.top() + b.bottom()) / 2, float(b.width())) for b in boxes]

    return find


def ours(detector: Detector | None = None) -> Finder:
    """What oldphoto finds."""
    return lambda pixels: [(*face.corners.mean(axis=0), face.side) for face in detect_faces(pixels, detector)]


def finders() -> dict[str, Finder]:
    """The columns of the table."""
    columns = {"dlib, upsample 0": plain(0), "dlib, upsample 1": plain(1), "oldphoto": ours()}
    (file,) = (file for file in weights.read_lock() if file.net == weights.CNN_DETECTOR)
    path = weights.cached(file)
    return columns if path is None else columns | {"oldphoto, cnn": ours(cnn_detector(path))}


def read(path: Path) -> Pixels:
    """A picture as (H, W, 3) RGB."""
    picture = cv2.imread(str(path))
    if picture is None:
        raise SystemExit(f"{path} cannot be read")
    return np.ascontiguousarray(picture[..., ::-1], np.uint8)


def old_photos(data: Path) -> list[Case]:
    """The photos marked by hand."""
    marked = json.loads(Path(__file__).with_name("old_faces.json").read_text())
    return [Case(read(data / name), marks["faces"], marks["unsure"]) for name, marks in marked.items()]


def square_of(points: NDArray[np.float64]) -> Square:
    """The detector's square about five landmarks: eyes, nose tip, mouth corners."""
    eyes, mouth = points[:2].mean(axis=0), points[3:].mean(axis=0)
    middle = eyes + SQUARE_DOWN * (mouth - eyes)
    size = max(float(np.hypot(*(points[1] - points[0]))), float(np.hypot(*(mouth - eyes))) / 1.12)
    return float(middle[0]), float(middle[1]), SQUARE_SIDE * size


def face_photos(data: Path, count: int, side: float, degrees: float) -> Iterator[Case]:
    """Held-out faces, the square so many pixels wide, turned about the picture's middle."""
    with (data / "index.csv").open(newline="") as table:
        rows = [row for row in csv.DictReader(table) if row["file"].startswith("eval/faces/") and row["landmarks5"]]
    for row in rows[:: max(1, len(rows) // count)][:count]:
        points = np.array([[float(number) for number in pair.split(",")] for pair in row["landmarks5"].split()])
        pixels = read(data / row["file"])
        times = side / square_of(points)[2]
        how = cv2.INTER_AREA if times < 1.0 else cv2.INTER_CUBIC
        small = cv2.resize(pixels, None, fx=times, fy=times, interpolation=how)
        # Replicated, since black corners would tell where the picture is.
        margin = round(0.3 * max(small.shape[:2]))
        framed = cv2.copyMakeBorder(small, margin, margin, margin, margin, cv2.BORDER_REPLICATE)
        height, width = framed.shape[:2]
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
        reach = np.abs(turn[:, :2]) @ [width, height]
        turn[:, 2] += reach / 2 - np.array([width, height]) / 2
        size = (round(reach[0]), round(reach[1]))
        turned = cv2.warpAffine(framed, turn, size, borderMode=cv2.BORDER_REPLICATE)
        moved = (points * times + margin) @ turn[:, :2].T + turn[:, 2]
        yield Case(np.ascontiguousarray(turned, np.uint8), [square_of(moved)])


def mosaic(cases: Sequence[Case]) -> Case:
    """12 megapixels of old photos side by side: tiny faces in a large photo."""
    sheet = np.zeros((*LARGE, 3), np.uint8)
    faces: list[Square] = []
    unsure: list[Square] = []
    x = y = row = 0
    for case in cases:
        height, width = case.pixels.shape[:2]
        if x + width > LARGE[1]:
            x, y, row = 0, y + row, 0
        if y + height > LARGE[0]:
            continue
        sheet[y : y + height, x : x + width] = case.pixels
        faces += [(x + a, y + b, side) for a, b, side in case.faces]
        unsure += [(x + a, y + b, side) for a, b, side in case.unsure]
        x, row = x + width, max(row, height)
    return Case(sheet, faces, unsure)


def enlarged(case: Case) -> Case:
    """The photo as a scan of 12 megapixels."""
    times = float(np.sqrt(LARGE[0] * LARGE[1] / (case.pixels.shape[0] * case.pixels.shape[1])))
    pixels = cv2.resize(case.pixels, None, fx=times, fy=times, interpolation=cv2.INTER_CUBIC)
    faces, unsure = ([(x * times, y * times, side * times) for x, y, side in s] for s in (case.faces, case.unsure))
    return Case(np.ascontiguousarray(pixels, np.uint8), faces, unsure)


def judge(found: Sequence[Square], case: Case) -> tuple[int, list[Square]]:
    """How many faces were found, and what was found that is none."""
    left = list(found)
    hits = 0
    for x, y, side in case.faces:
        near = [s for s in left if np.hypot(s[0] - x, s[1] - y) < side / 2 and 0.4 < s[2] / side < 2.5]
        if near:
            left.remove(min(near, key=lambda s: float(np.hypot(s[0] - x, s[1] - y))))
            hits += 1
    wrong = [s for s in left if all(np.hypot(s[0] - x, s[1] - y) > side / 2 for x, y, side in case.unsure)]
    return hits, wrong


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--faces", type=int, default=60, help="held-out faces for each row (default 60)")
    parser.add_argument("--rows", default="", help="only those whose name holds this text")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the times are of this thread
    cv2.setNumThreads(1)
    old = old_photos(options.data)
    sets: dict[str, list[Case]] = {
        "old photos": old,
        "faces of 40 pixels": list(face_photos(options.data, options.faces, 40, 0)),
        **{
            f"faces of 150 pixels, turned {degrees}": list(face_photos(options.data, options.faces, 150, degrees))
            for degrees in (0, 15, 30, 45, 90, 180)
        },
        "old photos of groups, each scanned at 12 megapixels": [enlarged(case) for case in old if len(case.faces) > 2],
        "one photo of 12 megapixels, faces of 24 to 320": [mosaic(old)],
        "one photo of 12 megapixels without a face, enlarged": [enlarged(Case(read(options.data / EMPTY), []))],
        "one photo of 12 megapixels without a face, sharp": [
            mosaic([Case(read(options.data / name), []) for name in SHARP] * 15)
        ],
    }
    columns = finders()
    print("| | " + " | ".join(columns) + " |")
    print("|---|" + "---|" * len(columns))
    for label, cases in sets.items():
        if options.rows not in label:
            continue
        cells = []
        for find in columns.values():
            hits = wrong = 0
            started = time.thread_time()
            for case in cases:
                some, others = judge(find(case.pixels), case)
                hits, wrong = hits + some, wrong + len(others)
            seconds = time.thread_time() - started
            faces = sum(len(case.faces) for case in cases)
            share = f"{hits} of {faces} ({hits / faces:.0%}), " if faces else ""
            cells.append(f"{share}{wrong} wrong, {seconds / len(cases):.2f} s")
        print(f"| {label} | " + " | ".join(cells) + " |", flush=True)


EMPTY = "old/test/deoldify_054_AnselAdamsBuildings.webp"
# Elephants, rocks, mushrooms, a boat and mountains, all of 481 x 321 pixels.
SHARP = [f"eval/clean/bsds500_{number}.webp" for number in ("0017", "0079", "0089", "0156", "0431")]


if __name__ == "__main__":
    main()
