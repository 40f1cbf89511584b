"""The command: what it prints where, and the exit code of each way to end. The networks are stood in for."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from oldphoto import __version__, cli, weights
from oldphoto.cli import networks
from oldphoto.cli.flags import from_flags, with_flags
from oldphoto.cli.progress import Verbosity
from oldphoto.errors import ExitCode, UsageError, WeightsCorruptError, WeightsUnavailableError
from oldphoto.files.image import Photo, hidden_name
from oldphoto.options import Options, Panel, declared
from oldphoto.records.manifest import Setting
from oldphoto.runs.batch import Work
from oldphoto.runs.planning import large_or_not
from oldphoto.runs.request import RunRequest
from oldphoto.training import STAGE_NAMES
from tests.restorations import negative_of

ROOT = Path(__file__).resolve().parents[2]


class Calls:
    """Stands in for the networks; remembers with what they were asked for."""

    def __init__(self) -> None:
        self.wanted = ("", False)
        self.loads: list[tuple[str, str, str, bool]] = []
        self.options = Options()
        self.large: set[bool] = set()
        self.masked: list[bool] = []
        self.error: BaseException | None = None
        self.jobs: int | None = None

    def find(self, photos: Any, request: RunRequest, progress: Any) -> weights.WeightSet:
        self.wanted = (request.model, request.offline or request.dry_run)
        self.large = large_or_not(photos, request.options)
        return weights.WeightSet("compact", {}, None, {"mapping": "0" * 64})

    def load(self, weight_set: weights.WeightSet, request: RunRequest, tell: Any) -> Work:
        model, offline = self.wanted
        self.loads.append((model, request.device, request.precision, offline))
        self.options = request.options
        self.jobs = request.jobs
        setting = Setting(request.options, weight_set.name, weight_set.hashes, provenance=request.provenance)
        return Work(self.restore, setting)

    def restore(self, photo: Photo, mask: Any) -> Any:
        self.masked.append(mask is not None)
        if self.error is not None:
            raise self.error
        return negative_of(
            photo,
            mask,
            faces=(SimpleNamespace(number=1, box=(1.0, 2.0, 5.0, 6.0), score=0.5, after=None, kept=None),) * 2,
            seconds={"translation": 0.25},
            warnings=("a face was too small",),
        )


@pytest.fixture(autouse=True)
def quiet_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No terminal, no user's caches, no network."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "OLDPHOTO_WEIGHTS", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()
    monkeypatch.setattr(networks, "find_weights", calls.find)
    monkeypatch.setattr(networks, "load_models", calls.load)
    return calls


def draw(path: Path, size: tuple[int, int] = (12, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 100, 50)).save(path)
    return path


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def oldphoto(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], prog_name="oldphoto")


# ---- restore ----


def test_a_folder_is_restored(tmp_path: Path, calls: Calls) -> None:
    draw(tmp_path / "in/a.jpg")
    draw(tmp_path / "in/b.png", size=(5, 7))
    done = oldphoto("restore", tmp_path / "in", "-o", tmp_path / "out")
    assert done.exit_code == 0
    assert done.stdout == ""
    assert (size_of(tmp_path / "out/a.jpg"), size_of(tmp_path / "out/b.png")) == ((12, 8), (5, 7))
    lines = done.stderr.splitlines()
    assert [line for line in lines if "[2/2]" in line and "b.png" in line]
    assert [line for line in lines if line.endswith("a face was too small")]
    assert lines[-1] == "2 restored"
    assert calls.loads == [("auto", "auto", "fp32", False)]
    assert calls.options == Options()


def test_every_option_reaches_the_pipeline(tmp_path: Path, calls: Calls) -> None:
    draw(tmp_path / "a.jpg")
    done = oldphoto(
        *("restore", tmp_path / "a.jpg", "-o", tmp_path / "b.jpg", "--with-scratch", "--hr", "--no-faces"),
        *("--face-size", 512, "--scratch-threshold", 0.25, "--mask-dilation", 2, "--device", "cuda:1"),
        *("--precision", "bf16", "--model", "compact", "--offline"),
    )
    assert done.exit_code == 0, done.stderr
    assert calls.loads == [("compact", "cuda:1", "bf16", True)]
    assert calls.options == Options(
        with_scratch=True, hr="on", faces=False, face_size=512, scratch_threshold=0.25, mask_dilation=2
    )
    assert size_of(tmp_path / "b.jpg") == (12, 8)


def test_names_and_formats_of_outputs(tmp_path: Path, calls: Calls) -> None:
    draw(tmp_path / "in/a.jpg")
    draw(tmp_path / "in/b.png")
    out = tmp_path / "out"
    assert oldphoto("restore", tmp_path / "in", "-o", out, "--suffix", "_new", "--format", "webp").exit_code == 0
    assert (
        oldphoto("restore", tmp_path / "in", "-o", out, "--name-template", "{number:03}", "--quality", 30).exit_code
        == 0
    )
    assert calls.options == Options(quality=30)
    assert sorted(path.name for path in out.iterdir()) == ["001.jpg", "002.png", "a_new.webp", "b_new.webp"]
    done = oldphoto("restore", tmp_path / "in", "-o", out, "--name-template", "same", "--format", "tif")
    assert done.exit_code == ExitCode.REFUSED_OVERWRITE
    assert "would both become" in done.stderr


def test_damage_alone_reaches_the_pipeline(tmp_path: Path, calls: Calls) -> None:
    photo = draw(tmp_path / "a.png")
    assert oldphoto("restore", photo, "-o", tmp_path / "b.png", "--only-damaged", "--with-scratch").exit_code == 0
    assert calls.options == Options(only_damaged=True, with_scratch=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only-damaged"], "no damage to repair"),
        (["--only-damaged", "--with-scratch", "--only-face", "1"], "only damage is repaired"),
        (["--only-damaged", "--with-scratch", "--save-faces", "faces"], "leaves faces alone"),
        (["--format", "gif"], "cannot write gif files"),
        (["--quality", "0"], "equal to 1"),
        (["--name-template", "{year}"], "is not one"),
        (["--suffix", "x", "--name-template", "{stem}"], "contradict"),
    ],
    ids=str,
)
def test_options_that_cannot_be(tmp_path: Path, calls: Calls, arguments: list[str], message: str) -> None:
    photo = draw(tmp_path / "a.png")
    done = oldphoto("restore", photo, "-o", f"{tmp_path / 'out'}/", *arguments)
    assert done.exit_code == ExitCode.USAGE
    assert message in done.stderr
    assert calls.loads == []


def test_how_much_is_changed_reaches_the_pipeline(tmp_path: Path, calls: Calls) -> None:
    photo = draw(tmp_path / "a.jpg")
    assert oldphoto("restore", photo, "-o", tmp_path / "b.jpg", "--strength", 0.25, "--tone-strength", 0).exit_code == 0
    assert calls.options == Options(strength=0.25, tone_strength=0.0)
    assert oldphoto("restore", photo, "-o", tmp_path / "d.jpg", "--keep-blur").exit_code == 0
    assert calls.options == Options(sharpen=False)
    assert oldphoto("restore", photo, "-o", tmp_path / "c.jpg").exit_code == 0
    assert calls.options == Options()


def test_every_choice_of_faces_reaches_the_pipeline(tmp_path: Path, calls: Calls) -> None:
    photo = draw(tmp_path / "a.jpg")
    strength = ("--face-strength", 0.25, "--min-face", 70)
    assert (
        oldphoto("restore", photo, "-o", tmp_path / "b.jpg", *strength, "--only-face", 2, "--only-face", 1).exit_code
        == 0
    )
    assert calls.options == Options(face_strength=0.25, min_face=70, only_faces=(2, 1))
    assert oldphoto("restore", photo, "-o", tmp_path / "c.jpg", "--skip-face", 3).exit_code == 0
    assert calls.options == Options(skip_faces=(3,))
    assert oldphoto("restore", photo, "-o", tmp_path / "d.jpg", "--face-detector", "cnn").exit_code == 0
    assert calls.options == Options(face_detector="cnn")


@pytest.mark.parametrize(("flag", "hr"), [("--hr", "on"), ("--no-hr", "off"), (None, "auto")])
def test_the_large_photo_path_can_be_forced_either_way(tmp_path: Path, calls: Calls, flag: str | None, hr: str) -> None:
    draw(tmp_path / "in/small.png")
    draw(tmp_path / "in/large.png", size=(1500, 1000))
    arguments = ["restore", str(tmp_path / "in"), "-o", str(tmp_path / "out")] + ([flag] if flag else [])
    assert oldphoto(*arguments).exit_code == 0
    assert calls.options.hr == hr
    assert calls.large == {"on": {True}, "off": {False}, "auto": {False, True}}[hr]


def test_masks_are_used_and_saved(tmp_path: Path, calls: Calls) -> None:
    draw(tmp_path / "in/a.jpg")
    draw(tmp_path / "masks/a.png")
    done = oldphoto(
        *("restore", tmp_path / "in", "-o", tmp_path / "out", "--mask", tmp_path / "masks"),
        *("--save-mask", tmp_path / "saved", "--quiet"),
    )
    assert (done.exit_code, done.output) == (0, "")
    assert calls.masked == [True]
    assert size_of(tmp_path / "saved/a.png") == (12, 8)


def test_json_is_one_object_per_photo_and_nothing_else(tmp_path: Path, calls: Calls) -> None:
    draw(tmp_path / "in/a.jpg")
    draw(tmp_path / "in/ünï [b].png")
    draw(tmp_path / "out/a.jpg")
    (tmp_path / "in/bad.tif").write_bytes(b"not a picture")
    done = oldphoto("restore", tmp_path / "in", "-o", tmp_path / "out", "--json", "--skip-existing")
    assert done.exit_code == ExitCode.SOME_FAILED
    skipped, bad, good = [json.loads(line) for line in done.stdout.splitlines()]
    assert (skipped["status"], bad["status"], good["status"]) == ("skipped", "failed", "restored")
    assert bad["error"]["exit_code"] == ExitCode.BAD_IMAGE
    assert good["target"] == str(tmp_path / "out" / "ünï [b].png")
    assert (good["width"], good["height"], good["faces"]) == (12, 8, 2)
    assert good["stages"]["translation"] == 0.25
    assert good["warnings"] == ["a face was too small"]


def test_a_dry_run_does_nothing(tmp_path: Path, calls: Calls) -> None:
    draw(tmp_path / "in/a.jpg")
    done = oldphoto("restore", tmp_path / "in", "-o", tmp_path / "out", "--dry-run")
    assert done.exit_code == 0
    assert done.stdout == f"{tmp_path / 'in/a.jpg'} -> {tmp_path / 'out/a.jpg'}\n"
    assert not (tmp_path / "out").exists()
    assert not calls.loads
    as_json = oldphoto("restore", tmp_path / "in", "-o", tmp_path / "out", "--dry-run", "--json")
    assert json.loads(as_json.stdout)["status"] == "planned"


def test_nothing_left_to_do_loads_no_models(tmp_path: Path, calls: Calls) -> None:
    draw(tmp_path / "in/a.jpg")
    draw(tmp_path / "out/a.jpg")
    done = oldphoto("restore", tmp_path / "in", "-o", tmp_path / "out", "--skip-existing")
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (0, "0 restored, 1 skipped")
    assert not calls.loads


@pytest.mark.parametrize("choice", ["--skip-existing", "--overwrite"])
def test_half_files_of_a_killed_run_go(tmp_path: Path, calls: Calls, choice: str) -> None:
    draw(tmp_path / "in/a.jpg")
    ours, others = hidden_name(tmp_path / "out/a.jpg"), hidden_name(tmp_path / "out/b.jpg")
    for half in (ours, others):
        half.parent.mkdir(exist_ok=True)
        half.write_bytes(b"half")
    assert oldphoto("restore", tmp_path / "in", "-o", tmp_path / "out", choice).exit_code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.jpg", others.name}


def test_verbose_says_what_was_passed_over_and_how_long_it_took(tmp_path: Path, calls: Calls) -> None:
    draw(tmp_path / "in/a.jpg")
    (tmp_path / "in/notes.txt").write_text("x")
    done = oldphoto("restore", tmp_path / "in", "-o", tmp_path / "out", "--verbose")
    assert "passed over 1 " in done.stderr
    assert "12 x 8 pixels, 2 faces, read 0.0 s, translation 0.2 s" in done.stderr


def test_names_cannot_forge_lines_or_colours(tmp_path: Path, calls: Calls) -> None:
    draw(tmp_path / "in" / "a\n\x1b[31m[bold]b.jpg")
    done = oldphoto("restore", tmp_path / "in", "-o", tmp_path / "out")
    assert done.exit_code == 0
    assert r"a\n\x1b[31m[bold]b.jpg ->" in done.stderr


# ---- pipes, lists, parts, manifests ----


def content(size: tuple[int, int] = (12, 8), kind: str = "PNG") -> bytes:
    data = BytesIO()
    Image.new("RGB", size, (200, 100, 50)).save(data, kind)
    return data.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_a_photo_goes_through_pipes(calls: Calls, kind: str) -> None:
    done = CliRunner().invoke(cli.app, ["restore", "-", "-o", "-"], input=content(kind=kind))
    assert done.exit_code == 0, done.stderr
    with Image.open(BytesIO(done.stdout_bytes)) as picture:  # nothing but the photo is on stdout
        assert (picture.size, picture.format) == ((12, 8), kind)
        assert abs(np.asarray(picture)[0, 0] - np.array([55, 155, 205])).max() < 4
    assert "] - -> - (" in done.stderr


def test_one_end_of_the_pipe_can_be_a_file(tmp_path: Path, calls: Calls) -> None:
    done = CliRunner().invoke(cli.app, ["restore", "-", "-o", str(tmp_path / "b.png")], input=content())
    assert (done.exit_code, done.stdout_bytes, size_of(tmp_path / "b.png")) == (0, b"", (12, 8))
    done = oldphoto("restore", draw(tmp_path / "a.png", size=(5, 7)), "-o", "-", "--quiet")
    with Image.open(BytesIO(done.stdout_bytes)) as picture:
        assert (done.exit_code, done.stderr, picture.size) == (0, "", (5, 7))


def test_a_bad_photo_on_stdin_gives_nothing_on_stdout(calls: Calls) -> None:
    done = CliRunner().invoke(cli.app, ["restore", "-", "-o", "-"], input=b"no photo")
    assert (done.exit_code, done.stdout_bytes) == (ExitCode.BAD_IMAGE, b"")
    assert done.stderr.startswith("error: stdin is not a picture")


@pytest.mark.parametrize(
    "arguments",
    [
        ["-"],
        ["-", "-o", "folder/"],
        ["-", "a.jpg", "-o", "-"],
        ["-", "-o", "-", "--json"],
        ["-", "-o", "-", "--manifest", "run.jsonl"],
        ["-", "-o", "-", "--compare"],
        ["-", "-o", "-", "--report", "r.html"],
        ["a.jpg", "-o", "-", "--from0", "names"],
        ["--watch", "in", "a.jpg"],
        ["a.jpg", "--manifest", "a.jsonl", "--resume", "b.jsonl"],
        ["a.jpg", "--skip-existing", "--resume", "b.jsonl"],
        ["a.jpg", "--shard", "2"],
        ["a.jpg", "--shard", "0/2"],
        ["a.jpg", "--shard", "3/2"],
        [],
    ],
)
def test_what_does_not_go_together_is_refused(calls: Calls, arguments: list[str]) -> None:
    done = oldphoto("restore", *arguments)
    assert (done.exit_code, done.stdout, calls.loads) == (ExitCode.USAGE, "", [])
    assert done.stderr.startswith("error: ")


def test_names_come_in_with_a_nul_after_each(tmp_path: Path, calls: Calls) -> None:
    names = [str(draw(tmp_path / name)) for name in ("x/a [1].png", "x/b\nc.png", "y/d.png")]
    listed = "\0".join([*names, str(tmp_path / "x"), ""])  # as `find -print0` ends each, and folders too
    done = CliRunner().invoke(cli.app, ["restore", "--from0", "-", "-o", str(tmp_path / "out")], input=listed)
    assert done.exit_code == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a [1].png", "b\nc.png", "d.png"]
    (tmp_path / "list").write_text(listed)
    again = oldphoto("restore", "--from0", tmp_path / "list", "-o", tmp_path / "new")
    assert again.exit_code == 0


def test_listed_names_keep_their_folders_with_recursive(
    tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw(Path("x/a.png"))
    draw(Path("y/a.png"))
    flat = CliRunner().invoke(cli.app, ["restore", "--from0", "-", "-o", "out"], input="x/a.png\0./y/a.png\0")
    assert flat.exit_code == ExitCode.REFUSED_OVERWRITE
    done = CliRunner().invoke(cli.app, ["restore", "--from0", "-", "-o", "out", "-r"], input="x/a.png\0./y/a.png\0")
    assert done.exit_code == 0, done.stderr
    assert [size_of(Path("out") / name / "a.png") for name in "xy"] == [(12, 8)] * 2


def test_a_run_goes_on_with_its_manifest(tmp_path: Path, calls: Calls) -> None:
    draw(tmp_path / "in/a.jpg")
    arguments = ("restore", tmp_path / "in", "-o", tmp_path / "out", "--resume", tmp_path / "out/run.jsonl")
    assert oldphoto(*arguments).exit_code == 0  # the manifest need not be there yet
    draw(tmp_path / "in/b.jpg")
    done = oldphoto(*arguments)
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (0, "1 restored, 1 skipped")
    assert len((tmp_path / "out/run.jsonl").read_text().splitlines()) == 2
    loads = len(calls.loads)
    done = oldphoto(*arguments)
    assert (done.exit_code, done.stderr.splitlines()[-1], len(calls.loads)) == (0, "0 restored, 2 skipped", loads)
    done = oldphoto(*arguments, "--no-faces")
    assert done.stderr.splitlines()[0] == f"{tmp_path / 'in/a.jpg'} is restored again: the options are others"
    assert done.stderr.splitlines()[-1] == "2 restored"


def test_a_comparison_lies_beside_each_output(tmp_path: Path, calls: Calls) -> None:
    names = ("a.jpg", "a.png", "b.jpg")
    for name in names:
        draw(tmp_path / "in" / name, (40, 30))
    arguments = ("restore", tmp_path / "in", "-o", tmp_path / "out", "--compare")
    assert oldphoto(*arguments).exit_code == 0
    comparisons = [tmp_path / "out" / f"{name}.before-after.jpg" for name in names]
    assert sorted((tmp_path / "out").iterdir()) == sorted([*comparisons, *(tmp_path / "out" / name for name in names)])
    assert all(size_of(path)[0] > 2 * 40 for path in comparisons)
    (tmp_path / "out/b.jpg").unlink()
    done = oldphoto("restore", tmp_path / "in/b.jpg", "-o", tmp_path / "out", "--compare")
    assert done.exit_code == ExitCode.REFUSED_OVERWRITE
    assert "b.jpg.before-after.jpg exists" in done.stderr


def test_a_comparison_overwrites_no_output(tmp_path: Path, calls: Calls) -> None:
    draw(tmp_path / "in/a.jpg")
    draw(tmp_path / "in/a.jpg.before-after.jpg")
    done = oldphoto("restore", tmp_path / "in", "-o", tmp_path / "out", "--compare")
    assert done.exit_code == ExitCode.REFUSED_OVERWRITE
    assert not (tmp_path / "out").exists()


def test_a_run_that_goes_on_makes_the_comparisons_that_are_missing(tmp_path: Path, calls: Calls) -> None:
    for name in ("a.jpg", "b.jpg"):
        draw(tmp_path / "in" / name)
    arguments = ("restore", tmp_path / "in", "-o", tmp_path / "out", "--resume", tmp_path / "run.jsonl", "--compare")
    assert oldphoto(*arguments).exit_code == 0
    assert oldphoto(*arguments).stderr.splitlines()[-1] == "0 restored, 2 skipped"
    (tmp_path / "out/b.jpg.before-after.jpg").unlink()
    assert oldphoto(*arguments).stderr.splitlines()[-1] == "1 restored, 1 skipped"
    assert (tmp_path / "out/b.jpg.before-after.jpg").exists()


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_a_report_shows_every_photo(tmp_path: Path, calls: Calls) -> None:
    draw(tmp_path / "in/a.jpg", (60, 40))
    draw(tmp_path / "in/b.png")
    (tmp_path / "in/c.jpg").write_bytes(b"no picture")
    draw(tmp_path / "masks/a.png", (60, 40))
    draw(tmp_path / "masks/b.png")
    draw(tmp_path / "masks/c.png")
    page = tmp_path / "new/r.html"
    done = oldphoto("restore", tmp_path / "in", "-o", tmp_path / "out", "--mask", tmp_path / "masks", "--report", page)
    assert done.exit_code == ExitCode.SOME_FAILED
    text = text_of(page)
    assert "3 photos: 2 restored, 1 failed" in text
    assert text.count("<article") == 3
    assert text.count("data:image/webp") == 4
    assert text.count("data:image/png") == 2  # the masks, though none was saved
    assert "not a picture" in text
    assert 'href="../out/a.jpg"' in text
    assert [path.name for path in page.parent.iterdir()] == ["r.html"]


def test_a_report_of_a_run_that_goes_on_shows_all_runs(tmp_path: Path, calls: Calls) -> None:
    draw(tmp_path / "in/a.jpg")
    page = tmp_path / "r.html"
    arguments = ("restore", tmp_path / "in", "-o", tmp_path / "out", "--report", page)
    assert oldphoto(*arguments, "--manifest", tmp_path / "run.jsonl").exit_code == 0
    draw(tmp_path / "in/b.jpg")
    assert oldphoto(*arguments, "--resume", tmp_path / "run.jsonl").exit_code == 0
    assert "2 photos restored" in text_of(page)
    assert text_of(page).count("data:image/webp") == 4
    assert oldphoto(*arguments, "--skip-existing").exit_code == 0
    assert "2 photos skipped" in text_of(page)
    assert text_of(page).count("data:image/webp") == 4
    assert oldphoto(*arguments, "--overwrite").exit_code == 0
    assert "2 photos restored" in text_of(page)
    draw(tmp_path / "in/d.jpg")
    done = oldphoto("restore", tmp_path / "in/d.jpg", "-o", tmp_path / "out", "--report", page)
    assert done.exit_code == ExitCode.REFUSED_OVERWRITE
    assert not (tmp_path / "out/d.jpg").exists()


def test_a_report_of_an_interrupted_run_says_so(tmp_path: Path, calls: Calls) -> None:
    for name in ("a.jpg", "b.jpg"):
        draw(tmp_path / "in" / name)
    restore = calls.restore

    def interrupted(photo: Photo, mask: Any) -> Any:
        calls.error = KeyboardInterrupt() if calls.masked else None
        return restore(photo, mask)

    calls.restore = interrupted  # type: ignore[method-assign]
    page = tmp_path / "r.html"
    done = oldphoto("restore", tmp_path / "in", "-o", tmp_path / "out", "--report", page)
    assert done.exit_code == ExitCode.INTERRUPTED
    assert "The run was interrupted" in text_of(page)
    assert text_of(page).count("<article") == 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["r.html"]


def test_a_report_is_made_from_a_manifest(tmp_path: Path, calls: Calls) -> None:
    draw(tmp_path / "in/a.jpg")
    lines = tmp_path / "run.jsonl"
    assert oldphoto("restore", tmp_path / "in", "-o", tmp_path / "out", "--manifest", lines).exit_code == 0
    done = oldphoto("report", lines, "-o", tmp_path / "r.html")
    assert (done.exit_code, done.stderr) == (0, f"1 photo in {tmp_path / 'r.html'}\n")
    assert text_of(tmp_path / "r.html").count("data:image/webp") == 2
    assert oldphoto("report", lines, "-o", tmp_path / "r.html").exit_code == ExitCode.REFUSED_OVERWRITE
    assert oldphoto("report", lines, "-o", tmp_path / "r.html", "--overwrite").exit_code == 0
    assert oldphoto("report", tmp_path / "r.html").exit_code == ExitCode.FILE_ACCESS


def test_the_parts_of_a_batch_are_the_batch(tmp_path: Path, calls: Calls) -> None:
    for number in range(12):
        draw(tmp_path / f"in/{number}.png")
    for part in ("1/3", "2/3", "3/3"):
        assert oldphoto("restore", tmp_path / "in", "-o", tmp_path / "out", "--shard", part).exit_code == 0
    assert len(calls.masked) == 12  # each photo once
    assert len(list((tmp_path / "out").iterdir())) == 12


# ---- exit codes ----


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["in/a.jpg", "-o", "out", "--face-size", "300"], 2, "300"),
        (["in/a.jpg", "-o", "out", "--scratch-threshold", "2"], 2, "between 0 and 1"),
        (["in/a.jpg", "-o", "out", "--device", "tpu"], 2, "tpu"),
        (["in/a.jpg", "-o", "out", "--overwrite", "--skip-existing"], 2, "contradict"),
        (["in/a.jpg", "-o", "out", "--save-mask", "masks"], 2, "--with-scratch or --mask"),
        (["in/a.jpg", "-o", "out", "--face-strength", "1.5"], 2, "--face-strength"),
        (["in/a.jpg", "-o", "out", "--strength", "1.5"], 2, "--strength"),
        (["in/a.jpg", "-o", "out", "--strength", "1", "--only-damaged", "--with-scratch"], 2, "whatever the strength"),
        (["in/a.jpg", "-o", "out", "--only-face", "0"], 2, "numbered from 1"),
        (["in/a.jpg", "-o", "out", "--only-face", "1", "--skip-face", "2"], 2, "contradict"),
        (["in/a.jpg", "-o", "out", "--no-faces", "--save-faces", "crops"], 2, "contradicts"),
        (["in/a.jpg", "-o", "out.doc"], 2, "out.doc"),
        (["nothing.jpg", "-o", "out"], 3, "nothing.jpg"),
        (["*.gif", "-o", "out"], 3, "*.gif"),
        (["in/a.jpg", "in/gone.jpg", "-o", "out"], 4, "gone.jpg"),
        (["in", "in/notes.txt", "-o", "out"], 4, "notes.txt"),
        (["in/a.jpg", "-o", "out", "--mask", "nowhere"], 5, "nowhere"),
        (["in/a.jpg", "-o", "in/notes.txt/out/"], 5, "notes.txt"),
        (["in/a.jpg", "-o", "done"], 6, "--overwrite"),
        (["in", "-o", "in", "--overwrite"], 6, "never overwritten"),
        (["in/a.jpg", "-o", "in/a.jpg", "--overwrite"], 6, "never overwritten"),
        (["in", "other", "-o", "out"], 6, "both become"),
        (["in/notes.txt", "-o", "out/"], 10, "notes.txt"),
        (["empty.jpg", "-o", "out/"], 10, "empty.jpg"),
        (["in/a.jpg", "-o", "out", "--max-pixels", "50"], 10, "a.jpg"),
    ],
)
def test_failures_have_their_codes_and_say_why(
    tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, said: str
) -> None:
    for name in ("in/a.jpg", "other/a.jpg", "done/a.jpg"):
        draw(tmp_path / name)
    (tmp_path / "in/notes.txt").write_text("no picture")
    (tmp_path / "empty.jpg").touch()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.chdir(tmp_path)
    done = oldphoto("restore", *arguments)
    assert (done.exit_code, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (WeightsUnavailableError("no hub", "use --model compact"), 7),
        (WeightsCorruptError("wrong hash"), 8),
        (MemoryError(), 9),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 9),
        (KeyboardInterrupt(), 130),
    ],
)
def test_failures_of_the_models_have_their_codes(tmp_path: Path, calls: Calls, error: BaseException, code: int) -> None:
    draw(tmp_path / "a.jpg")
    calls.error = error
    done = oldphoto("restore", tmp_path / "a.jpg", "-o", tmp_path / "out")
    assert done.exit_code == code
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt(), WeightsUnavailableError("no hub", "try this")])
def test_failures_while_loading_have_their_codes(
    tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(networks, "load_models", fail)
    draw(tmp_path / "a.jpg")
    done = oldphoto("restore", tmp_path / "a.jpg", "-o", tmp_path / "out")
    assert done.exit_code == {"MemoryError": 9, "KeyboardInterrupt": 130}.get(type(error).__name__, 7)
    if isinstance(error, WeightsUnavailableError):
        assert done.stderr.splitlines() == ["error: no hub", "       try this"]


def test_how_many_photos_are_in_work_is_for_the_user_to_say(tmp_path: Path, calls: Calls) -> None:
    draw(tmp_path / "a.jpg")
    for options, jobs in (([], None), (["--jobs", 3], 3), (["-j1"], 1)):
        assert oldphoto("restore", tmp_path / "a.jpg", "-o", tmp_path / "out/", "--overwrite", *options).exit_code == 0
        assert calls.jobs == jobs
    for wrong in (["--jobs", 0], ["--jobs", 2, "--engine", "ray"]):
        assert oldphoto("restore", tmp_path / "a.jpg", "-o", tmp_path / "new/", *wrong).exit_code == 2


def test_a_bug_in_a_single_run_is_a_traceback(tmp_path: Path, calls: Calls) -> None:
    draw(tmp_path / "a.jpg")
    calls.error = ZeroDivisionError("surprise")
    done = oldphoto("restore", tmp_path / "a.jpg", "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert isinstance(done.exception, ZeroDivisionError)


def test_a_bug_in_a_batch_is_told_and_the_batch_goes_on(tmp_path: Path, calls: Calls) -> None:
    draw(tmp_path / "in/a.jpg")
    draw(tmp_path / "in/b.jpg")
    calls.error = ZeroDivisionError("surprise")
    done = oldphoto("restore", tmp_path / "in", "-o", tmp_path / "out", "--verbose")
    assert done.exit_code == ExitCode.SOME_FAILED
    assert done.stderr.count("unexpected ZeroDivisionError: surprise") == 2
    assert done.stderr.count("Traceback") == 2


# ---- the process itself ----


def test_the_module_runs_as_a_command() -> None:
    for arguments in (["--version"], ["restore", "nothing.jpg"], ["--nonsense"]):
        done = subprocess.run(
            [sys.executable, "-m", "oldphoto", *arguments], capture_output=True, text=True, check=False
        )
        expected = {"--version": (0, f"oldphoto {__version__}\n"), "restore": (3, ""), "--nonsense": (2, "")}
        assert (done.returncode, done.stdout) == expected[arguments[0]]


def test_help_lists_the_commands_and_the_exit_codes() -> None:
    done = oldphoto("--help")
    assert done.exit_code == 0
    for word in ("restore", "weights", "doctor", "130 interrupted"):
        assert word in " ".join(done.stdout.replace("│", " ").split())


def test_the_reference_documents_every_exit_code_and_option() -> None:
    reference = ROOT / "docs" / "reference"
    codes = (reference / "exit-codes.md").read_text(encoding="utf-8")
    for code in ExitCode:
        assert f"| {int(code)} |" in codes
    text = (reference / "commands.md").read_text(encoding="utf-8")
    done = oldphoto("restore", "--help")
    assert done.exit_code == 0
    options = {word for word in done.stdout.replace("│", " ").split() if word.startswith("--") and "…" not in word}
    assert options - {"--help"} <= {word.strip("`,.|()") for word in text.replace("/", " ").split()}


# ---- faces ----

EXAMPLE = ROOT / "examples" / "couple_1855.webp"


def test_faces_are_listed_and_drawn(tmp_path: Path) -> None:
    done = oldphoto("faces", EXAMPLE, "--json", "--draw", tmp_path / "drawn.png")
    assert done.exit_code == 0
    (facts,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert facts["source"] == str(EXAMPLE)
    assert [face["number"] for face in facts["faces"]] == [1, 2]
    assert facts["faces"][0]["size"] >= facts["faces"][1]["size"]
    with Image.open(tmp_path / "drawn.png") as drawn, Image.open(EXAMPLE) as photo:
        assert drawn.size == photo.size == (facts["width"], facts["height"])
        for face in facts["faces"]:
            left, top, right, _ = face["box"]
            middle = (round((left + right) / 2), round(top))
            shown, plain = (np.asarray(image.convert("RGB"), int)[middle[::-1]] for image in (drawn, photo))
            assert np.abs(shown - plain).sum() > 90, "no frame"
    plain_text = oldphoto("faces", EXAMPLE).stdout.splitlines()
    assert plain_text[0].endswith("couple_1855.webp: 2 faces")
    assert [line.split()[0] for line in plain_text[1:]] == ["1", "2"]


def test_faces_by_the_network_need_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = (file for file in weights.read_lock() if file.net == weights.CNN_DETECTOR)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(weights, "read_lock", lambda: (replace(file, sources=()),))
    done = oldphoto("faces", EXAMPLE, "--face-detector", "cnn")
    assert done.exit_code == ExitCode.WEIGHTS_UNAVAILABLE
    assert "mmod_human_face_detector.dat is not cached" in done.stderr


def test_drawn_faces_overwrite_nothing(tmp_path: Path) -> None:
    photo = draw(tmp_path / "in/a.jpg")
    kept = photo.read_bytes()
    assert oldphoto("faces", tmp_path / "in", "--draw", tmp_path / "in").exit_code == ExitCode.REFUSED_OVERWRITE
    assert oldphoto("faces", photo, "--draw", photo, "--overwrite").exit_code == ExitCode.REFUSED_OVERWRITE
    assert photo.read_bytes() == kept
    assert oldphoto("faces", photo, "--draw", tmp_path / "out/").exit_code == 0
    assert oldphoto("faces", photo, "--draw", tmp_path / "out/").exit_code == ExitCode.REFUSED_OVERWRITE
    assert oldphoto("faces", photo, "--draw", tmp_path / "out/", "--overwrite").exit_code == 0
    assert size_of(tmp_path / "out/a.jpg") == (12, 8)


def test_listing_goes_on_past_a_bad_photo(tmp_path: Path) -> None:
    draw(tmp_path / "b.jpg")
    (tmp_path / "a.jpg").write_text("no photo")
    done = oldphoto("faces", tmp_path, "--json")
    assert done.exit_code == ExitCode.SOME_FAILED
    bad, good = (json.loads(line) for line in done.stdout.splitlines())
    assert bad["error"]["exit_code"] == ExitCode.BAD_IMAGE
    assert good["faces"] == []
    assert oldphoto("faces", tmp_path / "a.jpg").exit_code == ExitCode.BAD_IMAGE
    assert oldphoto("faces", tmp_path / "none.jpg").exit_code == ExitCode.NO_INPUT


# ---- weights and doctor ----


def test_weights_list_shows_every_file_and_the_licence() -> None:
    done = oldphoto("weights", "list", "--json")
    rows = json.loads(done.stdout)
    assert {(row["set"], row["net"]) for row in rows} == {(file.set, file.net) for file in weights.read_lock()}
    # An installed package may bring the published landmarks.
    assert {row["state"] for row in rows if row["set"] == "published" and row.get("place") != "python"} == {"absent"}
    plain = oldphoto("weights", "list")
    assert plain.exit_code == 0
    assert "can't be used in a commercial product" in plain.stdout


def test_weights_verify_finds_the_wrong_file(tmp_path: Path) -> None:
    first = next(file for file in weights.read_lock() if file.set == "published")
    wrong = weights.cache_folder() / first.path
    wrong.parent.mkdir(parents=True)
    wrong.write_bytes(b"not this")
    done = oldphoto("weights", "verify", "--set", "published", "--json")
    assert done.exit_code == ExitCode.WEIGHTS_CORRUPT
    assert {row["net"]: row["state"] for row in json.loads(done.stdout)}[first.net] == "wrong"
    assert str(wrong) in done.stderr
    removed = oldphoto("weights", "remove", first.net, "--json")
    assert [row["path"] for row in json.loads(removed.stdout)] == [str(wrong)]
    assert oldphoto("weights", "verify", "--set", "published").exit_code == 0


def test_weights_path_names_folders_and_files() -> None:
    folders = json.loads(oldphoto("weights", "path", "--json").stdout)
    assert folders["cache"].startswith(os.environ["HF_HOME"])
    assert oldphoto("weights", "path", "nonsense").exit_code == ExitCode.USAGE
    assert oldphoto("weights", "path", "mapping_scratch").exit_code == ExitCode.WEIGHTS_UNAVAILABLE


def test_weights_download_offline_is_unavailable() -> None:
    done = oldphoto("weights", "download", "--mode", "plain")
    assert done.exit_code == ExitCode.WEIGHTS_UNAVAILABLE
    assert "weights import" in done.stderr


def test_weights_import_of_nothing_known_and_of_a_wrong_file(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/readme.txt").write_text("x")
    assert oldphoto("weights", "import", tmp_path / "there").exit_code == ExitCode.NO_INPUT
    wrong = tmp_path / "there/checkpoints/restoration/VAE_A_quality/latest_net_G.pth"
    wrong.parent.mkdir(parents=True)
    wrong.write_bytes(b"x")
    done = oldphoto("weights", "import", tmp_path / "there", "--json")
    assert done.exit_code == ExitCode.WEIGHTS_CORRUPT
    assert {row["outcome"] for row in json.loads(done.stdout)} == {"unknown", "wrong"}
    assert oldphoto("weights", "import", tmp_path / "nowhere.zip").exit_code == ExitCode.FILE_ACCESS


def test_doctor_tells_versions_devices_weights_and_licences() -> None:
    facts = json.loads(oldphoto("doctor", "--json").stdout)
    assert facts["versions"]["oldphoto"] == __version__
    assert facts["versions"]["dlib"].startswith("dlib")
    assert "cpu" in facts["devices"]
    assert facts["weights"]["published mapping"] == "absent"
    assert "can't be used in a commercial product" in " ".join(facts["licences"])
    plain = oldphoto("doctor")
    assert plain.exit_code == 0
    assert "versions:" in plain.stdout


def test_max_memory_reaches_the_options(tmp_path: Path, calls: Calls) -> None:
    draw(tmp_path / "a.png")
    assert oldphoto("restore", tmp_path / "a.png", "-o", tmp_path / "o.png", "--max-memory", "1.5GB").exit_code == 0
    assert calls.options.max_memory == 1_500_000_000
    for wrong in ("much", "4", "10MB"):
        refused = oldphoto("restore", tmp_path / "a.png", "-o", tmp_path / "p.png", "--max-memory", wrong)
        assert refused.exit_code == 2


# ---- faults that were ----


def test_what_is_said_while_a_tiff_is_decoded_is_not_lost() -> None:
    code = """
