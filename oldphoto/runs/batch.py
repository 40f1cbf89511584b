"""Planned photos -> restore each, several at once -> summary.

Nothing here knows a network: `run` is given the function that restores one photo.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
from numpy.typing import NDArray

from oldphoto import __version__
from oldphoto.errors import (
    ExitCode,
    FileAccessError,
    OldphotoError,
    UsageError,
    WeightsCorruptError,
    WeightsUnavailableError,
)
from oldphoto.files.colour import to_srgb
from oldphoto.files.image import (
    DEFAULT_MAX_PIXELS,
    Photo,
    hidden_name,
    not_held,
    output_format,
    read_pages,
    read_photo,
    remove_parts,
    write_pages,
    write_photo,
    writing_bytes,
)
from oldphoto.files.masks import read_mask, write_masks
from oldphoto.files.photo import Format
from oldphoto.machine.disk import exists
from oldphoto.machine.memory import admit_reading, foresee_writing, limit, line, out_of_memory, ran_out
from oldphoto.machine.workers import Flight
from oldphoto.options import Options
from oldphoto.records.manifest import (
    VERSION,
    ChangeFacts,
    FaceFacts,
    FileFacts,
    ModelFacts,
    Record,
    Role,
    Setting,
    absolute,
    difference,
    error_facts,
    file_facts,
    hash_file,
    now,
    peak_memory,
    versions,
)
from oldphoto.records.pictures import Look, look_at, write_comparison
from oldphoto.records.xmp import ENHANCED, GENERATED, Step, merged
from oldphoto.runs.planning import Plan, Planned
from oldphoto.stages import needed_nets
from oldphoto.stages.faces import Detector, FoundFace, detect_faces, draw_faces

if TYPE_CHECKING:
    from oldphoto.models.loaded import Models
    from oldphoto.pipeline import Restoration
    from oldphoto.stages.faces import Face

# More than this share of a photo is seldom scratched.
MUCH_DAMAGE = 0.1
_TO_TIFF = "write a .tif file, which holds them all"
RestoreOne = Callable[[Photo, NDArray[np.bool_] | None], "Restoration"]


@dataclass(frozen=True)
class Work:
    """What restores photos once weights are loaded.

    restore: one photo, which is read at the head of memory.line and leaves it as soon as it is admitted.
    setting: what the run's records say of options and weights.
    device_memory: the most memory, in bytes, that the graphics card has held since it was last asked.
    places: so many photos may be in work at once, each in a thread of its own, which calls `share` with how many are;
    the thread of the run calls it in the end, with 1.
    """

    restore: RestoreOne
    setting: Setting
    device_memory: Callable[[], int | None] = lambda: None
    places: int = 1
    share: Callable[[int], None] = lambda at_once: None


def work_with(
    models: Models,
    options: Options,
    *,
    provenance: bool = True,
    signed: bool = False,
    tell: Callable[[str], None] | None = None,
    jobs: int | None = None,
) -> Work:
    """What restores photos with these networks; provenance and signed as in Setting.

    tell: is told beforehand how each photo is translated, and what memory and disk that takes.
    jobs: how many photos are in work at once, as in Models.places.
    """
    import torch

    from oldphoto.machine import threads
    from oldphoto.pipeline import case_of, plan, restore

    names = models.weight_set
    setting = Setting(
        *(options, names.name, names.hashes, str(models.device), models.precision),
        provenance=provenance,
        signed=signed,
    )

    def restore_one(photo: Photo, mask: NDArray[np.bool_] | None) -> Restoration:
        if tell is not None:
            way = plan(case_of(photo, models, options, has_mask=mask is not None), models)
            tell(f"translating {photo.width} x {photo.height} pixels {way}")
        return restore(photo, models, options, mask)

    share = partial(threads.share, torch.get_num_threads())
    return Work(restore_one, setting, models.peak_memory, models.places(jobs), share)


@dataclass(frozen=True)
class Outcome:
    """What became of one photo: `record` is its line of the manifest, `error` None if it was restored and written.

    look: for a page to look at, if that was asked for.
    beside: files that belong to it, each as (its hidden name, its own), where the caller is to place them.
    """

    planned: Planned
    record: Record
    error: Exception | None = None
    look: Look | None = None
    beside: tuple[tuple[Path, Path], ...] = ()

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) in pixels, None if it could not be read."""
        width, height = self.record["input"].get("width"), self.record["input"].get("height")
        return None if width is None or height is None else (width, height)


