"""Colours against littlecms: what the networks see, and what comes back."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms

from oldphoto.files.colour import cmyk_to_rgb, eight_bits, from_srgb, rgb_to_cmyk, to_srgb
from oldphoto.files.image import read_photo, write_photo
from oldphoto.models import translating
from oldphoto.models.loaded import Models
from oldphoto.models.tensors import Pixels, to_pixels, to_tensor
from oldphoto.models.translating import Translated, TranslationPlan
from oldphoto.options import Options
from oldphoto.pipeline import restore
from oldphoto.stages import translation
from oldphoto.weights import WeightSet
from tests.pictures import (
    adobe_rgb,
    exiftool,
    grey_profile,
    picture,
    press_profile,
    prophoto_rgb,
    saved,
    scanner_profile,
    srgb,
    tiff,
)

# All that the networks change, without the judgement of others.
ALL = Options(faces=False, tone_strength=0.0, strength=1.0, look="faithful")
WIDE = {"Adobe RGB": adobe_rgb, "ProPhoto RGB": prophoto_rgb, "scanner table": scanner_profile}


def noise(dtype: type[np.uint8] | type[np.uint16], size: tuple[int, ...] = (60, 80, 3), seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, size, dtype=dtype)


def by_littlecms(
    samples: NDArray[np.uint8], source: bytes, target: bytes, mode: str = "RGB", flags: int = 0
) -> NDArray[np.uint8]:
    mode_in = {1: "L", 3: "RGB", 4: "CMYK"}[samples.shape[2] if samples.ndim == 3 else 1]
    image = Image.frombytes(mode_in, (samples.shape[1], samples.shape[0]), np.ascontiguousarray(samples).tobytes())
    profiles = [ImageCms.ImageCmsProfile(BytesIO(icc)) for icc in (source, target)]
    done = ImageCms.profileToProfile(
        image, profiles[0], profiles[1], ImageCms.Intent.RELATIVE_COLORIMETRIC, mode, flags=ImageCms.Flags(flags)
    )
    assert done is not None
    return np.asarray(done)


@pytest.mark.parametrize("name", WIDE)
def test_the_networks_see_what_littlecms_says(name: str) -> None:
    icc = WIDE[name]()
    pixels = noise(np.uint8)
    theirs = by_littlecms(pixels, icc, srgb())
    # Half a level is its own rounding; a table is interpolated in another way.
    limit = 1.5 if name == "scanner table" else 0.8
    for own in (pixels, pixels.astype(np.uint16) * 257):
        ours = to_srgb(own, icc)
        assert ours.dtype == np.uint16
        off = np.abs(ours / 257 - theirs)
        assert np.percentile(off, 99.5) <= limit
        assert off.mean() < 0.4


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_is_left_alone_comes_back_the_same(name: str, dtype: type[np.uint8] | type[np.uint16]) -> None:
    icc, pixels = WIDE[name](), noise(dtype)
    seen = to_srgb(pixels, icc)
    np.testing.assert_array_equal(from_srgb(seen, seen, pixels, icc), pixels)
    # Beside a change too, and a change of next to nothing is next to nothing, also beyond what sRGB shows.
    touched = seen.copy()
    touched[:, ::2] ^= 1
    back = from_srgb(seen, touched, pixels, icc)
    np.testing.assert_array_equal(back[:, 1::2], pixels[:, 1::2])
    assert np.abs(back.astype(int) - pixels).max() <= (1 if dtype is np.uint8 else 60)


@pytest.mark.parametrize("name", ["Adobe RGB", "ProPhoto RGB"])
def test_new_colours_are_what_littlecms_says(name: str) -> None:
    icc, new = WIDE[name](), noise(np.uint8, seed=1)
    pixels = np.full_like(new, 255)
    new = np.minimum(new, 200)  # far from the white that was there
    back = from_srgb(to_srgb(pixels, icc), new.astype(np.uint16) * 257, pixels, icc)
    assert np.abs(back.astype(int) - by_littlecms(new, srgb(), icc)).max() <= 1


def test_a_table_is_inverted() -> None:
    icc, pixels = scanner_profile(), noise(np.uint8)
    start = np.full_like(pixels, 255)
    seen = to_srgb(pixels, icc)
    shown = ((seen > 1000) & (seen < 64000)).all(axis=2)  # what sRGB can show
    assert shown.mean() > 0.2
    back = from_srgb(to_srgb(start, icc), seen, start, icc)
    assert np.abs(back.astype(int) - pixels)[shown].mean() < 2


def test_sixteen_bits_keep_more_than_256_levels() -> None:
    ramp = np.linspace(9000, 40000, 5000).astype(np.uint16)
    pixels = np.repeat(ramp.reshape(50, 100, 1), 3, axis=2)
    for icc in (adobe_rgb(), prophoto_rgb(), grey_profile()):
        seen = to_srgb(pixels, icc)
        assert len(np.unique(seen)) > 4500
        brighter = (seen.astype(np.float64) * 1.1).astype(np.uint16)
        assert len(np.unique(from_srgb(seen, brighter, pixels, icc)[..., 1])) > 4500


def test_grey_goes_through_its_curve() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = np.dstack([levels] * 3)
    seen = to_srgb(pixels, grey_profile())
    theirs = by_littlecms(levels, grey_profile(), srgb())
    assert np.abs(seen / 257 - theirs).max() <= 1.5  # near black, where littlecms rounds
    assert np.abs(seen / 257 - theirs).mean() <= 0.4
    assert (seen[..., 0] == seen[..., 1]).all()
    back = from_srgb(
        to_srgb(np.full_like(pixels, 255), grey_profile()), seen, np.full_like(pixels, 255), grey_profile()
    )
    assert np.abs(back.astype(int) - pixels)[levels < 220].max() <= 1


def test_srgb_and_what_cannot_be_read_is_taken_as_it_is() -> None:
    pixels = noise(np.uint8)
    broken = adobe_rgb()[:200]
    for icc in (None, srgb(), broken, b"", b"nonsense" * 40, press_profile()):
        assert to_srgb(pixels, icc) is pixels
        other = noise(np.uint8, seed=1)
        assert from_srgb(pixels, other, pixels, icc) is other


@pytest.mark.parametrize("icc", [None, press_profile()], ids=["no profile", "profile"])
def test_cmyk_keeps_its_inks(icc: bytes | None) -> None:
    inks = noise(np.uint8, (40, 50, 4))
    rgb = cmyk_to_rgb(inks, icc)
    np.testing.assert_array_equal(rgb_to_cmyk(rgb, inks, icc), inks)
    if icc is not None:
        assert np.abs(rgb.astype(int) - by_littlecms(inks, icc, srgb(), flags=0x2000)).max() <= 1
    # White holes filled with a colour: the inks make that colour again.
    inks[:] = 0
    new = noise(np.uint8, (40, 50, 3), seed=1) // 2 + 30
    made = cmyk_to_rgb(rgb_to_cmyk(new, inks, icc), icc)
    assert np.abs(made.astype(int) - new).mean() < (12 if icc else 1)


def test_a_cmyk_photo_stays_one(tmp_path: Path) -> None:
    inks = noise(np.uint8, (40, 50, 4))
    image = Image.frombytes("CMYK", (50, 40), inks.tobytes())
    for suffix, options in ((".tif", {"compression": "tiff_lzw"}), (".jpg", {"quality": 90})):
        path = tmp_path / f"in{suffix}"
        image.save(path, icc_profile=press_profile(), **options)
        photo = read_photo(path)
        assert photo.pixels.shape == (40, 50, 3)
        write_photo(photo, tmp_path / f"out{suffix}")
        with Image.open(path) as before, Image.open(tmp_path / f"out{suffix}") as after:
            assert (after.mode, after.info["icc_profile"]) == ("CMYK", press_profile())
            off = np.abs(np.asarray(before).astype(int) - np.asarray(after))
            assert off.max() == 0 if suffix == ".tif" else off.mean() < 3
        if suffix == ".tif":
            assert read_photo(tmp_path / "out.tif").metadata == photo.metadata
            tags = exiftool(tmp_path / "out.tif")
            assert "IFD0:Warning" not in tags
    # Other formats have no inks: they take what the networks saw, as sRGB.
    write_photo(photo, tmp_path / "out.png")
    png = read_photo(tmp_path / "out.png")
    np.testing.assert_array_equal(png.pixels, photo.pixels)
    assert png.metadata.icc is None


def test_inks_turn_with_the_photo() -> None:
    inks = noise(np.uint8, (40, 50, 4))
    image = Image.frombytes("CMYK", (50, 40), inks.tobytes())
    photo = read_photo(saved(image, "TIFF", tiffinfo={274: 6}))
    assert photo.inks is not None
    np.testing.assert_array_equal(photo.inks, np.rot90(inks, -1))


# --- in the pipeline -------------------------------------------------------------------------------------------------


class Glass:
    """Networks that scale what they see, in [-1, 1], by a factor, 1 for no change, and remember what they saw."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, factor: float = 1.0) -> None:
        self.seen: NDArray[np.float64] | None = None
        self.factor = factor
        monkeypatch.setattr(translating, "translate_photo", self.translate)
        monkeypatch.setattr(translating, "plan_translation", lambda *_, **__: TranslationPlan("whole", 0))
        monkeypatch.setattr(translation, "translation_nets", lambda *a, **k: None)

    def translate(self, pixels: Pixels, *rest: Any, **options: Any) -> Translated:
        x = to_tensor(pixels)
        self.seen = (x[0].permute(1, 2, 0).numpy().astype(np.float64) + 1) * 127.5
        return Translated(to_pixels(x * self.factor, pixels.dtype), TranslationPlan("whole", 0))


