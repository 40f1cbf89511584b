"""The published colouriser against its goldens: stand-in weights in the published file's layout, read by our loader."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from oldphoto.errors import WeightsCorruptError
from oldphoto.models.deoldify import MEAN, SPREAD, DeOldify, painted
from oldphoto.models.loading import fold_weight_norm, load_published


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    found = shared / "reference" / "colour"
    if not found.is_dir():
        pytest.skip("no goldens of the colouriser")
    return found


@pytest.fixture(scope="module")
def state(folder: Path) -> dict[str, torch.Tensor]:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    maker: Any = importlib.import_module("make_colour_checkpoints")
    return dict(maker.artistic())


@pytest.fixture(scope="module")
def net(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> DeOldify:
    path = tmp_path_factory.mktemp("deoldify") / "ColorizeArtistic_gen.pth"
    beside = {"state": {}, "param_groups": [{"lr": slice(None, 0.003, None), "params": [1, 2]}]}
    torch.save({"model": state, "opt": beside}, path, _use_new_zipfile_serialization=False)
    loaded = load_published("deoldify_artistic", path)
    path.unlink()
    assert isinstance(loaded, DeOldify)
    return loaded


@pytest.mark.parametrize("name", ["64x64", "80x80", "112x70"])
def test_its_answers_are_the_published_ones(net: DeOldify, folder: Path, name: str) -> None:
    golden = np.load(folder / "open" / f"grey_{name}.npz")
    grey = torch.from_numpy(golden["grey"]).float()[None, None] / 255
    mean, spread = (torch.tensor(three).view(1, 3, 1, 1) for three in (MEAN, SPREAD))
    with torch.inference_mode():
        made = net((grey - mean) / spread)[0].numpy()
    assert np.abs(made - golden["y"]).max() < 1e-4


@pytest.mark.parametrize("name", ["photo_rf6", "portrait_rf5", "grey_rf7"])
def test_its_pictures_are_the_published_ones(net: DeOldify, folder: Path, name: str) -> None:
    def picture(part: str) -> Any:
        return np.asarray(Image.open(folder / "open" / f"{name}.{part}.png").convert("RGB"))

    grey = torch.tensor(picture("net_input_grey")[..., 0]).float()[None, None] / 255
    with torch.inference_mode():
        made = (painted(net, grey)[0].permute(1, 2, 0) * 255).to(torch.uint8).numpy()
    away = np.abs(made.astype(int) - picture("square"))
    assert away.max() <= 1
    assert (away > 0).mean() < 0.002
    # The published way to the photo's own size, which is not ours: its colours bleed, in 8 bits of YUV.
    original = picture("input")
    raw = np.asarray(Image.fromarray(made).resize(original.shape[1::-1], Image.Resampling.BILINEAR))
    yuv = cv2.cvtColor(raw, cv2.COLOR_RGB2YUV)
    yuv[..., 0] = cv2.cvtColor(original, cv2.COLOR_RGB2YUV)[..., 0]
    result = cv2.cvtColor(yuv, cv2.COLOR_YUV2RGB)
    # One level of the small picture, which Pillow's own resizing makes of the stored square of `grey_rf7`, is up to
    # three of the result: its colours are of 8 bits.
    assert np.abs(raw.astype(int) - picture("raw")).max() <= 1
    assert np.abs(result.astype(int) - picture("result")).max() <= (3 if name == "grey_rf7" else 2)


def test_a_weight_norm_is_the_length_of_each_row() -> None:
    direction = torch.tensor([[3.0, 4.0], [0.0, 2.0]])[:, :, None, None]
    folded = fold_weight_norm({"a.weight_g": torch.tensor([10.0, 1.0]).view(2, 1, 1, 1), "a.weight_v": direction})
    assert folded["a.weight"].flatten().tolist() == [6.0, 8.0, 0.0, 1.0]


def test_a_file_that_lacks_a_layer_is_refused(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "short.pth"
    torch.save({"model": {k: v for k, v in state.items() if not k.startswith("layers.3")}, "opt": {}}, path)
    with pytest.raises(WeightsCorruptError, match=r"missing layers\.3\.0\.0\.weight"):
        load_published("deoldify_artistic", path)
