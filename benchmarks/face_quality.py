"""What the face stage does to held-out faces: likeness to the truth, identity, sharp faces kept, sheets to look at.

    python benchmarks/face_quality.py DATA [--faces N] [--model compact] [--descriptor FILE] [--sheets DIR]

DATA holds index.csv with five landmarks for its held-out faces, and old/test. Each face is degraded as in the paper
(fixed seeds), restored as a whole, and then its face is enhanced and blended; figures are of the aligned 256 x 256 crop
at the true landmarks. --descriptor: dlib's face recognition model (dlib_face_recognition_resnet_model_v1.dat), for the
distance between each face and the true one; above 0.6 dlib takes two faces for two people.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import dlib
import numpy as np
from numpy.typing import NDArray

from oldphoto.files.image import read_photo
from oldphoto.options import Options
from oldphoto.restorer import Restorer
from oldphoto.stages.blending import blend
from oldphoto.stages.faces import Face, Landmarks
from oldphoto.stages.faces.enhancing import find_faces
from oldphoto.stages.faces.geometry import crop_matrix, cut_out, similarity
from oldphoto.stages.faces.stage import enhanced_faces
from oldphoto.stages.stage import Case
from oldphoto.training.degrade import published_mixture
from oldphoto.training.evaluate import psnr, ssim

Pixels = NDArray[np.uint8]
Points = NDArray[np.float64]

SIZE: Literal[256] = 256
SEED = 20200604
# Where the five points lie in the 150 x 150 pixels that dlib's recognition model takes: the mean over held-out faces.
CHIP = np.array([[49.7, 46.5], [100.0, 46.5], [74.0, 75.0], [53.0, 104.7], [97.0, 104.7]])


@dataclass(frozen=True)
class Held:
    """One held-out face: the aligned crops, each (256, 256, 3), and the same as recognition takes them, (150, 150, 3).

    By name: degraded, restored (the whole photo, no face stage), enhanced, true. found: the face stage found it.
    kept: PSNR of the true face put through the face stage alone.
    """

    crops: dict[str, Pixels]
    chips: dict[str, Pixels]
    found: bool
    kept: float | None


class Bench:
    """A restorer, and the face stage by itself."""

    def __init__(self, model: str, strength: float | None) -> None:
        self.restorer = Restorer.from_pretrained(model, offline=model == "compact")  # type: ignore[arg-type]  # checked there
        self.strength = strength

    def whole(self, pixels: Pixels) -> Pixels:
        """Restored without the face stage."""
        return np.asarray(self.restorer.restore(pixels, Options(faces=False, hr="off")).photo.pixels, np.uint8)

    def faces(self, pixels: Pixels) -> list[Face]:
        """The faces of a restored photo, enhanced."""
        models = self.restorer.models
        found = find_faces(pixels, models.made("landmarks", Landmarks), SIZE)
        case = Case(Options(face_strength=self.strength, face_size=SIZE), models.set, large=False, has_mask=False)
        with models.inference():
            return enhanced_faces(found, models, case)

    def held(self, clean: Pixels, points: Points, number: int) -> Held:
        """Put one face through everything."""
        old = published_mixture(clean.astype(np.float32) / np.float32(255.0), np.random.default_rng([SEED, number]))
        degraded = np.clip(np.rint(old * 255.0), 0, 255).astype(np.uint8)
        restored = self.whole(degraded)
        enhanced, found = self._enhanced(restored, points)
        sharp, seen = self._enhanced(clean, points)
        pictures = {"degraded": degraded, "restored": restored, "enhanced": enhanced, "true": clean}
        matrix, chip = crop_matrix(points, SIZE), similarity(CHIP, points)
        crops = {name: cut_out(picture, matrix, SIZE) for name, picture in pictures.items()}
        chips = {name: cut_out(picture, chip, 150) for name, picture in pictures.items()}
        kept = psnr(cut_out(sharp, matrix, SIZE), crops["true"]) if seen else None
        return Held(crops, chips, found, kept)

    def _enhanced(self, pixels: Pixels, points: Points) -> tuple[Pixels, bool]:
        faces = self.faces(pixels)
        far = [np.hypot(*(face.landmarks.mean(axis=0) - points.mean(axis=0))) for face in faces]
        found = any(distance < np.hypot(*(points[1] - points[0])) for distance in far)
        return np.asarray(blend(pixels, faces), np.uint8), found


def held_out(data: Path, count: int) -> list[tuple[Pixels, Points]]:
    """Held-out photos and their five points, evenly taken from all groups."""
    with (data / "index.csv").open(newline="") as table:
        rows = [row for row in csv.DictReader(table) if row["file"].startswith("eval/faces/") and row["landmarks5"]]
    chosen = rows[:: max(1, len(rows) // count)][:count]
    return [
        (
            np.asarray(read_photo(data / row["file"]).pixels, np.uint8),
            np.array([[float(number) for number in pair.split(",")] for pair in row["landmarks5"].split()]),
        )
        for row in chosen
    ]


def likeness(faces: Sequence[Held]) -> dict[str, dict[str, float]]:
    """PSNR (dB) and SSIM of the crops against the truth."""
    names = ("degraded", "restored", "enhanced")
    return {
        name: {
            "psnr": round(float(np.mean([psnr(face.crops[name], face.crops["true"]) for face in faces])), 2),
            "ssim": round(float(np.mean([ssim(face.crops[name], face.crops["true"]) for face in faces])), 4),
        }
        for name in names
    }


def identity(faces: Sequence[Held], descriptor: Path) -> dict[str, float]:
    """Distances to the true face, and how often the face stage brings a face nearer or takes it further away."""
    model = dlib.face_recognition_model_v1(str(descriptor))
    described = [
        {name: np.array(model.compute_face_descriptor(np.ascontiguousarray(chip))) for name, chip in face.chips.items()}
        for face in faces
    ]
    away = {
        name: np.array([float(np.linalg.norm(d[name] - d["true"])) for d in described])
        for name in ("degraded", "restored", "enhanced")
    }
    change = away["enhanced"] - away["restored"]
    return {
        **{name: round(float(away[name].mean()), 4) for name in away},
        "nearer than restored": round(float((change < 0.0).mean()), 3),
        "nearer than degraded": round(float((away["enhanced"] < away["degraded"]).mean()), 3),
        "further by more than 0.05": int((change > 0.05).sum()),
        "furthest change": round(float(change.max()), 4),
    }


def sheet(rows: Sequence[Sequence[Pixels]], labels: Sequence[str], path: Path, across: int, side: int = 144) -> None:
    """Rows of pictures side by side, `across` rows beside one another, numbered, as one PNG."""
    blocks = []
    for number, row in enumerate(rows, 1):
        block = np.hstack([cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA) for picture in row])
        cv2.putText(block, str(number), (3, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 220, 0), 1, cv2.LINE_AA)
        blocks.append(np.pad(block, ((2, 2), (0, 8), (0, 0))))
    blocks += [np.zeros_like(blocks[0])] * (-len(blocks) % across)
    lines = [np.hstack(blocks[at : at + across]) for at in range(0, len(blocks), across)]
    head = np.zeros((22, lines[0].shape[1], 3), np.uint8)
    for place in range(across):
        for column, label in enumerate(labels):
            at = (place * blocks[0].shape[1] + column * side + 3, 16)
            cv2.putText(head, label, at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.vstack([head, *lines])[..., ::-1])


def old_faces(bench: Bench, data: Path, count: int, tell: Callable[[str], None]) -> list[list[Pixels]]:
    """Faces from real old photos: as scanned, restored, enhanced; the largest of each photo."""
    rows: list[list[Pixels]] = []
    for path in sorted((data / "old" / "test").iterdir()):
        pixels = np.asarray(read_photo(path).pixels, np.uint8)
        if not find_faces(pixels, bench.restorer.models.made("landmarks", Landmarks), SIZE):
            continue  # quicker than restoring every street
        restored = bench.whole(pixels)
        faces = bench.faces(restored)
        if not faces:
            continue
        final = np.asarray(blend(restored, faces), np.uint8)
        rows.append([cut_out(picture, faces[0].matrix, SIZE) for picture in (pixels, restored, final)])
        tell(f"{len(rows)} {path.name}")
        if len(rows) == count:
            break
    return rows


def main() -> None:
    """Measure, print JSON, and write the sheets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--faces", type=int, default=60, help="held-out faces (default 60)")
    parser.add_argument("--old", type=int, default=20, help="faces of real old photos on the sheet (default 20)")
    parser.add_argument("--model", choices=["compact", "published"], default="compact")
    parser.add_argument("--strength", type=float, help="share of the enhancement (default: judged face by face)")
    parser.add_argument("--descriptor", type=Path, help="dlib's face recognition model")
    parser.add_argument("--sheets", type=Path, help="folder for held_out.png and old.png")
    options = parser.parse_args()
    bench = Bench(options.model, options.strength)
    faces = []
    for number, (pixels, points) in enumerate(held_out(options.data, options.faces)):
        faces.append(bench.held(pixels, points, number))
    kept = [face.kept for face in faces if face.kept is not None]
    found = [face for face in faces if face.found]
    facts: dict[str, object] = {
        "faces": len(faces),
        "found in the restored photo": len(found),
        "likeness, where found": likeness(found),
        "sharp faces kept": {"mean dB": round(float(np.mean(kept)), 2), "lowest dB": round(min(kept), 2)},
    }
    if options.descriptor is not None:
        facts["descriptor distance to the true face, where found"] = identity(found, options.descriptor)
    print(json.dumps(facts, indent=1))
    if options.sheets is not None:
        names = ("degraded", "restored", "enhanced", "true")
        rows = [[face.crops[name] for name in names] for face in faces[:40]]
        sheet(rows, names, options.sheets / "held_out.png", across=2)
        old = old_faces(bench, options.data, options.old, print)
        sheet(old, ("scan", "restored", "enhanced"), options.sheets / "old.png", across=2)


if __name__ == "__main__":
    main()
