"""Write and check what was done to each photo: JSON Lines that only ever grow, one line a photo, and how they are
checked later.

The order on disk makes an interrupted run safe to go on with: a photo's line is written before its output takes its
name. So an output without a line is somebody else's file, and a line without its output is a photo to do again. Where
a photo has several lines, the last one counts.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import math
import os
import platform
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal, NotRequired, TypedDict, cast

from oldphoto import __version__
from oldphoto.errors import ExitCode, FileAccessError, OldphotoError, RefusedOverwriteError
from oldphoto.machine.disk import exists, open_file, read_file, sync
from oldphoto.options import Options

# Goes up when a line changes in a way that readers have to know of.
VERSION = 1
SCHEMA = Path(__file__).with_name("manifest.schema.json")
# How each line begins, by which one that was cut short is told from another kind of file.
_START = b'{"version": '
LONGEST_LINE = 16 << 20
_TIME = "%Y-%m-%dT%H:%M:%SZ"

Role = Literal["input", "output", "mask", "saved_mask"]
Difference = Literal["missing", "changed", "unreadable"]
ROLES: tuple[Role, ...] = ("input", "output", "mask", "saved_mask")
_PACKAGES = ("torch", "numpy", "pillow", "opencv-python", "dlib-bin", "dlib", "simplejpeg")


class FileFacts(TypedDict):
    """A file as it was. path: below the manifest's folder relative to it, else absolute. size in pixels."""

    path: str
    sha256: str | None
    bytes: int | None
    format: NotRequired[str | None]
    width: NotRequired[int | None]
    height: NotRequired[int | None]


class FaceFacts(TypedDict):
    """number: as `oldphoto faces` lists it. box: left, top, right, bottom in pixels. kept: the shares kept of the face
    generator's changes, as ChangeFacts has them; null for a face left as it was."""

    number: int
    box: list[float]
    score: float
    kept: list[float] | None


class CurveFacts(TypedDict):
    """density = bend(mix @ (density of (light - fog) / (1 - fog) - base)), of R, G and B, or of luminance alone; see
    stages/fading.py."""

    fog: list[float]
    base: list[float]
    mix: list[list[float]]
    bend: list[float]


class ToneFacts(TypedDict):
    """likely: that the photo had faded. cast: what was taken off the mean colour, in Lab's a and b. lightness: what was
    added to the mean, in Lab's L. contrast: how many times more range of L there is. Earlier lines have gain and offset
    in place of these: new = gain * old - offset, of R, G and B in 0..1."""

    likely: float
    cast: NotRequired[list[float]]
    lightness: NotRequired[float]
    contrast: NotRequired[float]
    curve: NotRequired[CurveFacts]
    gain: NotRequired[list[float]]
    offset: NotRequired[list[float]]


class ChangeFacts(TypedDict):
    """tone: how fading was undone, or null. kept: the shares kept, outside of damage, of small and large changes of
    light, and of small and large ones of colour. raised: by how much the three finest bands of its light were, finest
    first. Both null where damage alone was repaired. native_scale: how many times larger than its detail the photo was,
    or null. rebuilt: whether it was, at that scale. enlarged: how many times, or null. colorized: whether its colours
    are made up. Earlier lines lack the four."""

    tone: ToneFacts | None
    kept: list[float] | None
    raised: list[float] | None
    native_scale: NotRequired[float | None]
    rebuilt: NotRequired[bool]
    enlarged: NotRequired[int | None]
    colorized: NotRequired[bool]


class ModelFacts(TypedDict):
    """weights: sha256 by net, of the nets this photo needed."""

    set: str
    precision: str
    device: str
    weights: dict[str, str]


class ErrorFacts(TypedDict):
    """kind: the error's class. exit_code: as a run of this photo alone would end."""

    kind: str
    message: str
    advice: str
    exit_code: int


class Record(TypedDict):
    """One line; manifest.schema.json says the same to other programs.

    output: of a failed photo, where it would have gone, without hash and sizes. mask: the user's own. mask_share: of
    the pixels, in 0..1, those repaired as damage; null without a mask. changes: of each page.
    source_type: IPTC's DigitalSourceType. seconds: from reading to written, waiting for memory included, and `stages`
    of it. peak_memory_bytes: of the process so far, all photos in work; peak_device_memory_bytes: of the graphics card,
    for this photo.
    """

    version: int
    status: Literal["restored", "failed"]
    time: str
    input: FileFacts
    output: FileFacts
    mask: FileFacts | None
    saved_mask: FileFacts | None
    mask_share: float | None
    source_type: str | None
    options: dict[str, Any]
    model: ModelFacts | None
    faces: list[FaceFacts]
    changes: list[ChangeFacts]
    seconds: float
    stages: dict[str, float]
    peak_memory_bytes: int | None
    peak_device_memory_bytes: int | None
    versions: dict[str, str]
    warnings: list[str]
    error: ErrorFacts | None


