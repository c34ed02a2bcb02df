"""Rewriting one form of batch norm into the other, in place."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

import numpy as np

from ...engine import Tensor
from ...engine.graph import Graph, Values
from ...engine.node import Node, recording, topological_order
from ...engine.operations import broadcast_to
from ..definition import batch_norm, body
from ..kernels.layout import kept_shape
from .recognise import Match, Miss, Recogniser, label, roles


class Refusal(NamedTuple):
    """A node that looks like batch norm and was left as it is, and why."""

    node: Node
    reason: str


@dataclass(frozen=True)
class Report:
    """What `fuse` did: the nodes that were fused, and those that were refused, inputs first."""

    fused: tuple[Node, ...]
    refused: tuple[Refusal, ...]
    rows: tuple[tuple[str, str, str], ...]  # verdict, node, what it computes or why it was refused

    def __str__(self) -> str:
        lines = [f"  {verdict:<8} {node}: {text}" for verdict, node, text in self.rows]
        return "\n".join([f"{len(self.fused)} fused, {len(self.refused)} refused", *lines])

    def _repr_html_(self) -> str:
        cells = ["".join([f"<td>{escape(cell)}</td>" for cell in row]) for row in (("", "node", ""), *self.rows)]
        return "<table>" + "".join([f"<tr>{row}</tr>" for row in cells]) + "</table>"


def fuse(*outputs: Tensor) -> Report:
    """Rewire every batch norm that is spelled out below `outputs` into one fused node, in place.

    Any spelling is recognised, with gamma and beta or without, with the statistics of the batch or constant ones;
    `stop_gradient` on the statistics becomes `stop`. The last node of the spelling becomes the fused node; values keep
    their bits, and gradients agree to rounding at every order. Other consumers of the nodes inside still have them.

    What looks like batch norm and differs is refused, with the reason: eps outside the root, unequal axes, statistics
    of another tensor, an unbiased variance or one in a single pass, a node inside that is itself one of `outputs`. The
    cost is linear in the number of nodes. `RuntimeError`, with nothing changed, where a leaf was assigned to since the
    forward pass.

    >>> import numpy as np, autograd_bn as ag
    >>> x = ag.tensor([[1.0, 10.0], [3.0, 30.0]], requires_grad=True, name="x")
    >>> y = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    >>> print(ag.fuse(y))
    1 fused, 0 refused
      fused    batch_norm of shape (2, 2): batch norm of 'x', axes=(0,)
    >>> ag.Graph(y).ops
    Counter({'batch_norm': 1})
    """
    graph = Graph(*outputs)
    values = Values(graph.nodes)
    candidates = Recogniser(graph.nodes).search(graph.outputs)
    made = [(node, *_made(verdict, values)) for node, _, verdict in candidates]
    for node, fused, _ in made:
        if fused:
            node.take_over(fused)
    return Report(
        tuple([node for node, fused, _ in made if fused]),
        tuple([Refusal(node, text) for node, fused, text in made if not fused]),
        tuple([("fused" if fused else "refused", label(node), text) for node, fused, text in made]),
    )


def _made(verdict: Match | Miss, values: Values) -> tuple[Node | None, str]:
    """The fused node and what it computes; or None, and why there is none."""
    if isinstance(verdict, Miss):
        return None, verdict.reason
    stop = f", stop={verdict.stop}" if verdict.stop else ""
    try:
        return _fused(verdict, values), f"batch norm of {label(verdict.x)}, axes={verdict.axes}{stop}"
    except (TypeError, ValueError) as error:
        return None, str(error)


def _fused(match: Match, values: Values) -> Node:
    """The fused node that computes `match`, recorded on the same inputs."""
    shapes = [kept_shape(match.x.shape, match.axes, keepdims) for keepdims in (True, False)]

    def operand(source: Any) -> Any:
        value = Tensor(values[source], source) if isinstance(source, Node) else source
        fits = not isinstance(value, Tensor | np.ndarray) or value.shape in shapes
        return value if fits else broadcast_to(value, shapes[0])

    with recording(True):
        x = Tensor(values[match.x], match.x)
        gamma, beta, eps, mean, var = [operand(source) for source in match.parameters]
        y = batch_norm(x, gamma, beta, axes=match.axes, eps=eps, mean=mean, var=var, stop=match.stop)
    return y.node  # type: ignore[no-any-return]


def expand(*outputs: Tensor) -> tuple[Node, ...]:
    """Rewire every fused batch norm below `outputs` into its composed form, in place: the inverse of `fuse`.

    Returns the nodes that were fused, each now the last of its composed form, inputs first. Values keep their
    bits, and gradients agree to rounding at every order. `RuntimeError`, with nothing changed, where a leaf
    was assigned to since the forward pass.

    >>> import autograd_bn as ag
    >>> x = ag.tensor([[1.0, 10.0], [3.0, 30.0]], requires_grad=True)
    >>> y = ag.batch_norm(x)
    >>> ag.expand(y)
    (<Node multiply shape=(2, 2) dtype=float64>,)
    """
    graph = Graph(*outputs)
    values = Values(graph.nodes)
    with recording(True):
        made = [(node, body(node, values)) for node in graph.nodes if node.own_op == "batch_norm"]
    for node, last in made:
        node.take_over(last)
    return tuple([node for node, _ in made])


def norms(outputs: Sequence[Tensor | Node]) -> list[dict[Node, str]]:
    """The nodes of every spelled-out batch norm below `outputs`, inputs first, each with what it stands for.

    The names are "mean", "var", "1/σ", "centred" (x - mean) and "x̂" (the normalised input). A node has one where its
    value is that of the statistic or of what is computed from it, whatever the spelling; of several the first has it,
    and the others, like whatever else is inside, an empty one. Given statistics that are nodes are among them.

    >>> import autograd_bn as ag
    >>> (norm,) = norms([ag.batch_norm(ag.tensor([[1.0, 10.0], [3.0, 30.0]]), form="composed")])
    >>> list(norm.values())
    ['mean', 'centred', '', 'var', '', '1/σ', 'x̂']
    """
    ends = [output.node if isinstance(output, Tensor) else output for output in outputs]
    nodes = topological_order(ends)
    parts = []
    for judged in Recogniser(nodes).search(ends):
        if isinstance(match := judged.verdict, Match):
            statistics = [part for part in (match.mean, match.var) if isinstance(part, Node)]
            inside = judged.inside().union([judged.node], statistics)
            named = roles(judged.region, match, inside)
            parts.append({inner: named.get(inner, "") for inner in nodes if inner in inside})
    return parts
