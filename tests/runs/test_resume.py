"""Runs that are cut off at any moment, and that go on: no half file, nothing lost, nothing done twice."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from PIL import Image

from oldphoto.errors import FileAccessError, RefusedOverwriteError, UsageError
from oldphoto.files import image
from oldphoto.files.photo import Photo
from oldphoto.options import Options
from oldphoto.records import manifest
from oldphoto.records.manifest import Manifest, Setting
from oldphoto.runs import batch, planning
from oldphoto.runs.planning import Planned, Shard
from oldphoto.runs.watch import PAUSE_SECONDS, Watch
from oldphoto.stages.faces import Face
from tests.restorations import negative_of

NAMES = ("a.png", "b.png", "c.png", "d.png")
WEIGHTS = {"mapping": "a" * 64, "old_vae": "b" * 64}


def draw(path: Path, colour: int = 200) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8), (colour, 100, 50)).save(path)
    return path


def negative(photo: Photo, mask: Any) -> Any:
    return negative_of(photo, mask)


def with_all(photo: Photo, mask: Any) -> Any:
    """A restoration with a mask and a face, all of which can be saved."""
    before, after = np.full((4, 4, 3), 10, np.uint8), np.full((4, 4, 3), 99.0, np.float32)
    face = Face((0.0, 0.0, 4.0, 4.0), 1.0, np.zeros((5, 2)), np.eye(2, 3), before, after)
    return negative_of(photo, np.ones((8, 12), np.bool_), faces=(face,))


def beside(folder: Path) -> dict[str, Any]:
    """Options that write more files than outputs."""
    return {
        "beside": planning.Beside(save_masks=folder / "masks", save_faces=folder / "faces", compare=True),
    }


def all_files(folder: Path) -> list[str]:
    """What a whole run with these options leaves, below the folder."""
    crops = [f"faces/{name}.face1.{side}.png" for name in NAMES for side in ("before", "after")]
    more = [f"out/{name}.before-after.jpg" for name in NAMES]
    files = [*crops, *more, *(f"{place}/{name}" for place in ("in", "masks", "out") for name in NAMES)]
    return sorted([*files, "out/run.jsonl"])


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def setting(options: Options | None = None, weights: dict[str, str] = WEIGHTS, **more: Any) -> Setting:
    return Setting(options or Options(), "compact", weights, **more)


def make_plan(folder: Path, records: Any = None, **kwargs: Any) -> planning.Plan:
    return planning.plan([str(folder / "in")], str(folder / "out"), records=records, **kwargs)


def go_on(folder: Path, now: Setting | None = None, restore: Any = negative, **kwargs: Any) -> list[str]:
    """Resume the run of this folder; the names of the photos that were restored, and why."""
    now = now or setting()
    log = folder / "out/run.jsonl"
    records = manifest.last_lines(manifest.read(log)) if log.exists() else {}
    done: list[str] = []
    plan = batch.resume(
        make_plan(folder, records, **kwargs),
        records,
        now,
        lambda photo, why: done.append(f"{photo.source.name}: {why}"),
    )
    with Manifest(log, resume=True) as kept:
        summary = batch.run(
            plan.photos,
            lambda: batch.Work(restore, now),
            keep=kept.append,
            on_done=lambda outcome: done.append(outcome.planned.source.name),
        )
    assert not summary.failed
    return done


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        draw(tmp_path / "in" / name)
    return tmp_path


@pytest.fixture
def done(folder: Path) -> Path:
    assert go_on(folder) == list(NAMES)
    return folder


# ---- what is done, and what is to be done again ----


def test_what_is_done_and_verified_is_skipped(done: Path) -> None:
    assert go_on(done) == []
    assert go_on(done, setting(device="cuda:0")) == []  # where it ran is no reason to do it again


def test_another_input_is_restored_again(done: Path) -> None:
    draw(done / "in/b.png", colour=10)
    assert go_on(done) == ["b.png: its input is changed", "b.png"]
    with Image.open(done / "out/b.png") as picture:
        assert picture.getpixel((0, 0)) == (245, 155, 205)
    assert go_on(done) == []


def test_a_lost_or_changed_output_is_restored_again(done: Path) -> None:
    (done / "out/a.png").unlink()
    (done / "out/c.png").write_bytes(b"overwritten by something else")
    assert go_on(done) == ["a.png: its output is missing", "c.png: its output is changed", "a.png", "c.png"]


@pytest.mark.parametrize(
    ("now", "why"),
    [
        (setting(Options(faces=False)), "the options are others"),
        (setting(weights=WEIGHTS | {"mapping": "c" * 64}), "the weights are others"),
        (setting(precision="fp16"), "the weights are others"),
        (Setting(Options(), "published", WEIGHTS), "the weights are others"),
    ],
)
def test_other_options_or_weights_restore_all_again(done: Path, now: Setting, why: str) -> None:
    assert go_on(done, now) == [*(f"{name}: {why}" for name in NAMES), *NAMES]
    assert go_on(done, now) == []


def test_another_mask_restores_the_photo_again(folder: Path) -> None:
    for name in NAMES:
        draw(folder / "masks" / name)
    masks: dict[str, Any] = {
        "masks": folder / "masks",
        "beside": planning.Beside(save_masks=folder / "saved"),
    }
    assert go_on(folder, **masks) == list(NAMES)
    assert go_on(folder, **masks) == []
    draw(folder / "masks/a.png", colour=250)
    (folder / "saved/b.png").unlink()
    assert go_on(folder, **masks) == [
        "a.png: its mask is changed",
        "b.png: its saved mask is missing",
        "a.png",
        "b.png",
    ]
    assert go_on(folder)[0] == "a.png: its mask is not the same"


def test_a_failed_photo_is_tried_again(folder: Path) -> None:
    good = (folder / "in/b.png").read_bytes()
    (folder / "in/b.png").write_bytes(b"not yet whole")
    with Manifest(folder / "out/run.jsonl") as kept:
        batch.run(make_plan(folder).photos, lambda: batch.Work(negative, setting()), keep=kept.append)
    (folder / "in/b.png").write_bytes(good)
    assert go_on(folder) == ["b.png"]


def test_an_output_that_the_manifest_does_not_know_is_somebody_elses(done: Path) -> None:
    draw(done / "in/new.png")
    draw(done / "out/new.png")
    with pytest.raises(RefusedOverwriteError, match=r"new\.png exists"):
        go_on(done)


# ---- cut off ----

CUT_OFF = """
import os, signal, sys
from pathlib import Path
from oldphoto.runs import batch
from oldphoto.records import manifest
from oldphoto.runs import planning
from tests.runs.test_resume import beside, make_plan, setting, with_all

