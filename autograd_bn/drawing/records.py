"""What a picture shows, as plain records: all is settled here, and nothing is known of DOT."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..engine import Graph, Leaf, Node
from . import labels
from .expansion import Expansion

Kind = Literal["input", "parameter", "constant", "operation", "stop_gradient", "allreduce", "output", "more"]
FAR = 8  # a leaf with readers further apart than so many ranks is drawn again for each rank


@dataclass(slots=True)
class Shape:
    """A node of the picture: what it is called, the cluster that it is in, and of whose node it shows the value."""

    kind: Kind
    lines: list[str]
    cluster: int | None = None
    node: Node | None = None
    value: str = ""
    gradient: str = ""
    again: bool = False  # a leaf that stands elsewhere, too, with its value


@dataclass(slots=True)
class Arrow:
    """An edge between two shapes, given by their places in the picture; a gradient's runs backwards."""

    tail: int
    head: int
    label: str = ""
    gradient: bool = False


@dataclass(slots=True)
class Picture:
    """All that is drawn. A shape's place in `shapes` is its id; `clusters` are titles."""

    shapes: list[Shape] = field(default_factory=list)
    arrows: list[Arrow] = field(default_factory=list)
    clusters: list[str] = field(default_factory=list)


def picture(
    graph: Graph,
    *,
    expansions: Mapping[Node, Expansion],
    values: Mapping[Node, Any] | None = None,
    gradients: Mapping[Node, Any] | None = None,
    only: Collection[Node] | None = None,
) -> Picture:
    """The records of a graph, in topological order.

    A node that has an entry in `expansions` is shown as its body. `values` and `gradients`, where given, have
    an entry for each node whose value or gradient is known. Of all nodes those in `only` are drawn, as
    `neighbourhood` has them, and dots where the graph goes on.
    """
    drawn = Picture()
    rows: list[tuple[Node, int | None]] = []  # each node with its cluster
    shown: dict[Node, Node] = {}  # a node that is opened -> the one that has its value
    for node in graph.nodes:
        if only is not None and node not in only:
            continue
        if node.op != "batch_norm":
            rows.append((node, None))
        elif node in expansions:
            rows.extend([(inner, len(drawn.clusters)) for inner in expansions[node].nodes])
            shown[node] = expansions[node].result
            drawn.clusters.append(", ".join(labels.title(node)))
        else:
            rows.append((node, len(drawn.clusters)))
            drawn.clusters.append("fused")
    outputs = dict.fromkeys([shown.get(node, node) for node in graph.outputs if only is None or node in only])
    cut = () if only is None else {parent for node in graph.nodes if node not in only for parent in node.inputs}
    again = _drawn_again([node for node, _ in rows], shown)
    main_dtype = graph.outputs[0].dtype
    on_path = set(outputs)  # where a gradient comes by on its way to the leaves
    if gradients is not None:
        for node, _ in reversed(rows):
            if node in on_path:
                on_path.update([shown.get(parent, parent) for parent in _receivers(node)])

    def add(kind: Kind, lines: list[str], cluster: int | None, node: Node | None, detailed: bool = True) -> int:
        shape = Shape(kind, lines, cluster, node)
        if node and detailed and values is not None:
            shape.value = labels.value_text(values[node])
        if node and detailed and gradients is not None:
            known = gradients.get(node)
            shape.gradient = "grad not computed" if known is None else f"grad {labels.value_text(known)}"
        drawn.shapes.append(shape)
        return len(drawn.shapes) - 1

    def connect(tail: int, head: int, given: Any, name: str = "") -> None:
        dtype = "" if given.dtype == main_dtype else f" {given.dtype}"
        drawn.arrows.append(Arrow(tail, head, f"{name} {given.shape}{dtype}".lstrip()))

    place: dict[Any, int] = {}

    def tail_of(arg: Node, reader: Node, cluster: int | None) -> int:
        arg = shown.get(arg, arg)
        if (copy := again.get((arg, reader))) is None:
            return place[arg] if arg in place else add("more", ["…"], cluster, None)
        if (arg, copy) not in place:
            place[arg, copy] = add(_kind(arg), labels.title(arg), None, arg, detailed=False)
            drawn.shapes[-1].again = True
        return place[arg, copy]

    for node, cluster in rows:
        tails = {arg: tail_of(arg, node, cluster) for arg in node.inputs}
        constants = {
            position: add("constant", labels.constant(node, position, values is not None), None, None)
            for position, arg in enumerate(node.args)
            if not isinstance(arg, Node) and labels.is_array(arg)
        }
        lines = labels.title(node)
        if node.op == "batch_norm":
            lines[1:] = [labels.formula(node), ", ".join(lines[1:])]
        if node.name and node.op and node not in outputs:
            lines[0] = f"{node.name} = {lines[0]}"
        # The value of an operation that is an output stands there.
        here = place[node] = add(_kind(node), lines, cluster, node, not node.op or node not in outputs)
        receivers = _receivers(node) if gradients is not None and node in on_path else []
        for position, (arg, name) in enumerate(zip(node.args, labels.edge_names(node), strict=True)):
            if isinstance(arg, Node):
                connect(tails[arg], here, arg, "" if name == arg.name else name)
                if arg in receivers and gradients is not None and arg in gradients:
                    drawn.arrows.append(Arrow(here, tails[arg], gradient=True))
            elif position in constants:
                connect(constants[position], here, arg, name if len(name) == 1 else "")
    for node in outputs:
        here = add("output", [node.name if node.name and node.op else "output"], None, node)
        connect(place[node], here, node)
        if gradients is not None and node in gradients:
            drawn.arrows.append(Arrow(here, place[node], gradient=True))
    for node in graph.nodes:
        if node in cut and node.primitive is not None and node in only:  # type: ignore[operator]
            connect(place[shown.get(node, node)], add("more", ["…"], None, None), node)
    return drawn