import os
from oldphoto.cli import command, terminal
from oldphoto.files.decoding import no_standard_error
command.app = lambda **_: None
command.main()
with no_standard_error():
    os.write(2, b"libtiff's own line")
    terminal.stderr().print("[3/50] said meanwhile")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[3/50] said meanwhile\n"


def test_evaluate_has_the_networks_that_it_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from oldphoto.pipeline import restore
    from oldphoto.training import evaluate

    def scored(models: Any, *_: Any, **__: Any) -> dict[str, Any]:
        photo = Photo.from_array(np.full((40, 48, 3), 90, np.uint8))
        for options in (evaluate.PLAIN, evaluate.SCRATCHED):
            restore(photo, models, options)
        return {"photos": 1, "scores": {}, "scratches": {}, "colour_shift": 0.0}

    monkeypatch.setattr(evaluate, "evaluate", scored)
    folder = str(tmp_path)
    done = oldphoto("evaluate", folder, "--damage", folder, "--tuning", folder)
    assert (done.exit_code, done.stdout.splitlines()[0].split(";")[0]) == (0, "1 photos"), done.output


def test_evaluate_by_labels_of_real_damage(tmp_path: Path) -> None:
    """A label of what the detector finds on an example, and a photo without any: what is told is what a mask says."""
    example = tmp_path / "a.png"
    with Image.open(EXAMPLE) as photo:
        photo.convert("RGB").crop((0, 0, 320, 256)).save(example)
    masks = tmp_path / "masks"
    made = oldphoto("restore", example, "-o", tmp_path / "out", "--with-scratch", "--save-mask", masks, "--no-faces")
    assert made.exit_code == 0, made.output
    (saved,) = masks.rglob("*.png")
    mask = np.asarray(Image.open(saved).convert("L")) > 127
    assert mask.any()
    photos, labels = tmp_path / "photos", tmp_path / "labels"
    (photos / "old").mkdir(parents=True)
    labels.mkdir()
    shutil.copy(example, photos / "old" / "a.png")
    pieces = mask.astype(np.uint16)
    Image.fromarray((mask * np.uint8(255)).astype(np.uint8)).save(labels / "a.mask.png")
    Image.fromarray(pieces).save(labels / "a.pieces.png")
    (labels / "a.json").write_text(json.dumps({"pieces": [{"id": 1, "kind": "dust"}]}))
    (labels / "index.csv").write_text("photo\nold/a.png\nnew/b.webp\n")
    Image.new("RGB", (200, 180), (90, 90, 90)).save(photos / "b.webp", lossless=True)
    (photos / "new").mkdir()
    (photos / "b.webp").rename(photos / "new" / "b.webp")
    done = oldphoto("evaluate", photos, "--labels", labels, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["photos"] == 2
    assert told["kinds"]["dust"]["found"] == 1.0
    assert told["total"]["recall"] == told["total"]["precision"] == 1.0
    assert told["total"]["false"] == 0.0
    assert told["kinds"]["dust"]["left"] < 0.9
    for_people = oldphoto("evaluate", photos, "--labels", labels, "--only", "new")
    assert "0.000% of the photos without damage" in for_people.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["--labels", "x", "--damage", "y"],
        ["--damage", "y"],
        ["--damage", "y", "--tuning", "z", "--only", "old"],
        ["b", "--labels", "x"],
    ],
)
def test_evaluate_by_labels_or_by_drawn_damage(arguments: list[str]) -> None:
    done = oldphoto("evaluate", "a", *arguments)
    assert done.exit_code == 2, done.output
    nowhere = oldphoto("evaluate", "a", "--labels", "nowhere")
    assert nowhere.exit_code == 3
    assert "index.csv" in nowhere.stderr


