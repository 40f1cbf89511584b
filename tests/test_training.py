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
from oldphoto.loading import PUBLISHED, load_compact
from oldphoto.models.face_finder import FaceFinder, FaceFinderConfig
from oldphoto.models.mapping import MappingConfig
from oldphoto.models.scratch_unet import ScratchUnetConfig
from oldphoto.models.vae import VaeConfig
from oldphoto.training import degrade, stages
from oldphoto.training.data import Photos, batches, image_files, overlays
from oldphoto.training.evaluate import Pair, area_under_curve, colour_shift, gmsd, pairs, psnr, ssim, tuned
from oldphoto.training.pairs import RECIPES, write_pairs
from oldphoto.training.train import train


def photo(seed: int, side: int = 96) -> degrade.Image:
    """Smooth shapes with edges, in colour."""
    rng = np.random.default_rng(seed)
    small = rng.random((6, 6, 3)).astype(np.float32)
    big = cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)
    cv2.circle(big, (side // 2, side // 2), side // 4, (0.9, 0.2, 0.1), -1)
    return np.clip(np.asarray(big, np.float32), 0.0, 1.0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for part, count in (("clean", 3), ("old", 2), ("faces", 1)):
        (folder / part).mkdir(parents=True)
        for i in range(count):
            pixels = (photo(i, 300) * 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / part / f"{i}.png")
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


def test_batches_resume_where_they_stopped() -> None:
    def draw(rng: np.random.Generator) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
        return {"x": rng.random((2, 2)).astype(np.float32)}

    whole = [b["x"] for b in batches(draw, 3, 7, 0, 6)]
    rest = [b["x"] for b in batches(draw, 3, 7, 4, 6)]
    assert len(whole) == 6
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], rest, strict=True))
    assert not torch.equal(whole[0], whole[1])


def test_photos_leave_out_small_ones_and_say_when_none_is_left(data: Path) -> None:
    Image.new("RGB", (100, 400)).save(data / "clean" / "small.png")
    (data / "clean" / ".hidden.png").write_bytes(b"no image")
    assert len(Photos(data / "clean").pixels) == 3
    assert len(image_files(data / "clean")) == 4
    with pytest.raises(NoInputError, match="at least 512"):
        Photos(data / "clean", least=512)
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
    clean = [(photo(i, 96) * 255).astype(np.uint8) for i in range(3)]

    def pairs_of(operation: degrade.Operation) -> list[Pair]:
        return list(pairs(clean, None, 5, operation))

    noisy, soft = tuned(pairs_of(degrade.gaussian_noise)), tuned(pairs_of(degrade.gaussian_blur))
    assert noisy.strength > soft.strength
    assert soft.sharpening != "none"
    mask = np.zeros((96, 96), np.bool_)
    mask[30:34] = True
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
    mapping = MappingConfig(
        latent_channels=4, channels=(6,), blocks=1, context="non_local", context_blocks=1, norm="none", combine="add"
    )
    small = {
        "old_vae": old,
        "clean_vae": replace(old, mask_input=False, refine=4),
        "mapping": mapping,
        "scratch_unet": ScratchUnetConfig(width=2),
        "face_finder": FaceFinderConfig((2, 3, 4), depth=1),
    }
    for name, config in small.items():
        monkeypatch.setitem(stages.COMPACT, name, config)


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
def test_all_stages_train_in_order_and_their_weights_load(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rows: list[dict[str, float | int | str]] = []
    for stage in ("old-vae", "clean-vae", "mapping", "finetune", "scratch-unet"):
        files = train(stage, data, out, steps=2, batch=2, size=64, report=rows.append)
        assert all(next(load_compact(f).parameters()).isfinite().all() for f in files)
    assert [r["step"] for r in rows] == [2] * 5
    assert {"psnr", "psnr_input", "psnr_undamaged"} <= set(rows[3])
    logged = [json.loads(line) for line in (out / "finetune.jsonl").read_text().splitlines()]
    assert logged == [rows[3]]
    # TensorBoard's own format: records of length, CRC, protobuf.
    (events,) = (out / "finetune.tensorboard").iterdir()
    assert events.name.startswith("events.out.tfevents")
    assert b"psnr_undamaged" in events.read_bytes()


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
            original = stages.VaeStage.loss
            count = 0

            def failing(self: stages.VaeStage, batch: dict[str, torch.Tensor]):  # type: ignore[no-untyped-def]  # as the original
                nonlocal count
                count += 1
                if count > stop_at:
                    raise KeyboardInterrupt
                return original(self, batch)

            stages.VaeStage.loss = failing  # type: ignore[method-assign]  # the power cut
            try:
                with pytest.raises(KeyboardInterrupt):
                    train("old-vae", data, out, steps=4, batch=2, size=64, checkpoint_seconds=0.0)
            finally:
                stages.VaeStage.loss = original  # type: ignore[method-assign]  # and its end
        (file,) = train("old-vae", data, out, steps=4, batch=2, size=64, report=interrupt)
        assert seen
        return load_compact(file).state_dict()

    whole, resumed = run(tmp_path / "a", stop_at=None), run(tmp_path / "b", stop_at=2)
    assert all(torch.equal(whole[k], resumed[k]) for k in whole if not k.endswith("num_batches_tracked"))


@pytest.mark.usefixtures("tiny")
def test_a_checkpoint_of_another_width_is_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train("scratch-unet", data, tmp_path / "out", steps=1, batch=2, size=64)
    monkeypatch.setitem(stages.COMPACT, "scratch_unet", ScratchUnetConfig(width=3))
    with pytest.raises(WeightsCorruptError, match="checkpoint"):
        train("scratch-unet", data, tmp_path / "out", steps=2, batch=2, size=64)


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
        "scratch-unet",
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
    assert result.stdout.strip().endswith("scratch_unet.safetensors")
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
