"""3 x 3 convolutions with a quarter of the multiplications: Winograd's minimal filtering, F(4 x 4, 3 x 3).

Tiles of 6 x 6 values, 4 apart, are transformed, so that the convolution becomes 36 matrix products over the channels;
each gives 4 x 4 values. Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.polynomial import polynomial
from torch import Tensor, nn
from torch.overrides import has_torch_function_unary

from oldphoto.machine import threads

TILE, STEP = 6, 4
# The polynomials are evaluated here and at infinity. The usual 0, 1, -1, 2, -2 double the error, which is about
# a millionth of the values with these.
POINTS = (0.0, 0.5**0.5, -(0.5**0.5), 2.0**0.5, -(2.0**0.5))
# Tiles worked on at once by a thread, and by all: what is worked on should stay in the caches, and memory bounded.
TILES, ALL_TILES = 128, 1024
# Below these, transforms cost more than the products save: measured on AMD Zen 4, 1 and 2 threads.
LEAST_CHANNELS, LEAST_TILES = 64, 128
# Of a kernel's inputs times outputs, how many are transformed at once.
KERNEL_PART = 16_384


def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Return the transforms of the kernel (6, 3), of a tile (6, 6), and back (4, 6), after Toom and Cook; each is
    applied on both sides."""
    kernel, tile, back = np.zeros((TILE, 3)), np.zeros((TILE, TILE)), np.zeros((STEP, TILE))
    for i, point in enumerate(POINTS):
        others = [other for other in POINTS if other != point]
        kernel[i] = point ** np.arange(3) / np.prod(point - np.array(others))
        tile[i, : TILE - 1] = polynomial.polyfromroots(others)
        back[:, i] = point ** np.arange(STEP)
    kernel[-1, -1] = back[-1, -1] = 1.0
    tile[-1] = polynomial.polyfromroots(POINTS)
    k, t, b = (torch.from_numpy(each) for each in (kernel, tile, back))
    return k, t, b


_KERNEL, _TILE, _BACK = _transforms()


