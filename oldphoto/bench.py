"""Measure the time and memory of each stage on this machine, on a made-up photo of any size."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import cast

import cv2
import numpy as np
import psutil
from numpy.typing import NDArray

from oldphoto.machine.memory import limit
from oldphoto.models.loaded import Models
from oldphoto.models.rebuilding import rebuilt
from oldphoto.models.translating import translate_photo
from oldphoto.options import Options
from oldphoto.stages.faces import detect_faces
from oldphoto.stages.rebuilding import network
from oldphoto.stages.scratches import found_damage
from oldphoto.stages.stage import Case
from oldphoto.stages.translation import translation_nets

# Of the pixels, in strokes over the whole photo.
DAMAGED_SHARE = 0.03
BENCH_SCALE = 2.0  # native scale of the photo
_SAMPLE_SECONDS = 0.005


@dataclass(frozen=True)
class Measured:
    """One stage at one size.

    seconds: wall time; cpu_seconds: of all threads, which other programs hardly change. peak_memory_bytes: the most the
    process held while it ran. way: see TranslationPlan.
    """

    stage: str
    width: int
    height: int
    seconds: float
    cpu_seconds: float
    peak_memory_bytes: int
    way: str | None = None

    @property
    def seconds_per_megapixel(self) -> float:
        """Wall time over the photo's size."""
        return self.seconds / (self.width * self.height / 1e6)


def bench(
    models: Models, megapixels: list[float], options: Options, stages: tuple[str, ...] = ()
) -> Iterator[Measured]:
    """Time scratch detection, translation without and with damage, rebuilding, and face detection; sizes are 4 : 3.

    stages: only these. Each is run on a small photo first, so that loading is left out.
    """
    wanted = stages or STAGES
    for stage in wanted:
        _STAGES[stage](*photo(0.1), models, options)
    for size in megapixels:
        pixels, mask = photo(size)
        for stage in wanted:
            way, seconds, cpu, peak = _watched(partial(_STAGES[stage], pixels, mask, models, options))
            yield Measured(stage, pixels.shape[1], pixels.shape[0], seconds, cpu, peak, way)


def photo(megapixels: float) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A made-up photo, (H, W, 3), and damage in strokes, (H, W); the same every time."""
    width = round((megapixels * 1e6 * 4 / 3) ** 0.5)
    height = round(width * 3 / 4)
    rng = np.random.default_rng(2026)
    coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    pixels = cast("NDArray[np.uint8]", cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))
    mask = np.zeros((height, width), np.uint8)
    while mask.mean() < DAMAGED_SHARE:
        for _ in range(max(1, int(megapixels))):
            ends = rng.integers(0, (width, height), (2, 2))
            ends[1] = ends[0] + (ends[1] - ends[0]) // max(1, round(megapixels**0.5))
            cv2.line(mask, ends[0].tolist(), ends[1].tolist(), 1, 3)
    return pixels, mask.astype(np.bool_)


def _scratches(pixels: NDArray[np.uint8], mask: NDArray[np.bool_], models: Models, options: Options) -> None:
    with models.inference():
        found_damage(pixels, models, options.scratch_threshold)


def _plain(pixels: NDArray[np.uint8], mask: NDArray[np.bool_], models: Models, options: Options) -> str:
    return _translated(pixels, None, models, options)


def _damaged(pixels: NDArray[np.uint8], mask: NDArray[np.bool_], models: Models, options: Options) -> str:
    return _translated(pixels, mask, models, options)


def _translated(pixels: NDArray[np.uint8], mask: NDArray[np.bool_] | None, models: Models, options: Options) -> str:
    large = options.large(pixels.shape[1], pixels.shape[0])
    nets = translation_nets(Case(options, models.set, large, has_mask=mask is not None), models)
    with models.inference():
        return translate_photo(pixels, mask, nets, models.device, limit(options.max_memory)).plan.way


def _rebuilt(pixels: NDArray[np.uint8], mask: NDArray[np.bool_], models: Models, options: Options) -> None:
    with models.inference():
        rebuilt(pixels, network(models), options.native_scale or BENCH_SCALE, models.device)


def _faces(pixels: NDArray[np.uint8], mask: NDArray[np.bool_], models: Models, options: Options) -> None:
    detect_faces(pixels)


_STAGES: dict[str, Callable[[NDArray[np.uint8], NDArray[np.bool_], Models, Options], str | None]] = {
    "scratches": _scratches,
    "translation": _plain,
    "translation of damage": _damaged,
    "rebuilding": _rebuilt,
    "face detection": _faces,
}
STAGES = tuple(_STAGES)


def _watched(work: Callable[[], str | None]) -> tuple[str | None, float, float, int]:
    """Return what `work` gives, its wall and CPU seconds, and the most memory the process held meanwhile, sampled."""
    process = psutil.Process()
    peak = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(_SAMPLE_SECONDS):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    started, cpu = time.perf_counter(), time.process_time()
    try:
        result = work()
    finally:
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        done.set()
        watcher.join()
    return result, seconds, cpu, peak
