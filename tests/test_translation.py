"""Any size in, the same size out; tiles equal the whole; holes are filled from around them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from oldphoto import translation
from oldphoto.models.mapping import Mapping, MappingConfig
from oldphoto.models.vae import Vae, VaeConfig
from oldphoto.translation import TranslationNets, fill_from_surroundings, fill_white, translate, translate_whole

OLD = VaeConfig(width=4, latent_channels=4, blocks=1, norm="none", mask_input=True)
CLEAN = replace(OLD, mask_input=False, refine=4)
MAPPING = MappingConfig(
    latent_channels=4, channels=(6,), blocks=1, context="non_local", context_blocks=1, norm="none", combine="add"
)


def nets(norm: str = "none", context: str = "non_local") -> TranslationNets:
    torch.manual_seed(5)
    change = {"norm": norm}
    mapping = replace(MAPPING, context=context, blocks=2, **change)  # type: ignore[arg-type]  # literals from parameters
    old, clean = replace(OLD, **change), replace(CLEAN, **change)  # type: ignore[arg-type]  # the same
    return TranslationNets(Vae(old).eval(), Mapping(mapping).eval(), Vae(clean).eval())


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (16, 16), (37, 50), (130, 33)])
@pytest.mark.parametrize(
    ("norm", "context"), [("none", "non_local"), ("instance", "non_local"), ("instance", "patches")]
)
def test_any_size_comes_out_as_it_went_in(size: tuple[int, int], norm: str, context: str) -> None:
    x = torch.rand(1, 3, *size) * 2 - 1
    mask = torch.zeros(1, 1, *size)
    mask[..., : size[0] // 2 + 1, : size[1] // 2 + 1] = 1.0
    with torch.inference_mode():
        for damage in (None, mask):
            out = translate(x, damage, nets(norm, context))
            assert out.shape == x.shape
            assert torch.isfinite(out).all()
            assert float(out.abs().max()) <= 1.0


def test_tiles_equal_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translation, "TILE", 48)
    x = torch.rand(1, 3, 200, 132) * 2 - 1
    with torch.inference_mode():
        trio = nets()
        tiled = translate(x, None, trio)
        whole = translate_whole(x, None, trio).clamp(-1.0, 1.0)
    assert float((tiled - whole).abs().max()) < 1e-5


def test_too_small_a_halo_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: with no halo the tiles differ."""
    monkeypatch.setattr(translation, "TILE", 48)
    monkeypatch.setattr(translation, "HALO", 0)
    x = torch.rand(1, 3, 200, 132) * 2 - 1
    with torch.inference_mode():
        trio = nets()
        assert float((translate(x, None, trio) - translate_whole(x, None, trio)).abs().max()) > 1e-3


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
        trusted = [translate(photo, mask, trio, trusted=True) for photo in (x, other)]
        doubted = [translate(photo, mask, trio, trusted=False) for photo in (x, other)]
    assert torch.equal(*trusted)
    assert float((doubted[0] - doubted[1])[mask.bool().expand_as(x)].abs().min()) > 0.0