def neighbourhood(graph: Graph, around: Iterable[Node], hops: int) -> set[Node]:
    """The nodes at most `hops` edges away from `around`, either way, and the leaves that these read.

    A leaf is no way through: what else reads a shared weight is not near.
    """
    readers: dict[Node, list[Node]] = {node: [] for node in graph.nodes}
    for node in graph.nodes:
        for parent in node.inputs:
            readers[parent].append(node)
    found = edge = set(around)
    for hop in range(hops):
        near = {parent for node in edge for parent in node.inputs}
        near |= {reader for node in edge if node.primitive or not hop for reader in readers[node]}
        edge = near - found
        found = found | near
    return found | {parent for node in found for parent in node.inputs if isinstance(parent, Leaf)}


def _drawn_again(rows: list[Node], shown: Mapping[Node, Node]) -> dict[tuple[Node, Node], int]:
    """Which further copy of a leaf each of its far readers has; Graphviz needs minutes for many long edges."""
    rank: dict[Node, int] = {}  # of a node just above its first reader, as Graphviz will have it
    inputs = {node: [shown.get(arg, arg) for arg in node.inputs] for node in rows}
    for node in rows:
        rank[node] = 1 + max([rank.get(parent, 0) for parent in inputs[node]], default=0)
    readers: dict[Node, list[Node]] = {}
    near: dict[Node, int] = {}
    for node in reversed(rows):
        rank[node] = near.get(node, rank[node])
        for parent in inputs[node]:
            near[parent] = min(near.get(parent, rank[node] - 1), rank[node] - 1)
            if isinstance(parent, Leaf):
                readers.setdefault(parent, []).append(node)
    first = {leaf: min([rank[reader] for reader in found]) for leaf, found in readers.items()}
    return {
        (leaf, reader): rank[reader]
        for leaf, found in readers.items()
        if max([rank[reader] for reader in found]) - first[leaf] > FAR
        for reader in found
        if rank[reader] > first[leaf]
    }


def _kind(node: Node) -> Kind:
    if isinstance(node, Leaf):
        return "parameter" if node.requires_grad else "input"
    return node.op if node.op in ("stop_gradient", "allreduce") else "operation"  # type: ignore[return-value]


def _receivers(node: Node) -> list[Node]:
    """The inputs that the derivative of a node has a gradient for."""
    return list(node.receivers)
