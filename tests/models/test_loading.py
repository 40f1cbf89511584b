"""Strict loading, spectral norm, conversion, and the compact files."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from oldphoto.errors import WeightsCorruptError
from oldphoto.models import loading
from oldphoto.models.landmarks import LandmarkNetConfig
from oldphoto.models.loading import (
    Config,
    build,
    config_from_json,
    config_to_json,
    fold_spectral_norm,
    load_compact,
    load_published,
    load_strictly,
    placed,
    save_compact,
)
from oldphoto.models.mapping import MappingConfig
from oldphoto.models.rrdb import RRDBConfig
from oldphoto.models.scratch_unet import ScratchUnetConfig
from oldphoto.models.spade import FaceGeneratorConfig
from oldphoto.models.srvgg import SRVGGConfig
from oldphoto.models.vae import VaeConfig

TINY: list[Config] = [
    VaeConfig(width=4, latent_channels=4, blocks=1, norm="none", mask_input=True, refine=4),
    MappingConfig(latent_channels=4, channels=(6, 8), blocks=2, context="non_local", context_blocks=1),
    ScratchUnetConfig(width=2),
    FaceGeneratorConfig(width=2, steering=4),
    LandmarkNetConfig(width=2),
    SRVGGConfig(features=2, convolutions=1, base="bilinear"),
    RRDBConfig(features=2, blocks=1, growth=2),
]


@pytest.mark.parametrize("config", TINY, ids=lambda c: type(c).__name__)
def test_compact_files_round_trip(config: Config, tmp_path: Path) -> None:
    net = build(config)
    path = tmp_path / "net.safetensors"
    save_compact(net, path)
    again = load_compact(path)
    assert again.config == config
    assert not again.training
    for name, value in again.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, net.state_dict()[name].half().float()), name
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("config", TINY, ids=lambda c: type(c).__name__)
def test_configs_round_trip(config: Config) -> None:
    assert config_from_json(config_to_json(config)) == config


def test_missing_unknown_and_misshapen_keys_are_named(tmp_path: Path) -> None:
    config = TINY[0]
    state = dict(build(config).state_dict())
    state["surprise"] = state.pop("encoder.stem.bias")
    state["decoder.head.weight"] = torch.zeros(1)
    with pytest.raises(WeightsCorruptError) as caught:
        load_strictly(build(config), state, tmp_path / "bad.pth")
    for words in ("bad.pth", "missing encoder.stem.bias", "unknown surprise", "decoder.head.weight is (1,)"):
        assert words in str(caught.value)


def test_folded_spectral_norm_equals_torch() -> None:
    """torch's own spectral norm, after enough power iterations, as the independent oracle."""
    torch.manual_seed(0)
    conv: Any = spectral_norm(nn.Conv2d(5, 7, 3), n_power_iterations=50)
    conv.train()(torch.randn(1, 5, 8, 8))
    conv.eval()
    raw = conv.parametrizations.weight
    state = {"c.weight_orig": raw.original.detach(), "c.weight_u": raw[0]._u, "c.weight_v": raw[0]._v}
    folded = fold_spectral_norm(state)
    assert list(folded) == ["c.weight"]
    assert torch.allclose(folded["c.weight"], conv.weight.detach(), atol=1e-6)


class Evil:
    """A pickle that would run code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (str(self.path),))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "evil.pth", tmp_path / "ran"
    path.write_bytes(pickle.dumps({"x": Evil(trace)}))
    with pytest.raises(WeightsCorruptError, match=r"evil\.pth"):
        load_published("old_vae", path)
    assert not trace.exists()


def test_an_empty_or_foreign_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"")
    with pytest.raises(WeightsCorruptError, match=r"x\.safetensors"):
        load_compact(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(WeightsCorruptError, match="compact"):
        load_compact(path)


def small_published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A published-style detection file at a toy width: weights under model_state, and an optimizer beside them."""
    monkeypatch.setitem(loading.PUBLISHED, "scratch_unet", ScratchUnetConfig(width=2))
    ours = build(ScratchUnetConfig(width=2)).state_dict()
    theirs = {f"first.1.{k.removeprefix('first.')}" if k.startswith("first.") else k: v for k, v in ours.items()}
    monkeypatch.setitem(
        loading.RENAMES, "scratch_unet", lambda k: k.replace("first.1.", "first.")
    )  # the true names are held by the parity tests
    path = tmp_path / "FT_Epoch_latest.pt"
    torch.save({"model_state": theirs, "optimizer": {"m": torch.zeros(50_000)}}, path)
    return path, ours


def test_a_published_file_is_read_without_what_lies_beside_its_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, ours = small_published(monkeypatch, tmp_path)
    net = load_published("scratch_unet", path)
    for name, value in ours.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(net.state_dict()[name], value)
    assert list(tmp_path.iterdir()) == [path]  # what was made of it would be one more file to believe


def test_a_config_nested_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"config": "[" * 100_000})
    with pytest.raises(WeightsCorruptError, match=r"deep\.safetensors"):
        load_compact(path)


def test_a_config_of_another_kind_is_refused() -> None:
    with pytest.raises(KeyError):
        config_from_json('{"kind": "Elsewhere"}')
    with pytest.raises(TypeError):
        config_from_json('{"kind": "ScratchUnetConfig", "depth": 3}')


def test_width_is_the_only_difference_between_the_sets() -> None:
    wide = replace(loading.PUBLISHED["scratch_unet"], width=2)  # type: ignore[arg-type]  # a ScratchUnetConfig
    assert set(build(wide).state_dict()) == set(build(ScratchUnetConfig(width=4)).state_dict())


def test_wide_kernels_stay_where_the_file_is_mapped() -> None:
    """Copies of them would double what is held; other kernels are laid out for the convolutions of torch."""
    net = nn.Sequential(nn.Conv2d(64, 64, 3), nn.Conv2d(64, 64, 1), nn.Conv2d(3, 64, 3))
    before = [(weight.data_ptr(), weight.detach().clone()) for weight in net.parameters() if weight.dim() == 4]
    placed(net, torch.device("cpu"))
    after = [weight for weight in net.parameters() if weight.dim() == 4]
    assert after[0].data_ptr() == before[0][0]
    assert after[0].is_contiguous()
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in after[1:])
    assert all(torch.equal(weight, old) for weight, (_, old) in zip(after, before, strict=True))
