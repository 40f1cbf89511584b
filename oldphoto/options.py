"""What the user may choose about one restoration. Every default is written here, once. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from oldphoto.errors import UsageError

LargeMode = Literal["auto", "on", "off"]
FaceDetector = Literal["hog", "cnn"]
Look = Literal["restored", "faithful"]
Enlargement = Literal[2, 4]

# From this many pixels on, `hr="auto"` takes the large-photo path (patch attention, 512-pixel faces).
LARGE_PHOTO_PIXELS = 1_500_000
LEAST_MEMORY = 500_000_000
# How many times larger than its detail a photo may be said to be.
MOST_NATIVE_SCALE = 6.0


@dataclass(frozen=True)
class Options:
    """Choices for one photo.

    with_scratch: find scratches and repair them.
    hr: the path for large photos: "auto" decides by size, "on" and "off" force it.
    faces: find faces and enhance them.
    face_detector: what says that something is a face: dlib's "hog", or its "cnn", a network, which is slow without a
        graphics card and needs a file of its own.
    face_size: side of the aligned face crop in pixels, 256 or 512; None takes 512 on the large-photo path, else 256.
    scratch_threshold: probability in 0..1 from which a pixel counts as scratched; None takes the set's own figure.
    only_damaged: repair scratches and change nothing else: pixels outside the mask stay as they are, faces too.
    tone_strength: share, 0..1, of the fading to undo: 1 gives a photo the contrast and colours that its like have, 0
        leaves tone alone; None undoes what has likely faded, and with the published networks nothing.
    strength: share, 0..1, of the changes to keep outside of damage; None takes what the compact set judges right for
        each photo, and all with the published networks.
    face_strength: share, 0..1, of each face's enhancement; None takes what the compact set judges right for each face,
        and all with the published networks.
    look: "restored" rebuilds a photo that is larger than its detail, crisp and clean; "faithful" does not, and changes
        only what is surely better so, as archives want it.
    native_scale: how many times larger than its detail the photo is, 1 to 6; None measures it.
    upscale: how many times larger the output is, 2 or 4; None is as large as the input.
    sharpen: where the compact set judges what to keep of the changes, let it also sharpen blurred photos.
    quality: 1 to 100, of outputs in lossy formats; None takes a JPEG source's own, else 95.
    mask_dilation: pixels by which the mask grows on each side; None takes the model set's own figure for scratches that
        were found, and 0 for a mask that the user gives.
    max_memory: bytes that the whole process may hold; None takes what it holds now and half of what is free. A photo
        that needs more is translated strip by strip, with the same result.
    """

    with_scratch: bool = False
    hr: LargeMode = "auto"
    faces: bool = True
    face_detector: FaceDetector = "hog"
    face_size: Literal[256, 512] | None = None
    scratch_threshold: float | None = None
    mask_dilation: int | None = None
    face_strength: float | None = None
    min_face: int = 32
    only_faces: tuple[int, ...] = ()
    skip_faces: tuple[int, ...] = ()
    only_damaged: bool = False
    tone_strength: float | None = None
    strength: float | None = None
    look: Look = "restored"
    native_scale: float | None = None
    upscale: Enlargement | None = None
    sharpen: bool = True
    quality: int | None = None
    max_memory: int | None = None

    def __post_init__(self) -> None:
        if self.hr not in ("auto", "on", "off"):
            raise UsageError(f"hr is {self.hr!r}", "use auto, on or off")
        if self.face_detector not in ("hog", "cnn"):
            raise UsageError(f"face detector is {self.face_detector!r}", "use hog or cnn")
        if self.face_size not in (None, 256, 512):
            raise UsageError(f"face size is {self.face_size}", "use 256 or 512")
        if self.scratch_threshold is not None and not 0.0 < self.scratch_threshold < 1.0:
            raise UsageError(f"scratch threshold is {self.scratch_threshold}", "use a value between 0 and 1")
        if self.mask_dilation is not None and not 0 <= self.mask_dilation <= 64:
            raise UsageError(f"mask dilation is {self.mask_dilation}", "use 0 to 64 pixels")
        shares = {"face strength": self.face_strength, "strength": self.strength, "tone strength": self.tone_strength}
        for name, share in shares.items():
            if share is not None and not 0.0 <= share <= 1.0:
                raise UsageError(f"{name} is {share}", "use a value from 0 to 1")
        if self.strength is not None and self.only_damaged:
            raise UsageError("damage is repaired in full, whatever the strength", "leave one of the two out")
        if self.tone_strength and self.only_damaged:
            raise UsageError("tone is left alone where only damage is repaired", "leave one of the two out")
        if self.look not in ("restored", "faithful"):
            raise UsageError(f"look is {self.look!r}", "use restored or faithful")
        if self.native_scale is not None and not 1.0 <= self.native_scale <= MOST_NATIVE_SCALE:
            raise UsageError(f"native scale is {self.native_scale:g}", f"use 1 to {MOST_NATIVE_SCALE:g}")
        if self.upscale not in (None, 2, 4):
            raise UsageError(f"upscale is {self.upscale}", "use 2 or 4")
        if self.native_scale is not None and not (self.rebuilds or self.upscale):
            raise UsageError("a native scale is of use where the photo is rebuilt or enlarged", "leave it out")
        if self.upscale and self.only_damaged:
            raise UsageError("where only damage is repaired the photo is not enlarged", "leave one of the two out")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise UsageError(f"quality is {self.quality}", "use 1 to 100")
        if self.only_damaged and (self.only_faces or self.skip_faces):
            raise UsageError("faces are not enhanced where only damage is repaired", "leave one of the two out")
        if self.min_face < 0:
            raise UsageError(f"the smallest face is {self.min_face} pixels", "use 0 or more")
        if self.only_faces and self.skip_faces:
            raise UsageError("only and skipped faces contradict each other", "give one of them")
        if any(number < 1 for number in (*self.only_faces, *self.skip_faces)):
            raise UsageError("faces are numbered from 1", "see `oldphoto faces PHOTO`")
        if self.max_memory is not None and self.max_memory < LEAST_MEMORY:
            raise UsageError(f"max memory is {self.max_memory} bytes", "give at least 0.5GB")

    def wants_face(self, number: int, side: float) -> bool:
        """Whether the face of this number and size in pixels is enhanced."""
        chosen = number in self.only_faces if self.only_faces else number not in self.skip_faces
        return self.enhances_faces and chosen and side >= self.min_face

    def restores_tone(self, *, unasked: bool) -> bool:
        """Whether fading is undone. unasked: where the user does not say how much of it, too."""
        wanted = unasked if self.tone_strength is None else self.tone_strength > 0.0
        return wanted and not self.only_damaged

    @property
    def rebuilds(self) -> bool:
        """Whether a photo that is larger than its detail is rebuilt."""
        return self.look == "restored" and not self.only_damaged

    @property
    def enhances_faces(self) -> bool:
        """Whether faces are looked for at all."""
        return self.faces and not self.only_damaged

    def large(self, width: int, height: int) -> bool:
        """Whether a photo of this size takes the large-photo path."""
        return self.hr == "on" or (self.hr == "auto" and width * height >= LARGE_PHOTO_PIXELS)


def read_size(text: str) -> int:
    """Bytes from "4GB", "500MB" or "1.5 GB" (powers of ten). Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MG])B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise UsageError(f"{text!r} is no size", "give one like 4GB or 500MB")
    return round(float(match[1]) * {"M": 1e6, "G": 1e9}[match[2].upper()])
