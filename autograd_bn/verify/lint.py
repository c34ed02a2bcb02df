"""Lints: what must hold of any batch norm in a graph, whatever surrounds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..batch_norm.definition import kept_shape
from ..batch_norm.pattern import NearMiss, find, inside, label, sources
from ..batch_norm.reading import Reader
from ..batch_norm.rewrite import argument
from ..engine import Graph, Tensor
from ..engine.derivatives import propagate
from ..engine.graph import Values, compute
from ..engine.node import Array, Leaf, Node, topological_order

_MOVED = {"reshape", "transpose", "broadcast_to", "getitem", "copy", "astype"}
_SUMMANDS = {"add": 0, "subtract": 0, "linear": 2}  # the first argument that is added as it is


class Finding(NamedTuple):
    """A node that breaks a rule, or makes no difference, and what to make of it."""

    node: Node
    text: str


@dataclass(frozen=True)
class Lint:
    """What `lint` found, in the order of the graph, and how many batch norms it looked at."""

    checked: int
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether there is nothing to tell."""
        return not self.findings

    def __str__(self) -> str:
        found = f"{len(self.findings)} finding{'s' * (len(self.findings) != 1)}" if self.findings else "nothing found"
        lines = [f"{self.checked} batch norm{'s' * (self.checked != 1)} checked, {found}"]
        return "\n".join([*lines, *(f"  {label(node)}: {text}" for node, text in self.findings)])


class _BatchNorm(NamedTuple):
    """A batch norm of either form: its last node, its input and what the input's gradient depends on."""

    node: Node
    x: Node
    gamma: Any
    beta: Any
    eps: Any
    axes: tuple[int, ...]
    inside: set[Node]


def lint(*outputs: Tensor, seed: int = 0) -> Lint:
    """Check every batch norm below `outputs`, fused or spelled out, for what always holds in training.

    The gradient of its input sums to 0 over the averaged axes, because a shift of the input changes nothing:
    checked on the graph's own backward pass from `outputs`, with random weights by `seed`, within rounding.
    A bias added just before it changes nothing either and has gradient 0: such a parameter is reported as
    redundant. Neither holds with given statistics or with `stop` on the mean; those are passed over, as are
    statistics over the ranks of a communicator. Costs one backward pass.

    >>> import autograd_bn as ag
    >>> x = ag.tensor([[1.0, 10.0], [3.0, 30.0]])
    >>> b = ag.tensor([1.0, 2.0], requires_grad=True, name="b")
    >>> print(ag.lint(ag.batch_norm(x + b)))
    1 batch norm checked, 1 finding
      'b': a bias just before batch_norm of shape (2, 2), which subtracts the mean over axes (0,): the bias is \
redundant and its gradient is 0; leave it out, beta can do its work
    """
    graph = Graph(*outputs)
    values = Values(graph.nodes)
    found = list(_batch_norms(graph, values))
    rng = np.random.default_rng(seed)
    seeds = [(t.node, rng.normal(size=t.shape).astype(t.dtype)) for t in outputs if t.requires_grad]
    cotangents = propagate(seeds, {norm.node for norm in found}, create_graph=False)
    readers: dict[Node, set[Node]] = {}
    for node in graph.nodes:
        for parent in node.inputs:
            readers.setdefault(parent, set()).add(node)
    findings = []
    for norm in found:
        findings += list(_uncancelled(norm, cotangents.get(norm.node), values))
        findings += list(_redundant(norm, readers, set(graph.outputs)))
    return Lint(len(found), tuple(findings))


