"""The stages around the networks, and whole runs, against the goldens; each step from the stored output of the one
before, since a difference of one level can move a landmark by a pixel."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import dlib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from oldphoto import weights
from oldphoto.models.mapping import Mapping
from oldphoto.models.tensors import mask_to_tensor, to_pixels, to_tensor
from oldphoto.models.translating import TranslationNets, fill_white, translate_whole
from oldphoto.models.vae import Vae
from oldphoto.stages.blending import REFERENCE, blend
from oldphoto.stages.faces import Face
from oldphoto.stages.faces.geometry import crop_matrix, cut_out, five_of_68
from oldphoto.stages.scratches import MOST_PIXELS, dilated, enlarged, grey_size, grey_tensor, resized_for
from oldphoto.weights.sets import PUBLISHED
from tests.published import Flavour, PublishedNets

Pixels = NDArray[np.uint8]


SHORT_SIDE = PUBLISHED.detector.short_side or 0


def picture(path: Path) -> Pixels:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def mask_of(path: Path) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = picture(path)[..., 0] >= 128
    return mask


def resized(pixels: Pixels, multiple: int, how: Image.Resampling) -> Pixels:
    """The published rule for sizes, which the product replaces by padding."""
    size = [round(side / multiple) * multiple for side in (pixels.shape[1], pixels.shape[0])]
    return np.asarray(Image.fromarray(pixels).resize((size[0], size[1]), how))


def stretched(x: Tensor) -> Pixels:
    """How the reference saves a restored picture: one minimum and maximum over everything."""
    x = (x - x.min()) / max(float(x.max() - x.min()), 1e-5)
    return np.asarray((x[0] * 255 + 0.5).clamp(0, 255).permute(1, 2, 0).numpy().astype(np.uint8))


@pytest.mark.parametrize("name", ["boy", "man", "pair"])
def test_detection(name: str, shared: Path) -> None:
    stages = shared / "reference" / "stages"
    golden = np.load(stages / "detection" / f"{name}.npz")
    photo = resized(picture(stages / "inputs" / f"{name}.png"), 16, Image.Resampling.BICUBIC)
    grey = grey_tensor(photo)
    assert np.array_equal(np.rint((grey[0, 0].numpy() + 1) * 127.5).astype(np.uint8), golden["grey_uint8"])
    looked_at = resized_for(grey, SHORT_SIDE)
    every = 4 if looked_at.shape[2:] == grey.shape[2:] else 1
    assert np.abs(looked_at.numpy()[..., ::every, ::every] - golden["x_scaled"]).max() < 1e-5
    probability = torch.sigmoid(torch.from_numpy(golden["logits"]))
    mask = enlarged(probability, (photo.shape[0], photo.shape[1])) >= PUBLISHED.detector.threshold
    assert np.array_equal(mask, mask_of(stages / "detection" / f"{name}.mask.png"))


def test_detection_sizes(shared: Path) -> None:
    checked = 0
    for case in json.loads((shared / "reference" / "stages" / "resize" / "sizes.json").read_text()):
        if isinstance(case["detection_full_size_wh"], str):
            continue  # the reference fails below 9 pixels a side; the product does not
        width, height = case["detection_full_size_wh"]
        golden = tuple(case["scale_tensor_hw_of_detection_full"])
        if golden[0] * golden[1] <= MOST_PIXELS:
            assert grey_size(height, width, SHORT_SIDE) == golden, case
            checked += 1
    assert checked > 20


@pytest.mark.parametrize("name", ["man", "pair"])
def test_resized_pictures(name: str, shared: Path) -> None:
    """The product pads instead; these hold the rule by which the goldens of whole runs were resized."""
    stages = shared / "reference" / "stages"
    photo = picture(stages / "inputs" / f"{name}.png")
    for golden, multiple, how in (
        ("detection_full_size", 16, Image.Resampling.BICUBIC),
        ("restore_full", 4, Image.Resampling.BILINEAR),
    ):
        path = stages / "resize" / f"{name}.{golden}.png"
        if path.is_file():
            assert np.array_equal(resized(photo, multiple, how), picture(path)), path.name


@pytest.mark.parametrize("number", [0, 1])
def test_saved_pictures(number: int, shared: Path) -> None:
    """Faces are saved as they are, the product's way too; restored pictures are stretched, which it never does."""
    save = shared / "reference" / "stages" / "save"
    with np.load(save / f"generated_{number}.npz") as file:
        (name,) = file.files
        made = torch.from_numpy(file[name]).reshape(1, 3, *file[name].shape[-2:])
    assert np.array_equal(stretched(made), picture(save / f"restored_{number}.png"))
    assert np.abs(to_pixels(made, np.uint8).astype(int) - picture(save / f"face_{number}.png")).max() <= 1


