"""What a picture shows, as plain records: every label is settled here, and nothing is known of DOT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ..engine import Graph, Leaf, Node
from ..engine.node import Array
from .expansion import Expansion

Kind = Literal["input", "parameter", "constant", "operation", "stop_gradient", "allreduce", "output"]

COMMUTATIVE = {"add", "multiply", "maximum", "minimum"}
# The shapes on the edges show these.
SHOWN_BY_SHAPES = {"keepdims", "shape", "to", "out_axis"}
SHORT = 6  # the most elements that are printed one by one


@dataclass(slots=True)
class Shape:
    """A node of the picture: its lines of text, and the cluster that it is in."""

    kind: Kind
    lines: list[str]
    cluster: int | None = None


@dataclass(slots=True)
class Arrow:
    """An edge between two shapes, given by their places in the picture; a gradient's runs backwards."""

    tail: int
    head: int
    label: str = ""
    gradient: bool = False


@dataclass(slots=True)
class Picture:
    """All that is drawn. A shape's place in `shapes` is its id; `clusters` are titles."""

    shapes: list[Shape] = field(default_factory=list)
    arrows: list[Arrow] = field(default_factory=list)
    clusters: list[str] = field(default_factory=list)


def picture(
    graph: Graph,
    *,
    expansions: Mapping[Node, Expansion],
    values: Mapping[Node, Any] | None = None,
    gradients: Mapping[Node, Any] | None = None,
) -> Picture:
    """The records of a graph, in topological order.

    A node that has an entry in `expansions` is shown as its body. `values` and `gradients`, where given, have
    an entry for each node whose value or gradient is known.
    """
    drawn = Picture()
    rows: list[tuple[Node, int | None]] = []  # each node with its cluster
    shown: dict[Node, Node] = {}  # a node that is opened -> the one that has its value
    for node in graph.nodes:
        if node.op != "batch_norm":
            rows.append((node, None))
        elif node in expansions:
            rows.extend([(inner, len(drawn.clusters)) for inner in expansions[node].nodes])
            shown[node] = expansions[node].result
            drawn.clusters.append(", ".join(_title(node)))
        else:
            rows.append((node, len(drawn.clusters)))
            drawn.clusters.append("fused")
    outputs = dict.fromkeys([shown.get(node, node) for node in graph.outputs])
    main_dtype = graph.outputs[0].dtype
    senders: dict[Node, set[Node]] = {node: set() for node in outputs}  # whom a gradient comes from
    if gradients is not None:
        for node, _ in reversed(rows):
            if node in senders:
                for parent in _receivers(node):
                    senders.setdefault(shown.get(parent, parent), set()).add(node)

    def details(node: Node) -> Iterator[str]:
        if values is not None:
            yield value_text(values[node])
        if gradients is not None:
            known = gradients.get(node)
            yield "grad not computed" if known is None else f"grad {value_text(known)}"

    def connect(tail: int, head: int, given: Any, name: str = "") -> None:
        dtype = "" if given.dtype == main_dtype else f" {given.dtype}"
        drawn.arrows.append(Arrow(tail, head, f"{name} {given.shape}{dtype}".lstrip()))

    place: dict[Node, int] = {}
    for node, cluster in rows:
        constants: dict[int, int] = {}
        for position, arg in enumerate(node.args):
            if not isinstance(arg, Node) and np.ndim(arg):
                constants[position] = len(drawn.shapes)
                drawn.shapes.append(Shape("constant", _constant_lines(node, position, values is not None)))
        lines = _title(node)
        if node.op == "batch_norm":
            lines[1:] = [_formula(node), ", ".join(lines[1:])]
        if node.primitive is None or node not in outputs:
            lines.extend(details(node))
            if node.primitive is not None and node.name:
                lines[0] = f"{node.name} = {lines[0]}"
        place[node] = here = len(drawn.shapes)
        drawn.shapes.append(Shape(_kind(node), lines, cluster))
        for position, (arg, name) in enumerate(zip(node.args, _edge_names(node), strict=True)):
            if isinstance(arg, Node):
                arg = shown.get(arg, arg)
                connect(place[arg], here, arg, "" if name == arg.name else name)
                if gradients is not None and arg in gradients and node in senders.get(arg, ()):
                    drawn.arrows.append(Arrow(here, place[arg], gradient=True))
            elif position in constants:
                connect(constants[position], here, arg)
    for node in outputs:
        here = len(drawn.shapes)
        title = node.name if node.name and node.primitive else "output"
        drawn.shapes.append(Shape("output", [title, *details(node)]))
        connect(place[node], here, node)
        if gradients is not None and node in gradients:
            drawn.arrows.append(Arrow(here, place[node], gradient=True))
    return drawn


