"""Inputs -> photos, their masks, and the files they will become; every collision is refused before any work."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from oldphoto.errors import FileAccessError, OldphotoError, UsageError
from oldphoto.files.image import PHOTO_SUFFIXES, count_pages, format_suffix, same_format
from oldphoto.machine.disk import exists, is_folder
from oldphoto.records.manifest import Record
from oldphoto.runs.collisions import collisions, refuse_existing
from oldphoto.runs.inputs import find, find_photos, is_pattern, is_photo, large_or_not
from oldphoto.runs.planned import Beside, Naming, Plan, Planned, Shard

__all__ = ["Beside", "Existing", "Naming", "Plan", "Planned", "Shard", "find_photos", "large_or_not", "plan"]

Existing = Literal["refuse", "skip", "overwrite"]


def plan(
    inputs: Sequence[str],
    output: str,
    *,
    recursive: bool = False,
    existing: Existing = "refuse",
    masks: Path | None = None,
    naming: Naming | None = None,
    beside: Beside | None = None,
    listed: Sequence[str] = (),
    shard: Shard | None = None,
    records: Mapping[Path, Record] | None = None,
    own: Mapping[Path, str] | None = None,
    service: bool = False,
) -> Plan:
    """Pair every photo with the file it will become.

    inputs: files, folders and glob patterns. A folder gives the photos directly in it, or with `recursive` its whole
        tree, mirrored under the output; hidden files and files that are no photos are passed over.
    output: a folder if it exists as one, ends with a separator, has no suffix, or there is more than a single file to
        restore; else the file to write. Photos keep their names in it.
    existing: what happens where an output exists: refuse the run, skip the photo, or overwrite the output.
    masks: one mask file or a folder of them, paired with the photos by name (the part before the suffix). With
        `recursive` the folder mirrors the photos' tree. A single mask for a single photo needs no matching name.
    naming: what outputs in a folder are called; None keeps the inputs' names. A single output file has its name.
    beside: what is written beside the outputs; None is nothing.
    listed: more inputs, each the name of one file; folders among them are passed over. With `recursive` a relative name
        keeps its folders below the output.
    shard: only these photos of the batch; what collides is refused for the whole batch.
    records: the lines of an earlier run's manifest by output, as last_lines gives them. What it wrote does not count as
        existing: `resume` tells which of it stays.
    own: other files that the run reads or writes, and what each is, as "the manifest": no output takes their place.
    service: a run that does not end: what collides is its photo's problem, and not an error.

    A file or folder that cannot be read is a problem of its own. Raises NoInputError if nothing matched,
    RefusedOverwriteError if an output would overwrite an input, a file that exists, or another output, UsageError if
    the output cannot be a file, FileAccessError if all that was named is a folder that cannot be read.
    """
    if masks is not None and not exists(masks):
        raise FileAccessError(f"there is no mask {masks}", "give a mask file or a folder of masks with --mask")
    beside = beside or Beside()
    out = Path(output)
    apart = [path for path in (out, masks, beside.save_masks, beside.save_faces) if path is not None]
    found, ignored, notes = find(inputs, listed, recursive, apart)
    single = len(inputs) == 1 and not listed and not is_pattern(inputs[0]) and not is_folder(inputs[0])
    to_file = single and not _is_folder(output)
    _check_output(out, naming, to_file=to_file)
    naming = naming or Naming()
    photos = []
    for number, (source, folder, problem) in enumerate(found, start=1):
        mask = None
        if masks is not None and problem is None:
            mask, problem = _mask_for(source, folder, masks, alone=single)
        target = out if to_file else out / folder / naming.name(source, number)
        photos.append(_planned(source, folder, target, mask, problem or _unwritable(target), beside, existing))
    photos = _without_collisions(photos, own or {}, service=service)
    if shard is not None:
        photos = [photo for photo in photos if shard.holds(Path() if to_file else photo.target.relative_to(out))]
    photos, skipped = _still_to_do(photos, existing, records or {})
    return Plan(tuple(photos), tuple(skipped), ignored, single, notes)


def _without_collisions(photos: list[Planned], own: Mapping[Path, str], *, service: bool) -> list[Planned]:
    """Raise what collides, or where the run is a service, make it the problem of its photo."""
    refused = collisions(photos, own)
    if refused and not service:
        raise next(iter(refused.values()))
    return [replace(photo, problem=photo.problem or refused.get(photo)) for photo in photos]


def _still_to_do(
    photos: list[Planned], existing: Existing, records: Mapping[Path, Record]
) -> tuple[list[Planned], list[Planned]]:
    """Part the photos into those to restore and those to skip, since their output exists. Raises as plan does."""
    if existing == "refuse":
        refuse_existing(photos, records)
    if existing != "skip":
        return photos, []
    there = [photo.problem is None and os.path.lexists(photo.target) for photo in photos]
    waiting = [photo for photo, is_there in zip(photos, there, strict=True) if not is_there]
    return waiting, [photo for photo, is_there in zip(photos, there, strict=True) if is_there]


def _check_output(out: Path, naming: Naming | None, *, to_file: bool) -> None:
    """Raise UsageError where the output cannot be a file, or a folder, or has a name already."""
    if to_file and out.suffix.lower() not in PHOTO_SUFFIXES:
        raise UsageError(
            f"cannot write a photo as {out.name}",
            f"use one of {', '.join(sorted(PHOTO_SUFFIXES))}, or end the output with / to make it a folder",
        )
    if not to_file and exists(out) and not is_folder(out):
        raise UsageError(f"the output {out} is a file, but there may be several photos", "give a folder with -o")
    if to_file and naming is not None:
        if naming.suffix or naming.template is not None:
            advice = "end the output with / to make it a folder"
            raise UsageError(f"the output has its name already: {out.name}", advice)
        if naming.format is not None and not same_format(out.suffix, format_suffix(naming.format)):
            raise UsageError(f"{out.name} is not the name of a {naming.format} file", "leave --format or the name out")


def _planned(
    source: Path,
    folder: Path,
    target: Path,
    mask: Path | None,
    problem: OldphotoError | None,
    beside: Beside,
    existing: Existing,
) -> Planned:
    """Plan one photo, which lies in `folder` below its input."""
    masks, faces = beside.save_masks, beside.save_faces
    return Planned(
        source=source,
        target=target,
        mask=mask,
        mask_target=None if masks is None else masks / folder / _mask_name(source, problem),
        faces_target=None if faces is None else faces / folder / source.name,
        comparison=target.with_name(f"{target.name}.before-after.jpg") if beside.compare else None,
        replaces=existing == "overwrite" or os.path.lexists(target),
        problem=problem,
    )


def _unwritable(path: Path) -> FileAccessError | None:
    """Why no file can be written under this name, as far as that can be told before."""
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()
            return None
        # A name that its folder, once made, could not hold is not found either: ask the folder above.
        above = next((folder for folder in path.parents if exists(folder)), Path())
        with suppress(FileNotFoundError, NotADirectoryError):
            (above / path.name).lstat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        return FileAccessError(f"cannot write {path}: {reason}", "choose another output")
    return None


def _is_folder(output: str) -> bool:
    return output.endswith(("/", os.sep)) or is_folder(output) or not Path(output).suffix


def _mask_for(source: Path, folder: Path, masks: Path, *, alone: bool) -> tuple[Path | None, OldphotoError | None]:
    """The mask that belongs to a photo, or the reason why there is none."""
    if is_folder(masks):
        place = masks / folder
        try:
            candidates = [path for path in sorted(place.iterdir()) if is_photo(path)] if is_folder(place) else []
        except OSError as error:
            return None, FileAccessError(f"cannot read the folder {place}: {error.strerror}", "check its permissions")
    else:
        candidates = [masks]
        if alone:
            return masks, None
    # The whole name first, so that a.jpg and a.png can each have a mask of their own format.
    for matches in (
        [path for path in candidates if path.name == source.name],
        [path for path in candidates if path.stem == source.stem],
    ):
        if len(matches) == 1:
            return matches[0], None
        if matches:
            names = " and ".join(path.name for path in matches)
            return None, UsageError(f"{names} are both masks for {source.name}", "keep one of them in the mask folder")
    return None, FileAccessError(
        f"there is no mask for {source.name} in {masks}", f"name it {source.stem}.png, or leave the photo out"
    )


def _mask_name(source: Path, problem: OldphotoError | None) -> str:
    return f"{source.stem}{'.tif' if problem is None and count_pages(source) > 1 else '.png'}"
