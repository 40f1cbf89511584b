"""Between a photo's own colours and sRGB, in which the networks see, without a step through 8 bits.

Back goes only what they changed: a pixel they left alone keeps its value exactly, and colours that sRGB cannot show
survive. Profiles of matrix and curves, grey ones among them, are computed directly. Of profiles that are tables, which
some scanners have, littlecms gives the nodes of a grid, and what lies between is interpolated.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

Floats = NDArray[np.float32]
Codes = NDArray[np.uint16]
Pixels = NDArray[np.uint8] | NDArray[np.uint16]

# What red, green and blue have of luminance: ITU-R BT.601, as JPEG and Pillow's "L".
LUMA = np.array([0.299, 0.587, 0.114])
# Profiles nearer to sRGB than this, in 0..1, are taken for it: less than a level of 8 bits.
_NEAR_SRGB = 1 / 255
# A change of this much, in 0..1, leaves nothing of what sRGB could not show of the old colour.
_NEW_COLOUR = 32 / 255
# Pixels worked on at once: bounds the memory beside the photo to about 50 MB.
_AT_ONCE = 1 << 20
# Nodes on each axis of the tables there and back: both lie on whole levels of 8 bits, which is what littlecms takes.
_NODES, _NODES_BACK = 52, 18
_STEPS = 1 << 18


@dataclass(frozen=True, eq=False)
class Space:
    """The colours of one profile. Both ways take (3, N) uint16 and give (3, N) float32, clipped to 0..1."""

    to_srgb: Callable[[Codes], Floats]
    from_srgb: Callable[[Codes], Floats]


def is_srgb(icc: bytes | None) -> bool:
    """Whether to_srgb gives the pixels themselves."""
    return _space(icc) is None


def to_srgb(pixels: Pixels, icc: bytes | None) -> Pixels:
    """(H, W, 3) in the colours of a profile -> (H, W, 3) sRGB as uint16; the pixels themselves if they are sRGB.

    So are taken those without a profile, and those whose profile cannot be read.
    """
    space = _space(icc)
    if space is None:
        return pixels
    out = np.empty(pixels.shape, np.uint16)
    for rows in bands(pixels):
        srgb = space.to_srgb(_codes(pixels[rows]))
        srgb *= 65535
        out[rows] = np.rint(srgb, out=srgb).T.reshape(out[rows].shape)
    return out


def from_srgb(before: Pixels, after: Pixels, pixels: Pixels, icc: bytes | None) -> Pixels:
    """What became of a photo's pixels, in its own colours and dtype.

    before: what to_srgb gave. after: the same, restored. pixels: the photo's own. All are (H, W, 3).
    """
    space = _space(icc)
    if space is None:
        return after
    top = np.iinfo(pixels.dtype).max
    out = np.empty_like(pixels)
    for rows in bands(pixels):
        old, new, own = (_codes(array[rows]) for array in (before, after, pixels))
        # What the old colour had beyond sRGB, and what rounding took from it.
        beyond = own.astype(np.float32) / np.float32(65535) - space.from_srgb(old)
        change = np.abs(new.astype(np.int32) - old).max(axis=0) / np.float32(_NEW_COLOUR * 65535)
        beyond *= np.maximum(0, 1 - change)
        kept = np.clip(space.from_srgb(new) + beyond, 0, 1)
        kept *= top
        out[rows] = np.rint(kept, out=kept).T.reshape(out[rows].shape)
        same = (change == 0).reshape(out[rows].shape[:2])
        out[rows][same] = pixels[rows][same]
    return out


def eight_bits(pixels: Pixels) -> NDArray[np.uint8]:
    """(H, W, C) of 8 or 16 bits a sample with 8, rounded; the samples themselves if they are of 8 already."""
    if pixels.dtype == np.uint8:
        return cast("NDArray[np.uint8]", pixels)
    made = np.empty(pixels.shape, np.uint8)
    for rows in bands(pixels):
        made[rows] = (pixels[rows].astype(np.uint32) + 128) // 257  # 65535 is 257 times 255
    return made


@lru_cache(maxsize=1)
def srgb_profile() -> bytes:
    """A profile of sRGB, to be written into files."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def light_of(pixels: Pixels) -> Floats:
    """sRGB, uint8 or uint16 of any shape -> the light that it stands for, linear, in 0..1."""
    return _light_table(int(np.iinfo(pixels.dtype).max)).take(pixels)


