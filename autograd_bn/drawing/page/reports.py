"""Pages of what was checked: a comparison side by side, a verdict and a failed gradcheck at the first wrong step."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from ...engine import Graph, Node, Tensor, as_tensor
from ...verify.compare import Comparison, weighing
from ...verify.derivation import Derivation
from ...verify.gradcheck import GradientError
from ...verify.referee.trace import local_values
from ...verify.referee.verdict import Verdict
from ..scene import Scene, flow
from .arrays import Arrays
from .code import mark, pane, source_of
from .views import LABELS, Twins, View

REPORTS = (Comparison, Verdict, GradientError, Derivation)
CLOSE = 1e4  # ulp: what two forms compute at one place
PATHS = {"mean": LABELS[True, False], "var": LABELS[False, True]}  # a referee's path on the page


def of_report(given: Any, arrays: Arrays) -> tuple[str, list[View], Twins, str]:
    """The title, the views, the twins of each view's nodes and the pane of code of what was checked or written."""
    if isinstance(given, Comparison):
        return f"{' and '.join(given.names)}, side by side", *_compared(given, arrays), ""
    if isinstance(given, Derivation):
        made = _written(given, arrays)
        return "The backward pass, written out", [made], {}, _code(made, [("written out", given.source)])
    if isinstance(given, Verdict):
        made, texts = (
            _judged(given, arrays),
            [("as it was judged", source_of(given.forward, given.backward))],
        )
        texts += [("what would be right", given.solution.source)] if given.solution else []
        return "What the check found, step by step", [made], {}, _code(made, texts)
    return "What the check found, step by step", [_failed(given, arrays)], {}, ""


def _code(made: View, texts: list[tuple[str, str]]) -> str:
    """The pane of these texts, with the line of each step: under `line` in the first, under `also` in the second."""
    first, texts = 0, [(title, source) for title, source in texts if source]
    for key, (_, source) in zip(("line", "also"), texts, strict=False):
        mark(made.data, source, key, first)
        first += len(source.splitlines())
    return pane(texts)


def _graph(f: Callable[..., Any], inputs: Mapping[str, Any], checked: Collection[str], author: Any = None) -> Graph:
    """The graph of a function of arrays, those that are `checked` with a gradient, in the names of its author's."""
    leaves = [as_tensor(np.asarray(a), requires_grad=name in checked, name=name) for name, a in inputs.items()]
    with local_values(author or f) as seen:
        result = f(*leaves)
    for name, value in seen.items() if author else ():
        if isinstance(value, Tensor) and value.node.op and value.name is None:
            value.name = name
    return Graph(*(result if isinstance(result, tuple | list) else [result]))


# --- A comparison ---


def _compared(given: Comparison, arrays: Arrays) -> tuple[list[View], Twins]:
    """Both functions, each node with its errors, and for each node its twin on the other side."""

    def weighed(f: Callable[..., Any], dtype: Any = None) -> tuple[Scene, list[Any]]:
        inputs = {n: a.astype(dtype or a.dtype) for n, a in zip(given.input_names, given.inputs, strict=True)}
        graph, draw = _graph(f, inputs, given.input_names), weighing(given.seed)
        return Scene(graph), [draw(node) for node in graph.outputs]

    views = [View(name, *weighed(f), arrays) for name, f in zip(given.names, given.functions, strict=True)]
    twins = _twins(*views)
    wide = np.longdouble if np.finfo(np.longdouble).nmant > np.finfo(np.float64).nmant else np.float64
    if given.dtype != "object" and np.finfo(wide).nmant > np.finfo(given.dtype).nmant:
        found = {"value": views[0].values | views[1].values, "grad": views[0].grads | views[1].grads}
        exact: dict[str, dict[Node, Any]] = {"value": {}, "grad": {}}
        for made, f in zip(views, given.functions, strict=True):
            scene, weights = weighed(f, wide)
            if len(scene.graph) == len(made.scene.graph):
                again = dict(zip(scene.graph.nodes, made.scene.graph.nodes, strict=True))
                exact["value"] |= {again[node]: array for node, array in scene.graph.values().items()}
                exact["grad"] |= {again[node]: array for node, array in flow(scene.graph, weights).items()}
        for made in views:
            for node, i in made.ids.items():
                twin, errors = twins.get(node), dict[str, Any]()
                # What has a twin in the first graph is held against that one's exact value.
                true = twin if twin and made is views[1] else node
                for what in [what for what in found if node in found[what] and true in exact[what]]:
                    mine, right = found[what][node], exact[what][true]
                    errors[what] = {"own": _error(mine, right, right)}
                    if twin in found[what]:
                        errors[what]["other"] = _error(found[what][twin], right, right)
                        errors[what]["apart"] = _error(mine, found[what][twin], right)
                made.data["notes"][i] = {"ulp": errors}
    for made in views:
        for node in reversed(made.scene.graph.nodes):
            for parent in node.inputs:
                twins.setdefault(parent, twins[node])  # what has no twin goes with what it leads to
    both = zip(views, views[::-1], strict=True)
    return views, {m.name: {str(i): o.ids[twins[node]] for node, i in m.ids.items()} for m, o in both}


