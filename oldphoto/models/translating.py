"""Old latents -> clean latents: the global restoration of a photo, of any size.

Tensors of photos are (N, 3, H, W) float32 in [-1, 1]; masks (N, 1, H, W), 1 = damaged.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from oldphoto.errors import OutOfMemoryError
from oldphoto.machine.memory import gigabytes, line, out_of_memory, ran_out
from oldphoto.models import winograd
from oldphoto.models.blocks import in_bands, resized
from oldphoto.models.mapping import PATCH_BLOCK, PATCH_MARGIN, PATCH_SIZES, Mapping, Region, attended_side
from oldphoto.models.streaming import Streamed, Streams
from oldphoto.models.tensors import Pixels, mask_to_tensor, mirrored, to_pixels, to_tensor
from oldphoto.models.vae import STRIDE, Original, Vae

# The least side the encoder's first reflection and two halvings can take.
LEAST_SIDE = 16
# Networks without normalisation see a bounded neighbourhood, so large photos run tile by tile, with the same result as
# in one piece. Side of a tile with the neighbourhood in it, in pixels: larger ones repeat less, but leave the caches.
TILE = 1280
# Rows of latents at a time that encoder and decoder come from, or go to, full resolution with: more of them leave
# the caches, fewer are made twice too often.
BAND = 32
# Bytes. What a tile takes for each of its pixels; a strip, above which none is quicker; what attention holds besides
# maps; and the most that a photo may take in one piece, since strips are nearly as quick. A whole run holds WHOLE_MAPS
# of its largest map.
TILE_PIXEL = 300
MOST_STRIPS = 256 << 20
ATTENTION_MEMORY = 320 << 20
MOST_WHOLE = 768 << 20
WHOLE_MAPS = 3.0
# Share of the free memory that is given out: allocator and libraries keep some (0.5 of 3.2 GB at 12 megapixels).
GIVEN_OUT = 0.85


@dataclass(frozen=True)
class TranslationNets:
    """The three networks one translation runs through."""

    old_vae: Vae
    mapping: Mapping
    clean_vae: Vae

    @property
    def bounded(self) -> bool:
        """Whether each output pixel depends on a bounded neighbourhood."""
        configs = (self.old_vae.config, self.mapping.config, self.clean_vae.config)
        return all(c.norm == "none" for c in configs) and self.mapping.config.context == "none"

    @property
    def middle(self) -> tuple[tuple[nn.Module, int], ...]:
        """The parts that work on latents, in order, and how many cells away each sees where it is bounded."""
        encoder, mapping, decoder = self.old_vae.encoder, self.mapping, self.clean_vae.decoder
        layers = len(mapping.config.channels) + mapping.config.blocks
        return (
            (encoder.blocks, 2 * encoder.config.blocks),
            (mapping, 2 * layers),
            (decoder.blocks, 2 * decoder.config.blocks),
        )

    @property
    def reach(self) -> int:
        """The distance in pixels that bounded networks see: whole cells."""
        cells = self.old_vae.encoder.reach + sum(reach for _, reach in self.middle) + self.clean_vae.decoder.reach
        return STRIDE * cells

    @property
    def multiple(self) -> int:
        """The number that the photo's sides are multiples of: whole cells, or whole patches of the largest size."""
        return STRIDE * max(PATCH_SIZES) if self.mapping.config.context == "patches" else STRIDE


@dataclass(frozen=True)
class TranslationPlan:
    """The way in which a photo will be translated, and the most bytes it is expected to take.

    way: in one piece, in tiles, or strip by strip. memory: of the whole process; disk: temporary files, in the system's
    folder for them. strips, maps: see streaming.Streams. tile: side of a tile in pixels.
    """

    way: Literal["whole", "tiles", "strips"]
    memory: int
    disk: int = 0
    strips: int = 0
    maps: int = 0
    tile: int = 0

    def __str__(self) -> str:
        """ "strip by strip: up to 3.4GB of memory, 3.1GB on disk"."""
        way = {"whole": "in one piece", "tiles": "in tiles", "strips": "strip by strip"}[self.way]
        disk = f", {gigabytes(self.disk)} on disk" if self.disk else ""
        return f"{way}: up to {gigabytes(self.memory)} of memory{disk}"


class Translated(NamedTuple):
    """The translated photo, (H, W, 3) of the input's depth; how it was done; and what the user should know of it."""

    pixels: Pixels
    plan: TranslationPlan
    warnings: tuple[str, ...] = ()


