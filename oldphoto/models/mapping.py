"""Latent translation: old latents -> clean latents, with three ways of looking past the neighbourhood.

`MappingConfig.context` chooses: "none" (photos without scratches), "non_local" (the partial non-local block: damaged
cells are rebuilt from all sound cells of the photo) and "patches" (multi-scale patch attention for large photos).
Latents are (N, C, h, w); masks are (N, 1, H, W) at the photo's size, 1 = damaged. Source: Wan et al., CVPR 2020, TPAMI
2022. No matrix of all cells by all cells is ever stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oldphoto.models.blocks import Norm, ResidualBlock, activate, blocks, normalise

# Logits held at once by the attention loops: 2^24 floats are 64 MiB.
LOGITS_AT_ONCE = 1 << 24
# A patch counts as damaged when more than this share of its cells is.
DAMAGED_SHARE = 0.6
PATCH_SIZES = (8, 4, 2)


@dataclass(frozen=True)
class MappingConfig:
    """Width and kind of a mapping.

    latent_channels: of the VAEs. channels: of the entering convolutions, the last being the working width.
    blocks: residual blocks after the context. context: see the module. context_blocks: residual blocks of the non-local
    block. norm: see blocks.Norm. combine: "replace" puts the non-local result in place of a damaged cell, as published;
    "add" adds it to what the cell still says. any_damage: a cell counts as damaged when any of its pixels is, instead
    of by the published sampling, which loses lines one pixel wide.
    """

    latent_channels: int = 64
    channels: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 6
    context: Literal["none", "non_local", "patches"] = "none"
    context_blocks: int = 3
    norm: Norm = "instance"
    combine: Literal["replace", "add"] = "replace"
    any_damage: bool = False

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
        self.enter = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.non_local = NonLocal(config) if config.context == "non_local" else None
        self.patches = PatchAttention(config) if config.context == "patches" else None
        self.blocks = blocks(config.blocks, wide, config.norm)
        self.leave = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise((wide, *back)))

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Tensor:
        """z: (N, C, h, w); mask: (N, 1, H, W), 1 = damaged, None = no damage -> (N, C, h, w)."""
        for conv in self.enter:
            z = activate(normalise(conv(z), self.config.norm))
        if self.non_local is not None and mask is not None:
            z = self.non_local(z, mask)
        if self.patches is not None:
            z = self.patches(z, mask)
        z = self.blocks(z)
        for conv in self.leave[:-1]:
            z = activate(normalise(conv(z), self.config.norm))
        out: Tensor = self.leave[-1](z)
        return out


def damaged_cells(mask: Tensor, size: tuple[int, int], any_damage: bool) -> Tensor:
    """Mask (N, 1, H, W) -> (N, 1, h, w), 1 where the latent cell counts as damaged.

    As published, a cell is sampled bilinearly: only the middle 2 x 2 of its 4 x 4 pixels are seen.
    """
    if any_damage:
        return (F.adaptive_max_pool2d(mask, size) > 0).to(mask.dtype)
    return (F.interpolate(mask, size=size, mode="bilinear", align_corners=False) > 0).to(mask.dtype)


def _chunks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, LOGITS_AT_ONCE // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


class NonLocal(nn.Module):
    """The partial non-local block: attention over the whole photo with damaged cells barred as keys."""

    def __init__(self, config: MappingConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels[-1]
        self.query = nn.Conv2d(c, c, 1)
        self.key = nn.Conv2d(c, c, 1)
        self.value = nn.Conv2d(c, c, 1)
        self.out = nn.Conv2d(c, c, 1)
        self.blocks = blocks(config.context_blocks, c, config.norm)

    def keep_map(self, mask: Tensor, size: tuple[int, int]) -> Tensor:
        """Weight of each cell as a key, and share of x it keeps: (N, 1, h, w) in [0, 1], 0 = damaged."""
        keep = 1.0 - damaged_cells(mask, size, self.config.any_damage)
        if self.config.any_damage:
            return keep
        return keep * F.interpolate(1.0 - mask, size=size, mode="nearest")

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: (N, C, h, w); mask: (N, 1, H, W) -> (N, C, h, w)."""
        keep = self.keep_map(mask, (x.shape[2], x.shape[3]))
        # With no norm after the attention, cells far from damage cannot be told by it: nothing to do, nothing lost.
        if self.config.norm == "none" and bool((keep == 1.0).all()):
            return x
        rebuilt: Tensor = self.blocks(self.out(self.attend(x, keep, self._rows(keep))))
        if self.config.combine == "add":
            return x + (1.0 - keep) * rebuilt
        return keep * x + (1.0 - keep) * rebuilt

    def _rows(self, keep: Tensor) -> Tensor | None:
        """The cells whose attention can reach a damaged cell, row-major; None = all of them.

        The residual blocks after the attention look two cells further each. A norm would look at the whole map, so with
        one no cell may be left out, though only damaged cells take the result.
        """
        if self.config.norm != "none" or len(keep) > 1:
            return None
        reach = 2 * len(self.blocks)
        near = F.max_pool2d(1.0 - keep, 2 * reach + 1, stride=1, padding=reach)
        return torch.nonzero(near.flatten()).flatten()

    def attend(self, x: Tensor, keep: Tensor, rows: Tensor | None = None) -> Tensor:
        """Softmax over all cells, damaged keys struck out, rows renormalised: (N, C, h, w) -> (N, C, h, w).

        rows: numbers of the cells to compute, row-major; the others give 0. None = all.
        A row whose kept mass underflows 1e-12 fades to 0 instead of being blown up, as published; a photo damaged all
        over therefore gives 0.
        """
        n, c, h, w = x.shape
        query = self.query(x).flatten(2).transpose(1, 2)  # (N, cells, C)
        key = self.key(x).flatten(2)  # (N, C, cells)
        value = self.value(x).flatten(2).transpose(1, 2)  # (N, cells, C)
        weights = keep.flatten(2)  # (N, 1, cells)
        if rows is not None:
            query = query[:, rows]
        done = []
        for now in _chunks(query.shape[1], n * h * w):
            logits = torch.matmul(query[:, now], key)  # (N, rows, cells)
            mass = torch.exp(logits - logits.amax(dim=2, keepdim=True))
            kept = mass * weights
            least = 1e-12 * mass.sum(dim=2, keepdim=True)
            total = torch.maximum(kept.sum(dim=2, keepdim=True), least)
            done.append(torch.matmul(kept, value) / total)
        result = torch.cat(done, dim=1)
        if rows is not None:
            everywhere = result.new_zeros(n, h * w, c)
            everywhere[:, rows] = result
            result = everywhere
        return result.transpose(1, 2).reshape(n, c, h, w)