def _kind(node: Node) -> Kind:
    if isinstance(node, Leaf):
        return "parameter" if node.requires_grad else "input"
    return node.op if node.op in ("stop_gradient", "allreduce") else "operation"  # type: ignore[return-value]


def _receivers(node: Node) -> Iterator[Node]:
    """The inputs that the derivative of a node has a gradient for."""
    for edge in node.edges:
        yield from [parent for parent in edge[0] if parent] if type(edge[0]) is tuple else (edge[0],)


def _constant_lines(node: Node, position: int, with_value: bool) -> list[str]:
    name, array = _operand_names(node)[position], node.args[position]
    value = [value_text(array)] if with_value or array.size <= SHORT else []
    return [name if len(name) > 1 else "constant", *value]


def _title(node: Node) -> list[str]:
    """The name of a leaf, or what an operation does: its name, its constants and its options."""
    if node.primitive is None:
        return [node.name or ("parameter" if node.requires_grad else "input")]
    title = node.op or ""
    options = [
        f"{name} {text}"
        for name, value in node.params.items()
        if name not in SHOWN_BY_SHAPES and (text := _option_text(value))
    ]
    operands = ["·" if isinstance(arg, Node) or np.ndim(arg) else number_text(arg) for arg in node.args]
    if node.primitive.joint:
        options += [
            f"{name} {text}"
            for name, arg, text in zip(_operand_names(node), node.args, operands, strict=True)
            if arg is not None and text != "·"
        ]
    elif operands.count("·") < len(operands):
        constants = [text for text in operands if text != "·"]
        plain = node.op in COMMUTATIVE or (operands[0] == "·" and operands.count("·") == 1)
        title += " " + ", ".join(constants if plain else operands)
    return [title, *options]


def _edge_names(node: Node) -> list[str]:
    """The operands' names where a reader needs them to tell one from another, else empty."""
    several = sum([isinstance(arg, Node) or np.ndim(arg) > 0 for arg in node.args]) > 1
    return _operand_names(node) if several and node.op not in COMMUTATIVE else [""] * len(node.args)


def _operand_names(node: Node) -> list[str]:
    """What an operation calls its operands."""
    made = node.primitive
    if made is None or made.arrays is None:
        return [str(i) for i in range(len(node.args))]
    return list(made.forward.__code__.co_varnames[: made.arrays])


def _formula(node: Node) -> str:
    _, gamma, beta, *_ = node.args
    scaled = "(x − mean) / √(var + eps)"
    return f"{'' if gamma is None else 'gamma · '}{scaled}{'' if beta is None else ' + beta'}"


# --- Text --------------------------------------------------------------------------------------------------


def _option_text(value: Any) -> str:
    """An option in short, or nothing where it is left at None or has no short form."""
    if isinstance(value, bool | int | float | str | np.dtype):
        return str(value)
    if isinstance(value, frozenset):
        return ", ".join(sorted(value))
    if isinstance(value, tuple | list):
        return ", ".join([_index_text(item) for item in value])
    return _index_text(value) if isinstance(value, slice | np.ndarray) or value is Ellipsis else ""


def _index_text(item: Any) -> str:
    """One index as it is written between brackets."""
    if isinstance(item, slice):
        start, stop, step = ["" if part is None else str(part) for part in (item.start, item.stop, item.step)]
        return f"{start}:{stop}{f':{step}' if step else ''}"
    if item is Ellipsis:
        return "..."
    if isinstance(item, np.ndarray):
        return value_text(item) if item.size <= SHORT else f"array{item.shape}"
    return str(item)


def number_text(number: Any, digits: int = 6) -> str:
    """A number in at most `digits` significant digits."""
    number = number.item() if isinstance(number, np.ndarray | np.generic) else number
    return f"{number:.{digits}g}" if isinstance(number, float) else str(number)


def value_text(value: Any) -> str:
    """A short array as it stands, of a long one its shape, mean and range."""
    array = np.asarray(value)
    if array.size <= SHORT and array.ndim <= 2:
        return _listed(array)
    if not array.size:
        return f"{array.shape}"
    numbers = array.astype(float)
    with np.errstate(all="ignore"):
        mean, low, high = numbers.mean(), numbers.min(), numbers.max()
    return f"{array.shape}\nmean {number_text(mean, 4)}\n{number_text(low, 4)} .. {number_text(high, 4)}"


def _listed(array: Array) -> str:
    if not array.ndim:
        return number_text(array, 4)
    separator = ", " if array.ndim == 1 else ",\n"
    return f"[{separator.join([_listed(row) for row in array])}]"
