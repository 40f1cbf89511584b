"""Pictures made larger or smaller by any factor, any part of the result by itself and the same as in the whole."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, floor
from typing import NamedTuple

import torch
from torch import Tensor

LOBES = 3  # of the Lanczos window, in pixels of the coarser grid
AT_ONCE = 64  # values made by one matrix: larger ones are mostly zeros


class Axis(NamedTuple):
    """A line of `length` values, at least 1, resampled to `made` values about the same middle.

    By Lanczos' window, which is stretched where the line gets shorter, so that nothing is left over that the coarser
    grid cannot hold. Beyond the line's ends there is nothing: the weights of what is there sum to 1.
    """

    length: int
    made: int

    @property
    def step(self) -> float:
        """Values of the line for each value made."""
        return self.length / self.made

    def seen(self, part: slice) -> slice:
        """Return the part of the input that a part of the made values depends on."""
        reach = LOBES * max(1.0, self.step)
        first, last = ((at + 0.5) * self.step for at in (part.start, part.stop - 1))
        return slice(max(0, floor(first - reach)), min(self.length, ceil(last + reach)))

    def matrix(self, part: slice) -> Tensor:
        """(made, seen) weights of a part of the made values."""
        seen = self.seen(part)
        middles = (torch.arange(part.start, part.stop, dtype=torch.double) + 0.5) * self.step
        places = torch.arange(seen.start, seen.stop, dtype=torch.double) + 0.5
        away = (places - middles[:, None]) / max(1.0, self.step)
        weights = torch.where(away.abs() < LOBES, torch.sinc(away) * torch.sinc(away / LOBES), 0.0)
        return (weights / weights.sum(dim=1, keepdim=True)).float()


def resampled(x: Tensor, axes: tuple[Axis, Axis], part: tuple[slice, slice]) -> Tensor:
    """A part, rows and columns, of the resampled picture: (N, C, h, w) -> (N, C, rows, columns).

    x: what that part depends on, `seen` by each axis; axes: of a column and of a row.
    """
    (down, across), (rows, columns) = axes, part
    narrow = torch.cat([x[..., seen] @ matrix.to(x.device).T for seen, matrix in _matrices(across, columns)], dim=3)
    return torch.cat([matrix.to(x.device) @ narrow[..., seen, :] for seen, matrix in _matrices(down, rows)], dim=2)


def _matrices(axis: Axis, part: slice) -> Iterator[tuple[slice, Tensor]]:
    """Which of the values that a part depends on make the next AT_ONCE of it, and their weights."""
    before = axis.seen(part).start
    for first in range(part.start, part.stop, AT_ONCE):
        some = slice(first, min(first + AT_ONCE, part.stop))
        seen = axis.seen(some)
        yield slice(seen.start - before, seen.stop - before), axis.matrix(some)
