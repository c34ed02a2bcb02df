"""How an operation is declared: its forward function, and for each input the rule of its derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from operator import itemgetter
from threading import get_ident
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy import ndarray  # by itself, for speed

from .node import Buffer, Edge, Leaf, Node, paused
from .tensor import Tensor, exact

P = ParamSpec("P")
R = TypeVar("R")
Rule = Callable[..., Any]
Pick = Callable[[tuple[Any, ...]], tuple[Any, ...]]

# What a rule reads is picked from one tuple: the arrays, the metadata, and these at its end.
_TAIL = ("position", "shape", "shapes", "kept", "out")
OUT = -1
_OBJECT = np.dtype(object)
_NOTHING: dict[str, Any] = {}
_new = object.__new__
# Operands that a forward function takes as they are; a Python scalar stays one, and so stays weak.
_PLAIN = frozenset([ndarray, float, int, bool, complex, type(None), *np.sctypeDict.values()])
registry: dict[str, Primitive] = {}


class Primitive:
    """All that the engine knows of an operation; `primitive` makes and registers one."""

    __slots__ = (
        "arrays",
        "defaults",
        "forward",
        "joint",
        "keywords",
        "many",
        "name",
        "picks",
        "reads",
        "rules",
        "shapes",
        "tail",
        "view",
    )

    def __init__(self, name: str, forward: Callable[..., Any], rules: Sequence[Rule | None], joint: bool, view: bool):
        code = forward.__code__
        arrays = code.co_varnames[: code.co_posonlyargcount]
        self.name = name
        self.forward = forward
        self.rules = tuple(rules)
        self.joint = joint
        self.view = view
        self.arrays = None if code.co_flags & 0x04 else len(arrays)  # None: any number of arrays
        self.keywords = code.co_varnames[len(arrays) : code.co_argcount + code.co_kwonlyargcount]
        defaults = forward.__defaults__ or ()
        self.defaults = dict(zip(self.keywords[len(self.keywords) - len(defaults) :], defaults, strict=True))
        # What a rule reads stands in its parameter names, and becomes a place in the tuple that is picked from:
        # from its start for the arrays, from its end for all else. Only arrays and the result cost memory.
        ending = (*self.keywords, *_TAIL)
        places = {name: i - len(ending) for i, name in enumerate(ending)} | {name: i for i, name in enumerate(arrays)}
        self.reads = [
            tuple([places[name] for name in rule.__code__.co_varnames[1 + joint : rule.__code__.co_argcount]])
            if rule
            else ()
            for rule in rules
        ]
        self.picks = [_pick(read) for read in self.reads]
        self.many = len(self.rules) > 1
        self.tail = any(place < OUT for read in self.reads for place in read)
        self.shapes = any(_TAIL[place] == "shapes" for read in self.reads for place in read if -len(_TAIL) <= place < 0)

    def position_reads(self, position: int) -> tuple[int, ...]:
        """What the rule for the input at `position` reads: numbers of arrays, `OUT`, or less for metadata."""
        return self.reads[position if self.many else 0] if self.reads else ()

    def bind(self, args: tuple[Any, ...], params: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Split a call into its arrays and its metadata, in the declared order and with every default filled in."""
        count = len(args) if self.arrays is None else self.arrays
        arrays, extra = args[:count], args[count:]
        if len(arrays) < count or len(extra) > len(self.keywords):
            raise TypeError(f"{self.name}() takes {self.arrays} arrays and options {self.keywords}, got {len(args)}")
        named = dict(zip(self.keywords, extra, strict=False))
        if len(named) == len(self.keywords) and not params:
            return arrays, named
        for name in params:
            if name in named or name not in self.keywords:
                known = "takes it once" if name in named else f"knows only {self.keywords}"
                raise TypeError(f"{self.name}() got the option {name!r}, but {known}")
        given = {**self.defaults, **named, **params}
        try:
            return arrays, {name: given[name] for name in self.keywords}
        except KeyError as error:
            raise TypeError(f"{self.name}() needs {error}") from None


