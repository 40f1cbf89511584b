"""Drawn wear of prints, negatives and plates, for training the detector.

Cracks, folds, tears, scratches, hairs, specks, spots, lost emulsion, worn edges and torn corners, stains.

Figures (widths, contrasts, beading, rims, colours) are those measured on hand-labelled real photos. Shapes are drawn at
three times the resolution and reduced by area: nothing real is narrower than the blur of its scan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Generator = np.random.Generator
Points = NDArray[np.float64]

FINE = 3  # times the resolution that shapes are drawn at


@dataclass(frozen=True)
class Wear:
    """One layer of damage. kind: its name. cover: (S, S) uint8, 255 = nothing of the picture is left. inner: (S, S)
    uint8, 255 = the ground shows through the paper's lip (lost corners) or the core inside a rim; all 0 in most kinds.
    fixed: it belongs to the frame of the picture and must not be moved."""

    kind: str
    cover: Bytes
    inner: Bytes
    fixed: bool = False


class _Canvas:
    """A drawing surface of `side` pixels at FINE times the resolution."""

    def __init__(self, side: int) -> None:
        self.side, self.map = side, np.zeros((side * FINE, side * FINE), np.uint8)

    def stroke(self, points: Points, widths: NDArray[np.float64], value: int = 255) -> None:
        """Draw a line through points (N, 2) in pixels; widths (N) in pixels, 0 = a gap."""
        at = np.rint(points * FINE).astype(np.int32)
        for k in range(len(at) - 1):
            if widths[k] > 0.0:
                cv2.line(self.map, at[k].tolist(), at[k + 1].tolist(), value, max(1, round(float(widths[k]) * FINE)))

    def flake(self, centre: Points, radius: float, rng: Generator, value: int = 255, flat: float = 0.4) -> None:
        """Draw an angular patch about a point, `radius` in pixels."""
        corners = int(rng.integers(4, 10))
        angles = np.sort(rng.uniform(0.0, 2.0 * np.pi, corners))
        reach = radius * FINE * rng.uniform(0.45, 1.25, corners)
        squash, turn = rng.uniform(flat, 1.0), rng.uniform(0.0, np.pi)
        x, y = reach * np.cos(angles), reach * np.sin(angles) * squash
        ring = np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], 1)
        cv2.fillPoly(self.map, [np.rint(centre * FINE + ring).astype(np.int32)], value)

    def reduced(self) -> Bytes:
        """(side, side) uint8."""
        return np.asarray(cv2.resize(self.map, (self.side, self.side), interpolation=cv2.INTER_AREA), np.uint8)


def roughness(height: int, width: int, rng: Generator, coarsest: int = 4, fall: float = 1.6) -> Image:
    """(height, width) of fractal noise, mean 0, deviation 1. coarsest: cells a side of the first octave; fall: by how
    much each octave is weaker than the one before."""
    out, weight, cells = np.zeros((height, width), np.float32), 1.0, coarsest
    while cells < max(height, width):
        noise = rng.standard_normal((max(2, cells), max(2, cells))).astype(np.float32)
        out += weight * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        weight, cells = weight / fall, cells * 2
    return np.asarray((out - out.mean()) / (out.std() + 1e-6), np.float32)


def _walk(start: Points, angle: float, length: float, rng: Generator, wander: float, rough: float) -> Points:
    """Points of a path: `wander` bends it for good, `rough` shakes it (radians a step of two pixels)."""
    count = max(2, int(length / 2.0))
    heading = angle + np.cumsum(rng.normal(rng.normal(0.0, 0.08 * wander), 0.35 * wander, count))
    heading = heading + rng.normal(0.0, rough, count)
    steps = 2.0 * np.stack([np.cos(heading), np.sin(heading)], 1)
    return np.concatenate([start[None], start + np.cumsum(steps, 0)])


def _beaded(count: int, width: float, rng: Generator, spread: float, gaps: float) -> NDArray[np.float64]:
    """Widths along a line: lognormal with `spread`, alike over some 3 pixels, and a share of gaps."""
    soft = np.convolve(rng.standard_normal(count + 8), np.ones(3) / np.sqrt(3.0), "same")[4 : 4 + count]
    broken = np.convolve(rng.standard_normal(count + 16), np.ones(7) / np.sqrt(7.0), "same")[8 : 8 + count]
    widths = width * np.exp(spread * soft)
    if gaps > 0.0:
        widths[broken < np.quantile(broken, gaps)] = 0.0
    return np.asarray(widths, np.float64)


def _edge_point(side: int, rng: Generator) -> Points:
    along = rng.uniform(0.0, side)
    edge = int(rng.integers(4))
    return np.array([(along, 0.0), (along, side), (0.0, along), (side, along)][edge])


def _empty(side: int) -> Bytes:
    return np.zeros((side, side), np.uint8)


def cracks(side: int, rng: Generator) -> Wear:
    """Branching cracks of a brittle print, with nodes of bare paper and flakes along them."""
    canvas = _Canvas(side)
    width = float(np.exp(rng.normal(0.25, 0.45)))
    todo: list[tuple[Points, float, float, float]] = []
    for _ in range(int(rng.integers(1, 8))):
        start = _edge_point(side, rng) if rng.random() < 0.6 else rng.uniform(0, side, 2)
        towards = rng.uniform(0.0, side, 2) - start
        todo.append((start, float(np.arctan2(towards[1], towards[0])), side * rng.uniform(0.15, 1.0), width))
    wander, rough = rng.uniform(0.03, 0.5), rng.uniform(0.05, 0.6)
    spread, gaps = rng.uniform(0.2, 0.6), rng.uniform(0.0, 0.18)
    flaky, drawn = rng.random() < 0.5, 0
    while todo and drawn < 60:
        start, angle, length, own = todo.pop()
        path = _walk(start, angle, length, rng, wander, rough)
        canvas.stroke(path, _beaded(len(path), own, rng, spread, gaps))
        drawn += 1
        for _ in range(rng.poisson(length / side * 3.0)):
            node = path[rng.integers(len(path))]
            if rng.random() < 0.4:
                canvas.flake(node, own * rng.uniform(0.8, 2.0), rng)
            turn = float(rng.choice([-1.0, 1.0])) * rng.uniform(0.5, 1.7)
            todo.append((node, angle + turn, length * rng.uniform(0.12, 0.6), own * rng.uniform(0.45, 0.95)))
        if flaky and own > 0.9:
            for _ in range(int(rng.integers(1, 7))):
                canvas.flake(path[rng.integers(len(path))], own * rng.uniform(0.8, 4.0), rng)
    return Wear("cracks", canvas.reduced(), _empty(side))


def fold(side: int, rng: Generator) -> Wear:
    """One or two nearly straight lines from edge to edge, at times as two strands, flaked."""
    canvas = _Canvas(side)
    for _ in range(int(rng.integers(1, 3))):
        square = rng.random() < 0.7
        angle = float(rng.choice([0.0, np.pi / 2])) + rng.normal(0.0, 0.08) if square else rng.uniform(0.0, np.pi)
        along = np.array([np.cos(angle), np.sin(angle)])
        start = rng.uniform(0.1, 0.9, 2) * side - along * side * 1.5
        width = float(np.exp(rng.normal(0.4, 0.5)))
        for strand in range(1 + (rng.random() < 0.3)):
            path = _walk(start + strand * rng.uniform(3.0, 8.0), angle, 3.0 * side, rng, 0.003, 0.06)
            canvas.stroke(path, _beaded(len(path), width, rng, 0.45, rng.uniform(0.05, 0.4)))
            for _ in range(int(rng.integers(0, 12))):
                canvas.flake(path[rng.integers(len(path))], width * rng.uniform(0.8, 3.5), rng)
    return Wear("fold", canvas.reduced(), _empty(side))


def tear(side: int, rng: Generator) -> Wear:
    """A broad tear with angular steps that tapers into a crack."""
    canvas = _Canvas(side)
    for _ in range(int(rng.integers(1, 3))):
        start = _edge_point(side, rng) if rng.random() < 0.7 else rng.uniform(0, side, 2)
        towards = rng.uniform(0.0, side, 2) - start
        path = _walk(start, float(np.arctan2(towards[1], towards[0])), side * rng.uniform(0.2, 1.0), rng, 0.1, 0.25)
        taper = np.linspace(rng.uniform(3.0, 16.0), rng.uniform(0.6, 2.0), len(path))
        steps = np.repeat(np.exp(rng.normal(0.0, 0.35, len(path) // 8 + 1)), 8)[: len(path)]
        canvas.stroke(path, np.asarray(taper * steps, np.float64))
    return Wear("tear", canvas.reduced(), _empty(side))


def scratches(side: int, rng: Generator) -> Wear:
    """Straight or gently bent lines, single, in parallel groups, or right across as on film; and gouges."""
    canvas = _Canvas(side)
    film = rng.random() < 0.2
    angle = np.pi / 2 + rng.normal(0.0, 0.02) if film else rng.uniform(0.0, np.pi)
    together = rng.random() < 0.4
    bend = 0.002 if film else rng.uniform(0.002, 0.06)
    for _ in range(int(rng.integers(1, 14))):
        own = angle + rng.normal(0.0, 0.06) if together or film else rng.uniform(0.0, np.pi)
        length = side * float(np.exp(rng.uniform(np.log(0.05), np.log(1.2))))
        path = _walk(rng.uniform(-0.1, 1.0, 2) * side, own, length, rng, bend, rng.uniform(0.0, 0.12))
        width = float(np.exp(rng.normal(0.0, 0.4)))
        widths = _beaded(len(path), width, rng, rng.uniform(0.05, 0.5), rng.uniform(0.0, 0.3))
        if rng.random() < 0.6:
            widths = widths * np.clip(np.minimum(np.arange(len(path)), np.arange(len(path))[::-1]) / 6.0, 0.35, 1.0)
        canvas.stroke(path, widths, int(rng.integers(110, 256)))
        for beside in range(int(rng.integers(1, 4)) if rng.random() < 0.15 else 0):
            shift = rng.uniform(2.0, 12.0) * (beside + 1) * np.array([-np.sin(own), np.cos(own)])
            canvas.stroke(path + shift, widths, int(rng.integers(110, 256)))
    if rng.random() < 0.2:
        centre, long, thin = rng.uniform(0, side, 2), rng.uniform(5.0, 25.0), rng.uniform(0.8, 2.5)
        axes = (round(long * FINE), max(1, round(thin * FINE)))
        at = np.rint(centre * FINE).astype(int).tolist()
        cv2.ellipse(canvas.map, at, axes, float(rng.uniform(0, 180)), 0, 360, 255, -1)
    return Wear("scratches", canvas.reduced(), _empty(side))


def hairs(side: int, rng: Generator) -> Wear:
    """Curled hairs and fibres of even width."""
    canvas = _Canvas(side)
    for _ in range(int(np.exp(rng.uniform(0.0, 2.6)))):
        length = float(np.exp(rng.uniform(np.log(8.0), np.log(side))))
        path = _walk(rng.uniform(0, side, 2), rng.uniform(0, 2 * np.pi), length, rng, rng.uniform(0.05, 0.7), 0.03)
        canvas.stroke(path, np.full(len(path), float(np.exp(rng.normal(0.15, 0.35)))), int(rng.integers(140, 256)))
    return Wear("hairs", canvas.reduced(), _empty(side))


def specks(side: int, rng: Generator) -> Wear:
    """Dust and pinholes of 1 to 8 pixels, irregular, evenly strewn or in clumps."""
    canvas = _Canvas(side)
    count = int(np.exp(rng.uniform(0.7, 5.4)))
    if rng.random() < 0.4:
        hearts = rng.uniform(0, side, (int(rng.integers(1, 5)), 2))
        centres = hearts[rng.integers(len(hearts), size=count)] + rng.normal(
            0, side * rng.uniform(0.03, 0.2), (count, 2)
        )
    else:
        centres = rng.uniform(0, side, (count, 2))
    size, spread = np.exp(rng.normal(0.15, 0.35)), rng.uniform(0.2, 0.6)
    round_ones = rng.random() < 0.4
    for centre in centres:
        radius = float(size * np.exp(rng.normal(0.0, spread)))
        if round_ones:
            at = np.rint(centre * FINE).astype(int).tolist()
            cv2.circle(canvas.map, at, max(1, round(radius * FINE)), int(rng.integers(150, 256)), -1)
        else:
            canvas.flake(centre, radius * 1.2, rng, int(rng.integers(150, 256)))
    return Wear("specks", canvas.reduced(), _empty(side))


def spots(side: int, rng: Generator) -> Wear:
    """Spots of 4 to 30 pixels with a soft edge: rust, mould, drops; some with a core, some as rings."""
    cover, inner = np.zeros((side, side), np.float32), np.zeros((side, side), np.float32)
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    crumble = roughness(side, side, rng, 16, 1.2)
    most, ringed = rng.uniform(4.0, 15.0), rng.random() < 0.25
    for _ in range(int(np.exp(rng.uniform(0.0, 3.0)))):
        x, y = rng.uniform(0, side, 2)
        radius, edge = float(rng.uniform(2.0, most)), rng.uniform(0.6, 2.0)
        long = rng.uniform(0.7, 1.3)
        away = np.hypot((columns - x) * long, (rows - y) / long) + crumble * radius * rng.uniform(0.0, 0.25)
        disc = np.clip((radius - away) / edge + 0.5, 0.0, 1.0)
        if ringed:
            hollow = np.clip((radius * rng.uniform(0.4, 0.8) - away) / edge + 0.5, 0.0, 1.0)
            if rng.random() < 0.5:
                inner = np.maximum(inner, hollow)
            else:
                disc = disc - hollow * rng.uniform(0.5, 1.0)
        cover = np.maximum(cover, disc * rng.uniform(0.5, 1.0))
    return Wear("spots", _bytes(cover), _bytes(inner))


def loss(side: int, rng: Generator) -> Wear:
    """Lost emulsion: ragged, coral-like patches with islands, drying fronts, chips."""
    coarse = roughness(side, side, rng, int(rng.choice([3, 4, 8, 16])), rng.uniform(1.3, 1.8))
    sharp, level = rng.uniform(2.0, 9.0), rng.uniform(1.3, 2.6)
    field = coarse + rng.uniform(0.0, 0.6) * roughness(side, side, rng, 24, 1.2)
    if rng.random() < 0.3:  # a front: the band between two heights
        field = (
            rng.uniform(0.25, 0.6)
            - np.abs(coarse - rng.uniform(-1.5, 1.5))
            + 0.15 * roughness(side, side, rng, 24, 1.2)
        )
        level, sharp = 0.0, sharp * 2
    if rng.random() < 0.4:  # along one side of the picture, as it mostly begins
        depth = np.linspace(rng.uniform(0.5, 3.0), -rng.uniform(2.0, 12.0), side, dtype=np.float32)
        field = np.asarray(np.rot90(field + depth[:, None], int(rng.integers(4))), np.float32)
    cover = np.clip((field - level) * sharp + 0.5, 0.0, 1.0)
    rim = np.zeros_like(cover)
    if rng.random() < 0.3:  # white lips about a black core
        rim = np.clip((field - level - rng.uniform(0.1, 0.5)) * sharp + 0.5, 0.0, 1.0)
    canvas = _Canvas(side)
    for _ in range(int(np.exp(rng.uniform(0.0, 3.0)))):
        canvas.flake(rng.uniform(0, side, 2), float(np.exp(rng.normal(1.2, 0.6))), rng, flat=0.25)
    return Wear("loss", np.maximum(_bytes(cover), canvas.reduced()), _bytes(rim))


def edges(side: int, rng: Generator) -> Wear:
    """Worn edges and torn corners: a lip of bare paper, and what lies behind the print where it is gone."""
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    far = np.float32(4.0 * side)
    wanted = rng.random(4) < rng.choice([0.35, 0.8])
    sides = [columns, side - 1 - columns, rows, side - 1 - rows]
    away = np.full((side, side), far, np.float32)
    for distance, worn in zip(sides, wanted, strict=True):
        if worn:
            away = np.minimum(away, distance * np.float32(rng.uniform(0.7, 2.0)))
    for _ in range(int(rng.integers(0, 3))):
        corner = rng.choice([0.0, 1.0], 2) * side
        size = side * float(np.exp(rng.uniform(np.log(0.02), np.log(0.4))))
        if rng.random() < 0.5:  # broken off along a line
            slope = rng.uniform(0.3, 3.0)
            beyond = (np.abs(columns - corner[0]) + slope * np.abs(rows - corner[1])) / np.hypot(1.0, slope) - size
        else:
            beyond = np.hypot(columns - corner[0], rows - corner[1]) - size
        away = np.minimum(away, beyond.astype(np.float32))
    deep = side * float(np.exp(rng.uniform(np.log(0.004), np.log(0.035))))
    ragged = deep * (0.6 * roughness(side, side, rng, int(rng.choice([4, 8, 16])), 1.5) + 0.2)
    if rng.random() < 0.3:  # scalloped chips along the edge
        ragged = ragged + deep * np.maximum(0.0, roughness(side, side, rng, int(rng.choice([12, 24, 40])), 3.0))
    lip = rng.uniform(0.0, 6.0)
    cover = np.clip((ragged + lip - away) / 1.5 + 0.5, 0.0, 1.0)
    gone = np.clip((ragged - away) / 1.5 + 0.5, 0.0, 1.0)
    return Wear("edges", _bytes(cover), _bytes(gone), fixed=True)


def stains(side: int, rng: Generator) -> Wear:
    """Tape, glue and drops: colour rather than lightness changes, and the texture stays."""
    canvas = _Canvas(side)
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    if rng.random() < 0.4:
        at, angle = rng.uniform(0, side, 2), rng.uniform(0, np.pi)
        path = np.stack([at, at + side * rng.uniform(0.1, 0.8) * np.array([np.cos(angle), np.sin(angle)])])
        canvas.stroke(path, np.full(2, rng.uniform(7.0, 30.0)))
        cover = cv2.GaussianBlur(canvas.reduced(), (0, 0), rng.uniform(0.5, 2.0)).astype(np.float32) / 255.0
        rim = np.zeros_like(cover)
    else:
        x, y = rng.uniform(0, side, 2)
        radius = side * rng.uniform(0.03, 0.25)
        away = np.hypot(columns - x, (rows - y) * rng.uniform(0.6, 1.6)) + radius * 0.35 * roughness(side, side, rng, 4)
        cover = np.clip((radius - away) / rng.uniform(1.0, 4.0) + 0.5, 0.0, 1.0).astype(np.float32)
        rim = np.clip(1.0 - np.abs(radius - away) / rng.uniform(1.0, 3.0), 0.0, 1.0) * (rng.random() < 0.5)
    return Wear("stains", _bytes(cover), _bytes(np.asarray(rim, np.float32)))


Kind = Callable[[int, Generator], Wear]
# What is drawn, and how often.
KINDS: dict[Kind, float] = {
    cracks: 0.2,
    fold: 0.07,
    tear: 0.05,
    scratches: 0.16,
    hairs: 0.09,
    specks: 0.17,
    spots: 0.08,
    loss: 0.08,
    edges: 0.07,
    stains: 0.03,
}


def drawn(side: int, rng: Generator) -> Wear:
    """One layer of a kind drawn by chance."""
    kinds = list(KINDS)
    return kinds[int(rng.choice(len(kinds), p=np.array(list(KINDS.values())) / sum(KINDS.values())))](side, rng)


def _bytes(share: NDArray[np.floating]) -> Bytes:
    return np.asarray(np.rint(np.clip(share, 0.0, 1.0) * 255.0), np.uint8)
