"""The stage that learns to enhance faces: `face-generator`."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as PillowImage
from torch import Tensor, nn

from oldphoto.errors import NoInputError
from oldphoto.models.estimator import Estimator
from oldphoto.models.loading import Config, placed
from oldphoto.models.spade import FaceGenerator
from oldphoto.models.translating import translate_whole
from oldphoto.stages import strength
from oldphoto.stages.faces import Landmarks
from oldphoto.stages.faces.enhancing import find_faces
from oldphoto.training import ageing
from oldphoto.training.ageing import Dice
from oldphoto.training.base import (
    GREY,
    Folders,
    Recipe,
    Stage,
    fresh,
    levels_of,
    loaded,
    mean_psnr,
    quickly,
    signed,
    silence,
)
from oldphoto.training.data import Pixels, photos_of, read_photos
from oldphoto.training.losses import PatchDiscriminator, deceive, discern, feature_matching, likeness
from oldphoto.training.repair import FinetuneStage

# Faces in old photos are small: what reaches the generator is mostly enlarged from fewer pixels than it shows. Sides in
# pixels that a batch of crops may have while it is aged, as shares of the generator's, and how often.
FACE_SIDES = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
FACE_SIDE_CHANCES = (0.06, 0.14, 0.2, 0.2, 0.16, 0.12, 0.12)
KEPT_FROM_IT = 8  # one face in so many
FLOOR = 0.03  # four levels of 255; see `likeness`
FACES_AT_ONCE = 4
# A thousand faces are soon known by heart. Share of the crops that are of any photo, with hair and cloth as those of
# faces have; and how faces are varied: standard deviation of their turn in degrees, the range of their size, the most
# they are moved by as a share of the crop, and the range of gamma.
ELSEWHERE = 0.25
TURN, SIZES, MOVED, GAMMAS = 5.0, (0.9, 1.1), 0.05, (0.75, 1.35)


class FaceStage(Stage):
    """The face generator, on aligned clean faces and copies of them that were aged and then restored as a whole: what
    it sees in a run is a photo that the translation has been over, and in the compact set restraint."""

    def __init__(
        self,
        folders: Folders,
        earlier: Path,
        recipe: Recipe,
        device: torch.device,
        file: str,
        config: Config,
        *,
        restrained: bool = False,
    ) -> None:
        self.recipe, self.device = recipe, device
        faces = aligned_faces(folders.faces, earlier, recipe.size, device)
        # Some faces are kept from the generator: faces that it knows it enhances better than any other.
        self.seen, self.unseen = faces, faces
        if len(faces) >= KEPT_FROM_IT:
            every = torch.arange(len(faces), device=device) % KEPT_FROM_IT
            self.seen, self.unseen = faces[every > 0], faces[every == 0]
        trio = ("old_vae", "mapping", "clean_vae")
        nets = {name: placed(loaded(earlier / f"{name}.safetensors", nn.Module), device) for name in trio}
        self.restorer = FinetuneStage.trio(nets)
        self.restraint = loaded(earlier / f"{strength.NET}.safetensors", Estimator) if restrained else None
        net = fresh(config)
        assert isinstance(net, FaceGenerator)
        if net.config.residual:
            silence(net.last)
        self.photos = photos_of(folders.clean, device, 608, max(256, recipe.size))
        self.file, self.nets = file, {file: net}
        self.judges: dict[str, nn.Module] = {"picture": PatchDiscriminator(3, 32, 3)}

    def sample(self, count: int, side: int, dice: Dice) -> dict[str, Tensor]:
        """clean, old (N, 3, S, S) in [-1, 1]; old is aged and restored."""
        batch = self.drawn(self.seen, count - round(ELSEWHERE * count), side, dice)
        if len(batch["clean"]) < count:
            others = self.aged(self.photos.crops(count - len(batch["clean"]), side, dice), side, dice)
            batch = {k: torch.cat([batch[k], others[k]]) for k in batch}
        return batch

    def fixed(self, count: int, side: int) -> dict[str, Tensor]:
        """Return fixed samples of faces that no step sees."""
        return self.unknown(count, side, self.fixed_dice())

    def unknown(self, count: int, side: int, dice: Dice) -> dict[str, Tensor]:
        """Draw samples, as `sample` does, of faces that no step sees; few at a time, since what is drawn together is
        aged at one size."""
        few = [min(FACES_AT_ONCE, count - start) for start in range(0, count, FACES_AT_ONCE)]
        parts = [self.drawn(self.unseen, number, side, dice) for number in few]
        return {k: torch.cat([part[k] for part in parts]) for k in parts[0]}

    def drawn(self, faces: Tensor, count: int, side: int, dice: Dice) -> dict[str, Tensor]:
        """Draw samples, as `sample` does, of these faces, (F, 3, S, S) uint8."""
        rng = dice.host
        clean = faces[dice.placed(rng.integers(len(faces), size=count))].float() / 255.0
        return self.aged(varied(clean, dice), side, dice)

    def aged(self, clean: Tensor, side: int, dice: Dice) -> dict[str, Tensor]:
        """Make samples, as `sample` does, of pictures (N, 3, S, S) in [0, 1]; all are aged at one size."""
        rng = dice.host
        clean = torch.where(dice.some(len(clean), GREY), ageing.grey(clean), clean)
        small = max(32, round(side * rng.choice(FACE_SIDES, p=FACE_SIDE_CHANCES) / 16) * 16)
        old = clean if small == side else ageing.resized(clean, small, cv2.INTER_AREA)
        old = self._restored(signed(ageing.wider_mixture(old, dice)))
        if small != side:
            old = ageing.resized(old, side, cv2.INTER_LINEAR if rng.random() < 0.7 else cv2.INTER_CUBIC)
        return {"clean": signed(clean), "old": signed(old)}

    @torch.no_grad()
    def _restored(self, old: Tensor) -> Tensor:
        """Photos (N, 3, S, S) in [-1, 1] as a run restores them, but for faces, in [0, 1]."""
        with quickly(self.device):
            made = translate_whole(old, None, self.restorer).float()
        if self.restraint is None:
            return (made.clamp(-1.0, 1.0) + 1.0) / 2.0
        used = []
        for before, after in zip(levels_of(old), levels_of(made), strict=True):
            use = strength.estimate(before, after, None, self.restraint)
            used.append(strength.apply(before, after, None, use))
        return torch.from_numpy(np.stack(used)).permute(0, 3, 1, 2).to(self.device) / 255.0

    def loss(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Likeness, feature matching and LSGAN."""
        made = self.nets[self.file](batch["old"])
        judge = self.judges["picture"]
        real, fake = judge(batch["clean"]), judge(made)
        mine = likeness(made, batch["clean"], FLOOR) | {
            "features": 2.0 * feature_matching(real, fake),
            "gan": 0.05 * deceive(fake),
        }
        return mine, {"judge": discern(real, judge(made.detach()))}

    @torch.no_grad()
    def validate(self, nets: dict[str, nn.Module]) -> dict[str, float]:
        """PSNR of the enhanced face and of what it was made from, and of sharp faces put through."""
        net = nets[self.file]
        batch = self.fixed(32, self.recipe.size)
        old, clean = batch["old"], batch["clean"]
        return {
            "psnr": mean_psnr(net(old), clean),
            "psnr_input": mean_psnr(old, clean),
            "psnr_sharp": mean_psnr(net(clean), clean),
        }


