"""START HERE. The restoration of one photo, as a function of values: photo, models, options.

find_scratches -> mask;  restore_tone, translate, keep what helps, sharpen -> restored;  detect_faces, enhance_faces ->
faces;  blend -> photo
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from oldphoto import weights
from oldphoto.errors import OutOfMemoryError, UsageError
from oldphoto.files.colour import LUMA, bands, eight_bits, from_srgb, is_srgb, to_srgb
from oldphoto.files.image import Photo
from oldphoto.machine import memory, threads
from oldphoto.machine.memory import limit, out_of_memory, ran_out
from oldphoto.machine.workers import Flight
from oldphoto.models.estimator import Estimator
from oldphoto.models.loading import load_compact, load_published, placed
from oldphoto.models.mapping import Mapping
from oldphoto.models.spade import FaceGenerator
from oldphoto.models.tensors import Pixels
from oldphoto.models.vae import Vae
from oldphoto.options import Options
from oldphoto.stages import fading, strength
from oldphoto.stages.blending import blend
from oldphoto.stages.faces import (
    EVERYTHING,
    Detector,
    Face,
    Kept,
    Landmarks,
    cnn_detector,
    cut_faces,
    detect_faces,
    enhance_faces,
    joined,
)
from oldphoto.stages.fading import Tone, restore_tone
from oldphoto.stages.scratches import COMPACT_DETECTION, PUBLISHED_DETECTION, Detection, Mask, dilated, find_scratches
from oldphoto.stages.strength import judged, kept, lessened
from oldphoto.stages.translation import Plan, TranslationNets, plan_translation, translate_photo

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

    Image = Photo | PillowImage | NDArray[np.uint8] | NDArray[np.uint16]

Precision = Literal["fp32", "fp16", "bf16"]
# How many faces the generator is given at once: it prepares the kernels of its coarse scales once for all of them.
FACES_AT_ONCE = 4
# Bytes that dlib takes to look for faces and at them, besides its files.
DETECTOR_MEMORY = 64 << 20
Stage = Literal["scratches", "translation", "faces", "blending"]


@dataclass(frozen=True)
class Restoration:
    """What came of one photo.

    photo: restored, of the input's size, depth, colour mode and metadata. mask: (H, W) bool, what was repaired as
    damage, or None. faces: all that were found, by number; those left as they are have no `after`. seconds: per stage.
    translation: in one piece or strip by strip, and what that took. tone: how fading was undone, or None where nothing
    was done. kept: how much of the translation's changes was kept, and how much sharper the photo was made; None where
    damage alone was repaired. warnings: one line each.
    """

    photo: Photo
    mask: Mask | None
    faces: tuple[Face, ...]
    seconds: dict[Stage, float]
    translation: Plan
    tone: Tone | None = None
    kept: Kept | None = None
    warnings: tuple[str, ...] = ()

    @property
    def image(self) -> PillowImage:
        """The restored photo as an 8-bit Pillow image."""
        return self.photo.to_pillow()


def restore(photo: Photo, models: Models, options: Options, mask: Mask | None = None) -> Restoration:
    """Restore a photo. Nothing is read, written or printed. Several threads may call it at once: a photo waits until
    there is memory for it beside the others.

    mask: (H, W) bool of the photo's size, True = damaged, instead of detection. Raises UsageError for a mask of another
    size, and where only damage is to be repaired but none is given or looked for; OutOfMemoryError where the photo does
    not fit.
    """
    if options.only_damaged and mask is None and not options.with_scratch:
        raise UsageError("only damage is to be repaired, but none is looked for", "look for scratches or give a mask")
    if mask is not None and mask.shape != (photo.height, photo.width):
        raise UsageError(f"mask of {mask.shape[1]} x {mask.shape[0]} for a photo of {photo.width} x {photo.height}")
    large = options.large(photo.width, photo.height)
    trusted = mask is not None
    damaged = trusted or options.with_scratch
    seconds: dict[Stage, float] = {}
    with _memory_errors(photo), models.inference(), _admitted(photo, damaged, models, options) as way:
        seen = to_srgb(photo.pixels, photo.icc)
        with _timed(seconds, "scratches"):
            if mask is not None:
                mask = dilated(mask, options.mask_dilation or 0)
            elif options.with_scratch:
                found = models.find_scratches(seen, options.scratch_threshold)
                mask = dilated(
                    found, models.dilation(large) if options.mask_dilation is None else options.mask_dilation
                )
        with _timed(seconds, "translation"):
            toned, undone = _toned(seen, mask, models, options)
            nets = models.translation(damaged, large)
            pixels, done, told = translate_photo(toned, mask, nets, models.device, way, trusted=trusted)
            keep = _kept(toned, pixels, mask, models, options)
            if keep is not None:
                pixels = kept(toned, pixels, mask, keep)
            del toned  # a copy as large as the photo
        faces: tuple[Face, ...] = ()
        if options.enhances_faces:
            with _timed(seconds, "faces"):
                size = options.face_size or models.face_size(large)
                memory.line.make_room(models.memory_for_faces(size))
                faces = _enhanced(seen, pixels, models, options, size)
            with _timed(seconds, "blending"):
                pixels = blend(pixels, faces)
        if photo.grey:
            pixels = grey_again(pixels)
        pixels = from_srgb(seen, pixels, photo.pixels, photo.icc)
        if options.only_damaged and mask is not None:
            pixels = np.where(mask[..., None], pixels, photo.pixels)
    missing = [number for number in options.only_faces + options.skip_faces if number > len(faces)]
    warnings = (
        *photo.warnings,
        *told,
        *(f"there is no face {number}: {len(faces)} were found" for number in missing),
    )
    return Restoration(photo.with_pixels(pixels), mask, faces, seconds, done, undone, keep, warnings)


def _toned(seen: Pixels, mask: Mask | None, models: Models, options: Options) -> tuple[Pixels, Tone | None]:
    """The photo with fading undone: as much as the user says, or else what has likely faded, but with the published
    networks nothing."""
    if not options.restores_tone(unasked=not models.published):
        return seen, None
    return restore_tone(seen, mask, models.estimator(fading.NET), options.tone_strength)


def _kept(before: Pixels, after: Pixels, mask: Mask | None, models: Models, options: Options) -> Kept | None:
    """What is kept of the changes: as much as the user says, or what the set judges right; the published one has no
    such judgement, and all is kept."""
    if options.only_damaged:
        return None
    if (given := _unjudged(options.strength, models)) is not None:
        return given
    keep = judged(before, after, mask, models.estimator(strength.NET))
    return keep if options.sharpen else keep._replace(raised=(0.0, 0.0, 0.0))


def _unjudged(strength: float | None, models: Models) -> Kept | None:
    """What to keep where it is not judged: the share that the user gives, or all with the published networks."""
    if strength is not None:
        return Kept((strength, strength, strength, strength))
    return EVERYTHING if models.published else None


def _enhanced(
    before: Pixels, restored: Pixels, models: Models, options: Options, size: Literal[256, 512]
) -> tuple[Face, ...]:
    """All faces by number, cut from the restored photo; those that the options want are enhanced.

    Looked for twice: in the photo as it came, which gives the numbers that `oldphoto faces` lists without restoring
    anything, and in the restored one, which shows faces that scratches and noise had hidden.
    """
    pixels = eight_bits(restored)
    detector = models.cnn_detector if options.face_detector == "cnn" else None
    found = joined(detect_faces(before, detector), detect_faces(pixels, detector))
    faces = cut_faces(pixels, found, models.landmarks, size) if found else []
    wanted = [face for face, seen in zip(faces, found, strict=True) if options.wants_face(face.number, seen.side)]
    enhanced = {face.number: face for face in enhanced_faces(wanted, models, options, size)}
    return tuple(enhanced.get(face.number, face) for face in faces)


def enhanced_faces(faces: Sequence[Face], models: Models, options: Options, size: Literal[256, 512]) -> list[Face]:
    """These faces, cut out as `size` pixels, enhanced by as much as the options say, or as the set judges right."""
    if not faces:
        return []

    def used(before: NDArray[np.uint8], made: NDArray[np.float32]) -> tuple[NDArray[np.float32], Kept]:
        keep = _unjudged(options.face_strength, models)
        if keep is None:
            rounded = np.asarray(np.rint(made), np.uint8)
            keep = judged(before, rounded, None, models.estimator(strength.FACE_NET))
        if keep == EVERYTHING:
            return made, keep
        old = before.astype(np.float32)
        return old + lessened(made - old, keep), keep

    return enhance_faces(faces, models.face_generator(size), str(models.device), FACES_AT_ONCE, used)


def plan(photo: Photo, damaged: bool, models: Models, options: Options) -> Plan:
    """How a photo would be translated, and the memory and disk that this and its faces take.

    damaged: there is a mask, or scratches are looked for. Raises OutOfMemoryError where it cannot be done.
    """
    large = options.large(photo.width, photo.height)
    nets = models.translation(damaged, large)
    converted = not is_srgb(photo.icc)
    depth = 16 if converted else photo.depth
    copy = photo.width * photo.height * 3 * depth // 8
    # The photo in sRGB, and with its fading undone.
    beside = copy * (converted + options.restores_tone(unasked=not models.published))
    size, most = (photo.height, photo.width), limit(options.max_memory)
    for_faces = 0
    if options.enhances_faces:
        for_faces = beside + 2 * copy + models.memory_for_faces(options.face_size or models.face_size(large))
        if memory.line.held() + for_faces > most:
            memory.give_back()
    way = plan_translation(size, depth, damaged, nets, models.device, most, beside=beside)
    need = memory.line.held() + for_faces
    # Translation can do with less, faces cannot; there may be none, so only what the user has set is held against them.
    if for_faces and need > most and options.max_memory is not None:
        raise OutOfMemoryError(
            f"enhancing faces takes {memory.gigabytes(need)} of memory, more than the {memory.gigabytes(most)} allowed",
            f"give --max-memory {memory.gigabytes(need)} or more, or --no-faces"
            + ", or --model compact" * models.published,
        )
    return replace(way, memory=max(way.memory, need))


@contextmanager
def _admitted(photo: Photo, damaged: bool, models: Models, options: Options) -> Iterator[Plan]:
    """How the photo is translated, once there is memory for it. Where there is room for few such photos, each gets more
    of the processor."""
    most = limit(options.max_memory)
    way = plan(photo, damaged, models, options)
    need = max(0, way.memory - memory.line.held())
    with memory.line.admitted(need, most) as fit, threads.no_more_at_once(fit):
        yield way


class Models:
    """The networks of one weight set on one device; each is loaded when first used, and once, by whatever thread."""

    def __init__(self, weight_set: weights.WeightSet, device: str = "auto", precision: Precision = "fp32") -> None:
        if precision not in ("fp32", "fp16", "bf16"):
            raise UsageError(f"precision is {precision!r}", "use fp32, fp16 or bf16")
        self.weight_set = weight_set
        self.device = choose_device(device)
        self.precision: Precision = precision
        self._loaded: dict[str, nn.Module] = {}
        self._landmarks: Landmarks | None = None
        self._cnn_detector: Detector | None = None
        self._loading = threading.Lock()

    @staticmethod
    def load(weight_set: weights.WeightSet, device: str = "auto", precision: str = "fp32") -> Models:
        """Models over verified weight files; raises UsageError for a device that is not there."""
        return Models(weight_set, device, cast("Precision", precision))

    @property
    def published(self) -> bool:
        """Whether these are the published networks; else the compact ones."""
        return self.weight_set.name == "published"

    @property
    def landmarks(self) -> Landmarks:
        """The landmark model of the set."""
        with self._loading:
            if self._landmarks is None:
                self._landmarks = Landmarks(self._path(self._landmarks_net))
            return self._landmarks

    @property
    def _landmarks_net(self) -> str:
        return "landmarks_68" if self.published else "landmarks_5"

    @property
    def cnn_detector(self) -> Detector:
        """dlib's convolutional face detector, whose file is there if the options asked for it."""
        with self._loading:
            if self._cnn_detector is None:
                self._cnn_detector = cnn_detector(self._path(weights.CNN_DETECTOR))
            return self._cnn_detector

    @contextmanager
    def inference(self) -> Iterator[None]:
        """No gradients, and half precision where it was asked for."""
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        half = torch.autocast(self.device.type, dtype, enabled=self.precision != "fp32")
        with torch.inference_mode(), half:
            yield

    @property
    def detection(self) -> Detection:
        """How the set's detector looks at photos."""
        return PUBLISHED_DETECTION if self.published else COMPACT_DETECTION

    def find_scratches(self, pixels: Pixels, threshold: float | None) -> Mask:
        """(H, W, 3) pixels -> (H, W) bool. In full precision whatever the others have: a mask is a matter of yes or no,
        and what is rounded across the threshold would be a hole or none."""
        with torch.autocast(self.device.type, enabled=False):
            return find_scratches(pixels, self.net("scratch_unet"), self.detection, threshold, self.device)

    def estimator(self, net: str) -> Estimator:
        """One of the compact set's estimators."""
        return cast("Estimator", self.net(net))

    def translation(self, damaged: bool, large: bool) -> TranslationNets:
        """The networks for a photo with or without a mask, large or not."""
        if not self.published or not damaged:
            mapping, clean = "mapping", "clean_vae"
        else:
            mapping, clean = "mapping_patch_attention" if large else "mapping_scratch", "clean_vae_scratch"
        nets = self.net("old_vae"), self.net(mapping), self.net(clean)
        return TranslationNets(cast("Vae", nets[0]), cast("Mapping", nets[1]), cast("Vae", nets[2]))

    def face_size(self, large: bool) -> Literal[256, 512]:
        """Side of the face crop where the user does not choose: the compact generator is trained at 256 alone."""
        return 512 if large and self.published else 256

    def face_generator(self, size: int) -> nn.Module:
        """The generator for crops of `size` pixels."""
        return self.net(f"face_generator_{size}" if self.published else "face_generator")

    def memory_for_faces(self, size: int) -> int:
        """Bytes that enhancing faces takes beside what is held: to work in; and where no faces were met yet, the files
        of the networks, which are not in memory before they are used."""
        if self.device.type != "cpu":
            return 0
        work = DETECTOR_MEMORY + cast("FaceGenerator", self.face_generator(size)).memory(size)
        if self._landmarks is not None:
            return work
        mapped = sum(parameter.nbytes for net in self._loaded.values() for parameter in net.parameters())
        return work + mapped + self._path(self._landmarks_net).stat().st_size

    def dilation(self, large: bool) -> int:
        """Pixels by which found scratches grow: 3 in large photos with the published networks, which ask for it."""
        return 3 if large and self.published else 0

    def peak_memory(self) -> int | None:
        """The most memory in bytes that the graphics card has held since the last call; None on other devices."""
        if self.device.type != "cuda":
            return None
        peak = torch.cuda.max_memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak

    def _path(self, net: str) -> Path:
        return self.weight_set.files[net]

    def net(self, net: str) -> nn.Module:
        """A network of the set by its name in weights.lock, ready on the device."""
        with self._loading:
            if net not in self._loaded:
                path = self._path(net)
                theirs = self.published and net not in weights.OF_BOTH_SETS
                loaded = load_published(net, path, weights.derived_path(path)) if theirs else load_compact(path)
                self._loaded[net] = placed(loaded, self.device)
            return self._loaded[net]

    def places(self, chosen: int | None = None) -> int:
        """How many photos may be in work at once: as chosen, or else one for each thread that torch has; but one on
        other devices than the processor. Raises UsageError where more are chosen there."""
        if self.device.type == "cpu":
            return threads.places(chosen)
        if (chosen or 1) > 1:
            raise UsageError(f"one photo at a time is in work on {self.device}", "leave the number of jobs out")
        return 1


