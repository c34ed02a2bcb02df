"""Fused nodes opened into their composed form, on a copy of the graph."""

from __future__ import annotations

from collections.abc import Container, Mapping
from copy import copy
from typing import Any

import numpy as np

from ..batch_norm.definition import body
from ..engine import Graph, Node
from ..engine.node import Array, recording, topological_order


class _Echo:
    """A communicator whose ranks all say what this one does: what is recorded with it sends no message."""

    def __init__(self, size: int) -> None:
        self.size = size

    def Allgather(self, part: bytes, everyone: Array) -> None:
        everyone[:] = np.frombuffer(part, everyone.dtype)

    def Allreduce(self, part: Array, total: Array) -> None:
        total[...] = part


def opened(graph: Graph, fused: Container[Node], values: Mapping[Node, Any] | None) -> tuple[Graph, dict[Node, Node]]:
    """The graph with the nodes in `fused` opened, and for each of its nodes that of `graph` which it is a part of.

    What reads no opened node is shared, the rest are copies. Without `values` the bodies have their structure only,
    recorded on zeros. With them a body that spans the ranks of an MPI job talks to the other ranks.
    """
    twins: dict[Node, Node] = {}
    for node in graph.nodes:
        if node in fused or any(parent in twins for parent in node.inputs):
            twin = twins[node] = copy(node)
            twin.args = tuple([twins.get(arg, arg) if isinstance(arg, Node) else arg for arg in node.args])
            if node in fused:
                if values is None and node.params["comm"] is not None:
                    twin.params = {**node.params, "comm": _Echo(node.params["comm"].size)}
                given = {
                    twins.get(parent, parent): np.zeros(parent.shape, parent.dtype)
                    if values is None
                    else values[parent]
                    for parent in node.inputs
                }
                with recording(True):
                    twin.become(body(twin, given))
    made = copy(graph)
    made.outputs = tuple([twins.get(node, node) for node in graph.outputs])
    made.nodes = topological_order(made.outputs)
    origins = {twins.get(node, node): node for node in graph.nodes}
    for node in reversed(made.nodes):
        for parent in node.inputs:
            origins.setdefault(parent, origins[node])
    return made, origins
