"""What the landmark network is taught with: points, views of a face and the way between them, ageing, the losses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oldphoto.errors import FileAccessError, NoInputError
from oldphoto.models.landmarks import LandmarkNet, LandmarkNetConfig
from oldphoto.models.loading import load_compact
from oldphoto.stages.faces.geometry import square_of
from oldphoto.stages.faces.landmarks import LANDMARK_REACH
from oldphoto.training import base
from oldphoto.training import landmarks as module
from oldphoto.training.ageing import Dice
from oldphoto.training.base import Recipe
from oldphoto.training.landmarks import (
    PICTURE_SIDE,
    SQUARE_SIDE,
    LandmarkStage,
    Portrait,
    Views,
    aged,
    draw_view,
    five_of_189,
    placed_points,
    portraits,
    usual_points,
)
from oldphoto.training.train import train

SIZE = 96
CPU = torch.device("cpu")
# draw_view's numbers where nothing is changed.
PLAIN = torch.tensor([*[0.0] * 14, 1.0, 1.0, 1.0, 0.0, 0.0])


def some_views(count: int, seed: int) -> tuple[Views, Tensor]:
    """Random views of faces that are not quite the usual one, and the faces' points."""
    random = np.random.default_rng(seed)
    numbers = np.stack([draw_view(random) for _ in range(count)])
    points = torch.from_numpy((usual_points() + random.normal(0.0, 1.5, (count, 5, 2))).astype(np.float32))
    return Views(torch.from_numpy(numbers), points, SIZE), points


def test_eyes_are_the_middles_of_their_corners_and_the_nose_tip_lies_between_its_sides_and_its_base() -> None:
    points = np.zeros((189, 2))
    points[18], points[22], points[23], points[27] = (0, 10), (8, 12), (20, 12), (28, 10)
    points[54], points[60], points[55] = (10, 50), (30, 50), (20, 70)
    assert np.allclose(five_of_189(points)[:3], [(4, 11), (24, 11), (20, 54)])


def test_the_usual_face_fills_the_detectors_square() -> None:
    middle, side = square_of(usual_points())
    assert middle == pytest.approx([(PICTURE_SIDE - 1) / 2.0] * 2)
    assert side == pytest.approx(SQUARE_SIDE)


def test_points_are_carried_there_and_back() -> None:
    views, points = some_views(200, 1)
    assert len(set(views.mirrored.tolist())) == 2
    off = (views.returned(views.carried(points)) - points).norm(dim=2)
    # Of a head turned far the nose hides what is beside it, and no way leads back.
    assert off.median() < 1e-3
    assert (off < 0.5).float().mean() > 0.97


def test_drawn_points_stay_on_the_drawn_face() -> None:
    # Pictures whose brightness says how far right or down a pixel lies: what a crop shows at a carried point must be
    # where the point was.
    views, points = some_views(200, 2)
    carried = views.carried(points)
    there = torch.where(views.mirrored[:, None, None], points[:, [1, 0, 2, 4, 3]], points)  # left is right in a mirror
    ramp = torch.arange(PICTURE_SIDE, dtype=torch.uint8).expand(200, PICTURE_SIDE, PICTURE_SIDE)
    grid = (carried / ((SIZE - 1) / 2.0) - 1.0)[:, None]
    shown = [F.grid_sample(views.crops(p) * 255.0, grid, align_corners=True)[:, 0, 0] for p in (ramp, ramp.mT)]
    off = (torch.stack(shown, dim=2) - there).norm(dim=2)  # pixels; the eyes are 32 apart
    eyes_and_mouth, nose = off[:, [0, 1, 3, 4]], off[:, 2]
    assert eyes_and_mouth.quantile(0.99) < 0.7
    # Of a head turned far the nose all but hides what is beside it.
    assert nose.median() < 0.3
    assert nose.quantile(0.9) < 1.0