@dataclass(frozen=True)
class Summary:
    """The outcomes so far, and whether Ctrl-C ended the run early."""

    outcomes: tuple[Outcome, ...]
    interrupted: bool

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """The photos that were not written."""
        return tuple(outcome for outcome in self.outcomes if outcome.error is not None)

    @property
    def exit_code(self) -> ExitCode:
        """DONE, SOME_FAILED or INTERRUPTED; a single-file run reports its photo's own error instead."""
        if self.interrupted:
            return ExitCode.INTERRUPTED
        return ExitCode.SOME_FAILED if self.failed else ExitCode.DONE


@dataclass(frozen=True)
class Listing:
    """The faces of one photo, by number from 1; or why they cannot be told. size: (width, height) in pixels."""

    planned: Planned
    faces: tuple[FoundFace, ...] = ()
    size: tuple[int, int] | None = None
    error: OldphotoError | None = None


def list_faces(
    photos: Iterable[Planned],
    *,
    draw: bool,
    detector: Detector | None = None,
    max_pixels: int | None = DEFAULT_MAX_PIXELS,
) -> Iterator[Listing]:
    """The faces of each photo; with `draw`, each photo's target shows them, numbered, in 8 bits."""
    for planned in photos:
        try:
            if planned.problem is not None:
                raise planned.problem
            photo = read_photo(planned.source, max_pixels=max_pixels)
            seen = to_srgb(photo.pixels, photo.icc)
            found = detect_faces(seen, detector)
            if draw:
                _make_folder(planned.target.parent)
                write_photo(Photo.from_array(draw_faces(seen, found)), planned.target)
            yield Listing(planned, tuple(found), (photo.width, photo.height))
        except OldphotoError as error:
            yield Listing(planned, error=error)


def resume(
    plan: Plan,
    records: Mapping[Path, Record],
    setting: Setting,
    on_stale: Callable[[Planned, str], None] = lambda photo, reason: None,
) -> Plan:
    """The plan without the photos that an earlier run has done, as its records say and the files still prove.

    A photo is done if its input, mask, options and weights are those of its record, its output and saved mask are as
    they were written, and its comparison is there. on_stale: is told why a photo that was restored before is to be done
    again. What a killed process left half written is removed.
    """
    waiting, done = [], []
    for photo in plan.photos:
        record = records.get(absolute(photo.target))
        if record is None or record["status"] != "restored" or photo.problem is not None:
            waiting.append(photo)
        elif (reason := stale(photo, record, setting)) is not None:
            waiting.append(photo)
            on_stale(photo, reason)
        else:
            done.append(photo)
    remove_left_over(waiting)
    return replace(plan, photos=tuple(waiting), skipped=(*plan.skipped, *done))


def stale(photo: Planned, record: Record, setting: Setting) -> str | None:
    """Why a photo that its record calls restored is to be restored again, or None."""
    if record["options"] != setting.choices():
        return "the options are others"
    size = record["input"].get("width") or 0, record["input"].get("height") or 0
    model = _model_facts(setting, size, photo.mask is not None)
    if record["model"] is None or {**record["model"], "device": setting.device} != model:
        return "the weights are others"
    files: tuple[tuple[Role, Path | None], ...] = (
        ("input", photo.source),
        ("mask", photo.mask),
        ("saved_mask", photo.mask_target),
        ("output", photo.target),
    )
    for role, path in files:
        facts = record[role]
        if path is None and (facts is None or role == "saved_mask"):
            continue
        what = "not the same" if path is None or facts is None else difference(path, facts)
        if what is not None:
            return f"its {role.replace('_', ' ')} is {what}"
    if photo.comparison is not None and not exists(photo.comparison):
        return "its comparison is missing"
    return None


