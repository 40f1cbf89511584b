"""One page of a run, to look at: each photo before and after, what was done to it, and what went wrong.

The page is one HTML file that asks nothing of any network, and its own policy holds the browser to that. It is made
from the same records as a manifest. It grows photo by photo beside its target, as NAME.part.html: a batch of any size
takes no memory, and a run that is killed leaves a page that opens. `close` adds the totals and moves it into place.
"""

from __future__ import annotations

import os
import shutil
from base64 import b64encode
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal
from unicodedata import category
from urllib.parse import quote

from oldphoto import __version__
from oldphoto.errors import BadImageError, FileAccessError, NoInputError, RefusedOverwriteError
from oldphoto.files.image import hidden_name, remove_parts
from oldphoto.machine.disk import exists, open_file, sync
from oldphoto.records.manifest import FaceFacts, FileFacts, Record, changes, last_lines
from oldphoto.records.pictures import Look, look_at_files
from oldphoto.stages import STAGES
from oldphoto.stages.changes import words_for

if TYPE_CHECKING:
    from jinja2.environment import TemplateModule

State = Literal["restored", "failed", "skipped"]

# Bytes of pictures that a browser takes in its stride on one page, of a photo in a small batch, and of a photo in a
# large one: with less there is little to see, so that the page of more than 1,000 photos grows instead.
PAGE_ROOM, MOST_ROOM, LEAST_ROOM = 60_000_000, 400_000, 60_000

_MARK = b'<meta name="generator" content="oldphoto '


