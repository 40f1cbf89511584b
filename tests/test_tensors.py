"""Ranges and padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from oldphoto.tensors import Pixels, mask_to_tensor, pad_to_multiple, to_pixels, to_tensor


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


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (5, 7), (16, 16), (33, 17)])
@pytest.mark.parametrize("multiple", [4, 32])
def test_padding_is_a_multiple_and_comes_off_again(size: tuple[int, int], multiple: int) -> None:
    x = torch.rand(1, 3, *size)
    padded, padding = pad_to_multiple(x, multiple, 16)
    assert padded.shape[2] % multiple == padded.shape[3] % multiple == 0
    assert min(padded.shape[2:]) >= 16
    assert torch.equal(padding.crop(padded), x)


def test_padding_mirrors_as_numpy_does() -> None:
    x = torch.arange(35.0).reshape(1, 1, 5, 7)
    padded, _ = pad_to_multiple(x, 4)
    assert np.array_equal(padded[0, 0].numpy(), np.pad(x[0, 0].numpy(), ((0, 3), (0, 1)), mode="reflect"))
