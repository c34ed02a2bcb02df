"""What is inside a fused node, without a change to the graph."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..batch_norm.definition import body
from ..engine import Leaf, Node
from ..engine.backward import propagate
from ..engine.graph import compute
from ..engine.node import Array, recording


@dataclass(slots=True)
class Expansion:
    """The composed body of a fused node: its nodes in topological order, of which the last is the result."""

    nodes: list[Node]

    @property
    def result(self) -> Node:
        """The node that has the fused node's value."""
        return self.nodes[-1]

    def values(self, known: Mapping[Node, Any]) -> dict[Node, Any]:
        """The value of every node of the body."""
        found: dict[Node, Any] = {}
        for node in self.nodes:
            args = [found.get(arg, known.get(arg)) if isinstance(arg, Node) else arg for arg in node.args]
            found[node] = node.data if isinstance(node, Leaf) else compute(node, args)
        return found

    def gradients(self, gradient: Any) -> dict[Node, Any]:
        """The gradient of every node of the body that has one, where the result's is `gradient`."""
        targets = {node for node in self.nodes if node.requires_grad}
        return propagate([(self.result, gradient)], targets, create_graph=False)


class _Echo:
    """A communicator whose ranks all say what this one does: what a body records with it sends no message."""

    def __init__(self, size: int) -> None:
        self.size = size

    def Allgather(self, part: bytes, everyone: Array) -> None:
        everyone[:] = np.frombuffer(part, everyone.dtype)

    def Allreduce(self, part: Array, total: Array) -> None:
        total[...] = part


def expansion(node: Node, values: Mapping[Node, Any] | None) -> Expansion:
    """The body of a fused node. Without `values` it has the structure only, recorded on zeros.

    With them a body that spans the ranks of an MPI job talks to the other ranks, without them it never does.
    """
    opened = node
    if values is None:
        values = {parent: np.zeros(parent.shape, parent.dtype) for parent in node.inputs}
        if node.params["comm"] is not None:
            opened = copy(node)
            opened.params = {**node.params, "comm": _Echo(node.params["comm"].size)}
    with recording(True):
        result = body(opened, values)
    result.name = node.name
    outside = set(node.inputs)
    order: list[Node] = []

    def visit(inner: Node) -> None:
        if inner not in outside:
            outside.add(inner)
            for parent in inner.inputs:
                visit(parent)
            order.append(inner)

    visit(result)
    return Expansion(order)