class Page:
    """A page open for writing.

    path: the page. photos: how many it will show, which settles how large their pictures can be; None if nobody knows.
    overwrite: replace what is there, if it is such a page. Raises RefusedOverwriteError, FileAccessError.
    A photo that cannot be added, since the disk is full for a while, is left out; `close` then says so.
    """

    def __init__(self, path: Path, *, photos: int | None = None, overwrite: bool = False) -> None:
        self.path = path
        self.part = path.with_name(f"{path.stem}.part.html")
        self.room = LEAST_ROOM if photos is None else max(LEAST_ROOM, min(MOST_ROOM, PAGE_ROOM // max(photos, 1)))
        self._totals = _Totals()
        self._error: OSError | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_parts(path)
            for there in (path, self.part):
                _refuse(there, overwrite)
            self._handle: BinaryIO = self.part.open("wb")
            unfinished = "This page is still being written, or the run was cut off: the photos below are done."
            self._write(_opening(self._totals, unfinished))
        except OSError as error:
            raise _access_error(path, error) from error
        self._start = self._handle.tell()

    def __enter__(self) -> Page:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._handle.closed:
            return
        if kind is not None and not self._totals.photos:
            self._handle.close()
            self.part.unlink(missing_ok=True)
        else:
            self.close(None if kind is None else "The run ended early: the photos below are done.")

    def add(self, record: Record, look: Look | None = None, state: State | None = None) -> None:
        """Show a photo. Its look is made with `room` bytes; None shows no picture. state: if not the record's own."""
        totals = self._totals
        if self._error is None:
            end = self._handle.tell()
            try:
                self._write(_photo(totals.photos + 1, record, look, state or record["status"], self.path.parent))
            except OSError as error:
                self._error = error
                with suppress(OSError):
                    self._handle.truncate(end)
                    self._handle.seek(end)
                return
            totals.count(record, look, state or record["status"])

    def close(self, problem: str | None = None) -> None:
        """Put the page in its place, with the totals above the photos. problem: a line on how the run ended, if badly.

        Raises FileAccessError where not all of it could be written.
        """
        self._handle.close()
        final = hidden_name(self.path)
        try:
            if self._error is not None:
                raise self._error
            with final.open("xb") as page, self.part.open("rb") as photos:
                page.write(_opening(self._totals, problem).encode(errors="backslashreplace"))
                photos.seek(self._start)
                shutil.copyfileobj(photos, page, 1 << 20)
                page.write(_closing(self._totals).encode())
                sync(page)
            final.replace(self.path)
        except OSError as error:
            raise _access_error(self.path, error) from error
        finally:
            final.unlink(missing_ok=True)
        self.part.unlink(missing_ok=True)

    def _write(self, text: str) -> None:
        # A file name that is no UTF-8 is shown with escapes.
        self._handle.write(text.encode(errors="backslashreplace"))
        self._handle.flush()


def write_report(path: Path, records: Iterable[Record], *, overwrite: bool = False) -> int:
    """Make the page of a manifest's records from the files they name, and return the number of photos on it.

    The last line counts for each photo. A photo without files that can be shown is there without a picture, and a file
    that is not what its line says is told of. Raises NoInputError where there is no record, RefusedOverwriteError,
    FileAccessError.
    """
    last = last_lines(records)
    if not last:
        raise NoInputError("the manifest has no photo", "give a file of --manifest")
    with Page(path, photos=len(last), overwrite=overwrite) as report:
        for record in last.values():
            report.add(*seen(record, report.room))
    return len(last)


def seen(record: Record, room: int) -> tuple[Record, Look | None]:
    """A photo's look from its files, and its record with warnings of what is not as it was; no look if it failed."""
    if record["error"] is not None:
        return record, None
    found = changes(record) if record["status"] == "restored" else []
    warnings = [f"the {change.role.replace('_', ' ')} is {change.what} since: {change.path.name}" for change in found]
    masks = [facts["path"] for facts in (record["saved_mask"], record["mask"]) if facts is not None]
    mask = next((path for path in masks if exists(path)), None)
    look = None
    try:
        look = look_at_files(record["input"]["path"], record["output"]["path"], mask, room=room)
    except (BadImageError, FileAccessError, ValueError) as error:
        if not found:
            warnings.append(f"no picture: {error}")
    return {**record, "warnings": [*record["warnings"], *warnings]}, look


class _Totals:
    """The figures of all photos together, for the top of the page."""

    def __init__(self) -> None:
        self.photos = self.warned = self.faces = self.masks = 0
        self.states: dict[State, int] = {"restored": 0, "failed": 0, "skipped": 0}
        self.seconds = 0.0
        self.days: set[str] = set()
        self.settings: dict[str, dict[str, None]] = {}
        self.weights: dict[tuple[str, str], None] = {}

    def count(self, record: Record, look: Look | None, state: State) -> None:
        self.photos += 1
        self.states[state] += 1
        self.warned += bool(record["warnings"])
        self.faces += bool(look and record["faces"])
        self.masks += bool(look and look.mask)
        self.seconds += record["seconds"]
        if record["time"]:
            self.days.add(record["time"][:10])
        model = record["model"]
        if model is None:
            return
        versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
        told = {
            "Model": f"{model['set']} weights, {model['precision']}, on {model['device']}",
            "Options": _options(record["options"]),
            "Versions": versions,
        }
        for name, value in told.items():
            self.settings.setdefault(name, {})[value] = None
        for item in model["weights"].items():
            self.weights[item] = None

    def page(self, problem: str | None) -> dict[str, Any]:
        """Return the values that the template needs."""
        headline = f"{self.photos:,} {'photo' if self.photos == 1 else 'photos'}"
        there = {state: count for state, count in self.states.items() if count}
        if len(there) == 1:
            headline += f" {next(iter(there))}"
        elif there:
            headline += ": " + ", ".join(f"{count:,} {state}" for state, count in there.items())
        days = [_day(day) for day in sorted(self.days)]
        facts = [(name, "; ".join(values)) for name, values in self.settings.items()]
        states: list[tuple[str, str, int]] = [("all", "All", self.photos)]
        states += [(state, state.capitalize(), count) for state, count in there.items()] if len(there) > 1 else []
        if self.warned:
            states.append(("warned", "With notes", self.warned))
        return {
            "version": __version__,
            "headline": headline,
            "date": "" if not days else days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}",
            "problem": problem,
            "photos": self.photos,
            "faces": self.faces,
            "masks": self.masks,
            "states": states,
            "facts": [*facts, ("Time", _duration(self.seconds))] if facts else [],
            "weights": sorted(self.weights),
        }


def _opening(totals: _Totals, problem: str | None) -> str:
    style, script = _asset("report.css"), _asset("report.js")
    return _piece("opening", totals.page(problem), style, _policy_hash(style), _policy_hash(script))


def _closing(totals: _Totals) -> str:
    return _piece("closing", totals.page(None), _asset("report.js"))


def _photo(number: int, record: Record, look: Look | None, state: State, folder: Path) -> str:
    size = record["input"].get("width"), record["input"].get("height")
    faces = record["faces"] if look is not None and None not in size else []
    it = {
        "number": number,
        "state": state,
        "name": Path(record["input"]["path"]).name,
        "seconds": record["seconds"],
        "share": record["mask_share"] or 0,
        "summary": _summary(record, state),
        "warnings": record["warnings"],
        "error": record["error"],
        "look": look,
        "before": look and _data_uri("webp", look.before),
        "after": look and _data_uri("webp", look.after),
        "mask": look and look.mask and _data_uri("png", look.mask),
        "size": size,
        "faces": [{"number": face["number"], "box": face["box"]} for face in faces],
        "details": _details(record, folder),
    }
    return _piece("photo", it)


def _summary(record: Record, state: State) -> str:
    """The line below a photo's name."""
    facts = record["input"]
    width, height = facts.get("width"), facts.get("height")
    parts = [f"{width:,} \u00d7 {height:,} pixels"] if width and height else []
    if state == "skipped":
        return ", ".join([*parts, "skipped, since its output exists"])
    if state == "restored":
        if record["mask_share"] is not None:
            parts.append(f"{_percent(record['mask_share'])} repaired")
        if record["options"].get("faces"):
            count = len(record["faces"])
            parts.append("no face found" if not count else "1 face" if count == 1 else f"{count} faces")
        parts.append(_duration(record["seconds"]))
    return ", ".join(parts)


def _details(record: Record, folder: Path) -> list[tuple[str, str, str | None]]:
    """(name, value, link) rows."""
    rows: list[tuple[str, str, str | None]] = []
    files: tuple[tuple[str, FileFacts | None], ...] = (
        ("Scan", record["input"]),
        ("Restored", record["output"]),
        ("Mask given", record["mask"]),
        ("Mask saved", record["saved_mask"]),
    )
    for name, facts in files:
        if facts is None:
            continue
        # Of what was not written there is nothing to link to.
        written = facts["sha256"] is not None or exists(facts["path"])
        rows.append((name, facts["path"], _link(facts["path"], folder) if written else None))
        told = [f"{facts['bytes']:,} bytes"] if facts["bytes"] is not None else []
        told += [str(facts["format"])] if facts.get("format") else []
        if facts["sha256"] is not None:
            told.append(f"sha256 {facts['sha256']}")
        if told:
            rows.append(("", ", ".join(told), None))
    if record["faces"]:
        rows.append(("Faces", "; ".join(_face(face) for face in record["faces"]), None))
    for change in record["changes"]:
        rows += [(name, text, None) for stage in STAGES for name, text in stage.words(change)]
    if record["source_type"]:
        rows.append(("Source type", record["source_type"], None))
    if record["stages"]:
        rows.append(("Time", ", ".join(f"{name} {_duration(took)}" for name, took in record["stages"].items()), None))
    if record["peak_memory_bytes"]:
        rows.append(("Memory", f"{record['peak_memory_bytes'] / 1e6:,.0f} MB at most", None))
    if record["model"] is not None:
        model = record["model"]
        rows.append(("Model", f"{model['set']} weights, {model['precision']}, on {model['device']}", None))
    if record["options"]:
        rows.append(("Options", _options(record["options"]), None))
    return rows


def _face(face: FaceFacts) -> str:
    kept = "left as it was" if face["kept"] is None else f"kept {words_for(face['kept'])}"
    return f"{face['number']}: score {face['score']:.2f}, {kept}"


def _options(options: dict[str, Any]) -> str:
    told = {name: value for name, value in options.items() if value is not None and value != []}
    return ", ".join(f"{name.replace('_', ' ')}: {_said(value)}" for name, value in told.items())


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _percent(share: float) -> str:
    return "nothing" if share == 0 else "under 0.1 %" if share < 0.001 else f"{share * 100:.1f} %"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return (f"{seconds:.1f} s" if seconds < 9.95 else text).replace(" ", "\u00a0")


def _day(text: str) -> str:
    day = datetime.strptime(text, "%Y-%m-%d")
    return f"{day.day} {day:%B %Y}"


def _link(path: str, folder: Path) -> str | None:
    """Return the link to a file from the page's folder; None on another drive."""
    try:
        relative = os.path.relpath(path, folder)
    except ValueError:
        return None
    # Quoted with its colons, so that no name reads as javascript: or another scheme.
    return quote(os.fsencode(Path(relative).as_posix()))


def _data_uri(kind: Literal["webp", "png"], data: bytes) -> str:
    return f"data:image/{kind};base64,{b64encode(data).decode()}"


def _policy_hash(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


@cache
def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


@cache
def _pieces() -> TemplateModule:
    # Here, since a run without a page has no use for it.
    from jinja2 import Environment, StrictUndefined

    def printable(value: object) -> object:
        """Control characters and undecodable bytes, as file names may have, become escapes."""
        if not isinstance(value, str) or hasattr(value, "__html__") or value.isprintable():
            return value
        plain = (c.isprintable() or category(c) == "Zs" for c in value)  # str.isprintable means ASCII's space alone
        return "".join(
            c if keep else c.encode("unicode_escape", "surrogatepass").decode()
            for c, keep in zip(value, plain, strict=True)
        )

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=printable, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_asset("report.html")).module


def _piece(name: str, *values: object) -> str:
    return str(getattr(_pieces(), name)(*values))


def _refuse(path: Path, overwrite: bool) -> None:
    """Raise RefusedOverwriteError if `path` exists, unless it may be replaced and is a page of ours."""
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise RefusedOverwriteError(f"the report {path} exists", "use --overwrite or another name")
    with open_file(path) as page:
        start = page.read(2000)
        # What a run that was killed had only begun to write is no more than the beginning of a page.
        if start.find(_MARK) < 0 and not _opening(_Totals(), None).encode().startswith(start):
            raise RefusedOverwriteError(f"{path} is no report of oldphoto", "use another name")


def _access_error(path: Path, error: OSError) -> FileAccessError:
    return FileAccessError(f"cannot write the report {path}: {error.strerror or error}", "check the path and the disk")
