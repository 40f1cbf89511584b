"""Any size in, the same size out; tiles equal the whole; holes are filled from around them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from oldphoto.errors import OutOfMemoryError
from oldphoto.machine.memory import resident
from oldphoto.models import mapping, translating
from oldphoto.models.mapping import Mapping, MappingConfig, Region
from oldphoto.models.tensors import Pixels
from oldphoto.models.translating import (
    Translated,
    TranslationNets,
    TranslationPlan,
    fill_from_surroundings,
    fill_white,
    plan_translation,
    translate_in_bands,
    translate_photo,
    translate_whole,
)
from oldphoto.models.vae import Vae, VaeConfig
from oldphoto.options import read_size

CPU = torch.device("cpu")
AMPLE = 64 << 30
OLD = VaeConfig(width=4, latent_channels=4, blocks=1, norm="none", mask_input=True)
CLEAN = replace(OLD, mask_input=False, refine=4)
MAPPING = MappingConfig(latent_channels=4, channels=(6,), blocks=1, context_blocks=1, norm="none")


def nets(norm: str = "none", context: str = "none") -> TranslationNets:
    torch.manual_seed(5)
    config = replace(MAPPING, context=context, blocks=2, norm=norm)  # type: ignore[arg-type]  # literals from parameters
    change: dict[str, Any] = {"norm": norm}
    if norm == "instance":  # as published
        change |= {"mask_input": False, "refine": 0}
    old, clean = replace(OLD, **change), replace(CLEAN, **change)
    return TranslationNets(Vae(old).eval(), Mapping(config).eval(), Vae(clean).eval())


def photo(height: int, width: int) -> Pixels:
    """16 bits, so that rounding hides nothing."""
    return np.random.default_rng(7).integers(0, 1 << 16, (height, width, 3), dtype=np.uint16)


def translated(pixels: Pixels, mask: NDArray[np.bool_] | None, trio: TranslationNets, limit: int = AMPLE) -> Translated:
    with torch.inference_mode():
        return translate_photo(pixels, mask, trio, CPU, limit)


def levels_apart(one: Pixels, other: Pixels) -> float:
    """The largest difference in levels of 255."""
    return float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max() / 257.0)


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (16, 16), (37, 50), (130, 33)])
@pytest.mark.parametrize("most_whole", [0, 1 << 40], ids=["strips", "whole"])
@pytest.mark.parametrize(("norm", "context"), [("none", "none"), ("instance", "non_local"), ("instance", "patches")])
def test_any_size_comes_out_as_it_went_in(
    size: tuple[int, int], norm: str, context: str, most_whole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translating, "MOST_WHOLE", most_whole)
    mask = np.zeros(size, np.bool_)
    mask[: size[0] // 2 + 1, : size[1] // 2 + 1] = True
    for damage in (None, mask):
        for pixels in (photo(*size), (photo(*size) >> 8).astype(np.uint8)):
            out = translated(pixels, damage, nets(norm, context)).pixels
            assert (out.shape, out.dtype) == (pixels.shape, pixels.dtype)


def test_tiles_equal_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, trio = photo(300, 250), nets()
    whole = translated(pixels, None, trio).pixels
    monkeypatch.setattr(translating, "TILE", 2 * trio.reach + 20)
    tiled = translated(pixels, None, trio)
    assert tiled.plan.way == "tiles"
    assert levels_apart(tiled.pixels, whole) < 0.02


@pytest.mark.parametrize("trusted", [True, False])
def test_bands_equal_the_whole(trusted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    trio, x = nets(), torch.rand(1, 3, 92, 40) * 2.0 - 1.0
    mask = torch.zeros(1, 1, 92, 40)
    mask[..., 20:60, 10:14] = 1.0
    monkeypatch.setattr(translating, "BAND", 4)
    with torch.inference_mode():
        for damage in (None, mask):
            whole = translate_whole(x, damage, trio, trusted)
            assert torch.allclose(translate_in_bands(x, damage, trio, trusted), whole, atol=1e-6)
            with monkeypatch.context() as patch:  # which can fail
                patch.setattr(trio.clean_vae.decoder, "reach", 2)
                assert not torch.allclose(translate_in_bands(x, damage, trio, trusted), whole, atol=1e-6)


def test_parts_cover_a_side_and_are_no_larger_than_a_tile() -> None:
    for length in range(16, 400, 4):
        parts = list(translating._tiles(length, 96, 20))
        assert [part[0] for part in parts] + [length] == [0] + [part[1] for part in parts]
        sizes = [min(length, bottom + 20) - max(0, top - 20) for top, bottom in parts]
        assert max(sizes) <= 96
        assert max(sizes) - min(sizes) < 4 * len(sizes)
        assert len(parts) == 1 or length > 96


def test_too_small_a_halo_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: with no halo the tiles differ."""
    pixels, trio = photo(200, 132), nets()
    whole = translated(pixels, None, trio).pixels
    monkeypatch.setattr(translating, "TILE", 48)
    monkeypatch.setattr(trio.old_vae.encoder, "reach", 0)
    monkeypatch.setattr(trio.clean_vae.decoder, "reach", 0)
    monkeypatch.setattr(TranslationNets, "middle", [(part, 0) for part, _ in trio.middle])
    assert trio.reach == 0
    assert levels_apart(translated(pixels, None, trio).pixels, whole) > 1.0


