"""The stages whose networks judge from figures measured on photos: `restraint` and `face-restraint`."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from oldphoto.files.colour import luminance
from oldphoto.models.estimator import Estimator, EstimatorConfig
from oldphoto.models.loading import placed
from oldphoto.models.spade import FaceGenerator
from oldphoto.models.translating import translate_whole
from oldphoto.stages import strength
from oldphoto.training import ageing
from oldphoto.training.ageing import Dice
from oldphoto.training.base import COMPACT, Folders, Recipe, Stage, levels_of, loaded
from oldphoto.training.degrade import Image
from oldphoto.training.enhancement import FACES_AT_ONCE, FaceStage
from oldphoto.training.repair import FinetuneStage

MEASURED_AT_ONCE = 32
Measured = NDArray[np.float32]


class EstimatorStage(Stage):
    """An estimator, on figures of photos and on how its answers bear on the error.

    The error of a photo's answers p is a quadratic form, rest - 2 p.linear + p'quadratic p, in squared levels of 255:
    so photos are drawn and measured once, `samples` of them, and kept beside the weights; steps cost nothing.
    """

    samples: int
    # Squared levels of 255 that count little: an error of this size has half the weight that none would have.
    floor = 2.0
    first: tuple[float, ...]  # answers before training

    def __init__(self, file: str, earlier: Path, recipe: Recipe, device: torch.device) -> None:
        self.recipe, self.device, self.file = recipe, device, file
        config = COMPACT[file]
        assert isinstance(config, EstimatorConfig)
        net = Estimator(config)
        parts = -(-min(self.samples, recipe.steps * recipe.batch) // MEASURED_AT_ONCE)
        folder = earlier / f"{file}-samples"
        measured = [self._part(folder / f"{recipe.seed}-{recipe.size}-{k:04}.safetensors", k) for k in range(parts)]
        self.all = {k: torch.from_numpy(np.concatenate([m[k] for m in measured])).to(device) for k in measured[0]}
        net.usual.copy_(self.all["figures"].mean(dim=0))
        net.spread.copy_(self.all["figures"].std(dim=0) + 0.01)
        # At first: as photos on average want it.
        with torch.no_grad():
            net.last.weight.zero_()
            net.last.bias.zero_()
            net.last.bias[: len(self.first)] = torch.tensor(self.first)
        self.nets = {file: net}
        self.judges: dict[str, nn.Module] = {}

    def _part(self, path: Path, number: int) -> dict[str, Measured]:
        """Samples that were measured before, or are now."""
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            made = self.measured(MEASURED_AT_ONCE, Dice.seeded(self.device, self.recipe.seed, number))
            part = path.with_suffix(".part")
            save_file(made, part)
            part.replace(path)
        return load_file(path)

    @abstractmethod
    def measured(self, count: int, dice: Dice) -> dict[str, Measured]:
        """figures (N, F), quadratic (N, K, K), linear (N, K), rest (N,), all float32; see the class."""

    def sample(self, count: int, side: int, dice: Dice) -> dict[str, Tensor]:
        """Some of the samples; the first in sixteen are left to `validate`."""
        kept = len(self.all["rest"]) // 16
        those = dice.placed(dice.host.integers(kept, len(self.all["rest"]), count))
        return {k: v[those] for k, v in self.all.items()}

    @staticmethod
    def error(answers: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """(N,) squared levels of 255."""
        one = answers[..., None]
        form = (one.mT @ batch["quadratic"] @ one)[:, 0, 0] - 2.0 * (answers * batch["linear"]).sum(dim=1)
        return (form + batch["rest"]).clamp_min(0.0)

    def kept_back(self) -> dict[str, Tensor]:
        """The samples that no step sees."""
        return {k: v[: max(1, len(v) // 16)] for k, v in self.all.items()}


def _decibels(error: Tensor) -> float:
    """Mean PSNR of squared levels of 255."""
    return float((10.0 * torch.log10(65025.0 / error.clamp_min(0.05))).mean())


class SharesStage(EstimatorStage):
    """How much of a network's changes to keep, and, where it `sharpens`, how much sharper to make the result; see
    `changes.ChangeUse`."""

    first: tuple[float, ...] = (0.9, 0.9, 0.9, 0.9)
    harm: float
    sharpens = False

    def rows(self, before: Tensor, after: Tensor, clean: Tensor, mask: Tensor | None = None) -> dict[str, Measured]:
        """As `measured`, of pictures (N, 3, H, W) in [-1, 1] as they came, as they were made and as they should be;
        mask (N, 1, H, W), 1 = damaged."""
        levels = [levels_of(x).astype(np.float32) for x in (before, after, clean)]
        holes = np.zeros(levels[0].shape[:3], np.bool_) if mask is None else (mask[:, 0] > 0).cpu().numpy()
        rows = [self._of_one(*one) for one in zip(*levels, holes, strict=True)]
        return {k: np.stack([row[k] for row in rows]).astype(np.float32) for k in rows[0]}

    def _of_one(self, before: Image, after: Image, clean: Image, hole: NDArray[np.bool_]) -> dict[str, Measured]:
        change = after - before
        whole = strength.repaired(hole)[..., None]
        split = [part if part.ndim == 3 else part[..., None] for part in strength.parts(change)]
        if self.sharpens:
            split += [band[..., None] for band in strength.detail(luminance(after))]
        free = np.stack([np.broadcast_to((1.0 - whole) * part, change.shape).ravel() for part in split])
        wanted = (clean - before - whole * change).ravel()
        return {
            "figures": strength.figures(before, after, hole & (not hole.all())),
            "quadratic": free @ free.T / wanted.size,
            "linear": free @ wanted / wanted.size,
            "rest": np.array(wanted @ wanted / wanted.size),
        }

    def loss(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Logarithm of the error: a photo that needed little counts as much as one that needed a lot. What makes a
        photo worse than it came counts as often again as `harm` says."""
        answers = self.nets[self.file](batch["figures"])
        # What is out of range counts as what becomes of it, but for so little that it finds its way back.
        answers = torch.lerp(self.within(answers), answers, 0.02)
        error = torch.log(self.error(answers, batch) + self.floor)
        harm = (error - torch.log(batch["rest"] + self.floor)).clamp_min(0.0)
        return {"error": error.mean(), "harm": self.harm * harm.mean()}, {}

    @staticmethod
    def within(answers: Tensor) -> Tensor:
        """As a run takes them."""
        return answers.clamp_min(0.0).minimum(answers.new_tensor(strength.MOST[: answers.shape[1]]))

    @torch.no_grad()
    def validate(self, nets: dict[str, nn.Module]) -> dict[str, float]:
        """PSNR with what is kept, with all of the change and nothing sharpened, and with nothing done."""
        batch = self.kept_back()
        answers = nets[self.file](batch["figures"])
        every = torch.zeros_like(answers)
        every[:, : strength.SHARES] = 1.0
        return {
            "psnr": _decibels(self.error(self.within(answers), batch)),
            "psnr_all": _decibels(self.error(every, batch)),
            "psnr_input": _decibels(self.error(0.0 * every, batch)),
        }


