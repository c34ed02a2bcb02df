"""A view of a page: one graph with its nodes, edges, steps, paths and picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any

from ...engine import Leaf, Node
from ...engine.backward import pull
from .. import labels
from ..picture import Picture
from ..repeats import deepest_first
from ..scene import Scene, flow
from . import formulas
from .arrays import Arrays
from .svg import draw_view

MOST = 1500  # nodes: a page with more is none that a reader can walk through
BRIEF = 200  # nodes, above which arrays are summaries
WAYS = 16  # the most paths to a leaf that are told apart
Twins = dict[str, dict[str, int]]  # of each view by its name: for each node its twin in the other view
LABELS = {  # of a path through batch norm, by whether it meets the mean and the variance
    (False, False): "direct",
    (True, False): "through the mean",
    (False, True): "through the variance",
    (True, True): "through the variance's own mean",
}


class View:
    """What a page holds of one graph: `data` for JSON, the pictures, and from which nodes and arrays they were made.

    There is a backward pass if there are gradients to `start`; `why` says why there are none.
    """

    def __init__(
        self,
        name: str,
        scene: Scene,
        start: Sequence[Any] | None,
        arrays: Arrays,
        values: bool = True,
        direction: str | None = None,
        why: str = "",
    ) -> None:
        graph, shown = scene.graph, scene.shown
        if len(shown) > MOST:
            raise ValueError(
                f"the graph has {len(shown)} nodes to show, and a page shows up to {MOST}: "
                "cut a neighbourhood out with around=tensor, hops=number"
            )
        arrays.brief |= len(shown) > BRIEF
        self.scene, self.arrays, self.values, visits = scene, arrays, graph.values(), list[Any]()
        self.seeds = [(node, g) for node, g in zip(graph.outputs, start or (), strict=False) if node.requires_grad]
        self.grads = flow(graph, start, visits)
        given = self.values if values else None
        picture = folded = Picture(scene, given, self.grads, brief=True, fold=True)
        if folded.runs:
            graph = copy(graph)
            graph.nodes = deepest_first(graph.nodes, graph.outputs)  # one time step after the other
            ordered, shown = replace(scene, graph=graph), graph.nodes
            folded, picture = (Picture(ordered, given, self.grads, brief=True, fold=fold) for fold in (True, False))
        self.ids = ids = {node: i for i, node in enumerate(shown)}
        self.names, self.roles = picture.names, picture.roles
        kinds = {shape.node: shape.kind for shape in reversed(picture.shapes)}
        nodes = [
            {
                "id": i,
                "kind": kinds[node],
                "op": node.op,
                "symbol": self.names[node],
                "title": " ".join(labels.title(node)) if node.op else self.names[node],
                "formula": formulas.formula(node, self.names),
                "shape": list(node.shape),
                "dtype": str(node.dtype),
                "in": [ids[parent] for parent in node.inputs if parent in ids],
                "value": arrays.add(self.values[node]) if values else None,
                "grad": arrays.add(self.grads[node]) if node in self.grads else None,
            }
            for node, i in ids.items()
        ]
        edges = [
            [ids[arg], i, place]
            for node, i in ids.items()
            for place, arg in enumerate(node.args)
            if isinstance(arg, Node) and arg in ids
        ]
        repeats = [[[ids[node] for node in block] for block in run] for run in folded.runs]
        self.data: dict[str, Any] = {"name": name, "nodes": nodes, "edges": edges, "notes": {}, "repeats": repeats}
        self.data |= {"steps": list(self.steps(visits, why)), "paths": list(self.paths())}
        self.svg = draw_view(picture, name, ids, direction or "TB")
        self.folded = draw_view(folded, name, ids, direction or "TB") if folded.runs else ""

    def steps(self, visits: Sequence[Any], why: str) -> Iterator[dict[str, Any]]:
        """The leaves, each operation, and each visit of the backward pass."""
        ids, names = self.ids, self.names
        say = f"The leaves are given, and nothing is computed yet. {why}".strip()
        yield {"pass": "start", "node": None, "say": say, "parts": []}
        for node, i in ids.items():
            if node.op:
                text = f"Forward: {names[node]} = {formulas.formula(node, names)}"
                yield {"pass": "forward", "node": i, "say": text, "parts": []}
        visited = [(node, None, [(node, seed)]) for node, seed in self.seeds] + [visit for visit in visits if visit[2]]
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
                    parts.append(about | {k: None if a is None else self.arrays.add(a) for k, a in kept.items()})
            if g is None and parts:
                given = "given" if node.shape else "1, its derivative with respect to itself"
                say = f"Backward begins: the gradient of {names[node]} is {given}."
                yield {"pass": "seed", "node": ids[node], "say": say, "parts": parts}
            elif parts or node in ids:
                say = f"Backward through {names[node]}: {'; '.join(said)}"
                yield {"pass": "backward", "node": ids.get(node), "say": say, "parts": parts}

    def paths(self) -> Iterator[dict[str, Any]]:
        """Of every leaf that 2 to 16 paths lead to: what each path carries, and their sum."""
        for leaf in [node for node in self.scene.graph.nodes if isinstance(node, Leaf) and node.requires_grad]:
            ways: dict[Node, int] = {leaf: 1}  # how many paths lead on from a node
            for node in self.scene.graph.nodes:
                if node is not leaf:
                    ways[node] = sum(ways.get(parent, 0) for parent in set(node.receivers))
            if not 1 < sum(ways[node] for node, _ in self.seeds) <= WAYS:
                continue
            carried = []
            stack: list[tuple[tuple[Node, ...], Any]] = [((node,), seed) for node, seed in self.seeds]
            while stack:
                way, g = stack.pop()
                if way[-1] is leaf:
                    carried.append((way, g))
                for parent in [node for node in dict.fromkeys(way[-1].receivers) if ways.get(node)]:
                    # Two edges from one node to another, as in x · x, are one path.
                    part = reduce(add, [part for _, part in pull(way[-1], g, {parent})])
                    stack.append(((*way, parent), part))
            if all(node in self.ids for way, _ in carried for node in way):  # else it leaves what is shown
                entries = [
                    {"label": self.label(way), "nodes": [self.ids[node] for node in way], "part": self.arrays.add(g)}
                    for way, g in reversed(carried)
                ]
                total = reduce(add, [g for _, g in carried])
                yield {"leaf": self.ids[leaf], "sum": self.arrays.add(total), "paths": entries}

    def label(self, way: Sequence[Node]) -> str:
        """Which of batch norm's paths a path takes, or what it leads through."""
        norms: list[set[str]] = []  # what it meets in each batch norm
        for node in way:
            if self.roles.get(node) == "x̂":
                norms.append(set())
            elif node in self.roles and norms:
                norms[-1].add(self.roles[node])
        if norms:
            return ", then ".join([LABELS["mean" in met, "var" in met] for met in norms])
        return f"via {', '.join([self.names[node] for node in way[1:-1][-3:]])}" if len(way) > 2 else "direct"