def run(
    photos: Iterable[Planned | None],
    load: Callable[[], Work],
    *,
    max_pixels: int | None = DEFAULT_MAX_PIXELS,
    look_room: int | None = None,
    keep: Callable[[Record], None] | None = None,
    sign: Callable[[Path, Record], None] | None = None,
    on_start: Callable[[Planned], None] = lambda planned: None,
    on_done: Callable[[Outcome], None] = lambda outcome: None,
) -> Summary:
    """Restore the photos, as many at once as the work has places; one that fails is recorded and the others go on.

    photos: are taken one by one, when there is a place for them. None says that no more have arrived yet; it is asked
        again after a moment.
    load: gives what restores photos. It is called once, and only if there is a photo to try, so that a run with nothing
        to do fetches and loads no weights. Its errors end the run.
    max_pixels: as in read_photo.
    look_room: `on_done` is given each restored photo's look, made with so many bytes; None makes none.
    keep: takes each photo's record: of a restored one before its output takes its name, so that no output is without.
        It is called by the threads that restore.
    sign: is given each finished output, under a temporary name, to sign it in place; called by these threads, too.
    on_start, on_done: are called by the thread of the run; on_done, as the outcomes are, in the order in which photos
        are done, which is their own where one is in work at a time.
    Ctrl-C ends the run between two whole files. Weights that are missing or damaged end it with their error, since no
    other photo could do better.
    """
    outcomes: list[Outcome] = []
    work: Work | None = None
    coming = iter(photos)
    flying: set[Planned] = set()
    flight = Flight[Outcome]()

    def keep_unless_stopped(record: Record) -> None:
        if flight.stopped:  # left behind by a run that has ended
            raise KeyboardInterrupt
        if keep is not None:
            keep(record)

    def restored(planned: Planned, work: Work, at_once: int) -> Outcome:
        work.share(at_once)
        return restore_file(planned, work, max_pixels, look_room, keep_unless_stopped, sign)

    def done(outcome: Outcome) -> None:
        flying.discard(outcome.planned)
        if outcome.error is not None and keep is not None:
            keep(outcome.record)
        outcomes.append(replace(outcome, look=None))  # all of them would fill the memory
        on_done(outcome)

    all_here = interrupted = False
    try:
        while flight.busy or not all_here:
            ready: list[Planned] = []
            arrived = True
            while arrived and not all_here and flight.busy + len(ready) < (1 if work is None else work.places):
                try:
                    planned = next(coming)
                except StopIteration:
                    all_here = True
                    break
                if planned is None:
                    arrived = False
                elif planned.problem is not None:
                    done(failed(planned, planned.problem))
                else:
                    work = work or load()
                    ready.append(planned)
            at_once = flight.busy + len(ready)
            for planned in ready:
                assert work is not None
                on_start(planned)
                flying.add(planned)
                flight.start(partial(restored, planned, work, at_once))
            if (at_once or not arrived) and (outcome := flight.next()) is not None:
                done(outcome)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        for outcome in flight.stop():
            if outcome.error is None:  # else it may be the interrupt's doing
                done(outcome)
        remove_left_over(flying)
        if work is not None:
            work.share(1)
    return Summary(tuple(outcomes), interrupted)


def remove_left_over(photos: Iterable[Planned]) -> None:
    """Delete what a run that was cut off has left of these photos under hidden names."""
    targets = [(photo.target, photo.mask_target, photo.comparison, photo.faces_target) for photo in photos]
    remove_parts(*(target for each in targets for target in each if target is not None))


