"""What a picture shows, as plain records: all is settled here, and nothing is known of DOT."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..batch_norm.fusion import roles
from ..engine import Graph, Leaf, Node
from . import labels, structure
from .expansion import Expansion
from .modules import Call, Calls

Kind = Literal[
    "input", "variable", "parameter", "constant", "operation", "stop_gradient", "allreduce", "output", "more"
]
LARGEST = 2**19  # elements of an array up to which batch norm is looked for: it takes a second there
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
    kind: Literal["fused", "statistics", "module"]
    parent: int | None = None


@dataclass(slots=True)
class Picture:
    """All that is drawn. A shape's place in `shapes` is its id, a frame's place in `clusters` too."""

    shapes: list[Shape] = field(default_factory=list)
    arrows: list[Arrow] = field(default_factory=list)
    clusters: list[Frame] = field(default_factory=list)


def picture(graph: Graph, **options: Any) -> Picture:
    """The records of a graph, in topological order, with the options of `Drawer`."""
    return Drawer(graph, **options).drawn


class Drawer:
    """The steps of making a picture, and what they share.

    A node that has an entry in `expansions` is shown as its body. `values` and `gradients`, where given, have
    an entry for each node whose value or gradient is known; `stored` ones are what the leaves hold, and flow
    nowhere. Of all nodes those in `only` are drawn, as `neighbourhood` has them, and dots where the graph goes on.
    The `calls` of a model's modules become frames, or boxes.
    """

    def __init__(
        self,
        graph: Graph,
        expansions: Mapping[Node, Expansion] | None = None,
        values: Mapping[Node, Any] | None = None,
        gradients: Mapping[Node, Any] | None = None,
        stored: bool = False,
        only: Collection[Node] | None = None,
        calls: Calls | None = None,
    ) -> None:
        self.values, self.gradients, self.stored, self.calls = values, gradients, stored, calls or Calls()
        self.call_of, self.dtype = self.calls.of, graph.outputs[0].dtype
        self.drawn = Picture()
        self.place: dict[Any, int] = {}  # the shape of a node, or of a copy of a leaf
        self.frame_of: dict[Node, int | None] = {}  # every node that is drawn, inputs first
        self.shown: dict[Node, Node] = {}  # a node that is opened -> the one that has its value
        self.frame_of_call: dict[Call, int] = {}
        chosen = [node for node in graph.nodes if only is None or node in only]
        for node in chosen:
            self.frame(node, (expansions or {}).get(node))
        small = all(math.prod(node.shape) <= LARGEST for node in graph.nodes)
        self.roles = roles([*graph.outputs, *self.shown.values()]) if small else {}
        branch = structure.statistics(list(self.frame_of), self.roles)
        self.frame_statistics(branch)
        self.inputs = {node: [parent for parent, _, _ in self.operands(node)] for node in self.frame_of}
        for node, parents in self.inputs.items():  # a parameter stands in its module's frame
            for parent in parents:
                if parent in self.calls.names and self.frame_of.get(parent, 0) is None:
                    self.frame_of[parent] = self.frame_of[node]
        self.again = structure.drawn_again(self.inputs)
        self.outputs = dict.fromkeys([self.shown.get(node, node) for node in graph.outputs if node in chosen])
        self.spine = {*structure.spine(self.shown.get(graph.outputs[0], graph.outputs[0]), self.inputs, branch)}
        self.receivers = {} if gradients is None or stored else self.traced()
        for node in self.frame_of:
            self.add_node(node)
        for node in self.outputs:
            self.add_output(node)
        if only is not None:
            cut = {parent for node in graph.nodes if node not in only for parent in node.inputs if parent.primitive}
            for node in [node for node in chosen if node in cut]:
                self.connect(self.place[self.shown.get(node, node)], self.add("more", ["…"], None, None), node)

    # --- Frames ---

    def frame(self, node: Node, opened: Expansion | None) -> None:
        """Take a node into the picture, in the frame of the module that recorded it and perhaps one of its own."""
        call = self.call_of.get(node)
        if call and call.one_box:
            if node is call.result:
                self.frame_of[node] = self.module(call.parent)
            return
        within = self.module(call)
        if node.op == "batch_norm":
            title = ", ".join(labels.title(node)) if opened else "fused"
            if call and call.single and within is not None:  # the module's frame is the node's
                frame = self.drawn.clusters[within]
                frame.kind, frame.title = "fused", f"{frame.title}, {title.partition(', ')[2]}"
            else:
                self.drawn.clusters.append(Frame(title, "fused", within))
                within = len(self.drawn.clusters) - 1
        if opened:
            self.shown[node] = opened.result
        self.frame_of |= dict.fromkeys(opened.nodes if opened else [node], within)

    def module(self, call: Call | None) -> int | None:
        """The frame of a module's call; the model as a whole has none."""
        if call is None or (call.parent is None and not call.path):
            return None
        if call not in self.frame_of_call:
            parent = self.module(call.parent)
            self.frame_of_call[call] = len(self.drawn.clusters)
            self.drawn.clusters.append(Frame(call.title, "module", parent))
        return self.frame_of_call[call]

    def frame_statistics(self, branch: Mapping[Node, Node]) -> None:
        """Put the nodes of each branch, named by its last node, into a frame."""
        frames: dict[Node, int] = {}
        taken = {last for node, last in branch.items() if self.roles.get(node) in ("mean", "var")}
        for node in [node for node in self.frame_of if node in branch]:
            if (last := branch[node]) not in frames:
                title = "batch statistics" if last in taken else "given statistics"
                frames[last] = len(self.drawn.clusters)
                self.drawn.clusters.append(Frame(title, "statistics", self.frame_of[last]))
            self.frame_of[node] = frames[last]

    # --- Shapes and arrows ---

    def operands(self, node: Node) -> list[tuple[Node, Node, str]]:
        """What a shape reads: the node that has the value, the one that was recorded, and the operand's name."""
        call = self.call_of.get(node)
        if call and call.one_box:
            inner = set(call.nodes)
            args = [(arg, "") for part in call.nodes for arg in part.inputs if arg not in inner]
        else:
            args = [pair for pair in zip(node.args, labels.edge_names(node), strict=True) if isinstance(pair[0], Node)]
        return [(self.shown.get(arg, arg), arg, name) for arg, name in args]

    def traced(self) -> dict[Node, set[Node]]:
        """Which nodes get a gradient through each, of those that one comes by."""
        reached, receivers = set(self.outputs), {}
        for node in reversed(self.frame_of):
            if node in reached:
                call = self.call_of.get(node)
                parts = call.nodes if call and call.one_box else [node]
                receivers[node] = {receiver for part in parts for receiver in part.receivers}
                reached.update([self.shown.get(parent, parent) for parent in receivers[node]])
        return receivers

    def add(self, kind: Kind, lines: list[str], frame: int | None, node: Node | None, detailed: bool = True) -> int:
        shape = Shape(kind, [part for line in lines if line for part in labels.wrapped(line)], frame, node)
        if node and detailed and self.values is not None:
            shape.value = labels.value_text(self.values[node])
        if node and detailed and self.gradients is not None:
            if node in self.gradients:
                shape.gradient = labels.value_text(self.gradients[node], ".grad " if self.stored else "grad ")
            elif isinstance(node, Leaf) and node.requires_grad:
                shape.gradient = "no .grad" if self.stored else "no gradient"
        self.drawn.shapes.append(shape)
        return len(self.drawn.shapes) - 1

    def connect(self, tail: int, head: int, given: Any, name: str = "", main: bool = False) -> None:
        words = [name, str(given.shape) if given.shape else "", "" if given.dtype == self.dtype else str(given.dtype)]
        self.drawn.arrows.append(Arrow(tail, head, " ".join(filter(None, words)), spine=main))

    def leaf(self, node: Node, frame: int | None, again: bool = False) -> int:
        name = self.calls.names.get(node)
        kind: Kind = "input"
        if node.requires_grad:
            kind = "parameter" if name or node.name in PARAMETERS else "variable"
        here = self.add(kind, [name] if name else labels.title(node), frame, node, detailed=not again)
        self.drawn.shapes[here].again = again
        return here

    def tail_of(self, arg: Node, reader: Node) -> int:
        """The shape that an arrow to `reader` comes from."""
        if (rank := self.again.get((arg, reader))) is None:
            return self.place[arg] if arg in self.place else self.add("more", ["…"], self.frame_of[reader], None)
        if (arg, rank) not in self.place:
            frame = self.frame_of[reader] if arg in self.calls.names else None
            self.place[arg, rank] = self.leaf(arg, frame, again=True)
        return self.place[arg, rank]

    def add_node(self, node: Node) -> None:
        frame, call = self.frame_of[node], self.call_of.get(node)
        if isinstance(node, Leaf):
            self.place[node] = self.leaf(node, frame)
            return
        operands = self.operands(node)
        tails = {arg: self.tail_of(arg, node) for arg, _, _ in operands}
        one_box = call is not None and call.one_box
        aside = None if node.op == "batch_norm" else frame
        constants = [
            (self.add("constant", labels.constant(node, i, self.values is not None), aside, None), arg, name)
            for i, (arg, name) in enumerate(zip(node.args, labels.edge_names(node), strict=True))
            if not one_box and not isinstance(arg, Node) and labels.is_array(arg)
        ]
        lines = self.title(node)
        if call and one_box:
            lines = [call.title, *(lines[1:] if node.op == "batch_norm" else [])]
        kind: Kind = node.op if node.op in ("stop_gradient", "allreduce") else "operation"  # type: ignore[assignment]
        # The value of an operation that is an output stands there.
        here = self.place[node] = self.add(kind, lines, frame, node, node not in self.outputs)
        for arg, recorded, name in operands:
            known = (arg.name, self.calls.names.get(arg, "").rpartition(".")[2])
            self.connect(tails[arg], here, recorded, "" if name in known else name, (arg, node) in self.spine)
            if recorded in self.receivers.get(node, ()) and self.gradients and recorded in self.gradients:
                self.drawn.arrows.append(Arrow(here, tails[arg], gradient=True))
        for tail, array, name in constants:
            self.connect(tail, here, array, name if len(name) == 1 else "")

    def title(self, node: Node) -> list[str]:
        lines = labels.title(node)
        if node.op == "batch_norm":
            lines[1:] = [labels.formula(node), ", ".join(lines[1:])]
        name = self.roles.get(node) or ("" if node in self.outputs else node.name)
        return [f"{name} = {lines[0]}", *lines[1:]] if name and name != node.op else lines

    def add_output(self, node: Node) -> None:
        here = self.add("output", [node.name if node.name and node.op else "output"], None, node)
        self.connect(self.place[node], here, node, main=node is next(iter(self.outputs)))
        if node in self.receivers and self.gradients and node in self.gradients:
            self.drawn.arrows.append(Arrow(here, self.place[node], gradient=True))