@dataclass(frozen=True)
class Setting:
    """The settings that all photos of a run have in common.

    weights: sha256 by net. provenance: outputs say in XMP what was done to them. signed: they carry a C2PA manifest.
    """

    options: Options
    model_set: Literal["published", "compact"]
    weights: Mapping[str, str]
    device: str = "cpu"
    precision: str = "fp32"
    provenance: bool = True
    signed: bool = False

    def choices(self) -> dict[str, Any]:
        """Return the choices that show in the output, as JSON gives them back: lists, no tuples."""
        chosen = asdict(self.options) | {"provenance": self.provenance, "signed": self.signed}
        del chosen["max_memory"]
        return cast("dict[str, Any]", json.loads(json.dumps(chosen)))


@dataclass(frozen=True)
class Change:
    """A finding of `verify` about one file of a manifest: it is missing, or its content is not what the line says."""

    path: Path
    role: Role
    what: Difference


class Manifest:
    """A manifest open for writing, from one or more threads of one process.

    path: made if it is not there, with its folder. resume: go on with what is there, a torn last line cut off first.
    overwrite: replace what is there, if it is a manifest. Raises RefusedOverwriteError where neither is allowed,
    FileAccessError where the file cannot be read or written.
    """

    def __init__(self, path: Path, *, resume: bool = False, overwrite: bool = False) -> None:
        self.path = path
        self._folder = absolute(path).parent
        self._lock = threading.Lock()
        self._waiting = b""
        with _file_errors("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            there = exists(path) and path.stat().st_size > 0
        if there and not (resume or overwrite):
            advice = "use --resume to go on with it, --overwrite or another name"
            raise RefusedOverwriteError(f"the manifest {path} exists", advice)
        if there:
            _check_start(path)
        with _file_errors("write", path):
            self._handle = path.open("ab", buffering=0)
            _lock_alone(self._handle, path)
            self._size = _mended(path) if resume else 0
            self._handle.truncate(self._size)

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):
            self._write(b"")
        self._handle.close()

    def append(self, record: Record) -> None:
        """Add a line and wait until it is on the disk. Raises FileAccessError; what is there stays whole.

        The line of a failed photo waits for the next call instead: a disk that is full for a while loses none.
        """
        line = self._line(record)
        with self._lock:
            try:
                self._write(line)
            except OSError as error:
                if record["status"] != "failed":
                    raise _access_error("write", self.path, error) from error
                self._waiting += line

    def _write(self, line: bytes) -> None:
        data = self._waiting + line
        try:
            written = 0
            while written < len(data):
                written += os.write(self._handle.fileno(), data[written:])
            sync(self._handle)
        except OSError:
            # Half a line must not stay in front of the next one.
            self._handle.truncate(self._size)
            raise
        self._size += len(data)
        self._waiting = b""

    def _line(self, record: Record) -> bytes:
        line = copy.deepcopy(record)
        for facts in _files(line):
            path = absolute(facts["path"])
            below = path.is_relative_to(self._folder)
            facts["path"] = path.relative_to(self._folder).as_posix() if below else str(path)
        return json.dumps(line).encode() + b"\n"


def read(path: Path) -> list[Record]:
    """The lines of a manifest, all paths absolute or relative to the working folder as `path` is.

    Nothing of a line is believed before it fits manifest.schema.json. A last line that was cut short is left out.
    Raises FileAccessError if the file cannot be read or a line is none, and says why.
    """
    records: list[Record] = []
    shared: dict[str, Any] = {}
    number = 0
    with _file_errors("read", path), open_file(path) as handle:
        while line := handle.readline(LONGEST_LINE + 1):
            number += 1
            if not line.strip():
                continue
            try:
                record = _parsed(line)
            except ValueError as error:
                if not line.endswith(b"\n") and line.startswith(_START[: len(line)]) and len(line) <= LONGEST_LINE:
                    break
                text = f"line {number} of {path} is not a line of a manifest: {_short(error)}"
                raise FileAccessError(text, "give a file of --manifest") from error
            for facts in _files(record):
                facts["path"] = str(path.parent / facts["path"])
            # What most lines have in common is kept once: a batch may have a million.
            record["options"] = shared.setdefault(json.dumps(record["options"]), record["options"])
            record["versions"] = shared.setdefault(json.dumps(record["versions"]), record["versions"])
            record["model"] = shared.setdefault(json.dumps(record["model"]), record["model"])
            records.append(record)
    return records


def _check_start(path: Path) -> None:
    """Raise FileAccessError for a file that is no manifest, by its first line: such a file is never changed."""
    with _file_errors("read", path), open_file(path) as handle:
        line = handle.readline(LONGEST_LINE + 1)
    try:
        _parsed(line)
    except ValueError as error:
        if line.endswith(b"\n") or not line.startswith(_START[: len(line)]):
            text = f"line 1 of {path} is not a line of a manifest: {_short(error)}"
            raise FileAccessError(text, "give a file of --manifest") from error


def _short(error: ValueError) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:200]}..."


def last_lines(records: Iterable[Record]) -> dict[Path, Record]:
    """The line that counts for each photo, by the absolute path of its output."""
    return {absolute(record["output"]["path"]): record for record in records}


