"""Latent translation: old latents -> clean latents, with three ways of looking past the neighbourhood.

`MappingConfig.context` chooses: "none" (no further than convolutions see), "non_local" (the partial non-local block:
damaged cells are rebuilt from all sound cells of the photo) and "patches" (multi-scale patch attention for large
photos). Latents are (N, C, h, w); masks are (N, 1, H, W) at the photo's size, 1 = damaged. Source: Wan et al., CVPR
2020, TPAMI 2022. No matrix of all cells by all cells is ever stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from types import EllipsisType
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from oldphoto.models.blocks import Conv1x1, Norm, ResidualBlock, activate, blocks, normalise
from oldphoto.models.winograd import Conv3x3

# Likenesses of patches held at once: 2^24 floats are 64 MiB.
LIKENESSES_AT_ONCE = 1 << 24
# A patch counts as damaged when more than this share of its cells is.
DAMAGED_SHARE = 0.6
PATCH_SIZES = (8, 4, 2)
# Where attention is bounded, in latent cells (4 pixels). Its time grows with the square of a map; so a map larger than
# (block + 2 margin)^2 cells is cut into blocks, and each looks no further than its margin. The non-local block is whole
# up to 320 x 320 cells (1.6 megapixels), patch attention up to 1,024 x 1,024 (16.8 megapixels).
NON_LOCAL_BLOCK, NON_LOCAL_MARGIN = 256, 32
PATCH_BLOCK, PATCH_MARGIN = 768, 128
# Correlations closer than this are equal: the published choice is the argmax of a float32 softmax, where they tie.
TIE = 2.0**-23


@dataclass(frozen=True)
class MappingConfig:
    """Width and kind of a mapping.

    latent_channels: of the VAEs. channels: of the entering convolutions, the last being the working width.
    blocks: residual blocks after the context. context: see the module. context_blocks: residual blocks of the non-local
    block. norm: see blocks.Norm.
    """

    latent_channels: int = 64
    channels: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 6
    context: Literal["none", "non_local", "patches"] = "none"
    context_blocks: int = 3
    norm: Norm = "instance"

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 1 or self.blocks < 0 or self.latent_channels < 1:
            raise ValueError(f"mapping of channels {self.channels}, {self.blocks} blocks")
        if self.context not in ("none", "non_local", "patches"):
            raise ValueError(f"mapping context {self.context!r}")
        if self.context == "patches" and self.blocks < 2:
            raise ValueError(f"patch attention needs at least 2 blocks, not {self.blocks}")


class Mapping(nn.Module):
    """Old latents -> clean latents of the same shape."""

    def __init__(self, config: MappingConfig) -> None:
        super().__init__()
        self.config = config
        widths = (config.latent_channels, *config.channels)
        back = (*reversed(config.channels[:-1]), config.latent_channels)
        wide = config.channels[-1]
        self.enter = nn.ModuleList(Conv3x3(a, b, padding=1) for a, b in pairwise(widths))
        self.non_local = NonLocal(config) if config.context == "non_local" else None
        self.patches = PatchAttention(config) if config.context == "patches" else None
        self.blocks = blocks(config.blocks, wide, config.norm)
        self.leave = nn.ModuleList(Conv3x3(a, b, padding=1) for a, b in pairwise((wide, *back)))

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Tensor:
        """z: (N, C, h, w); mask: (N, 1, H, W), 1 = damaged, None = no damage -> (N, C, h, w)."""
        for conv in self.enter:
            z = activate(normalise(conv(z), self.config.norm))
        if self.non_local is not None and mask is not None:
            z = self.non_local(z, mask)
        if self.patches is not None:
            z = self.patches(z, mask)
        for block in self.blocks:
            z = block(z)
        for conv in self.leave[:-1]:
            z = activate(normalise(conv(z), self.config.norm))
        out: Tensor = self.leave[-1](z)
        return out


def damaged_cells(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask (N, 1, H, W) -> (N, 1, h, w), 1 where the latent cell counts as damaged.

    As published, a cell is sampled bilinearly: only the middle 2 x 2 of its 4 x 4 pixels are seen.
    """
    return (F.interpolate(mask, size=size, mode="bilinear", align_corners=False) > 0).to(mask.dtype)