def varied(faces: Tensor, dice: Dice) -> Tensor:
    """Aligned faces (N, 3, S, S) in [0, 1], each mirrored or not, turned, scaled, moved and lit otherwise."""
    rng, count = dice.host, len(faces)
    angle, size = np.radians(rng.normal(0.0, TURN, count)), rng.uniform(*SIZES, count)
    matrix = np.zeros((count, 2, 3), np.float32)
    matrix[:, 0, 0] = matrix[:, 1, 1] = np.cos(angle) / size
    matrix[:, 0, 1] = -np.sin(angle) / size
    matrix[:, 1, 0] = np.sin(angle) / size
    matrix[:, :, 2] = rng.uniform(-2.0 * MOVED, 2.0 * MOVED, (count, 2))
    matrix[rng.random(count) < 0.5, 0, :2] *= -1.0
    places = F.affine_grid(dice.placed(matrix), list(faces.shape), align_corners=False)
    # Bicubic: what is the truth has to stay sharp.
    moved = F.grid_sample(faces, places, mode="bicubic", padding_mode="reflection", align_corners=False)
    gamma = torch.exp(dice.figures(count, math.log(GAMMAS[0]), math.log(GAMMAS[1])))
    return moved.clamp(0.0, 1.0) ** gamma


@lru_cache(maxsize=2)
def aligned_faces(folder: Path, earlier: Path, side: int, device: torch.device) -> Tensor:
    """The surest face of every photo of a folder, aligned: (count, 3, side, side) uint8.

    Photos without one are left out, and so are faces with fewer than two thirds of the pixels. The search takes
    minutes: what it finds is kept in `earlier`/aligned-<side>, and read from there if that folder is there. Raises
    NoInputError where nothing is left.
    """
    kept = earlier / f"aligned-{side}"
    found: list[Pixels] = []
    if kept.is_dir():
        found = read_photos(kept, side, side)
    else:
        landmarks = Landmarks(earlier / "landmarks_5.safetensors")
        for pixels in read_photos(folder, least=64):
            faces = find_faces(pixels, landmarks, side)
            if faces and np.hypot(faces[0].matrix[0, 0], faces[0].matrix[1, 0]) > 2.0 / 3.0:
                found.append(np.asarray(faces[0].before, np.uint8))
        if not found:
            raise NoInputError(f"{folder}: no face was found")
        part = kept.with_suffix(".part")
        part.mkdir(parents=True, exist_ok=True)
        for number, face in enumerate(found):
            PillowImage.fromarray(face).save(part / f"{number:05}.png")
        part.replace(kept)
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous().to(device)
