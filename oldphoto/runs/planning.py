"""Inputs -> photos, their masks, and the files they will become; every collision is refused before any work."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from string import Formatter
from typing import Literal

from PIL import Image

from oldphoto.errors import (
    FileAccessError,
    NoInputError,
    OldphotoError,
    RefusedOverwriteError,
    UsageError,
)
from oldphoto.files.image import (
    PHOTO_SUFFIXES,
    count_pages,
    format_suffix,
    same_format,
)
from oldphoto.machine.disk import check_regular, exists, is_folder, open_file
from oldphoto.options import Options
from oldphoto.records.manifest import (
    Record,
    absolute,
)

Existing = Literal["refuse", "skip", "overwrite"]
LONGEST_NAME = 255  # of bytes, on most file systems
FACE_CROP = re.compile(r"(?P<photo>.+)\.face\d+\.(before|after)\.png")


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


def plan(
    inputs: Sequence[str],
    output: str,
    *,
    recursive: bool = False,
    existing: Existing = "refuse",
    masks: Path | None = None,
    save_masks: Path | None = None,
    naming: Naming | None = None,
    save_faces: Path | None = None,
    compare: bool = False,
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
    save_masks: folder for the masks used, as `<name before the suffix>.png`; those of several pages as one `.tif`.
    save_faces: folder for the faces before and after, as `<photo's whole name>.face<number>.before.png`.
    compare: plan a picture of before and after beside each output, as `<output's whole name>.before-after.jpg`.
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
    out = Path(output)
    apart = [path for path in (out, masks, save_masks, save_faces) if path is not None]
    found, ignored, notes = _find(inputs, listed, recursive, apart)
    single = len(inputs) == 1 and not listed and not _is_pattern(inputs[0]) and not is_folder(inputs[0])
    to_file = single and not _is_folder(output)
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
    naming = naming or Naming()
    photos = []
    for number, (source, folder, problem) in enumerate(found, start=1):
        mask = None
        if masks is not None and problem is None:
            mask, problem = _mask_for(source, folder, masks, alone=single)
        target = out if to_file else out / folder / naming.name(source, number)
        problem = problem or _unwritable(target)
        photos.append(
            Planned(
                source=source,
                target=target,
                mask=mask,
                mask_target=None if save_masks is None else save_masks / folder / _mask_name(source, problem),
                faces_target=None if save_faces is None else save_faces / folder / source.name,
                comparison=target.with_name(f"{target.name}.before-after.jpg") if compare else None,
                replaces=existing == "overwrite" or os.path.lexists(target),
                problem=problem,
            )
        )
    collisions = _collisions(photos, own or {})
    if service:
        photos = [replace(photo, problem=photo.problem or collisions.get(photo)) for photo in photos]
    elif collisions:
        raise next(iter(collisions.values()))
    if shard is not None:
        photos = [photo for photo in photos if shard.holds(Path() if to_file else photo.target.relative_to(out))]
    skipped: list[Planned] = []
    if existing == "refuse":
        _refuse_existing(photos, records or {})
    elif existing == "skip":
        skipped = [photo for photo in photos if photo.problem is None and os.path.lexists(photo.target)]
        photos = [photo for photo in photos if photo.problem is not None or not os.path.lexists(photo.target)]
    return Plan(tuple(photos), tuple(skipped), ignored, single, notes)


def find_photos(inputs: Sequence[str], *, recursive: bool = False) -> tuple[Planned, ...]:
    """The photos that the inputs of `plan` name, in order, as plans to read them and write nothing."""
    found, _, _ = _find(inputs, (), recursive, ())
    return tuple(Planned(source, source, problem=problem) for source, _, problem in found)


def large_or_not(photos: Sequence[Planned] | None, options: Options) -> set[bool]:
    """Whether some of these photos take the large-photo path, and whether some do not. Reads headers alone.

    photos: None where they are not known yet.
    """
    if options.hr != "auto":
        return {options.hr == "on"}
    if photos is None:
        return {False, True}
    kinds: set[bool] = set()
    for photo in photos:
        size = _size(photo.source)
        if size is not None:
            kinds.add(options.large(*size))
            if count_pages(photo.source) > 1:
                kinds = {False, True}  # pages differ in size
        elif photo.source.suffix.lower() in (".tif", ".tiff"):
            kinds = {False, True}  # some archival TIFFs are read by other means than Pillow: be ready for either
        if len(kinds) == 2:
            break
    return kinds or {False}


def _size(path: Path) -> tuple[int, int] | None:
    """(width, height) from a file's header; None where Pillow cannot tell."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with open_file(path) as file, Image.open(file) as picture:
                return picture.size
        except Image.DecompressionBombError:
            return (Image.MAX_IMAGE_PIXELS or 1) * 2, 1
        except Exception:
            return None  # a bad file has its error told when it is read


_Found = tuple[Path, Path, OldphotoError | None]


