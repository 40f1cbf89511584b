"""Fixtures shared by the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with goldens and photographs that lies beside the project in development."""
    if not SHARED.is_dir():
        pytest.skip("../shared is absent")
    return SHARED
