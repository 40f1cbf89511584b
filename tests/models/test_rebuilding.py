"""Rebuilding: resampling by its definition, tiles against the whole, and what comes back as it was."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from oldphoto.models import rebuilding
from oldphoto.models.rebuilding import rebuilt
from oldphoto.models.resampling import Axis, resampled
from oldphoto.models.rrdb import RRDBConfig, RRDBNet
from oldphoto.models.srvgg import SRVGGConfig, SRVGGNetCompact
from oldphoto.models.tensors import Pixels

CPU = torch.device("cpu")


def photo(height: int, width: int, dtype: type[np.uint8] | type[np.uint16] = np.uint8) -> Pixels:
    """Random blocks of colour with noise."""
    rng = np.random.default_rng(5)
    blocks = rng.random((-(-height // 6), -(-width // 6), 3)).repeat(6, axis=0).repeat(6, axis=1)[:height, :width]
    noisy = (blocks + 0.05 * rng.standard_normal(blocks.shape)).clip(0.0, 1.0)
    pixels: Pixels = np.rint(noisy * np.iinfo(dtype).max).astype(dtype)
    return pixels


def network(seed: int = 0, features: int = 6, convolutions: int = 3) -> SRVGGNetCompact:
    torch.manual_seed(seed)
    net = SRVGGNetCompact(SRVGGConfig(features, convolutions, "bilinear")).eval().requires_grad_(False)
    for layer in net.body:  # as they are drawn by default, little comes through
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    net.body[-1].weight.mul_(0.2)  # type: ignore[operator]  # a tensor
    return net


def enlarging_alone() -> SRVGGNetCompact:
    """A network that adds nothing to the picture enlarged bilinearly."""
    net = network()
    for value in net.body[-1].parameters():
        value.zero_()
    return net


@pytest.mark.parametrize(("length", "made"), [(60, 23), (23, 60), (41, 41), (50, 25)])
def test_lines_are_resampled_as_pillow_does(length: int, made: int) -> None:
    rng = np.random.default_rng(1)
    picture = rng.random((length, length)).astype(np.float32)
    axes = Axis(length, made), Axis(length, made)
    ours = resampled(torch.from_numpy(picture)[None, None], axes, (slice(0, made), slice(0, made)))[0, 0].numpy()
    theirs = np.asarray(Image.fromarray(picture).resize((made, made), Image.Resampling.LANCZOS))
    assert np.abs(ours - theirs).max() < 1e-5


def test_a_part_is_resampled_as_in_the_whole() -> None:
    x = torch.rand(1, 2, 300, 211)
    axes = Axis(300, 170), Axis(211, 400)
    whole = resampled(x, axes, (slice(0, 170), slice(0, 400)))
    part = slice(31, 129), slice(170, 303)
    seen = axes[0].seen(part[0]), axes[1].seen(part[1])
    assert seen[0] != slice(0, 300)
    made = resampled(x[:, :, seen[0], seen[1]], axes, part)
    assert torch.allclose(made, whole[:, :, part[0], part[1]], atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("scale", "enlarged"), [(1.0, 1), (2.3, 1), (1.7, 2)])
@pytest.mark.parametrize("size", [(97, 140), (3, 200)])
def test_tiles_equal_the_whole(
    size: tuple[int, int],
    scale: float,
    enlarged: int,
    dtype: type[np.uint8] | type[np.uint16],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, pixels = network(), photo(*size, dtype)
    whole = rebuilt(pixels, net, scale, CPU, enlarged)
    assert whole.shape == (size[0] * enlarged, size[1] * enlarged, 3)
    assert whole.dtype == dtype
    monkeypatch.setattr(rebuilding, "_tile", lambda _net: 20)
    seen: list[torch.Size] = []
    net.register_forward_hook(lambda _module, given, _made: seen.append(given[0].shape))
    tiled = rebuilt(pixels, net, scale, CPU, enlarged)
    assert len(seen) > 1
    steps = 1 if dtype is np.uint8 else 4  # of rounding, where sums are taken in another order
    assert int(np.abs(tiled.astype(int) - whole.astype(int)).max()) <= steps


def test_a_smaller_halo_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    net, pixels = network(), photo(60, 90)
    whole = rebuilt(pixels, net, 1.5, CPU)
    monkeypatch.setattr(rebuilding, "_tile", lambda _net: 20)
    monkeypatch.setattr(rebuilding, "FAR", 1)
    assert int(np.abs(rebuilt(pixels, net, 1.5, CPU).astype(int) - whole.astype(int)).max()) > 1


@pytest.mark.parametrize("room", [None, 1])
def test_the_number_of_threads_changes_nothing(room: int | None, set_threads: Callable[[int], None]) -> None:
    net, pixels = network(), photo(300, 320)
    set_threads(1)
    alone = rebuilt(pixels, net, 1.2, CPU, room=room)
    set_threads(2)
    assert np.array_equal(rebuilt(pixels, net, 1.2, CPU, room=room), alone)


def test_a_network_that_adds_nothing_leaves_a_smooth_photo_as_it_is() -> None:
    y, x = np.mgrid[0:80, 0:120]
    smooth = np.stack([128 + 90 * np.sin(x / 19 + k) * np.cos(y / 23) for k in range(3)], axis=2)
    pixels = np.rint(smooth).astype(np.uint8)
    made = rebuilt(pixels, enlarging_alone(), 2.0, CPU)
    inner = (slice(8, -8), slice(8, -8))
    assert int(np.abs(made[inner].astype(int) - pixels[inner].astype(int)).max()) <= 2
    twice = rebuilt(pixels, enlarging_alone(), 2.0, CPU, enlarged=2)
    assert int(np.abs(twice[inner][::2, ::2].astype(int) - pixels[4:-4, 4:-4].astype(int)).max()) <= 6


def test_grey_stays_grey_and_colour_does_not_turn_grey() -> None:
    net, pixels = network(), photo(40, 40)
    grey: Pixels = pixels[..., :1].repeat(3, axis=2)
    made = rebuilt(grey, net, 1.5, CPU)
    assert np.array_equal(made[..., 0], made[..., 1])
    assert np.array_equal(made[..., 0], made[..., 2])
    assert not np.array_equal(rebuilt(pixels, net, 1.5, CPU)[..., 0], rebuilt(pixels, net, 1.5, CPU)[..., 1])


def test_dense_blocks_rebuild_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    net = RRDBNet(RRDBConfig(features=4, blocks=1, growth=2)).eval().requires_grad_(False)
    pixels = photo(70, 90)
    whole = rebuilt(pixels, net, 1.5, CPU)
    monkeypatch.setattr(rebuilding, "_tile", lambda _net: 16)
    assert int(np.abs(rebuilt(pixels, net, 1.5, CPU).astype(int) - whole.astype(int)).max()) <= 1


def test_half_precision_is_the_networks_alone() -> None:
    net, pixels = network(), photo(64, 64)
    whole = rebuilt(pixels, net, 1.5, CPU)
    with torch.autocast("cpu", torch.bfloat16):
        half = rebuilt(pixels, net, 1.5, CPU)
        unchanged = rebuilt(pixels, enlarging_alone(), 1.0, CPU)
    assert not np.array_equal(half, whole)
    assert int(np.abs(half.astype(int) - whole.astype(int)).max()) <= 6
    assert np.array_equal(unchanged, rebuilt(pixels, enlarging_alone(), 1.0, CPU))
