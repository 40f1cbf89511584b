"""How good a weight set is, on photos it was never trained on: the published degradation, real overlays filled with
white, fixed seeds; beside doing nothing and the classical tools. Pixels are (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage

from oldphoto.errors import NoInputError
from oldphoto.image import Photo
from oldphoto.options import Options
from oldphoto.pipeline import Models, restore
from oldphoto.scratches import grey_tensor, resized_for
from oldphoto.training import degrade
from oldphoto.training.data import image_files, overlays

Pixels8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]
SEED = 20200604
SIDE = 256
PLAIN = Options(faces=False, hr="off")
SCRATCHED = Options(with_scratch=True, faces=False, hr="off")


@dataclass(frozen=True)
class Pair:
    """A clean photo, its degraded copy and the true mask of its damage."""

    clean: Pixels8
    old: Pixels8
    mask: Mask


@dataclass(frozen=True)
class Classical:
    """Telea inpainting and non-local means, and their settings."""

    radius: int
    strength: int

    def __call__(self, pair: Pair) -> Pixels8:
        """Restore with the true mask."""
        filled: Pixels8 = pair.old
        if pair.mask.any():
            grown = cv2.dilate(pair.mask.astype(np.uint8), np.ones((3, 3), np.uint8))
            filled = np.asarray(cv2.inpaint(pair.old, grown, self.radius, cv2.INPAINT_TELEA), np.uint8)
        if not self.strength:
            return np.asarray(filled, np.uint8)
        return np.asarray(cv2.fastNlMeansDenoisingColored(filled, None, self.strength, self.strength, 7, 21), np.uint8)


def psnr(a: Pixels8, b: Pixels8) -> float:
    """Peak signal-to-noise ratio in dB, of 255; equal pictures give 100."""
    error = float(np.square(a.astype(np.float64) - b.astype(np.float64)).mean())
    return 100.0 if error == 0.0 else 10.0 * float(np.log10(255.0**2 / error))


def ssim(a: Pixels8, b: Pixels8) -> float:
    """Structural similarity: 11 x 11 Gaussian window of sigma 1.5, per channel (Wang et al. 2004)."""

    def blur(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(cv2.GaussianBlur(x, (11, 11), 1.5), np.float64)

    x, y = a.astype(np.float64), b.astype(np.float64)
    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = (0.01 * 255.0) ** 2, (0.03 * 255.0) ** 2
    score = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return float(score[5:-5, 5:-5].mean())


def area_under_curve(positive: NDArray[np.float32], negative: NDArray[np.float32]) -> float:
    """ROC AUC: the chance that a random positive scores above a random negative, ties counting half."""
    edges = np.linspace(0.0, 1.0, 4097)
    p, n = (np.histogram(a, edges)[0] / max(1, a.size) for a in (positive, negative))
    below = np.concatenate([[0.0], np.cumsum(n)[:-1]])
    return float((p * (below + 0.5 * n)).sum())


def crops(folders: Sequence[Path], side: int = SIDE) -> list[Pixels8]:
    """The middle `side` x `side` pixels of every photo of the folders that is large enough."""
    found = []
    for file in (f for folder in folders for f in image_files(folder)):
        with PillowImage.open(file) as image:
            rgb = np.asarray(image.convert("RGB"))
        h, w = rgb.shape[:2]
        if min(h, w) >= side:
            y, x = (h - side) // 2, (w - side) // 2
            found.append(rgb[y : y + side, x : x + side])
    if not found:
        raise NoInputError(f"no photo of at least {side} x {side} pixels in {', '.join(map(str, folders))}")
    return found


def pairs(
    clean: Sequence[Pixels8],
    damage: dict[str, list[Pixels8]] | None,
    seed: int = SEED,
    operation: Callable[[degrade.Image, degrade.Generator], degrade.Image] = degrade.published_mixture,
) -> Iterator[Pair]:
    """Degraded copies; with `damage`, holes of its overlays alone (nothing drawn) are painted white on top."""
    for i, photo in enumerate(clean):
        rng = np.random.default_rng([seed, i])
        old = operation(photo.astype(np.float32) / np.float32(255.0), rng)
        mask = np.zeros(photo.shape[:2], np.bool_)
        if damage is not None:
            mask = degrade.damage((photo.shape[0], photo.shape[1]), damage, rng, drawn=0.0).mask
            old = degrade.whitened(old, mask)
        yield Pair(photo, np.clip(np.rint(old * 255.0), 0, 255).astype(np.uint8), mask)


def tuned(photos: Sequence[Pair]) -> Classical:
    """The classical chain with the settings of the highest mean PSNR on these pairs."""
    grid = [Classical(r, h) for r, h in product((3, 5), (0, 3, 5, 7, 10, 14))]
    return max(grid, key=lambda chain: float(np.mean([psnr(chain(p), p.clean) for p in photos])))


@dataclass(frozen=True)
class Score:
    """Mean PSNR (dB) and SSIM over the photos, and the lowest PSNR."""

    psnr: float
    ssim: float
    lowest: float

    @staticmethod
    def of(made: Sequence[Pixels8], clean: Sequence[Pixels8]) -> Score:
        """Score pictures against the truth."""
        ratios = [psnr(m, c) for m, c in zip(made, clean, strict=True)]
        likeness = [ssim(m, c) for m, c in zip(made, clean, strict=True)]
        return Score(
            round(float(np.mean(ratios)), 3), round(float(np.mean(likeness)), 4), round(float(np.min(ratios)), 2)
        )


def evaluate(
    models: Models,
    photos: Sequence[Path],
    damage: Path,
    tuning: Path,
    *,
    limit: int | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, object]:
    """Score `models` on the photos of some folders under the overlays of `damage`.

    tuning: folder of other photos, on which the classical chain is tuned. limit: no more than this many photos.
    Returns {case: {method: {psnr, ssim, lowest}}, "scratches": {auc, recall, precision, f1, false_share}, ...}.
    """
    clean = crops(photos)[:limit]
    harm = overlays(damage)
    report(f"tuning the classical chain on {tuning}")
    chain = tuned(list(pairs(crops([tuning])[:24], harm, seed=SEED + 1)))
    report(f"restoring {len(clean)} photos")

    def run(pixels: Pixels8, options: Options, mask: Mask | None = None) -> Pixels8:
        return np.asarray(restore(Photo.from_array(pixels), models, options, mask).photo.pixels, np.uint8)

    hurt = list(pairs(clean, harm))
    truth = [p.clean for p in hurt]
    scratched = {
        "degraded": Score.of([p.old for p in hurt], truth),
        "classical, true mask": Score.of([chain(p) for p in hurt], truth),
        "oldphoto, true mask": Score.of([run(p.old, PLAIN, p.mask) for p in hurt], truth),
        "oldphoto, detected mask": Score.of([run(p.old, SCRATCHED) for p in hurt], truth),
    }
    report("photos without scratches")
    aged = list(pairs(clean, None))
    plain = {
        "degraded": Score.of([p.old for p in aged], truth),
        "classical": Score.of([chain(p) for p in aged], truth),
        "oldphoto": Score.of([run(p.old, PLAIN) for p in aged], truth),
    }
    undamaged = {
        "oldphoto": Score.of([run(p, PLAIN) for p in clean], clean),
        "oldphoto --with-scratch": Score.of([run(p, SCRATCHED) for p in clean], clean),
    }
    report("single degradations")
    singles = {}
    for name, operation in degrade.SINGLE.items():
        one = list(pairs(clean[::2], None, operation=operation))
        singles[name] = {
            "degraded": Score.of([p.old for p in one], [p.clean for p in one]),
            "oldphoto": Score.of([run(p.old, PLAIN) for p in one], [p.clean for p in one]),
        }
    scores = {"mixture with scratches": scratched, "mixture": plain, "undamaged": undamaged, **singles}
    return {
        "photos": len(clean),
        "classical": {"inpainting radius": chain.radius, "non-local means strength": chain.strength},
        "scratches": detection(models, hurt, clean),
        "scores": {case: {m: vars(s) for m, s in rows.items()} for case, rows in scores.items()},
    }


def detection(models: Models, hurt: Sequence[Pair], undamaged: Sequence[Pixels8]) -> dict[str, float]:
    """How well scratches are found: AUC over all pixels; recall, precision and F1 at the default threshold; and the
    share of undamaged photos' pixels taken for scratches."""
    inside, outside = [], []
    hit = miss = wrong = 0
    threshold = models.detection.threshold
    for pair in hurt:
        p = probability(models, pair.old)
        inside.append(p[pair.mask])
        outside.append(p[~pair.mask])
        found = p >= threshold
        hit += int((found & pair.mask).sum())
        miss += int((~found & pair.mask).sum())
        wrong += int((found & ~pair.mask).sum())
    false = [float((probability(models, photo) >= threshold).mean()) for photo in undamaged]
    recall, precision = hit / max(1, hit + miss), hit / max(1, hit + wrong)
    return {
        "auc": round(area_under_curve(np.concatenate(inside), np.concatenate(outside)), 4),
        "recall": round(recall, 4),
        "precision": round(precision, 4),
        "f1": round(2 * recall * precision / max(1e-9, recall + precision), 4),
        "false_share_on_undamaged": round(float(np.mean(false)), 5),
    }


@torch.inference_mode()
def probability(models: Models, pixels: Pixels8) -> NDArray[np.float32]:
    """(H, W, 3) -> (H, W) float32, the detector's probability of "scratched" at the photo's own size."""
    grey = resized_for(grey_tensor(pixels), models.detection).to(models.device)
    found = torch.sigmoid(models.net("scratch_unet")(grey)).float().cpu()
    full = torch.nn.functional.interpolate(found, size=pixels.shape[:2], mode="bilinear", align_corners=False)
    return np.asarray(full[0, 0].numpy(), np.float32)