def _pick(places: tuple[int, ...]) -> Pick:
    if len(places) > 1:
        return itemgetter(*places)
    return itemgetter(slice(places[0], places[0] + 1 or None) if places else slice(0))


def primitive(
    *rules: Rule | None, joint: bool = False, view: bool = False
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declare an operation: decorate its forward function on arrays with the rules of its derivative.

    The function's positional-only parameters are its arrays, all others are metadata. There is one rule an
    array: it takes the gradient of the result and returns the gradient of that input, written with NumPy
    operators and the engine's functions, so that it runs on arrays, on tensors and on exact rationals. Its
    further parameters say what else it reads, by name: an array of the forward function, `out`, any of the
    metadata, `shape` (of its own input), `shapes` (of all), `position` (of its own input). The engine sums a
    gradient over broadcast axes and casts it to its input's dtype by itself.

    `None` in the place of a rule: asking for that derivative raises. No rule at all: the operation is a
    constant to the derivative. A single rule serves any number of arrays. `joint`: a single rule computes
    the gradients of all inputs at once: it takes `g` and `wanted`, a flag for each input, and gives a tuple
    with None where none is wanted. The forward function then returns a pair, its result and what it keeps
    for the rule, which reads that as `kept`; a call returns the pair too. `view`: the result shares its input's memory.

    >>> from autograd_bn.engine import primitive
    >>> @primitive(lambda g, x: g * 3 * x * x)
    ... def cube(x, /):
    ...     return x * x * x
    """

    def declare(forward: Callable[P, R]) -> Callable[P, R]:
        name = forward.__name__.strip("_")
        made = registry[name] = Primitive(name, forward, rules, joint, view)
        simple = None if made.keywords else made.arrays

        @wraps(forward)
        def apply(*args: Any, **params: Any) -> Any:
            if params or len(args) != simple:
                args, params = made.bind(args, params)
            for arg in args:
                if type(arg) is Tensor:
                    return record(made, args, params)
            plain = [arg if type(arg) in _PLAIN else np.asarray(arg) for arg in args]
            if plain and isinstance(plain[0], (int, float, complex)):
                plain[0] = np.asarray(plain[0])
            out = forward(*plain, **params)  # type: ignore[arg-type]
            return exact(out, name) if getattr(out, "dtype", None) is _OBJECT else out

        if simple == len(rules) == 2 and not (joint or view or made.tail or None in rules):
            return wraps(forward)(_quick(made, apply))
        return apply

    return declare


def _quick(made: Primitive, general: Callable[..., Any]) -> Callable[..., Any]:
    """What `record` does, unrolled for two operands of numbers, at a third of its cost."""
    forward, (rule_a, rule_b), (pick_a, pick_b) = made.forward, made.rules, made.picks

    def apply(a: Any, b: Any) -> Any:
        wants_a = wants_b = guarded = False
        x, y = source_a, source_b = a, b
        if type(a) is Tensor:
            source_a, x = a.node, a._value
            if type(x) is ndarray and not source_a.shape:
                x = x[()]  # a scalar is much quicker than an array of it
            wants_a, guarded = source_a.requires_grad, source_a.buffer is not None
        elif type(a) not in _PLAIN:
            return general(a, b)
        if type(b) is Tensor:
            source_b, y = b.node, b._value
            if type(y) is ndarray and not source_b.shape:
                y = y[()]
            wants_b, guarded = source_b.requires_grad, guarded or source_b.buffer is not None
        elif type(b) not in _PLAIN or type(a) is not Tensor:
            return general(a, b)
        elif type(b) is ndarray and not b.ndim:
            y = b[()]
        if paused and get_ident() in paused:
            return general(a, b)
        out = forward(x, y)
        try:
            dtype = out.dtype
        except AttributeError:
            dtype = _OBJECT
        if dtype is _OBJECT:
            return general(a, b)
        found = (x, y, out)
        edges: tuple[Edge, ...]
        if wants_a:
            edge_a = (source_a, 0, rule_a, pick_a(found))
            edges = (edge_a, (source_b, 1, rule_b, pick_b(found))) if wants_b else (edge_a,)
        else:
            edges = ((source_b, 1, rule_b, pick_b(found)),) if wants_b else ()
        sources = (source_a, source_b)
        guards = _guards(made, sources, edges) if guarded and edges else ()
        return _recorded(out, dtype, made, sources, _NOTHING, edges, guards, None)

    return apply


def record(made: Primitive, args: tuple[Any, ...], params: dict[str, Any]) -> Any:
    """Compute an operation on `args`, of which one at least is a tensor, and record it as a node."""
    nodes: list[Any] = []
    values: list[Any] = []
    wanted: list[int] = []
    guarded = False
    for position, arg in enumerate(args):
        if type(arg) is Tensor:
            node = arg.node
            nodes.append(node)
            values.append(arg._value)
            if node.requires_grad:
                wanted.append(position)
            if node.buffer is not None:
                guarded = True
        else:
            if type(arg) not in _PLAIN:
                arg = np.asarray(arg)
            nodes.append(arg)
            values.append(arg)
    out = made.forward(*values, **params)
    kept = None
    if made.joint:
        out, kept = out
    try:
        dtype = out.dtype
    except AttributeError:  # NumPy hands out the bare element of a 0-d object array
        dtype = _OBJECT
    if dtype is _OBJECT:
        out = exact(out, made.name)
    buffer = nodes[0].buffer if made.view and guarded and np.may_share_memory(out, values[0]) else None

    if paused and get_ident() in paused:
        out = np.asarray(out)
        if made.view and buffer is None and out.base is not None:
            out.flags.writeable = False  # the memory of a computed tensor, which a derivative may read
        result = Tensor(out, Leaf(out, buffer=buffer))
        return (result, kept) if made.joint else result

    edges: list[Edge] = []
    guards: tuple[Any, ...] = ()
    if wanted and made.rules:
        found = (*values, out)
        shapes = tuple([np.shape(value) for value in values]) if made.shapes else None
        for position in wanted:
            place = position if made.many else 0
            rule = made.rules[place]
            if rule is None:
                raise TypeError(f"{made.name} has no derivative with respect to its argument {position + 1}")
            if made.tail:
                found = (*values, *params.values(), position, nodes[position].shape, shapes, kept, out)
            edges.append((nodes[position], position, rule, made.picks[place](found)))
        if made.joint:
            parents = tuple([node if i in wanted else None for i, node in enumerate(nodes)])
            edges = [(parents, *edges[0][1:])]
        if guarded:
            guards = _guards(made, nodes, edges)
    result = _recorded(out, dtype, made, tuple(nodes), params, tuple(edges), guards, buffer)
    return (result, kept) if made.joint else result


def _recorded(
    out: Any,
    dtype: Any,
    made: Primitive,
    args: tuple[Any, ...],
    params: dict[str, Any],
    edges: tuple[Edge, ...],
    guards: tuple[tuple[Buffer, int], ...],
    buffer: Buffer | None,
) -> Tensor:
    """A result at its new node, both filled in by hand: two calls of `__init__` cost as much as a multiplication."""
    node = _new(Node)
    node.primitive = made
    node.args = args
    node.params = params
    node.shape = out.shape
    node.dtype = dtype
    node.edges = edges
    node.guards = guards
    node.buffer = buffer
    node.requires_grad = edges != ()
    node.name = None
    tensor = _new(Tensor)
    tensor._value = out
    tensor.node = node
    return tensor


def _guards(made: Primitive, nodes: Sequence[Any], edges: Sequence[Edge]) -> tuple[tuple[Buffer, int], ...]:
    """The leaves' memory that the edges read, each with the version it has now."""
    guards = []
    for edge in edges:
        for place in made.reads[edge[1] if made.many else 0]:
            if place >= 0 and isinstance(nodes[place], Node):
                buffer = nodes[place].buffer
                if buffer is not None:
                    guards.append((buffer, buffer.version))
    return tuple(guards)
