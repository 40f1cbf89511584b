"""Degradations, data, losses, metrics, and every stage of training at a toy size, resumed midway."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from oldphoto import cli
from oldphoto.errors import NoInputError, RefusedOverwriteError, UsageError, WeightsCorruptError
from oldphoto.models.damage_net import DamageNetConfig
from oldphoto.models.face_finder import FaceFinder, FaceFinderConfig
from oldphoto.models.loading import PUBLISHED, load_compact
from oldphoto.models.mapping import MappingConfig
from oldphoto.models.spade import FaceGeneratorConfig
from oldphoto.models.vae import VaeConfig
from oldphoto.stages.faces import Face
from oldphoto.training import ageing, base, damage, degrade, enhancement, repair, stages
from oldphoto.training.ageing import Dice
from oldphoto.training.data import DamageMaps, Photos, image_files, overlays, read_photos
from oldphoto.training.evaluate import Pair, area_under_curve, colour_shift, gmsd, pairs, psnr, ssim, tuned
from oldphoto.training.lettering import Lettering, lettering
from oldphoto.training.losses import likeness
from oldphoto.training.pairs import RECIPES, write_pairs
from oldphoto.training.train import train, train_all


def photo(seed: int, side: int = 96) -> degrade.Image:
    """Smooth shapes with edges, in colour."""
    rng = np.random.default_rng(seed)
    small = rng.random((6, 6, 3)).astype(np.float32)
    big = cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)
    cv2.circle(big, (side // 2, side // 2), side // 4, (0.9, 0.2, 0.1), -1)
    return np.clip(np.asarray(big, np.float32), 0.0, 1.0)


def eight_bits(image: degrade.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return (image * 255).astype(np.uint8)


CPU = torch.device("cpu")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for part, count in (("clean", 3), ("old", 2), ("faces", 1)):
        (folder / part).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(eight_bits(photo(i, 300))).save(folder / part / f"{i}.png")
    (folder / "damage" / "hair").mkdir(parents=True)
    stroke = np.zeros((120, 60), np.uint8)
    cv2.line(stroke, (5, 5), (50, 110), 255, 3)
    Image.fromarray(stroke).save(folder / "damage" / "hair" / "0.png")
    return folder


@pytest.mark.parametrize("name", sorted(degrade.SINGLE))
def test_each_degradation_harms_in_range_and_by_its_seed_alone(name: str) -> None:
    clean = photo(1)
    before = clean.copy()
    one = degrade.SINGLE[name](clean, np.random.default_rng(5))
    again = degrade.SINGLE[name](clean, np.random.default_rng(5))
    assert np.array_equal(clean, before)
    assert np.array_equal(one, again)
    assert one.dtype == np.float32
    assert one.shape == clean.shape
    assert one.min() >= 0.0
    assert one.max() <= 1.0
    harmed = [np.abs(degrade.SINGLE[name](clean, np.random.default_rng(s)) - clean).mean() for s in range(8)]
    assert max(harmed) > 0.002


def test_gaussian_noise_has_the_published_strength() -> None:
    flat = np.full((128, 128, 3), 0.5, np.float32)
    deviations = [(degrade.gaussian_noise(flat, np.random.default_rng(s)) - flat).std() * 255 for s in range(40)]
    assert 4.5 <= min(deviations) < 15
    assert 40 < max(deviations) <= 50.5


def test_published_mixture_sometimes_changes_nothing() -> None:
    """Each of four operations is left out with probability 0.3: 0.8 % of photos stay as they are."""
    clean = photo(2, 64)
    untouched = sum(
        np.array_equal(degrade.published_mixture(clean, np.random.default_rng(s)), clean) for s in range(600)
    )
    assert 0 < untouched < 20


def test_motion_blur_keeps_brightness() -> None:
    clean = np.pad(np.full((20, 20, 3), 0.8, np.float32), ((20, 20), (20, 20), (0, 0)))
    for seed in range(5):
        assert degrade.motion_blur(clean, np.random.default_rng(seed)).mean() == pytest.approx(clean.mean(), rel=1e-3)


def test_damage_has_a_mask_of_its_opacity_and_a_bounded_share(data: Path) -> None:
    harm = overlays(data / "damage")
    shares = []
    for seed in range(20):
        drawn = degrade.damage((96, 128), harm, np.random.default_rng(seed))
        assert drawn.mask.shape == (96, 128)
        assert np.array_equal(drawn.mask, drawn.opacity > degrade.HOLE_OPACITY)
        shares.append(drawn.mask.mean())
    assert max(shares) <= 0.15
    assert np.mean(shares) > 0.01
    with pytest.raises(ValueError, match="overlays"):
        degrade.damage((96, 128), {}, np.random.default_rng(0))


def test_whitened_paints_the_mask_alone() -> None:
    clean, mask = photo(3), np.zeros((96, 96), np.bool_)
    mask[10:20] = True
    hurt = degrade.whitened(clean, mask)
    assert (hurt[10:20] == 1.0).all()
    assert np.array_equal(hurt[20:], clean[20:])


def batch_of(*photos: degrade.Image) -> torch.Tensor:
    return torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).contiguous()


SAME = ("gaussian_blur", "optical_blur", "motion_blur", "low_resolution", "fading", "uneven_exposure", "halftone")


@pytest.mark.parametrize("name", SAME)
def test_tensors_are_aged_as_arrays_are(name: str) -> None:
    """Both draw the same figures from the same seed; OpenCV did the arithmetic of one of them."""
    photos = [photo(seed, 96) for seed in (1, 2, 3)]
    for seed in range(4):
        rng, dice = np.random.default_rng(seed), Dice.seeded(CPU, 0)
        old = getattr(ageing, name)(batch_of(*photos), Dice(np.random.default_rng(seed), dice.device))
        wanted = [degrade.SINGLE[name](p, rng) for p in photos]
        assert np.allclose(old.permute(0, 2, 3, 1).numpy(), np.stack(wanted), atol=3e-5)


def test_tensor_jpeg_is_near_libjpeg_s() -> None:
    """Nearer to what libjpeg makes of a photo than a third of the harm, at every quality."""
    rough = np.clip(photo(4, 128) + 0.05 * np.random.default_rng(4).standard_normal((128, 128, 3)), 0, 1)
    clean = (np.rint(rough * 255) / 255).astype(np.float32)
    for seed in range(8):
        by_libjpeg = degrade.jpeg(clean, np.random.default_rng(seed))
        dice = Dice(np.random.default_rng(seed), torch.Generator())
        by_tensors = ageing.jpeg(batch_of(clean), dice)[0].permute(1, 2, 0).numpy()
        harm = np.abs(by_libjpeg - clean).mean()
        assert np.abs(by_tensors - by_libjpeg).mean() < max(harm / 3, 0.6 / 255)
        assert np.abs(by_tensors - clean).mean() == pytest.approx(harm, rel=0.1, abs=0.3 / 255)


@pytest.mark.parametrize("name", ["gaussian_noise", "speckle", "salt_and_pepper", "film_grain"])
def test_tensor_noise_is_as_strong_as_array_noise(name: str) -> None:
    mid = np.full((64, 64, 3), 0.5, np.float32)
    by_arrays = [np.abs(degrade.SINGLE[name](mid, np.random.default_rng(s)) - mid).mean() for s in range(150)]
    dice = Dice.seeded(CPU, 1)
    by_tensors = (getattr(ageing, name)(batch_of(mid).expand(150, -1, -1, -1), dice) - 0.5).abs().mean(dim=(1, 2, 3))
    assert float(by_tensors.mean()) == pytest.approx(float(np.mean(by_arrays)), rel=0.15)
    assert float(by_tensors.std()) == pytest.approx(float(np.std(by_arrays)), rel=0.35)


def test_the_wider_mixture_leaves_some_photos_alone_and_repeats_by_its_seed() -> None:
    clean = batch_of((np.rint(photo(2, 64) * 255) / 255).astype(np.float32)).expand(300, -1, -1, -1)
    old = ageing.wider_mixture(clean, Dice.seeded(CPU, 3))
    same = (old - clean).abs().amax(dim=(1, 2, 3)) < 1e-6
    assert 0.06 < float(same.float().mean()) < 0.22
    assert torch.equal(old, ageing.wider_mixture(clean, Dice.seeded(CPU, 3)))
    assert not torch.equal(old, ageing.wider_mixture(clean, Dice.seeded(CPU, 4)))
    assert torch.allclose(old * 255, (old * 255).round(), atol=1e-3)


def test_covered_changes_what_is_damaged_alone() -> None:
    clean = batch_of(photo(3)).expand(40, -1, -1, -1)
    opacity = torch.zeros(40, 1, 96, 96)
    opacity[:, :, 10:20] = 1.0
    old = ageing.covered(clean, opacity, Dice.seeded(CPU, 0))
    assert torch.equal(old[:, :, 20:], clean[:, :, 20:])
    white = (old[:, :, 10:20] == 1.0).all(dim=3).all(dim=2).all(dim=1)
    assert 10 < int(white.sum()) < 32


def test_crops_are_pieces_of_the_photos(data: Path) -> None:
    photos = read_photos(data / "clean")
    crops = (Photos(photos, CPU, 256).crops(8, 64, Dice.seeded(CPU, 5)) * 255).round().byte().permute(0, 2, 3, 1)
    found = 0
    for crop in crops.numpy():
        pieces = [np.rot90(view, turn) for view in (crop, crop[:, ::-1]) for turn in range(4)]
        best = [
            float(cv2.matchTemplate(p, np.ascontiguousarray(q), cv2.TM_SQDIFF).min()) for p in photos for q in pieces
        ]
        found += min(best) < 600.0  # of some 10^8: the sums are rounded
    assert found == 8  # at 300 pixels, no photo has a smaller copy of 256
    with pytest.raises(ValueError, match="crops of 320"):
        Photos(photos, CPU, 256).crops(1, 320, Dice.seeded(CPU, 0))


def test_reduced_copies_are_cropped_too() -> None:
    gradient = np.repeat(np.linspace(0, 255, 512)[None, :, None].repeat(512, 0), 3, axis=2).astype(np.uint8)
    crops = Photos([gradient], CPU, 128).crops(60, 128, Dice.seeded(CPU, 6))
    spans = (crops.amax(dim=(1, 2, 3)) - crops.amin(dim=(1, 2, 3))).numpy()
    assert {round(float(span) * 4) for span in spans} == {1, 2}  # a quarter of the gradient, or half; 3/8 is between


def test_damage_maps_are_the_drawn_damage(data: Path) -> None:
    maps = DamageMaps(overlays(data / "damage"), 6, 128, 3, CPU)
    opacity = maps.opacity(50, 128, Dice.seeded(CPU, 0))
    assert opacity.shape == (50, 1, 128, 128)
    shares = {round(float(x), 4) for x in (maps.maps > 76).float().mean(dim=(1, 2))}
    assert {round(float(x), 4) for x in (opacity > 76.5 / 255).float().mean(dim=(1, 2, 3))} <= shares


@pytest.mark.usefixtures("tiny")
def test_a_step_s_samples_depend_on_its_seed_alone(data: Path) -> None:
    def stage() -> base.Stage:
        recipe = base.Recipe(steps=4, batch=4, size=64)
        return repair.VaeStage(base.Folders.below(data), recipe, CPU, base.COMPACT["old_vae"], old=True)

    one, other = stage(), stage()
    one.batch(0)
    first, again = one.batch(2), other.batch(2)
    assert set(first) == {"clean", "old", "mask", "real"}
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["clean"], one.batch(3)["clean"])
    assert first["old"].abs().max() <= 1.0


def test_likeness_counts_photos_between_their_errors_and_equally() -> None:
    """A tenth less of an error a twentieth as large counts for more than a twentieth, and for less than as much."""
    true = torch.zeros(2, 3, 8, 8)
    bad = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    good = 0.05 * bad

    def total(a: float, b: float) -> float:
        return float(torch.stack(list(likeness(torch.cat([a * good, b * bad]), true, 0.03).values())).sum())

    worth = (total(1.0, 1.0) - total(0.9, 1.0)) / (total(1.0, 1.0) - total(1.0, 0.9))
    assert 0.3 < worth < 0.9
    assert np.isfinite(total(0.0, 0.0))


def test_photos_leave_out_small_ones_and_say_when_none_is_left(data: Path) -> None:
    Image.new("RGB", (100, 400)).save(data / "clean" / "small.png")
    (data / "clean" / ".hidden.png").write_bytes(b"no image")
    assert len(read_photos(data / "clean")) == 3
    assert len(image_files(data / "clean")) == 4
    with pytest.raises(NoInputError, match="at least 512"):
        read_photos(data / "clean", least=512)
    with pytest.raises(NoInputError, match="no images"):
        image_files(data / "damage" / "hair" / "nothing")


def test_metrics_by_hand() -> None:
    """PSNR and SSIM are scikit-image's; GMSD is counted here with scipy, and dE2000 against a published pair."""
    signal: Any = pytest.importorskip("scipy.signal")
    a = (photo(1) * 255).astype(np.uint8)
    b = (degrade.gaussian_noise(photo(1), np.random.default_rng(0)) * 255).astype(np.uint8)
    assert psnr(a, b) == pytest.approx(10 * np.log10(255**2 / np.square(a - b.astype(float)).mean()), abs=1e-6)
    assert psnr(a, a) == 100.0
    assert ssim(a, a) == pytest.approx(1.0)
    assert ssim(a, b) < 0.9
    magnitudes = []
    for pixels in (a, b):
        grey = np.rint(pixels @ np.array([0.299, 0.587, 0.114]))
        half = signal.convolve2d(grey, np.full((2, 2), 0.25), "same", "symm")[::2, ::2]
        prewitt = np.array([[1, 0, -1]] * 3) / 3
        dx, dy = (signal.convolve2d(half, k, "same", "symm") for k in (prewitt, prewitt.T))
        magnitudes.append(np.hypot(dx, dy)[2:-2, 2:-2])
    x, y = magnitudes
    expected = ((2 * x * y + 170) / (x**2 + y**2 + 170)).std()
    assert gmsd(a, b) == pytest.approx(expected, rel=0.05)
    assert gmsd(a, a) == 0.0
    # Pure red against pure green in sRGB: dE2000 of 86.6.
    red, green = (np.full((4, 4, 3), c, np.uint8) for c in ((255, 0, 0), (0, 255, 0)))
    assert colour_shift(red, green) == pytest.approx(86.6, abs=0.1)
    assert colour_shift(red, red) == 0.0


