"""Records become DOT, in a house style that holds in greyscale too: kinds differ in outline and in fill."""

import base64
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any

import graphviz

from .arrange import ranks
from .picture import Picture
from .run_graphviz import draw, raster

MENTIONED = 6  # names, in the words for a picture
# In a notebook a picture is a white card with a frame, whatever the theme.
FRAME = "#8796A5"
CARD = f"max-width:100%;box-sizing:border-box;background:white;border:1px solid {FRAME};border-radius:6px;padding:6px"
PAGE = 675  # points, of which a browser shows 900 pixels: the width that a picture keeps to where it can
FACE = 7.4  # points that a letter is wide
# DejaVu and Verdana have the same widths: what one measures, the other fits.
FONT = "DejaVu Sans,Verdana,sans-serif"
INK = "#22303C"
GRADIENT = "#B03A00"

OVAL = ' shape=ellipse margin="0.02,0.01"'
KINDS = {  # the style and the legend of each
    "input": (f'{OVAL} fillcolor="#DCEBF7"', "○ input"),
    "variable": (f'{OVAL} peripheries=2 fillcolor="#DCEBF7"', "◎ input that requires a gradient"),
    "parameter": (f'{OVAL} peripheries=2 fillcolor="#F6C667"', "◎ parameter"),
    "constant": (' shape=note fillcolor="#ECECEC"', "◳ constant"),
    "operation": ("", "□ operation"),
    "stop_gradient": (f' shape=octagon penwidth=2.5 color="{GRADIENT}"', "⊣ cut for gradients"),
    "allreduce": (' shape=hexagon fillcolor="#E3D5EE"', "⬡ sum over the ranks"),
    "output": (f'{OVAL} penwidth=2.5 fillcolor="#2B4C7E" fontcolor=white', "● output"),
    "more": (" shape=plaintext fillcolor=white", "… the graph goes on"),
}
CLUSTER = 'style="rounded,filled" labeljust=l labelloc=t fontsize=9'
FRAMES = {  # of parts: of a batch norm, and in it of what computes the statistics
    "fused": f'color="{FRAME}" fillcolor="#F1F4F7"',
    "module": f'color="{FRAME}" fillcolor="#FAFBFC"',
    "repeat": 'color="#B08D57" fillcolor="#FDF9F1" fontsize=12',
    "statistics": 'color="#5E9C76" fillcolor="#E3F1E6"',
}
AGAIN = ' style="filled,dashed"'
LANES = f'dir=both color="{INK}:{GRADIENT}"'  # the way forward, and beside it the gradient's way back
TEXT = {"fontname": FONT, "fontcolor": INK}
GRAPH = TEXT | {"newrank": "true", "bgcolor": "white", "fontsize": "9", "nodesep": "0.2", "ranksep": "0.25"}
NODE = TEXT | {"shape": "box", "style": "filled", "fillcolor": "white", "color": INK, "fontsize": "12"}
NODE |= {"height": "0.4", "margin": "0.08,0.05"}
EDGE = TEXT | {"color": INK, "fontsize": "9", "arrowsize": "0.7"}


class Sketch(graphviz.Digraph):  # type: ignore[misc]
    """A `graphviz.Digraph` that shows itself in a notebook where there is no `dot` program, too."""

    words = "picture of a graph"

    def __repr__(self) -> str:
        return f"<{self.words}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None, **_: Any) -> dict[str, str]:
        """As svg, and as png and in words for where that is not shown, as in a notebook that isn't trusted."""
        try:
            svg = draw(self.source, "svg").decode()
        except RuntimeError as error:
            return {"text/plain": f"<{self.words}: {error}>"}
        framed = svg.replace('stroke="none"', f'stroke="{FRAME}"', 1)
        shown = {"text/plain": repr(self), "image/svg+xml": framed}
        with suppress(ImportError):
            shown["image/png"] = base64.b64encode(raster(svg)).decode()
        return shown


def digraph(picture: Picture, direction: str | None) -> Sketch:
    """The DOT of a picture; `direction` is "LR", "TB", or None for what fits a page."""
    if direction is None:
        across, down = _widths(picture)
        direction = "LR" if across <= max(PAGE, down) else "TB"
    flows = any(arrow.gradient for arrow in picture.arrows)
    look = {**GRAPH, "rankdir": direction, "label": _legend(picture)} | ({"ranksep": "0.4"} if flows else {})
    graph = Sketch(graph_attr=look, node_attr=NODE, edge_attr=EDGE)
    graph.words = _words(picture)
    # Lines of DOT rather than calls of node() and edge(), which cost a large graph several times as much.
    graph.body += [*_framed(picture, None, _shapes(picture)), *_arrows(picture, direction)]
    return graph


def _shapes(picture: Picture) -> dict[int | None, list[str]]:
    """The lines for all shapes, by the frame that they are in."""
    on_spine = {i for arrow in picture.arrows if arrow.spine for i in (arrow.tail, arrow.head)}
    lines: dict[int | None, list[str]] = {}
    for i, shape in enumerate(picture.shapes):
        text = _quoted("\n".join(shape.text))
        again = AGAIN if shape.again else ""
        group = " group=spine" if i in on_spine else ""
        lines.setdefault(shape.frame, []).append(f"\t{i} [label={text}{KINDS[shape.kind][0]}{again}{group}]\n")
    return lines


