"""Collect what a bug report needs: versions, devices, weights at hand, folders, licences, and what looks wrong."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from oldphoto import __version__, weights
from oldphoto.errors import OldphotoError, WeightsUnavailableError
from oldphoto.weights import lock

# The distributions that matter, by what they are needed for; where several hold one module, only one may be installed.
DISTRIBUTIONS = {
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "numpy": ("numpy",),
    "pillow": ("pillow",),
    "cv2": ("opencv-python", "opencv-python-headless"),
    "dlib": ("dlib-bin", "dlib"),
    "huggingface-hub": ("huggingface-hub",),
    "safetensors": ("safetensors",),
    "simplejpeg": ("simplejpeg",),
}

LANDMARKS_LICENCE = (
    "The published 68-point landmark model (landmarks_68) was trained on iBUG 300-W and can't be used in a commercial "
    "product. The compact set does not need it: --model compact, or --no-faces."
)
COMPACT_LICENCE = "The compact weights were trained on openly licensed photos and may be used for anything (MIT)."

Facts = dict[str, dict[str, str] | list[str]]


def diagnose() -> Facts:
    """The findings by heading: a table of names and values, or sentences. Imports torch for its devices."""
    notes: list[str] = []
    return {
        "versions": _versions(notes),
        "devices": _devices(notes),
        "weights": _weights(notes),
        "folders": folders(),
        "licences": [LANDMARKS_LICENCE, COMPACT_LICENCE],
        "problems": notes or ["none found"],
    }


def folders() -> dict[str, str]:
    """Return the folders in which weights are looked for, by place."""

    def told(folder: Callable[[], Path]) -> str:
        try:
            return str(folder())
        except WeightsUnavailableError as error:
            return f"({error})"

    return {
        "override": os.environ.get("OLDPHOTO_WEIGHTS") or "(OLDPHOTO_WEIGHTS is not set)",
        "cache": told(weights.cache_folder),
        "hub": told(weights.hub_cache),
        "compact": str(lock.PACKAGE / lock.COMPACT_FOLDER),
    }


def _versions(notes: list[str]) -> dict[str, str]:
    found = {"oldphoto": __version__, "python": platform.python_version(), "system": platform.platform()}
    for module, names in DISTRIBUTIONS.items():
        installed = {}
        for name in names:
            try:
                installed[name] = version(name)
            except PackageNotFoundError:
                continue
        if not installed:
            notes.append(f"{module} is not installed: pip install {names[0]}")
        if len(installed) > 1:
            both = " and ".join(installed)
            notes.append(f"{both} both hold {module}, and removing one breaks the other: keep one of them")
        found[module] = ", ".join(f"{name} {number}" for name, number in installed.items()) or "absent"
    return found


def _devices(notes: list[str]) -> dict[str, str]:
    try:
        import torch
    except (ImportError, OSError) as error:
        notes.append(f"torch does not load: {error}")
        return {}
    found = {"cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"}
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        found[f"cuda:{number}"] = f"{facts.name}, {facts.total_memory / 2**30:.1f} GiB"
    if torch.backends.mps.is_available():
        found["mps"] = "available"
    return found


def _weights(notes: list[str]) -> dict[str, str]:
    found = {}
    for file in weights.read_lock():
        try:
            path = weights.cached(file)
        except OldphotoError as error:
            if (note := f"{error}; {error.advice}") not in notes:
                notes.append(note)
            path = None
        if file.set == "compact" and path is None:
            notes.append(f"the compact {file.net} is missing or damaged: install oldphoto again")
        found[f"{file.set} {file.net}"] = "absent" if path is None else str(path)
    return found