def test_the_classical_chain_is_tuned_to_the_harm() -> None:
    clean = [(photo(i, 64) * 255).astype(np.uint8) for i in range(2)]

    def pairs_of(operation: degrade.Operation) -> list[Pair]:
        return list(pairs(clean, None, 5, operation))

    noisy, soft = tuned(pairs_of(degrade.gaussian_noise)), tuned(pairs_of(degrade.gaussian_blur))
    assert noisy.strength > soft.strength
    assert soft.sharpening != "none"
    mask = np.zeros((64, 64), np.bool_)
    mask[20:24] = True
    hurt = [Pair(c, np.where(mask[..., None], np.uint8(255), c), mask) for c in clean]
    chain = tuned(hurt)
    assert min(psnr(chain(p), p.clean) - psnr(p.old, p.clean) for p in hurt) > 3.0


def test_area_under_curve_equals_counting_pairs() -> None:
    rng = np.random.default_rng(0)
    high, low = (rng.beta(a, 2, 300).astype(np.float32) for a in (4, 2))
    counted = float((high[:, None] > low[None]).mean())
    assert area_under_curve(high, low) == pytest.approx(counted, abs=2e-3)
    assert area_under_curve(high, high) == pytest.approx(0.5, abs=1e-3)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage at a width that trains in a second."""
    old = VaeConfig(width=4, latent_channels=4, blocks=1, norm="none", mask_input=True)
    mapping = MappingConfig(latent_channels=4, channels=(6,), blocks=1, norm="none")
    small = {
        "old_vae": old,
        "clean_vae": replace(old, mask_input=False, refine=4),
        "mapping": mapping,
        "damage_net": DamageNetConfig((2, 3, 4, 5, 6)),
        "face_generator": FaceGeneratorConfig(width=1, steering=2, residual=True),
        "face_finder": FaceFinderConfig((2, 3, 4), depth=1),
    }
    for name, config in small.items():
        monkeypatch.setitem(base.COMPACT, name, config)
    for name, count in (("LAYERS", 12), ("OVERLAYS", 2), ("LETTERINGS", 2)):
        monkeypatch.setattr(damage, name, count)


@pytest.mark.usefixtures("tiny")
def test_the_face_finder_trains(data: Path, tmp_path: Path, shared: Path) -> None:
    shutil.copy(shared / "reference/stages/inputs/boy.png", data / "faces" / "boy.png")
    rows: list[dict[str, float | int | str]] = []
    (path,) = train("face-finder", data, tmp_path / "out", steps=2, batch=1, size=64, report=rows.append)
    assert isinstance(load_compact(path), FaceFinder)
    assert {"recall_100", "recall_1000"} <= set(rows[0])
    (data / "faces" / "boy.png").unlink()
    with pytest.raises(NoInputError, match="faces"):
        train("face-finder", data, tmp_path / "none", steps=1)


@pytest.mark.usefixtures("tiny")
def test_all_stages_train_in_order_and_their_weights_load(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # They need photos of faces, or a teacher, and have tests of their own.
    for own in ("face-finder", "landmarks", "rebuild-distil", "rebuild"):
        monkeypatch.delitem(stages.STAGES["compact"], own)
    out = tmp_path / "out"
    (out / "aligned-64").mkdir(parents=True)
    for i in range(3):
        Image.fromarray(eight_bits(photo(i, 64))).save(out / "aligned-64" / f"{i}.png")
    rows: dict[str, dict[str, float | int | str]] = {}
    files = train_all(data, out, steps=2, batch=4, size=64, report=rows.__setitem__)
    assert {f.stem for f in files} == base.COMPACT.keys() - {"face_finder", "landmarks_5", "rebuilder"}
    assert all(next(load_compact(f).parameters()).isfinite().all() for f in files)
    assert list(rows) == list(stages.STAGES["compact"])
    assert {row["step"] for row in rows.values()} == {2}
    assert {"psnr", "psnr_input", "psnr_undamaged"} <= set(rows["finetune"])
    assert {"psnr", "psnr_input", "psnr_sharp"} <= set(rows["face-generator"])
    logged = [json.loads(line) for line in (out / "finetune.jsonl").read_text().splitlines()]
    assert logged == [rows["finetune"]]
    # TensorBoard's own format: records of length, CRC, protobuf.
    (events,) = (out / "finetune.tensorboard").iterdir()
    assert events.name.startswith("events.out.tfevents")
    assert b"psnr_undamaged" in events.read_bytes()


@pytest.mark.usefixtures("tiny")
def test_a_stage_ends_when_its_time_is_up(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "DAMAGE_MAPS", 8)  # instead of one for each of 2,000 steps
    rows: list[dict[str, float | int | str]] = []
    (file,) = train("damage", data, tmp_path, steps=2000, batch=1, size=64, seed=3, minutes=0.005, report=rows.append)
    assert int(rows[-1]["step"]) < 2000
    assert float(rows[-1]["seconds"]) >= 0.3
    assert file.is_file()
    count = len(rows)
    train("damage", data, tmp_path, steps=2000, batch=1, size=64, seed=3, minutes=0.005, report=rows.append)
    assert len(rows) == count  # nothing was left to do


@pytest.mark.parametrize(
    ("step", "done", "rate"), [(0, 0.0, 1e-6), (199, 0.0, 2e-4), (900, 0.5, 1e-4), (900, 1.0, 0.0)]
)
def test_the_rate_rises_then_falls_along_a_cosine(step: int, done: float, rate: float) -> None:
    assert base.Recipe(steps=1000, batch=1, size=64).rate_at(step, done) == pytest.approx(rate, abs=1e-9)


@pytest.mark.usefixtures("tiny")
def test_faces_are_aligned_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the search found is kept; without a face there is nothing to train on."""
    monkeypatch.setattr(enhancement, "Landmarks", lambda _path: None)
    matrix = np.eye(3)
    crop = eight_bits(photo(9, 64))
    face = Face((0, 0, 9, 9), 1.0, np.zeros((5, 2)), matrix, crop)
    monkeypatch.setattr(enhancement, "find_faces", lambda *_: [face])
    found = enhancement.aligned_faces(data / "faces", tmp_path, 64, CPU)
    assert np.array_equal(found[0].permute(1, 2, 0).numpy(), crop)
    monkeypatch.setattr(enhancement, "find_faces", lambda *_: [])
    enhancement.aligned_faces.cache_clear()
    assert torch.equal(enhancement.aligned_faces(data / "faces", tmp_path, 64, CPU), found)
    with pytest.raises(NoInputError, match="no face"):
        enhancement.aligned_faces(data / "faces", tmp_path / "elsewhere", 64, CPU)