def test_a_photo_damaged_all_over_stays_so(shared: Path) -> None:
    """The reference turns an all-white mask black when it saves it: a fault that the product does not share."""
    black = mask_of(shared / "reference" / "stages" / "detection" / "all_ones_becomes.png")
    assert not black.any()
    assert (enlarged(torch.ones(1, 1, 4, 4), black.shape) >= PUBLISHED.detector.threshold).all()


@pytest.mark.parametrize("name", ["boy", "pair"])
@pytest.mark.parametrize("grown", [0, 3])
def test_hole_filling(name: str, grown: int, shared: Path) -> None:
    folder = shared / "reference" / "stages" / "mask"
    mask = dilated(mask_of(folder / f"{name}.hard.png"), grown)
    assert np.array_equal(mask, mask_of(folder / f"{name}.hard.dilated{grown}.png"))
    filled = fill_white(to_tensor(picture(folder / f"{name}.image.png")), mask_to_tensor(mask))
    assert np.array_equal(to_pixels(filled, np.uint8), picture(folder / f"{name}.hard.dilated{grown}.filled.png"))


@pytest.mark.parametrize("name", ["boy", "pair"])
@pytest.mark.parametrize("grown", [0, 3])
def test_hole_filling_with_a_soft_mask(name: str, grown: int, shared: Path) -> None:
    """The product's masks are true or false; a soft mask is dilated level by level, and blends with white."""
    folder = shared / "reference" / "stages" / "mask"
    before = picture(folder / f"{name}.soft.png")[..., 0]
    after = picture(folder / f"{name}.soft.dilated{grown}.png")[..., 0]
    for level in range(1, 256, 9):
        assert np.array_equal(dilated(before >= level, grown), after >= level)
    photo, mask = to_tensor(picture(folder / f"{name}.image.png")), torch.from_numpy(after / np.float32(255.0))
    filled = fill_white(photo, mask[None, None])
    golden = picture(folder / f"{name}.soft.dilated{grown}.filled.png")
    # The reference cuts the blend to whole levels before the networks; ours stays a fraction.
    off = (filled[0].permute(1, 2, 0).numpy() + 1.0) * 127.5 - golden
    assert off.min() > -1e-3
    assert off.max() < 1.0 + 1e-3
    if not grown:
        tensors = np.load(folder / f"{name}.tensors.npz")
        assert np.abs(filled.numpy()[..., ::4, ::4] - tensors["input_sample"]).max() < 1.01 / 127.5
        assert np.array_equal(mask[None, None].numpy()[..., ::4, ::4], tensors["mask_sample"])


def nets(published: PublishedNets, flavour: Flavour, scratch: bool, large: bool) -> TranslationNets:
    name = "mapping_quality" if not scratch else "mapping_patch_attention" if large else "mapping_scratch"
    old = published.load("vae_a_quality", "old_vae", flavour)
    mapping = published.load(name, "mapping" if not scratch else name, flavour)
    side = "scratch" if scratch else "quality"
    clean = published.load(f"vae_b_{side}", "clean_vae", flavour)
    assert isinstance(old, Vae)
    assert isinstance(mapping, Mapping)
    assert isinstance(clean, Vae)
    return TranslationNets(old, mapping, clean)


@pytest.mark.full_width
@pytest.mark.parametrize("flavour", ["passthrough", "random"])
def test_whole_run_masks(flavour: Flavour, shared: Path, published: PublishedNets) -> None:
    run = shared / "reference" / "e2e" / flavour / "with_scratch"
    unet = published.load("scratch_unet", "scratch_unet", flavour, None if flavour == "passthrough" else -2.4)
    for path in sorted((run / "masks_input").glob("*.png")):
        photo = picture(path)
        with torch.inference_mode():
            logits = unet(resized_for(grey_tensor(photo), SHORT_SIDE))
        mask = enlarged(torch.sigmoid(logits), (photo.shape[0], photo.shape[1])) >= PUBLISHED.detector.threshold
        assert float((mask != mask_of(run / "masks_mask" / path.name)).mean()) <= 0.001, path.name


