from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from oldphoto.stages.blending import (
    REFERENCE,
    BlendConfig,
    blend,
    grain_of,
    level_table,
    match_colours,
    missing_grain,
    soft_mask,
    warp_back,
)
from oldphoto.stages.faces import Face
from oldphoto.stages.faces.geometry import Matrix, Pixels, crop_matrix, cut_out

# Eyes, nose tip, mouth corners of a face with the eyes 40 pixels apart, about its nose.
FACE_POINTS = np.array([[-20.0, -20.0], [20.0, -20.0], [0.0, 0.0], [-12.0, 25.0], [12.0, 25.0]])

CASES = [("boy", 256), ("boy", 512), ("pair", 256), ("border", 256)]


def read(path: Path) -> Pixels:
    picture = np.asarray(cv2.imread(str(path)), np.uint8)
    return np.ascontiguousarray(picture[..., ::-1])


def matrix_at(x: float, y: float, scale: float = 1.0, degrees: float = 8.0) -> Matrix:
    angle = np.radians(degrees)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return crop_matrix(FACE_POINTS @ turn.T + [x, y], 256)


def photo_of(height: int, width: int, seed: int = 0) -> Pixels:
    """Smooth light and shade with some grain, never black or white."""
    random = np.random.default_rng(seed)
    rough = random.uniform(60, 190, (height // 24 + 2, width // 24 + 2, 3)).astype(np.float32)
    smooth = cv2.resize(rough, (width, height), interpolation=cv2.INTER_LINEAR) + random.normal(
        0, 3, (height, width, 3)
    )
    pixels: Pixels = np.clip(smooth, 1, 254).astype(np.uint8)
    return pixels


def face_in(photo: Pixels, matrix: Matrix, change: float | None = None) -> Face:
    """A face whose enhancement adds fine stripes of so many levels; None: nothing is changed."""
    before = cut_out(photo, matrix, 256)
    after = before.astype(np.float32)
    if change is not None:
        stripes = np.where(np.arange(256) // 4 % 2, change, -change).astype(np.float32)
        after = np.clip(after + stripes[None, :, None], 0, 255)
    return Face((0, 0, 1, 1), 1.0, np.zeros((5, 2)), matrix, before, after)


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}_{case[1]}")
def case(request: pytest.FixtureRequest, shared: Path) -> tuple[Pixels, list[Face], dict[str, np.ndarray], Path]:
    name, size = request.param
    stages = shared / "reference/stages"
    recorded = dict(np.load(stages / f"blend/{name}_{size}.npz"))
    faces = []
    for number in (1, 2):
        if f"f{number}_matrix" in recorded:
            path = stages / f"blend/{name}_{size}.face{number}."
            before, after = (
                read(path.with_name(path.name + "aligned_trunc.png")),
                read(path.with_name(path.name + "restored.png")),
            )
            matrix = recorded[f"f{number}_matrix"]
            faces.append(Face((0, 0, 1, 1), 1.0, np.zeros((5, 2)), matrix, before, after.astype(np.float32)))
    return read(stages / f"inputs/{name}.png"), faces, recorded, stages / f"blend/{name}_{size}"


def test_every_step_is_the_references(case: tuple[Pixels, list[Face], dict[str, np.ndarray], Path]) -> None:
    photo, faces, recorded, path = case
    height, width = photo.shape[:2]
    for number, face in enumerate(faces, 1):
        assert face.after is not None
        for channel in range(3):
            table = level_table(face.after[..., channel].astype(np.uint8).ravel(), face.before[..., channel].ravel())
            assert np.array_equal(table, recorded[f"f{number}_luts_rgb"][channel])
        matched = match_colours(face, width, height, REFERENCE)
        assert np.abs(matched - read(path.with_name(f"{path.name}.face{number}.matched.png"))).max() <= 1e-3

        top, left, bottom, right = recorded[f"f{number}_box_y0x0y1x1"]
        expected_mask = np.zeros((height, width), np.float32)
        expected_mask[top:bottom, left:right] = recorded[f"f{number}_soft_mask_in_box"]
        (mask_left, mask_top, mask_right, mask_bottom), mask = soft_mask(face, width, height, REFERENCE)
        whole_mask = np.zeros((height, width), np.float32)
        whole_mask[mask_top:mask_bottom, mask_left:mask_right] = mask
        assert np.abs(whole_mask - expected_mask).max() < 1e-5

        warped = warp_back(matched, face.matrix, (int(left), int(top), int(right), int(bottom)), antialias=False)
        counts = expected_mask[top:bottom, left:right] > 1e-3
        assert np.abs(warped - recorded[f"f{number}_warped_back_in_box"])[counts].max() <= 0.5


def test_the_final_picture_is_the_references(case: tuple[Pixels, list[Face], dict[str, np.ndarray], Path]) -> None:
    photo, faces, _, path = case
    final = read(path.with_name(path.name + ".final.png"))
    assert np.abs(blend(photo, faces, REFERENCE).astype(int) - final).max() <= 2


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_a_face_that_was_not_changed_leaves_the_photo_as_it_is(scale: float, depth: type) -> None:
    photo = photo_of(400, 500)
    deep: npt.NDArray[Any] = photo.astype(depth)
    if depth is np.uint16:
        deep = deep * np.uint16(257) + np.random.default_rng(1).integers(-100, 100, photo.shape).astype(np.uint16)
    faces = [face_in(photo, matrix_at(200, 190, scale)), face_in(photo, matrix_at(20, 380, scale, 40))]
    result = blend(deep, faces)
    assert result.dtype == depth
    # Interpolating the levels in floating point may leave a hundredth of a level.
    assert np.abs(result.astype(int) - deep).max() <= (0 if depth is np.uint8 else 3)


@pytest.mark.parametrize("config", [BlendConfig(), REFERENCE])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_outside_the_feather_every_bit_stays(config: BlendConfig, depth: type) -> None:
    photo = photo_of(300, 400)
    deep: npt.NDArray[Any] = photo.astype(depth) * np.array(np.iinfo(depth).max // 255, depth)
    kept = deep.copy()
    face = face_in(photo, matrix_at(150, 140), 30)
    result = blend(deep, [face], config)
    corners = np.array([[0.0, 0, 1], [255, 0, 1], [255, 255, 1], [0, 255, 1]]) @ face.matrix.T
    covered = np.zeros((300, 400), np.uint8)
    cv2.fillConvexPoly(covered, np.rint(corners[:, :2]).astype(np.int32), 1)
    grown = cv2.dilate(covered, np.ones((3, 3), np.uint8))
    assert np.array_equal(result[grown == 0], deep[grown == 0])
    assert (result[grown == 1] != deep[grown == 1]).any()
    assert np.array_equal(deep, kept)


def test_sixteen_bit_is_eight_bit_only_finer() -> None:
    photo = photo_of(300, 300)
    face = face_in(photo, matrix_at(150, 150), 30)
    fine = blend(photo.astype(np.uint16) * 257, [face])
    coarse = blend(photo, [face])
    assert np.abs(fine / 257.0 - coarse).max() <= 0.51
    assert len(np.unique(fine % 257)) > 100


def test_the_middle_of_the_face_is_the_enhanced_one() -> None:
    photo = photo_of(300, 300)
    face = face_in(photo, matrix_at(150, 150), 30)
    changed = blend(photo, [face]).astype(int) - photo
    assert np.abs(changed[130:170, 130:170]).mean() > 15


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_the_feather_grows_with_the_face_and_has_no_edge(scale: float) -> None:
    photo = photo_of(900, 900)
    face = face_in(photo, matrix_at(450, 450, scale, 0.0), 20)
    side = 256 * float(np.sqrt(np.linalg.det(face.matrix[:2, :2])))
    (left, top, right, bottom), mask = soft_mask(face, 900, 900, BlendConfig())
    assert right - left == pytest.approx(side, abs=8)
    middle = mask[mask.shape[0] // 2]
    ramp = ((middle > 0.02) & (middle < 0.98)).sum() / 2
    assert ramp == pytest.approx(0.125 * side, rel=0.25)
    assert middle[0] == 0.0
    assert np.abs(np.diff(middle)).max() < 20 / side
    # The mean step across the outer edge: at most one level.
    result = blend(photo, [face]).astype(int) - photo
    outer = np.abs(result[top:bottom, left:right])[(mask > 0) & (mask < 0.03)]
    assert outer.mean() < 1.0


def test_at_the_photos_own_border_there_is_no_feather() -> None:
    photo = photo_of(300, 300)
    (left, _, _, _), mask = soft_mask(face_in(photo, matrix_at(20, 150), 20), 300, 300, BlendConfig())
    assert left == 0
    assert mask[mask.shape[0] // 2, 0] == pytest.approx(1.0)


def test_overlapping_faces_share_and_do_not_depend_on_their_order() -> None:
    photo = photo_of(300, 400)
    faces = [face_in(photo, matrix_at(x, 150, 1.0, 0.0), 30) for x in (150, 150, 190)]
    one = np.abs(blend(photo, faces[:1]).astype(int) - photo)
    twice = np.abs(blend(photo, faces[:2]).astype(int) - photo)
    assert np.abs(one - twice).max() <= 45
    assert twice[140:160, 140:160].mean() == pytest.approx(one[140:160, 140:160].mean(), abs=1.5)
    forwards, backwards = blend(photo, faces).astype(int), blend(photo, faces[::-1]).astype(int)
    assert np.abs(forwards - backwards).max() <= 1


def test_colours_are_matched_to_the_crop_without_the_black_outside() -> None:
    photo = photo_of(300, 300)
    matrix = matrix_at(10, 150)
    before = cut_out(photo, matrix, 256)
    outside = (before == 0).all(axis=2)
    assert outside.mean() > 0.2
    # Another tint, and grey where the crop is black.
    after = np.clip(before * np.array([0.7, 0.9, 1.1]) + 20, 0, 255).astype(np.float32)
    face = Face((0, 0, 1, 1), 1.0, np.zeros((5, 2)), matrix, before, after)
    seen = cv2.erode((~outside).astype(np.uint8), np.ones((5, 5), np.uint8)) == 1
    matched = match_colours(face, 300, 300, BlendConfig())
    assert np.abs(matched - before)[seen].max() <= 2
    replaced = match_colours(
        replace(face, after=np.where(outside[..., None], 200, after).astype(np.float32)), 300, 300, REFERENCE
    )
    assert np.abs(replaced - before)[seen].mean() > 2 * np.abs(matched - before)[seen].mean()


def test_detail_finer_than_the_crop_is_kept() -> None:
    photo = photo_of(900, 900)
    face = face_in(photo, matrix_at(450, 450, 5.0), 10)
    middle = (slice(400, 500), slice(400, 500))

    def roughness(pixels: npt.NDArray[Any]) -> float:
        return float(np.abs(np.diff(pixels[middle].astype(int), axis=1)).mean())

    assert roughness(blend(photo, [face])) > 0.9 * roughness(photo)
    assert roughness(blend(photo, [face], BlendConfig(change_only=False, grain=False))) < 0.85 * roughness(photo)


def test_grain_that_the_enhancement_took_away_comes_back() -> None:
    random = np.random.default_rng(7)
    smooth = cv2.GaussianBlur(photo_of(400, 400, 7).astype(np.float32), (0, 0), 4)
    photo = np.clip(np.rint(smooth + random.normal(0, 5, (400, 400, 1))), 0, 255).astype(np.uint8)
    face = face_in(photo, matrix_at(200, 200))
    denoised = replace(face, after=cut_out(np.rint(smooth).astype(np.uint8), face.matrix, 256).astype(np.float32))
    middle, outside = (slice(150, 250), slice(150, 250)), (slice(0, 60), slice(0, 400))

    def grain(pixels: npt.NDArray[Any], where: tuple[slice, slice]) -> float:
        # By an independent measure: what a fine blur takes away.
        grey = pixels[where].astype(np.float32).mean(axis=2)
        return float((grey - cv2.GaussianBlur(grey, (0, 0), 1.0)).std())

    kept, lost = blend(photo, [denoised]), blend(photo, [denoised], BlendConfig(grain=False))
    assert grain(lost, middle) < 0.8 * grain(photo, outside)
    assert grain(kept, middle) == pytest.approx(grain(photo, outside), rel=0.12)
    assert np.array_equal(kept, blend(photo, [denoised]))


@pytest.mark.parametrize("deviation", [2.0, 6.0, 15.0])
def test_grain_is_the_noise_that_was_put_in(deviation: float) -> None:
    random = np.random.default_rng(8)
    slope = np.linspace(70, 180, 300)[None, :, None] + np.where(np.arange(300) < 150, 0, 10)[:, None, None]
    photo = np.repeat(np.rint(slope + random.normal(0, deviation, (300, 300, 1))), 3, axis=2).astype(np.uint8)
    # The levels are whole numbers, so that the median comes in steps.
    assert grain_of(photo) == pytest.approx(deviation, rel=0.05, abs=0.4)
    assert grain_of(photo.astype(np.uint16) * 257) == pytest.approx(257 * deviation, rel=0.05, abs=100)


def test_smooth_surroundings_and_smooth_faces_get_no_grain() -> None:
    grainy, smooth = photo_of(300, 300), np.asarray(cv2.GaussianBlur(photo_of(300, 300), (0, 0), 4), np.uint8)
    region, mask = soft_mask(face_in(grainy, matrix_at(150, 150)), 300, 300, BlendConfig())
    left, top, right, bottom = region
    grainy_face, grainy_ring = smooth.copy(), grainy.copy()
    grainy_face[top:bottom, left:right][mask > 0] = grainy[top:bottom, left:right][mask > 0]
    grainy_ring[top:bottom, left:right][mask > 0] = smooth[top:bottom, left:right][mask > 0]
    assert missing_grain(grainy, smooth, region, mask) > 1.0
    assert missing_grain(grainy_face, smooth, region, mask) < 0.7
    assert missing_grain(grainy_ring, smooth, region, mask) < 0.7


class Counted(np.ndarray):
    """Pixels that count how many of them are looked at or written."""

    touched = 0

    def __getitem__(self, where: Any) -> Any:
        part = super().__getitem__(where)
        Counted.touched += np.size(part)
        return np.asarray(part)

    def __setitem__(self, where: Any, value: Any) -> None:
        Counted.touched += np.size(super().__getitem__(where))
        super().__setitem__(where, value)


def test_the_cost_of_a_face_does_not_grow_with_the_photo() -> None:
    counts = []
    for side in (400, 2000):
        photo = photo_of(side, side)
        face = face_in(photo, matrix_at(200, 200, 0.7), 30)
        Counted.touched = 0
        cut_out(photo.view(Counted), face.matrix, 256)
        blend(photo.view(Counted), [face])
        counts.append(Counted.touched)
    assert counts[0] == counts[1]
    assert 0 < counts[0] < 20 * 256 * 256 * 3


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_a_face_of_other_brightness_leaves_no_step(depth: type) -> None:
    photo = photo_of(700, 700, 9)
    face = face_in(photo, matrix_at(350, 350, 2.0))
    assert face.after is not None
    # Brighter on one side, darker on the other: matching the levels cannot undo this.
    ramp = np.linspace(-25, 25, 256, dtype=np.float32)[None, :, None]
    deep: npt.NDArray[Any] = photo.astype(depth) * np.array(np.iinfo(depth).max // 255, depth)
    changed = blend(deep, [replace(face, after=np.clip(face.after + ramp, 0, 255))]) / (np.iinfo(depth).max / 255)
    (left, top, right, bottom), mask = soft_mask(face, 700, 700, BlendConfig())
    outer = (mask > 0.0) & (cv2.erode((mask > 0.0).astype(np.uint8), np.ones((5, 5), np.uint8)) == 0)
    step = np.abs(changed - photo)[top:bottom, left:right][outer]
    assert step.mean() <= 1.0
    assert np.abs(changed - photo)[top:bottom, left:right][mask > 0.9].mean() > 5


def test_faces_outside_the_photo_or_not_enhanced_change_nothing() -> None:
    photo = photo_of(200, 200)
    outside = face_in(photo, matrix_at(5000, 100), 30)
    plain = replace(face_in(photo, matrix_at(100, 100), 30), after=None)
    assert np.array_equal(blend(photo, [outside, plain]), photo)
    with pytest.raises(ValueError, match="enhanced"):
        match_colours(plain, 200, 200, BlendConfig())
