"""A view's picture: drawn by Graphviz, cleaned by white lists, its elements labelled for the script."""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree

from ...engine import Node
from ..dot import FONT, digraph
from ..layout import draw
from ..records import Picture

SVG = "{http://www.w3.org/2000/svg}"
TAGS = frozenset("svg g path polygon polyline ellipse text title".split())
ATTRIBUTES = frozenset(
    "class transform points d cx cy rx ry x y text-anchor font-size font-weight font-style fill fill-opacity stroke "
    "stroke-width stroke-dasharray".split()
)
VALUE = re.compile(r"[-\w#., ()]*")  # of an attribute: no url, no style
INHERITED = {"text-anchor": "middle", "font-size": "12.00", "fill": "#22303c", "font-family": FONT}


def draw_view(picture: Picture, name: str, ids: Mapping[Node, int], direction: str) -> str:
    """The picture as SVG for a page; the shapes of the nodes in `ids` stand in their order."""
    root = ElementTree.fromstring(draw(digraph(picture, direction).source, "svg"))
    box = root.get("viewBox", "")
    edges: dict[str, list[str]] = {}  # tail->head: the data-edge of each of the arrows between them
    for arrow in picture.arrows:
        tail, head = (picture.shapes[i] for i in (arrow.tail, arrow.head))
        known = edges.setdefault(f"{arrow.tail}->{arrow.head}", [])
        if tail.node and head.node and tail.node is not head.node:
            places = [p for p, arg in enumerate(head.node.args) if arg is tail.node]
            known.append(f"{ids[tail.node]}-{ids[head.node]}-{places[len(known) % len(places)]}" if places else "")
        else:
            known.append("")
    (graph,) = (g for g in root if g.tag == SVG + "g")
    order = []
    for group in list(graph):
        if group.tag == SVG + "polygon":
            continue  # the background
        kind = group.get("class", "")
        title = group.findtext(SVG + "title", "")
        _clean(group)
        if kind == "node":
            for part in group:
                part.attrib.pop("stroke-dasharray", None)  # dashes say that a value isn't known yet
            shape = picture.shapes[int(title)]
            texts = [child for child in group if child.tag == "text"]
            lines = ["v"] * _count(shape.value) + ["g"] * _count(shape.gradient)
            for text, role in zip(texts, [""] * (len(texts) - len(lines)) + lines, strict=True):
                text.attrib |= {"class": role} if role else {}
            group.set("class", f"node {shape.kind}")
            if shape.node:
                group.attrib |= {"data-node": str(ids[shape.node]), "data-view": name}
        elif kind == "edge":
            group.attrib |= {"data-edge": edges[title].pop(0)}
        order.append(({"edge": 1, "node": 2}.get(kind, 0), int(group.get("data-node", -1)), group))
    transform = graph.get("transform", "")
    graph.clear()
    graph.tag = "g"
    graph.set("transform", transform)
    graph.extend([group for *_, group in sorted(order, key=lambda entry: entry[:2])])
    root.clear()
    root.tag = "svg"
    root.append(graph)
    root.attrib |= {
        "xmlns": SVG[1:-1],
        "viewBox": box,
        "role": "group",
        "aria-label": f"computation graph, {name}",
        **INHERITED,
    }
    return ElementTree.tostring(root, encoding="unicode")


def _count(text: str) -> int:
    return len(text.split("\n")) if text else 0


def _clean(element: ElementTree.Element) -> None:
    element.tag = element.tag.removeprefix(SVG)
    if element.tag not in TAGS:
        raise RuntimeError(f"Graphviz drew <{element.tag}>, which a page has no place for")
    element.attrib = {
        key: re.sub(r"(\.\d)\d+", r"\1", value)
        for key, value in element.attrib.items()
        if key in ATTRIBUTES and INHERITED.get(key) != value and VALUE.fullmatch(value)
    }
    if not (element.text or "").strip():
        element.text = None
    element.tail = None
    for child in list(element):
        if child.tag == SVG + "title" or not isinstance(child.tag, str):
            element.remove(child)
        else:
            _clean(child)
