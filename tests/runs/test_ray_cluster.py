"""The batch on a Ray cluster of this machine, with workers that die: nothing lost, nothing done twice."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from oldphoto.errors import UsageError, WeightsCorruptError
from oldphoto.records import manifest
from oldphoto.records.manifest import Manifest
from oldphoto.runs import batch, ray_cluster
from tests.runs.test_resume import draw, make_plan, negative, setting

NAMES = [f"{number}.png" for number in range(8)]


def log(folder: Path, what: str) -> None:
    with (folder / "log").open("a") as lines:
        lines.write(f"{what}\n")


def logged(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines()


def work(folder: Path, deadly: dict[int, int]) -> batch.Work:
    """Stands in for the networks, in a worker. deadly: how many workers a photo kills, by its colour."""
    log(folder, f"load {os.getpid()}")

    def restore(photo: Any, mask: Any) -> Any:
        colour = int(photo.pixels[0, 0, 0])
        log(folder, f"restore {colour}")
        if logged(folder).count(f"restore {colour}") <= deadly.get(colour, 0):
            os.kill(os.getpid(), signal.SIGKILL)
        return negative(photo, mask)

    return batch.Work(restore, setting())


def broken(folder: Path) -> batch.Work:
    raise WeightsCorruptError("mapping.safetensors is damaged", "fetch it again")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pytest.importorskip("ray", reason="ray (oldphoto[ray]) is not installed")
    for number, name in enumerate(NAMES):
        draw(tmp_path / "in" / name, colour=number)
    (tmp_path / "in/8 bad.png").write_bytes(b"no photo")
    return tmp_path


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_batch_survives_its_workers(folder: Path) -> None:
    """Photo 2 kills one worker, photo 5 every worker that it gets; the file that is no photo fails as ever."""
    looks: dict[str, bool] = {}

    def seen(outcome: batch.Outcome) -> None:
        looks[outcome.planned.source.name] = outcome.look is not None

    with Manifest(folder / "run.jsonl") as kept:
        summary = ray_cluster.run(
            make_plan(folder).photos,
            partial(work, folder, {2: 1, 5: 99}),
            ray_cluster.Pool(workers=2),
            look_room=50_000,
            keep=kept.append,
            on_done=seen,
        )
    assert looks == {name: name != "5.png" for name in NAMES} | {"8 bad.png": False}
    assert summary.exit_code == 4
    assert sorted(outcome.planned.source.name for outcome in summary.failed) == ["5.png", "8 bad.png"]
    # Nothing lost: every other photo is there and whole.
    good = [name for name in NAMES if name != "5.png"]
    assert sorted(path.name for path in (folder / "out").iterdir()) == good
    for number, name in enumerate(NAMES):
        if name in good:
            with Image.open(folder / "out" / name) as picture:
                assert picture.getpixel((0, 0)) == (255 - number, 155, 205)
    # Nothing done twice: one line a photo, and one restoration but for those whose worker died.
    records = manifest.read(folder / "run.jsonl")
    assert sorted(Path(record["input"]["path"]).name for record in records) == sorted([*NAMES, "8 bad.png"])
    assert not any(changes for _, changes in manifest.verify(records))
    restored = [line for line in logged(folder) if line.startswith("restore")]
    assert [restored.count(f"restore {number}") for number in range(8)] == [1, 1, 2, 1, 1, 3, 1, 1]
    # The networks are loaded once a worker: two at first, and one for each of the four that died.
    assert len([line for line in logged(folder) if line.startswith("load")]) == len(
        {line for line in logged(folder) if line.startswith("load")}
    )
    assert 2 <= len([line for line in logged(folder) if line.startswith("load")]) <= 6


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_damaged_weights_end_the_run_there_too(folder: Path) -> None:
    with pytest.raises(WeightsCorruptError, match="is damaged") as caught:
        ray_cluster.run(make_plan(folder).photos, partial(broken, folder), ray_cluster.Pool(workers=1))
    assert caught.value.advice == "fetch it again"
    assert not list((folder / "out").glob("*"))


def test_without_ray_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UsageError, match="needs the package ray"):
        ray_cluster.run([], partial(broken, tmp_path), ray_cluster.Pool())
