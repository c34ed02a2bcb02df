"""Pages of what was checked: a comparison side by side, a verdict and a failed gradcheck at the first wrong step."""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from ...engine import Graph, Node, Tensor, as_tensor
from ...verify.compare import Comparison, weighing
from ...verify.derivation import Derivation
from ...verify.gradcheck import GradientError
from ...verify.referee.source import unwrapped
from ...verify.referee.trace import local_values
from ...verify.referee.verdict import Verdict
from ..scene import Scene, gradients_of
from .arrays import Arrays, number
from .code import mark, pane, source_of
from .views import LABELS, Twins, View

REPORTS = (Comparison, Verdict, GradientError, Derivation)
RIGHT, BOTH = "what would be right", "forward backward"
JUDGED = "What the check found, step by step"  # a title
CLOSE = 1e4  # ulp: what two forms compute at one place
PATHS = {"mean": LABELS[True, False], "var": LABELS[False, True]}  # a referee's path on the page


def of_report(report: Any, arrays: Arrays) -> tuple[str, list[View], Twins, str]:
    """The title, the views, the twins of each view's nodes and the pane of code of what was checked or written."""
    if isinstance(report, Comparison):
        views, twins = _compared(report, arrays)
        both = zip(views, report.functions, strict=True)
        code = _code([(view, view.name, source_of(f), "forward") for view, f in both])
        for view, other in zip(views, views[::-1], strict=True):
            lines = {s["node"]: s["line"] for s in other.data["steps"] if s["pass"] == "forward" and "line" in s}
            for step in view.data["steps"]:
                twin = twins[view.name].get(str(step.get("node")))
                step |= {"also": lines[twin]} if twin in lines else {}
        return f"{' and '.join(report.names)}, side by side", views, twins, code
    if isinstance(report, Derivation):
        view = _written(report, arrays)
        return "The backward pass, written out", [view], {}, _code([(view, "written out", report.source, BOTH)])
    if isinstance(report, Verdict):
        view, solution = _judged(report, arrays), report.solution
        whole = report.forward and unwrapped(report.forward) is unwrapped(report.backward)
        source = source_of(report.forward, report.backward)
        texts = [(view, "as it was judged", source, "forward" if whole else BOTH)]
        if solution:  # a module of its own, or of what the author's forward pass keeps
            own = solution.source.startswith("import ")
            texts.append((view, RIGHT, solution.source, BOTH if own else "backward"))
        return JUDGED, [view], {}, _code(texts)
    return JUDGED, [_failed(report, arrays)], {}, ""


def _code(texts: list[tuple[View, str, str, str]]) -> str:
    """The pane of texts with their passes, and the line of each step: under `line` in a view's first, else `also`."""
    first, texts, keys = 0, [text for text in texts if text[2]], dict[View, str]()
    for view, _, source, passes in texts:
        keys[view] = "also" if view in keys else "line"
        mark(view.data, source, keys[view], first, passes)
        first += len(source.splitlines())
    return pane([text[1:3] for text in texts], RIGHT)


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


def _compared(comparison: Comparison, arrays: Arrays) -> tuple[list[View], Twins]:
    """Both functions, each node with its errors, and for each node its twin on the other side."""
    views = [
        View(name, *_weighed(comparison, f), arrays)
        for name, f in zip(comparison.names, comparison.functions, strict=True)
    ]
    twins = _twins(*views)
    wide = np.longdouble if np.finfo(np.longdouble).nmant > np.finfo(np.float64).nmant else np.float64
    if comparison.dtype != "object" and np.finfo(wide).nmant > np.finfo(comparison.dtype).nmant:
        _note_errors(comparison, views, twins, wide)
    for view in views:
        for node in reversed(view.scene.graph.nodes):
            for parent in node.inputs:
                twins.setdefault(parent, twins[node])  # what has no twin goes with what it leads to
    both = zip(views, views[::-1], strict=True)
    return views, {m.name: {str(i): o.ids[twins[node]] for node, i in m.ids.items()} for m, o in both}


def _weighed(comparison: Comparison, f: Callable[..., Any], dtype: Any = None) -> tuple[Scene, list[Any]]:
    """One of the functions at the inputs that were compared, perhaps in another dtype, and its outputs' weights."""
    inputs = {n: a.astype(dtype or a.dtype) for n, a in zip(comparison.input_names, comparison.inputs, strict=True)}
    graph, draw = _graph(f, inputs, comparison.input_names, f), weighing(comparison.seed)
    return Scene(graph), [draw(node) for node in graph.outputs]


