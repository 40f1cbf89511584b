"""Strip by strip equals in one piece, whatever the strips' height and wherever the maps are kept."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from oldphoto.models import mapping, streaming
from oldphoto.models.mapping import Mapping, MappingConfig, NonLocal, PatchScale, attended, most_alike, rebuilt
from oldphoto.models.streaming import Moments, Streamed, Streams
from oldphoto.models.streaming_nodes import Convolution, rebuilt_from
from oldphoto.models.translating import TranslationNets, translate_whole
from oldphoto.models.vae import Vae, VaeConfig

CPU = torch.device("cpu")
WIDE = 24
# Far below one level of 255, which is 2 / 255 here.
TOLERANCE = 1e-4


def nets(context: str) -> TranslationNets:
    torch.manual_seed(5)
    vae = VaeConfig(width=6, latent_channels=5, blocks=1)
    config = MappingConfig(latent_channels=5, channels=(8, WIDE), blocks=2, context=context, context_blocks=1)  # type: ignore[arg-type]
    return TranslationNets(Vae(vae).eval(), Mapping(config).eval(), Vae(vae).eval())


def photo(height: int, width: int) -> tuple[Tensor, Tensor]:
    """A photo and a mask with a hole, a line, and whole damaged patches."""
    torch.manual_seed(6)
    x = torch.rand(1, 3, height, width) * 2 - 1
    mask = torch.zeros(1, 1, height, width)
    mask[..., : height // 2, 4 : width // 2] = 1.0
    mask[..., 21] = 1.0
    return x, mask


def streamed(streams: Streams, x: Tensor, mask: Tensor | None, trio: TranslationNets) -> Iterator[tuple[int, Tensor]]:
    source = streams.photo((3, x.shape[2], x.shape[3]), lambda top, bottom: x[:, :, top:bottom].clone())
    return cast("Streamed", translate_whole(cast("Tensor", source), mask, trio)).strips()


def joined(strips: Iterator[tuple[int, Tensor]]) -> Tensor:
    return torch.cat([strip for _, strip in strips], dim=2)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> int:
    """Strips of this many rows, since the memory given asks for the thinnest."""
    count: int = request.param
    monkeypatch.setattr(streaming, "LEAST_ROWS", count)
    return count


@pytest.mark.parametrize(
    ("rows", "size", "maps"),
    [(1, (32, 32), 0), (3, (96, 64), 1 << 40), (8, (160, 32), 0), (999, (64, 96), 1 << 40), (5, (44, 100), 0)],
    indirect=["rows"],
)
@pytest.mark.parametrize("worth", [0, 300], ids=["store all", "store the dear"])
@pytest.mark.parametrize("context", ["none", "non_local", "patches"])
def test_strips_equal_the_whole(
    context: str, worth: int, maps: int, size: tuple[int, int], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "WORTH_STORING", worth)
    trio = nets(context)
    x, mask = photo(*size)
    damage = None if context == "none" else mask
    made = joined(streamed(Streams(0, maps, CPU), x, damage, trio))
    assert float((made - translate_whole(x, damage, trio)).abs().max()) < TOLERANCE


@pytest.mark.parametrize("rows", [4], indirect=True)
def test_statistics_of_each_strip_alone_would_show(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: with the moments of the last strip for those of the whole map, the photo differs."""

    def forgetful(self: Moments, strip: Tensor) -> None:
        self.count = 0
        add(self, strip)

    add = Moments.add
    monkeypatch.setattr(Moments, "add", forgetful)
    x, _ = photo(96, 64)
    trio = nets("none")
    made = joined(streamed(Streams(0, 0, CPU), x, None, trio))
    assert float((made - translate_whole(x, None, trio)).abs().max()) > 0.1


