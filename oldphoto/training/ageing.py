"""The degradations of degrade.py on batches of tensors, so that a GPU which trains does not wait for them.

Batches are (N, 3, H, W) float32 in [0, 1] on any device; H and W multiples of 16. Every function returns a new batch
and draws from `Dice` what degrade.py would draw for each photo in turn: of one photo both make the same, but for noise,
which is drawn where the tensor is, and JPEG, whose arithmetic is close to libjpeg's but not equal. Tests compare them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from oldphoto.training import degrade
from oldphoto.training.degrade import HOLE_OPACITY, Image


@dataclass(frozen=True)
class Dice:
    """Two seeded generators: `host` draws decisions and figures, `device` draws noise where the tensors are."""

    host: np.random.Generator
    device: torch.Generator

    @staticmethod
    def seeded(device: torch.device, *seed: int) -> Dice:
        """Both from one seed; the noise differs between kinds of device."""
        host = np.random.default_rng(seed)
        return Dice(host, torch.Generator(device).manual_seed(int(host.integers(2**62))))

    def figures(self, count: int, low: float, high: float) -> Tensor:
        """(count, 1, 1, 1) uniform in [low, high)."""
        return self.placed(self.host.uniform(low, high, count).astype(np.float32)).view(-1, 1, 1, 1)

    def some(self, count: int, share: float) -> Tensor:
        """(count, 1, 1, 1) bool, each True with probability `share`."""
        return self.placed(self.host.random(count) < share).view(-1, 1, 1, 1)

    def placed(self, array: NDArray[np.generic]) -> Tensor:
        """An array as a tensor on the device."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device.device)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal noise."""
        return torch.randn(shape, generator=self.device, device=self.device.device)

    def uniform(self, *shape: int) -> Tensor:
        """Noise in [0, 1)."""
        return torch.rand(shape, generator=self.device, device=self.device.device)


Operation = Callable[[Tensor, Dice], Tensor]


def gaussian_blur(x: Tensor, dice: Dice) -> Tensor:
    """As degrade.gaussian_blur."""
    return filtered(x, [degrade.gaussian_kernel(dice.host) for _ in x], dice).clamp(0.0, 1.0)


def optical_blur(x: Tensor, dice: Dice) -> Tensor:
    """As degrade.optical_blur."""
    return filtered(x, [degrade.disc_kernel(dice.host) for _ in x], dice).clamp(0.0, 1.0)


def motion_blur(x: Tensor, dice: Dice) -> Tensor:
    """As degrade.motion_blur."""
    return filtered(x, [degrade.streak_kernel(dice.host) for _ in x], dice).clamp(0.0, 1.0)