folder, moment = Path(sys.argv[1]), sys.argv[2]

def die(when, second=[]):
    if when == moment:
        second.append(when)
        if len(second) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

def restore(photo, mask):
    die("restoring")
    return with_all(photo, mask)

def replace(part, path, path_replace=Path.replace):
    path_replace(part, path)
    if path.name == {"a crop placed": "b.png.face1.before.png", "placed": "b.png.before-after.jpg"}.get(moment):
        os.kill(os.getpid(), signal.SIGKILL)

Path.replace = replace

def keep(record):
    die("written")
    kept.append(record)
    die("recorded")

def write(handle, data, os_write=os.write):
    if moment == "half a line" and kept._size:
        os_write(handle, data[:100])
        os.kill(os.getpid(), signal.SIGKILL)
    return os_write(handle, data)

os.write = write
with manifest.Manifest(folder / "out/run.jsonl") as kept:
    batch.run(make_plan(folder, **beside(folder)).photos, lambda: batch.Work(restore, setting()), keep=keep,
              on_done=lambda outcome: die("done"))
"""


@pytest.mark.parametrize(
    "moment",
    ["restoring", "written", "half a line", "recorded", "a crop placed", "placed", "done"],
)
def test_killed_at_any_moment(folder: Path, moment: str) -> None:
    killed = subprocess.run([sys.executable, "-c", CUT_OFF, str(folder), moment], cwd=Path(__file__).parents[2])
    assert killed.returncode == -signal.SIGKILL
    whole = {"done": ["a.png", "b.png"]}.get(moment, ["a.png"])
    shown = sorted((folder / "out").glob("[!.]*.png"))
    assert [path.name for path in shown] == whole
    for path in shown:
        with Image.open(path) as picture:
            assert np.asarray(picture)[0, 0].tolist() == [55, 155, 205]
    recorded = [Path(record["output"]["path"]).name for record in manifest.read(folder / "out/run.jsonl")]
    after_the_line = moment in ("recorded", "a crop placed", "placed")
    assert recorded == (["a.png", "b.png"] if after_the_line or moment == "done" else ["a.png"])
    again = go_on(folder, restore=with_all, **beside(folder))
    assert again[0].startswith("b.png: its " if after_the_line else "")
    assert again[after_the_line:] == [name for name in NAMES if name not in whole]
    assert files_below(folder) == all_files(folder)
    assert not any(changes for _, changes in manifest.verify(manifest.read(folder / "out/run.jsonl")))


# The command without networks; it waits at the photo of the number given first. Jobs in the background of a shell come
# with Ctrl-C ignored.
COMMAND = """
import signal, sys, time
from oldphoto import cli
from oldphoto.cli import networks
from oldphoto.runs import watch
from oldphoto.runs import batch
from oldphoto.runs import planning
from tests.runs.test_resume import negative, setting

