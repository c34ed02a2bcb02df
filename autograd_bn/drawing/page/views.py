"""A view of a page: one graph with its nodes, edges, steps, paths and picture."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...engine import Graph, Node
from .. import labels
from ..modules import Calls
from ..records import Drawer
from . import formulas
from .arrays import Arrays, short
from .paths import paths
from .svg import draw_view
from .trace import Trace, trace

MOST = 1500  # nodes: a page with more is none that a reader can walk through
BRIEF = 200  # nodes, above which arrays are summaries


@dataclass(slots=True)
class View:
    """What a page holds of one graph: the JSON, the picture, and from which nodes they were made."""

    data: dict[str, Any]
    svg: str
    trace: Trace
    ids: dict[Node, int]


def view(
    name: str,
    graph: Graph,
    seeds: Mapping[Node, Any],
    arrays: Arrays,
    opened: Container[Node] = (),
    values: bool = True,
    direction: str | None = None,
    why: str = "",
    only: Container[Node] | None = None,
    calls: Calls | None = None,
) -> View:
    """A view of a graph, or of its nodes in `only`, with the fused nodes in `opened` open.

    `why` says why there is no backward pass; `calls` are those of a model's modules.
    """
    run = trace(graph, seeds, opened)
    frames = _again(calls or Calls(), run)
    shown = run.graph.nodes if only is None else [node for node in run.graph.nodes if run.origins[node] in only]
    if len(shown) > MOST:
        raise ValueError(
            f"the graph has {len(shown)} nodes to show, and a page shows up to {MOST}: "
            "cut a neighbourhood out with around=tensor, hops=number"
        )
    arrays.brief |= len(shown) > BRIEF
    ids = {node: i for i, node in enumerate(shown)}
    drawer = Drawer(run.graph, only=None if only is None else set(shown), calls=frames)
    names, drawn = formulas.symbols(run.graph, drawer.roles), drawer.drawn
    drawn.arrows = [arrow for arrow in drawn.arrows if not arrow.gradient]
    kinds: dict[Node, str] = {}
    for shape in drawn.shapes:
        if node := shape.node:
            kinds.setdefault(node, shape.kind)
            if shape.kind == "output" or node not in run.graph.outputs or not node.op:
                shape.value = short(run.values[node]) if values else ""
                shape.gradient = f"∂ {short(run.grads[node])}" if node in run.grads else ""
            title, symbol = labels.title(node)[0], names[node]
            if node.op and not node.name and shape.kind == "operation" and node.op in shape.lines[0]:
                rest = title.removeprefix(node.op)
                shape.lines[0] = symbol + rest if symbol.startswith(node.op) else f"{symbol} = {title}"
    nodes = [
        {
            "id": i,
            "kind": kinds[node],
            "op": node.op,
            "symbol": names[node],
            "title": " ".join(labels.title(node)),
            "formula": formulas.formula(node, names),
            "shape": list(node.shape),
            "dtype": str(node.dtype),
            "in": [ids[parent] for parent in node.inputs if parent in ids],
            "value": arrays.add(run.values[node]) if values else None,
            "grad": arrays.add(run.grads[node]) if node in run.grads else None,
        }
        for node, i in ids.items()
    ]
    edges = [
        [ids[arg], i, position]
        for node, i in ids.items()
        for position, arg in enumerate(node.args)
        if isinstance(arg, Node) and arg in ids
    ]
    data = {
        "name": name,
        "nodes": nodes,
        "edges": edges,
        "steps": list(_steps(run, ids, names, arrays, why)),
        "paths": paths(run, ids, names, drawer.roles, arrays),
        "notes": {},
    }
    return View(data, draw_view(drawn, name, ids, direction or "TB"), run, ids)


def _again(calls: Calls, run: Trace) -> Calls:
    """The calls of a model's modules on the copy of their graph, whose parameters take their full names."""
    made = {}
    for call in calls.found:
        own = set(call.nodes)
        nodes = [node for node in run.graph.nodes if run.origins[node] in own]
        if nodes:
            made[call] = replace(call, nodes=nodes, result=run.twins.get(call.result, nodes[-1]))
    for call in made.values():
        call.parent = made.get(call.parent) if call.parent else None
    names = {run.twins[node]: name for node, name in calls.names.items() if node in run.twins}
    for node, name in names.items():
        node.name = name
    return Calls(list(made.values()), names)


def _steps(
    run: Trace, ids: Mapping[Node, int], names: Mapping[Node, str], arrays: Arrays, why: str
) -> Iterator[dict[str, Any]]:
    say = f"The leaves are given, and nothing is computed yet.{f' {why}' if why else ''}"
    yield {"pass": "start", "node": None, "say": say, "parts": []}
    for node, i in ids.items():
        if node.op:
            text = formulas.formula(node, names)
            yield {"pass": "forward", "node": i, "say": f"Forward: {names[node]} = {text}", "parts": []}
    expected = {part.to: part.n for visit in run.visits for part in visit.parts}
    for visit in run.visits:
        seen = [part for part in visit.parts if part.to in ids]
        if not seen and visit.node not in ids:
            continue
        seed = visit.parts[0].position is None
        read = {} if seed else formulas.rules(visit.node, visit.g, names)
        parts, said = [], []
        for part in seen:
            rule, local = (None, None) if part.position is None else read[part.position]
            share = f", share {part.n} of {expected[part.to]}" if expected[part.to] > 1 else ""
            said.append(f"{names[part.to]} gets {rule}{share}")
            fits = np.shape(part.raw) == part.to.shape
            parts.append(
                {
                    "to": ids[part.to],
                    "pos": part.position,
                    "rule": rule,
                    "n": part.n,
                    "of": expected[part.to],
                    "local": None if local is None else arrays.add(local),
                    "raw": None if fits else arrays.add(part.raw),
                    "part": arrays.add(part.part),
                    "total": arrays.add(part.total),
                }
            )
        name = names[visit.node]
        given = "1, its derivative with respect to itself" if not visit.node.shape else "given"
        say = f"Backward through {name}: {'; '.join(said)}"
        yield {
            "pass": "seed" if seed else "backward",
            "node": ids.get(visit.node),
            "say": f"Backward begins: the gradient of {name} is {given}." if seed else say,
            "parts": parts,
        }
