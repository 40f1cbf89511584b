"""Networks on photos of any size, in bounded memory: strip by strip, layer by layer, with the result of the whole.

A `Streamed` stands for a map (1, C, H, W) of which some rows at a time are computed when they are asked for. The
networks take it for a tensor: their own `forward` runs on it, and each convolution, padding and sum is noted down
instead of computed (torch's `__torch_function__`). Instance norm wants the mean and variance of a whole map, so there a
pass is made: strip by strip with the rows that the convolution needs above and below, the moments are gathered in
double precision, and the map is stored, in memory as far as `Streams.maps` goes, in temporary files beyond it. Maps
that are cheap to compute, which are those at full resolution, are computed again instead of stored. A map that nothing
needs any more is overwritten by the next one. Run `dry`, the same walk says beforehand what it will take.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from oldphoto.machine.memory import ran_out
from oldphoto.models.blocks import moments
from oldphoto.models.mapping import NonLocal, PatchScale, most_alike
from oldphoto.models.streaming_nodes import (
    BYTES,
    Attention,
    Convolution,
    Given,
    Ledger,
    MapStore,
    Node,
    Patched,
    Pointwise,
    Reflected,
    Stored,
    Transposed,
)

# A value of more multiplications than this is stored rather than computed again: reading it back from a disk takes
# about as long. The encoder's first and the decoder's last wide layer, 25 GB each at 100 megapixels, are below it.
WORTH_STORING = 300
# Buffers of one strip alive at once: what is read, its padded copy, the convolution's result and its workspace.
BUFFERS = 5
LEAST_ROWS = 8
# Strips larger than this gain no speed, and stay out of the allocator's reach for reuse.
MOST_STRIP_BYTES = 24 << 20


class Streams(Ledger):
    """The walk of one photo: how much memory it may take, and what it took.

    strips: bytes for the strip in work. maps: bytes of stored maps that may stay in memory; what is beyond goes to
    temporary files. device: where strips are computed. dry: nothing is computed, only reckoned.
    """

    def __init__(self, strips: int, maps: int, device: torch.device, dry: bool = False) -> None:
        super().__init__(maps, device, dry)
        self.strips = strips
        self.live: weakref.WeakSet[Streamed] = weakref.WeakSet()
        self.least_strip = self.largest_map = 0  # bytes for the thinnest strips, and of the largest map, stored or not
        self.halved = 0

    def photo(self, shape: tuple[int, int, int], read: Callable[[int, int], Tensor]) -> Streamed:
        """The photo, (C, H, W), to put through networks; `read` gives rows top..bottom as (1, C, rows, W)."""
        return Streamed(Given(shape, read), self)

    def strips_of(self, node: Node) -> Iterator[tuple[int, Tensor]]:
        """(top, rows) of a map from top to bottom. Where memory runs out, thinner strips are tried from there on."""
        row = node.row_bytes()
        self.least_strip = max(self.least_strip, round(row * LEAST_ROWS * BUFFERS))
        self.largest_map = max(self.largest_map, round(row * node.height))
        if self.dry:
            return
        height = max(LEAST_ROWS, int(min(self.strips / BUFFERS, MOST_STRIP_BYTES) / row)) >> self.halved
        top = 0
        while top < node.height:
            try:
                strip = node.rows(top, min(top + max(height, 1), node.height))
            except Exception as error:
                if height <= 1 or not ran_out(error):
                    raise
                height //= 2
                self.halved += 1
                continue
            yield top, strip
            top += strip.shape[2]

    def walk(self, x: Streamed, into: Moments | None = None, *, store: bool = True) -> None:
        """Make one pass over a map: store it, gather its moments, or both."""
        node = x.node
        stored = None
        if store:
            spare = self._spare(x)
            in_place = spare is not None
            shape = (node.channels, node.height, node.width)
            stored = Stored(self, shape, spare or MapStore(self, node.height, node.channels * node.width))
        waiting: tuple[int, Tensor] | None = None
        for top, strip in self.strips_of(node):
            if into is not None:
                into.add(strip)
            if stored is None:
                continue
            if not in_place:
                stored.write(top, strip)
                continue
            # One strip behind: the next one may still read the rows at the edge of this one as they were.
            if waiting is not None:
                stored.write(*waiting)
            waiting = (top, strip)
        if stored is not None and waiting is not None:
            stored.write(*waiting)
        if stored is not None:
            x.node = stored

    def _spare(self, x: Streamed) -> MapStore | None:
        """Find a store of the right size whose map only x needs, and reads downwards, one row ahead at most."""
        values = x.node.channels * x.node.width
        needed = {id(map.store) for other in self.live if other is not x for map, _ in other.node.stored()}
        reads = list(x.node.stored())
        needed |= {id(map.store) for map, reach in reads if reach > 1}
        for map, _ in reads:
            if id(map.store) not in needed and map.store.shape == (x.node.height, values):
                return map.store
        return None


class Moments:
    """Mean and variance per channel of a map that comes in strips: double precision, merged after Chan et al., 1983."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor = torch.zeros(())
        self.squares: Tensor = torch.zeros(())  # sum of squared differences from the mean

    def add(self, strip: Tensor) -> None:
        """(1, C, rows, W)."""
        count = strip.shape[2] * strip.shape[3]
        mean, variance = (each.double() for each in moments(strip))
        whole = self.count + count
        apart = mean - self.mean
        self.squares = self.squares + variance * count + apart**2 * (self.count * count / whole)
        self.mean = self.mean + apart * (count / whole)
        self.count = whole


