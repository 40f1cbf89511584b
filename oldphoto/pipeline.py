"""START HERE. The restoration of one photo, as a function of values: photo, models, options.

`restore` runs the stages of `oldphoto.stages.STAGES`, in their order, over one State.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from oldphoto.arrays import Mask, Pixels
from oldphoto.errors import OutOfMemoryError, UsageError
from oldphoto.files.colour import LUMA, bands, eight_bits, from_srgb, is_srgb, to_srgb
from oldphoto.files.enlarging import enlarged, smoothly
from oldphoto.files.image import Photo
from oldphoto.machine import memory, threads
from oldphoto.machine.memory import limit, out_of_memory, ran_out
from oldphoto.options import Options
from oldphoto.stages import STAGES
from oldphoto.stages.stage import Case, Clock, State
from oldphoto.stages.translation import planned_translation

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

    from oldphoto.models.loaded import Models
    from oldphoto.models.translating import TranslationPlan
    from oldphoto.stages.changes import ChangeUse
    from oldphoto.stages.faces import Face
    from oldphoto.stages.fading import Tone


@dataclass(frozen=True)
class Restoration:
    """The result of restoring one photo.

    photo: restored, of the input's depth, colour mode and metadata, and of its size or as many times larger as was
    asked for; a grey photo that was given colours is sRGB. mask: (H, W) bool, of the input's size, what was repaired
    as damage, or None. faces: all that were found, by number; those left as they are have no `after`. seconds: per part
    that is timed. facts: what each stage did, by the stage's name; None is nothing. generated: whether some of the
    content is made up, as IPTC's source types mean it. warnings: one line each.
    """

    photo: Photo
    mask: Mask | None = None
    faces: tuple[Face, ...] = ()
    seconds: Mapping[Clock, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    generated: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def image(self) -> PillowImage:
        """The restored photo as an 8-bit Pillow image."""
        return self.photo.to_pillow()

    @property
    def translation(self) -> TranslationPlan:
        """Whether the photo was translated in one piece or strip by strip, and what that took."""
        plan: TranslationPlan = self.facts["translation"]
        return plan

    @property
    def tone(self) -> Tone | None:
        """The correction that undid fading, or None where nothing was done."""
        return self.facts.get("fading")

    @property
    def kept(self) -> ChangeUse | None:
        """The shares used of the translation's changes, and of sharpening; None where damage
        alone was repaired."""
        return self.facts.get("strength")

    @property
    def native_scale(self) -> float | None:
        """The number of times by which the photo was larger than its detail; None where it was not measured."""
        return self.facts.get("resolution")

    @property
    def colorized(self) -> bool:
        """Whether the photo's colours are made up."""
        return bool(self.facts.get("colour"))

    @property
    def changes(self) -> dict[str, Any]:
        """The facts of all stages, as JSON: an entry of the manifest's `changes`."""
        return {key: value for stage in STAGES for key, value in stage.record(self.facts.get(stage.name)).items()}


def restore(photo: Photo, models: Models, options: Options, mask: Mask | None = None) -> Restoration:
    """Restore a photo. Nothing is read, written or printed. Several threads may call it at once: a photo waits until
    there is memory for it beside the others.

    mask: (H, W) bool of the photo's size, True = damaged, instead of detection. Raises UsageError for a mask of another
    size, and where only damage is to be repaired but none is given or looked for; WeightsUnavailableError where the
    models were loaded without a network that the options ask for; OutOfMemoryError where the photo does not fit.
    """
    if options.only_damaged and mask is None and not options.with_scratch:
        raise UsageError("only damage is to be repaired, but none is looked for", "look for scratches or give a mask")
    if mask is not None and mask.shape != (photo.height, photo.width):
        raise UsageError(f"mask of {mask.shape[1]} x {mask.shape[0]} for a photo of {photo.width} x {photo.height}")
    case = case_of(photo, models, options, has_mask=mask is not None)
    seconds: dict[Clock, float] = {}
    facts: dict[str, Any] = {}
    with _memory_errors(photo), models.inference(), _admitted(case, models) as way:
        seen = to_srgb(photo.pixels, photo.icc)
        state = State(seen, seen, mask, trusted=mask is not None, way=way, warnings=[*photo.warnings])
        for stage in STAGES:
            if stage.wanted(case):
                with _timed(seconds, stage.clock):
                    facts[stage.name] = stage.run(state, case, models)
        restored = _finished(state, photo, options)
    generated = any(stage.generated(state) for stage in STAGES)
    return Restoration(restored, state.mask, state.faces, seconds, facts, generated, tuple(state.warnings))