class Conv3x3(nn.Conv2d):
    """nn.Conv2d of 3 x 3 and stride 1, which without gradients takes the quicker way."""

    bias: nn.Parameter  # always there

    def __init__(self, channels_in: int, channels_out: int, padding: int = 0) -> None:
        super().__init__(channels_in, channels_out, 3, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, H, W) -> (N, channels_out, H - 2 + 2 padding, W - 2 + 2 padding)."""
        return conv3x3(x, self.weight, self.bias, cast("tuple[int, int]", self.padding))


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """F.conv2d of stride 1, by the quicker way. x: (N, I, H, W); weight: (O, I, 3, 3); padding: as of convolved()."""
    if has_torch_function_unary(x) or not wins(x, weight, padding):
        return F.conv2d(x, weight, bias, 1, padding)
    return convolved(x, transformed(weight), bias, padding)


def wins(x: Tensor, weight: Tensor, padding: tuple[int, int]) -> bool:
    """Whether a convolution of stride 1 is done here more quickly than by F.conv2d, and can be: float32 on the CPU."""
    if not wide(weight):
        return False
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    height, width = (side + 2 * more - 2 for side, more in zip(x.shape[2:], padding, strict=True))
    tiles = len(x) * -(-height // STEP) * -(-width // STEP)
    return tiles >= LEAST_TILES and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))


def wide(weight: Tensor) -> bool:
    """Whether a kernel is one that is done here on the CPU, where the map is large enough."""
    return weight.shape[2:] == (3, 3) and min(weight.shape[:2]) >= LEAST_CHANNELS


class Kernel(NamedTuple):
    """A kernel (O, I, 3, 3) as convolved() takes it.

    products: (TILE * TILE, O, I), what multiplies the channels of each of a tile's values, column by column. sums:
    (O, I), over the 3 x 3.
    """

    products: Tensor
    sums: Tensor


def transformed(weight: Tensor) -> Kernel:
    """(O, I, 3, 3) -> Kernel."""
    o, i = weight.shape[:2]
    g = _KERNEL.to(weight.dtype)
    both = torch.kron(g, g).view(-1, 3, 3).transpose(1, 2).reshape(-1, 9)
    products, flat = weight.new_empty(len(both), o, i), weight.reshape(-1, 9)
    # A part at a time: the whole would leave the caches.
    parts = torch.split(flat, KERNEL_PART), torch.split(products.flatten(1), KERNEL_PART, dim=1)
    for part, made in zip(*parts, strict=True):
        torch.mm(both, part.T, out=made)
    return Kernel(products, torch.mv(flat, flat.new_ones(9)).view(o, i))


def convolved(x: Tensor, kernel: Kernel, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """x: (N, I, H, W); kernel: from transformed(); padding: zeros above and below, left and right -> (N, O, H', W').

    One cell's values are taken from all cells first, and what that takes from the result is added to it. So a map that
    is the same everywhere stays exactly so, as with the direct sum: an instance norm would blow up any noise in it.
    """
    n, _, height, width = x.shape
    above, left = padding
    cells = x.permute(0, 2, 3, 1)  # (N, H, W, I)
    level = cells[0, height // 2, width // 2].clone()
    offset = torch.mv(kernel.sums, level)
    if bias is not None:
        offset = offset + bias
    out = x.new_empty(n, height + 2 * above - 2, width + 2 * left - 2, len(offset))
    blocks = list(_blocks(n, out.shape[1], out.shape[2]))
    at_once = min(torch.get_num_threads(), len(blocks))
    tiles = max(block.tiles for block in blocks)
    scratch = list(x.new_empty(at_once, 2, TILE**2 * tiles * max(kernel.sums.shape)))

    def fill(block: _Block) -> None:
        with torch.inference_mode():
            target = out[block.images, block.rows, block.columns]
            space = scratch.pop()
            strip = _around(cells, block, above, left, level)
            whole = _products(strip, kernel.products, space)  # (images, rows, STEP, columns, STEP, O)
            if target.shape[1] % STEP or target.shape[2] % STEP:
                whole = whole.flatten(3, 4).flatten(1, 2)[:, : target.shape[1], : target.shape[2]]
            torch.add(whole, offset, out=target.view(whole.shape))
            scratch.append(space)

    each_alone(fill, blocks)
    return out.permute(0, 3, 1, 2)


def memory(channels: int) -> int:
    """Bytes that a convolution from and to so many channels takes to work in."""
    scratch = torch.get_num_threads() * 2 * TILE**2 * _at_once() * channels
    return 4 * (scratch + TILE**2 * channels**2)


def _at_once() -> int:
    return max(16, min(TILES, ALL_TILES // torch.get_num_threads()))


class _Block(NamedTuple):
    """A part of the output: of its images, rows and columns; all but the last begin and end at whole tiles."""

    images: slice
    rows: slice
    columns: slice

    @property
    def tiles(self) -> int:
        """The number of tiles that cover it."""
        down, across = (-(-(part.stop - part.start) // STEP) for part in (self.rows, self.columns))
        tiles: int = (self.images.stop - self.images.start) * down * across
        return tiles


def _blocks(images: int, height: int, width: int) -> Iterator[_Block]:
    """The output in blocks."""
    most = _at_once()
    down, across = -(-height // STEP), -(-width // STEP)
    columns = -(-across // -(-across // most))
    rows = min(down, max(1, most // columns))
    some = max(1, most // (rows * columns)) if rows == down else 1
    for image in range(0, images, some):
        for top in range(0, down, rows):
            for left in range(0, across, columns):
                yield _Block(
                    slice(image, min(image + some, images)),
                    slice(top * STEP, min((top + rows) * STEP, height)),
                    slice(left * STEP, min((left + columns) * STEP, width)),
                )


def _around(cells: Tensor, block: _Block, above: int, left: int, level: Tensor) -> Tensor:
    """Return what the tiles of a block are cut from, zeros around the map, less the level: (images, rows, columns,
    I)."""
    spans = []
    for part, padding, length in zip(block[1:], (above, left), cells.shape[1:3], strict=True):
        first, last = part.start - padding, part.start - padding - (part.start - part.stop) // STEP * STEP + 2
        spans.append((max(first, 0), min(last, length), max(-first, 0), max(last - length, 0)))
    (top, bottom, over, under), (west, east, before, after) = spans
    inner = cells[block.images, top:bottom, west:east]
    images, height, width, channels = inner.shape
    strip = cells.new_empty(images, over + height + under, before + width + after, channels)
    torch.sub(inner, level, out=strip[:, over : over + height, before : before + width])
    for outside in (strip[:, :over], strip[:, over + height :], strip[:, :, :before], strip[:, :, before + width :]):
        torch.neg(level.expand_as(outside), out=outside)
    return strip


def _products(strip: Tensor, kernel: Tensor, scratch: Tensor) -> Tensor:
    """(images, 4 r + 2, 4 c + 2, I) -> (images, r, 4, c, 4, O), a view of `scratch`.

    scratch: (2, any) to work in, from one to the other and back.
    """
    n, height, width, channels = strip.shape
    line, down, across = width * channels, height // STEP, width // STEP
    tile, back = _TILE.to(strip.dtype), _BACK.to(strip.dtype)

    def part(which: int, *shape: int) -> Tensor:
        return scratch[which, : math.prod(shape)].view(shape)

    lines = strip.as_strided((n, down, TILE, line), (height * line, STEP * line, line, 1)).flatten(0, 1)
    half = torch.bmm(tile.expand(n * down, TILE, TILE), lines, out=part(0, n * down, TILE, line))
    tiles = part(1, TILE, TILE, n * down, across, channels)
    tiles[:] = half.as_strided(tiles.shape, (channels, line, TILE * line, STEP * channels, 1), half.storage_offset())
    full = torch.mm(tile, tiles.view(TILE, -1), out=part(0, TILE, tiles[0].numel()))
    product = torch.bmm(
        full.view(TILE**2, -1, channels), kernel.mT, out=part(1, TILE**2, n * down * across, kernel.shape[1])
    )
    half = torch.mm(back, product.view(TILE, -1), out=part(0, STEP, product.numel() // TILE)).view(STEP, TILE, -1)
    square = torch.bmm(back.expand(STEP, STEP, TILE), half, out=part(1, STEP, STEP, half.shape[2]))
    return square.view(STEP, STEP, n, down, across, -1).permute(2, 3, 1, 4, 0, 5)


Item = TypeVar("Item")


def each_alone(work: Callable[[Item], None], items: Iterable[Item]) -> None:
    """Do the work for each item in a thread in which torch has one thread, so that sums are the same whatever the
    number of threads here. For a single item, too: shared out, it would be rounded otherwise."""
    if torch.get_num_threads() == 1:
        for item in items:
            work(item)
    else:
        for _ in _workers(torch.get_num_threads()).map(work, items):
            pass


_own = threading.local()


def _workers(count: int) -> ThreadPoolExecutor:
    """Threads in which torch works alone: sharing each small product out would be more waiting than work.

    Each caller has its own, which end with it: callers that work at once would wait for each other.
    """
    pools: dict[int, ThreadPoolExecutor] = _own.__dict__.setdefault("pools", {})
    if count not in pools:
        pools[count] = pool = ThreadPoolExecutor(count, "winograd")
        ready = threading.Barrier(count)

        def alone(_: int) -> None:
            threads.use(1)
            ready.wait()

        list(pool.map(alone, range(count)))
        torch.set_num_threads(torch.get_num_threads())  # of this thread, and of new ones
    return pools[count]
