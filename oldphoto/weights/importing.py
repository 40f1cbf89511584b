"""Published weights from a folder or zip that somebody has brought."""

from __future__ import annotations

import bz2
import io
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from oldphoto.errors import FileAccessError, WeightsCorruptError
from oldphoto.machine.disk import check_regular, is_file, is_folder
from oldphoto.weights.cache import copies_of, locked
from oldphoto.weights.fetching import store
from oldphoto.weights.lock import Progress, WeightFile, one_line, read_lock, unsafe


@dataclass(frozen=True)
class Imported:
    """The outcome of one member of a folder or zip; `file` is None where the member is none of weights.lock's."""

    member: str
    outcome: Literal["imported", "present", "wrong", "unknown", "refused"]
    file: WeightFile | None = None
    detail: str = ""


@dataclass(frozen=True)
class _Member:
    name: str
    refusal: str
    open: Callable[[], IO[bytes]]


def import_archive(
    path: Path, files: Iterable[WeightFile] | None = None, progress: Progress | None = None
) -> tuple[Imported, ...]:
    """Take the published files out of a folder, a zip, or a folder of zips, into our cache. One row per member.

    Known members are those of the reference's own layout, under any top folders, or starting at `checkpoints/` as in
    its release zips; dlib's landmarks may be .bz2. Each is verified before it is moved into place, and its place comes
    from weights.lock, never from the member's name. Absolute names, `..`, links and encrypted members are refused.
    Raises FileAccessError where `path` can't be read or the cache can't be written.
    """
    published = [file for file in (read_lock() if files is None else files) if file.set == "published"]
    report = progress or (lambda file, done, total: None)
    try:
        return tuple(_import(member, published, report) for member in _members(path))
    except OSError as error:
        raise FileAccessError(f"cannot import {path}: {one_line(error)}") from error


def _import(member: _Member, published: list[WeightFile], report: Progress) -> Imported:
    if member.refusal:
        return Imported(member.name, "refused", detail=member.refusal)
    parts = PurePosixPath(member.name.removesuffix(".bz2")).parts
    file = next((file for file in published if parts[-len(_tail(file)) :] == _tail(file)), None)
    if file is None:
        return Imported(member.name, "unknown")
    if any(copy.right for copy in copies_of(file)):
        return Imported(member.name, "present", file)
    try:
        with locked(file), member.open() as stream:
            store(file, bz2.BZ2File(stream) if member.name.endswith(".bz2") else stream, report)
    except WeightsCorruptError as error:
        return Imported(member.name, "wrong", file, str(error))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        return Imported(member.name, "wrong", file, f"damaged: {one_line(error)}")
    except OSError as error:
        if error.errno is not None:
            raise
        return Imported(member.name, "wrong", file, f"damaged: {one_line(error)}")  # bz2's word for bad data
    return Imported(member.name, "imported", file)


def _tail(file: WeightFile) -> tuple[str, ...]:
    """The end of a path by which a member is known: from `checkpoints` on, or the name alone where there is none."""
    parts = PurePosixPath(file.path).parts
    return parts[parts.index("checkpoints") :] if "checkpoints" in parts else parts[-1:]


def _members(path: Path) -> Iterator[_Member]:
    if is_folder(path):
        for inner in sorted(path.rglob("*")):
            name = inner.relative_to(path).as_posix()
            if inner.suffix.lower() == ".zip" and is_file(inner):
                yield from _zip_members(inner, f"{name}/")
            elif is_file(inner):
                inside = inner.resolve().is_relative_to(path.resolve())
                yield _Member(name, "" if inside else "a link that leads out of the folder", partial(io.FileIO, inner))
    elif path.suffix.lower() == ".zip":
        yield from _zip_members(path, "")
    else:
        raise FileNotFoundError("neither a folder nor a .zip file")


def _zip_members(path: Path, prefix: str) -> Iterator[_Member]:
    try:
        check_regular(path)
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise FileAccessError(f"cannot import {path}: {one_line(error)}", "fetch the archive again") from error
    with archive:
        for info in archive.infolist():
            if not info.is_dir():
                name = info.filename.replace("\\", "/")
                refusal = unsafe(name) or ("a link" if stat.S_ISLNK(info.external_attr >> 16) else "")
                refusal = refusal or ("encrypted" if info.flag_bits & 1 else "")
                yield _Member(prefix + name, refusal, partial(archive.open, info))
