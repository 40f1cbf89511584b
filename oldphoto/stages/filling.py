"""How holes are filled from the photo itself: patch by patch, from coarse to fine.

Every patch that touches a hole looks for the sound patch that is most like it, and holes become what the patches over
them say; both are repeated (Wexler, Shechtman, Irani 2007). The search is a random one in which neighbours tell each
other what they found (Barnes et al. 2009). It begins in a copy of the photo so small that holes are a few pixels wide,
where edges are led across them, and goes on in copies of twice the size, which add texture; how much texture there is
goes through the copies as two channels more (Newson et al. 2014). What a patch says is brought to the brightness and
slope of what it is to continue, so that a sky without a second place of the same blue can be filled.

Pixels are (H, W, 3) uint8 or uint16 RGB, masks (H, W) bool. Places are flat: row times width plus column.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from oldphoto.arrays import Floats, Mask, Pixels
from oldphoto.stages.stage import Case, Clock, Plain, State

if TYPE_CHECKING:
    from oldphoto.models.loaded import Models

Places = NDArray[np.intp]
Image = Pixels | Floats

# Pixels from a patch's centre to its sides; smaller ones serve where fewer places than that are sound.
RADII, LEAST_SOURCES = (3, 2, 1), 200
# Of what a pixel of a smaller copy stands for, this share of 255 has to be sound; else it is part of a hole.
KNOWN = 128
# In the smallest copy no hole reaches farther than so many pixels from its rim, unless the copy gets too small.
COARSEST_HOLE, LEAST_SIDE = 2.0, 24
# Copies of no more pixels are searched all over. In larger ones, what was found in a smaller copy is refined within so
# many pixels, and what was too thin to be seen there is searched for about itself.
MOST_SEARCHED, REFINED, AROUND = 1_000_000, 2, 64
# Rounds of searching and voting: in the smallest copy, in those between, in the photo itself, in one too large.
FIRST, BETWEEN, LAST, REFINING = 12, 6, 4, 1
# Patches are compared by this many principal components, learned from so many of them; how far apart they are counts in
# shares of the photo's longer side, since what is near is more likely to be the same thing. Their mean and slopes count
# less than what is on top, as these are adapted: by at most so much of the range, and so much a pixel.
COMPONENTS, SAMPLES, NEAR = 24, 4096, 2.0
PLANE, MOST_SHIFT = (0.3, 0.5, 0.5), (0.2, 0.02, 0.02)
TEXTURE, TEXTURE_SIDE = 2.0, 9
# Patches deep in holes know less: their votes count so much less with each pixel.
FALL = 1.3
# Votes count less the more a patch differs, in units of how much those over the same pixel differ on average; more so
# in the end, since means have less grain.
SHARP, SHARPEST = 1.0, 0.5
AT_ONCE, TARGETS_AT_ONCE = 16384, 262144
# Bytes that filling takes for each pixel of a photo, as far as a tenth of it is damaged, and besides.
PIXEL_MEMORY, LEAST_MEMORY = 30, 350 << 20
# What was found along so much of a side of the photo, and is so deep, in shares of its shorter side, lies around the
# print.
GROUND_LENGTH, GROUND_DEPTH = 0.5, 0.03


class Filling(Plain):
    """Fills what is masked, but not what lies around the print, unless the user's own mask says so."""

    name: str = "filling"
    clock: Clock = "scratches"
    doing: str = "filling damage"
    without: str = "look for none"

    def wanted(self, case: Case) -> bool:
        """See Stage."""
        return case.damaged and case.models.fills

    def copies(self, case: Case) -> int:
        """See Stage. Where fading is undone, that stage's copy takes this one's place."""
        return int(self.wanted(case) and not case.options.restores_tone(unasked=case.models.undoes_fading))

    def memory(self, case: Case, models: Models) -> int:
        """See Stage."""
        return LEAST_MEMORY + PIXEL_MEMORY * case.width * case.height

    def run(self, state: State, case: Case, models: Models) -> None:
        """See Stage."""
        if state.mask is None:
            return
        if not state.trusted:
            state.mask = without_ground(state.mask)
        state.pixels = fill(state.pixels, state.mask)
        state.filled = True