@pytest.mark.full_width
@pytest.mark.parametrize("mode", ["plain", "with_scratch", "with_scratch_hr"])
@pytest.mark.parametrize("flavour", ["passthrough", "random"])
def test_whole_run_restored(flavour: Flavour, mode: str, shared: Path, published: PublishedNets) -> None:
    e2e = shared / "reference" / "e2e" / flavour
    large = mode.endswith("hr")
    for path in sorted((e2e / "inputs").glob("*.png")):
        photo, mask = resized(picture(path), 4, Image.Resampling.BILINEAR), None
        if mode != "plain":
            photo = picture(e2e / "with_scratch" / "masks_input" / path.name)
            mask = dilated(mask_of(e2e / "with_scratch" / "masks_mask" / path.name), 3 if large else 0)
        with torch.inference_mode():
            damage = None if mask is None else mask_to_tensor(mask)
            ours = translate_whole(to_tensor(photo), damage, nets(published, flavour, mask is not None, large))
        golden = picture(e2e / mode / "restored_image" / path.name)
        off = np.abs(stretched(ours).astype(int) - golden)
        assert off.max() <= 2, path.name
        # Random weights make much of the order in which sums are rounded.
        assert float((off > 0).mean()) <= (0.005 if flavour == "passthrough" else 0.01), path.name


@pytest.mark.full_width
@pytest.mark.parametrize(("mode", "size"), [("plain", 256), ("with_scratch", 256), ("with_scratch_hr", 512)])
def test_whole_run_faces(mode: str, size: int, shared: Path, published: PublishedNets) -> None:
    run = shared / "reference" / "e2e" / "passthrough" / mode
    generator = published.load(f"face_{size}", f"face_generator_{size}")
    # What the goldens store both sides of; one of 512 pixels, since each takes 10 s and test_parity_nets has another.
    stored = {path.name for path in (run / "faces_out").glob("*.png")}
    crops = [path for path in sorted((run / "faces_in").glob("*.png")) if path.name in stored]
    assert crops
    for path in crops if size == 256 else crops[-1:]:
        with torch.inference_mode():
            after = to_pixels(generator(to_tensor(picture(path))), np.uint8)
        assert np.abs(after.astype(int) - picture(run / "faces_out" / path.name)).max() <= 2, path.name


@pytest.fixture(scope="module")
def landmarks_68() -> Any:
    """dlib's predictor over the published 68-point file."""
    package = importlib.util.find_spec("face_recognition_models")
    if package is None or package.submodule_search_locations is None:
        pytest.skip("the package face_recognition_models is not installed")
    path = Path(package.submodule_search_locations[0]) / "models" / "shape_predictor_68_face_landmarks.dat"
    (listed,) = [file for file in weights.read_lock() if file.net == "landmarks_68"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == listed.sha256
    return dlib.shape_predictor(str(path))


@pytest.mark.parametrize(
    ("mode", "size"), [("plain", 256), ("with_scratch", 256), ("plain_hr", 512), ("with_scratch_hr", 512)]
)
def test_whole_run_finals(mode: str, size: int, shared: Path, landmarks_68: Any) -> None:
    """From the stored restored picture and the stored enhanced faces to the stored final picture."""
    run = shared / "reference" / "e2e" / "passthrough" / mode
    detector, checked = dlib.get_frontal_face_detector(), 0
    for path in sorted((run / "final_output").glob("*.png")):
        if not (run / "restored_image" / path.name).is_file():
            continue  # the goldens store it once where it equals another
        restored, faces = picture(run / "restored_image" / path.name), []
        for number, box in enumerate(detector(restored), 1):
            points = np.array([(p.x, p.y) for p in landmarks_68(restored, box).parts()], np.float64)
            # The reference cuts the eyes' middles to whole pixels; ours stay fractions.
            matrix = crop_matrix(np.trunc(five_of_68(points)), size)
            before = cut_out(restored, matrix, size)
            name = f"{path.stem}_{number}.png"
            if (run / "faces_in" / name).is_file():
                assert np.abs(before.astype(int) - picture(run / "faces_in" / name)).max() <= 2, name
            after = picture(run / "faces_out" / name).astype(np.float32)
            faces.append(Face((0, 0, 1, 1), 1.0, np.zeros((5, 2)), matrix, before, after))
        final = blend(restored, faces, REFERENCE)
        off = np.abs(final.astype(int) - picture(path))
        # Colours are matched to the crop, which the reference cuts to whole levels and ours rounds.
        assert off.max() <= 3, path.name
        assert float((off > 2).mean()) < 2e-5, path.name
        checked += len(faces)
    assert checked > 0
