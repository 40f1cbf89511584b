"""The training loop: runs a stage from plain folders, resumes from its last checkpoint, writes float16 weights."""

from __future__ import annotations

import copy
import itertools
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oldphoto.errors import UsageError, WeightsCorruptError
from oldphoto.models.loading import load_compact, load_strictly, placed, save_compact
from oldphoto.training.base import Folders, Stage, quickly
from oldphoto.training.stages import STAGES, Architecture

Report = Callable[[dict[str, float | int | str]], None]


def train(
    name: str,
    data: Path,
    out: Path,
    *,
    nets: Architecture = "compact",
    earlier: Path | None = None,
    start: Path | None = None,
    device: str = "cpu",
    minutes: float | None = None,
    report: Report = lambda _: None,
    checkpoint_seconds: float = 120.0,
    **recipe: Any,
) -> list[Path]:
    """Run the stage `name` from the images below `data`; returns the weight files written to `out`.

    nets: the compact architecture, or the published one at full width. earlier: folder of the earlier stages' weights
    (default `out`). start: folder of weights of this stage to go on from, instead of from nothing. minutes: end after
    so many, earlier runs of the stage counted, if the steps take longer; the rate then falls with the time. recipe:
    fields of Recipe to change. A checkpoint `out/<name>.checkpoint.pt` is written as it goes and resumed from; metrics
    go to `out/<name>.jsonl`, to `out/<name>.tensorboard` where tensorboardX is installed, and to report.
    Raises UsageError for an unknown stage, NoInputError for missing images, WeightsCorruptError for a checkpoint of
    another recipe width or weights that do not fit.
    """
    stages = STAGES[nets]
    if name not in stages:
        raise UsageError(f"the {nets} networks have no training stage {name!r}", f"one of {', '.join(stages)}")
    kind, default = stages[name]
    changed: dict[str, Any] = {k: v for k, v in recipe.items() if v is not None}
    chosen = replace(default, **changed)
    torch.manual_seed(chosen.seed)
    out.mkdir(parents=True, exist_ok=True)
    stage = kind(Folders.below(data), earlier or out, chosen, torch.device(device))
    if start is not None:
        for file, net in stage.nets.items():
            path = start / f"{file}.safetensors"
            load_strictly(net, load_compact(path).state_dict(), path)
    run = _Run(name, stage, out)
    run.resume()
    (out / f"{name}.recipe.json").write_text(json.dumps(asdict(chosen)) + "\n")
    run.go(report, checkpoint_seconds, minutes)
    return run.write()


def train_all(
    data: Path,
    out: Path,
    *,
    nets: Architecture = "compact",
    device: str = "cpu",
    minutes: float | None = None,
    report: Callable[[str, dict[str, float | int | str]], None] = lambda _stage, _row: None,
    **recipe: Any,
) -> list[Path]:
    """Every stage in order, each from the weights of those before; arguments, files and errors as for `train`.

    A stage whose checkpoint has all its steps is not run again. minutes: of each stage. report: called with the stage's
    name and a row of it.
    """
    files: dict[Path, None] = {}
    for name in STAGES[nets]:
        if name == "landmarks":  # needs points placed by hand, which few have
            continue
        made = train(name, data, out, nets=nets, device=device, minutes=minutes, report=partial(report, name), **recipe)
        files |= dict.fromkeys(made)
    return list(files)