def verify(records: Iterable[Record]) -> Iterator[tuple[Record, list[Change]]]:
    """Hash the files of each restored photo again; the photo's last line counts. Failed photos are passed over."""
    for record in last_lines(records).values():
        if record["status"] == "restored":
            yield record, changes(record)


def changes(record: Record) -> list[Change]:
    """The files of one photo that are not what its line says."""
    found = []
    for role in ROLES:
        facts = record[role]
        if facts is not None and (what := difference(Path(facts["path"]), facts)) is not None:
            found.append(Change(Path(facts["path"]), role, what))
    return found


def difference(path: Path, facts: FileFacts) -> Difference | None:
    """Return how a file differs from what was written down of it; None if it does not."""
    try:
        return None if hash_file(path) == facts["sha256"] else "changed"
    except FileNotFoundError:
        return "missing"
    except OSError:
        return "unreadable"


def hash_file(path: Path) -> str:
    """The sha256 of a regular file, in lower-case hexadecimal. Raises OSError."""
    with open_file(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_facts(path: Path) -> FileFacts:
    """Path, hash and size in bytes of a file. Raises OSError."""
    return {"path": str(path), "sha256": hash_file(path), "bytes": path.stat().st_size}


def error_facts(error: Exception) -> ErrorFacts:
    """An error as it is told to programs."""
    advice, code = (error.advice, error.exit_code) if isinstance(error, OldphotoError) else ("", ExitCode.BUG)
    return {"kind": type(error).__name__, "message": str(error), "advice": advice, "exit_code": int(code)}


def absolute(path: Path | str) -> Path:
    """The absolute path of a file that need not exist; links stay what the user wrote.

    Raises FileAccessError for a relative path where the working folder is gone.
    """
    try:
        return Path(os.path.abspath(path))  # noqa: PTH100
    except FileNotFoundError as error:
        raise FileAccessError("the working folder is gone", "change to one that is there") from error


def now() -> str:
    """The time in UTC, as 2026-01-31T12:00:00Z."""
    return datetime.now(UTC).strftime(_TIME)


@cache
def versions() -> dict[str, str]:
    """oldphoto, Python, the system, and the installed packages that the result depends on; not to be changed."""
    from importlib.metadata import PackageNotFoundError, version  # a tenth of the time that `--help` may take

    found = {"oldphoto": __version__, "python": platform.python_version(), "system": platform.platform()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def peak_memory() -> int | None:
    """The most memory this process has held so far, in bytes; None where the system does not tell."""
    with suppress(OSError):  # On Linux getrusage begins with what the process that started this one held.
        status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
        if found := re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE):
            return int(found[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _parsed(line: bytes) -> Record:
    """A line that is one by the schema. Raises ValueError."""
    try:
        value = json.loads(
            line,
            parse_int=_moderate,
            parse_float=_finite,
            parse_constant=_finite,
            object_pairs_hook=lambda pairs: {sys.intern(name): item for name, item in pairs},
        )
        if isinstance(value, dict) and isinstance(value.get("version"), int) and value["version"] > VERSION:
            raise ValueError("a later version of oldphoto wrote it")
        _schema()(value)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    record = cast("Record", value)
    datetime.strptime(record["time"], _TIME)
    for facts in _files(record):
        os.fsencode(facts["path"])  # half a pair of surrogates stands for no byte
    return record


@cache
def _schema() -> Callable[[object], object]:
    import fastjsonschema  # here, since a run without an earlier manifest has no use for it

    check: Callable[[object], object] = fastjsonschema.compile(json.loads(SCHEMA.read_text(encoding="utf-8")))
    return check


def _moderate(text: str) -> int:
    if len(text) > 19:
        raise ValueError(f"the number {text[:20]}... is none that was measured")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number that was measured")
    return number


def _files(record: Record) -> Iterator[FileFacts]:
    return (facts for role in ROLES if (facts := record[role]) is not None)


def _lock_alone(handle: IO[bytes], path: Path) -> None:
    """Keep other runs out until the file is closed: two of them would cut off each other's lines."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        handle.close()
        advice = "wait for it, or give each run its own manifest"
        raise FileAccessError(f"another run is writing the manifest {path}", advice) from error


def _mended(path: Path) -> int:
    """The size of a manifest without a last line that was cut short; a whole one that lacks its end gets it."""
    data = read_file(path)
    end = data.rfind(b"\n") + 1
    try:
        _parsed(data[end:])
    except ValueError:
        return end
    with path.open("ab") as handle:
        handle.write(b"\n")
    return len(data) + 1


@contextmanager
def _file_errors(verb: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _access_error(verb, path, error) from error


def _access_error(verb: str, path: Path, error: OSError) -> FileAccessError:
    advice = "free some space, or keep the manifest elsewhere" if error.errno == errno.ENOSPC else "check the path"
    return FileAccessError(f"cannot {verb} the manifest {path}: {error.strerror or error}", advice)
