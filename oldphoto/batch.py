"""Inputs -> planned outputs, every collision refused before any work -> restore each, several at once -> summary.

Nothing here knows a network: `run` is given the function that restores one photo.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oldphoto import __version__
from oldphoto.colour import to_srgb
from oldphoto.compare import Look, look_at, write_comparison
from oldphoto.errors import (
    ExitCode,
    FileAccessError,
    NoInputError,
    OldphotoError,
    RefusedOverwriteError,
    UsageError,
    WeightsCorruptError,
    WeightsUnavailableError,
)
from oldphoto.faces import Detection, Detector, detect_faces, draw_faces
from oldphoto.flight import Flight
from oldphoto.image import (
    DEFAULT_MAX_PIXELS,
    PHOTO_SUFFIXES,
    Photo,
    count_pages,
    format_suffix,
    output_format,
    read_mask,
    read_pages,
    read_photo,
    remove_parts,
    same_format,
    write_masks,
    write_pages,
    write_photo,
)
from oldphoto.manifest import (
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
from oldphoto.memory import line, out_of_memory, ran_out
from oldphoto.options import Options
from oldphoto.provenance import ENHANCED, GENERATED, Step, merged
from oldphoto.weights import needed_nets

if TYPE_CHECKING:
    from oldphoto.faces import Face
    from oldphoto.pipeline import Models, Restoration

Existing = Literal["refuse", "skip", "overwrite"]
FACE_CROP = re.compile(r"(?P<photo>.+)\.face\d+\.(before|after)\.png")
_TO_TIFF = "write a .tif file, which holds them all"
RestoreOne = Callable[[Photo, NDArray[np.bool_] | None], "Restoration"]


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
                unknown = {name for _, name, _, _ in Formatter().parse(self.template) if name is not None} - set(fields)
                stem = self.template.format(**fields) if not unknown else ""
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
    problem: why it cannot be done, known before work starts (no such file, no mask); it is reported, not restored.
    """

    source: Path
    target: Path
    mask: Path | None = None
    mask_target: Path | None = None
    faces_target: Path | None = None
    comparison: Path | None = None
    problem: OldphotoError | None = None

    def face_crop(self, number: int, side: Literal["before", "after"]) -> Path:
        """The file of one face crop."""
        assert self.faces_target is not None
        return self.faces_target.with_name(f"{self.faces_target.name}.face{number}.{side}.png")


@dataclass(frozen=True)
class Plan:
    """What a run will do: `photos` in order, `skipped` ones whose output exists, and the count of files passed over.

    single: the input was one file named in full, so that its error is the run's error.
    """

    photos: tuple[Planned, ...]
    skipped: tuple[Planned, ...]
    ignored: int
    single: bool


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

    from oldphoto import threads
    from oldphoto.pipeline import plan, restore

    names = models.weight_set
    setting = Setting(
        *(options, names.name, names.hashes, str(models.device), models.precision),
        provenance=provenance,
        signed=signed,
    )

    def restore_one(photo: Photo, mask: NDArray[np.bool_] | None) -> Restoration:
        if tell is not None:
            damaged = mask is not None or options.with_scratch
            way = plan((photo.width, photo.height), photo.depth, damaged, models, options)
            tell(f"translating {photo.width} x {photo.height} pixels {way}")
        return restore(photo, models, options, mask)

    share = partial(threads.share, torch.get_num_threads())
    return Work(restore_one, setting, models.peak_memory, models.places(jobs), share)


