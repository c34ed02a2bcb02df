"""Records become DOT, in a house style that holds in greyscale too: kinds differ in outline and in fill."""

from __future__ import annotations

import re
from functools import lru_cache

import graphviz

from .layout import draw
from .records import Picture

LEFT_TO_RIGHT = 25  # the most shapes that are drawn in a row

# DejaVu and Verdana have the same widths: what one measures, the other fits.
FONT = "DejaVu Sans,Verdana,sans-serif"
INK = "#22303C"
GRADIENT = "#B03A00"

STYLES = {
    "operation": "",
    "input": ' shape=ellipse margin="0.02,0.01" fillcolor="#DCEBF7"',
    "parameter": ' shape=ellipse margin="0.02,0.01" peripheries=2 fillcolor="#F6C667"',
    "output": ' shape=ellipse margin="0.02,0.01" penwidth=2.5 fillcolor="#2B4C7E" fontcolor=white',
    "constant": ' shape=note fillcolor="#ECECEC"',
    "stop_gradient": f' shape=octagon penwidth=2.5 color="{GRADIENT}"',
    "more": " shape=plaintext fillcolor=white",
    "allreduce": ' shape=hexagon fillcolor="#E3D5EE"',
}
CLUSTER = {"style": "rounded,filled", "color": "#8796A5", "fillcolor": "#F1F4F7", "labeljust": "l", "margin": "10"}
AGAIN = ' style="filled,dashed"'
CUT = " arrowhead=normaltee minlen=2"
GRADIENT_EDGE = f'style=dashed color="{GRADIENT}" constraint=false'
LEGEND = {"input": "○ input", "parameter": "◎ parameter", "output": "● output"}


class Sketch(graphviz.Digraph):  # type: ignore[misc]
    """A `graphviz.Digraph` that shows itself in a notebook where there is no `dot` program, too."""

    def _repr_image_svg_xml(self) -> str:
        return draw(self.source, "svg").decode()

    def _repr_image_png(self) -> bytes:
        return draw(self.source, "png")


def digraph(picture: Picture, direction: str | None) -> Sketch:
    """The DOT of a picture; `direction` is "LR", "TB", or None for what suits its size."""
    if direction is None:
        direction = "LR" if len(picture.shapes) <= LEFT_TO_RIGHT else "TB"
    graph = Sketch(
        graph_attr={
            "rankdir": direction,
            "bgcolor": "white",
            "fontname": FONT,
            "fontsize": "9",
            "fontcolor": INK,
            "nodesep": "0.3",
            "ranksep": "0.25",
            "label": _legend(picture),
        },
        node_attr={
            "shape": "box",
            "style": "filled",
            "fillcolor": "white",
            "color": INK,
            "fontcolor": INK,
            "fontname": FONT,
            "fontsize": "12",
            "height": "0.4",
            "margin": "0.1,0.05",
        },
        edge_attr={
            "color": INK,
            "fontcolor": INK,
            "fontname": FONT,
            "fontsize": "9",
            "arrowsize": "0.7",
        },
    )
    # Lines of DOT rather than calls of node() and edge(), which cost a large graph several times as much.
    members: dict[int, list[str]] = {}
    for i, shape in enumerate(picture.shapes):
        lines = graph.body if shape.cluster is None else members.setdefault(shape.cluster, [])
        text = "\n".join([*shape.lines, *filter(None, (shape.value, shape.gradient))])
        lines.append(f"\t{i} [label={_quoted(text)}{STYLES[shape.kind]}{AGAIN * shape.again}]\n")
    for cluster, lines in members.items():
        with graph.subgraph(name=f"cluster_{cluster}") as box:
            # The title stands at the end where few arrows cross it.
            side = "t" if direction == "LR" else "b"
            box.attr(label=_escaped(picture.clusters[cluster]), labelloc=side, **CLUSTER)
            box.body.extend(lines)
    for arrow in picture.arrows:
        if arrow.gradient:
            graph.body.append(f"\t{arrow.tail} -> {arrow.head} [{GRADIENT_EDGE}]\n")
        else:
            cut = CUT if picture.shapes[arrow.head].kind == "stop_gradient" else ""
            graph.body.append(f"\t{arrow.tail} -> {arrow.head} [label={_quoted(f' {arrow.label} ')}{cut}]\n")
    return graph


def _legend(picture: Picture) -> str:
    kinds = {shape.kind for shape in picture.shapes}
    entries = [text for kind, text in LEGEND.items() if kind in kinds]
    if any(arrow.gradient for arrow in picture.arrows):
        entries.append("⇠ gradient")
    return "\\n" + "     ".join(entries)


@lru_cache(maxsize=1024)
def _quoted(text: str) -> str:
    return '"' + _escaped(text).replace('"', '\\"') + '"'


def _escaped(text: str) -> str:
    """`text` so that Graphviz shows it as it was typed: no escapes, no entities, nothing unprintable."""
    text = re.sub(r"[^\n\t -~\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", lambda c: ascii(c[0])[1:-1], text)
    text = re.sub(r"&(?=#?\w+;)", "&amp;", text)
    return text.replace("\\", "\\\\").replace("\n", "\\n")
