"""A view of a page: one graph with its nodes, edges, steps, paths and picture."""

from collections import Counter
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property, reduce
from operator import add
from typing import Any

from ...engine import Leaf, Node
from ...engine.backward import pull
from .. import labels
from ..picture import Picture
from ..repeats import deepest_first, repeats_of
from ..scene import Scene, gradients_of
from . import formulas
from .arrays import Arrays

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
    """What a page holds of one graph: the pictures, the last with repeats folded where there are, and `data` for JSON.

    There is a backward pass if there are gradients to `start`; `why` says why there are none.
    """

    def __init__(
        self, name: str, scene: Scene, start: Sequence[Any] | None, arrays: Arrays, values: bool = True, why: str = ""
    ) -> None:
        graph, count = scene.graph, len(scene.shown)
        if count > MOST:
            raise ValueError(
                f"the graph has {count} nodes to show, and a page shows up to {MOST}: "
                "cut a neighbourhood out with around=tensor, hops=number"
            )
        arrays.brief |= count > BRIEF
        self.name, self.scene, self.arrays, self.why = name, scene, arrays, why
        self.values, self.visits, self.says_values = graph.values(), list[Any](), values
        self.seeds = [(node, g) for node, g in zip(graph.outputs, start or (), strict=False) if node.requires_grad]
        self.grads = gradients_of(graph, start, self.visits)
        self.repeats = repeats_of(scene, self.grads)
        if self.repeats:
            ordered = copy(graph)
            ordered.nodes = deepest_first(graph.nodes, graph.outputs)  # one time step after the other
            scene = replace(scene, graph=ordered)
        shown = self.values if values else None
        forms = [[], self.repeats] if self.repeats else [[]]
        self.pictures = [Picture(scene, shown, self.grads, brief=True, repeats=form) for form in forms]
        self.names, self.roles = self.pictures[0].names, self.pictures[0].roles
        self.ids = {node: i for i, node in enumerate(scene.shown)}

    @cached_property
    def data(self) -> dict[str, Any]:
        """What the page's script reads."""
        ids, arrays = self.ids, self.arrays
        kinds = {shape.node: shape.kind for shape in reversed(self.pictures[0].shapes)}
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
                "value": arrays.add(self.values[node]) if self.says_values else None,
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
        blocks = [[[ids[node] for node in block] for block in repeat] for repeat in self.repeats]
        about = {"name": self.name, "nodes": nodes, "edges": edges, "notes": {}, "repeats": blocks}
        return about | {"steps": list(self.steps()), "paths": list(self.paths())}

    def steps(self) -> Iterator[dict[str, Any]]:
        """The leaves, each operation, and each visit of the backward pass."""
        ids, names = self.ids, self.names
        say = f"The leaves are given, and nothing is computed yet. {self.why}".strip()
        yield {"pass": "start", "node": None, "say": say, "parts": []}
        for node, i in ids.items():
            if node.op:
                text = f"Forward: {names[node]} = {formulas.formula(node, names)}"
                yield {"pass": "forward", "node": i, "say": text, "parts": []}
        visited: list[Any] = [(node, None, [(node, seed)]) for node, seed in self.seeds]
        visited += [visit for visit in self.visits if visit[2]]
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
                seed = "given" if node.shape else "1, its derivative with respect to itself"
                say = f"Backward begins: the gradient of {names[node]} is {seed}."
                yield {"pass": "seed", "node": ids[node], "say": say, "parts": parts}
            elif parts or node in ids:
                say = f"Backward through {names[node]}: {'; '.join(said)}"
                yield {"pass": "backward", "node": ids.get(node), "say": say, "parts": parts}

    def paths(self) -> Iterator[dict[str, Any]]:
        """Of every leaf that 2 to 16 paths lead to: what each path carries, and their sum."""
        nodes = self.scene.graph.nodes
        receivers = {node: [*dict.fromkeys(node.receivers)] for node in nodes}
        for leaf in [node for node in nodes if isinstance(node, Leaf) and node.requires_grad]:
            ways: dict[Node, int] = {}  # how many paths lead on from a node
            for node in nodes:
                ways[node] = 1 if node is leaf else sum([ways[parent] for parent in receivers[node]])
            if not 1 < sum(ways[node] for node, _ in self.seeds) <= WAYS:
                continue
            carried = []
            stack: list[tuple[tuple[Node, ...], Any]] = [((node,), seed) for node, seed in self.seeds]
            while stack:
                way, g = stack.pop()
                if way[-1] is leaf:
                    carried.append((way, g))
                for parent in [node for node in receivers[way[-1]] if ways[node]]:
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
