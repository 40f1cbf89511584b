"""The networks of one weight set on one device, by their roles."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from torch import nn

from oldphoto import weights
from oldphoto.errors import UsageError, WeightsUnavailableError
from oldphoto.machine import threads
from oldphoto.models.estimator import Estimator
from oldphoto.models.loading import load_compact, load_published, placed
from oldphoto.models.tone_net import ToneNet
from oldphoto.weights.sets import SETS, Role

Precision = Literal["fp32", "fp16", "bf16"]
Made = TypeVar("Made")


class Models:
    """The networks of one weight set on one device; each is loaded when first used, and once, by whatever thread."""

    def __init__(self, weight_set: weights.WeightSet, device: str = "auto", precision: Precision = "fp32") -> None:
        if precision not in ("fp32", "fp16", "bf16"):
            raise UsageError(f"precision is {precision!r}", "use fp32, fp16 or bf16")
        self.weight_set = weight_set
        self.set = SETS[weight_set.name]
        self.device = choose_device(device)
        self.precision: Precision = precision
        self._loaded: dict[str, nn.Module] = {}
        self._made: dict[Role, Any] = {}
        self._loading = threading.Lock()

    @staticmethod
    def load(weight_set: weights.WeightSet, device: str = "auto", precision: str = "fp32") -> Models:
        """Models over verified weight files; raises UsageError for a device that is not there."""
        return Models(weight_set, device, cast("Precision", precision))

    def path(self, role: Role) -> Path:
        """The verified file of a role. Raises WeightsUnavailableError where these models were had without it."""
        known = self.set.nets.get(role)
        if known is None:
            raise WeightsUnavailableError(f"the {self.set.name} weights have no network for {role!r}")
        path = self.weight_set.files.get(known.name)
        if path is None:
            raise WeightsUnavailableError(
                f"these models were loaded without {known.name!r}", "load them with the options that they are used with"
            )
        return path

    def net(self, role: Role) -> nn.Module:
        """The network of a role, ready on the device. Raises WeightsUnavailableError, WeightsCorruptError."""
        path = self.path(role)
        known = self.set.nets[role]
        with self._loading:
            if known.name not in self._loaded:
                theirs = known.home == "published"
                loaded = load_published(known.name, path) if theirs else load_compact(path)
                self._loaded[known.name] = placed(loaded, self.device)
            return self._loaded[known.name]

    def estimator(self, role: Role) -> Estimator:
        """The network of a role that judges from figures."""
        return cast("Estimator", self.net(role))

    def tone_net(self) -> ToneNet:
        """The network that judges how a photo has faded."""
        return cast("ToneNet", self.net("fading"))

    def made(self, role: Role, make: Callable[[Path], Made]) -> Made:
        """Return what `make` makes of a role's file, once: for models that are not torch's, or stay on the
        processor."""
        path = self.path(role)
        with self._loading:
            if role not in self._made:
                self._made[role] = make(path)
            return cast("Made", self._made[role])

    def is_made(self, role: Role) -> bool:
        """Whether `made` was called for this role."""
        return role in self._made

    def mapped_bytes(self) -> int:
        """Bytes of the networks loaded so far, which lie in files until they are used."""
        return sum(parameter.nbytes for net in self._loaded.values() for parameter in net.parameters())

    @contextmanager
    def inference(self) -> Iterator[None]:
        """No gradients, and half precision where it was asked for."""
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        half = torch.autocast(self.device.type, dtype, enabled=self.precision != "fp32")
        with torch.inference_mode(), half:
            yield

    def peak_memory(self) -> int | None:
        """The most memory in bytes that the graphics card has held since the last call; None on other devices."""
        if self.device.type != "cuda":
            return None
        peak = torch.cuda.max_memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak

    def places(self, chosen: int | None = None) -> int:
        """Return how many photos may be in work at once: as chosen, or else one for each thread that torch has; but one
        on other devices than the processor. Raises UsageError where more are chosen there."""
        if self.device.type == "cpu":
            return threads.places(chosen)
        if (chosen or 1) > 1:
            raise UsageError(f"one photo at a time is in work on {self.device}", "leave the number of jobs out")
        return 1


def choose_device(name: str) -> torch.device:
    """ "auto" takes the first of CUDA, Apple's MPS and the CPU that is there. Raises UsageError for one that is not."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"there is no device {name!r}", "use auto, cpu, cuda, cuda:N or mps") from error
    there = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }.get(device.type, 0)
    if (device.index or 0) >= there:
        raise UsageError(f"device {name} is not available here", "`oldphoto doctor` lists the devices")
    return device
