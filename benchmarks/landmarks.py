"""The five landmarks of held-out faces: how far off they are, and what that does to the aligned crop.

    python benchmarks/landmarks.py DATA MODEL [MODEL ...]

DATA holds index.csv and the held-out faces that it names with five landmarks, a folder for each group of people. MODEL:
the compact set's landmarks_5.safetensors, or dlib's predictor of 68 points. Prints Markdown tables: distances from the
true points over the distance between the eyes, for all faces, for faces that lean, and for each group; then how the
crops of the first model lie to those of the truth and of each other model.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from oldphoto.stages.faces import Landmarks, detect_faces
from oldphoto.stages.faces.geometry import crop_matrix, transform

Pixels = NDArray[np.uint8]
Points = NDArray[np.float64]

CROP = 256
FAILED = 0.1  # a mean distance from which on a face counts as missed
TURNS = (0, 25, 40)  # degrees by which a face leans in the detector's upright square


@dataclass(frozen=True)
class Answer:
    """One face: its group, how far it leans, its true points, and those of each model."""

    group: str
    degrees: int
    truth: Points
    found: tuple[Points, ...]


def distance(points: Points, truth: Points) -> float:
    """Mean over the five, in eye distances."""
    return float(np.hypot(*(points - truth).T).mean() / np.hypot(*(truth[1] - truth[0])))


def answers(data: Path, models: Sequence[Landmarks]) -> tuple[list[Answer], int]:
    """The held-out faces that the detector finds, upright and leaning, and how many there are."""
    with (data / "index.csv").open(newline="") as table:
        rows = [row for row in csv.DictReader(table) if row["file"].startswith("eval/faces/") and row["landmarks5"]]
    out = []
    for row in rows:
        picture = cv2.imread(str(data / row["file"]))
        if picture is None:
            raise SystemExit(f"{row['file']} cannot be read")
        pixels = np.ascontiguousarray(picture[..., ::-1], np.uint8)
        truth = np.array([[float(number) for number in pair.split(",")] for pair in row["landmarks5"].split()])
        # Another face in the picture is not an error of this one.
        size = float(np.hypot(*(truth[:2].mean(axis=0) - truth[3:].mean(axis=0))))
        near = [f for f in detect_faces(pixels) if np.hypot(*(f.corners.mean(axis=0) - truth.mean(axis=0))) < size]
        for degrees in TURNS if near else ():
            turn = cv2.getRotationMatrix2D(near[0].corners.mean(axis=0).tolist(), degrees, 1.0)
            turned = cv2.warpAffine(pixels, turn, pixels.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)
            leaning = np.asarray(turned, np.uint8) if degrees else pixels
            found = tuple(model.find(leaning, near[0]) for model in models)
            true = transform(np.vstack([turn, [0.0, 0.0, 1.0]]).astype(np.float64), truth)
            out.append(Answer(Path(row["file"]).parent.name, degrees, true, found))
    return out, len(rows)


def cell(errors: Sequence[float]) -> str:
    """Mean, 90th percentile, share of failures."""
    e = np.array(errors)
    return f"{e.mean():.3f}, {np.quantile(e, 0.9):.3f}, {(e > FAILED).mean():.1%}"


def crop_difference(one: Points, other: Points) -> tuple[float, float, float]:
    """How two crops lie to one another: middle in pixels of a crop of 256, size in per cent, turn in degrees."""
    between = np.linalg.inv(crop_matrix(one, CROP)) @ crop_matrix(other, CROP)
    middle = np.full((1, 2), (CROP - 1) / 2.0)
    shift = float(np.hypot(*(transform(between, middle) - middle)[0]))
    size = float(np.sqrt(np.linalg.det(between[:2, :2])))
    return shift, abs(size - 1.0) * 100.0, abs(float(np.degrees(np.arctan2(between[1, 0], between[0, 0]))))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    options = parser.parse_args()
    models = [Landmarks(path) for path in options.models]
    head = "| mean, 90 % below, above 0.1 | " + " | ".join(path.name for path in options.models) + " |"
    print(head + "\n|---|" + "---|" * len(models))
    everything, total = answers(options.data, models)

    def line(label: str, some: Sequence[Answer]) -> None:
        cells = [cell([distance(a.found[i], a.truth) for a in some]) for i in range(len(models))]
        print(f"| {label} | " + " | ".join(cells) + " |")

    for degrees in TURNS:
        some = [a for a in everything if a.degrees == degrees]
        line(f"leaning by {degrees}, {len(some)} of {total} found", some)
    upright = [a for a in everything if a.degrees == 0]
    for group in sorted({a.group for a in upright}):
        line(group, [a for a in upright if a.group == group])
    print("\n| crop of 256: median, 90 % below | shift, pixels | size, % | turn, degrees |\n|---|---|---|---|")
    pairs: dict[str, tuple[int, int | None]] = {
        f"{path.name} to the truth": (i, None) for i, path in enumerate(options.models)
    }
    pairs |= {f"{options.models[0].name} to {path.name}": (0, i) for i, path in enumerate(options.models) if i}
    for label, (i, j) in pairs.items():
        rows = [crop_difference(a.found[i], a.truth if j is None else a.found[j]) for a in upright]
        columns = [f"{np.median(c):.1f}, {np.quantile(c, 0.9):.1f}" for c in np.array(rows).T]
        print(f"| {label} | " + " | ".join(columns) + " |")


if __name__ == "__main__":
    main()
