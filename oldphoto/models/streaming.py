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

import tempfile
import weakref
from collections.abc import Callable, Iterator
from typing import IO, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from oldphoto.machine.memory import pages, ran_out
from oldphoto.models import winograd
from oldphoto.models.blocks import moments
from oldphoto.models.mapping import (
    NonLocal,
    PatchScale,
    Region,
    attended,
    most_alike,
)

BYTES = 4  # of a float32, which is what maps are stored in
# A value of more multiplications than this is stored rather than computed again: reading it back from a disk takes
# about as long. The encoder's first and the decoder's last wide layer, 25 GB each at 100 megapixels, are below it.
WORTH_STORING = 300
# Buffers of one strip alive at once: what is read, its padded copy, the convolution's result and its workspace.
BUFFERS = 5
LEAST_ROWS = 8
# Strips larger than this gain no speed, and stay out of the allocator's reach for reuse.
MOST_STRIP_BYTES = 24 << 20
KEYS_AT_ONCE = 4096
EVERYTHING = 1 << 30


class Node:
    """Something rows can be computed of. rows() returns (1, C, bottom - top, W), the caller's to change."""

    def __init__(self, channels: int, height: int, width: int, inputs: tuple[Node, ...] = ()) -> None:
        self.channels, self.height, self.width = channels, height, width
        self.inputs = inputs

    def rows(self, top: int, bottom: int) -> Tensor:
        """Rows top..bottom of the map."""
        raise NotImplementedError

    # How many rows of the inputs a row takes; multiplications a value takes; rows of the input seen above and below.
    scale = 1.0
    price = 0
    reach = 0

    def total_price(self) -> int:
        """Multiplications per value from what is stored to this map."""
        return self.price + max((node.total_price() for node in self.inputs), default=0)

    def stored(self, reach: int = 0) -> Iterator[tuple[Stored, int]]:
        """The stored maps this one is computed from, and how many rows of each it sees above and below its own."""
        for node in self.inputs:
            yield from node.stored(reach + self.reach)

    def row_bytes(self) -> float:
        """Bytes of one row of the largest map on the way to this one, per row of this one."""
        own = float(self.channels * self.width * BYTES)
        return max([own, *(node.row_bytes() * self.scale for node in self.inputs)])


class Source(Node):
    """Rows that somebody else gives, such as those of the photo."""

    def __init__(self, shape: tuple[int, int, int], read: Callable[[int, int], Tensor]) -> None:
        super().__init__(*shape)
        self.read = read

    def rows(self, top: int, bottom: int) -> Tensor:
        """The count that was given."""
        return self.read(top, bottom)


class Stored(Node):
    """A map kept in memory or in a temporary file, row by row, the channels of a cell together."""

    def __init__(self, streams: Streams, shape: tuple[int, int, int], room: Room) -> None:
        super().__init__(*shape)
        self.room = room
        self.device = streams.device

    def stored(self, reach: int = 0) -> Iterator[tuple[Stored, int]]:
        """Itself."""
        yield self, reach

    def rows(self, top: int, bottom: int) -> Tensor:
        """Read from memory or file."""
        flat = self.room.read(top, bottom).view(1, bottom - top, self.width, self.channels)
        return flat.permute(0, 3, 1, 2).to(self.device)

    def write(self, top: int, strip: Tensor) -> None:
        """Store (1, C, rows, W) from row `top` on."""
        flat = strip.to("cpu", torch.float32).permute(0, 2, 3, 1).contiguous()
        self.room.write(top, flat.view(strip.shape[2], -1))


class Room:
    """Space for `height` rows of `values` float32 each, in memory or in a temporary file, until nobody refers to it."""

    def __init__(self, streams: Streams, height: int, values: int) -> None:
        self.shape = (height, values)
        self.memory: Tensor | None = None
        self.file: IO[bytes] | None = None
        size = height * values * BYTES
        in_file = streams.in_memory + size > streams.maps
        weakref.finalize(self, streams.release, size, in_file)
        streams.take(size, in_file)
        if streams.dry:
            return
        if in_file:
            # Plain reads and writes, not a memory map, whose pages would count as the process's memory.
            self.file = tempfile.TemporaryFile(prefix="oldphoto-", buffering=0)  # noqa: SIM115 - closed by finalize
            weakref.finalize(self, self.file.close)
        else:
            self.memory = torch.frombuffer(pages(size), dtype=torch.float32).view(self.shape)

    def read(self, top: int, bottom: int) -> Tensor:
        """Rows top..bottom as a tensor of their own, (rows, values)."""
        if self.memory is not None:
            return self.memory[top:bottom].clone()
        rows = torch.empty(bottom - top, self.shape[1])
        assert self.file is not None
        self.file.seek(top * self.shape[1] * BYTES)
        left = memoryview(rows.numpy().data).cast("B")
        while len(left):
            count = self.file.readinto(left)  # type: ignore[attr-defined]  # a raw file has it
            if not count:
                raise OSError("a temporary file of oldphoto was cut short")
            left = left[count:]
        return rows

    def write(self, top: int, rows: Tensor) -> None:
        """Put (rows, values) from row `top` on."""
        if self.memory is not None:
            self.memory[top : top + len(rows)] = rows
            return
        assert self.file is not None
        self.file.seek(top * self.shape[1] * BYTES)
        left = memoryview(rows.numpy().data).cast("B")
        while len(left):
            left = left[self.file.write(left) :]