def fill(pixels: Pixels, mask: Mask) -> Pixels:
    """The photo with what the mask names filled from the rest of it; other pixels stay as they are.

    mask: (H, W), True = hole, of any shape and width. Where nothing is masked, or all of it, the photo is given back as
    it is. The same photo and mask make the same pixels.
    """
    out = pixels.copy()
    if not mask.any() or mask.all():
        return out
    random = np.random.default_rng(0)
    copies = list(_copies(out, mask))
    done: Level | None = None
    while copies:
        image, share = copies.pop()
        level = Level(image, share < KNOWN)
        if done is None:
            image[:] = smooth(np.asarray(image, np.float32), (share > 0).astype(np.float32))
        if len(level.holes):
            if done is not None:
                level.put(level.holes, done.enlarged(level.holes, level.width, level.channels))
            _repair(level, done, random, last=not copies)
        done = level
    assert done is not None
    found = np.flatnonzero(mask)
    top = np.iinfo(pixels.dtype).max
    values = done.colours(found)[:, :3] + _gap(done, found)
    out.reshape(-1, 3)[found] = np.clip(np.rint(values * top), 0, top).astype(pixels.dtype)
    return out


def _repair(level: Level, smaller: Level | None, random: np.random.Generator, *, last: bool) -> None:
    """Search and vote in one copy, beginning with what was found in the smaller one."""
    if not len(level.sources):
        return
    rounds = FIRST if smaller is None else LAST if last else BETWEEN
    level.begin(random)
    if smaller is not None:
        search(level, random, AROUND, ~level.follow(smaller))
        vote(level)
    rounds = rounds if level.searched else REFINING
    for number in range(rounds):
        search(level, random, max(level.height, level.width) if level.searched else REFINED)
        vote(level, SHARPEST if last and number == rounds - 1 else SHARP)


def _copies(pixels: Pixels, mask: Mask) -> Iterator[tuple[Image, NDArray[np.uint8]]]:
    """The photo and smaller copies, and how much of each pixel is sound, 0 to 255: the photo first."""
    image: Image = pixels
    share = np.where(mask, np.uint8(0), np.uint8(255))
    while True:
        if share.size <= MOST_SEARCHED and image.shape[2] == 3:
            image = _with_texture(image, share)
        yield image, share
        if share.size <= MOST_SEARCHED:
            hole = (share < KNOWN).astype(np.uint8)
            deepest = cv2.distanceTransform(np.pad(hole, 1, mode="edge"), cv2.DIST_L2, 3).max()
            if deepest <= COARSEST_HOLE or min(share.shape) < 2 * LEAST_SIDE:
                return
        image, share = halved(image, share)


def _with_texture(image: Image, share: NDArray[np.uint8]) -> Floats:
    """(H, W, 5) of (H, W, 3): colours in [0, 1], and the mean size of steps across and down."""
    colours = np.asarray(image, np.float32) / _range(image)
    light = colours.mean(axis=-1)
    steps = np.diff(light, axis=1, append=light[:, -1:]), np.diff(light, axis=0, append=light[-1:])
    sound = cv2.erode((share == 255).astype(np.float32), np.ones((3, 3), np.uint8))
    side = (TEXTURE_SIDE, TEXTURE_SIDE)
    weight = cv2.blur(sound, side)
    planes = [cv2.blur(np.abs(step) * sound, side) / np.maximum(weight, 1e-6) for step in steps]
    texture = smooth(np.stack(planes, axis=-1), (weight > 1e-4).astype(np.float32))
    return np.concatenate([colours, TEXTURE * texture], axis=-1)


def _range(image: Image) -> np.float32:
    """What stands for white."""
    return np.float32({"uint8": 255, "uint16": 65535, "float32": 1}[str(image.dtype)])