def restore(photo, mask):
    seen.append(photo)
    if len(seen) == wait:
        print("ready", flush=True)
        time.sleep(60)
    return negative(photo, mask)

signal.signal(signal.SIGINT, signal.default_int_handler)
seen, wait = [], int(sys.argv.pop(1))
watch.PAUSE_SECONDS = 0.2
networks.load_models = lambda *_: batch.Work(restore, setting())
cli.main()
"""


def interrupted(code: str, *arguments: object, timeout: float) -> str:
    """What Python code wrote to stderr that was met by Ctrl-C when it said "ready", and ended as it should."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=timeout)
    assert run.returncode == 130, said
    return said


def test_ctrl_c_ends_the_run_with_whole_files_and_a_summary(folder: Path) -> None:
    arguments = [
        "restore",
        folder / "in",
        "-o",
        folder / "out",
        "--model",
        "compact",
        "--manifest",
        folder / "run.jsonl",
    ]
    said = interrupted(COMMAND, 2, *arguments, timeout=60)
    assert said.splitlines()[-1] == "1 restored, interrupted with 3 to go"
    assert [path.name for path in (folder / "out").iterdir()] == ["a.png"]
    assert len(manifest.read(folder / "run.jsonl")) == 1


# Two photos in work in torch and one half written when Ctrl-C comes; the first is done.
AT_ONCE = """
import signal, sys, time
import torch
from oldphoto import cli
from oldphoto.cli import networks
from oldphoto.runs import batch
from oldphoto.files import image
from oldphoto.runs import planning
from oldphoto.machine.memory import line
from tests.runs.test_resume import negative, setting

def restore(photo, mask):
    with line.admitted(1, 1 << 60):
        seen.append(photo)
        place = len(seen)
        while place in (2, 3):
            torch.conv2d(torch.ones(1, 64, 200, 200), torch.ones(64, 64, 3, 3))
            if len(seen) == 4:
                tell("ready")
    return negative(photo, mask)

def write(photo, handle, quality):
    write_png(photo, handle, quality)
    while len(seen) == 4 and photo is not first[0]:
        time.sleep(0.01)

def tell(word):
    if word not in told:
        told.append(word)
        print(word, flush=True)

def write_first(photo, handle, quality):
    first.append(photo)
    image._WRITERS["PNG"] = write
    write_png(photo, handle, quality)

signal.signal(signal.SIGINT, signal.default_int_handler)
seen, told, first = [], [], []
write_png, image._WRITERS["PNG"] = image._WRITERS["PNG"], write_first
work = batch.Work(restore, setting(), places=3, share=lambda at_once: torch.set_num_threads(1))
networks.load_models = lambda *_: work
cli.main()
"""