class Convolution(Node):
    """torch.conv2d with zero padding."""

    def __init__(self, source: Node, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> None:
        self.kernel, self.stride, self.padding = weight.shape[2], stride, padding
        height, width = ((side + 2 * padding - self.kernel) // stride + 1 for side in (source.height, source.width))
        super().__init__(weight.shape[0], height, width, (source,))
        self.weight, self.bias = weight, bias
        self.transformed: winograd.Kernel | None = None
        self.price = weight[0].numel()
        self.scale = float(stride)
        self.reach = self.kernel // 2

    def rows(self, top: int, bottom: int) -> Tensor:
        """The rows of the source under the kernel, convolved."""
        source = self.inputs[0]
        first = top * self.stride - self.padding
        last = (bottom - 1) * self.stride - self.padding + self.kernel
        strip = source.rows(max(first, 0), min(last, source.height))
        if first < 0 or last > source.height:
            strip = F.pad(strip, (0, 0, max(-first, 0), max(last - source.height, 0)))
        padding = (0, self.padding)
        if self.stride != 1 or not winograd.wins(strip, self.weight, padding):
            return F.conv2d(strip, self.weight, self.bias, self.stride, padding)
        if self.transformed is None:
            self.transformed = winograd.transformed(self.weight)
        return winograd.convolved(strip, self.transformed, self.bias, padding)


class Transposed(Node):
    """torch.conv_transpose2d without output padding."""

    def __init__(self, source: Node, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> None:
        self.kernel, self.stride, self.padding = weight.shape[2], stride, padding
        height, width = ((side - 1) * stride - 2 * padding + self.kernel for side in (source.height, source.width))
        super().__init__(weight.shape[1], height, width, (source,))
        self.weight, self.bias = weight, bias
        self.price = weight.shape[0] * self.kernel**2 // stride**2
        self.scale = 1.0 / stride
        self.reach = self.kernel

    def rows(self, top: int, bottom: int) -> Tensor:
        """The rows of the source that reach these, spread out, and cut."""
        source = self.inputs[0]
        first = max(0, -((self.kernel - 1 - top - self.padding) // self.stride))
        last = min(source.height - 1, (bottom - 1 + self.padding) // self.stride)
        strip = source.rows(first, last + 1)
        out = F.conv_transpose2d(strip, self.weight, self.bias, self.stride, (0, self.padding))
        offset = first * self.stride - self.padding
        return out[:, :, top - offset : bottom - offset]


class Reflected(Node):
    """F.pad by reflection on all four sides."""

    def __init__(self, source: Node, pixels: int) -> None:
        super().__init__(source.channels, source.height + 2 * pixels, source.width + 2 * pixels, (source,))
        self.pixels = pixels

    def rows(self, top: int, bottom: int) -> Tensor:
        """The rows of the source, and those mirrored at the photo's edges."""
        source, p = self.inputs[0], self.pixels
        above, below = max(0, p - top), max(0, bottom - p - source.height)
        first, last = max(top - p, 0), min(bottom - p, source.height)
        # What is mirrored has to be there.
        first = min(first, max(0, source.height - below - 1)) if below else first
        last = max(last, min(source.height, above + 1)) if above else last
        strip = F.pad(source.rows(first, last), (p, p, above, below), mode="reflect")
        start = top - p - (first - above)
        return strip[:, :, start : start + bottom - top]


class Pointwise(Node):
    """A function of maps and tensors of one size, value by value; in-place functions may change their first input."""

    def __init__(self, function: Callable[..., Tensor], args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self.function, self.args, self.keywords = function, args, keywords
        maps = tuple(_nodes(args))
        self.height = maps[0].height
        empty = [
            _replaced(arg, lambda node: torch.empty(1, node.channels, 2, 2), lambda t: self._like(t)) for arg in args
        ]
        super().__init__(function(*empty, **keywords).shape[1], maps[0].height, maps[0].width, maps)

    def _like(self, tensor: Tensor) -> Tensor:
        whole = tensor.dim() == 4 and tensor.shape[2] == self.height
        return tensor.new_zeros(1, tensor.shape[1], 2, 2) if whole else tensor

    def rows(self, top: int, bottom: int) -> Tensor:
        """The function of the inputs' rows."""

        def cut(tensor: Tensor) -> Tensor:
            return tensor[:, :, top:bottom] if tensor.dim() == 4 and tensor.shape[2] == self.height else tensor

        return self.function(*(_replaced(a, lambda n: n.rows(top, bottom), cut) for a in self.args), **self.keywords)


def _nodes(args: Any) -> Iterator[Node]:
    for arg in args:
        if isinstance(arg, Node):
            yield arg
        elif isinstance(arg, list | tuple):
            yield from _nodes(arg)


def _replaced(arg: Any, of_node: Callable[[Node], Any], of_tensor: Callable[[Tensor], Any]) -> Any:
    if isinstance(arg, list | tuple):
        return [_replaced(each, of_node, of_tensor) for each in arg]
    return of_node(arg) if isinstance(arg, Node) else of_tensor(arg) if isinstance(arg, Tensor) else arg


class Attention(Node):
    """NonLocal.attend: queries by rows, keys and values block by block from where they are stored."""

    price = reach = EVERYTHING

    def __init__(self, query: Node, key: Node, value: Node, keep: Tensor) -> None:
        super().__init__(value.channels, query.height, query.width, (query, key, value))
        self.keep = keep

    def rows(self, top: int, bottom: int) -> Tensor:
        """(1, C, rows, W)."""
        query = self.inputs[0].rows(top, bottom)
        out = query.new_empty(1, self.channels, bottom - top, self.width)
        for own, region in attended(self.height, self.width):
            first, last = max(top, own.top), min(bottom, own.bottom)
            if first >= last:
                continue
            area = Region(first - top, last - top, own.left, own.right).slices
            some = query[area].flatten(2).transpose(1, 2)  # (1, cells, C)
            made = torch.cat([self._rebuilt(q, region) for q in torch.split(some, KEYS_AT_ONCE, 1)], 1)
            out[area] = made.transpose(1, 2).reshape(out[area].shape)
        return out

    def _rebuilt(self, query: Tensor, region: Region) -> Tensor:
        def blocks() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            step = max(1, KEYS_AT_ONCE // (region.right - region.left))
            for top in range(region.top, region.bottom, step):
                bottom = min(top + step, region.bottom)
                key, value, keep = (
                    rows[..., region.left : region.right].flatten(2)
                    for rows in (
                        self.inputs[1].rows(top, bottom),
                        self.inputs[2].rows(top, bottom),
                        self.keep[:, :, top:bottom],
                    )
                )
                yield key, value.transpose(1, 2), keep

        return rebuilt_from(query, blocks())


def rebuilt_from(query: Tensor, blocks: Iterator[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Do the same as mapping.rebuilt for keys that come in blocks: keys (N, C, cells), values (N, cells, C), weights
    (N, 1, cells)."""
    peak = total = sound = mixed = None
    for key, value, weights in blocks:
        logits = torch.matmul(query, key)  # (N, rows, cells)
        high = logits.amax(dim=2, keepdim=True)
        if peak is not None:
            high = torch.maximum(high, peak)
        mass = torch.exp(logits - high)
        kept = mass * weights
        sums = mass.sum(dim=2, keepdim=True), kept.sum(dim=2, keepdim=True), torch.matmul(kept, value)
        if peak is None or total is None or sound is None or mixed is None:
            total, sound, mixed = sums
        else:
            fade = torch.exp(peak - high)
            total, sound, mixed = (old * fade + new for old, new in zip((total, sound, mixed), sums, strict=True))
        peak = high
    assert total is not None
    assert sound is not None
    assert mixed is not None
    return mixed / torch.maximum(sound, 1e-12 * total)


class Patched(Node):
    """A stored map with some of its patches replaced by others."""

    reach = EVERYTHING

    def __init__(self, source: Node, size: int, which: Tensor, choice: Tensor) -> None:
        super().__init__(source.channels, source.height, source.width, (source,))
        self.size = size
        across = source.width // size
        self.by_row: dict[int, list[tuple[int, int, int]]] = {}
        for target, chosen in zip(which.tolist(), choice.tolist(), strict=True):
            self.by_row.setdefault(target // across, []).append((target % across, *divmod(chosen, across)))
        self.whole = (source.height // size * size, across * size) if len(which) else (source.height, source.width)

    def rows(self, top: int, bottom: int) -> Tensor:
        """The source's rows, patches copied over."""
        source, p = self.inputs[0], self.size
        out = source.rows(top, bottom)
        out[:, :, max(0, self.whole[0] - top) :] = 0.0
        out[..., self.whole[1] :] = 0.0
        for row in range(top // p, -(-bottom // p)):
            first, last = max(top, row * p), min(bottom, row * p + p)
            for column, y, x in self.by_row.get(row, ()):
                patch = source.rows(y * p + first - row * p, y * p + last - row * p)[..., x * p : x * p + p]
                out[:, :, first - top : last - top, column * p : column * p + p] = patch
        return out


class Streams:
    """The walk of one photo: how much memory it may take, and what it took.

    strips: bytes for the strip in work. maps: bytes of stored maps that may stay in memory; what is beyond goes to
    temporary files. device: where strips are computed. dry: nothing is computed, only reckoned.
    """

    def __init__(self, strips: int, maps: int, device: torch.device, dry: bool = False) -> None:
        self.strips, self.maps, self.device, self.dry = strips, maps, device, dry
        self.live: weakref.WeakSet[Streamed] = weakref.WeakSet()
        self.in_memory = self.on_disk = self.most_in_memory = self.most_on_disk = 0
        self.least_strip = self.largest_map = 0  # bytes for the thinnest strips, and of the largest map, stored or not
        self.halved = 0

    def photo(self, shape: tuple[int, int, int], read: Callable[[int, int], Tensor]) -> Streamed:
        """The photo, (C, H, W), to put through networks; `read` gives rows top..bottom as (1, C, rows, W)."""
        return Streamed(Source(shape, read), self)

    def take(self, size: int, in_file: bool) -> None:
        """Account for a map that is stored from now on."""
        if in_file:
            self.on_disk += size
        else:
            self.in_memory += size
        self.most_in_memory = max(self.most_in_memory, self.in_memory)
        self.most_on_disk = max(self.most_on_disk, self.on_disk)

    def release(self, size: int, in_file: bool) -> None:
        """Account for a map that is no longer stored."""
        if in_file:
            self.on_disk -= size
        else:
            self.in_memory -= size

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

    def keep(self, x: Streamed, into: Moments | None = None, *, store: bool = True) -> None:
        """Make one pass over a map: store it, gather its moments, or both."""
        node = x.node
        kept = None
        if store:
            room = self._spare(x)
            in_place = room is not None
            shape = (node.channels, node.height, node.width)
            kept = Stored(self, shape, room or Room(self, node.height, node.channels * node.width))
        waiting: tuple[int, Tensor] | None = None
        for top, strip in self.strips_of(node):
            if into is not None:
                into.add(strip)
            if kept is None:
                continue
            if not in_place:
                kept.write(top, strip)
                continue
            # One strip behind: the next one may still read the rows at the edge of this one as they were.
            if waiting is not None:
                kept.write(*waiting)
            waiting = (top, strip)
        if kept is not None and waiting is not None:
            kept.write(*waiting)
        if kept is not None:
            x.node = kept

    def _spare(self, x: Streamed) -> Room | None:
        """A room of the right size whose map only x needs, and reads from top to bottom, one row ahead at most."""
        values = x.node.channels * x.node.width
        needed = {id(map.room) for other in self.live if other is not x for map, _ in other.node.stored()}
        reads = list(x.node.stored())
        needed |= {id(map.room) for map, reach in reads if reach > 1}
        for map, _ in reads:
            if id(map.room) not in needed and map.room.shape == (x.node.height, values):
                return map.room
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
        x.streams.keep(x)
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
    x.streams.keep(x, found, store=x.node.total_price() > WORTH_STORING)
    if x.streams.dry:
        return torch.zeros(1, x.node.channels, 1, 1), torch.zeros(1, x.node.channels, 1, 1)
    return found.mean.float(), (found.squares / found.count).float()


def _attend(module: NonLocal, x: Streamed, keep: Tensor) -> Streamed:
    if x.node.total_price():
        x.streams.keep(x)
    key, value = cast("Streamed", module.key(x)), cast("Streamed", module.value(x))
    for each in (key, value):
        x.streams.keep(each)
    query = cast("Streamed", module.query(x))
    return Streamed(Attention(query.node, key.node, value.node, keep), x.streams)


def _compose(module: PatchScale, x: Streamed, damaged: Tensor) -> Streamed:
    x.streams.keep(x)
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

    return Streamed(Source((tensor.shape[1], tensor.shape[2], tensor.shape[3]), read), x.streams)


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
