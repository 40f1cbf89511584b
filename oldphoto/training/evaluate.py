"""Score a weight set on photos it was never trained on: the published degradation, real overlays filled with
white, fixed seeds; beside doing nothing and the classical tools. Pixels are (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from oldphoto.errors import NoInputError, UsageError
from oldphoto.files.image import Photo
from oldphoto.models.loaded import Models
from oldphoto.options import Options
from oldphoto.pipeline import restore
from oldphoto.stages.scratches import damage_probability
from oldphoto.training import degrade
from oldphoto.training.data import image_files, overlays
from oldphoto.training.labels import LabelScore, read_labels

Pixels8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]
SEED = 20200604
SIDE = 256
# How many photos the classical chain is tuned on.
TUNED_ON = 16
# As archives have it: of what is rebuilt PSNR says little, see benchmarks/look.py.
PLAIN = Options(faces=False, hr="off", look="faithful")
SCRATCHED = Options(with_scratch=True, faces=False, hr="off", look="faithful")


@dataclass(frozen=True)
class Pair:
    """A clean photo, its degraded copy and the true mask of its damage."""

    clean: Pixels8
    old: Pixels8
    mask: Mask


Inpainting = Literal["telea", "navier-stokes"]
Sharpening = Literal["none", "unsharp 0.5", "unsharp 1", "richardson-lucy 5", "richardson-lucy 10"]


@dataclass(frozen=True)
class Classical:
    """The classical chain: inpainting by the true mask, non-local means, sharpening; and its settings."""

    inpainting: Inpainting = "telea"
    radius: int = 3
    strength: int = 0
    sharpening: Sharpening = "none"

    def __call__(self, pair: Pair) -> Pixels8:
        """Restore a degraded photo."""
        made: Pixels8 = pair.old
        if pair.mask.any():
            grown = cv2.dilate(pair.mask.astype(np.uint8), np.ones((3, 3), np.uint8))
            how = cv2.INPAINT_TELEA if self.inpainting == "telea" else cv2.INPAINT_NS
            made = np.asarray(cv2.inpaint(made, grown, self.radius, how), np.uint8)
        if self.strength:
            denoised = cv2.fastNlMeansDenoisingColored(made, None, self.strength, self.strength, 7, 21)
            made = np.asarray(denoised, np.uint8)
        kind, _, amount = self.sharpening.partition(" ")
        if kind == "unsharp":
            soft = cv2.GaussianBlur(made, (0, 0), 1.5)
            made = np.asarray(cv2.addWeighted(made, 1.0 + float(amount), soft, -float(amount), 0.0), np.uint8)
        elif kind == "richardson-lucy":
            made = _deconvolved(made, int(amount))
        return made


def _deconvolved(pixels: Pixels8, iterations: int) -> Pixels8:
    """Richardson-Lucy for a Gaussian of sigma 1."""
    restoration = _scikit_image("restoration")
    line = cv2.getGaussianKernel(7, 1.0)
    planes = [
        restoration.richardson_lucy(pixels[..., c] / 255.0, line @ line.T, num_iter=iterations, filter_epsilon=1e-3)
        for c in range(3)
    ]
    return np.clip(np.rint(np.stack(planes, axis=2) * 255.0), 0, 255).astype(np.uint8)


def tuned(photos: Sequence[Pair]) -> Classical:
    """The classical chain with the settings of the highest mean PSNR on these pairs, chosen one step after another."""

    def best(chains: Sequence[Classical]) -> Classical:
        return max(chains, key=lambda chain: float(np.mean([psnr(chain(p), p.clean) for p in photos])))

    chain = Classical()
    if any(p.mask.any() for p in photos):
        chain = best([replace(chain, inpainting=i, radius=r) for i in get_args(Inpainting) for r in (3, 5)])
    chain = best([replace(chain, strength=h) for h in (0, 3, 5, 7, 10, 14)])
    return best([replace(chain, sharpening=sharpening) for sharpening in get_args(Sharpening)])


def psnr(a: Pixels8, b: Pixels8) -> float:
    """Peak signal-to-noise ratio in dB, of 255; equal pictures give 100."""
    if np.array_equal(a, b):
        return 100.0
    return float(_scikit_image("metrics").peak_signal_noise_ratio(a, b, data_range=255))


def ssim(a: Pixels8, b: Pixels8) -> float:
    """Structural similarity: 11 x 11 Gaussian window of sigma 1.5, per channel (Wang et al. 2004)."""
    gaussian: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    metrics = _scikit_image("metrics")
    return float(metrics.structural_similarity(a, b, data_range=255, channel_axis=2, **gaussian))


def gmsd(a: Pixels8, b: Pixels8) -> float:
    """Gradient magnitude similarity deviation on luminance at half size: 0 = equal edges, higher = worse (Xue et al.
    2014, IEEE TIP)."""
    dx = np.array([[1.0, 0.0, -1.0]] * 3) / 3.0

    def magnitude(pixels: Pixels8) -> NDArray[np.float64]:
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float64)
        half = cv2.blur(grey, (2, 2))[::2, ::2]
        return np.hypot(cv2.filter2D(half, -1, dx), cv2.filter2D(half, -1, dx.T))

    x, y = magnitude(a), magnitude(b)
    return float(((2.0 * x * y + 170.0) / (x * x + y * y + 170.0)).std())


def colour_shift(a: Pixels8, b: Pixels8) -> float:
    """Mean CIE dE2000 between two sRGB pictures; about 1 is just visible side by side."""
    color = _scikit_image("color")
    return float(color.deltaE_ciede2000(color.rgb2lab(a), color.rgb2lab(b)).mean())


def _scikit_image(module: str) -> Any:
    try:
        return importlib.import_module(f"skimage.{module}")
    except ImportError as error:
        raise UsageError("evaluation needs scikit-image", 'pip install "oldphoto[train]"') from error


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


@dataclass(frozen=True)
class Score:
    """Means over the photos of PSNR (dB), SSIM and GMSD, and the lowest PSNR."""

    psnr: float
    ssim: float
    gmsd: float
    lowest: float

    @staticmethod
    def of(made: Sequence[Pixels8], clean: Sequence[Pixels8]) -> Score:
        """Score pictures against the truth."""
        both = list(zip(made, clean, strict=True))
        ratios = [psnr(m, c) for m, c in both]
        means = [float(np.mean(values)) for values in ([ssim(m, c) for m, c in both], [gmsd(m, c) for m, c in both])]
        return Score(
            round(float(np.mean(ratios)), 2), round(means[0], 4), round(means[1], 4), round(float(np.min(ratios)), 2)
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
    """Score `models` on the photos of some folders: the published mixture with and without overlays of `damage`, every
    degradation alone, and undamaged photos.

    tuning: folder of other photos, on which the classical chain is tuned for each case. limit: no more than this many
    photos, spread over the folders. Returns {"photos", "scores": {case: {method: {psnr, ssim, gmsd, lowest}}},
    "classical": {case: settings}, "scratches": {auc, recall, precision, f1, false_share}, "colour_shift"}.
    """
    clean = _spread(crops(photos), limit)
    others = _spread(crops([tuning]), TUNED_ON)
    harm = overlays(damage)
    cases: dict[str, tuple[degrade.Operation, dict[str, list[Pixels8]] | None]] = {
        "mixture with scratches": (degrade.published_mixture, harm),
        "mixture": (degrade.published_mixture, None),
        **{name: (operation, None) for name, operation in degrade.SINGLE.items()},
    }

    def run(pixels: Pixels8, options: Options, mask: Mask | None = None) -> Pixels8:
        return np.asarray(restore(Photo.from_array(pixels), models, options, mask).photo.pixels, np.uint8)

    scores: dict[str, dict[str, Score]] = {}
    settings: dict[str, object] = {}
    found: dict[str, float] = {}
    for case, (operation, overlay) in cases.items():
        report(f"{case}: {len(clean)} photos")
        pairs_here = list(pairs(clean, overlay, operation=operation))
        chain = tuned(list(pairs(others, overlay, SEED + 1, operation)))
        settings[case] = asdict(chain)
        made: dict[str, list[Pixels8]] = {
            "degraded": [p.old for p in pairs_here],
            "classical, true mask": [chain(p) for p in pairs_here],
            "oldphoto, true mask": [run(p.old, PLAIN, p.mask if p.mask.any() else None) for p in pairs_here],
            "oldphoto, detected mask": [run(p.old, SCRATCHED) for p in pairs_here],
        }
        scores[case] = {method: Score.of(pictures, clean) for method, pictures in made.items()}
        if overlay is not None:
            found = detection(models, pairs_here, clean)
    report("undamaged photos")
    kept = [run(p, PLAIN) for p in clean]
    scores["undamaged"] = {
        "oldphoto, true mask": Score.of(kept, clean),
        "oldphoto, detected mask": Score.of([run(p, SCRATCHED) for p in clean], clean),
    }
    return {
        "photos": len(clean),
        "scores": {case: {method: asdict(score) for method, score in rows.items()} for case, rows in scores.items()},
        "classical": settings,
        "scratches": found,
        "colour_shift": round(float(np.mean([colour_shift(k, c) for k, c in zip(kept, clean, strict=True)])), 3),
    }


def judge_labels(
    models: Models,
    labels: Path,
    photos: Path,
    only: tuple[str, ...] = ("",),
    threshold: float | None = None,
    limit: int | None = None,
    report: Callable[[str], None] = lambda _line: None,
) -> dict[str, Any]:
    """Look for damage on labelled real photos and repair it: how much is found, mistaken and left, as JSON.

    photos: folder that the index' paths start from. only: beginnings of the paths that are wanted. threshold: see
    Options. limit: no more than so many photos. Figures are those of LabelScore; None where nothing could be judged.
    Raises NoInputError where no photo is wanted.
    """
    wanted = [one for one in read_labels(labels, photos) if one.path.startswith(only)][:limit]
    if not wanted:
        raise NoInputError(f"{labels}: none of its photos is wanted")
    score, options = LabelScore(), replace(SCRATCHED, scratch_threshold=threshold)
    for one in wanted:
        report(one.path)
        done = restore(Photo(one.pixels), models, options)
        assert done.mask is not None  # it was looked for
        score.add(one, done.mask, np.asarray(done.photo.pixels, np.uint8))
    kinds = {
        name: {"pieces": len(kind.found), "found": _rounded(np.mean(kind.found)), "left": _rounded(_mean(kind.left))}
        for name, kind in sorted(score.kinds.items())
    }
    total = {name: _rounded(value) for name, value in score.figures().items()}
    return {"photos": len(wanted), "kinds": kinds, "total": total}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _rounded(value: float | np.floating[Any]) -> float | None:
    return None if np.isnan(value) else round(float(value), 5)


def _spread(photos: Sequence[Pixels8], count: int | None) -> list[Pixels8]:
    """So many of the photos, evenly spaced; None: all of them."""
    if count is None or count >= len(photos):
        return list(photos)
    return [photos[i * len(photos) // count] for i in range(count)]


def detection(models: Models, hurt: Sequence[Pair], undamaged: Sequence[Pixels8]) -> dict[str, float]:
    """Score how well scratches are found: AUC over all pixels; recall, precision and F1 at the default threshold; and
    the share of undamaged photos' pixels taken for scratches."""
    inside, outside = [], []
    hit = miss = wrong = 0
    threshold = models.set.detector.threshold
    for pair in hurt:
        p = damage_probability(pair.old, models)
        inside.append(p[pair.mask])
        outside.append(p[~pair.mask])
        found = p >= threshold
        hit += int((found & pair.mask).sum())
        miss += int((~found & pair.mask).sum())
        wrong += int((found & ~pair.mask).sum())
    false = [float((damage_probability(photo, models) >= threshold).mean()) for photo in undamaged]
    recall, precision = hit / max(1, hit + miss), hit / max(1, hit + wrong)
    return {
        "auc": round(area_under_curve(np.concatenate(inside), np.concatenate(outside)), 4),
        "recall": round(recall, 4),
        "precision": round(precision, 4),
        "f1": round(2 * recall * precision / max(1e-9, recall + precision), 4),
        "false_share_on_undamaged": round(float(np.mean(false)), 5),
    }
