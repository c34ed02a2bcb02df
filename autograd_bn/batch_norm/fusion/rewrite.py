"""Rewriting one form of batch norm into the other, in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ...engine import Tensor
from ...engine.graph import Graph, Values, compute
from ...engine.node import Leaf, Node, recording, topological_order
from ...engine.operations import broadcast_to, reshape
from ..arguments import kept_shape
from ..definition import batch_norm, body
from .pattern import Match, NearMiss, Partly, find, inside, label, sources
from .reading import Factor, Reader, long_axes


class Refusal(NamedTuple):
    """A node that looks like batch norm and was left as it is, and why."""

    node: Node
    reason: str


@dataclass(frozen=True)
class Report:
    """What `fuse` did: the nodes that are fused now, and those that were refused, inputs first."""

    fused: tuple[Node, ...]
    refused: tuple[Refusal, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.fused)} fused, {len(self.refused)} refused"]
        for node in self.fused:
            stop = f", stop={tuple(sorted(node.params['stop']))}" if node.params["stop"] else ""
            lines.append(
                f"  fused    {label(node)}: batch norm of {label(node.inputs[0])}, axes={node.params['axes']}{stop}"
            )
        lines += [f"  refused  {label(node)}: {reason}" for node, reason in self.refused]
        return "\n".join(lines)


def fuse(*outputs: Tensor) -> Report:
    """Rewire every batch norm that is spelled out below `outputs` into one fused node, in place.

    Any spelling is recognised: `rsqrt`, `1 / sqrt`, `** -0.5` or a division by the root; `var` or the mean of
    squared deviations in any form, `sum / n` for `mean`; gamma and beta, or their folded form
    `x * s + (beta - mean * s)`, or neither; reshaped and broadcast parameters; `stop_gradient` on the
    statistics, which becomes `stop`; given statistics that are constants. The last node of the spelling
    becomes the fused node; values keep their bits, and gradients agree to rounding at every order. Other
    consumers of the nodes inside still have them.

    What looks like batch norm and differs is refused, with the reason: eps outside the root, unequal axes,
    statistics of another tensor, an unbiased variance or one in a single pass, a node inside that is itself
    one of `outputs`. The cost is linear in the number of nodes. `RuntimeError`, with nothing changed, where a
    leaf was assigned to since the forward pass.

    >>> import autograd_bn as ag
    >>> x = ag.tensor([[1.0, 10.0], [3.0, 30.0]], requires_grad=True, name="x")
    >>> y = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    >>> print(ag.fuse(y))
    1 fused, 0 refused
      fused    batch_norm of shape (2, 2): batch norm of 'x', axes=(0,)
    >>> ag.Graph(y).ops
    Counter({'batch_norm': 1})
    """
    graph = Graph(*outputs)
    reader, values = Reader(graph.nodes), Values(graph.nodes)
    asked = set(graph.outputs)
    live, settled = set(graph.outputs), set[Node]()
    made: dict[Node, Node] = {}
    refused: dict[Node, str] = {}
    partly: dict[Node, tuple[str, set[Node]]] = {}
    # Consumers first: so the longest spelling is found, and what only it read is not looked at again.
    for node in reversed(graph.nodes):
        if node not in live:
            continue
        try:
            match = None if node in settled else find(reader, node)
            if match:
                made[node] = _fused(reader, values, node, match, asked)
                live.update(sources(reader, match))
                continue
        except Partly as reason:
            partly[node] = str(reason), inside(reader, node)
        except NearMiss as reason:
            refused[node] = str(reason)
            settled |= inside(reader, node)
        live.update(node.inputs)
    for node, (text, interior) in reversed(partly.items()):
        if not interior & (made.keys() | refused.keys()):
            refused[node] = text
    for node, fused in made.items():
        node.become(fused)
    return Report(
        tuple([node for node in graph.nodes if node in made]),
        tuple([Refusal(node, refused[node]) for node in graph.nodes if node in refused]),
    )


def argument(reader: Reader, values: Values, factor: Any, shape: tuple[int, ...], axes: tuple[int, ...]) -> Any:
    """What a factor stands for, as `batch_norm` takes it: of the kept axes' shape, or with 1s for the others."""
    if not isinstance(factor, Factor):
        return factor
    source = reader.source(factor)
    given = Tensor(values[source], source) if isinstance(source, Node) else source
    kept, full = kept_shape(shape, axes), kept_shape(shape, axes, keepdims=True)
    if given.shape == shape or (factor.along == long_axes(full) and given.shape in (kept, full)):
        return given
    lengths = [n if i - len(full) in factor.along else 1 for i, n in enumerate(full)]
    return broadcast_to(reshape(given, lengths), full)