def test_faces_are_varied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mirrored, turned, scaled, moved and lit; each within its range, as a fit to where three dots went says."""
    dice = Dice.seeded(CPU, 4)
    at = np.array([[20.0, 24.0], [44.0, 24.0], [32.0, 44.0]])
    y, x = np.mgrid[:64, :64]
    dots = np.stack([np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 8.0) for cx, cy in at])
    face = torch.from_numpy(dots.astype(np.float32))
    many = face.expand(200, 3, 64, 64)
    made = enhancement.varied(many, dice).numpy()
    assert made.min() >= 0.0
    assert made.max() <= 1.0
    weight = made.clip(0.05) - 0.05
    to = np.stack([(weight * axis).sum(axis=(2, 3)) / weight.sum(axis=(2, 3)) for axis in (x, y)], axis=2)
    source = np.concatenate([at - 31.5, np.ones((3, 1))], axis=1)
    fits = np.stack([np.linalg.solve(source, one - 31.5) for one in to])  # (200, 3, 2): rows are x, y, shift
    determinant = np.linalg.det(fits[:, :2])
    assert 0.35 < (determinant < 0.0).mean() < 0.65
    size = np.sqrt(np.abs(determinant))
    assert size.min() > 0.88
    assert size.max() < 1.13
    angle = np.degrees(np.arctan2(fits[:, 1, 0], fits[:, 1, 1]))
    assert 4.0 < angle.std() < 6.5
    assert np.abs(fits[:, 2]).max() < 1.2 * 64 * 1.2 * enhancement.MOVED
    # With nothing to vary, the face or its mirror image, as sharp as before.
    for name, value in (("TURN", 0.0), ("SIZES", (1.0, 1.0)), ("MOVED", 0.0), ("GAMMAS", (1.0, 1.0))):
        monkeypatch.setattr(enhancement, name, value)
    for one in enhancement.varied(many[:8], dice):
        assert min(float((one - same).abs().max()) for same in (face, face.flip(2))) < 1e-3


def test_the_published_architecture_trains_too(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = VaeConfig(width=4, latent_channels=4, blocks=1)
    mapping = MappingConfig(latent_channels=4, channels=(6,), blocks=2)
    small = {
        "old_vae": vae,
        "clean_vae": vae,
        "mapping": mapping,
        "mapping_scratch": replace(mapping, context="non_local", context_blocks=1),
        "mapping_patch_attention": replace(mapping, context="patches"),
    }
    for name, config in small.items():
        assert type(PUBLISHED[name]) is type(config)
        monkeypatch.setitem(PUBLISHED, name, config)
    for stage, file in (
        *(("old-vae", "old_vae"), ("clean-vae", "clean_vae"), ("mapping", "mapping")),
        *(("mapping-scratch", "mapping_scratch"), ("mapping-patch-attention", "mapping_patch_attention")),
    ):
        (path,) = train(stage, data, tmp_path, nets="published", steps=2, batch=2, size=64)
        assert path.name == f"{file}.safetensors"
        net = load_compact(path)
        assert net.config == small[file]
    with pytest.raises(UsageError, match="finetune"):
        train("finetune", data, tmp_path, nets="published")


@pytest.mark.usefixtures("tiny")
def test_a_resumed_run_equals_an_uninterrupted_one(data: Path, tmp_path: Path) -> None:
    def run(out: Path, *, stop_at: int | None) -> dict[str, torch.Tensor]:
        seen: list[int] = []

        def interrupt(_row: object) -> None:
            seen.append(1)

        if stop_at is not None:
            original = repair.VaeStage.loss
            count = 0

            def failing(self: repair.VaeStage, batch: dict[str, torch.Tensor]):  # type: ignore[no-untyped-def]  # as the original
                nonlocal count
                count += 1
                if count > stop_at:
                    raise KeyboardInterrupt
                return original(self, batch)

            repair.VaeStage.loss = failing  # type: ignore[method-assign]  # the power cut
            try:
                with pytest.raises(KeyboardInterrupt):
                    train("old-vae", data, out, steps=4, batch=2, size=64, checkpoint_seconds=0.0)
            finally:
                repair.VaeStage.loss = original  # type: ignore[method-assign]  # and its end
        (file,) = train("old-vae", data, out, steps=4, batch=2, size=64, report=interrupt)
        assert seen
        return load_compact(file).state_dict()

    whole, resumed = run(tmp_path / "a", stop_at=None), run(tmp_path / "b", stop_at=2)
    assert all(torch.equal(whole[k], resumed[k]) for k in whole if not k.endswith("num_batches_tracked"))


@pytest.mark.usefixtures("tiny")
def test_a_checkpoint_of_another_width_is_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train("damage", data, tmp_path / "out", steps=1, batch=2, size=64)
    monkeypatch.setitem(base.COMPACT, "damage_net", DamageNetConfig((3, 3, 4, 5, 6)))
    with pytest.raises(WeightsCorruptError, match="checkpoint"):
        train("damage", data, tmp_path / "out", steps=2, batch=2, size=64)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda d, o: train("nothing", d, o), UsageError),
        (lambda d, o: train("old-vae", d, o, size=70), UsageError),
        (lambda d, o: train("old-vae", d / "no", o), NoInputError),
    ],
)
def test_bad_training_calls_are_refused(
    call: Callable[[Path, Path], object], error: type[Exception], data: Path, tmp_path: Path
) -> None:
    with pytest.raises(error):
        call(data, tmp_path / "out")


@pytest.mark.usefixtures("tiny")
def test_train_command(data: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    arguments = [
        "train",
        "damage",
        "--data",
        str(data),
        "-o",
        out,
        "--steps",
        "1",
        "--batch",
        "2",
        "--size",
        "64",
    ]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip().endswith("damage_net.safetensors")
    assert CliRunner().invoke(cli.app, ["train", "nonsense", "--data", str(data), "-o", out]).exit_code == 2


def test_pairs_are_written_and_repeatable(data: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert write_pairs([data / "clean"], tmp_path / name, "published", data / "damage", 4) == 3
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(
        f"{i}{end}" for i in range(3) for end in (".png", ".mask.png")
    )
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    with Image.open(tmp_path / "a" / "0.png") as old, Image.open(tmp_path / "a" / "0.mask.png") as mask:
        assert (np.asarray(old)[np.asarray(mask) == 255] == 255).all()
    with pytest.raises(RefusedOverwriteError):
        write_pairs([data / "clean"], tmp_path / "a", "published", None, 4)
    with pytest.raises(UsageError, match="recipe"):
        write_pairs([data / "clean"], tmp_path / "c", "nonsense", None, 4)


def test_degrade_command(data: Path, tmp_path: Path) -> None:
    arguments = ["degrade", str(data / "clean"), "-o", str(tmp_path / "o"), "--recipe", "film_grain"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "o").glob("*.png"))) == 3
    assert "film_grain" in RECIPES


def test_a_stage_goes_on_from_weights_of_its_own(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a rate of nothing the weights stay those it started from; from nothing they are others."""
    monkeypatch.setitem(base.COMPACT, "damage_net", DamageNetConfig((2, 3, 4, 5, 6)))
    monkeypatch.setattr(repair.ScratchStage, "validate", lambda stage, nets: {})
    few: dict[str, Any] = {"steps": 1, "batch": 1, "size": 64}
    (first,) = train("damage", data, tmp_path / "first", **few)
    (same,) = train("damage", data, tmp_path / "same", start=tmp_path / "first", rate=0.0, seed=5, **few)
    (other,) = train("damage", data, tmp_path / "other", rate=0.0, seed=5, **few)
    key = "last.weight"
    wanted = load_compact(first).state_dict()[key]
    assert torch.allclose(load_compact(same).state_dict()[key], wanted, atol=1e-3)
    assert not torch.allclose(load_compact(other).state_dict()[key], wanted, atol=1e-3)
    with pytest.raises(WeightsCorruptError, match="none/damage_net"):
        train("damage", data, tmp_path / "new", start=tmp_path / "none", **few)
    monkeypatch.setitem(base.COMPACT, "damage_net", DamageNetConfig((4, 3, 4, 5, 6)))
    with pytest.raises(WeightsCorruptError, match=r"first\.conv\.weight is"):
        train("damage", data, tmp_path / "new", start=tmp_path / "first", **few)


