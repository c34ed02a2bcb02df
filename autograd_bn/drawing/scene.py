"""What is to be drawn: a graph, or a part of it, whose fused nodes can be opened into their composed form."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..batch_norm.definition import body
from ..engine import Graph, Node
from ..engine.node import Array, recording, topological_order
from .modules import Call, Calls


@dataclass(frozen=True)
class Scene:
    """Of a graph all nodes, or those that come from `only`, as `neighbourhood` has them, and the `calls` of modules.

    `origins` has the node that another is a copy or a part of, where fused nodes are opened.
    """

    graph: Graph
    only: Collection[Node] | None = None
    calls: Calls = field(default_factory=Calls)
    origins: Mapping[Node, Node] = field(default_factory=dict)

    @property
    def shown(self) -> list[Node]:
        """The nodes to draw, inputs first."""
        return [node for node in self.graph.nodes if self.only is None or self.origin(node) in self.only]

    def origin(self, node: Node) -> Node:
        """The node of the graph that was asked for."""
        return self.origins.get(node, node)

    def calls_of(self, node: Node) -> list[Call]:
        """The calls of modules that a node was recorded in, outermost first."""
        return self.calls.of.get(self.origin(node), [])

    def opened(self, fused: Container[Node], values: Mapping[Node, Any] | None) -> Scene:
        """The same with the nodes in `fused` opened, on a copy of the graph.

        What reads no opened node is shared, the rest are copies. Without `values` the bodies have their structure only,
        recorded on zeros. With them a body that spans the ranks of an MPI job talks to the other ranks.
        """
        twins: dict[Node, Node] = {}
        for node in self.graph.nodes:
            if node in fused or any(parent in twins for parent in node.inputs):
                twin = twins[node] = copy(node)
                twin.args = tuple([twins.get(arg, arg) if isinstance(arg, Node) else arg for arg in node.args])
            if node in fused:
                if values is None and node.params["comm"] is not None:
                    twin.params = {**node.params, "comm": _Echo(node.params["comm"].size)}
                known = {
                    twins.get(p, p): np.zeros(p.shape, p.dtype) if values is None else values[p] for p in node.inputs
                }
                with recording(True):
                    twin.become(body(twin, known))
        made = copy(self.graph)
        made.outputs = tuple([twins.get(node, node) for node in self.graph.outputs])
        made.nodes = topological_order(made.outputs)
        origins = {twins.get(node, node): node for node in self.graph.nodes}
        for node in reversed(made.nodes):
            for parent in node.inputs:
                origins.setdefault(parent, origins[node])
        return replace(self, graph=made, origins=origins)


class _Echo:
    """A communicator whose ranks all say what this one does: what is recorded with it sends no message."""

    def __init__(self, size: int) -> None:
        self.size = size

    def Allgather(self, part: bytes, everyone: Array) -> None:
        everyone[:] = np.frombuffer(part, everyone.dtype)

    def Allreduce(self, part: Array, total: Array) -> None:
        total[...] = part