class Streamed:
    """A map that the networks take for a tensor (1, C, H, W) without gradients."""

    def __init__(self, node: Node, streams: Streams) -> None:
        self.node = node
        self.streams = streams
        streams.live.add(self)

    @property
    def shape(self) -> torch.Size:
        """(1, C, H, W)."""
        return torch.Size((1, self.node.channels, self.node.height, self.node.width))

    def __len__(self) -> int:
        return 1

    def strips(self) -> Iterator[tuple[int, Tensor]]:
        """(top, rows) from top to bottom."""
        return self.streams.strips_of(self.node)

    def new_zeros(self, *shape: int) -> Tensor:
        """A tensor, not streamed; its zeros share one place."""
        return torch.zeros((), device=self.streams.device).expand(shape)

    def sub_(self, other: Tensor) -> Streamed:
        """In place, noted down."""
        return _in_place(torch.Tensor.sub_, self, other)

    def mul_(self, other: Tensor) -> Streamed:
        """In place, noted down."""
        return _in_place(torch.Tensor.mul_, self, other)

    def add_(self, other: Streamed) -> Streamed:
        """In place, noted down."""
        return _in_place(torch.Tensor.add_, self, other)

    def __add__(self, other: Streamed | Tensor) -> Streamed:
        return _pointwise(torch.Tensor.add, self, other)

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        keywords: dict[str, Any] | None = None,
    ) -> Any:
        """Take torch's call of `function` where an argument is a Streamed."""
        if function not in _STREAMED:
            raise TypeError(f"{getattr(function, '__name__', function)} is not streamed: add it to {__name__}")
        return _STREAMED[function](*args, **(keywords or {}))


def _bare(value: Any) -> Any:
    """Streamed -> its node, in lists too."""
    if isinstance(value, list | tuple):
        return [_bare(each) for each in value]
    return value.node if isinstance(value, Streamed) else value


def _streams(args: Any) -> Streams | None:
    for arg in args:
        found = arg.streams if isinstance(arg, Streamed) else _streams(arg) if isinstance(arg, list | tuple) else None
        if found is not None:
            return found
    return None


def _pointwise(function: Callable[..., Tensor], *args: Any, **keywords: Any) -> Streamed:
    streams = _streams(args)
    assert streams is not None
    return Streamed(Pointwise(function, tuple(_bare(arg) for arg in args), keywords), streams)


def _in_place(function: Callable[..., Tensor], x: Streamed, *args: Any) -> Streamed:
    x.node = Pointwise(function, (x.node, *(_bare(arg) for arg in args)), {})
    return x


def _settled(x: Streamed) -> Node:
    """x for use by a convolution, which reads rows more than once: stored if it is dear or reads several maps."""
    if x.node.total_price() > WORTH_STORING or len(list(x.node.stored())) > 1:
        x.streams.walk(x)
    return x.node


def _conv2d(
    x: Streamed, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, *rest: Any
) -> Streamed:
    return Streamed(Convolution(_settled(x), weight, bias, _one(stride), _one(padding)), x.streams)


