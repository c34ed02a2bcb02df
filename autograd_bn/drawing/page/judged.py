"""Pages of what was judged: a comparison side by side, a verdict and a failed gradcheck at the first wrong step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...engine import Graph, Node, Tensor, as_tensor
from ...verify.compare import Comparison, weighing
from ...verify.gradcheck import GradientError
from ...verify.referee.verdict import Verdict
from .arrays import Arrays
from .trace import Trace, trace
from .views import View, view

CLOSE = 1e4  # ulp: what two forms compute at one place
LABELS = {"direct": "direct", "mean": "through the mean", "var": "through the variance"}


def compared(given: Comparison, direction: str | None, arrays: Arrays) -> tuple[list[View], dict[Node, Node]]:
    """Both functions of a comparison, each node with its errors, and the nodes of either that belong together."""
    wide = np.longdouble if np.finfo(np.longdouble).nmant > np.finfo(np.float64).nmant else np.float64
    measured = given.dtype != "object" and np.finfo(wide).nmant > np.finfo(given.dtype).nmant
    views, exact = [], []
    for name, f in zip(given.names, given.functions, strict=True):
        views.append(view(name, *_recorded(f, given, given.inputs), arrays, direction=direction))
        if measured:
            exact.append(trace(*_recorded(f, given, [array.astype(wide) for array in given.inputs])))
    first, second = (made.trace for made in views)
    pairs = _pairs(first, second)
    if measured and all(len(e.values) == len(v.ids) for e, v in zip(exact, views, strict=True)):
        # What has a partner in the first graph is held against that one's exact value.
        true = dict(zip(first.values, exact[0].values, strict=True)) | dict(
            zip(second.values, exact[1].values, strict=True)
        )
        true |= {node: true[pairs[node]] for node in second.values if node in pairs}
        for made in views:
            made.data["notes"] = {
                i: {"ulp": _ulps(node, pairs.get(node), true[node], (first, second), exact)}
                for node, i in made.ids.items()
            }
    return views, pairs


def _recorded(f: Callable[..., Any], given: Comparison, inputs: Sequence[Any]) -> tuple[Graph, dict[Node, Any]]:
    """The graph of a function, and the weights of its outputs."""
    leaves = [as_tensor(a, requires_grad=True, name=name) for a, name in zip(inputs, given.input_names, strict=True)]
    result = f(*leaves)
    outputs = list(result) if isinstance(result, tuple | list) else [result]
    draw = weighing(given.seed)
    weights = [(output, draw(output)) for output in outputs]
    return Graph(*outputs), {output.node: weight for output, weight in weights if output.requires_grad}


def _pairs(first: Trace, second: Trace) -> dict[Node, Node]:
    """The nodes that belong together, either way: inputs, outputs, and what has the same operation and value."""
    free = dict.fromkeys(first.graph.nodes)
    pairs: dict[Node, Node] = {}

    def join(node: Node, other: Node) -> None:
        if node in free:
            del free[node]
            pairs.update({node: other, other: node})

    for node, other in zip(first.graph.outputs, second.graph.outputs, strict=True):
        join(node, other)
    for other in second.graph.nodes:
        for node in free:
            if other not in pairs and (node.op, node.shape) == (other.op, other.shape):
                a, b = first.values[node], second.values[other]
                error = _error(a, b, b)
                if (other.op is None and node.name == other.name) or (error is not None and error <= CLOSE):
                    join(node, other)
                    break
    return pairs


def _ulps(node: Node, other: Node | None, true: Node, runs: Sequence[Trace], exact: Sequence[Trace]) -> dict[str, Any]:
    """The largest errors of a node's value and gradient, its partner's, and how far they are apart, in ulp."""
    found = {}
    for what, part in (("value", "values"), ("grad", "grads")):
        known, right = ({k: v for run in group for k, v in getattr(run, part).items()} for group in (runs, exact))
        if node in known and true in right:
            found[what] = {"own": _error(known[node], right[true], right[true])}
            if other in known:
                found[what] |= {
                    "other": _error(known[other], right[true], right[true]),
                    "apart": _error(known[node], known[other], right[true]),
                }
    return found


def _error(a: Any, b: Any, scale: Any) -> float | None:
    """The largest difference of two arrays, in units in the last place of the largest entry of `scale`."""
    dtype = np.asarray(a).dtype
    a, b, scale = (np.asarray(array, np.longdouble) for array in (a, b, scale))
    with np.errstate(all="ignore"):
        apart = np.max(np.abs(a - b), initial=0, where=a != b)
        unit = np.spacing(np.max(np.abs(scale), initial=0).astype(dtype))
    return float(apart / unit) if np.isfinite(apart) and np.isfinite(unit) else None


def judged(given: Verdict, direction: str | None, arrays: Arrays) -> View:
    """The graph of a hand-written forward pass, with what its backward pass got wrong."""
    rows = {row.name: row for row in given.rows if row.truth is not None}
    try:
        leaves = [
            as_tensor(np.asarray(value), requires_grad=f"d{name}" in rows, name=name)
            for name, value in given.inputs.items()
        ]
        result = given.forward(*leaves)  # type: ignore[misc]
        y = result[0] if isinstance(result, tuple | list) else result
        graph, seeds = Graph(y), {y.node: np.asarray(given.dy).astype(y.dtype)}
    except Exception as error:  # whatever it is, the author's function does not take tensors
        raise ValueError(
            f"this verdict has no graph to show: its forward pass does not run on tensors: {error}"
        ) from None
    made = view("graph", graph, seeds, arrays, direction=direction)
    names = {f"d{node.name}": node for node in made.ids if node.name}
    for name, row in rows.items():
        node = names.get(name) or _of_gradient(made.trace, row.truth)
        if node is None or made.ids[node] in made.data["notes"]:
            continue
        say = [finding.what for finding in given.diagnosis if name in finding.gradients]
        say += [str(repair) for repair in given.repair if name in repair.gradients]
        tables = {}
        if not row.ok and row.returned is not None:
            tables = {"returned": row.returned, "true": row.truth, "returned − true": row.returned - row.truth}
        _note(made, node, row.ok, say, tables, arrays)
        coefficients = {LABELS[path]: round(c, 6) + 0.0 for path, c in given.coefficients.get(name, {}).items()}
        for way in [way for p in made.data["paths"] if p["leaf"] == made.ids[node] for way in p["paths"]]:
            if coefficients and not row.ok:
                way["coef"] = coefficients.get(way["label"])
    return made


def _of_gradient(run: Trace, gradient: Any) -> Node | None:
    """The operation whose gradient this is."""
    for node, g in run.grads.items():
        if node.op and node.shape == np.shape(gradient) and np.allclose(g, gradient, rtol=1e-9, atol=0):
            return node
    return None


def failed(given: GradientError, direction: str | None, arrays: Arrays) -> View:
    """The graph of a function whose gradcheck failed, at the output element where the derivative is worst."""
    if given.f is None or given.order != 1 or not given.rows:
        raise ValueError("this error has no graph to show: only a wrong first derivative has one")
    checked = {block.name for block in given.rows}
    leaves = [
        value if isinstance(value, Tensor) else as_tensor(value, requires_grad=name in checked, name=name)
        for name, value in zip(given.names, given.inputs, strict=True)
    ]
    result = given.f(*leaves)
    outputs = list(result) if isinstance(result, tuple | list) else [result]
    with np.errstate(all="ignore"):
        off = [np.where(b.wrong, np.abs(b.analytic - b.measured) / b.bound, 0).max(axis=1) for b in given.rows]
    worst = int(np.argmax(np.max(off, axis=0)))
    seeds, start = {}, 0
    for output in outputs:
        seed = np.arange(start, start + output.size) == worst
        start += output.size
        if seed.any():
            seeds[output.node] = seed.astype(output.dtype).reshape(output.shape)
    made = view("graph", Graph(*outputs), seeds, arrays, direction=direction)
    for block in given.rows:
        node = next(node for node in made.ids if node.op is None and node.name == block.name)
        tables = {name: getattr(block, name)[worst].reshape(block.shape) for name in ("analytic", "measured", "bound")}
        _note(
            made, node, not block.wrong[worst].any(), [str(given)] if block.wrong[worst].any() else [], tables, arrays
        )
    return made


def _note(made: View, node: Node, ok: bool, say: list[str], tables: Mapping[str, Any], arrays: Arrays) -> None:
    listed = [[name, arrays.add(array)] for name, array in tables.items()]
    made.data["notes"][made.ids[node]] = {"verdict": {"ok": ok, "say": say, "tables": listed}}