class RestraintStage(SharesStage):
    """How much of the translation's changes to keep, and how much sharper to make the result."""

    first = (*SharesStage.first, 0.1, 0.1, 0.1)
    sharpens = True
    samples = 6144
    floor = 8.0
    harm = 0.3

    def __init__(self, folders: Folders, earlier: Path, recipe: Recipe, device: torch.device) -> None:
        self.drawn = _Lightly(folders, earlier, recipe, device)
        self.restorer = FinetuneStage.trio({name: placed(net, device).eval() for name, net in self.drawn.nets.items()})
        super().__init__(strength.NET, earlier, recipe, device)

    @torch.inference_mode()
    def measured(self, count: int, dice: Dice) -> dict[str, Measured]:
        """See EstimatorStage."""
        batch = self.drawn.sample(count, self.recipe.size, dice)
        made = translate_whole(batch["old"], batch["mask"], self.restorer, batch["trusted"] > 0)
        return self.rows(batch["old"], made, batch["clean"], batch["mask"])


class _Lightly(FinetuneStage):
    """Its samples, with more of those that need little: restraint is for them."""

    def aged(self, x: Tensor, dice: Dice) -> Tensor:
        """Half by the wider mixture; of the others a sixth untouched, the rest by one operation alone, four times as
        often one that leaves most as it was, and three times real grain, as old photos have little else."""
        rng = dice.host
        lightly = rng.random(len(x)) < 0.5
        x = ageing.applied(super().aged, x, ~lightly, dice)
        operations = [*ageing.SINGLE, *[ageing.jpeg, ageing.low_resolution] * 3, *[self.grained] * 3]
        which = np.where(rng.random(len(x)) < 0.15, -1, rng.integers(len(operations), size=len(x)))
        for k, operation in enumerate(operations):
            x = ageing.applied(operation, x, lightly & (which == k), dice)
        return x

    def grained(self, x: Tensor, dice: Dice) -> Tensor:
        """Real grain, and mostly what scanning and storing does to it."""
        x = self.grain.laid(x, 1.0, dice)
        rng = dice.host
        x = ageing.applied(ageing.low_resolution, x, rng.random(len(x)) < 0.2, dice)
        return ageing.applied(ageing.jpeg, x, rng.random(len(x)) < 0.6, dice)


class FaceRestraintStage(SharesStage):
    """How much of the face generator's changes to keep."""

    samples = 2048
    harm = 10.0

    def __init__(self, folders: Folders, earlier: Path, recipe: Recipe, device: torch.device) -> None:
        config = COMPACT["face_generator"]
        self.drawn = FaceStage(folders, earlier, recipe, device, "face_generator", config, restrained=True)
        self.generator = placed(loaded(earlier / "face_generator.safetensors", FaceGenerator), device).eval()
        super().__init__(strength.FACE_NET, earlier, recipe, device)

    @torch.inference_mode()
    def measured(self, count: int, dice: Dice) -> dict[str, Measured]:
        """See EstimatorStage; of faces that the generator was not trained on."""
        batch = self.drawn.unknown(count, self.recipe.size, dice)
        made = torch.cat([self.generator(old) for old in torch.split(batch["old"], FACES_AT_ONCE)])
        return self.rows(batch["old"], made, batch["clean"])
