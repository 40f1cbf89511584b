"""Colour for black-and-white photos, made up by a network from what it sees: never what was there.

Colour is made on a copy of bounded size and joined to the photo's own luminance along its edges, by a guided filter
(He, Sun and Tang, TPAMI 2013; its quick form, He and Sun 2015). Luminance stays: what sRGB cannot show loses chroma.
Pixels are (H, W, 3) uint8 or uint16 sRGB.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import cv2
import numpy as np

from oldphoto.arrays import Floats, Mask, Pixels
from oldphoto.files.colour import bands, from_light, light_of
from oldphoto.machine.memory import limit, line
from oldphoto.stages.fading import MONOCHROME, lab, small_copy, spread_of_colour
from oldphoto.stages.stage import Case, Clock, Plain, State
from oldphoto.weights.sets import Role

if TYPE_CHECKING:
    import torch

    from oldphoto.models.colour_net import ColourNet
    from oldphoto.models.deoldify import DeOldify
    from oldphoto.models.loaded import Models

# Sides of the copy that the network sees. What it was taught on were photos seen whole at about this size.
SHORT_SIDE, LONG_SIDE = 256, 512
TEMPERATURE = 1.0  # of its distributions: lower is bolder, and further from the truth of photos held out
# The copy on which colour is fitted to luminance: so many times the network's, with windows of this radius in pixels;
# lightness varying by less than SMOOTH (of 1) counts as even.
FINER, RADIUS, SMOOTH = 2, 8, 0.04
# Bytes for the network's work on its copy, and for a band of the photo.
WORK = 192 << 20
# Sides of the square that the published network sees, as many as there is memory for, and bytes that its work takes.
# The largest is the published default.
SQUARES = {560: 2400 << 20, 448: 1700 << 20, 336: 1050 << 20, 224: 600 << 20}
# Light of red, green and blue that makes up luminance, and the same with X and Z (sRGB, IEC 61966-2-1; D65).
TO_XYZ = np.array(
    [[0.4123908, 0.3575843, 0.1804808], [0.2126390, 0.7151687, 0.0721923], [0.0193308, 0.1191948, 0.9505322]]
)
WHITE = TO_XYZ.sum(axis=1)


class Colouring(Plain):
    """Gives a monochrome photo colours; one that has colour only where the user says so."""

    name: str = "colour"
    clock: Clock = "colouring"
    doing = "colouring the photo"
    without = "leave --colorize out"

    def wanted(self, case: Case) -> bool:
        """See Stage."""
        return case.options.colorize != "off"

    def roles(self, case: Case) -> tuple[Role, ...]:
        """See Stage."""
        return ("colour",)

    def memory(self, case: Case, models: Models) -> int:
        """See Stage."""
        if models.device.type != "cpu":
            return 0
        return WORK + (0 if case.models.name == "compact" else SQUARES[square(case)])

    def run(self, state: State, case: Case, models: Models) -> bool:
        """See Stage; whether it was done."""
        if case.options.look == "faithful":
            state.warnings.append("colour is made up, and so never faithful")
        if case.options.colorize == "auto" and not has_no_colour(state.seen, state.mask):
            state.warnings.append("it has colour already, which stays: --colorize always makes it anew")
            return False
        if case.options.colour_strength > 0.0:
            net = models.net("colour")
            if case.models.name == "compact":
                colourist = by_network(cast("ColourNet", net), models.device)
            else:
                colourist = as_published(cast("DeOldify", net), models.device, square(case))
            state.pixels = coloured(state.pixels, colourist, case.options.colour_strength)
            state.colorized = True
        return state.colorized

    def generated(self, state: State) -> bool:
        """See Stage."""
        return state.colorized

    def record(self, fact: bool | None) -> dict[str, Any]:
        """See Stage."""
        return {"colorized": bool(fact)}

    def words(self, entry: Mapping[str, Any]) -> list[tuple[str, str]]:
        """See Stage."""
        return [("Colour", "made up")] if entry.get("colorized") else []


def square(case: Case) -> int:
    """Side in pixels of the square that the published network is given: the largest there is memory for."""
    room = limit(case.options.max_memory) - line.held() - 3 * case.copy_bytes - WORK
    return next((side for side, need in SQUARES.items() if need <= room), min(SQUARES))


def has_no_colour(pixels: Pixels, mask: Mask | None) -> bool:
    """Whether a photo is monochrome, toned or not. mask: (H, W), True = damaged, which does not count."""
    return spread_of_colour(lab(small_copy(pixels, mask))) < MONOCHROME


# Grey (h, w) in [0, 1] -> a* and b* (2, h', w'), of any smaller size.
Colourist = Callable[[Floats], Floats]


def by_network(net: ColourNet, device: torch.device) -> Colourist:
    """What a network says of a grey photo and of its mirror image, whose mean is steadier than either."""
    import torch

    from oldphoto.models.colour_net import MULTIPLE, colours

    def colourist(grey: Floats) -> Floats:
        height, width = grey.shape
        shrink = min(SHORT_SIDE / min(height, width), LONG_SIDE / max(height, width))
        sides = [max(MULTIPLE, round(side * shrink / MULTIPLE) * MULTIPLE) for side in (width, height)]
        way = cv2.INTER_AREA if shrink < 1 else cv2.INTER_CUBIC
        seen = torch.from_numpy(np.asarray(cv2.resize(grey, sides, interpolation=way), np.float32).clip(0, 1))
        both = torch.stack([seen, seen.flip(1)])[:, None].to(device)
        made = colours(net(both), TEMPERATURE)
        ab: Floats = ((made[0] + made[1].flip(2)) / 2).float().cpu().numpy()
        return ab

    return colourist


def as_published(net: DeOldify, device: torch.device, side: int) -> Colourist:
    """What the published network says of a grey photo, which it sees as a square of so many pixels."""
    import torch

    from oldphoto.models.deoldify import painted

    def colourist(grey: Floats) -> Floats:
        way = cv2.INTER_AREA if side < min(grey.shape) else cv2.INTER_LINEAR
        seen = np.asarray(cv2.resize(grey, (side, side), interpolation=way), np.float32)
        made = painted(net, torch.from_numpy(seen)[None, None].to(device))[0].cpu().numpy()
        lab = cv2.cvtColor(np.ascontiguousarray(made.transpose(1, 2, 0)), cv2.COLOR_RGB2LAB)
        ab: Floats = np.asarray(lab, np.float32)[..., 1:].transpose(2, 0, 1)
        return ab

    return colourist


def coloured(pixels: Pixels, colourist: Colourist, share: float = 1.0) -> Pixels:
    """The photo with made-up colours and its own luminance. share: of the made colours, 0..1; the rest is its own."""
    join = _joined(pixels, colourist)
    out = np.empty_like(pixels)
    for rows in bands(pixels):
        light = light_of(pixels[rows])
        luminance = (light @ TO_XYZ[1].astype(np.float32)).clip(0.0, 1.0)
        made = within(_light(luminance, join(luminance, rows)), luminance)
        if share < 1.0:
            made = light + np.float32(share) * (made - light)
        out[rows] = from_light(made, pixels.dtype)
    return out


def lightness(luminance: Floats) -> Floats:
    """Luminance in [0, 1] -> L* / 100 (CIELAB)."""
    low = luminance <= 216 / 24389
    bent = 1.16 * np.cbrt(luminance) - 0.16
    return np.asarray(np.where(low, luminance * np.float32(24389 / 2700), bent), np.float32)


def within(light: Floats, luminance: Floats) -> Floats:
    """Colours (..., 3), linear light, brought as near to grey as sRGB needs to show them; luminance (...) stays."""
    away = light - luminance[..., None]
    most, least = away.max(axis=-1), away.min(axis=-1)
    room = np.minimum((1.0 - luminance) / np.maximum(most, 1e-9), luminance / np.maximum(-least, 1e-9))
    return np.asarray(luminance[..., None] + np.minimum(room, 1.0)[..., None] * away, np.float32)


class _Plane(NamedTuple):
    """Made for the whole photo on a small grid: colour = slope * lightness + offset, each (h, w, 2)."""

    slope: Floats
    offset: Floats


def _joined(pixels: Pixels, colourist: Colourist) -> Callable[[Floats, slice], Floats]:
    """What gives a* and b* of rows of the photo, (h, W, 2), by their luminance (h, W)."""
    height, width = pixels.shape[:2]
    shrink = min(1.0, FINER * SHORT_SIDE / min(height, width), FINER * LONG_SIDE / max(height, width))
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    copy = cast("Pixels", cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
    luminance = (light_of(copy) @ TO_XYZ[1].astype(np.float32)).clip(0.0, 1.0)
    grey = from_light(luminance, np.uint16).astype(np.float32) / np.float32(65535)
    guide = lightness(luminance)
    ab = np.ascontiguousarray(colourist(grey).transpose(1, 2, 0))
    plane = fitted(guide, np.asarray(cv2.resize(ab, size, interpolation=cv2.INTER_LINEAR), np.float32))

    def join(luminance: Floats, rows: slice) -> Floats:
        top = rows.start
        down = (np.arange(top, top + len(luminance), dtype=np.float32) + 0.5) * np.float32(size[1] / height) - 0.5
        across = (np.arange(width, dtype=np.float32) + 0.5) * np.float32(size[0] / width) - 0.5
        maps = np.repeat(across[None], len(luminance), axis=0), np.repeat(down[:, None], width, axis=1)
        slope, offset = (
            np.asarray(cv2.remap(one, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)) for one in plane
        )
        return np.asarray(slope * lightness(luminance)[..., None] + offset, np.float32)

    return join


def fitted(guide: Floats, ab: Floats) -> _Plane:
    """The line from lightness to colour that fits each window best, averaged over the windows about each pixel.

    guide: (h, w) in [0, 1]. ab: (h, w, 2).
    """

    def mean(x: Floats) -> Floats:
        side = 2 * RADIUS + 1
        return np.asarray(cv2.boxFilter(x, -1, (side, side), borderType=cv2.BORDER_REFLECT), np.float32)

    middle, colour = mean(guide), mean(ab)
    variance = (mean(guide * guide) - middle * middle)[..., None]
    together = mean(guide[..., None] * ab) - middle[..., None] * colour
    slope = together / (np.maximum(variance, 0.0) + np.float32(SMOOTH**2))
    return _Plane(mean(np.asarray(slope, np.float32)), mean(np.asarray(colour - slope * middle[..., None], np.float32)))


def _light(luminance: Floats, ab: Floats) -> Floats:
    """Luminance (h, W) in [0, 1] and CIELAB's a* and b* (h, W, 2) -> linear light of red, green and blue (h, W, 3)."""
    y = (100.0 * lightness(luminance) + 16.0) / 116.0
    bent = np.stack([y + ab[..., 0] / 500.0, y - ab[..., 1] / 200.0], axis=-1)
    low = bent <= 6 / 29
    x_z = np.where(low, (116.0 * bent - 16.0) * np.float32(27 / 24389), bent**3) * WHITE[[0, 2]].astype(np.float32)
    xyz = np.stack([x_z[..., 0], luminance, x_z[..., 1]], axis=-1)
    return np.asarray(xyz @ np.linalg.inv(TO_XYZ).T.astype(np.float32), np.float32)