def _conv_transpose2d(
    x: Streamed, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, *rest: Any
) -> Streamed:
    return Streamed(Transposed(_settled(x), weight, bias, _one(stride), _one(padding)), x.streams)


def _one(sides: Any) -> int:
    if isinstance(sides, tuple):
        assert sides[0] == sides[1]
        return int(sides[0])
    return int(sides)


def _pad(x: Streamed, pad: tuple[int, ...], mode: str, value: float | None = None) -> Streamed:
    assert mode == "reflect"
    assert len(set(pad)) == 1
    return Streamed(Reflected(_settled(x), pad[0]), x.streams)


def _moments(x: Streamed) -> tuple[Tensor, Tensor]:
    found = Moments()
    x.streams.walk(x, found, store=x.node.total_price() > WORTH_STORING)
    if x.streams.dry:
        return torch.zeros(1, x.node.channels, 1, 1), torch.zeros(1, x.node.channels, 1, 1)
    return found.mean.float(), (found.squares / found.count).float()


def _attend(module: NonLocal, x: Streamed, sound: Tensor) -> Streamed:
    if x.node.total_price():
        x.streams.walk(x)
    key, value = cast("Streamed", module.key(x)), cast("Streamed", module.value(x))
    for each in (key, value):
        x.streams.walk(each)
    query = cast("Streamed", module.query(x))
    return Streamed(Attention(query.node, key.node, value.node, sound), x.streams)


def _compose(module: PatchScale, x: Streamed, damaged: Tensor) -> Streamed:
    x.streams.walk(x)
    none = torch.zeros(0, dtype=torch.long)
    which, choice = (none, none) if x.streams.dry else _chosen(module, x, damaged)
    return Streamed(Patched(x.node, module.size, which, choice), x.streams)


def _chosen(module: PatchScale, x: Streamed, damaged: Tensor) -> tuple[Tensor, Tensor]:
    """Choose patches as PatchScale.choose does, read from where x is stored."""
    p, node = module.size, x.node
    across = node.width // p
    patch_bytes = node.channels * p * p * BYTES

    def patches(numbers: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(numbers, patches (n, C p p), normalised) of some patches, row-major, a strip of rows at a time."""
        step = max(1, int(min(x.streams.strips / BUFFERS, MOST_STRIP_BYTES) / (across * patch_bytes)))
        rows = torch.div(numbers, across, rounding_mode="floor")
        for top in range(0, node.height // p, step):
            now = numbers[(rows >= top) & (rows < top + step)]
            if len(now):
                bottom = min(top + step, node.height // p)
                yield now, module.flattened(node.rows(top * p, bottom * p))[now - top * across]

    which, choice = [], []
    at_once = max(1, int(x.streams.strips / BUFFERS / patch_bytes))
    for bad, good in module.sorted_out(damaged):
        for numbers in torch.split(bad, at_once):
            query = torch.cat([found for _, found in patches(numbers)])
            which.append(numbers)
            choice.append(most_alike(query, patches(good)))
    none = torch.zeros(0, dtype=torch.long, device=damaged.device)
    return torch.cat([none, *which]), torch.cat([none, *choice])


def _type_as(tensor: Tensor, x: Streamed) -> Streamed:
    def read(top: int, bottom: int) -> Tensor:
        return tensor[:, :, top:bottom]

    return Streamed(Given((tensor.shape[1], tensor.shape[2], tensor.shape[3]), read), x.streams)


def _same(function: Callable[..., Tensor]) -> Callable[..., Streamed]:
    return lambda *args, **keywords: _pointwise(function, *args, **keywords)


_STREAMED: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.conv2d: _conv2d,
    torch.conv_transpose2d: _conv_transpose2d,
    F.pad: _pad,
    moments: _moments,
    torch.relu_: lambda x: _in_place(torch.relu_, x),
    NonLocal.attend: _attend,
    PatchScale.compose: _compose,
    torch.Tensor.type_as: _type_as,
    **{
        function: _same(function)
        for function in (
            torch.tanh,
            torch.where,
            torch.lerp,
            torch.Tensor.mul,
            torch.Tensor.add,
            torch.cat,
            torch.sigmoid,
        )
    },
}