class PatchAttention(nn.Module):
    """Damaged patches are rebuilt from the most alike sound patch, at three patch sizes, coarse to fine."""

    def __init__(self, config: MappingConfig) -> None:
        super().__init__()
        wide = config.channels[-1]
        self.before = blocks(2, wide, config.norm)
        self.scales = nn.ModuleList(PatchScale(wide, size, config) for size in PATCH_SIZES)
        self.between = nn.ModuleList(blocks(2, wide, config.norm) for _ in PATCH_SIZES[1:])

    def forward(self, z: Tensor, mask: Tensor | None) -> Tensor:
        """z: (N, C, h, w); mask: (N, 1, H, W) or None -> (N, C, h, w)."""
        if mask is None:
            mask = torch.zeros_like(z[:, :1])
        z = self.before(z)
        for i, scale in enumerate(self.scales):
            if i:
                z = self.between[i - 1](z)
            z = scale(z, mask)
        return z


class PatchScale(nn.Module):
    """Patch attention at one patch size (in latent cells)."""

    def __init__(self, channels: int, size: int, config: MappingConfig) -> None:
        super().__init__()
        self.size = size
        self.config = config
        self.block = ResidualBlock(channels, config.norm)
        self.combine = nn.Conv2d(2 * channels + 1, channels, 3, padding=1)

    def forward(self, z: Tensor, mask: Tensor) -> Tensor:
        """z: (N, C, h, w); mask: (N, 1, H, W) -> (N, C, h, w)."""
        damaged = damaged_cells(mask, (z.shape[2], z.shape[3]), self.config.any_damage)
        x = self.block(z)
        composed = torch.cat([self.compose(x[i : i + 1], damaged[i : i + 1]) for i in range(len(x))])
        del x
        # The convolution over [z, composed, damaged] part by part: their concatenation would be the largest map of all.
        c, weight = z.shape[1], self.combine.weight
        out = F.conv2d(z, weight[:, :c], self.combine.bias, padding=1)
        out = out + F.conv2d(composed, weight[:, c : 2 * c], padding=1)
        return out + F.conv2d(damaged, weight[:, 2 * c :], padding=1)

    def compose(self, x: Tensor, damaged: Tensor) -> Tensor:
        """Replace each damaged patch of x (1, C, h, w) by its best sound patch.

        Cells right of and below the last whole patch become 0, as published, so callers pad to whole patches. With no
        sound patch there is nothing to copy from, and x is returned.
        """
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
        p = self.size
        down, across = x.shape[2] // p, x.shape[3] // p
        share = F.avg_pool2d(damaged, p).flatten()
        bad = torch.nonzero(share > DAMAGED_SHARE).flatten()
        good = torch.nonzero(share <= DAMAGED_SHARE).flatten()
        if not len(bad) or not len(good):
            return bad[:0], bad[:0]
        cells = x[0, :, : down * p, : across * p].reshape(x.shape[1], down, p, across, p)
        patches = cells.permute(1, 3, 0, 2, 4).reshape(down * across, -1)  # channel-major, then row, column
        patches = patches / patches.norm(dim=1, keepdim=True).clamp_min(1e-12)
        keys = patches[good].T  # (C p p, sound)
        # The published choice is the argmax of a float32 softmax, where near-equal correlations tie.
        best = [torch.softmax(patches[bad[r]] @ keys, dim=1).argmax(dim=1) for r in _chunks(len(bad), len(good))]
        return bad, good[torch.cat(best)]