def test_a_part_of_a_photo_is_the_same_by_itself() -> None:
    trio = nets()
    size = 4 * trio.reach
    x, bounds = torch.rand(1, 3, size, size) * 2.0 - 1.0, Region(0, size, 0, size)
    wanted = Region(trio.reach, size - trio.reach - 8, 4, size - trio.reach)
    around = wanted.grown(trio.reach, bounds)
    with torch.inference_mode():
        whole = translate_whole(x, None, trio)[wanted.slices]
        made = translate_in_bands(x[around.slices], None, trio, wanted=wanted.within(around))
    assert torch.allclose(made, whole, atol=1e-6)


def test_parts_see_no_further_than_is_said_of_them() -> None:
    for part, reach in nets().middle:
        for weight in part.parameters():
            weight.detach().abs_()  # so that nothing that is seen is cancelled
        z = torch.rand(1, 4, 32, 32, dtype=torch.float64, requires_grad=True)
        part.double()(z)[..., 16, 16].sum().backward()
        assert z.grad is not None
        rows = torch.nonzero(z.grad.sum(dim=(0, 1, 3))).flatten().tolist()
        assert (rows[0], rows[-1]) == (16 - reach, 16 + reach)


@pytest.mark.parametrize("context", ["non_local", "patches"])
def test_strips_equal_one_piece_at_odd_sizes(context: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trio = nets("instance", context)
    for size in ((61, 90), (133, 47)):
        pixels, mask = photo(*size), np.zeros(size, np.bool_)
        mask[9:50, 3:44] = True
        whole = translated(pixels, mask, trio)
        with monkeypatch.context() as patch:
            patch.setattr(translating, "MOST_WHOLE", 0)
            strips = translated(pixels, mask, trio)
        assert (whole.plan.way, strips.plan.way) == ("whole", "strips")
        assert levels_apart(whole.pixels, strips.pixels) < 0.05


def test_less_memory_means_strips_then_files_then_an_error_that_says_what_would_do() -> None:
    trio = nets("instance", "none")

    def plan(limit: int) -> TranslationPlan:
        return plan_translation((12_000, 9_000), 8, False, trio, CPU, limit)

    ample = plan(64 << 30)
    assert (ample.way, ample.disk) == ("strips", 0)
    tight = plan(resident() + (600 << 20))
    assert tight.way == "strips"
    assert tight.disk > 0
    assert tight.memory < ample.memory
    with pytest.raises(OutOfMemoryError) as caught:
        plan(resident() + (300 << 20))
    enough = read_size(caught.value.advice.split()[2])
    assert plan(enough).way == "strips"


def test_a_card_keeps_in_one_piece_what_fits_in_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def way(free: int) -> str:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, free))
        trio = nets("instance", "none")
        return plan_translation((12_000, 9_000), 8, False, trio, torch.device("cuda"), resident() + (4 << 30)).way

    assert [way(free) for free in (64 << 30, 1 << 30)] == ["whole", "strips"]


