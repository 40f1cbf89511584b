"""The page: made from a manifest's records, whole whatever happens, and used in a real browser as a reader would."""

from __future__ import annotations

import io
import os
import pickle
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from oldphoto.errors import FileAccessError, NoInputError, RefusedOverwriteError
from oldphoto.files.masks import write_mask
from oldphoto.files.photo import Photo
from oldphoto.records import manifest
from oldphoto.records.manifest import Record, ToneFacts
from oldphoto.records.pictures import Look, look_at
from oldphoto.records.report import Page, write_report
from oldphoto.records.xmp import GENERATED
from tests import chromium

TONE: ToneFacts = {
    "likely": 0.875,
    "cast": [9.0, 12.0],
    "lightness": -4.0,
    "contrast": 1.25,
    "curve": {"fog": [0.0], "base": [0.5], "mix": [[1.5]], "bend": [0.125]},
}

RED, BLUE = (200, 30, 30), (30, 30, 200)


def plain(size: tuple[int, int], colour: tuple[int, int, int]) -> Photo:
    return Photo.from_array(np.full((size[1], size[0], 3), colour, np.uint8))


def look(size: tuple[int, int] = (400, 300)) -> Look:
    """Red before, blue after; the mask is a bar across the middle."""
    mask = np.zeros((size[1], size[0]), bool)
    mask[size[1] // 2 - 20 : size[1] // 2 + 20] = True
    return look_at(plain(size, RED), plain(size, BLUE), mask)


def record(name: str = "a.jpg", folder: Path = Path("in"), **facts: Any) -> Record:
    known: Record = {
        "version": 1,
        "status": "restored",
        "time": "2026-03-09T12:00:00Z",
        "input": {
            "path": str(folder / name),
            "sha256": "1" * 64,
            "bytes": 1234,
            "format": "JPEG",
            "width": 400,
            "height": 300,
        },
        "output": {
            "path": str(folder / "out" / name),
            "sha256": "2" * 64,
            "bytes": 4321,
            "format": "JPEG",
            "width": 400,
            "height": 300,
        },
        "mask": None,
        "saved_mask": None,
        "mask_share": 0.1333,
        "options": {"with_scratch": True, "faces": True, "face_size": None, "mask_dilation": 1, "skip_face": [2, 3]},
        "model": {"set": "compact", "precision": "fp32", "device": "cpu", "weights": {"old_vae": "3" * 64}},
        "faces": [
            {
                "number": 1,
                "box": [100.0, 60.0, 180.0, 140.0],
                "score": 1.25,
                "kept": [0.5, 0.25, 1.0, 0.0],
            }
        ],
        "changes": [
            {
                "tone": TONE,
                "kept": [0.25, 0.5, 0.75, 1.0],
                "raised": [0.5, 0.0, 1.25],
            }
        ],
        "seconds": 2.5,
        "stages": {"read": 0.5, "translation": 2.0},
        "peak_memory_bytes": 800_000_000,
        "peak_device_memory_bytes": None,
        "source_type": GENERATED,
        "versions": {"oldphoto": "0.1.0", "python": "3.11", "system": "Linux", "torch": "2.13.0"},
        "warnings": [],
        "error": None,
    }
    known.update(facts)  # type: ignore[typeddict-item]
    return known


def failed(name: str, message: str = "the file is damaged", folder: Path = Path("in")) -> Record:
    error = {"kind": "BadImageError", "message": message, "advice": "scan it again", "exit_code": 10}
    source = {"path": str(folder / name), "sha256": None, "bytes": None}
    output = {"path": str(folder / "out" / name), "sha256": None, "bytes": None}
    return record(name, input=source, output=output, status="failed", faces=[], mask_share=None, error=error)


class Parsed(HTMLParser):
    """What a page holds, by Python's own parser: tags with attributes, text, and the end tags that are missing."""

    VOID = ("meta", "img", "input", "path", "rect", "br", "link")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str, **attributes: str) -> int:
        return sum(t == tag and attributes.items() <= a.items() for t, a in self.tags)


