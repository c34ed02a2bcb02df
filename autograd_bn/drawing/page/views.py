"""A view of a page: one graph with its nodes, edges, steps, paths and picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...engine import Node
from .. import labels
from ..picture import flow
from ..records import Picture
from ..scene import Scene
from . import formulas
from .arrays import Arrays
from .paths import paths
from .svg import draw_view

MOST = 1500  # nodes: a page with more is none that a reader can walk through
BRIEF = 200  # nodes, above which arrays are summaries


@dataclass(slots=True)
class View:
    """What a page holds of one graph: the JSON, the picture, and from which nodes and arrays they were made."""

    data: dict[str, Any]
    svg: str
    scene: Scene
    values: dict[Node, Any]
    grads: dict[Node, Any]
    ids: dict[Node, int]


def view(
    name: str,
    scene: Scene,
    start: Sequence[Any] | None,
    arrays: Arrays,
    values: bool = True,
    direction: str | None = None,
    why: str = "",
) -> View:
    """A view of a graph, with a backward pass if there are gradients to `start`; `why` says why there are none."""
    graph, shown = scene.graph, scene.shown
    if len(shown) > MOST:
        raise ValueError(
            f"the graph has {len(shown)} nodes to show, and a page shows up to {MOST}: "
            "cut a neighbourhood out with around=tensor, hops=number"
        )
    arrays.brief |= len(shown) > BRIEF
    known, visits = graph.values(), list[Any]()
    seeds = [(node, seed) for node, seed in zip(graph.outputs, start or (), strict=False) if node.requires_grad]
    grads = flow(graph, start, visits)
    picture = Picture(scene, known if values else None, grads, brief=True)
    ids, names = {node: i for i, node in enumerate(shown)}, picture.names
    kinds = {shape.node: shape.kind for shape in reversed(picture.shapes)}
    nodes = [
        {
            "id": i,
            "kind": kinds[node],
            "op": node.op,
            "symbol": names[node],
            "title": " ".join(labels.title(node)) if node.op else names[node],
            "formula": formulas.formula(node, names),
            "shape": list(node.shape),
            "dtype": str(node.dtype),
            "in": [ids[parent] for parent in node.inputs if parent in ids],
            "value": arrays.add(known[node]) if values else None,
            "grad": arrays.add(grads[node]) if node in grads else None,
        }
        for node, i in ids.items()
    ]
    edges = [
        [ids[arg], i, place]
        for node, i in ids.items()
        for place, arg in enumerate(node.args)
        if isinstance(arg, Node) and arg in ids
    ]
    data = {
        "name": name,
        "nodes": nodes,
        "edges": edges,
        "steps": list(_steps(seeds, visits, ids, names, arrays, why)),
        "paths": paths(graph, seeds, ids, names, picture.roles, arrays),
        "notes": {},
    }
    svg = draw_view(picture, name, ids, direction or "TB")
    return View(data, svg, scene, known, grads, ids)


def _steps(
    seeds: list[Any], visits: list[Any], ids: Mapping[Node, int], names: Mapping[Node, str], arrays: Arrays, why: str
) -> Iterator[dict[str, Any]]:
    say = f"The leaves are given, and nothing is computed yet. {why}".strip()
    yield {"pass": "start", "node": None, "say": say, "parts": []}
    for node, i in ids.items():
        if node.op:
            text = f"Forward: {names[node]} = {formulas.formula(node, names)}"
            yield {"pass": "forward", "node": i, "say": text, "parts": []}
    visited = [(node, None, [(node, seed)]) for node, seed in seeds] + [visit for visit in visits if visit[2]]
    expected = Counter(to for *_, parts in visited for to, _ in parts)
    arrived, sums = Counter[Node](), dict[Node, Any]()
    for node, g, handed in visited:
        places: Sequence[int | None] = [None] if g is None else node.wanted
        shown = g is not None and any(to in ids for to, _ in handed)
        read: Sequence[Any] = formulas.rules(node, g, names) if shown else [(None, None, None)] * len(handed)
        parts, said = [], []
        for place, (rule, local, raw), (to, part) in zip(places, read, handed, strict=True):
            arrived[to] += 1
            sums[to] = sums[to] + part if to in sums else part
            if to in ids:
                share = f", share {arrived[to]} of {expected[to]}" if expected[to] > 1 else ""
                said.append(f"{names[to]} gets {rule}{share}")
                about = {"to": ids[to], "pos": place, "rule": rule, "n": arrived[to], "of": expected[to]}
                kept = {"local": local, "raw": raw, "part": part, "total": sums[to]}
                parts.append(about | {key: None if array is None else arrays.add(array) for key, array in kept.items()})
        if g is None and parts:
            given = "given" if node.shape else "1, its derivative with respect to itself"
            say = f"Backward begins: the gradient of {names[node]} is {given}."
            yield {"pass": "seed", "node": ids[node], "say": say, "parts": parts}
        elif parts or node in ids:
            say = f"Backward through {names[node]}: {'; '.join(said)}"
            yield {"pass": "backward", "node": ids.get(node), "say": say, "parts": parts}