def _twins(first: View, second: View) -> dict[Node, Node]:
    """The nodes that belong together, either way: inputs, outputs, and what has the same operation and value."""
    twins: dict[Node, Node] = {}
    for node, other in zip(first.scene.graph.outputs, second.scene.graph.outputs, strict=True):
        if not {node, other} & twins.keys():
            twins |= {node: other, other: node}
    for other in [node for node in second.ids if node not in twins]:
        for node in first.ids:
            if node not in twins and (node.primitive, node.shape) == (other.primitive, other.shape):
                error = _error(first.values[node], second.values[other], second.values[other])
                if (other.op is None and node.name == other.name) or (error is not None and error <= CLOSE):
                    twins |= {node: other, other: node}
                    break
    return twins


def _error(a: Any, b: Any, scale: Any) -> float | None:
    """The largest difference of two arrays, in units in the last place of the largest entry of `scale`."""
    dtype = np.asarray(a).dtype
    a, b, scale = (np.asarray(array, np.longdouble) for array in (a, b, scale))
    with np.errstate(all="ignore"):
        apart = np.max(np.abs(a - b), initial=0, where=a != b)
        unit = np.spacing(np.max(np.abs(scale), initial=0).astype(dtype))
    return float(apart / unit) if np.isfinite(apart) and np.isfinite(unit) else None


# --- A verdict, a failed gradcheck and a written backward pass ---


def _written(given: Derivation, arrays: Arrays) -> View:
    """The graph of a forward pass that was written out, under random gradients of its outputs."""
    floats = {name: a for name, a in given.inputs.items() if np.asarray(a).dtype.kind == "f"}

    def forward(*leaves: Tensor) -> Any:
        *outputs, _ = given.forward(*{**given.inputs, **dict(zip(floats, leaves, strict=True))}.values())
        return outputs

    graph, draw = _graph(forward, floats, floats, given.forward), weighing(0)
    return View("graph", Scene(graph), [draw(node) for node in graph.outputs], arrays)


def _judged(given: Verdict, arrays: Arrays) -> View:
    """The graph of a hand-written forward pass, with what its backward pass got wrong."""
    rows = {row.name: row for row in given.rows if row.truth is not None}

    def forward(*leaves: Tensor) -> Any:
        result = given.forward(*leaves)  # type: ignore[misc]
        return result[0] if isinstance(result, tuple | list) else result

    try:
        graph = _graph(forward, given.inputs, [name.removeprefix("d") for name in rows], given.forward)
    except Exception as error:  # whatever it is, the author's function does not take tensors
        raise ValueError(
            f"this verdict has no graph to show: its forward pass does not run on tensors: {error}"
        ) from None
    start = [np.asarray(given.dy).astype(graph.outputs[0].dtype)]
    made = View("graph", Scene(graph), start, arrays)
    named = {f"d{node.name}": node for node in made.ids if node.name}
    for name, row in rows.items():
        node = named.get(name) or _of_gradient(made, row.truth)
        if node is None or made.ids[node] in made.data["notes"]:
            continue
        say = [finding.what for finding in given.diagnosis if name in finding.gradients]
        say += [str(repair) for repair in given.repair if name in repair.gradients]
        tables = {}
        if not row.ok and row.returned is not None:
            tables = {"returned": row.returned, "true": row.truth, "returned − true": row.returned - row.truth}
        _note(made, node, row.ok, say, tables, arrays)
        carried = {PATHS.get(path, path): round(c, 6) + 0.0 for path, c in given.coefficients.get(name, {}).items()}
        for found in made.data["paths"] if carried and not row.ok else ():
            for way in found["paths"] if found["leaf"] == made.ids[node] else ():
                way["coef"] = carried.get(way["label"])
    return made


def _of_gradient(made: View, gradient: Any) -> Node | None:
    """The operation whose gradient this is."""
    for node, g in made.grads.items():
        if node.op and node.shape == np.shape(gradient) and np.allclose(g, gradient, rtol=1e-9, atol=0):
            return node
    return None


def _failed(given: GradientError, arrays: Arrays) -> View:
    """The graph of a function whose gradcheck failed, at the output element where the derivative is worst."""
    if given.f is None or given.order != 1 or not given.rows:
        raise ValueError("this error has no graph to show: only a wrong first derivative has one")
    named = dict(zip(given.names, given.inputs, strict=True))
    graph = _graph(given.f, named, [block.name for block in given.rows])
    with np.errstate(all="ignore"):
        off = [np.where(b.wrong, np.abs(b.analytic - b.measured) / b.bound, 0).max(axis=1) for b in given.rows]
    worst, ends = int(np.argmax(np.max(off, axis=0))), np.cumsum([math.prod(node.shape) for node in graph.outputs])
    parts = zip(graph.outputs, np.split(np.arange(ends[-1]) == worst, ends[:-1]), strict=True)
    start = [part.astype(node.dtype).reshape(node.shape) for node, part in parts]
    made = View("graph", Scene(graph), start, arrays)
    for block in given.rows:
        node = next(node for node in made.ids if node.op is None and node.name == block.name)
        tables = {name: getattr(block, name)[worst].reshape(block.shape) for name in ("analytic", "measured", "bound")}
        ok = not block.wrong[worst].any()
        _note(made, node, ok, [] if ok else [str(given)], tables, arrays)
    return made


def _note(made: View, node: Node, ok: bool, say: list[str], tables: Mapping[str, Any], arrays: Arrays) -> None:
    listed = [[name, arrays.add(array)] for name, array in tables.items()]
    made.data["notes"][made.ids[node]] = {"verdict": {"ok": ok, "say": say, "tables": listed}}