# ---- what is in it ----


def test_a_page_shows_what_was_done(tmp_path: Path) -> None:
    with Page(tmp_path / "r.html", photos=3) as page:
        page.add(record("a.jpg"), look())
        page.add(record("b.jpg", warnings=["the face is small"]), look())
        page.add(failed("c.jpg"))
    found = Parsed(tmp_path / "r.html")
    assert found.open == []
    assert found.count("article") == 3
    assert found.count("input", type="range") == 2
    assert found.count("rect") == 2
    for text in (
        "3 photos: 2 restored, 1 failed, 9 March 2026.",
        "compact weights, fp32, on cpu",
        "with scratch: yes, faces: yes, mask dilation: 1, skip face: 2 3",
        "1: score 1.25, kept of small changes 50%, of large 25%; of colour 100% and 0%",
        "orange cast of 15 taken off (Lab a +9, b +12), lightness -4, contrast x 1.25; 88% likely to have faded",
        "of small changes 25%, of large 50%; of colour 75% and 100%; sharpened by 50%, 0%, 125%",
        "oldphoto 0.1.0, python 3.11, system Linux, torch 2.13.0",
        "3" * 64,
        "400 \u00d7 300 pixels, 13.3 % repaired, 1 face, 2.5\u00a0s",
        "read 0.5\u00a0s, translation 2.0\u00a0s",
        "the face is small",
        "the file is damaged: scan it again",
        "sha256 " + "2" * 64,
    ):
        assert text in found.text
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


HOSTILE = [
    "<img src=x onerror=alert(1)>.jpg",
    '"><script>document.title=1;.jpg',
    "' onmouseover='alert(1).jpg",
    "javascript:alert(1).jpg",
    "{{ 7 * 7 }}{% raw %}.jpg",
    "&lt;b&gt;.jpg",
    "a\nb\x07\u202ejpg.exe.jpg",
    os.fsdecode(b"caf\xe9.jpg"),
    "祖母 #1?.jpg",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_name_is_text_and_nothing_else(tmp_path: Path, name: str) -> None:
    shapes = []
    for each in ("plain.jpg", name):
        with Page(tmp_path / "r.html", overwrite=True) as page:
            line = record(each, tmp_path, warnings=[f"{each} is odd"])
            page.add(line, look())
            page.add(failed(each, f"{each} is damaged"))
        found = Parsed(tmp_path / "r.html")
        shapes.append([(tag, sorted(attributes)) for tag, attributes in found.tags])
        links = [attributes["href"] or "" for tag, attributes in found.tags if tag == "a"]
        shown = each if each.isprintable() else None
        assert shown is None or found.text.count(f"{shown} is odd") == 1
    assert shapes[0] == shapes[1]
    assert [unquote(link, errors="surrogateescape") for link in links] == [name, f"out/{name}"]
    assert all(re.fullmatch(r"[A-Za-z0-9_.~/%-]+", link) for link in links)


def test_a_file_name_with_control_characters_shows_them(tmp_path: Path) -> None:
    with Page(tmp_path / "r.html") as page:
        page.add(record("a\nb\u202ec" + os.fsdecode(b"\xe9") + ".jpg"))
    assert "a\\nb\\u202ec\\udce9.jpg" in Parsed(tmp_path / "r.html").text


def test_pictures_get_smaller_as_the_batch_grows(tmp_path: Path) -> None:
    rooms = []
    for photos in (1, 300, 1000, 5000, None):
        with Page(tmp_path / "r.html", photos=photos, overwrite=True) as page:
            rooms.append(page.room)
    assert rooms == [400_000, 200_000, 60_000, 60_000, 60_000]


# ---- whole, whatever happens ----


def test_what_exists_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "r.html").write_text("<p>mine</p>")
    with pytest.raises(RefusedOverwriteError, match=r"r\.html exists"):
        Page(tmp_path / "r.html")
    with pytest.raises(RefusedOverwriteError, match="no report of oldphoto"):
        Page(tmp_path / "r.html", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]
    assert (tmp_path / "r.html").read_text() == "<p>mine</p>"


