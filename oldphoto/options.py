"""Declare what the user may choose about one restoration: each default, range and flag is written here, once.

The command and the reference page are made from these declarations. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import cache
from operator import not_
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from oldphoto.errors import UsageError

LargeMode = Literal["auto", "on", "off"]
FaceDetector = Literal["hog", "cnn"]
Look = Literal["restored", "faithful"]
Colorize = Literal["off", "auto", "always"]
Enlargement = Literal[2, 4]

# From this many pixels on, `hr="auto"` takes the large-photo path (patch attention, 512-pixel faces).
LARGE_PHOTO_PIXELS = 1_500_000
LEAST_MEMORY = 500_000_000
# How many times larger than its detail a photo may be said to be.
MOST_NATIVE_SCALE = 6.0


class Panel(StrEnum):
    """The wishes under which `oldphoto restore --help` shows its flags, in this order."""

    FILES = "Input and output"
    DAMAGE = "Damage"
    LOOK = "Look"
    FACES = "Faces"
    LARGE = "Large photos"
    BATCHES = "Batches"
    RECORDS = "Records"
    MACHINE = "Machine"


@dataclass(frozen=True)
class Flag:
    """The command's offer of a dataclass's field, as its annotation: `Annotated[type, Flag(...)]`.

    panel: where `--help` shows it: below the flag of the field `after`, else below what is declared before it.
    help: what it does. name: of the command's parameter, where the field has another. words: the flag as it is typed,
    where it is not the name with dashes. kind: the type on the command line, where the field has another; `read` then
    makes the one of the other. least, most: the range of a number, both ends allowed. metavar: stands for the value.
    """

    panel: Panel
    help: str
    after: str | None = None
    name: str | None = None
    words: tuple[str, ...] = ()
    kind: Any = None
    read: Callable[[Any], Any] | None = None
    least: float | None = None
    most: float | None = None
    metavar: str | None = None


@dataclass(frozen=True)
class Declared:
    """A field that has a flag. kind: its type without None. choices: the values of a Literal, else none."""

    field: str
    kind: Any
    optional: bool
    choices: tuple[Any, ...]
    default: Any
    flag: Flag


def declared(kind: Any) -> tuple[Declared, ...]:
    """The fields of a dataclass that have flags, in their order."""
    return _declared(kind)


@cache
def _declared(kind: Any) -> tuple[Declared, ...]:
    found = []
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        if get_origin(hints[field.name]) is not Annotated:
            continue
        own, flag = get_args(hints[field.name])
        some = [one for one in get_args(own) if one is not type(None)]
        optional = type(None) in get_args(own)
        bare = some[0] if optional else own
        choices = get_args(bare) if get_origin(bare) is Literal else ()
        found.append(Declared(field.name, bare, optional, choices, field.default, flag))
    return tuple(found)


def check_declared(chosen: Any) -> None:
    """Check a dataclass's values against the choices and ranges of their flags. Raises UsageError."""
    for one in declared(type(chosen)):
        value, words = getattr(chosen, one.field), one.field.replace("_", " ")
        if value is None and one.optional:
            continue
        if one.choices and value not in one.choices:
            *most, last = map(str, one.choices)
            raise UsageError(f"{words} is {value!r}", f"use {', '.join(most)} or {last}")
        least, most_of_all = one.flag.least, one.flag.most
        if least is not None and not least <= value <= (value if most_of_all is None else most_of_all):
            use = f"use {least:g} or more" if most_of_all is None else f"use {least:g} to {most_of_all:g}"
            raise UsageError(f"{words} is {value:g}", use)


def share(panel: Panel, help: str, after: str | None = None) -> Flag:
    """A flag from 0 to 1."""
    return Flag(panel, help, after, least=0.0, most=1.0)


# Named, since a lambda in an annotation does not see this module.
def _several(numbers: list[int] | None) -> tuple[int, ...]:
    return tuple(numbers or ())