class _Beside:
    """The files that go beside an output: hidden until the photo's line is written, so that none is without."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Path, Path]] = []

    def hidden(self, path: Path, like: Path | None = None) -> Path:
        """A hidden name to write the file at. like: the path that remove_left_over knows, if it is another."""
        part = hidden_name(like or path)
        self.waiting.append((part, path))
        return part

    def place(self) -> None:
        """Give each its own name. Raises OSError."""
        while self.waiting:
            part, path = self.waiting[0]
            part.replace(path)
            del self.waiting[0]

    def drop(self) -> None:
        """Delete those that have no name of their own."""
        for part, _ in self.waiting:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def restore_file(
    planned: Planned,
    work: Work,
    max_pixels: int | None,
    look_room: int | None = None,
    keep: Callable[[Record], None] | None = None,
    sign: Callable[[Path, Record], None] | None = None,
    *,
    place: bool = True,
) -> Outcome:
    """Read, restore and write one photo, page by page, and record what is found on the way. Otherwise as in `run`.

    place: give the files beside the output their names; else the outcome's `beside` tells the caller to.
    """
    record = blank_record(planned)
    beside = _Beside()
    started = time.perf_counter()
    size = None
    look: Look | None = None
    setting = work.setting
    record["options"] = setting.choices()

    stages: dict[str, float] = {}

    def spent(stage: str, since: float) -> None:
        stages[stage] = stages.get(stage, 0.0) + time.perf_counter() - since

    def finish(part: Path) -> None:
        if not planned.replaces and os.path.lexists(planned.target):
            raise FileExistsError
        if sign is not None:
            sign(part, record)
        record["output"] |= {"sha256": hash_file(part), "bytes": part.stat().st_size}
        record["stages"] = {stage: round(seconds, 3) for stage, seconds in stages.items()}
        record["seconds"] = round(time.perf_counter() - started, 3)
        record["peak_memory_bytes"] = peak_memory()
        record["peak_device_memory_bytes"] = work.device_memory()
        record["status"] = "restored"
        if keep is not None:
            keep(record)
        if place:
            beside.place()

    def restored() -> Iterator[Photo]:
        nonlocal size, look
        masks: list[NDArray[np.bool_]] = []
        damaged = pixels = 0
        reading = started
        admit = partial(admit_reading, setting.options.max_memory)
        for page, photo in enumerate(_read_whole(planned.source, record["input"], max_pixels, admit)):
            size, pages = (photo.width, photo.height), photo.metadata.pages
            mask = None
            if planned.mask is not None:
                mask = read_mask(planned.mask, size, page=page, pages=pages, admit=admit)
                record["mask"] = record["mask"] or file_facts(planned.mask)
            model = _model_facts(setting, size, mask is not None)
            earlier_weights = {} if record["model"] is None else record["model"]["weights"]
            record["model"] = {**model, "weights": earlier_weights | model["weights"]}
            # No minutes of work for what cannot be written in the end.
            shown = planned.comparison is not None or look_room is not None
            format, writing_takes = _written_as(photo, planned, record, setting.options, shown=shown)
            for target in (planned.target, planned.mask_target, planned.faces_target):
                if target is not None:
                    _make_folder(target.parent)
            spent("read", reading)
            result = work.restore(photo, mask)
            for stage, seconds in result.seconds.items():
                stages[stage] = stages.get(stage, 0.0) + seconds
            pixels += photo.width * photo.height
            damaged += 0 if result.mask is None else int(result.mask.sum())
            record["mask_share"] = None if result.mask is None else round(damaged / pixels, 6)
            earlier = len(record["faces"])
            record["faces"] += [_face_facts(face) for face in result.faces]
            record["changes"].append(cast("ChangeFacts", result.changes))
            found = () if planned.mask is not None or result.mask is None else _doubts(photo, result.mask)
            notes = (*result.warnings, *found)
            record["warnings"] += [f"page {page + 1}: {line}" if pages > 1 else line for line in notes]
            if page == 0:
                record["output"] |= {"format": format, "width": result.photo.width, "height": result.photo.height}
            if result.mask is not None and planned.mask_target is not None:
                masks.append(result.mask)
            if result.generated or record["source_type"] is None:
                record["source_type"] = GENERATED if result.generated else ENHANCED
            writing = time.perf_counter()
            with line.writing(writing_takes, limit(setting.options.max_memory)):
                # The photo is placed last: where the photo exists, all that belongs to it does.
                if planned.faces_target is not None:
                    for face in result.faces:
                        _write_crops(face, planned, earlier, beside)
                if page == 0:
                    if planned.comparison is not None:
                        write_comparison(photo, result.photo, beside.hidden(planned.comparison))
                    look = None if look_room is None else look_at(photo, result.photo, result.mask, room=look_room)
                source_type = GENERATED if result.generated else ENHANCED
                yield _marked(result.photo, planned.target, record, source_type) if setting.provenance else result.photo
            reading = time.perf_counter()
            spent("write", writing)
        if planned.mask_target is not None and masks:
            part = beside.hidden(planned.mask_target)
            write_masks(masks, part)
            record["saved_mask"] = {**file_facts(part), "path": str(planned.mask_target)}

    try:
        # Read at the head of the line, which it leaves once it is admitted: no more than one photo waits decoded.
        with line.reading():
            write_pages(
                restored(),
                planned.target,
                quality=setting.options.quality,
                before_move=finish,
                replace_file=planned.replaces,
            )
    except (WeightsUnavailableError, WeightsCorruptError):
        raise
    except Exception as error:
        # Even a bug costs one photo, not the rest of a long run; the caller shows it.
        record["seconds"] = round(time.perf_counter() - started, 3)
        return failed(planned, out_of_memory(size) if ran_out(error) else error, record)
    else:
        handed_out, beside.waiting = tuple(beside.waiting), []
        return Outcome(planned, record, look=look, beside=handed_out)
    finally:
        beside.drop()


def _written_as(photo: Photo, planned: Planned, record: Record, options: Options, *, shown: bool) -> tuple[Format, int]:
    """The format that a photo will be written in, and the bytes of memory that this takes beside the restored photo.

    What is lost is added to the record's warnings. shown: before and after are shown together, too. Raises UsageError
    and OutOfMemoryError where the photo could not be written.
    """
    format = output_format(photo, planned.target)
    record["warnings"] += [line for line in not_held(photo, format) if line not in record["warnings"]]
    if photo.metadata.pages > 1 and format != "TIFF":
        text = f"{planned.target.name}: {format} holds one picture, the photo has {photo.metadata.pages} pages"
        raise UsageError(text, _TO_TIFF)
    scale = options.upscale or 1
    takes = max(writing_bytes(photo, format, scale), _SHOWN * shown * photo.width * photo.height * scale * scale)
    foresee_writing(options.max_memory, photo.pixels.nbytes * scale * scale + takes, format)
    return format, takes


# Bytes for each pixel of a photo while it is made small, to be shown.
_SHOWN = 9


def _doubts(photo: Photo, mask: NDArray[np.bool_]) -> Iterator[str]:
    """What speaks against a mask (H, W) that was found: print and line drawings are taken for scratches."""
    sample = photo.pixels[::7, ::7].reshape(-1, 3)
    if len(np.unique(sample, axis=0)) == 2:
        yield "it has two colours alone: what looks like scratches may be what it shows; see --save-mask"
    elif (share := float(mask.mean())) > MUCH_DAMAGE:
        yield f"{share:.0%} of it was taken for scratches and filled; see --save-mask and --scratch-threshold"


def _write_crops(face: Face, planned: Planned, earlier: int, beside: _Beside) -> None:
    """The crops of an enhanced face, numbered on from the `earlier` faces of the file's other pages."""
    if face.after is not None:
        number = earlier + face.number
        after = np.clip(np.rint(face.after), 0, 255).astype(np.uint8)
        sides: dict[Literal["before", "after"], NDArray[np.uint8]] = {"before": face.before, "after": after}
        for side, pixels in sides.items():
            part = beside.hidden(planned.face_crop(number, side), planned.faces_target)
            write_photo(Photo.from_array(pixels), part, format="png")


