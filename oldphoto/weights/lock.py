"""weights.lock: every weight file, its sha256, and the hosts that have it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from oldphoto.errors import WeightsCorruptError
from oldphoto.machine.disk import open_file
from oldphoto.weights.sets import SetName

Kind = Literal["hub", "zip", "bz2", "file", "python"]

COMPACT_FOLDER = "compact"
COMPACT_MARK = "# ---- compact:"
COMPACT_LICENCE = "MIT"
CNN_DETECTOR = "cnn_detector"

PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Source:
    """A place where a file can be had.

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


# Called with (file, bytes done, bytes in all or None). The count goes back when a transfer starts again.
Progress = Callable[[WeightFile, int, int | None], None]


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
    if not all(re.fullmatch("[0-9a-f]{64}", each) for each in file.hashes) or unsafe(file.path):
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
            sha256=hash_of(weights),
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


def hash_of(path: Path) -> str:
    """The sha256 of a file, read in chunks."""
    with open_file(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def corrupt(
    file: WeightFile, path: Path | str, found: str, advice: str, expected: str | None = None
) -> WeightsCorruptError:
    """Make the error for a file whose sha256 is `found`. expected: instead of the lock's."""
    if file.confidence in ("B", "C"):
        advice += f"; this hash rests on one party (confidence {file.confidence}): please report both if it persists"
    right = expected or file.sha256
    return WeightsCorruptError(f"{path} is wrong: sha256 {found}, weights.lock says {right}", advice)


def one_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def unsafe(name: str) -> str:
    """Why a member's name could lead out of a folder, or ""."""
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        return "an absolute path"
    return "a path with `..`" if ".." in PurePosixPath(name).parts else ""
