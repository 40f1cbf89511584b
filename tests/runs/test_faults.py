"""Paths that lead to no photo, disks that lack something, neighbours in the same folder: each costs itself."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oldphoto.errors import FileAccessError, NoInputError, OldphotoError, RefusedOverwriteError, UsageError
from oldphoto.files.masks import write_mask
from oldphoto.machine import disk
from oldphoto.options import Options
from oldphoto.records import manifest, report
from oldphoto.records.c2pa import Signer
from oldphoto.runs import batch, planning
from oldphoto.runs.batch import Work
from oldphoto.runs.planning import Naming, Planned
from tests.runs.test_resume import NAMES, draw, files_below, negative, setting

LONG = "x" * 300


def run(plan: planning.Plan, **kwargs: Any) -> batch.Summary:
    return batch.run(plan.photos, partial(Work, negative, setting()), **kwargs)


def outcome_of(make_plan: Callable[[], planning.Plan]) -> Exception | None:
    """The error of making a plan, or else of its first photo."""
    try:
        return run(make_plan()).outcomes[0].error
    except OldphotoError as error:
        return error


def errors(summary: batch.Summary) -> dict[str, str]:
    return {outcome.planned.source.name: str(outcome.error) for outcome in summary.failed}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        draw(tmp_path / "in" / name)
    return tmp_path


@pytest.fixture
def no_way_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """in/locked, a folder that may not be looked into, whoever runs the test."""
    locked = folder / "in/locked"
    draw(locked / "e.png")

    def refused(really: Any, path: Any = ".", *more: Any, **kwargs: Any) -> Any:
        inside = isinstance(path, str | Path) and locked in Path(path).parents
        if inside or (really is scandir and Path(path) == locked):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return really(path, *more, **kwargs)

    scandir = os.scandir
    for name in ("scandir", "stat", "lstat", "open"):
        monkeypatch.setattr(os, name, partial(refused, getattr(os, name)))
    return locked


# ---- what is no file of pixels ----


def broken_tiff(path: Path) -> None:
    """A BigTIFF whose next page lies beyond what any offset can say."""
    entry = struct.pack("<HHQQ", 256, 3, 1, 1)
    path.write_bytes(b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 1) + entry + b"\xff" * 8)


def odd_things(folder: Path) -> dict[str, str]:
    """Paths that are named like photos; for each, a part of what is said of it."""
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.tif").symlink_to("/dev/zero")
    (folder / "nowhere.png").symlink_to("nothing")
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "to pipe.png").symlink_to("pipe.png")
    broken_tiff(folder / "big.tif")
    with socket.socket(socket.AF_UNIX) as plug:
        plug.bind(str(folder / "plug.png"))
    return {
        "pipe.png": "it is a pipe",
        "to pipe.png": "it is a pipe",
        "plug.png": "it is a socket",
        "zero.tif": "it is a device",
        "nowhere.png": "No such file",
        "circle.png": "symbolic links",
        "big.tif": "big.tif",
    }


@pytest.mark.parametrize("save", [False, True])
def test_what_is_no_photo_costs_itself_and_keeps_nobody_waiting(folder: Path, save: bool) -> None:
    expected = odd_things(folder / "in")
    plan = planning.plan(
        [str(folder / "in")], str(folder / "out"), beside=planning.Beside(save_masks=folder / "masks" if save else None)
    )
    planning.large_or_not(plan.photos, Options())
    summary = run(plan)
    assert summary.exit_code == 4
    said = errors(summary)
    assert said.keys() == expected.keys()
    assert all(words in said[name] for name, words in expected.items()), said
    assert [name for name in files_below(folder / "out") if not name.startswith(".")] == list(NAMES)


@pytest.mark.parametrize("name", ["pipe.png", "zero.tif", "plug.png"])
def test_what_is_no_file_is_not_opened(folder: Path, name: str) -> None:
    odd_things(folder / "in")
    path = folder / "in" / name
    with pytest.raises(OSError, match="it is a"):
        disk.open_file(path)
    assert manifest.difference(path, {"path": str(path), "sha256": "0" * 64, "bytes": 1}) == "unreadable"
    (photo,) = planning.find_photos([str(path)])
    assert isinstance(photo.problem, FileAccessError)
    with pytest.raises(FileAccessError, match="it is a"):
        manifest.read(path)


# ---- folders ----


def test_a_folder_without_permission_costs_itself(no_way_in: Path, folder: Path) -> None:
    plan = planning.plan([str(folder / "in")], str(folder / "out"), recursive=True)
    summary = run(plan)
    assert summary.exit_code == 4
    assert errors(summary) == {"locked": f"cannot read the folder {no_way_in}: Permission denied"}
    assert files_below(folder / "out") == list(NAMES)
    with pytest.raises(FileAccessError, match="locked: Permission denied"):
        planning.plan([str(no_way_in)], str(folder / "out"))


@pytest.mark.parametrize("name", ["e.png", "sub/e.png", ""])
def test_a_path_through_such_a_folder_is_an_error_of_ours(no_way_in: Path, folder: Path, name: str) -> None:
    inside = no_way_in / name
    photo = folder / "in/a.png"
    assert isinstance(outcome_of(lambda: planning.plan([str(inside)], str(folder / "out/"))), OldphotoError)
    assert isinstance(outcome_of(lambda: planning.plan([str(photo)], f"{inside}/")), OldphotoError)
    assert isinstance(outcome_of(lambda: planning.plan([str(photo)], str(folder / "o/"), masks=inside)), OldphotoError)


@pytest.mark.parametrize("name", [LONG + ".png", "/".join("y" * 100 for _ in range(60)) + "/a.png"])
def test_names_that_are_too_long(folder: Path, name: str) -> None:
    with pytest.raises(NoInputError):
        planning.plan([str(folder / "in" / name)], str(folder / "out"))
    with pytest.raises(NoInputError):
        planning.plan([], str(folder / "out"), listed=["a.png\nb.png\n" * 600])
    (photo,) = planning.plan([str(folder / "in/a.png")], str(folder / "out" / name)).photos
    assert isinstance(photo.problem, FileAccessError)  # before any work
    with pytest.raises(FileAccessError):
        planning.plan([str(folder / "in/a.png")], str(folder / "out/"), masks=folder / name)
    with pytest.raises(FileAccessError):
        manifest.Manifest(folder / name, resume=True)


def test_links_to_folders_are_told_of(folder: Path) -> None:
    draw(folder / "elsewhere/f.png")
    (folder / "in/sub").mkdir()
    (folder / "in/linked").symlink_to(folder / "elsewhere")
    (folder / "in/sub/back").symlink_to(folder / "in")
    plan = planning.plan([str(folder / "in")], str(folder / "out"), recursive=True)
    assert [photo.source.name for photo in plan.photos] == list(NAMES)
    (note,) = plan.notes
    assert note.startswith(f"{folder}/in/linked (and 1 more) is a link to a folder, and not searched")
    assert planning.plan([str(folder / "in")], str(folder / "out")).notes == ()
    assert len(planning.plan([str(folder / "in/linked")], str(folder / "out")).photos) == 1


def test_the_working_folder_may_be_gone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "gone").mkdir()
    monkeypatch.chdir(folder / "gone")
    (folder / "gone").rmdir()
    with pytest.raises(OldphotoError):
        planning.plan(["a.png", "b.png"], "out")
    with pytest.raises(FileAccessError, match="working folder is gone"):
        planning.plan([str(folder / "in")], "out")


@pytest.mark.parametrize("template", ["{stem:>99999999999}", "{number:09999999999}", "{stem:>300}"])
def test_a_name_of_any_width_is_none(template: str) -> None:
    with pytest.raises(UsageError, match="is not one"):
        Naming(template=template)
    assert Naming(template="{number:0200}").name(Path("a.png"), 7) == "7".rjust(200, "0") + ".png"


# ---- what would be written over ----


@pytest.mark.parametrize("own", ["out/a.png", "out/A.PNG", "masks/b.png", "faces/c.png.face7.after.png"])
@pytest.mark.parametrize("there", [False, True])
def test_no_output_takes_the_place_of_another_file_of_the_run(folder: Path, own: str, there: bool) -> None:
    if there:
        (folder / own).parent.mkdir(parents=True)
        (folder / own).write_text("{}")
    beside = planning.Beside(save_masks=folder / "masks", save_faces=folder / "faces")
    more: dict[str, Any] = {"beside": beside, "existing": "overwrite"}
    with pytest.raises(RefusedOverwriteError, match="the manifest"):
        planning.plan([str(folder / "in")], str(folder / "out"), own={folder / own: "the manifest"}, **more)
    planning.plan([str(folder / "in")], str(folder / "out"), own={folder / "out/run.jsonl": "the manifest"}, **more)


def test_a_link_to_a_file_of_the_run_is_that_file(folder: Path) -> None:
    (folder / "key.pem").write_text("secret")
    (folder / "out").mkdir()
    (folder / "out/b.png").symlink_to(folder / "key.pem")
    with pytest.raises(RefusedOverwriteError, match="the key"):
        planning.plan(
            [str(folder / "in")], str(folder / "out"), existing="overwrite", own={folder / "key.pem": "the key"}
        )


def test_of_two_runs_into_one_folder_the_second_loses(folder: Path) -> None:
    draw(folder / "more/a.png", colour=10)
    first = planning.plan([str(folder / "in")], str(folder / "out"))
    second = planning.plan([str(folder / "more")], str(folder / "out"))
    assert not run(first).failed
    before = (folder / "out/a.png").read_bytes()
    summary = run(second)
    assert summary.exit_code == 4
    assert isinstance(summary.failed[0].error, RefusedOverwriteError)
    assert (folder / "out/a.png").read_bytes() == before
    assert files_below(folder / "out") == list(NAMES)


@pytest.mark.parametrize(
    ("levels", "share", "said"),
    [(2, 0.02, "two colours alone"), (256, 0.02, ""), (256, 0.5, "50% of it"), (2, 0.5, "two colours alone")],
)
@pytest.mark.parametrize("own", [False, True])
def test_a_mask_that_is_likely_wrong_is_told_of(
    tmp_path: Path, levels: int, share: float, said: str, own: bool
) -> None:
    values = np.random.default_rng(0).integers(0, levels, (80, 100), dtype=np.uint8) * np.uint8(255 // (levels - 1))
    Image.fromarray(values).save(tmp_path / "a.png")
    mask = np.zeros((80, 100), np.bool_)
    mask[: int(80 * share)] = True

    def restore(photo: Any, given: Any) -> Any:
        return negative(photo, mask)

    if own:
        write_mask(mask, tmp_path / "mask.png")
    photo = Planned(tmp_path / "a.png", tmp_path / "out.png", mask=tmp_path / "mask.png" if own else None)
    (outcome,) = batch.run([photo], partial(Work, restore, setting())).outcomes
    warnings = " ".join(outcome.record["warnings"])
    assert said in warnings if said and not own else not warnings


@pytest.mark.parametrize(("mode", "said"), [(0o600, False), (0o640, True), (0o604, True), (0o400, False)])
def test_a_key_that_others_can_read_is_warned_of(tmp_path: Path, mode: int, said: bool) -> None:
    key = tmp_path / "key.pem"
    key.write_text("secret")
    key.chmod(mode)
    assert (Signer.exposed(key) is not None) == said
    assert Signer.exposed(tmp_path / "absent.pem") is None


@pytest.mark.parametrize("links", [True, False])
def test_a_name_that_is_taken_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def none(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", none)
    (tmp_path / "part").write_text("new")
    disk.move(tmp_path / "part", tmp_path / "free", replace=False)
    assert files_below(tmp_path) == ["free"]
    (tmp_path / "part").write_text("newer")
    with pytest.raises(FileExistsError):
        disk.move(tmp_path / "part", tmp_path / "free", replace=False)
    assert (tmp_path / "free").read_text() == "new"
    disk.move(tmp_path / "part", tmp_path / "free")
    assert (tmp_path / "free").read_text() == "newer"


# ---- a disk that cannot say when it is done ----


@pytest.fixture(params=[errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EIO])
def fsync_error(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    def refuse(handle: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(os, "fsync", refuse)
    return request.param


def test_without_fsync_outputs_are_written_all_the_same(folder: Path, fsync_error: int) -> None:
    with manifest.Manifest(folder / "run.jsonl") as kept:
        summary = run(planning.plan([str(folder / "in")], str(folder / "out")), keep=kept.append)
    if fsync_error == errno.EIO:  # the disk says that it failed
        assert len(summary.failed) == len(NAMES)
        return
    assert not summary.failed
    assert files_below(folder / "out") == list(NAMES)
    assert report.write_report(folder / "page.html", manifest.read(folder / "run.jsonl")) == len(NAMES)


def test_a_photo_whose_output_may_be_replaced_is(folder: Path) -> None:
    draw(folder / "out/a.png")
    summary = batch.run([Planned(folder / "in/a.png", folder / "out/a.png")], partial(Work, negative, setting()))
    assert not summary.failed
