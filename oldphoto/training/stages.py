"""The training stages by name, in the order in which they are run, with the recipe of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from oldphoto.models.colour_net import ColourNetConfig
from oldphoto.models.damage_net import DamageNetConfig
from oldphoto.models.landmarks import LandmarkNetConfig
from oldphoto.models.loading import PUBLISHED
from oldphoto.models.srvgg import SRVGGConfig
from oldphoto.training.base import COMPACT, Folders, Recipe, Stage
from oldphoto.training.colour import ColourStage
from oldphoto.training.damage import DamageStage
from oldphoto.training.enhancement import FaceStage
from oldphoto.training.estimators import FaceRestraintStage, RestraintStage
from oldphoto.training.face_finder import FinderStage
from oldphoto.training.fading import ToneStage
from oldphoto.training.landmarks import LandmarkStage, placed_points, portraits
from oldphoto.training.rebuilding import RebuildStage
from oldphoto.training.repair import FinetuneStage, MappingStage, ScratchStage, VaeStage

Build = Callable[[Folders, Path, Recipe, torch.device], Stage]
Architecture = Literal["compact", "published"]
# The stages by name, in order. Configs are looked up when a stage is built, so that tests can put smaller ones there.
STAGES: dict[Architecture, dict[str, tuple[Build, Recipe]]] = {
    "compact": {
        "landmarks": (
            lambda f, _, r, d: LandmarkStage(portraits(f.faces, placed_points(f.landmarks)), r, d, _landmark_config()),
            Recipe(steps=1300, batch=256, size=96, rate=2e-3),
        ),
        "damage": (
            lambda f, _, r, d: DamageStage(f, r, d, _damage_config()),
            Recipe(steps=20_000, batch=16, size=256, rate=1e-3, smoothing=0.999),
        ),
        "colour": (
            lambda f, _, r, d: ColourStage(f, r, d, _colour_config()),
            Recipe(steps=20_000, batch=16, size=192, rate=1e-3),
        ),
        "rebuild-distil": (
            lambda f, _, r, d: RebuildStage(f, r, d, _rebuilder_config(), adversarial=False),
            Recipe(steps=4000, batch=8, size=64, rate=8e-4),
        ),
        "rebuild": (
            lambda f, _, r, d: RebuildStage(f, r, d, _rebuilder_config(), adversarial=True),
            Recipe(steps=20_000, batch=8, size=64, rate=3e-4),
        ),
        "old-vae": (
            lambda f, _, r, d: VaeStage(f, r, d, COMPACT["old_vae"], old=True),
            Recipe(steps=400, batch=24, size=128, rate=6e-4),
        ),
        "clean-vae": (
            lambda f, _, r, d: VaeStage(f, r, d, COMPACT["clean_vae"], old=False),
            Recipe(steps=800, batch=48, size=128, rate=6e-4),
        ),
        "mapping": (
            lambda f, e, r, d: MappingStage(f, e, r, d, "mapping", COMPACT["mapping"]),
            Recipe(steps=800, batch=48, size=128, rate=6e-4),
        ),
        "finetune": (FinetuneStage, Recipe(steps=6000, batch=48, size=160, rate=8e-4)),
        "restraint": (RestraintStage, Recipe(steps=12_000, batch=64, size=192, rate=2e-3)),
        "tone": (ToneStage, Recipe(steps=6000, batch=96, size=128, rate=1.5e-3)),
        "face-generator": (
            lambda f, e, r, d: FaceStage(f, e, r, d, "face_generator", COMPACT["face_generator"], restrained=True),
            Recipe(steps=4000, batch=24, size=256, rate=4e-4),
        ),
        "face-restraint": (FaceRestraintStage, Recipe(steps=12_000, batch=64, size=256, rate=2e-3)),
        "face-finder": (
            lambda f, _, r, d: FinderStage(f, r, d, COMPACT["face_finder"]),
            Recipe(steps=4000, batch=8, size=256, rate=2e-3),
        ),
    },
    # The paper's crops and rate; its 200 epochs in batches of 36 to 120 are a matter of the machine at hand.
    "published": {
        "old-vae": (
            lambda f, _, r, d: VaeStage(f, r, d, PUBLISHED["old_vae"], old=True),
            Recipe(steps=50_000, batch=16, size=256),
        ),
        "clean-vae": (
            lambda f, _, r, d: VaeStage(f, r, d, PUBLISHED["clean_vae"], old=False),
            Recipe(steps=50_000, batch=16, size=256),
        ),
        "mapping": (
            lambda f, e, r, d: MappingStage(f, e, r, d, "mapping", PUBLISHED["mapping"]),
            Recipe(steps=50_000, batch=16, size=256),
        ),
        "mapping-scratch": (
            lambda f, e, r, d: MappingStage(f, e, r, d, "mapping_scratch", PUBLISHED["mapping_scratch"]),
            Recipe(steps=50_000, batch=16, size=256),
        ),
        "mapping-patch-attention": (
            lambda f, e, r, d: MappingStage(
                f, e, r, d, "mapping_patch_attention", PUBLISHED["mapping_patch_attention"]
            ),
            Recipe(steps=50_000, batch=8, size=256),
        ),
        "scratch-unet": (
            lambda f, _, r, d: ScratchStage(f, r, d, PUBLISHED["scratch_unet"]),
            Recipe(steps=50_000, batch=16, size=256),
        ),
        "face-generator-256": (
            lambda f, e, r, d: FaceStage(f, e, r, d, "face_generator_256", PUBLISHED["face_generator_256"]),
            Recipe(steps=50_000, batch=8, size=256),
        ),
        "face-generator-512": (
            lambda f, e, r, d: FaceStage(f, e, r, d, "face_generator_512", PUBLISHED["face_generator_512"]),
            Recipe(steps=50_000, batch=4, size=512),
        ),
    },
}


def _landmark_config() -> LandmarkNetConfig:
    config = COMPACT["landmarks_5"]
    assert isinstance(config, LandmarkNetConfig)
    return config


def _damage_config() -> DamageNetConfig:
    config = COMPACT["damage_net"]
    assert isinstance(config, DamageNetConfig)
    return config


def _colour_config() -> ColourNetConfig:
    config = COMPACT["colour_net"]
    assert isinstance(config, ColourNetConfig)
    return config


def _rebuilder_config() -> SRVGGConfig:
    config = COMPACT["rebuilder"]
    assert isinstance(config, SRVGGConfig)
    return config
