"""The Python API has the networks that its options ask for, and says so where one is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oldphoto import weights
from oldphoto.errors import WeightsUnavailableError
from oldphoto.files.image import Photo
from oldphoto.models.loaded import Models
from oldphoto.options import Options
from oldphoto.pipeline import restore
from oldphoto.restorer import Restorer
from oldphoto.weights.sets import SetName

PHOTO = Photo.from_array(np.random.default_rng(3).integers(0, 256, (48, 40, 3), dtype=np.uint8))


def asked_for(name: SetName, options: Options | None, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The networks that the API has ready, without fetching any."""
    wanted: list[str] = []

    def resolve(model: str, nets_for: Callable[[SetName], Iterable[str]], **_: Any) -> weights.WeightSet:
        wanted.extend(nets_for(name))
        return weights.WeightSet(name, {})

    monkeypatch.setattr(weights, "resolve", resolve)
    Restorer.from_pretrained(name, "cpu", options=options)
    return set(wanted)


def test_the_network_that_detects_faces_is_there_where_the_options_ask_for_it() -> None:
    options = Options(face_detector="cnn")
    restorer = Restorer.from_pretrained("compact", "cpu", offline=True, options=options)
    assert restorer.restore(PHOTO, options).faces == ()


def test_published_networks_come_with_what_undoes_fading(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asked_for("published", Options(tone_strength=0.5), monkeypatch)
    assert {"tone", "old_vae", "mapping_patch_attention", "face_finder"} <= asked
    assert "tone" not in asked_for("published", Options(), monkeypatch)


@pytest.mark.parametrize("name", ["compact", "published"])
def test_without_options_there_is_every_network_of_the_set(name: SetName, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asked_for(name, None, monkeypatch)
    # No role is played by these yet: they are there to be fetched and measured.
    spare = {"rebuilder_wdn", "rebuilder_large"}
    assert {file.net for file in weights.read_lock() if file.set == name} - spare <= asked
    assert {"tone", "face_finder"} <= asked


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        (Options(look="faithful", faces=False, tone_strength=0.5), "tone"),
        (Options(look="faithful", faces=False), "restraint"),
        (Options(look="faithful", strength=1.0), "face_generator"),
        (Options(look="faithful", with_scratch=True, faces=False), "damage_net"),
    ],
)
def test_models_without_a_network_say_which(options: Options, missing: str, models: Models) -> None:
    few = {net: path for net, path in models.weight_set.files.items() if net in ("old_vae", "clean_vae", "mapping")}
    with pytest.raises(WeightsUnavailableError, match=f"without '{missing}'"):
        restore(PHOTO, Models(weights.WeightSet("compact", few), "cpu"), options)


def test_a_set_without_a_role_says_so(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailableError, match="published weights have no network for 'strength'"):
        Models(weights.WeightSet("published", {}), "cpu").net("strength")
