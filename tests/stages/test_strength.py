"""How much of a change is kept: the arithmetic by plain formulas and scipy, the judgement on photos with a truth."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import skimage.data

from oldphoto import weights
from oldphoto.errors import UsageError
from oldphoto.files.colour import luminance
from oldphoto.files.image import Photo
from oldphoto.models.estimator import Estimator
from oldphoto.models.loaded import Models
from oldphoto.models.loading import load_compact
from oldphoto.options import Options
from oldphoto.pipeline import Restoration, restore
from oldphoto.stages import strength
from oldphoto.stages.changes import ALL, ChangeUse
from oldphoto.stages.strength import FIGURES, MOST, apply, detail, estimate, figures, parts, repaired
from oldphoto.training import degrade
from oldphoto.training.evaluate import Pixels8, psnr

NOTHING = ChangeUse((0.0, 0.0, 0.0, 0.0))
RNG = np.random.default_rng(5)
BEFORE = RNG.integers(0, 256, (150, 70, 3), dtype=np.uint8)
AFTER = RNG.integers(0, 256, (150, 70, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def photo() -> Pixels8:
    """A photo no network was trained on, (256, 256, 3): public domain (NASA), from scikit-image."""
    pixels: Pixels8 = skimage.data.astronaut()  # type: ignore[no-untyped-call]  # untyped in scikit-image
    return np.ascontiguousarray(pixels[:256, 130:386])


def test_the_four_parts_sum_to_the_change() -> None:
    change = AFTER.astype(np.float32) - BEFORE
    light, more_light, colour, more_colour = parts(change, 6.0)
    assert np.allclose(light[..., None] + more_light[..., None] + colour + more_colour, change, atol=1e-3)
    assert max(np.abs(light).max(), np.abs(colour).max()) == pytest.approx(6.0)
    # Colour has no light of its own.
    assert np.abs(luminance(colour + more_colour)).max() < 1e-3


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_all_or_nothing_is_kept_exactly(dtype: type) -> None:
    scale = np.iinfo(dtype).max // 255
    before, after = BEFORE.astype(dtype) * dtype(scale), AFTER.astype(dtype) * dtype(scale)
    assert np.array_equal(apply(before, after, None, ALL), after)
    assert np.array_equal(apply(before, after, None, NOTHING), before)
    half = apply(before, after, None, ChangeUse((0.5, 0.5, 0.5, 0.5)))
    assert np.abs(half.astype(float) - (before.astype(float) + after) / 2.0).max() <= 0.51


def test_damage_is_repaired_in_full_with_a_soft_rim() -> None:
    mask = np.zeros(BEFORE.shape[:2], np.bool_)
    mask[40:44, 10:60] = True
    out = apply(BEFORE, AFTER, mask, NOTHING)
    assert np.array_equal(out[mask], AFTER[mask])
    assert np.array_equal(out[39], np.where(mask[40][:, None], AFTER[39], out[39]))  # the rim, too
    assert np.array_equal(out[:36], BEFORE[:36])
    assert np.array_equal(out[48:], BEFORE[48:])
    rim = repaired(mask)[36:41, 30]
    assert (np.diff(rim) >= 0.0).all()
    assert 0.0 < rim[1] < 1.0


def test_bands_of_rows_do_not_show() -> None:
    """The photo is worked on some rows at a time; damage across their border counts on both sides."""
    mask = np.zeros(BEFORE.shape[:2], np.bool_)
    mask[strength.ROWS_AT_ONCE - 1, 5:20] = mask[strength.ROWS_AT_ONCE, 40:60] = True
    out = apply(BEFORE, AFTER, mask, NOTHING)
    whole = repaired(mask)[..., None]
    assert np.array_equal(out, np.rint(BEFORE + whole * (AFTER.astype(np.float32) - BEFORE)))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_sharpening_raises_bands_of_light(photo: Pixels8, dtype: type) -> None:
    """The bands are scipy's differences of Gaussians; raised alike in all channels, whatever rows are worked on at
    once."""
    scale = np.iinfo(dtype).max // 255
    pixels = photo.astype(dtype) * dtype(scale)
    plane = photo.astype(np.float64) @ [0.299, 0.587, 0.114]
    expected, soft = photo.astype(np.float64), plane
    for much, sigma in zip((0.5, 0.25, 1.0), strength.SHARPENED, strict=True):
        radius = math.ceil(3.0 * sigma)
        softer = scipy.ndimage.gaussian_filter(soft, sigma, radius=radius, mode="mirror")
        expected += much * (soft - softer)[..., None]
        soft = softer
    made = apply(pixels, pixels, None, ChangeUse((1.0, 1.0, 1.0, 1.0), (0.5, 0.25, 1.0)))
    assert np.abs(made / scale - np.clip(expected, 0.0, 255.0)).max() < 0.51
    assert np.allclose(np.sum(detail(plane.astype(np.float32)), axis=0), plane - soft, atol=1e-2)


def test_what_was_repaired_is_not_sharpened(photo: Pixels8) -> None:
    mask = np.zeros(photo.shape[:2], np.bool_)
    mask[120:140, 30:200] = True
    made = apply(photo, photo, mask, ChangeUse((0.0, 0.0, 0.0, 0.0), (2.0, 2.0, 2.0)))
    assert np.array_equal(made[mask], photo[mask])
    assert psnr(photo, np.asarray(made, np.uint8)) < 35.0


def test_figures_see_the_cosine_transform(photo: Pixels8) -> None:
    """The block transform is scipy's."""
    plane = photo[..., 0].astype(np.float32)
    sound = np.ones(plane.shape, np.bool_)
    sound[:8, :8] = False
    ours = strength._cosines(plane, sound)
    theirs = np.abs(scipy.fft.dctn(plane[8:16, 16:24], norm="ortho"))
    assert len(ours) == 32 * 32 - 1
    assert np.allclose(ours[32 + 2 - 1], theirs, atol=1e-2)