def case_of(photo: Photo, models: Models, options: Options, *, has_mask: bool) -> Case:
    """Collect what is known of a photo before any work."""
    return Case(
        options,
        models.set,
        options.large(photo.width, photo.height),
        has_mask,
        width=photo.width,
        height=photo.height,
        depth=photo.depth,
        converted=not is_srgb(photo.icc),
    )


def plan(case: Case, models: Models) -> TranslationPlan:
    """Plan how a photo would be translated, and the memory and disk that this and the other stages take.

    Raises OutOfMemoryError where it cannot be done.
    """
    # The photo in sRGB, and what stages leave beside it.
    beside = case.copy_bytes * (case.converted + sum(stage.copies(case) for stage in STAGES))
    most = limit(case.options.max_memory)
    takes = [(stage, stage.memory(case, models)) for stage in STAGES if stage.wanted(case)]
    extra = {stage: beside + 2 * case.copy_bytes + need for stage, need in takes if need is not None}
    if extra and memory.line.held() + max(extra.values()) > most:
        memory.give_back()
    way = planned_translation(case, models, most, beside)
    for stage, more in extra.items():
        need = memory.line.held() + more
        # Translation can do with less, other stages cannot; there may be nothing for them to do, so only what the user
        # has set is held against them.
        if need > most and case.options.max_memory is not None:
            raise OutOfMemoryError(
                f"{stage.doing} takes {memory.gigabytes(need)} of memory, more than the {memory.gigabytes(most)} "
                "allowed",
                f"give --max-memory {memory.gigabytes(need)} or more, or {stage.without}"
                + (f", or {case.models.lighter}" if case.models.lighter else ""),
            )
        way = replace(way, memory=max(way.memory, need))
    return way


@contextmanager
def _admitted(case: Case, models: Models) -> Iterator[TranslationPlan]:
    """Wait until there is memory for the photo, and give the plan of its translation. Where there is room for few such
    photos, each gets more of the processor."""
    most = limit(case.options.max_memory)
    way = plan(case, models)
    need = max(0, way.memory - memory.line.held())
    with memory.line.admitted(need, most) as fit, threads.no_more_at_once(fit):
        yield way


def _finished(state: State, photo: Photo, options: Options) -> Photo:
    """The restored photo, in its own colours; where only damage is repaired, all other pixels as they came."""
    if photo.grey and state.colorized:
        made = state.pixels if state.pixels.dtype == photo.pixels.dtype else eight_bits(state.pixels)
        photo = photo.for_colours()
        return photo.with_pixels(made) if options.upscale is None else enlarged(photo, made, options.upscale)
    pixels = grey_again(state.pixels) if photo.grey else state.pixels
    if options.upscale is not None:
        if not is_srgb(photo.icc):
            own = smoothly(photo.pixels, options.upscale)
            pixels = from_srgb(to_srgb(own, photo.icc), pixels, own, photo.icc)
        return enlarged(photo, pixels, options.upscale)
    pixels = from_srgb(state.seen, pixels, photo.pixels, photo.icc)
    if options.only_damaged and state.mask is not None:
        pixels = np.where(state.mask[..., None], pixels, photo.pixels)
    return photo.with_pixels(pixels)


@contextmanager
def _timed(seconds: dict[Clock, float], clock: Clock) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[clock] = seconds.get(clock, 0.0) + time.perf_counter() - start


@contextmanager
def _memory_errors(photo: Photo) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise out_of_memory((photo.width, photo.height)) from error


def grey_again(pixels: Pixels) -> Pixels:
    """(H, W, 3) -> luminance in all three channels: a grey photo has no tint to gain."""
    grey = np.empty_like(pixels)
    for rows in bands(pixels):
        grey[rows] = np.rint(pixels[rows] @ LUMA)[..., None]
    return grey