def _size(text: str | None) -> int | None:
    return None if text is None else read_size(text)


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
        leaves tone alone; None undoes it where a photo has plainly faded, but not with the published networks, nor
        where the look is faithful.
    strength: share, 0..1, of the changes to keep outside of damage; None takes what the compact set judges right for
        each photo, and all with the published networks.
    face_strength: share, 0..1, of each face's enhancement; None takes what the compact set judges right for each face,
        and all with the published networks.
    look: "restored" rebuilds a photo that is larger than its detail, crisp and clean; "faithful" does not, and changes
        only what is surely better so, as archives want it.
    native_scale: how many times larger than its detail the photo is, 1 to 6; None measures it.
    colorize: give black-and-white photos colours, which are made up: "auto" leaves photos that have colour as they are,
        "always" makes theirs anew, "off" makes none.
    colour_strength: share, 0..1, of the made colours; the rest is the photo's own.
    upscale: how many times larger the output is, 2 or 4; None is as large as the input.
    sharpen: where the compact set judges what to keep of the changes, let it also sharpen blurred photos.
    quality: 1 to 100, of outputs in lossy formats; None takes a JPEG source's own, else 95.
    mask_dilation: pixels by which the mask grows on each side; None takes the model set's own figure for scratches that
        were found, and 0 for a mask that the user gives.
    max_memory: bytes that the whole process may hold; None takes what it holds now and half of what is free. A photo
        that needs more is translated strip by strip, with the same result.
    """

    with_scratch: Annotated[bool, Flag(Panel.DAMAGE, "Find scratches and repair them.")] = False
    hr: Annotated[
        LargeMode,
        Flag(
            Panel.LARGE,
            "The path for large photos; by default the size decides.",
            words=("--hr/--no-hr",),
            kind=bool,
            read={None: "auto", True: "on", False: "off"}.get,
        ),
    ] = "auto"
    faces: Annotated[bool, Flag(Panel.FACES, "Find faces and enhance them.")] = True
    face_detector: Annotated[
        FaceDetector,
        Flag(
            Panel.FACES,
            "dlib's quick detector of frontal faces, or its network: slow, and a file of 0.7 MB to fetch.",
        ),
    ] = "hog"
    face_size: Annotated[
        Literal[256, 512] | None,
        Flag(Panel.FACES, "Side of a face crop in pixels; by default 512 for large photos, else 256."),
    ] = None
    scratch_threshold: Annotated[
        float | None,
        Flag(Panel.DAMAGE, "Probability from which a pixel counts as scratched.", after="save_mask"),
    ] = None
    mask_dilation: Annotated[
        int | None,
        Flag(
            Panel.DAMAGE,
            "Pixels by which a mask grows on each side; by default what suits the model.",
            after="scratch_threshold",
        ),
    ] = None
    face_strength: Annotated[
        float | None,
        share(Panel.FACES, "How far faces are enhanced: 0 leaves them, 1 is all; by default judged face by face."),
    ] = None
    min_face: Annotated[
        int, Flag(Panel.FACES, "Leave faces smaller than this as they are.", least=0, metavar="PIXELS")
    ] = 32
    only_faces: Annotated[
        tuple[int, ...],
        Flag(
            Panel.FACES,
            "Enhance this face alone, as `oldphoto faces` numbers them; may be repeated.",
            name="only_face",
            kind=list[int],
            read=_several,
            metavar="NUMBER",
        ),
    ] = ()
    skip_faces: Annotated[
        tuple[int, ...],
        Flag(
            Panel.FACES,
            "Leave this face as it is; may be repeated.",
            name="skip_face",
            kind=list[int],
            read=_several,
            metavar="NUMBER",
        ),
    ] = ()
    only_damaged: Annotated[
        bool,
        Flag(
            Panel.DAMAGE, "Repair scratches alone: all else, faces too, stays exactly as it is.", after="mask_dilation"
        ),
    ] = False
    tone_strength: Annotated[
        float | None,
        share(
            Panel.LOOK,
            "How much fading is undone: 0 none, 1 all; by default all, where a photo has plainly faded, "
            "but none in the faithful look.",
            after="strength",
        ),
    ] = None
    strength: Annotated[
        float | None,
        share(
            Panel.LOOK,
            "How much is changed outside of damage: 0 nothing, 1 all; by default judged photo by photo.",
            after="colour_strength",
        ),
    ] = None
    look: Annotated[
        Look,
        Flag(
            Panel.LOOK,
            "restored: soft and grainy photos are rebuilt crisp and clean. faithful: only what is surely better so is "
            "changed.",
        ),
    ] = "restored"
    native_scale: Annotated[
        float | None,
        Flag(
            Panel.LOOK,
            "How many times larger than its detail a photo is; by default measured photo by photo.",
            least=1.0,
            most=MOST_NATIVE_SCALE,
            metavar="X",
        ),
    ] = None
    upscale: Annotated[Enlargement | None, Flag(Panel.LOOK, "Make outputs 2 or 4 times as large.")] = None
    colorize: Annotated[
        Colorize,
        Flag(
            Panel.LOOK,
            "Give black-and-white photos made-up colours; always: those in colour as well. Without a value it is auto.",
            after="upscale",
        ),
    ] = "off"
    colour_strength: Annotated[
        float,
        share(Panel.LOOK, "How much of the made-up colours, the rest being the photo's own.", after="colorize"),
    ] = 1.0
    sharpen: Annotated[
        bool,
        Flag(
            Panel.LOOK,
            "Sharpen nothing, however blurred; with --look faithful.",
            after="tone_strength",
            name="keep_blur",
            kind=bool,
            read=not_,
        ),
    ] = True
    quality: Annotated[
        int | None,
        Flag(Panel.FILES, "Of lossy formats; by default a JPEG's own, else 95.", after="format", least=1, most=100),
    ] = None
    max_memory: Annotated[
        int | None,
        Flag(
            Panel.LARGE,
            "Memory the process may hold, such as 4GB: larger photos go strip by strip, with the same result. By "
            "default half of what is free.",
            kind=str,
            read=_size,
            metavar="SIZE",
        ),
    ] = None

    def __post_init__(self) -> None:
        check_declared(self)
        if self.scratch_threshold is not None and not 0.0 < self.scratch_threshold < 1.0:
            raise UsageError(f"scratch threshold is {self.scratch_threshold}", "use a value between 0 and 1")
        if self.mask_dilation is not None and not 0 <= self.mask_dilation <= 64:
            raise UsageError(f"mask dilation is {self.mask_dilation}", "use 0 to 64 pixels")
        if self.colorize != "off" and self.only_damaged:
            raise UsageError("where only damage is repaired nothing else gets colour", "leave one of the two out")
        if self.colorize == "off" and self.colour_strength != 1.0:
            raise UsageError("a colour strength is of use where colours are made", "add --colorize, or leave it out")
        if self.strength is not None and self.only_damaged:
            raise UsageError("damage is repaired in full, whatever the strength", "leave one of the two out")
        if self.tone_strength and self.only_damaged:
            raise UsageError("tone is left alone where only damage is repaired", "leave one of the two out")
        if self.native_scale is not None and not (self.rebuilds or self.upscale):
            raise UsageError("a native scale is of use where the photo is rebuilt or enlarged", "leave it out")
        if self.upscale and self.only_damaged:
            raise UsageError("where only damage is repaired the photo is not enlarged", "leave one of the two out")
        if self.only_damaged and (self.only_faces or self.skip_faces):
            raise UsageError("faces are not enhanced where only damage is repaired", "leave one of the two out")
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
        """Whether fading is undone. unasked: where the user does not say how much of it, too, unless the look is to be
        faithful."""
        faithful = self.look == "faithful"
        wanted = unasked and not faithful if self.tone_strength is None else self.tone_strength > 0.0
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