def test_a_plain_view_is_the_square_resampled() -> None:
    random = np.random.default_rng(3)
    picture = cv2.GaussianBlur(random.integers(0, 256, (PICTURE_SIDE, PICTURE_SIDE), np.uint8), (0, 0), 2.0)
    points = torch.from_numpy(usual_points()[None].astype(np.float32))
    crop = Views(PLAIN[None], points, SIZE).crops(torch.from_numpy(np.asarray(picture, np.uint8))[None])[0, 0].numpy()
    # The same by OpenCV: the detector's square, and what the network sees around it, in pixels of the crop.
    times = SQUARE_SIDE * LANDMARK_REACH / SIZE
    shift = (PICTURE_SIDE - 1) / 2.0 - times * (SIZE - 1) / 2.0
    matrix = np.array([[times, 0.0, shift], [0.0, times, shift]])
    expected = cv2.warpAffine(picture, matrix, (SIZE, SIZE), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    assert np.abs(crop * 255.0 - expected).max() < 3.0


def test_ageing_stays_in_range_and_leaves_some_alone() -> None:
    crops = torch.rand(64, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(4))
    old = aged(crops, Dice.seeded(CPU, 4))
    assert torch.equal(aged(crops, Dice.seeded(CPU, 4)), old)
    assert old.shape == crops.shape
    assert old.isfinite().all()
    assert float(old.min()) >= 0.0
    assert float(old.max()) <= 1.0
    alone = (old == crops).flatten(1).all(dim=1)
    assert 10 < int(alone.sum()) < 45


def test_blur_is_opencvs_and_packing_loses_the_fine_before_the_coarse() -> None:
    crops = torch.rand(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    sigma = torch.tensor([0.5, 1.0, 1.6]).view(3, 1, 1, 1)
    blurred = module._blurred(crops, sigma)
    for crop, soft, s in zip(crops, blurred, sigma.flatten().tolist(), strict=True):
        expected = cv2.GaussianBlur(crop[0].numpy(), (11, 11), s, borderType=cv2.BORDER_REPLICATE)
        assert np.abs(soft[0].numpy() - expected).max() < 1e-4
    packed = module._packed(crops, torch.full((3, 1, 1, 1), 2.0))
    assert torch.allclose(module._packed(crops, torch.full((3, 1, 1, 1), 1e-4)), crops, atol=1e-3)
    error = packed - crops
    assert float(error.square().mean()) > 1e-3
    coarse = F.avg_pool2d(error, 8)
    assert float(coarse.abs().max()) < 0.5 * 24.0 / 255.0 / 8.0 + 1e-3  # half a step of a block's mean


def stage_of(known: int, unknown: int, size: int = 64) -> LandmarkStage:
    random = np.random.default_rng(6)
    faces = [
        Portrait(random.integers(0, 256, (PICTURE_SIDE,) * 2, np.uint8), usual_points() if i < known else None)
        for i in range(known + unknown)
    ]
    return LandmarkStage(faces, Recipe(steps=1, batch=2, size=size), CPU, LandmarkNetConfig(width=2))


def test_half_of_the_samples_have_true_points() -> None:
    stage = stage_of(2, 6)
    batch = stage.sample(400, 64, Dice.seeded(CPU, 1))
    assert batch["crops"].shape == (800, 1, 64, 64)
    assert 0.5 < float(batch["known"].mean()) < 0.75  # of the other half, a quarter is of those with points
    assert all(torch.equal(*batch[name].chunk(2)) for name in ("points", "known"))
    assert not torch.equal(*batch["views"].chunk(2))


def test_right_answers_cost_nothing_and_both_losses_reach_the_network() -> None:
    torch.manual_seed(7)
    stage = stage_of(2, 2)
    batch = stage.sample(8, 64, Dice.seeded(CPU, 2))
    points, known = batch["points"][:, 0], batch["known"].flatten()
    views = Views(batch["views"][:, 0, 0], points, 64)
    true = views.carried(points)
    middles = 2.0 * torch.arange(32) + 0.5
    x, y = (-(middles - true[..., i, None]).square() / 8.0 for i in (0, 1))
    maps = torch.log_softmax((y[..., None] + x[..., None, :]).flatten(2), dim=2).view(16, 5, 32, 32)
    terms = stage._terms(maps, views, points, known)
    assert float(terms["far"]) < 0.5  # a blob cut off at the crop's edge has its mean further inside
    assert float(terms["apart"]) < 0.5
    wrong = stage._terms(maps.roll(6, dims=3), views, points, known)
    assert float(wrong["far"]) > 5.0
    losses, judged = stage.loss(batch)
    assert judged == {}
    for name, loss in losses.items():
        stage.net.zero_grad()
        loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]  # untyped in torch
        assert all(p.grad is not None and p.grad.isfinite().all() for p in stage.net.parameters()), name


def test_faces_without_any_points_teach_nothing() -> None:
    with pytest.raises(NoInputError, match="by hand"):
        stage_of(0, 2)


@pytest.fixture
def few_people(shared: Path, tmp_path: Path) -> Path:
    points = json.loads((shared / "data/landmarks189.json").read_text())
    names = [name for name in points if "/train/" in name][:4]
    (tmp_path / "faces/train").mkdir(parents=True)
    for name in names:
        shutil.copy(shared / "data" / name, tmp_path / name)
    (tmp_path / "landmarks189.json").write_text(json.dumps({name: points[name] for name in names[:2]}))
    return tmp_path


def test_portraits_show_the_face_where_the_detector_sees_it(few_people: Path) -> None:
    faces = portraits(few_people / "faces/train", placed_points(few_people / "landmarks189.json"))
    assert [face.points is None for face in faces] == [False, False, True, True]
    for face in faces[:2]:
        assert face.points is not None
        assert np.abs(face.points - usual_points()).max() < 0.25 * SQUARE_SIDE
    assert {face.picture.shape for face in faces} == {(PICTURE_SIDE, PICTURE_SIDE)}


def test_training_twice_gives_the_same_file(few_people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(base.COMPACT, "landmarks_5", LandmarkNetConfig(width=2))
    rows: list[dict[str, float | int | str]] = []
    files = [
        train("landmarks", few_people, tmp_path / out, steps=3, batch=2, size=64, report=rows.append)[0] for out in "ab"
    ]
    assert files[0].name == "landmarks_5.safetensors"
    assert files[0].read_bytes() == files[1].read_bytes()
    assert {"far", "apart", "error", "failures"} <= set(rows[-1])
    net = load_compact(files[0])
    assert isinstance(net, LandmarkNet)
    assert net.config == LandmarkNetConfig(width=2, size=64)


def test_missing_training_data(tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match="landmarks189"):
        placed_points(tmp_path / "landmarks189.json")
