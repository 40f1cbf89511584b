"""Find weight files on this machine, and tell which copies are right."""

from __future__ import annotations

import errno
import importlib.util
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from oldphoto.errors import FileAccessError, WeightsUnavailableError
from oldphoto.machine.disk import is_file, is_folder
from oldphoto.weights import lock
from oldphoto.weights.lock import Source, WeightFile, corrupt, hash_of

Place = Literal["package", "override", "cache", "hub", "python"]

DISK_ADVICE = "free some space, or set HF_HOME to a folder that can be written to"
DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})


@dataclass(frozen=True)
class Copy:
    """A file at one of the places where `file` is looked for; `found` is its sha256."""

    file: WeightFile
    path: Path
    place: Place
    found: str

    @property
    def right(self) -> bool:
        """Whether it is a file that weights.lock means."""
        return self.found in self.file.hashes


@dataclass(frozen=True)
class Removed:
    """A deleted file; `bytes` is what it freed."""

    file: WeightFile
    path: Path
    bytes: int


def _hub_home() -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return _expanded(os.environ.get("HF_HOME") or str(default))


def hub_cache() -> Path:
    """The folder in which huggingface_hub keeps what it fetches, by the same variables.

    Raises WeightsUnavailableError where it would be in a home folder and there is none; so does cache_folder.
    """
    chosen = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return _expanded(chosen) if chosen else _hub_home() / "hub"


def cache_folder() -> Path:
    """Our own folder beside the hub's cache: what was fetched and imported, and locks."""
    return _hub_home() / "oldphoto"


def override_folder() -> Path | None:
    """The folder that OLDPHOTO_WEIGHTS names. Raises WeightsUnavailableError where it is not a folder."""
    chosen = os.environ.get("OLDPHOTO_WEIGHTS")
    if not chosen:
        return None
    folder = _expanded(chosen)
    if not is_folder(folder):
        raise WeightsUnavailableError(f"OLDPHOTO_WEIGHTS is {chosen}, which is not a folder", "correct or unset it")
    return folder


def _expanded(path: str) -> Path:
    try:
        return Path(os.path.expandvars(path)).expanduser()
    except RuntimeError as error:  # a container's bare user number has no home
        advice = "set HOME or HF_HOME, or take --model compact"
        raise WeightsUnavailableError(f"there is no home folder for {path}", advice) from error


def _places(file: WeightFile) -> Iterator[tuple[Place, Path]]:
    if file.set == "compact":
        yield "package", lock.PACKAGE / file.path
        return
    override = override_folder()
    if override is not None:
        yield "override", override / file.path
        yield "override", override / f"{file.net}{PurePosixPath(file.path).suffix}"
    with suppress(WeightsUnavailableError):  # no home: nothing was ever fetched
        yield "cache", cache_folder() / file.path
    for source in file.sources:
        if source.kind == "hub" and (found := _in_hub_cache(source)) is not None:
            yield "hub", found
        elif source.kind == "python" and (found := _in_python(source)) is not None:
            yield "python", found


def _in_hub_cache(source: Source) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    try:
        home = hub_cache()
    except WeightsUnavailableError:
        return None
    found = try_to_load_from_cache(source.repo, source.path, cache_dir=home, revision=source.revision)
    return Path(found) if isinstance(found, str) else None


def _in_python(source: Source) -> Path | None:
    # Found without importing it: the package's own import fails on today's Python.
    spec = importlib.util.find_spec(source.repo)
    folders = spec.submodule_search_locations if spec is not None else None
    return Path(folders[0]) / source.path if folders else None


def copies_of(file: WeightFile) -> tuple[Copy, ...]:
    """Every copy of a file on this machine, each hashed."""
    return tuple(each_copy(file))


def each_copy(file: WeightFile) -> Iterator[Copy]:
    """Hash one copy of a file after the other, as they are asked for."""
    # One by one: to look into the hub's cache is to load its client, which takes a quarter of a second.
    for place, path in _places(file):
        if not is_file(path):
            continue
        try:
            found = hash_of(path)
        except OSError as error:
            raise FileAccessError(f"cannot read {path}: {error.strerror or error}") from error
        yield Copy(file, path, place, found)


def verify(files: Iterable[WeightFile]) -> dict[WeightFile, tuple[Copy, ...]]:
    """Hash every copy of these files; an empty tuple where there is none. Deletes nothing."""
    return {file: copies_of(file) for file in files}


def cached(file: WeightFile) -> Path | None:
    """The path of a verified copy, or None.

    Raises WeightsCorruptError where a file that is not ours to replace (the package's, OLDPHOTO_WEIGHTS') is wrong.
    """
    return verified(each_copy(file))


def verified(copies: Iterable[Copy]) -> Path | None:
    """Return the path of the first right copy. Raises WeightsCorruptError as `cached` does."""
    for copy in copies:
        if copy.right:
            return copy.path
        if copy.place == "package":
            raise corrupt(copy.file, copy.path, copy.found, "install oldphoto again")
        if copy.place == "override":
            raise corrupt(copy.file, copy.path, copy.found, "replace that file or unset OLDPHOTO_WEIGHTS")
    return None


def remove(files: Iterable[WeightFile]) -> tuple[Removed, ...]:
    """Delete what was fetched or imported; never the package's, OLDPHOTO_WEIGHTS' or a package's files."""
    removed: list[Removed] = []
    for file in files:
        paths = [path for place, path in _places(file) if place in ("cache", "hub")]
        for path in paths:
            if is_file(path):
                size = path.stat().st_size
                delete(path)
                removed.append(Removed(file, path, size))
    return tuple(removed)


def delete(path: Path) -> None:
    """Delete a cached file and what its links lead to, as far as that lies in the caches."""
    homes = (hub_cache().resolve(), cache_folder().resolve())
    try:
        while path.is_symlink():
            target = Path(os.path.normpath(path.parent / path.readlink()))
            path.unlink()
            path = target
            if not any(path.parent.resolve().is_relative_to(home) for home in homes):
                return
        path.unlink(missing_ok=True)
    except OSError as error:
        raise FileAccessError(f"cannot delete {path}: {error.strerror or error}") from error


@contextmanager
def locked(file: WeightFile) -> Iterator[None]:
    """One process at a time fetches or imports one file."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # public, but not in an __all__

    lock = cache_folder() / "locks" / f"{file.sha256[:16]}.lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise FileAccessError(f"cannot write to {cache_folder()}: {error.strerror or error}", DISK_ADVICE) from error
    with WeakFileLock(lock):
        yield
