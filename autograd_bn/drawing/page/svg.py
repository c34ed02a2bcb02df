"""A view's picture: drawn by Graphviz, cleaned by white lists, its elements labelled for the script."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from ..dot import FONT, digraph
from ..picture import Picture
from ..run_graphviz import draw

if TYPE_CHECKING:
    from .views import View

SVG = "http://www.w3.org/2000/svg"
TAGS = frozenset("svg g path polygon polyline ellipse text".split())
ATTRIBUTES = frozenset(
    "class transform points d cx cy rx ry x y text-anchor font-size font-weight font-style fill fill-opacity stroke "
    "stroke-width".split()
)  # no dashes: they say that a value isn't known yet
VALUE = re.compile(r"[-\w#., ()]*")  # of an attribute: no url, no style
# What the root says for all, in Graphviz's spelling of `dot.INK`; a text in it has no stroke.
INHERITED = {"text-anchor": "middle", "font-size": "12.00", "fill": "#22303c", "stroke": "#22303c", "font-family": FONT}


def draw_view(view: View, picture: Picture, direction: str) -> str:
    """A picture of a view as SVG for a page; the shapes of its nodes stand in their order."""
    name, ids = view.name, view.ids
    drawn = draw(digraph(picture, direction).source, "svg").decode()
    root = ElementTree.fromstring(drawn.replace(f' xmlns="{SVG}"', "", 1))
    edges: dict[str, list[str]] = {}  # tail->head: the data-edge of each of the arrows between them
    for arrow in picture.arrows:
        tail, head = (picture.shapes[i].node for i in (arrow.tail, arrow.head))
        ends = "" if arrow.position is None or not tail or not head else f"{ids[tail]}-{ids[head]}-{arrow.position}"
        edges.setdefault(f"{arrow.tail}->{arrow.head}", []).append(ends)
    (graph,) = root
    top = {"viewBox": root.get("viewBox", ""), "role": "group", "aria-label": f"computation graph, {name}"}
    made = ElementTree.Element("svg", {"xmlns": SVG, **top, **INHERITED})
    inner = ElementTree.SubElement(made, "g", {"transform": graph.get("transform", "")})
    parts = [part for part in graph if part.tag not in ("polygon", "title")]  # no background
    for group in sorted(parts, key=_layer):
        kind, title = group.get("class", ""), group.findtext("title", "")
        _clean(group)
        if kind == "edge":
            group.set("data-edge", edges[title].pop(0))
        elif kind == "node":
            shape = picture.shapes[int(title)]
            roles = ["g"] * len(shape.gradient) + ["v"] * len(shape.value)
            for text, role in zip([child for child in group if child.tag == "text"][::-1], roles, strict=False):
                text.set("class", role)
            group.set("class", f"node {shape.kind}")
            if shape.node:
                group.attrib |= {"data-node": str(ids[shape.node]), "data-view": name}
        elif kind == "cluster" and (repeat := picture.frames[int(title.removeprefix("cluster_"))].repeat) is not None:
            group.attrib |= {"class": "repeat", "data-repeat": str(repeat)}
        inner.append(group)
    return ElementTree.tostring(made, encoding="unicode").replace(" />", "/>")


def _layer(group: ElementTree.Element) -> tuple[int, int]:
    """Frames lie below arrows, and these below nodes, which come in the order of their numbers."""
    if group.get("class") == "node":
        return 2, int(group.findtext("title", ""))
    return (1 if group.get("class") == "edge" else 0), 0


def _clean(element: ElementTree.Element) -> None:
    if element.tag not in TAGS:
        raise RuntimeError(f"Graphviz drew <{element.tag}>, which a page has no place for")
    element.attrib = {
        key: re.sub(r"\.\d+", "", value) if key in ("d", "x", "y") else re.sub(r"(\.\d)\d+", r"\1", value)
        for key, value in element.attrib.items()
        if key in ATTRIBUTES and INHERITED.get(key) != value and VALUE.fullmatch(value)
    }
    if element.tag == "polygon":  # which is closed without its first point at the end
        element.attrib["points"] = element.attrib["points"].rpartition(" ")[0]
    element.text, element.tail = (element.text or "").strip() and element.text, None
    for child in list(element):
        if child.tag == "title":
            element.remove(child)
        else:
            _clean(child)