def test_figures_leave_out_what_is_damaged(photo: Pixels8) -> None:
    mask = np.zeros(photo.shape[:2], np.bool_)
    mask[100:106] = True
    clean = photo.astype(np.float32)
    hurt = np.where(mask[..., None], np.float32(255.0), clean)
    nothing = np.zeros_like(mask)
    left_out = np.abs(figures(hurt, hurt, mask) - figures(clean, clean, nothing))
    seen = np.abs(figures(hurt, hurt, nothing) - figures(clean, clean, nothing))
    assert left_out.shape == (FIGURES,)
    assert left_out.mean() < 0.3 * seen.mean()


@pytest.mark.parametrize("size", [(1, 1), (20, 400), (33, 33), (256, 256), (1000, 700), (300, 5000)])
def test_any_size_is_judged(size: tuple[int, int], models: Models) -> None:
    before, after = (RNG.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(2))
    keep = estimate(before, after, None, models.estimator("strength"))
    assert all(0.0 <= much <= most for much, most in zip((*keep.shares, *keep.raised), MOST, strict=True))
    assert len(strength._looks(*size)) <= strength.LOOKS
    assert estimate(before, after, np.ones(size, np.bool_), models.estimator("strength")) == ALL


def test_the_looks_are_spread_over_the_photo() -> None:
    looks = strength._looks(3000, 500)
    rows, columns = ({(s.start, s.stop) for s in each} for each in zip(*looks, strict=True))
    assert min(r[0] for r in rows) == 0
    assert max(r[1] for r in rows) == 3000
    assert sorted(columns) == [(0, 256), (244, 500)]


def aged(photo: Pixels8, operation: degrade.Operation, seed: int = 3) -> Pixels8:
    old = operation(photo.astype(np.float32) / np.float32(255.0), np.random.default_rng(seed))
    return np.asarray(np.clip(np.rint(old * 255.0), 0, 255), np.uint8)