def _batch_norms(graph: Graph, values: Values) -> Iterator[_BatchNorm]:
    """Those whose mean is the batch's, and a function of it."""
    reader = Reader(graph.nodes)
    live = set(graph.outputs)
    found = []
    for node in reversed(graph.nodes):
        if node not in live:
            continue
        try:
            match = find(reader, node)
        except NearMiss:
            match = None
        live.update(sources(reader, match) if match else node.inputs)
        if 0 in node.shape:
            continue
        if match and match.mean is None and "mean" not in match.stop:
            x, gamma, beta, _, _, eps = (argument(reader, values, given, node.shape, match.axes) for given in match[:6])
            found.append(_BatchNorm(node, x.node, gamma, beta, eps, match.axes, inside(reader, node, match)))
        elif node.op == "batch_norm":
            x, gamma, beta, mean, _, eps = node.args
            if mean is None and node.params["comm"] is None and "mean" not in node.params["stop"]:
                gamma, beta = (Tensor(values[p], p) if isinstance(p, Node) else p for p in (gamma, beta))
                found.append(_BatchNorm(node, x, gamma, beta, eps, node.params["axes"], set()))
    yield from reversed(found)


def _uncancelled(norm: _BatchNorm, g: Array | None, values: Values) -> Iterator[Finding]:
    """Where the input's gradient does not sum to 0."""
    ways = [p.node for p in (norm.gamma, norm.beta) if isinstance(p, Tensor)]
    if g is None or not norm.x.requires_grad or norm.x in topological_order(ways):
        return
    dx = propagate([(norm.node, g)], {norm.x}, create_graph=False)[norm.x].astype(float)
    # What rounding may leave: of each summand before they cancel, and of a mean far from 0.
    x, full = np.asarray(values[norm.x], dtype=float), kept_shape(norm.node.shape, norm.axes, keepdims=True)
    over: dict[str, Any] = {"axis": norm.axes, "keepdims": True}
    mean = x.mean(**over)
    scale = 1 / np.sqrt(x.var(**over) + np.asarray(norm.eps, dtype=float))
    normal, weight = (x - mean) * scale, abs(g.astype(float))
    through_var = np.mean(weight * abs(normal), **over)
    terms = weight.sum(**over) + through_var * np.sum(abs(normal) + abs(mean) * scale, **over)
    gamma = 1 if norm.gamma is None else np.reshape(np.asarray(norm.gamma, dtype=float), full)
    left = abs(dx.sum(**over))
    slack = 0 if norm.x.dtype == object else 32 * np.finfo(norm.x.dtype).eps * abs(gamma) * scale * terms
    wrong = np.argwhere(np.isfinite(left) & (left > slack))
    if len(wrong):
        at = tuple(wrong[0].tolist())
        yield Finding(
            norm.node,
            f"the gradient of its input {label(norm.x)} sums to {dx.sum(**over)[at]:.6g} over axes {norm.axes} "
            f"at feature {at}, and must sum to 0: a path through the mean is missing or wrong",
        )


def _redundant(norm: _BatchNorm, readers: dict[Node, set[Node]], asked: set[Node]) -> Iterator[Finding]:
    """Parameters whose only work is to shift the input by a constant along the averaged axes."""
    readers_of_x = norm.inside | {norm.node}
    moved: set[Node] = set()
    stack: list[tuple[Any, Callable[[Array], Array]]] = [(norm.x, lambda labels: labels)]
    while stack:
        node, onward = stack.pop()
        only = moved if node is not norm.x else readers_of_x
        if not isinstance(node, Node) or node in asked or not readers[node] <= only:
            continue
        moved.add(node)
        if isinstance(node, Leaf) and node.requires_grad and node is not norm.x:
            # Which element of the parameter stands where: it is a shift if it is the same all along the axes.
            labels = onward(np.arange(node.data.size).reshape(node.shape))
            if np.all(np.ptp(labels, axis=norm.axes) == 0):
                yield Finding(
                    node,
                    f"a bias just before {label(norm.node)}, which subtracts the mean over axes {norm.axes}: "
                    "the bias is redundant and its gradient is 0; leave it out, beta can do its work",
                )
        elif node.op in _SUMMANDS:
            stack += [(arg, partial(_through, node, onward)) for arg in node.args[_SUMMANDS[node.op] :]]
        elif node.op in _MOVED:
            stack.append((node.args[0], partial(_through, node, onward)))


def _through(node: Node, onward: Callable[[Array], Array], labels: Array) -> Array:
    """Labels of an argument of `node`, moved as its values are."""
    moved = compute(node, [labels]) if node.op in _MOVED else np.broadcast_to(labels, node.shape)
    return onward(np.asarray(moved))