def test_a_page_that_is_replaced_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    with Page(tmp_path / "r.html") as page:
        page.add(record("first.jpg"))
    page = Page(tmp_path / "r.html", overwrite=True)
    page.add(record("second.jpg"))
    assert "first.jpg" in Parsed(tmp_path / "r.html").text
    page.close()
    assert "second.jpg" in Parsed(tmp_path / "r.html").text


def interrupted(path: Path) -> None:
    with Page(path, photos=9) as page:
        page.add(record("a.jpg"), look())
        raise KeyboardInterrupt


def test_a_run_that_ends_early_leaves_a_page_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "r.html")
    found = Parsed(tmp_path / "r.html")
    assert found.open == []
    assert "The run ended early" in found.text
    assert found.count("article") == 1


def test_a_run_that_is_killed_leaves_what_was_done(tmp_path: Path) -> None:
    page = Page(tmp_path / "r.html", photos=9)
    page.add(record("a.jpg"), look())
    page.add(record("b.jpg"), look())
    page._handle.close()  # as the kernel does for a process that is killed
    [left] = tmp_path.iterdir()
    assert left.name == "r.part.html"
    found = Parsed(left)
    assert found.open == ["html", "body", "main"]  # which every browser closes
    assert found.count("article") == 2
    assert "the run was cut off" in found.text
    with pytest.raises(RefusedOverwriteError, match=r"r\.part\.html exists"):
        Page(tmp_path / "r.html")
    Page(tmp_path / "r.html", overwrite=True).close()
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


class FullDisk(io.FileIO):
    """A disk with room for `free` bytes more."""

    free = 10**9

    def write(self, data: Any) -> int:
        if len(data) > self.free:
            super().write(data[: self.free])
            raise OSError(28, "No space left on device")
        return super().write(data)


def test_a_full_disk_costs_the_page_and_not_the_run(tmp_path: Path) -> None:
    page = Page(tmp_path / "r.html")
    page.add(record("a.jpg"), look())
    end = page._handle.tell()
    page._handle.close()
    page._handle = FullDisk(page.part, "ab")
    page._handle.free = 100
    page.add(record("b.jpg"), look())
    assert page.part.stat().st_size == end
    page.add(record("c.jpg"), look())
    with pytest.raises(FileAccessError, match="No space left"):
        page.close()
    assert Parsed(page.part).count("article") == 1


def test_memory_does_not_grow_with_the_batch(tmp_path: Path) -> None:
    with Page(tmp_path / "r.html") as page:
        page.add(record("a.jpg"), look())
        kept = [len(pickle.dumps(vars(page._totals)))]
        for number in range(50):
            page.add(record(f"{number}.jpg"), look())
        kept.append(len(pickle.dumps(vars(page._totals))))
    assert kept[1] - kept[0] < 20


def test_a_run_that_fails_before_its_first_photo_leaves_nothing(tmp_path: Path) -> None:
    with Page(tmp_path / "r.html") as page:
        page.add(record("kept.jpg"))
    with pytest.raises(ZeroDivisionError), Page(tmp_path / "r.html", overwrite=True):
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]
    assert "kept.jpg" in Parsed(tmp_path / "r.html").text


# ---- from a manifest ----


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """A manifest of two restored photos and a failed one, with the files it names."""
    (tmp_path / "out").mkdir()
    lines: list[Record] = []
    with manifest.Manifest(tmp_path / "run.jsonl") as keep:
        for name in ("a.png", "b.png"):
            plain((400, 300), RED).to_pillow().save(tmp_path / name)
            plain((400, 300), BLUE).to_pillow().save(tmp_path / "out" / name)
            write_mask(np.eye(300, 400, dtype=bool), tmp_path / f"mask_{name}")
            line = record(name, tmp_path)
            line["input"] |= manifest.file_facts(tmp_path / name)
            line["output"] |= manifest.file_facts(tmp_path / "out" / name)
            line["saved_mask"] = manifest.file_facts(tmp_path / f"mask_{name}")
            lines.append(line)
        keep.append({**failed("a.png"), "output": lines[0]["output"]})
        for line in lines:
            keep.append(line)
        keep.append(failed("c.png", folder=tmp_path))
    return tmp_path


