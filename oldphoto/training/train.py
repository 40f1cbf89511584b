"""The training loop: runs a stage from plain folders, resumes from its last checkpoint, writes float16 weights."""

from __future__ import annotations

import copy
import itertools
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oldphoto.errors import UsageError, WeightsCorruptError
from oldphoto.loading import placed, save_compact
from oldphoto.training.data import batches
from oldphoto.training.stages import STAGES, Architecture, Folders, Stage

Report = Callable[[dict[str, float | int | str]], None]


def train(
    name: str,
    data: Path,
    out: Path,
    *,
    nets: Architecture = "compact",
    earlier: Path | None = None,
    device: str = "cpu",
    report: Report = lambda _: None,
    checkpoint_seconds: float = 120.0,
    **recipe: int | float | None,
) -> list[Path]:
    """Run the stage `name` from the images below `data`; returns the weight files written to `out`.

    nets: the compact architecture, or the published one at full width. earlier: folder of the earlier stages' weights
    (default `out`). recipe: fields of Recipe to change. A checkpoint
    `out/<name>.checkpoint.pt` is written as it goes and resumed from; metrics go to `out/<name>.jsonl`, to
    `out/<name>.tensorboard` where tensorboardX is installed, and to report.
    Raises UsageError for an unknown stage, NoInputError for missing images, WeightsCorruptError for a checkpoint of
    another recipe width.
    """
    stages = STAGES[nets]
    if name not in stages:
        raise UsageError(f"the {nets} networks have no training stage {name!r}", f"one of {', '.join(stages)}")
    kind, default = stages[name]
    changed: dict[str, Any] = {k: v for k, v in recipe.items() if v is not None}
    chosen = replace(default, **changed)
    torch.manual_seed(chosen.seed)
    out.mkdir(parents=True, exist_ok=True)
    stage = kind(Folders.below(data), earlier or out, chosen)
    run = _Run(name, stage, out, torch.device(device))
    run.resume()
    (out / f"{name}.recipe.json").write_text(json.dumps(asdict(chosen)) + "\n")
    run.go(report, checkpoint_seconds)
    files = []
    for file, net in run.smooth.items():
        path = out / f"{file}.safetensors"
        save_compact(net, path)
        files.append(path)
    return files


class _Run:
    """The loop around a stage: optimisers, smoothed weights, checkpoints, log."""

    def __init__(self, name: str, stage: Stage, out: Path, device: torch.device) -> None:
        self.stage, self.device = stage, device
        self.checkpoint, self.log = out / f"{name}.checkpoint.pt", out / f"{name}.jsonl"
        for net in (*stage.nets.values(), *stage.judges.values()):
            placed(net, device).train().requires_grad_(True)
        self.smooth = {k: copy.deepcopy(v).eval().requires_grad_(False) for k, v in stage.nets.items()}
        self.optimiser = self._adam(stage.nets)
        self.judging = self._adam(stage.judges) if stage.judges else None
        self.step, self.seconds = 0, 0.0

    def _adam(self, nets: dict[str, nn.Module]) -> torch.optim.Adam:
        parameters = itertools.chain.from_iterable(n.parameters() for n in nets.values())
        return torch.optim.Adam(parameters, lr=self.stage.recipe.rate, betas=(0.5 if self.stage.judges else 0.9, 0.999))

    def resume(self) -> None:
        if not self.checkpoint.is_file():
            return
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        try:
            for k in self.stage.nets:
                self.stage.nets[k].load_state_dict(state["nets"][k])
                self.smooth[k].load_state_dict(state["smooth"][k])
            for k in self.stage.judges:
                self.stage.judges[k].load_state_dict(state["judges"][k])
            self.optimiser.load_state_dict(state["optimiser"])
            if self.judging is not None:
                self.judging.load_state_dict(state["judging"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise WeightsCorruptError(f"{self.checkpoint}: not of this stage ({error})", "remove it") from error
        self.step, self.seconds = state["step"], state["seconds"]
        torch.set_rng_state(state["random"].cpu())

    def save(self) -> None:
        state = {
            "nets": {k: v.state_dict() for k, v in self.stage.nets.items()},
            "smooth": {k: v.state_dict() for k, v in self.smooth.items()},
            "judges": {k: v.state_dict() for k, v in self.stage.judges.items()},
            "optimiser": self.optimiser.state_dict(),
            "judging": None if self.judging is None else self.judging.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "random": torch.get_rng_state(),
        }
        part = self.checkpoint.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.checkpoint)

    def go(self, report: Report, checkpoint_seconds: float) -> None:
        recipe = self.stage.recipe
        saved = last = time.monotonic()
        means: dict[str, float] = {}
        board = _board(self.log.with_suffix(".tensorboard"))
        fast = torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda")
        # Degrading a crop takes tens of milliseconds: a GPU would wait for two threads.
        workers = max(2, min(16, os.cpu_count() or 2))
        stream = batches(self.stage.draw, recipe.batch, recipe.seed, self.step, recipe.steps, workers)
        for drawn in stream:
            batch = {
                k: v.to(self.device, memory_format=torch.channels_last) if v.dim() == 4 else v.to(self.device)
                for k, v in drawn.items()
            }
            for group in (*self.optimiser.param_groups, *(self.judging.param_groups if self.judging else ())):
                group["lr"] = recipe.rate_at(self.step)
            with fast:
                mine, judged = self.stage.loss(batch)
            self._update(self.optimiser, self.stage.nets, torch.stack(list(mine.values())).sum())
            if self.judging is not None and judged:
                self._update(self.judging, self.stage.judges, torch.stack(list(judged.values())).sum())
            self._smoothe()
            self.step += 1
            for k, v in (mine | judged).items():
                now_value = float(v.detach())
                means[k] = 0.98 * means.get(k, now_value) + 0.02 * now_value
            now = time.monotonic()
            self.seconds += now - last
            last = now
            ends = self.step == recipe.steps
            if self.step % 50 == 0 or ends:
                row: dict[str, float | int | str] = {"step": self.step, "of": recipe.steps}
                row |= {"seconds": round(self.seconds, 1)} | {k: round(v, 5) for k, v in means.items()}
                if self.step % 500 == 0 or ends:
                    row |= {k: round(v, 4) for k, v in self.stage.validate(self.smooth).items()}
                with self.log.open("a") as log:
                    log.write(json.dumps(row) + "\n")
                if board is not None:
                    for figure, value in row.items():
                        board.add_scalar(figure, value, self.step)
                report(row)
            if now - saved > checkpoint_seconds or ends:
                self.save()
                saved = time.monotonic()
        if board is not None:
            board.close()

    def _update(self, optimiser: torch.optim.Optimizer, nets: dict[str, nn.Module], loss: Tensor) -> None:
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
        for net in nets.values():
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()

    @torch.no_grad()
    def _smoothe(self) -> None:
        decay = min(self.stage.recipe.smoothing, (1 + self.step) / (10 + self.step))
        for k, net in self.stage.nets.items():
            ours = self.smooth[k].state_dict()
            for name, value in net.state_dict().items():
                if value.is_floating_point():
                    ours[name].lerp_(value.to(ours[name].dtype), 1.0 - decay)
                else:
                    ours[name].copy_(value)


def _board(folder: Path) -> Any:
    """A TensorBoard log in `folder`, or None where tensorboardX (the extra `train`) is not installed."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))
