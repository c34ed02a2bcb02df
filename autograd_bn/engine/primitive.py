"""How an operation is declared: its forward function, and for each input the rule of its derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np

from .node import Buffer, Edge, Leaf, Node, mode
from .tensor import Tensor

P = ParamSpec("P")
R = TypeVar("R")
Rule = Callable[..., Any]

OUT = -1
_PLAIN = (np.ndarray, np.generic, int, float, complex, type(None))
registry: dict[str, Primitive] = {}


class Primitive:
    """All that the engine knows of an operation; `primitive` makes and registers one."""

    __slots__ = ("arrays", "defaults", "forward", "joint", "keywords", "name", "reads", "rules", "view")

    def __init__(self, name: str, forward: Callable[..., Any], rules: Sequence[Rule | None], joint: bool, view: bool):
        code = forward.__code__
        arrays = code.co_varnames[: code.co_posonlyargcount]
        names = code.co_varnames[len(arrays) : code.co_argcount + code.co_kwonlyargcount]
        defaults = forward.__defaults__ or ()
        self.name = name
        self.forward = forward
        self.rules = tuple(rules)
        self.joint = joint
        self.view = view
        self.arrays = None if code.co_flags & 0x04 else len(arrays)  # None: any number of them
        self.keywords = names
        self.defaults = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))
        # What a rule reads stands in its parameter names. An index is that input's value, OUT the result;
        # other names are metadata and cost no memory.
        places: dict[str, int | str] = {"out": OUT, **{array: i for i, array in enumerate(arrays)}}
        self.reads = tuple(
            tuple([places.get(n, n) for n in rule.__code__.co_varnames[1 + joint : rule.__code__.co_argcount]])
            if rule
            else ()
            for rule in rules
        )

    def bind(self, args: tuple[Any, ...], params: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Split a call into its arrays and its metadata, with every default filled in."""
        extra = args[self.arrays :] if self.arrays is not None else ()
        if len(extra) > len(self.keywords):
            raise TypeError(
                f"{self.name}() takes {self.arrays} arrays and {len(self.keywords)} options, got {len(args)}"
            )
        named = dict(zip(self.keywords, extra, strict=False))
        for name in named.keys() & params.keys():
            raise TypeError(f"{self.name}() got multiple values for argument {name!r}")
        return args[: self.arrays], {**self.defaults, **named, **params}

    def position_reads(self, position: int) -> tuple[int | str, ...]:
        """What the rule for the input at `position` reads."""
        return self.reads[position if len(self.rules) > 1 else 0]


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
        elementwise = not made.keywords and made.arrays is not None

        @wraps(forward)
        def apply(*args: Any, **params: Any) -> Any:
            if not elementwise or params:
                args, params = made.bind(args, params)
            for arg in args:
                if type(arg) is Tensor:
                    return record(made, args, params)
            plain = [arg if isinstance(arg, _PLAIN) else np.asarray(arg) for arg in args]
            if plain and isinstance(plain[0], int | float | complex):
                plain[0] = np.asarray(plain[0])
            return forward(*plain, **params)  # type: ignore[arg-type]

        return apply

    return declare


def record(made: Primitive, args: tuple[Any, ...], params: dict[str, Any]) -> Any:
    """Compute an operation on `args`, of which one at least is a tensor, and record it as a node."""
    nodes: list[Any] = []
    values: list[Any] = []
    for arg in args:
        if type(arg) is Tensor:
            nodes.append(arg.node)
            values.append(arg._value)
        else:
            if not isinstance(arg, _PLAIN):
                arg = np.asarray(arg)
            nodes.append(arg)
            values.append(arg)
    out = made.forward(*values, **params)
    kept = None
    if made.joint:
        out, kept = out
    if not isinstance(out, np.ndarray | np.generic):  # NumPy hands out the bare element of a 0-d object array
        out = _boxed(out)
    if not mode.recording:
        out = np.asarray(out)
        result = Tensor(out, Leaf(out))
        return (result, kept) if made.joint else result

    wanted = [isinstance(node, Node) and node.requires_grad for node in nodes] if made.rules else []
    edges: list[Edge] = []
    guards: dict[Buffer, int] = {}

    def read(position: int) -> tuple[Any, ...]:
        found = []
        for code in made.position_reads(position):
            if code == OUT:
                found.append(out)
            elif isinstance(code, int):
                found.append(values[code])
                if isinstance(nodes[code], Node) and (buffer := nodes[code].buffer) is not None:
                    guards[buffer] = buffer.version
            elif code == "shape":
                found.append(nodes[position].shape)
            elif code in params:
                found.append(params[code])
            elif code == "shapes":
                found.append(tuple([np.shape(value) for value in values]))
            else:
                found.append({"position": position, "kept": kept}[code])
        return tuple(found)

    if made.joint and any(wanted):
        targets = tuple([node if want else None for node, want in zip(nodes, wanted, strict=True)])
        edges.append((targets, 0, made.rules[0], read(0)))
    elif not made.joint:
        for position, want in enumerate(wanted):
            if want:
                rule = made.rules[position if len(made.rules) > 1 else 0]
                if rule is None:
                    raise TypeError(f"{made.name} has no derivative with respect to its argument {position + 1}")
                edges.append((nodes[position], position, rule, read(position)))
    buffer = nodes[0].buffer if made.view and out.base is not None else None
    node = Node(
        made,
        tuple(nodes),
        params,
        out.shape,
        out.dtype,
        tuple(edges),
        tuple(guards.items()),
        buffer,
        bool(edges),
    )
    result = Tensor(out, node)
    return (result, kept) if made.joint else result


def _boxed(element: Any) -> np.ndarray[Any, np.dtype[Any]]:
    box = np.empty((), dtype=object)
    box[()] = element
    return box
