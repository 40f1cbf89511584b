from __future__ import annotations

import importlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import dlib
import numpy as np
import pytest
import torch
from torch import nn

import oldphoto
from oldphoto import weights
from oldphoto.errors import WeightsCorruptError
from oldphoto.models.loading import build, save_compact
from oldphoto.models.scratch_unet import ScratchUnetConfig
from oldphoto.stages.changes import ChangeUse
from oldphoto.stages.faces import Detector, Face, FoundFace, Landmarks, cnn_detector, detect_faces, draw_faces
from oldphoto.stages.faces.detectors import search
from oldphoto.stages.faces.enhancing import enhance_faces, find_faces
from oldphoto.stages.faces.finding import joined
from oldphoto.stages.faces.geometry import (
    Matrix,
    Pixels,
    Points,
    crop_matrix,
    cut_out,
    five_of_68,
    similarity,
    transform,
)
from oldphoto.stages.faces.proposals import Proposal
from oldphoto.training.landmarks import placed_points

COMPACT_LANDMARKS = Path(oldphoto.__file__).parent / "compact" / "landmarks_5.safetensors"


def read(path: Path) -> Pixels:
    picture = np.asarray(cv2.imread(str(path)), np.uint8)
    return np.ascontiguousarray(picture[..., ::-1])


def resized(pixels: Pixels, times: float, interpolation: int) -> Pixels:
    return np.asarray(cv2.resize(pixels, None, fx=times, fy=times, interpolation=interpolation), np.uint8)


def turned_similarity(degrees: float, scale: float, shift: tuple[float, float]) -> Matrix:
    angle = np.radians(degrees)
    matrix = np.eye(3)
    matrix[:2, :2] = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix[:2, 2] = shift
    return matrix


def eye_distance(points: Points) -> float:
    return float(np.hypot(*(points[1] - points[0])))


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = json.loads((shared / "reference/stages/faces/faces.json").read_text())
    return found


@pytest.fixture(scope="module")
def landmarks() -> Landmarks:
    return Landmarks(COMPACT_LANDMARKS)


@pytest.fixture(scope="module")
def boy(shared: Path) -> Pixels:
    return read(shared / "reference/stages/inputs/boy.png")


def tiny_predictor(path: Path, parts: int) -> Path:
    random = np.random.default_rng(parts)
    pictures = [random.integers(0, 255, (64, 64), np.uint8) for _ in range(2)]
    points = [dlib.point(int(x), int(y)) for x, y in random.integers(10, 54, (parts, 2))]
    shape = dlib.full_object_detection(dlib.rectangle(8, 8, 56, 56), points)
    options = dlib.shape_predictor_training_options()
    options.cascade_depth, options.num_trees_per_cascade_level, options.tree_depth = 2, 2, 2
    dlib.train_shape_predictor(pictures, [[shape], [shape]], options).save(str(path))
    return path


# Geometry against the recorded reference.


@pytest.mark.parametrize("name", ["boy", "pair", "man", "border"])
def test_five_points_matrices_and_crops_are_the_references(
    name: str, golden: dict[str, list[dict[str, Any]]], shared: Path
) -> None:
    stages = shared / "reference/stages"
    photo = read(stages / f"inputs/{name}.png")
    crops = 0
    for number, face in enumerate(golden[name], 1):
        five = np.array(face["five"], np.float64)
        # The reference cuts the eyes' middles to whole pixels; ours stay fractions.
        assert np.array_equal(np.trunc(five_of_68(np.array(face["landmarks68"], np.float64))), five)
        for size in (256, 512):
            matrix = crop_matrix(five, size)
            assert np.abs(matrix - face[f"matrix_{size}"]).max() < 1e-3
            recorded = stages / f"faces/{name}_{number}.{size}.png"
            if recorded.exists():
                crop = cut_out(photo, matrix, size)
                assert np.abs(crop.astype(int) - read(recorded)).max() <= 2
                crops += 1
    assert crops > 0