@pytest.mark.parametrize("context", ["none", "non_local", "patches"])
@pytest.mark.parametrize("rows", [8], indirect=True)
def test_a_dry_run_reckons_what_the_real_one_takes(context: str, rows: int) -> None:
    x, mask = photo(96, 64)
    trio = nets(context)
    map_bytes = WIDE * (96 // 4) * (64 // 4) * 4
    for maps in (0, 3 * map_bytes, 1 << 40):
        real, dry = Streams(0, maps, CPU), Streams(0, maps, CPU, dry=True)
        joined(streamed(real, x, mask, trio))
        assert list(streamed(dry, x, mask, trio)) == []
        assert (real.most_in_memory, real.most_on_disk) == (dry.most_in_memory, dry.most_on_disk)
        assert real.most_in_memory <= maps
        assert dry.largest_map >= map_bytes
    # Two wide maps at a time, since a third one overwrites the first; attention wants keys and values besides.
    assert dry.most_in_memory < (4.5 if context == "non_local" else 2.7) * map_bytes
    gc.collect()
    assert (dry.in_memory, real.in_memory, real.on_disk) == (0, 0, 0)


@pytest.mark.parametrize("rows", [8], indirect=True)
def test_files_are_gone_afterwards(rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    streams = Streams(0, 0, CPU)
    x, _ = photo(32, 32)
    strips = streamed(streams, x, None, nets("none"))
    next(strips)
    assert streams.on_disk > 0
    strips.close()  # type: ignore[attr-defined]  # a generator
    del strips
    gc.collect()
    assert streams.on_disk == 0
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - files without a name are not listed either way


@pytest.mark.parametrize("rows", [16], indirect=True)
def test_strips_are_halved_where_memory_runs_out(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = photo(96, 64)
    trio = nets("none")
    whole = translate_whole(x, None, trio)
    convolved = Convolution.rows

    def full(self: Convolution, top: int, bottom: int) -> Tensor:
        if bottom - top > 5:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return convolved(self, top, bottom)

    monkeypatch.setattr(Convolution, "rows", full)
    monkeypatch.setattr(streaming, "WORTH_STORING", 0)  # so that no strip is read through two convolutions
    streams = Streams(0, 0, CPU)
    assert float((joined(streamed(streams, x, None, trio)) - whole).abs().max()) < TOLERANCE
    assert streams.halved > 0


def test_other_errors_are_not_taken_for_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object) -> Tensor:
        raise RuntimeError("expected scalar type Float but found Half")

    monkeypatch.setattr(Convolution, "rows", wrong)
    with pytest.raises(RuntimeError, match="scalar type"):
        joined(streamed(Streams(0, 0, CPU), photo(32, 32)[0], None, nets("none")))


def test_what_is_not_streamed_says_so() -> None:
    x = Streams(0, 0, CPU).photo((3, 8, 8), lambda top, bottom: torch.zeros(1, 3, bottom - top, 8))
    with pytest.raises(TypeError, match="softmax"):
        torch.softmax(cast("Tensor", x), dim=1)


def test_moments_equal_numpy_far_from_zero() -> None:
    values = np.random.default_rng(1).normal(1000.0, 0.5, (1, 2, 70, 9)).astype(np.float32)
    moments = Moments()
    for top in range(0, 70, 8):
        moments.add(torch.from_numpy(values[:, :, top : top + 8]))
    exact = values.astype(np.float64)
    assert np.allclose(moments.mean.numpy(), exact.mean(axis=(2, 3), keepdims=True), atol=1e-4)
    variance = (moments.squares / moments.count).numpy()
    assert np.allclose(variance, exact.var(axis=(2, 3), keepdims=True), rtol=1e-3)


# ---- attention ----


def test_keys_in_blocks_give_the_same_as_all_at_once() -> None:
    torch.manual_seed(1)
    query, key, value = torch.randn(1, 5, 8) * 4, torch.randn(1, 8, 30) * 4, torch.randn(1, 30, 8)
    weights = (torch.rand(1, 1, 30) > 0.4).float()
    blocks = [(key[..., a : a + 7], value[:, a : a + 7], weights[..., a : a + 7]) for a in range(0, 30, 7)]
    together = rebuilt(query, key.transpose(1, 2), value, weights.transpose(1, 2))
    assert torch.allclose(rebuilt_from(query, iter(blocks)), together, atol=1e-6)


def test_the_most_alike_patch_is_found_in_any_block_and_the_first_of_equals() -> None:
    torch.manual_seed(2)
    keys = torch.nn.functional.normalize(torch.randn(40, 16))
    keys[31] = keys[12]
    query = torch.cat([keys[12:13], keys[35:36], torch.nn.functional.normalize(torch.randn(9, 16))])
    numbers = torch.arange(100, 140)
    expected = numbers[(query @ keys.T).argmax(dim=1)]
    assert expected[0] == 112
    for size in (40, 11, 1):
        blocks = [(numbers[a : a + size], keys[a : a + size]) for a in range(0, 40, size)]
        assert torch.equal(most_alike(query, blocks), expected)


def test_attention_is_whole_up_to_its_bound_and_covers_every_cell_once_beyond() -> None:
    assert [own == region for own, region in attended(320, 320)] == [True]
    assert [own == region for own, region in attended(100, 1024)] == [True]
    height, width = 700, 330
    seen = np.zeros((height, width), np.int64)
    for own, region in attended(height, width):
        seen[own.top : own.bottom, own.left : own.right] += 1
        assert region.top == max(0, own.top - 32)
        assert region.right == min(width, own.right + 32)
        assert (region.bottom - region.top) * (region.right - region.left) <= 320 * 320
    assert (seen == 1).all()


@pytest.mark.parametrize("rows", [5], indirect=True)
def test_bounded_attention_looks_at_its_region_and_no_further(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping.attended, "__defaults__", (4, 1, 1))
    torch.manual_seed(3)
    block = NonLocal(MappingConfig(latent_channels=4, channels=(WIDE,), context_blocks=0)).eval()
    x, keep = torch.randn(1, WIDE, 12, 7), (torch.rand(1, 1, 12, 7) > 0.3).float()
    made = block.attend(x, keep)
    query, key, value = (conv(x)[0] for conv in (block.query, block.key, block.value))
    for y, across in ((0, 0), (5, 3), (11, 6), (4, 4)):
        top, left = y // 4 * 4, across // 4 * 4
        area = (slice(max(0, top - 1), top + 5), slice(max(0, left - 1), left + 5))
        near = (slice(None), *area)
        mass = torch.softmax((query[:, y, across] @ key[near].flatten(1)), dim=0) * keep[0, 0][area].flatten()
        expected = value[near].flatten(1) @ (mass / mass.sum())
        assert torch.allclose(made[0, :, y, across], expected, atol=1e-5)
    streams = Streams(0, 0, CPU)
    source = streams.photo((WIDE, 12, 7), lambda top, bottom: x[:, :, top:bottom].clone())
    again = cast("Any", block.attend(cast("Tensor", source), keep))
    assert torch.allclose(joined(again.strips()), made, atol=1e-5)


@pytest.mark.parametrize("rows", [3], indirect=True)
def test_bounded_patch_attention_copies_from_its_region(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "PATCH_BLOCK", 8)
    monkeypatch.setattr(mapping, "PATCH_MARGIN", 2)
    torch.manual_seed(4)
    scale = PatchScale(6, 2, MappingConfig(context="patches")).eval()
    x, damaged = torch.randn(1, 6, 24, 17), torch.zeros(1, 1, 24, 17)
    damaged[..., 2:4, 2:6] = damaged[..., 20:22, 14:16] = 1.0
    which, choice = scale.choose(x, damaged)
    assert which.tolist() == [9, 10, 87]
    assert all(number // 8 < 5 and number % 8 < 5 for number in choice[:2].tolist())
    assert choice[2] // 8 >= 7
    source = Streams(0, 0, CPU).photo((6, 24, 17), lambda top, bottom: x[:, :, top:bottom].clone())
    made = cast("Any", scale.compose(cast("Tensor", source), damaged))
    assert torch.equal(joined(made.strips()), scale.compose(x, damaged))