def test_ctrl_c_stops_all_that_are_in_work_and_the_next_run_does_them(folder: Path) -> None:
    log = folder / "out/run.jsonl"
    arguments = ["restore", folder / "in", "-o", folder / "out", "--model", "compact", "--manifest", log]
    said = interrupted(AT_ONCE, *arguments, timeout=300)
    assert said.splitlines()[-1] == "1 restored, interrupted with 3 to go"
    whole = [path.name for path in (folder / "out").iterdir()]
    assert len(whole) == 2, whole  # one photo and the manifest: no part of another
    assert len(manifest.read(log)) == 1
    assert sorted(go_on(folder)) == sorted(set(NAMES) - set(whole))


# ---- what can go wrong with the disk ----


def test_a_full_disk_costs_the_photos_that_do_not_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(photo: Photo, handle: BinaryIO, quality: int | None) -> None:
        handle.write(b"the first block")
        if len(written) in (1, 2):
            written.append(0)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(1)
        handle.seek(0)
        write_png(photo, handle, quality)

    written: list[int] = []
    write_png = image._WRITERS["PNG"]
    monkeypatch.setitem(image._WRITERS, "PNG", full)
    with Manifest(folder / "run.jsonl") as kept:
        summary = batch.run(make_plan(folder).photos, lambda: batch.Work(negative, setting()), keep=kept.append)
    assert summary.exit_code == 4
    assert [outcome.error is None for outcome in summary.outcomes] == [True, False, False, True]
    assert "No space left" in str(summary.outcomes[1].error)
    records = manifest.read(folder / "run.jsonl")
    assert [record["error"] and record["error"]["kind"] for record in records] == [
        None,
        "FileAccessError",
        "FileAccessError",
        None,
    ]
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["a.png", "d.png"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="has no folder that is read-only for everybody")
def test_a_target_that_cannot_be_written_costs_its_photo(folder: Path) -> None:
    good, bad = folder / "out/a.png", Path("/proc/self/a.png")
    photos = [Planned(folder / "in/a.png", bad), Planned(folder / "in/a.png", good)]
    summary = batch.run(photos, lambda: batch.Work(negative, setting()))
    assert [type(outcome.error).__name__ for outcome in summary.outcomes] == ["FileAccessError", "NoneType"]
    assert summary.exit_code == 4


def test_an_input_that_vanishes_before_its_turn_costs_itself(folder: Path) -> None:
    def restore(photo: Photo, mask: Any) -> Any:
        (folder / "in/b.png").unlink(missing_ok=True)
        return negative(photo, mask)

    with Manifest(folder / "run.jsonl") as kept:
        summary = batch.run(make_plan(folder).photos, lambda: batch.Work(restore, setting()), keep=kept.append)
    assert summary.exit_code == 4
    assert [outcome.planned.source.name for outcome in summary.failed] == ["b.png"]
    assert [record["status"] for record in manifest.read(folder / "run.jsonl")].count("failed") == 1


# ---- parts ----


def test_every_photo_is_in_one_part_whatever_else_is_there(tmp_path: Path) -> None:
    places = [Path(f"{decade}/scan {number}.tif") for decade in range(1890, 1990, 10) for number in range(100)]
    parts = [[place for place in places if Shard(number, 7).holds(place)] for number in range(1, 8)]
    assert sorted(place for part in parts for place in part) == sorted(places)
    assert min(map(len, parts)) > 1000 / 7 * 0.8
    # On record, since a job that is started again, maybe by a later version, has to find the same parts.
    assert [Shard(number, 3).holds(Path("1890/scan 0.tif")) for number in (1, 2, 3)] == [False, True, False]


