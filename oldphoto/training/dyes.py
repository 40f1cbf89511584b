"""How colour prints, slides and black-and-white prints fade: a model of dyes, stain, fog and printing light.

A print is three dyes on white paper. Each absorbs mainly one of red, green and blue, and a little of the others, so
that densities are linear in the amounts of dye: faded photographs can be set right by a matrix of densities (Gschwind
and Frey, Electronic Imaging, a Tool for the Reconstruction of Faded Color Photographs, Journal of Imaging Science and
Technology 38 (6), 1994). Fading takes a share of each dye. Which, is told by Wilhelm and Brower (The Permanence and
Care of Color Photographs, 1993); the ranges are ours, so that what they describe comes out:

- In the dark, chromogenic prints of about 1955 to 1985 lose cyan first, then yellow: they turn red and orange. In light
  they lose magenta first: they turn green and blue. Of low densities a larger share is lost than of high ones.
- Prints of the 1940s and 50s turn yellow from couplers left in them, and their dyes are pale in all colours.
- Slides of the 1950s and 60s lose cyan and yellow and look magenta; screen plates (autochromes) have yellow varnish.
- Base and gelatine yellow (stain: density in blue, half of it or less in green). The standard on image stability
  (ISO 18909) measures the same two: what is lost of each dye, and how the minimum density rises.
- Fog: light that a veiled or silvered surface adds as it is scanned.
- Prints were balanced by eye, and are scanned by machines that stretch levels: printing light, the scanner's levels.

Silver and albumen prints lose contrast, lights first, and yellow (Reilly, Care and Identification of 19th-Century
Photographic Prints, 1986). Their tone, yellowed or meant, is taken for theirs; only light is to be undone.

Batches are (N, 3, H, W) sRGB in [0, 1]; densities are of light, -log10, and amounts of dye are those of a density of 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oldphoto.models.tone_net import encoded, light
from oldphoto.training.ageing import Dice

# What cyan, magenta and yellow dye (columns) absorb of red, green and blue (rows): main absorptions 1, the others as
# is typical of chromogenic paper, a third more or less in a draw.
ABSORPTION = np.array([[1.0, 0.10, 0.01], [0.25, 1.0, 0.09], [0.10, 0.22, 1.0]])
DARKEST = 0.003  # of light: no print is blacker


def _density(x: Tensor) -> Tensor:
    return -torch.log10(light(x).clamp_min(DARKEST))


class _Ageing(NamedTuple):
    """What became of one print: kept of cyan, magenta, yellow; stain, (3,) densities of R, G, B; fog, of light."""

    kept: NDArray[np.float64]
    stain: NDArray[np.float64]
    fog: float


KINDS = ("dark", "light", "early", "slide", "plate", "any")
CHANCES = (0.42, 0.18, 0.12, 0.08, 0.1, 0.1)


def _aged(rng: np.random.Generator) -> _Ageing:
    """One print, from hardly to badly faded."""
    kind = KINDS[rng.choice(len(KINDS), p=CHANCES)]
    kept, blue = {
        "dark": ((rng.uniform(0.3, 0.85), rng.uniform(0.75, 1.0), rng.uniform(0.5, 0.95)), rng.uniform(0.0, 0.25)),
        "light": ((rng.uniform(0.65, 1.0), rng.uniform(0.35, 0.85), rng.uniform(0.5, 0.95)), rng.uniform(0.0, 0.15)),
        "early": ((rng.uniform(0.45, 0.9), rng.uniform(0.5, 0.95), rng.uniform(0.45, 0.9)), rng.uniform(0.12, 0.45)),
        "slide": ((rng.uniform(0.35, 0.8), rng.uniform(0.8, 1.0), rng.uniform(0.4, 0.8)), rng.uniform(0.0, 0.1)),
        "plate": ((rng.uniform(0.6, 1.0), rng.uniform(0.6, 1.0), rng.uniform(0.6, 1.0)), rng.uniform(0.15, 0.6)),
        "any": (tuple(rng.uniform(0.4, 1.0, 3)), rng.uniform(0.0, 0.3)),
    }[kind]
    so_far = rng.uniform(0.4, 1.9)  # how far it has gone
    green = blue * rng.uniform(0.15, 0.6)
    stain = np.array([green * rng.uniform(0.0, 0.5), green, blue])
    fog = rng.uniform(0.0, 0.09) * (rng.random() < 0.6)
    return _Ageing(np.array(kept) ** so_far, stain * so_far, fog * so_far)


def faded(truth: Tensor, dice: Dice) -> Tensor:
    """Colour photos as prints that have faded, each in a way of its own."""
    rng, n = dice.host, len(truth)
    prints = [_aged(rng) for _ in range(n)]

    def each(values: list[NDArray[np.float64]]) -> Tensor:
        return dice.placed(np.array(values, np.float32)).view(n, -1, 1, 1)

    kept, stain = each([p.kept for p in prints]), each([p.stain for p in prints])
    fog = dice.placed(np.array([p.fog for p in prints], np.float32)).view(n, 1, 1, 1)
    matrices = np.array([_absorption(rng) for _ in range(n)])
    absorbs = dice.placed(matrices.astype(np.float32))
    dyes = torch.einsum("nij,njhw->nihw", torch.linalg.inv(absorbs), _density(truth))
    # The more dye there is, the larger the share that stays: `high` 0 is the same share of all.
    high = each([rng.uniform(0.0, 0.6, 1) for _ in range(n)])
    dyes = dyes * kept ** (1.0 / (1.0 + high * dyes.clamp_min(0.0)))
    # Printing light: of all colours, and of each.
    printing = each([rng.normal(0.0, 0.05) + rng.normal(0.0, 0.03, 3) for _ in range(n)])
    seen = 10.0 ** -(torch.einsum("nij,njhw->nihw", absorbs, dyes) + stain + printing).clamp_min(-0.3)
    veil = each([rng.uniform(0.6, 1.0) * 10.0 ** -(0.7 * p.stain) for p in prints])
    old = encoded(seen * (1.0 - fog) + fog * veil)
    return (_scanned(old, dice) * 255.0).round() / 255.0


def _absorption(rng: np.random.Generator) -> NDArray[np.float64]:
    unwanted = ABSORPTION * rng.uniform(0.67, 1.33, (3, 3))
    np.fill_diagonal(unwanted, 1.0)
    return unwanted


def _scanned(x: Tensor, dice: Dice) -> Tensor:
    """Levels as scanners set them: for some, the lightest of all channels to white and the darkest to black; for fewer,
    of each channel apart, in part."""
    rng, n = dice.host, len(x)
    flat = x.flatten(2)
    low, high = (torch.quantile(flat, q, dim=2)[..., None, None] for q in (0.005, 0.995))
    one_low, one_high = low.amin(dim=1, keepdim=True), high.amax(dim=1, keepdim=True)
    whole = dice.placed(((rng.random(n) < 0.45) * rng.uniform(0.4, 1.0, n)).astype(np.float32)).view(-1, 1, 1, 1)
    x = _stretched(x, whole * one_low, 1.0 - whole * (0.98 - one_high).clamp_min(0.0))
    return x.clamp(0.0, 1.0)


def _stretched(x: Tensor, black: Tensor, white: Tensor) -> Tensor:
    return (x - black) / (white - black).clamp_min(0.1)


def paled(truth: Tensor, dice: Dice) -> Tensor:
    """Black-and-white prints of any tone that have lost contrast, their tone as it was."""
    rng, n = dice.host, len(truth)

    def each(low: float, high: float) -> Tensor:
        return dice.placed(rng.uniform(low, high, (n, 1)).astype(np.float32)).view(n, 1, 1, 1)

    linear = light(truth)
    weight = linear.new_tensor([0.2126, 0.7152, 0.0722]).view(1, 3, 1, 1)
    y = (linear * weight).sum(dim=1, keepdim=True) + 1e-4
    lights = torch.quantile(linear.flatten(2), 0.98, dim=2)[..., None, None]
    white = (lights * weight).sum(dim=1, keepdim=True).clamp_min(0.05)
    # Lights lose more of what little they have.
    dense = -torch.log10(y / white)
    kept, high, grey = each(0.35, 0.95), each(0.0, 0.6), each(-0.03, 0.25)
    dense = dense * kept ** (1.0 / (1.0 + high * dense.clamp_min(0.0)))
    fog = each(0.0, 0.08)
    old = linear * (white * 10.0 ** -(dense + grey) / y) * (1.0 - fog) + fog * 0.8 * lights / white
    return (encoded(old) * 255.0).round() / 255.0


def toned(truth: Tensor, dice: Dice) -> Tensor:
    """Photos as black-and-white prints: neutral, or with a tone of sepia, gold, selenium, iron (blue), or yellowed."""
    rng, n = dice.host, len(truth)
    tones: dict[str, Callable[[], NDArray[np.float64]]] = {
        "neutral": lambda: np.ones(3),
        "sepia": lambda: np.array([rng.uniform(0.75, 0.95), 1.0, rng.uniform(1.05, 1.5)]),
        "selenium": lambda: np.array([rng.uniform(0.9, 1.0), rng.uniform(1.0, 1.08), rng.uniform(0.9, 1.05)]),
        "iron": lambda: np.array([rng.uniform(1.1, 1.6), 1.0, rng.uniform(0.4, 0.85)]),
    }
    names = rng.choice([*tones], n, p=(0.35, 0.45, 0.1, 0.1))
    gains = dice.placed(np.array([tones[k]() for k in names], np.float32)).view(n, 3, 1, 1)
    blue = (rng.random(n) < 0.5) * rng.uniform(0.02, 0.35, n)
    paper = np.stack([0.1 * blue, blue * rng.uniform(0.2, 0.5, n), blue], axis=1) * (names != "neutral")[:, None]
    dense = _density(truth)
    weight = dense.new_tensor([0.3, 0.6, 0.1]).view(1, 3, 1, 1)
    grey = -torch.log10((light(truth).clamp_min(DARKEST) * weight).sum(dim=1, keepdim=True))
    return encoded(10.0 ** -(grey * gains + dice.placed(paper.astype(np.float32)).view(n, 3, 1, 1)))


def tinted(truth: Tensor, dice: Dice) -> Tensor:
    """Photos as hand-coloured prints: a toned print, and of the colours soft patches, some parts left uncoloured."""
    rng, n = dice.host, len(truth)
    print_ = toned(truth, dice)
    weight = truth.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    chroma = truth - (truth * weight).sum(dim=1, keepdim=True)
    side = max(1, truth.shape[-1] // 8)
    soft = torch.nn.functional.avg_pool2d(chroma, 2 * side + 1, stride=1, padding=side, count_include_pad=False)
    coarse = dice.placed(rng.uniform(-0.5, 1.2, (n, 1, 4, 4)).astype(np.float32)).clamp(0.0, 1.0)
    where = torch.nn.functional.interpolate(coarse, truth.shape[2:], mode="bilinear", align_corners=False)
    amount = dice.placed(rng.uniform(0.4, 1.4, n).astype(np.float32)).view(-1, 1, 1, 1)
    return (print_ + amount * where * soft).clamp(0.0, 1.0)