def _note_errors(comparison: Comparison, views: list[View], twins: dict[Node, Node], wide: Any) -> None:
    """Note on each node how far it and its twin are from what they are in wide arithmetic, and from each other."""
    arrived = {"value": views[0].values | views[1].values, "grad": views[0].grads | views[1].grads}
    exact: dict[str, dict[Node, Any]] = {"value": {}, "grad": {}}
    for view, f in zip(views, comparison.functions, strict=True):
        scene, weights = _weighed(comparison, f, wide)
        if len(scene.graph) == len(view.scene.graph):
            again = dict(zip(scene.graph.nodes, view.scene.graph.nodes, strict=True))
            exact["value"] |= {again[node]: array for node, array in scene.graph.values().items()}
            exact["grad"] |= {again[node]: array for node, array in gradients_of(scene.graph, weights).items()}
    for view in views:
        for node, i in view.ids.items():
            twin, errors = twins.get(node), dict[str, Any]()
            # What has a twin in the first graph is held against that one's exact value.
            true = twin if twin and view is views[1] else node
            for what in [what for what in arrived if node in arrived[what] and true in exact[what]]:
                mine, right = arrived[what][node], exact[what][true]
                errors[what] = {"own": _error(mine, right, right)}
                if twin in arrived[what]:
                    errors[what]["other"] = _error(arrived[what][twin], right, right)
                    errors[what]["apart"] = _error(mine, arrived[what][twin], right)
            view.data["notes"][i] = {"ulp": errors}


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


def _written(derivation: Derivation, arrays: Arrays) -> View:
    """The graph of a forward pass that was written out, under random gradients of its outputs."""
    floats = {name: a for name, a in derivation.inputs.items() if np.asarray(a).dtype.kind == "f"}

    def forward(*leaves: Tensor) -> Any:
        *outputs, _ = derivation.forward(*{**derivation.inputs, **dict(zip(floats, leaves, strict=True))}.values())
        return outputs

    graph, draw = _graph(forward, floats, floats, derivation.forward), weighing(0)
    return View("graph", Scene(graph), [draw(node) for node in graph.outputs], arrays)


def _judged(verdict: Verdict, arrays: Arrays) -> View:
    """The graph of a hand-written forward pass, with what its backward pass got wrong."""
    rows = {row.name: row for row in verdict.rows if row.truth is not None}

    def forward(*leaves: Tensor) -> Any:
        result = verdict.forward(*leaves)  # type: ignore[misc]
        return result[0] if isinstance(result, tuple | list) else result

    try:
        graph = _graph(forward, verdict.inputs, [name.removeprefix("d") for name in rows], verdict.forward)
    except Exception as error:  # whatever it is, the author's function does not take tensors
        raise ValueError(
            f"this verdict has no graph to show: its forward pass does not run on tensors: {error}"
        ) from None
    start = [np.asarray(verdict.dy).astype(graph.outputs[0].dtype)]
    view = View("graph", Scene(graph), start, arrays)
    named = {f"d{node.name}": node for node in view.ids if node.name}
    for name, row in rows.items():
        node = named.get(name) or _of_gradient(view, row.truth)
        if node is None or view.ids[node] in view.data["notes"]:
            continue
        say = [finding.what for finding in verdict.diagnosis if name in finding.gradients]
        say += [str(repair) for repair in verdict.repair if name in repair.gradients]
        tables = {}
        if not row.ok and row.returned is not None:
            tables = {"returned": row.returned, "true": row.truth, "returned − true": row.returned - row.truth}
        _note(view, node, row.ok, say, tables)
        carried = {PATHS.get(p, p): number(round(c, 6) + 0.0) for p, c in verdict.coefficients.get(name, {}).items()}
        for leaf_paths in view.data["paths"] if carried and not row.ok else ():
            for way in leaf_paths["paths"] if leaf_paths["leaf"] == view.ids[node] else ():
                way["coef"] = carried.get(way["label"])
    return view


def _of_gradient(view: View, gradient: Any) -> Node | None:
    """The operation whose gradient this is."""
    for node, g in view.grads.items():
        if node.op and node.shape == np.shape(gradient) and np.allclose(g, gradient, rtol=1e-9, atol=0):
            return node
    return None


def _failed(error: GradientError, arrays: Arrays) -> View:
    """The graph of a function whose gradcheck failed, at the output element where the derivative is worst."""
    if error.f is None or error.order != 1 or not error.rows:
        raise ValueError("this error has no graph to show: only a wrong first derivative has one")
    named = dict(zip(error.names, error.inputs, strict=True))
    graph = _graph(error.f, named, [block.name for block in error.rows])
    with np.errstate(all="ignore"):
        off = [np.where(b.wrong, np.abs(b.analytic - b.measured) / b.bound, 0).max(axis=1) for b in error.rows]
    worst, ends = int(np.argmax(np.max(off, axis=0))), np.cumsum([math.prod(node.shape) for node in graph.outputs])
    parts = zip(graph.outputs, np.split(np.arange(ends[-1]) == worst, ends[:-1]), strict=True)
    start = [part.astype(node.dtype).reshape(node.shape) for node, part in parts]
    view = View("graph", Scene(graph), start, arrays)
    for block in error.rows:
        node = next(node for node in view.ids if node.op is None and node.name == block.name)
        tables = {name: getattr(block, name)[worst].reshape(block.shape) for name in ("analytic", "measured", "bound")}
        ok = not block.wrong[worst].any()
        _note(view, node, ok, [] if ok else [str(error)], tables)
    return view


def _note(view: View, node: Node, ok: bool, say: list[str], tables: Mapping[str, Any]) -> None:
    listed = [[name, view.arrays.add(array)] for name, array in tables.items()]
    view.data["notes"][view.ids[node]] = {"verdict": {"ok": ok, "say": say, "tables": listed}}