def test_little_is_changed_where_little_is_wrong(models: Models, photo: Pixels8) -> None:
    """A sound photo comes out as good as it went in; noise is taken away."""
    plain = Options(faces=False)
    sound = restore(Photo.from_array(photo), models, plain)
    assert sound.kept is not None
    assert sound.kept.shares[0] < 0.5
    assert max(sound.kept.raised) < 0.1
    assert psnr(photo, np.asarray(sound.photo.pixels, np.uint8)) > 42.0
    noisy = aged(photo, degrade.gaussian_noise)
    done = restore(Photo.from_array(noisy), models, plain)
    assert done.kept is not None
    assert done.kept.shares[0] > 0.6
    gained = psnr(photo, np.asarray(done.photo.pixels, np.uint8)) - psnr(photo, noisy)
    assert gained > 2.0


# What is rebuilt is another matter: it is to look right, and may be further from a photo that is hardly worn.
FAITHFUL = Options(faces=False, tone_strength=0.0, look="faithful")


@pytest.mark.parametrize("operation", [degrade.jpeg, degrade.low_resolution, degrade.salt_and_pepper])
def test_judging_beats_keeping_all(operation: degrade.Operation, models: Models, photo: Pixels8) -> None:
    old = aged(photo, operation, seed=4)
    ours, every = (
        psnr(photo, np.asarray(restore(Photo.from_array(old), models, options).photo.pixels, np.uint8))
        for options in (FAITHFUL, replace(FAITHFUL, strength=1.0))
    )
    assert ours > every
    assert ours > psnr(photo, old) - 0.1


def test_specks_that_no_mask_names_go_where_there_is_damage(models: Models, photo: Pixels8) -> None:
    """Where the user says that there is damage, large changes that stand alone are kept in full."""
    rng = np.random.default_rng(8)
    hurt = photo.copy()
    places = rng.integers(2, 254, (60, 2))
    hurt[places[:, 0], places[:, 1]] = 255
    specks = np.abs(hurt.astype(int) - photo).max(axis=2) > 60
    mask = np.zeros(photo.shape[:2], np.bool_)
    mask[200:203, 20:60] = True
    plain = restore(Photo.from_array(hurt), models, Options(faces=False))
    marked = restore(Photo.from_array(hurt), models, Options(faces=False), mask)
    assert marked.kept is not None
    assert marked.kept.specks

    def left(done: Restoration) -> float:
        return float(np.abs(done.photo.pixels.astype(int) - photo)[specks].mean())

    assert left(marked) < 0.5 * float(np.abs(hurt.astype(int) - photo)[specks].mean())
    assert left(marked) <= left(plain) + 1.0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_large_changes_are_kept_in_full_where_they_stand_alone(dtype: type) -> None:
    """As scipy's mean over a square says, in bands and at the edges, too."""
    scale = np.iinfo(dtype).max // 255
    rng = np.random.default_rng(9)
    before: Any = np.full((300, 90, 3), 100 * scale, dtype)
    density = np.linspace(0.0, 0.25, 300)[:, None]
    hit = rng.random((300, 90)) < density
    after = before + (hit[..., None] * 50 * scale).astype(dtype)
    mask = np.zeros((300, 90), np.bool_)
    mask[40:60, 10:30] = True
    few = scipy.ndimage.uniform_filter((hit & ~mask).astype(np.float64), 33, mode="reflect") < 0.1 - 1e-9
    assert few.any()
    assert not few.all()
    nothing = (0.0, 0.0, 0.0, 0.0)
    done = apply(before, after, mask, ChangeUse(nothing, specks=True))
    sound = scipy.ndimage.distance_transform_cdt(~mask, "chessboard") > 4
    expected = np.where((few & hit)[..., None], 44 * scale, 0)
    assert np.abs((done.astype(int) - before - expected)[sound]).max() <= scale
    assert np.array_equal(apply(before, after, mask, ChangeUse(nothing))[sound], before[sound])


