"""Labels that Graphviz has put on a line, or on each other, move to the nearest free place."""

import re
from functools import lru_cache
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ..engine.node import Array
from .wheel import FONT, Font

SVG = "{http://www.w3.org/2000/svg}"
STEP = 1.5  # points: what is so near is taken
MARGIN = 1.2  # points between a label and a line's middle, which is half as wide as the widest
LOOKED_AT = 10**8  # square points of a picture up to which it is looked at
GAPS = (4, 9, 14)  # points between a label that is moved and its edge
TEXT = re.compile(r'(<text [^>]*? x=")([^"]*)(" y=")([^"]*)')
NO_LINE = np.zeros((0, 2))
Box = tuple[float, float, float, float]  # left, top, right, bottom


def placed(svg: str) -> str:
    """The svg that Graphviz made, with no label of an edge or a frame on a line where there is room beside it."""
    root = ElementTree.fromstring(svg)
    *_, width, height = (float(size) for size in root.get("viewBox", "0 0 0 0").split())
    if width * height > LOOKED_AT:
        return svg
    groups = {element: group for group in root.iter(f"{SVG}g") for element in group}
    texts = list(root.iter(f"{SVG}text"))
    taken = Taken(width, height)
    frames, edges = _drawn(groups, taken)
    boxes: dict[ElementTree.Element, list[Box]] = {}  # of the lines of a label, which move together
    for text in texts:
        if groups[text].get("class") in ("edge", "cluster") and (text.text or "").strip(" \xa0"):
            boxes.setdefault(groups[text], []).append(box_of(text))
    struck = [group for group, lines in boxes.items() if not all(map(taken.free, lines))]
    for group in boxes.keys() - set(struck):
        for box in boxes[group]:
            taken.fill(box)
    moves: dict[ElementTree.Element, tuple[float, float]] = {}
    for group in struck:
        lines = np.array(boxes[group])
        around = (*lines[:, :2].min(axis=0), *lines[:, 2:].max(axis=0))
        for dx, dy in ways(around, frames.get(group), edges.get(group, NO_LINE)):
            there = [tuple(line) for line in np.add(lines, [dx, dy, dx, dy])]
            if around[0] + dx >= 0 and around[2] + dx <= width - 8 and all(map(taken.free, there)):
                moves[group] = dx, dy
                for box in there:
                    taken.fill(box)
                break
    at = iter(texts)

    def moved(match: re.Match[str]) -> str:
        dx, dy = moves.get(groups[next(at)], (0, 0))
        x, y = (f"{float(match[i]) + d:.2f}" if d else match[i] for i, d in ((2, dx), (4, dy)))
        return f"{match[1]}{x}{match[3]}{y}"

    return TEXT.sub(moved, svg) if moves else svg


class Taken:
    """Which places of a picture are taken, in squares of `STEP` points; Graphviz counts upwards from its bottom."""

    def __init__(self, width: float, height: float) -> None:
        self.corner = np.array([4.0, height - 4])  # of what is drawn, in a margin of 4 points
        self.squares = np.zeros((int(height / STEP) + 2, int(width / STEP) + 2), bool)

    def draw(self, line: Array) -> None:
        last = np.array(self.squares.shape)[::-1] - 1
        across, down = ((line + self.corner) / STEP).astype(int).clip(0, last).T
        self.squares[down, across] = True

    def part(self, box: Box, margin: float = 0) -> Array:
        corners = np.reshape(box, (2, 2)) + self.corner + [[-margin], [margin]]
        left, top, right, bottom = (corners / STEP).astype(int).clip(0).ravel()
        return self.squares[top : bottom + 1, left : right + 1]

    def fill(self, box: Box) -> None:
        self.part(box)[...] = True

    def free(self, box: Box) -> bool:
        return not self.part(box, MARGIN).any()


def _drawn(groups: dict[Any, Any], taken: Taken) -> tuple[dict[Any, Box], dict[Any, Array]]:
    """The frames and the lines of edges, by their groups; what is drawn but letters is taken then."""
    frames, edges = dict[Any, Box](), dict[Any, Array]()
    for element, group in groups.items():
        kind = group.get("class")
        if kind == "graph" or element.tag in (f"{SVG}title", f"{SVG}text"):
            continue
        points = corners(element)
        around = (*points.min(axis=0), *points.max(axis=0))
        if kind == "node" or element.tag != f"{SVG}path":  # a shape, or an arrowhead
            taken.fill(around)
            continue
        line = curve(points)
        taken.draw(line)
        if kind == "cluster":
            frames[group] = around
        else:
            edges[group] = line
    return frames, edges


def corners(element: ElementTree.Element) -> Array:
    """The corners of a polygon, what an ellipse reaches to, or the points of a path."""
    if element.tag == f"{SVG}ellipse":
        cx, cy, rx, ry = (float(element.get(name, 0)) for name in ("cx", "cy", "rx", "ry"))
        return np.array([[cx - rx, cy - ry], [cx + rx, cy + ry]])
    numbers = re.findall(r"-?[\d.]+", element.get("d", "") or element.get("points", ""))
    return np.array(numbers, float).reshape(-1, 2)


def curve(points: Array) -> Array:
    """Places on the cubic Bézier curves of a path, `STEP` apart or less."""
    pieces = np.stack([points[i : i + 4] for i in range(0, len(points) - 1, 3)], axis=1)  # start, two handles, end
    longest = np.abs(np.diff(pieces, axis=0)).sum(axis=(0, 2)).max()
    t = np.linspace(0, 1, int(longest / STEP) + 2)[:, None, None]
    a, b, c, d = pieces
    places = (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d
    return np.asarray(places.swapaxes(0, 1).reshape(-1, 2))


@lru_cache(maxsize=1)
def font() -> Font:
    """The font that is shipped."""
    return Font(FONT)


def box_of(text: ElementTree.Element) -> Box:
    """What a text covers, without the blanks around it."""
    words, size = (text.text or "").replace("\xa0", " "), float(text.get("font-size", 0))
    x, y = float(text.get("x", 0)), float(text.get("y", 0))
    left = x - (size * font().width(words) / 2 if text.get("text-anchor") == "middle" else 0)
    left += size * font().width(" ") * (len(words) - len(words.lstrip()))
    return left, y - 0.8 * size, left + size * font().width(words.strip()), y + 0.25 * size


def ways(box: Box, frame: Box | None, line: Array) -> Array:
    """How far a label may move, nearest first: a title along its frame, that of an edge along its edge, beside it."""
    if frame:
        right = np.arange(frame[0] + 6 - box[0], frame[2] - 6 - box[2], 2)
        return np.stack([right, 0 * right], axis=1)
    size, middle = np.subtract(box[2:], box[:2]), np.add(box[2:], box[:2]) / 2
    sides = np.array([[1, 0], [-1, 0], [0, -1], [0, 1]])
    beside = [side * (size / 2 + gap) for gap in GAPS for side in sides]
    moves = (line[::2, None] + beside - middle).reshape(-1, 2)
    return np.asarray(moves[np.argsort((moves**2).sum(axis=1), kind="stable")])
