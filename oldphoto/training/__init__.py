"""The training recipe. Imports the rest of the package; nothing but the command line imports it."""

from __future__ import annotations

# The stages of each architecture, in the order in which they are run. Here, since `oldphoto train --help` names them
# and loads no torch.
STAGE_NAMES = {
    "compact": (
        "landmarks",
        "damage",
        "colour",
        "rebuild-distil",
        "rebuild",
        "old-vae",
        "clean-vae",
        "mapping",
        "finetune",
        "restraint",
        "tone",
        "face-generator",
        "face-restraint",
        "face-finder",
    ),
    "published": (
        "old-vae",
        "clean-vae",
        "mapping",
        "mapping-scratch",
        "mapping-patch-attention",
        "scratch-unet",
        "face-generator-256",
        "face-generator-512",
    ),
}