@pytest.mark.parametrize("operation", [degrade.gaussian_blur, degrade.optical_blur])
def test_blurred_photos_are_sharpened_unless_told_not_to(
    operation: degrade.Operation, models: Models, photo: Pixels8
) -> None:
    old = aged(photo, operation)
    sharp, blurred = (
        restore(Photo.from_array(old), models, replace(FAITHFUL, sharpen=wanted)) for wanted in (True, False)
    )
    assert sharp.kept is not None
    assert max(sharp.kept.raised) > 0.3
    assert blurred.kept == ChangeUse(sharp.kept.shares)
    gain = [psnr(photo, np.asarray(x.photo.pixels, np.uint8)) - psnr(photo, old) for x in (sharp, blurred)]
    assert gain[0] > max(gain[1], 0.0) + 0.3


def test_strength_is_the_users_word(models: Models, photo: Pixels8) -> None:
    old = aged(photo, degrade.gaussian_noise)

    def run(strength: float | None) -> tuple[Pixels8, ChangeUse | None]:
        done = restore(Photo.from_array(old), models, Options(faces=False, tone_strength=0.0, strength=strength))
        return np.asarray(done.photo.pixels, np.uint8), done.kept

    nothing, keep = run(0.0)
    assert keep == NOTHING
    assert np.array_equal(nothing, old)
    every, half = run(1.0)[0].astype(float), run(0.5)[0].astype(float)
    assert np.abs(half - (every + old) / 2.0).max() <= 1.0
    with pytest.raises(UsageError, match=r"strength is 1\.5"):
        Options(strength=1.5)
    with pytest.raises(UsageError, match="damage is repaired in full"):
        Options(strength=0.5, only_damaged=True)


def only_the_face(photo: Pixels8, models: Models, strength: float | None = None) -> Restoration:
    """What the face stage does to a photo, and nothing else."""
    options = Options(strength=0.0, tone_strength=0.0, face_strength=strength)
    done = restore(Photo.from_array(photo), models, options)
    assert len(done.faces) == 1
    return done


def test_a_sharp_face_stays_nearly_as_it_is(models: Models, photo: Pixels8) -> None:
    judged_right, all_of_it = only_the_face(photo, models), only_the_face(photo, models, 1.0)
    assert judged_right.faces[0].kept is not None
    assert min(judged_right.faces[0].kept.shares) < 0.5
    assert all_of_it.faces[0].kept == ALL
    kept, changed = (psnr(photo, np.asarray(done.photo.pixels, np.uint8)) for done in (judged_right, all_of_it))
    assert kept > 50.0
    assert kept > changed


def test_a_blurred_face_comes_nearer_to_the_true_one(models: Models, photo: Pixels8) -> None:
    blurred = np.asarray(cv2.GaussianBlur(photo, (0, 0), 1.5), np.uint8)
    done = only_the_face(blurred, models)
    left, top, right, bottom = (round(edge) for edge in done.faces[0].box)
    area = (slice(top, bottom), slice(left, right))
    before = psnr(photo[area], blurred[area])
    assert psnr(photo[area], np.asarray(done.photo.pixels, np.uint8)[area]) > before + 0.05
    assert np.array_equal(only_the_face(blurred, models, 0.0).photo.pixels, blurred)


@pytest.mark.parametrize(("name", "answers"), [("restraint", len(MOST)), ("face_restraint", strength.SHARES)])
def test_the_shipped_networks_fit_their_figures(name: str, answers: int) -> None:
    path = weights.resolve("compact", lambda _: (name,), offline=True).files[name]
    net = load_compact(path)
    assert isinstance(net, Estimator)
    assert (net.config.figures, net.config.answers) == (FIGURES, answers)
