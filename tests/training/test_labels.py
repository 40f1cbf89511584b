"""Labels of real damage: read, and scored as the labellers' own script scores."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from oldphoto.errors import BadImageError, NoInputError
from oldphoto.training.labels import LabelScore, read_labels

SOME = ("bopbl_003_d", "bopbl_004_b", "bopbl_011_f", "deoldify_114_GreatGrandparentsIrelandEarly1900s")


def labelled(folder: Path) -> None:
    """A dark photo with a bright line and a bright square, both labelled, and a region that is not judged."""
    photo, mask, unsure = np.full((64, 80, 3), 40, np.uint8), np.zeros((64, 80), np.uint8), np.zeros((64, 80), np.uint8)
    pieces = np.zeros((64, 80), np.uint16)
    photo[10:12, 5:60], mask[10:12, 5:60], pieces[10:12, 5:60] = 220, 255, 1
    photo[30:40, 30:40], mask[30:40, 30:40], pieces[30:40, 30:40] = 200, 255, 2
    unsure[50:60] = 255
    (folder / "photos").mkdir()
    Image.fromarray(photo).save(folder / "photos" / "a.png")
    for sort, picture in (("mask", mask), ("unsure", unsure), ("pieces", pieces)):
        Image.fromarray(picture).save(folder / f"a.{sort}.png")
    kinds = [{"id": 1, "kind": "crack"}, {"id": 2, "kind": "spot"}, {"id": 3, "kind": "dust", "unsure": True}]
    (folder / "a.json").write_text(json.dumps({"pieces": kinds}))
    (folder / "index.csv").write_text("photo\nphotos/a.png\n")


def test_what_is_found_what_is_not_and_what_is_false(tmp_path: Path) -> None:
    labelled(tmp_path)
    (one,) = read_labels(tmp_path, tmp_path)
    assert one.name == "a"
    assert [kind for kind, _ in one.pieces] == ["crack", "spot"]
    predicted = np.zeros((64, 80), np.bool_)
    predicted[10:12, 5:60] = True  # 110 pixels of the crack
    predicted[20:22, 70:75] = True  # 10 false ones
    predicted[52:56] = True  # not judged
    score = LabelScore()
    score.add(one, predicted)
    figures = score.figures()
    assert score.kinds["crack"].found == [True]
    assert score.kinds["spot"].found == [False]
    assert figures["recall"] == pytest.approx(110 / 210)
    assert figures["precision"] == pytest.approx(110 / 120)
    assert np.isnan(figures["left"])


def test_left_is_1_untouched_and_0_where_damage_has_gone(tmp_path: Path) -> None:
    labelled(tmp_path)
    (one,) = read_labels(tmp_path, tmp_path)
    half = np.where(one.pieces[0][1][..., None], np.uint8(130), one.pixels)
    for restored, crack, spot in ((one.pixels, 1.0, 1.0), (np.full_like(one.pixels, 40), 0.0, 0.0), (half, 0.5, 1.0)):
        score = LabelScore()
        score.add(one, one.mask, restored)
        assert score.kinds["crack"].left == [pytest.approx(crack, abs=0.01)]
        assert score.kinds["spot"].left == [pytest.approx(spot, abs=0.01)]


def test_labels_that_are_missing_or_of_another_size(tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match=r"index\.csv"):
        read_labels(tmp_path, tmp_path)
    labelled(tmp_path)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.mask.png")
    with pytest.raises(BadImageError, match="8 x 8"):
        read_labels(tmp_path, tmp_path)


def test_figures_are_those_of_the_labellers_script(tmp_path: Path, shared: Path) -> None:
    labels, masks = tmp_path / "labels", tmp_path / "masks"
    labels.mkdir()
    masks.mkdir()
    with (shared / "labels/index.csv").open(newline="") as table:
        rows = [row for row in csv.DictReader(table) if row["name"] in SOME]
    with (labels / "index.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for file in (shared / "labels").iterdir():
        if file.name.split(".")[0] in SOME:
            (labels / file.name).symlink_to(file)
    score, restored = LabelScore(), tmp_path / "restored"
    restored.mkdir()
    for one in read_labels(labels, shared / "data"):
        grey = cv2.cvtColor(one.pixels, cv2.COLOR_RGB2GRAY)
        predicted = cv2.morphologyEx(grey, cv2.MORPH_TOPHAT, np.ones((7, 7), np.uint8)) > 40
        cv2.imwrite(str(masks / f"{one.name}.png"), predicted.astype(np.uint8) * 255)
        mended = np.asarray(cv2.inpaint(one.pixels, predicted.astype(np.uint8), 3, cv2.INPAINT_NS), np.uint8)
        Image.fromarray(mended).save(restored / f"{one.name}.png")
        score.add(one, predicted, mended)
    command = [sys.executable, str(shared / "labels/score.py"), str(labels), "--masks", str(masks), "--json"]
    command += ["--photos", str(shared / "data"), "--restored", str(restored)]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["total"]
    ours = score.figures()
    names = {"recall": "recall", "precision": "precision", "pieces": "pieces", "mean_of_kinds": "kinds"}
    for theirs, name in ({"controls": "false"} | names | {"left": "left"}).items():
        assert ours[name] == pytest.approx(told[theirs], abs=2e-3), name
