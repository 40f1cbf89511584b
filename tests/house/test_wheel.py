"""The wheel is built and opened: what a user installs holds everything that inference needs."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import oldphoto

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [path] = folder.glob("*.whl")
    assert path.name == f"oldphoto-{oldphoto.__version__}-py3-none-any.whl"
    return zipfile.ZipFile(path)


def test_it_holds_every_source_file_and_the_typing_mark(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "oldphoto").rglob("*.py")} <= names
    assert "oldphoto/py.typed" in names


def test_its_lock_and_compact_weights_agree(wheel: zipfile.ZipFile) -> None:
    lock = wheel.read("oldphoto/weights.lock")
    assert lock == (ROOT / "weights.lock").read_bytes()
    rows = [row for rows in tomllib.loads(lock.decode()).values() if isinstance(rows, list) for row in rows]
    compact = [row for row in rows if row["set"] == "compact"]
    assert {row["net"] for row in compact} >= {"damage_net", "old_vae", "clean_vae", "mapping", "face_generator"}
    for row in compact:
        data = wheel.read(f"oldphoto/{row['path'].removeprefix('oldphoto/')}")
        assert (len(data), hashlib.sha256(data).hexdigest()) == (row["bytes"], row["sha256"]), row["path"]


def test_it_names_the_command_and_the_licence(wheel: zipfile.ZipFile) -> None:
    folder = f"oldphoto-{oldphoto.__version__}.dist-info"
    assert b"oldphoto = oldphoto.__main__:main" in wheel.read(f"{folder}/entry_points.txt")
    assert b"MIT License" in wheel.read(f"{folder}/licenses/LICENSE")


def test_it_holds_no_tests_and_no_photos(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"oldphoto", f"oldphoto-{oldphoto.__version__}.dist-info"}
    assert not [name for name in wheel.namelist() if name.endswith((".webp", ".jpg", ".png"))]