def test_similarity_solves_the_least_squares_problem() -> None:
    random = np.random.default_rng(1)
    source, target = random.normal(0, 50, (5, 2)), random.normal(10, 50, (5, 2))
    found = similarity(source, target)
    # As complex numbers: target = a * source + b, solved by lstsq; the angle and scale must not depend on the method.
    from_plane, to_plane = source[:, 0] + 1j * source[:, 1], target[:, 0] + 1j * target[:, 1]
    (a, b), *_ = np.linalg.lstsq(np.stack([from_plane, np.ones(5)], axis=1), to_plane, rcond=None)
    expected = np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag], [0, 0, 1]])
    spread_from, spread_to = source - source.mean(axis=0), target - target.mean(axis=0)
    if np.linalg.det(spread_to.T @ spread_from) > 0:
        assert np.allclose(found, expected)
    assert np.allclose(
        similarity(source, transform(turned_similarity(200, 0.3, (5, -7)), source)),
        turned_similarity(200, 0.3, (5, -7)),
    )


def test_similarity_never_mirrors_and_refuses_coinciding_points() -> None:
    source = np.random.default_rng(2).normal(0, 1, (5, 2))
    assert np.linalg.det(similarity(source, source * [-1, 1])[:2, :2]) >= 0
    with pytest.raises(ValueError, match="coincide"):
        similarity(np.ones((5, 2)), source)


@pytest.mark.parametrize("matrix", [turned_similarity(17, 0.6, (-20, 30)), turned_similarity(-80, 1.3, (9.3, 170.7))])
def test_crops_are_bilinear_and_black_outside(matrix: Matrix) -> None:
    photo = np.random.default_rng(3).integers(0, 256, (150, 210, 3), np.uint8)
    oracle: Any = importlib.import_module("skimage.transform")  # has no types
    expected = oracle.warp(photo.astype(np.float64), oracle.AffineTransform(matrix), output_shape=(128, 128), order=1)
    assert (expected == 0).all(axis=2).any()
    assert np.abs(cut_out(photo, matrix, 128) - expected).max() <= 1


def test_crops_of_large_faces_do_not_alias() -> None:
    checkerboard = np.indices((2000, 2000)).sum(axis=0) % 2 * 255
    photo = np.repeat(checkerboard[..., None], 3, axis=2).astype(np.uint8)
    crop = cut_out(photo, turned_similarity(5, 4.0, (300, 250)), 256)
    assert np.abs(crop.astype(int) - 128).max() < 8


def test_large_and_small_crops_lie_at_the_same_place() -> None:
    ramp = np.clip(np.arange(1200) / 5, 0, 255)
    photo = np.repeat(np.tile(ramp, (1200, 1))[..., None], 3, axis=2).astype(np.uint8)
    for scale in (0.5, 1.0, 2.5, 4.0):
        crop = cut_out(photo, turned_similarity(0, scale, (40, 40)), 256)
        expected = (40 + scale * np.arange(256)) / 5
        assert np.abs(crop[128, :, 0] - expected).max() <= 1.0


def test_a_crop_outside_the_photo_is_black() -> None:
    photo = np.full((50, 50, 3), 255, np.uint8)
    assert not cut_out(photo, turned_similarity(0, 1, (500, 0)), 64).any()


# Detection.


def test_detects_what_the_reference_detects(golden: dict[str, list[dict[str, Any]]], shared: Path) -> None:
    for name, faces in golden.items():
        found = detect_faces(read(shared / f"reference/stages/inputs/{name}.png"))
        boxes = [list(map(round, detection.box)) for detection in found]
        assert sorted(boxes) == sorted(face["rect_ltrb"] for face in faces), name


def test_small_faces_are_found_enlarged(boy: Pixels) -> None:
    small = resized(boy, 0.5, cv2.INTER_AREA)
    (upright,) = detect_faces(boy)
    (found,) = detect_faces(small)
    assert found.side < 50
    assert np.abs(np.array(found.bounds) / 0.5 - upright.bounds).max() < 0.2 * upright.side


def test_small_faces_beside_large_ones_are_found(boy: Pixels) -> None:
    small = np.full((512, 128, 3), 128, np.uint8)
    small[192:320] = resized(boy, 0.5, cv2.INTER_AREA)
    photo = np.hstack([resized(boy, 2.0, cv2.INTER_CUBIC), small])
    large, little = detect_faces(photo)
    assert large.side > 3 * little.side
    assert little.bounds[0] > 512