def filtered(x: Tensor, kernels: Sequence[Image], dice: Dice) -> Tensor:
    """Each (C, H, W) of x correlated with its own kernel, mirrored at the edges; the middle of an even side is the
    later one."""
    reach = max(kernel.shape[0] // 2 for kernel in kernels)
    alike = np.zeros((len(kernels), 2 * reach + 1, 2 * reach + 1), np.float32)
    for whole, kernel in zip(alike, kernels, strict=True):
        corner = reach - kernel.shape[0] // 2
        whole[corner : corner + kernel.shape[0], corner : corner + kernel.shape[0]] = kernel
    n, c, h, w = x.shape
    weight = dice.placed(alike).repeat_interleave(c, dim=0)[:, None]
    padded = F.pad(x, (reach, reach, reach, reach), mode="reflect")
    return F.conv2d(padded.reshape(1, n * c, *padded.shape[2:]), weight, groups=n * c).view(n, c, h, w)


def gaussian_noise(x: Tensor, dice: Dice) -> Tensor:
    """As degrade.gaussian_noise."""
    sigma = dice.figures(len(x), 5.0, 50.0) / 255.0
    return (x + sigma * dice.normal(*x.shape)).clamp(0.0, 1.0)


def speckle(x: Tensor, dice: Dice) -> Tensor:
    """As degrade.speckle."""
    sigma = dice.figures(len(x), 5.0, 50.0) / 255.0
    return (x * (1.0 + sigma * dice.normal(*x.shape))).clamp(0.0, 1.0)


def salt_and_pepper(x: Tensor, dice: Dice) -> Tensor:
    """As degrade.salt_and_pepper."""
    amount, salt = dice.figures(len(x), 0.0, 0.01), dice.figures(len(x), 0.3, 0.8)
    hit = dice.uniform(*x.shape) < amount
    return torch.where(hit, (dice.uniform(*x.shape) < salt).to(x.dtype), x)


def one_noise(x: Tensor, dice: Dice) -> Tensor:
    """One of the three published noises, drawn for each photo."""
    chosen = dice.host.integers(len(NOISES), size=len(x))
    for k, noise in enumerate(NOISES):
        x = applied(noise, x, chosen == k, dice)
    return x


def low_resolution(x: Tensor, dice: Dice) -> Tensor:
    """As degrade.low_resolution: along each axis, one matrix that reduces and enlarges."""
    n, _, h, w = x.shape
    across, down = [], []
    for _ in range(n):
        small, back = degrade.coarser((w, h), dice.host)
        across.append(resampling(w, small[0], w, cv2.INTER_CUBIC, back, x.device))
        down.append(resampling(h, small[1], h, cv2.INTER_CUBIC, back, x.device))
    return (torch.stack(down)[:, None].mT @ x @ torch.stack(across)[:, None]).clamp(0.0, 1.0)


@lru_cache(maxsize=4096)
def resampling(length: int, small: int, out: int, first: int, then: int, device: torch.device) -> Tensor:
    """(length, out): a line of `length` values, times this, is what cv2.resize makes of it by way of `small` values."""
    line = cv2.resize(np.eye(length, dtype=np.float32), (small, length), interpolation=first)
    return torch.from_numpy(np.asarray(cv2.resize(line, (out, length), interpolation=then))).to(device)


def resized(x: Tensor, side: int, interpolation: int) -> Tensor:
    """A square batch (N, 3, S, S) to (N, 3, side, side) by one of cv2's interpolations."""
    axis = resampling(x.shape[-1], side, side, interpolation, cv2.INTER_NEAREST, x.device)
    return (axis.mT @ x @ axis).clamp(0.0, 1.0)


# The tables of the JPEG standard, annex K, for quality 50; libjpeg scales them.
LUMINANCE = """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"""
CHROMINANCE = """17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99"""
TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


def jpeg(x: Tensor, dice: Dice) -> Tensor:
    """As degrade.jpeg: chroma at half size, blocks of 8 x 8, rounding of the coefficients by the quality's tables."""
    quality = np.array([float(dice.host.integers(40, 101)) for _ in x])
    scale = np.where(quality < 50.0, 5000.0 / quality, 200.0 - 2.0 * quality)[:, None]
    light, colour = (
        dice.placed(np.clip((np.array(table.split(), np.float64) * scale + 50.0) // 100.0, 1.0, 255.0)).float()
        for table in (LUMINANCE, CHROMINANCE)
    )
    to_ycc, to_rgb = _colours(x.device)
    # As products and sums: a GPU may round matrix products to 10 bits.
    ycc = ((x * 255.0).round()[:, None] * to_ycc[..., None, None]).sum(dim=2)
    luma = coded(ycc[:, :1] - 128.0, light) + 128.0
    chroma = coded(F.avg_pool2d(ycc[:, 1:], 2), colour)
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
    rgb = (torch.cat([luma, chroma], dim=1)[:, None] * to_rgb[..., None, None]).sum(dim=2)
    decoded: Tensor = rgb.round().clamp(0.0, 255.0) / 255.0
    return decoded


def coded(x: Tensor, table: Tensor) -> Tensor:
    """(N, C, H, W) through the rounded cosine coefficients of its 8 x 8 blocks; table: (N, 64) steps."""
    n, c, h, w = x.shape
    cosine = _cosines(x.device)
    blocks = x.view(n, c, h // 8, 8, w // 8, 8).permute(0, 1, 2, 4, 3, 5)
    steps = table.view(n, 1, 1, 1, 8, 8)
    rounded = ((cosine @ blocks @ cosine.T) / steps).round() * steps
    back: Tensor = (cosine.T @ rounded @ cosine).permute(0, 1, 2, 4, 3, 5).reshape(n, c, h, w)
    return back


@lru_cache(maxsize=4)
def _colours(device: torch.device) -> tuple[Tensor, Tensor]:
    """RGB -> luma and chroma, and back, (3, 3) each."""
    to_ycc = torch.tensor(TO_YCC)
    return to_ycc.to(device), torch.linalg.inv(to_ycc).to(device)


@lru_cache(maxsize=4)
def _cosines(device: torch.device) -> Tensor:
    """The orthonormal DCT-II of 8 values, (8, 8)."""
    k, i = np.arange(8)[:, None], np.arange(8)
    cosine = np.cos(np.pi * (2 * i + 1) * k / 16.0) * np.where(k == 0, np.sqrt(1.0 / 8.0), 0.5)
    return torch.from_numpy(cosine.astype(np.float32)).to(device)


def film_grain(x: Tensor, dice: Dice) -> Tensor:
    """As degrade.film_grain."""
    kernels = [_gaussian(15, dice.host.uniform(0.6, 1.6)) for _ in x]
    grain = filtered(dice.normal(len(x), 1, *x.shape[2:]), kernels, dice)
    grain = grain * dice.figures(len(x), 0.03, 0.14) / grain.std(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)
    return grained(x, grain)


def grained(x: Tensor, grain: Tensor) -> Tensor:
    """Grain (N, 1, H, W) on photos (N, 3, H, W) in [0, 1], strongest in the mid-tones."""
    light = x.mean(dim=1, keepdim=True)
    return (x + grain * (0.4 + 2.4 * light * (1.0 - light))).clamp(0.0, 1.0)


def _gaussian(side: int, sigma: float) -> Image:
    line = cv2.getGaussianKernel(side, sigma, cv2.CV_32F)
    return np.asarray(line @ line.T, np.float32)


def fading(x: Tensor, dice: Dice) -> Tensor:
    """As degrade.fading."""
    rng = dice.host
    drawn = [
        [rng.uniform(0.0, 0.18), rng.uniform(0.78, 1.0), rng.uniform(0.92, 1.0), rng.uniform(0.75, 1.0)] for _ in x
    ]
    black, white, green, blue = dice.placed(np.array(drawn, np.float32).T).view(4, -1, 1, 1, 1)
    cast = torch.cat([torch.ones_like(green), green, blue], dim=1)
    faded: Tensor = ((black + x * (white - black)) * cast).clamp(0.0, 1.0)
    return faded


def paling(x: Tensor, dice: Dice) -> Tensor:
    """As fading, of a toned print: contrast is lost, the tone stays. x: (N, 3, H, W), one tone each."""
    black, white = dice.figures(len(x), 0.0, 0.18), dice.figures(len(x), 0.78, 1.0)
    tone = x.amax(dim=(2, 3), keepdim=True) / x.amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)
    paled: Tensor = (black * tone + x * (white - black)).clamp(0.0, 1.0)
    return paled


def toned(x: Tensor, dice: Dice) -> Tensor:
    """Monochrome photos (N, 3, H, W) -> prints of a yellow to brown tone, as strong as the cast of fading."""
    rng = dice.host
    drawn = np.array([[1.0, rng.uniform(0.92, 1.0), rng.uniform(0.75, 1.0)] for _ in x], np.float32)
    return x * dice.placed(drawn)[:, :, None, None]


def uneven_exposure(x: Tensor, dice: Dice) -> Tensor:
    """As degrade.uneven_exposure."""
    coarse = dice.placed(np.array([dice.host.uniform(0.8, 1.2, (3, 3)) for _ in x], np.float32))[:, None]
    down, across = (
        resampling(3, side, side, cv2.INTER_CUBIC, cv2.INTER_NEAREST, x.device) for side in (x.shape[2], x.shape[3])
    )
    return (x * (down.mT @ coarse @ across)).clamp(0.0, 1.0)


def halftone(x: Tensor, dice: Dice) -> Tensor:
    """As degrade.halftone."""
    rng = dice.host
    drawn = [[rng.uniform(3.0, 6.0), rng.uniform(0.0, np.pi / 2), rng.uniform(0.3, 0.8)] for _ in x]
    cell, angle, depth = dice.placed(np.array(drawn, np.float32).T).view(3, -1, 1, 1, 1)
    rows = torch.arange(x.shape[2], device=x.device, dtype=x.dtype)[:, None]
    columns = torch.arange(x.shape[3], device=x.device, dtype=x.dtype)
    u = columns * torch.cos(angle) + rows * torch.sin(angle)
    v = rows * torch.cos(angle) - columns * torch.sin(angle)
    screen = 0.5 + 0.25 * (torch.cos(2.0 * torch.pi * u / cell) + torch.cos(2.0 * torch.pi * v / cell))
    dots = ((x - screen) * 4.0 + 0.5).clamp(0.0, 1.0)
    soft = filtered(dots, [_gaussian(7, 0.7)] * len(x), dice)
    printed: Tensor = (x * (1.0 - depth) + soft * depth).clamp(0.0, 1.0)
    return printed


NOISES: tuple[Operation, ...] = (gaussian_noise, speckle, salt_and_pepper)
PUBLISHED: tuple[Operation, ...] = (gaussian_blur, one_noise, low_resolution, jpeg)
# Ours beside the published ones, with how often each is added, in the order in which a photo meets them.
OURS: dict[Operation, float] = {optical_blur: 0.2, motion_blur: 0.2, film_grain: 0.5, fading: 0.3, uneven_exposure: 0.2}
SINGLE: tuple[Operation, ...] = (*OURS, halftone, gaussian_blur, *NOISES, low_resolution, jpeg)
# Of the photos: untouched, the published recipe, one operation alone; ours are added to the published in the rest.
UNTOUCHED, AS_PUBLISHED, ALONE = 0.12, 0.45, 0.25


def applied(operation: Operation, x: Tensor, to: NDArray[np.bool_], dice: Dice) -> Tensor:
    """The operation on those photos of the batch that `to`, (N,), names."""
    if to.all():
        return operation(x, dice)
    if not to.any():
        return x
    which = dice.placed(np.flatnonzero(to))
    return x.index_copy(0, which, operation(x[which], dice))


def wider_mixture(x: Tensor, dice: Dice) -> Tensor:
    """What the compact set is trained on, rounded to 8 bits: see UNTOUCHED, AS_PUBLISHED, ALONE and OURS.

    The random order of the published operations is one for the whole batch.
    """
    rng, wanted = dice.host, list[set[Operation]]()
    for _ in x:
        kind = rng.random()
        if kind < UNTOUCHED:
            wanted.append(set())
        elif kind < UNTOUCHED + AS_PUBLISHED:
            wanted.append({operation for operation in PUBLISHED if rng.random() < 0.7})
        elif kind < UNTOUCHED + AS_PUBLISHED + ALONE:
            wanted.append({SINGLE[int(rng.integers(len(SINGLE)))]})
        else:
            ours = {operation for operation, chance in OURS.items() if rng.random() < chance}
            wanted.append(ours | {operation for operation in PUBLISHED if rng.random() < 0.4})
    published = [PUBLISHED[k] for k in rng.permutation(len(PUBLISHED))]
    for operation in (*OURS, halftone, *NOISES, *published):
        x = applied(operation, x, np.array([operation in own for own in wanted]), dice)
    return (x * 255.0).round() / 255.0


def wider_mixture_of_one(photo: Image, rng: np.random.Generator) -> Image:
    """wider_mixture for one photo (H, W, 3) in [0, 1] of any size."""
    h, w = photo.shape[:2]
    whole = cv2.copyMakeBorder(photo, 0, -h % 16, 0, -w % 16, cv2.BORDER_REPLICATE)
    dice = Dice(rng, torch.Generator().manual_seed(int(rng.integers(2**62))))
    old = wider_mixture(torch.from_numpy(whole).permute(2, 0, 1)[None].contiguous(), dice)
    return np.ascontiguousarray(old[0, :, :h, :w].permute(1, 2, 0).numpy())


def grey(x: Tensor) -> Tensor:
    """(N, 3, H, W) -> luminance in all three channels."""
    return (x * _colours(x.device)[0][0].view(1, 3, 1, 1)).sum(dim=1, keepdim=True).expand_as(x)


def tints(level: NDArray[np.float64], spread: float, dice: Dice) -> Tensor:
    """(N,) levels of grey -> colours about them, (N, 3, 1, 1) in [0, 1]; spread: standard deviation of each channel."""
    colours = np.clip(level[:, None] + dice.host.normal(0.0, spread, (len(level), 3)), 0.0, 1.0)
    return dice.placed(colours.astype(np.float32))[:, :, None, None]


def covered(x: Tensor, opacity: Tensor, dice: Dice) -> Tensor:
    """Damage as scans show it: half of the time plain white, as in the paper, else a light or dark tint laid on by its
    opacity, now and then faintly. opacity: (N, 1, H, W) in [0, 1]."""
    n, rng = len(x), dice.host
    level = np.where(rng.random(n) < 0.75, rng.uniform(0.75, 1.0, n), rng.uniform(0.0, 0.2, n))
    tint = tints(level, 0.03, dice)
    strength = np.where(rng.random(n) < 0.8, rng.uniform(0.75, 1.0, n), rng.uniform(0.4, 0.75, n))
    laid = opacity * dice.placed(strength.astype(np.float32)).view(-1, 1, 1, 1)
    tinted = x * (1.0 - laid) + tint * laid
    white = torch.where(opacity > HOLE_OPACITY, 1.0, x)
    return torch.where(dice.some(n, 0.5), white, tinted)
