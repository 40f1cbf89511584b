"""Refuse outputs that would overwrite an input, a file of the run, another output, or what somebody else wrote."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from oldphoto.errors import FileAccessError, RefusedOverwriteError
from oldphoto.machine.disk import is_folder
from oldphoto.records.manifest import Record, absolute
from oldphoto.runs.planned import Planned

FACE_CROP = re.compile(r"(?P<photo>.+)\.face\d+\.(before|after)\.png")


def _same_name(path: Path) -> str:
    """Return what two outputs share if some file system would keep them in one file (case, composed characters)."""
    return unicodedata.normalize("NFC", str(absolute(path))).casefold()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def collisions(photos: Sequence[Planned], own: Mapping[Path, str]) -> dict[Planned, RefusedOverwriteError]:
    """Find the photos of which an output is an input (by any path, link or spelling), one of the run's own files, or
    the output of an earlier photo."""
    inputs = {}
    for photo in photos:
        for path in (photo.source, photo.mask):
            if path is not None and (identity := _identity(path)) is not None:
                inputs[identity] = path
    owned = {_same_name(path): what for path, what in own.items()}
    owned_files = {identity: what for path, what in own.items() if (identity := _identity(path)) is not None}
    crops = _face_crops_there(photos)
    for path in own:
        if crop := FACE_CROP.fullmatch(path.name):
            crops.setdefault(path.with_name(crop["photo"]), []).append(path)
    places = {photo.faces_target for photo in photos}
    taken: dict[str, Planned] = {}

    def collision(photo: Planned) -> RefusedOverwriteError | None:
        for target in (photo.target, photo.mask_target, photo.comparison, *crops.get(photo.faces_target, ())):
            if target is None:
                continue
            identity, name = _identity(target), _same_name(target)
            if identity is not None and identity in inputs:
                return RefusedOverwriteError(
                    f"{target} is an input ({inputs[identity]}), and inputs are never overwritten",
                    "choose another output folder",
                )
            what = owned.get(name) or (None if identity is None else owned_files.get(identity))
            if what is not None:
                return RefusedOverwriteError(f"{target} is {what}, and would be {photo.source} too", "choose another")
            if name in taken:
                return RefusedOverwriteError(
                    f"{taken[name].source} and {photo.source} would both become {target}",
                    "restore them in two runs with different output folders, or keep folders apart with --recursive",
                )
            taken[name] = photo
        crop = FACE_CROP.fullmatch(photo.target.name)
        if crop and photo.target.with_name(crop["photo"]) in places:
            return RefusedOverwriteError(f"{photo.target} may also become a face crop", "choose another --save-faces")
        return None

    checked = ((photo, collision(photo)) for photo in photos)
    return {photo: error for photo, error in checked if error is not None}


def _face_crops_there(photos: Sequence[Planned]) -> dict[Path | None, list[Path]]:
    """Find the face crops that lie where these photos' would, by `faces_target`."""
    found: dict[Path | None, list[Path]] = {}
    for folder in {photo.faces_target.parent for photo in photos if photo.faces_target is not None}:
        try:
            there = sorted(folder.iterdir()) if is_folder(folder) else []
        except OSError as error:
            text = f"cannot read the folder {folder}: {error.strerror}"
            raise FileAccessError(text, "check its permissions") from error
        for path in there:
            if crop := FACE_CROP.fullmatch(path.name):
                found.setdefault(folder / crop["photo"], []).append(path)
    return found


def refuse_existing(photos: Sequence[Planned], records: Mapping[Path, Record]) -> None:
    """Raise RefusedOverwriteError if an output or a file beside one is there, and no earlier run of ours wrote it."""
    written = [facts for record in records.values() for facts in (record["output"], record["saved_mask"])]
    ours = {absolute(facts["path"]) for facts in written if facts is not None and facts["sha256"] is not None}
    targets = [target for photo in photos for target in (photo.target, photo.mask_target) if target is not None]
    crops = _face_crops_there(photos)
    new = [photo for photo in photos if absolute(photo.target) not in ours]
    targets += [crop for photo in new for crop in crops.get(photo.faces_target, ())]
    targets += [photo.comparison for photo in new if photo.comparison is not None]
    there = [target for target in targets if os.path.lexists(target) and absolute(target) not in ours]
    if there:
        more = f" (and {len(there) - 1} more)" if len(there) > 1 else ""
        raise RefusedOverwriteError(f"{there[0]} exists{more}", "use --skip-existing, --overwrite or another output")