def test_less_memory_means_smaller_tiles() -> None:
    tiles = [plan_translation((3000, 4000), 8, False, nets(), CPU, resident() + (size << 20)) for size in (8000, 300)]
    assert [plan.tile for plan in tiles] == [1280, 720]
    assert tiles[1].memory < tiles[0].memory


def test_a_full_disk_is_told_before_work_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OutOfMemoryError, match="temporary files") as caught:
        plan_translation((12_000, 9_000), 8, False, nets("instance", "none"), CPU, resident() + (600 << 20))
    assert "TMPDIR" in caught.value.advice


def test_running_out_of_memory_goes_on_in_smaller_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    def full_above(pixels: int) -> None:
        def limited(as_ever: Callable[..., Tensor], x: Tensor, *rest: Any) -> Tensor:
            if isinstance(x, Tensor) and x.shape[2] * x.shape[3] > pixels:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return as_ever(x, *rest)

        for way in (translate_whole, translate_in_bands):
            monkeypatch.setattr(translating, way.__name__, partial(limited, way))

    pixels = photo(640, 540)
    for trio, most, told in ((nets("instance", "none"), 0, "strip by strip"), (nets(), 300_000, "tiles of 540 pixels")):
        whole = translated(pixels, None, trio)
        assert whole.warnings == ()
        full_above(most)
        again = translated(pixels, None, trio)
        assert told in again.warnings[0]
        assert levels_apart(whole.pixels, again.pixels) < 0.05
        monkeypatch.undo()


def test_bounded_attention_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    trio = nets("instance", "non_local")
    mask = np.zeros((64, 80), np.bool_)
    mask[5:20, 5:20] = True
    assert translated(photo(64, 80), mask, trio).warnings == ()
    monkeypatch.setattr(mapping.attended_side, "__defaults__", (4, 1))
    assert "24 x 24 pixels" in translated(photo(64, 80), mask, trio).warnings[0]
    assert translated(photo(64, 80), None, trio).warnings == ()


def test_normalised_networks_are_not_cut_into_tiles() -> None:
    assert nets().bounded
    assert not nets("instance").bounded


def test_white_fill_touches_holes_alone() -> None:
    x, mask = torch.rand(1, 3, 8, 8), torch.zeros(1, 1, 8, 8)
    mask[..., 2:4, 2:4] = 1.0
    out = fill_white(x, mask)
    assert (out[..., 2:4, 2:4] == 1.0).all()
    assert torch.equal(out[..., 4:, :], x[..., 4:, :])


def test_surroundings_fill_a_flat_photo_without_a_trace() -> None:
    x = torch.full((1, 3, 50, 41), 0.3)
    mask = torch.zeros(1, 1, 50, 41)
    mask[..., 5:40, 7:30] = 1.0
    holed = torch.where(mask > 0, 1.0, x)
    assert torch.allclose(fill_from_surroundings(holed, mask), x, atol=1e-5)


def test_surroundings_continue_a_ramp_better_than_its_mean() -> None:
    x = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64).contiguous()
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 20:40, 28:36] = 1.0
    inside = mask.bool().expand_as(x)
    filled = fill_from_surroundings(torch.where(mask > 0, 1.0, x), mask)
    assert torch.equal(filled[~inside], x[~inside])
    assert float((filled - x)[inside].abs().mean()) < 0.1


def test_a_photo_without_a_sound_pixel_becomes_grey() -> None:
    out = fill_from_surroundings(torch.ones(1, 3, 9, 12), torch.ones(1, 1, 9, 12))
    assert torch.equal(out, torch.zeros_like(out))


def test_nothing_under_a_trusted_mask_is_looked_at() -> None:
    x = torch.rand(1, 3, 40, 48) * 2 - 1
    mask = torch.zeros(1, 1, 40, 48)
    mask[..., 10:22, 8:30] = 1.0
    other = torch.where(mask > 0, -x, x)
    with torch.inference_mode():
        trio = nets()
        trusted = [translate_whole(photo, mask, trio, trusted=True) for photo in (x, other)]
        doubted = [translate_whole(photo, mask, trio, trusted=False) for photo in (x, other)]
    assert torch.equal(*trusted)
    assert float((doubted[0] - doubted[1])[mask.bool().expand_as(x)].abs().min()) > 0.0
