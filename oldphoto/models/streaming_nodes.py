"""Maps of networks of which some rows at a time are computed, and where they are stored meanwhile.

`streaming` builds them from the networks' own `forward`.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Iterator
from typing import IO, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from oldphoto.machine.memory import pages
from oldphoto.models import winograd
from oldphoto.models.mapping import Region, attended

BYTES = 4  # of a float32, which is what maps are stored in
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


class Given(Node):
    """Rows that somebody else gives, such as those of the photo."""

    def __init__(self, shape: tuple[int, int, int], read: Callable[[int, int], Tensor]) -> None:
        super().__init__(*shape)
        self.read = read

    def rows(self, top: int, bottom: int) -> Tensor:
        """Read the rows where they come from."""
        return self.read(top, bottom)


class Stored(Node):
    """A map kept in memory or in a temporary file, row by row, the channels of a cell together."""

    def __init__(self, ledger: Ledger, shape: tuple[int, int, int], store: MapStore) -> None:
        super().__init__(*shape)
        self.store = store
        self.device = ledger.device

    def stored(self, reach: int = 0) -> Iterator[tuple[Stored, int]]:
        """Give the map itself."""
        yield self, reach

    def rows(self, top: int, bottom: int) -> Tensor:
        """Read the rows from memory or file."""
        flat = self.store.read(top, bottom).view(1, bottom - top, self.width, self.channels)
        return flat.permute(0, 3, 1, 2).to(self.device)

    def write(self, top: int, strip: Tensor) -> None:
        """Store (1, C, rows, W) from row `top` on."""
        flat = strip.to("cpu", torch.float32).permute(0, 2, 3, 1).contiguous()
        self.store.write(top, flat.view(strip.shape[2], -1))


class MapStore:
    """Space for `height` rows of `values` float32 each, in memory or in a temporary file, until nobody refers to it."""

    def __init__(self, ledger: Ledger, height: int, values: int) -> None:
        self.shape = (height, values)
        self.memory: Tensor | None = None
        self.file: IO[bytes] | None = None
        size = height * values * BYTES
        in_file = ledger.in_memory + size > ledger.maps
        weakref.finalize(self, ledger.release, size, in_file)
        ledger.take(size, in_file)
        if ledger.dry:
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

    def __init__(self, query: Node, key: Node, value: Node, sound: Tensor) -> None:
        super().__init__(value.channels, query.height, query.width, (query, key, value))
        self.sound = sound

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
                key, value, sound = (
                    rows[..., region.left : region.right].flatten(2)
                    for rows in (
                        self.inputs[1].rows(top, bottom),
                        self.inputs[2].rows(top, bottom),
                        self.sound[:, :, top:bottom],
                    )
                )
                yield key, value.transpose(1, 2), sound

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


class Ledger:
    """The account of stored maps: in memory up to `maps` bytes, in temporary files beyond.

    device: where strips are computed. dry: nothing is stored, only reckoned.
    """

    def __init__(self, maps: int, device: torch.device, dry: bool) -> None:
        self.maps, self.device, self.dry = maps, device, dry
        self.in_memory = self.on_disk = self.most_in_memory = self.most_on_disk = 0

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
