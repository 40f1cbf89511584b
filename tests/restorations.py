"""Restorations made without networks."""

from __future__ import annotations

from typing import Any

from oldphoto.arrays import Mask
from oldphoto.files.image import Photo
from oldphoto.models.translating import TranslationPlan
from oldphoto.pipeline import Restoration


def negative_of(photo: Photo, mask: Mask | None, **more: Any) -> Restoration:
    """The photo turned into its negative; `fading` and `strength` are facts of those stages, the rest as it is."""
    facts = {stage: more.pop(stage, None) for stage in ("fading", "strength")}
    facts["translation"] = TranslationPlan("whole", 0)
    return Restoration(photo.with_pixels(255 - photo.pixels), mask, facts=facts, **more)