@pytest.mark.parametrize("shape", [(3000, 4000), (6000, 8000)])
def test_the_search_has_a_bound(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = []

    def nothing(picture: Pixels, least_score: float, frame: Matrix) -> list[FoundFace]:
        looked_at.append(picture.size)
        return []

    places = [Proposal(40.0 * n, 40.0 * n, 30.0, 20.0, 0.5) for n in range(500)]
    monkeypatch.setattr("oldphoto.stages.faces.finding.propose", lambda picture, net: places)
    detect_faces(np.zeros((*shape, 3), np.uint8), Detector(nothing, 1_000_000, 0.3, patience=7))
    # Upright and in the three ways to lie: once the whole photo, reduced, and a few proposals.
    assert len(looked_at) == 4 * (1 + 7)
    assert sum(looked_at) < 6e6


def test_a_doubtful_face_is_looked_at_again(boy: Pixels) -> None:
    grey = np.asarray(cv2.cvtColor(boy, cv2.COLOR_RGB2GRAY), np.uint8)
    (face,) = search(grey, 0.0, np.eye(3))
    cloth = replace(face, box=(10.0, 170.0, 95.0, 255.0))

    def doubtful(picture: Pixels, least_score: float, frame: Matrix) -> list[FoundFace]:
        found = [replace(face, score=0.1), replace(cloth, score=0.1)]
        return found if picture.shape == grey.shape else search(picture, least_score, frame)

    (found,) = detect_faces(boy, Detector(doubtful, 1_000_000, 0.3, patience=5))
    assert np.abs(found.corners.mean(axis=0) - face.corners.mean(axis=0)).max() < 0.2 * face.side


def test_tiny_faces_in_a_large_photo_are_found(boy: Pixels) -> None:
    photo = np.full((2400, 3600, 3), 150, np.uint8)
    places = [(200, 300), (1700, 900), (1100, 3100)]
    for top, left in places:
        photo[top : top + 64, left : left + 64] = resized(boy, 0.25, cv2.INTER_AREA)
    found = detect_faces(photo)
    middles = sorted(tuple(face.corners.mean(axis=0)[::-1]) for face in found)
    expected = [(top + 30, left + 32) for top, left in sorted(places)]
    assert np.abs(np.array(middles) - expected).max() < 10
    assert all(15 < face.side < 35 for face in found)


def test_the_letters_of_a_caption_are_no_faces_in_a_large_scan(shared: Path) -> None:
    group = resized(read(shared / "data/old/test/deoldify_194_Sami1880s.webp"), 4.2, cv2.INTER_CUBIC)
    found = detect_faces(group)
    assert len(found) >= 4
    assert all(face.side > 100 for face in found)


def test_a_leaning_face_is_found_leaning(boy: Pixels) -> None:
    turn = cv2.getRotationMatrix2D((128, 128), -40.0, 0.5)
    turn[:, 2] += 100
    leaning = np.asarray(cv2.warpAffine(boy, turn, (456, 456), borderMode=cv2.BORDER_REPLICATE), np.uint8)
    (face,) = detect_faces(leaning)
    assert face.turn == pytest.approx(40, abs=15)


@pytest.mark.parametrize("degrees", [-48.0, 48.0])
def test_a_leaning_face_that_no_proposal_names_is_found_in_a_small_photo(
    degrees: float, boy: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oldphoto.stages.faces.finding.propose", lambda picture, net: [])
    turn = np.asarray(cv2.getRotationMatrix2D((128, 128), -degrees, 1.0), np.float64)
    turn[:, 2] += (140, 60)
    leaning = np.asarray(cv2.warpAffine(boy, turn, (536, 376), borderMode=cv2.BORDER_REPLICATE), np.uint8)
    (upright,) = detect_faces(boy)
    (face,) = detect_faces(leaning)
    assert face.turn == pytest.approx(degrees, abs=20)
    expected = transform(turn, upright.corners.mean(axis=0)[None])[0]
    assert np.abs(face.corners.mean(axis=0) - expected).max() < 12
    assert face.side == pytest.approx(upright.side, rel=0.25)


# The convolutional detector, with the file of the dev extra.


@pytest.fixture(scope="module")
def cnn() -> Detector:
    (file,) = (file for file in weights.read_lock() if file.net == weights.CNN_DETECTOR)
    path = weights.cached(file)
    if path is None:
        pytest.skip("the dev extra's face_recognition_models is not installed")
    return cnn_detector(path)


def test_the_network_finds_faces_where_the_frontal_detector_does(cnn: Detector, shared: Path) -> None:
    pair = read(shared / "reference/stages/inputs/pair.png")
    frontal, network = detect_faces(pair), detect_faces(pair, cnn)
    assert len(network) == len(frontal) == 2
    for one in frontal:
        away = [np.hypot(*(one.corners.mean(axis=0) - other.corners.mean(axis=0))) for other in network]
        other = network[int(np.argmin(away))]
        assert min(away) < 0.15 * one.side
        assert other.side == pytest.approx(one.side, rel=0.2)
        assert 0.0 < other.score < 1.3


def test_the_network_sees_no_more_than_a_reduced_copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []

    class Net:
        def __init__(self, path: str) -> None:
            pass

        def __call__(self, picture: Pixels, doublings: int) -> list[Any]:
            seen.append(picture.shape)
            return []

    monkeypatch.setattr(dlib, "cnn_face_detection_model_v1", Net)
    monkeypatch.setattr("oldphoto.stages.faces.finding.propose", lambda picture, net: [])
    assert detect_faces(np.zeros((3000, 4000, 3), np.uint8), cnn_detector(tmp_path / "none")) == []
    assert len(seen) == 4
    assert all(height * width < 1_010_000 and channels == 3 for height, width, channels in seen)


def test_what_is_no_detector_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file.dat").write_bytes(b"nothing")
    with pytest.raises(WeightsCorruptError, match="not dlib's face detector"):
        cnn_detector(tmp_path / "file.dat")


def test_a_large_scan_is_searched_in_a_reduced_copy(boy: Pixels, landmarks: Landmarks) -> None:
    large = resized(boy, 10, cv2.INTER_LINEAR)
    (small_face,) = find_faces(boy, landmarks, 256)
    (face,) = find_faces(large, landmarks, 256)
    assert np.abs(np.array(face.box) / 10 - small_face.box).max() < 0.2 * (small_face.box[2] - small_face.box[0])
    assert np.abs(face.landmarks / 10 - small_face.landmarks).max() < 0.12 * eye_distance(small_face.landmarks)


def test_many_faces_are_found(boy: Pixels) -> None:
    assert len(detect_faces(np.tile(boy, (2, 3, 1)))) == 6


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_photos_on_their_side_or_head(quarters: int, boy: Pixels, landmarks: Landmarks) -> None:
    (upright,) = find_faces(boy, landmarks, 256)
    (face,) = find_faces(np.ascontiguousarray(np.rot90(boy, -quarters)), landmarks, 256)
    # Clockwise by 90 degrees (x, y) goes to (height - 1 - y, x).
    expected, height, width = upright.landmarks, *boy.shape[:2]
    for _ in range(quarters):
        expected = np.stack([height - 1 - expected[:, 1], expected[:, 0]], axis=1)
        height, width = width, height
    assert np.abs(face.landmarks - expected).max() < 0.06 * eye_distance(expected)
    assert np.abs(face.before.astype(int) - upright.before).mean() < 12


@pytest.mark.parametrize("degrees", [-45, 22, 38])
def test_tilted_faces(degrees: int, boy: Pixels, landmarks: Landmarks) -> None:
    (upright,) = find_faces(boy, landmarks, 256)
    height, width = boy.shape[:2]
    tilt = np.vstack([cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0), [0, 0, 1]])
    tilt[:2, 2] += 100
    tilted = cv2.warpAffine(boy, tilt[:2], (width + 200, height + 200), borderMode=cv2.BORDER_REPLICATE)
    (face,) = find_faces(np.asarray(tilted, np.uint8), landmarks, 256)
    expected = transform(tilt, upright.landmarks)
    assert np.abs(face.landmarks - expected).max() < 0.15 * eye_distance(expected)


def test_no_face_in_an_empty_noisy_or_tiny_photo(landmarks: Landmarks) -> None:
    noise = np.random.default_rng(4).integers(0, 256, (160, 120, 3), np.uint8)
    for photo in (noise, np.zeros((90, 90, 3), np.uint8), noise[:1, :1], noise[:200, :3]):
        assert find_faces(photo, landmarks, 256) == []


def test_each_thread_detects_for_itself(boy: Pixels) -> None:
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(detect_faces, [boy] * 6))
    assert all(detections[0].box == found[0][0].box for detections in found)


