"""How a graph is arranged: which leaves are drawn again, batch norm's statistics, the way forward."""

from collections.abc import Container, Mapping, Sequence
from typing import Any

from ..engine import Leaf, Node

FAR = 8  # a leaf with readers further apart than so many ranks is drawn again beside the others
STATISTICS = ("mean", "var", "1/σ")
Inputs = Mapping[Node, Sequence[Node]]


def ranks(inputs: Mapping[Any, Sequence[Any]]) -> dict[Any, int]:
    """How far down each shape stands: just above its first reader, as Graphviz will have it."""
    rank: dict[Any, int] = {}
    for node, parents in inputs.items():
        rank[node] = 1 + max([rank.get(parent, 0) for parent in parents], default=0)
    near: dict[Any, int] = {}
    for node in reversed(list(inputs)):
        rank[node] = near.get(node, rank[node])
        for parent in inputs[node]:
            near[parent] = min(near.get(parent, rank[node]), rank[node] - 1)
    return rank


def drawn_again(inputs: Inputs) -> set[tuple[Node, Node]]:
    """The leaves that are read far away, each with a reader beside which it is drawn again.

    Graphviz needs minutes for many long edges.
    """
    rank = ranks(inputs)
    edges = [(leaf, node) for node, parents in inputs.items() for leaf in parents if isinstance(leaf, Leaf)]
    far = {leaf for leaf, reader in edges if rank[reader] - rank[leaf] - 1 > FAR}
    return {(leaf, reader) for leaf, reader in edges if leaf in far and rank[reader] - rank[leaf] > 1}


def statistics(nodes: Sequence[Node], norm: Mapping[Node, str]) -> list[Node]:
    """Those of the nodes of a batch norm, each with its role, that compute its statistics, up to the root."""
    branch: set[Node] = set()
    for node in reversed(nodes):
        if norm.get(node) in STATISTICS or node in branch:
            branch.update([node, *[parent for parent in node.inputs if parent in norm]])
    branch = {node for node in branch if norm[node] != "centred"}
    for node in nodes:  # on to the root, whatever it is called
        if node in norm and node.inputs and branch.issuperset(node.inputs):
            branch.add(node)
    return [node for node in nodes if node in branch]


def spine(last: Node, inputs: Inputs, aside: Container[Node]) -> dict[Node, Node]:
    """The way forward to `last`: for each node on it the input before it, which took the longest and is not `aside`."""
    rank, way = ranks(inputs), dict[Node, Node]()
    while parents := [parent for parent in inputs.get(last, ()) if parent not in aside]:
        way[last] = max(parents, key=lambda parent: rank.get(parent, 0) if parent.primitive else 0)
        last = way[last]
    return way
