"""Filling: patterns that can only be continued one way, against what they were."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from oldphoto.files.image import Photo
from oldphoto.models.loaded import Models
from oldphoto.options import Options
from oldphoto.pipeline import restore
from oldphoto.stages import filling
from oldphoto.stages.filling import fill, without_ground

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def disc(height: int, width: int, centre: tuple[int, int], radius: int) -> Mask:
    down, across = np.ogrid[:height, :width]
    return np.asarray((down - centre[0]) ** 2 + (across - centre[1]) ** 2 <= radius**2)


def hollow(pixels: Pixels, mask: Mask, level: int = 255) -> Pixels:
    return np.where(mask[..., None], np.uint8(level), pixels)


def error(made: NDArray[np.generic], truth: NDArray[np.generic], mask: Mask) -> float:
    return float(np.abs(made[mask].astype(float) - truth[mask]).mean())


def three(plane: NDArray[np.floating]) -> Pixels:
    return np.repeat(np.rint(plane.clip(0, 255)).astype(np.uint8)[..., None], 3, axis=2)


def checks(height: int = 96, width: int = 112) -> Pixels:
    down, across = np.mgrid[:height, :width]
    return three(110 + 70 * np.sign(np.sin(down / 2.5) * np.sin(across / 3.2)))


def ramp(height: int = 96, width: int = 112) -> Pixels:
    return three(np.add.outer(np.linspace(30, 120, height), np.linspace(0, 90, width)))


def test_a_pattern_goes_on() -> None:
    truth, mask = checks(), disc(96, 112, (50, 60), 14)
    holes = hollow(truth, mask)
    others = [cv2.inpaint(holes, mask.astype(np.uint8), 3, way) for way in (cv2.INPAINT_TELEA, cv2.INPAINT_NS)]
    assert error(fill(holes, mask), truth, mask) < 0.4 * min(error(other, truth, mask) for other in others)


def test_a_gradient_goes_on_though_no_other_place_has_its_brightness() -> None:
    truth, mask = ramp(), disc(96, 112, (48, 56), 16)
    assert error(fill(hollow(truth, mask), mask), truth, mask) < 2.5


def test_an_edge_is_led_across() -> None:
    down, across = np.mgrid[:96, :112]
    truth = three(np.where(down + 0.6 * across > 82, 190.0, 60.0))
    mask = disc(96, 112, (48, 56), 13)
    made = fill(hollow(truth, mask), mask)
    wrong = np.abs(made[mask].astype(int) - truth[mask]).max(axis=1) > 65  # on the other side of the edge
    assert wrong.mean() < 0.06


def test_grain_is_as_strong_as_about_the_hole() -> None:
    random = np.random.default_rng(3)
    truth = three(120 + random.normal(0, 12, (96, 112)))
    mask = disc(96, 112, (48, 56), 15)
    made = fill(hollow(truth, mask), mask)
    assert 0.7 < made[mask].std() / truth[~mask].std() < 1.2


def test_a_lost_corner_is_filled_with_what_lies_beside_it() -> None:
    truth, mask = ramp(), disc(96, 112, (0, 0), 30)
    made = fill(hollow(truth, mask), mask)
    assert error(made, truth, mask) < 12
    assert made[mask].max() < 140


@pytest.mark.parametrize("level", [0, 255])
def test_what_lies_under_the_mask_does_not_matter_and_the_rest_stays(level: int) -> None:
    truth, mask = checks(), disc(96, 112, (40, 30), 9)
    made = fill(hollow(truth, mask, level), mask)
    np.testing.assert_array_equal(made, fill(hollow(truth, mask, 128), mask))
    np.testing.assert_array_equal(made[~mask], truth[~mask])


def test_other_damage_is_no_source() -> None:
    """White damage lies all over: none of it may be taken for what belongs into a hole."""
    random = np.random.default_rng(5)
    truth = three(60 + random.normal(0, 4, (96, 112)))
    mask = np.zeros((96, 112), np.bool_)
    for top, left in random.integers(2, 88, (25, 2)):
        mask[top : top + 6, left : left + 6] = True
    assert fill(hollow(truth, mask), mask).max() <= truth[~mask].max() + 8


def test_16_bits_stay_16_bits() -> None:
    random = np.random.default_rng(7)
    deep = np.repeat((30000 + random.normal(0, 40, (64, 64, 1))).astype(np.uint16), 3, axis=2)
    mask = disc(64, 64, (32, 32), 6)
    made = fill(np.where(mask[..., None], np.uint16(65535), deep), mask)
    assert made.dtype == np.uint16
    assert 15 < made[mask].std() < 60  # a step of 8 bits is 257
    assert abs(float(made[mask].mean()) - 30000) < 40


def test_large_copies_are_refined_from_smaller_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "MOST_SEARCHED", 4000)
    truth, mask = ramp(), disc(96, 112, (48, 56), 12)
    mask[20:23, 10:60] = True  # too thin to be seen in smaller copies
    made = fill(hollow(truth, mask), mask)
    assert error(made, truth, mask) < 4
    np.testing.assert_array_equal(made[~mask], truth[~mask])


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (6, 40), (7, 7), (30, 31)])
def test_small_photos_are_filled_smoothly(size: tuple[int, int]) -> None:
    pixels = np.full((*size, 3), 90, np.uint8)
    mask = np.ones(size, np.bool_)
    np.testing.assert_array_equal(fill(pixels, mask), pixels)
    mask[-1, -1] = False
    np.testing.assert_array_equal(fill(hollow(pixels, mask), mask), pixels)


def test_ground_around_a_print_is_no_damage_but_a_lost_corner_is() -> None:
    mask = np.zeros((200, 300), np.bool_)
    mask[:14] = True  # along the whole upper side
    corner = disc(200, 300, (199, 299), 60)
    edge = np.zeros_like(mask)
    edge[20:, :3] = True  # worn, all along the left
    crack = np.zeros_like(mask)
    crack[17:150, 150:153] = True
    np.testing.assert_array_equal(without_ground(mask | corner | edge | crack), corner | edge | crack)


def test_what_was_filled_stays_filled_whatever_is_kept_of_the_networks_changes(models: Models) -> None:
    truth, mask = checks(), disc(96, 112, (50, 60), 14)
    holes = hollow(truth, mask)
    for strength in (0.0, None, 1.0):
        done = restore(Photo.from_array(holes), models, Options(faces=False, strength=strength), mask)
        assert error(done.photo.pixels, truth, mask) < 0.5 * error(holes, truth, mask)


def test_where_damage_alone_is_repaired_it_is_filled_and_nothing_else_happens(models: Models) -> None:
    truth, mask = checks(), disc(96, 112, (50, 60), 14)
    holes = hollow(truth, mask)
    done = restore(Photo.from_array(holes), models, Options(only_damaged=True), mask)
    np.testing.assert_array_equal(done.photo.pixels, fill(holes, mask))


def test_a_mask_of_the_users_own_may_name_what_lies_around_the_print(models: Models) -> None:
    truth = ramp()
    mask = np.zeros((96, 112), np.bool_)
    mask[:, :12] = True
    done = restore(Photo.from_array(hollow(truth, mask)), models, Options(only_damaged=True), mask)
    assert error(done.photo.pixels, truth, mask) < 30
