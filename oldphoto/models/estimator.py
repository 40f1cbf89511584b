"""A few numbers about a photo from a list of figures measured on it: two small layers. Ours.

Serves `restraint` (how much of a repair to keep) and `resolution` (how many times larger than its detail a photo is),
each with figures of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

# Figures further out than this many standard deviations are taken for no further: training has seen nothing there.
FURTHEST = 4.0


@dataclass(frozen=True)
class EstimatorConfig:
    """figures: numbers in; answers: numbers out; width: of the first layer. The second is two thirds of it."""

    figures: int
    answers: int
    width: int = 48

    def __post_init__(self) -> None:
        if min(self.figures, self.answers) < 1 or self.width < 2:
            raise ValueError(f"estimator of {self.figures} figures, {self.answers} answers and width {self.width}")


class Estimator(nn.Module):
    """Figures, as multiples of their usual spread about their usual value -> answers.

    usual, spread: (figures,), of the training samples; saved with the weights.
    """

    usual: Tensor
    spread: Tensor

    def __init__(self, config: EstimatorConfig) -> None:
        super().__init__()
        self.config = config
        inner = max(1, config.width * 2 // 3)
        self.register_buffer("usual", torch.zeros(config.figures))
        self.register_buffer("spread", torch.ones(config.figures))
        self.first = nn.Linear(config.figures, config.width)
        self.second = nn.Linear(config.width, inner)
        self.last = nn.Linear(inner, config.answers)

    def forward(self, figures: Tensor) -> Tensor:
        """(N, figures) -> (N, answers)."""
        x = ((figures - self.usual) / self.spread).clamp(-FURTHEST, FURTHEST)
        if self.training:  # so that no single figure is relied upon: there are more of them than sorts of photos
            x = nn.functional.dropout(x + 0.1 * torch.randn_like(x), 0.1)
        x = nn.functional.leaky_relu(self.first(x), 0.2)
        if self.training:
            x = nn.functional.dropout(x, 0.2)
        answers: Tensor = self.last(nn.functional.leaky_relu(self.second(x), 0.2))
        return answers

    def answers(self, figures: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run forward on an array, wherever the network is, in full precision."""
        device = self.usual.device
        with torch.autocast(device.type, enabled=False):
            return np.asarray(self(torch.from_numpy(figures).to(device)).cpu(), np.float32)