# ---- help ----


def test_every_choice_has_its_flag_and_its_panel() -> None:
    said = oldphoto("restore", "--help").output
    flags = set(re.findall(r"(?<![\w-])--[a-z0-9-]+", said))
    for kind, others in ((Options, set()), (RunRequest, {"options", "inputs"}), (Verbosity, set())):
        named = {
            one.field: (one.flag.words or (f"--{(one.flag.name or one.field).replace('_', '-')}",))
            for one in declared(kind)
        }
        assert {field.name for field in fields(kind)} == named.keys() | others
        assert {words[0].split("/")[0] for words in named.values()} <= flags
    places = [said.index(f" {panel} ") for panel in Panel]
    assert places == sorted(places)


def test_flags_become_the_choices_that_they_name() -> None:
    given = dict.fromkeys(inspect.signature(with_flags(Options, RunRequest)(lambda **given: None)).parameters)
    given |= {"hr": False, "keep_blur": True, "only_face": [2, 1], "max_memory": "2GB", "min_face": 7}
    given |= {"faces": True, "with_scratch": False, "only_damaged": False, "colour_strength": 1.0}
    enums = {"look": "faithful", "face_detector": "cnn", "face_size": "512", "upscale": "4", "colorize": "off"}
    chosen = from_flags(Options, given | {name: SimpleNamespace(value=value) for name, value in enums.items()})
    assert chosen == Options(
        hr="off",
        sharpen=False,
        only_faces=(2, 1),
        max_memory=2_000_000_000,
        min_face=7,
        look="faithful",
        face_detector="cnn",
        face_size=512,
        upscale=4,
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"hr": "maybe"}, "hr is 'maybe' (use auto, on or off)"),
        ({"face_size": 300}, "face size is 300 (use 256 or 512)"),
        ({"quality": 0}, "quality is 0 (use 1 to 100)"),
        ({"min_face": -1}, "min face is -1 (use 0 or more)"),
        ({"native_scale": 7.0}, "native scale is 7 (use 1 to 6)"),
        ({"strength": float("nan")}, "strength is nan (use 0 to 1)"),
    ],
)
def test_a_choice_out_of_its_range_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        Options(**wrong)
    assert f"{refused.value} ({refused.value.advice})" == said


def test_a_request_checks_itself() -> None:
    RunRequest(inputs=("a.png",), engine="ray", workers=2)
    with pytest.raises(UsageError, match="--jobs is of --engine local"):
        RunRequest(inputs=("a.png",), engine="ray", jobs=2)
    with pytest.raises(UsageError, match="no photo is named"):
        RunRequest()


def test_the_help_of_train_names_every_stage() -> None:
    from oldphoto.training.stages import STAGES

    assert {nets: tuple(stages) for nets, stages in STAGES.items()} == STAGE_NAMES
    said = re.sub(r"\s|│", "", oldphoto("train", "--help").output)
    assert not [name for names in STAGE_NAMES.values() for name in names if name not in said]
