"""What the engine does with a graph, written down: the forward and the backward pass run again on a copy of it."""

from __future__ import annotations

from collections.abc import Container, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

from ...batch_norm.definition import composed
from ...engine import Graph, Leaf, Node, Tensor, as_tensor
from ...engine.backward import propagate, pull
from ...engine.node import recording

# Of a node its gradient, and what the rules returned for each input that a gradient may flow to.
Log = dict[Node, tuple[Any, list[Any]]]


@dataclass(slots=True)
class Part:
    """What a rule handed on to one input: as it came, as it fits the input, and the sum with those before it."""

    to: Node
    position: int | None
    raw: Any
    part: Any
    n: int
    total: Any


@dataclass(slots=True)
class Visit:
    """One node of the backward pass, with its gradient; the seed of an output is a part without a position."""

    node: Node
    g: Any
    parts: list[Part]


@dataclass(slots=True)
class Trace:
    """A copy of a graph, its values, its gradients, and every visit in order.

    `twins` has the copy of each node of the original, `origins` the original of each copy: of the body of a fused
    node that is open, the fused node.
    """

    graph: Graph
    twins: dict[Node, Node]
    origins: dict[Node, Node]
    values: dict[Node, Any]
    grads: dict[Node, Any]
    visits: list[Visit]


def trace(graph: Graph, seeds: Mapping[Node, Any], opened: Container[Node] = ()) -> Trace:
    """Run a graph again from its leaves, with the fused nodes in `opened` in their composed form.

    `seeds` are the gradients of outputs, for the backward pass; none, and there is no backward pass. The engine's own
    code does the work, so that every value, share and sum is the engine's to the bit. `RuntimeError` where a leaf was
    assigned to since the graph was recorded.
    """
    tensors = _again(graph, opened)
    twins = {node: tensor.node for node, tensor in tensors.items()}
    again = Graph(*[tensors[node] for node in graph.outputs])
    origins = {twin: node for node, twin in twins.items()}
    for node in reversed(again.nodes):
        for parent in node.inputs:
            origins.setdefault(parent, origins[node])
    start = [(twins[node], seed) for node, seed in seeds.items()]
    grads, log = _watched(again, start)
    return Trace(again, twins, origins, again.values(), grads, _visits(start, log))


def _again(graph: Graph, opened: Container[Node]) -> dict[Node, Tensor]:
    tensors: dict[Node, Tensor] = {}
    with recording(True):
        for node in graph.nodes:
            node.check_versions(all_operands=True)
            if isinstance(node, Leaf):
                made = as_tensor(node.data, requires_grad=node.requires_grad)
            else:
                args: list[Any] = [tensors[arg] if isinstance(arg, Node) else arg for arg in node.args]
                op: Any = node.primitive
                form: Any = composed(*args, **node.params) if node in opened else op.record(args, node.params)
                made = form[0] if isinstance(form, tuple) else form
            made.name = node.name
            tensors[node] = made
    return tensors


def _watched(graph: Graph, seeds: list[tuple[Node, Any]]) -> tuple[dict[Node, Any], Log]:
    """A backward pass, and what it did at each node, in the order of its visits."""
    log: Log = {}
    own = {node: node.primitive for node in graph.nodes if node.wanted}

    def watch(node: Node, op: Any) -> Any:
        def watched(rule: Any) -> Any:
            def function(g: Any, *read: Any, **about: Any) -> Any:
                out = rule.function(g, *read, **about)
                log.setdefault(node, (g, []))[1].extend([out[p] for p in node.wanted] if op.joint else [out])
                return out

            made = copy(rule)
            made.function = function
            return made

        made = copy(op)
        made.rules = [rule and watched(rule) for rule in op.rules]
        return made

    try:
        for node, op in own.items():
            node.primitive = watch(node, op)
        grads = propagate(seeds, {node for node in graph.nodes if node.requires_grad}, create_graph=False)
    finally:
        for node, op in own.items():
            node.primitive = op
    return grads, log


def _visits(seeds: list[tuple[Node, Any]], log: Log) -> list[Visit]:
    visits: list[Visit] = []
    sums: dict[Node, Any] = {}
    counts: dict[Node, int] = {}

    def arrive(to: Node, position: int | None, raw: Any, part: Any) -> Part:
        counts[to] = counts.get(to, 0) + 1
        sums[to] = sums[to] + part if to in sums else part
        return Part(to, position, raw, part, counts[to], sums[to])

    for node, seed in seeds:
        visits.append(Visit(node, seed, [arrive(node, None, seed, seed)]))
    for node, (g, returned) in log.items():
        handed = zip(node.wanted, returned, pull(node, g), strict=True)
        visits.append(Visit(node, g, [arrive(to, p, raw, part) for p, raw, (to, part) in handed]))
    return visits
