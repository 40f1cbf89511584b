"""The networks that rebuild a photo: plain formulas at toy widths, and files as published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from oldphoto.errors import WeightsCorruptError
from oldphoto.models import loading
from oldphoto.models.loading import build, load_blended, load_published, load_strictly
from oldphoto.models.rrdb import RRDBConfig, RRDBNet
from oldphoto.models.srvgg import SRVGGConfig, SRVGGNetCompact

Array = NDArray[np.float64]


def weights_of(net: nn.Module) -> dict[str, Array]:
    return {name: value.numpy().astype(np.float64) for name, value in net.state_dict().items()}


def convolution(x: Array, state: dict[str, Array], name: str) -> Array:
    """3 x 3 with zeros around, by the definition: a sum over the nine shifts. x: (C, H, W)."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    height, width = x.shape[1:]
    total = np.zeros((len(state[f"{name}.bias"]), height, width)) + state[f"{name}.bias"][:, None, None]
    for dy in range(3):
        for dx in range(3):
            part = padded[:, dy : dy + height, dx : dx + width]
            total += np.einsum("oi,ihw->ohw", state[f"{name}.weight"][:, :, dy, dx], part)
    return total


def leaky(x: Array, slope: float | Array) -> Array:
    return np.where(x > 0, x, slope * x)


def repeated(x: Array, times: int) -> Array:
    """Every pixel a square of its own. x: (C, H, W)."""
    return x.repeat(times, axis=1).repeat(times, axis=2)


def bilinear(x: Array, times: int) -> Array:
    """Enlarged about the pixels' middles, the edge repeated. x: (C, H, W)."""

    def along(length: int) -> Array:
        at = ((np.arange(length * times) + 0.5) / times - 0.5).clip(0, length - 1)
        low = np.minimum(at.astype(int), max(0, length - 2))
        matrix = np.zeros((length * times, length))
        matrix[np.arange(length * times), low] += 1 - (at - low)
        matrix[np.arange(length * times), low + 1] += at - low
        return matrix

    made: Array = np.einsum("ab,cbd,ed->cae", along(x.shape[1]), x, along(x.shape[2]))
    return made


