"""The paths from the outputs to a leaf: each multiplied out, and named where it runs through a batch norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...engine import Leaf, Node
from ...engine.backward import pull
from .arrays import Arrays
from .trace import Trace

MOST = 16


def paths(
    run: Trace, ids: Mapping[Node, int], names: Mapping[Node, str], known: Mapping[Node, str], arrays: Arrays
) -> list[dict[str, Any]]:
    """Of every leaf that 2 to 16 paths lead to: what each path carries, and their sum."""
    seeds = {visit.node: visit.g for visit in run.visits if visit.parts and visit.parts[0].position is None}
    found = []
    for leaf in run.graph.nodes:
        if not isinstance(leaf, Leaf) or leaf not in run.grads:
            continue
        ways: dict[Node, int] = {leaf: 1}  # how many paths lead on from a node
        for node in run.graph.nodes:
            if node is not leaf:
                ways[node] = sum(ways.get(parent, 0) for parent in dict.fromkeys(node.receivers))
        if not 1 < sum([ways[node] for node in seeds]) <= MOST:
            continue
        carried = []
        stack: list[tuple[tuple[Node, ...], Any]] = [((node,), seed) for node, seed in seeds.items()]
        while stack:
            way, g = stack.pop()
            if way[-1] is leaf:
                carried.append((way, g))
                continue
            for parent in dict.fromkeys(way[-1].receivers):
                if ways.get(parent):
                    # Two edges from one node to another, as in x · x, are one path.
                    parts = [part for _, part in pull(way[-1], g, {parent})]
                    stack.append(((*way, parent), sum(parts[1:], start=parts[0])))
        if any(node not in ids for way, _ in carried for node in way):
            continue  # it leaves the neighbourhood that is shown
        total = sum([g for _, g in carried[1:]], start=carried[0][1])
        entries = [
            {"label": label(way, known, names), "nodes": [ids[node] for node in way], "part": arrays.add(g)}
            for way, g in reversed(carried)
        ]
        found.append({"leaf": ids[leaf], "sum": arrays.add(total), "paths": entries})
    return found


def label(way: Sequence[Node], known: Mapping[Node, str], names: Mapping[Node, str]) -> str:
    """Which of batch norm's paths a path takes, or what it leads through."""
    norms: list[set[str]] = []  # what it meets in each batch norm
    for node in way:
        if known.get(node) == "x̂":
            norms.append(set())
        elif node in known and norms:
            norms[-1].add(known[node])
    if not norms:
        return f"via {', '.join([names[node] for node in way[1:-1][-3:]])}" if len(way) > 2 else "direct"
    return ", then ".join(
        [
            {
                (False, False): "direct",
                (True, False): "through the mean",
                (False, True): "through the variance",
                (True, True): "through the variance's own mean",
            }["mean" in met, "var" in met]
            for met in norms
        ]
    )