class _Run:
    """The loop around a stage: optimisers, smoothed weights, checkpoints, log."""

    def __init__(self, name: str, stage: Stage, out: Path) -> None:
        self.stage, self.device = stage, stage.device
        self.checkpoint, self.log = out / f"{name}.checkpoint.pt", out / f"{name}.jsonl"
        for net in (*stage.nets.values(), *stage.judges.values()):
            placed(net, self.device).train().requires_grad_(True)
        self.smooth = {k: copy.deepcopy(v).eval().requires_grad_(False) for k, v in stage.nets.items()}
        self.optimiser = self._adam(stage.nets)
        self.judging = self._adam(stage.judges) if stage.judges else None
        self.step, self.seconds = 0, 0.0

    def _adam(self, nets: dict[str, nn.Module]) -> torch.optim.Adam:
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in itertools.chain.from_iterable(n.named_parameters(prefix=k) for k, n in nets.items()):
            pace = next((share for start, share in self.stage.paces.items() if name.startswith(start)), 1.0)
            groups.setdefault(pace, []).append(parameter)
        betas = (0.5 if self.stage.judges else 0.9, 0.999)
        return torch.optim.Adam(
            [{"params": some, "pace": pace} for pace, some in groups.items()],
            lr=self.stage.recipe.rate,
            betas=betas,
            fused=self.device.type == "cuda" or None,
        )

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

    def write(self) -> list[Path]:
        """The smoothed weights as they are now, as weight files."""
        files = [self.checkpoint.parent / f"{file}.safetensors" for file in self.smooth]
        for net, path in zip(self.smooth.values(), files, strict=True):
            save_compact(net, path)
        return files

    def save(self) -> None:
        state = {
            "nets": {k: v.state_dict() for k, v in self.stage.nets.items()},
            "smooth": {k: v.state_dict() for k, v in self.smooth.items()},
            "judges": {k: v.state_dict() for k, v in self.stage.judges.items()},
            "optimiser": self.optimiser.state_dict(),
            "judging": None if self.judging is None else self.judging.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        part = self.checkpoint.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.checkpoint)
        self.write()

    def go(self, report: Report, checkpoint_seconds: float, minutes: float | None) -> None:
        recipe = self.stage.recipe
        saved = last = time.monotonic()
        means: dict[str, Tensor] = {}
        board = _board(self.log.with_suffix(".tensorboard"))
        # Crops are of one size: the search for quick convolutions pays. Ageing wants more than TF32's 10 bits.
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = True, False
        done = self._done(minutes)
        # The samples of the next step are made while this one is trained on.
        maker = ThreadPoolExecutor(1)
        coming = maker.submit(self.stage.batch, self.step)
        while done < 1.0:
            torch.manual_seed(recipe.seed * 1_000_003 + self.step)
            for group in (*self.optimiser.param_groups, *(self.judging.param_groups if self.judging else ())):
                group["lr"] = recipe.rate_at(self.step, done) * group.get("pace", 1.0)
            batch = {k: _channels_last(v) for k, v in coming.result().items()}
            coming = maker.submit(self.stage.batch, self.step + 1)
            with quickly(self.device):
                mine, judged = self.stage.loss(batch)
            self._update(self.optimiser, self.stage.nets, torch.stack(list(mine.values())).sum())
            if self.judging is not None and judged:
                self._update(self.judging, self.stage.judges, torch.stack(list(judged.values())).sum())
            self._smoothe()
            self.step += 1
            # Kept where they are: asking for their values would wait for the GPU at every step.
            for k, v in (mine | judged).items():
                means[k] = torch.lerp(means.get(k, v.detach()), v.detach(), 0.02)
            now = time.monotonic()
            self.seconds += now - last
            last = now
            done = self._done(minutes)
            ends = done >= 1.0
            if self.step % 50 == 0 or ends:
                row: dict[str, float | int | str] = {"step": self.step, "of": recipe.steps}
                row |= {"seconds": round(self.seconds, 1)} | {k: round(float(v), 5) for k, v in means.items()}
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
        maker.shutdown()
        if board is not None:
            board.close()

    def _done(self, minutes: float | None) -> float:
        """The share of the stage that lies behind: of its steps, or of its time if that runs out first."""
        spent = 0.0 if minutes is None else self.seconds / (60.0 * minutes)
        return max(self.step / self.stage.recipe.steps, spent)

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
            ours, new = self.smooth[k].state_dict(), net.state_dict()
            names = [name for name, value in new.items() if value.is_floating_point()]
            torch._foreach_lerp_([ours[name] for name in names], [new[name] for name in names], 1.0 - decay)
            for name in new.keys() - set(names):
                ours[name].copy_(new[name])


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _board(folder: Path) -> Any:
    """A TensorBoard log in `folder`, or None where tensorboardX (the extra `train`) is not installed."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))