def random_net(config: SRVGGConfig | RRDBConfig, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = build(config).eval().requires_grad_(False)
    for value in net.parameters():
        value.normal_(0.0, 0.2)
    return net


@pytest.mark.parametrize("base", ["nearest", "bilinear"])
def test_the_plain_chain_by_its_formula(base: str) -> None:
    config = SRVGGConfig(features=5, convolutions=2, base=base)  # type: ignore[arg-type]  # a parameter's str
    net = random_net(config)
    x, state = np.random.default_rng(1).random((3, 6, 7)), weights_of(net)
    h: Array = x
    for layer in (0, 2, 4):
        h = leaky(convolution(h, state, f"body.{layer}"), state[f"body.{layer + 1}.weight"][:, None, None])
    h = convolution(h, state, "body.6")
    expected = repeated(x, 4) if base == "nearest" else bilinear(x, 4)
    for colour in range(3):
        for dy in range(4):
            for dx in range(4):
                expected[colour, dy::4, dx::4] += h[16 * colour + 4 * dy + dx]
    with torch.inference_mode():
        made = net(torch.from_numpy(x.astype(np.float32))[None])[0].numpy()
    assert np.abs(made - expected).max() < 1e-5 * np.abs(expected).max()


def test_dense_blocks_by_their_formula() -> None:
    net = random_net(RRDBConfig(features=4, blocks=2, growth=3))
    x, state = np.random.default_rng(2).random((3, 5, 6)), weights_of(net)

    def dense(given: Array, name: str) -> Array:
        maps = [given]
        for number in range(1, 5):
            maps.append(leaky(convolution(np.concatenate(maps), state, f"{name}.conv{number}"), 0.2))
        return given + 0.2 * convolution(np.concatenate(maps), state, f"{name}.conv5")

    first = h = convolution(x, state, "conv_first")
    for block in range(2):
        inner = h
        for number in (1, 2, 3):
            inner = dense(inner, f"body.{block}.rdb{number}")
        h = h + 0.2 * inner
    h = first + convolution(h, state, "conv_body")
    for name in ("conv_up1", "conv_up2"):
        h = leaky(convolution(repeated(h, 2), state, name), 0.2)
    expected = convolution(leaky(convolution(h, state, "conv_hr"), 0.2), state, "conv_last")
    with torch.inference_mode():
        made = net(torch.from_numpy(x.astype(np.float32))[None])[0].numpy()
    assert made.shape == (3, 20, 24)
    assert np.abs(made - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("config", [SRVGGConfig(3, 2, "bilinear"), RRDBConfig(3, 1, 2)], ids=["srvgg", "rrdb"])
def test_nothing_further_than_the_reach_matters(config: SRVGGConfig | RRDBConfig) -> None:
    net = random_net(config).double()
    assert isinstance(net, SRVGGNetCompact | RRDBNet)
    height = 2 * net.reach + 3
    x = torch.rand(1, 3, height, 5, dtype=torch.double)
    changed = x.clone()
    changed[:, :, 0] += 1.0
    differs = (net(x) != net(changed)).any(dim=1).any(dim=2)[0]
    furthest = int(torch.nonzero(differs).max())
    assert 4 * (net.reach - 2) <= furthest < 4 * (net.reach + 1)


def published_file(net: str, path: Path, seed: int = 0) -> nn.Module:
    """A file as published, of a random network at the width in loading.PUBLISHED."""
    config = loading.PUBLISHED[net]
    assert isinstance(config, SRVGGConfig | RRDBConfig)
    made = random_net(config, seed)
    state = {name: value.clone() for name, value in made.state_dict().items()}
    key = "params_ema" if isinstance(config, RRDBConfig) else "params"
    torch.save({key: state}, path)
    return made


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for net in ("rebuilder", "rebuilder_wdn"):
        monkeypatch.setitem(loading.PUBLISHED, net, SRVGGConfig(4, 2))
    monkeypatch.setitem(loading.PUBLISHED, "rebuilder_large", RRDBConfig(4, 1, 2))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("net", ["rebuilder", "rebuilder_wdn", "rebuilder_large"])
def test_published_files_are_loaded_as_they_are(net: str, tmp_path: Path) -> None:
    made = published_file(net, tmp_path / "net.pth")
    again = load_published(net, tmp_path / "net.pth")
    for name, value in made.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.usefixtures("small")
def test_a_published_file_with_other_keys_is_refused(tmp_path: Path) -> None:
    published_file("rebuilder", tmp_path / "net.pth")
    with pytest.raises(WeightsCorruptError, match="no state dict"):
        load_published("rebuilder_large", tmp_path / "net.pth")  # which looks for params_ema
    torch.save({"params_ema": torch.load(tmp_path / "net.pth", weights_only=True)["params"]}, tmp_path / "net.pth")
    with pytest.raises(WeightsCorruptError, match=r"missing conv_first\.weight"):
        load_published("rebuilder_large", tmp_path / "net.pth")


@pytest.mark.usefixtures("small")
def test_two_networks_are_mixed_weight_by_weight(tmp_path: Path) -> None:
    paths = tmp_path / "strong.pth", tmp_path / "weak.pth"
    strong = published_file("rebuilder", paths[0], seed=1).state_dict()
    weak = published_file("rebuilder_wdn", paths[1], seed=2).state_dict()
    mixed = load_blended(*paths, 0.25).state_dict()
    for name, value in mixed.items():
        assert torch.allclose(value, 0.25 * strong[name] + 0.75 * weak[name], atol=1e-7), name
    with pytest.raises(ValueError, match="from 0 to 1"):
        load_blended(*paths, 1.5)


def real(net: str, file: str, shared: Path) -> nn.Module:
    """The network as published, with its real weights."""
    path = shared / "reference" / "real_esrgan" / file
    if not path.is_file():
        pytest.skip(f"{file} is absent")
    return load_strictly(build(loading.PUBLISHED[net]), load_file(path), path)


@pytest.mark.full_width
@pytest.mark.parametrize(
    ("net", "file", "golden"),
    [
        ("rebuilder", "realesr-general-x4v3.safetensors", "general_x4v3"),
        ("rebuilder_wdn", "realesr-general-wdn-x4v3.safetensors", "general_wdn_x4v3"),
        ("rebuilder_large", "realesrgan-x4plus.safetensors", "x4plus"),
    ],
)
def test_real_weights_give_what_another_runtime_gives(net: str, file: str, golden: str, shared: Path) -> None:
    network = real(net, file, shared)
    with np.load(shared / "reference" / "real_esrgan" / "golden.npz") as vectors:
        pairs = [(vectors[f"x{i}"], vectors[f"{golden}_{i}"]) for i in (0, 1) if f"{golden}_{i}" in vectors.files]
    assert pairs
    for x, expected in pairs:
        with torch.inference_mode():
            made = network(torch.from_numpy(x)[None])[0].numpy()
        assert np.abs(made - expected).max() <= (5e-5 if golden == "x4plus" else 1e-5)