def from_light(light: Floats, dtype: np.dtype[np.unsignedinteger] | type[np.unsignedinteger]) -> Pixels:
    """Inverse of light_of, rounded; what lies outside of 0..1 is clipped."""
    at = np.sqrt(light.clip(0, 1))
    at *= np.float32(_STEPS - 1)
    at += np.float32(0.5)
    stored = _stored_table().take(at.astype(np.int32))
    stored *= np.float32(np.iinfo(dtype).max)
    return cast("Pixels", np.rint(stored, out=stored).astype(dtype))


@lru_cache(maxsize=2)
def _light_table(top: int) -> Floats:
    stored = np.arange(top + 1) / top
    light = np.where(stored <= 0.04045, stored / 12.92, ((stored + 0.055) / 1.055) ** 2.4)
    return light.astype(np.float32)


@lru_cache(maxsize=1)
def _stored_table() -> Floats:
    """By the light's square root, over which the curve is even enough."""
    light = np.linspace(0, 1, _STEPS) ** 2
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055).astype(np.float32)


def luminance(pixels: Floats) -> Floats:
    """(..., 3) -> (...), in the units of the pixels."""
    return pixels @ LUMA.astype(np.float32)


def bands(pixels: Pixels) -> list[slice]:
    """Rows of (H, W, 3) that may be worked on at once."""
    step = max(1, _AT_ONCE // pixels.shape[1])
    return [slice(top, top + step) for top in range(0, pixels.shape[0], step)]


def _codes(pixels: Pixels) -> Codes:
    """(h, w, 3) -> (3, N) over the whole range of 16 bits."""
    planes = np.ascontiguousarray(pixels.reshape(-1, 3).T, dtype=np.uint16)
    return planes if pixels.dtype == np.uint16 else planes * np.uint16(257)


@lru_cache(maxsize=8)
def _space(icc: bytes | None) -> Space | None:
    """The space of a profile; None if it is as good as sRGB, not of grey or RGB, or damaged."""
    if icc is None or icc[16:20] not in (b"RGB ", b"GRAY"):
        return None
    try:
        tags = _tags(icc)
        space = _table_space(icc) if b"A2B0" in tags else _matrix_space(tags)
    except (struct.error, KeyError, ValueError, IndexError, OSError, ImageCms.PyCMSError):
        return None
    levels = np.arange(0, 65536, 4369, dtype=np.uint16)
    grid = np.stack(np.meshgrid(levels, levels, levels)).reshape(3, -1)
    if icc[16:20] == b"GRAY":
        grid = np.repeat(np.arange(0, 65536, 257, dtype=np.uint16)[None], 3, axis=0)
    off = np.abs(space.to_srgb(grid) - grid / np.float32(65535)).max()
    return space if off > _NEAR_SRGB else None


# --- matrix and curves -----------------------------------------------------------------------------------------------


def _tags(icc: bytes) -> dict[bytes, bytes]:
    (count,) = struct.unpack_from(">I", icc, 128)
    entries = [struct.unpack_from(">4sII", icc, 132 + 12 * k) for k in range(min(count, 100))]
    return {name: icc[at : at + size] for name, at, size in entries}


def _matrix_space(tags: dict[bytes, bytes]) -> Space:
    srgb = _tags(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    grey = b"kTRC" in tags
    names = (b"kTRC",) * 3 if grey else (b"rTRC", b"gTRC", b"bTRC")
    matrix = np.eye(3) if grey else np.linalg.inv(_colourants(srgb)) @ _colourants(tags)
    forward, back = matrix.astype(np.float32), np.linalg.inv(matrix).astype(np.float32)
    curves = {name: _Curve(tags[name]) for name in set(names)}
    own = [curves[name] for name in names]
    shown = [_Curve(srgb[b"rTRC"])] * 3

    def through(source: list[_Curve], matrix: Floats, target: list[_Curve], codes: Codes) -> Floats:
        light = matrix @ np.stack([curve.linear(plane) for curve, plane in zip(source, codes, strict=True)])
        return np.stack([curve.encoded(plane) for curve, plane in zip(target, light, strict=True)])

    return Space(lambda codes: through(own, forward, shown, codes), lambda codes: through(shown, back, own, codes))


def _colourants(tags: dict[bytes, bytes]) -> NDArray[np.float64]:
    """(3, 3): linear RGB to XYZ."""
    columns = [struct.unpack_from(">3i", tags[name], 8) for name in (b"rXYZ", b"gXYZ", b"bXYZ")]
    return np.array(columns, np.float64).T / 65536


class _Curve:
    """A tone curve: stored value to light, and back by a table over the light's square root, which is even enough."""

    def __init__(self, tag: bytes) -> None:
        stored = np.linspace(0, 1, 65536)
        light = np.maximum.accumulate(_tone(tag, stored)).clip(0, 1)
        self._linear = light.astype(np.float32)
        self._encoded = np.interp(np.linspace(0, 1, _STEPS) ** 2, light, stored).astype(np.float32)

    def linear(self, codes: Codes) -> Floats:
        """(N,) stored values -> light in 0..1."""
        light: Floats = self._linear.take(codes)
        return light

    def encoded(self, light: Floats) -> Floats:
        """(N,) light -> stored values in 0..1."""
        at = np.sqrt(light.clip(0, 1))
        at *= _STEPS - 1
        at += np.float32(0.5)
        stored: Floats = self._encoded.take(at.astype(np.int32))
        return stored


def _tone(tag: bytes, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """A curve tag ("curv" or "para") at x in 0..1."""
    if tag[:4] == b"curv":
        (count,) = struct.unpack_from(">I", tag, 8)
        if count == 0:
            return x
        values = np.array(struct.unpack_from(f">{count}H", tag, 12), np.float64)
        if count == 1:
            return cast("NDArray[np.float64]", x ** (values[0] / 256))
        return np.interp(x, np.linspace(0, 1, count), values / 65535)
    if tag[:4] != b"para":
        raise ValueError(f"a curve of kind {tag[:4]!r}")
    (kind,) = struct.unpack_from(">H", tag, 8)
    count = (1, 3, 4, 5, 7)[kind]
    numbers = np.zeros(7)
    numbers[:count] = np.array(struct.unpack_from(f">{count}i", tag, 12)) / 65536
    g, a, b, c, d, e, f = numbers
    if kind == 0:
        return x**g
    bend, below = (-b / a, 0 * x + c) if kind < 3 else (d, c * x + f)
    above = (a * x + b).clip(0, None) ** g + (c if kind == 2 else e)
    return np.where(x >= bend, above, below)


# --- tables ----------------------------------------------------------------------------------------------------------


def _table_space(icc: bytes) -> Space:
    """By the table from device to colour alone: scanners' profiles have no other, and only so is back the way back."""
    levels = np.linspace(0, 255, _NODES).astype(np.uint8)
    if icc[16:20] == b"GRAY":
        raise ValueError("a table of grey")
    nodes = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1)
    shown = ImageCms.profileToProfile(
        Image.fromarray(nodes.reshape(_NODES, -1, 3)),
        ImageCms.ImageCmsProfile(BytesIO(icc)),
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
    )
    forward = cast("Floats", (np.asarray(shown).astype(np.float32) / np.float32(255)).reshape(nodes.shape))
    back = _inverted(forward)
    top = np.float32(65535)

    def through(table: Floats, codes: Codes) -> Floats:
        return _looked_up(table, codes.T.astype(np.float32) / top).T

    return Space(lambda codes: through(forward, codes), lambda codes: through(back, codes))


def _looked_up(table: Floats, x: Floats) -> Floats:
    """A table (n, n, n, 3) at x (N, 3) in 0..1, linear between its nodes."""
    last = len(table) - 1
    at = x.clip(0, 1) * np.float32(last)
    low = np.minimum(at.astype(np.int32), last - 1)
    share = at - low
    flat, n = table.reshape(-1, 3), len(table)
    corner = (low[:, 0] * n + low[:, 1]) * n + low[:, 2]
    out = np.zeros_like(x)
    for r, g, b in np.ndindex(2, 2, 2):
        weight = np.ones(len(x), np.float32)
        for k, upper in enumerate((r, g, b)):
            weight *= share[:, k] if upper else 1 - share[:, k]
        out += flat[corner + (r * n + g) * n + b] * weight[:, None]
    return out


def _inverted(table: Floats) -> Floats:
    """The table of the way back: at each node, what the given table brings nearest to it, by damped Newton steps."""
    axis = np.linspace(0, 1, _NODES_BACK, dtype=np.float32)
    wanted = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    found = wanted.copy()
    delta = np.float32(0.5 / (_NODES_BACK - 1))
    for _ in range(40):
        lower, upper = (found - delta).clip(0, 1), (found + delta).clip(0, 1)
        slopes = []
        for k in range(3):
            one, other = found.copy(), found.copy()
            one[:, k], other[:, k] = lower[:, k], upper[:, k]
            run = (upper[:, k] - lower[:, k])[:, None]
            slopes.append((_looked_up(table, other) - _looked_up(table, one)) / run)
        slope = np.stack(slopes, axis=2)
        missing = wanted - _looked_up(table, found)
        squared = slope.transpose(0, 2, 1) @ slope + np.float32(0.002) * np.eye(3, dtype=np.float32)
        step = np.linalg.solve(squared, slope.transpose(0, 2, 1) @ missing[:, :, None])[:, :, 0]
        found = (found + step.clip(-0.2, 0.2)).clip(0, 1).astype(np.float32)
    return cast("Floats", found.reshape(_NODES_BACK, _NODES_BACK, _NODES_BACK, 3))


# --- CMYK ------------------------------------------------------------------------------------------------------------


def cmyk_to_rgb(inks: NDArray[np.uint8], icc: bytes | None) -> NDArray[np.uint8]:
    """(H, W, 4), 255 = full ink -> (H, W, 3) sRGB, by the profile or, without one, by how inks cover light."""
    out = np.empty((*inks.shape[:2], 3), np.uint8)
    for rows in bands(inks):
        out[rows] = _through(inks[rows], "CMYK", "RGB", icc)
    return out


def rgb_to_cmyk(after: NDArray[np.uint8], inks: NDArray[np.uint8], icc: bytes | None) -> NDArray[np.uint8]:
    """The inks of a photo restored in sRGB: `after` (H, W, 3), from the inks it had.

    As in from_srgb, the separation of what changed little is that of the original.
    """
    out = np.empty_like(inks)
    for rows in bands(inks):
        before = _through(inks[rows], "CMYK", "RGB", icc)
        beyond = inks[rows] - _through(before, "RGB", "CMYK", icc).astype(np.float32)
        change = np.abs(after[rows].astype(np.float32) - before).max(axis=2, keepdims=True) / 255
        kept = _through(after[rows], "RGB", "CMYK", icc)
        kept = kept + beyond * np.maximum(0, 1 - change / np.float32(_NEW_COLOUR))
        out[rows] = np.rint(kept).clip(0, 255)
    return out


def _through(samples: NDArray[np.uint8], source: str, target: str, icc: bytes | None) -> NDArray[np.uint8]:
    image = Image.frombytes(source, (samples.shape[1], samples.shape[0]), np.ascontiguousarray(samples).tobytes())
    if icc is not None:
        try:
            own, srgb = ImageCms.ImageCmsProfile(BytesIO(icc)), ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(
                image,
                own if source == "CMYK" else srgb,
                srgb if source == "CMYK" else own,
                renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
                outputMode=target,
                flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )
        except (ImageCms.PyCMSError, OSError):
            converted = None  # a profile that is damaged or not for CMYK: as if there were none
        if converted is not None:
            return np.asarray(converted)
    if source == "CMYK":
        return np.asarray(image.convert("RGB"))
    black = 255 - samples.max(axis=2, keepdims=True).astype(np.float32)
    covered = (255 - black - samples) * 255 / np.maximum(255 - black, 1)
    return cast("NDArray[np.uint8]", np.rint(np.concatenate([covered, black], axis=2)).astype(np.uint8))
