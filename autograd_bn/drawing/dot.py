"""Records become DOT, in a house style that holds in greyscale too: kinds differ in outline and in fill."""

from __future__ import annotations

import re
from typing import Any

import graphviz

from .layout import draw
from .records import Picture, Shape

LEFT_TO_RIGHT = 25  # the most shapes that are drawn in a row

# DejaVu and Verdana have the same widths: what one measures, the other fits.
FONT = "DejaVu Sans,Verdana,sans-serif"
INK = "#22303C"
GRADIENT = "#B03A00"

STYLES: dict[str, dict[str, str]] = {
    "operation": {},
    "input": {"shape": "ellipse", "margin": "0.02,0.01", "fillcolor": "#DCEBF7"},
    "parameter": {"shape": "ellipse", "margin": "0.02,0.01", "peripheries": "2", "fillcolor": "#F6C667"},
    "output": {
        "shape": "ellipse",
        "margin": "0.02,0.01",
        "penwidth": "2.5",
        "fillcolor": "#2B4C7E",
        "fontcolor": "white",
    },
    "constant": {"shape": "note", "fillcolor": "#ECECEC"},
    "stop_gradient": {"shape": "octagon", "penwidth": "2.5", "color": GRADIENT},
    "allreduce": {"shape": "hexagon", "fillcolor": "#E3D5EE"},
}
CLUSTER = {"style": "rounded,filled", "color": "#8796A5", "fillcolor": "#F1F4F7", "labeljust": "l", "margin": "10"}
CUT = {"arrowhead": "normaltee"}


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
            "fontsize": "10",
            "fontcolor": INK,
            "nodesep": "0.3",
            "ranksep": "0.25",
        },
        node_attr={
            "shape": "box",
            "style": "filled",
            "fillcolor": "white",
            "color": INK,
            "fontcolor": INK,
            "fontname": FONT,
            "fontsize": "11",
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
    grouped: dict[int, list[int]] = {}
    for i, shape in enumerate(picture.shapes):
        if shape.cluster is None:
            _add(graph, i, shape)
        else:
            grouped.setdefault(shape.cluster, []).append(i)
    for cluster, members in grouped.items():
        with graph.subgraph(name=f"cluster_{cluster}") as box:
            # The title stands at the end where few arrows cross it.
            side = "t" if direction == "LR" else "b"
            box.attr(label=_typed(picture.clusters[cluster]), labelloc=side, **CLUSTER)
            for i in members:
                _add(box, i, picture.shapes[i])
    for arrow in picture.arrows:
        style: dict[str, Any] = {}
        if arrow.gradient:
            style = {"style": "dashed", "color": GRADIENT, "constraint": "false"}
        elif picture.shapes[arrow.head].kind == "stop_gradient":
            style = CUT
        graph.edge(str(arrow.tail), str(arrow.head), label=_typed(f" {arrow.label} ") if arrow.label else None, **style)
    return graph


def _add(graph: Any, i: int, shape: Shape) -> None:
    graph.node(str(i), label=_typed("\n".join(shape.lines)), **STYLES[shape.kind])


def _typed(text: str) -> str:
    """`text` so that Graphviz shows it as it was typed: no escapes, no entities, no HTML, nothing unprintable."""
    text = re.sub(r"[^\n\t -\ud7ff\ue000-\U0010ffff]", lambda c: ascii(c[0])[1:-1], text)
    text = re.sub(r"&(?=#?\w+;)", "&amp;", text)
    return graphviz.nohtml(text.replace("\\", "\\\\").replace("\n", "\\n"))  # type: ignore[no-any-return]