class Region(NamedTuple):
    """A rectangle of cells, or of pixels."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def slices(self) -> tuple[EllipsisType, slice, slice]:
        """The two slices that pick it out of (..., h, w)."""
        return ..., slice(self.top, self.bottom), slice(self.left, self.right)

    def grown(self, cells: int, bounds: Region) -> Region:
        """With so many cells more on each side, as far as `bounds` go."""
        top, bottom = max(self.top - cells, bounds.top), min(self.bottom + cells, bounds.bottom)
        return Region(top, bottom, max(self.left - cells, bounds.left), min(self.right + cells, bounds.right))

    def within(self, other: Region) -> Region:
        """The same place, counted from the corner of another rectangle."""
        return Region(self.top - other.top, self.bottom - other.top, self.left - other.left, self.right - other.left)

    def scaled(self, times: float) -> Region:
        """The same place in a map so many times as large."""
        return Region(*(round(side * times) for side in self))

    def holds(self, cells: Tensor, width: int) -> Tensor:
        """Which of the cells, row-major numbers in a map of `width`, lie inside."""
        row, column = torch.div(cells, width, rounding_mode="floor"), cells % width
        return (row >= self.top) & (row < self.bottom) & (column >= self.left) & (column < self.right)


def attended(
    height: int, width: int, block: int = NON_LOCAL_BLOCK, margin: int = NON_LOCAL_MARGIN, unit: int = 1
) -> Iterator[tuple[Region, Region]]:
    """(block, region it looks at) in a map: the whole for both while it has at most (block + 2 margin)^2 cells.

    Blocks start at multiples of `unit` cells.
    """
    if height * width <= attended_side(block, margin) ** 2:
        whole = Region(0, height, 0, width)
        yield whole, whole
        return
    for top, bottom in spans(height, block, unit):
        for left, right in spans(width, block, unit):
            own = Region(top, bottom, left, right)
            y0, x0 = max(0, top - margin), max(0, left - margin)
            yield own, Region(y0, min(height, bottom + margin), x0, min(width, right + margin))


def attended_side(block: int = NON_LOCAL_BLOCK, margin: int = NON_LOCAL_MARGIN) -> int:
    """Side in cells of the largest square map whose attention is whole."""
    return block + 2 * margin


def spans(length: int, most: int, unit: int = 1) -> Iterator[tuple[int, int]]:
    """Cut a length into parts of at most `most`, even in size, at multiples of `unit`."""
    count = -(-length // most)
    step = -(-length // (count * unit)) * unit
    for start in range(0, length, step):
        yield start, min(start + step, length)


def rebuilt(query: Tensor, key: Tensor, value: Tensor, weights: Tensor) -> Tensor:
    """Softmax over all keys, then damaged keys struck out and the rows renormalised: (N, rows, C) -> the same.

    key, value: (N, cells, C); weights: (N, cells, 1), 0 = damaged. A row whose kept mass underflows 1e-12 fades to 0
    instead of being blown up, as published; a photo damaged all over therefore gives 0.
    """
    channels = value.shape[2]
    # What is kept of a row is one more channel of its sum, so that torch's own attention gives both at once. It wants
    # as many channels of queries and keys, and in eights.
    more = 8 - channels % 8
    weighted = F.pad(torch.cat([value * weights, weights.to(value.dtype)], dim=2), (0, more - 1))
    queries, keys, values = F.pad(query, (0, more))[:, None], F.pad(key, (0, more))[:, None], weighted[:, None]
    made = F.scaled_dot_product_attention(queries, keys, values, scale=1.0)[:, 0]
    return made[..., :channels] / made[..., channels : channels + 1].clamp_min(1e-12)


def most_alike(query: Tensor, blocks: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """For each patch of query (n, D) the number of the most alike key; blocks: (numbers (k,), keys (k, D)) in order.

    Both are normalised. Of equals the first is taken.
    """
    best = choice = None
    for numbers, keys in blocks:
        alike = query @ keys.T  # (n, k)
        column = torch.softmax(alike, dim=1).argmax(dim=1)
        score = alike.gather(1, column[:, None])[:, 0]
        if best is None or choice is None:
            best, choice = score, numbers[column]
        else:
            better = score > best + TIE
            best, choice = torch.where(better, score, best), torch.where(better, numbers[column], choice)
    assert choice is not None
    return choice


def _chunks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, LIKENESSES_AT_ONCE // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


class NonLocal(nn.Module):
    """The partial non-local block: attention over the whole photo with damaged cells barred as keys."""

    def __init__(self, config: MappingConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels[-1]
        self.query = Conv1x1(c, c)
        self.key = Conv1x1(c, c)
        self.value = Conv1x1(c, c)
        self.out = Conv1x1(c, c)
        self.blocks = blocks(config.context_blocks, c, config.norm)

    def soundness(self, mask: Tensor, size: tuple[int, int]) -> Tensor:
        """Weight of each cell as a key, and share of x that stays: (N, 1, h, w) in [0, 1], 0 = damaged."""
        sound = 1.0 - damaged_cells(mask, size)
        return sound * F.interpolate(1.0 - mask, size=size, mode="nearest")

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: (N, C, h, w); mask: (N, 1, H, W) -> (N, C, h, w)."""
        sound = self.soundness(mask, (x.shape[2], x.shape[3]))
        rebuilt: Tensor = self.out(self.attend(x, sound))
        for block in self.blocks:
            rebuilt = block(rebuilt)
        return sound * x + (1.0 - sound) * rebuilt

    def attend(self, x: Tensor, sound: Tensor) -> Tensor:
        """Softmax over all cells, damaged keys struck out, rows renormalised: (N, C, h, w) -> (N, C, h, w).

        Maps of more than 1.6 megapixels of photo look no further than attended() says.
        """
        if has_torch_function_unary(x):
            streamed: Tensor = handle_torch_function(NonLocal.attend, (x,), self, x, sound)
            return streamed
        n, c, h, w = x.shape
        query, key, value = self.query(x), self.key(x), self.value(x)
        out = torch.empty_like(value)
        for own, region in attended(h, w):
            inside, near = own.slices, region.slices
            seen = (each[near].flatten(2).transpose(1, 2) for each in (key, value, sound))  # (N, cells, ...)
            made = rebuilt(query[inside].flatten(2).transpose(1, 2), *seen)
            out[inside] = made.transpose(1, 2).reshape(n, c, own.bottom - own.top, own.right - own.left)
        return out


