"""The model of fading: colour differences by another implementation, and what each ageing does to a print."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import skimage.color
import skimage.data
import torch
from torch import Tensor

from oldphoto.models.tone_net import encoded, lab, light
from oldphoto.training import dyes
from oldphoto.training.ageing import Dice
from oldphoto.training.losses import difference_of_colour

color: Any = skimage.color  # untyped
data: Any = skimage.data
PHOTO = torch.from_numpy(data.astronaut()[::4, ::4].copy()).permute(2, 0, 1)[None].float() / 255.0


def dice(seed: int) -> Dice:
    return Dice.seeded(torch.device("cpu"), seed)


def colours(x: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """(N, 3, H, W) -> Lab (N, H, W, 3), by scikit-image."""
    return np.asarray(color.rgb2lab(x.permute(0, 2, 3, 1).numpy()))


def test_lab_and_colour_differences_are_those_of_another_implementation() -> None:
    rng = np.random.default_rng(2)
    one, other = (torch.from_numpy(rng.random((1, 3, 40, 50)).astype(np.float32)) for _ in range(2))
    other[..., :20, :] = (one[..., :20, :] + 0.02).clamp(0.0, 1.0)  # alike, and not
    ours = [lab(light(x.flatten(2))) for x in (one, other)]
    for mine, x in zip(ours, (one, other), strict=True):
        assert np.abs(mine[0].T.numpy() - colours(x).reshape(-1, 3)).max() < 0.05
    theirs = color.deltaE_ciede2000(colours(one), colours(other)).ravel()
    assert np.abs(difference_of_colour(*ours)[0].numpy() - theirs).max() < 0.1
    torch.testing.assert_close(encoded(light(one)), one, atol=1e-5, rtol=0.0)


def test_prints_fade_by_more_or_less_and_never_out_of_range() -> None:
    old = dyes.faded(PHOTO.expand(48, -1, -1, -1), dice(1))
    assert 0.0 <= float(old.min()) <= float(old.max()) <= 1.0
    far = color.deltaE_ciede2000(colours(old), colours(PHOTO)).mean(axis=(1, 2))
    assert far.min() < 7.0
    assert 9.0 < far.mean() < 18.0
    torch.testing.assert_close(old, dyes.faded(PHOTO.expand(48, -1, -1, -1), dice(1)))


@pytest.mark.parametrize(("kind", "axis", "sign"), [("dark", 1, 1.0), ("light", 1, -1.0), ("plate", 2, 1.0)])
def test_each_ageing_has_its_hue(kind: str, axis: int, sign: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the dark a print turns red, in light green, under varnish yellow: on average of many."""
    monkeypatch.setattr(dyes, "CHANCES", tuple(float(name == kind) for name in dyes.KINDS))
    old = dyes.faded(PHOTO.expand(32, -1, -1, -1), dice(3))
    assert sign * (colours(old) - colours(PHOTO)).mean(axis=(0, 1, 2))[axis] > 2.0


def test_paled_prints_lose_range_and_keep_their_tone() -> None:
    print_ = dyes.toned(PHOTO.expand(24, -1, -1, -1), dice(5))
    old = dyes.paled(print_, dice(6))
    sound, pale = (np.percentile(colours(x)[..., 0], [5, 95], axis=(1, 2)) for x in (print_, old))
    assert ((pale[1] - pale[0]) < (sound[1] - sound[0])).all()
    a, b = (colours(x)[..., 1:].mean(axis=(1, 2)) for x in (print_, old))
    assert np.hypot(*(a - b).T).max() < 8.0


def test_hand_coloured_prints_are_paler_than_photos_and_have_some_colour() -> None:
    photos = PHOTO.expand(24, -1, -1, -1)
    tinted = dyes.tinted(photos, dice(8))
    spread = [colours(x)[..., 1:].std(axis=(1, 2)).mean() for x in (dyes.toned(photos, dice(8)), tinted, photos)]
    assert spread[0] < spread[1] < spread[2]