class Restorer:
    """Models and a way to call them: the Python API."""

    def __init__(self, models: Models) -> None:
        self.models = models

    @staticmethod
    def from_pretrained(
        model: weights.Model = "auto",
        device: str = "auto",
        *,
        precision: Precision = "fp32",
        offline: bool = False,
        progress: weights.Progress | None = None,
        options: Options | None = None,
    ) -> Restorer:
        """Have the weights ready and verified, fetching them where they are missing and `offline` is not set.

        options: have only what these need; None has every network of the set. model, device and precision as for the
        command. Raises WeightsUnavailableError, WeightsCorruptError, UsageError.
        """

        def nets(name: weights.ModelSet) -> list[str]:
            every = [f.net for f in weights.read_lock() if f.set == name]
            if options is None:
                return every
            kinds = (False, True) if options.hr == "auto" else (options.hr == "on",)
            wanted = {
                net
                for large in kinds
                for has_mask in (False, True)
                for net in weights.needed_nets(name, options, large, has_mask)
            }
            return [net for net in every if net in wanted]

        weight_set = weights.resolve(model, nets, offline=offline, progress=progress)
        return Restorer(Models.load(weight_set, device, precision))

    def restore(
        self,
        image: Image,
        options: Options | None = None,
        mask: Mask | None = None,
    ) -> Restoration:
        """Restore a Photo, a Pillow image or an array: (H, W), (H, W, 3) RGB or (H, W, 4) RGBA, uint8 or uint16."""
        if isinstance(image, np.ndarray):
            image = Photo.from_array(image)
        elif not isinstance(image, Photo):
            image = Photo.from_pillow(image)
        return restore(image, self.models, options or Options(), mask)

    def restore_all(
        self,
        images: Iterable[Image],
        options: Options | None = None,
        *,
        jobs: int | None = None,
    ) -> Iterator[Restoration]:
        """As restore, of each image, in their order; so many are in work at once, each with its part of the processor.

        jobs: see Models.places. No more than so many images are taken ahead of what was given out. An error ends it.
        """
        places, whole = self.models.places(jobs), torch.get_num_threads()
        coming = iter(images)
        started = given = 0
        done: dict[int, Restoration] = {}

        def one(number: int, image: Image, at_once: int) -> tuple[int, Restoration]:
            threads.share(whole, at_once)
            return number, self.restore(image, options)

        with Flight[tuple[int, Restoration]]() as flight:
            try:
                while True:
                    ready = list(islice(coming, places - (started - given)))
                    at_once = flight.busy + len(ready)
                    for image in ready:
                        flight.start(partial(one, started, image, at_once))
                        started += 1
                    if given == started:
                        return
                    if (landed := flight.next()) is not None:
                        done[landed[0]] = landed[1]
                    while given in done:
                        yield done.pop(given)
                        given += 1
            finally:
                torch.set_num_threads(whole)  # of this thread, and of new ones


def choose_device(name: str) -> torch.device:
    """ "auto" takes the first of CUDA, Apple's MPS and the CPU that is there. Raises UsageError for one that is not."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"there is no device {name!r}", "use auto, cpu, cuda, cuda:N or mps") from error
    there = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }.get(device.type, 0)
    if (device.index or 0) >= there:
        raise UsageError(f"device {name} is not available here", "`oldphoto doctor` lists the devices")
    return device


@contextmanager
def _timed(seconds: dict[Stage, float], stage: Stage) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start


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