@dataclass(frozen=True)
class Outcome:
    """What became of one photo: `record` is its line of the manifest, `error` None if it was restored and written.

    look: for a page to look at, if that was asked for.
    """

    planned: Planned
    record: Record
    error: Exception | None = None
    look: Look | None = None

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

    Raises NoInputError if nothing matched, RefusedOverwriteError if an output would overwrite an input, a file that
    exists, or another output, UsageError if the output cannot be a file, FileAccessError if a folder cannot be read.
    """
    if masks is not None and not masks.exists():
        raise FileAccessError(f"there is no mask {masks}", "give a mask file or a folder of masks with --mask")
    out = Path(output)
    apart = [path for path in (out, masks, save_masks, save_faces) if path is not None]
    found, ignored = _find(inputs, listed, recursive, apart)
    single = len(inputs) == 1 and not listed and not _is_pattern(inputs[0]) and not Path(inputs[0]).is_dir()
    to_file = single and not _is_folder(output)
    if to_file and out.suffix.lower() not in PHOTO_SUFFIXES:
        raise UsageError(
            f"cannot write a photo as {out.name}",
            f"use one of {', '.join(sorted(PHOTO_SUFFIXES))}, or end the output with / to make it a folder",
        )
    if not to_file and out.exists() and not out.is_dir():
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
        photos.append(
            Planned(
                source=source,
                target=target,
                mask=mask,
                mask_target=None if save_masks is None else save_masks / folder / _mask_name(source),
                faces_target=None if save_faces is None else save_faces / folder / source.name,
                comparison=target.with_name(f"{target.name}.before-after.jpg") if compare else None,
                problem=problem,
            )
        )
    _refuse_collisions(photos)
    if shard is not None:
        photos = [photo for photo in photos if shard.holds(Path() if to_file else photo.target.relative_to(out))]
    skipped: list[Planned] = []
    if existing == "refuse":
        _refuse_existing(photos, records or {})
    elif existing == "skip":
        skipped = [photo for photo in photos if photo.problem is None and os.path.lexists(photo.target)]
        photos = [photo for photo in photos if photo.problem is not None or not os.path.lexists(photo.target)]
    return Plan(tuple(photos), tuple(skipped), ignored, single)


def find_photos(inputs: Sequence[str], *, recursive: bool = False) -> tuple[Planned, ...]:
    """The photos that the inputs of `plan` name, in order, as plans to read them and write nothing."""
    found, _ = _find(inputs, (), recursive, ())
    return tuple(Planned(source, source, problem=problem) for source, _, problem in found)


@dataclass(frozen=True)
class Listing:
    """The faces of one photo, by number from 1; or why they cannot be told. size: (width, height) in pixels."""

    planned: Planned
    faces: tuple[Detection, ...] = ()
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
        elif (reason := _stale(photo, record, setting)) is not None:
            waiting.append(photo)
            on_stale(photo, reason)
        else:
            done.append(photo)
    for photo in waiting:
        remove_parts(photo.target)
    return replace(plan, photos=tuple(waiting), skipped=(*plan.skipped, *done))


def _stale(photo: Planned, record: Record, setting: Setting) -> str | None:
    """Why a restored photo is to be done again, or None."""
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
    if photo.comparison is not None and not photo.comparison.exists():
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
        for planned in flying:
            _remove_parts(planned)
        if work is not None:
            work.share(1)
    return Summary(tuple(outcomes), interrupted)


def _remove_parts(planned: Planned) -> None:
    """What a photo that was interrupted may have left half written."""
    for target in (planned.target, planned.mask_target, planned.comparison):
        if target is not None:
            remove_parts(target)


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
            with Image.open(path) as picture:
                return picture.size
        except Image.DecompressionBombError:
            return (Image.MAX_IMAGE_PIXELS or 1) * 2, 1
        except Exception:
            return None  # a bad file has its error told when it is read


def restore_file(
    planned: Planned,
    work: Work,
    max_pixels: int | None,
    look_room: int | None = None,
    keep: Callable[[Record], None] | None = None,
    sign: Callable[[Path, Record], None] | None = None,
) -> Outcome:
    """Read, restore and write one photo, page by page, and record what is found on the way. Otherwise as in `run`."""
    record = blank_record(planned)
    started = time.perf_counter()
    size = None
    look: Look | None = None
    setting = work.setting
    record["options"] = setting.choices()

    stages: dict[str, float] = {}

    def spent(stage: str, since: float) -> None:
        stages[stage] = stages.get(stage, 0.0) + time.perf_counter() - since

    def finish(part: Path) -> None:
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

    def restored() -> Iterator[Photo]:
        nonlocal size, look
        masks: list[NDArray[np.bool_]] = []
        damaged = pixels = 0
        reading = started
        for page, photo in enumerate(_read_whole(planned.source, record["input"], max_pixels)):
            size, pages = (photo.width, photo.height), photo.metadata.pages
            mask = None
            if planned.mask is not None:
                mask = read_mask(planned.mask, size, page=page, pages=pages)
                record["mask"] = record["mask"] or file_facts(planned.mask)
            model = _model_facts(setting, size, mask is not None)
            earlier_weights = {} if record["model"] is None else record["model"]["weights"]
            record["model"] = {**model, "weights": earlier_weights | model["weights"]}
            # No minutes of work for what cannot be written in the end.
            format = output_format(photo, planned.target)
            if pages > 1 and format != "TIFF":
                raise UsageError(
                    f"{planned.target.name}: {format} holds one picture, the photo has {pages} pages", _TO_TIFF
                )
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
            record["faces"] += [_face_facts(face, setting.options) for face in result.faces]
            record["changes"].append(_change_facts(result))
            record["warnings"] += [f"page {page + 1}: {line}" if pages > 1 else line for line in result.warnings]
            if page == 0:
                record["output"] |= {"format": format, "width": result.photo.width, "height": result.photo.height}
            if result.mask is not None and planned.mask_target is not None:
                masks.append(result.mask)
            generated = any(face.after is not None for face in result.faces) or (
                result.mask is not None and bool(result.mask.any())
            )
            if generated or record["source_type"] is None:
                record["source_type"] = GENERATED if generated else ENHANCED
            writing = time.perf_counter()
            # The photo goes last: where the photo exists, all that belongs to it does.
            if planned.faces_target is not None:
                for face in result.faces:
                    _write_crops(face, planned, earlier)
            if page == 0:
                if planned.comparison is not None:
                    write_comparison(photo, result.photo, planned.comparison)
                look = None if look_room is None else look_at(photo, result.photo, result.mask, room=look_room)
            source_type = GENERATED if generated else ENHANCED
            yield _marked(result.photo, planned.target, record, source_type) if setting.provenance else result.photo
            reading = time.perf_counter()
            spent("write", writing)
        if planned.mask_target is not None and masks:
            write_masks(masks, planned.mask_target)
            record["saved_mask"] = file_facts(planned.mask_target)

    try:
        # Read at the head of the line, which it leaves once it is admitted: no more than one photo waits decoded.
        with line:
            write_pages(restored(), planned.target, quality=setting.options.quality, before_move=finish)
    except (WeightsUnavailableError, WeightsCorruptError):
        raise
    except Exception as error:
        # Even a bug costs one photo, not the rest of a long run; the caller shows it.
        record["seconds"] = round(time.perf_counter() - started, 3)
        return failed(planned, out_of_memory(size) if ran_out(error) else error, record)
    return Outcome(planned, record, look=look)


def _write_crops(face: Face, planned: Planned, earlier: int) -> None:
    """The crops of an enhanced face, numbered on from the `earlier` faces of the file's other pages."""
    if face.after is not None:
        number = earlier + face.number
        write_photo(Photo.from_array(face.before), planned.face_crop(number, "before"))
        after = np.clip(np.rint(face.after), 0, 255).astype(np.uint8)
        write_photo(Photo.from_array(after), planned.face_crop(number, "after"))


