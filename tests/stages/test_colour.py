"""Colour for grey photos: luminance stays, edges hold, what has colour is left, and files say that it is made up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage.color import rgb2lab
from typer.testing import CliRunner

from oldphoto.cli import app
from oldphoto.errors import UsageError
from oldphoto.files.colour import from_light, light_of
from oldphoto.files.image import read_photo, write_photo
from oldphoto.files.photo import Metadata, Photo
from oldphoto.models.loaded import Models
from oldphoto.options import Options
from oldphoto.pipeline import restore
from oldphoto.stages.colour import Colouring, coloured, has_no_colour, lightness, within
from oldphoto.stages.stage import Case, State
from tests.pictures import other_rgb_profile

PLAIN = Options(faces=False, look="faithful", tone_strength=0.0, strength=0.0, colorize="auto")


def grey(height: int = 72, width: int = 96, dtype: Any = np.uint8) -> Any:
    """Dark on the left, bright on the right, with a gentle slope and some grain; (H, W, 3)."""
    level = np.where(np.arange(width) < width // 2, 0.25, 0.75)[None] + 0.1 * np.linspace(-1, 1, height)[:, None]
    level = level + 0.01 * np.random.default_rng(4).standard_normal(level.shape)
    return np.repeat(np.rint(level.clip(0, 1) * np.iinfo(dtype).max).astype(dtype)[..., None], 3, axis=2)


def of(pixels: Any) -> Any:
    """CIELAB by another implementation."""
    return rgb2lab(pixels.astype(np.float64) / np.iinfo(pixels.dtype).max)


def halves(seen: Any) -> Any:
    """A colourist that sees no edge exactly: red on the left, blue on the right, coarse."""
    made = np.zeros((2, 9, 12), np.float32)
    made[:, :, :6] = np.array([40.0, 30.0])[:, None, None]
    made[:, :, 6:] = np.array([0.0, -14.0])[:, None, None]
    return made


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_lightness_stays_whatever_the_colour(dtype: Any) -> None:
    pixels = grey(dtype=dtype)
    for wild in (halves, lambda _seen: np.full((2, 4, 4), 90.0, np.float32)):
        made = coloured(pixels, wild)
        assert made.dtype == dtype
        assert np.abs(of(made)[..., 0] - of(pixels)[..., 0]).max() < (0.5 if dtype == np.uint8 else 0.01)
        assert np.abs(of(made)[..., 1:]).mean() > 10.0


def test_colour_changes_where_lightness_does_and_not_before() -> None:
    made = of(coloured(grey(144, 192), halves))
    assert made[:, :90, 1].min() > 25.0  # red up to six pixels before the edge, where a cell of the answer is 16 wide
    assert made[:, 108:, 2].max() < -9.0
    assert np.abs(made[:, 20:80, 1] - 40.0).mean() < 2.0


def test_a_share_of_the_colours_and_the_rest_the_photos_own() -> None:
    pixels = grey()
    whole, half, none = (of(coloured(pixels, halves, share)) for share in (1.0, 0.5, 0.0))
    chroma = [float(np.hypot(lab[..., 1], lab[..., 2]).mean()) for lab in (whole, half, none)]
    assert 0.3 * chroma[0] < chroma[1] < 0.8 * chroma[0]
    assert chroma[2] < 0.1
    assert np.abs(half[..., 0] - of(pixels)[..., 0]).max() < 0.5


def test_light_there_and_back_is_the_same() -> None:
    every = np.arange(256, dtype=np.uint8)
    assert np.array_equal(from_light(light_of(every), np.uint8), every)
    fine = np.arange(65536, dtype=np.uint16)
    assert np.abs(from_light(light_of(fine), np.uint16).astype(int) - fine).max() <= 1
    middle = of(np.full((1, 1, 3), 119, np.uint8))[0, 0, 0]
    assert 100 * float(lightness(light_of(np.array([119], np.uint8)))[0]) == pytest.approx(middle, abs=0.01)


def test_what_srgb_cannot_show_comes_nearer_to_grey() -> None:
    luminance = np.array([0.5], np.float32)
    light = np.array([[1.5, 0.3, -0.2]], np.float32)
    made = within(light, luminance)
    assert made.min() >= -1e-6
    assert made.max() <= 1 + 1e-6
    away, before = (made - 0.5)[0], (light - 0.5)[0]
    assert np.allclose(away / away[0], before / before[0], atol=1e-5)  # the same hue


@pytest.mark.parametrize("tint", [(1.0, 1.0, 1.0), (1.0, 0.86, 0.65)])
def test_grey_and_toned_photos_have_no_colour(tint: tuple[float, float, float]) -> None:
    pixels = np.rint(grey() * np.array(tint)).astype(np.uint8)
    assert has_no_colour(pixels, None)
    red, squares = pixels.copy(), np.add.outer(np.arange(72) // 12, np.arange(96) // 12) % 2 == 0
    red[squares, 1:] //= 3
    assert not has_no_colour(red, None)
    assert has_no_colour(red, cv2.dilate(squares.astype(np.uint8), np.ones((5, 5))) > 0)  # all of it is damage


def test_a_grey_photo_becomes_rgb_with_a_profile(models: Models) -> None:
    photo = Photo(
        grey(), grey=True, metadata=Metadata(mode="L", jpeg_tables=((1,) * 64,), png_chunks=((b"gAMA", b"12"),))
    )
    done = restore(photo, models, PLAIN)
    assert done.colorized
    assert done.generated
    assert not done.photo.grey
    assert done.photo.metadata.icc
    assert done.photo.metadata.png_chunks == ()
    assert np.abs(of(done.photo.pixels)[..., 0] - of(photo.pixels)[..., 0]).max() < 0.6
    assert done.changes["colorized"] is True
    assert Colouring().words(done.changes) == [("Colour", "made up")]
    assert any("never faithful" in warning for warning in done.warnings)
    larger = restore(photo, models, replace(PLAIN, upscale=2)).photo
    assert (larger.pixels.shape, larger.grey) == ((144, 192, 3), False)


def test_a_photo_in_colour_is_left_unless_its_colours_are_to_be_made_anew(models: Models) -> None:
    pixels = grey()
    pixels[:36, :, 1:] //= 3
    photo = Photo(pixels, metadata=Metadata(icc=other_rgb_profile()))
    left = restore(photo, models, PLAIN)
    assert not left.colorized
    assert left.changes["colorized"] is False
    assert any("has colour already" in warning for warning in left.warnings)
    anew = restore(photo, models, replace(PLAIN, colorize="always"))
    assert anew.colorized
    assert anew.photo.metadata.icc == other_rgb_profile()
    assert not np.array_equal(anew.photo.pixels, left.photo.pixels)


def test_no_share_of_colour_leaves_a_grey_photo_grey(models: Models) -> None:
    done = restore(Photo(grey(), grey=True), models, replace(PLAIN, colour_strength=0.0))
    assert not done.colorized
    assert done.photo.grey
    assert not done.generated


def test_what_contradicts_colour_is_refused() -> None:
    with pytest.raises(UsageError, match="only damage"):
        Options(colorize="auto", only_damaged=True, with_scratch=True)
    with pytest.raises(UsageError, match="colour strength"):
        Options(colour_strength=0.5)
    with pytest.raises(UsageError, match="colour strength is 2"):
        Options(colorize="auto", colour_strength=2.0)
    with pytest.raises(UsageError, match="colorize is 'yes'"):
        Options(colorize="yes")  # type: ignore[arg-type]


def test_memory_is_bounded_whatever_the_size(models: Models) -> None:
    small, large = (
        Case(PLAIN, models.set, large=False, has_mask=False, width=side, height=side) for side in (100, 10_000)
    )
    assert Colouring().memory(small, models) == Colouring().memory(large, models) > 0


def test_an_edge_of_damage_does_not_stop_it(models: Models) -> None:
    state = State(grey(), grey(), np.ones((72, 96), np.bool_), trusted=True, way=None)  # type: ignore[arg-type]
    assert Colouring().run(state, Case(PLAIN, models.set, large=False, has_mask=True), models) is True


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_files_hold_colour_and_say_that_it_is_made_up(tmp_path: Path, name: str) -> None:
    photo, out = tmp_path / name, tmp_path / "out"
    write_photo(Photo(grey(), grey=True), photo)
    arguments = ["restore", "--colorize", str(photo), "-o", f"{out}/", "--manifest", str(tmp_path / "m.jsonl")]
    done = CliRunner().invoke(app, [*arguments, "--model", "compact", "--no-faces", "--look", "faithful"])
    assert done.exit_code == 0, done.output
    made = read_photo(out / name)
    assert not made.grey
    assert made.metadata.icc
    assert made.metadata.xmp
    assert b"compositeWithTrainedAlgorithmicMedia" in made.metadata.xmp
    assert b"colour_net sha256" in made.metadata.xmp
    with Image.open(out / name) as image:
        assert image.mode == "RGB"
    line = json.loads((tmp_path / "m.jsonl").read_text())
    assert [page["colorized"] for page in line["changes"]] == [True]
    assert "colour_net" in line["model"]["weights"]
    assert line["options"]["colorize"] == "auto"


def test_the_flag_takes_no_photo_for_its_value(tmp_path: Path) -> None:
    photo = tmp_path / "a.png"
    write_photo(Photo(grey(), grey=True), photo)
    for given in (["--colorize", str(photo)], [str(photo), "--colorize"], ["--colorize", "always", str(photo)]):
        done = CliRunner().invoke(app, ["restore", *given, "-o", f"{tmp_path}/out/", "--dry-run", "--model", "compact"])
        assert done.exit_code == 0, done.output
    wrong = CliRunner().invoke(app, ["restore", "--colorize=blue", str(photo), "-o", f"{tmp_path}/out/"])
    assert wrong.exit_code == 2