def test_all_stages_cannot_go_on_from_one_folder(data: Path, tmp_path: Path) -> None:
    words = ["train", "all", "--data", str(data), "-o", str(tmp_path / "out"), "--start", str(tmp_path)]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 2
    assert "--start" in result.output


def test_lettering_is_thin_strokes_by_its_seed_alone() -> None:
    maps = [lettering(128, np.random.default_rng(seed)) for seed in range(40)]
    assert np.array_equal(maps[3], lettering(128, np.random.default_rng(3)))
    assert all(m.shape == (128, 128) and m.min() >= 0.0 and m.max() <= 1.0 for m in maps)
    shares = [float((m > 0.5).mean()) for m in maps]
    assert np.mean([share > 0.002 for share in shares]) > 0.7  # some words end up outside, or too small to count
    assert max(shares) < 0.5


def test_lettering_is_laid_on_a_share_of_photos_and_nowhere_else() -> None:
    pen, dice = Lettering(8, 96, 1, CPU), Dice.seeded(CPU, 4)
    grey = torch.full((200, 3, 64, 80), 0.5)
    assert torch.equal(pen.laid(grey, 0.0, dice)[0], grey)
    lettered = (pen.laid(grey, 0.5, dice)[0] != grey).flatten(1).any(dim=1).float().mean()
    assert 0.2 < lettered < 0.6
    everywhere, opacity = pen.laid(grey, 1.0, dice)
    assert torch.equal((everywhere != grey).any(dim=1, keepdim=True), opacity > 0.0)
    assert everywhere.min() >= 0.0
    assert everywhere.max() <= 1.0
    assert 0.002 < (everywhere != grey).any(dim=1).float().mean() < 0.5