def _read_whole(path: Path, facts: FileFacts, max_pixels: int | None) -> Iterator[Photo]:
    """The photos of a file, and in `facts` what the file was; an error if the file changes meanwhile."""
    before = stamp(path)
    with suppress(OSError):  # read_pages says better what is wrong with the file
        facts.update(file_facts(path))
    photos = read_pages(path, max_pixels=max_pixels)
    photo: Photo | None = next(photos)  # from here on they come from memory
    if before is None or facts["sha256"] is None or stamp(path) != before:
        raise FileAccessError(f"{path} changed while it was read", "restore it again when it is whole")
    assert photo is not None
    facts.update({"format": photo.metadata.format, "width": photo.width, "height": photo.height})
    while photo is not None:
        yield photo
        photo = next(photos, None)


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


def _face_facts(face: Face, options: Options) -> FaceFacts:
    return {
        "number": face.number,
        "box": [round(float(edge), 1) for edge in face.box],
        "score": round(float(face.score), 3),
        "strength": 0.0 if face.after is None else options.face_strength,
    }


def _change_facts(result: Restoration) -> ChangeFacts:
    tone = result.tone
    return {
        "tone": None if tone is None else {"gain": [*tone.gain], "offset": [*tone.offset], "likely": tone.likely},
        "kept": None if result.kept is None else [*result.kept],
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


def _find(
    inputs: Sequence[str], listed: Sequence[str], recursive: bool, apart: Sequence[Path]
) -> tuple[list[tuple[Path, Path, OldphotoError | None]], int]:
    """(photo, its folder below the input, problem) in order, each file once; and the count of files passed over.

    apart: outputs and masks; folders among them that lie inside an input folder are not searched.
    """
    found: dict[Path, tuple[Path, Path, OldphotoError | None]] = {}
    ignored = 0

    def take(file: Path, folder: Path) -> None:
        missing = FileAccessError(f"there is no file {file}", "check the name")
        found.setdefault(absolute(file), (file, folder, None if os.path.lexists(file) else missing))

    for text in inputs:
        path = Path(text)
        pattern = _is_pattern(text)
        # Not Path.glob: the pattern may be absolute, and hidden files are to be left out.
        candidates = sorted(map(Path, glob.glob(text, recursive=True))) if pattern else [path]  # noqa: PTH207
        for candidate in candidates:
            if candidate.is_dir():
                if pattern and not recursive:
                    continue
                matches = [(file, file.parent.relative_to(candidate)) for file in _walk(candidate, recursive, apart)]
                photos = [(file, folder) for file, folder in matches if _is_photo(file)]
                ignored += len(matches) - len(photos)
            elif pattern and not _is_photo(candidate):
                ignored += 1
                photos = []
            else:
                photos = [(candidate, Path())]
            for file, folder in photos:
                take(file, folder)
    for text in listed:
        path = Path(text)
        if path.is_dir():
            ignored += 1
            continue
        # Names that lead out of the output folder go into the folder itself.
        inside = recursive and not path.is_absolute() and ".." not in path.parts
        take(path, path.parent if inside else Path())
    if all(problem is not None for _, _, problem in found.values()):
        inputs = [*inputs, *listed[:3]]
        nothing = f"no photo in {', '.join(inputs)}" if not found else f"there is no file {', '.join(inputs)}"
        raise NoInputError(nothing, "check the names; folders inside a folder are searched with --recursive")
    return list(found.values()), ignored


def _walk(folder: Path, recursive: bool, apart: Sequence[Path]) -> Iterator[Path]:
    """The files of a folder, or of its tree, sorted; hidden folders and the folders of `apart` are left out."""
    own = {path.resolve() for path in apart} - {folder.resolve()}

    def refuse(error: OSError) -> None:
        raise FileAccessError(f"cannot read the folder {error.filename}: {error.strerror}", "check its permissions")

    for root, folders, files in os.walk(folder, onerror=refuse):
        kept = [name for name in folders if recursive and not name.startswith(".")]
        folders[:] = sorted(name for name in kept if (Path(root) / name).resolve() not in own)
        yield from (Path(root) / name for name in sorted(files))


def _is_photo(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix.lower() in PHOTO_SUFFIXES


def _is_pattern(text: str) -> bool:
    # A file whose own name holds a bracket is a file: what exists is never a pattern.
    return glob.has_magic(text) and not os.path.lexists(text)


def _is_folder(output: str) -> bool:
    return output.endswith(("/", os.sep)) or Path(output).is_dir() or not Path(output).suffix


def _mask_for(source: Path, folder: Path, masks: Path, *, alone: bool) -> tuple[Path | None, OldphotoError | None]:
    """The mask that belongs to a photo, or the reason why there is none."""
    if masks.is_dir():
        place = masks / folder
        candidates = [path for path in sorted(place.iterdir()) if _is_photo(path)] if place.is_dir() else []
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


def _mask_name(source: Path) -> str:
    return f"{source.stem}{'.tif' if count_pages(source) > 1 else '.png'}"


def _same_name(path: Path) -> str:
    """What two outputs share if some file system would keep them in one file (case, composed characters)."""
    return unicodedata.normalize("NFC", os.path.abspath(path)).casefold()  # noqa: PTH100 - the file need not exist


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def _refuse_collisions(photos: Sequence[Planned]) -> None:
    """Raise if an output is an input (by any path, link or spelling) or two outputs are one file."""
    inputs = {}
    for photo in photos:
        for path in (photo.source, photo.mask):
            if path is not None and (identity := _identity(path)) is not None:
                inputs[identity] = path
    crops = _face_crops_there(photos)
    taken: dict[str, Planned] = {}
    for photo in photos:
        for target in (photo.target, photo.mask_target, photo.comparison, *crops.get(photo.faces_target, ())):
            if target is None:
                continue
            identity = _identity(target)
            if identity is not None and identity in inputs:
                raise RefusedOverwriteError(
                    f"{target} is an input ({inputs[identity]}), and inputs are never overwritten",
                    "choose another output folder",
                )
            name = _same_name(target)
            if name in taken:
                raise RefusedOverwriteError(
                    f"{taken[name].source} and {photo.source} would both become {target}",
                    "restore them in two runs with different output folders, or keep folders apart with --recursive",
                )
            taken[name] = photo
    for photo in photos:
        crop = FACE_CROP.fullmatch(photo.target.name)
        if crop and any(other.faces_target == photo.target.with_name(crop["photo"]) for other in photos):
            raise RefusedOverwriteError(f"{photo.target} may also become a face crop", "choose another --save-faces")


def _face_crops_there(photos: Sequence[Planned]) -> dict[Path | None, list[Path]]:
    """The face crops that lie where these photos' would, by `faces_target`."""
    found: dict[Path | None, list[Path]] = {}
    for folder in {photo.faces_target.parent for photo in photos if photo.faces_target is not None}:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
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


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileAccessError(f"cannot make the folder {folder}: {error.strerror}", "check the output path") from error
    if not os.access(folder, os.W_OK):
        raise FileAccessError(f"cannot write in the folder {folder}", "check its permissions")