def _fused(reader: Reader, values: Values, node: Node, match: Match, asked: set[Node]) -> Node:
    """The fused node that computes `match`, recorded on the same inputs."""
    interior = inside(reader, node, match)
    for inner in interior & asked:
        raise NearMiss(f"{label(inner)} inside it is itself asked for")
    with recording(True):
        x, gamma, beta, *given = [argument(reader, values, factor, node.shape, match.axes) for factor in match[:6]]
        mean, var, eps = (a.data if isinstance(a, Tensor) else a for a in given)
        try:
            y = batch_norm(x, gamma, beta, axes=match.axes, eps=eps, mean=mean, var=var, stop=match.stop)
        except (TypeError, ValueError) as error:
            raise NearMiss(str(error)) from None
    if (y.shape, y.dtype) != (node.shape, node.dtype):
        raise Partly(f"the fused node would have shape {y.shape} and dtype {y.dtype}, not {node.shape}, {node.dtype}")
    if isinstance(x.node, Leaf) and x.node.buffer and x.node.buffer.version:
        _check_unchanged(x.node, interior, values)
    return y.node  # type: ignore[no-any-return]


def _check_unchanged(x: Leaf, interior: set[Node], values: Values) -> None:
    """`RuntimeError` where what was saved inside is not what `x`, once assigned to, gives now."""
    again = Values(())
    again.known.update(
        (parent, values[parent]) for node in interior for parent in node.inputs if parent not in interior
    )
    for node in interior & values.known.keys():
        now = again[node]
        if not np.all((now == values[node]) | (now != now)):
            raise RuntimeError(
                f"{label(x)} was overwritten by assign() after the forward pass read it: run the forward pass again"
            )


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
        made = [(node, body(node, values)) for node in graph.nodes if node.op == "batch_norm"]
    for node, last in made:
        node.become(last)
    return tuple([node for node, _ in made])


def roles(outputs: Sequence[Tensor | Node]) -> dict[Node, str]:
    """What the nodes of every spelled-out batch norm below `outputs` stand for.

    The names are "mean", "var", "1/σ", "centred" (x - mean) and "x̂" (the normalised input). A node has one where its
    value is that of the statistic or of what is computed from it, whatever the spelling; of several the first.

    >>> import autograd_bn as ag
    >>> y = ag.batch_norm(ag.tensor([[1.0, 10.0], [3.0, 30.0]]), form="composed")
    >>> list(roles([y]).values())
    ['mean', 'centred', 'var', '1/σ', 'x̂']
    """
    nodes = topological_order([output.node if isinstance(output, Tensor) else output for output in outputs])
    reader = Reader(nodes)
    found: dict[Node, str] = {}
    for node in nodes:
        try:
            match = find(reader, node)
        except NearMiss:
            continue
        if match and match.mean is None and 0 not in node.shape:
            found = _roles(reader, nodes, node, match) | found
    return found


def _roles(reader: Reader, nodes: list[Node], last: Node, match: Match) -> dict[Node, str]:
    rng = np.random.default_rng(0)
    interior = inside(reader, last, match) | {last}
    values: dict[Node, Any] = {}
    for node in [node for node in nodes if node in interior]:
        for parent in node.inputs:
            first = reader.same[parent]
            values.setdefault(first, values.get(parent, rng.uniform(0.5, 2, parent.shape)))
            values.setdefault(parent, values[first])
        args = [values[arg] if isinstance(arg, Node) else arg for arg in node.args]
        # What stands in for exact numbers are floats, which have a root each.
        exact = [isinstance(arg, np.ndarray) and arg.dtype == object for arg in args]
        values[node] = compute(node, [arg.astype(float) if e else arg for arg, e in zip(args, exact, strict=True)])
    x = values[reader.source(match.x)]
    mean, var = (f(x, axis=match.axes, keepdims=True) for f in (np.mean, np.var))
    eps = match.eps
    if isinstance(eps, Factor):
        source = reader.source(eps)
        given = values[source] if isinstance(source, Node) else source
        eps = np.asarray(given, float).reshape([n if i - x.ndim in eps.along else 1 for i, n in enumerate(x.shape)])
    scale = 1 / np.sqrt(var + float(eps) if np.ndim(eps) == 0 else var + eps)
    known = {"mean": mean, "var": var, "1/σ": scale, "centred": x - mean, "x̂": (x - mean) * scale}
    found: dict[Node, str] = {}
    for node in [node for node in nodes if node in interior]:
        for name, value in known.items():
            if np.size(values[node]) != value.size and node.shape != last.shape:
                continue
            shown = values[node] if node.shape == last.shape else np.reshape(values[node], value.shape)
            if np.allclose(np.asarray(shown, float), value, rtol=1e-9, atol=1e-12):
                if not any(found.get(parent) == name for parent in node.inputs):
                    found[node] = name
                break
    return found
