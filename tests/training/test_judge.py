"""What was judged by eye: from a network's finds to maps, and from maps to what the detector is asked."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from oldphoto.errors import NoInputError
from oldphoto.models.damage_net import DamageNet, DamageNetConfig
from oldphoto.models.loading import save_compact
from oldphoto.training.data import read_judged
from tools import judge


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two dark photos with three white squares each."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a", "b"):
        Image.fromarray(squares()).save(folder / f"{name}.png")
    return folder


def squares() -> NDArray[np.uint8]:
    pixels = np.full((96, 128, 3), 40, np.uint8)
    for left in (10, 60, 100):
        pixels[40:48, left : left + 8] = 250
    return pixels


def test_pieces_are_seen_and_settled(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = tmp_path / "net.safetensors"
    save_compact(DamageNet(DamageNetConfig((2, 3, 4, 5, 6))), net)
    # What is bright is taken for damage.
    monkeypatch.setattr(judge, "probability", lambda _, pixels: pixels[..., 0] / np.float32(255))
    out, judged = tmp_path / "out", tmp_path / "judged"
    assert judge.look(net, photos, out) == 6
    with Image.open(out / "sheet_00.png") as sheet:
        assert sheet.size == (14 * 116, 9 * 128)
    # Of the first photo the first square is damage, and one cannot tell of the second; the other photo is sound.
    (tmp_path / "said.json").write_text(json.dumps({"damaged": [0], "unknown": [1]}))
    assert judge.settle(out, tmp_path / "said.json", judged) == 1
    first, second = (cv2.imread(str(judged / f"{name}.png"), cv2.IMREAD_GRAYSCALE) for name in ("a", "b"))
    assert first is not None
    assert second is not None
    assert (first[40:48, 10:18] == 255).all()
    assert (first[40:48, 60:68] == 128).all()
    assert not first[:, 100:].any()
    assert not first[:36].any()
    assert not second.any()
    # A second round goes on top: of the second photo one square is damage after all.
    (tmp_path / "said.json").write_text(json.dumps({"damaged": [4], "unknown": [0, 1, 2]}))
    judge.settle(out, tmp_path / "said.json", judged)
    again = cv2.imread(str(judged / "b.png"), cv2.IMREAD_GRAYSCALE)
    assert again is not None
    assert (again > 0).sum() == 64
    assert (again[40:48, 60:68] == 255).all()


def test_maps_lie_on_their_photos(photos: Path, tmp_path: Path) -> None:
    judged = tmp_path / "judged"
    judged.mkdir()
    told = np.zeros((96, 128), np.uint8)
    told[:, 64:] = 255
    Image.fromarray(told).save(judged / "a.png")
    (one, map_of_one), (other, map_of_other) = read_judged(photos, judged, 48, 48)
    assert one.shape == other.shape == (48, 64, 3)
    assert map_of_one.shape == map_of_other.shape == (48, 64)
    assert not map_of_one[:, :31].any()
    assert (map_of_one[:, 33:] == 255).all()
    assert (map_of_other == 128).all()
    with pytest.raises(NoInputError):
        read_judged(photos, judged, 48, 200)
