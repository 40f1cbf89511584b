"""The stages that learn to repair: the scratch detector, and the networks of the translation.

Stage one of the paper: `old-vae`, `clean-vae`. Stage two: `mapping`, with both VAEs frozen; the published architecture
has one for photos without damage, one with and one for large photos. A third stage of ours, for the compact networks
alone: `finetune`, encoder, mapping and decoder end to end.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oldphoto.models.damage_net import DamageNet
from oldphoto.models.loading import Config, placed
from oldphoto.models.mapping import Mapping
from oldphoto.models.translating import TranslationNets, source_of, translate_latents, translate_whole
from oldphoto.models.vae import Vae
from oldphoto.training import ageing
from oldphoto.training.ageing import Dice
from oldphoto.training.base import Aged, Folders, Recipe, fresh, loaded, mean_psnr, quickly, signed
from oldphoto.training.data import photos_of
from oldphoto.training.losses import (
    PatchDiscriminator,
    deceive,
    discern,
    edges,
    feature_matching,
    latent_prior,
    likeness,
)

# Standard deviation of the noise on latents in stage one. The paper's is 1 at an unbounded latent scale.
LATENT_NOISE = 0.2
# To the detector, a pixel of lettering counts for so many more: a thousandth of a photo is nothing to the mean.
LETTERS_WEIGH = 10.0
# See `likeness`: 13 levels of 255. What a sound photo loses weighs little, since `restraint` keeps it from harm.
FINETUNE_FLOOR = 0.1


class VaeStage(Aged):
    """Stage one: a VAE of one domain; the old one also learns to make real and synthetic latents alike."""

    def __init__(self, folders: Folders, recipe: Recipe, device: torch.device, config: Config, *, old: bool) -> None:
        super().__init__(folders, recipe, device)
        self.old = old
        self.real = photos_of(folders.old, device, 900, max(256, recipe.size)) if old else None
        net = fresh(config)
        assert isinstance(net, Vae)
        self.nets = {"old_vae" if old else "clean_vae": net}
        self.vae = net
        self.judges = {"picture": PatchDiscriminator(3, 24, 2)}
        if old:
            self.judges["latent"] = PatchDiscriminator(net.config.latent_channels, 64, 0)

    def sample(self, count: int, side: int, dice: Dice) -> dict[str, Tensor]:
        """Draw samples as Aged does; the old domain adds crops of real old photos."""
        batch = super().sample(count, side, dice)
        if self.real is not None:
            batch["real"] = signed(self.real.crops(count, side, dice))
        return batch

    def loss(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """L1, edges, KL, LSGAN and feature matching on the picture; LSGAN on the latents of the two old domains."""
        x, mask = batch["clean"], None
        if self.old:
            x = torch.cat([batch["old"], batch["real"]])
            mask = torch.cat([batch["mask"], torch.zeros_like(batch["mask"])])
        latent = self.vae.encode(x, mask)
        made = self.vae.decode(latent + LATENT_NOISE * torch.randn_like(latent))
        real, fake = self.judges["picture"](x), self.judges["picture"](made)
        mine = {
            "l1": 10.0 * F.l1_loss(made, x),
            "edges": 5.0 * edges(made, x).mean(),
            "kl": 0.01 * latent_prior(latent),
            "gan": 0.1 * deceive(fake),
            "features": 1.0 * feature_matching(real, fake),
        }
        judged = {"judge": discern(real, self.judges["picture"](made.detach()))}
        if self.old:
            half = len(batch["old"])
            mine["latent_gan"] = 0.1 * deceive(self.judges["latent"](latent[:half]))
            seen = self.judges["latent"](latent.detach())
            real_seen, fake_seen = [f[half:] for f in seen], [f[:half] for f in seen]
            judged["latent_judge"] = discern(real_seen, fake_seen)
        return mine, judged

    @torch.no_grad()
    def validate(self, nets: dict[str, nn.Module]) -> dict[str, float]:
        """PSNR of the reconstruction."""
        (net,) = nets.values()
        assert isinstance(net, Vae)
        batch = self.fixed(12, 192)
        x = batch["old" if self.old else "clean"]
        return {"psnr": mean_psnr(net.decode(net.encode(x, batch["mask"] if self.old else None)), x)}


class MappingStage(Aged):
    """Stage two: the mapping between the latents of two frozen VAEs."""

    def __init__(
        self, folders: Folders, earlier: Path, recipe: Recipe, device: torch.device, file: str, config: Config
    ) -> None:
        self.old_vae, self.clean_vae = (
            placed(loaded(earlier / f"{name}.safetensors", Vae), device) for name in ("old_vae", "clean_vae")
        )
        net = fresh(config)
        assert isinstance(net, Mapping)
        # Where neither attention nor the encoder is told of damage, the mapping is for photos without.
        told = net.config.context != "none" or self.old_vae.config.mask_input
        super().__init__(folders, recipe, device, 0.5 if told else 0.0)
        self.nets = {file: net}
        self.judges = {"picture": PatchDiscriminator(3, 24, 2)}

    def loss(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Latent L1 (60), feature matching (10) and LSGAN on the decoded picture, as published."""
        mapped, made = self._translated(self.nets, batch)
        with torch.no_grad():
            wanted = self.clean_vae.encode(batch["clean"])
        judge = self.judges["picture"]
        real, fake = judge(batch["clean"]), judge(made)
        mine = {
            "latent": 60.0 * F.l1_loss(mapped, wanted),
            "features": 10.0 * feature_matching(real, fake),
            "gan": deceive(fake),
        }
        return mine, {"judge": discern(real, judge(made.detach()))}

    @torch.no_grad()
    def validate(self, nets: dict[str, nn.Module]) -> dict[str, float]:
        """PSNR of the decoded picture, and of the degraded input beside it."""
        batch = self.fixed(12, 192)
        _, made = self._translated(nets, batch)
        return {"psnr": mean_psnr(made, batch["clean"]), "psnr_input": mean_psnr(batch["old"], batch["clean"])}

    def _translated(self, nets: dict[str, nn.Module], batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mapped latents, and the picture painted from them."""
        (mapping,) = nets.values()
        assert isinstance(mapping, Mapping)
        trio = TranslationNets(self.old_vae, mapping, self.clean_vae)
        _, mapped = translate_latents(batch["old"], batch["mask"] if self.damaged else None, trio)
        return mapped, self.clean_vae.decode(mapped)


class FinetuneStage(Aged):
    """Stage three, ours: encoder, mapping and decoder end to end, the decoder refining the photo."""

    def __init__(self, folders: Folders, earlier: Path, recipe: Recipe, device: torch.device) -> None:
        super().__init__(folders, recipe, device)
        self.detector = placed(loaded(earlier / "damage_net.safetensors", DamageNet), device)
        self.nets = {
            "old_vae": loaded(earlier / "old_vae.safetensors", Vae),
            "mapping": loaded(earlier / "mapping.safetensors", Mapping),
            "clean_vae": loaded(earlier / "clean_vae.safetensors", Vae),
        }

    def sample(self, count: int, side: int, dice: Dice) -> dict[str, Tensor]:
        """Draw samples as Aged does; for half of the samples the mask is what the detector finds, misses and mistakes
        included.

        trusted (N, 1, 1, 1): 1 where the mask is the user's.
        """
        batch = super().sample(count, side, dice)
        trusted = dice.some(count, 0.5)
        with torch.no_grad(), quickly(self.device):
            found = torch.sigmoid(self.detector(batch["old"]).float())
        found = (found >= dice.figures(count, 0.3, 0.7)).to(batch["mask"].dtype)
        return batch | {"mask": torch.where(trusted, batch["mask"], found), "trusted": trusted.to(found.dtype)}

    @staticmethod
    def trio(nets: dict[str, nn.Module]) -> TranslationNets:
        """The networks of this stage as translation takes them."""
        old, mapping, clean = nets["old_vae"], nets["mapping"], nets["clean_vae"]
        assert isinstance(old, Vae)
        assert isinstance(mapping, Mapping)
        assert isinstance(clean, Vae)
        return TranslationNets(old, mapping, clean)

    def loss(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Likeness of the restored picture, and of what was painted from the latents alone.

        Without the second, the deep layers would drift: next to nothing depends on them until they are used, and
        Adam makes full steps of their faint gradients.
        """
        nets = self.trio(self.nets)
        old, mask = batch["old"], batch["mask"]
        filled, latent = translate_latents(old, mask, nets)
        decoder, clean = nets.clean_vae.decoder, batch["clean"]
        features, painted = decoder.paint(decoder.blocks(latent))
        terms = {"painted": 0.1 * torch.stack(list(likeness(painted, clean, FINETUNE_FLOOR).values())).sum()}
        if decoder.refine is not None:
            made = decoder.refine(features, painted, source_of(old, filled, mask, batch["trusted"] > 0))
            terms |= likeness(made, clean, FINETUNE_FLOOR)
        return terms, {}

    @torch.no_grad()
    def validate(self, nets: dict[str, nn.Module]) -> dict[str, float]:
        """PSNR of restored and of degraded photos, and of undamaged photos put through."""
        trio = self.trio(nets)
        batch = self.fixed(32, 128)
        made = translate_whole(batch["old"], batch["mask"], trio, batch["trusted"] > 0)
        kept = translate_whole(batch["clean"], None, trio)
        return {
            "psnr": mean_psnr(made, batch["clean"]),
            "psnr_input": mean_psnr(batch["old"], batch["clean"]),
            "psnr_undamaged": mean_psnr(kept, batch["clean"]),
        }


class ScratchStage(Aged):
    """The scratch detector, on synthetic damage over degraded photos."""

    def __init__(self, folders: Folders, recipe: Recipe, device: torch.device, config: Config) -> None:
        # Thin bright strokes are what a scratch looks like: lettering is seen more often than in the other stages.
        super().__init__(folders, recipe, device, damaged=0.6, lettered=0.5)
        self.nets = {"scratch_unet": fresh(config)}

    def sample(self, count: int, side: int, dice: Dice) -> dict[str, Tensor]:
        """grey (N, 1, S, S) in [-1, 1]; mask, letters (N, 1, S, S) in [0, 1]."""
        clean, letters = self.clean(count, side, dice)
        old, mask = self.hurt(ageing.wider_mixture(clean, dice), dice)
        old = ageing.applied(ageing.jpeg, old, dice.host.random(count) < 0.3, dice)
        return {"grey": signed(ageing.grey(old)[:, :1]), "mask": mask, "letters": letters}

    def loss(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Cross-entropy and the Dice loss."""
        logits, mask = self.nets["scratch_unet"](batch["grey"]).float(), batch["mask"]
        weight = 1.0 + LETTERS_WEIGH * batch["letters"] * (1.0 - mask)
        entropy = F.binary_cross_entropy_with_logits(logits, mask, weight)
        p = torch.sigmoid(logits)
        overlap = (p * mask).sum(dim=(1, 2, 3)) + 1.0
        dice = 1.0 - (2.0 * overlap / (p.sum(dim=(1, 2, 3)) + mask.sum(dim=(1, 2, 3)) + 2.0)).mean()
        return {"entropy": entropy, "dice": 0.5 * dice}, {}

    @torch.no_grad()
    def validate(self, nets: dict[str, nn.Module]) -> dict[str, float]:
        """Share of damaged pixels found, and shares of sound pixels and of lettering mistaken, at threshold 0.5."""
        net = nets["scratch_unet"]
        batch = self.fixed(32, 256)
        grey, mask, letters = batch["grey"], batch["mask"] > 0, batch["letters"] > 0.5
        found = torch.sigmoid(net(grey)) >= 0.5
        return {
            "recall": float((found & mask).sum() / mask.sum().clamp_min(1)),
            "false": float((found & ~mask).sum() / (~mask).sum()),
            "lettering": float((found & letters & ~mask).sum() / (letters & ~mask).sum().clamp_min(1)),
        }
