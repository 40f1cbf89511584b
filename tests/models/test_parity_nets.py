"""Every network against the goldens recorded from the published method, at full width, with the same filled weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from oldphoto.models import winograd
from oldphoto.models.mapping import Mapping
from oldphoto.models.tensors import to_tensor
from oldphoto.models.vae import Vae
from tests.published import PublishedNets

pytestmark = pytest.mark.full_width
Arrays = dict[str, NDArray[np.float32]]

# The tolerances that the goldens' own README suggests, on CPU in float32.
NETS, NON_LOCAL, SAMPLES = 1e-4, 1e-3, 5e-4


@pytest.fixture(autouse=True)
def winograd_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The goldens are small; photos are not, so what is held to the goldens is what photos go through."""
    monkeypatch.setattr(winograd, "LEAST_TILES", 1)


def arrays(shared: Path, case: str) -> Arrays:
    with np.load(shared / "reference" / "nets" / f"{case}.npz") as file:
        return {k: file[k] for k in file.files}


def tensor(a: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(a.copy())


def close(ours: Tensor, golden: NDArray[np.float32], tolerance: float) -> None:
    assert ours.shape == golden.shape
    assert float((ours - tensor(golden)).abs().max()) <= tolerance


@pytest.mark.parametrize("case", ["unet_96x80", "unet_64x112"])
def test_scratch_unet(case: str, shared: Path, published: PublishedNets) -> None:
    golden = arrays(shared, case)
    with torch.inference_mode():
        close(published.load("scratch_unet", "scratch_unet")(tensor(golden["x"])), golden["logits"], NETS)


@pytest.mark.parametrize("case", ["quality_64x72", "quality_60x44", "quality_batch2_40x48"])
@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "training"])
def test_plain_chain(case: str, gradients: bool, shared: Path, published: PublishedNets) -> None:
    golden = arrays(shared, case)
    old, clean = published.load("vae_a_quality", "old_vae"), published.load("vae_b_quality", "clean_vae")
    assert isinstance(old, Vae)
    assert isinstance(clean, Vae)
    with torch.set_grad_enabled(gradients):  # in-place shortcuts are taken without gradients only: test both
        close(old.encode(tensor(golden["x"])), golden["latent"], NETS)
        close(published.load("mapping_quality", "mapping")(tensor(golden["latent"])), golden["mapped"], NETS)
        close(clean.decode(tensor(golden["mapped"])), golden["y"], NETS)
        if "autoenc_A" in golden:
            close(old.decode(tensor(golden["latent"])), golden["autoenc_A"], NETS)


@pytest.mark.parametrize(
    "case", ["scratch_mixed_64x80", "scratch_thin_64x80", "scratch_none_48x64", "scratch_all_48x64"]
)
def test_non_local_chain(case: str, shared: Path, published: PublishedNets) -> None:
    golden = arrays(shared, case)
    old, clean = published.load("vae_a_quality", "old_vae"), published.load("vae_b_scratch", "clean_vae_scratch")
    mapping = published.load("mapping_scratch", "mapping_scratch")
    assert isinstance(old, Vae)
    assert isinstance(clean, Vae)
    assert isinstance(mapping, Mapping)
    assert mapping.non_local is not None
    seen: list[Tensor] = []
    handle = mapping.non_local.register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.inference_mode():
        latent = old.encode(tensor(golden["x"]))
        close(latent, golden["latent"], NETS)
        mask = tensor(golden["mask"])
        keep = mapping.non_local.soundness(mask, (latent.shape[2], latent.shape[3]))
        close(keep, golden["keep"], 0.0)
        mapped = mapping(latent, mask)
        close(mapped, golden["mapped"], NON_LOCAL)
        close(clean.decode(mapped), golden["y"], NON_LOCAL)
    handle.remove()
    if "nl_out_sample" in golden:
        close(seen[0][0, ::16], golden["nl_out_sample"], SAMPLES)


@pytest.mark.parametrize("case", ["patch_big_96x128", "patch_big_80x112", "patch_thin_64x96", "patch_none_64x64"])
def test_patch_attention_chain(
    case: str, shared: Path, published: PublishedNets, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = arrays(shared, case)
    old, clean = published.load("vae_a_quality", "old_vae"), published.load("vae_b_scratch", "clean_vae_scratch")
    mapping = published.load("mapping_patch_attention", "mapping_patch_attention")
    assert isinstance(old, Vae)
    assert isinstance(clean, Vae)
    assert isinstance(mapping, Mapping)
    assert mapping.patches is not None
    chosen: dict[int, tuple[list[int], list[int]]] = {}
    outputs: list[Tensor] = []
    for number, scale in enumerate(mapping.patches.scales, 1):
        scale.register_forward_hook(lambda _m, _i, out: outputs.append(out))

        def record(x: Tensor, damaged: Tensor, number: int = number, choose=scale.choose) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]  # a bound method of a ModuleList's item
            which, choice = choose(x, damaged)
            chosen[number] = (which.tolist(), choice.tolist())
            return which, choice

        monkeypatch.setattr(scale, "choose", record)
    with torch.inference_mode():
        mapped = mapping(old.encode(tensor(golden["x"])), tensor(golden["mask"]))
        for number in (1, 2, 3):
            if f"scale{number}_masked_patches" in golden:
                assert chosen[number][0] == golden[f"scale{number}_masked_patches"].tolist()
                choice = golden.get(f"scale{number}_chosen_patches", np.zeros(0))  # absent where nothing is masked
                assert chosen[number][1] == choice.tolist()
            if f"scale{number}_out_sample" in golden:
                close(outputs[number - 1][0, ::32], golden[f"scale{number}_out_sample"], SAMPLES)
        close(mapped, golden["mapped"], NETS)
        close(clean.decode(mapped), golden["y"], NETS)
    for scale in mapping.patches.scales:
        scale._forward_hooks.clear()


@pytest.mark.parametrize("case", ["face_256_0", "face_256_1", "face_512_0"])
def test_face_generator(case: str, shared: Path, published: PublishedNets) -> None:
    golden = arrays(shared, case)
    size = case[5:8]
    pixels = golden["x_uint8"].astype(np.uint8)
    with torch.inference_mode():
        y = published.load(f"face_{size}", f"face_generator_{size}")(to_tensor(pixels))
    if "y_sub" in golden:
        close(y[..., 1::3, 2::3], golden["y_sub"], NETS)
    else:
        close(y, golden["y"], NETS)


def test_every_case_is_covered(shared: Path) -> None:
    cases = set(json.loads((shared / "reference" / "nets" / "index.json").read_text()))
    covered = {"unet_96x80", "unet_64x112", "face_256_0", "face_256_1", "face_512_0"}
    covered |= {"quality_64x72", "quality_60x44", "quality_batch2_40x48"}
    covered |= {"scratch_mixed_64x80", "scratch_thin_64x80", "scratch_none_48x64", "scratch_all_48x64"}
    covered |= {"patch_big_96x128", "patch_big_80x112", "patch_thin_64x96", "patch_none_64x64"}
    assert cases == covered
