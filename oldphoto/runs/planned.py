"""The values of a plan: photos to restore, how their outputs are called, and which part of a batch is meant."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Literal

from oldphoto.errors import OldphotoError, UsageError
from oldphoto.files.image import format_suffix, same_format

LONGEST_NAME = 255  # of bytes, on most file systems


@dataclass(frozen=True)
class Naming:
    """How outputs in a folder are called.

    format: they are written in this one, and their names end so; None keeps each input's own.
    suffix: put after the name, before its ending.
    template: the name without its ending, instead: "{stem}" is the input's, "{number}" counts the photos from 1, and
        "{parent}" is the name of the input's folder; numbers can be padded, as in "{number:04}".
    Raises UsageError for a format that cannot be written, a template that names no file, and both suffix and template.
    """

    format: str | None = None
    suffix: str = ""
    template: str | None = None

    def __post_init__(self) -> None:
        if self.format is not None:
            format_suffix(self.format)
        if self.suffix and self.template is not None:
            raise UsageError("a suffix and a name template contradict each other", "put the suffix into the template")
        self.name(Path("photo.jpg"), 1)

    def name(self, source: Path, number: int) -> str:
        """The output's name for the photo of this number."""
        ending = source.suffix
        if self.format is not None and not same_format(ending, wanted := format_suffix(self.format)):
            ending = wanted
        stem = f"{source.stem}{self.suffix}"
        if self.template is not None:
            fields: dict[str, str | int] = {
                "stem": source.stem,
                "number": number,
                "parent": source.absolute().parent.name,
            }
            try:
                parts = list(Formatter().parse(self.template))
                unknown = {name for _, name, _, _ in parts if name is not None} - set(fields)
                # A width that no name has would be filled up with spaces, gigabytes of them.
                widths = [int(width) for _, _, spec, _ in parts for width in re.findall(r"\d+", spec or "")]
                sound = not unknown and max(widths, default=0) <= LONGEST_NAME
                stem = self.template.format(**fields) if sound else ""
            except (ValueError, IndexError, KeyError):
                stem = ""
            if not stem:
                text = f"the name template {self.template!r} is not one"
                raise UsageError(text, 'use {stem}, {number} and {parent}, as in "{stem}_{number:04}"')
        if Path(stem).name != stem or (stem.startswith(".") and not source.name.startswith(".")):
            raise UsageError(f"{stem!r} is no name for a photo", "leave out slashes and dots in front")
        return f"{stem}{ending}"


@dataclass(frozen=True)
class Planned:
    """One photo to restore.

    source, target: the file read and the file written.
    mask: the user's own mask for it, if masks were given.
    mask_target: where the mask in use is written, if that was asked for.
    faces_target: where face crops are written, if that was asked for: `.face<number>.before.png` and `.after.png` are
        added to this name.
    comparison: where a picture of before and after is written, if that was asked for.
    replaces: whether a file at `target` may be replaced; else one that comes to be there meanwhile stays.
    problem: why it cannot be done, known before work starts (no such file, no mask); it is reported, not restored.
    """

    source: Path
    target: Path
    mask: Path | None = None
    mask_target: Path | None = None
    faces_target: Path | None = None
    comparison: Path | None = None
    replaces: bool = True
    problem: OldphotoError | None = None

    def face_crop(self, number: int, side: Literal["before", "after"]) -> Path:
        """The file of one face crop."""
        assert self.faces_target is not None
        return self.faces_target.with_name(f"{self.faces_target.name}.face{number}.{side}.png")


@dataclass(frozen=True)
class Plan:
    """What a run will do: `photos` in order, `skipped` ones whose output exists, and the count of files passed over.

    single: the input was one file named in full, so that its error is the run's error.
    notes: a line each on what is left out and may be missed.
    """

    photos: tuple[Planned, ...]
    skipped: tuple[Planned, ...]
    ignored: int
    single: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shard:
    """One of `count` parts of a batch, by number from 1; UsageError for a number outside.

    Which part a photo falls into depends on nothing but its place among the outputs: parts stay the same when photos
    come and go, and on machines that see the folders under other names.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise UsageError(f"there is no shard {self.number}/{self.count}", "use 1/N to N/N")

    @staticmethod
    def parse(text: str) -> Shard:
        """A part written as I/N; UsageError for anything else."""
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if match is None:
            raise UsageError(f"{text!r} is no shard", "write it as I/N, such as 1/8")
        return Shard(int(match[1]), int(match[2]))

    def holds(self, place: Path) -> bool:
        """Whether the photo that becomes this path, relative to the output folder, is in this part."""
        digest = hashlib.sha256(os.fsencode(place.as_posix())).digest()
        return int.from_bytes(digest[:8]) % self.count == self.number - 1


@dataclass(frozen=True)
class Beside:
    """The files to write beside the outputs.

    save_masks: folder for the masks used, as `<name before the suffix>.png`; those of several pages as one `.tif`.
    save_faces: folder for the faces before and after, as `<photo's whole name>.face<number>.before.png`.
    compare: a picture of before and after beside each output, as `<output's whole name>.before-after.jpg`.
    """

    save_masks: Path | None = None
    save_faces: Path | None = None
    compare: bool = False