class PatchAttention(nn.Module):
    """Damaged patches are rebuilt from the most alike sound patch, at three patch sizes, coarse to fine."""

    def __init__(self, config: MappingConfig) -> None:
        super().__init__()
        self.config = config
        wide = config.channels[-1]
        self.before = blocks(2, wide, config.norm)
        self.scales = nn.ModuleList(PatchScale(wide, size, config) for size in PATCH_SIZES)
        self.between = nn.ModuleList(blocks(2, wide, config.norm) for _ in PATCH_SIZES[1:])

    def forward(self, z: Tensor, mask: Tensor | None) -> Tensor:
        """z: (N, C, h, w); mask: (N, 1, H, W) or None -> (N, C, h, w)."""
        n, _, h, w = z.shape
        damaged = z.new_zeros(n, 1, h, w) if mask is None else damaged_cells(mask, (h, w))
        for block in self.before:
            z = block(z)
        for i, scale in enumerate(self.scales):
            if i:
                for block in cast("nn.Sequential", self.between[i - 1]):
                    z = block(z)
            z = scale(z, damaged)
        return z


class PatchScale(nn.Module):
    """Patch attention at one patch size (in latent cells)."""

    def __init__(self, channels: int, size: int, config: MappingConfig) -> None:
        super().__init__()
        self.size = size
        self.block = ResidualBlock(channels, config.norm)
        self.combine = Conv3x3(2 * channels + 1, channels, padding=1)

    def forward(self, z: Tensor, damaged: Tensor) -> Tensor:
        """z: (N, C, h, w); damaged: (N, 1, h, w), 1 = damaged cell -> (N, C, h, w)."""
        composed = self.compose(self.block(z), damaged)
        # The convolution over [z, composed, damaged] part by part: their concatenation would be the largest map of all.
        c, weight = z.shape[1], self.combine.weight
        out = F.conv2d(z, weight[:, :c], self.combine.bias, padding=1)
        out = out + F.conv2d(composed, weight[:, c : 2 * c], padding=1)
        return out + F.conv2d(damaged.type_as(z), weight[:, 2 * c :], padding=1)

    def compose(self, x: Tensor, damaged: Tensor) -> Tensor:
        """Replace each damaged patch of x (N, C, h, w) by its best sound patch of the same photo.

        Cells right of and below the last whole patch become 0, as published, so callers pad to whole patches. With no
        sound patch there is nothing to copy from, and x is returned.
        """
        if has_torch_function_unary(x):
            streamed: Tensor = handle_torch_function(PatchScale.compose, (x,), self, x, damaged)
            return streamed
        if len(x) > 1:
            return torch.cat([self.compose(x[i : i + 1], damaged[i : i + 1]) for i in range(len(x))])
        which, choice = self.choose(x, damaged)
        if not len(which):
            return x
        p, down, across = self.size, x.shape[2] // self.size, x.shape[3] // self.size
        whole = x.clone()
        whole[:, :, down * p :] = 0.0
        whole[:, :, :, across * p :] = 0.0
        for target, source in zip(which.tolist(), choice.tolist(), strict=True):
            (ty, tx), (sy, sx) = divmod(target, across), divmod(source, across)
            whole[:, :, ty * p : ty * p + p, tx * p : tx * p + p] = x[:, :, sy * p : sy * p + p, sx * p : sx * p + p]
        return whole

    def choose(self, x: Tensor, damaged: Tensor) -> tuple[Tensor, Tensor]:
        """Row-major numbers of the damaged patches of x (1, C, h, w), and of the sound patch chosen for each."""
        which, choice = [], []
        patches = None
        for bad, good in self.sorted_out(damaged):
            patches = self.flattened(x) if patches is None else patches
            keys = patches[good]
            which.append(bad)
            choice += [most_alike(patches[bad[r]], [(good, keys)]) for r in _chunks(len(bad), len(good))]
        none = torch.zeros(0, dtype=torch.long, device=x.device)
        return torch.cat([none, *which]), torch.cat([none, *choice])

    def sorted_out(self, damaged: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(damaged, sound) patches, as row-major numbers, of each region that has both; damaged: (1, 1, h, w).

        The damaged ones are those of a block, the sound ones those of the region that it looks at; see attended().
        """
        p = self.size
        share = F.avg_pool2d(damaged, p)[0, 0]
        bad, good = (
            torch.nonzero(each.flatten()).flatten() for each in (share > DAMAGED_SHARE, share <= DAMAGED_SHARE)
        )
        down, across = share.shape
        for own, region in attended(down, across, PATCH_BLOCK // p, PATCH_MARGIN // p):
            inside, around = bad[own.holds(bad, across)], good[region.holds(good, across)]
            if len(inside) and len(around):
                yield inside, around

    def flattened(self, x: Tensor) -> Tensor:
        """The whole patches of x (1, C, h, w), normalised: (patches, C p p), channel-major, then row, column."""
        p, (down, across) = self.size, (x.shape[2] // self.size, x.shape[3] // self.size)
        cells = x[0, :, : down * p, : across * p].reshape(x.shape[1], down, p, across, p)
        patches = cells.permute(1, 3, 0, 2, 4).reshape(down * across, -1)
        lengths: Tensor = patches.norm(dim=1, keepdim=True)
        return patches / lengths.clamp_min(1e-12)
