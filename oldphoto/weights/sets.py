"""The weight sets: which network plays which role in each, and what a set can do. Imports no torch.

A stage asks for roles; here, once for each set, is the network of weights.lock that plays each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

SetName = Literal["published", "compact"]
Role = Literal[
    "detector",
    "old_vae",
    "clean_vae",
    "clean_vae_damaged",
    "mapping",
    "mapping_damaged",
    "mapping_damaged_large",
    "strength",
    "fading",
    "face_generator_256",
    "face_generator_512",
    "landmarks",
    "face_strength",
    "face_detector",
    "face_finder",
    "resolution",
    "rebuilder",
    "colour",
]


class Net(NamedTuple):
    """A network by its name in weights.lock, and the set under which the lock lists it."""

    name: str
    home: SetName


@dataclass(frozen=True)
class DetectorSettings:
    """When a detector of damage is believed, and how it looks at photos.

    threshold: the default, 0..1. large_dilation: pixels by which the mask of a large photo grows on each side.
    short_side: pixels of the short side of the grey copy that is looked at; None looks at the photo in colour, at its
    own size and smaller.
    """

    threshold: float
    large_dilation: int = 0
    short_side: int | None = None


@dataclass(frozen=True)
class ModelSet:
    """One weight set.

    nets: the network of each role; the order is that of the records. A role that is missing is nothing the set can do.
    detector: see DetectorSettings. face_sizes: sides of a face crop in pixels, in small and in large photos, where the
    user does not choose. undoes_fading: fading is undone unasked. fills: damage is filled from the photo itself, not by
    the networks. lighter: what a user may give to need less memory.
    """

    name: SetName
    nets: Mapping[Role, Net]
    detector: DetectorSettings
    face_sizes: tuple[Literal[256, 512], Literal[256, 512]]
    undoes_fading: bool
    fills: bool
    lighter: str = ""

    def can(self, role: Role) -> bool:
        """Whether a network of the set plays this role."""
        return role in self.nets

    def home_of(self, net: str) -> SetName:
        """The set under which weights.lock lists a network: this one, for a name that no role has."""
        return next((known.home for known in self.nets.values() if known.name == net), self.name)


# The same in every set. The detector is dlib's own, published by its author; the others come with the package.
_SHARED: dict[Role, Net] = {
    "face_detector": Net("cnn_detector", "published"),
    "face_finder": Net("face_finder", "compact"),
}

PUBLISHED = ModelSet(
    "published",
    {
        "detector": Net("scratch_unet", "published"),
        "old_vae": Net("old_vae", "published"),
        "clean_vae": Net("clean_vae", "published"),
        "clean_vae_damaged": Net("clean_vae_scratch", "published"),
        "mapping": Net("mapping", "published"),
        "mapping_damaged": Net("mapping_scratch", "published"),
        "mapping_damaged_large": Net("mapping_patch_attention", "published"),
        "fading": Net("tone", "compact"),
        "resolution": Net("resolution", "compact"),
        "rebuilder": Net("rebuilder", "published"),
        "colour": Net("deoldify_artistic", "published"),
        "face_generator_256": Net("face_generator_256", "published"),
        "face_generator_512": Net("face_generator_512", "published"),
        "landmarks": Net("landmarks_68", "published"),
        **_SHARED,
    },
    DetectorSettings(threshold=0.4, large_dilation=3, short_side=256),
    face_sizes=(256, 512),
    undoes_fading=False,
    fills=False,
    lighter="--model compact",
)

COMPACT = ModelSet(
    "compact",
    {
        "detector": Net("damage_net", "compact"),
        "old_vae": Net("old_vae", "compact"),
        "clean_vae": Net("clean_vae", "compact"),
        "clean_vae_damaged": Net("clean_vae", "compact"),
        "mapping": Net("mapping", "compact"),
        "mapping_damaged": Net("mapping", "compact"),
        "mapping_damaged_large": Net("mapping", "compact"),
        "strength": Net("restraint", "compact"),
        "fading": Net("tone", "compact"),
        "resolution": Net("resolution", "compact"),
        "rebuilder": Net("rebuilder", "compact"),
        "colour": Net("colour_net", "compact"),
        # Trained at 256 alone, and used at 512 where the user asks for that.
        "face_generator_256": Net("face_generator", "compact"),
        "face_generator_512": Net("face_generator", "compact"),
        "landmarks": Net("landmarks_5", "compact"),
        "face_strength": Net("face_restraint", "compact"),
        **_SHARED,
    },
    DetectorSettings(threshold=0.84),
    face_sizes=(256, 256),
    undoes_fading=True,
    fills=True,
)

SETS: dict[SetName, ModelSet] = {one.name: one for one in (PUBLISHED, COMPACT)}
