"""Drawn damage: every kind is where its mask says, of the measured widths, and of its seed alone."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from oldphoto.models.damage_net import DamageNet, DamageNetConfig
from oldphoto.models.loading import load_compact
from oldphoto.training import base, damage, wear
from oldphoto.training.ageing import Dice
from oldphoto.training.base import Folders, Recipe
from oldphoto.training.labels import read_labels
from oldphoto.training.train import train

CPU = torch.device("cpu")


def noise(seed: int, side: int = 300) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (8, 8, 3), np.uint8)
    return np.asarray(cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC), np.uint8)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three photos, two old ones, of which one has a white line that is labelled, and an overlay."""
    for name, count in (("LAYERS", 24), ("OVERLAYS", 4), ("LETTERINGS", 2)):
        monkeypatch.setattr(damage, name, count)
    monkeypatch.setitem(base.COMPACT, "damage_net", DamageNetConfig((2, 3, 4, 5, 6)))
    folder = tmp_path / "data"
    for part, count in (("clean", 3), ("faces", 1), ("old", 2)):
        (folder / part / "train").mkdir(parents=True)
        for k in range(count):
            Image.fromarray(noise(k)).save(folder / part / "train" / f"{k}.png")
    hurt, mask = noise(1), np.zeros((300, 300), np.uint8)
    hurt[100:103], mask[99:104] = 255, 255
    Image.fromarray(hurt).save(folder / "old" / "train" / "1.png")
    (folder / "damage" / "hair").mkdir(parents=True)
    Image.fromarray(cv2.line(np.zeros((120, 60), np.uint8), (5, 5), (50, 110), 255, 3)).save(
        folder / "damage" / "hair" / "0.png"
    )
    (folder / "labels").mkdir()
    Image.fromarray(mask).save(folder / "labels" / "1.mask.png")
    Image.fromarray((mask > 0).astype(np.uint16)).save(folder / "labels" / "1.pieces.png")
    (folder / "labels" / "1.json").write_text(json.dumps({"pieces": [{"id": 1, "kind": "scratch"}]}))
    (folder / "labels" / "index.csv").write_text("photo\nold/train/1.png\n")
    return folder


@pytest.mark.parametrize("kind", wear.KINDS, ids=lambda kind: kind.__name__)
def test_each_kind_covers_something_by_its_seed_alone(kind: wear.Kind) -> None:
    layers = [kind(128, np.random.default_rng([3, seed])) for seed in range(12)]
    again = kind(128, np.random.default_rng([3, 0]))
    assert np.array_equal(layers[0].cover, again.cover)
    assert np.array_equal(layers[0].inner, again.inner)
    shares = [float((layer.cover > 127).mean()) for layer in layers]
    assert sum(share > 0.0 for share in shares) >= 8
    assert np.median(shares) < 0.6
    assert {layer.cover.shape for layer in layers} == {(128, 128)}


def test_cracks_are_as_narrow_as_real_ones() -> None:
    """Of 148 real ones the width at half height was 1.2 to 3.3 pixels; area over length of the thinned line says it."""
    widths = []
    for seed in range(20):
        cover = wear.cracks(256, np.random.default_rng([9, seed])).cover > 127
        thick = ndimage.distance_transform_edt(np.pad(cover, 1))
        ridge = thick[1:-1, 1:-1][cover & (thick[1:-1, 1:-1] >= ndimage.maximum_filter(thick, 3)[1:-1, 1:-1])]
        widths += list(2.0 * ridge - 1.0)
    assert 1.0 <= np.median(widths) <= 3.3


def test_damage_changes_the_photo_where_it_covers_and_hardly_elsewhere() -> None:
    rng = np.random.default_rng(4)
    photo = np.full((96, 96, 3), 90.0, np.float32)
    for kind in (wear.cracks, wear.scratches, wear.specks, wear.edges, wear.spots, wear.loss):
        hurt, hidden = damage.lay(photo, kind(96, rng), rng)
        change = np.abs(hurt - photo).max(axis=2)
        far = ndimage.distance_transform_edt(hidden < 0.02) > 14
        assert change[hidden > 0.5].mean() > 8.0 if (hidden > 0.5).any() else True
        assert change[far].max(initial=0.0) < 4.0, kind.__name__
        assert hurt.min() >= 0.0
        assert hurt.max() <= 255.0


def test_samples_are_of_their_seed_and_sound_ones_ask_for_nothing(data: Path) -> None:
    stage = damage.DamageStage(Folders.below(data), Recipe(steps=1, batch=4, size=64), CPU, DamageNetConfig())
    one, other, again = (stage.sample(8, 64, Dice.seeded(CPU, seed)) for seed in (1, 2, 1))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["photo"], other["photo"])
    assert {name: tuple(value.shape) for name, value in one.items()} == {
        "photo": (8, 3, 64, 64),
        "mask": (8, 1, 64, 64),
        "weight": (8, 1, 64, 64),
    }
    assert one["photo"].abs().max() <= 1.0
    assert set(one["mask"].flatten().tolist()) == {0.0, 1.0}
    sound = [stage._drawn(64, np.random.default_rng(seed), damaged=False) for seed in range(6)]
    assert all(mask.sum() == 0.0 for _, mask, _ in sound)


def test_labels_are_trained_on_or_kept_out(data: Path) -> None:
    def stage(kept_out: tuple[str, ...]) -> damage.DamageStage:
        recipe = Recipe(steps=1, batch=4, size=64)
        return damage.DamageStage(Folders.below(data), recipe, CPU, DamageNetConfig((2, 3, 4, 5, 6)), kept_out)

    assert [one.path for one in stage(("old/test", "eval")).real] == ["old/train/1.png"]
    kept = stage(("old/train",))
    assert kept.real == []
    assert {"recall", "pieces"} <= set(kept.validate({"damage_net": kept.nets["damage_net"].eval()}))


def test_the_detector_trains_and_its_weights_load(data: Path, tmp_path: Path) -> None:
    (path,) = train("damage", data, tmp_path / "out", steps=2, batch=2, size=64)
    net = load_compact(path)
    assert isinstance(net, DamageNet)
    assert net(torch.zeros(1, 3, 64, 96)).shape == (1, 1, 64, 96)


def test_it_learns_to_find_a_white_line(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From labels alone, in seconds: the line of the one labelled photo, and not the rest of it."""
    monkeypatch.setattr(damage, "REAL", 1.0)
    monkeypatch.setitem(base.COMPACT, "damage_net", DamageNetConfig((8, 8, 8, 8, 8)))
    (path,) = train("damage", data, tmp_path / "out", steps=60, batch=4, size=64, rate=1e-2, smoothing=0.9)
    (one,) = read_labels(data / "labels", data)
    with torch.inference_mode():
        share = damage.probability(load_compact(path), one.pixels)
    assert share[one.mask].mean() > share[~one.mask].mean() + 0.2
