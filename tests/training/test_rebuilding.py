"""The stages that learn to rebuild a photo: their samples, and that a student comes nearer to its teacher."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from oldphoto.errors import NoInputError
from oldphoto.models.loading import load_compact
from oldphoto.models.srvgg import SRVGGConfig, SRVGGNetCompact
from oldphoto.training import base, rebuilding
from oldphoto.training.ageing import Dice
from oldphoto.training.base import Folders, Recipe
from oldphoto.training.train import train

CPU = torch.device("cpu")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Some photos, and a teacher that enlarges bilinearly: its weights are all nothing."""
    monkeypatch.setitem(base.COMPACT, "rebuilder", SRVGGConfig(4, 1, "bilinear"))
    monkeypatch.setattr(rebuilding, "JUDGED", (4, 32))
    monkeypatch.setattr(rebuilding, "TEACHER", SRVGGConfig(4, 1, "bilinear"))
    folder = tmp_path / "data"
    for part in ("clean", "faces", "old"):
        (folder / part).mkdir(parents=True)
        for k in range(2):
            small = np.random.default_rng(k).integers(0, 256, (9, 9, 3), np.uint8)
            photo = cv2.resize(small, (320, 300), interpolation=cv2.INTER_CUBIC)
            Image.fromarray(photo).save(folder / part / f"{k}.png")
    (folder / "teachers").mkdir()
    blank = {k: torch.zeros_like(v) for k, v in SRVGGNetCompact(SRVGGConfig(4, 1, "bilinear")).state_dict().items()}
    save_file(blank, folder / "teachers" / "realesr-general-x4v3.safetensors")
    return folder


def test_a_photo_that_lost_detail_has_less_of_it_and_its_own_size() -> None:
    rng = np.random.default_rng(0)
    sharp = np.repeat(rng.integers(0, 256, (96, 96, 1)).astype(np.float32), 3, axis=2)
    fine = [np.abs(np.diff(rebuilding.aged(sharp, s, np.random.default_rng(5)), axis=0)).mean() for s in (1.5, 3.0)]
    assert fine[1] < fine[0] < np.abs(np.diff(sharp, axis=0)).mean()
    made = rebuilding.aged(sharp, 2.0, np.random.default_rng(1))
    assert made.shape == sharp.shape
    assert np.array_equal(made, rebuilding.aged(sharp, 2.0, np.random.default_rng(1)))


def test_truths_are_as_many_times_larger_as_their_scale_says(data: Path) -> None:
    recipe = Recipe(steps=1, batch=4, size=64)
    stage = rebuilding.RebuildStage(Folders.below(data), recipe, CPU, SRVGGConfig(4, 1, "bilinear"), adversarial=True)
    sizes = set()
    for seed in range(8):
        batch = stage.sample(8, 64, Dice.seeded(CPU, seed))
        assert batch["small"].shape == (8, 3, 64, 64)
        assert batch["truth"].shape[0] == 6  # a quarter are old photos, of which nobody knows the truth
        sizes.add(batch["truth"].shape[-1] / 64)
    assert sizes <= set(rebuilding.SCALES)
    assert len(sizes) > 2


def test_a_student_comes_nearer_to_its_teacher(data: Path) -> None:
    recipe, config = Recipe(steps=1, batch=4, size=64), SRVGGConfig(4, 1, "bilinear")
    stage = rebuilding.RebuildStage(Folders.below(data), recipe, CPU, config, adversarial=False)
    optimiser = torch.optim.Adam(stage.nets["rebuilder"].parameters(), 3e-2)
    batch, away = stage.sample(4, 64, Dice.seeded(CPU, 1)), []
    for _ in range(40):
        terms, judged = stage.loss(batch)
        assert not judged
        away.append(float(terms["teacher"].detach()))
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]  # untyped in torch
        optimiser.step()
    assert away[-1] < 0.5 * away[0]


def test_the_second_stage_goes_on_from_the_first(data: Path, tmp_path: Path) -> None:
    rows: list[dict[str, float | int | str]] = []
    train("rebuild-distil", data, tmp_path / "one", steps=1, batch=4, size=64)
    earlier, later = tmp_path / "one", tmp_path / "two"
    (path,) = train("rebuild", data, later, start=earlier, steps=1, batch=4, size=64, report=rows.append)
    assert isinstance(load_compact(path), SRVGGNetCompact)
    assert {"ours", "teachers"} <= set(rows[-1])


def test_no_teacher_is_said(data: Path, tmp_path: Path) -> None:
    (data / "teachers" / "realesr-general-x4v3.safetensors").unlink()
    with pytest.raises(NoInputError, match="teacher"):
        train("rebuild-distil", data, tmp_path / "out", steps=1)