def halved(image: Image, share: NDArray[np.uint8]) -> tuple[Image, NDArray[np.uint8]]:
    """A copy of half the size, rounded up, of the same type: means over what is sound of each 2 x 2 pixels."""
    height, width = (-(-side // 2) for side in share.shape)
    small = np.empty((height, width, image.shape[2]), image.dtype)
    less = np.empty((height, width), np.uint8)
    for top in range(0, height, 256):
        rows = slice(2 * top, 2 * top + 512)
        odd = ((0, share[rows].shape[0] % 2), (0, share.shape[1] % 2))
        values = np.pad(np.asarray(image[rows], np.float32), (*odd, (0, 0)), mode="edge")
        known = np.pad(share[rows], odd, mode="edge").astype(np.float32)
        mean, weight = _mean(values, known)
        less[top : top + 256] = np.rint(weight)
        small[top : top + 256] = mean if small.dtype == np.float32 else np.rint(mean)
    return small, less


def _mean(values: Floats, known: Floats) -> tuple[Floats, Floats]:
    """Means of each 2 x 2 pixels of (H, W, C), weighted by (H, W), and the mean weight: H and W even."""
    height, width = known.shape[0] // 2, known.shape[1] // 2
    weight = known.reshape(height, 2, width, 2).mean(axis=(1, 3))
    mean = (values * known[..., None]).reshape(height, 2, width, 2, -1).mean(axis=(1, 3))
    return mean / np.maximum(weight, 1e-6)[..., None], weight


def smooth(image: Floats, known: Floats) -> Floats:
    """(H, W, C), where `known` is 0 filled smoothly from where it is more."""
    height, width = known.shape
    if bool((known > 0).all()) or max(height, width) == 1:
        return image
    odd = ((0, height % 2), (0, width % 2))
    mean, weight = _mean(np.pad(image, (*odd, (0, 0)), mode="edge"), np.pad(known, odd, mode="edge"))
    mean = smooth(mean, (weight > 0).astype(np.float32))
    size = (2 * mean.shape[1], 2 * mean.shape[0])
    large = cv2.resize(mean, size, interpolation=cv2.INTER_LINEAR).reshape(size[1], size[0], -1)
    return np.where((known > 0)[..., None], image, large[:height, :width])


@dataclass
class Level:
    """The photo in one size, with what its holes hold by now, and for each patch that touches a hole the sound one that
    is most like it.

    image: (H, W, C), changed in place. hole: (H, W). targets: centres of the patches that touch holes; nearest, cost,
    shift: of each the centre of the sound patch that is most like it, how unlike that is, and the plane that has to be
    added to it, (N, 3, C). number: (H W,) which target a place is, or -1. sources: centres of sound patches.
    """

    image: Image
    hole: Mask
    radius: int = field(init=False)
    nearest: Places = field(init=False)
    cost: Floats = field(init=False)
    shift: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.height, self.width, self.channels = self.image.shape
        self.searched = self.hole.size <= MOST_SEARCHED
        self.flat = self.image.reshape(-1, self.channels)
        self.unit = _range(self.image)
        self.holes = np.flatnonzero(self.hole)
        for radius in RADII:
            side = 2 * radius + 1
            near = cv2.dilate(self.hole.astype(np.uint8), np.ones((side, side), np.uint8)).astype(np.bool_)
            inside = np.zeros_like(self.hole)
            inside[radius : self.height - radius, radius : self.width - radius] = True
            self.valid = (inside & ~near).ravel()
            if np.count_nonzero(self.valid) >= LEAST_SOURCES:
                break
        self.radius = radius
        self.sources = np.flatnonzero(self.valid)
        self.targets = np.flatnonzero(inside & near)
        self.number = np.full(self.hole.size, -1, np.int32)
        self.number[self.targets] = np.arange(len(self.targets), dtype=np.int32)
        reach = range(-radius, radius + 1)
        self.offsets = np.array([down * self.width + across for down, across in product(reach, reach)])
        self.nearest = np.zeros(len(self.targets), np.intp)
        self.cost = np.zeros(len(self.targets), np.float32)
        self.shift = np.zeros((len(self.targets), 3, self.channels), np.float32)

    def colours(self, places: Places) -> Floats:
        """Of any shape S of places: (*S, C) in [0, 1]."""
        return np.asarray(self.flat[places], np.float32) / self.unit

    def put(self, places: Places, colours: Floats) -> None:
        """Change pixels."""
        values = colours * self.unit
        if self.flat.dtype != np.float32:
            values = np.clip(np.rint(values), 0, self.unit)
        self.flat[places] = values

    def begin(self, random: np.random.Generator) -> None:
        """Learn what tells patches apart, and take any source for each target."""
        side = len(self.offsets)
        reach = range(-self.radius, self.radius + 1)
        self.shapes = np.array([(1, down, across) for down, across in product(reach, reach)], np.float32)
        self.measures = self.shapes / (self.shapes**2).sum(axis=0)
        less = 1.0 - np.array(PLANE, np.float32)
        some = self.colours(self.sources[:: max(1, len(self.sources) // SAMPLES)][:, None] + self.offsets)
        some -= np.einsum("nkc,sk,k->nsc", self.planes(some), self.shapes, less)
        flat = some.reshape(len(some), -1)
        flat -= flat.mean(axis=0)
        vectors = np.linalg.eigh(flat.T @ flat)[1][:, ::-1][:, :COMPONENTS]
        # Lessening the plane is part of the projection, so that patches need not be changed themselves.
        per = vectors.reshape(side, self.channels, -1)
        planes = np.einsum("sk,k,tk,tcd->scd", self.measures, less, self.shapes, per)
        self.basis = (per - planes).reshape(vectors.shape).astype(np.float32)
        self.trust = self._trust()
        self.table = None
        if self.searched:
            table, planes = self.described(self.sources)
            at = np.zeros(self.hole.size, np.int32)
            at[self.sources] = np.arange(len(self.sources), dtype=np.int32)
            self.table = (at, table, planes)
        self.nearest = self.sources[random.integers(0, len(self.sources), len(self.targets))]

    def planes(self, patches: Floats) -> Floats:
        """Mean of patches (N, S, C) and how much brighter they get each pixel down and across: (N, 3, C)."""
        return np.asarray(np.einsum("nsc,sk->nkc", patches, self.measures), np.float32)

    def _trust(self) -> Floats:
        if not self.searched:
            return np.ones(len(self.targets), np.float32)
        deep = cv2.distanceTransform(self.hole.astype(np.uint8), cv2.DIST_L2, 3).ravel()[self.targets]
        return np.asarray(FALL**-deep, np.float32)

    def described(self, places: Places) -> tuple[Floats, Floats]:
        """Of patches about (N,) places: (N, D) to compare them by, and their planes, (N, 3, C)."""
        kinds = self.basis.shape[1]
        out = np.empty((len(places), kinds + 2), np.float32)
        planes = np.empty((len(places), 3, self.channels), np.float32)
        for start in range(0, len(places), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            patches = self.colours(places[part, None] + self.offsets)
            planes[part] = self.planes(patches)
            out[part, :kinds] = patches.reshape(len(patches), -1) @ self.basis
        per = NEAR / max(self.height, self.width)
        out[:, kinds], out[:, kinds + 1] = (part * per for part in np.divmod(places, self.width))
        return out, planes

    def looked(self, places: Places) -> tuple[Floats, Floats]:
        """As described, of sources."""
        if self.table is None:
            return self.described(places)
        at, table, planes = self.table
        rows = at[places]
        return table[rows], planes[rows]

    def follow(self, smaller: Level) -> Mask:
        """Take over what was found in the copy of half the size: (N,), for which targets there was something."""
        if not len(smaller.sources):
            return np.zeros(len(self.targets), np.bool_)
        down, across = np.divmod(self.targets, self.width)
        parent = smaller.number[(down // 2) * smaller.width + across // 2]
        their_down, their_across = np.divmod(smaller.nearest[parent], smaller.width)
        down = np.minimum(2 * their_down + down % 2, self.height - 1)
        across = np.minimum(2 * their_across + across % 2, self.width - 1)
        place = down * self.width + across
        led = (parent >= 0) & self.valid[place]
        self.nearest = np.where(led, place, self.nearest)
        return np.asarray(led)

    def enlarged(self, places: Places, width: int, channels: int) -> Floats:
        """What a copy of twice the size, so wide, has in some places: (N, channels)."""
        down, across = (np.asarray(part, np.float32) / 2 - 0.25 for part in np.divmod(places, width))
        out = np.zeros((len(places), channels), np.float32)
        # Bilinear, in the middle between four pixels; OpenCV's own takes no more than 32,767 points in a row.
        down, across = np.clip(down, 0, self.height - 1), np.clip(across, 0, self.width - 1)
        top, left = np.floor(down).astype(np.intp), np.floor(across).astype(np.intp)
        below, right = np.minimum(top + 1, self.height - 1), np.minimum(left + 1, self.width - 1)
        down, across = (down - top)[:, None], (across - left)[:, None]
        for row, weight in ((top, 1 - down), (below, down)):
            for column, share in ((left, 1 - across), (right, across)):
                out += weight * share * self.colours(row * self.width + column)[:, :channels]
        return out


def search(level: Level, random: np.random.Generator, reach: int, only: Mask | None = None) -> None:
    """Look for better sources: those beside a neighbour's, and some by chance, within `reach` pixels at first, then
    within less and less; of all targets, or of some alone, which look about themselves first."""
    for start in range(0, len(level.targets), TARGETS_AT_ONCE):
        part = slice(start, start + TARGETS_AT_ONCE)
        _search_part(level, random, reach, part, None if only is None else only[part])


def _search_part(level: Level, random: np.random.Generator, reach: int, part: slice, only: Mask | None) -> None:
    targets, nearest, cost = level.targets[part], level.nearest[part], level.cost[part]
    wanted, mean = level.described(targets)
    found, shift = level.looked(nearest)
    cost[:] = ((found - wanted) ** 2).sum(axis=1)
    np.subtract(mean, shift, out=shift)

    def offer(places: Places, there: Mask | None = None) -> None:
        good = level.valid.take(places, mode="clip") & (places >= 0) & (places != nearest)
        for condition in (there, only):
            if condition is not None:
                good &= condition
        chosen = np.flatnonzero(good)
        for start in range(0, len(chosen), AT_ONCE):
            i = chosen[start : start + AT_ONCE]
            what, theirs = level.looked(places[i])
            what -= wanted[i]
            costs = np.einsum("nd,nd->n", what, what)
            better = costs < cost[i]
            i = i[better]
            cost[i], nearest[i] = costs[better], places[i]
            shift[i] = mean[i] - theirs[better]

    def near(centres: Places, within: int) -> Places:
        down, across = np.divmod(centres, level.width)
        down = down + random.integers(-within, within + 1, len(down))
        across = across + random.integers(-within, within + 1, len(across))
        down, across = np.clip(down, 0, level.height - 1), np.clip(across, 0, level.width - 1)
        return np.asarray(down * level.width + across)

    if only is not None and only.any():
        for within in 2 * (reach, reach // 2, reach // 4, reach // 8):
            offer(near(targets, within))
    for step in (1, 3):
        for way in (step, -step, step * level.width, -step * level.width):
            other = level.number.take(targets + way, mode="clip")
            offer(level.nearest[other] - way, other >= 0)
    while reach:
        offer(near(nearest, reach))
        reach = reach // 2 if reach < 16 else reach // 3
    most = np.array(MOST_SHIFT, np.float32)[:, None]
    level.shift[part] = np.clip(shift, -most, most)


def vote(level: Level, sharp: float = SHARP) -> None:
    """Make holes what the patches over them say; sharp: see SHARP."""
    for start in range(0, len(level.holes), AT_ONCE):
        places = level.holes[start : start + AT_ONCE]
        level.put(places, said(level, places, sharp))


def said(level: Level, places: Places, sharp: float = SHARP) -> Floats:
    """What patches over (N,) places say these look like: (N, C)."""
    who = level.number.take(places[:, None] - level.offsets, mode="clip")
    there = who >= 0
    cost = np.where(there, level.cost[who], 0.0)
    count = np.maximum(there.sum(axis=1, keepdims=True), 1)
    spread = cost.sum(axis=1, keepdims=True) / count + 1e-8
    least = np.where(there, cost, np.inf).min(axis=1, keepdims=True)
    weight = np.where(there, np.exp((least - cost) / (sharp * spread)) * level.trust[who], 0.0)
    weight /= np.maximum(weight.sum(axis=1, keepdims=True), 1e-12)
    words = level.colours(level.nearest[who] + level.offsets)
    for plane in range(3):
        words += level.shift[:, plane][who] * level.shapes[:, plane, None]
    return np.asarray(np.einsum("pk,pkc->pc", weight, words), np.float32)


def _gap(level: Level, holes: Places) -> Floats:
    """What the rim of the holes is more than the patches say it is, led smoothly into the holes: (N, 3)."""
    if not len(level.sources) or not len(level.holes):
        return np.zeros((len(holes), 3), np.float32)
    # On a grid so coarse that it takes no room: it is a smooth thing.
    coarse = -(-max(level.height, level.width) // 1024)
    rim = level.targets[~level.hole.ravel()[level.targets]]
    height, width = -(-level.height // coarse), -(-level.width // coarse)
    cells = (rim // level.width) // coarse * width + (rim % level.width) // coarse
    count = np.bincount(cells, minlength=height * width).astype(np.float32)
    sums = np.zeros((height * width, 3), np.float32)
    for start in range(0, len(rim), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        more = (level.colours(rim[part]) - said(level, rim[part]))[:, :3]
        for channel in range(3):
            sums[:, channel] += np.bincount(cells[part], more[:, channel], height * width).astype(np.float32)
    gap, weight = sums.reshape(height, width, 3), count.reshape(height, width)
    soft, amount = cv2.GaussianBlur(gap, (0, 0), 2.0), cv2.GaussianBlur(weight, (0, 0), 2.0)
    mean = np.where(weight[..., None] > 0, soft / np.maximum(amount, 1e-6)[..., None], 0.0)
    full = smooth(mean.astype(np.float32), (weight > 0).astype(np.float32))
    down, across = np.divmod(holes, level.width)
    return np.asarray(full[down // coarse, across // coarse], np.float32)


def without_ground(mask: Mask) -> Mask:
    """A mask (H, W) that was found, less what is not damage but lies around the print: the scanner's ground, a mount.

    That is what runs along half of a side of the photo or more, and is deep; a lost corner or a worn edge is not.
    """
    deep = 2 * round(GROUND_DEPTH * min(mask.shape) / 2) + 1
    square = np.ones((deep, deep), np.uint8)
    beyond = np.pad(mask.astype(np.uint8), deep)
    thick = cv2.morphologyEx(beyond, cv2.MORPH_OPEN, square)[deep:-deep, deep:-deep]
    count, label = cv2.connectedComponents(thick)
    ground = np.zeros_like(mask)
    for side in (label[0], label[-1], label[:, 0], label[:, -1]):
        lengths = np.bincount(side, minlength=count)
        for number in np.flatnonzero(lengths[1:] >= GROUND_LENGTH * len(side)) + 1:
            ground |= label == number
    return mask & ~cv2.dilate(ground.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(np.bool_)
