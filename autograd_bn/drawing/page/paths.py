"""The paths from the outputs to a leaf: each multiplied out, and named where it runs through a batch norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

from ...engine import Graph, Leaf, Node
from ...engine.backward import pull
from .arrays import Arrays

MOST = 16
LABELS = {
    (False, False): "direct",
    (True, False): "through the mean",
    (False, True): "through the variance",
    (True, True): "through the variance's own mean",
}


def paths(
    graph: Graph,
    seeds: Sequence[tuple[Node, Any]],
    ids: Mapping[Node, int],
    names: Mapping[Node, str],
    roles: Mapping[Node, str],
    arrays: Arrays,
) -> list[dict[str, Any]]:
    """Of every leaf that 2 to 16 paths lead to: what each path carries, and their sum."""
    found = []
    for leaf in [node for node in graph.nodes if isinstance(node, Leaf) and node.requires_grad]:
        ways: dict[Node, int] = {leaf: 1}  # how many paths lead on from a node
        for node in graph.nodes:
            if node is not leaf:
                ways[node] = sum(ways.get(parent, 0) for parent in set(node.receivers))
        if not 1 < sum(ways[node] for node, _ in seeds) <= MOST:
            continue
        carried = []
        stack: list[tuple[tuple[Node, ...], Any]] = [((node,), seed) for node, seed in seeds]
        while stack:
            way, g = stack.pop()
            if way[-1] is leaf:
                carried.append((way, g))
            for parent in [node for node in dict.fromkeys(way[-1].receivers) if ways.get(node)]:
                # Two edges from one node to another, as in x · x, are one path.
                part = reduce(add, [part for _, part in pull(way[-1], g, {parent})])
                stack.append(((*way, parent), part))
        if all(node in ids for way, _ in carried for node in way):  # else it leaves what is shown
            total = reduce(add, [g for _, g in carried])
            entries = [
                {"label": label(way, roles, names), "nodes": [ids[node] for node in way], "part": arrays.add(g)}
                for way, g in reversed(carried)
            ]
            found.append({"leaf": ids[leaf], "sum": arrays.add(total), "paths": entries})
    return found


def label(way: Sequence[Node], roles: Mapping[Node, str], names: Mapping[Node, str]) -> str:
    """Which of batch norm's paths a path takes, or what it leads through."""
    norms: list[set[str]] = []  # what it meets in each batch norm
    for node in way:
        if roles.get(node) == "x̂":
            norms.append(set())
        elif node in roles and norms:
            norms[-1].add(roles[node])
    if norms:
        return ", then ".join([LABELS["mean" in met, "var" in met] for met in norms])
    return f"via {', '.join([names[node] for node in way[1:-1][-3:]])}" if len(way) > 2 else "direct"