def _find(
    inputs: Sequence[str], listed: Sequence[str], recursive: bool, apart: Sequence[Path]
) -> tuple[list[_Found], int, tuple[str, ...]]:
    """(photo, its folder below the input, problem) in order, each file once; the count of files passed over; notes.

    apart: outputs and masks; folders among them that lie inside an input folder are not searched.
    """
    found: dict[Path, _Found] = {}
    linked: list[Path] = []
    ignored = 0

    def take(file: Path, folder: Path) -> None:
        found.setdefault(absolute(file), (file, folder, _unreadable(file)))

    def refuse(folder: Path, below: Path, error: OSError) -> None:
        problem = FileAccessError(f"cannot read the folder {folder}: {error.strerror}", "check its permissions")
        found.setdefault(absolute(folder), (folder, below, problem))

    for text in inputs:
        path = Path(text)
        pattern = _is_pattern(text)
        # Not Path.glob: the pattern may be absolute, and hidden files are to be left out.
        candidates = sorted(map(Path, glob.glob(text, recursive=True))) if pattern else [path]  # noqa: PTH207
        for candidate in candidates:
            if is_folder(candidate):
                if pattern and not recursive:
                    continue
                for file in _walk(candidate, recursive, apart, linked, refuse):
                    if _is_photo(file):
                        take(file, file.parent.relative_to(candidate))
                    else:
                        ignored += 1
            elif pattern and not _is_photo(candidate):
                ignored += 1
            else:
                take(candidate, Path())
    for text in listed:
        path = Path(text)
        if is_folder(path):
            ignored += 1
            continue
        # Names that lead out of the output folder go into the folder itself.
        inside = recursive and not path.is_absolute() and ".." not in path.parts
        take(path, path.parent if inside else Path())
    problems = [problem for _, _, problem in found.values()]
    if all(problem is not None and _is_missing(path) for path, _, problem in found.values()):
        inputs = [*inputs, *listed[:3]]
        nothing = f"no photo in {', '.join(inputs)}" if not found else f"there is no file {', '.join(inputs)}"
        raise NoInputError(nothing, "check the names; folders inside a folder are searched with --recursive")
    if len(found) == 1 and problems[0] is not None and is_folder(next(iter(found))):
        raise problems[0]
    more = f" (and {len(linked) - 1} more)" if len(linked) > 1 else ""
    notes = [f"{linked[0]}{more} is a link to a folder, and not searched: name it to have it"] if linked else []
    return list(found.values()), ignored, tuple(notes)


def _walk(
    folder: Path,
    recursive: bool,
    apart: Sequence[Path],
    linked: list[Path],
    refuse: Callable[[Path, Path, OSError], None],
) -> Iterator[Path]:
    """The files of a folder, or of its tree, sorted; hidden folders and the folders of `apart` are left out.

    linked: is given the links to folders, which are not followed, as they may lead in a circle. refuse: is told of each
    folder that cannot be read, with its place below `folder`.
    """
    own = {os.path.realpath(absolute(path)) for path in apart} - {os.path.realpath(absolute(folder))}

    def told(error: OSError) -> None:
        path = Path(error.filename)
        refuse(path, path.relative_to(folder).parent if path != folder else Path(), error)

    for root, folders, files in os.walk(folder, onerror=told):
        kept = [Path(root) / name for name in sorted(folders) if recursive and not name.startswith(".")]
        kept = [path for path in kept if os.path.realpath(absolute(path)) not in own]
        linked += [path for path in kept if path.is_symlink()]
        folders[:] = [path.name for path in kept]
        yield from (Path(root) / name for name in sorted(files))


def _unreadable(path: Path) -> FileAccessError | None:
    """Why a path cannot be a photo's, told without opening it."""
    try:
        with suppress(IsADirectoryError):
            check_regular(path)
    except (OSError, ValueError) as error:
        if _is_missing(path):
            return FileAccessError(f"there is no file {path}", "check the name; in a list, a NUL ends each")
        reason = error.strerror if isinstance(error, OSError) else error
        return FileAccessError(f"cannot read {path}: {reason}", "check where it leads, and its permissions")
    return None


def _is_missing(path: Path) -> bool:
    """Whether nothing is there, not even a link, as far as it can be seen; nor could be, under such a name."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return True
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG
    return False


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


def _is_photo(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix.lower() in PHOTO_SUFFIXES


def _is_pattern(text: str) -> bool:
    # A file whose own name holds a bracket is a file: what exists is never a pattern.
    return glob.has_magic(text) and not os.path.lexists(text)


def _is_folder(output: str) -> bool:
    return output.endswith(("/", os.sep)) or is_folder(output) or not Path(output).suffix


def _mask_for(source: Path, folder: Path, masks: Path, *, alone: bool) -> tuple[Path | None, OldphotoError | None]:
    """The mask that belongs to a photo, or the reason why there is none."""
    if is_folder(masks):
        place = masks / folder
        try:
            candidates = [path for path in sorted(place.iterdir()) if _is_photo(path)] if is_folder(place) else []
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


def _same_name(path: Path) -> str:
    """What two outputs share if some file system would keep them in one file (case, composed characters)."""
    return unicodedata.normalize("NFC", str(absolute(path))).casefold()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def _collisions(photos: Sequence[Planned], own: Mapping[Path, str]) -> dict[Planned, RefusedOverwriteError]:
    """The photos of which an output is an input (by any path, link or spelling), one of the run's own files, or the
    output of an earlier photo."""
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
    """The face crops that lie where these photos' would, by `faces_target`."""
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


def _refuse_existing(photos: Sequence[Planned], records: Mapping[Path, Record]) -> None:
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
