"""Planning: which file becomes which, and what is refused before work. Running: one failure is one photo's."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oldphoto.errors import (
    BadImageError,
    ExitCode,
    FileAccessError,
    NoInputError,
    OldphotoError,
    OutOfMemoryError,
    RefusedOverwriteError,
    UsageError,
    WeightsCorruptError,
)
from oldphoto.files.image import Photo
from oldphoto.machine import memory, workers
from oldphoto.machine.memory import line
from oldphoto.options import Options
from oldphoto.records.manifest import Record, Setting
from oldphoto.runs import batch, planning
from oldphoto.runs.batch import Outcome, Work
from oldphoto.runs.planning import Naming, Plan, Planned
from oldphoto.stages.changes import ChangeUse
from tests.pictures import png_chunk
from tests.restorations import negative_of

SETTING = Setting(Options(), "compact", {})


def draw(path: Path, size: tuple[int, int] = (12, 8), colour: tuple[int, int, int] = (200, 100, 50)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        picture.load()
        return picture.size


def negative(photo: Photo, mask: Any) -> Any:
    """Stands in for the networks: what comes out differs from what went in."""
    return negative_of(
        photo,
        mask,
        strength=ChangeUse((0.25, 0.5, 0.75, 1.0), (0.5, 0.0, 0.25)),
        seconds={"translate": 0.5},
        warnings=("a note",),
    )


def run(plan: Plan, restore: Any = negative, **kwargs: Any) -> batch.Summary:
    return batch.run(plan.photos, lambda: Work(restore, SETTING), **kwargs)


def pairs(plan: Plan, root: Path) -> dict[str, str]:
    return {p.source.relative_to(root).as_posix(): p.target.relative_to(root).as_posix() for p in plan.photos}


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """a.jpg, b.png, sub/c.tif, and what a real folder also holds."""
    draw(tmp_path / "in/a.jpg")
    draw(tmp_path / "in/b.PNG")
    draw(tmp_path / "in/sub/c.tif")
    draw(tmp_path / "in/.hidden.jpg")
    draw(tmp_path / "in/.trash/d.jpg")
    (tmp_path / "in/notes.txt").write_text("notes")
    (tmp_path / "in/.DS_Store").write_bytes(b"\0")
    return tmp_path


def with_faces(photo: Photo, mask: Any) -> Any:
    """A restoration with two faces, the second left as it is."""
    before = np.full((4, 4, 3), 10, np.uint8)
    faces = (
        SimpleNamespace(
            number=1,
            box=(0.0, 0.0, 4.0, 4.0),
            score=1.0,
            before=before,
            after=np.full((4, 4, 3), 300.0, np.float32),
            kept=ChangeUse((1.0, 1.0, 1.0, 1.0)),
        ),
        SimpleNamespace(number=2, box=(4.0, 0.0, 8.0, 4.0), score=0.5, before=before, after=None, kept=None),
    )
    return replace(negative(photo, mask), faces=faces, generated=True)


# ---- what is found, and where it goes ----


def test_a_folder_gives_its_own_photos_in_order(album: Path) -> None:
    plan = planning.plan([str(album / "in")], str(album / "out"))
    assert pairs(plan, album) == {"in/a.jpg": "out/a.jpg", "in/b.PNG": "out/b.PNG"}
    assert plan.ignored == 3
    assert not plan.single


def test_a_tree_is_mirrored(album: Path) -> None:
    plan = planning.plan([str(album / "in")], str(album / "out"), recursive=True)
    assert pairs(plan, album) == {"in/a.jpg": "out/a.jpg", "in/b.PNG": "out/b.PNG", "in/sub/c.tif": "out/sub/c.tif"}


@pytest.mark.parametrize(
    ("pattern", "recursive", "expected"),
    [
        ("in/*.jpg", False, ["in/a.jpg"]),
        ("in/*", False, ["in/a.jpg", "in/b.PNG"]),
        ("in/**/*.tif", False, ["in/sub/c.tif"]),
        ("i?", False, []),
        ("i?", True, ["in/a.jpg", "in/b.PNG", "in/sub/c.tif"]),
    ],
)
def test_patterns_are_expanded_here(album: Path, pattern: str, recursive: bool, expected: list[str]) -> None:
    if not expected:
        with pytest.raises(NoInputError):
            planning.plan([str(album / pattern)], str(album / "out"), recursive=recursive)
        return
    plan = planning.plan([str(album / pattern)], str(album / "out"), recursive=recursive)
    assert list(pairs(plan, album)) == expected


def test_a_name_with_brackets_is_a_file_and_not_a_pattern(tmp_path: Path) -> None:
    draw(tmp_path / "scan [1].jpg")
    draw(tmp_path / "scan 1.jpg")
    plan = planning.plan([str(tmp_path / "scan [1].jpg")], str(tmp_path / "out/"))
    assert [photo.source.name for photo in plan.photos] == ["scan [1].jpg"]
    assert plan.single


@pytest.mark.parametrize("name", ["Großmutter 1921.jpg", "祖母.jpg", "صورة قديمة.png", "a'b\"c;$(x) &.jpg", "-o.jpg"])
def test_odd_names_survive(tmp_path: Path, name: str) -> None:
    draw(tmp_path / "in" / name)
    plan = planning.plan([str(tmp_path / "in")], str(tmp_path / "out"))
    assert run(plan).exit_code == ExitCode.DONE
    assert size_of(tmp_path / "out" / name) == (12, 8)


def test_a_name_that_is_not_utf8_survives(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    raw = os.fsencode(folder) + b"/caf\xe9.png"
    draw(tmp_path / "x.png")
    try:
        (tmp_path / "x.png").rename(os.fsdecode(raw))
    except OSError:
        pytest.skip("this file system wants UTF-8 names")
    plan = planning.plan([str(folder)], str(tmp_path / "out"))
    assert run(plan).exit_code == ExitCode.DONE
    assert [os.fsencode(path.name) for path in (tmp_path / "out").iterdir()] == [b"caf\xe9.png"]


def test_a_file_named_twice_is_restored_once(album: Path) -> None:
    plan = planning.plan([str(album / "in"), str(album / "in/a.jpg"), f"{album}/in/../in/a.jpg"], str(album / "out"))
    assert len(plan.photos) == 2


@pytest.mark.parametrize(
    ("output", "expected"),
    [("new.jpg", "new.jpg"), ("out/", "out/a.jpg"), ("out", "out/a.jpg"), ("there.d", "there.d/a.jpg")],
)
def test_the_output_of_a_single_photo_is_a_file_or_a_folder(album: Path, output: str, expected: str) -> None:
    (album / "there.d").mkdir()
    plan = planning.plan([str(album / "in/a.jpg")], f"{album}/{output}")
    assert plan.photos[0].target == album / expected


def test_a_photo_cannot_be_written_under_a_foreign_suffix(album: Path) -> None:
    with pytest.raises(UsageError, match=r"out\.doc"):
        planning.plan([str(album / "in/a.jpg")], str(album / "out.doc"))


def test_several_photos_cannot_become_one_file(album: Path) -> None:
    draw(album / "one.jpg")
    with pytest.raises(UsageError, match="is a file"):
        planning.plan([str(album / "in")], str(album / "one.jpg"), existing="overwrite")


def test_outputs_and_masks_below_the_input_are_not_searched(album: Path) -> None:
    draw(album / "in/restored/a.jpg")
    draw(album / "in/masks/a.png")
    plan = planning.plan(
        [str(album / "in")],
        str(album / "in/restored"),
        recursive=True,
        existing="overwrite",
        beside=planning.Beside(save_masks=album / "in/masks"),
    )
    assert list(pairs(plan, album)) == ["in/a.jpg", "in/b.PNG", "in/sub/c.tif"]


@pytest.mark.parametrize("inputs", [["nothing.jpg"], ["*.jpg"], ["empty"], ["no.jpg", "none.png"]])
def test_no_input_is_an_error(tmp_path: Path, inputs: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoInputError, match=inputs[0].strip("*")):
        planning.plan([str(tmp_path / text) for text in inputs], str(tmp_path / "out"))


def test_one_missing_file_among_others_is_that_files_failure(album: Path) -> None:
    plan = planning.plan([str(album / "in/a.jpg"), str(album / "in/gone.jpg")], str(album / "out"))
    summary = run(plan)
    assert summary.exit_code == ExitCode.SOME_FAILED
    assert [outcome.planned.source.name for outcome in summary.failed] == ["gone.jpg"]
    assert isinstance(summary.failed[0].error, FileAccessError)
    assert (album / "out/a.jpg").is_file()


# ---- what is refused before any work ----


def test_two_photos_of_one_name_are_refused(album: Path) -> None:
    draw(album / "other/a.jpg")
    with pytest.raises(RefusedOverwriteError, match=r"in.a\.jpg and .*other.a\.jpg would both become"):
        planning.plan([str(album / "in"), str(album / "other")], str(album / "out"))


@pytest.mark.parametrize(("one", "two"), [("A.jpg", "a.jpg"), ("caf\u00e9.jpg", "cafe\u0301.jpg"), ("a.JPG", "a.jpg")])
def test_names_that_some_file_system_would_join_are_refused(tmp_path: Path, one: str, two: str) -> None:
    draw(tmp_path / "in/x" / one)
    draw(tmp_path / "in/y" / two)
    with pytest.raises(RefusedOverwriteError, match="would both become"):
        planning.plan([str(tmp_path / "in/x"), str(tmp_path / "in/y")], str(tmp_path / "out"))


def test_one_stem_with_two_suffixes_is_two_photos(tmp_path: Path) -> None:
    draw(tmp_path / "in/a.jpg")
    draw(tmp_path / "in/a.png")
    plan = planning.plan([str(tmp_path / "in")], str(tmp_path / "out"))
    assert run(plan).exit_code == ExitCode.DONE
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.jpg", "a.png"]
    with pytest.raises(RefusedOverwriteError, match=r"would both become .*masks.a\.png"):
        planning.plan(
            [str(tmp_path / "in")], str(tmp_path / "new"), beside=planning.Beside(save_masks=tmp_path / "masks")
        )


@pytest.mark.parametrize("existing", ["refuse", "skip", "overwrite"])
@pytest.mark.parametrize("output", ["in", "in/", "link", "link/../in", "in/a.jpg", "hard.jpg"])
def test_an_input_is_never_overwritten(album: Path, output: str, existing: planning.Existing) -> None:
    (album / "link").symlink_to(album / "in", target_is_directory=True)
    (album / "hard.jpg").hardlink_to(album / "in/a.jpg")
    with pytest.raises(RefusedOverwriteError, match="inputs are never overwritten"):
        planning.plan([str(album / "in/a.jpg")], f"{album}/{output}", existing=existing)


def test_a_mask_given_is_an_input_too(album: Path) -> None:
    draw(album / "masks/a.png")
    with pytest.raises(RefusedOverwriteError, match="inputs are never overwritten"):
        planning.plan(
            [str(album / "in/a.jpg")],
            str(album / "out"),
            existing="overwrite",
            masks=album / "masks",
            beside=planning.Beside(save_masks=album / "masks"),
        )


def test_existing_outputs_are_refused_skipped_or_overwritten(album: Path) -> None:
    before = draw(album / "out/a.jpg", size=(3, 3)).read_bytes()
    with pytest.raises(RefusedOverwriteError, match=r"out.a\.jpg exists"):
        planning.plan([str(album / "in")], str(album / "out"))
    plan = planning.plan([str(album / "in")], str(album / "out"), existing="skip")
    assert [photo.source.name for photo in plan.skipped] == ["a.jpg"]
    assert [photo.source.name for photo in plan.photos] == ["b.PNG"]
    run(plan)
    assert (album / "out/a.jpg").read_bytes() == before
    run(planning.plan([str(album / "in")], str(album / "out"), existing="overwrite"))
    assert size_of(album / "out/a.jpg") == (12, 8)


def test_planning_touches_nothing(album: Path) -> None:
    before = sorted(album.rglob("*"))
    planning.plan(
        [str(album / "in")], str(album / "out"), recursive=True, beside=planning.Beside(save_masks=album / "masks")
    )
    assert sorted(album.rglob("*")) == before


# ---- masks are paired by name ----


def test_masks_are_paired_by_name_and_not_by_order(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        draw(tmp_path / "in" / name)
    for name in ("c.png", "a.bmp"):
        draw(tmp_path / "masks" / name)
    (tmp_path / "masks/a.txt").write_text("not a mask")
    plan = planning.plan([str(tmp_path / "in")], str(tmp_path / "out"), masks=tmp_path / "masks")
    assert [photo.mask and photo.mask.name for photo in plan.photos] == ["a.bmp", None, "c.png"]
    summary = run(plan)
    assert summary.exit_code == ExitCode.SOME_FAILED
    assert [str(outcome.error) for outcome in summary.failed] == [f"there is no mask for b.jpg in {tmp_path / 'masks'}"]


def test_masks_mirror_the_tree(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        draw(tmp_path / "in" / folder / "a.jpg")
        draw(tmp_path / "masks" / folder / "a.png")
    plan = planning.plan([str(tmp_path / "in")], str(tmp_path / "out"), recursive=True, masks=tmp_path / "masks")
    masks = [photo.mask and photo.mask.relative_to(tmp_path).as_posix() for photo in plan.photos]
    assert masks == ["masks/x/a.png", "masks/y/a.png"]


def test_the_whole_name_is_preferred_and_two_masks_of_one_stem_are_no_guess(tmp_path: Path) -> None:
    draw(tmp_path / "in/a.jpg")
    draw(tmp_path / "in/a.png")
    draw(tmp_path / "in/a.tif")
    draw(tmp_path / "masks/a.jpg")
    draw(tmp_path / "masks/a.png")
    plan = planning.plan([str(tmp_path / "in")], str(tmp_path / "out"), masks=tmp_path / "masks")
    assert [photo.mask and photo.mask.name for photo in plan.photos] == ["a.jpg", "a.png", None]
    assert isinstance(plan.photos[2].problem, UsageError)


def test_one_mask_for_one_photo_needs_no_name(tmp_path: Path) -> None:
    draw(tmp_path / "a.jpg")
    draw(tmp_path / "drawn by hand.png")
    plan = planning.plan([str(tmp_path / "a.jpg")], str(tmp_path / "out"), masks=tmp_path / "drawn by hand.png")
    assert plan.photos[0].mask == tmp_path / "drawn by hand.png"


def test_a_mask_that_is_not_there_stops_the_run(album: Path) -> None:
    with pytest.raises(FileAccessError, match="there is no mask"):
        planning.plan([str(album / "in")], str(album / "out"), masks=album / "nowhere")


def test_the_mask_reaches_the_restorer_and_is_written_first(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", size=(4, 2))
    Image.fromarray(np.array([[255, 0, 0, 0], [0, 0, 0, 200]], np.uint8)).save(tmp_path / "mask.png")
    plan = planning.plan(
        [str(tmp_path / "a.png")],
        str(tmp_path / "out"),
        masks=tmp_path / "mask.png",
        beside=planning.Beside(save_masks=tmp_path / "saved"),
    )
    assert run(plan).exit_code == ExitCode.DONE
    with Image.open(tmp_path / "saved/a.png") as saved:
        assert np.asarray(saved).tolist() == [[255, 0, 0, 0], [0, 0, 0, 255]]


# ---- running ----


def test_pixels_are_what_the_restorer_made(tmp_path: Path) -> None:
    draw(tmp_path / "in/a.png", colour=(200, 100, 50))
    summary = run(planning.plan([str(tmp_path / "in")], str(tmp_path / "out")))
    with Image.open(tmp_path / "out/a.png") as picture:
        assert picture.getcolors() == [(96, (55, 155, 205))]
    [outcome] = summary.outcomes
    assert (outcome.size, outcome.record["warnings"]) == ((12, 8), ["a note"])
    assert outcome.record["stages"]["translate"] == 0.5


def test_a_bad_photo_does_not_stop_the_others(album: Path) -> None:
    (album / "in/aa.jpg").write_bytes(b"")
    (album / "in/ab.jpg").write_bytes((album / "in/a.jpg").read_bytes()[:200])
    seen: list[Outcome] = []
    summary = run(planning.plan([str(album / "in")], str(album / "out")), on_done=seen.append)
    assert [type(outcome.error) for outcome in seen] == [type(None), BadImageError, BadImageError, type(None)]
    assert summary.exit_code == ExitCode.SOME_FAILED
    assert sorted(path.name for path in (album / "out").iterdir()) == ["a.jpg", "b.PNG"]


def test_even_a_bug_costs_one_photo(album: Path) -> None:
    def fragile(photo: Photo, mask: Any) -> Any:
        if seen and seen[-1].source.name == "a.jpg":
            raise ValueError("surprise")
        return negative(photo, mask)

    seen: list[Planned] = []
    summary = run(planning.plan([str(album / "in")], str(album / "out")), fragile, on_start=seen.append)
    assert [str(outcome.error) for outcome in summary.outcomes] == ["surprise", "None"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_memory_running_out_is_said_as_such(album: Path, error: Exception) -> None:
    def fail(photo: Photo, mask: Any) -> Any:
        raise error

    summary = run(planning.plan([str(album / "in/a.jpg")], str(album / "out")), fail)
    [outcome] = summary.outcomes
    assert isinstance(outcome.error, OutOfMemoryError)
    assert "12 x 8" in str(outcome.error)
    assert outcome.error.advice


def test_damaged_weights_end_the_run(album: Path) -> None:
    def fail(photo: Photo, mask: Any) -> Any:
        raise WeightsCorruptError("mapping.safetensors is damaged")

    with pytest.raises(WeightsCorruptError):
        run(planning.plan([str(album / "in")], str(album / "out")), fail)


def test_models_are_loaded_once_and_only_for_a_photo_that_can_be_tried(album: Path) -> None:
    loads: list[int] = []

    def load() -> Work:
        loads.append(1)
        return Work(negative, SETTING)

    missing = Planned(album / "no.jpg", album / "out/no.jpg", problem=OldphotoError("no such photo"))
    batch.run([missing], load)
    assert not loads
    batch.run([missing, *planning.plan([str(album / "in")], str(album / "out")).photos], load)
    assert len(loads) == 1


def test_ctrl_c_leaves_whole_files_and_says_so(album: Path) -> None:
    def stop_at_second(photo: Photo, mask: Any) -> Any:
        if (album / "out/a.jpg").exists():
            raise KeyboardInterrupt
        return negative(photo, mask)

    summary = run(planning.plan([str(album / "in")], str(album / "out")), stop_at_second)
    assert (summary.interrupted, summary.exit_code, len(summary.outcomes)) == (True, ExitCode.INTERRUPTED, 1)
    assert [path.name for path in (album / "out").iterdir()] == ["a.jpg"]
    assert size_of(album / "out/a.jpg") == (12, 8)


def test_a_folder_that_cannot_be_made_fails_before_the_work(album: Path) -> None:
    def never(photo: Photo, mask: Any) -> Any:
        raise AssertionError("work was done for nothing")

    (album / "file").write_text("in the way")
    summary = run(planning.plan([str(album / "in")], str(album / "file/out/")), never)
    assert [type(outcome.error) for outcome in summary.failed] == [FileAccessError, FileAccessError]


@pytest.mark.parametrize(("max_pixels", "fits"), [(None, True), (96, True), (95, False)])
def test_the_limit_on_pixels(album: Path, max_pixels: int | None, fits: bool) -> None:
    summary = run(planning.plan([str(album / "in/a.jpg")], str(album / "out")), max_pixels=max_pixels)
    assert isinstance(summary.outcomes[0].error, type(None) if fits else BadImageError)


# ---- several at once ----


class Crew:
    """Restores `places` photos at once: each waits until so many are in work. By the red of a photo it does more."""

    def __init__(self, places: int, by_red: dict[int, Any] | None = None) -> None:
        self.together = threading.Barrier(places)
        self.by_red = by_red or {}
        self.shares: list[int] = []
        self.work = Work(self.restore, SETTING, places=places, share=self.shares.append)

    def restore(self, photo: Photo, mask: Any) -> Any:
        with line.admitted(1, 1 << 60):
            red = int(photo.pixels[0, 0, 0])
            if red < 100:
                self.together.wait(30)
            if red in self.by_red:
                self.by_red[red]()
            return negative(photo, mask)


def at_once(tmp_path: Path, crew: Crew, reds: list[int], **kwargs: Any) -> batch.Summary:
    for number, red in enumerate(reds):
        draw(tmp_path / f"in/{number}.png", colour=(red, 0, 0))
    return batch.run(planning.plan([str(tmp_path / "in")], str(tmp_path / "out")).photos, lambda: crew.work, **kwargs)


def spin() -> None:
    while True:
        time.sleep(0.001)


def fail(error: BaseException) -> None:
    raise error


def test_photos_are_in_work_at_once(tmp_path: Path) -> None:
    started: list[str] = []
    crew = Crew(3)
    summary = at_once(tmp_path, crew, [1] * 6, on_start=lambda photo: started.append(photo.source.name))
    assert summary.exit_code == ExitCode.DONE
    assert started == [f"{number}.png" for number in range(6)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == started
    # Three begin together; the thread of the run has all cores again in the end.
    assert (crew.shares[:3], crew.shares[-1]) == ([3, 3, 3], 1)


def test_outcomes_come_as_photos_are_done_and_in_the_thread_of_the_run(tmp_path: Path) -> None:
    second = threading.Event()
    seen: list[tuple[str, int]] = []

    def done(outcome: Outcome) -> None:
        seen.append((outcome.planned.source.name, threading.get_ident()))
        second.set()

    crew = Crew(2, {1: lambda: second.wait(30)})
    summary = at_once(tmp_path, crew, [1, 2], on_done=done)
    own = threading.get_ident()
    assert seen == [("1.png", own), ("0.png", own)]
    assert [outcome.planned.source.name for outcome in summary.outcomes] == ["1.png", "0.png"]


def test_a_photo_that_fails_does_not_stop_those_beside_it(tmp_path: Path) -> None:
    records: list[Record] = []
    crew = Crew(2, {2: lambda: fail(ValueError("surprise"))})
    summary = at_once(tmp_path, crew, [1, 2, 3, 4], keep=records.append)
    assert summary.exit_code == ExitCode.SOME_FAILED
    assert [(outcome.planned.source.name, str(outcome.error)) for outcome in summary.failed] == [("1.png", "surprise")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "2.png", "3.png"]
    assert sorted(record["status"] for record in records) == ["failed", "restored", "restored", "restored"]


def test_damaged_weights_end_the_run_for_those_beside_it(tmp_path: Path) -> None:
    crew = Crew(2, {1: lambda: fail(WeightsCorruptError("mapping.safetensors is damaged")), 2: spin})
    with pytest.raises(WeightsCorruptError):
        at_once(tmp_path, crew, [1, 2, 3])
    assert not list((tmp_path / "out").iterdir())


def test_an_interrupted_run_counts_what_is_whole(tmp_path: Path) -> None:
    def done(outcome: Outcome) -> None:
        if not seen:
            seen.append(outcome)
            raise KeyboardInterrupt

    seen: list[Outcome] = []
    records: list[Record] = []
    crew = Crew(2, {2: spin})
    summary = at_once(tmp_path, crew, [1, 2, 3], keep=records.append, on_done=done)
    assert summary.exit_code == ExitCode.INTERRUPTED
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["0.png"]
    assert len(summary.outcomes) == len(records) == 1


def test_what_is_left_behind_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PATIENCE_SECONDS", 0.2)
    go, gone = threading.Event(), threading.Event()

    def deaf() -> None:
        while not go.is_set():
            with suppress(KeyboardInterrupt):
                go.wait(1)

    def done(outcome: Outcome) -> None:
        raise KeyboardInterrupt

    crew = Crew(2, {2: deaf})
    try:
        summary = at_once(tmp_path, crew, [1, 2], on_done=done)
        assert summary.interrupted
    finally:
        go.set()
        gone.wait(1)
    assert [path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")] == ["0.png"]


def test_photos_that_have_not_arrived_hold_up_no_others(tmp_path: Path) -> None:
    """As --watch has it: what is done is told while there is nothing new."""
    names = iter(["a", "b"])
    told: list[str] = []

    def coming() -> Iterator[Planned | None]:
        for name in names:
            yield Planned(draw(tmp_path / f"{name}.png"), tmp_path / f"out/{name}.png")
            while name not in told:
                yield None

    summary = batch.run(
        coming(),
        lambda: Work(negative, SETTING, places=3),
        on_done=lambda outcome: told.append(outcome.planned.source.stem),
    )
    assert told == ["a", "b"]
    assert summary.exit_code == ExitCode.DONE


# ---- face crops ----


def test_face_crops_have_names_of_their_own(tmp_path: Path) -> None:
    draw(tmp_path / "in/a.jpg")
    draw(tmp_path / "in/a.png")
    draw(tmp_path / "in/sub/a.jpg")
    plan = planning.plan(
        [str(tmp_path / "in")],
        str(tmp_path / "out"),
        recursive=True,
        beside=planning.Beside(save_faces=tmp_path / "in" / "faces"),
    )
    assert run(plan, with_faces).exit_code is ExitCode.DONE
    crops = {path.relative_to(tmp_path / "in/faces").as_posix() for path in (tmp_path / "in/faces").rglob("*.png")}
    photos = ("a.jpg", "a.png", "sub/a.jpg")
    assert crops == {f"{name}.face1.{side}.png" for name in photos for side in ("before", "after")}
    with Image.open(tmp_path / "in/faces/a.jpg.face1.after.png") as crop:
        assert crop.size == (4, 4)
        assert crop.getpixel((0, 0)) == (255, 255, 255)
    # They lie in an input folder, and are not taken for photos the next time.
    again = planning.plan(
        [str(tmp_path / "in")],
        str(tmp_path / "out"),
        recursive=True,
        beside=planning.Beside(save_faces=tmp_path / "in/faces"),
        existing="overwrite",
    )
    assert len(again.photos) == 3


def test_face_crops_of_an_earlier_run_are_refused_or_replaced(album: Path) -> None:
    def plan(out: str, existing: planning.Existing = "refuse") -> Plan:
        return planning.plan(
            [str(album / "in")], str(album / out), beside=planning.Beside(save_faces=album / "faces"), existing=existing
        )

    run(plan("out"), with_faces)
    with pytest.raises(RefusedOverwriteError, match=r"a\.jpg\.face1\.after\.png exists \(and 3 more\)"):
        plan("other")
    assert len(plan("other", "overwrite").photos) == 2


def test_a_face_crop_never_replaces_an_input_or_an_output(tmp_path: Path) -> None:
    draw(tmp_path / "in/a.jpg")
    draw(tmp_path / "in/a.jpg.face1.before.png")
    with pytest.raises(RefusedOverwriteError, match="never overwritten"):
        planning.plan(
            [str(tmp_path / "in")],
            str(tmp_path / "out"),
            beside=planning.Beside(save_faces=tmp_path / "in"),
            existing="overwrite",
        )
    with pytest.raises(RefusedOverwriteError, match="may also become a face crop"):
        planning.plan(
            [str(tmp_path / "in")],
            str(tmp_path / "out"),
            beside=planning.Beside(save_faces=tmp_path / "out"),
            existing="overwrite",
        )


# ---- files of several pages ----


def album_of_pages(path: Path, *sizes: tuple[int, int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pages = [Image.new("RGB", size, (200, 10 * number, 50)) for number, size in enumerate(sizes)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    return path


SIZES = ((12, 8), (5, 6), (9, 9))


def test_every_page_is_restored(tmp_path: Path) -> None:
    album_of_pages(tmp_path / "in/a.tif", *SIZES)
    seen = []

    def restore(photo: Photo, mask: Any) -> Any:
        seen.append((photo.width, photo.height))
        return negative(photo, photo.pixels[..., 1] > 5)

    plan = planning.plan(
        [str(tmp_path / "in")], str(tmp_path / "out"), beside=planning.Beside(save_masks=tmp_path / "masks")
    )
    (outcome,) = run(plan, restore).outcomes
    assert outcome.error is None
    assert tuple(seen) == SIZES
    with Image.open(tmp_path / "out/a.tif") as after:
        assert getattr(after, "n_frames", 1) == 3
        for number, size in enumerate(SIZES):
            after.seek(number)
            assert (after.size, after.getpixel((0, 0))) == (size, (55, 255 - 10 * number, 205))
    with Image.open(tmp_path / "masks/a.tif") as mask:
        assert getattr(mask, "n_frames", 1) == 3
        for number, expected in enumerate([0, 255, 255]):
            mask.seek(number)
            assert mask.convert("L").getextrema() == (expected, expected)
    record = outcome.record
    assert record["mask_share"] == round((30 + 81) / (96 + 30 + 81), 6)
    notes = [line for line in record["warnings"] if line.endswith("a note")]
    assert notes == [f"page {number}: a note" for number in (1, 2, 3)]
    assert record["stages"]["translate"] == 1.5
    assert record["saved_mask"] is not None
    assert record["saved_mask"]["path"].endswith("a.tif")

    # The saved mask is one that can be given.
    given = []

    def masked(photo: Photo, mask: Any) -> Any:
        given.append(bool(mask.all()))
        return negative(photo, mask)

    plan = planning.plan([str(tmp_path / "in")], str(tmp_path / "again"), masks=tmp_path / "masks")
    assert not run(plan, masked).failed
    assert given == [False, True, True]


def test_a_mask_of_fewer_pages_is_refused(tmp_path: Path) -> None:
    album_of_pages(tmp_path / "a.tif", *SIZES)
    draw(tmp_path / "mask.png")
    plan = planning.plan([str(tmp_path / "a.tif")], str(tmp_path / "out/"), masks=tmp_path / "mask.png")
    (outcome,) = run(plan).outcomes
    assert "mask mask.png has 1 pages, the photo 3" in str(outcome.error)


def test_pages_are_not_lost_to_a_format_of_one_picture(tmp_path: Path) -> None:
    album_of_pages(tmp_path / "a.tif", *SIZES)
    plan = planning.plan([str(tmp_path / "a.tif")], str(tmp_path / "out.jpg"))
    (outcome,) = run(plan).outcomes
    assert isinstance(outcome.error, UsageError)
    assert "JPEG holds one picture, the photo has 3 pages" in str(outcome.error)
    assert not (tmp_path / "out.jpg").exists()


def test_what_reading_and_writing_leave_out_is_in_the_record(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Voigtlander"
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=exif, comment=b"from the attic")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-2])

    def restore(photo: Photo, mask: Any) -> Any:
        return replace(negative(photo, mask), warnings=photo.warnings)

    plan = planning.plan([str(tmp_path / "a.jpg")], str(tmp_path / "out.png"))
    (outcome,) = run(plan, restore).outcomes
    assert outcome.record["warnings"] == [
        "PNG has no place for the photo's comments",
        "its JPEG data lack the end mark; all pixels are there",
    ]


def test_a_photo_too_large_for_the_memory_allowed_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    # 400 megapixels, none of them there: to decode it would be to find it damaged.
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0))
    body = header + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")
    (tmp_path / "large.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    draw(tmp_path / "small.png")
    setting = Setting(Options(max_memory=memory.resident() + 1_000_000_000), "compact", {})
    plan = planning.plan([str(tmp_path / "large.png"), str(tmp_path / "small.png")], str(tmp_path / "out/"))
    large, small = batch.run(plan.photos, lambda: Work(negative, setting)).outcomes
    assert isinstance(large.error, OutOfMemoryError)
    assert "--max-memory" in large.error.advice
    assert small.error is None


def test_a_photo_that_could_not_be_written_is_refused_before_it_is_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 32 megapixels when it is done: 96 MB, and as a BMP, which is held whole, 256 more.
    monkeypatch.setattr("oldphoto.files.image._WHILE_WRITING", 0)
    monkeypatch.setattr(memory, "resident", lambda: 1_000_000_000)
    Image.new("RGB", (2000, 1000), "gray").save(tmp_path / "a.png")
    done: list[Photo] = []

    def restore(photo: Photo, mask: Any) -> Any:
        done.append(photo)
        return negative(photo, mask)

    setting = Setting(Options(max_memory=1_200_000_000, upscale=4), "compact", {})
    for name in ("a.bmp", "a.tif"):
        plan = planning.plan([str(tmp_path / "a.png")], str(tmp_path / name))
        (outcome,) = batch.run(plan.photos, lambda: Work(restore, setting)).outcomes
        assert bool(done) == (name == "a.tif")
        if not done:
            assert isinstance(outcome.error, OutOfMemoryError)
            assert str(outcome.error) == "writing it as BMP takes 1.4GB of memory, more than the 1.2GB allowed"
            assert "1.4GB or more" in outcome.error.advice
    assert outcome.error is None


def test_a_mask_too_large_for_the_memory_allowed_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "resident", lambda: 1_000_000_000)
    draw(tmp_path / "a.png", size=(3000, 2000))
    # As the photo, 6 megapixels, and none of them there.
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 3000, 2000, 16, 6, 0, 0, 0))
    body = header + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")
    (tmp_path / "mask.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    setting = Setting(Options(max_memory=1_100_000_000), "compact", {})
    plan = planning.plan([str(tmp_path / "a.png")], str(tmp_path / "out.png"), masks=tmp_path / "mask.png")
    (outcome,) = batch.run(plan.photos, lambda: Work(negative, setting)).outcomes
    assert isinstance(outcome.error, OutOfMemoryError)


def test_a_file_that_changes_between_its_pages_fails(tmp_path: Path) -> None:
    album_of_pages(tmp_path / "a.tif", *SIZES)

    def restore(photo: Photo, mask: Any) -> Any:
        os.utime(tmp_path / "a.tif", (1, 1))
        return negative(photo, mask)

    plan = planning.plan([str(tmp_path / "a.tif")], str(tmp_path / "out.tif"))
    (outcome,) = run(plan, restore).outcomes
    assert isinstance(outcome.error, FileAccessError)
    assert "changed while it was read" in str(outcome.error)
    assert not (tmp_path / "out.tif").exists()


def test_a_bad_page_fails_the_whole_file(tmp_path: Path) -> None:
    album_of_pages(tmp_path / "a.tif", *SIZES)

    def restore(photo: Photo, mask: Any) -> Any:
        if photo.width == 9:
            raise BadImageError("no")
        return negative(photo, mask)

    plan = planning.plan([str(tmp_path / "a.tif")], str(tmp_path / "out/"))
    assert len(run(plan, restore).failed) == 1
    assert not list((tmp_path / "out").iterdir())


def test_pages_of_either_size_need_the_nets_of_both(tmp_path: Path) -> None:
    album_of_pages(tmp_path / "a.tif", *SIZES)
    plan = planning.plan([str(tmp_path / "a.tif")], str(tmp_path / "out/"))
    assert planning.large_or_not(plan.photos, Options()) == {False, True}


# ---- names of outputs ----


@pytest.mark.parametrize(
    ("naming", "expected"),
    [
        (Naming(), ["a.jpg", "b.PNG"]),
        (Naming(suffix="_restored"), ["a_restored.jpg", "b_restored.PNG"]),
        (Naming(format="png"), ["a.png", "b.PNG"]),
        (Naming(format="JPEG", suffix=" 2"), ["a 2.jpg", "b 2.jpg"]),
        (Naming(format=".tiff"), ["a.tif", "b.tif"]),
        (Naming(template="{number:04}"), ["0001.jpg", "0002.PNG"]),
        (Naming(template="{parent} {stem}.v1", format="webp"), ["in a.v1.webp", "in b.v1.webp"]),
    ],
    ids=str,
)
def test_outputs_are_named_as_wished(album: Path, naming: Naming, expected: list[str]) -> None:
    plan = planning.plan([str(album / "in")], str(album / "out"), naming=naming)
    assert [photo.target.name for photo in plan.photos] == expected
    assert not run(plan).failed
    for name in expected:
        with Image.open(album / "out" / name) as picture:
            kind = {".jpg": "JPEG", ".png": "PNG", ".tif": "TIFF", ".webp": "WEBP"}[Path(name).suffix.lower()]
            assert (picture.format, picture.size) == (kind, (12, 8))


def test_the_quality_of_lossy_outputs(album: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(album / "in/a.jpg", quality=60, subsampling=0)
    sizes = []
    for quality in (10, None, 95):
        plan = planning.plan([str(album / "in/a.jpg")], str(album / f"out{quality}/"))
        setting = Setting(Options(quality=quality), "compact", {})
        (outcome,) = batch.run(plan.photos, partial(Work, negative, setting)).outcomes
        assert outcome.record["options"]["quality"] == quality
        sizes.append((album / f"out{quality}/a.jpg").stat().st_size)
    assert sizes[0] < sizes[1] < sizes[2]
    # The XMP says what was done in 1.7 kB more.
    assert sizes[1] - 1700 == pytest.approx((album / "in/a.jpg").stat().st_size, rel=0.1)


@pytest.mark.parametrize(
    ("naming", "message"),
    [
        ({"format": "gif"}, "cannot write gif files"),
        ({"suffix": "_x", "template": "{stem}"}, "contradict"),
        ({"template": "{nonsense}"}, "is not one"),
        ({"template": "{stem.parent}"}, "is not one"),
        ({"template": "{stem"}, "is not one"),
        ({"template": "{}"}, "is not one"),
        ({"template": ""}, "is not one"),
        ({"template": "../{stem}"}, "no name for a photo"),
        ({"template": ".{stem}"}, "no name for a photo"),
        ({"suffix": "/x"}, "no name for a photo"),
    ],
    ids=str,
)
def test_names_that_are_none(naming: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Naming(**naming)


def test_outputs_that_would_share_a_name_are_refused(album: Path) -> None:
    draw(album / "in/a.png")
    for naming in (Naming(format="webp"), Naming(template="photo", format="png")):
        with pytest.raises(RefusedOverwriteError, match="would both become"):
            planning.plan([str(album / "in/a.jpg"), str(album / "in/a.png")], str(album / "out"), naming=naming)
    with pytest.raises(RefusedOverwriteError, match="is an input"):
        planning.plan([str(album / "in")], str(album / "in"), naming=Naming(suffix=""), existing="overwrite")
    # Beside their inputs, under other names, they are welcome.
    plan = planning.plan([str(album / "in")], str(album / "in"), naming=Naming(suffix="_restored"))
    assert not run(plan).failed


def test_a_single_output_has_its_name(album: Path) -> None:
    photo = str(album / "in/a.jpg")
    for naming in (Naming(suffix="_x"), Naming(template="{stem}")):
        with pytest.raises(UsageError, match="has its name already"):
            planning.plan([photo], str(album / "new.jpg"), naming=naming)
    with pytest.raises(UsageError, match="not the name of a png file"):
        planning.plan([photo], str(album / "new.jpg"), naming=Naming(format="png"))
    assert (
        planning.plan([photo], str(album / "new.jpg"), naming=Naming(format="jpeg")).photos[0].target.name == "new.jpg"
    )
