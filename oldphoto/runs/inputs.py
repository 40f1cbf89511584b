"""Find the photos that inputs name: files, folders, glob patterns and lists of names."""

from __future__ import annotations

import errno
import glob
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from PIL import Image

from oldphoto.errors import FileAccessError, NoInputError, OldphotoError
from oldphoto.files.image import PHOTO_SUFFIXES, count_pages
from oldphoto.machine.disk import check_regular, is_folder, open_file
from oldphoto.options import Options
from oldphoto.records.manifest import absolute
from oldphoto.runs.planned import Planned


def find_photos(inputs: Sequence[str], *, recursive: bool = False) -> tuple[Planned, ...]:
    """The photos that the inputs of `plan` name, in order, as plans to read them and write nothing."""
    found, _, _ = find(inputs, (), recursive, ())
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
    """Read (width, height) from a file's header; None where Pillow cannot tell."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with open_file(path) as file, Image.open(file) as picture:
                return picture.size
        except Image.DecompressionBombError:
            return (Image.MAX_IMAGE_PIXELS or 1) * 2, 1
        except Exception:
            return None  # a bad file has its error told when it is read


Found = tuple[Path, Path, OldphotoError | None]


def find(
    inputs: Sequence[str], listed: Sequence[str], recursive: bool, apart: Sequence[Path]
) -> tuple[list[Found], int, tuple[str, ...]]:
    """Return (photo, its folder below the input, problem) in order, each file once; the count of files passed over;
    notes.

    apart: outputs and masks; folders among them that lie inside an input folder are not searched.
    """
    found: dict[Path, Found] = {}
    linked: list[Path] = []
    ignored = 0

    def take(file: Path, folder: Path) -> None:
        found.setdefault(absolute(file), (file, folder, _unreadable(file)))

    def refuse(folder: Path, below: Path, error: OSError) -> None:
        problem = FileAccessError(f"cannot read the folder {folder}: {error.strerror}", "check its permissions")
        found.setdefault(absolute(folder), (folder, below, problem))

    for text in inputs:
        path = Path(text)
        pattern = is_pattern(text)
        # Not Path.glob: the pattern may be absolute, and hidden files are to be left out.
        candidates = sorted(map(Path, glob.glob(text, recursive=True))) if pattern else [path]  # noqa: PTH207
        for candidate in candidates:
            if is_folder(candidate):
                if pattern and not recursive:
                    continue
                for file in _walk(candidate, recursive, apart, linked, refuse):
                    if is_photo(file):
                        take(file, file.parent.relative_to(candidate))
                    else:
                        ignored += 1
            elif pattern and not is_photo(candidate):
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


def is_photo(path: Path) -> bool:
    """Tell by the name whether a file is a photo to take from a folder."""
    return not path.name.startswith(".") and path.suffix.lower() in PHOTO_SUFFIXES


def is_pattern(text: str) -> bool:
    """Tell whether an input is a glob pattern."""
    # A file whose own name holds a bracket is a file: what exists is never a pattern.
    return glob.has_magic(text) and not os.path.lexists(text)