def test_a_manifest_makes_a_page(album: Path) -> None:
    assert write_report(album / "r.html", manifest.read(album / "run.jsonl")) == 3
    found = Parsed(album / "r.html")
    assert "3 photos: 2 restored, 1 failed" in found.text
    assert found.count("img") == 6
    links = {unquote(attributes["href"] or "") for tag, attributes in found.tags if tag == "a"}
    assert {"a.png", "out/a.png", "mask_a.png", "b.png", "out/b.png", "mask_b.png"} == links


def test_a_page_tells_what_has_changed_since(album: Path) -> None:
    plain((400, 300), RED).to_pillow().save(album / "out/a.png")
    (album / "b.png").unlink()
    write_report(album / "r.html", manifest.read(album / "run.jsonl"))
    found = Parsed(album / "r.html")
    assert "the output is changed since: a.png" in found.text
    assert "the input is missing since: b.png" in found.text
    assert found.count("img") == 3


@pytest.mark.parametrize("size", [0, 10, 400])
def test_a_page_that_was_only_begun_is_replaced(tmp_path: Path, size: int) -> None:
    with Page(tmp_path / "r.html") as page:
        page.add(record())
        begun = page.part.read_bytes()[:size]
    (tmp_path / "r.html").rename(tmp_path / "r.part.html")
    (tmp_path / "r.part.html").write_bytes(begun)
    with pytest.raises(RefusedOverwriteError):
        Page(tmp_path / "r.html")
    Page(tmp_path / "r.html", overwrite=True).close()
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_an_empty_manifest_makes_no_page(tmp_path: Path) -> None:
    with pytest.raises(NoInputError):
        write_report(tmp_path / "r.html", [])
    assert not list(tmp_path.iterdir())