def plan_translation(
    size: tuple[int, int],
    depth: int,
    damaged: bool,
    nets: TranslationNets,
    device: torch.device,
    limit: int,
    *,
    beside: int = 0,
) -> TranslationPlan:
    """Plan how to translate a photo of (height, width) and 8 or 16 bits, the process staying below `limit` bytes.

    beside: bytes of what else will be held meanwhile, beside what the process holds now and the translated photo.
    The way does not change the result: strips equal the whole to rounding. Raises OutOfMemoryError, which says what
    would do, if not even the thinnest strips fit, or if there is no room for the temporary files.
    """
    height, width = _padded_size(size, nets)
    copy = height * width * 3 * depth // 8
    held = line.held() + beside + copy + (height * width * 10 if damaged else 0)
    if device.type == "cpu":
        held += winograd.memory(max(nets.mapping.config.channels))
    spare = int((limit - held) * GIVEN_OUT)
    most_whole = min(spare, MOST_WHOLE)
    if device.type == "cuda":
        # Maps in one piece stay on the card; strips would carry each to the main memory and back.
        most_whole = int(torch.cuda.mem_get_info(device)[0] * GIVEN_OUT)
        spare = min(spare, most_whole)
    if nets.bounded:
        tile = TILE
        while _smaller(tile) > 3 * nets.reach and TILE_PIXEL * tile**2 > spare:
            tile = _smaller(tile)
        sides = (min(side, tile) for side in (height, width))
        # Afterwards a copy is made where changes are kept in part, and again where faces are put in.
        return TranslationPlan("tiles", held + max(TILE_PIXEL * math.prod(sides), copy), tile=tile)
    dry = _dry_run(height, width, damaged, nets, 0, 0)
    whole = WHOLE_MAPS * dry.largest_map + (ATTENTION_MEMORY if damaged else 0)
    if whole <= most_whole:
        return TranslationPlan("whole", held + max(round(whole), copy))
    strips = max(min(spare // 3, MOST_STRIPS), dry.least_strip)
    maps = spare - strips - (ATTENTION_MEMORY if damaged else 0)
    if maps < 0:
        least = held + int((dry.least_strip + (ATTENTION_MEMORY if damaged else 0)) / GIVEN_OUT)
        raise OutOfMemoryError(
            f"{size[1]} x {size[0]} pixels take {gigabytes(least)} of memory, more than the {gigabytes(limit)} allowed",
            f"give --max-memory {gigabytes(least + (100 << 20))} or more, or --model compact",
        )
    dry = _dry_run(height, width, damaged, nets, strips, maps)
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if dry.most_on_disk > free:
        raise OutOfMemoryError(
            f"a photo of {size[1]} x {size[0]} pixels needs {gigabytes(dry.most_on_disk)} for temporary files, "
            f"and {folder} has {gigabytes(free)} free",
            "point TMPDIR to a folder with more room, or give a higher --max-memory",
        )
    return TranslationPlan("strips", limit - maps + dry.most_in_memory, dry.most_on_disk, strips, maps)


def _padded_size(size: tuple[int, int], nets: TranslationNets) -> tuple[int, int]:
    height, width = (max(-(-side // nets.multiple) * nets.multiple, LEAST_SIDE) for side in size)
    return height, width


def _dry_run(height: int, width: int, damaged: bool, nets: TranslationNets, strips: int, maps: int) -> Streams:
    streams = Streams(strips, maps, torch.device("cpu"), dry=True)
    x = streams.photo((3, height, width), lambda top, bottom: torch.empty(0))
    mask = torch.zeros(1, 1, 1, 1).expand(1, 1, height, width) if damaged else None
    with torch.inference_mode():
        for _ in translate_whole(cast("Tensor", x), mask, nets).strips():  # type: ignore[attr-defined]  # a Streamed
            pass
    return streams


def translate_photo(
    pixels: Pixels,
    mask: NDArray[np.bool_] | None,
    nets: TranslationNets,
    device: torch.device,
    limit: int | TranslationPlan,
    *,
    trusted: bool = True,
) -> Translated:
    """Restore (H, W, 3) pixels of 8 or 16 bits, any H and W, the process staying below `limit` bytes, or as planned.

    mask: (H, W) bool, True = damaged, or None. trusted: nothing of what lies under the mask is looked at. Otherwise
    networks that refine the photo may keep what was masked by mistake. Where memory runs out all the same, the parts
    worked on are halved, and a warning says so. Raises OutOfMemoryError.
    """
    size = (pixels.shape[0], pixels.shape[1])
    plan = limit
    if not isinstance(plan, TranslationPlan):
        plan = plan_translation(size, pixels.dtype.itemsize * 8, mask is not None, nets, device, plan)
    photo = _Padded(pixels, mask, nets, device)
    warnings = _bounds(photo, nets)
    if plan.way == "strips":
        return _by_strips(photo, nets, plan, trusted, warnings)
    tile, told = plan.tile or max(photo.height, photo.width), warnings
    while True:
        try:
            return Translated(_by_tiles(photo, nets, trusted, tile), plan, told)
        except Exception as error:
            if not ran_out(error):
                raise
        if plan.way == "whole":
            less = TranslationPlan("strips", plan.memory // 2, plan.disk, MOST_STRIPS // 2, 0)
            return _by_strips(photo, nets, less, trusted, (*warnings, "memory ran out: went on strip by strip"))
        tile = _smaller(tile)
        if tile < 3 * nets.reach:
            raise out_of_memory((size[1], size[0]))
        told = (*warnings, f"memory ran out: went on with tiles of {tile} pixels")


def _bounds(photo: _Padded, nets: TranslationNets) -> tuple[str, ...]:
    """Return the warnings for a photo in which attention does not reach everywhere."""
    kind = nets.mapping.config.context
    if photo.mask is None or kind == "none":
        return ()
    cells = {"non_local": attended_side(), "patches": attended_side(PATCH_BLOCK, PATCH_MARGIN)}[kind]
    if photo.height * photo.width // STRIDE**2 <= cells**2:
        return ()
    return (
        f"damage is repaired from within regions of {cells * STRIDE} x {cells * STRIDE} pixels, not the whole photo",
    )


class _Padded:
    """A photo and its mask, mirrored at the lower and right edge to the size networks need; tensors of their parts."""

    def __init__(
        self, pixels: Pixels, mask: NDArray[np.bool_] | None, nets: TranslationNets, device: torch.device
    ) -> None:
        self.pixels, self.mask, self.device = pixels, mask, device
        self.height, self.width = _padded_size((pixels.shape[0], pixels.shape[1]), nets)
        self.rows, self.columns = mirrored((pixels.shape[0], pixels.shape[1]), (self.height, self.width))

    def part(self, top: int, bottom: int, left: int, right: int) -> Tensor:
        """(1, 3, bottom - top, right - left)."""
        return to_tensor(self.pixels[np.ix_(self.rows[top:bottom], self.columns[left:right])]).to(self.device)

    def part_of_mask(self, top: int, bottom: int, left: int, right: int) -> Tensor | None:
        """(1, 1, bottom - top, right - left)."""
        if self.mask is None:
            return None
        return mask_to_tensor(self.mask[np.ix_(self.rows[top:bottom], self.columns[left:right])]).to(self.device)

    def put(self, out: Pixels, made: Tensor, top: int, left: int) -> None:
        """Write (1, 3, h, w) into the picture of the photo's size, leaving out what was only padding."""
        part = out[top : top + made.shape[2], left : left + made.shape[3]]
        part[:] = to_pixels(made[:, :, : part.shape[0], : part.shape[1]], out.dtype)


def _by_strips(
    photo: _Padded, nets: TranslationNets, plan: TranslationPlan, trusted: bool, warnings: tuple[str, ...]
) -> Translated:
    """Translate strip by strip, with translate_whole's result to rounding."""
    streams = Streams(plan.strips, plan.maps, photo.device)
    x = streams.photo((3, photo.height, photo.width), lambda top, bottom: photo.part(top, bottom, 0, photo.width))
    mask = photo.part_of_mask(0, photo.height, 0, photo.width)
    made = cast("Streamed", translate_whole(cast("Tensor", x), mask, nets, trusted))
    out = np.empty_like(photo.pixels)
    for top, strip in made.strips():
        photo.put(out, strip, top, 0)
    if streams.halved:
        warnings = (*warnings, f"memory ran out: strips were halved {streams.halved} times")
    return Translated(out, plan, warnings)


def _by_tiles(photo: _Padded, nets: TranslationNets, trusted: bool, tile: int) -> Pixels:
    """Translate tile by tile, as translate_whole does at once; for unbounded networks the whole photo is a tile."""
    out = np.empty_like(photo.pixels)
    halo, everything = nets.reach, Region(0, photo.height, 0, photo.width)
    for top, bottom in _tiles(photo.height, tile, halo):
        for left, right in _tiles(photo.width, tile, halo):
            wanted = Region(top, bottom, left, right)
            around = wanted.grown(halo, everything)
            x, mask = photo.part(*around), photo.part_of_mask(*around)
            made = (
                translate_in_bands(x, mask, nets, trusted, wanted.within(around))
                if nets.bounded
                else translate_whole(x, mask, nets, trusted)
            )
            photo.put(out, made, top, left)
    return out


def _tiles(length: int, tile: int, halo: int) -> Iterator[tuple[int, int]]:
    """Cut a side into parts which with a halo on each inner end are at most a tile, and even in size."""
    count = -(-(length - 2 * halo) // (tile - 2 * halo)) if length > tile else 1
    step = -(-(length - 2 * halo) // (count * STRIDE)) * STRIDE
    yield from pairwise((0, *(halo + step * number for number in range(1, count)), length))


def _smaller(tile: int) -> int:
    """The next smaller tile, of about half the pixels."""
    return tile * 3 // (4 * STRIDE) * STRIDE


def translate_whole(x: Tensor, mask: Tensor | None, nets: TranslationNets, trusted: bool | Tensor = True) -> Tensor:
    """The networks on photos in one piece: (N, 3, H, W), H and W multiples of nets.multiple -> the same shape.

    trusted: as for translate_photo, or (N, 1, 1, 1) bool, photo by photo.
    """
    filled, latent = translate_latents(x, mask, nets)
    return nets.clean_vae.decode(latent, source_of(x, filled, mask, trusted))


def source_of(x: Tensor, filled: Tensor, mask: Tensor | None, trusted: bool | Tensor) -> Original:
    """Return what a decoder that refines photos is shown of them; arguments as of translate_whole."""
    holes = x.new_zeros(len(x), 1, *x.shape[2:]) if mask is None else mask
    if isinstance(trusted, Tensor):
        return Original(filled, torch.where(trusted, filled, x), holes)
    return Original(filled, filled if trusted else x, holes)


def translate_in_bands(
    x: Tensor, mask: Tensor | None, nets: TranslationNets, trusted: bool = True, wanted: Region | None = None
) -> Tensor:
    """Translate in bands of rows, for bounded networks, as translate_whole does in one piece; what is of full
    resolution is there for BAND rows of latents at a time, which takes a fifth of the memory, and is quicker, since it
    stays in the caches.

    wanted: the pixels to give, whole cells; None for all. Each part is given no more than what the rest sees of it.
    """
    encoder, decoder = nets.old_vae.encoder, nets.clean_vae.decoder
    source = source_of(x, _filled(x, mask, nets), mask, trusted)

    def full(rows: slice) -> Original:
        return source.part((..., slice(STRIDE * rows.start, STRIDE * rows.stop), slice(None)))

    def reduced(rows: slice) -> Tensor:
        return encoder.reduce(full(rows).filled, full(rows).mask)

    def enlarged(rows: slice) -> Tensor:
        return decoder.enlarge(latent[:, :, rows], full(rows))

    held = Region(0, x.shape[2] // STRIDE, 0, x.shape[3] // STRIDE)
    wanted = held if wanted is None else wanted.scaled(1 / STRIDE)
    latent = in_bands(held.bottom, BAND, encoder.reach, reduced)
    seen = nets.reach // STRIDE - encoder.reach
    for part, reach in nets.middle:
        seen -= reach
        around = wanted.grown(seen, held)
        latent, held = part(latent)[around.within(held).slices], around
    source = source.part(held.scaled(STRIDE).slices)
    made = in_bands(held.bottom - held.top, BAND, decoder.reach, enlarged)
    return made[wanted.within(held).scaled(STRIDE).slices]


def translate_latents(x: Tensor, mask: Tensor | None, nets: TranslationNets) -> tuple[Tensor, Tensor]:
    """The photo with its holes filled, (N, 3, H, W), and its clean latents, (N, C, H/4, W/4)."""
    x = _filled(x, mask, nets)
    return x, nets.mapping(nets.old_vae.encode(x, mask), mask)


def _filled(x: Tensor, mask: Tensor | None, nets: TranslationNets) -> Tensor:
    if mask is None:
        return x
    return fill_from_surroundings(x, mask) if nets.old_vae.config.mask_input else fill_white(x, mask)


def fill_white(x: Tensor, mask: Tensor) -> Tensor:
    """Paint holes white, as the published networks were trained to see them; a mask between 0 and 1 blends."""
    return torch.lerp(x, mask.new_ones(1, 1, 1, 1), mask)


def fill_from_surroundings(x: Tensor, mask: Tensor) -> Tensor:
    """Fill holes smoothly from their rim: average the sound pixels down a pyramid, then look up the nearest level.

    x: (N, 3, H, W), mask: (N, 1, H, W) -> (N, 3, H, W). A photo without a sound pixel becomes mid-grey.
    """
    sound = 1.0 - (mask > 0).to(x.dtype)
    if bool((sound == 1.0).all()):
        return x
    levels = [(x * sound, sound)]
    while bool((levels[-1][1] == 0.0).any()) and min(levels[-1][0].shape[-2:]) > 1:
        value, known = levels[-1]
        weight = F.avg_pool2d(known, 2, ceil_mode=True, count_include_pad=False)
        mean = F.avg_pool2d(value * known, 2, ceil_mode=True, count_include_pad=False) / weight.clamp_min(1e-6)
        levels.append((mean, (weight > 0).to(x.dtype)))
    coarse = levels[-1][0]
    for value, known in reversed(levels[:-1]):
        coarse = torch.where(known > 0, value, resized(coarse, (value.shape[2], value.shape[3])))
    return torch.where(mask > 0, coarse, x)