# Numbers.


def square(x: float, y: float, side: float, score: float = 1.0, degrees: float = 0.0) -> FoundFace:
    """A detection about (x, y) whose face leans by degrees."""
    half = side / 2
    return FoundFace((-half, -half, half, half), score, turned_similarity(degrees, 1.0, (x, y)))


def test_a_detection_knows_its_place_in_the_photo() -> None:
    leaning = square(100, 50, 40, degrees=90)
    assert leaning.bounds == pytest.approx((80, 30, 120, 70))
    assert leaning.side == pytest.approx(40)
    assert leaning.turn == pytest.approx(90)
    assert leaning.corners[0] == pytest.approx((120, 30))  # its own top left points to the right


def test_faces_are_numbered_by_size_then_from_top_and_left(boy: Pixels) -> None:
    rows = [np.tile(boy, (1, 4, 1)), resized(np.tile(boy, (1, 2, 1)), 2.0, cv2.INTER_LINEAR)]
    found = detect_faces(np.vstack(rows))
    assert len(found) == 6
    places = [(-round(face.side), round(face.bounds[1]), round(face.bounds[0])) for face in found]
    assert places == sorted(places)
    assert min(face.side for face in found[:2]) > 1.5 * max(face.side for face in found[2:])


def test_numbers_are_those_of_the_photo_as_it_came() -> None:
    before = [square(100, 100, 80, 0.3), square(300, 100, 70, 0.2), square(500, 100, 60, 0.1)]
    after = [square(700, 100, 90), square(304, 103, 75), square(98, 99, 70), square(500, 100, 200)]
    both = joined(before, after)
    # Clearer boxes take their place; the third is no face fallen from a much larger one; what is new comes last.
    assert both == [after[2], after[1], before[2], after[0], after[3]]
    assert joined([], after) == after
    assert joined(before, []) == before


