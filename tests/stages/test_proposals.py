"""The proposals of the face finder, and the pictures it learns from."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from oldphoto.errors import NoInputError
from oldphoto.models.face_finder import STRIDE, FaceFinder, FaceFinderConfig
from oldphoto.models.loading import build
from oldphoto.stages.faces import proposals
from oldphoto.stages.faces.detectors import search
from oldphoto.stages.faces.proposals import propose
from oldphoto.training.face_finder import Scene, Tiles, truth

Grey = NDArray[np.uint8]


@pytest.fixture(scope="module")
def boy(shared: Path) -> Grey:
    picture = cv2.imread(str(shared / "reference/stages/inputs/boy.png"), cv2.IMREAD_GRAYSCALE)
    return np.asarray(picture, np.uint8)


@pytest.mark.parametrize("side", [24, 40, 90, 200])
def test_the_likeliest_place_is_where_the_detector_sees_a_face(side: int, boy: Grey) -> None:
    (face,) = search(boy, 0.0, np.eye(3))
    times = side / face.side
    how = cv2.INTER_AREA if times < 1 else cv2.INTER_CUBIC
    picture = np.asarray(cv2.resize(boy, None, fx=times, fy=times, interpolation=how), np.uint8)
    likeliest = propose(picture)[0]
    x, y = face.corners.mean(axis=0) * times
    assert np.hypot(likeliest.x - x, likeliest.y - y) < 0.3 * side
    assert likeliest.side == pytest.approx(side, rel=0.35)
    assert abs(likeliest.lean) < 20


def test_of_a_large_enlargement_the_first_copy_is_left_out_and_of_a_sharp_or_small_photo_none(
    boy: Grey, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def places(copy: Grey, net: object) -> NDArray[np.float64]:
        seen.append(copy.shape[1])
        return np.zeros((0, 5))

    monkeypatch.setattr(proposals, "_places", places)
    enlarged = cv2.resize(np.tile(boy, (2, 2)), (2048, 2048), interpolation=cv2.INTER_CUBIC)
    blurred = cv2.GaussianBlur(np.tile(boy, (4, 4)), (0, 0), 2.0)
    for picture in (np.tile(boy, (8, 8)), enlarged, blurred):
        propose(np.asarray(picture, np.uint8))
    assert seen == [2048, 1024, 512, 256, 128, 64, 32] + [1024, 512, 256, 128, 64, 32] * 2


def test_strips_answer_as_one_piece_does(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (333, 190), np.uint8)
    net = proposals._of_package()
    in_strips = proposals._answers(picture, net)
    monkeypatch.setattr(proposals, "STRIP", 10_000)
    assert in_strips.shape == (5, 42, 24)
    assert np.abs(in_strips - proposals._answers(picture, net)).max() < 1e-3


@pytest.mark.parametrize("shape", [(1, 1), (5, 300), (30, 23), (64, 40)])
def test_pictures_too_small_for_a_face_are_no_error(shape: tuple[int, int]) -> None:
    assert all(0.05 <= place.probability <= 1.0 for place in propose(np.full(shape, 90, np.uint8)))


def test_an_answer_sees_its_reach_and_no_further() -> None:
    torch.manual_seed(2)
    net = build(FaceFinderConfig((2, 3, 4), depth=2))
    assert isinstance(net, FaceFinder)
    picture = torch.rand(1, 1, 160, 160, requires_grad=True)
    net(picture)[0, :, 10, 10].sum().backward()
    assert picture.grad is not None
    seen = torch.nonzero(picture.grad[0, 0])
    assert int(seen.min()) >= 10 * STRIDE - net.reach
    assert int(seen.max()) < 10 * STRIDE + STRIDE + net.reach


def test_a_config_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="widths"):
        FaceFinderConfig(depth=0)


def test_truth_marks_faces_of_the_octave_and_leaves_out_what_is_doubtful() -> None:
    faces = [(40.0, 40.0, 28.0, 45.0), (200.0, 40.0, 150.0, 0.0), (40.0, 200.0, 15.0, 0.0)]
    target = truth(256, faces, [(200.0, 200.0, 30.0)])
    assert target.shape == (6, 32, 32)
    assert target[:, 5, 5].tolist() == [1.0, 0.0, 0.0, 0.0, 0.5, 1.0]
    assert target[0].sum() == target[0, 3:8, 3:8].sum()  # neither the large nor the tiny face
    assert target[5, 5, 25] == 1.0  # the large one is to be passed over
    assert target[5, 25, 5] == 0.0  # the tiny and the doubtful one count neither way
    assert target[5, 25, 25] == 0.0


def test_drawn_faces_lie_where_the_truth_says() -> None:
    dark = np.zeros((120, 120, 3), np.uint8)
    cv2.circle(dark, (60, 60), 20, (255, 255, 255), -1)  # a "face" that is a bright disc
    portrait = Scene(dark, ((60.0, 60.0, 60.0),), ())
    tiles = Tiles([portrait], [Scene(np.zeros((200, 200, 3), np.uint8), (), ())], [])
    inside, outside = [], []
    for seed in range(12):
        sample = tiles.draw(128, np.random.default_rng(seed))
        again = tiles.draw(128, np.random.default_rng(seed))
        assert all(np.array_equal(sample[name], again[name]) for name in sample)
        picture, target = sample["picture"][0], sample["truth"]
        for row, column in np.argwhere(target[0] > 0):
            x, y = (column + target[1, row, column]) * STRIDE, (row + target[2, row, column]) * STRIDE
            if 2 <= x < 126 and 2 <= y < 126:
                inside.append(picture[round(y), round(x)])
        outside += picture[::STRIDE, ::STRIDE][(target[0] == 0) & (target[5] == 1)].tolist()
    assert np.mean(inside) > np.mean(outside) + 0.4


def test_tiles_need_faces() -> None:
    empty = Scene(np.zeros((64, 64, 3), np.uint8), (), ())
    with pytest.raises(NoInputError):
        Tiles([empty], [empty], [])
