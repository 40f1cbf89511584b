"""Ranges and padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from oldphoto.models.tensors import Pixels, mask_to_tensor, mirrored, to_pixels, to_tensor


@pytest.mark.parametrize(
    "levels", [np.arange(1 << 8, dtype=np.uint8), np.arange(1 << 16, dtype=np.uint16)], ids=["8 bit", "16 bit"]
)
def test_every_level_survives_the_round_trip(levels: Pixels) -> None:
    levels = levels.reshape(16, -1, 1)
    x = to_tensor(levels)
    assert float(x.min()) == -1.0
    assert float(x.max()) == 1.0
    assert np.array_equal(to_pixels(x, levels.dtype), levels)


def test_values_outside_the_range_are_clipped() -> None:
    x = torch.tensor([-3.0, 3.0]).reshape(1, 1, 1, 2)
    assert to_pixels(x, np.uint8).tolist() == [[[0], [255]]]


def test_mask_becomes_ones_where_damaged() -> None:
    assert mask_to_tensor(np.array([[True, False]])).tolist() == [[[[1.0, 0.0]]]]


def test_padding_mirrors_as_numpy_does() -> None:
    photo = np.arange(35).reshape(5, 7)
    rows, columns = mirrored((5, 7), (8, 8))
    assert np.array_equal(photo[rows][:, columns], np.pad(photo, ((0, 3), (0, 1)), mode="reflect"))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (16, 5)])
def test_photos_narrower_than_their_padding_are_mirrored_again_and_again(size: tuple[int, int]) -> None:
    rows, columns = mirrored(size, (32, 48))
    assert (len(rows), len(columns)) == (32, 48)
    assert rows[: size[0]].tolist() == list(range(size[0]))
    assert set(columns.tolist()) == set(range(size[1]))