def _read_whole(path: Path, facts: FileFacts, max_pixels: int | None, admit: Callable[[int], None]) -> Iterator[Photo]:
    """The photos of a file, and in `facts` what the file was; an error if the file changes meanwhile."""
    before = stamp(path)
    with suppress(OSError):  # read_pages says better what is wrong with the file
        facts.update(file_facts(path))
    for page, photo in enumerate(read_pages(path, max_pixels=max_pixels, admit=admit)):
        if before is None or facts["sha256"] is None or stamp(path) != before:
            raise FileAccessError(f"{path} changed while it was read", "restore it again when it is whole")
        if page == 0:
            facts.update({"format": photo.metadata.format, "width": photo.width, "height": photo.height})
        yield photo


def _marked(photo: Photo, target: Path, record: Record, source_type: str) -> Photo:
    """The photo with what was done to it added to its XMP; as it is, with a warning, where that cannot be."""
    model = record["model"]
    assert model is not None
    weights = ", ".join(f"{net} sha256 {sha256}" for net, sha256 in model["weights"].items())
    did = f"{model['set']} weights in {model['precision']}: {weights}; options {json.dumps(record['options'])}"
    try:
        step = Step(record["time"], f"oldphoto {__version__}", did)
        marked = photo.with_xmp(merged(photo.metadata.xmp, source_type, step))
        output_format(marked, target)
    except (ValueError, UsageError) as error:
        record["warnings"].append(f"its XMP stays as it was, without a note of what was done: {error}")
        return photo
    return marked


