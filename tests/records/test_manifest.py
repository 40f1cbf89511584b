"""The record of a run: every line fits the schema, survives any interruption, and tells what changed later."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
from PIL import Image
from typer.testing import CliRunner

from oldphoto import cli
from oldphoto.errors import BadImageError, FileAccessError, OldphotoError, RefusedOverwriteError
from oldphoto.files.image import Photo, read_pages
from oldphoto.options import Options
from oldphoto.records import manifest
from oldphoto.records.manifest import Manifest, Record, Setting
from oldphoto.records.premis import premis
from oldphoto.records.report import write_report
from oldphoto.runs import batch, planning
from oldphoto.stages.changes import ChangeUse
from oldphoto.stages.fading import Curve, Tone
from tests.restorations import negative_of

WEIGHTS = {"mapping": "a" * 64, "old_vae": "b" * 64, "scratch_unet": "c" * 64}
SCHEMA = json.loads(manifest.SCHEMA.read_text())
FACE = SimpleNamespace(number=2, after=None, kept=None, box=(1.0, 2.0, 5.5, 6.0), score=0.75)


def draw(path: Path, size: tuple[int, int] = (12, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 100, 50)).save(path)
    return path


def negative(photo: Photo, mask: Any) -> Any:
    """Stands in for the networks."""
    tone = Tone(Curve((0.25,), (0.5,), ((1.5,),), (0.125,)), 0.875, (0.5, 12.0), -4.0, 1.25)
    kept = ChangeUse((0.0, 0.25, 0.5, 1.0), (0.5, 0.0, 0.25))
    facts = {"faces": (FACE,), "seconds": {"translation": 0.25}, "warnings": ("hm",)}
    return negative_of(photo, mask, fading=tone, strength=kept, **facts)


def work(restore: Any = negative, options: Options | None = None) -> batch.Work:
    return batch.Work(restore, Setting(options or Options(), "compact", WEIGHTS))


def run(folder: Path, keep: Any = None, restore: Any = negative, **kwargs: Any) -> batch.Summary:
    plan = planning.plan([str(folder / "in")], str(folder / "out"), **kwargs)
    return batch.run(plan.photos, lambda: work(restore), keep=keep)


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines as another program reads them, each valid by the schema."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    for line in found:
        jsonschema.validate(line, SCHEMA)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw(tmp_path / "in/a.jpg")
    draw(tmp_path / "in/b.png")
    return tmp_path


@pytest.fixture
def record(folder: Path) -> Record:
    return run(folder).outcomes[0].record


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert set(SCHEMA["required"]) == set(SCHEMA["properties"]) == set(Record.__annotations__)


def test_a_line_says_what_was_done(folder: Path) -> None:
    draw(folder / "masks/a.png")
    draw(folder / "masks/b.png")
    with Manifest(folder / "out/run.jsonl") as kept:
        run(folder, kept.append, masks=folder / "masks", beside=planning.Beside(save_masks=folder / "saved"))
    first, second = lines(folder / "out/run.jsonl")
    assert first["input"] == {
        "path": str(folder / "in/a.jpg"),
        "sha256": hashlib.sha256((folder / "in/a.jpg").read_bytes()).hexdigest(),
        "bytes": (folder / "in/a.jpg").stat().st_size,
        "format": "JPEG",
        "width": 12,
        "height": 8,
    }
    assert first["output"]["path"] == "a.jpg"  # below the manifest's folder, so that both can be moved
    assert first["output"]["sha256"] == hashlib.sha256((folder / "out/a.jpg").read_bytes()).hexdigest()
    assert first["mask"]["sha256"] == hashlib.sha256((folder / "masks/a.png").read_bytes()).hexdigest()
    assert first["saved_mask"]["sha256"] == hashlib.sha256((folder / "saved/a.png").read_bytes()).hexdigest()
    assert first["mask_share"] == 0.0  # (200, 100, 50) is in the dark half
    assert first["options"]["faces"] is True
    # A mask was brought, so that none was looked for.
    assert first["model"]["weights"] == {"mapping": "a" * 64, "old_vae": "b" * 64}
    assert first["faces"] == [{"number": 2, "box": [1.0, 2.0, 5.5, 6.0], "score": 0.75, "kept": None}]
    curve = {"fog": [0.25], "base": [0.5], "mix": [[1.5]], "bend": [0.125]}
    tone = {"likely": 0.875, "cast": [0.5, 12.0], "lightness": -4.0, "contrast": 1.25, "curve": curve}
    scales = {"native_scale": None, "rebuilt": False, "enlarged": None, "colorized": False}
    assert first["changes"] == [{"tone": tone, "kept": [0.0, 0.25, 0.5, 1.0], "raised": [0.5, 0.0, 0.25]} | scales]
    assert list(first["stages"]) == ["read", "translation", "write"]
    assert first["seconds"] >= first["stages"]["write"]
    assert first["warnings"] == ["hm"]
    assert (first["peak_memory_bytes"] or 1 << 30) > 1 << 20
    assert second["status"] == "restored"


ODD: tuple[Any, ...] = (None, 0, -1, 10**30, float("nan"), "x\0", "\ud800", "\x1b[2J", [[]], {"x": {}})


def mutants(value: Any) -> Iterator[Any]:
    """The same, but for one part of it, which is odd or missing."""
    yield from ODD
    if isinstance(value, dict):
        for name in value:
            yield {other: part for other, part in value.items() if other != name}
            yield from ({**value, name: part} for part in mutants(value[name]))
        yield {**value, "more": 1}
    if isinstance(value, list):
        for place, part in enumerate(value):
            yield from ([*value[:place], other, *value[place + 1 :]] for other in mutants(part))


def test_no_word_of_a_line_is_believed_before_the_schema_has_seen_it(folder: Path) -> None:
    """Whatever a manifest says, it is refused in one line, or verify, premis and report can do with it."""
    with Manifest(folder / "run.jsonl") as kept:
        run(folder, kept.append)
    record = lines(folder / "run.jsonl")[0]
    judge = jsonschema.Draft202012Validator(SCHEMA)
    path = folder / "odd.jsonl"
    believed = 0
    refusals: set[str] = set()
    for number, odd in enumerate(mutants(record)):
        path.write_text(json.dumps(odd) + "\n")
        try:
            found = manifest.read(path)
        except FileAccessError as error:
            refusals.add(str(error))
            continue
        assert judge.is_valid(odd), odd
        believed += 1
        for _ in manifest.verify(found):
            pass
        if number % 7 == 0:
            ElementTree.fromstring(premis(found))
            write_report(folder / "page.html", found, overwrite=True)
    assert believed > 50
    assert all("line 1 of" in text and "\n" not in text for text in refusals)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"version": 2, "news": 1}', "later version"),
        ('{"version": 1}', "must contain"),
        ('{"version": 1, "status": ', "Expecting value"),
    ],
)
def test_it_is_said_why_a_line_is_none(tmp_path: Path, line: str, why: str) -> None:
    (tmp_path / "run.jsonl").write_text(line + "\n")
    with pytest.raises(FileAccessError, match=why) as caught:
        manifest.read(tmp_path / "run.jsonl")
    assert len(str(caught.value)) < 500
    with pytest.raises(FileAccessError, match=why):
        Manifest(tmp_path / "run.jsonl", overwrite=True)
    assert (tmp_path / "run.jsonl").read_text() == line + "\n"


def test_a_date_that_is_none(folder: Path) -> None:
    with Manifest(folder / "run.jsonl") as kept:
        run(folder, kept.append)
    text = (folder / "run.jsonl").read_text()
    time = json.loads(text.splitlines()[0])["time"]
    (folder / "run.jsonl").write_text(text.replace(time, "2026-02-31T12:00:00Z"))
    with pytest.raises(FileAccessError, match="line 1"):
        manifest.read(folder / "run.jsonl")


def test_what_lines_have_in_common_is_kept_once(folder: Path) -> None:
    with Manifest(folder / "run.jsonl") as kept:
        run(folder, kept.append)
    first, second = manifest.read(folder / "run.jsonl")
    for name in ("options", "versions", "model"):
        assert first[name] is second[name]


def test_peak_memory_is_this_process_s_own() -> None:
    """And not that of a large process that started it."""
    grown = bytearray(400 << 20)
    code = "from oldphoto.records.manifest import peak_memory; held = bytearray(100 << 20); print(peak_memory())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 100 << 20 < int(run.stdout) < len(grown)


def test_a_failure_has_its_line_too(folder: Path) -> None:
    (folder / "in/a.jpg").write_bytes(b"no photo")

    def bug(photo: Photo, mask: Any) -> Any:
        raise ValueError("surprise")

    with Manifest(folder / "run.jsonl") as kept:
        plan = planning.plan([str(folder / "in"), str(folder / "gone.jpg")], str(folder / "out"))
        batch.run(plan.photos, lambda: work(bug), keep=kept.append)
    bad, bugged, gone = lines(folder / "run.jsonl")
    assert [line["error"]["kind"] for line in (bad, bugged, gone)] == ["BadImageError", "ValueError", "FileAccessError"]
    assert bad["input"]["sha256"] == hashlib.sha256(b"no photo").hexdigest()
    assert bad["output"] == {"path": "out/a.jpg", "sha256": None, "bytes": None}
    assert (gone["model"], gone["input"]["sha256"]) == (None, None)


def test_the_line_is_on_disk_before_the_output_has_its_name(folder: Path) -> None:
    with Manifest(folder / "run.jsonl") as kept:

        def keep(record: Record) -> None:
            assert not Path(record["output"]["path"]).exists()
            kept.append(record)
            written.append(lines(folder / "run.jsonl")[-1]["output"]["path"])

        written: list[str] = []
        assert run(folder, keep).exit_code == 0
    assert written == ["out/a.jpg", "out/b.png"]


def test_a_photo_that_cannot_be_recorded_is_not_written(folder: Path) -> None:
    def full(record: Record) -> None:
        if record["status"] == "restored":
            raise FileAccessError("cannot write the manifest")

    assert [str(outcome.error) for outcome in run(folder, full).outcomes] == ["cannot write the manifest"] * 2
    assert list((folder / "out").iterdir()) == []


@pytest.mark.parametrize("change", ["grow", "swap", "vanish"])
def test_an_input_that_changes_while_it_is_read_is_that_photos_error(
    folder: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meddled(path: Path, **kwargs: Any) -> Iterator[Photo]:
        photo = next(read_pages(path, **kwargs))
        if path.name == "a.jpg":
            if change == "grow":
                path.write_bytes(path.read_bytes() + b"more")
            elif change == "swap":
                draw(folder / "other.jpg").replace(path)
            else:
                path.unlink()
        yield photo

    monkeypatch.setattr(batch, "read_pages", meddled)
    with Manifest(folder / "run.jsonl") as kept:
        summary = run(folder, kept.append)
    assert summary.exit_code == 4
    bad, good = lines(folder / "run.jsonl")
    assert "changed while it was read" in bad["error"]["message"]
    assert (good["status"], [path.name for path in (folder / "out").iterdir()]) == ("restored", ["b.png"])


# ---- the file ----


def test_a_manifest_is_never_replaced_by_accident(folder: Path, record: Record) -> None:
    path = folder / "run.jsonl"
    with Manifest(path) as kept:
        kept.append(record)
    with pytest.raises(RefusedOverwriteError, match="exists"):
        Manifest(path)
    with Manifest(path, resume=True) as kept:
        kept.append(record)
    assert len(lines(path)) == 2
    with Manifest(path, overwrite=True) as kept:
        kept.append(record)
    assert len(lines(path)) == 1


@pytest.mark.parametrize("content", [b"notes\n", b"\xff\xd8\xff\xe0 no line end", b'{"a": 1}\n', b"{}"])
@pytest.mark.parametrize("how", ["resume", "overwrite"])
def test_what_is_no_manifest_is_never_touched(tmp_path: Path, content: bytes, how: str) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(FileAccessError, match="not a line of a manifest"):
        Manifest(path, **{how: True})
    assert path.read_bytes() == content


def test_wherever_the_last_line_was_cut_it_is_left_out_and_mended(folder: Path, record: Record) -> None:
    path = folder / "run.jsonl"
    with Manifest(path) as kept:
        kept.append(record)
        kept.append(record)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in (first, *range(first + 1, len(whole) - 1, 131), len(whole) - 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        expected = 2 if cut == len(whole) - 1 else 1  # all but the line's end is there
        assert len(manifest.read(path)) == expected
        Manifest(path, resume=True).__exit__()
        assert path.read_bytes() == (whole if expected == 2 else whole[:first])


def test_two_runs_do_not_write_one_manifest(folder: Path, record: Record) -> None:
    pytest.importorskip("fcntl")
    with Manifest(folder / "run.jsonl") as kept:
        kept.append(record)
        with pytest.raises(FileAccessError, match="another run is writing"):
            Manifest(folder / "run.jsonl", resume=True)
    with Manifest(folder / "run.jsonl", resume=True) as kept:
        kept.append(record)
    assert len(lines(folder / "run.jsonl")) == 2


@pytest.mark.parametrize("at_once", [0, 7])
def test_a_full_disk_leaves_no_half_line(
    folder: Path, record: Record, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = [0]

    def write(handle: int, data: bytes) -> int:
        count = min(len(data), room[0], at_once or len(data))
        if not count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= count
        return os_write(handle, data[:count])

    os_write = os.write
    monkeypatch.setattr(os, "write", write)
    path = folder / "run.jsonl"
    with Manifest(path) as kept:
        room[0] = 3000
        kept.append(record)
        room[0] = 100
        with pytest.raises(FileAccessError, match="No space left"):
            kept.append(record)
        assert len(lines(path)) == 1
        room[0] = 100
        failed: Record = {**record, "status": "failed", "error": manifest.error_facts(BadImageError("bad"))}
        kept.append(failed)  # kept until there is room
        assert len(lines(path)) == 1
        room[0] = 10000
    assert [line["status"] for line in lines(path)] == ["restored", "failed"]


def test_names_that_are_not_utf8_come_back(folder: Path, record: Record) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    with Manifest(folder / "run.jsonl") as kept:
        kept.append({**record, "output": {**record["output"], "path": str(folder / name)}})
    (folder / "run.jsonl").read_bytes().decode("ascii")
    assert manifest.read(folder / "run.jsonl")[0]["output"]["path"] == str(folder / name)


# ---- verify ----


def oldphoto(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], prog_name="oldphoto")


@pytest.fixture
def done(folder: Path) -> Path:
    with Manifest(folder / "out/run.jsonl") as kept:
        run(folder, kept.append)
    return folder


def test_verify_finds_nothing_where_nothing_changed(done: Path) -> None:
    said = oldphoto("verify", done / "out/run.jsonl")
    assert (said.exit_code, said.stdout) == (0, "2 photos verified, 0 changed\n")


def test_verify_says_what_changed(done: Path) -> None:
    (done / "in/a.jpg").write_bytes((done / "in/a.jpg").read_bytes()[:-1] + b"\0")
    (done / "out/b.png").unlink()
    said = oldphoto("verify", done / "out/run.jsonl")
    assert said.exit_code == 4
    assert said.stdout.splitlines() == [
        f"changed  input  {done / 'in/a.jpg'}",
        f"missing  output  {done / 'out/b.png'}",
        "2 photos verified, 2 changed",
    ]
    as_json = [json.loads(line) for line in oldphoto("verify", done / "out/run.jsonl", "--json").stdout.splitlines()]
    assert [line["changes"] for line in as_json] == [{"input": "changed"}, {"output": "missing"}]


def test_outputs_and_their_manifest_can_be_moved(done: Path) -> None:
    (done / "out").rename(done / "shelf")
    assert oldphoto("verify", done / "shelf/run.jsonl").exit_code == 0


def test_the_last_line_of_a_photo_counts(done: Path) -> None:
    with Manifest(done / "out/run.jsonl", resume=True) as kept:
        plan = planning.plan([str(done / "in")], str(done / "out"), existing="overwrite")
        batch.run(
            plan.photos,
            lambda: work(lambda photo, mask: negative(photo.with_pixels(photo.pixels // 2), mask)),
            keep=kept.append,
        )
    assert len(lines(done / "out/run.jsonl")) == 4
    assert oldphoto("verify", done / "out/run.jsonl").stdout == "2 photos verified, 0 changed\n"


@pytest.mark.parametrize("text", ["", None])
def test_verify_of_no_manifest(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "run.jsonl").write_text(text)
        assert oldphoto("verify", tmp_path / "run.jsonl").stdout == "0 photos verified, 0 changed\n"
        return
    said = oldphoto("verify", tmp_path / "run.jsonl")
    assert (said.exit_code, said.stderr.startswith("error: cannot read the manifest")) == (5, True)


def test_error_facts_of_a_bug() -> None:
    assert manifest.error_facts(OldphotoError("odd", "try")) == {
        "kind": "OldphotoError",
        "message": "odd",
        "advice": "try",
        "exit_code": 1,
    }
