"""What a picture shows, as plain records: all is settled here, and nothing is known of DOT."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..batch_norm.fusion import roles
from ..engine import Graph, Leaf, Node
from . import labels, structure
from .expansion import Expansion

Kind = Literal[
    "input", "variable", "parameter", "constant", "operation", "stop_gradient", "allreduce", "output", "more"
]
PARAMETERS = {"gamma", "beta", "weight", "bias"}


@dataclass(slots=True)
class Shape:
    """A node of the picture: what it is called, the frame that it is in, and of whose node it shows the value."""

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
    spine: bool = False  # on the way forward to the first output


@dataclass(slots=True)
class Frame:
    """What is drawn around shapes that belong together, perhaps inside another frame."""

    title: str
    kind: Literal["fused", "statistics"]
    parent: int | None = None


@dataclass(slots=True)
class Picture:
    """All that is drawn. A shape's place in `shapes` is its id, a frame's place in `clusters` too."""

    shapes: list[Shape] = field(default_factory=list)
    arrows: list[Arrow] = field(default_factory=list)
    clusters: list[Frame] = field(default_factory=list)


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
    frame_of: dict[Node, int | None] = {}  # every node that is drawn, inputs first
    shown: dict[Node, Node] = {}  # a node that is opened -> the one that has its value
    for node in graph.nodes:
        if only is not None and node not in only:
            continue
        if node.op != "batch_norm":
            frame_of[node] = None
        elif node in expansions:
            frame_of |= dict.fromkeys(expansions[node].nodes, len(drawn.clusters))
            shown[node] = expansions[node].result
            drawn.clusters.append(Frame(", ".join(labels.title(node)), "fused"))
        else:
            frame_of[node] = len(drawn.clusters)
            drawn.clusters.append(Frame("fused", "fused"))
    exact = any(node.dtype == object for node in graph.nodes)
    named = {} if exact else roles([*graph.outputs, *shown.values()])
    branch = structure.statistics(list(frame_of), named)
    frames: dict[Node, int] = {}
    for node in [node for node in frame_of if node in branch]:
        if (last := branch[node]) not in frames:
            frames[last] = len(drawn.clusters)
            drawn.clusters.append(Frame("batch statistics", "statistics", frame_of[last]))
        frame_of[node] = frames[last]
    inputs = {node: [shown.get(parent, parent) for parent in node.inputs] for node in frame_of}
    again = structure.drawn_again(inputs)
    outputs = dict.fromkeys([shown.get(node, node) for node in graph.outputs if only is None or node in only])
    spine = {*structure.spine(shown.get(graph.outputs[0], graph.outputs[0]), inputs, branch)}
    main_dtype = graph.outputs[0].dtype
    on_path = set(outputs)  # where a gradient comes by on its way to the leaves
    if gradients is not None:
        for node in reversed(frame_of):
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

    def connect(tail: int, head: int, given: Any, name: str = "", main: bool = False) -> None:
        dtype = "" if given.dtype == main_dtype else f" {given.dtype}"
        drawn.arrows.append(Arrow(tail, head, f"{name} {given.shape}{dtype}".lstrip(), spine=main))

    place: dict[Any, int] = {}

    def tail_of(arg: Node, reader: Node) -> int:
        if (rank := again.get((arg, reader))) is None:
            return place[arg] if arg in place else add("more", ["…"], frame_of[reader], None)
        if (arg, rank) not in place:
            place[arg, rank] = add(_kind(arg), labels.title(arg), None, arg, detailed=False)
            drawn.shapes[-1].again = True
        return place[arg, rank]

    for node, frame in frame_of.items():
        tails = {arg: tail_of(shown.get(arg, arg), node) for arg in node.inputs}
        aside = None if node.op == "batch_norm" else frame
        constants = {
            position: add("constant", labels.constant(node, position, values is not None), aside, None)
            for position, arg in enumerate(node.args)
            if not isinstance(arg, Node) and labels.is_array(arg)
        }
        lines = labels.title(node)
        if node.op == "batch_norm":
            lines[1:] = [labels.formula(node), ", ".join(lines[1:])]
        name = named.get(node, "" if node in outputs else node.name) if node.op else ""
        if name and name != node.op:
            lines[0] = f"{name} = {lines[0]}"
        # The value of an operation that is an output stands there.
        here = place[node] = add(_kind(node), lines, frame, node, not node.op or node not in outputs)
        receivers = _receivers(node) if gradients is not None and node in on_path else []
        for position, (arg, name) in enumerate(zip(node.args, labels.edge_names(node), strict=True)):
            if isinstance(arg, Node):
                main = (shown.get(arg, arg), node) in spine
                connect(tails[arg], here, arg, "" if name == arg.name else name, main)
                if arg in receivers and gradients is not None and arg in gradients:
                    drawn.arrows.append(Arrow(here, tails[arg], gradient=True))
            elif position in constants:
                connect(constants[position], here, arg, name if len(name) == 1 else "")
    for node in outputs:
        here = add("output", [node.name if node.name and node.op else "output"], None, node)
        connect(place[node], here, node, main=node is next(iter(outputs)))
        if gradients is not None and node in gradients:
            drawn.arrows.append(Arrow(here, place[node], gradient=True))
    if only is not None:
        cut = {parent for node in graph.nodes if node not in only for parent in node.inputs if parent.primitive}
        for node in [node for node in graph.nodes if node in only and node in cut]:
            connect(place[shown.get(node, node)], add("more", ["…"], None, None), node)
    return drawn


def _kind(node: Node) -> Kind:
    if isinstance(node, Leaf):
        return ("parameter" if node.name in PARAMETERS else "variable") if node.requires_grad else "input"
    return node.op if node.op in ("stop_gradient", "allreduce") else "operation"  # type: ignore[return-value]


def _receivers(node: Node) -> list[Node]:
    """The inputs that the derivative of a node has a gradient for."""
    return list(node.receivers)