def test_two_faces_side_by_side_are_not_one() -> None:
    before = [square(100, 100, 80), square(170, 100, 80)]
    after = [square(172, 100, 80), square(102, 100, 80)]
    assert joined(before, after) == [after[1], after[0]]


def test_drawn_faces_carry_a_frame_and_leave_the_photo_alone() -> None:
    photo = np.full((200, 300, 3), 60_000, np.uint16)
    kept = photo.copy()
    drawn = draw_faces(photo, [square(100, 120, 60), square(200, 60, 50, degrees=45)])
    assert drawn.dtype == np.uint8
    assert np.array_equal(photo, kept)
    changed = (drawn != 233).any(axis=2)
    assert changed[90, 80:120].all()  # an upright frame's top edge
    assert changed[60, round(200 + 25 * np.sqrt(2))]  # a leaning frame's corner
    assert not changed[120, 90:110].any()  # not the face itself
    assert not changed[160:].any()


# Landmarks.


def test_a_leaning_face_in_an_upright_box_is_seen_upright_the_second_time(boy: Pixels, landmarks: Landmarks) -> None:
    (upright,) = detect_faces(boy)
    expected = landmarks.find(boy, upright)
    lean = np.radians(28.0)
    middle = np.array([128.0, 128.0])
    turn = np.eye(3)
    turn[:2, :2] = [[np.cos(lean), -np.sin(lean)], [np.sin(lean), np.cos(lean)]]
    turn[:2, 2] = middle - turn[:2, :2] @ middle
    leaning = np.asarray(cv2.warpAffine(boy, turn[:2], (256, 256), borderMode=cv2.BORDER_REPLICATE), np.uint8)
    x, y = transform(turn, np.array([[128.0, 117.0]]))[0]  # the middle of the face's box
    found = landmarks.find(leaning, square(x, y, upright.side))
    assert np.abs(found - transform(turn, expected)).max() < 0.12 * eye_distance(expected)


def test_the_packaged_model_agrees_with_the_reference_points(
    golden: dict[str, list[dict[str, Any]]], shared: Path, landmarks: Landmarks
) -> None:
    for name in ("boy", "pair", "man", "border"):
        photo = read(shared / f"reference/stages/inputs/{name}.png")
        by_place = sorted(golden[name], key=lambda face: face["rect_ltrb"])
        found = sorted(find_faces(photo, landmarks, 256), key=lambda face: face.box)
        for face, recorded in zip(found, by_place, strict=True):
            five = np.array(recorded["five"], np.float64)
            errors = np.hypot(*(face.landmarks - five).T) / eye_distance(five)
            assert errors.mean() < 0.08, (name, errors)


