"""The figures of `oldphoto bench` are there for every stage and size; how large they are is not tested."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from oldphoto.bench import DAMAGED_SHARE, STAGES, photo
from oldphoto.cli import app
from oldphoto.machine.memory import resident


def test_every_stage_has_its_figures() -> None:
    done = CliRunner().invoke(app, ["bench", "--sizes", "0.02,0.05", "--model", "compact", "--json"])
    assert done.exit_code == 0
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["stage"] for row in rows] == [*STAGES, *STAGES]
    for row in rows:
        pixels = row["width"] * row["height"]
        assert row["seconds_per_megapixel"] == pytest.approx(row["seconds"] * 1e6 / pixels)
        assert 0.3 * resident() < row["peak_memory_bytes"] < 64e9
        assert (row["way"] is None) == ("translation" not in row["stage"])
    assert rows[0]["width"] * rows[0]["height"] == pytest.approx(0.02e6, rel=0.02)


def test_one_stage_and_words() -> None:
    done = CliRunner().invoke(app, ["bench", "--sizes", "0.02", "--stage", "translation", "--model", "compact"])
    assert done.exit_code == 0
    assert done.stdout.startswith("163 x 122  translation")
    assert "s/MP" in done.stdout


@pytest.mark.parametrize("wrong", [["--sizes", "big"], ["--sizes", "1,-4"], ["--stage", "lunch"]])
def test_wrong_sizes_and_stages_are_refused(wrong: list[str]) -> None:
    assert CliRunner().invoke(app, ["bench", *wrong]).exit_code == 2


def test_the_made_up_photo_is_the_same_each_time_and_damaged_as_said() -> None:
    one, two = photo(0.5), photo(0.5)
    assert np.array_equal(one[0], two[0])
    assert np.array_equal(one[1], two[1])
    assert one[1].mean() == pytest.approx(DAMAGED_SHARE, abs=0.01)
