"""The published networks with deterministic stand-in weights, written as checkpoints in the published layout and read
through the product's own loader."""

from __future__ import annotations

import importlib
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Literal

import torch
from torch import nn

from oldphoto.models.loading import load_published

Flavour = Literal["random", "passthrough"]


def maker(shared: Path) -> ModuleType:
    """The script beside the goldens that fills weights."""
    folder = str(shared / "reference")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module("make_reference_checkpoints")


class PublishedNets:
    """Networks by the name of their filling, e.g. ("vae_a_quality", "old_vae")."""

    def __init__(self, shared: Path, folder: Path) -> None:
        self.maker = maker(shared)
        self.folder = folder
        self._loaded = cache(self._load)

    def load(self, filled: str, ours: str, flavour: Flavour = "random", unet_bias: float | None = None) -> nn.Module:
        """Each once, whether the caller names the defaults or not."""
        return self._loaded(filled, ours, flavour, unet_bias)

    def _load(self, filled: str, ours: str, flavour: Flavour, unet_bias: float | None) -> nn.Module:
        state = self.maker.state_dict(filled, flavour, unet_bias=unet_bias)
        path = self.folder / f"{filled}.pth"
        # The detector's file holds more than its weights. One file in the older serialization: they are from 2020.
        wrapped = {"model_state": state, "epoch": 3} if ours == "scratch_unet" else state
        torch.save(wrapped, path, _use_new_zipfile_serialization=filled != "vae_a_quality")
        try:
            return load_published(ours, path)
        finally:
            path.unlink()
