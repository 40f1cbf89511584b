"""Layers that more than one network is built of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from oldphoto.models.winograd import Conv3x3, each_alone

# "instance": over each photo's whole map, no affine, no running statistics, as published. "none": no normalisation.
Norm = Literal["instance", "none"]

EPSILON = 1e-5
VALUES_AT_ONCE = 1 << 20
BAND = 32  # rows that a transposed convolution works on at once


def normalise(x: Tensor, norm: Norm) -> Tensor:
    """Instance-normalise x (N, C, H, W) over H and W, or return it as it is.

    Without gradients x itself is overwritten, which halves the peak memory of large photos.
    """
    if norm == "none":
        return x
    if torch.is_grad_enabled():
        return F.instance_norm(x, eps=EPSILON)
    mean, variance = moments(x)
    return x.sub_(mean).mul_(torch.rsqrt(variance.add_(EPSILON)))


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of x (N, C, H, W) over H and W: (N, C, 1, 1) each, on the CPU in float32 at least."""
    if has_torch_function_unary(x):
        streamed: tuple[Tensor, Tensor] = handle_torch_function(moments, (x,), x)
        return streamed
    if x.device.type != "cpu":
        variance, mean = torch.var_mean(x, dim=(2, 3), correction=0, keepdim=True)
        return mean, variance
    # On the CPU var_mean takes five times as long where the channels of a cell lie together. Differences from one cell
    # are summed, so that a map that is the same everywhere has exactly its value for a mean, and no variance.
    step = max(1, VALUES_AT_ONCE // max(1, x[:, :, :1].numel()))
    parts = [x[:, :, top : top + step] for top in range(0, x.shape[2], step)]
    cells = x.shape[2] * x.shape[3]
    level = x[:, :, :1, :1].to(torch.promote_types(x.dtype, torch.float32))
    mean, squares = torch.zeros_like(level), torch.zeros_like(level)
    for part in parts:
        mean += (part - level).sum(dim=(2, 3), keepdim=True)
    mean = level + mean / cells
    for part in parts:
        squares += (part - mean).square_().sum(dim=(2, 3), keepdim=True)
    return mean, squares / cells


def activate(x: Tensor) -> Tensor:
    """ReLU; in place without gradients."""
    return F.relu(x) if torch.is_grad_enabled() else F.relu_(x)


def reflect(x: Tensor, pixels: int) -> Tensor:
    """Reflection-pad x (N, C, H, W) on all four sides; H and W must exceed `pixels`."""
    if isinstance(x, Tensor) and x.is_cuda:
        return cast("Tensor", Reflection.apply(x, pixels))  # type: ignore[no-untyped-call]  # untyped in torch
    return F.pad(x, (pixels, pixels, pixels, pixels), mode="reflect")


def in_bands(height: int, band: int, reach: int, rows_of: Callable[[slice], Tensor]) -> Tensor:
    """A map (N, C, H, W) made `band` rows at a time, so that what it takes on the way stays in the caches, and little
    memory is held. The same as in one piece, if what `rows_of` gives for a row sees no more than `reach` rows away.

    height: rows, in the scale that `rows_of` is asked for them; it gives as many, or so many times as many.
    """
    made = []
    for top in range(0, height, band):
        first, last = max(0, top - reach), min(height, top + band + reach)
        rows = rows_of(slice(first, last))
        scale = rows.shape[2] // (last - first)
        made.append(rows[:, :, (top - first) * scale :][:, :, : min(band, height - top) * scale])
    return torch.cat(made, dim=2)


def joined(*maps: Tensor) -> Tensor:
    """torch.cat of the channels, those of a cell together in memory: of a map with one channel torch cannot tell."""
    return torch.cat([each.permute(0, 2, 3, 1) for each in maps], dim=3).permute(0, 3, 1, 2)


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """x (N, C, H, W) -> (N, C, *size), bilinear."""
    # Each plane as a picture of its own: otherwise values are rounded according to the number of threads.
    planes = F.interpolate(x.flatten(0, 1)[:, None], size=size, mode="bilinear", align_corners=False)
    return planes.view(*x.shape[:2], *size)


class Conv1x1(nn.Conv2d):
    """nn.Conv2d of 1 x 1, whose values on the CPU are the same whatever the number of threads."""

    def __init__(self, channels_in: int, channels_out: int, bias: bool = True) -> None:
        super().__init__(channels_in, channels_out, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, H, W) -> (N, channels_out, H, W)."""
        if has_torch_function_unary(x) or x.device.type != "cpu" or torch.is_grad_enabled():
            return F.conv2d(x, self.weight, self.bias)
        # torch takes another way to convolve, which sums in another order, where it has one thread.
        cells = x.permute(0, 2, 3, 1)  # (N, H, W, C)
        return F.linear(cells, self.weight[:, :, 0, 0], self.bias).permute(0, 3, 1, 2)


class Doubling(nn.ConvTranspose2d):
    """nn.ConvTranspose2d of 4 x 4, stride 2 and padding 1, whose values on the CPU are the same whatever the number of
    threads: it goes band by band, each in a thread of its own."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 4, stride=2, padding=1)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(N, channels_in, H, W) -> (N, channels_out, 2 H, 2 W)."""
        elsewhere = has_torch_function_unary(x) or x.device.type != "cpu"
        if elsewhere or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return F.conv_transpose2d(x, self.weight, self.bias, 2, 1)
        n, _, height, width = x.shape
        out = x.new_empty(n, 2 * height, 2 * width, self.out_channels).permute(0, 3, 1, 2)

        def fill(top: int) -> None:
            with torch.inference_mode():
                bottom = min(top + BAND, height)
                first, last = max(0, top - 1), min(height, bottom + 1)
                made = F.conv_transpose2d(x[:, :, first:last], self.weight, self.bias, 2, (0, 1))
                before = 2 * (top - first) + 1  # rows that belong to the band above, and to the padding
                out[:, :, 2 * top : 2 * bottom] = made[:, :, before : before + 2 * (bottom - top)]

        each_alone(fill, range(0, height, BAND))
        return out


class ToPicture(nn.Conv2d):
    """nn.Conv2d of 7 x 7 without padding, to the three channels of a picture.

    Processors convolve to 16 channels at a time. So on them four pixels are made at once, two by two, as the channels
    of one wider kernel with stride 2: a third of the time, the same values.
    """

    bias: nn.Parameter  # always there

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 3, 7)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H + 6, W + 6) -> (N, 3, H, W)."""
        odd = x.shape[2] % 2 or x.shape[3] % 2
        if has_torch_function_unary(x) or x.device.type != "cpu" or torch.is_grad_enabled() or odd:
            return F.conv2d(x, self.weight, self.bias)
        wide = self.weight.new_zeros(3, 2, 2, self.in_channels, 8, 8)
        for down in (0, 1):
            for right in (0, 1):
                wide[:, down, right, :, down : down + 7, right : right + 7] = self.weight
        wide = wide.flatten(0, 2).contiguous(memory_format=torch.channels_last)
        made = F.pixel_shuffle(F.conv2d(x, wide, self.bias.repeat_interleave(4), 2), 2)
        return made.contiguous(memory_format=torch.channels_last)


class Reflection(torch.autograd.Function):
    """Reflect the border as F.pad does, in the memory format of x: torch's own kernel for CUDA goes by way of a
    channels-first copy, which the next convolution has to undo, and its gradient adds every value atomically."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: int) -> Tensor:
        """(N, C, H, W) -> (N, C, H + 2p, W + 2p)."""
        ctx.pixels = p
        n, c, h, w = x.shape
        dense = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        out = torch.empty(n, c, h + 2 * p, w + 2 * p, dtype=x.dtype, device=x.device, memory_format=dense)
        out[:, :, p:-p, p:-p] = x
        out[:, :, p:-p, :p] = x[..., 1 : p + 1].flip(3)
        out[:, :, p:-p, -p:] = x[..., -p - 1 : -1].flip(3)
        out[:, :, :p] = out[:, :, p + 1 : 2 * p + 1].flip(2)
        out[:, :, -p:] = out[:, :, -2 * p - 1 : -p - 1].flip(2)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Add the gradient of the border to that of the cells it mirrors."""
        p = ctx.pixels
        rows = grad[:, :, p:-p].clone()
        rows[:, :, 1 : p + 1] += grad[:, :, :p].flip(2)
        rows[:, :, -p - 1 : -1] += grad[:, :, -p:].flip(2)
        whole = rows[..., p:-p].clone()
        whole[..., 1 : p + 1] += rows[..., :p].flip(3)
        whole[..., -p - 1 : -1] += rows[..., -p:].flip(3)
        return whole, None


class ResidualBlock(nn.Module):
    """x + [reflect 1, conv 3x3, norm, ReLU, reflect 1, conv 3x3, norm](x); nothing after the sum."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.norm: Norm = norm
        self.conv1 = Conv3x3(channels, channels)
        self.conv2 = Conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        # Nested, so that no name holds the middle map while the last one is computed.
        y = normalise(
            self.conv2(reflect(activate(normalise(self.conv1(reflect(x, 1)), self.norm)), 1)),
            self.norm,
        )
        return x + y if torch.is_grad_enabled() else y.add_(x)


def blocks(count: int, channels: int, norm: Norm) -> nn.Sequential:
    """A run of residual blocks."""
    return nn.Sequential(*(ResidualBlock(channels, norm) for _ in range(count)))
