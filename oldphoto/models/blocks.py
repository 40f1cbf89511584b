"""Layers that more than one network is built of."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from oldphoto.models.winograd import Conv3x3

# "instance": over each photo's whole map, no affine, no running statistics, as published. "none": no normalisation.
Norm = Literal["instance", "none"]

EPSILON = 1e-5
VALUES_AT_ONCE = 1 << 20


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
    return F.pad(x, (pixels, pixels, pixels, pixels), mode="reflect")


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
