"""Faces cut out of a photo, and what a generator makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from oldphoto.stages.changes import ALL, ChangeUse
from oldphoto.stages.faces.face import Face, FoundFace, Levels
from oldphoto.stages.faces.finding import detect_faces
from oldphoto.stages.faces.geometry import Pixels, crop_matrix, cut_out
from oldphoto.stages.faces.landmarks import Landmarks

if TYPE_CHECKING:
    from torch import nn

# Makes of a face before, and of the generator's face, what is used of the latter, in levels, and says how much that is.
Restrain = Callable[[Pixels, Levels], tuple[Levels, ChangeUse]]


def find_faces(pixels: Pixels, landmarks: Landmarks, size: int) -> list[Face]:
    """All faces of a photo, largest first, each cut out at size x size pixels. pixels: (H, W, 3) uint8 RGB."""
    return cut_faces(pixels, detect_faces(pixels), landmarks, size)


def cut_faces(pixels: Pixels, detections: Sequence[FoundFace], landmarks: Landmarks, size: int) -> list[Face]:
    """A Face for each detection, in order and numbered from 1, cut out at size x size from (H, W, 3) uint8 RGB."""
    faces = []
    for number, detection in enumerate(detections, 1):
        points = landmarks.find(pixels, detection)
        matrix = crop_matrix(points, size)
        crop = cut_out(pixels, matrix, size)
        faces.append(Face(detection.bounds, detection.score, points, matrix, crop, number=number))
    return faces


def enhance_faces(
    faces: Sequence[Face], generator: nn.Module, device: str, batch: int, restrain: Restrain | None = None
) -> list[Face]:
    """The same faces with `after` and `kept` filled in; batch: how many the generator is given at once.

    generator: (N, 3, S, S) in [-1, 1] -> the same, on the given device and in eval mode. restrain: see
    Restrain; None uses all.
    """
    import torch

    from oldphoto.models.tensors import to_tensor

    if batch < 1:
        raise ValueError(f"batch is {batch}, not at least 1")
    precision = next((parameter.dtype for parameter in generator.parameters()), torch.float32)
    enhanced: list[Face] = []
    for start in range(0, len(faces), batch):
        some = faces[start : start + batch]
        crops = torch.cat([to_tensor(face.before) for face in some])  # (n, 3, S, S)
        with torch.inference_mode():
            made = generator(crops.to(device=device, dtype=precision)).float().cpu()
        levels = ((made + 1.0) * 127.5).clamp(0.0, 255.0).permute(0, 2, 3, 1).contiguous().numpy()  # (n, S, S, 3)
        for face, after in zip(some, levels, strict=True):
            better, kept = (after, ALL) if restrain is None else restrain(face.before, after)
            enhanced.append(replace(face, after=better, kept=kept))
    return enhanced