# ---- in a browser ----


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Chromium]:
    if chromium.PROGRAM is None:
        pytest.skip("Chromium is not installed")
    opened = chromium.Chromium(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def page_of_four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "r.html"
    with Page(path, photos=4) as page:
        page.add(record("b 10.jpg", seconds=1.0), look())
        page.add(record("b 9.jpg", seconds=3.0, mask_share=0.5, warnings=["a note"]), look((300, 400)))
        page.add(failed(HOSTILE[0]))
        page.add(record(HOSTILE[1], seconds=2.0), look())
    return path


Tab = Callable[[], chromium.Chromium]


@pytest.fixture
def tab(browser: chromium.Chromium, page_of_four: Path) -> Iterator[chromium.Chromium]:
    """The page, freshly loaded; what it logged or asked for is looked at when the test is over."""
    browser.media()
    browser.size(1280, 900)
    browser.open(page_of_four)
    browser.settle()
    yield browser
    told = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
    assert [event for event in browser.events if event[0] in told] == []
    asked = [p["request"]["url"] for method, p in browser.events if method == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [page_of_four.as_uri()]


def box(tab: chromium.Chromium, selector: str = ".pair") -> dict[str, float]:
    found: dict[str, float] = tab.value(
        f"(() => {{ const b = document.querySelector('{selector}').getBoundingClientRect();"
        " return {x: b.x, y: b.y, width: b.width, height: b.height} })()"
    )
    return found


def seen(tab: chromium.Chromium) -> NDArray[np.uint8]:
    """The window as (H, W, 3)."""
    tab.settle()
    return np.asarray(Image.open(io.BytesIO(tab.screenshot())).convert("RGB"))


def divider(tab: chromium.Chromium) -> float:
    """Where along the first photo, in 0..1, red ends and blue begins, by the pixels of the window; row 12 is free."""
    place = box(tab)
    row = seen(tab)[int(place["y"]) + 12, int(place["x"]) + 2 : int(place["x"] + place["width"]) - 2].astype(int)
    red = np.abs(row - RED).max(1) < 12
    blue = np.abs(row - BLUE).max(1) < 12
    assert red.sum() + blue.sum() > len(row) - 20
    assert not red.any() or not blue.any() or red.nonzero()[0].max() < blue.nonzero()[0].min()
    return float(red.sum() / (red.sum() + blue.sum()))


def test_the_mouse_moves_the_divider(tab: chromium.Chromium) -> None:
    place = box(tab)
    assert divider(tab) == pytest.approx(0.5, abs=0.02)
    middle = place["y"] + place["height"] / 2
    tab.mouse("press", place["x"] + place["width"] / 2, middle)
    for share in (0.4, 0.2):
        tab.mouse("move", place["x"] + place["width"] * share, middle + 200)
        assert divider(tab) == pytest.approx(share, abs=0.02)
    tab.mouse("release", place["x"] + place["width"] * 0.2, middle)
    tab.mouse("move", place["x"] + place["width"] * 0.9, middle)
    assert divider(tab) == pytest.approx(0.2, abs=0.02)
    assert tab.value("document.querySelectorAll('.divide')[1].value") == "50"


def test_keys_move_the_divider(tab: chromium.Chromium) -> None:
    for _ in range(30):
        tab.key("Tab", 9)
        if tab.value("document.activeElement.className") == "divide":
            break
    outline = "getComputedStyle(document.querySelector('.handle svg')).outlineStyle"
    assert tab.value(outline) == "solid"
    for _ in range(5):
        tab.key("ArrowRight", 39)
    assert divider(tab) == pytest.approx(0.55, abs=0.02)
    tab.key("Home", 36)
    assert divider(tab) == pytest.approx(0, abs=0.02)
    tab.key("End", 35)
    assert divider(tab) == pytest.approx(1, abs=0.02)


def test_the_mouse_hands_over_to_the_keys(tab: chromium.Chromium) -> None:
    place = box(tab)
    point = place["x"] + place["width"] * 0.3, place["y"] + 50
    tab.mouse("press", *point)
    tab.mouse("release", *point)
    tab.key("ArrowLeft", 37)
    assert tab.value("document.querySelector('.divide').value") == "29"


def test_a_finger_moves_the_divider_and_still_scrolls(tab: chromium.Chromium) -> None:
    tab.size(390, 844, touch=True)
    tab.value("document.querySelector('.pair').scrollIntoView({block: 'center'})")
    tab.settle()
    place = box(tab)
    middle = place["y"] + place["height"] / 2
    at = [(place["x"] + place["width"] * share, middle) for share in (0.5, 0.55, 0.65, 0.8)]
    tab.touch("start", at[0])
    for point in at[1:]:
        tab.touch("move", point)
    tab.touch("end")
    assert divider(tab) == pytest.approx(0.8, abs=0.03)
    before = tab.value("scrollY")
    tab.touch("start", (place["x"] + place["width"] * 0.2, middle))
    for step in range(1, 8):
        tab.touch("move", (place["x"] + place["width"] * 0.2, middle - 30 * step))
    tab.touch("end")
    tab.settle()
    assert tab.value("scrollY") > before + 50
    assert tab.value("document.querySelector('.divide').value") == pytest.approx("80")


def test_a_screen_reader_is_told(tab: chromium.Chromium) -> None:
    tab.value("document.querySelector('.divide').focus()")
    tab.key("ArrowRight", 39)
    nodes = tab.send("Accessibility.getFullAXTree")["nodes"]
    parts = [(n["role"]["value"], n["name"]["value"], n) for n in nodes if "name" in n and not n["ignored"]]
    sliders = [node for role, name, node in parts if role == "slider"]
    assert len(sliders) == 3
    assert sliders[0]["name"]["value"] == "b 10.jpg: divide between before and after"
    facts = {p["name"]: p["value"].get("value") for p in sliders[0]["properties"]}
    assert (facts["valuemin"], facts["valuemax"]) == (0, 100)
    # The tree gives a native slider's number here, whatever screen readers are given.
    told = "document.querySelector('.divide').getAttribute('aria-valuetext')"
    assert tab.value(told) == "51 percent before, 49 percent after"
    assert {name for role, name, _ in parts if role == "article"} >= {"b 10.jpg", HOSTILE[0], HOSTILE[1]}
    assert {name for role, name, _ in parts if role == "image"} >= {"b 10.jpg before", "b 10.jpg after"}
    for role in ("slider", "checkbox", "radio", "combobox", "searchbox", "link"):
        assert all(name for found, name, _ in parts if found == role), role


def test_repaired_areas_and_faces_can_be_shown(tab: chromium.Chromium) -> None:
    place = box(tab)
    centre = int(place["y"] + place["height"] / 2), int(place["x"] + place["width"] * 0.25)
    assert np.abs(seen(tab)[centre].astype(int) - RED).max() < 12
    tab.value("document.querySelector('.show-mask').click()")
    assert seen(tab)[centre][1] > 55  # the overlay's green over the photo's 30
    tab.value("document.querySelector('.show-mask').click()")
    assert np.abs(seen(tab)[centre].astype(int) - RED).max() < 12
    tab.value("document.querySelector('.show-faces').click()")
    scale = place["width"] / 400
    edge = seen(tab)[int(place["y"] + 100 * scale), int(place["x"] + 90 * scale) : int(place["x"] + 110 * scale)]
    assert edge.min(axis=1).max() > 200  # white, where the photo is red
    assert tab.value("document.querySelectorAll('.photo:has(.show-mask:checked)').length") == 0
    tab.value("document.querySelector('.tools [name=mask]').click()")
    assert tab.value("document.querySelectorAll('.photo:has(.show-mask:checked)').length") == 3


def shown_names(tab: chromium.Chromium) -> list[str]:
    names: list[str] = tab.value(
        "[...document.querySelectorAll('.photo')].filter(p => p.checkVisibility())"
        ".map(p => p.querySelector('h2').textContent)"
    )
    return names


def choose(tab: chromium.Chromium, name: str, value: str) -> None:
    tab.value(
        f"(() => {{ const field = document.querySelector('.tools [name={name}]'); field.value = '{value}';"
        " field.dispatchEvent(new Event('input', {bubbles: true})) })()"
    )


def test_photos_are_found_and_sorted(tab: chromium.Chromium) -> None:
    first, second, broken, odd = "b 10.jpg", "b 9.jpg", HOSTILE[0], HOSTILE[1]
    assert shown_names(tab) == [first, second, broken, odd]
    choose(tab, "order", "name")
    assert [name for name in shown_names(tab) if name.startswith("b")] == [second, first]
    choose(tab, "order", "seconds")
    assert shown_names(tab)[:2] == [second, broken]
    choose(tab, "order", "share")
    assert shown_names(tab)[0] == second
    choose(tab, "order", "number")
    assert shown_names(tab) == [first, second, broken, odd]
    for state, names in (("failed", [broken]), ("warned", [second]), ("restored", [first, second, odd])):
        tab.value(f"document.querySelector('[name=state][value={state}]').click()")
        assert shown_names(tab) == names
        assert tab.value("document.querySelector('.count').textContent") == f"{len(names)} of 4 shown"
    choose(tab, "name", "B 9")
    assert shown_names(tab) == [second]


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(tab: chromium.Chromium, scheme: str) -> None:
    tab.media(features={"prefers-color-scheme": scheme})
    tab.value("document.querySelectorAll('details').forEach(part => part.open = true)")
    pairs = tab.value("""
        [...document.querySelectorAll('body *')].filter(element =>
            [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())
            && element.checkVisibility() && !element.closest('figcaption, script, option')
        ).map(element => {
            let under = element;
            while (under.parentElement && getComputedStyle(under).backgroundColor === 'rgba(0, 0, 0, 0)')
                under = under.parentElement;
            return [getComputedStyle(element).color, getComputedStyle(under).backgroundColor, element.outerHTML];
        })""")
    assert len(pairs) > 50
    for text, ground, where in pairs:
        light, dark = sorted((luminance(text), luminance(ground)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground, where)  # WCAG 2 AA
    corner = seen(tab)[5, 5]
    assert (corner > 230).all() if scheme == "light" else (corner < 40).all()


def test_nothing_is_cut_off_on_a_telephone(tab: chromium.Chromium) -> None:
    tab.size(320, 640, touch=True)
    tab.settle()
    assert tab.value("document.documentElement.scrollWidth") == 320


def test_on_paper_both_states_stand_side_by_side(tab: chromium.Chromium) -> None:
    tab.media("print")
    tab.settle()
    before, after = box(tab, ".before img"), box(tab, ".after img")
    assert before["x"] + before["width"] <= after["x"]
    assert before["width"] == after["width"] > 150
    assert tab.value("getComputedStyle(document.querySelector('.tools')).display") == "none"


def test_without_scripts_both_states_stand_side_by_side(browser: chromium.Chromium, page_of_four: Path) -> None:
    browser.media()
    browser.size(1280, 900)
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page_of_four)
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)
    before, after = box(browser, ".before img"), box(browser, ".after img")
    assert before["x"] + before["width"] <= after["x"]
    assert browser.value("document.querySelector('.tools').checkVisibility()") is False


def test_scripts_from_elsewhere_do_not_run(browser: chromium.Chromium, page_of_four: Path, tmp_path: Path) -> None:
    """Were the escaping ever to fail, the page's own policy still stands in the way."""
    text = page_of_four.read_text(encoding="utf-8")
    evil = "<script>window.evil = 1</script><img src=x onerror='window.evil = 1'><img src='http://127.0.0.1:9/x.png'>"
    (tmp_path / "evil.html").write_text(text.replace("</main>", f"{evil}</main>"), encoding="utf-8")
    browser.open(tmp_path / "evil.html")
    browser.settle()
    assert browser.value("window.evil === undefined && document.documentElement.className === 'live'")
    sent = {p["request"]["url"]: p["requestId"] for m, p in browser.events if m == "Network.requestWillBeSent"}
    stopped = {p["requestId"] for m, p in browser.events if m == "Network.loadingFailed" and p.get("blockedReason")}
    assert {number for url, number in sent.items() if not url.startswith(("data:", "file:"))} <= stopped


def test_a_thousand_photos_are_no_burden(browser: chromium.Chromium, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (700, 900, 3), np.uint8)
    with Page(tmp_path / "r.html", photos=1000) as page:
        small = look_at(Photo.from_array(noise), Photo.from_array(noise // 2), room=page.room)
        for number in range(1000):
            page.add(record(f"{number}.jpg"), small)
    assert (tmp_path / "r.html").stat().st_size < 90e6
    browser.media()
    browser.size(1280, 900)
    browser.open(tmp_path / "r.html")
    laid_out = (
        "[...document.querySelectorAll('.before img')]"
        ".map((img, n) => img.checkVisibility({contentVisibilityAuto: true}) ? n : -1).filter(n => n >= 0)"
    )
    assert browser.value("document.querySelectorAll('*').length") < 60_000
    for share in (0, 0.5, 1):
        browser.value(f"scrollTo(0, {share} * document.documentElement.scrollHeight)")
        browser.settle()
        browser.settle()
        there = browser.value(laid_out)
        assert 0 < len(there) < 30  # the others are neither laid out nor decoded
        assert share * 1000 - 60 <= there[0] <= share * 1000 + 30
    assert [event for event in browser.events if event[0] in ("Log.entryAdded", "Runtime.exceptionThrown")] == []