def stamp(path: Path) -> tuple[int, ...] | None:
    """What changes when a file's content does, as far as the file system tells; None if the file cannot be seen."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


def _model_facts(setting: Setting, size: tuple[int, int], has_mask: bool) -> ModelFacts:
    nets = needed_nets(setting.model_set, setting.options, setting.options.large(*size), has_mask)
    used = {net: setting.weights[net] for net in nets if net in setting.weights}
    return {"set": setting.model_set, "precision": setting.precision, "device": setting.device, "weights": used}


def _face_facts(face: Face) -> FaceFacts:
    return {
        "number": face.number,
        "box": [round(float(edge), 1) for edge in face.box],
        "score": round(float(face.score), 3),
        "kept": None if face.kept is None else [*face.kept.shares],
    }


def blank_record(planned: Planned) -> Record:
    """The record of a photo to which nothing has been done yet."""
    return {
        "version": VERSION,
        "status": "failed",
        "time": now(),
        "input": {"path": str(planned.source), "sha256": None, "bytes": None},
        "output": {"path": str(planned.target), "sha256": None, "bytes": None},
        "mask": None,
        "saved_mask": None,
        "mask_share": None,
        "source_type": None,
        "options": {},
        "model": None,
        "faces": [],
        "changes": [],
        "seconds": 0.0,
        "stages": {},
        "peak_memory_bytes": None,
        "peak_device_memory_bytes": None,
        "versions": versions(),
        "warnings": [],
        "error": None,
    }


def failed(planned: Planned, error: Exception, record: Record | None = None) -> Outcome:
    """The outcome of a photo that was not written. record: what was found before that."""
    output: FileFacts = {"path": str(planned.target), "sha256": None, "bytes": None}
    known = record or blank_record(planned)
    return Outcome(planned, {**known, "status": "failed", "output": output, "error": error_facts(error)}, error)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileAccessError(f"cannot make the folder {folder}: {error.strerror}", "check the output path") from error
    if not os.access(folder, os.W_OK):
        raise FileAccessError(f"cannot write in the folder {folder}", "check its permissions")