def _framed(picture: Picture, place: int | None, shapes: dict[int | None, list[str]]) -> Iterator[str]:
    """The lines for what is in a frame, or at the top: its shapes, then the frames inside it."""
    yield from shapes.get(place, ())
    # Around the statistics: Graphviz leaves none there for the labels of arrows across the frame.
    room = 3 + 2 * max([len(arrow.label) for arrow in picture.arrows], default=0)
    for i, frame in enumerate(picture.frames):
        if frame.parent == place:
            style = f"{CLUSTER} margin={room if frame.kind == 'statistics' else 8} {FRAMES[frame.kind]}"
            title, *more = [_quoted(line) for line in frame.title.split("\n")]
            if more:  # below each other at the left
                title = '"' + "".join([f"{line[1:-1]}\\l" for line in (title, *more)]) + '"'
            yield f"\tsubgraph cluster_{i} {{\n\tgraph [label={title} {style}]\n"
            yield from _framed(picture, i, shapes)
            yield "\t}\n"


def _arrows(picture: Picture, direction: str) -> Iterator[str]:
    """The lines for the arrows."""
    nested = {i for i, frame in enumerate(picture.frames) if frame.kind == "statistics" and frame.parent is not None}
    modules = any(frame.kind == "module" for frame in picture.frames)
    bold = bool(picture.frames) or any(shape.kind == "parameter" for shape in picture.shapes)
    last = {(arrow.tail, arrow.head, arrow.label): arrow for arrow in picture.arrows}
    for arrow in picture.arrows:
        tail, head = picture.shapes[arrow.tail], picture.shapes[arrow.head]
        inner = tail.frame is not None and tail.frame == head.frame
        beside = inner and tail.frame in nested and direction == "TB"
        label = _beside(arrow.label) if beside else f"label={_quoted(f'  {arrow.label} ')}"
        look = [
            (arrow.label and last[arrow.tail, arrow.head, arrow.label] is arrow, label),  # one for the two of c * c
            (head.kind == "stop_gradient", "arrowhead=normaltee minlen=2"),
            (arrow.gradient, LANES),
            (arrow.spine or inner, "weight=100"),
            # The first rank of a module's frame is its parameters', which stand aside of the way forward.
            (arrow.spine and modules and not inner and head.frame is not None, "minlen=2"),
            (arrow.spine and bold, f"penwidth={1.5 if arrow.gradient else 2.2}"),
        ]
        yield f"\t{arrow.tail} -> {arrow.head} [{' '.join([text for holds, text in look if holds])}]\n"


def _beside(label: str) -> str:
    """A label on the right of an arrow that points down, where Graphviz counts the width of a plain one twice."""
    right, down = 6 + 2.2 * len(label), 13
    distance, angle = math.hypot(right, down) / 10, math.degrees(math.atan2(right, down))
    return f"taillabel={_quoted(label)} labeldistance={distance:.2f} labelangle={angle:.0f}"


def _widths(picture: Picture) -> tuple[float, float]:
    """About how wide a picture is, in points: left to right, and top to bottom."""
    tails: dict[int, list[int]] = {i: [] for i in range(len(picture.shapes))}
    longest = 0
    for arrow in picture.arrows:
        tails[arrow.head].append(arrow.tail)
        longest = max(longest, len(arrow.label))
    rows: dict[int, list[float]] = {}
    for i, rank in ranks(tails).items():
        rows.setdefault(rank, []).append(42 + FACE * max(map(len, picture.shapes[i].text)))
    across = sum(map(max, rows.values())) + (18 + 0.75 * FACE * longest) * (len(rows) - 1)
    return across, max(map(sum, rows.values()))


def _words(picture: Picture) -> str:
    """What a picture is, for who doesn't see it."""
    count = sum(shape.kind in ("operation", "stop_gradient", "allreduce") for shape in picture.shapes)
    words = [f"picture of a graph of {count} operation{'' if count == 1 else 's'}"]
    for word, kinds in (("from", ("input", "variable")), ("with", ("parameter",)), ("to", ("output",))):
        names = [shape.lines[0] for shape in picture.shapes if shape.kind in kinds and not shape.again]
        more = ["…"] if len(names) > MENTIONED else []
        words += [f"{word} {', '.join(names[:MENTIONED] + more)}"] if names else []
    return " ".join(words)


def _legend(picture: Picture) -> str:
    kinds = {shape.kind for shape in picture.shapes}
    entries = [text for kind, (_, text) in KINDS.items() if kind in kinds]
    entries += ["◌ drawn again"] if any(shape.again for shape in picture.shapes) else []
    entries += ["↔ ∂ gradient flows back"] if any(arrow.gradient for arrow in picture.arrows) else []
    return "".join(["\\n" + "     ".join(entries[i : i + 4]) for i in range(0, len(entries), 4)])


@lru_cache(maxsize=1024)
def _quoted(text: str) -> str:
    """`text` so that Graphviz shows it as it was typed: no escapes, no entities, nothing unprintable."""
    text = re.sub(r"[^\n\t -~\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", lambda c: ascii(c[0])[1:-1], text)
    text = re.sub(r"&(?=#?\w+;)", "&amp;", text).replace("\\", "\\\\").replace("\n", "\\n")
    return '"' + text.replace('"', '\\"') + '"'