def test_a_68_point_model_is_reduced_to_five(tmp_path: Path, boy: Pixels) -> None:
    (face,) = find_faces(boy, Landmarks(tiny_predictor(tmp_path / "model.dat", 68)), 256)
    assert face.landmarks.shape == (5, 2)


def test_files_that_are_no_landmark_models(tmp_path: Path) -> None:
    with pytest.raises(WeightsCorruptError, match="7 landmarks"):
        Landmarks(tiny_predictor(tmp_path / "seven.dat", 7))
    save_compact(build(ScratchUnetConfig(width=2)), tmp_path / "other.safetensors")
    with pytest.raises(WeightsCorruptError, match="ScratchUnet"):
        Landmarks(tmp_path / "other.safetensors")
    for ending in ("dat", "safetensors"):
        (tmp_path / f"text.{ending}").write_text("not a model")
        with pytest.raises(WeightsCorruptError, match=rf"text\.{ending}"):
            Landmarks(tmp_path / f"text.{ending}")
        with pytest.raises(WeightsCorruptError, match=rf"absent\.{ending}"):
            Landmarks(tmp_path / f"absent.{ending}")


def test_five_points_are_where_the_hand_put_them(shared: Path, landmarks: Landmarks) -> None:
    # Held-out people, seen clean: never shown to the model.
    placed = placed_points(shared / "data/landmarks189.json")
    people = [path for path in sorted((shared / "data/faces/heldout").iterdir()) if path.name in placed]
    assert len(people) == 7
    errors = []
    for path in people:
        (face,) = find_faces(read(path), landmarks, 256)
        truth = placed[path.name]
        errors.append(np.hypot(*(face.landmarks - truth).T).mean() / eye_distance(truth))
    assert np.mean(errors) < 0.035
    assert max(errors) < 0.06


def test_a_mirrored_photo_has_mirrored_landmarks(boy: Pixels, landmarks: Landmarks) -> None:
    (detection,) = detect_faces(boy)
    left, top, right, bottom = detection.box
    across = boy.shape[1] - 1.0
    other = replace(detection, box=(across - right, top, across - left, bottom))
    found = landmarks.find(np.ascontiguousarray(boy[:, ::-1]), other)
    expected = landmarks.find(boy, detection)[[1, 0, 2, 4, 3]] * [-1.0, 1.0] + [across, 0.0]
    assert np.abs(found - expected).max() < 0.02 * eye_distance(found)


# Enhancing.


class Negative(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sign = nn.Parameter(torch.tensor(-1.0))
        self.batches: list[int] = []

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        self.batches.append(crops.shape[0])
        return crops * self.sign


def some_faces(count: int) -> list[Face]:
    random = np.random.default_rng(5)
    crops = [random.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(count)]
    return [Face((0, 0, 1, 1), 1.0, np.zeros((5, 2)), np.eye(3), crop) for crop in crops]


def test_faces_go_through_the_generator_in_batches() -> None:
    generator, faces = Negative(), some_faces(5)
    enhanced = enhance_faces(faces, generator, "cpu", 2)
    assert generator.batches == [2, 2, 1]
    for face, before in zip(enhanced, faces, strict=True):
        assert face.after is not None
        assert face.after.dtype == np.float32
        assert np.abs(face.after - (255.0 - before.before)).max() < 1e-3
        assert face.kept == ChangeUse((1.0, 1.0, 1.0, 1.0))
        assert before.after is None


def test_what_is_kept_of_a_face_is_somebody_elses_word() -> None:
    def half(before: Any, made: Any) -> Any:
        return (before.astype(np.float32) + made) / 2.0, ChangeUse((0.5, 0.5, 0.5, 0.5))

    faces = some_faces(3)
    for face in enhance_faces(faces, Negative(), "cpu", 2, half):
        assert face.after is not None
        assert np.abs(face.after - 127.5).max() < 1e-3
        assert face.kept == ChangeUse((0.5, 0.5, 0.5, 0.5))


def test_half_precision_generators_and_no_faces() -> None:
    generator = Negative().to(torch.bfloat16)
    (face,) = enhance_faces(some_faces(1), generator, "cpu", 4)
    assert face.after is not None
    assert np.abs(face.after - (255.0 - face.before)).max() < 2
    assert enhance_faces([], generator, "cpu", 4) == []
    with pytest.raises(ValueError, match="batch"):
        enhance_faces([], generator, "cpu", 0)