def test_parts_do_not_mind_each_others_outputs(folder: Path) -> None:
    names: list[str] = []
    for number in (1, 2):
        plan = make_plan(folder, shard=Shard(number, 2))
        names += [photo.source.name for photo in plan.photos]
        batch.run(plan.photos, lambda: batch.Work(negative, setting()))
    assert sorted(names) == list(NAMES)


@pytest.mark.parametrize("text", ["", "1", "1/", "a/b", "-1/2", "0/2", "3/2", "1/0"])
def test_parts_that_there_are_not(text: str) -> None:
    with pytest.raises(UsageError):
        Shard.parse(text)


# ---- arrivals ----


class Watched:
    """A folder that is watched, by a clock that goes on by a pause with each look."""

    def __init__(self, folder: Path, **more: Any) -> None:
        self.folder, self.now, self.said, self.work = folder, 0.0, list[str](), batch.Work(negative, setting())
        self.options = {"format": more.pop("format", None)}

        def stale(photo: Planned, record: manifest.Record) -> str | None:
            return batch.stale(photo, record, setting())

        self.watch = Watch(folder / "in", self.plan, stale, say=self.said.append, clock=lambda: self.now, **more)
        self.photos = iter(self.watch)

    def plan(self) -> planning.Plan:
        naming = planning.Naming(format=self.options["format"])
        return make_plan(self.folder, existing="overwrite", service=True, naming=naming, recursive=True)

    def look(self, times: int = 2) -> list[str]:
        """What is restored at the next looks: two are needed for what has just changed."""
        names = []
        for _ in range(times):
            while (photo := next(self.photos)) is not None:
                self.watch.started(photo)
                names.append(photo.source.name if photo.problem is None else f"{photo.source.name}: {photo.problem}")
                (outcome,) = batch.run([photo], lambda: self.work).outcomes
                self.watch.done(outcome)
            self.now += PAUSE_SECONDS
        return names