@pytest.fixture
def models() -> Models:
    return Models(WeightSet("compact", {}), "cpu")


def file_of(kind: str) -> bytes:
    if kind == "CMYK":
        image = Image.frombytes("CMYK", (80, 60), noise(np.uint8, (60, 80, 4)).tobytes())
        return saved(image, "TIFF", icc_profile=press_profile())
    if kind == "grey 16":
        return tiff(noise(np.uint16, (60, 80)), photometric="minisblack", iccprofile=grey_profile())
    dtype = np.uint16 if "16" in kind else np.uint8
    icc = adobe_rgb() if "Adobe" in kind else prophoto_rgb()
    return tiff(noise(dtype), photometric="rgb", iccprofile=icc)


@pytest.mark.parametrize("kind", ["Adobe", "Adobe 16", "ProPhoto", "ProPhoto 16", "grey 16", "CMYK"])
def test_a_file_comes_back_the_same_from_networks_that_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: Models, kind: str
) -> None:
    glass = Glass(monkeypatch)
    (tmp_path / "in.tif").write_bytes(file_of(kind))
    photo = read_photo(tmp_path / "in.tif")
    write_photo(restore(photo, models, ALL).photo, tmp_path / "out.tif")
    before, after = tifffile.imread(tmp_path / "in.tif"), tifffile.imread(tmp_path / "out.tif")
    assert before.dtype == after.dtype
    np.testing.assert_array_equal(before, after)
    assert read_photo(tmp_path / "out.tif").metadata == photo.metadata
    assert glass.seen is not None
    if kind in ("Adobe", "ProPhoto"):
        icc = photo.metadata.icc
        assert icc is not None
        assert np.abs(glass.seen - by_littlecms(before, icc, srgb())).max() < 0.9


def test_a_restored_sixteen_bit_photo_has_more_than_256_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: Models
) -> None:
    Glass(monkeypatch, 0.9)
    ramp = np.repeat(np.linspace(2000, 60000, 4800).astype(np.uint16).reshape(60, 80, 1), 3, axis=2)
    for icc in (None, adobe_rgb()):
        photo = read_photo(tiff(ramp, photometric="rgb", iccprofile=icc))
        write_photo(restore(photo, models, ALL).photo, tmp_path / "out.tif")
        counts, _ = np.histogram(tifffile.imread(tmp_path / "out.tif")[..., 1], bins=65536, range=(0, 65536))
        assert (counts > 0).sum() > 4000
    assert np.abs(ramp.astype(int) - picture(3, np.uint16).astype(int).mean()).max() > 0


def test_sixteen_bits_become_the_nearest_eight() -> None:
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    assert np.array_equal(eight_bits(every), np.rint(every / 257.0))
    few = eight_bits(every)
    assert eight_bits(few) is few
