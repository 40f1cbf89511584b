"""Fixtures shared by the tests."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from oldphoto import weights
from oldphoto.models.loaded import Models
from tests.published import PublishedNets

# The hub client reads this once, when it is imported: here, before a test sets it, so that the tests' own hub on
# 127.0.0.1 can be reached by those that follow.
os.environ.pop("HF_HUB_OFFLINE", None)
importlib.import_module("huggingface_hub.constants")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """How many threads torch has; as before, after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with goldens and photographs that lies beside the project in development."""
    if not SHARED.is_dir():
        pytest.skip("../shared is absent")
    return SHARED


@pytest.fixture(scope="session")
def models() -> Models:
    """The compact set as it ships, on the CPU."""
    nets = [f.net for f in weights.read_lock() if f.set == "compact"]
    return Models.load(weights.resolve("compact", lambda _: nets, offline=True), "cpu")


@pytest.fixture(scope="session")
def published(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> PublishedNets:
    """Full-width networks with the goldens' weights."""
    return PublishedNets(shared, tmp_path_factory.mktemp("published"))