def test_a_photo_is_taken_once_it_is_no_longer_written_to(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    watched = Watched(tmp_path)
    assert watched.look(1) == []
    draw(tmp_path / "in/a.png")
    assert watched.look(1) == []
    (tmp_path / "in/a.png").write_bytes(b"growing" * 100)
    assert watched.look(1) == []
    draw(tmp_path / "in/b.png")
    assert watched.look(1) == ["a.png"]
    assert watched.look(1) == ["b.png"]
    assert watched.look() == []
    (tmp_path / "in/a.png").write_bytes(b"once more")
    assert watched.look() == ["a.png"]


def test_a_photo_is_not_taken_before_its_time_nor_while_it_is_in_work(folder: Path) -> None:
    watched = Watched(folder)
    assert next(watched.photos) is None
    watched.now = PAUSE_SECONDS * 0.9
    assert next(watched.photos) is None
    watched.watch.started(Planned(folder / "in/b.png", folder / "out/b.png"))
    watched.now = PAUSE_SECONDS
    assert [photo and photo.source.name for photo in islice(watched.photos, 4)] == ["a.png", "c.png", "d.png", None]


@pytest.mark.parametrize("recorded", [False, True])
def test_a_photo_that_changed_after_it_was_restored_is_restored_again(folder: Path, recorded: bool) -> None:
    first = Watched(folder)
    assert first.look() == list(NAMES)
    records = first.watch._records if recorded else {}
    watched = Watched(folder, records=records) if recorded else first
    assert watched.look() == []
    (folder / "in/b.png").touch()  # another time, the same bytes
    draw(folder / "in/c.png", colour=10)
    assert watched.look() == ["c.png"]
    assert watched.said[-1:] == [f"{folder}/in/c.png is restored again: its input is changed"]
    with Image.open(folder / "out/c.png") as picture:
        assert picture.getpixel((0, 0)) == (245, 155, 205)
    # What somebody made of an output is not thrown away.
    (folder / "out/d.png").write_bytes(b"retouched")
    draw(folder / "in/d.png", colour=10)
    assert watched.look() == []
    assert (folder / "out/d.png").read_bytes() == b"retouched"
    assert watched.said[-1].endswith("was changed too, and stays")
    (folder / "out/a.png").unlink()
    (folder / "in/a.png").touch()
    assert watched.look() == ["a.png"]


def test_an_output_of_somebody_else_stays_and_that_is_said_where_it_is_old(folder: Path) -> None:
    draw(folder / "out/a.png")
    draw(folder / "out/b.png")
    os.utime(folder / "out/b.png", (1, 1))
    watched = Watched(folder)
    assert watched.look(4) == ["c.png", "d.png"]
    assert len(watched.said) == 1
    assert watched.said[0].startswith(f"{folder}/in/b.png is newer than {folder}/out/b.png, which stays")
    assert Watched(folder, overwrite=True).look() == list(NAMES)


def test_what_cannot_be_done_does_not_end_a_watch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(folder, format="png")
    assert watched.look() == list(NAMES)
    Image.new("RGB", (12, 8)).save(folder / "in/a.bmp")
    assert watched.look(4) == [f"a.bmp: {folder}/in/a.png and {folder}/in/a.bmp would both become {folder}/out/a.png"]
    draw(folder / "in/A.png")  # on some disks its output is the same file
    draw(folder / "in/e.png")
    assert watched.look() == ["A.png", "e.png"] or (folder / "in/A.png").samefile(folder / "in/a.png")
    listed = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    (folder / "in/locked").mkdir()
    draw(folder / "in/f.png")
    done = watched.look()
    assert "f.png" in done
    assert any(name.startswith("locked: cannot read the folder") for name in done)
    really = watched.watch.plan

    def broken() -> planning.Plan:
        raise FileAccessError("the masks are gone")

    watched.watch.plan = broken
    assert watched.look() == []
    assert watched.said.count("the masks are gone") == 1
    watched.watch.plan = really
    draw(folder / "in/g.png")
    assert watched.look() == ["g.png"]


def test_a_folder_that_is_not_there_is_waited_for_aloud(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    assert watched.look(3) == []
    assert watched.said == [f"waiting for {tmp_path}/in, which is not there"]
    draw(tmp_path / "in/a.png")
    assert watched.look() == ["a.png"]
    shutil.rmtree(tmp_path / "in")
    watched.look()
    assert len(watched.said) == 2
    with pytest.raises(UsageError, match="is no folder"):
        next(iter(Watch(draw(tmp_path / "x.png"), watched.plan, lambda photo, record: None)))


def test_a_watched_folder_is_restored_until_ctrl_c(folder: Path) -> None:
    arguments = ["restore", "--watch", folder / "in", "-o", folder / "out", "--model", "compact"]
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, "0", *map(str, arguments), "--resume", str(folder / "run.jsonl")],
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        deadline = time.monotonic() + 60
        draw(folder / "in/late.png")
        while not (folder / "out/late.png").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert said.splitlines()[-1] == "5 restored, interrupted"
    assert len(manifest.read(folder / "run.jsonl")) == 5


def test_another_face_finder_is_another_restoration(folder: Path) -> None:
    first = setting(weights=WEIGHTS | {"face_finder": "c" * 64})
    go_on(folder, first)
    record = next(iter(manifest.read(folder / "out/run.jsonl")))
    assert record["model"] is not None
    assert record["model"]["weights"]["face_finder"] == "c" * 64
    assert go_on(folder, first) == []
    again = go_on(folder, setting(weights=WEIGHTS | {"face_finder": "d" * 64}))
    assert again[: len(NAMES)] == [f"{name}: the weights are others" for name in NAMES]
